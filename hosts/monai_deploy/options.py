"""Options of the application, from the command line or from environment variables.

The SDK's parser raises an error for what it does not know, and a packaged application is told all it needs by its
environment; so the options are taken off the command line first, and each has a variable for its default.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: names of the selections in the SDK's rules
SELECTIONS = {"fixed_image": "fixed", "moving_image": "moving"}
SEGMENT_FIELDS = ("label", "type", "category")


@dataclass(frozen=True)
class Options:
    """What the application can be told beyond the SDK's own arguments.

    Attributes:
        refine_steps: of test-time refinement; 0 takes the network's one-pass prediction; None is as the weights say.
        atlas: moving image where the input has none.
        atlas_label: its label map.
        series_rules: the SDK's selection rules as JSON, by the key of the image that they choose.
        segments: label, type and category of a label's values in the DICOM SEG.
        settings: of the bundle, e.g. ``initial_alignment``.
    """

    refine_steps: int | None = None
    atlas: Path | None = None
    atlas_label: Path | None = None
    series_rules: dict[str, str] = field(default_factory=dict)
    segments: dict[int, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object from a file or, if it begins with a brace, from the text itself."""
    try:
        content = json.loads(
            text if text.lstrip().startswith("{") else Path(text).expanduser().read_text(encoding="utf-8")
        )
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"a JSON file or object is expected: {error}") from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"a JSON object is expected, {text} holds a {type(content).__name__}")
    return content


def steps(text: str) -> int:
    """A number of steps."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number of at least 0 is expected, got {text!r}")
    return int(text)


def path(text: str) -> Path:
    """A path with its ~ expanded."""
    return Path(text).expanduser()


def by_value(segments: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What is said of each label value."""
    for value, given in segments.items():
        if not value.isdigit() or not isinstance(given, dict) or set(given) - set(SEGMENT_FIELDS):
            raise ValueError(
                f"segments: objects with some of {SEGMENT_FIELDS} are expected by label value, got {value!r}: {given!r}"
            )
    return {int(value): given for value, given in segments.items()}


def rules_by_key(rules: dict[str, Any]) -> dict[str, str]:
    """Rules for each image, from rules whose selections are named "fixed" and "moving"."""
    chosen = {}
    for key, name in SELECTIONS.items():
        selections = [selection for selection in rules.get("selections", []) if selection.get("name") == name]
        if selections:
            chosen[key] = json.dumps({"selections": selections})
    if rules and not chosen:
        raise ValueError(f'series_rules: "selections" named {tuple(SELECTIONS.values())} are expected, got {rules}')
    return chosen


def make_parser() -> argparse.ArgumentParser:
    """The parser of the options; its defaults are the environment's."""
    # without abbreviations, so that what is the SDK's stays the SDK's
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    arguments = [
        ("refine_steps", steps, None, "of a refinement; by default as the weights say; 0 is the network's prediction"),
        ("atlas", path, None, "moving image, where the input folder has none"),
        ("atlas_label", path, None, "its label map"),
        ("series_rules", json_object, "{}", "the SDK's series selection rules, with selections named fixed and moving"),
        ("segments", json_object, "{}", "what the label's values are, for the DICOM SEG"),
        ("settings", json_object, "{}", """of the bundle, e.g. '{"initial_alignment": "moments"}'"""),
    ]
    for name, kind, default, meaning in arguments:
        variable = f"ISTN_{name.upper()}"
        value = os.environ.get(variable) or default
        parser.add_argument(f"--{name}", type=kind, default=value, help=f"{meaning} (variable: {variable})")
    return parser


def parse_options(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """The options in a command line, and what is left of it, which is the SDK's."""
    found, rest = make_parser().parse_known_args(list(argv))
    values = vars(found)
    values["series_rules"] = rules_by_key(values["series_rules"])
    values["segments"] = by_value(values["segments"])
    return Options(**values), rest
