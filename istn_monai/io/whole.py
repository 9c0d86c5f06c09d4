"""Whether a file that was written is whole: read to its end, cheaply, and by what its format says of its length.

Writers of images and transforms may return normally after a short write, as on a full disk; the next reader would take
what is missing for zeros.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from pathlib import Path

CHUNK = 1 << 20
GZIPPED = (".gz", ".mgz")
PNG_END = b"IEND\xaeB`\x82"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: by the version of an HDF5 superblock: where the file's length is in it
HDF5_LENGTH = {0: 40, 1: 44, 2: 28, 3: 28}


def sync(path: Path) -> None:
    """Waits until a file, or a folder's names, are on the disk: only then a full one, or a quota, is sure to show.

    File systems that cannot do so for a folder are left alone.
    """
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(number)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(number)


def check_whole(file: Path) -> None:
    """OSError unless a file is whole, as far as its format tells; of other formats than those here nothing is asked."""
    for suffix, expected in EXPECTED.items():
        if file.name.endswith(suffix):
            try:
                expected(file)
            except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
                raise OSError(f"it was not written whole ({error})") from error
            return


def nifti_length(file: Path) -> int:
    """Bytes of a NIfTI file, uncompressed, by its header."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nib.load(file)
    except ImageFileError as error:
        raise EOFError(f"{file.name} has no whole header") from error
    return int(image.dataobj.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize


def length_of(file: Path, enough: float = math.inf) -> int:
    """Bytes of a file, uncompressed, read to the end (its checksum included) or until there are more than enough."""
    length = 0
    with gzip.open(file) if file.suffix.lower() in GZIPPED else open(file, "rb") as content:
        while length <= enough and (chunk := content.read(CHUNK)):
            length += len(chunk)
    return length


def check_nifti(file: Path) -> None:
    """A NIfTI file, compressed (its checksum included) or not."""
    length = length_of(file)
    if length < nifti_length(file):
        raise EOFError(f"{file.name} has {length} of {nifti_length(file)} bytes")


def check_hdf5(file: Path) -> None:
    """An HDF5 file: its first block says how long it is."""
    with open(file, "rb") as content:
        head = content.read(64)
    if not head.startswith(HDF5_SIGNATURE) or len(head) < 64:
        raise EOFError(f"{file.name} has no whole header")
    place = HDF5_LENGTH.get(head[8])
    length = 0 if place is None else int.from_bytes(head[place : place + 8], "little")
    if file.stat().st_size < length:
        raise EOFError(f"{file.name} has {file.stat().st_size} of {length} bytes")


def check_end(file: Path, end: bytes) -> None:
    """A file that must end with something."""
    with open(file, "rb") as content:
        content.seek(max(0, file.stat().st_size - len(end)))
        if content.read() != end:
            raise EOFError(f"{file.name} has no end")


def check_json(file: Path) -> None:
    """A JSON file."""
    json.loads(file.read_text(encoding="utf-8"))


def check_tfm(file: Path) -> None:
    """A transform in ITK's text format."""
    from istn_monai.io.whole_transforms import check_text  # which imports this module

    check_text(file)


EXPECTED = {
    ".nii.gz": check_nifti,
    ".nii": check_nifti,
    ".h5": check_hdf5,
    ".tfm": check_tfm,
    ".json": check_json,
    ".png": lambda file: check_end(file, PNG_END),
    ".html": lambda file: check_end(file, b"</html>\n"),
}
