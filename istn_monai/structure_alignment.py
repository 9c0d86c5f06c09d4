"""Initial alignment by the structures that an image transformer network (ITN) finds, whatever contrast it was made for.

Convention:
    ``T0`` ``(D+1, D+1)`` float64 maps fixed to moving world points, RAS mm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from istn_monai.geometry.grids import Grid, registration_grid
from istn_monai.geometry.resampling import alone_on, area_averaged
from istn_monai.linear_registration import (
    Side,
    about,
    axes_of,
    center_of_weights,
    linear_registration,
    rotation,
    translation,
    turned,
)

#: voxels along the longest axis of the fixed image, and steps, of each round of network and registration: the better an
#: image lies, the more of its structures the network finds
ROUNDS = (((24, 60),), ((24, 50),), ((24, 50),), ((48, 50),))
FOUND = 0.35  # of the mean square of the fixed structures: a larger difference is that of other places
POSES = 60.0  # degrees, by which an image is turned where the network does not find its structures as it lies
#: an image ``(C, *S)`` in [0, 1] on a grid of the network's spacing to its representation ``(K, *S)``
Represent = Callable[[Tensor], Tensor]


def center_of(side: Side, name: str) -> Tensor:
    """World point ``(D,)`` of the center of mass of all channels of what the network finds in the image of this name.

    Raises:
        ValueError: if that is nothing.
    """
    weights = side.values.double().clamp_min(0).sum(0)
    if weights.sum() <= 0:
        raise ValueError(
            f"initial_alignment 'structures': the network finds no structure in {name}: is it of the kind that the "
            "network was trained on? Choose moments, principal_axes or affine"
        )
    return center_of_weights(weights, side.grid)


def structure_alignment(moving: Side, fixed: Side, represent: Represent, kind: str = "affine") -> Tensor:
    """``T0`` that brings the structures of two images together.

    The network sees the moving image as it lies, then as the last round laid it: a turned image shows it some of its
    structures, an upright one all. Where they do not come together, the image is shown in other poses as well.

    Args:
        moving: image ``(C, *S)`` in [0, 1] on a grid of the network's spacing that covers it.
        fixed: likewise; of the size of the registration.
        represent: see ``Represent``.
        kind: "rigid" or "affine".

    Raises:
        ValueError: if the network finds no structure in an image, or none that come together.
    """
    there = Side(represent(fixed.values), fixed.grid)
    center = center_of(there, "fixed_image")
    best, least = None, math.inf
    for pose in poses(moving.grid.center):
        start, value = in_rounds(moving, fixed.grid, there, center, represent, pose, kind)
        if value < least:
            best, least = start, value
        if least <= FOUND:
            break
    if best is None or least > 1:
        raise ValueError(
            "initial_alignment 'structures': the structures that the network finds in moving_image and fixed_image do "
            "not come together: are both of the kind that it was trained on? Choose moments, principal_axes or affine"
        )
    if least > FOUND:
        warnings.warn(
            f"initial_alignment 'structures': what the network finds in both images hardly comes together (they differ "
            f"by {least:.2f} of its mean square, {FOUND:g} at most where it does): look at the result",
            stacklevel=2,
        )
    return best


def shown_on(moving: Side, grid: Grid, start: Tensor) -> Tensor:
    """The moving image ``(C, *S)`` on a grid of the fixed world, 0 beyond it, as networks are trained."""
    return alone_on(moving.values[None], moving.grid.aligned(start), grid)[0]


def poses(center: Tensor) -> list[Tensor]:
    """Maps of points to those of an image, ``(D+1, D+1)``: as it lies, then turned about its center."""
    still = torch.eye(len(center) + 1, dtype=torch.float64)
    faces = [axis for axis in axes_of(len(center)) if axis.count_nonzero() == 1]
    return [still, *(about(center, rotation(sign * math.radians(POSES), axis)) for axis in faces for sign in (1, -1))]


def in_rounds(
    moving: Side, grid: Grid, there: Side, center: Tensor, represent: Represent, pose: Tensor, kind: str
) -> tuple[Tensor, float]:
    """``T0``, and the difference of the structures as a fraction of their mean square, infinite where none is found.

    Args:
        moving: image.
        grid: of the fixed image.
        there: representation of the fixed image.
        center: of its structures.
        represent: see ``Represent``.
        pose: in which the moving image is shown first: its points to the image's.
        kind: "rigid" or "affine".
    """
    found = Side(represent(shown_on(moving, moving.grid, pose)), moving.grid.aligned(torch.linalg.inv(pose)))
    if not found.values.clamp_min(0).any():
        return pose, math.inf
    start = translation(center_of(found, "moving_image") - center)
    starts = [start, *turned(start, center)]
    value = math.inf
    for levels in ROUNDS:
        start, value = linear_registration(found, there, starts, kind, levels=levels)
        upright = shown_on(moving, grid, start)
        found, starts = Side(represent(upright), grid.aligned(torch.linalg.inv(start))), [start]
    voxels = ROUNDS[-1][-1][0]
    compared = registration_grid(there.grid, (voxels,) * grid.spatial_dims, max(grid.extent) / voxels)
    size = area_averaged(there.values[None], there.grid, compared).square().mean().item()
    return start, value / size
