"""Registration of many pairs: what is finished is skipped, what fails is noted, and the rest goes on.

Several commands, and the processes of ``torchrun``, may work on one cohort: a pair is locked while it is registered,
and those that are locked come last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from istn_monai.io.datalist import Item
from istn_monai.io.locks import InUse, locked_folder
from istn_monai.io.paths import absolute, check_apart, check_output_dir
from istn_monai.qa.cohort import QA_COHORT, Entry, check_page, entry_of, pictures_of, write_cohort
from istn_monai.workflow.console import counted
from istn_monai.workflow.distributed import gathered, rank, world_size
from istn_monai.workflow.failures import FAILURES, read_failures, reason_of, write_failures
from istn_monai.workflow.result_folders import pair_folder
from istn_monai.workflow.results import SavePairHandler

PAIR = "pair_"
IS_PAIR = re.compile(rf"{PAIR}\d{{4,}}")  # and no copy that somebody made of one


class Cohort:
    """The pairs of a datalist and the folder of their results.

    Args:
        folder: of the results, with ``pair_0000``, ``pair_0001`` ..., ``qa.html`` and, where pairs failed,
            ``failures.json``.
        pairs: files by their keys.
        qa: whether pairs have QA pages.
        overwrite: all pairs are registered again, and those of an earlier datalist with more pairs are removed.
    """

    def __init__(self, folder: str | os.PathLike, pairs: Sequence[Item], qa: bool, overwrite: bool = False) -> None:
        self.folder = absolute(folder)
        self.pairs = pairs
        self.qa = qa
        self.overwrite = overwrite
        self.failures: dict[str, str] = {}
        self.done: set[int] = set()

    def name(self, number: int) -> str:
        """The name of a pair, and of its folder."""
        return f"{PAIR}{number:04d}"

    def check(self, saver_of: Callable[[Path], SavePairHandler], read: Mapping[str, str | os.PathLike]) -> None:
        """Refuses before any work what would go wrong later: results in the place of inputs or of other results.

        Args:
            saver_of: what writes the results of a pair to a folder.
            read: files that are read for all pairs, by what errors call them.

        Raises:
            FileExistsError: naming the first such file, and how many pairs are concerned.
        """
        folders = [self.folder / self.name(number) for number in range(len(self.pairs))]
        outputs = [file for folder in folders for file in saver_of(folder).results.files]
        outputs += [self.folder / name for name in (QA_COHORT, FAILURES)]
        files = [(f"{folder.name}: {key}", file) for folder, pair in zip(folders, self.pairs, strict=True)
                 for key, file in pair.items()]  # fmt: skip
        check_apart(outputs, [*read.items(), *files])
        check_page(self.folder / QA_COHORT)
        read_failures(self.folder / FAILURES)
        others = [str(error) for error in self.conflicts(saver_of)]
        if others:
            more = f" ({len(others)} pairs of {len(self.pairs)} are so)" if len(others) > 1 else ""
            raise FileExistsError(others[0] + more)
        check_output_dir(self.folder)
        if rank() == 0:
            self.remove_others()

    def remove_others(self) -> None:
        """Removes results and failures of an earlier datalist with more pairs."""
        for folder in self.others():
            pair_folder(folder).remove()
        known = read_failures(self.folder / FAILURES)
        own = {self.name(number) for number in range(len(self.pairs))}
        if not own.issuperset(known):
            write_failures({name: why for name, why in known.items() if name in own}, self.folder / FAILURES)

    def conflicts(self, saver_of: Callable[[Path], SavePairHandler]) -> Iterator[FileExistsError]:
        """The pairs in whose folders there is another result, and earlier pairs that this cohort does not have."""
        for number, pair in enumerate(self.pairs):
            if not all(Path(file).exists() for file in pair.values()):
                continue  # this pair will fail, and the others go on
            try:
                if saver_of(self.folder / self.name(number)).finished(pair):
                    self.done.add(number)
            except FileExistsError as error:
                yield error
            except OSError:  # an input that cannot be read
                continue
        for folder in [] if self.overwrite else self.others():
            yield FileExistsError(
                f"{folder} is a result of an earlier datalist with more pairs: add --overwrite to remove it, or choose "
                "another output_dir"
            )

    def others(self) -> list[Path]:
        """Folders of earlier pairs beyond those of this cohort."""
        own = {self.name(number) for number in range(len(self.pairs))}
        found = [folder for folder in sorted(self.folder.glob(f"{PAIR}*")) if IS_PAIR.fullmatch(folder.name)]
        return [folder for folder in found if folder.name not in own and pair_folder(folder).mark.exists()]

    def run(self, register: Callable[[int, bool], bool]) -> list[str]:
        """Registers the pairs, or those of this process; goes on after any that fails.

        Args:
            register: registers the pair of a number, and tells whether there was anything to do; raises ``InUse`` if
                another process has it and the second argument, whether to wait, is False.

        Returns:
            A line for each pair that failed, in each process.
        """
        own = range(rank(), len(self.pairs), world_size())
        skipped = 0
        later: list[int] = []
        for wait in (False, True):
            numbers = later if wait else list(own)
            for number in counted(numbers, "registering"):
                try:
                    skipped += number in self.done or not register(number, wait)
                    self.note(self.name(number), None)
                except InUse:
                    later.append(number)
                except Exception as error:  # whatever it is, the other pairs are not concerned
                    self.note(self.name(number), reason_of(error))
        return self.finish(skipped)

    def note(self, name: str, reason: str | None) -> None:
        """Keeps why a pair failed, also on disk; None if it did not."""
        if reason is not None:
            self.failures[name] = reason
            tqdm.write(f"{name} failed: {reason}")
        file = self.folder / FAILURES
        if reason is None and not file.exists():
            return
        try:
            with locked_folder(self.folder / ".failures.part"):
                known = read_failures(file)
                changed = {key: value for key, value in known.items() if key != name}
                changed |= {} if reason is None else {name: reason}
                if changed != known:
                    write_failures(changed, file)
        except OSError as error:  # a full disk: the end of the command says them
            tqdm.write(f"{error}")

    def finish(self, skipped: int) -> list[str]:
        """Writes the page of all pairs, says what was skipped; a line for each failed pair of all processes."""
        failures = dict(sorted(item for own in gathered(list(self.failures.items())) for item in own))
        skipped = sum(gathered(skipped))
        if rank() == 0:
            if skipped:
                print(f"{skipped} of {len(self.pairs)} pairs were registered before and are as they were")
            entries = list(self.entries(failures)) if self.qa else []
            if entries:
                write_cohort(entries, self.folder / QA_COHORT)
            else:
                (self.folder / QA_COHORT).unlink(missing_ok=True)  # of an earlier run with QA
        return [f"{name}: {reason}" for name, reason in failures.items()]

    def entries(self, failures: Mapping[str, str]) -> Iterator[Entry]:
        """What the page shows of each pair; pictures that it has already are taken from it."""
        known = pictures_of(self.folder / QA_COHORT)
        for number in range(len(self.pairs)):
            name = self.name(number)
            if name in failures:
                yield Entry(name, "", None, error=failures[name])
            elif (entry := entry_of(self.folder / name, known)) is not None:
                yield entry
