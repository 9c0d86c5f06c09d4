"""Short hashes of files, which tell whether a result was made of the same files."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from istn_monai.io.nifti_headers import voxel_file
from istn_monai.io.packed import TEXT, text_header
from istn_monai.io.paths import absolute, files_below


def files_of(path: Path) -> list[Path]:
    """The files that make an image: one; all of a folder; a header and what it names; none if there is nothing.

    Examples:
        >>> files_of(Path("/nowhere.nii.gz"))
        []
    """
    if path.is_dir():
        return files_below(path)
    if not path.exists():
        return []
    if path.suffix.lower() in TEXT:
        return [path, *text_header(path).voxel_files()]
    voxels = voxel_file(path)
    return [path, voxels] if voxels != path and voxels.is_file() else [path]


def file_state(path: str | Path) -> list[int]:
    """Number of files, bytes, and the time of the latest change in ns: as long as they stay, so does the content.

    Of several files a checksum of all names, sizes and times comes behind them: one may be replaced by an older one.
    """
    states = [(file.name, file.stat()) for file in files_of(absolute(path))]
    state = [len(states), sum(s.st_size for _, s in states), max((s.st_mtime_ns for _, s in states), default=0)]
    each = repr([(name, s.st_size, s.st_mtime_ns) for name, s in states])
    return state if len(states) < 2 else [*state, zlib.crc32(each.encode())]


def file_hash(file: str | Path) -> str | None:
    """SHA-256 of an image's files one after another, see :func:`files_of`; None for nothing."""
    path = absolute(file)
    return hash_in_state(path, path.resolve(), tuple(file_state(path))) if path.exists() else None


@lru_cache(maxsize=4096)
def hash_in_state(path: Path, place: Path, state: Sequence[int]) -> str:
    """The hash of what is at a path, which leads to a place, in a state: a file of several pairs is read once."""
    digest = hashlib.sha256()
    for file in files_of(path):
        with open(file, "rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
