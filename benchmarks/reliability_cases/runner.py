"""Runs cases: each in a folder of its own and in processes of its own, forked from one that has loaded the libraries.

A case goes through three processes. The first, which belongs to the case, lets a second one make the inputs, notes
what every file holds, lets a third one run the command, and looks at files and results then. So the command's time and
memory are its own, and whatever happens to it ends nothing else.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import json
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from reliability_cases.judge import Expected, Run, judge, last_line

CANARY = "canary"
PROBLEM = ".problem"
FREE_GB = 5  # address space that a command may take beyond what is loaded: a size bomb must not fill the machine
FORESEEN = (OSError, ValueError, TypeError, KeyError, ImportError)


def nothing() -> None:
    """The inputs of all cases are enough."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: of input.
        name: in a few words; with the kind it names the case.
        command: what follows ``istn-monai``; of ``way`` "bundle" what follows ``python -m monai.bundle``; of "Python"
            code; of "scenario" nothing.
        expected: what must become of it.
        make: makes the inputs, in the current folder, beside those that each case has.
        check: AssertionError unless the results are right.
        way: "command line", "bundle", "Python", or "scenario": ``check`` alone, which runs commands itself.
        replaces: patterns of files that the command may replace.
        file_limit: bytes that a file may have, as on a full disk.
    """

    kind: str
    name: str
    command: tuple[str, ...] = ()
    expected: Expected = field(default_factory=Expected)
    make: Callable[[], None] = nothing
    check: Callable[[], None] | None = None
    way: str = "command line"
    replaces: tuple[str, ...] = ()
    file_limit: int | None = None

    @property
    def folder(self) -> str:
        """A name for its folder."""
        plain = re.sub(r"\W+", "_", f"{self.kind}_{self.name}")[:60]
        return f"{plain}_{hashlib.sha256(f'{self.kind} {self.name}'.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Ending:
    """How a process ended, as :class:`Run` says it: ``work`` is in seconds of the processor."""

    code: int | None
    text: str
    seconds: float
    work: float
    peak_mb: float


def in_fork(call: Callable[[], None], timeout: float) -> Ending:
    """Runs a call in a process of its own. Its output comes through a pipe: a full disk must not shorten it."""
    begin = time.perf_counter()
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        in_child(call, sink)
    os.close(sink)
    os.set_blocking(source, False)
    pieces: list[bytes] = []
    done, status, usage = 0, 0, None
    while not done and time.perf_counter() - begin < timeout:
        done, status, usage = os.wait4(child, os.WNOHANG)
        read_into(pieces, source)
        time.sleep(0 if done else 0.01)
    seconds = time.perf_counter() - begin
    if not done:
        os.killpg(child, signal.SIGKILL)
        os.wait4(child, 0)
    read_into(pieces, source)
    os.close(source)
    text = b"".join(pieces).decode(errors="replace")
    if usage is None or not done:
        return Ending(None, text, seconds, 0.0, 0.0)
    work = usage.ru_utime + usage.ru_stime
    return Ending(os.waitstatus_to_exitcode(status), text, seconds, work, usage.ru_maxrss / 1024)


def read_into(pieces: list[bytes], source: int) -> None:
    """Takes what there is in a pipe."""
    try:
        while piece := os.read(source, 2**16):
            pieces.append(piece)
    except BlockingIOError:
        pass


def in_child(call: Callable[[], None], sink: int) -> None:
    """Runs a call with its output in a pipe, and ends the process as Python would."""
    code = 1
    try:
        os.setsid()
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdin = open(os.devnull, encoding="utf-8")
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", buffering=1, closefd=False) for number in (1, 2))
        torch.set_num_threads(1)  # makes torch's pool anew: several threads at once would find none (of torch 2.13)
        call()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int) and end.code is not None:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def limited(file_limit: int | None) -> None:
    """Bounds what this process may take."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + FREE_GB * 2**30,) * 2)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))


def run_command(command: Sequence[str]) -> None:
    """``istn-monai``, in this process."""
    from istn_monai.__main__ import main

    sys.argv = ["istn-monai", *command]
    main()


def run_bundle(command: Sequence[str]) -> None:
    """``python -m monai.bundle``, in this process."""
    sys.argv = ["monai.bundle", *command]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def run_python(command: Sequence[str]) -> None:
    """Code; the first foreseen error in the chain is its last line, as a user reads it below MONAI's.

    An assertion of the code is no error of what it calls, but a wrong result: it goes to a file.
    """
    try:
        exec(compile(command[0], "case", "exec"), {"__name__": "case"})
    except AssertionError as error:
        Path(PROBLEM).write_text(str(error) or "an assertion of the code fails", encoding="utf-8")
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, (*FORESEEN, NotImplementedError)):
            cause = cause.__cause__
        if cause is None:
            raise
        sys.exit(f"{type(cause).__name__}: {cause}")


WAYS = {"command line": run_command, "bundle": run_bundle, "Python": run_python, "scenario": lambda command: None}


def contents(folder: Path) -> dict[str, str]:
    """What each file below a folder holds, as a hash; of a link also where it leads, of a special file its kind."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_symlink():
            found[name + " (link)"] = os.readlink(file)
        if file.is_file():
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        elif not file.is_dir() and not file.is_symlink():
            found[name] = "special"
    return found


def unreadable(file: Path) -> bool:
    """Whether a result cannot be read to its end."""
    try:
        if file.name.endswith(".gz"):
            gzip.decompress(file.read_bytes())
        if file.name.endswith((".nii", ".nii.gz")):
            import SimpleITK as sitk

            sitk.ReadImage(str(file))
        elif file.suffix == ".csv":
            return not file.read_bytes().endswith(b"\n")
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".pt":
            import torch

            torch.load(file, weights_only=True)
        elif file.suffix in (".h5", ".tfm"):
            import SimpleITK as sitk

            sitk.ReadTransform(str(file))
    except Exception:
        return True
    return False


def visible(names: Iterable[str]) -> list[str]:
    """Names without hidden files, locks, and the plan that training makes of any data first."""
    return [name for name in names if not re.search(r"(^|/)\.|\.lock$|\.part$|\(link\)$|^canary$|_plan.json$", name)]


def problem_of(check: Callable[[], None] | None) -> str:
    """What a check finds wrong; empty if nothing."""
    try:
        if check is not None:
            check()
    except Exception as error:
        name = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return (f"{name}{error}".splitlines() or [type(error).__name__])[0][:300]
    return ""


def run_case(case: Case, base: Path, folder: Path, timeout: float, normal: Run) -> dict[str, Any]:
    """Runs one case in ``folder``, which begins as a copy of ``base``; its row of the result."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    os.chdir(folder)
    made = in_fork(case.make, timeout)
    if made.code != 0:
        raise RuntimeError(f"{case.kind}, {case.name}: its inputs could not be made: {made.text[-2000:]}")
    before = contents(folder)

    def call() -> None:
        limited(case.file_limit)
        WAYS[case.way](case.command)

    ending = in_fork(call, timeout)
    folder.with_name(folder.name + ".txt").write_text(ending.text)
    after = contents(folder)
    free = [name for name in before if any(fnmatch.fnmatch(name, pattern) for pattern in case.replaces)]
    new = visible(set(after) - set(before))
    run = Run(
        **vars(ending),
        written=new,
        changed=[name for name in before if after.get(name) != before[name] and name not in free],
        broken=[name for name in new if unreadable(folder / name)],
        executed=CANARY in after,
        problem=problem_of(case.check if ending.code == 0 or case.expected.partial else None),
    )
    outcome, why = judge(run, case.expected, normal)
    return {
        "kind": case.kind,
        "name": case.name,
        "way": case.way,
        "command": list(case.command),
        "expected": case.expected.ending,
        "outcome": outcome,
        "why": why,
        "last_line": last_line(run.text)[:400],
        "code": run.code,
        "seconds": round(run.seconds, 2),
        "work": round(run.work, 2),
        "peak_mb": round(run.peak_mb),
    }
