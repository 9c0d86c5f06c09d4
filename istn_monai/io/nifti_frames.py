"""Where a NIfTI file's image lies, as ITK reads it and as nibabel does: one meaning, or an error that names both.

A NIfTI header says it up to three times: sform, qform, and voxel sizes alone. ITK (SimpleITK, ANTs, 3D Slicer) and
nibabel (FSL and FreeSurfer alike) choose by rules of their own; ITK also honors units of microns and meters, takes
spacings from ``pixdim`` where an sform says others, and has no shear. A transform is only of use where they agree.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from istn_monai.geometry.frames import lps
from istn_monai.io.nifti_headers import units_of, written_header
from istn_monai.io.simple_itk import last_line, sitk, warnings_shown

NIFTI_FRAMES = ("itk", "sform", "qform")
#: voxels by which two readings of the same header may differ at a corner, from rounding in it
AGREE = 0.1
#: mm at a corner below which they are the same: nibabel's reading, which MONAI's is, has more digits
ROUNDING = 5e-5
#: of the products of an image's axes, of length 1: beyond this ITK raises an error
ORTHONORMAL = 1e-4
OUT_OF_PLANE = "is a 2-D image that does not lie in the plane of the first two axes; write it there"
UNITS = {"meter": 1000.0, "micron": 0.001}
Header = Any  # nibabel's, of NIfTI or Analyze


def check_nifti_frame(nifti_frame: str | None) -> None:
    """ValueError unless it is one of ``NIFTI_FRAMES`` or None."""
    if nifti_frame not in (None, *NIFTI_FRAMES):
        raise ValueError(f"nifti_frame must be one of {NIFTI_FRAMES} or none, got {nifti_frame!r}")


def nifti_affine(file: Path, place: str, nifti_frame: str | None = None) -> np.ndarray:
    """The RAS affine of a NIfTI or Analyze file, ``(4, 4)`` in mm.

    Args:
        file: with a header that nibabel reads.
        place: how errors call it.
        nifti_frame: what counts where readers differ: "itk", as ITK reads it; "sform" or "qform", which must then be
            set. None: they may not differ by more than ``AGREE`` voxels, and ITK's counts.

    Raises:
        ValueError: if they differ and nothing is chosen, or what is chosen is not there.
    """
    check_nifti_frame(nifti_frame)
    image = nib.load(file)
    header, millimeters = image.header, unit_of(image.header)
    if nifti_frame in ("sform", "qform"):
        affine = scaled(coded(header, nifti_frame, file, place), millimeters)
        if len(header.get_data_shape()) == 2:
            check_in_plane(affine, file, place)
        return affine
    usual = scaled(image.affine, millimeters)
    try:
        by_itk = affine_by_itk(file, usual)
    except RuntimeError as error:
        raise ValueError(f"{place}: {file}: {refusal(str(error))}") from error
    apart = corners_apart(by_itk, usual, (*header.get_data_shape()[:3], 1, 1)[:3])
    if nifti_frame is None and not apart <= AGREE * np.linalg.norm(by_itk[:3, :3], axis=0).min():
        why = reason(header, written_header(image))
        raise ValueError(
            f"{place}: {file} lies in two places: ITK (3D Slicer, ANTs) reads its header otherwise than nibabel (FSL, "
            f"FreeSurfer), {apart:.3g} mm apart at a corner, for {why}; repair the header, or choose with nifti_frame: "
            f"{', '.join(choices(header))}"
        )
    return usual if apart <= ROUNDING else by_itk


def unit_of(header: Header) -> float:
    """Millimeters of a header's unit of length; an unknown one is taken for millimeters, as ITK takes it."""
    return UNITS.get(units_of(header)[0], 1.0)


def scaled(affine: np.ndarray, factor: float) -> np.ndarray:
    """An affine in another unit of length."""
    result = np.array(affine, dtype=float)
    result[:3] *= factor
    return result


def coded(header: Header, name: str, file: Path, place: str) -> np.ndarray:
    """A header's sform or qform, or a ValueError if it has none."""
    form, code = form_of(header, name)
    if form is None:
        raise ValueError(
            f"{place}: {file} has no {name} that can be read ({name}_code {code}), nifti_frame asks for it; choose "
            "another"
        )
    return form


def form_of(header: Header, name: str) -> tuple[np.ndarray | None, int]:
    """A header's sform or qform, None where it has none or a quaternion longer than 1; and its code."""
    if not hasattr(header, f"get_{name}"):
        return None, 0
    try:
        return getattr(header, f"get_{name}")(coded=True)
    except ValueError:
        return None, int(header[f"{name}_code"])


def affine_by_itk(file: Path, usual: np.ndarray) -> np.ndarray:
    """As ITK reads a header; of a 2-D image the third axis is that of ``usual``, for ITK has none."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NiftiImageIO")
    reader.SetFileName(str(file))
    with warnings_shown(False):
        reader.ReadImageInformation()
    found = reader.GetDimension()
    dims = min(found, 3)  # a fourth axis is time or channels
    axes = np.reshape(reader.GetDirection(), (found, found))[:dims, :dims] * reader.GetSpacing()[:dims]
    affine = usual.copy()
    affine[:dims, :dims] = lps(dims) @ axes
    affine[:dims, 3] = lps(dims) @ reader.GetOrigin()[:dims]
    return affine


def corners_apart(first: np.ndarray, second: np.ndarray, size: tuple[int, ...]) -> float:
    """The largest distance in mm between an image's corners under two affines."""
    corners = np.array([*itertools.product(*((0, length - 1) for length in size)), *[(0, 0, 0)]], dtype=float)
    difference = (first - second)[:3]
    return float(np.linalg.norm(corners @ difference[:, :3].T + difference[:, 3], axis=1).max())


def reason(header: Header, written: Header) -> str:
    """Why readers differ, as far as a header shows it, as nibabel has it and as it is in the file."""
    if not hasattr(header, "get_sform"):
        return "it is an Analyze file, which does not say where it lies"
    (sform, scode), (qform, qcode) = form_of(header, "sform"), form_of(header, "qform")
    odd = [f"{name} {int(written[name])}" for name in ("sform_code", "qform_code") if written[name] != header[name]]
    if odd:
        return f"NIfTI knows no {' and no '.join(odd)}, and nibabel takes that for 0"
    if qform is None and qcode:
        return "the quaternion of its qform is longer than 1"
    if sform is None and qform is None:
        return "it has neither sform nor qform (both codes are 0)"
    if sform is not None and qform is not None and not np.allclose(sform, qform, rtol=0, atol=1e-3):
        return f"its sform (code {scode}) and its qform (code {qcode}) differ"
    sizes = header["pixdim"][1 : 1 + min(3, len(header.get_data_shape()))]
    if sform is not None and not np.allclose(np.linalg.norm(sform[:3, :3], axis=0)[: len(sizes)], sizes, rtol=1e-3):
        return f"its voxel sizes {sizes.tolist()} are not those of its sform"
    form = "qform (quaternion, qfac or voxel sizes)" if sform is None else "sform"
    return f"its {form} is not of a kind that both read alike"


def choices(header: Header) -> list[str]:
    """The values of nifti_frame that a header allows."""
    return ["itk", *(name for name in ("sform", "qform") if form_of(header, name)[0] is not None)]


def refusal(error: str) -> str:
    """Why ITK cannot read a header, in one line, from its own words."""
    if "orthonormal" not in error:
        return f"ITK, and with it 3D Slicer and ANTs, cannot read its header ({last_line(error)}); repair it"
    return (
        "its axes are not at right angles (a sheared or singular sform), which ITK, and with it 3D Slicer and ANTs, "
        "cannot read; resample it onto a grid with axes at right angles, or choose its qform, if that is right, with "
        "nifti_frame qform"
    )


def check_in_plane(affine: np.ndarray, file: Path, place: str) -> None:
    """ValueError unless the axes of a 2-D image, the first two of an affine ``(4, 4)``, lie in their plane."""
    if np.abs(affine[2, :2]).max() > ORTHONORMAL * np.linalg.norm(affine[:3, :2], axis=0).min():
        raise ValueError(f"{place}: {file} {OUT_OF_PLANE}")


def check_right_angles(affine: np.ndarray, file: Path, place: str) -> None:
    """ValueError unless the axes of an affine ``(D+1, D+1)`` are at right angles and not of length 0."""
    axes = np.asarray(affine, dtype=float)[:-1, :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        axes = axes / np.linalg.norm(axes, axis=0)
    if len(axes) == 2 and not np.isfinite(axes).all():
        raise ValueError(f"{place}: {file} {OUT_OF_PLANE}")
    if not np.abs(axes.T @ axes - np.eye(len(axes))).max() <= ORTHONORMAL:
        raise ValueError(
            f"{place}: {file} has axes that are not at right angles, {np.round(axes.T, 5).tolist()}, which an image "
            "that is written from it cannot have; resample it onto a grid with axes at right angles"
        )
