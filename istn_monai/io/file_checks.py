"""What a file's header promises, before its voxels are read: a size that memory can hold, and that the file has.

A header of 352 bytes can promise 1500^3 voxels, and 3 MB of compressed zeros expand to 7 GB: a reader takes the memory
first and fails later. And readers of compressed files stop at the last voxel, before the checksum at the end.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from istn_monai.io.nifti_headers import check_gzipped, header_file, read_header, voxel_file
from istn_monai.io.packed import TEXT, check_packed, text_header
from istn_monai.io.paths import check_regular
from istn_monai.io.readers import check_suffix, is_mgh, is_nifti
from istn_monai.io.simple_itk import last_line, sitk, warnings_shown
from istn_monai.io.whole import GZIPPED, length_of

LIMIT, VARIABLE = 2**28, "ISTN_MAX_VOXELS"
MOST_COMPRESSED = 1040  # bytes that deflate can make of one
BEHIND = 2**24  # bytes that may follow the voxels
LARGEST_VOXEL = 128  # bytes, 16 numbers of 8
#: formats whose readers fill up what is missing without a word
UNCOUNTED, UNFINISHED = (".gipl", ".gipl.gz", ".vtk", ".mrc", ".rec"), (".jpg", ".jpeg", ".bmp")
#: the head of a VTK file of one number for each voxel, whose third line says whether they are text
VTK_HEAD = re.compile(rb"# vtk[^\n]*\n[^\n]*\n\s*(ASCII|BINARY)\s*\n.*?LOOKUP_TABLE[^\n]*\n", re.DOTALL)
VTK_TEXT = re.compile(rb"# vtk[^\n]*\n[^\n]*\n\s*ASCII\s*\n")


def most_voxels() -> int:
    """The most voxels that an image may have; the environment variable ``ISTN_MAX_VOXELS`` sets it."""
    text = os.environ.get(VARIABLE, str(LIMIT))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{VARIABLE} must be a whole number of voxels of at least 1, got {text!r}")
    return int(text)


def check_file(file: str | Path, place: str) -> None:
    """ValueError if a file promises more voxels than ``most_voxels``, or than it holds, or if it is damaged.

    Args:
        file: of any format; of those that are not named here their readers say so themselves.
        place: how errors call it.
    """
    path, name = Path(file), Path(file).name.lower()
    check_regular(path, place)
    if not path.is_file():
        return
    check_suffix(path, place)
    if name.endswith(TEXT):
        check_text(path, place)
    elif name.endswith(UNFINISHED):
        with damage_named(path, place), Image.open(path) as picture:
            picture.load()
    elif name.endswith(UNCOUNTED):
        check_uncounted(path, place)
    elif is_nifti(name) or is_mgh(name):
        if header_file(path) != path:
            check_there(header_file(path), path, place, "header")
        header = read_header(path, place)
        voxels = math.prod(map(int, header.get_data_shape()))
        check_voxels(path, place, voxels)
        check_there(voxel_file(path), path, place)
        first = max(0, int(header.get_data_offset()))
        check_length(voxel_file(path), place, first + voxels * header.get_data_dtype().itemsize)


def check_text(path: Path, place: str) -> None:
    """The same of a file of MetaImage or NRRD.

    A stream may be whole and yet too short: of a MetaImage ITK leaves the voxels that it lacks as memory was. Where it
    sees that something is missing, it says that there is no such file.
    """
    text = text_header(path)
    for file in text.named_files():
        check_there(file, path, place)
    check_voxels(path, place, text.voxels)
    with damage_named(path, place):
        length = check_packed(text, text.voxels * LARGEST_VOXEL + BEHIND, place)
    if text.missing:
        raise ValueError(f"{place}: {path} has a header without {' and '.join(text.missing)}: write it again")
    if text.nrrd or not (text.packed or text.binary):
        return
    length = length if text.packed else text.unpacked_length()
    _, expected = promised(path, place)
    if length < expected:
        raise ValueError(
            f"{place}: {path} is truncated: its header promises {expected:,} bytes, its voxels have {length:,}"
        )


def check_there(file: Path, path: Path, place: str, what: str = "voxels") -> None:
    """ValueError unless the file is there that another one needs."""
    check_regular(file, place)
    if not file.is_file():
        raise ValueError(f"{place}: {path} has its {what} in {file}, which is not there: put it there, too")


def check_voxels(path: Path, place: str, voxels: int) -> None:
    """ValueError if an image has more voxels than memory is wanted for."""
    if voxels > most_voxels():
        raise ValueError(
            f"{place}: {path} has {voxels:,} voxels by its header, more than {most_voxels():,}: crop or resample it, "
            f"or set the environment variable {VARIABLE} if memory allows some 90 bytes for each"
        )


def check_uncounted(path: Path, place: str) -> None:
    """ValueError if a file of one of ``UNCOUNTED`` is shorter than its header promises."""
    voxels, expected = promised(path, place)
    check_voxels(path, place, voxels)
    with path.open("rb") as stream:
        start = stream.read(2**12)
        head = VTK_HEAD.match(start)
        stream.seek(head.end() if head else 0)
        if head is None and not VTK_TEXT.match(start):
            check_length(path, place, expected)
        elif head is not None and head[1] == b"BINARY":
            check_found(path, place, expected, path.stat().st_size - head.end(), "bytes")
        elif head is not None:
            check_found(path, place, voxels, sum(len(line.split()) for line in stream), "numbers")


def check_found(path: Path, place: str, promised: int, found: int, what: str) -> None:
    """ValueError if a file has less than its header promises."""
    if found < promised:
        raise ValueError(
            f"{place}: {path} is truncated: its header promises {promised:,} {what}, the file has {found:,}"
        )


def promised(path: Path, place: str) -> tuple[int, int]:
    """How many voxels a file has by its header, as ITK reads it, and how many bytes they are."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with damage_named(path, place), warnings_shown(False):
        reader.ReadImageInformation()
    voxels = math.prod(reader.GetSize())
    one = sitk.Image([1, 1], reader.GetPixelID(), reader.GetNumberOfComponents())
    return voxels, voxels * one.GetNumberOfComponentsPerPixel() * one.GetSizeOfPixelComponent()


def check_length(path: Path, place: str, expected: int) -> None:
    """ValueError if a file is shorter than its voxels, or if its compressed stream is damaged anywhere."""
    length, gzipped = path.stat().st_size, path.name.lower().endswith(GZIPPED)
    if expected > length * (MOST_COMPRESSED if gzipped else 1):
        check_found(path, place, expected, length, "bytes")
    if not gzipped:
        return
    with damage_named(path, place):
        found = length_of(path, enough=expected + BEHIND)
    if not expected <= found <= expected + BEHIND:
        raise ValueError(f"{place}: {path} holds {found:,} bytes or more, its header promises {expected:,}: repair it")


@contextmanager
def damage_named(path: Path, place: str) -> Iterator[None]:
    """What a reader raises of a damaged file, as a ValueError that names it."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, zlib.error) as error:
        check_gzipped(error, path, place)
        raise ValueError(
            f"{place}: cannot read {path}: it is damaged or truncated ({last_line(error)}); copy it again"
        ) from error
