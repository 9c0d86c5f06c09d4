"""Datalists: MONAI's JSON (``training`` / ``validation`` / ``testing``, lists of items, paths relative to the file).

A ``*_dataset.json`` of Learn2Reg is taken wherever a datalist is, see :mod:`istn_monai.io.learn2reg`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from istn_monai.io.json_files import read_json
from istn_monai.io.learn2reg import as_datalist, is_learn2reg
from istn_monai.io.paths import absolute

__all__ = [
    "HEADERS", "IMAGE_SUFFIXES", "KINDS", "SPLITS", "Item", "checked_item", "content_of", "existing", "read_datalist",
    "read_json", "split_items",
]  # fmt: skip

SPLITS = ("training", "validation", "testing")
KINDS = ("image", "label", "points", "mask", "maps")  # of files; the last word of a key that holds a path
HEADERS = (".mhd", ".nhdr", ".hdr")  # files whose voxels lie in another one
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".png", *HEADERS)
Item = dict[str, str]


def existing(file: str | Path) -> Path:
    """Absolute path of a datalist, or FileNotFoundError."""
    path = absolute(file)
    if not path.is_file():
        raise FileNotFoundError(f"datalist not found: {path}; give dataset_dir and data_list_file")
    return path


def content_of(
    path: Path, what: str = "datalist", expected: str = f"a JSON object with lists {SPLITS}"
) -> dict[str, Any]:
    """What a datalist holds, in our form whoever's it is; see :func:`istn_monai.io.json_files.read_json`."""
    content = read_json(path, what, expected)
    return as_datalist(content, path.parent) if is_learn2reg(content) else content


def read_datalist(
    file: str | Path, splits: Sequence[str] = SPLITS, needed: Sequence[str] = ()
) -> dict[str, list[Item]]:
    """The items of a datalist, with absolute paths.

    Args:
        file: the JSON file.
        splits: names of the lists that it must have.
        needed: keys that each item must have.
    """
    path = existing(file)
    content = content_of(path)
    return {split: split_items(content, split, path, needed) for split in splits}


def split_items(content: Mapping[str, Any], split: str, path: Path, needed: Sequence[str] = ()) -> list[Item]:
    """One split of a datalist, checked, with absolute paths."""
    items = content.get(split)
    if not isinstance(items, list) or not items:
        lists = sorted(key for key, value in content.items() if isinstance(value, list) and value)
        raise ValueError(f"datalist {path} needs a list {split!r} with at least one pair; its lists are {lists}")
    return [checked_item(item, path, f"{split}[{index}]", needed) for index, item in enumerate(items)]


def checked_item(item: Any, path: Path, place: str, needed: Sequence[str] = ()) -> Item:
    """The files of one item, with absolute paths, or a ValueError that names the datalist and the place in it."""
    if not isinstance(item, dict):
        raise ValueError(f"datalist {path}: {place} must be an object of keys and paths, got {type(item).__name__}")
    missing = [key for key in needed if key not in item]
    if missing:
        raise ValueError(f"datalist {path}: {place} has no key {missing[0]!r}, only {sorted(item)}")
    files = {key: value for key, value in item.items() if key.rpartition("_")[2] in KINDS}
    for key, value in files.items():
        if not isinstance(value, str):
            raise ValueError(f"datalist {path}: {place} needs one path for {key!r}, got {value!r}")
        if not value.strip():
            raise ValueError(
                f"datalist {path}: {place} has an empty path for {key!r}: give a file, or leave the key out"
            )
    return {key: str(path.parent / value) for key, value in files.items()}
