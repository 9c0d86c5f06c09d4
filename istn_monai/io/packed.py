"""MetaImage and NRRD: the files that hold their voxels, and whether compressed voxels are whole.

ITK reads a damaged stream as far as it goes and says so on the terminal alone.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

HEAD = 1 << 16  # bytes at the beginning of a file in which its header ends
CHUNK = 1 << 20
META, NRRD = (".mha", ".mhd"), (".nrrd", ".nhdr")
TEXT = (*META, *NRRD)
ANY_FORMAT = 47  # zlib's and gzip's streams, as zlib's window size
PATTERN = re.compile(r"(\S*%\d*d\S*)((?:\s+\d+)+)")


def fields(file: Path) -> tuple[dict[str, str], list[str], int]:
    """What the text at the head of a file says, by keys in small letters; the lines after it; and its length in bytes.

    Keys are without blanks, for NRRD knows ``data file`` and ``datafile``.
    """
    with open(file, "rb") as stream:
        head = stream.read(HEAD)
    said: dict[str, str] = {}
    length = 0
    lines = head.split(b"\n")
    for number, line in enumerate(lines):
        length += len(line) + 1
        text = line.decode("utf-8", "replace").strip()
        key, _, value = text.partition("=" if file.suffix.lower() in META else ":")
        said[key.strip().lower().replace(" ", "")] = value.lstrip("=").strip()
        if not text or key.strip().lower() == "elementdatafile":
            rest = [other.decode("utf-8", "replace").strip() for other in lines[number + 1 :]]
            return said, rest, min(length, len(head))
        if said.get("datafile", "").upper().startswith("LIST"):
            return said, [other.decode("utf-8", "replace").strip() for other in lines[number + 1 :]], len(head)
    return said, [], len(head)


def voxel_files(file: Path) -> list[Path]:
    """The files that a header names as those of its voxels; none if it holds them itself."""
    said, rest, _ = fields(file)
    named = said.get("elementdatafile", said.get("datafile", ""))
    if named.upper().startswith("LIST"):
        names = [line for line in rest if line]
    elif found := PATTERN.fullmatch(named):
        first, last, *step = map(int, found[2].split())
        names = [found[1] % number for number in range(first, last + 1, step[0] if step and step[0] else 1)]
    else:
        names = [named] if named and named.upper() != "LOCAL" else []
    return [path for path in (file.parent / name for name in names) if path.is_file() and path != file]


def check_packed(file: Path, limit: int) -> None:
    """EOFError or zlib.error unless compressed voxels are whole, up to their checksum.

    Args:
        file: MetaImage or NRRD; of voxels that are not compressed nothing is asked, ITK counts them.
        limit: bytes that they may have.
    """
    said, _, length = fields(file)
    packed = said.get("compresseddata", "").lower() == "true" or said.get("encoding", "").lower() in ("gzip", "gz")
    if not packed or any(int(said.get(key, "0") or 0) for key in ("byteskip", "lineskip")):
        return
    for path in voxel_files(file) or [file]:
        with open(path, "rb") as stream:
            stream.seek(length if path == file else 0)
            unpack, size = zlib.decompressobj(ANY_FORMAT), 0
            while not unpack.eof:
                chunk = unpack.unconsumed_tail or stream.read(CHUNK)
                if not chunk:
                    raise EOFError("its compressed voxels end early")
                size += len(unpack.decompress(chunk, CHUNK))
                if size > limit:
                    raise EOFError(f"its compressed voxels have more than {limit:,} bytes")
