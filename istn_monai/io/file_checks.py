"""What a file's header promises, before its voxels are read: a size that memory can hold, and that the file has.

A header of 352 bytes can promise 1500^3 voxels, and 3 MB of compressed zeros expand to 7 GB: a reader takes the memory
first and fails later. And readers of compressed files stop at the last voxel, before the checksum at the end.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib

from istn_monai.io.readers import is_mgh, is_nifti
from istn_monai.io.whole import GZIPPED, length_of

LIMIT, VARIABLE = 2**28, "ISTN_MAX_VOXELS"
MOST_COMPRESSED = 1040  # bytes that deflate can make of one
BEHIND = 2**24  # bytes that may follow the voxels
TEXT, WHOLE = (".nrrd", ".nhdr", ".mha", ".mhd"), (".nii", ".nii.gz", ".mgh", ".mgz")


def most_voxels() -> int:
    """The most voxels that an image may have; the environment variable ``ISTN_MAX_VOXELS`` sets it."""
    text = os.environ.get(VARIABLE, str(LIMIT))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{VARIABLE} must be a whole number of voxels of at least 1, got {text!r}")
    return int(text)


def check_file(file: str | Path, place: str) -> None:
    """ValueError if a file promises more voxels than ``most_voxels``, or than it holds, or if its end is damaged.

    Args:
        file: NIfTI, MGZ, NRRD, MetaImage; others are left to their readers.
        place: how errors call it.
    """
    path, name = Path(file), Path(file).name.lower()
    if not path.is_file():
        return
    if name.endswith(TEXT):
        check_voxels(path, place, text_voxels(path))
    elif is_nifti(name) or is_mgh(name):
        try:
            header = nib.load(path).header
            voxels, size = math.prod(map(int, header.get_data_shape())), header.get_data_dtype().itemsize
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise ValueError(f"{place}: cannot read {file}: is it a whole image file? ({reason})") from error
        check_voxels(path, place, voxels)
        check_sform(header, path, place)
        if name.endswith(WHOLE):
            check_length(path, place, voxels * size, name.endswith(GZIPPED))


def check_voxels(path: Path, place: str, voxels: int) -> None:
    """ValueError if an image has more voxels than memory is wanted for."""
    if voxels > most_voxels():
        raise ValueError(
            f"{place}: {path} has {voxels:,} voxels by its header, more than {most_voxels():,}: crop or resample it, "
            f"or set the environment variable {VARIABLE} if memory allows some 90 bytes for each"
        )


def check_sform(header: Any, path: Path, place: str) -> None:
    """ValueError if a NIfTI header has an sform that is not finite: readers differ in what they take then."""
    if not isinstance(header, nib.Nifti1Header) or not int(header["sform_code"]):
        return
    rows = [header[f"srow_{axis}"].tolist() for axis in "xyz"]
    if not all(math.isfinite(number) for row in rows for number in row):
        raise ValueError(f"{place}: {path} has a header whose sform is not finite, {rows}; repair it")


def text_voxels(path: Path) -> int:
    """The number of voxels that the text at the head of an NRRD or MetaImage file promises; 0 where it says none."""
    with path.open("rb") as stream:
        head = stream.read(2**16)
    found = re.search(rb"^(?:sizes\s*:|DimSize\s*=)\s*([\d \t]+)", head, re.MULTILINE | re.IGNORECASE)
    return math.prod(map(int, found[1].split())) if found else 0


def check_length(path: Path, place: str, expected: int, gzipped: bool) -> None:
    """ValueError if a file is shorter than its voxels, or if its compressed stream is damaged anywhere."""
    length = path.stat().st_size
    if expected > length * (MOST_COMPRESSED if gzipped else 1):
        raise ValueError(
            f"{place}: {path} is truncated: its header promises {expected:,} bytes, the file has {length:,}"
        )
    if not gzipped:
        return
    try:
        found = length_of(path, enough=expected + BEHIND)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{place}: cannot read {path}: it is damaged or truncated ({error}); copy it again") from error
    if not expected <= found <= expected + BEHIND:
        raise ValueError(f"{place}: {path} holds {found:,} bytes or more, its header promises {expected:,}: repair it")
