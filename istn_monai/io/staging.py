"""A folder of results that appear together: whole, or not at all, whatever ends the process that writes them.

Convention:
    Files are written to a hidden folder in it. Once all are whole, a plan of the moves is written there: from then on
    the new result counts, and whoever comes next finishes the moves. The mark, a JSON that says what the files were
    made of, goes first and comes last: where it is, all is whole. So a kill leaves the old result, or the new one, or
    what the next command finishes or removes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from istn_monai.io.locks import LOCK, locked_folder
from istn_monai.io.paths import absolute, check_output_dir, not_written
from istn_monai.io.whole import check_whole, sync

PLAN = "moves.plan"
FILES = "files"  # in the mark: the files that belong to it


class ResultFolder:
    """The results of one command in a folder.

    Args:
        folder: where they go; it may hold other files, too.
        names: of all files that the command may write.
        mark: the one among them that comes last, a JSON object.
        keys: that the mark has: another file of its name has not.
        others: names of files that are never written, but belong to the same mark of another command: they go with it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        names: Sequence[str],
        mark: str,
        keys: Sequence[str],
        others: Sequence[str] = (),
    ) -> None:
        self.folder = absolute(folder)
        self.names = tuple(names)
        self.known = {*names, *others}
        self.mark = self.folder / mark
        self.keys = set(keys)
        self.staging = self.folder / f".{mark.partition('.')[0]}.part"
        self.held = 0
        self.exit = ExitStack()

    @property
    def files(self) -> list[Path]:
        """All files that may be written."""
        return [self.folder / name for name in self.names]

    def content(self) -> dict[str, Any] | None:
        """What the mark says; None without one.

        Raises:
            FileExistsError: if a file of its name is not ours.
        """
        if not os.path.lexists(self.mark):
            return None
        try:
            found = json.loads(self.mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not self.keys <= set(found):
            raise FileExistsError(
                f"{self.mark} is no result of this command and is left alone: choose another output_dir"
            )
        return found

    def own(self) -> set[str]:
        """Names of the files that belong to the mark; of one that does not say, all that a command may write."""
        found = self.content()
        return set() if found is None else {self.mark.name} | (set(found.get(FILES, self.names)) & self.known)

    def is_whole(self) -> bool:
        """Whether the mark and all files that belong to it are there."""
        found = self.content()
        return found is not None and all((self.folder / name).is_file() for name in found.get(FILES, []))

    def check_free(self) -> None:
        """FileExistsError if a file that is not ours has the name of a result."""
        if self.planned() is not None:
            return  # what is there is ours: an interrupted move
        own = self.own()
        foreign = [path for path in self.files if path.name not in own and os.path.lexists(path)]
        if foreign:
            raise FileExistsError(
                f"{foreign[0]} is there without a {self.mark.name} that names it and is left alone: "
                "choose another output_dir, or move it away"
            )

    @contextmanager
    def locked(self, wait: bool = True) -> Iterator[None]:
        """Holds the folder against other processes, and finishes what one that was killed has begun.

        Raises:
            OSError: if the folder cannot be written; ``InUse`` if another process writes to it, without ``wait``.
        """
        if self.held == 0:
            check_output_dir(self.folder)
            self.exit.enter_context(locked_folder(self.staging, wait))
        self.held += 1
        try:
            if self.held == 1:
                self.finish()
            yield
        finally:
            self.held -= 1
            if self.held == 0:
                self.exit.close()

    @contextmanager
    def staged(self) -> Iterator[None]:
        """While it lasts, :meth:`writing` takes files; at the end they take their places, and those of before go.

        Raises:
            OSError: naming what could not be written; the earlier result is whole then.
        """
        with self.locked():
            self.check_free()
            try:
                yield
                self.commit()
            finally:
                if self.planned() is None:
                    self.clear()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Where to write one of the files, which is checked then.

        Raises:
            OSError: naming the file, if it cannot be written to its end.
        """
        part = self.staging / name
        try:
            yield part
            check_whole(part)
            sync(part)
        except (OSError, RuntimeError) as error:  # RuntimeError is what ITK makes of a full disk
            raise not_written(self.folder / name, error) from error

    @property
    def written(self) -> list[str]:
        """Names of the files that were written and wait for their places."""
        return [name for name in self.names if (self.staging / name).exists()]

    def commit(self) -> None:
        """Notes the moves, and makes them."""
        new = self.written
        plan = {"new": new, "old": sorted(self.own() - set(new))}
        part = self.staging / f"{PLAN}.part"
        try:
            part.write_text(json.dumps(plan), encoding="utf-8")
            sync(part)
            os.replace(part, self.staging / PLAN)
            sync(self.staging)
        except OSError as error:
            raise not_written(self.mark, error) from error
        self.finish()

    def planned(self) -> dict[str, list[str]] | None:
        """The moves that were noted; None if there are none to make."""
        try:
            plan = json.loads((self.staging / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return {key: [name for name in plan[key] if name in self.known] for key in ("new", "old")}

    def finish(self) -> None:
        """Makes the moves that were noted and not made; removes what was never whole."""
        plan = self.planned()
        if plan is not None and (self.staging / self.mark.name).exists():
            self.mark.unlink(missing_ok=True)
            for name in plan["old"]:
                (self.folder / name).unlink(missing_ok=True)
            for name in [*(n for n in plan["new"] if n != self.mark.name), self.mark.name]:
                if (self.staging / name).exists():
                    os.replace(self.staging / name, self.folder / name)
            sync(self.folder)
        self.clear()

    def remove(self) -> None:
        """Removes the result, the mark first, and the folder if it holds nothing else."""
        with self.locked():
            own = self.own()
            self.mark.unlink(missing_ok=True)
            for name in own:
                (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def clear(self) -> None:
        """Removes all but the lock from the hidden folder."""
        for path in self.staging.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)
