"""The landmarks of a registered pair: the moving ones on the fixed side, and how far they are from the fixed ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from istn_monai.apply import move_points
from istn_monai.geometry.grids import map_points
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.landmarks import Points, check_dims, is_points, matched, read_points, unmatched, warn_unmatched
from istn_monai.transforms.keys import POINT_KEYS


def check_points(files: Mapping[str, str], spatial_dims: int | None = None) -> None:
    """ValueError, naming the file, if landmarks cannot be moved; before any work. A warning if none are.

    Args:
        files: landmark files, by ``moving_points`` and ``fixed_points``, as far as there are.
        spatial_dims: of the network; None for any.
    """
    for key, file in files.items():
        if not is_points(file):
            raise ValueError(f"{key}: {file} is no landmark file: leave it out, and move a landmark map by apply")
        points = read_points(file)
        if spatial_dims is not None:
            check_dims(points, f"{key}: {file}", spatial_dims, "the network")
    if len(files) == 2:
        both = [files[key] for key in POINT_KEYS]
        matched(*both)
        warn_unmatched(*both)
    elif POINT_KEYS[1] in files:
        warnings.warn(f"{POINT_KEYS[1]} without {POINT_KEYS[0]}: no landmarks are moved or measured", stacklevel=2)


def moved(transform: WorldTransform, files: Mapping[str, str]) -> Points:
    """A pair's moving landmarks on the fixed side.

    Args:
        transform: fixed to moving points.
        files: as in :func:`check_points`.
    """
    return move_points(read_points(files[POINT_KEYS[0]]), transform, leave_out=True)


def errors(transform: WorldTransform, files: Mapping[str, str], start: Tensor | None = None) -> dict[str, Any]:
    """Target registration errors in mm, by the landmarks' names, and their mean; empty without ``fixed_points``.

    Of each moving landmark, the distance from where the fixed one is found in the moving image, as in evaluation.

    Names that one file alone has come under ``unmatched``, by key.

    Args:
        transform: fixed to moving points.
        files: as in :func:`check_points`.
        start: the initial alignment, fixed to moving world; what it alone leaves of the errors comes under ``before``,
            as in evaluation.
    """
    if len(files) < 2:
        return {}
    moving, fixed = matched(*(files[key] for key in POINT_KEYS))
    after = tre(fixed.moved_to(transform.transform_points(fixed.positions.T).T), moving)
    alone = dict(zip(POINT_KEYS, unmatched(*(files[key] for key in POINT_KEYS)), strict=True))
    if any(alone.values()):
        after["unmatched"] = alone
    if start is None:
        return after
    aligned = map_points(torch.as_tensor(start).double(), fixed.positions.T).T
    return {"before": tre(fixed.moved_to(aligned), moving), **after}


def tre(found: Points, moving: Points) -> dict[str, Any]:
    """Distances in mm of landmarks from those of the same names and order, and their mean."""
    lengths = (found.positions - moving.positions).norm(dim=1)
    return {"tre_mm": dict(zip(moving.labels, lengths.tolist(), strict=True)), "mean": lengths.mean().item()}


def unmet(tre_mm: Mapping[str, float], spacing: Sequence[float]) -> list[str]:
    """Names of landmarks that a registration which they guided has left far from where they shall be.

    More than two voxels of the registration grid away: such as contradict others, or the images, or are swapped.

    Args:
        tre_mm: errors by name.
        spacing: of the registration grid in mm.

    Examples:
        >>> unmet({"AC": 0.3, "PC": 0.4, "left": 14.0, "right": 0.5}, (1.0, 1.0, 1.0))
        ['left']
    """
    limit = 2 * max(spacing)
    return [name for name, error in tre_mm.items() if error > limit]
