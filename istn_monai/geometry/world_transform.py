"""A registration as a map of world points, whatever made it: what is resampled with, inverted, and exchanged.

Convention:
    World points are RAS millimeters, ``(D, N)`` float64. A transform maps fixed to moving points (pull-back): images
    are resampled with it as it is, landmarks travel from the moving to the fixed image with its inverse. A point that
    nothing is mapped to has no inverse: it becomes NaN, and so does what is made of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial, reduce

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.components import TOLERANCE, WorldAffine, WorldBSpline, WorldComponent, WorldField
from istn_monai.geometry.composite import CompositeTransformation
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.sampling import WHOLE
from istn_monai.geometry.transformation import Transformation

#: so few that what is made of them stays in a core's cache, and that torch does not split them among threads again
POINTS_AT_ONCE = 2**13


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
        """Moving to fixed points ``(D, N)``: where landmarks of the moving image go; see :class:`WorldComponent`.

        Each is checked by the map itself: one that it does not take back, within ``TOLERANCE``, is none.
        """
        if closest:
            return self.in_chunks(points, [partial(part.inverse_points, closest=True) for part in self.components])

        def found(chunk: Tensor) -> Tensor:
            """The inverse of a chunk, or NaN."""
            places = inverted(chunk, self.components)
            back = reduce(lambda points, part: part.transform_points(points), self.components[::-1], places)
            return torch.where((back - chunk).norm(dim=0) < TOLERANCE, places, torch.nan)

        return self.in_chunks(points, [found])

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
        """As :func:`istn_monai.geometry.resampling.pull_back_points`, exactly, wherever the voxels are.

        In float64: which side of an image's surface a voxel is on shows in the result.
        """
        return moving.voxels(self.on_grid(fixed, slab=slab))[None]


def inverted(points: Tensor, components: Sequence[WorldComponent]) -> Tensor:
    """Points ``(D, N)`` through the inverses of components, NaN where there is no way.

    Two places may be taken to one point, one in a component's domain and one beyond it, which stays: where the first
    leads nowhere, as near the rim of several domains, the other is tried.
    """
    if not components:
        return points
    first, others = components[0], components[1:]
    found = inverted(first.inverse_points(points), others)
    lost = (found.isnan().any(dim=0) & torch.isfinite(points).all(dim=0)).nonzero()[:, 0]
    if len(lost):
        staying = first.staying(points[:, lost])
        stay = torch.isfinite(staying).all(dim=0)
        if stay.any():
            found[:, lost[stay]] = inverted(staying[:, stay], others)
    return found


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
            grid; or the grid has other voxels than the transformation was made for.

    Examples:
        >>> affine = AffineTransformation((24, 20), spacing=2.0)
        >>> grid = Grid((24, 20), torch.diag(torch.tensor([2.0, 2.0, 1.0])))
        >>> transform = world_transform(affine, torch.zeros(1, 6), grid)
        >>> transform.transform_points(torch.tensor([[10.0], [-4.0]])).flatten().tolist()
        [10.0, -4.0]
    """
    if theta.ndim != 2 or len(theta) != 1:
        raise ValueError(f"theta must be (1, P), one pair, got {tuple(theta.shape)}")
    if not np.allclose(transformation.spacing, grid.spacing, rtol=1e-3):
        raise ValueError(
            f"the transformation is of voxels of {tuple(transformation.spacing)} mm, the grid has "
            f"{tuple(round(step, 6) for step in grid.spacing)} mm: make it with spacing=grid.spacing"
        )
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
    return [field_on(grid, transformation(theta))]


def closed_inverse(
    transformation: Transformation, theta: Tensor, grid: Grid, initial_alignment: Tensor
) -> WorldTransform | None:
    """The inverse of :func:`world_transform`, moving to fixed points, where it is known in closed form; else None.

    That of a velocity field is a displacement field on the registration grid.
    """
    transformation = transformation.resized(grid.spatial_size)
    if not transformation.invertible:
        return None
    parts: Sequence[Transformation] = [transformation]
    blocks: Sequence[Tensor] = [theta.detach().double()]
    if isinstance(transformation, CompositeTransformation):
        parts, blocks = list(transformation.components), transformation.split(blocks[0])  # type: ignore[assignment]
    inverses: list[WorldComponent] = [WorldAffine(torch.linalg.inv(initial_alignment.double()))]
    for part, block in zip(parts, blocks, strict=True):
        if isinstance(part, AffineTransformation):
            (single,) = world_components(part, block, grid)
            inverses.insert(0, WorldAffine(torch.linalg.inv(single.matrix)))  # type: ignore[attr-defined]
        else:
            inverses.insert(0, field_on(grid, part.inverse(block)))
    return WorldTransform(inverses, transformation.spatial_dims)


def field_on(grid: Grid, ddf: Tensor) -> WorldField:
    """A ddf ``(1, D, *S)`` in voxels of a grid as displacements of world points."""
    return WorldField(torch.tensordot(grid.affine[:-1, :-1], ddf[0].cpu().double(), dims=1), grid.affine)


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
