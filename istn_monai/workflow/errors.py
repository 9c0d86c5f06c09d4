"""How a foreseen failure ends a program: one line that says what to do."""

from __future__ import annotations

import sys
from typing import Any, NoReturn


def root_cause(error: BaseException) -> BaseException:
    """The error that all the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def exit_with_cause(error: Exception, program: str) -> NoReturn:
    """Ends a program after a foreseen failure: one line with the root cause, exit code 1; raises any other again."""
    cause = root_cause(error)  # MONAI raises further errors from those in a configuration
    if not isinstance(cause, (OSError, ValueError, ImportError)):
        raise error
    sys.exit(f"{program}: {cause}")


def explain_errors() -> None:
    """From now on, an uncaught error ends with its root cause in one line.

    MONAI raises further errors from those of a config's expressions; their last line names the expression, and what was
    wrong with the user's file or key stands somewhere above, among tracebacks.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        """Python's own report, then the cause."""
        sys.__excepthook__(kind, error, traceback)
        print(f"istn-monai: {root_cause(error)}", file=sys.stderr)

    if sys.excepthook is sys.__excepthook__:  # a debugger's or a notebook's own stays
        sys.excepthook = hook
