"""Kills trainings (SIGKILL) at random moments, goes on with them, and counts what was lost: nothing may be.

    python benchmarks/kills_training.py --kills 50 --work FOLDER

A tiny training of each of some settings (workers, augmentation, cache, bfloat16, validation every second epoch) runs
once without an interruption. Then it is begun anew, killed after a random part of that time, and begun again, until it
ends: its weights, its table and its curves must be those of the first. Each starts as a process forked from one that
has loaded all libraries, so a kill costs two to five seconds. The counts go to ``--result`` after each kill, and a
repeated call goes on there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import common
import torch
from monai.bundle import run

from istn_monai.synthetic.pairs import synthesize
from istn_monai.weights import read_weights
from istn_monai.workflow.curves import read_rows

RESULT = common.RESULTS / "kills_training.json"
COUNTS = ("unreadable_files", "not_bit_exact", "lost_or_double_rows", "missing_pictures", "failed_repeats")
TINY = {
    "spatial_size": [16, 16], "spacing": 2, "transformation": "bspline", "control_spacing": [16, 8], "device": "cpu",
    "initial_alignment": "world", "soi_labels": "none", "batch_size": 2, "max_epochs": 4, "num_workers": 0,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "augment": {"augment": True},
    "two workers": {"augment": True, "num_workers": 2},
    "cache": {"augment": True, "num_workers": 1, "cache_dir": "cache"},
    "bfloat16": {"training_dtype": "bfloat16", "augment": True},
    "every second": {"val_interval": 2, "augment": True, "loss": "e"},
}


def train(folder: str, options: dict[str, Any]) -> None:
    """The bundle's training, in a process of its own; its words go to a file."""
    torch.set_num_threads(1)
    os.chdir(folder)
    with (
        open("log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        run(run_id="training", config_file=common.configs("train"), output_dir=str(Path(folder) / "run"), **options)


def started(context: Any, folder: Path, options: dict[str, Any]) -> Any:
    """The process of a training."""
    folder.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=train, args=(str(folder), options))
    process.start()
    return process


def whole_training(context: Any, folder: Path, options: dict[str, Any]) -> float:
    """Runs a training without an interruption; the seconds that it took."""
    began = time.perf_counter()
    process = started(context, folder, options)
    process.join()
    if process.exitcode:
        sys.exit(f"the training without an interruption failed: see {folder / 'log.txt'}")
    return time.perf_counter() - began


def unreadable(run_folder: Path) -> int:
    """Checkpoints and tables under final names that cannot be read."""
    wrong = 0
    for name in ("models/model.pt", "models/last.pt", "training.csv"):
        file = run_folder / name
        try:
            if file.exists():
                assert read_rows(file) if file.suffix == ".csv" else read_weights(file)
        except (AssertionError, OSError, ValueError):
            wrong += 1
    return wrong


def differences(run_folder: Path, whole: Path) -> dict[str, int]:
    """What of a finished training is not as it is without an interruption."""
    weights = 0
    for name in ("models/model.pt", "models/last.pt"):
        mine, theirs = read_weights(run_folder / name), read_weights(whole / name)
        same = all(torch.equal(value, theirs.state[key]) for key, value in mine.state.items())
        weights += not same or mine.description != theirs.description
    rows = (run_folder / "training.csv").read_text(encoding="utf-8") != (whole / "training.csv").read_text(
        encoding="utf-8"
    )
    pictures = not (run_folder / "training.png").exists()
    return {"not_bit_exact": weights, "lost_or_double_rows": int(rows), "missing_pictures": int(pictures)}


class Counts:
    """The counts in a file, for a repeated call to go on with."""

    def __init__(self, file: Path) -> None:
        self.file = file
        empty = {"kills": 0, "trainings": 0} | dict.fromkeys(COUNTS, 0)
        self.numbers: dict[str, int] = empty | (
            json.loads(file.read_text(encoding="utf-8"))["summary"] if file.exists() else {}
        )

    def add(self, **more: int) -> None:
        """Adds to them and writes them."""
        for name, number in more.items():
            self.numbers[name] += number
        common.write({"provenance": common.provenance("cpu"), "summary": self.numbers}, self.file)


def kill_until_done(
    context: Any, work: Path, name: str, options: dict[str, Any], seconds: float, counts: Counts, most: int
) -> None:
    """Kills a training at most so often, then lets it end, and compares."""
    folder = work / name.replace(" ", "_") / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    for _ in range(most):
        process = started(context, folder, options)
        process.join(random.uniform(0.1, 0.9) * seconds)
        if process.exitcode is not None:  # it came to its end
            counts.add(failed_repeats=int(process.exitcode != 0))
            break
        process.kill()
        process.join()
        counts.add(kills=1, unreadable_files=unreadable(folder / "run"))
    process = started(context, folder, options)
    process.join()
    if process.exitcode:
        print(f"{name}: failed, see {folder / 'log.txt'}", flush=True)
        counts.add(failed_repeats=1)
        shutil.move(folder, work / f"failed_{time.time():.0f}")
        return
    found = differences(folder / "run", work / name.replace(" ", "_") / "whole" / "run")
    counts.add(trainings=1, **found)
    if any(found.values()):
        print(f"{name}: {found}", flush=True)
        shutil.move(folder, work / f"differs_{time.time():.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how many, those of earlier calls counted")
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; by default other ones in each call")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    work = arguments.work.absolute()
    synthesize(work / "data", (32, 32), train=6, validation=2, test=1)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills_training"])
    counts, seconds = Counts(arguments.result), {}
    while counts.numbers["kills"] < arguments.kills:
        for name, own in SETTINGS.items():
            options = TINY | {"dataset_dir": str(work / "data")} | own
            folder = work / name.replace(" ", "_") / "whole"
            if name not in seconds:
                shutil.rmtree(folder, ignore_errors=True)
                seconds[name] = whole_training(context, folder, options)
            left = arguments.kills - counts.numbers["kills"]
            if left > 0:
                kill_until_done(context, work, name, options, seconds[name], counts, min(left, 4))
    print(json.dumps(counts.numbers, indent=1))
    sys.exit(any(counts.numbers[name] for name in COUNTS))


if __name__ == "__main__":
    main()
