"""What became of an input, from what its command printed, wrote, changed and took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LIMIT_MB = 1024.0  # that a failing command may take beyond a normal one
LATE = 10.0  # times the processor's seconds of a normal command, after which an error comes late
TRACEBACK = "Traceback (most recent call last)"
#: what may become of an input; the first two are as they must be
OUTCOMES: Mapping[str, str] = {
    "clear": "one line names the option or the file, exit code 1 or 2",
    "worked": "a valid oddity gave the right result",
    "declined": "a valid oddity ended with one clear line",
    "poor": "an error that names neither option nor file",
    "traceback": "a traceback, or the process died",
    "silent wrong": "exit code 0, and the result is wrong",
    "lost data": "a file that was there changed, or a final name holds a file that cannot be read",
    "ran code": "something in an input was executed",
    "memory": "an error after more than 1 GB beyond a normal run",
    "late": "an error after the work",
    "hang": "no end",
}
GOOD = ("clear", "worked")


@dataclass(frozen=True)
class Expected:
    """What must become of an input.

    Attributes:
        ending: "fails" for a bad input, "works" for a valid oddity, "either" where both are right, if said and done
            well.
        names: the last line of an error must have one of these words.
        partial: results beside an error are right, those of the other pairs.
    """

    ending: str = "fails"
    names: tuple[str, ...] = ()
    partial: bool = False


@dataclass(frozen=True)
class Run:
    """What a command did.

    Attributes:
        code: exit code, negative for a signal; None if it was ended after too long a time.
        text: all that it printed.
        seconds: that it took.
        work: seconds of the processor, which do not depend on what else the machine does.
        peak_mb: its resident memory at most.
        written: new files that are not hidden.
        changed: files that were there, and are not any more, or not as they were.
        broken: new files that cannot be read.
        executed: whether something in an input ran.
        problem: what is wrong with its results; empty if nothing is, or nothing was looked at. It may begin with an
            outcome and a colon.
    """

    code: int | None
    text: str = ""
    seconds: float = 0.0
    work: float = 0.0
    peak_mb: float = 0.0
    written: Sequence[str] = field(default_factory=tuple)
    changed: Sequence[str] = field(default_factory=tuple)
    broken: Sequence[str] = field(default_factory=tuple)
    executed: bool = False
    problem: str = ""


def last_line(text: str) -> str:
    """The last line that is not empty; a progress bar's carriage return ends a line, too."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def judge(run: Run, expected: Expected, normal: Run) -> tuple[str, str]:
    """One of ``OUTCOMES``, and why.

    Args:
        run: what the command did.
        expected: what must become of the input.
        normal: what a command with good inputs takes.
    """
    if run.code is None:
        return "hang", f"ended after {run.seconds:.0f} s"
    if run.executed:
        return "ran code", "the canary exists"
    if run.changed or run.broken:
        changed = [f"{name} changed" for name in run.changed]
        return "lost data", ", ".join([*changed, *(f"{name} cannot be read" for name in run.broken)])
    if run.code == 0:
        return judge_success(run, expected)
    return judge_failure(run, expected, normal)


def judge_success(run: Run, expected: Expected) -> tuple[str, str]:
    """Of exit code 0."""
    if expected.ending == "fails":
        return "silent wrong", run.problem or "exit code 0"
    return judge_problem(run.problem) if run.problem else ("worked", "")


def judge_problem(problem: str) -> tuple[str, str]:
    """Of a wrong result: the outcome that it names, or a silent one."""
    outcome, colon, why = problem.partition(": ")
    return (outcome, why) if colon and outcome in OUTCOMES else ("silent wrong", problem)


def judge_failure(run: Run, expected: Expected, normal: Run) -> tuple[str, str]:
    """Of any other exit code."""
    if run.peak_mb > normal.peak_mb + LIMIT_MB:
        return "memory", f"{run.peak_mb:.0f} MB, a normal run {normal.peak_mb:.0f} MB"
    if run.code is not None and run.code < 0:
        return "traceback", f"signal {-run.code}"
    if TRACEBACK in run.text:
        return "traceback", last_line(run.text)
    if run.written and not expected.partial:
        return "late", f"wrote {', '.join(sorted(run.written)[:3])}"
    if run.work > LATE * max(normal.work, 1.0):
        return "late", f"after {run.work:.0f} s of the processor"
    line = last_line(run.text).lower()
    if run.code not in (1, 2):
        return "poor", f"exit code {run.code}"
    if not any(name.lower() in line for name in expected.names):
        return "poor", f"names none of {', '.join(expected.names)}"
    if expected.ending == "works":
        return "declined", ""
    return judge_problem(run.problem) if run.problem else ("clear", "")
