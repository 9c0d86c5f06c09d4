"""JSON objects that users write by hand: datalists, settings, landmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_json(file: Path, what: str, expected: str) -> dict[str, Any]:
    """A JSON object, or a ValueError that names the file, what it was taken for, and what it must be."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # editors of Windows begin with a mark
        content = json.loads(text, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{what} {file} must be {expected}, got {type(content).__name__}")
    return content


def unrepeated(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError if a key is there twice, of which Python would take the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there more than once")
    return content
