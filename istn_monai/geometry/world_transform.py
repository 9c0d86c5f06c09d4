"""A registration as a map of world points, whatever made it: what is resampled with, inverted, and exchanged.

Convention:
    World points are RAS millimeters, ``(D, N)`` float64. A transform maps fixed to moving points (pull-back): images
    are resampled with it as it is, landmarks travel from the moving to the fixed image with its inverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation, cubic_bspline, sample_cubic_bspline
from istn_monai.geometry.composite import CompositeTransformation
from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.sampling import WHOLE, lifted, sample
from istn_monai.geometry.transformation import Transformation

#: so few that what is made of them stays in a core's cache, and that torch does not split them among threads again
POINTS_AT_ONCE = 2**13
ITERATIONS, TOLERANCE = 100, 1e-3  # of an inversion, mm


class WorldComponent(Protocol):
    """One of the transforms that make up a :class:`WorldTransform`."""

    def transform_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``."""

    def inverse_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``: what :meth:`transform_points` takes there."""


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

    def inverse_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``, exact."""
        return map_points(torch.linalg.inv(self.matrix), points)


class WorldDisplacement:
    """Displacements known on a lattice: added to a point inside it, nothing outside, as in ITK.

    Args:
        values: ``(D, *lattice)`` in mm, RAS.
        affine: ``(D+1, D+1)``, index of the lattice to world.
    """

    margin = 0.0  #: cells at each end of the lattice that are outside its domain

    def __init__(self, values: Tensor, affine: Tensor) -> None:
        self.values = values.double()
        self.affine = affine.double()

    def at(self, index: Tensor) -> Tensor:
        """Displacement at places ``(1, D, N, 1, ..)`` in cells of the lattice."""
        return sample(self.values[None], index)

    def displacement(self, points: Tensor) -> Tensor:
        """``(D, N)`` at points ``(D, N)``."""
        index = map_points(torch.linalg.inv(self.affine), points)
        last = torch.tensor(self.values.shape[1:], dtype=torch.float64)[:, None] - 1 - self.margin
        # 1e-6: a point on the domain's surface belongs to it, whatever rounding says
        inside = ((index > self.margin - 1e-6) & (index < last + 1e-6)).all(0)
        return self.at(lifted(index)).view(index.shape) * inside

    def transform_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)``."""
        return points + self.displacement(points)

    def inverse_points(self, points: Tensor) -> Tensor:
        """``(D, N)`` to ``(D, N)`` by fixed-point iteration, ``x = y - u(x)`` (Chen et al., 2008)."""
        found = points - self.displacement(points)
        for _ in range(ITERATIONS):
            error = found + self.displacement(found) - points
            if error.abs().max() < TOLERANCE / 10:
                break
            found = found - error
        return found


class WorldField(WorldDisplacement):
    """A displacement field, linear between its voxels."""


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
        return self.in_chunks(points, "transform_points", self.components[::-1])

    def inverse_points(self, points: Tensor) -> Tensor:
        """Moving to fixed points ``(D, N)``: where landmarks of the moving image go."""
        return self.in_chunks(points, "inverse_points", self.components)

    def in_chunks(self, points: Tensor, method: str, components: Sequence[WorldComponent]) -> Tensor:
        """Applies a method of every component, in chunks of ``POINTS_AT_ONCE`` points, each in a thread of its own."""

        def moved(chunk: Tensor) -> Tensor:
            """By all components."""
            for component in components:
                chunk = getattr(component, method)(chunk)
            return chunk

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return torch.cat(list(pool.map(moved, points.double().split(POINTS_AT_ONCE, dim=1))), dim=1)

    def inverse_error(self, points: Tensor) -> Tensor:
        """``(N,)`` in mm: how far the inverse of points ``(D, N)`` is from mapping back onto them."""
        return (self.transform_points(self.inverse_points(points)) - points).norm(dim=0)

    def inverse(self, grid: Grid) -> WorldTransform:
        """Moving to fixed points as a transform of its own: affine components exactly, the rest as one field.

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
        field = WorldField(rest.on_grid(grid, inverse=True) - grid.points(), grid.affine)
        return WorldTransform([field, *exact], self.dims)

    def on_grid(self, grid: Grid, inverse: bool = False, slab: slice = WHOLE) -> Tensor:
        """Where the voxels of a grid, or of a slab of it, are found: world points ``(D, *S)``.

        Args:
            grid: in the fixed image's world; with ``inverse``, in the moving one's.
            inverse: by the inverse.
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
