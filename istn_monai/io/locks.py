"""A lock between processes that no crash can leave behind: the kernel releases it with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
LOCK = "lock"


class InUse(OSError):
    """Another process holds the lock."""


def acquired(number: int, wait: bool) -> bool:
    """Whether the lock of an open file is ours now; True where the file system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: files still appear whole, and the last one stays
        return True
    return True


def is_file(number: int, file: str | os.PathLike) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(file))
    except FileNotFoundError:
        return False


@contextmanager
def locked_folder(folder: Path, wait: bool = True) -> Iterator[None]:
    """Makes a hidden folder of work in progress and holds its lock, while that lasts; removes an empty one.

    Args:
        folder: to be made, whose parent exists.
        wait: until another process releases it, having said so.

    Raises:
        InUse: if another process holds it, without ``wait``.
    """
    number = take(folder, wait)
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is ours: a process that waits for it makes another
        with suppress(OSError):
            folder.rmdir()
        os.close(number)


def take(folder: Path, wait: bool) -> int:
    """The open lock of a folder, which nobody else holds and which is still the folder's."""
    while True:
        try:
            folder.mkdir(exist_ok=True)
            number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, FileExistsError):
            if not folder.parent.is_dir() or (folder.exists() and not folder.is_dir()):
                raise
            continue  # removed by the one that held it, between two looks at it
        if not acquired(number, wait=False):
            if not wait:
                os.close(number)
                raise InUse(f"another process is writing to {folder.parent}")
            print(f"another process is writing to {folder.parent}: waiting for it", flush=True)
            acquired(number, wait=True)
        if is_file(number, folder / LOCK):
            return number
        os.close(number)  # its holder removed it meanwhile
