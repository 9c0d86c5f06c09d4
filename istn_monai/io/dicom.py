"""DICOM: one series of one stack of slices as an image, where its slices lie; anything else is an error.

A regular stack is what ITK makes of it, to the last bit; what ITK would place wrongly without a word is resampled or
raises an error, see :mod:`istn_monai.io.dicom_stack`. SimpleITK (GDCM) reads the voxels, with each slice's rescaling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from istn_monai.geometry.frames import lps
from istn_monai.io.dicom_headers import SYNTAX, Broken, Header, is_dicom, read_header
from istn_monai.io.dicom_planes import COLUMNS, ROWS, frames_of, planes_of
from istn_monai.io.dicom_stack import TOLERANCE, Plane, Stack, listed, normal_of, resampled, stack_of
from istn_monai.io.file_checks import check_voxels
from istn_monai.io.paths import files_below
from istn_monai.io.simple_itk import last_line, sitk
from istn_monai.io.values import LABEL, interpolation_of

__all__ = ["is_dicom", "read_series"]

SUFFIXES = (".dcm", ".dicom", ".ima")
SOP_CLASS, MODALITY, SERIES, DESCRIPTION, IMAGE_TYPE = 0x00080016, 0x00080060, 0x0020000E, 0x0008103E, 0x00080008
BITS, VOXELS = 0x00280100, (0x7FE00008, 0x7FE00009, 0x7FE00010)
MEDIA_CLASS, SAMPLES, COLORS = 0x00020002, 0x00280002, 0x00280004
DIRECTORY, SEGMENTATION = "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.66.4"


def read_series(path: str | Path, name: str, series: str | None = None) -> MetaTensor:
    """The image ``(1, X, Y, Z)`` of one DICOM series, in its own type, with its RAS affine in mm.

    What had to be resampled, or was left out, is said in one printed line, and ``resampled`` in the metadata says why.

    Args:
        path: folder, whose files at any depth are searched; or a file of several frames, or the only one of its series.
        name: how errors call it.
        series: Series Instance UID; needed where there are several.

    Raises:
        ValueError: in one line, if there is not one series of one stack, or if it cannot be read as it is meant.
    """
    path = Path(path).expanduser()
    place = f"{name}: {path}"
    headers = one_series(images_in(path, place), series, place)
    for header in headers:
        check_image(header, f"{place}: {header.file.name}")
    check_voxels(path, name, sum(frames_of(one) * one.whole(ROWS) * one.whole(COLUMNS) for one in headers))
    if len(headers) == 1 and frames_of(headers[0]) == 1:
        if path.is_file():
            check_alone(headers[0], place)
        return lone_slice(headers[0], path, place)
    stack = stack_of([plane for header in headers for plane in planes_of(header, place)], place)
    values, spacing, direction = voxels(stack, {header.file: header.text(SYNTAX) for header in headers}, place)
    first, last = stack.planes[0], stack.planes[-1]
    origin, step = first.position, float(np.linalg.norm(last.position - first.position)) / (len(stack.planes) - 1)
    said = {}
    if stack.irregular:
        labels = interpolation_of(MetaTensor(values[None])) == LABEL
        values, origin, step = resampled(values, stack, labels)
        said = {"resampled": stack.irregular}
        print(f"{place}: {stack.irregular}: resampled {'(nearest)' if labels else '(linear)'} to a regular stack")
    return framed(values, origin, np.append(spacing, step), direction, path, said)


def framed(
    values: np.ndarray, origin: np.ndarray, spacing: np.ndarray, direction: np.ndarray, path: Path, said: dict[str, str]
) -> MetaTensor:
    """Voxels ``(Z, Y, X)`` and their geometry, LPS, as MONAI's reader hands them over."""
    affine = np.eye(4)
    affine[:3, :3] = lps(3) @ direction @ np.diag(spacing)
    affine[:3, 3] = lps(3) @ origin
    meta: dict[str, Any] = {
        "spacing": np.asarray(spacing),
        "original_affine": affine,
        "space": "RAS",
        "affine": affine.copy(),
        "spatial_shape": np.array(values.T.shape),
        "original_channel_dim": float("nan"),
        "filename_or_obj": str(path),
    } | said
    return MetaTensor.ensure_torch_and_prune_meta(values.T[None], meta)


# --- which files -----------------------------------------------------------------------------------------------------


def images_in(path: Path, place: str) -> list[Header]:
    """The headers of the images among the DICOM files at a path; what else there is, is printed.

    Raises:
        ValueError: if there are none, or if a file is damaged.
    """
    files = [path] if path.is_file() else files_below(path)
    found, others = [], Counter[str]()
    for file in files:
        if file.name.startswith("."):  # what macOS leaves beside others
            continue
        try:
            if not is_dicom(file):
                if file.suffix.lower() not in SUFFIXES:
                    continue
                raise Broken("it does not begin as DICOM does")
            header = read_header(file)
            if header.whole(ROWS) and not header.is_image:
                raise Broken("it has no voxels")
            if not header.text(SERIES) and not header.is_image and header.text(MEDIA_CLASS) != DIRECTORY:
                raise Broken("it is truncated")
        except Broken as error:
            raise ValueError(f"{place}: {file.name} is damaged: {error}; copy it again, or remove it") from error
        if header.is_image and header.text(SOP_CLASS) != SEGMENTATION:
            found.append(header)
        elif header.text(MEDIA_CLASS) != DIRECTORY:
            others[header.text(MODALITY) or "object of no modality"] += 1
    listed_others = ", ".join(f"{number} {kind}" for kind, number in sorted(others.items()))
    if not found:
        raise ValueError(
            f"{place} holds no DICOM image{f', only {listed_others}' if others else ''}: give an image series; a "
            "segmentation must be converted to a label map on the image's grid"
        )
    if others:
        print(f"{place}: not read: {listed_others}")
    return found


def one_series(headers: Sequence[Header], series: str | None, place: str) -> list[Header]:
    """The headers of one series, or a ValueError that lists what there is."""
    found: dict[str, list[Header]] = {}
    for header in headers:
        found.setdefault(header.text(SERIES), []).append(header)
    there = "; ".join(described(uid, members) for uid, members in found.items())
    if series is not None and series not in found:
        raise ValueError(f"{place} holds no series {series}; there are: {there}")
    if series is None and len(found) > 1:
        raise ValueError(
            f"{place} holds {len(found)} series, one is expected: choose by UID with the option whose name "
            f"ends in series, where there is one, or hand over one alone; there are: {there}"
        )
    return next(iter(found.values())) if series is None else found[series]


def described(uid: str, headers: Sequence[Header]) -> str:
    """How an error names a series."""
    first = headers[0]
    words = " ".join(filter(None, (first.text(MODALITY), first.text(DESCRIPTION) or "no description")))
    slices = sum(map(frames_of, headers))
    return f"{uid or 'no UID'} ({words}, {slices} slices of {first.whole(COLUMNS)} x {first.whole(ROWS)})"


def check_alone(header: Header, place: str) -> None:
    """ValueError if other slices of a file's series lie beside it: a slice is hardly ever meant."""
    uid, number = header.text(SERIES), 0
    for file in header.file.parent.iterdir():
        try:
            number += file.is_file() and is_dicom(file) and read_header(file).text(SERIES) == uid
        except Broken:
            continue
    if number > 1:
        raise ValueError(f"{place} is one of {number} files of its series: give their folder, {header.file.parent}")


def check_image(header: Header, place: str) -> None:
    """ValueError for images that are not of gray values in space."""
    colors = header.text(COLORS) or "MONOCHROME2"
    if header.whole(SAMPLES, 1) > 1 or not colors.startswith("MONOCHROME"):
        raise ValueError(f"{place} is a color image ({colors}); a gray one is expected: convert it")
    expected = header.whole(ROWS) * header.whole(COLUMNS) * frames_of(header) * header.whole(BITS) // 8
    if any(length < expected for tag in VOXELS for length in header.numbers(tag)):
        raise ValueError(f"{place} is damaged: it has fewer voxels than its header promises; copy it again")
    if "MOSAIC" in header.text(IMAGE_TYPE).split("\\"):
        raise ValueError(f"{place} is a mosaic of slices; convert the series to NIfTI, as with dcm2niix")


# --- voxels ----------------------------------------------------------------------------------------------------------


def itk_image(file: Path, syntax: str, place: str) -> Any:
    """SimpleITK's image of a file."""
    try:
        return sitk.ReadImage(str(file), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise ValueError(
            f"{place}: cannot read the voxels of {file.name} (transfer syntax {syntax or 'unknown'}): it is damaged, "
            f"or of a kind that GDCM does not know ({last_line(error)}); decompress it, or convert the series to NIfTI"
        ) from error


def direction_of(image: Any) -> np.ndarray:
    """``(3, 3)``, columns are the directions of the axes in LPS."""
    return np.array(image.GetDirection()).reshape(3, 3)


def lone_slice(header: Header, path: Path, place: str) -> MetaTensor:
    """A series of one slice, as ITK has it, ``(1, X, Y, 1)``."""
    image = itk_image(header.file, header.text(SYNTAX), place)
    spacing = np.array(image.GetSpacing())
    return framed(sitk.GetArrayFromImage(image), np.array(image.GetOrigin()), spacing, direction_of(image), path, {})


def upward(direction: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Directions ``(3, 3)`` of a stack: its slices are in their order along the normal of their axes ``(2, 3)``.

    ITK turns the third one around in a file whose SpacingBetweenSlices is negative.
    """
    return direction * [1, 1, np.sign(direction[:, 2] @ normal_of(axes))]


def voxels(stack: Stack, syntaxes: dict[Path, str], place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The voxels ``(Z, Y, X)`` of a stack, in a type that holds those of all files.

    Returns:
        With them, as ITK has them, the spacing ``(2,)`` between columns and rows and the directions ``(3, 3)``.
    """
    wanted: dict[Path, list[tuple[int, int]]] = {}
    for number, plane in enumerate(stack.planes):
        wanted.setdefault(plane.file, []).append((plane.frame, number))
    first, values = stack.planes[0], None
    columns, rows = first.size
    for file, numbers in wanted.items():
        image = itk_image(file, syntaxes[file], place)
        check_place(image, [stack.planes[number] for _, number in sorted(numbers)], place)
        frames = sitk.GetArrayViewFromImage(image)
        if frames.size != len(numbers) * rows * columns:
            raise ValueError(
                f"{place}: {file.name} has {frames.size} voxels, its header promises {len(numbers)} slices of "
                f"{columns} x {rows}: it is damaged"
            )
        if values is None:
            values = np.empty((len(stack.planes), rows, columns), frames.dtype)
            spacing, direction = np.array(image.GetSpacing()[:2]), upward(direction_of(image), first.axes)
        kind = np.result_type(values, frames)
        values = values if values.dtype == kind else values.astype(kind)
        for frame, number in numbers:
            values[number] = frames.reshape(-1, rows, columns)[frame]
    assert values is not None
    if first.several:
        spacing, direction = first.spacing, np.column_stack([*first.axes, normal_of(first.axes)])
    return values, spacing, direction


def check_place(image: Any, planes: Sequence[Plane], place: str) -> None:
    """ValueError unless ITK has a file's slice where its header says: it leaves some kinds of files nowhere.

    Frames go to their own places, which ITK knows for regular ones alone: where it has them otherwise, a line says so.
    Sizes of pixels are compared by where they put the last one: a little more in each is much in a wide image.
    """
    first, last = planes[0], planes[-1]
    pixels = np.maximum(first.size, 2) - 1
    end = image.TransformIndexToPhysicalPoint([0, 0, image.GetSize()[2] - 1])
    here = np.concatenate([first.position, first.spacing, first.axes.ravel(), last.position])
    itk = np.concatenate([image.GetOrigin(), image.GetSpacing()[:2], direction_of(image)[:, :2].T.ravel(), end])
    apart = np.abs(here - itk)
    apart[3:5] *= pixels
    if apart.max() <= TOLERANCE:
        return
    if first.several:
        print(f"{place}: each frame of {first.file.name} is put where it says it lies; ITK reads them otherwise")
        return
    raise ValueError(
        f"{place}: {first.name} has two meanings: its header says position {listed(first.position)}, pixels of "
        f"{listed(first.spacing)} mm, axes {listed(first.axes.ravel())}, ITK reads {listed(itk[:3])}, "
        f"{listed(itk[3:5])} and {listed(itk[5:11])}; convert the series to NIfTI"
    )
