"""What is aligned, from where, and on which grid: the first rules by which a fingerprint becomes settings.

Each of the small functions is one rule. Order of decisions: structures, initial alignment, registration grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from istn_monai.io.subject_files import UNLABELED
from istn_monai.planning.fingerprint import ALIGNMENTS, Fingerprint
from istn_monai.planning.subjects import MAP, Key

MOST_CHANNELS = 8
#: voxels of a grid at most: a training step takes some two seconds on a CPU core
MOST_VOXELS = 300_000
COARSENING = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
PRESENT, OVERLAP = 0.95, 0.4  # fraction of subjects, and Dice: with less, not all images can be aligned by it
COMPACT = 0.1  # cube of the thickness over the volume, 1.9 for a ball: less are sheets, such as the cortex
VOXELS_THICK, FEWEST_THICK = 3, 2  # that a structure should be, and must be where there are many
SIZE_RATIO = 4  # of volumes in a group: the largest structure outweighs the others in the loss
MARGIN = 10.0  # mm around the structures
MOST_IMAGES = 90  # percentile of the images that a grid covers: not of a single whole head among crops


@dataclass(frozen=True)
class Choice:
    """A setting, its value, and the reason for it."""

    name: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Structures:
    """What is aligned: the keys of structures, and the groups that become channels."""

    keys: tuple[Key, ...]
    labels: list[list[int]] | str | None
    points: list[list[str]] | None
    reason: str

    @property
    def channels(self) -> int:
        """K."""
        return (1 if self.labels == "none" else len(self.labels or [])) + len(self.points or [])


@dataclass(frozen=True)
class RegistrationGrid:
    """Spacing in mm and voxels along each axis, with the reasons."""

    spacing: tuple[float, ...]
    size: tuple[int, ...]
    reasons: tuple[str, str]

    @property
    def voxels(self) -> int:
        """Of the grid."""
        return math.prod(self.size)


def plain(values: Sequence[float]) -> Any:
    """A number if all are the same, without a needless fraction."""
    numbers = [int(value) if value == int(value) else value for value in values]
    return numbers[0] if len(set(numbers)) == 1 else numbers


def millimeters(values: Iterable[float]) -> str:
    """Numbers in words."""
    return " x ".join(f"{value:.3g}" for value in values) + " mm"


# --- structures ------------------------------------------------------------------------------------------------------


def choose_structures(found: Fingerprint) -> Structures:
    """Groups of labels and of landmarks."""
    labels: list[list[int]] | str | None = None
    points: list[list[str]] | None = None
    names = [str(key) for key in found.keys(str) if key != MAP]
    values = [int(key) for key in found.keys(int) if found.names.get(key) != UNLABELED]
    words = [] if len(values) == len(found.keys(int)) else [f"voxels that nobody labeled ({UNLABELED}) do not count"]
    if names:
        always = [name for name in names if found.presence(name) >= PRESENT]
        alone = len(always) == len(names) <= MOST_CHANNELS // 2
        points = [[name] for name in names] if alone else [["*"]]
        words.append(f"{len(names)} landmarks, " + ("one channel each" if alone else "all in one channel"))
    if values:
        labels, text = label_groups(found, values, MOST_CHANNELS - len(points or []))
        words.append(text)
    elif found.is_map:
        labels = "none"
        words.append("real-valued maps: one channel as it is")
    elif not names:
        points = [["*"]]
        words.append("landmark maps: one channel as it is")
    keys: list[Key] = [value for group in labels for value in group] if isinstance(labels, list) else []
    keys += found.keys(str)
    return Structures(tuple(keys), labels, points, "; ".join(words))


def label_groups(found: Fingerprint, values: Sequence[int], most: int) -> tuple[list[list[int]], str]:
    """Label values in groups, and why these."""
    names = found.names
    present = [value for value in values if found.presence(value) >= PRESENT]
    if not present:
        raise ValueError(
            f"no label value is in {PRESENT:.0%} of the subjects: {listed(values, names)}; label the same structures "
            "in all images"
        )
    absent = [value for value in values if value not in present]
    left_out = f"; left out: {listed(absent, names)}, missing in some subjects" if absent else ""
    if len(present) <= most:
        called = f": {listed(present, names)}" if names else ""
        text = f"{len(present)} structures in nearly all subjects, one channel each{called}{left_out}"
        return [[value] for value in present], text
    spacing = max(whole_image_grid(found))
    thick = [value for value in present if found.thickness(value) >= FEWEST_THICK * spacing]
    thick = [value for value in thick if compactness(found, value) >= COMPACT] or thick
    near = {value for value in thick if best_overlap(found, value) >= OVERLAP}
    kept = [value for value in present if value in near or found.mirrored(value, present) in near]
    kept = kept or sorted(sorted(present, key=lambda value: -best_overlap(found, value))[:most])
    groups = groups_by_size({value: found.volume(value) for value in kept}, most)
    text = (
        f"{len(kept)} of {len(values)} structures: those in nearly all subjects, {FEWEST_THICK * spacing:.3g} mm thick "
        f"or more, no sheets, that overlap after the initial alignment (Dice {OVERLAP} or more, on one side of the "
        "body); "
        "grouped by volume, large first; "
        f"left out: {listed([value for value in values if value not in kept], names)}"
    )
    return groups, text


def compactness(found: Fingerprint, value: int) -> float:
    """Thickness to the power of the number of axes over the volume: some 2 for a ball, near 0 for a sheet."""
    return found.thickness(value) ** len(base_spacing(found)) / max(found.volume(value), 1e-9)


def best_overlap(found: Fingerprint, value: int) -> float:
    """Dice under the best of the alignments."""
    return max(found.overlap(alignment, value) for alignment in ALIGNMENTS)


def listed(values: Sequence[Key], names: Mapping[Any, str]) -> str:
    """The first of some values, with their names where they have any, and how many more there are."""
    shown = ", ".join(f"{value} {names[value]}" if value in names else str(value) for value in values[:8])
    return shown if len(values) <= 8 else f"{shown} and {len(values) - 8} more"


def groups_by_size(volumes: Mapping[int, float], most: int) -> list[list[int]]:
    """Label values in groups of similar volume, from large to small; as many groups as ``most``, at most.

    Examples:
        >>> groups_by_size({1: 100.0, 2: 90.0, 3: 10.0, 4: 9.0}, most=8)
        [[1, 2], [3, 4]]
    """
    ratio: float = SIZE_RATIO
    while True:
        groups: list[list[int]] = []
        for value in sorted(volumes, key=lambda value: -volumes[value]):
            if not groups or volumes[value] * ratio < volumes[groups[-1][0]]:
                groups.append([])
            groups[-1].append(value)
        if len(groups) <= most:
            return [sorted(group) for group in groups]
        ratio *= 1.5


# --- alignment and grid ----------------------------------------------------------------------------------------------


def choose_alignment(found: Fingerprint, keys: Sequence[Key]) -> Choice:
    """The alignment that leaves structures nearest; a simpler one if it is nearly as good."""
    far = {name: found.apart(name, keys, 90) for name in ALIGNMENTS}
    limit = 1.1 * min(far.values()) + 1e-6
    name = next(name for name in ALIGNMENTS if far[name] <= limit)
    text = ", ".join(f"{other} {far[other]:.1f}" for other in ALIGNMENTS)
    return Choice("initial_alignment", name, f"centroids lie apart by (mm, 90th percentile): {text}")


def base_spacing(found: Fingerprint) -> np.ndarray:
    """Median spacing along each axis in mm, one for all axes unless they differ by more than a factor of 2."""
    spacing = np.median(found.spacings(), axis=0)
    if spacing.max() <= 2 * spacing.min():
        spacing = np.full_like(spacing, np.median(spacing))
    return np.array([float(f"{value:.2g}") for value in spacing])


def spacings(found: Fingerprint) -> list[tuple[float, ...]]:
    """From fine to coarse: axes of coarse voxels stay as they are until the others are as coarse."""
    base = base_spacing(found)
    steps = [np.maximum(base, base.min() * factor).round(6).tolist() for factor in COARSENING]
    return list(dict.fromkeys(map(tuple, steps)))


def size_for(reach: np.ndarray, spacing: Sequence[float]) -> tuple[int, ...]:
    """Voxels to either side of the middle, in multiples of 16, or of 8 if these alone are few enough."""
    sizes = []
    for step in (16, 8):
        voxels = [2 * distance / mm for distance, mm in zip(reach, spacing, strict=True)]
        sizes.append(tuple(max(step, step * math.ceil(number / step - 1e-6)) for number in voxels))
        if math.prod(sizes[-1]) <= MOST_VOXELS:
            return sizes[-1]
    return sizes[0]


def finest(found: Fingerprint, reach: np.ndarray) -> int | None:
    """Index of the finest spacing at which a grid that reaches so far is small enough."""
    fitting = (n for n, mm in enumerate(spacings(found)) if math.prod(size_for(reach, mm)) <= MOST_VOXELS)
    return next(fitting, None)


def whole_image_grid(found: Fingerprint) -> tuple[float, ...]:
    """The finest spacing at which a grid may cover the images; the coarsest of all if there is none."""
    index = finest(found, found.image_reach(MOST_IMAGES))
    return spacings(found)[-1 if index is None else index]


def choose_grid(found: Fingerprint, soi: Structures, alignment: str) -> RegistrationGrid:
    """Covers the images if structures are thick enough at the spacing which that needs; else the structures alone."""
    # beyond the images there is nothing to register
    needed = np.minimum(found.structure_reach(alignment, soi.keys) + MARGIN, found.image_reach(100))
    whole = np.maximum(needed, found.image_reach(MOST_IMAGES))
    steps = spacings(found)
    at_whole, at_soi = finest(found, whole), finest(found, needed)
    last = len(steps) - 1
    at_whole, at_soi = (last if index is None else index for index in (at_whole, at_soi))
    thin = thinnest(found, soi.keys)
    index, reach, what = at_whole, whole, "images as a whole"
    if thin is not None and thin < VOXELS_THICK * max(steps[at_whole]) and at_soi < at_whole:
        # no finer than the structures ask for
        enough = [n for n in range(at_soi, at_whole) if thin >= VOXELS_THICK * max(steps[n])]
        index, reach, what = (enough or [at_soi])[-1], needed, f"structures and {MARGIN:g} mm around them"
    spacing = steps[index]
    size = size_for(reach, spacing)
    native = "that of the images" if index == 0 else (
        f"the images have {millimeters(base_spacing(found))}; a grid at most {MOST_VOXELS:,} voxels large is coarser"
    )  # fmt: skip
    thickness = "" if thin is None else f"; the thinnest structure is {thin / max(spacing):.1f} voxels thick"
    covered = f"covers the {what}, {millimeters(2 * reach)} about the fixed image's middle; multiples of 16 or 8"
    return RegistrationGrid(spacing, size, (native + thickness, covered))


def thinnest(found: Fingerprint, keys: Sequence[Key]) -> float | None:
    """Thickness in mm of the thinnest structure; None for landmarks alone, which have none."""
    known = [found.thickness(key) for key in keys]
    return min((value for value in known if value > 0), default=None)


def points_width(grid: RegistrationGrid) -> float:
    """Half width in mm of a landmark's map: the default, on small grids a twelfth of their shortest axis; or two
    voxels."""
    shortest = min(size * step for size, step in zip(grid.size, grid.spacing, strict=True))
    return max(min(4, shortest / 12), 2 * max(grid.spacing))
