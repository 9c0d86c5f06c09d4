"""One subject of a data set: its image and its structures, measured.

Convention:
    World points are RAS mm; axes are those nearest to R, A, S, as a registration grid has them. Keys of structures are
    label values, the names of landmarks, or :data:`MAP` for real-valued maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

from istn_monai.alignment import center_of_mass
from istn_monai.geometry.filling import filled
from istn_monai.geometry.grids import Grid, map_points, registration_grid
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.io.images import read_exactly, read_or_explain
from istn_monai.io.landmarks import is_points, read_points
from istn_monai.transforms.checks import check_image, check_label, check_mask, counting, plain
from istn_monai.transforms.registration_grid import content_grid

PERCENTILES = (0.5, 50.0, 99.5)
MAP = "map"
MAP_LEVEL = 0.25  # of its maximum: where a real-valued map counts as the structure
COARSE = 96  # voxels along an axis at which overlap is measured
Key = int | str


class Files(NamedTuple):
    """The files of a subject."""

    image: str
    label: str | None
    points: str | None
    mask: str | None = None


@dataclass(frozen=True)
class Structure:
    """One structure in one image.

    Attributes:
        volume: mm^D.
        thickness: diameter in mm of the largest ball inside.
        center: world point ``(D,)``.
        corners: world points ``(D, N)`` of a box around it.
    """

    volume: float
    thickness: float
    center: Tensor
    corners: Tensor


@dataclass(frozen=True)
class Subject:
    """One image and its structures.

    Attributes:
        grid: of the image.
        channels: of the image.
        percentiles: intensities at ``PERCENTILES``.
        mass: world point ``(D,)`` of the center of mass of the intensities.
        content: world points ``(D, N)`` of the box outside which the image is constant.
        structures: by key.
        labels: label values on a coarse grid, and that grid; None without labels.
        is_map: whether the label is a real-valued map.
    """

    grid: Grid
    channels: int
    percentiles: tuple[float, ...]
    mass: Tensor
    content: Tensor
    structures: dict[Key, Structure]
    labels: tuple[np.ndarray, Grid] | None
    is_map: bool

    @property
    def orientation(self) -> str:
        """Of the file's axes, such as RAS."""
        return "".join(nib.aff2axcodes(self.grid.affine.numpy()))

    def anchor(self, alignment: str) -> Tensor:
        """The world point ``(D,)`` that an initial alignment joins with that of the other image."""
        points = {"center": self.grid.center, "moments": self.mass}
        return points.get(alignment, torch.zeros(self.grid.spatial_dims, dtype=torch.float64))

    def reach(self, points: Tensor) -> np.ndarray:
        """How far world points ``(D, N)`` lie from the middle of this image along each axis, in mm ``(D,)``."""
        frame = registration_grid(self.grid, (2,) * self.grid.spatial_dims, 1.0)
        return (frame.voxels(points) - 0.5).abs().amax(1).numpy()

    def on_axes(self, values: Sequence[float]) -> list[float]:
        """What is given for the file's axes, for those nearest to R, A, S."""
        axes = nib.orientations.io_orientation(self.grid.affine.numpy())[:, 0].astype(int)
        return [float(values[list(axes).index(axis)]) for axis in range(len(values))]


def union(subject: Subject, keys: Sequence[Key]) -> Tensor | None:
    """World points ``(D, N)`` around those of these structures that a subject has; None if it has none."""
    corners = [subject.structures[key].corners for key in keys if key in subject.structures]
    return torch.cat(corners, dim=1) if corners else None


def checked_and_filled(image: MetaTensor, mask_file: str | None, nifti_frame: str | None) -> MetaTensor:
    """An image that can be registered; what does not count by its mask, and may be NaN, is filled from what does."""
    mask = None if mask_file is None else read_or_explain(mask_file, "mask", nifti_frame)
    if mask is not None:
        check_mask(mask, "mask", image)
    check_image(image, "image", image.ndim - 1, mask=mask)
    return image if mask is None else with_affine(filled(plain(image), counting(mask)), affine_of(image), image)


def measured(
    files: Files, other: tuple[Files, Subject] | None, as_map: bool = False, nifti_frame: str | None = None
) -> Subject:
    """Reads a subject and measures it; ``other`` is one of the same data set, whose dimension it must have."""
    image = read_or_explain(files.image, "image", nifti_frame)
    dims = image.ndim - 1
    if other is not None and dims != other[1].grid.spatial_dims:
        raise ValueError(
            f"mixed dimensions: {files.image} is {dims}-D, {other[0].image} {other[1].grid.spatial_dims}-D; a data set "
            "must have one: remove the others"
        )
    if other is not None and len(image) != other[1].channels:
        raise ValueError(
            f"mixed channels: {files.image} has {len(image)}, {other[0].image} {other[1].channels}; a data set must "
            "have one number of channels"
        )
    image = checked_and_filled(image, files.mask, nifti_frame)
    structures: dict[Key, Structure] = {}
    labels, is_map = None, False
    if files.label is not None:
        label = read_exactly(files.label, "label", nifti_frame)
        check_label(label, "label", image, None)
        is_map = as_map or is_real_valued(plain(label).numpy()[0])
        labels, own = label_structures(label, is_map)
        structures |= own
    if files.points is not None and (files.label is None or is_points(files.points)):  # one map is enough
        structures |= point_structures(files.points, image, nifti_frame)
    values = plain(image).numpy()[0]
    return Subject(
        grid=Grid.of(image),
        channels=len(image),
        percentiles=tuple(
            np.percentile(values[tuple(slice(None, None, 1 + n // 128) for n in values.shape)], PERCENTILES)
        ),
        mass=center_of_mass(image),
        content=content_grid(image).corners(),
        structures=structures,
        labels=labels,
        is_map=is_map,
    )


def is_real_valued(values: np.ndarray) -> bool:
    """Whether ``(*S)`` is no label map: it has fractions, or many values that change from voxel to voxel.

    In a label map neighbors within the foreground have mostly one value.
    """
    if not np.array_equal(values, np.round(values)):
        return True
    same = both = 0
    for axis in range(values.ndim):
        one, other = (np.take(values, range(start, values.shape[axis] - 1 + start), axis) for start in (0, 1))
        inside = (one != 0) & (other != 0)
        both += inside.sum()
        same += (inside & (one == other)).sum()
    return bool(same < 0.5 * both)


def box_corners(box: Sequence[slice], affine: Tensor) -> Tensor:
    """World points ``(D, 2^D)`` of the outer corners of a box of voxels."""
    ends = [(part.start - 0.5, part.stop - 0.5) for part in box]
    return map_points(affine, torch.tensor(list(product(*ends)), dtype=torch.float64).T)


def label_structures(label: MetaTensor, is_map: bool) -> tuple[tuple[np.ndarray, Grid], dict[Key, Structure]]:
    """The label values on a coarse grid, and the structures of a label map ``(1, *S)``."""
    values = plain(label).numpy()[0]
    grid = Grid.of(label)
    numbers = (values > MAP_LEVEL * values.max()).astype(np.int64) if is_map else values.round().astype(np.int64)
    numbers[numbers < 0] = 0  # background, like 0
    known, index = np.unique(numbers, return_inverse=True)
    index = index.reshape(numbers.shape) + (known[0] != 0)
    found: dict[Key, Structure] = {}
    present = known[known != 0]
    for value, box in zip(present, ndimage.find_objects(index), strict=True):
        key: Key = MAP if is_map else int(value)
        found[key] = structure(numbers[box] == value, box, grid)
    steps = [1 + (n - 1) // COARSE for n in numbers.shape]
    coarse = numbers[tuple(slice(None, None, step) for step in steps)]
    affine = grid.affine @ torch.diag(torch.tensor([*steps, 1.0], dtype=torch.float64))
    return (coarse, Grid(coarse.shape, affine)), found


def structure(mask: np.ndarray, box: Sequence[slice], grid: Grid) -> Structure:
    """Measures a structure from its mask within its box."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=grid.spacing).max()
    middle = torch.tensor([index.mean() + part.start for index, part in zip(np.nonzero(mask), box, strict=True)])
    return Structure(
        volume=float(mask.sum() * np.prod(grid.spacing)),
        # from the middle to the first voxel outside: half a voxel beyond the border, on either side
        thickness=float(2 * depth - min(grid.spacing)),
        center=map_points(grid.affine, middle.double()),
        corners=box_corners(box, grid.affine),
    )


def point_structures(file: str, image: MetaTensor, nifti_frame: str | None = None) -> dict[Key, Structure]:
    """The landmarks of a file, or the one structure of a landmark map."""
    if not is_points(file):
        drawn = read_or_explain(file, "landmark map", nifti_frame)
        check_label(drawn, "landmark map", image, None)
        return label_structures(drawn, is_map=True)[1]
    points = read_points(file)
    if points.positions.shape[1] != image.ndim - 1:
        raise ValueError(f"{file} has {points.positions.shape[1]}-D landmarks, its image is {image.ndim - 1}-D")
    named = zip(points.labels, points.positions, strict=True)
    return {label: Structure(0.0, 0.0, position, position[:, None]) for label, position in named}


def check_same_kind(subjects: Mapping[Files, Subject]) -> None:
    """ValueError if some labels are real-valued maps while others have structures numbered 2 and more."""
    real = [files.label for files, subject in subjects.items() if subject.is_map]
    whole = [
        files.label
        for files, subject in subjects.items()
        if not subject.is_map and any(isinstance(key, int) and key > 1 for key in subject.structures)
    ]
    if real and whole:
        raise ValueError(
            f"mixed labels: {real[0]} has fractions or as many values as an image, {whole[0]} has numbered structures; "
            "a data set must have one kind: repair or remove the others"
        )
