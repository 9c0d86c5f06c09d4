"""Where a DICOM file's slices lie, by its header: one slice, the frames of an enhanced file, or those of a dose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from istn_monai.io.dicom_headers import (
    CONTENT,
    PER_FRAME,
    PIXEL_MEASURES,
    PLANE_ORIENTATION,
    PLANE_POSITION,
    RESCALE,
    SHARED,
    Elements,
    Header,
    numbers_of,
    text_of,
)
from istn_monai.io.dicom_stack import ANGLE, Plane, listed

POSITION, ORIENTATION, PIXEL_SPACING, OFFSETS = 0x00200032, 0x00200037, 0x00280030, 0x3004000C
FRAMES, ROWS, COLUMNS, INTERCEPT, SLOPE = 0x00280008, 0x00280010, 0x00280011, 0x00281052, 0x00281053
#: what may differ between slices in one place; for frames, in their content
DETAILS = {
    "stack": 0x00209056, "time point": 0x00200100, "time index": 0x00209128, "acquisition": 0x00200012,
    "echo time": 0x00180081, "trigger time": 0x00181060, "acquisition time": 0x00080032, "image type": 0x00080008,
    "b-value": 0x00189087, "instance": 0x00200013, "object": 0x00080018,
}  # fmt: skip


def frames_of(header: Header) -> int:
    """How many slices a file holds."""
    number = (header.numbers(FRAMES) or [1])[0]
    return int(number) if 1 <= number < 2**31 else 1


def sources_of(header: Header) -> Iterator[list[Elements]]:
    """For each frame, where to look for what it says: in its own groups, those of all frames, the file's elements."""
    number = frames_of(header)
    own = header.elements.get(PER_FRAME) or [{}] * number
    for groups in own[:number]:
        yield [groups, *header.elements.get(SHARED, []), header.elements]


def value_of(sources: Sequence[Elements], group: int, tag: int) -> list[float]:
    """The numbers of a tag in the first of several places that has it, in a group or itself."""
    for elements in sources:
        for item in (*elements.get(group, []), elements):
            if found := numbers_of(item, tag):
                return found
    return []


def planes_of(header: Header, place: str) -> list[Plane]:
    """Where the slices of a file lie.

    Raises:
        ValueError: if the file does not say so, or rescales its frames differently, which ITK does not.
    """
    number, offsets = frames_of(header), header.numbers(OFFSETS)  # of a dose, along the normal
    size, sources = (header.whole(COLUMNS), header.whole(ROWS)), list(sources_of(header))
    scales = {str([value_of(groups, RESCALE, tag) for tag in (SLOPE, INTERCEPT)]) for groups in sources}
    if len(scales) > 1:
        raise ValueError(f"{place}: {header.file.name} rescales each frame otherwise: convert the series to NIfTI")
    if not (number == 1 or len(offsets) == number or len(header.elements.get(PER_FRAME, [])) == number):
        raise ValueError(
            f"{place}: {header.file.name} has {number} frames and does not say where each lies (frames of a film?): "
            "convert the series to NIfTI"
        )
    planes = []
    for frame, groups in enumerate(sources):
        position, axes, spacing = geometry_of(groups, f"{place}: {header.file.name}")
        if len(offsets) == number > 1:
            position = position + (offsets[frame] - offsets[0]) * np.cross(*axes)
        planes.append(Plane(header.file, frame, number > 1, size, position, axes, spacing, details_of(groups)))
    return planes


def geometry_of(sources: Sequence[Elements], place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position ``(3,)``, axes ``(2, 3)`` and spacing between columns and between rows of a slice."""
    position = value_of(sources, PLANE_POSITION, POSITION)
    orientation = value_of(sources, PLANE_ORIENTATION, ORIENTATION)
    spacing = value_of(sources, PIXEL_MEASURES, PIXEL_SPACING)
    if [len(position), len(orientation), len(spacing)] != [3, 6, 2]:
        raise ValueError(
            f"{place} does not say where its pixels lie: image position, image orientation and pixel spacing are "
            "expected; convert the series to NIfTI"
        )
    axes = np.array(orientation).reshape(2, 3)
    if not np.abs(axes @ axes.T - np.eye(2)).max() <= ANGLE or not 0 < min(spacing) or not np.isfinite(position).all():
        raise ValueError(
            f"{place} has the position {listed(position)}, the orientation {listed(orientation)} and pixels of "
            f"{listed(spacing)} mm; numbers, axes of length 1 at right angles and pixels of some size are expected"
        )
    return np.array(position), axes, np.array(spacing[::-1])


def details_of(sources: Sequence[Elements]) -> dict[str, str]:
    """What may tell a slice from another at the same place, by name."""
    items = [item for elements in sources for item in (*elements.get(CONTENT, []), elements)]
    found = {name: next(filter(None, (text_of(item, tag) for item in items)), "") for name, tag in DETAILS.items()}
    return {name: value for name, value in found.items() if value}
