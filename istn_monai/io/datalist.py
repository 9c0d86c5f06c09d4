"""Datalists of pairs: MONAI's JSON (``training`` / ``validation`` / ``testing``, paths relative to the file)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from istn_monai.io.paths import absolute

SPLITS = ("training", "validation", "testing")
PATH_KEYS = tuple(f"{side}_{kind}" for kind in ("image", "label", "points") for side in ("moving", "fixed"))
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png")
Item = dict[str, str]


def existing(file: str | Path) -> Path:
    """Absolute path of a datalist, or FileNotFoundError."""
    path = absolute(file)
    if not path.is_file():
        raise FileNotFoundError(f"datalist not found: {path}; give dataset_dir and data_list_file")
    return path


def read_datalist(file: str | Path, splits: Sequence[str] = SPLITS) -> dict[str, list[Item]]:
    """The pairs of a datalist, with absolute paths.

    Args:
        file: the JSON file.
        splits: which lists it must have.
    """
    path = existing(file)
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"datalist {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"datalist {path} must be a JSON object with lists {SPLITS}, got {type(content).__name__}")
    return {split: split_items(content, split, path) for split in splits}


def split_items(content: Mapping[str, Any], split: str, path: Path) -> list[Item]:
    """One split of a datalist, checked, with absolute paths."""
    pairs = content.get(split)
    if not isinstance(pairs, list) or not pairs:
        lists = sorted(key for key, value in content.items() if isinstance(value, list) and value)
        raise ValueError(f"datalist {path} needs a list {split!r} with at least one pair; its lists are {lists}")
    items = []
    for index, pair in enumerate(pairs):
        missing = [k for k in ("moving_image", "fixed_image") if not isinstance(pair, dict) or k not in pair]
        if missing:
            found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
            raise ValueError(f"datalist {path}: {split}[{index}] has no key {missing[0]!r}, only {found}")
        wrong = [k for k in PATH_KEYS if k in pair and not isinstance(pair[k], str)]
        if wrong:
            key = wrong[0]
            raise ValueError(f"datalist {path}: {split}[{index}] needs one path for {key!r}, got {pair[key]!r}")
        items.append({k: str(path.parent / v) for k, v in pair.items() if k in PATH_KEYS})
    return items


def pair_item(moving_image: str | None, fixed_image: str | None, moving_label: str | None = None) -> Item:
    """The item of one pair: the files that are given, by their keys."""
    files = {"moving_image": moving_image, "fixed_image": fixed_image, "moving_label": moving_label}
    return {key: str(Path(file).expanduser()) for key, file in files.items() if file is not None}
