"""The inverse of a registered pair's transform, and how well it leads back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.workflow.result_folders import INVERSE

MARGIN = 4  # steps of the inverse's field around the moving image, beyond which it would be truncated


def grid_around(image: Grid, spacing: float) -> Grid:
    """A grid of at least ``spacing`` mm over an image and ``MARGIN`` steps around it."""
    factors = [max(1.0, spacing / step) for step in image.spacing]
    steps = [math.ceil((n - 1) / factor - 1e-6) for n, factor in zip(image.spatial_size, factors, strict=True)]
    to_voxel = torch.diag(torch.tensor([*factors, 1.0], dtype=torch.float64))
    to_voxel[:-1, -1] = -MARGIN * to_voxel.diagonal()[:-1]
    return Grid(tuple(n + 1 + 2 * MARGIN for n in steps), image.affine @ to_voxel)


def inverse_of_pair(
    transform: WorldTransform,
    pair: Mapping[str, Any],
    start: Tensor,
    spacing: float,
    known: WorldTransform | None = None,
) -> tuple[WorldTransform, dict[str, float]]:
    """The inverse, and how far from themselves points of the fixed image come back in mm, through both.

    Args:
        transform: of the pair.
        pair: with the original images.
        start: the initial alignment, which the original moving image's affine has.
        spacing: of the field that the inverse is kept as, in mm.
        known: the inverse, where it is known in closed form. It counts unless it leads some points astray, as that of
            a velocity field does where what moves comes from beyond the registration grid.
    """
    aligned, fixed = (Grid.of(pair[f"{side}_image_original"]) for side in ("moving", "fixed"))
    moving = Grid(aligned.spatial_size, start.double() @ aligned.affine)  # as in its file
    points = fixed.points().flatten(1)
    moved = transform.transform_points(points)
    seen = moving.contains(moved)
    points, moved = points[:, seen], moved[:, seen]
    limit = min(fixed.spacing) / 2
    inverse, residual = known, {} if known is None else way_back(known, moved, points)
    if inverse is None or residual.get("max", 0.0) > limit:
        inverse = transform.inverse(grid_around(moving, spacing))
        residual = way_back(inverse, moved, points)
    if residual.get("max", 0.0) > limit:
        told = f"{INVERSE} is off by up to {residual['max']:.2g} mm (mean {residual['mean']:.2g} mm)"
        warnings.warn(f"{told}: if that is too much, register with moving and fixed exchanged", stacklevel=2)
    return inverse, residual


def way_back(inverse: WorldTransform, moved: Tensor, points: Tensor) -> dict[str, float]:
    """How far in mm an inverse takes points from where they came; empty without points."""
    if not points.shape[1]:
        return {}
    error = (inverse.transform_points(moved) - points).norm(dim=0)
    return {"mean": error.mean().item(), "max": error.max().item()}
