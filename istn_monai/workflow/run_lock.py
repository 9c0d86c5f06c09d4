"""One training at a time in a folder: a lock that the kernel releases when the process ends, however it ends.

POSIX locks belong to a process. Unlike those of ``flock``, the processes that load data do not inherit them: a training
whose process is killed can go on at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from istn_monai.io.locks import fcntl, is_file

logger = logging.getLogger(__name__)
LOCK = ".training"
#: open locks of this process; the kernel would release one as soon as any file of its name is closed
HELD: dict[str, int] = {}


def hold(folder: str | os.PathLike) -> None:
    """Keeps other processes from training in a folder, until :func:`release` or the end of this process.

    Raises:
        OSError: naming the folder and the process, if another one trains there.
    """
    file = os.path.realpath(Path(folder) / LOCK)
    if fcntl is None or file in HELD:
        return
    while True:
        number = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(number, 100).decode(errors="replace").strip() or "unknown"
            os.close(number)
            raise OSError(
                f"another training is at work in {folder} (process {owner}): wait for its end, or choose another "
                "output_dir or ckpt_dir"
            ) from None
        except OSError as error:
            logger.warning(f"{folder}: its file system has no locks ({error.strerror}); train there once at a time")
        if is_file(number, file):
            break
        os.close(number)  # its holder removed it meanwhile
    os.truncate(number, 0)
    os.write(number, f"{os.getpid()}\n".encode())
    HELD[file] = number


def release() -> None:
    """Ends all that this process holds."""
    while HELD:
        file, number = HELD.popitem()
        Path(file).unlink(missing_ok=True)
        os.close(number)


@contextmanager
def released_on_error() -> Iterator[None]:
    """Ends what this process holds if what follows fails: a notebook lives on, and others may train in its stead."""
    try:
        yield
    except BaseException:
        release()
        raise
