"""Files of folders, joined by their names: an image, its label map and its landmarks are called alike.

Convention:
    A case is what a file is called without its suffix. nnU-Net has a file for each channel of an image, ``CASE_0000``,
    ``CASE_0001``, of which one is used.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from istn_monai.io.datalist import IMAGE_SUFFIXES
from istn_monai.io.paths import absolute
from istn_monai.io.subject_files import Visit, examples

CHANNEL = re.compile(r"(.+)_(\d{4})")
Channels = dict[int, Path]


def stem_of(file: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> str | None:
    """What a file is called without its suffix; None if it has another one, or is hidden."""
    suffix = next((s for s in suffixes if file.name.lower().endswith(s.lower())), None)
    return None if suffix is None or file.name.startswith(".") else file.name[: -len(suffix)]


def named_files(
    folder: str | Path, name: str, suffixes: Sequence[str] = IMAGE_SUFFIXES, what: str = "image"
) -> dict[str, Path]:
    """Files of a folder by their names without suffix.

    Args:
        folder: to look into, not deeper.
        name: of the argument, for errors.
        suffixes: of the files that count.
        what: a file is, for errors.
    """
    path = absolute(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: no such folder: {path}")
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        stem = stem_of(file, suffixes)
        if stem in files:
            raise ValueError(f"{name}: two {what}s of one subject, {files[stem].name} and {file.name}, in {path}")
        if stem is not None:
            files[stem] = file
    if not files:
        raise ValueError(f"{name}: no {what} ({', '.join(suffixes)}) in {path}")
    return files


def by_case(files: Mapping[str, Path], cases: Collection[str], has_channels: bool = False) -> dict[str, Channels]:
    """Images by case and channel.

    Args:
        files: images by name.
        cases: names of label maps or landmark files. They tell a channel from a number at the end of a name; without
            them all names must have a channel, or none has.
        has_channels: several channels are known to be such, also without cases.

    Examples:
        >>> by_case({"a_0000": Path("a_0000.nii.gz")}, ["a"]), by_case({"a_0000": Path("a_0000.nii.gz")}, ["a_0000"])
        ({'a': {0: PosixPath('a_0000.nii.gz')}}, {'a_0000': {0: PosixPath('a_0000.nii.gz')}})
    """
    if not cases and not all_channels(files, has_channels):
        return {name: {0: file} for name, file in files.items()}
    found: dict[str, Channels] = {}
    for name, file in files.items():
        match = None if name in cases else CHANNEL.fullmatch(name)
        case, channel = (match[1], int(match[2])) if match and (not cases or match[1] in cases) else (name, 0)
        other = found.setdefault(case, {}).setdefault(channel, file)
        if other != file:
            raise ValueError(f"images: {other.name} and {file.name} are both channel 0 of {case}: remove one of them")
    return found


def all_channels(files: Mapping[str, Path], known: bool) -> bool:
    """Whether all names end in a channel; ValueError where that may as well be the number of a subject."""
    matches = [CHANNEL.fullmatch(name) for name in files]
    if not all(matches) or not any(match and match[2] == "0000" for match in matches):
        return False
    cases = {match[1] for match in matches if match}
    if len(cases) == 1 and len(files) > 1:  # case_0000, case_0001: numbers of subjects
        return False
    if len(cases) < len(files) and not known:
        raise ValueError(
            f"images: several files of one subject, such as {examples(sorted(files))}: if these are nnU-Net's channels "
            "choose one, as by --modality 0"
        )
    return True


def channel_number(modality: str | None, names: Mapping[int, str]) -> int:
    """The channel that a user means by its number or its name; by default the first."""
    if modality is None:
        return 0
    if modality.isdecimal():
        return int(modality)
    found = [number for number, name in names.items() if name.lower() == modality.lower()]
    if not found:
        known = f", or {', '.join(names.values())} by dataset.json" if names else ""
        raise ValueError(f"modality {modality!r} is no channel of these images: give a number, such as 0{known}")
    return found[0]


def one_channel(
    cases: Mapping[str, Channels], modality: str | None, names: Mapping[int, str]
) -> tuple[dict[str, Path], list[str]]:
    """The image of each case that counts, and a remark on those that do not.

    Args:
        cases: from :func:`by_case`.
        modality: see :func:`channel_number`.
        names: of the channels, as far as they are known.
    """
    number = channel_number(modality, names)
    lacking = sorted(case for case, channels in cases.items() if number not in channels)
    if lacking:
        there = sorted({channel for channels in cases.values() for channel in channels})
        raise ValueError(
            f"images: {len(lacking)} cases have no channel {number}, for example {examples(lacking)}; channels are "
            f"{', '.join(map(str, there))}: choose one that all cases have, as by --modality {there[0]}"
        )
    others = sum(map(len, cases.values())) - len(cases)
    called = f" ({names[number]})" if number in names else ""
    remark = f"channel {number}{called} of each image counts, {others} files of other channels do not; see --modality"
    return {case: channels[number] for case, channels in cases.items()}, [remark] if others else []


def joined(images: Mapping[str, Path], others: Mapping[str, Mapping[str, Path]]) -> tuple[dict[str, Visit], list[str]]:
    """The files of each case, and remarks on those that belong to none.

    Args:
        images: by case.
        others: label maps and landmarks by their kind and case.

    Raises:
        ValueError: for an image without the others, naming it and what is there without an image.
    """
    remarks = []
    for kind, files in others.items():
        bare = [images[case].name for case in sorted(set(images) - set(files))]
        spare = [files[case].name for case in sorted(set(files) - set(images))]
        if bare:
            folder = next(iter(files.values())).parent
            hint = f"; without an image there: {examples(spare)}" if spare else ""
            raise ValueError(
                f"{len(bare)} images have no {kind} of the same name in {folder}, for example {examples(bare)}{hint}: "
                "give both one name, or move these images away"
            )
        if spare:
            remarks.append(f"{len(spare)} {kind} files without an image of their name are left out: {examples(spare)}")
    return {
        case: {"image": image, **{kind: files[case] for kind, files in others.items()}}
        for case, image in sorted(images.items())
    }, remarks
