"""The landmarks of a registered pair: the moving ones on the fixed side, and how far they are from the fixed ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from istn_monai.apply import move_points
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.landmarks import is_points, matched, read_points, write_points
from istn_monai.io.paths import absolute
from istn_monai.transforms.keys import POINT_KEYS

MOVED, ERRORS = "moved_points.csv", "moved_points.json"


def check_points(files: Mapping[str, str | None], output_dir: str | Path) -> bool:
    """Whether a pair has landmarks to move; before any work.

    Args:
        files: of the pair, by key; ``moving_points`` and ``fixed_points`` are landmark files.
        output_dir: where ``MOVED`` and ``ERRORS`` will be.

    Raises:
        ValueError: naming the file, if it is an image, cannot be read, or has no name in common with the other one.
        FileExistsError: if it would be replaced.
    """
    given = {key: file for key in POINT_KEYS if (file := files.get(key))}
    for key, file in given.items():
        if not is_points(file):
            raise ValueError(f"{key}: {file} is no landmark file: leave it out, and move a landmark map by apply")
        read_points(file)
        if absolute(file).resolve() in {(absolute(output_dir) / name).resolve() for name in (MOVED, ERRORS)}:
            raise FileExistsError(f"{key} {file} would be replaced by a result: choose another output_dir")
    if len(given) == 2:
        matched(*(given[key] for key in POINT_KEYS))
    return POINT_KEYS[0] in given


def write_moved(transform: WorldTransform, files: Mapping[str, str | None], output_dir: str | Path) -> None:
    """Writes a pair's moving landmarks on the fixed side, LPS, and target registration errors in mm by name.

    Args:
        transform: fixed to moving points.
        files: as in :func:`check_points`.
        output_dir: folder, existing.
    """
    moving_file, fixed_file = (files.get(key) for key in POINT_KEYS)
    if moving_file is None:
        return
    moved = move_points(read_points(moving_file), transform)
    write_points(moved, absolute(output_dir) / MOVED)
    if fixed_file is not None:
        moving, fixed = matched(moving_file, fixed_file)
        errors = move_points(moving, transform).positions - fixed.positions
        lengths = errors.norm(dim=1)
        report = {"tre_mm": dict(zip(fixed.labels, lengths.tolist(), strict=True)), "mean": lengths.mean().item()}
        (absolute(output_dir) / ERRORS).write_text(json.dumps(report, indent=1))
