"""Drawing random pairs from a folder of subjects."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from istn_monai.io.datalist import IMAGE_SUFFIXES, SPLITS, read_json
from istn_monai.io.landmarks import POINT_SUFFIXES
from istn_monai.io.paths import absolute, check_apart, new_file, not_written, replacing


def image_files(folder: str | Path, name: str, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Image files of a folder, or those of other suffixes, by their names without suffix."""
    path = absolute(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: no such folder: {path}")
    what = "image" if suffixes == IMAGE_SUFFIXES else "landmark file"
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        suffix = next((s for s in suffixes if file.name.lower().endswith(s)), None)
        if suffix and not file.name.startswith("."):
            stem = file.name[: -len(suffix)]
            if stem in files:
                raise ValueError(f"{name}: two {what}s of one subject, {files[stem].name} and {file.name}, in {path}")
            files[stem] = file
    if not files:
        raise ValueError(f"{name}: no {what} ({', '.join(suffixes)}) in {path}")
    return files


def without_channel(files: Mapping[str, Path]) -> dict[str, Path]:
    """Images by their subjects: nnU-Net calls the image of ``case`` ``case_0000``.

    Examples:
        >>> without_channel({"a_0000": Path("a_0000.nii.gz")}), without_channel({"a": Path("a.png")})
        ({'a': PosixPath('a_0000.nii.gz')}, {'a': PosixPath('a.png')})
    """
    channels = [re.fullmatch(r"(.+)_(\d{4})", name) for name in files]
    subjects = {found[1] for found in channels if found}
    if not all(channels) or not any(found and found[2] == "0000" for found in channels):
        return dict(files)
    if len(subjects) == 1 and len(files) > 1:  # case_0000, case_0001: numbers of subjects
        return dict(files)
    if len(subjects) < len(files):
        names = sorted(files)[:3]
        raise ValueError(
            f"images: several files of one subject, such as {', '.join(names)}: nnU-Net's channels must be one file"
        )
    return {name[: -len("_0000")]: file for name, file in files.items()}


def fewest_subjects(pairs: int) -> int:
    """The smallest n with ``n (n - 1)`` ordered pairs or more; 0 for no pair."""
    subjects = 0
    while subjects * (subjects - 1) < pairs:
        subjects += 1
    return subjects


def split_subjects(names: Sequence[str], counts: Mapping[str, int], rng: np.random.Generator) -> dict[str, list[str]]:
    """Distributes subjects among splits, none in two, each split enough of them for its number of pairs.

    What is left over after each split's fewest goes to training, or to the first split that has any pair.
    """
    needed = {split: fewest_subjects(number) for split, number in counts.items()}
    if sum(needed.values()) > len(names):
        raise ValueError(
            f"{len(names)} subjects are too few for {dict(counts)} pairs with no subject in two splits: "
            f"at least {needed} subjects are needed; ask for fewer pairs"
        )
    # a split gets more subjects than its fewest if there are many: 2 pairs of each subject are variety enough
    wanted = {split: max(needed[split], min(number, len(names) // 5)) for split, number in counts.items() if number}
    largest = next(iter(wanted))
    rest = {split: number for split, number in wanted.items() if split != largest}
    while sum(rest.values()) + needed[largest] > len(names):
        widest = max(rest, key=lambda split: rest[split] - needed[split])
        rest[widest] -= 1
    order = [names[i] for i in rng.permutation(len(names))]
    subjects_of, start = {}, 0
    for split, number in rest.items():
        subjects_of[split] = order[start : start + number]
        start += number
    subjects_of[largest] = order[start:]
    return subjects_of


def draw_pairs(subjects: Sequence[str], number: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Different ordered pairs (moving, fixed) of different subjects."""
    possible = len(subjects) * (len(subjects) - 1)
    pairs = []
    for code in rng.choice(possible, size=number, replace=False):
        moving, fixed = divmod(int(code), len(subjects) - 1)
        pairs.append((subjects[moving], subjects[fixed + (fixed >= moving)]))
    return pairs


def make_datalist(
    images: str | Path,
    output: str | Path,
    labels: str | Path | None = None,
    train: int = 100,
    validation: int = 10,
    test: int = 100,
    seed: int = 0,
    landmarks: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Draws random pairs from a folder of subjects and writes them as a datalist.

    Args:
        images: folder with one image for each subject.
        output: JSON file to write; an equal one that is there is left as it is.
        labels: folder with the label maps, named as the images.
        train: number of training pairs.
        validation: number of validation pairs.
        test: number of test pairs. No subject is in two splits.
        seed: makes the draw repeatable.
        landmarks: folder with a landmark file, or a landmark map, for each image, named as it.
        overwrite: replace an existing datalist; never a file of another kind.

    Returns:
        The file's absolute path.
    """
    path = absolute(output)
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    if not all(isinstance(n, int) and n >= 0 for n in counts.values()) or not sum(counts.values()):
        raise ValueError(f"train, validation and test must be whole numbers of at least 0, not all 0, got {counts}")
    image_of = without_channel(image_files(images, "images"))
    files_of = {"image": image_of}
    others = (
        ("label", "labels", labels, IMAGE_SUFFIXES),
        ("points", "landmarks", landmarks, (*POINT_SUFFIXES, *IMAGE_SUFFIXES)),
    )
    for kind, name, folder, suffixes in others:
        if folder is not None:
            files_of[kind] = image_files(folder, name, suffixes)
            unmatched = sorted(set(image_of) - set(files_of[kind]))
            if unmatched:
                raise ValueError(
                    f"{len(unmatched)} images have no {kind} of the same name in {folder}, for example {unmatched[:3]}"
                )
    rng = np.random.default_rng(seed)
    subjects_of = split_subjects(sorted(image_of), counts, rng)
    content: dict[str, Any] = {"name": Path(images).absolute().parent.name, "seed": seed}
    for split, subjects in subjects_of.items():
        content[split] = []
        for moving, fixed in draw_pairs(subjects, counts[split], rng):
            files = {f"{side}_{kind}": known[subject] for kind, known in files_of.items()
                     for side, subject in (("moving", moving), ("fixed", fixed))}  # fmt: skip
            content[split].append({key: relative_to(file, path.parent) for key, file in files.items()})
    return write_datalist(content, path, files_of, overwrite)


def write_datalist(
    content: Mapping[str, Any], path: Path, files_of: Mapping[str, Mapping[str, Path]], overwrite: bool = False
) -> Path:
    """Writes a datalist, whole or not at all; one that is there with the same content stays.

    Args:
        content: of the JSON.
        path: to write.
        files_of: the files that it names, none of which is replaced.
        overwrite: replaces another datalist; a file of another kind raises an error.
    """
    text = json.dumps(content, indent=1)
    if path.is_file() and path.read_bytes() == text.encode():
        return path
    inputs = [(kind, file) for kind, files in files_of.items() for file in files.values()]
    check_apart([path], inputs, "choose another output")
    if overwrite and path.is_file() and not set(SPLITS) & set(read_json(path, "output", "a datalist")):
        raise FileExistsError(f"output {path} is no datalist and is left alone: choose another name")
    new_file(path, overwrite=overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(path, error) from error
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def relative_to(file: Path, folder: Path) -> str:
    """Path of a file as seen from a folder, if need be upwards; past links, where ``..`` would lead elsewhere."""
    path = os.path.relpath(file, folder)
    if os.path.realpath(folder / path) != os.path.realpath(file):
        path = os.path.relpath(os.path.join(os.path.realpath(file.parent), file.name), os.path.realpath(folder))
    return Path(path).as_posix()
