"""On which side of a lattice's surface a point is, decided by the very numbers by which ITK decides it.

Where a domain ends, a displacement jumps to 0, and images that are flush with it have whole faces of voxels there: so
the last bit counts.

Convention:
    An index is in cells of the lattice, ``(D, N)``; what is inside is between two limits, which both belong to it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.sampling import column

NEAR = 1e-6  # cells from a limit within which rounding may decide
SAME_ULPS = 4  # numbers after its limit that a B-spline of ITK's takes for it


def itk_index(to_index: Tensor, origin: Tensor, points: Tensor) -> Tensor:
    """Points ``(D, N)`` in cells, summed in the order of ITK, term after term: a matrix product rounds otherwise.

    Args:
        to_index: ``(D, D)``, world to cells.
        origin: ``(D,)``, of the lattice.
        points: ``(D, N)``.
    """
    away = points - column(origin, 2)
    index = to_index[:, :1] * away[0]
    for axis in range(1, len(points)):
        index = index + to_index[:, axis, None] * away[axis]
    return index


def between(index: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    """``(N,)``: whether each index is within both limits ``(D, 1)`` along all axes."""
    return ((index >= limits[0]) & (index <= limits[1])).all(dim=0)


def near(index: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    """``(N,)``: whether each index is so near to a limit along any axis that rounding decides on which side it is."""
    return torch.stack([(index - limit).abs() < NEAR for limit in limits]).any(dim=0).any(dim=0)


def after(limit: Tensor) -> Tensor:
    """The last numbers that ITK's B-splines take for a limit: their upper one is exact to so many numbers."""
    return limit + SAME_ULPS * torch.as_tensor(np.spacing(limit.numpy()))


def before(limit: Tensor) -> Tensor:
    """The last numbers below a limit: an image of ITK's ends before it."""
    return torch.nextafter(limit, torch.full_like(limit, -torch.inf))
