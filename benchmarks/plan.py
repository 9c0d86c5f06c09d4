"""What the plan chooses for the hippocampus against the settings that were made by hand: two full trainings.

    python benchmarks/plan.py DATA WORK

DATA has the folder ``hippocampus``. Runs ``istn-monai train`` of its datalist as planned, and with the settings of
``bundle/configs/hippocampus.json`` (ISTN-i, float32) where the plan chooses others; both take 40 epochs, about 70
minutes each on one core. A training that WORK holds goes on, or is taken as it is. Writes the best validation Dice to
``results/plan.json``.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import fire
from common import RESULTS, provenance, write

from istn_monai.weights import read_weights

BY_HAND = ("--loss", "i", "--training_dtype", "float32")
TRAININGS = {"planned": (), "by hand": BY_HAND}


def result(folder: Path) -> dict[str, Any]:
    """What a training in a folder came to."""
    run = next((folder / "runs").iterdir())
    weights = read_weights(run / "models" / "model.pt")
    with (run / "training.csv").open() as file:
        curve = [float(row["validation"]) for row in csv.DictReader(file) if row["validation"]]
    return weights.description["result"] | {
        "settings": weights.settings.state_dict() if weights.settings else {},
        "training": weights.description["training"],
        "validation": curve,
    }


def main(data: str, work: str) -> None:
    """See the module."""
    datalist = Path(data).absolute() / "hippocampus" / "pairs_100.json"
    results = {}
    for name, options in TRAININGS.items():
        folder = Path(work).absolute() / name.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "istn_monai", "train", str(datalist), *options], cwd=folder, check=True)
        results[name] = result(folder)
        print(f"{name}: best validation Dice {results[name]['validation_dice']:.4f}, epoch {results[name]['epoch']}")
    write({"provenance": provenance("cpu"), "results": results}, RESULTS / "plan.json")


if __name__ == "__main__":
    fire.Fire(main)
