"""How a foreseen failure ends a program: one line that says what to do, and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

FORESEEN = (OSError, ValueError, ImportError)


def foreseen_cause(error: BaseException) -> BaseException | None:
    """The first foreseen error in a chain, from the outermost on; None if there is none.

    MONAI raises a ``RuntimeError`` for each config expression around an error; an error that explains another one, such
    as a file that cannot be read, comes before it.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, FORESEEN):
        found = found.__cause__
    return found


def exit_with_cause(error: Exception, program: str) -> NoReturn:
    """Ends a program after a foreseen failure; raises any other error again."""
    cause = foreseen_cause(error)
    if cause is None:
        raise error
    sys.exit(f"{program}: {cause}")


def runs_monai_bundle() -> bool:
    """Whether the program is ``python -m monai.bundle``, not a host, a notebook or a test."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name == "monai.bundle.__main__"


@contextmanager
def one_line() -> Iterator[None]:
    """Ends ``python -m monai.bundle`` in one line after a foreseen failure; elsewhere errors pass as they are.

    Otherwise the last line would be MONAI's, which names the config expression, and what was wrong with the user's file
    or key would stand somewhere above, among tracebacks.
    """
    try:
        yield
    except Exception as error:
        if runs_monai_bundle():
            exit_with_cause(error, "istn-monai")
        raise
