"""Headers of DICOM files, up to their voxels.

SimpleITK hands out neither sequences, in which an enhanced file keeps the place of each frame, nor anything of objects
that are no images. So headers are read here, as DICOM PS3.5 and PS3.10 say, and voxels by SimpleITK.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from istn_monai.io.paths import files_below
from istn_monai.io.simple_itk import sitk

#: value representations whose length has 4 bytes
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
ITEM, ITEM_END, SEQUENCE_END, UNDEFINED = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFFFFFF
SHARED, PER_FRAME = 0x52009229, 0x52009230
PLANE_POSITION, PLANE_ORIENTATION, PIXEL_MEASURES, RESCALE, CONTENT = (
    0x00209113, 0x00209116, 0x00289110, 0x00289145, 0x00209111,
)  # fmt: skip
#: what is read of sequences; without value representations (implicit) these alone are known to be some
SEQUENCES = {SHARED, PER_FRAME, PLANE_POSITION, PLANE_ORIENTATION, PIXEL_MEASURES, RESCALE, CONTENT}
SYNTAX, PIXELS, PIXELS_END = 0x00020010, 0x7FE00008, 0x7FE00010
LONGEST = 2**16  # bytes of a value that is kept
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
Elements = dict[int, Any]


class Broken(ValueError):
    """A header that is not DICOM, or ends early."""


@dataclass(frozen=True)
class Coding:
    """How elements are written: with value representations (explicit) or not, and the order of bytes."""

    explicit: bool = True
    order: str = "<"


@dataclass(frozen=True)
class Header:
    """What a DICOM file says before its voxels.

    Attributes:
        file: that it is of.
        elements: bytes by tag ``0xGGGGEEEE``, and lists of the same for sequences.
        coding: of the elements.
    """

    file: Path
    elements: Elements
    coding: Coding

    @property
    def is_image(self) -> bool:
        """Whether voxels follow."""
        return any(tag in self.elements for tag in range(PIXELS, PIXELS_END + 1))

    def text(self, tag: int) -> str:
        """A value as text; "" where there is none."""
        return text_of(self.elements, tag)

    def numbers(self, tag: int) -> list[float]:
        """A value of decimal numbers; none where there is none."""
        return numbers_of(self.elements, tag)

    def whole(self, tag: int, default: int = 0) -> int:
        """A value of two bytes, as rows and columns have."""
        value = self.elements.get(tag, b"")
        return struct.unpack(f"{self.coding.order}H", value[:2])[0] if len(value) >= 2 else default


def text_of(elements: Elements, tag: int) -> str:
    """A value as text; "" where there is none."""
    value = elements.get(tag, b"")
    if not isinstance(value, bytes):
        return ""
    try:
        found = value.decode()
    except UnicodeDecodeError:
        found = value.decode("latin-1")
    return " ".join(found.replace("\0", " ").split())


def numbers_of(elements: Elements, tag: int) -> list[float]:
    """A value of decimal numbers; none where there is none, or where it is none."""
    try:
        return [float(part) for part in text_of(elements, tag).split("\\")]
    except ValueError:
        return []


def is_dicom(path: str | Path) -> bool:
    """Whether a file begins as DICOM files do, or a folder holds, at any depth, a file that does.

    Examples:
        >>> is_dicom("/nowhere")
        False
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return any(map(is_dicom, files_below(path)))
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(132)
    # without a preamble, as of old: by ITK, which is asked only where group 2 or 8 comes first
    return head[128:] == b"DICM" or (head[:2] in (b"\2\0", b"\x08\0", b"\0\x08") and itk_takes_for_dicom(path))


def itk_takes_for_dicom(file: Path) -> bool:
    """Whether ITK reads a file as DICOM."""
    return sitk.ImageFileReader.GetImageIOFromFileName(str(file)) == "GDCMImageIO"


def read_header(file: Path) -> Header:
    """The header of a DICOM file.

    Raises:
        Broken: if it is none, or if the file ends before its header or its voxels do.
    """
    try:
        with file.open("rb") as stream:
            return header_in(stream, file)
    except (struct.error, zlib.error, IndexError, RecursionError) as error:
        raise Broken(f"its header ends early or is damaged ({error})") from error


def header_in(stream: BinaryIO, file: Path) -> Header:
    """The header at the beginning of a stream."""
    if stream.read(132)[128:] != b"DICM":
        stream.seek(0)
    elements: Elements = {}
    while group_at(stream) == 2:
        tag, value = read_element(stream, Coding())
        elements[tag] = value
    syntax = text_of(elements, SYNTAX)
    if syntax == DEFLATED:
        stream = io.BytesIO(zlib.decompress(stream.read(), -15))
    coding = coding_at(stream, syntax)
    elements |= read_elements(stream, coding, top=True)
    if not text_of(elements, 0x00080016) and not elements.keys() - {SYNTAX}:
        raise Broken("it holds nothing")
    return Header(file, elements, coding)


def group_at(stream: BinaryIO) -> int:
    """The group of the next element, as if of little-endian order; the stream stays where it is."""
    head = stream.read(2)
    stream.seek(-len(head), 1)
    return int.from_bytes(head, "little")


def coding_at(stream: BinaryIO, syntax: str) -> Coding:
    """The coding of the next element: whether it has a value representation is seen, as some files say otherwise."""
    head = stream.read(8)
    stream.seek(-len(head), 1)
    big = syntax == BIG_ENDIAN or (not syntax and head[:1] == b"\0")
    return Coding(re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None, ">" if big else "<")


def read_elements(stream: BinaryIO, coding: Coding, end: int | None = None, top: bool = False) -> Elements:
    """Elements up to a place, the end of their item or, of a whole file, its voxels."""
    found: Elements = {}
    while end is None or stream.tell() < end:
        start = stream.tell()
        if top and not stream.read(1):
            break
        stream.seek(start)
        tag, value = read_element(stream, coding, top)
        if tag in (ITEM_END, SEQUENCE_END):
            break
        found[tag] = value
        if top and PIXELS <= tag <= PIXELS_END:
            break
    return found


def read_element(stream: BinaryIO, coding: Coding, top: bool = False) -> tuple[int, Any]:
    """Tag and value of the next element; b"" for what is too long to be of use, and of voxels the number of bytes."""
    head = exactly(stream, 8)
    group, element = struct.unpack(f"{coding.order}HH", head[:4])
    tag, kind = group << 16 | element, head[4:6]
    if not coding.explicit or group == 0xFFFE:
        kind, (length,) = b"", struct.unpack(f"{coding.order}I", head[4:])
    elif kind in LONG:
        (length,) = struct.unpack(f"{coding.order}I", exactly(stream, 4))
    elif re.fullmatch(rb"[A-Z]{2}", kind):
        (length,) = struct.unpack(f"{coding.order}H", head[6:])
    else:
        raise Broken(f"its header is damaged at tag ({group:04x},{element:04x})")
    if tag in (ITEM_END, SEQUENCE_END):
        return tag, b""
    if PIXELS <= tag <= PIXELS_END and top and length == UNDEFINED:
        return tag, b""  # compressed: the decoder finds out whether it is whole
    if length == UNDEFINED or tag in SEQUENCES:
        # what has an unknown representation and no length is implicit, whatever the rest is (PS3.5, 6.2.2)
        inside = Coding(False) if kind == b"UN" else coding
        return tag, read_items(stream, inside, length, PIXELS <= tag <= PIXELS_END)
    if top and PIXELS <= tag <= PIXELS_END:
        skip(stream, length)
        return tag, str(length).encode()
    if length > LONGEST:
        skip(stream, length)
        return tag, b""
    return tag, exactly(stream, length)


def read_items(stream: BinaryIO, coding: Coding, length: int, opaque: bool = False) -> list[Elements]:
    """The items of a sequence; ``opaque`` ones, the fragments of compressed voxels, are skipped."""
    end = None if length == UNDEFINED else stream.tell() + length
    items: list[Elements] = []
    while end is None or stream.tell() < end:
        group, element, size = struct.unpack(f"{coding.order}HHI", exactly(stream, 8))
        tag = group << 16 | element
        if tag == SEQUENCE_END:
            break
        if tag != ITEM:
            raise Broken(f"its header is damaged: a sequence has ({group:04x},{element:04x}) where an item is expected")
        if opaque:
            skip(stream, size)
        else:
            items.append(read_elements(stream, coding, None if size == UNDEFINED else stream.tell() + size))
    return items


def exactly(stream: BinaryIO, length: int) -> bytes:
    """So many bytes."""
    found = stream.read(length)
    if len(found) < length:
        raise Broken("it is truncated")
    return found


def skip(stream: BinaryIO, length: int) -> None:
    """Moves on by so many bytes, which must be there."""
    if length:
        stream.seek(length - 1, 1)
        exactly(stream, 1)
