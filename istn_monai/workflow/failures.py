"""Pairs that failed while others went on: why, in one line, and the list of them on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from istn_monai.io.paths import replacing
from istn_monai.workflow.errors import foreseen_cause

FAILURES = "failures.json"
MOST = 3  # failures that an error names


def reason_of(error: Exception) -> str:
    """One line for a failure; one that was not foreseen says its kind, for its text may be a bare key."""
    cause = foreseen_cause(error)
    text = " ".join(str(cause or error).split())
    return text if cause is not None and text else f"{type(error).__name__}: {text}"


def listed_failures(failures: Mapping[str, str]) -> str:
    """The first failures in one line."""
    more = f" and {len(failures) - MOST} more" if len(failures) > MOST else ""
    return "; ".join(f"{name}: {reason}" for name, reason in list(failures.items())[:MOST]) + more


def read_failures(file: Path) -> dict[str, str]:
    """The failures in a file; FileExistsError if it is another one of that name."""
    if not os.path.lexists(file):
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["failed_pairs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{file} is no list of this command and is left alone: choose another folder") from error


def write_failures(failures: Mapping[str, str], file: Path) -> None:
    """Replaces the list of failures; without any, removes it."""
    if not failures:
        file.unlink(missing_ok=True)
        return
    with replacing(file) as part:
        part.write_text(json.dumps({"failed_pairs": dict(sorted(failures.items()))}, indent=1), encoding="utf-8")
