"""Stacks of DICOM slices: what belongs together, whether it is regular, and a regular image of what is not.

Convention:
    Positions and axes are DICOM's: LPS mm. A stack is regular if each slice lies within ``TOLERANCE`` mm (of fine
    ones, ``FINE`` steps), or within that fraction of their spacing, of its place between the first slice and the last,
    straight above one another. Micro-CT has steps that are smaller than ``TOLERANCE`` itself.
    Slices that are moved sideways (a tilted gantry) or whose spacing changes are resampled, each from where it lies. A
    step of more than ``WIDE`` times the median one is taken for missing slices: there is nothing to resample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

TOLERANCE = 0.01  # mm, and fraction of the spacing
FINE = 0.05  # steps, or pixels, that limit it
WIDE = 1.5  # median steps
ANGLE = 1e-3  # by which components of axes may differ
ALIKE = 1e-3  # fraction by which pixel sizes may differ


@dataclass(frozen=True)
class Plane:
    """One slice: where its pixels lie.

    Attributes:
        file: that holds it.
        frame: its number in there, from 0.
        several: whether the file holds others.
        size: columns and rows.
        position: ``(3,)`` of the first pixel's center.
        axes: ``(2, 3)``, the directions in which columns and rows are counted.
        spacing: ``(2,)`` mm between columns and between rows.
        details: what may tell it from another at the same place, by name.
    """

    file: Path
    frame: int
    several: bool
    size: tuple[int, int]
    position: np.ndarray
    axes: np.ndarray
    spacing: np.ndarray
    details: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How an error names it."""
        return f"{self.file.name} frame {self.frame + 1}" if self.several else self.file.name


@dataclass(frozen=True)
class Stack:
    """Slices in their order along the normal.

    Attributes:
        planes: the first lies lowest.
        heights: ``(N,)`` mm above the first, along the normal.
        shifts: ``(N, 2)`` mm sideways of the first, along columns and rows.
        irregular: why it must be resampled, or "".
    """

    planes: list[Plane]
    heights: np.ndarray
    shifts: np.ndarray
    irregular: str = ""


def normal_of(axes: np.ndarray) -> np.ndarray:
    """The unit normal ``(3,)`` of a plane's axes ``(2, 3)``."""
    normal = np.cross(*axes)
    return normal / np.linalg.norm(normal)


def stack_of(planes: Sequence[Plane], place: str) -> Stack:
    """The planes as one stack.

    Args:
        planes: of one series, in any order.
        place: how errors call it.

    Raises:
        ValueError: naming slices that differ in size, pixels or orientation, lie in one place, or lack others between.
    """
    check_alike(planes, place)
    axes, normal = planes[0].axes, normal_of(planes[0].axes)
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    away = np.array([plane.position - ordered[0].position for plane in ordered])
    heights, shifts = away @ normal, away @ axes.T
    if len(ordered) == 1:
        return Stack(ordered, heights, shifts)
    check_steps(ordered, np.diff(heights), place)
    return Stack(ordered, heights, shifts, irregularity(heights, shifts))


def check_alike(planes: Sequence[Plane], place: str) -> None:
    """ValueError unless planes have one size, one pixel size and one orientation."""
    first = planes[0]
    for plane in planes[1:]:
        if plane.size != first.size:
            what, here, there = "sizes", sizes(first.size), sizes(plane.size)
        elif not np.allclose(plane.spacing, first.spacing, rtol=ALIKE, atol=0):
            what, here, there = "pixel sizes", f"{sizes(first.spacing)} mm", f"{sizes(plane.spacing)} mm"
        elif np.abs(plane.axes - first.axes).max() > ANGLE:
            what, here, there = "orientations", listed(first.axes.ravel()), listed(plane.axes.ravel())
        else:
            continue
        raise ValueError(
            f"{place} has slices of several {what}: {first.name} {here}, {plane.name} {there} (a localizer?); hand "
            "over the slices of one stack in a folder of their own"
        )


def check_steps(planes: Sequence[Plane], steps: np.ndarray, place: str) -> None:
    """ValueError if two slices lie in one place, or if some are missing."""
    same = steps < min(TOLERANCE, FINE * planes[0].spacing.min())
    for number in np.flatnonzero(same)[:1]:
        one, other = planes[number : number + 2]
        known = {name: (value, other.details.get(name, "")) for name, value in one.details.items()}
        differ = [f"{name} {a!r} and {b!r}" for name, (a, b) in known.items() if a != b]
        raise ValueError(
            f"{place} has {count(int(same.sum()))} in the place of another: {one.name} and {other.name} "
            f"both lie at {listed(one.position)} mm ({'; '.join(differ) or 'the same slice twice'}): hand over one "
            "stack, each slice once"
        )
    usual = float(np.median(steps))
    for number in np.flatnonzero(steps > WIDE * usual)[:1]:
        raise ValueError(
            f"{place} lacks slices: {planes[number].name} and {planes[number + 1].name} lie {steps[number]:.4g} mm "
            f"apart, most others {usual:.4g} mm; hand over the whole series"
        )


def irregularity(heights: np.ndarray, shifts: np.ndarray) -> str:
    """Why slices are no regular stack, in words; "" if they are one."""
    fractions = np.linspace(0, 1, len(heights))
    step = heights[-1] / (len(heights) - 1)
    tolerance = max(TOLERANCE * step, min(TOLERANCE, FINE * step))
    uneven = float(np.abs(heights - fractions * heights[-1]).max())
    sideways = float(np.linalg.norm(shifts, axis=1).max())
    reasons = []
    if sideways > tolerance:
        bent = np.abs(shifts - np.outer(heights / heights[-1], shifts[-1])).max()
        angle = math.degrees(math.atan2(float(np.linalg.norm(shifts[-1])), heights[-1]))
        straight = bent <= tolerance
        reasons += [f"gantry tilt of {angle:.1f} degrees" if straight else f"slices up to {sideways:.4g} mm aside"]
    if uneven > tolerance:
        steps = np.diff(heights)
        reasons += [f"slices {steps.min():.4g} to {steps.max():.4g} mm apart"]
    return ", ".join(reasons)


def resampled(values: np.ndarray, stack: Stack, nearest: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """A regular image of an irregular stack: at each place, between the two slices around it, each where it lies.

    Args:
        values: ``(N, Y, X)``, in the order of the stack.
        stack: irregular.
        nearest: takes the nearest pixel, as label maps need; else linear.

    Returns:
        ``(N', Y', X')`` of the same type, wide enough for all slices, the darkest value where there is none; the
        position of its first voxel, and the distance of its slices in mm, the median of those of the stack.
    """
    first, heights = stack.planes[0], stack.heights
    offsets = stack.shifts / first.spacing  # in pixels
    low = np.floor(offsets.min(axis=0) + 1e-6)
    high = np.ceil(offsets.max(axis=0) - 1e-6)
    width, height = (np.array(first.size) + high - low).astype(int)
    number = round(heights[-1] / float(np.median(np.diff(heights)))) + 1
    result = np.full((number, height, width), values.min(), values.dtype)

    def within(number: int) -> tuple[np.ndarray, np.ndarray]:
        """A slice on the columns and rows of the result, and where it is."""
        return moved(values[number], low - offsets[number], (width, height), nearest)

    for place, z in enumerate(np.linspace(0, heights[-1], number)):
        below = int(np.clip(np.searchsorted(heights, z, side="right") - 1, 0, len(heights) - 2))
        weight = (z - heights[below]) / (heights[below + 1] - heights[below])
        if nearest or min(weight, 1 - weight) < 1e-6:
            plane, inside = within(below + round(weight))
        else:
            (lower, in_lower), (upper, in_upper) = within(below), within(below + 1)
            plane, inside = (1 - weight) * lower + weight * upper, in_lower & in_upper
        whole = np.issubdtype(values.dtype, np.integer)
        result[place][inside] = (np.rint(plane) if whole else plane)[inside]
    origin = first.position + (low * first.spacing) @ first.axes
    return result, origin, heights[-1] / (number - 1)


def moved(plane: np.ndarray, start: np.ndarray, size: tuple[int, int], nearest: bool) -> tuple[np.ndarray, np.ndarray]:
    """A slice ``(Y, X)`` sampled from a place on, pixel by pixel, and where that lies inside it, both ``(Y', X')``.

    Args:
        plane: pixels.
        start: column and row, with fractions, of the first sample.
        size: columns and rows of the result.
        nearest: instead of linear.
    """
    inside: np.ndarray = np.ones((1, 1), bool)
    for axis, first, number in ((1, start[0], size[0]), (0, start[1], size[1])):
        places, last = first + np.arange(number), plane.shape[axis] - 1
        own = (places >= -0.5) & (places < last + 0.5)  # a pixel goes half its size beyond its center, as in ITK
        inside = inside & np.expand_dims(own, 1 - axis)
        places = places.clip(0, last)
        low = np.rint(places).astype(int) if nearest else np.floor(places + 1e-9).astype(int)
        if nearest:
            plane = plane.take(low, axis)
            continue
        weight = np.expand_dims((places - low).clip(0, 1), 1 - axis)
        plane = plane.take(low, axis) * (1 - weight) + plane.take((low + 1).clip(max=last), axis) * weight
    return plane, inside


def sizes(numbers: Sequence[float] | np.ndarray) -> str:
    """Sizes in words."""
    return " x ".join(f"{number:g}" for number in numbers)


def listed(numbers: Sequence[float] | np.ndarray) -> str:
    """Coordinates in words."""
    return "(" + ", ".join(f"{number:.6g}" for number in numbers) + ")"


def count(number: int) -> str:
    """A number of slices in words."""
    return "a slice" if number == 1 else f"{number} slices"
