"""What a file is, in a few letters: to tell whether a result was made of the same files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from istn_monai.io.paths import absolute

#: headers whose values lie in another file, and the line that names it
DATA_FILE = {
    ".mhd": re.compile(rb"^ElementDataFile\s*=\s*(.+?)\s*$", re.MULTILINE),
    ".nhdr": re.compile(rb"^data ?file:\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE),
}
HEADER = 1 << 16


def files_of(path: Path) -> list[Path]:
    """The files that make an image: one; all of a folder; a header and what it names; none if there is nothing.

    Example:
        >>> files_of(Path("/nowhere.nii.gz"))
        []
    """
    if path.is_dir():
        return [file for file in sorted(path.rglob("*")) if file.is_file()]
    if not path.exists():
        return []
    if path.suffix == ".hdr":
        return [path, *(file for file in (path.with_suffix(s) for s in (".img", ".img.gz")) if file.exists())]
    if path.suffix in DATA_FILE:
        with open(path, "rb") as header:
            named = DATA_FILE[path.suffix].search(header.read(HEADER))
        other = path.parent / named[1].decode(errors="replace") if named else path
        return [path, other] if other != path and other.is_file() else [path]
    return [path]


def file_state(path: str | Path) -> list[int]:
    """Number of files, bytes, and the time of the latest change in ns: as long as they stay, so does the content."""
    states = [file.stat() for file in files_of(absolute(path))]
    return [len(states), sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]


def file_hash(file: str | Path) -> str | None:
    """SHA-256 of an image's files one after another, see :func:`files_of`; None for nothing."""
    path = absolute(file)
    return hash_in_state(path, tuple(file_state(path))) if path.exists() else None


@lru_cache(maxsize=4096)
def hash_in_state(path: Path, state: Sequence[int]) -> str:
    """The hash of what is at a path in a state: a file of several pairs is read once."""
    digest = hashlib.sha256()
    for file in files_of(path):
        with open(file, "rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
