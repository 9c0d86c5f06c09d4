"""NIfTI, Analyze and MGH headers: what they promise, and what readers understand in two ways beside an image's place.

Where an image lies is the matter of :mod:`istn_monai.io.nifti_frames`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.openers import ImageOpener
from nibabel.spm99analyze import Spm99AnalyzeHeader

from istn_monai.io.simple_itk import last_line

UNSCALED = 2.3e-16  # a slope smaller than this is none to ITK
PAIR = {".hdr": ".img", ".hdr.gz": ".img.gz"}
Header = Any  # nibabel's


def read_header(file: Path, place: str) -> Header:
    """The header of a file, checked.

    Raises:
        ValueError: if there is none, or if it has two meanings.
    """
    try:
        header = written_header(nib.load(file))
        shape = tuple(map(int, header.get_data_shape()))
    except Exception as error:
        raise ValueError(f"{place}: cannot read {file}: is it a whole image file? ({last_line(error)})") from error
    if min(shape, default=0) < 1:
        raise ValueError(f"{place}: {file} has a header of {list(shape)} voxels along its axes; repair it")
    for trouble in (trouble_of_sform(header), trouble_of_offset(header), trouble_of_scaling(header)):
        if trouble:
            raise ValueError(f"{place}: {file} has a header {trouble}; repair it")
    return header


def written_header(image: Any) -> Header:
    """The header as it is in the file: nibabel takes offset and scaling out of that of an image."""
    if not isinstance(image.header, nib.AnalyzeHeader):
        return image.header
    with ImageOpener(image.file_map.get("header", image.file_map["image"]).filename) as content:
        return type(image.header).from_fileobj(content, check=False)


def trouble_of_sform(header: Header) -> str:
    """What is wrong with an sform that is not finite: readers differ in what they take then."""
    if not isinstance(header, nib.Nifti1Header) or not int(header["sform_code"]):
        return ""
    rows = [header[f"srow_{axis}"].tolist() for axis in "xyz"]
    finite = all(math.isfinite(number) for row in rows for number in row)
    return "" if finite else f"whose sform is not finite, {rows}"


def trouble_of_offset(header: Header) -> str:
    """What is wrong if voxels begin inside the header: ITK begins behind it."""
    if not isinstance(header, nib.Nifti1Header) or not header.is_single:
        return ""
    first = float(header["vox_offset"])
    inside = not first >= header.single_vox_offset
    return f"whose voxels begin inside it (vox_offset {first:g}, not {header.single_vox_offset})" if inside else ""


def trouble_of_scaling(header: Header) -> str:
    """What is wrong with a slope and an intercept that nibabel and ITK apply otherwise."""
    slope = float(header["scl_slope"]) if "scl_slope" in header else 1.0
    intercept = float(header["scl_inter"]) if "scl_inter" in header else 0.0
    if isinstance(header, Spm99AnalyzeHeader):
        return "" if slope in (0.0, 1.0) else f"with SPM's scale factor {slope:g}, which ITK does not apply"
    none = slope == 0 or not math.isfinite(slope)
    odd = math.isinf(slope) or not math.isfinite(intercept) or 0 < abs(slope) < UNSCALED or (none and intercept != 0)
    return f"whose scl_slope {slope:g} and scl_inter {intercept:g} have two meanings" if odd else ""


def voxel_file(file: Path) -> Path:
    """The file of a pair, or a single one, that holds the voxels.

    Example:
        >>> voxel_file(Path("a.hdr.gz")), voxel_file(Path("a.nii"))
        (PosixPath('a.img.gz'), PosixPath('a.nii'))
    """
    for header, voxels in PAIR.items():
        if file.name.lower().endswith(header):
            return file.with_name(file.name[: -len(header)] + voxels)
    return file
