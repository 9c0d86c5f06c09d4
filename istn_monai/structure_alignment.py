"""Initial alignment by the structures that an image transformer network (ITN) finds, whatever contrast it was made for.

Convention:
    ``T0`` ``(D+1, D+1)`` float64 maps fixed to moving world points, RAS mm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from istn_monai.geometry.grids import Grid, map_points, registration_grid
from istn_monai.linear_registration import Side, linear_registration, on_coarse_grid, turned

ROUNDS = 4  # of network and registration: the better an image lies, the more of its structures the network finds
SETTLED = 0.01  # by which a round must improve, as a fraction
#: an image ``(C, *S)`` in [0, 1] on a grid of the network's spacing to its representation ``(K, *S)``
Represent = Callable[[Tensor], Tensor]


def center_of(side: Side) -> Tensor:
    """World point ``(D,)`` of the center of mass of all channels.

    Raises:
        ValueError: if nothing was found.
    """
    weights = side.values.double().clamp_min(0).sum(0)
    total = weights.sum()
    if total <= 0:
        raise ValueError(
            "initial_alignment 'structures': the network finds no structure in an image; choose 'moments' or 'rigid'"
        )
    axes = range(weights.ndim)
    profiles = [weights.sum([other for other in axes if other != axis]) for axis in axes]
    middle = [(profile * torch.arange(len(profile))).sum() / total for profile in profiles]
    return map_points(side.grid.affine, torch.stack(middle))


def structure_alignment(moving: Side, fixed: Side, represent: Represent, kind: str = "affine") -> Tensor:
    """``T0`` that brings the structures of two images together.

    The network sees each image as it lies, then the moving one as the last round laid it: a turned image shows it few
    of its structures, an upright one all.

    Args:
        moving: image ``(C, *S)`` in [0, 1] on a grid of the network's spacing that covers it.
        fixed: likewise; of the size of the registration.
        represent: see ``Represent``.
        kind: "rigid" or "affine".
    """
    there = Side(represent(fixed.values), fixed.grid)
    found = Side(represent(moving.values), moving.grid)
    start = torch.eye(fixed.grid.spatial_dims + 1, dtype=torch.float64)
    start[:-1, -1] = center_of(found) - center_of(there)
    best, least = start, float("inf")
    starts = [start, *turned(start, center_of(there))]
    for _ in range(ROUNDS):
        start, value = linear_registration(found, there, starts, kind)
        if value > least * (1 - SETTLED):
            break
        best, least = start, value
        upright = on_coarse_grid(moving, fixed.grid, start)[0]
        found, starts = Side(represent(upright), fixed.grid.aligned(torch.linalg.inv(start))), [start]
    return best
