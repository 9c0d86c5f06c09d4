"""The landmarks of a registered pair: the moving ones on the fixed side, and how far they are from the fixed ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from istn_monai.apply import move_points
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.landmarks import Points, is_points, matched, read_points
from istn_monai.transforms.keys import POINT_KEYS


def check_points(files: Mapping[str, str]) -> None:
    """ValueError, naming the file, if landmarks cannot be moved; before any work.

    Args:
        files: landmark files, by ``moving_points`` and ``fixed_points``, as far as there are.
    """
    for key, file in files.items():
        if not is_points(file):
            raise ValueError(f"{key}: {file} is no landmark file: leave it out, and move a landmark map by apply")
        read_points(file)
    if len(files) == 2:
        matched(*(files[key] for key in POINT_KEYS))


def moved(transform: WorldTransform, files: Mapping[str, str]) -> Points:
    """A pair's moving landmarks on the fixed side.

    Args:
        transform: fixed to moving points.
        files: as in :func:`check_points`.
    """
    return move_points(read_points(files[POINT_KEYS[0]]), transform)


def errors(transform: WorldTransform, files: Mapping[str, str]) -> dict[str, Any]:
    """Target registration errors in mm, by the landmarks' names, and their mean; empty without ``fixed_points``."""
    if len(files) < 2:
        return {}
    moving, fixed = matched(*(files[key] for key in POINT_KEYS))
    lengths = (move_points(moving, transform).positions - fixed.positions).norm(dim=1)
    return {"tre_mm": dict(zip(fixed.labels, lengths.tolist(), strict=True)), "mean": lengths.mean().item()}
