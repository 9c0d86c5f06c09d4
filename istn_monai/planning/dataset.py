"""What a user means by a data set: a datalist, or a folder of images and labels, for which pairs are drawn."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from istn_monai.io.datalist import IMAGE_SUFFIXES, SPLITS, Item, content_of, existing, read_datalist
from istn_monai.io.landmarks import POINT_SUFFIXES
from istn_monai.io.paths import check_output_dir
from istn_monai.pairing import image_files, make_datalist
from istn_monai.transforms.keys import IMAGE_KEYS, SIDES

#: names of sub-folders: plain ones, and those of the Medical Segmentation Decathlon and nnU-Net
IMAGE_FOLDERS, LABEL_FOLDERS, POINT_FOLDERS = ("images", "imagesTr"), ("labels", "labelsTr"), ("landmarks", "points")
DATALIST = "pairs.json"
LAYOUT = "FOLDER/images and FOLDER/labels (or FOLDER/landmarks), with a file of the same name for each subject"
FEWEST_SUBJECTS = 6  # two for each split


@dataclass(frozen=True)
class DataSet:
    """A data set, as far as names say it; no image was read.

    Attributes:
        source: what the user gave, absolute.
        datalist: its pairs.
        items: ``{split: [{key: absolute path}]}``.
        kinds: what all pairs have beside images, of "label" and "points".
    """

    source: Path
    datalist: Path
    items: dict[str, list[Item]]
    kinds: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the data set, fit for a file's name."""
        return name_of(self.source)

    @property
    def origin(self) -> dict[str, str]:
        """What tells this data set from another one: where it is, and which pairs it has."""
        return {"data": str(self.source), "pairs": hashlib.sha256(self.datalist.read_bytes()).hexdigest()}


def name_of(source: Path) -> str:
    """The name of a folder; of a datalist that of its folder, and its own unless that is pairs.json."""
    stem = source.name.removesuffix(".json")
    if source.name == DATALIST:
        stem = source.parent.name
    elif stem != source.name:  # else two datalists of one name in two folders would share a plan and a run
        stem = f"{source.parent.name}_{stem}"
    return re.sub(r"[^\w.-]+", "_", stem).strip("._-") or "data"


def source_of(data: str | os.PathLike) -> Path:
    """Absolute path of a folder or a JSON file.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: for any other file.
    """
    path = Path(os.path.abspath(Path(data).expanduser()))  # normal, so that ".." has a name
    if not path.exists():
        raise FileNotFoundError(f"data: no such folder or file: {path}; give a folder with {LAYOUT}, or a datalist")
    if path.is_file() and path.suffix != ".json":
        raise ValueError(f"data must be a folder or a datalist (.json), got the file {path}; the folder is {LAYOUT}")
    return path


def read_settings(file: Path) -> dict[str, Any]:
    """What a datalist or a plan holds, or a ValueError that names the file."""
    return content_of(file, "datalist or plan", "a JSON object")


def is_datalist(file: Path) -> bool:
    """Whether a JSON file has a split of a datalist; if not, it has settings."""
    return not read_settings(file).keys().isdisjoint(SPLITS)


def data_set(source: Path, drawn: Path) -> DataSet:
    """The data set that a user means.

    Args:
        source: as :func:`source_of` gives it.
        drawn: where pairs are written that are drawn for a folder without pairs.json. What it holds must be the same
            draw, which is then used.

    Raises:
        FileNotFoundError: for a folder without images, or a datalist with a missing file.
        ValueError: if there is nothing to learn from, or too little.
        FileExistsError: if ``drawn`` holds something else.
    """
    datalist = folder_datalist(source, drawn) if source.is_dir() else existing(source)
    if not is_datalist(datalist):
        raise ValueError(f"{datalist} has no pairs but settings: train with it, or give a folder or a datalist")
    splits = [split for split in SPLITS if split != SPLITS[2] or split in read_settings(datalist)]
    items = read_datalist(datalist, splits, IMAGE_KEYS)
    kinds = common_kinds(items, datalist)
    check_files(items, datalist)
    return DataSet(source, datalist, items, kinds)


def common_kinds(items: dict[str, list[Item]], datalist: Path) -> tuple[str, ...]:
    """What all pairs have of labels and points; ValueError if that is nothing, or if only some have them."""
    kinds = []
    for kind in ("label", "points"):  # a mask may be of some images alone
        keys = [f"{side}_{kind}" for side in SIDES]
        lacking = [
            f"{split}[{index}]"
            for split, pairs in items.items()
            for index, item in enumerate(pairs)
            if not item.keys() >= set(keys)
        ]
        if len(lacking) < sum(map(len, items.values())):
            if lacking:
                raise ValueError(
                    f"datalist {datalist}: {len(lacking)} pairs lack {' or '.join(keys)} that others have, the "
                    f"first is {lacking[0]}; add them or take these pairs out"
                )
            kinds.append(kind)
    if not kinds:
        raise ValueError(
            f"datalist {datalist} has neither labels nor landmarks: training needs moving_label and fixed_label, or "
            "moving_points and fixed_points, in each pair"
        )
    return tuple(kinds)


def check_files(items: dict[str, list[Item]], datalist: Path) -> None:
    """FileNotFoundError that names the first file that a datalist misses."""
    for split, pairs in items.items():
        for index, item in enumerate(pairs):
            for key, file in item.items():
                if not Path(file).is_file():
                    raise FileNotFoundError(
                        f"datalist {datalist}: {split}[{index}] {key}: no such file: {file}; paths are relative to the "
                        "datalist"
                    )


def folder_datalist(folder: Path, drawn: Path) -> Path:
    """The datalist of a folder: its pairs.json, or drawn pairs."""
    used = folder / DATALIST
    others = [
        file.name
        for file in sorted(folder.glob("*.json"))
        if file.name != DATALIST and file != drawn and is_other_datalist(file)
    ]
    datalist = used if used.is_file() else draw(folder, drawn)
    if others:
        print(f"{', '.join(others)} in {folder} not used, but {datalist}; to use one, give it in the folder's place")
    return datalist


def is_other_datalist(file: Path) -> bool:
    """As :func:`is_datalist`; a file that cannot be read is none."""
    try:
        return is_datalist(file)
    except (ValueError, OSError):
        return False


def sub_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """The one sub-folder that has one of these names; ValueError if there are two."""
    found = [folder / name for name in names if (folder / name).is_dir()]
    if len(found) > 1:
        raise ValueError(
            f"{folder} has both {' and '.join(path.name for path in found)}: remove one, or give a datalist"
        )
    return found[0] if found else None


def pair_counts(subjects: int) -> dict[str, int]:
    """Pairs of each split: an eighth of the subjects for validation, a fifth for testing, at least two for each.

    Examples:
        >>> pair_counts(24)
        {'train': 100, 'validation': 6, 'test': 12}
    """
    validation, test = max(2, subjects // 8), max(2, subjects // 5)
    train = subjects - validation - test
    limits = {"train": (100, train), "validation": (10, validation), "test": (50, test)}
    return {split: min(most, n * (n - 1)) for split, (most, n) in limits.items()}


def draw(folder: Path, output: Path) -> Path:
    """Draws pairs of a folder, the same ones each time, and writes them unless they are there."""
    images, labels, points = (sub_folder(folder, names) for names in (IMAGE_FOLDERS, LABEL_FOLDERS, POINT_FOLDERS))
    if images is None:
        raise FileNotFoundError(f"no folder {' or '.join(IMAGE_FOLDERS)} in {folder}: data are {LAYOUT}, or a datalist")
    if labels is None and points is None:
        wanted = ", ".join(LABEL_FOLDERS + POINT_FOLDERS)
        raise FileNotFoundError(
            f"no labels and no landmarks ({wanted}) in {folder}: training needs them for each image; data are {LAYOUT}"
        )
    for path, name, suffixes in (
        (labels, "labels", IMAGE_SUFFIXES),
        (points, "landmarks", (*POINT_SUFFIXES, *IMAGE_SUFFIXES)),
    ):
        if path is not None:
            image_files(path, name, suffixes)
    subjects = len(image_files(images, "images"))
    if subjects < FEWEST_SUBJECTS:
        raise ValueError(
            f"{images} has {subjects} subject{'s' * (subjects != 1)}, at least {FEWEST_SUBJECTS} are needed: two each "
            "for training, validation and testing; add subjects (some 20 are a good beginning)"
        )
    check_output_dir(output.parent, "the plan's folder")
    part = output.with_name(f".{output.name}.{os.getpid()}")
    counts = pair_counts(subjects)
    try:
        make_datalist(images, part, labels, counts["train"], counts["validation"], counts["test"], landmarks=points)
        if not output.exists():
            os.replace(part, output)
        elif output.read_bytes() != part.read_bytes():
            raise FileExistsError(
                f"{output} exists and holds other pairs than those drawn from {folder} now (were subjects added?): "
                "move it away, or give another output"
            )
    finally:
        part.unlink(missing_ok=True)
    return output
