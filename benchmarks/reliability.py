"""Bad and odd inputs through the command line, the bundle and Python: what becomes of each.

    python benchmarks/reliability.py [--only KIND[,KIND]] [--case WORDS] [--jobs N] [--work FOLDER] [--again]

Makes every input itself, the same each time, runs it in a folder and in processes of its own, and judges the outcome,
as ``reliability_cases/judge.py`` says. Writes ``results/reliability.json`` and, from it, the page ``reliability.md`` of
the documents; rows that ``--work`` holds of the same code are not run again. ``--only`` and ``--case`` choose, and
print alone; ``--page_only`` makes the page of the results as they are. What a wrong outcome left stays in ``--work``.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: its threads do not survive a fork

import fire
import torch
from common import RESULTS, ROOT, default_device, listed, provenance, version, write
from reliability_cases import (
    bundle,
    checkpoints,
    datalists,
    folders,
    images,
    interruptions,
    labels,
    landmarks,
    names,
    options,
    outputs,
    python,
    transforms,
)
from reliability_cases.files import make_base, register, registered
from reliability_cases.judge import GOOD, Expected, Run
from reliability_cases.page import page
from reliability_cases.runner import Case, in_fork, run_case

KINDS: tuple = (
    images, labels, landmarks, names, datalists, checkpoints, options, bundle, python, outputs, transforms, folders,
    interruptions,
)  # fmt: skip
NORMAL = Case(
    "normal", "a good pair", register("--refine_steps", "1", "--qa", "True"), Expected("works"), check=registered()
)
FILE = RESULTS / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
SLOW = 60  # times a normal run's seconds that a command may take, where that is more than the timeout
Row = dict[str, Any]


def load_libraries() -> None:
    """What commands import, once for all: a forked process has it."""
    import importlib

    names = ("monai", "monai.bundle", "ignite.engine", "nibabel", "SimpleITK", "PIL.Image", "scipy.ndimage", "fire")
    ours = ("__main__", "registration", "apply", "planning.plan", "synthetic.pairs", "qa.page", "workflow")
    for name in (*names, "matplotlib.figure", "torch.utils.tensorboard", *(f"istn_monai.{one}" for one in ours)):
        importlib.import_module(name)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def all_cases() -> list[Case]:
    """All, by kind; ValueError if two have one name."""
    cases = [case for kind in KINDS for case in kind.cases()]
    known = [(case.kind, case.name) for case in cases]
    twice = {name for name in known if known.count(name) > 1}
    if twice:
        raise ValueError(f"cases of one name: {sorted(twice)}")
    return cases


def code_hash() -> str:
    """Package, bundle and cases in a few letters."""
    folders = (
        "istn_monai/**/*.py",
        "bundle/configs/*.json",
        "bundle/models/model.pt",
        "benchmarks/reliability_cases/*.py",
    )
    files = [file for folder in folders for file in ROOT.glob(folder)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


def known_rows(file: Path, code: str) -> dict[tuple[str, str], Row]:
    """Rows of an earlier run of the same code."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["kind"], row["name"]): row for row in rows if row["code_hash"] == code}


def quiet(log: Path) -> None:
    """What this process prints goes into a file: ITK says much about broken files."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def started(case: Case, work: Path, timeout: float, normal: Run) -> int:
    """Begins a case in a process of its own, which writes a row; the process."""
    folder = work / "cases" / case.folder
    row = folder.with_name(folder.name + ".json")
    row.parent.mkdir(parents=True, exist_ok=True)
    row.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        try:
            quiet(folder.with_name(folder.name + ".log"))
            row.write_text(json.dumps(run_case(case, work / "base", folder, timeout, normal)), encoding="utf-8")
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return process


def run_all(cases: list[Case], work: Path, jobs: int, timeout: float, normal: Run) -> Iterator[Row]:
    """Rows of cases, as they end."""
    waiting, running = list(reversed(cases)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop()
            running[started(case, work, timeout, normal)] = case
        process, _ = os.wait()
        case = running.pop(process)
        folder = work / "cases" / case.folder
        file = folder.with_name(folder.name + ".json")
        if not file.exists():
            log = folder.with_name(folder.name + ".log").read_text(encoding="utf-8")
            raise SystemExit(f"{case.kind}, {case.name}: this script failed: {log}")
        row = json.loads(file.read_text(encoding="utf-8"))
        if row["outcome"] in GOOD:
            shutil.rmtree(folder, ignore_errors=True)  # the others' files are kept, to be looked at
        yield row


def chosen(cases: list[Case], only: str | tuple[str, ...] | None, case: str | None) -> list[Case]:
    """The cases of some kinds, or with some words in their name."""
    kinds = listed(only or ())
    unknown = set(kinds) - {one.kind for one in cases}
    if unknown:
        raise SystemExit(f"unknown kinds {sorted(unknown)}, there are {sorted({one.kind for one in cases})}")
    return [one for one in cases if (not kinds or one.kind in kinds) and (case is None or str(case) in one.name)]


def normal_run(work: Path, timeout: float) -> Run:
    """What a good pair takes, the second time: ends the script if that does not work."""
    shutil.rmtree(work / "base", ignore_errors=True)
    made = in_fork(lambda: make_base(work / "base"), timeout)
    if made.code != 0:
        raise SystemExit(made.text)
    rows = list(run_all([NORMAL, NORMAL], work, 1, timeout, Run(0, work=1e9, peak_mb=1e9)))
    if rows[1]["outcome"] != "worked":
        raise SystemExit(f"a good pair: {rows[1]}")
    return Run(0, seconds=rows[1]["seconds"], work=rows[1]["work"], peak_mb=rows[1]["peak_mb"])


def main(
    only: str | tuple[str, ...] | None = None,
    case: str | None = None,
    jobs: int = 2,
    work: str = "/tmp/istn_reliability",
    again: bool = False,
    timeout: float = 120.0,
    page_only: bool = False,
) -> None:
    if page_only:
        PAGE.write_text(page(json.loads(FILE.read_text(encoding="utf-8")), RESULTS))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    load_libraries()
    place, code = Path(work).absolute(), code_hash()
    place.mkdir(parents=True, exist_ok=True)
    cases = all_cases()
    wanted = chosen(cases, only, case)
    known = known_rows(place / "rows.jsonl", code)
    todo = [one for one in wanted if again or (one.kind, one.name) not in known]
    print(f"{len(cases)} inputs, {len(wanted)} chosen, {len(todo)} to run", flush=True)
    begin, normal = time.time(), normal_run(place, timeout)
    timeout = max(timeout, SLOW * normal.seconds)
    with (place / "rows.jsonl").open("a") as file:
        for row in run_all(todo, place, jobs, timeout, normal):
            file.write(json.dumps(row | {"code_hash": code}) + "\n")
            file.flush()
            known[row["kind"], row["name"]] = row
            if row["outcome"] not in GOOD:
                print(
                    f"{row['outcome']:13} {row['kind']}: {row['name']}: {row['why']} | {row['last_line'][:200]!r}",
                    flush=True,
                )
    print(f"{len(todo)} inputs in {time.time() - begin:.0f} s")
    rows = [known[one.kind, one.name] for one in wanted]
    for outcome in sorted({row["outcome"] for row in rows}):
        print(f"{outcome:13} {sum(row['outcome'] == outcome for row in rows)}")
    if only is None and case is None:
        finish(rows, normal, time.time() - begin)


def finish(rows: list[Row], normal: Run, seconds: float) -> None:
    """Writes results and page."""
    about = provenance(default_device(), date=datetime.now(UTC).date().isoformat(), seconds=round(seconds))
    about["versions"] |= {name: version(name) for name in ("nibabel", "SimpleITK", "itk", "fire", "numpy")}
    rows = [{key: value for key, value in row.items() if key != "code_hash"} for row in rows]
    write({"provenance": about, "normal": {"seconds": normal.seconds, "peak_mb": normal.peak_mb}, "inputs": rows}, FILE)
    PAGE.write_text(page(json.loads(FILE.read_text(encoding="utf-8")), RESULTS))


if __name__ == "__main__":
    fire.Fire(main)
