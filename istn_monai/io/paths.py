"""Where things are and where results go: absolute paths, which files are one, new and replaced files, folders.

Convention:
    A file appears under its name when it is whole: it is written beside its place, checked, and moved there. Nothing
    is replaced unless its user asks for that, and an input never is, whatever it is called.
"""

from __future__ import annotations

import glob
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from istn_monai.io.whole import check_whole, sync


def absolute(path: str | os.PathLike) -> Path:
    """An absolute path, ``~`` expanded; links stay links."""
    return Path(path).expanduser().absolute()


def check_regular(path: Path, place: str) -> None:
    """ValueError for what is there and neither a file nor a folder: whoever opens a pipe may wait for ever.

    Args:
        path: to read from.
        place: how errors call it.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{place}: {path} is a device or a pipe, a file is expected: save what it holds as one")


def files_below(folder: Path) -> list[Path]:
    """All files of a folder at any depth, also behind links to folders, each folder once."""
    seen: set[str] = set()
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        found += [Path(parent, name) for name in names if os.path.isfile(os.path.join(parent, name))]
    return sorted(found)


def checked_overwrite(overwrite: bool) -> bool:
    """ValueError unless it is True or False: the word "false" would count as true, and results would be lost."""
    if not isinstance(overwrite, bool):
        raise ValueError(f"overwrite must be true or false, got {overwrite!r}")
    return overwrite


def new_file(file: str | os.PathLike, name: str = "output", overwrite: bool = False) -> Path:
    """The absolute path of a file to write, or FileExistsError: what is there is left alone.

    Args:
        file: to write.
        name: how errors call it.
        overwrite: the file may be there, and will be replaced; a folder never is.
    """
    path = absolute(file)
    if path.is_dir():
        raise FileExistsError(f"{name} is a folder: {path}; give the name of a file")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{name} is no file but a device or a pipe: {path}; choose another name")
    if os.path.lexists(path) and not checked_overwrite(overwrite):
        raise FileExistsError(
            f"{name} exists and is left alone: {path}; choose another name, or add --overwrite to replace it"
        )
    return path


def identities(path: Path) -> set[str | tuple[int, int]]:
    """What two paths have in common if they are one file: where links lead, and the file itself, if there is one."""
    found: set[str | tuple[int, int]] = {os.path.realpath(path)}
    try:
        state = os.stat(path)
    except OSError:  # still to be written, or a link that leads nowhere
        return found
    return found | {(state.st_dev, state.st_ino)}


def check_apart(
    outputs: Iterable[Path], inputs: Iterable[tuple[str, str | os.PathLike]], advice: str = "choose another output_dir"
) -> None:
    """Refuses to write where something is read: by ``..``, a link to a file or folder, a hard link, or by its name.

    Args:
        outputs: all files that will be written, there or not.
        inputs: files and folders that are read, with how errors call them.
        advice: what to do, for the error.

    Raises:
        FileExistsError: if a result would take the place of an input, or lie in a folder that is one.
    """
    written = {identity: path for path in outputs for identity in identities(path)}
    folders = {os.path.realpath(path.parent): path for path in written.values()}
    for name, given in inputs:
        file = absolute(given)
        hit = next((written[identity] for identity in identities(file) if identity in written), None)
        if hit is not None:
            raise FileExistsError(f"{name} {file} would be replaced by a result, {hit}: {advice}")
        if file.is_dir():
            root = os.path.realpath(file)
            hit = next((path for folder, path in folders.items() if Path(folder).is_relative_to(root)), None)
        if hit is not None:
            raise FileExistsError(f"a result, {hit}, would lie in {name} {file}, which is read as a whole: {advice}")


PART = ".part-"  # how the names of files that are being written begin


def part_of(file: Path) -> Path:
    """A hidden path beside a file, of its suffix, for this process to write to."""
    return file.with_name(f"{PART}{socket.gethostname()}-{os.getpid()}-{file.name}")


def remove_parts(file: Path) -> None:
    """Removes what processes of this machine that are no more left beside a file."""
    before = f"{PART}{socket.gethostname()}-"
    for part in file.parent.glob(f"{glob.escape(before)}*-{glob.escape(file.name)}"):
        number = part.name.removeprefix(before).partition("-")[0]
        try:
            os.kill(int(number), 0)
        except (ProcessLookupError, ValueError):
            part.unlink(missing_ok=True)
        except OSError:  # it is somebody else's and lives
            continue


@contextmanager
def replacing(file: Path, durable: bool = True) -> Iterator[Path]:
    """A path beside a file to write to, which takes its place once it is written whole; a failure leaves the old file.

    Args:
        file: to write; its folder is made.
        durable: waits until it is on the disk; False for many files that are made again where one is missing.

    Raises:
        OSError: naming ``file``, if it cannot be written to its end, as on a full disk.
    """
    part = part_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_parts(file)
        yield part
        check_whole(part)
        if durable:
            sync(part)
        os.replace(part, file)
        if durable:
            sync(file.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError is what ITK and PyTorch make of a full disk
        raise not_written(file, error) from error
    finally:
        part.unlink(missing_ok=True)


class NotWritten(OSError):
    """A file could not be written to its end."""


def not_written(file: Path, error: BaseException) -> NotWritten:
    """The one line for a file that could not be written."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = getattr(error, "strerror", None) or lines[-1]
    return NotWritten(f"cannot write {file}: {reason}; what was there before is unchanged")


def check_can_be_written(path: str | os.PathLike, name: str) -> None:
    """OSError if a folder could not be made or written; nothing is tried. ``name`` is how the error calls it."""
    folder = absolute(path)
    there = next(known for known in (folder, *folder.parents) if known.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise OSError(f"{name} is not writable: {folder} ({there} is not a folder that can be written); choose another")


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
