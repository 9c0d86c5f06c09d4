"""What a user means by a data set: a datalist, or a folder of images and labels, for which pairs are drawn."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from istn_monai.io.data_folders import LABEL_FOLDERS, LAYOUT, POINT_FOLDERS, data_set_subjects, is_data_set
from istn_monai.io.datalist import SPLITS, Item, content_of, existing, read_datalist
from istn_monai.io.nnunet import FILE
from istn_monai.io.paths import check_output_dir
from istn_monai.io.subject_files import EVERYTHING, Selection, structure_names
from istn_monai.pairing import checked_counts, write_pairs
from istn_monai.transforms.keys import IMAGE_KEYS, SIDES

DATALIST = "pairs.json"
FEWEST_SUBJECTS = 6  # two for each split


@dataclass(frozen=True)
class DataSet:
    """A data set, as far as names say it; no image was read.

    Attributes:
        source: what the user gave, absolute.
        datalist: its pairs.
        items: ``{split: [{key: absolute path}]}``.
        kinds: what all pairs have beside images, of "label" and "points".
        names: of structures by label value, as far as the datalist says them.
    """

    source: Path
    datalist: Path
    items: dict[str, list[Item]]
    kinds: tuple[str, ...]
    names: dict[int, str] = field(default_factory=dict)

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
    """Absolute path of a folder or a JSON file; the description of a folder of nnU-Net stands for that folder.

    Raises:
        FileNotFoundError: if there is nothing of that name.
        ValueError: for any other file.
    """
    path = Path(os.path.abspath(Path(data).expanduser()))  # normal, so that ".." has a name
    if not path.exists():
        raise FileNotFoundError(f"data: no such folder or file: {path}; give a folder with {LAYOUT}, or a datalist")
    if path.is_file() and path.suffix != ".json":
        raise ValueError(f"data must be a folder or a datalist (.json), got the file {path}; the folder is {LAYOUT}")
    describes = path.name == FILE and is_data_set(path.parent) and not has_pairs(path)
    return path.parent if describes else path


def read_settings(file: Path) -> dict[str, Any]:
    """What a datalist or a plan holds, or a ValueError that names the file."""
    return content_of(file, "datalist or plan", "a JSON object")


def is_datalist(file: Path) -> bool:
    """Whether a JSON file has a split of a datalist; if not, it has settings."""
    return not read_settings(file).keys().isdisjoint(SPLITS)


def has_pairs(file: Path) -> bool:
    """Whether a JSON file is a datalist of pairs, and none of single images; a file that cannot be read is not."""
    try:
        content = read_settings(file)
    except (ValueError, OSError):
        return False
    items = [item for split in SPLITS for item in content.get(split) or [] if isinstance(content[split], list)]
    return any(isinstance(item, dict) and not item.keys().isdisjoint(IMAGE_KEYS) for item in items)


def data_set(source: Path, drawn: Path, selection: Selection = EVERYTHING) -> DataSet:
    """The data set that a user means.

    Args:
        source: as :func:`source_of` gives it.
        drawn: where pairs are written that are drawn for a folder without pairs.json. What it holds must be the same
            draw, which is then used.
        selection: of the images and label maps of a folder without pairs.json.

    Raises:
        FileNotFoundError: for a folder without images, or a datalist with a missing file.
        ValueError: if there is nothing to learn from, or too little.
        FileExistsError: if ``drawn`` holds something else.
    """
    datalist = folder_datalist(source, drawn, selection) if source.is_dir() else existing(source)
    if selection != EVERYTHING and datalist != drawn:
        raise ValueError(
            f"modality and label_map choose among the files of a folder, and {datalist} has its pairs "
            "already: leave them out, or move it away"
        )
    if not is_datalist(datalist):
        raise ValueError(f"{datalist} has no pairs but settings: train with it, or give a folder or a datalist")
    content = read_settings(datalist)
    splits = [split for split in SPLITS if split != SPLITS[2] or split in content]
    items = read_datalist(datalist, splits, IMAGE_KEYS)
    kinds = common_kinds(items, datalist)
    check_files(items, datalist)
    return DataSet(source, datalist, items, kinds, structure_names(content.get("labels")))


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


def folder_datalist(folder: Path, drawn: Path, selection: Selection) -> Path:
    """The datalist of a folder: its pairs.json, or drawn pairs."""
    used = folder / DATALIST
    others = [
        file.name
        for file in sorted(folder.glob("*.json"))
        if file.name != DATALIST and file != drawn and has_pairs(file)
    ]
    datalist = used if used.is_file() else draw(folder, drawn, selection)
    if others:
        print(f"{', '.join(others)} in {folder} not used, but {datalist}; to use one, give it in the folder's place")
    return datalist


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


def draw(folder: Path, output: Path, selection: Selection) -> Path:
    """Draws pairs of a folder, the same ones each time, and writes them unless they are there."""
    found = data_set_subjects(folder, selection)
    if found.kinds == ["image"]:
        wanted = ", ".join(LABEL_FOLDERS + POINT_FOLDERS)
        raise FileNotFoundError(
            f"no labels and no landmarks ({wanted}) in {folder}: training needs them for each image; data are {LAYOUT}"
        )
    subjects = len(found.visits)
    if subjects < FEWEST_SUBJECTS:
        raise ValueError(
            f"{folder} has {subjects} subject{'s' * (subjects != 1)}, at least {FEWEST_SUBJECTS} are needed: two each "
            "for training, validation and testing; add subjects (some 20 are a good beginning)"
        )
    check_output_dir(output.parent, "the plan's folder")
    part = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        write_pairs(found, folder.name, part, checked_counts(**pair_counts(subjects)))
        if not output.exists():
            os.replace(part, output)
        elif output.read_bytes() != part.read_bytes():
            raise FileExistsError(
                f"{output} exists and holds other pairs than those drawn from {folder} now (were subjects added, or "
                "other files chosen?): move it away, or give another output"
            )
    finally:
        part.unlink(missing_ok=True)
    return output
