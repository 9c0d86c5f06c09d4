"""The judge of benchmarks/reliability.py, and its committed results."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import reliability
from reliability_cases.judge import GOOD, OUTCOMES, TRACEBACK, Expected, Run, judge, last_line
from reliability_cases.page import KINDS, page

NORMAL = Run(0, work=1.0, peak_mb=400.0)
BAD, ODD, EITHER = (Expected(ending, ("moving_image", "m.nii.gz")) for ending in ("fails", "works", "either"))
LINE = "istn-monai: moving_image: no such file: m.nii.gz\n"
FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "reliability.json"


@pytest.mark.parametrize(
    "run, expected, outcome",
    [
        (Run(1, LINE), BAD, "clear"),
        (Run(2, "page\n" + LINE), BAD, "clear"),
        (Run(1, LINE.upper()), EITHER, "clear"),
        (Run(1, LINE), ODD, "declined"),
        (Run(1, "istn-monai: division by zero\n"), BAD, "poor"),
        (Run(3, LINE), BAD, "poor"),
        (Run(1, f"{TRACEBACK}:\n{LINE}"), BAD, "traceback"),
        (Run(-11, LINE), BAD, "traceback"),
        (Run(0, "written"), BAD, "silent wrong"),
        (Run(0, "written", problem="off by 3"), ODD, "silent wrong"),
        (Run(0, "written", problem="off by 3"), EITHER, "silent wrong"),
        (Run(0, "written", problem="lost data: half a file"), ODD, "lost data"),
        (Run(0, "written"), ODD, "worked"),
        (Run(0, "written"), EITHER, "worked"),
        (Run(1, LINE, changed=["m.nii.gz"]), BAD, "lost data"),
        (Run(0, "written", broken=["out/warped.nii.gz"]), ODD, "lost data"),
        (Run(1, LINE, executed=True), BAD, "ran code"),
        (Run(1, LINE, peak_mb=1500.0), BAD, "memory"),
        (Run(1, LINE, peak_mb=1400.0), BAD, "clear"),
        (Run(0, "written", peak_mb=9000.0), ODD, "worked"),
        (Run(1, LINE, written=["out/warped.nii.gz"]), BAD, "late"),
        (Run(1, LINE, written=["out/pair_0000/warped.nii.gz"]), Expected("fails", BAD.names, partial=True), "clear"),
        (Run(1, LINE, problem="off by 3"), Expected("fails", BAD.names, partial=True), "silent wrong"),
        (Run(1, LINE, work=11.0), BAD, "late"),
        (Run(1, LINE, seconds=11.0), BAD, "clear"),
        (Run(None, LINE, seconds=120.0), BAD, "hang"),
    ],
)
def test_the_judge_knows_each_outcome(run, expected, outcome):
    found, why = judge(run, expected, NORMAL)
    assert found == outcome and (why or outcome in (*GOOD, "declined"))


def test_the_last_line_is_below_progress_bars_and_blank_lines():
    assert last_line("10%\r20%\nError: this\n\n  \n") == "Error: this"
    assert last_line("10%\r20%") == "20%"
    assert last_line("") == ""


def row(kind: str, outcome: str, **more) -> dict:
    return {"kind": kind, "name": "x", "expected": "fails", "outcome": outcome, "peak_mb": 300} | more


def test_the_page_counts_inputs_by_kind_and_names_what_is_wrong(tmp_path):
    rows = [row("images", "clear"), row("images", "worked"), row("labels", "traceback")]
    about = {"seconds": 600, "commit": "0" * 40, "date": "2026-01-01", "device": "a processor"}
    content = {"inputs": rows, "provenance": about, "normal": {"peak_mb": 400.0}}
    text = page(content, tmp_path)
    assert "| images | 2 | 1 | 1 |" in text and "| labels | 1 | 0 | 0 | 1 |" in text and "| **all** | 3 |" in text
    assert "- labels, x: traceback" in text and "Not measured yet" in text
    (tmp_path / "kills.json").write_text(json.dumps({"summary": {"kills": 100, "lost_results": 0}}), encoding="utf-8")
    assert "kills: 100; lost results: 0" in page(content, tmp_path)


@pytest.mark.skipif(not FILE.exists(), reason="python benchmarks/reliability.py has not been run")
def test_no_committed_result_is_wrong_lost_or_a_traceback():
    rows = json.loads(FILE.read_text(encoding="utf-8"))["inputs"]
    outcomes = Counter(row["outcome"] for row in rows)
    assert len(rows) >= 300 and outcomes.keys() <= OUTCOMES.keys()
    assert {
        name: outcomes[name] for name in ("silent wrong", "traceback", "memory", "lost data", "ran code", "hang")
    } == {name: 0 for name in ("silent wrong", "traceback", "memory", "lost data", "ran code", "hang")}


def test_cases_have_names_of_their_own_and_say_what_an_error_must_name():
    cases = reliability.all_cases()  # ValueError for two of one name
    kinds = Counter(case.kind for case in cases)
    assert len(cases) >= 300 and kinds.keys() == KINDS.keys() and min(kinds.values()) >= 5
    nameless = [case.name for case in cases if case.expected.ending == "fails" and not case.expected.names]
    assert not nameless
    assert len({case.folder for case in cases}) == len(cases)
