"""Commands that are ended in the middle: results are whole or absent, and the same command finishes the work.

Each is a process of its own, as a user's. What is measured at length, hundreds of kills, has benchmarks of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import ROOT

from reliability_cases.files import LABELED, PAIR, TINY, F, M, both, datalist, registered, train, training_pairs
from reliability_cases.judge import TRACEBACK, Expected, last_line
from reliability_cases.runner import Case, unreadable, visible

KIND = "interruptions"
PATIENCE = 180.0
REGISTER = ("register", M, F, "--output_dir", "out", "--refine_steps", "20000", "--device", "cpu")
COHORT = ("register", "pairs.json", "--output_dir", "out", "--model", TINY, "--refine_steps", "5", "--device", "cpu")
TRAIN = train("--max_epochs=200", "--val_interval=5")


def begun(command: tuple[str, ...], log: str = ".log") -> subprocess.Popen:
    """Starts ``istn-monai`` as a process."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
    Path(".begun").touch()
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "istn_monai", *command], stdout=file, stderr=file, env=environment
        )


def until(process: subprocess.Popen, there: Callable[[], object]) -> None:
    """Waits until something is there, or the process ends."""
    begin = time.monotonic()
    while not there() and process.poll() is None:
        assert time.monotonic() - begin < PATIENCE, "hang: nothing happens"
        time.sleep(0.02)


def ended(process: subprocess.Popen, number: int) -> tuple[int, str]:
    """Sends a signal; exit code and output."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise AssertionError("hang: it does not end after the signal") from error
    return code, Path(".log").read_text(encoding="utf-8", errors="replace")


def all_whole() -> None:
    """AssertionError if a file with a final name cannot be read."""
    names = visible(str(file) for file in Path(".").rglob("*") if file.is_file())
    broken = [name for name in names if unreadable(Path(name))]
    assert not broken, f"lost data: {broken} cannot be read"


def finished(command: tuple[str, ...]) -> None:
    """Runs a command to its end, which must be good."""
    process = begun(command, ".again")
    code = process.wait(600)
    text = Path(".again").read_text(encoding="utf-8", errors="replace")
    assert code == 0, f"poor: the command does not finish what was interrupted: {last_line(text)}"


def said(code: int, text: str) -> None:
    """AssertionError unless an interruption ended in a line that says so."""
    assert TRACEBACK not in text, f"traceback: {last_line(text)}"
    assert code not in (0, None), "silent wrong: exit code 0 after an interruption"
    assert last_line(text).startswith("istn-monai"), f"poor: the last line is {last_line(text)[:100]!r}"


def interrupted(
    command: tuple[str, ...],
    number: int,
    there: Callable[[], object],
    again: tuple[str, ...],
    check: Callable[[], None],
) -> Callable[[], None]:
    """Begins, waits, sends a signal, looks, and finishes."""

    def scenario() -> None:
        process = begun(command)
        until(process, there)
        code, text = ended(process, number)
        all_whole()
        if number != signal.SIGKILL:
            said(code, text)
        finished(again)
        all_whole()
        check()

    return scenario


def any_file(pattern: str, count: int = 1) -> Callable[[], bool]:
    """Whether so many files are there."""
    return lambda: len(list(Path(".").glob(pattern))) >= count


def at_work() -> bool:
    """Whether a registration has begun: its folder is there, or it has had the time to load what it needs."""
    return Path("out").is_dir() or time.time() - Path(".begun").stat().st_mtime > 30


def cohort_goes_on() -> None:
    """A cohort is killed after two pairs, and goes on: these two are not computed again."""
    process = begun(COHORT)
    until(process, any_file("out/pair_*/report.json", 2))
    ended(process, signal.SIGKILL)
    all_whole()
    before = {file: file.stat().st_mtime_ns for file in Path("out").glob("pair_*/report.json")}
    finished(COHORT)
    all_whole()
    again = [str(file) for file, when in before.items() if file.stat().st_mtime_ns != when]
    assert not again, f"lost data: finished pairs were computed again: {again}"
    registered("out/pair_0005")()


def two_at_once(command: tuple[str, ...], check: Callable[[], None]) -> Callable[[], None]:
    """The same command twice at the same time: one does the work, the other waits, or says so."""

    def scenario() -> None:
        one, two = begun(command), begun(command, ".log2")
        codes = [process.wait(600) for process in (one, two)]
        texts = [Path(name).read_text(encoding="utf-8", errors="replace") for name in (".log", ".log2")]
        assert 0 in codes, f"poor: both fail: {[last_line(text) for text in texts]}"
        for text in texts:
            assert TRACEBACK not in text, f"traceback: {last_line(text)}"
        all_whole()
        check()

    return scenario


def nothing_more() -> None:
    """All that is to be looked at was looked at."""


def cases() -> Iterator[Case]:
    """All of them."""

    def case(name: str, scenario: Callable[[], None], make: Callable[[], None]) -> Case:
        return Case(KIND, name, (), Expected("works"), make, scenario, way="scenario")

    pairs = both(datalist(*[PAIR] * 6), lambda: None)
    labeled = both(datalist(*[LABELED] * 6), training_pairs())

    def plain():
        return None

    quick = ("register", M, F, "--output_dir", "out", "--refine_steps", "2", "--device", "cpu")
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        name = signal.Signals(number).name
        yield case(
            f"register, {name} while it refines",
            interrupted(REGISTER, number, at_work, quick, registered()),
            plain,
        )
        yield case(
            f"train, {name}",
            interrupted(
                TRAIN, number, any_file("run/models/last.pt"), train("--max_epochs=6", "--val_interval=5"), nothing_more
            ),
            labeled,
        )
        yield case(
            f"cohort, {name}",
            interrupted(COHORT, number, any_file("out/pair_*/report.json"), COHORT, registered("out/pair_0005")),
            pairs,
        )
    written = interrupted(quick, signal.SIGKILL, any_file("out/*warped*"), quick, registered())
    yield case("register, SIGKILL while it writes", written, plain)
    yield case("cohort, SIGKILL after two pairs", cohort_goes_on, pairs)
    yield case("cohort, two at once", two_at_once(COHORT, registered("out/pair_0005")), pairs)
    yield case("register, two at once", two_at_once(quick, registered()), plain)
    yield case("train, two at once", two_at_once(train("--max_epochs=3"), nothing_more), labeled)
