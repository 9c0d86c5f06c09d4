"""NIfTI, Analyze and MGH headers: what they promise, and what readers understand in two ways beside an image's place.

Where an image lies is the matter of :mod:`istn_monai.io.nifti_frames`.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.nifti1 import Nifti1PairHeader, unit_codes
from nibabel.nifti2 import Nifti2PairHeader
from nibabel.openers import ImageOpener
from nibabel.spm99analyze import Spm99AnalyzeHeader

from istn_monai.io.simple_itk import last_line

UNSCALED = 2.3e-16  # a slope smaller than this is none to ITK
SNIFFED = 1025  # bytes: more than nibabel reads to tell formats, it does not say what kept it from doing so
PAIR = {".hdr": ".img", ".hdr.gz": ".img.gz"}
Header = Any  # nibabel's


def read_header(file: Path, place: str) -> Header:
    """The header of a file, checked.

    Raises:
        ValueError: if there is none, or if it has two meanings.
    """
    early = raw_header(file, place)
    if early is not None and (trouble := trouble_of_offset(early) or trouble_of_qform(early)):
        raise ValueError(f"{place}: {file} has a header {trouble}; repair it")
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


def check_gzipped(error: BaseException, file: Path, place: str) -> None:
    """ValueError if an error of Python's gzip is that a file, or what follows in it, is of another kind."""
    if isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped file"):
        raise ValueError(
            f"{place}: cannot read {file}: it is not compressed as its suffix says, or other bytes follow what is; "
            "write it again"
        ) from error


def raw_header(file: Path, place: str) -> Header | None:
    """The header of NIfTI in a file, before nibabel finds fault with it in words of its own; None if there is none."""
    try:
        with ImageOpener(file) as content:
            head = content.read(SNIFFED)
    except (OSError, EOFError, zlib.error) as error:
        check_gzipped(error, file, place)
        return None
    for single, pair in ((nib.Nifti1Header, Nifti1PairHeader), (nib.Nifti2Header, Nifti2PairHeader)):
        length = single.template_dtype.itemsize
        if len(head) >= length and single.may_contain_header(head):
            header = single(head[:length], check=False)
            return header if header["magic"].item().startswith(b"n+") else pair(head[:length], check=False)
    return None


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
    if not math.isfinite(first):
        return f"whose voxels begin nowhere (vox_offset {first:g}, not {header.single_vox_offset})"
    inside = first < header.single_vox_offset
    return f"whose voxels begin inside it (vox_offset {first:g}, not {header.single_vox_offset})" if inside else ""


def trouble_of_qform(header: Header) -> str:
    """What is wrong with a quaternion longer than 1 where it alone says how an image lies: nibabel does not read it."""
    if int(header["sform_code"]) or not int(header["qform_code"]):
        return ""
    parts = [float(header[f"quatern_{name}"]) for name in "bcd"]
    length = math.hypot(*parts)
    too_long = 1 - length**2 < -abs(header.quaternion_threshold)
    return f"whose qform has the quaternion {parts} of length {length:.6g}, more than 1" if too_long else ""


def units_of(header: Header) -> tuple[str, str]:
    """The names of a header's units of length and of time; of a code without a meaning, as of none, "unknown"."""
    code = int(header["xyzt_units"]) if "xyzt_units" in header else 0  # Analyze has none
    length, time = (unit_codes.label[part] if part in unit_codes else "unknown" for part in (code & 7, code & 56))
    return length, time


def trouble_of_scaling(header: Header) -> str:
    """What is wrong with a slope and an intercept that nibabel and ITK apply otherwise."""
    slope = float(header["scl_slope"]) if "scl_slope" in header else 1.0
    intercept = float(header["scl_inter"]) if "scl_inter" in header else 0.0
    if isinstance(header, Spm99AnalyzeHeader):  # which nibabel finds in three places
        slope, intercept = (0.0 if number is None else float(number) for number in header.get_slope_inter())
        scaled = slope not in (0.0, 1.0) or intercept != 0
        return f"with SPM's scale factor {slope:g} and intercept {intercept:g}, which ITK does not apply" * scaled
    none = slope == 0 or not math.isfinite(slope)
    odd = math.isinf(slope) or not math.isfinite(intercept) or 0 < abs(slope) < UNSCALED or (none and intercept != 0)
    return f"whose scl_slope {slope:g} and scl_inter {intercept:g} have two meanings" if odd else ""


def voxel_file(file: Path) -> Path:
    """The file of a pair, or a single one, that holds the voxels.

    Examples:
        >>> voxel_file(Path("a.hdr.gz")), voxel_file(Path("A.HDR")), voxel_file(Path("a.nii"))
        (PosixPath('a.img.gz'), PosixPath('A.IMG'), PosixPath('a.nii'))
    """
    return other_of_pair(file, PAIR)


def header_file(file: Path) -> Path:
    """The file of a pair, or a single one, that holds the header."""
    return other_of_pair(file, {voxels: header for header, voxels in PAIR.items()})


def other_of_pair(file: Path, pairs: dict[str, str]) -> Path:
    """The file beside another whose suffix is the other one, in the same letters; the file itself if it has none."""
    for own, other in pairs.items():
        if file.name.lower().endswith(own):
            capitals = file.name.endswith(own.upper())
            return file.with_name(file.name[: -len(own)] + (other.upper() if capitals else other))
    return file
