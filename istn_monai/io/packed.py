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

HEAD = 1 << 16  # bytes at the beginning of a file in which its header ends
CHUNK = 1 << 20
TEXT = (".mha", ".mhd", ".nrrd", ".nhdr")
ANY_FORMAT = 47  # zlib's and gzip's streams, as zlib's window size
PATTERN = re.compile(r"(\S*%\d*d\S*)((?:\s+\d+)+)")
SIZES = re.compile(r"[\d \t]+")


@dataclass(frozen=True)
class TextHeader:
    """The text at the head of a file.

    Attributes:
        file: that it is from.
        said: by keys in small letters and without blanks, for NRRD knows ``data file`` and ``datafile``.
        rest: the lines after it.
        length: its bytes.
    """

    file: Path
    said: dict[str, str]
    rest: Sequence[str]
    length: int

    @property
    def voxels(self) -> int:
        """How many it promises; 0 where it does not say."""
        found = SIZES.match(self.said.get("sizes", self.said.get("dimsize", "")))
        return math.prod(map(int, found[0].split())) if found else 0

    @property
    def packed(self) -> bool:
        """Whether voxels are compressed, from the header's end or a file's beginning on."""
        said = self.said
        packed = said.get("compresseddata", "").lower() == "true" or said.get("encoding", "").lower() in ("gzip", "gz")
        return packed and not any(int(said.get(key, "0") or 0) for key in ("byteskip", "lineskip"))

    def voxel_files(self) -> list[Path]:
        """The files that it names as those of its voxels; none if it is in the same file."""
        named = self.said.get("elementdatafile", self.said.get("datafile", ""))
        if named.upper().startswith("LIST"):
            names = [line for line in self.rest if line]
        elif found := PATTERN.fullmatch(named):
            first, last, *step = map(int, found[2].split())
            names = [found[1] % number for number in range(first, last + 1, step[0] if step and step[0] else 1)]
        else:
            names = [named] if named and named.upper() != "LOCAL" else []
        return [path for path in (self.file.parent / name for name in names) if path.is_file() and path != self.file]


def text_header(file: Path) -> TextHeader:
    """The text at the head of a file."""
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    sign = ":" if head.startswith(b"NRRD") else "="  # ITK knows a format by its content
    said: dict[str, str] = {}
    lines = head.split(b"\n")
    length = 0
    for number, line in enumerate(lines):
        length += len(line) + 1
        text = cleaned(line)
        name, _, value = text.partition(sign)
        key = name.strip().lower().replace(" ", "")
        said[key] = value.lstrip("=").strip()
        listed = key in ("datafile", "elementdatafile") and said[key].upper().startswith("LIST")
        if listed:
            return TextHeader(file, said, list(map(cleaned, lines[number + 1 :])), len(head))
        if not text or key == "elementdatafile":
            break
    return TextHeader(file, said, [], min(length, len(head)))


def cleaned(line: bytes) -> str:
    """A line as text."""
    return line.decode("utf-8", "replace").strip()


def check_packed(header: TextHeader, limit: int) -> None:
    """EOFError or zlib.error unless compressed voxels are whole, up to their checksum.

    Args:
        header: of voxels that are not compressed nothing is asked, ITK counts them.
        limit: bytes that they may have.
    """
    for path in header.voxel_files() or [header.file] if header.packed else []:
        with open(path, "rb") as stream:
            stream.seek(header.length if path == header.file else 0)
            unpack, size = zlib.decompressobj(ANY_FORMAT), 0
            while not unpack.eof:
                chunk = unpack.unconsumed_tail or stream.read(CHUNK)
                if not chunk:
                    raise EOFError("its compressed voxels end early")
                size += len(unpack.decompress(chunk, CHUNK))
                if size > limit:
                    raise EOFError(f"its compressed voxels have more than {limit:,} bytes")
