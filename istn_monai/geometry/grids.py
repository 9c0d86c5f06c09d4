"""World space: grids of voxels, and how they lie to each other.

Convention:
    World points are in RAS millimeters, as in MONAI's and NIfTI's affines. An affine is ``(D+1, D+1)``, voxel to
    world. The initial alignment ``T0`` maps fixed world to moving world points (pull-back); it is applied by editing
    the moving image's affine, ``inverse(T0) @ affine``, after which both images live in the fixed image's world.
    The whole transformation is ``T0 o (id + u)``, u the displacement on the registration grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.sampling import WHOLE, affine_points, column
from istn_monai.geometry.transformation import checked_size, per_axis


def square(affine: Tensor | np.ndarray, spatial_dims: int) -> Tensor:
    """An affine of any size as ``(D+1, D+1)`` float64: MONAI gives 2-D images a 4x4 one."""
    affine = torch.as_tensor(np.asarray(affine), dtype=torch.float64)
    axes = [*range(spatial_dims), len(affine) - 1]
    return affine[axes][:, axes]


def map_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Homogeneous ``(D+1, D+1)`` applied to points ``(D, *T)``."""
    return torch.tensordot(matrix[:-1, :-1], points, dims=1) + column(matrix[:-1, -1], points.ndim)


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of an image and where they lie in the world: spatial size and affine, which travel together.

    Convention:
        World points are RAS mm. Voxel centers are on whole numbers, the first one is 0. The affine may be oblique,
        anisotropic, flipped or sheared. Matrices and points are float64, on the CPU.

    Args:
        spatial_size: number of voxels along each axis, ``*S``.
        affine: voxel to world, ``(D+1, D+1)``; a 4x4 one of a 2-D image becomes 3x3.

    Raises:
        ValueError: the affine is no matrix for as many axes as the size has.

    Examples:
        >>> grid = Grid((5, 4), torch.tensor([[2.0, 0, 10], [0, -3, 0], [0, 0, 1]]))
        >>> grid.spacing, grid.extent, grid.center.tolist()
        ((2.0, 3.0), (10.0, 12.0), [14.0, -4.5])
        >>> finer = Grid((10, 4), torch.tensor([[1.0, 0, 9.5], [0, -3, 0], [0, 0, 1]]))
        >>> map_points(grid.to(finer), torch.tensor([[1.0], [3.0]]).double()).flatten().tolist()
        [2.5, 3.0]
    """

    spatial_size: tuple[int, ...]
    affine: Tensor

    def __post_init__(self) -> None:
        size = tuple(int(n) for n in self.spatial_size)
        affine = torch.as_tensor(self.affine).detach().cpu()
        if affine.ndim != 2 or affine.shape[0] != affine.shape[1] or len(affine) <= len(size):
            raise ValueError(
                f"affine of a grid of size {size} must be ({len(size) + 1}, {len(size) + 1}), got {tuple(affine.shape)}"
            )
        object.__setattr__(self, "spatial_size", size)
        object.__setattr__(self, "affine", square(affine, len(size)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.spatial_size == other.spatial_size and torch.equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.spatial_size, *self.affine.flatten().tolist()))

    @classmethod
    def of(cls, image: MetaTensor) -> Grid:
        """The grid of a channel-first image ``(C, *S)``."""
        return cls(tuple(image.shape[1:]), image.affine)

    @property
    def spatial_dims(self) -> int:
        """D, the number of axes."""
        return len(self.spatial_size)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance in mm of neighboring voxels along each axis."""
        return tuple(self.affine[:-1, :-1].norm(dim=0).tolist())

    @property
    def extent(self) -> tuple[float, ...]:
        """Length in mm along each axis, whole voxels."""
        return tuple(n * step for n, step in zip(self.spatial_size, self.spacing, strict=True))

    @property
    def center(self) -> Tensor:
        """World point ``(D,)`` of the middle."""
        middle = torch.tensor([(size - 1) / 2 for size in self.spatial_size], dtype=torch.float64)
        return map_points(self.affine, middle)

    def points(self, dtype: torch.dtype = torch.float64, slab: slice = WHOLE) -> Tensor:
        """World points ``(D, *S)`` of all voxels, or of a slab, computed in float64 whatever ``dtype`` they come in."""
        return affine_points(self.affine, self.spatial_size, dtype, slab)

    def slabs(self, voxels: int) -> Iterator[slice]:
        """Slabs of the first axis, of so many voxels or one index each, that together make up the grid.

        Examples:
            >>> list(Grid((5, 4), torch.eye(3)).slabs(10))
            [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
        """
        first, *others = self.spatial_size
        step = max(1, voxels // math.prod(others))
        return (slice(start, min(start + step, first)) for start in range(0, first, step))

    def corners(self) -> Tensor:
        """World points ``(D, 2^D)`` of the outermost voxels' centers."""
        ends = [(0.0, size - 1.0) for size in self.spatial_size]
        return map_points(self.affine, torch.tensor(list(itertools.product(*ends)), dtype=torch.float64).T)

    def to(self, other: Grid) -> Tensor:
        """``(D+1, D+1)``: voxel of this grid to voxel of the other one, both in the same world."""
        return torch.linalg.solve(other.affine, self.affine)

    def voxels(self, points: Tensor) -> Tensor:
        """World points ``(D, *T)`` float64 in voxels of this grid, ``(D, *T)``."""
        # in this order points on the surface of an image along the world's axes are, to the last bit, on ITK's side
        away = points - column(self.affine[:-1, -1], points.ndim)
        return torch.tensordot(torch.linalg.inv(self.affine[:-1, :-1]), away, dims=1)

    def contains(self, points: Tensor) -> Tensor:
        """Which world points ``(D, *T)`` float64 lie in a voxel of this grid, ``(*T)``; see :func:`within`."""
        return within(self.voxels(points)[None], self.spatial_size)[0, 0]

    def aligned(self, start: Tensor) -> Grid:
        """The grid of a moving image in the fixed image's world, ``inverse(T0) @ affine``.

        Args:
            start: ``T0`` ``(D+1, D+1)``, fixed to moving world.
        """
        return Grid(self.spatial_size, torch.linalg.solve(start, self.affine))


def overlap_in_world(one: Grid, other: Grid, samples: int = 16) -> bool:
    """Whether any of some points all over one grid lies in the other, in the world."""
    for own, theirs in ((one, other), (other, one)):  # the other way round too: the other one may be small
        steps = [(n - 1) / (samples - 1) for n in own.spatial_size]
        spread = torch.diag(torch.tensor([*steps, 1.0], dtype=torch.float64))
        matrix = torch.linalg.solve(theirs.affine, own.affine @ spread)
        points = affine_points(matrix, (samples,) * own.spatial_dims)
        if within(points[None], theirs.spatial_size).any():
            return True
    return False


def registration_grid(fixed: Grid, spatial_size: Sequence[int], spacing: float | Sequence[float]) -> Grid:
    """The registration grid of a fixed image.

    It shares the fixed image's center and the directions of its axes, but not their order and sign: its axes are the
    ones nearest to R, A, S, so that a network meets the anatomy in one orientation whatever the file's.

    Args:
        fixed: grid of the fixed image.
        spatial_size: number of voxels of the registration grid along each axis.
        spacing: voxel size of the registration grid in mm.
    """
    size = checked_size(spatial_size)
    dims = len(size)
    orientation = nib.orientations.io_orientation(fixed.affine.numpy())
    directions = np.zeros((dims, dims))
    for file_axis, (grid_axis, sign) in enumerate(orientation):
        column = fixed.affine[:dims, file_axis].numpy()
        directions[:, int(grid_axis)] = sign * column / np.linalg.norm(column)
    affine = torch.eye(dims + 1, dtype=torch.float64)
    affine[:dims, :dims] = torch.as_tensor(directions * np.array(per_axis("spacing", spacing, dims)))
    affine[:dims, -1] = fixed.center - Grid(size, affine).center
    return Grid(size, affine)


def within(points: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """Which points ``(1, D, *T)`` lie in a voxel of an image, as ITK has it: up to half a voxel beyond the centers.

    A place exactly half a voxel beyond the last center is outside, one before the first inside.
    """
    size = column(points.new_tensor(spatial_size), points.ndim - 1)
    return ((points >= -0.5) & (points < size - 0.5)).all(1, keepdim=True)
