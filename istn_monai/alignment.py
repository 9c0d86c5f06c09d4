"""Initial alignment: where a moving image lies in the fixed image's world before anything is learned about the pair.

Convention:
    ``T0`` ``(D+1, D+1)`` maps fixed to moving world points (pull-back), RAS mm; see
    :mod:`istn_monai.geometry.world_transform`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.grids import grid_center, map_points, registration_grid
from istn_monai.geometry.resampling import area_averaged, unit_range
from istn_monai.refinement import Refiner

INITIAL_ALIGNMENTS = ("world", "center", "moments", "rigid")
#: voxels along the longest axis of the fixed image, and steps, coarse to fine
RIGID_LEVELS = ((24, 100), (48, 50))


def center_of_mass(image: Tensor, affine: Tensor) -> Tensor:
    """World point ``(D,)`` of the first moment of intensities ``(1, *S)``, counted from the darkest one."""
    weights = image[0].double() - image.min()
    total = weights.sum()
    if total == 0:
        raise ValueError("initial_alignment 'moments' needs an image that is not constant")
    axes = range(weights.ndim)
    profiles = [weights.sum([other for other in axes if other != axis]) for axis in axes]
    moments = [(profile * torch.arange(len(profile))).sum() / total for profile in profiles]
    return map_points(affine, torch.stack(moments))


def translation(shift: Tensor) -> Tensor:
    """``(D,)`` in mm to ``(D+1, D+1)``."""
    matrix = torch.eye(len(shift) + 1, dtype=torch.float64)
    matrix[:-1, -1] = shift
    return matrix


def initial_alignment(name: str, moving: Tensor, moving_affine: Tensor, fixed: Tensor, fixed_affine: Tensor) -> Tensor:
    """``T0`` ``(D+1, D+1)``, fixed world to moving world point.

    Args:
        name: "world" trusts the headers (identity); "center" joins the middles of the two grids, for crops whose
            origins carry no anatomy; "moments" joins the centers of mass of the intensities; "rigid" goes on from
            there by a registration, see :func:`rigid_alignment`.
        moving: ``(1, *S)``, and its affine.
        fixed: ``(1, *S)``, and its affine.
    """
    if name == "world":
        return torch.eye(len(fixed_affine), dtype=torch.float64)
    if name == "center":
        centers = [grid_center(i.shape[1:], a) for i, a in ((moving, moving_affine), (fixed, fixed_affine))]
    elif name in ("moments", "rigid"):
        centers = [center_of_mass(i[:1], a) for i, a in ((moving, moving_affine), (fixed, fixed_affine))]
    else:
        raise ValueError(f"initial_alignment must be one of {INITIAL_ALIGNMENTS}, got {name!r}")
    start = translation(centers[0] - centers[1])
    return start if name != "rigid" else rigid_alignment(moving, moving_affine, fixed, fixed_affine, start)


def rigid_alignment(
    moving: Tensor,
    moving_affine: Tensor,
    fixed: Tensor,
    fixed_affine: Tensor,
    start: Tensor,
    levels: Sequence[tuple[int, int]] = RIGID_LEVELS,
) -> Tensor:
    """``T0`` of a rigid registration of the intensities, from coarse to fine; no network.

    Least squares of intensities scaled to [0, 1]: for images of one modality. Bounds are 45 degrees in each plane and a
    quarter of the fixed image's extent from the start.

    Args:
        moving: ``(1, *S)``, and its affine.
        fixed: ``(1, *S)``, and its affine.
        start: ``T0`` to start from.
        levels: voxels along the longest axis, and steps of Adam, for each level.
    """
    extent = max(n * step.norm().item() for n, step in zip(fixed.shape[1:], fixed_affine[:-1, :-1].T, strict=True))
    aligned_affine = torch.linalg.solve(start, moving_affine)
    theta = None
    for voxels, steps in levels:
        size = (voxels,) * (fixed.ndim - 1)
        grid = registration_grid(fixed.shape[1:], fixed_affine, size, extent / voxels)
        on_grid_moving, on_grid_fixed = (
            unit_range(area_averaged(image[None].float(), torch.linalg.solve(affine, grid), size))
            for image, affine in ((moving, aligned_affine), (fixed, fixed_affine))
        )
        rigid = AffineTransformation(size, extent / voxels, extent / 4, max_log_scale=0.0, max_shear=0.0)
        # bounds and center are the same at each level, so theta carries over
        theta = Refiner(steps=steps, learning_rate=0.02).register(rigid, on_grid_moving, on_grid_fixed, theta).theta
    about_center = rigid.matrix(theta)[0].double()
    to_world = grid.clone()
    to_world[:-1, :-1] /= extent / voxels
    to_world[:-1, -1] = grid_center(size, grid)
    return start @ to_world @ about_center @ torch.linalg.inv(to_world)
