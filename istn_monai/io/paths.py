"""Where things are and where results go: absolute paths, new files, writable folders."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def absolute(path: str | os.PathLike) -> Path:
    """An absolute path, ``~`` expanded; links stay links."""
    return Path(path).expanduser().absolute()


def new_file(file: str | Path, name: str = "output") -> Path:
    """The absolute path of a file to write, or FileExistsError: what is there is left alone."""
    path = absolute(file)
    if path.exists():
        raise FileExistsError(f"{name} exists and is left alone: {path}; choose another name or remove it")
    return path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside a file to write to, which takes its place once written whole; a failure leaves the old file."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def check_output_dir(path: str | os.PathLike, name: str = "output_dir") -> Path:
    """Makes a folder for results and tries to write in it; ``name`` is how errors call it.

    Returns:
        The folder's absolute path.
    """
    folder = absolute(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{name} is not writable: {folder} ({error.strerror or error}); choose another") from error
    return folder
