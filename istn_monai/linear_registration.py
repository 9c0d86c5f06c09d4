"""Linear registration of two images, or representations, from several starts, coarse to fine; no network.

Convention:
    A start, and the result, is ``T0`` ``(D+1, D+1)`` float64, fixed to moving world point, RAS mm. Where a descent of
    one start ends depends on the start: turns of more than some 30 degrees need starts that are turned, too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.grids import Grid, map_points, registration_grid
from istn_monai.geometry.names import bounds_of
from istn_monai.geometry.resampling import area_averaged
from istn_monai.geometry.sampling import resample
from istn_monai.geometry.world_transform import grid_mm_to_world
from istn_monai.local_correlation import LocalCorrelation
from istn_monai.mind import mind_ssc
from istn_monai.mutual_information import normalized_mutual_information
from istn_monai.refinement import Refiner

#: voxels along the longest axis of the fixed image, and steps, coarse to fine
LEVELS = ((24, 100), (48, 50))
TURNS = (30.0, 60.0, 90.0, 120.0, 150.0, 180.0)  # degrees, about each axis of a start
TRIED = 6  # of the turned starts, how many are descended from
APART = 1.0  # norm of the difference of two rotations of 41 degrees: a descent reaches the ones between
PRIOR = 0.95  # a turned start must end below this fraction of the first one's objective: headers are mostly right
RATE = 0.02
Similarity = Callable[[Tensor, Tensor], Tensor]


class Side(NamedTuple):
    """An image or representation ``(C, *S)`` float32 and its grid."""

    values: Tensor
    grid: Grid


def local_correlation(warped: Tensor, fixed: Tensor) -> Tensor:
    """``1 - LocalCorrelation``, of ``(1, C, *S)`` both."""
    return (1.0 - LocalCorrelation(fixed)(warped)).mean()


def mutual_information(warped: Tensor, fixed: Tensor) -> Tensor:
    """``1 - normalized mutual information``, likewise."""
    return (1.0 - normalized_mutual_information(warped, fixed)).mean()


#: by the names of a refinement's terms; "mind" is the mean square of what :func:`seen` makes of images
SIMILARITIES: dict[str, Similarity] = {
    "mse": nn.MSELoss(), "image": local_correlation, "nmi": mutual_information, "mind": nn.MSELoss()
}  # fmt: skip


def seen(values: Tensor, similarity: str) -> Tensor:
    """``(B, C, *S)`` as a similarity compares it."""
    return mind_ssc(values) if similarity == "mind" else values


def turned(start: Tensor, center: Tensor) -> list[Tensor]:
    """A start, turned about the fixed point that is its center ``(D,)``: by each of ``TURNS`` about many axes.

    Returns:
        In 3-D 13 axes, those of a cube's faces, edges and corners; the start itself is not among them.
    """
    dims = len(center)
    rotations = []
    for degrees in TURNS:
        signs = (1.0,) if degrees == 180.0 else (1.0, -1.0)
        rotations += [rotation(sign * math.radians(degrees), axis) for axis in axes_of(dims) for sign in signs]
    return [start @ about(center, matrix) for matrix in rotations]


def about(center: Tensor, linear: Tensor) -> Tensor:
    """``(D+1, D+1)`` that maps points linearly, by ``(D, D)``, and leaves a center ``(D,)`` where it is."""
    matrix = translation(center - linear @ center)
    matrix[:-1, :-1] = linear
    return matrix


def center_of_weights(weights: Tensor, grid: Grid) -> Tensor:
    """World point ``(D,)`` of the first moment of weights ``(*S)`` float64 on a grid, whose sum is above 0."""
    axes = range(weights.ndim)
    profiles = [weights.sum([other for other in axes if other != axis]) for axis in axes]
    middle = [(profile * torch.arange(len(profile))).sum() / weights.sum() for profile in profiles]
    return map_points(grid.affine, torch.stack(middle))


def translation(shift: Tensor) -> Tensor:
    """``(D,)`` in mm to ``(D+1, D+1)``."""
    matrix = torch.eye(len(shift) + 1, dtype=torch.float64)
    matrix[:-1, -1] = shift
    return matrix


def axes_of(dims: int) -> list[Tensor]:
    """Unit axes to turn about; in 2-D there is one."""
    if dims == 2:
        return [torch.ones(1, dtype=torch.float64)]
    found = [torch.tensor(axis, dtype=torch.float64) for axis in itertools.product((-1, 0, 1), repeat=3)]
    return [axis / axis.norm() for axis in found if axis.any() and axis[axis != 0][0] > 0]


def rotation(angle: float, axis: Tensor) -> Tensor:
    """The matrix ``(D, D)`` of a turn by an angle in radians about a unit axis ``(3,)``, or in the plane, ``(1,)``."""
    if len(axis) == 1:
        return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    x, y, z = axis.tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(angle * generator)


def linear_registration(
    moving: Side,
    fixed: Side,
    starts: Sequence[Tensor],
    kind: str = "rigid",
    similarity: str = "mse",
    levels: Sequence[tuple[int, int]] = LEVELS,
) -> tuple[Tensor, float]:
    """``T0`` of the best linear registration, and its objective.

    All starts are compared on a coarse grid; from the first one and the best of the others it goes on. Bounds from the
    start are a quarter of the fixed image's extent, 45 degrees in each plane and, of an affine one, a factor of 1.65.

    Args:
        moving: see :class:`Side`.
        fixed: likewise; intensities of both in [0, 1].
        starts: the first one is preferred, unless another is better by ``1 - PRIOR``.
        kind: "rigid" or "affine".
        similarity: "mse", "image" (local correlation), "nmi" or "mind", the last two for different contrasts.
        levels: voxels along the longest axis of the fixed image, and steps of Adam, of each level.
    """
    extent = max(fixed.grid.extent)
    theta, chosen, value = None, list(starts), math.inf
    for voxels, steps in levels:
        grid = registration_grid(fixed.grid, (voxels,) * fixed.grid.spatial_dims, extent / voxels)
        still = seen(area_averaged(fixed.values[None], fixed.grid, grid), similarity)
        if theta is None:
            chosen = promising(moving, still, grid, chosen, similarity)
        moved = seen(torch.cat([on_fixed_grid(moving, grid, start) for start in chosen]), similarity)
        bounds = {"max_translation": extent / 4} | bounds_of(kind)
        linear = AffineTransformation(grid.spatial_size, extent / voxels, **bounds)
        refiner = Refiner(steps=steps, learning_rate=RATE, similarity=SIMILARITIES[similarity])
        # bounds and center are the same at each level, so theta carries over
        found = refiner.register(linear, moved, still.expand(len(moved), *still.shape[1:]), theta)
        ends = [report.objective_end * (PRIOR if number == 0 else 1.0) for number, report in enumerate(found.reports)]
        best = ends.index(min(ends))
        chosen, theta = [chosen[best]], found.theta[best : best + 1]
        value = found.reports[best].objective_end
    to_world = grid_mm_to_world(grid)
    return chosen[0] @ to_world @ linear.matrix(theta)[0].double() @ torch.linalg.inv(to_world), value


def on_fixed_grid(moving: Side, grid: Grid, start: Tensor) -> Tensor:
    """The moving side ``(1, C, *S)`` on a grid of the fixed world.

    Beyond its border its border goes on: were it 0 there, a crop would be enlarged until it covers the grid.
    """
    return area_averaged(moving.values[None], moving.grid.aligned(start), grid)


def best_start(moving: Side, fixed: Side, starts: Sequence[Tensor], similarity: str = "mse") -> Tensor:
    """The start that makes two sides most alike on the coarsest grid; the first one unless another is by ``PRIOR``."""
    extent, voxels = max(fixed.grid.extent), LEVELS[0][0]
    grid = registration_grid(fixed.grid, (voxels,) * fixed.grid.spatial_dims, extent / voxels)
    still = seen(area_averaged(fixed.values[None], fixed.grid, grid), similarity)
    values = likeness(moving, still, grid, starts, similarity)
    values[0] *= PRIOR
    return starts[values.index(min(values))]


def promising(moving: Side, still: Tensor, grid: Grid, starts: Sequence[Tensor], similarity: str) -> list[Tensor]:
    """The first of some starts and the ``TRIED`` best of the others that are apart from each other.

    Compared on a grid where the fixed side is ``still``.
    """
    if len(starts) <= 1 + TRIED:
        return list(starts)
    chosen: list[Tensor] = []
    values = likeness(moving, still, grid, starts[1:], similarity)
    for start in (starts[1 + number] for number in sorted(range(len(values)), key=values.__getitem__)):
        if len(chosen) < TRIED and all((start - other)[:-1, :-1].norm() > APART for other in chosen):
            chosen.append(start)
    return [starts[0], *chosen]


def likeness(moving: Side, still: Tensor, grid: Grid, starts: Sequence[Tensor], similarity: str) -> list[float]:
    """Of each start how far the moving side is from being like the fixed one, ``still`` on a coarse grid."""
    small = coarse(moving, max(grid.spacing))
    values = []
    for start in starts:
        to_moving = grid.to(small.grid.aligned(start))
        moved = resample(small.values[None], to_moving, grid.spatial_size, padding_mode="border")
        values.append(SIMILARITIES[similarity](seen(moved, similarity), still).item())
    return values


def coarse(side: Side, spacing: float) -> Side:
    """A side on a grid along its own axes, of at least this spacing, that covers it."""
    factors = torch.tensor([max(1.0, spacing / step) for step in side.grid.spacing], dtype=torch.float64)
    size = [max(2, math.ceil(n / f)) for n, f in zip(side.grid.spatial_size, factors.tolist(), strict=True)]
    affine = side.grid.affine.clone()
    affine[:-1, :-1] *= factors
    affine[:-1, -1] += side.grid.center - Grid(tuple(size), affine).center
    target = Grid(tuple(size), affine)
    return Side(area_averaged(side.values[None], side.grid, target)[0], target)
