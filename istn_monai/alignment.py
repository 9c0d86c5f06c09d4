"""Initial alignment: where a moving image lies in the fixed image's world before anything is learned about the pair.

Convention:
    ``T0`` ``(D+1, D+1)`` maps fixed to moving world points (pull-back), RAS mm; see :mod:`istn_monai.geometry.grids`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.grids import Grid, map_points, registration_grid
from istn_monai.geometry.resampling import area_averaged, unit_range
from istn_monai.refinement import Refiner

INITIAL_ALIGNMENTS = ("world", "center", "moments", "rigid")
#: voxels along the longest axis of the fixed image, and steps, coarse to fine
RIGID_LEVELS = ((24, 100), (48, 50))


def center_of_mass(image: MetaTensor) -> Tensor:
    """World point ``(D,)`` of the first moment of the first channel of ``(C, *S)``, counted from its darkest voxel.

    Raises:
        ValueError: the channel is constant.
    """
    values = image.as_tensor()[0]
    weights = values.double() - values.min()
    total = weights.sum()
    if total == 0:
        raise ValueError("initial_alignment 'moments' needs an image that is not constant")
    axes = range(weights.ndim)
    profiles = [weights.sum([other for other in axes if other != axis]) for axis in axes]
    moments = [(profile * torch.arange(len(profile))).sum() / total for profile in profiles]
    return map_points(Grid.of(image).affine, torch.stack(moments))


def translation(shift: Tensor) -> Tensor:
    """``(D,)`` in mm to ``(D+1, D+1)``."""
    matrix = torch.eye(len(shift) + 1, dtype=torch.float64)
    matrix[:-1, -1] = shift
    return matrix


def initial_alignment(name: str, moving: MetaTensor, fixed: MetaTensor) -> Tensor:
    """``T0`` ``(D+1, D+1)`` float64, fixed world to moving world point.

    Args:
        name: "world" trusts the headers (identity); "center" joins the middles of the two grids, for crops whose
            origins carry no anatomy; "moments" joins the centers of mass of the intensities; "rigid" goes on from
            there by a registration, see :func:`rigid_alignment`.
        moving: ``(C, *S)``; of several channels the first one counts.
        fixed: likewise.

    Raises:
        ValueError: the name is none of these, or an image is constant where its intensities are needed.
    """
    if name == "world":
        return torch.eye(fixed.ndim, dtype=torch.float64)
    if name == "center":
        centers = [Grid.of(image).center for image in (moving, fixed)]
    elif name in ("moments", "rigid"):
        centers = [center_of_mass(image) for image in (moving, fixed)]
    else:
        raise ValueError(f"initial_alignment must be one of {INITIAL_ALIGNMENTS}, got {name!r}")
    start = translation(centers[0] - centers[1])
    return start if name != "rigid" else rigid_alignment(moving, fixed, start)


def rigid_alignment(
    moving: MetaTensor, fixed: MetaTensor, start: Tensor, levels: Sequence[tuple[int, int]] = RIGID_LEVELS
) -> Tensor:
    """``T0`` of a rigid registration of the intensities, from coarse to fine; no network.

    Least squares of intensities scaled to [0, 1]: for images of one modality. Bounds are 45 degrees in each plane and a
    quarter of the fixed image's extent from the start.

    Args:
        moving: ``(C, *S)``.
        fixed: ``(C, *S)``.
        start: ``T0`` to start from.
        levels: voxels along the longest axis, and steps of Adam, for each level.
    """
    images = (moving.as_tensor()[None].float(), fixed.as_tensor()[None].float())
    grids = (Grid.of(moving).aligned(start), Grid.of(fixed))
    extent = max(grids[1].extent)
    theta = None
    for voxels, steps in levels:
        size, spacing = (voxels,) * grids[1].spatial_dims, extent / voxels
        grid = registration_grid(grids[1], size, spacing)
        both = [unit_range(area_averaged(image, own, grid)) for image, own in zip(images, grids, strict=True)]
        rigid = AffineTransformation(size, spacing, extent / 4, max_log_scale=0.0, max_shear=0.0)
        # bounds and center are the same at each level, so theta carries over
        theta = Refiner(steps=steps, learning_rate=0.02).register(rigid, both[0], both[1], theta).theta
    about_center = rigid.matrix(theta)[0].double()
    to_world = grid.affine.clone()  # mm from the grid's center to world
    to_world[:-1, :-1] /= spacing
    to_world[:-1, -1] = grid.center
    return start @ to_world @ about_center @ torch.linalg.inv(to_world)
