"""World space: registration grid, and sampling between images of different grids.

Convention:
    World points are in RAS millimetres, as in MONAI's and NIfTI's affines. An affine is ``(D+1, D+1)``, voxel to
    world. The initial alignment ``T0`` maps fixed world to moving world points (pull-back); it is applied by editing
    the moving image's affine, ``inverse(T0) @ affine``, after which both images live in the fixed image's world.
    The whole transformation is ``T0 o (id + u)``, u the displacement on the registration grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.sampling import affine_points
from istn_monai.geometry.transformation import checked_size, per_axis


def square(affine: Tensor | np.ndarray, spatial_dims: int) -> Tensor:
    """An affine of any size as ``(D+1, D+1)`` float64: MONAI gives 2-D images a 4x4 one."""
    affine = torch.as_tensor(np.asarray(affine), dtype=torch.float64)
    axes = [*range(spatial_dims), len(affine) - 1]
    return affine[axes][:, axes]


def map_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Homogeneous ``(D+1, D+1)`` applied to points ``(D, *T)``."""
    shift = matrix[:-1, -1].view(-1, *[1] * (points.ndim - 1))
    return torch.tensordot(matrix[:-1, :-1], points, dims=1) + shift


def grid_center(spatial_size: Sequence[int], affine: Tensor) -> Tensor:
    """World point ``(D,)`` of the middle of an image."""
    middle = torch.tensor([(size - 1) / 2 for size in spatial_size], dtype=torch.float64)
    return map_points(affine, middle)


def overlap_in_world(
    size: Sequence[int], affine: Tensor, other_size: Sequence[int], other_affine: Tensor, samples: int = 16
) -> bool:
    """Whether any of some points all over one image lies in the other, in the world."""
    pairs = ((size, affine, other_size, other_affine), (other_size, other_affine, size, affine))
    for own, own_affine, theirs, their_affine in pairs:  # the other way round too: the other one may be small
        spread = torch.diag(torch.tensor([*((n - 1) / (samples - 1) for n in own), 1.0], dtype=torch.float64))
        points = affine_points(torch.linalg.solve(their_affine, own_affine @ spread), (samples,) * len(own))
        if within(points[None], theirs).any():
            return True
    return False


def registration_grid(
    fixed_size: Sequence[int],
    fixed_affine: Tensor,
    spatial_size: Sequence[int],
    spacing: float | Sequence[float],
) -> Tensor:
    """Affine ``(D+1, D+1)`` of the registration grid of a fixed image.

    The grid shares the fixed image's center and the directions of its axes, but not their order and sign: its axes
    are the ones nearest to R, A, S, so that a network meets the anatomy in one orientation whatever the file's.

    Args:
        fixed_size: spatial size of the fixed image.
        fixed_affine: its affine.
        spatial_size: of the grid.
        spacing: of the grid in mm.
    """
    size = checked_size(spatial_size)
    dims = len(size)
    orientation = nib.orientations.io_orientation(fixed_affine.numpy())
    directions = np.zeros((dims, dims))
    for file_axis, (grid_axis, sign) in enumerate(orientation):
        column = fixed_affine[:dims, file_axis].numpy()
        directions[:, int(grid_axis)] = sign * column / np.linalg.norm(column)
    affine = torch.eye(dims + 1, dtype=torch.float64)
    affine[:dims, :dims] = torch.as_tensor(directions * np.array(per_axis("spacing", spacing, dims)))
    affine[:dims, -1] = grid_center(fixed_size, fixed_affine) - grid_center(size, affine)
    return affine


def within(points: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Which points ``(1, D, *T)`` lie in a voxel of an image, as ITK has it: up to half a voxel beyond the centers."""
    size = points.new_tensor(spatial_size).view(-1, *[1] * (points.ndim - 2))
    return ((points >= -0.5) & (points <= size - 0.5)).all(1, keepdim=True)
