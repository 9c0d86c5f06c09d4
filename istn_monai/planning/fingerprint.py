"""The fingerprint of a data set: what its images and structures are, and how far structures lie apart."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from istn_monai.alignment import translation
from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.grids import Grid, registration_grid
from istn_monai.geometry.resampling import area_averaged
from istn_monai.geometry.sampling import warp
from istn_monai.io.datalist import Item
from istn_monai.pace import paced, tell
from istn_monai.planning.dataset import DataSet
from istn_monai.planning.subjects import (
    MAP,
    PERCENTILES,
    Files,
    Key,
    Structure,
    Subject,
    check_same_kind,
    measured,
    union,
)
from istn_monai.refinement import Refiner
from istn_monai.transforms.keys import SIDES

MOST_SUBJECTS, MOST_PAIRS = 60, 20
FITTED_PAIRS, FITTED_VOXELS, FITTED_STEPS = 5, 32, 60
ALIGNMENTS = ("world", "center", "moments")  # those that cost nothing; "rigid" takes seconds for each pair


@dataclass(frozen=True)
class Fingerprint:
    """What a data set is.

    Attributes:
        subjects: those that were read, by their files.
        number: of all subjects.
        pairs: numbers of pairs by split.
        read_pairs: all pairs (moving, fixed) of which both subjects were read.
        distances: of centroids in mm, by alignment and structure, over some training pairs.
        overlaps: Dice, likewise; empty for landmarks.
        names: of structures by label value, as far as they are known.
    """

    subjects: dict[Files, Subject]
    number: int
    pairs: dict[str, int]
    read_pairs: list[tuple[Subject, Subject]]
    distances: dict[str, dict[Key, list[float]]] = field(default_factory=dict)
    overlaps: dict[str, dict[Key, list[float]]] = field(default_factory=dict)
    names: Mapping[Any, str] = field(default_factory=dict)

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.first.grid.spatial_dims

    @property
    def first(self) -> Subject:
        """Any of the subjects."""
        return next(iter(self.subjects.values()))

    @property
    def is_map(self) -> bool:
        """Whether labels are real-valued maps: one that is, is enough."""
        return any(subject.is_map for subject in self.subjects.values())

    def keys(self, kind: type) -> list[Key]:
        """Label values (``int``) or names (``str``) of all structures, sorted."""
        found = {key for subject in self.subjects.values() for key in subject.structures if isinstance(key, kind)}
        return sorted(found)  # type: ignore[type-var]

    def of(self, key: Key) -> list[Structure]:
        """A structure in all subjects that have it."""
        return [subject.structures[key] for subject in self.subjects.values() if key in subject.structures]

    def presence(self, key: Key) -> float:
        """Fraction of the subjects that have a structure."""
        return len(self.of(key)) / len(self.subjects)

    def volume(self, key: Key) -> float:
        """Median over the subjects, mm^D."""
        return float(np.median([structure.volume for structure in self.of(key)]))

    def thickness(self, key: Key) -> float:
        """Median over the subjects, mm."""
        return float(np.median([structure.thickness for structure in self.of(key)]))

    def overlap(self, alignment: str, key: Key) -> float:
        """Median Dice over pairs; nan where it was not measured."""
        values = self.overlaps.get(alignment, {}).get(key, [])
        return float(np.median(values)) if values else float("nan")

    def apart(self, alignment: str, keys: Sequence[Key], percentile: float = 50) -> float:
        """Percentile, over structures and pairs, of how far centroids lie apart, mm."""
        values = [value for key in keys for value in self.distances[alignment].get(key, [])]
        return float(np.percentile(values, percentile)) if values else float("nan")

    def mirrored(self, key: Key, among: Sequence[Key]) -> Key | None:
        """The structure on the other side of the body: of like volume, and where this one's mirror image is.

        Bodies are mirrored along the first world axis, left and right, about the middle of all structures.
        """
        centers = {other: self.first.structures[other].center for other in among if other in self.first.structures}
        if key not in centers:
            return None
        middle = torch.stack(list(centers.values())).median(0).values[0]
        image = centers[key].clone()
        image[0] = 2 * middle - image[0]
        alike = [other for other in centers if other != key and 1 / 1.5 < self.volume(other) / self.volume(key) < 1.5]
        nearest = min(alike, key=lambda other: float((centers[other] - image).norm()), default=None)
        if nearest is None or float((centers[nearest] - image).norm()) > self.thickness(key):
            return None
        return nearest

    def spacings(self) -> np.ndarray:
        """``(N, D)`` in mm along R, A, S."""
        return np.array([subject.on_axes(subject.grid.spacing) for subject in self.subjects.values()])

    def length(self, keys: Sequence[Key]) -> float:
        """Median over subjects of the longest side in mm of the box around these structures."""
        lengths = []
        for subject in self.subjects.values():
            box = union(subject, keys)
            if box is not None:
                lengths.append(float((box.amax(1) - box.amin(1)).max()))
        return float(np.median(lengths))

    def structure_reach(self, alignment: str, keys: Sequence[Key]) -> np.ndarray:
        """The farthest that structures of either image of a pair lie from the fixed image's middle, mm ``(D,)``."""
        reaches = []
        for subject in self.subjects.values():
            box = union(subject, keys)
            if box is not None:
                reaches.append(subject.reach(box))
        for moving, fixed in self.read_pairs:
            box = union(moving, keys)
            if box is not None:
                reaches.append(fixed.reach(box - shift(alignment, moving, fixed)[:, None]))
        return np.max(reaches, axis=0)

    def image_reach(self, percentile: float) -> np.ndarray:
        """How far an image's content lies from its middle, percentile over subjects, mm ``(D,)``."""
        reaches = [subject.reach(subject.content) for subject in self.subjects.values()]
        return np.percentile(reaches, percentile, axis=0)

    def affine_dice(self, alignment: str, groups: Sequence[Sequence[Key]]) -> float:
        """Dice after the structures' own affine registration, of the worst group, mean over a few pairs.

        nan without labels.
        """
        pairs = spread(self.read_pairs, FITTED_PAIRS) if self.first.labels is not None else []
        reached = [fitted_dice(moving, fixed, alignment, groups) for moving, fixed in pairs]
        return float(np.mean(reached)) if pairs else float("nan")

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        spacings = self.spacings()
        subjects = list(self.subjects.values())
        sizes = np.array([subject.on_axes(subject.grid.spatial_size) for subject in subjects]).astype(int)
        return {
            "subjects": self.number,
            "subjects_read": len(subjects),
            "pairs": self.pairs,
            "spatial_dims": self.spatial_dims,
            "channels": self.first.channels,
            "orientations": dict(Counter(subject.orientation for subject in subjects)),
            "spacing_mm": quantiles(spacings),
            "size_voxels": quantiles(sizes),
            "intensities": dict(zip(map(str, PERCENTILES), percentiles(subjects), strict=True)),
            "structures": {str(key): self.described(key) for key in [*self.keys(int), *self.keys(str)]},
        }

    def described(self, key: Key) -> dict[str, Any]:
        """A structure, as JSON."""
        apart = {name: round(self.apart(name, [key]), 2) for name in ALIGNMENTS if self.distances[name].get(key)}
        overlaps = {name: round(self.overlap(name, key), 3) for name in ALIGNMENTS if self.overlaps[name].get(key)}
        return {
            **({"name": self.names[key]} if key in self.names else {}),
            "presence": round(self.presence(key), 3),
            "volume": round(self.volume(key), 1),
            "thickness_mm": round(self.thickness(key), 2),
            "centroids_apart_mm": apart,
            "dice": overlaps,
        }


def quantiles(values: np.ndarray) -> dict[str, list[float]]:
    """Smallest, median and largest of ``(N, D)`` along each axis."""
    named = {"smallest": values.min(0), "median": np.median(values, axis=0), "largest": values.max(0)}
    return {name: [round(float(value), 4) for value in row] for name, row in named.items()}


def percentiles(subjects: Sequence[Subject]) -> list[float]:
    """Medians over subjects of their intensities' percentiles."""
    return [float(f"{value:.4g}") for value in np.median([subject.percentiles for subject in subjects], axis=0)]


def shift(alignment: str, moving: Subject, fixed: Subject) -> Tensor:
    """The translation ``(D,)`` of ``T0``, fixed to moving world, as in :mod:`istn_monai.alignment`."""
    return moving.anchor(alignment) - fixed.anchor(alignment)


def pair_files(item: Item, kinds: Sequence[str]) -> tuple[Files, Files]:
    """The files of the moving and of the fixed subject of a pair."""
    taken = [f"_{kind}" if kind in ("mask", *kinds) else "" for kind in Files._fields[1:]]
    moving, fixed = (Files(item[f"{side}_image"], *(item.get(side + kind) for kind in taken)) for side in SIDES)
    return moving, fixed


def spread(values: Sequence[Any], number: int) -> list[Any]:
    """So many of the values, evenly spread.

    Examples:
        >>> spread(range(10), 4), spread("ab", 4)
        ([0, 3, 6, 9], ['a', 'b'])
    """
    if len(values) <= number:
        return list(values)
    return [values[int(index)] for index in np.linspace(0, len(values) - 1, number).round()]


@contextmanager
def quiet_readers() -> Iterator[None]:
    """Without MONAI's warnings, one for each file, that a decoder for DICOM on a GPU is not installed."""
    logger = logging.getLogger("monai.data")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodec")
            yield
    finally:
        logger.setLevel(level)


def fingerprint(data: DataSet, nifti_frame: str | None = None) -> Fingerprint:
    """Reads the subjects of a data set once, or some of them if there are many, and measures them.

    Args:
        data: the data set.
        nifti_frame: as of :class:`istn_monai.LoadPaird`.

    Raises:
        ValueError: naming a file that cannot be read, or that does not fit its image or the others.
    """
    pairs = {split: [pair_files(item, data.kinds) for item in items] for split, items in data.items.items()}
    everybody = list(dict.fromkeys(files for split in pairs.values() for pair in split for files in pair))
    measured_pairs = spread(pairs["training"], MOST_PAIRS)
    first = list(dict.fromkeys(files for pair in measured_pairs for files in pair))
    others = [files for files in everybody if files not in set(first)]
    chosen = first + spread(others, MOST_SUBJECTS - len(first))
    if len(chosen) < len(everybody):
        tell(f"reading {len(chosen)} of {len(everybody)} subjects, evenly spread")
    subjects: dict[Files, Subject] = {}
    with quiet_readers():
        for files in paced(chosen, "reading data", "subject"):
            subjects[files] = measured(files, next(iter(subjects.items()), None), nifti_frame=nifti_frame)
    if any(subject.is_map for subject in subjects.values()) and data.kinds[0] == "label":
        check_same_kind(subjects)
        subjects = {files: measured(files, None, True, nifti_frame) if not subject.is_map else subject
                    for files, subject in subjects.items()}  # fmt: skip
    known = [pair for split in pairs.values() for pair in split if subjects.keys() >= set(pair)]
    read = [(subjects[moving], subjects[fixed]) for moving, fixed in known]
    numbers = {split: len(items) for split, items in data.items.items()}
    result = Fingerprint(subjects, len(everybody), numbers, read, names=data.names)
    for moving, fixed in measured_pairs:
        compare(result, subjects[moving], subjects[fixed])
    if not result.distances[ALIGNMENTS[0]]:
        raise ValueError(no_common_structure(subjects, *measured_pairs[0]))
    return result


def no_common_structure(subjects: Mapping[Files, Subject], *pair: Files) -> str:
    """What is wrong where no pair has a structure in both of its images, by the first of them."""
    there = [f"{sorted(subjects[files].structures, key=str)} in {files.points or files.label}" for files in pair]
    return f"structures correspond by name or label value, and no training pair shares one: {' and '.join(there)}"


def compare(result: Fingerprint, moving: Subject, fixed: Subject) -> None:
    """Notes how far the structures of a pair lie apart under each alignment."""
    common = [key for key in fixed.structures if key in moving.structures]
    for alignment in ALIGNMENTS:
        offset = shift(alignment, moving, fixed)
        distances = result.distances.setdefault(alignment, {})
        for key in common:
            gap = moving.structures[key].center - offset - fixed.structures[key].center
            distances.setdefault(key, []).append(float(gap.norm()))
        overlaps = result.overlaps.setdefault(alignment, {})
        for key, value in dice(moving, fixed, offset).items():
            overlaps.setdefault(key, []).append(value)


def dice(moving: Subject, fixed: Subject, offset: Tensor) -> Mapping[Key, float]:
    """Dice of each label value of a pair, the moving one shifted by ``-offset`` in the world; on coarse grids."""
    if moving.labels is None or fixed.labels is None:
        return {}
    (theirs, grid), (mine, own) = moving.labels, fixed.labels
    matrix = own.to(grid.aligned(translation(offset))).numpy()
    warped = ndimage.affine_transform(
        theirs, matrix[:-1, :-1], matrix[:-1, -1], output_shape=mine.shape, order=0, cval=0, prefilter=False
    )
    voxel = abs(np.linalg.det(own.affine.numpy())) / abs(np.linalg.det(grid.affine.numpy()))
    sizes = [dict(zip(*np.unique(array, return_counts=True), strict=True)) for array in (theirs, mine)]
    shared = dict(zip(*np.unique(warped[warped == mine], return_counts=True), strict=True))
    keys = [key for key in sizes[0] if key != 0 and key in sizes[1]]
    return {
        MAP if fixed.is_map else int(key): 2 * shared.get(key, 0) / (sizes[0][key] / voxel + sizes[1][key])
        for key in keys
    }


def fitted_dice(moving: Subject, fixed: Subject, alignment: str, groups: Sequence[Sequence[Key]]) -> float:
    """Soft Dice of a pair after the affine registration of its structures on a coarse grid, of the worst group."""
    longest = max(fixed.grid.extent)
    size = tuple(max(4, round(FITTED_VOXELS * side / longest)) for side in fixed.grid.extent)
    grid = registration_grid(fixed.grid, size, longest / FITTED_VOXELS)
    start = translation(shift(alignment, moving, fixed))
    images = [group_masks(moving, groups, start, grid), group_masks(fixed, groups, torch.eye(len(start)), grid)]
    ddf = Refiner(steps=FITTED_STEPS).register(AffineTransformation(size, grid.spacing), *images).ddf
    warped, target = (image.flatten(2) for image in (warp(images[0], ddf), images[1]))
    # of partial volumes: 1 for equal ones, and little less where interpolation has blurred one
    overlap = 2 * (warped * target).sum(2) / (warped.square() + target.square()).sum(2).clamp(min=1e-6)
    return float(overlap.min())


def group_masks(subject: Subject, groups: Sequence[Sequence[Key]], start: Tensor, grid: Grid) -> Tensor:
    """The groups of a subject's labels ``(1, K, *grid.spatial_size)`` after ``T0``."""
    if subject.labels is None:
        raise ValueError("a subject without labels has no masks")
    values, own = subject.labels
    # a map is its own group
    masks = [values == 1] if subject.is_map else [np.isin(values, list(group)) for group in groups]
    stacked = torch.from_numpy(np.stack(masks)).float()[None]
    return area_averaged(stacked, own.aligned(start.double()), grid)
