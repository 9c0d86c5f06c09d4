"""How a failure ends a program: one line that says what to do, and exit code 1."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from istn_monai.io.paths import NotWritten

FORESEEN = (OSError, ValueError, ImportError, MemoryError)
MEMORY = ("out of memory", "not enough memory", "can't allocate memory")  # in a RuntimeError of torch
DEBUG = "ISTN_DEBUG"
GO_ON = "nothing that was finished is lost; repeat the command to go on"


def foreseen_cause(error: BaseException) -> BaseException | None:
    """The first foreseen error in a chain, from the outermost on; None if there is none.

    MONAI raises a ``RuntimeError`` for each config expression around an error; an error that explains another one, such
    as a file that cannot be read, comes before it.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, FORESEEN):
        if isinstance(found, RuntimeError) and found.__cause__ is None and any(word in str(found) for word in MEMORY):
            line = str(found).strip().splitlines()[0]
            return MemoryError(f"{line}; give smaller images, or a smaller spatial_size or batch_size")
        found = found.__cause__
    return found


def said(error: BaseException) -> str:
    """What an error says; of one that a worker of a DataLoader sent, its own last line, without the traceback."""
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" not in text:
        return text
    return text.splitlines()[-1].split(": ", 1)[-1]


def exit_with_cause(error: Exception, program: str) -> NoReturn:
    """Ends a program after a foreseen failure; raises any other error again."""
    cause = foreseen_cause(error)
    if cause is None:
        raise error
    sys.exit(f"{program}: {said(cause)}")


def exit_in_one_line(error: Exception, program: str, debug: bool) -> NoReturn:
    """Ends a program after any failure; one that was not foreseen asks to be reported."""
    if debug:
        traceback.print_exception(error)
    cause = foreseen_cause(error)
    if isinstance(cause, NotWritten):  # HDF5 crashes where a process ends that could not write all it has
        print(f"{program}: {said(cause)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    if cause is not None:
        exit_with_cause(error, program)
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    how = "" if debug else f", with what --debug (or {DEBUG}=1) prints"
    sys.exit(f"{program}: unexpected {type(root).__name__}: {said(root).splitlines()[0]}; please report this{how}")


class Terminated(BaseException):
    """SIGTERM, which a cluster sends before it kills a program."""


@contextmanager
def terminable() -> Iterator[None]:
    """Makes :class:`Terminated` of SIGTERM, in the main thread of this process; its children just end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def terminate(number: int, frame: Any) -> None:
        """The handler."""
        if os.getpid() != process:
            os._exit(128 + number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ending_in_one_line(program: str, debug: bool = False) -> Iterator[None]:
    """Ends a program in one line after a failure (exit code 1), Ctrl-C (130) or SIGTERM (143).

    Args:
        program: how the line calls it.
        debug: prints the traceback before.
    """
    try:
        with terminable():
            yield
    except Exception as error:
        exit_in_one_line(error, program, debug)
    except (KeyboardInterrupt, Terminated) as stop:
        code = 130 if isinstance(stop, KeyboardInterrupt) else 143
        print(f"\n{program}: {'interrupted' if code == 130 else 'terminated'}; {GO_ON}", file=sys.stderr)
        sys.exit(code)


def runs_monai_bundle() -> bool:
    """Whether the program is ``python -m monai.bundle``, not a host, a notebook or a test."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


@contextmanager
def one_line() -> Iterator[None]:
    """Ends ``python -m monai.bundle`` in one line after a failure; elsewhere errors pass as they are.

    Otherwise the last line would be MONAI's, which names the config expression, and what was wrong with the user's file
    or key would stand somewhere above, among tracebacks. ``ISTN_DEBUG=1`` prints these too.
    """
    if not runs_monai_bundle():
        yield
        return
    debug = os.environ.get(DEBUG, "") not in ("", "0")
    handlers = [] if debug else logging.getLogger().handlers
    for handler in handlers:
        handler.addFilter(without_traceback)  # MONAI's StatsHandler logs one of what ends here
    with ending_in_one_line("istn-monai", debug):
        yield


def without_traceback(record: logging.LogRecord) -> bool:
    """Filter: takes the traceback from what is logged."""
    record.exc_info, record.exc_text = None, None
    return True
