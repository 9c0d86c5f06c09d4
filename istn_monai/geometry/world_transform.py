"""A registration as a map of world points, whatever made it: what is resampled with, inverted, and exchanged.

Convention:
    World points are RAS millimeters, ``(D, N)`` float64. A transform maps fixed to moving points (pull-back): images
    are resampled with it as it is, landmarks travel from the moving to the fixed image with its inverse. A point that
    nothing is mapped to, within ``TOLERANCE``, has no inverse: it becomes NaN, and so does what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation, cubic_bspline, sample_cubic_bspline
from istn_monai.geometry.composite import CompositeTransformation
from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.inversion import by_fixed_point, by_search
from istn_monai.geometry.sampling import WHOLE, lifted, sample
from istn_monai.geometry.transformation import Transformation

#: so few that what is made of them stays in a core's cache, and that torch does not split them among threads again
POINTS_AT_ONCE = 2**13
TOLERANCE = 1e-3  # mm, by which an inverse may miss its point
SURFACE = 1e-9  # cells: what lies on a domain's surface is on the side that it is on by exact arithmetic
STARTS = 2**11  # places from which an inverse is searched
INWARD = 1e-2  # cells from a lattice's border, where derivatives jump


class WorldComponent(Protocol):
    """One of the transforms that make up a :class:`WorldTransform`."""

    def transform_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``."""

    def inverse_points(self, points: Tensor, closest: bool = False) -> Tensor:
        """``(D, N)`` to ``(D, N)``: what :meth:`transform_points` takes there, NaN where nothing is.

        With ``closest``, that which it takes closest to there, as far as that was found.
        """


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


class WorldDisplacement:
    """Displacements known on a lattice: added to a point inside its domain, nothing outside, as in ITK.

    Args:
        values: ``(D, *lattice)`` in mm, RAS.
        affine: ``(D+1, D+1)``, index of the lattice to world.
    """

    margin = 0.0  #: cells from each end of the lattice to its domain; negative, the domain is larger
    tail = 1e-6  #: cells by which the domain goes on beyond its upper end

    def __init__(self, values: Tensor, affine: Tensor) -> None:
        self.values = values.double()
        self.affine = affine.double()
        if not torch.isfinite(self.values).all():
            raise ValueError("the displacements of a transform must be finite, some are NaN or infinite")

    def at(self, index: Tensor) -> Tensor:
        """Displacement at places ``(1, D, N, 1, ..)`` in cells of the lattice."""
        return sample(self.values[None], index)

    def index(self, points: Tensor) -> Tensor:
        """Points ``(D, N)`` in cells of the lattice."""
        return map_points(torch.linalg.inv(self.affine), points)

    def domain(self) -> tuple[Tensor, Tensor]:
        """First and last index that belong to the domain, ``(D, 1)`` each."""
        last = torch.tensor(self.values.shape[1:], dtype=torch.float64)[:, None] - 1 - self.margin
        return torch.full_like(last, self.margin), last + self.tail

    def displacement(self, points: Tensor) -> Tensor:
        """``(D, N)`` at points ``(D, N)``."""
        index = self.index(points)
        first, last = self.domain()
        inside = ((index >= first - max(self.tail, SURFACE)) & (index <= last)).all(0)
        return self.at(lifted(index)).view(index.shape) * inside

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
        missed = (error >= TOLERANCE).nonzero()[:, 0]
        if len(missed):
            found[:, missed] = self.searched(points[:, missed], found[:, missed], error[missed], closest)
        return found

    def searched(self, points: Tensor, found: Tensor, error: Tensor, closest: bool) -> Tensor:
        """Inverse of points that fixed-point iteration has not found, only places ``(D, N)`` with errors ``(N,)``."""
        places, tried = by_search(self.continued, points, self.starts(), (self.within_cells, self.within_domain))
        places[:, tried], new = self.settled(places[:, tried], points[:, tried])
        better = new < error[tried]
        found[:, tried[better]], error[tried[better]] = places[:, tried[better]], new[better]
        stays = (self.displacement(points) == 0).all(dim=0)  # outside of the domain
        others = torch.where(stays, points, found if closest else torch.nan)
        return torch.where(error < TOLERANCE, found, others)

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
    tail = -SURFACE


class WorldBSpline(WorldDisplacement):
    """A cubic B-spline: ``values`` are its control points' displacements, and its domain begins at the second one."""

    margin = 1.0

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
        field = self.values
        for step, start, axis, n in zip(steps, matrix[:-1, -1], axes.tolist(), self.values.shape[1:], strict=True):
            index = (start + step * torch.arange(grid.spatial_size[axis]))[slab if axis == 0 else WHOLE]
            inside = (index > self.margin - 1e-6) & (index < n - 1 - self.margin + 1e-6)
            weights = cubic_bspline(index[:, None] - torch.arange(n)) * inside[:, None]
            field = torch.tensordot(field, weights, dims=([1], [1]))  # the grid's axis becomes the last
        return field.permute(0, *(1 + axes.argsort()).tolist())


class WorldTransform:
    """Components one after the other, the last one first: ``T = T_1 o ... o T_n``, as in ``itk.CompositeTransform``.

    Args:
        components: in the order of the formula.
        dims: number of coordinates of the points.
    """

    def __init__(self, components: Sequence[WorldComponent], dims: int) -> None:
        self.components = tuple(components)
        self.dims = dims

    def transform_points(self, points: Tensor) -> Tensor:
        """Fixed to moving points ``(D, N)``."""
        return self.in_chunks(points, [part.transform_points for part in self.components[::-1]])

    def inverse_points(self, points: Tensor, closest: bool = False) -> Tensor:
        """Moving to fixed points ``(D, N)``: where landmarks of the moving image go; see :class:`WorldComponent`."""
        return self.in_chunks(points, [partial(part.inverse_points, closest=closest) for part in self.components])

    def in_chunks(self, points: Tensor, maps: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """Applies maps one after the other, in chunks of ``POINTS_AT_ONCE`` points, each in a thread of its own."""

        def moved(chunk: Tensor) -> Tensor:
            """By all maps."""
            return reduce(lambda points, single: single(points), maps, chunk)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return torch.cat(list(pool.map(moved, points.double().split(POINTS_AT_ONCE, dim=1))), dim=1)

    def inverse_error(self, points: Tensor) -> Tensor:
        """``(N,)`` in mm: how far the inverse of points ``(D, N)`` is from mapping back onto them, NaN without."""
        return (self.transform_points(self.inverse_points(points)) - points).norm(dim=0)

    def inverse(self, grid: Grid) -> WorldTransform:
        """Moving to fixed points as a transform of its own: affine components exactly, the rest as one field.

        Where a voxel of that field has no inverse, it has that of the place which comes closest.

        Args:
            grid: of the displacement field, in the moving image's world; affine components alone need no field.
        """
        linear: list[WorldAffine] = []
        for component in self.components:
            if not isinstance(component, WorldAffine):
                break
            linear.append(component)
        exact = [WorldAffine(torch.linalg.inv(component.matrix)) for component in reversed(linear)]
        rest = WorldTransform(self.components[len(linear) :], self.dims)
        if not rest.components:
            return WorldTransform(exact, self.dims)
        for component in linear:  # the grid as it lies where the other components act
            grid = grid.aligned(component.matrix)
        points = grid.points()
        found = rest.inverse_points(points.flatten(1), closest=True).view(points.shape)
        field = WorldField(found - points, grid.affine)
        return WorldTransform([field, *exact], self.dims)

    def on_grid(self, grid: Grid, inverse: bool = False, slab: slice = WHOLE) -> Tensor:
        """Where the voxels of a grid, or of a slab of it, are found: world points ``(D, *S)``.

        Args:
            grid: in the fixed image's world; with ``inverse``, in the moving one's.
            inverse: by the inverse, NaN where there is none.
            slab: indices of the first axis.
        """
        points = grid.points(slab=slab)
        if inverse:
            return self.inverse_points(points.flatten(1)).view(points.shape)
        rest, first = self, self.components[-1] if self.components else None
        displacement = first.on_grid(grid, slab) if isinstance(first, WorldBSpline) else None
        if displacement is not None:
            rest, points = WorldTransform(self.components[:-1], self.dims), points + displacement
        return rest.transform_points(points.flatten(1)).view(points.shape)

    def pull_back_points(self, fixed: Grid, moving: Grid, slab: slice = WHOLE) -> Tensor:
        """As :func:`istn_monai.geometry.resampling.pull_back_points`, exactly, wherever the voxels are."""
        return moving.voxels(self.on_grid(fixed, slab=slab)).float()[None]


def world_transform(
    transformation: Transformation, theta: Tensor, grid: Grid, initial_alignment: Tensor | None = None
) -> WorldTransform:
    """The whole registration of one pair, fixed to moving world points: ``T0 o (id + u)``.

    Args:
        transformation: of the registration; its lattices follow the grid.
        theta: parameters ``(1, P)``.
        grid: the registration grid.
        initial_alignment: ``T0`` ``(D+1, D+1)``; None for none.

    Raises:
        ValueError: theta is not that of one pair, or has another number of parameters than the transformation on this
            grid.

    Example:
        >>> affine = AffineTransformation((24, 20), spacing=2.0)
        >>> grid = Grid((24, 20), torch.diag(torch.tensor([2.0, 2.0, 1.0])))
        >>> transform = world_transform(affine, torch.zeros(1, 6), grid)
        >>> transform.transform_points(torch.tensor([[10.0], [-4.0]])).flatten().tolist()
        [10.0, -4.0]
    """
    if theta.ndim != 2 or len(theta) != 1:
        raise ValueError(f"theta must be (1, P), one pair, got {tuple(theta.shape)}")
    transformation = transformation.resized(grid.spatial_size)
    start = [] if initial_alignment is None else [WorldAffine(initial_alignment)]
    own = world_components(transformation, theta.detach().double(), grid)
    return WorldTransform([*start, *own], transformation.spatial_dims)


def world_components(transformation: Transformation, theta: Tensor, grid: Grid) -> list[WorldComponent]:
    """A transformation's components: parametric where there is such a component, else its field on the grid."""
    if isinstance(transformation, CompositeTransformation):
        blocks = zip(transformation.components, transformation.split(theta), strict=True)
        return [component for single, block in blocks for component in world_components(single, block, grid)]
    to_world = grid_mm_to_world(grid)
    if isinstance(transformation, AffineTransformation):
        return [WorldAffine(to_world @ transformation.matrix(theta)[0].cpu() @ torch.linalg.inv(to_world))]
    axes = to_world[:-1, :-1]
    if isinstance(transformation, BSplineTransformation):
        control = torch.tensordot(axes, transformation.control_displacements(theta)[0].cpu(), dims=1)
        return [WorldBSpline(control, to_world @ lattice_to_grid_mm(transformation))]
    voxels = transformation(theta)[0].cpu().double()
    return [WorldField(torch.tensordot(grid.affine[:-1, :-1], voxels, dims=1), grid.affine)]


def grid_mm_to_world(grid: Grid) -> Tensor:
    """``(D+1, D+1)``: mm along the grid's axes from its center, to world."""
    matrix = torch.eye(grid.spatial_dims + 1, dtype=torch.float64)
    matrix[:-1, :-1] = grid.affine[:-1, :-1] / grid.affine[:-1, :-1].norm(dim=0)
    matrix[:-1, -1] = grid.center
    return matrix


def lattice_to_grid_mm(bspline: BSplineTransformation) -> Tensor:
    """``(D+1, D+1)``: index of a control point to mm from the grid's center, which is the lattice's as well."""
    matrix = torch.diag(torch.tensor([*bspline.control_spacing, 1.0], dtype=torch.float64))
    matrix[:-1, -1] = -Grid(bspline.control_shape, matrix).center
    return matrix
