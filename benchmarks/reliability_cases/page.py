"""docs/reliability.md, made of the results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reliability_cases.judge import GOOD, OUTCOMES

#: what was tried, for people, in the order of the table
KINDS = {
    "images": (
        "NaN, infinite, beyond float32, constant; empty, truncated anywhere, with flipped bits, of another "
        "format; 2-D to 6-D, complex, colored, of all number types, big-endian; singular, sheared or missing "
        "affines; headers that claim far more voxels than the file holds, gigabytes of zeros in a small gzip; "
        "folders, pipes, links to nothing"
    ),
    "labels": (
        "on another grid; fractions, probabilities, intensity images; values beyond 2^24, 2^31 and 2^63, negative "
        "ones; in registration, evaluation and `apply`"
    ),
    "landmarks": (
        "CSV with byte-order mark, semicolons, decimal commas, other column names, missing columns, two frames; "
        "`.fcsv` and `.mrk.json` that are not whole, or in meters"
    ),
    "names": (
        "files, folders and outputs with blanks, line breaks, quotes, `$`, `;&`, `#`, unicode; called `2024`, "
        "`1e3`, `None`, `True`, `[1,2]`"
    ),
    "datalists": "not JSON, without the split, mistyped keys, missing files, one bad pair among good ones",
    "checkpoints": (
        "foreign, truncated, with NaN, contradicting the command; pickles and descriptions that would run code"
    ),
    "options": (
        "every command with switches in all words, numbers out of range or that are none, mistyped names, options "
        "of another command, devices that are not there"
    ),
    "bundle": ("the same through `python -m monai.bundle run training`, `evaluation`, `inference` and `refinement`"),
    "python": "the same through `RegisterISTNd`, `Refiner` and the parts; pickled, copied, in a `DataLoader`",
    "outputs": (
        "results in the place of inputs, through `..`, links and hard links; foreign files of the same names; "
        "repeated commands; full disks, folders that cannot be written"
    ),
    "transforms": "files that hold none, truncated, 2-D for 3-D, with NaN, singular or folding; all kinds of ITK",
    "folders": (
        "data sets with missing, mixed or broken files; damaged caches; trainings that go on with other settings "
        "or from a damaged checkpoint"
    ),
    "interruptions": "SIGKILL, Ctrl-C and SIGTERM in registration, cohort and training; two commands at once",
}

DECLINED = "Not as they must be (declined: an odd input that would have been valid ended with one clear line):"


def cell(counts: Mapping[str, int], names: Sequence[str]) -> str:
    """A number of the table; nothing for 0."""
    number = sum(counts[name] for name in names)
    return str(number) if number else ""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Inputs and outcomes by kind."""
    bad = [name for name in OUTCOMES if name not in GOOD]
    seen = [name for name in bad if any(row["outcome"] == name for row in rows)]
    lines = [
        f"| kind | inputs | one clear line | worked, result right | {' | '.join(seen) or 'anything else'} |",
        "|---|---|---|---|" + "---|" * max(len(seen), 1),
    ]
    groups = {kind: [row for row in rows if row["kind"] == kind] for kind in KINDS}
    for kind, members in {**groups, "**all**": list(rows)}.items():
        counts = Counter(row["outcome"] for row in members)
        numbers = [
            str(len(members)),
            str(counts["clear"]),
            str(counts["worked"]),
            *(cell(counts, [name]) for name in seen),
        ]
        lines.append(f"| {' | '.join([kind, *numbers, *([] if seen else ['0'])])} |")
    return "\n".join(lines)


def tried(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each kind is."""
    return "\n".join(
        f"- **{kind}**: {text}." for kind, text in KINDS.items() if any(row["kind"] == kind for row in rows)
    )


def failures(rows: Sequence[Mapping[str, Any]]) -> str:
    """The inputs that did not end as they must."""
    lines = [f"- {row['kind']}, {row['name']}: {row['outcome']}" for row in rows if row["outcome"] not in GOOD]
    return "\n".join(["", DECLINED, "", *lines, ""]) if lines else ""


def numbers(content: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All numbers of a summary, in words."""
    found = []
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            found += numbers(value, f"{name}, ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(f"{name}: {value:g}")
    return found


def measured(results: Path) -> str:
    """Kills at random and requests, of the benchmarks that measure them, as far as there are results."""
    lines = []
    for file, what in {
        "kills.json": "Random `kill -9` in cohorts, `apply` and publishing (`benchmarks/results/kills.json`)",
        "kills_training.json": "Random `kill -9` in trainings (`benchmarks/results/kills_training.json`)",
        "monai_label_requests.json": "Hostile requests to the MONAI Label app (`tests/integration/monai_label.py`)",
    }.items():
        path = results / file
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            lines.append(f"- {what}: {'; '.join(numbers(content.get('summary', {}))) or 'see the file'}.")
    return "\n".join(lines) or "Not measured yet."


def page(content: Mapping[str, Any], results: Path) -> str:
    """The document.

    Args:
        content: of reliability.json.
        results: folder with the results of other benchmarks.
    """
    rows, about = content["inputs"], content["provenance"]
    bad = sum(row["expected"] == "fails" for row in rows)
    longest = max((row["peak_mb"] for row in rows if row["outcome"] == "clear"), default=0)
    usual = round(content["normal"]["peak_mb"])
    minutes, place = about["seconds"] / 60, f"{about['commit'][:12]}, {about['date']}, {about['device']}"
    return f"""# Reliability

What becomes of inputs that are wrong, odd, or in the way: {len(rows)} of them, {bad} bad and {len(rows) - bad} odd ones
that may or must work. Each goes through the command line, the bundle or Python in a folder and in processes of its own.
A script makes the inputs and judges the outcome: the exit code, the last line, all files before and after, memory, and,
where there is a result, whether it is ITK's.

A bad input must end with exit code 1 (2 for usage) and one line that names the option or the file. An odd one must
give the right result, or end so. Nothing else is as it must be: exit code 0 with a wrong result, a traceback, a file
that changed or cannot be read, code that ran from an input, more than 1 GB beyond a normal run before the error, an
error after the work.

{table(rows)}
{failures(rows)}
The command that needed most memory before it ended with its line took {longest} MB, a normal registration {usual} MB.

## What was tried
{tried(rows)}

## Kills, full disks, requests
{measured(results)}

Results are written beside their place and moved there when they are whole; `report.json` comes last. So a command that
was killed is repeated, and does what is left.

## Again
`python benchmarks/reliability.py` makes this page in {minutes:.0f} minutes on two cores; `--only images` runs one kind.
`benchmarks/results/reliability.json` has command, outcome, last line, seconds and memory of each input, at commit
{place}.
"""
