"""MetaImage and NRRD: what the text at the head of a file says, and whether compressed voxels are whole.

ITK reads a damaged stream as far as it goes and says so on the terminal alone.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

LONGEST = 1 << 24  # bytes of a header: Slicer writes some 500 for each segment
CHUNK = 1 << 20
TEXT = (".mha", ".mhd", ".nrrd", ".nhdr")
ANY_FORMAT = 47  # zlib's and gzip's streams, as zlib's window size
PATTERN = re.compile(r"(\S*%\d*d\S*)((?:\s+\d+)+)")
MOST_FILES = 1 << 16  # of a pattern
SIZES = re.compile(r"[\d \t]+")
#: what is asked of a header of MetaImage and of NRRD; what has another name is its writer's own
METAIMAGE = (
    "NDims", "DimSize", "ElementType", "BinaryData", "CompressedData", "CompressedDataSize", "HeaderSize",
    "ElementDataFile",
)  # fmt: skip
TRUE = ("T", "t", "1")  # how it begins where MetaIO takes it for true
NEEDED = ("NDims", "DimSize", "ElementType", "ElementDataFile")  # of a MetaImage
NRRD = ("sizes", "encoding", "datafile", "byteskip", "lineskip")


@dataclass(frozen=True)
class TextHeader:
    """The text at the head of a file.

    Attributes:
        file: that it is from.
        said: what it says of ``METAIMAGE`` or ``NRRD``.
        rest: the lines after it.
        length: its bytes.
        nrrd: whether it is of NRRD, else of MetaImage.
    """

    file: Path
    said: dict[str, str]
    rest: Sequence[str]
    length: int
    nrrd: bool

    @property
    def voxels(self) -> int:
        """How many it promises; 0 where it does not say."""
        found = SIZES.match(self.said.get("sizes", self.said.get("DimSize", "")))
        return math.prod(map(int, found[0].split())) if found else 0

    @property
    def missing(self) -> list[str]:
        """What it lacks, where ITK gives no reason."""
        return [] if self.nrrd else [key for key in NEEDED if key not in self.said]

    @property
    def binary(self) -> bool:
        """Whether a MetaImage says that its voxels are bytes."""
        return self.said.get("BinaryData", "")[:1] in TRUE

    @property
    def packed(self) -> bool:
        """Whether voxels are compressed, from the header's end or a file's beginning on."""
        if self.said.get("CompressedData", "")[:1] in TRUE:
            return True
        skipped = any(self.said.get(key, "").strip("0") for key in ("byteskip", "lineskip"))
        return self.said.get("encoding", "").lower() in ("gzip", "gz") and not skipped

    def named_files(self) -> list[Path]:
        """The files that it names as those of its voxels, there or not; none if they are in the same file."""
        named = self.said.get("ElementDataFile", self.said.get("datafile", ""))
        if named.upper().startswith("LIST"):
            names = [line for line in self.rest if line]
        elif (found := PATTERN.fullmatch(named)) and len(found[2].split()) > 1:
            names = names_by(found[1], *map(int, found[2].split()))
        else:
            names = [named] if named and named.upper() != "LOCAL" else []
        return [path for path in (self.file.parent / name for name in names) if path != self.file]

    def unpacked_length(self) -> int:
        """Bytes of its voxels, or those that may be some, where they are not compressed."""
        files = self.voxel_files()
        return sum(path.stat().st_size for path in files) if files else self.file.stat().st_size - self.length

    def voxel_files(self) -> list[Path]:
        """Those of the files that it names that are there."""
        return [path for path in self.named_files() if path.is_file()]


def text_header(file: Path) -> TextHeader:
    """The text at the head of a file."""
    said: dict[str, str] = {}
    rest: list[str] = []
    with open(file, "rb") as stream:
        nrrd = stream.read(4) == b"NRRD"  # ITK knows a format by its content
        stream.seek(0)
        while stream.tell() < LONGEST and (line := stream.readline(LONGEST)):
            key, value = pair_of_nrrd(cleaned(line)) if nrrd else pair_of_metaimage(cleaned(line))
            if key in (NRRD if nrrd else METAIMAGE):
                said[key] = value
            if key in ("datafile", "ElementDataFile") and value.upper().startswith("LIST"):
                rest = [cleaned(line) for line in stream.read(LONGEST).split(b"\n")]
                break
            if key == "ElementDataFile" or (nrrd and not line.strip()):
                break
        return TextHeader(file, said, rest, stream.tell(), nrrd)


def pair_of_nrrd(line: str) -> tuple[str, str]:
    """Name and value of a field; ``name:=value`` is none, whatever its name.

    Examples:
        >>> pair_of_nrrd("data file: a.raw"), pair_of_nrrd("encoding:=gzip")
        (('datafile', 'a.raw'), ('', ''))
    """
    name, _, value = line.partition(":")
    return ("", "") if value.startswith("=") else (name.strip().lower().replace(" ", ""), value.strip())


def pair_of_metaimage(line: str) -> tuple[str, str]:
    """Name and value of a field, between which MetaIO allows both signs.

    Examples:
        >>> pair_of_metaimage("DimSize : 2 3"), pair_of_metaimage("Comment = a: b")
        (('DimSize', '2 3'), ('Comment', 'a: b'))
    """
    name, *value = re.split("[=:]", line, maxsplit=1)
    return name.strip(), "".join(value).strip()


def names_by(pattern: str, first: int, last: int, step: int = 1, *_: int) -> list[str]:
    """The names of numbered files; none if the pattern is of something else, which its reader says itself.

    Examples:
        >>> names_by("%02d.raw", 1, 5, 2), names_by("%s%d.raw", 0, 1)
        (['01.raw', '03.raw', '05.raw'], [])
    """
    try:
        return [pattern % number for number in range(first, last + 1, step or 1)[:MOST_FILES]]
    except (TypeError, ValueError):
        return []


def cleaned(line: bytes) -> str:
    """A line as text."""
    return line.decode("utf-8", "replace").strip()


def check_packed(header: TextHeader, limit: int, place: str) -> int:
    """Reads compressed voxels to their end.

    Args:
        header: of voxels that are not compressed nothing is asked, ITK counts them.
        limit: bytes that they may have.
        place: how errors call the file.

    Returns:
        How many bytes they are; 0 of voxels that are not compressed.

    Raises:
        EOFError or zlib.error: unless they are whole, up to their checksum.
        ValueError: if ITK would look for them elsewhere.
    """
    total = 0
    for path in header.voxel_files() or [header.file] if header.packed else []:
        with open(path, "rb") as stream:
            start = header.length if path == header.file else 0
            stream.seek(start)
            size, left = unpacked(stream, limit)
            check_packed_size(header, path, (stream.tell() - left - start, path.stat().st_size - start), place)
        total += size
    return total


def unpacked(stream: BinaryIO, limit: int) -> tuple[int, int]:
    """Bytes of what is compressed from here on in a stream, and those that were read behind its end."""
    unpack, size = zlib.decompressobj(ANY_FORMAT), 0
    while not unpack.eof:
        chunk = unpack.unconsumed_tail or stream.read(CHUNK)
        if not chunk:
            raise EOFError("its compressed voxels end early")
        size += len(unpack.decompress(chunk, CHUNK))
        if size > limit:
            raise EOFError(f"its compressed voxels have more than {limit:,} bytes")
    return size, len(unpack.unused_data)


def check_packed_size(header: TextHeader, path: Path, lengths: tuple[int, int], place: str) -> None:
    """ValueError if a MetaImage says less than it has of its compressed bytes: ITK leaves voxels as memory was.

    Args:
        header: of a file with compressed voxels.
        path: where they are; in a file of its own MetaIO takes all of it where nothing is said.
        lengths: of what is compressed, and of the file from there on.
        place: how errors call it.
    """
    if header.nrrd:
        return
    said, skipped = (header.said.get(key, "") for key in ("CompressedDataSize", "HeaderSize"))
    promised = float(said or 0) if re.fullmatch(r"(\d+\.?\d*)?", said) else -1.0
    whole = path != header.file and promised == 0
    if not (whole or lengths[0] <= promised <= lengths[1]):
        raise ValueError(
            f"{place}: {header.file} has compressed voxels of {lengths[0]} bytes, and its field CompressedDataSize "
            f"says {said or 'nothing'}: write CompressedDataSize = {lengths[0]}, or write the file again"
        )
    if skipped.strip("0"):
        raise ValueError(
            f"{place}: {header.file} has compressed voxels and HeaderSize = {skipped}, 0 is expected: write it again"
        )
