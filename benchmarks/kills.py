"""Kills commands (SIGKILL) at random moments, repeats them, and counts what was lost: nothing may be.

    python benchmarks/kills.py --kills 200 --work FOLDER [--what cohort,apply,publish]

Each scenario has a command that is killed after a random part of the time that it takes, and what must hold after each
kill and at the end. The counts go to ``--result`` after each kill, and a repeated call goes on there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import nibabel as nib
import numpy as np

from istn_monai.io.whole import check_whole
from istn_monai.network_settings import NetworkSettings
from istn_monai.weights import described, read_weights, save_atomically

RESULT = common.RESULTS / "kills.json"
PAIRS = 6
SIZE = (24, 20)
SETTINGS = {"spatial_size": list(SIZE), "transformation": "affine", "soi_labels": [[1]], "initial_alignment": "world"}
COUNTS = ("lost_finished_results", "unreadable_files", "recomputed_finished_pairs", "failed_repeats")
REGISTER = """
import sys
from istn_monai.registration import Registration, register_datalist
model, datalist, folder = sys.argv[1:]
registration = Registration(model, 0, device="cpu", qa=False)
print("ready", flush=True)
sys.exit(len(register_datalist(registration, datalist, "testing", folder, inverse=True)))
"""
APPLY = """
import sys
from istn_monai.apply import apply_transform
print("ready", flush=True)
apply_transform(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[2], overwrite=True)
"""
PUBLISH = """
import sys
from pathlib import Path
from types import SimpleNamespace
from istn_monai.workflow.host_training import publish
print("ready", flush=True)
for _ in range(20):
    publish(SimpleNamespace(best_file=Path(sys.argv[1])), sys.argv[2])
"""


@dataclass
class Scenario:
    """What is killed, and what must hold.

    Attributes:
        prepare: makes what the command needs in a folder; what it gives goes to the others.
        command: the arguments of Python.
        check: counts what is wrong after a kill; told what :attr:`state` gave before it.
        state: what must stay whole, before a kill.
        begin_again: before a kill, where the command would have nothing more to do.
    """

    prepare: Callable[[Path], None]
    command: Callable[[Path], list[str]]
    state: Callable[[Path], Any]
    check: Callable[[Path, Any], dict[str, int]]
    begin_again: Callable[[Path], None]


def unreadable(folder: Path) -> int:
    """Files under final names that are not whole; hidden ones are work in progress."""
    wrong = 0
    for file in folder.rglob("*"):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            try:
                if file.suffix == ".pt":
                    read_weights(file)
                else:
                    check_whole(file)
            except (OSError, ValueError):
                wrong += 1
    return wrong


def write_images(folder: Path) -> None:
    """Small images and a datalist of all pairs in a ring, and random weights."""
    items = []
    for number in range(PAIRS):
        image = np.random.default_rng(number).random(SIZE, np.float32)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / f"{number}.nii.gz")
        items.append({"moving_image": f"{number}.nii.gz", "fixed_image": f"{(number + 1) % PAIRS}.nii.gz"})
    (folder / "pairs.json").write_text(json.dumps({"testing": items}), encoding="utf-8")
    write_weights(folder / "model.pt")


def write_weights(file: Path) -> None:
    """A checkpoint of an untrained network."""
    settings = NetworkSettings(**SETTINGS)
    state = settings.network().state_dict()
    save_atomically(described(state, {"settings": settings.state_dict()}), file)


# --- cohort: pairs of a datalist -------------------------------------------------------------------------------------


def cohort_command(folder: Path) -> list[str]:
    return ["-c", REGISTER, *(str(folder / name) for name in ("model.pt", "pairs.json", "out"))]


def finished_pairs(folder: Path) -> dict[str, tuple[str, int]]:
    """Hash and time of the report of each pair that has one."""
    reports = sorted((folder / "out").glob("pair_*/report.json"))
    return {file.parent.name: (digest(file), file.stat().st_mtime_ns) for file in reports}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_cohort(folder: Path, before: dict[str, tuple[str, int]]) -> dict[str, int]:
    """Pairs that were finished before the kill are as they were, and each report's files are all there."""
    now = finished_pairs(folder)
    gone = [name for name in before if name not in now]
    incomplete = 0
    for name in now:
        own = folder / "out" / name
        listed = json.loads((own / "report.json").read_text(encoding="utf-8"))["files"]
        incomplete += not all((own / file).is_file() for file in listed)
    return {
        "lost_finished_results": len(gone) + incomplete,
        "recomputed_finished_pairs": sum(now[name] != before[name] for name in before if name in now),
        "unreadable_files": unreadable(folder / "out"),
    }


def begin_cohort_again(folder: Path) -> None:
    """Once all pairs are finished; a kill must find some that are not."""
    if len(finished_pairs(folder)) == PAIRS:
        shutil.rmtree(folder / "out")


# --- apply: a file that is replaced ----------------------------------------------------------------------------------


def prepare_apply(folder: Path) -> None:
    write_images(folder)
    run(cohort_command(folder))
    image = np.random.default_rng(0).random((400, 300), np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "large.nii.gz")
    run(apply_command(folder))


def apply_command(folder: Path) -> list[str]:
    transform, image, output = "out/pair_0000/transform.h5", "large.nii.gz", "applied.nii.gz"
    return ["-c", APPLY, *(str(folder / name) for name in (transform, image, output))]


def check_apply(folder: Path, before: str) -> dict[str, int]:
    """The old file or the new one, which are equal."""
    file = folder / "applied.nii.gz"
    lost = not file.is_file() or nib_digest(file) != before
    return {"lost_finished_results": int(lost), "unreadable_files": unreadable(folder)}


def nib_digest(file: Path) -> str:
    """Of the values: a compressed file also names the time."""
    try:
        return hashlib.sha256(np.asanyarray(nib.load(file).dataobj).tobytes()).hexdigest()
    except Exception:  # whatever a cut file makes of its reader
        return "unreadable"


# --- publish: the weights that a host serves -------------------------------------------------------------------------


def prepare_publish(folder: Path) -> None:
    (folder / "models").mkdir()
    write_weights(folder / "models" / "model.pt")
    write_weights(folder / "best.pt")


def publish_command(folder: Path) -> list[str]:
    return ["-c", PUBLISH, str(folder / "best.pt"), str(folder)]


def check_publish(folder: Path, before: set[str]) -> dict[str, int]:
    """The served weights and the first ones are whole at any time."""
    models = folder / "models"
    lost = not (models / "model.pt").is_file() or not before <= {file.name for file in models.glob("[!.]*")}
    return {"lost_finished_results": int(lost), "unreadable_files": unreadable(models)}


def begin_publish_again(folder: Path) -> None:
    (folder / "models" / "original.pt").unlink(missing_ok=True)


SCENARIOS = {
    "cohort": Scenario(write_images, cohort_command, finished_pairs, check_cohort, begin_cohort_again),
    "apply": Scenario(
        prepare_apply, apply_command, lambda folder: nib_digest(folder / "applied.nii.gz"), check_apply,
        lambda folder: None,
    ),
    "publish": Scenario(
        prepare_publish, publish_command, lambda folder: {file.name for file in (folder / "models").glob("[!.]*")},
        check_publish, begin_publish_again,
    ),
}  # fmt: skip  # a training's scenario goes here: its checkpoints whole, the resumed weights bit-exact


# --- kills -----------------------------------------------------------------------------------------------------------


def start(command: list[str]) -> subprocess.Popen:
    """A command, once it says that it has loaded all that it needs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(common.ROOT)}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    )
    assert process.stdout is not None
    while (line := process.stdout.readline()) and line != "ready\n":
        continue
    return process


def run(command: list[str]) -> float:
    """Runs a command to its end; how long that takes once it is ready."""
    process = start(command)
    begun = time.monotonic()
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"it ended with {process.returncode}: {errors[-2000:]}")
    return time.monotonic() - begun


def kill_once(scenario: Scenario, folder: Path, seconds: float, rng: random.Random) -> dict[str, int]:
    """Kills the command at a random moment of the time that it takes; what is wrong then, and when it is repeated."""
    scenario.begin_again(folder)
    before = scenario.state(folder)
    process = start(scenario.command(folder))
    time.sleep(rng.random() * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended = {"killed": int(process.returncode < 0), "failed_repeats": int(process.returncode > 0)}
    return dict.fromkeys(COUNTS, 0) | ended | scenario.check(folder, before)


def kills_of(name: str, number: int, work: Path, content: dict[str, Any], result: Path) -> None:
    """Kills the command of a scenario until that has been done so often; at the end it is repeated as a whole."""
    scenario, folder = SCENARIOS[name], work / name
    counts = content.setdefault(name, dict.fromkeys(("killed", *COUNTS), 0))
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        scenario.prepare(folder)
        (folder / "ready").touch()
    seconds = run(scenario.command(folder))
    while counts["killed"] < number:
        found = kill_once(scenario, folder, seconds, random.Random(1000 * counts["killed"] + time.time_ns() % 1000))
        for key, value in found.items():
            counts[key] += value
        keep(content, result)
        print(f"{name}: {counts}", flush=True)
    before = scenario.state(folder)
    try:
        run(scenario.command(folder))
    except RuntimeError as error:
        counts["failed_repeats"] += 1
        print(error)
    for key, value in scenario.check(folder, before).items():
        counts[key] += value
    keep(content, result)


def keep(counts: dict[str, Any], result: Path) -> None:
    """Writes the counts of all scenarios, with what was run."""
    common.write({"provenance": common.provenance("cpu"), "summary": counts}, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of all scenarios together")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is killed; a repeated call goes on")
    parser.add_argument("--what", default=",".join(SCENARIOS), help="scenarios, by comma")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    names = options.what.split(",")
    content = json.loads(options.result.read_text(encoding="utf-8"))["summary"] if options.result.exists() else {}
    for place, name in enumerate(names):
        number = options.kills // len(names) + (place < options.kills % len(names))
        kills_of(name, number, options.work, content, options.result)
    wrong = {name: content[name] for name in names if any(content[name][key] for key in COUNTS)}
    sys.exit(f"something was lost: {wrong}" if wrong else 0)


if __name__ == "__main__":
    main()
