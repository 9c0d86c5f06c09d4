"""What a world transform consists of: a matrix, or displacements known on a lattice.

Convention:
    World points are RAS millimeters, ``(D, N)`` float64. A component maps them, and back: a point that nothing is
    mapped to, within ``TOLERANCE``, has no inverse: it becomes NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from istn_monai.geometry.bspline import cubic_bspline, sample_cubic_bspline
from istn_monai.geometry.cells import Cells
from istn_monai.geometry.domains import NEAR, after, before, between, itk_index, near
from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.inversion import by_fixed_point, by_search
from istn_monai.geometry.sampling import WHOLE, lifted, sample

TOLERANCE = 1e-3  # mm, by which an inverse may miss its point
SURFACE = 1e-9  # cells, by which a place that is found is inside of a domain's surface, whichever way it is rounded
STARTS = 2**11  # places from which an inverse is searched
INWARD = 1e-2  # cells from a lattice's border, where derivatives jump
#: points ``(D, N)`` to those that it looked for ``(M,)``, and their places ``(D, M)``
Search = Callable[[Tensor], tuple[Tensor, Tensor]]


class WorldComponent(Protocol):
    """One of the transforms that make up a :class:`istn_monai.geometry.world_transform.WorldTransform`."""

    def transform_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``."""

    def inverse_points(self, points: Tensor, closest: bool = False) -> Tensor:
        """``(D, N)`` to ``(D, N)``: what :meth:`transform_points` takes there, NaN where nothing is.

        With ``closest``, that which it takes closest to there, as far as that was found.
        """

    def staying(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``: points that it leaves alone, being outside of its domain; NaN for all others."""


class WorldAffine:
    """A matrix.

    Args:
        matrix: ``(D+1, D+1)``.
    """

    def __init__(self, matrix: Tensor | np.ndarray) -> None:
        self.matrix = torch.as_tensor(matrix, dtype=torch.float64)
        if not torch.isfinite(self.matrix).all() or self.matrix[:-1, :-1].det().abs() < 1e-12:
            raise ValueError(f"an affine transform must be finite and invertible, got {self.matrix.tolist()}")

    def transform_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``."""
        return map_points(self.matrix, points)

    def inverse_points(self, points: Tensor, closest: bool = False) -> Tensor:
        """``(D, N)`` to ``(D, N)``, exact."""
        return map_points(torch.linalg.inv(self.matrix), points)

    def staying(self, points: Tensor) -> Tensor:
        """None."""
        return torch.full_like(points, torch.nan)


class WorldDisplacement:
    """Displacements known on a lattice: added to a point inside its domain, nothing outside, as in ITK.

    Args:
        values: ``(D, *lattice)`` in mm, RAS.
        affine: ``(D+1, D+1)``, index of the lattice to world.
        to_index: ``(D, D)``, world to cells, as who made the lattice has it to the last bit; None for the inverse.
    """

    margin = 0.0  #: cells from each end of the lattice to its domain; negative, the domain is larger

    def __init__(self, values: Tensor, affine: Tensor, to_index: Tensor | None = None) -> None:
        self.values = values.double()
        self.affine = affine.double()
        self.to_index = torch.linalg.inv(self.affine[:-1, :-1]) if to_index is None else to_index.double()
        if not torch.isfinite(self.values).all():
            raise ValueError("the displacements of a transform must be finite, some are NaN or infinite")

    def at(self, index: Tensor) -> Tensor:
        """Displacement at places ``(1, D, N, 1, ..)`` in cells of the lattice."""
        return sample(self.values[None], index)

    def index(self, points: Tensor) -> Tensor:
        """Points ``(D, N)`` in cells of the lattice."""
        return map_points(torch.linalg.inv(self.affine), points)

    def ends(self) -> tuple[Tensor, Tensor]:
        """Lowest and highest index of the domain's surface, ``(D, 1)`` each."""
        last = torch.tensor(self.values.shape[1:], dtype=torch.float64)[:, None] - 1 - self.margin
        return torch.full_like(last, self.margin), last

    def limits(self) -> tuple[Tensor, Tensor]:
        """First and last index that are inside, to the last bit."""
        return self.ends()

    def domain(self) -> tuple[Tensor, Tensor]:
        """First and last index at which places are looked for: inside, however they are rounded."""
        first, last = self.ends()
        return first + SURFACE, last - SURFACE

    def inside(self, points: Tensor, index: Tensor) -> Tensor:
        """``(N,)``: whether points ``(D, N)``, whose index is known but for rounding, are in the domain to ITK."""
        limits = self.limits()
        result = between(index, limits)
        close = near(index, limits).nonzero()[:, 0]
        if len(close):
            result[close] = between(itk_index(self.to_index, self.affine[:-1, -1], points[:, close]), limits)
        return result

    def displacement(self, points: Tensor) -> Tensor:
        """``(D, N)`` at points ``(D, N)``."""
        index = self.index(points)
        return self.at(lifted(index)).view(index.shape) * self.inside(points, index)

    def continued(self, points: Tensor) -> Tensor:
        """As :meth:`displacement`, but beyond the domain that of its nearest place: so it has no jump."""
        index = self.index(points)
        return self.at(lifted(index.clamp(*self.domain()))).view(index.shape)

    def transform_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``."""
        return points + self.displacement(points)

    def inverse_points(self, points: Tensor, closest: bool = False) -> Tensor:
        """See :class:`WorldComponent`; a place in the domain comes before one outside, which stays where it is."""
        known = torch.isfinite(points).all(dim=0)
        if not known.all():
            result = torch.full_like(points, torch.nan)
            result[:, known] = self.inverse_points(points[:, known], closest)
            return result
        found, error = self.settled(by_fixed_point(self.continued, points), points)
        for search in self.searches():
            missed = (error >= TOLERANCE).nonzero()[:, 0]
            if len(missed):
                which, places = search(points[:, missed])
                places, new = self.settled(places, points[:, missed[which]])
                better = new < error[missed[which]]
                found[:, missed[which[better]]], error[missed[which[better]]] = places[:, better], new[better]
        stays = (error >= TOLERANCE) & (self.displacement(points) == 0).all(dim=0)  # outside of the domain
        others = torch.where(stays, points, found if closest else torch.nan)
        return torch.where(error < TOLERANCE, found, others)

    def staying(self, points: Tensor) -> Tensor:
        """See :class:`WorldComponent`."""
        return torch.where(self.inside(points, self.index(points)), torch.nan, points)

    def searches(self) -> list[Search]:
        """Where points are looked for that fixed-point iteration has not found, one after the other."""
        return [
            partial(by_search, self.continued, starts=self.starts(), bounds=(self.within_cells, self.within_domain))
        ]

    def settled(self, places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """The places in the domain nearest to those given, and how far, ``(N,)`` in mm, each is from its point then.

        A place that is beyond the domain's surface by less than the iteration's accuracy is on it.
        """
        places = self.within_domain(places)
        return places, (places + self.continued(places) - points).norm(dim=0)

    def within_domain(self, points: Tensor) -> Tensor:
        """The places of the domain nearest to points, along the lattice's axes."""
        return map_points(self.affine, self.index(points).clamp(*self.domain()))

    def within_cells(self, points: Tensor) -> Tensor:
        """Likewise of its part within the lattice's cells, where the displacement's derivatives are those of a cell."""
        inner = max(self.margin, 0.0) + INWARD
        most = torch.tensor(self.values.shape[1:], dtype=torch.float64)[:, None] - 1
        low = torch.full_like(most, inner).minimum(most / 2)
        return map_points(self.affine, self.index(points).clamp(low, most - low))

    def starts(self) -> Tensor:
        """World points ``(D, *M)`` all over the domain, off the lattice's points, where derivatives jump."""
        most = int(STARTS ** (1 / len(self.values)))
        axes = [
            torch.linspace(self.margin + 0.25, n - 1.25 - self.margin, min(n, most), dtype=torch.float64)
            for n in self.values.shape[1:]
        ]
        return map_points(self.affine, torch.stack(torch.meshgrid(*axes, indexing="ij")))


class WorldField(WorldDisplacement):
    """A displacement field, linear between its voxels; as in ITK, voxels end half a step beyond their centers.

    A place exactly half a step beyond the last voxel is outside.
    """

    margin = -0.5

    def limits(self) -> tuple[Tensor, Tensor]:
        """See :class:`WorldDisplacement`."""
        first, last = self.ends()
        return first, before(last)

    @cached_property
    def cells(self) -> Cells:
        """What it makes of the cells between its voxels' centers, and of the half ones beyond these."""
        index = [torch.arange(-1.0, n + 1, dtype=torch.float64) for n in self.values.shape[1:]]
        ends = [axis.clamp(self.margin, float(axis[-1]) + self.margin) for axis in index]
        places = map_points(self.affine, torch.stack(torch.meshgrid(*ends, indexing="ij")))
        return Cells(places + functional.pad(self.values[None], [1] * 2 * len(ends), mode="replicate")[0])

    def searches(self) -> list[Search]:
        """See :class:`WorldDisplacement`."""
        return [*super().searches(), self.in_cells]

    def in_cells(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`istn_monai.geometry.inversion.by_search`, of points ``(D, N)`` that a cell holds."""
        which, places = self.cells.places_of(points)
        count = torch.tensor(self.values.shape[1:], dtype=torch.float64)[:, None]
        # the first and the last cell of each axis are half ones
        index = places.clamp(1.0).minimum(count) - 1 + ((places - 1).clamp(max=0) + (places - count).clamp(min=0)) / 2
        return which, map_points(self.affine, index)


class WorldBSpline(WorldDisplacement):
    """A cubic B-spline: ``values`` are its control points' displacements, and its domain begins at the second one."""

    margin = 1.0

    def limits(self) -> tuple[Tensor, Tensor]:
        """See :class:`WorldDisplacement`."""
        first, last = self.ends()
        return first, after(last)

    def at(self, index: Tensor) -> Tensor:
        """See :class:`WorldDisplacement`."""
        return sample_cubic_bspline(self.values[None], index)

    def on_grid(self, grid: Grid, slab: slice = WHOLE) -> Tensor | None:
        """Displacement ``(D, *S)`` at the voxels of a grid along the lattice's axes; None for any other grid.

        There a B-spline is a product of one matrix for each axis, which takes a hundredth of the time.
        """
        matrix = torch.linalg.solve(self.affine, grid.affine)
        axes = matrix[:-1, :-1].abs().argmax(dim=1)  # the grid's, for each of the lattice's
        if len(axes.unique()) < len(axes):
            return None
        steps = matrix[range(len(axes)), axes]
        aside = matrix[:-1, :-1].clone()
        aside[range(len(axes)), axes] = 0.0
        if (aside.abs().amax(dim=1) > 1e-12 * steps.abs()).any():
            return None
        field, rim = self.values, False
        for step, start, axis, n in zip(steps, matrix[:-1, -1], axes.tolist(), self.values.shape[1:], strict=True):
            index = (start + step * torch.arange(grid.spatial_size[axis]))[slab if axis == 0 else WHOLE]
            ends = self.margin, n - 1 - self.margin
            inside = (index > ends[0] - NEAR) & (index < ends[1] + NEAR)
            rim = rim or any(bool(((index - end).abs() < NEAR).any()) for end in ends)
            weights = cubic_bspline(index[:, None] - torch.arange(n)) * inside[:, None]
            field = torch.tensordot(field, weights, dims=([1], [1]))  # the grid's axis becomes the last
        field = field.permute(0, *(1 + axes.argsort()).tolist())
        if not rim:
            return field
        points = grid.points(slab=slab).flatten(1)
        return field * self.inside(points, self.index(points)).view(field.shape[1:])
