"""What each term of the refinement's objective costs and gives: the hippocampus test pairs with the shipped weights.

    python benchmarks/objective.py [--device cuda:0] [--split testing] [--pairs 100] [--output FILE]

Means over pairs of Dice, local correlation of the images, SDlogJ and folding, for the presets and without single terms.
Writes ``results/objective.json``, which goes on where it was stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import common
import fire
import numpy as np
import torch
from speed import DATA

from istn_monai.inferer import RefineInferer
from istn_monai.io.datalist import read_datalist
from istn_monai.levels import USUAL_STEPS
from istn_monai.refine_weights import PRESETS
from istn_monai.refinement import Refiner
from istn_monai.registration import Registration
from istn_monai.workflow.evaluation import Evaluation
from istn_monai.workflow.inferers import default_rate

STEPS = USUAL_STEPS
MIND = 0.5  # its weight, so that it is worth about as much as the local correlation is
ACCURATE = PRESETS["accurate"]
CANDIDATES: dict[str, Any] = {
    "one pass": 0,
    "the paper's r": None,
    "the paper's r, of the STN": "stn",
    **PRESETS,
    "accurate without image": {name: ACCURATE[name] for name in ("structures", "bending")},
    "accurate without bending": {name: ACCURATE[name] for name in ("structures", "image")},
    "image and bending alone": {name: ACCURATE[name] for name in ("image", "bending")},
    "mind in the place of image": {"mind": MIND} | {name: ACCURATE[name] for name in ("structures", "bending")},
}
KEPT = ("dice_merged", "dice_labels", "lncc", "sdlogj", "folding")


def main(
    device: str = "cpu",
    split: str = "testing",
    pairs: int = 100,
    only: tuple[str, ...] = tuple(CANDIDATES),
    output: str | None = None,
) -> None:
    file = Path(output or common.RESULTS / "objective.json")
    items = read_datalist(DATA / "pairs_100.json", [split])[split][:pairs]
    registration = Registration(device=device)
    kind = registration.settings.transformation
    evaluation = Evaluation([], registration.network, {}, "unused", registration.settings.soi_labels, device)
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rows = known.get("pairs", {}) if known.get("provenance", {}).get("code") == common.code_hash() else {}
    result: dict[str, Any] = {"provenance": common.provenance(device), "split": split, "steps": STEPS, "pairs": rows}
    for number, item in enumerate(items):
        missing = [name for name in only if len(rows.get(name, ())) <= number]
        if not missing:
            continue
        evaluation.dataset = [registration.content("preprocessing")(item)]
        refiners = {name: refiner_of(weights, kind) for name, weights in CANDIDATES.items() if name in missing}
        evaluation.inferers = {name: Timed(refiner) for name, refiner in refiners.items()}
        for row in evaluation.evaluate_pair(0)[1:]:
            rows.setdefault(row["method"], []).append({name: row[name] for name in (*KEPT, "seconds")})
        if number % 10 == 9 or number == len(items) - 1:
            result["summary"] = {name: summary(own) for name, own in rows.items()}
            common.write(result, file)
    for name, own in result["summary"].items():
        print(f"{name:26}", "  ".join(f"{key} {value:.4f}" for key, value in own.items()))


def refiner_of(weights: Any, transformation: str) -> Refiner:
    """Of weights by name, None for the paper's objective, "stn" for that on the STN's weights, or 0 for one pass."""
    if weights == 0:
        return Refiner(steps=0)
    if weights == "stn":
        return Refiner(steps=STEPS, target="stn")
    return Refiner(steps=STEPS, learning_rate=default_rate(transformation, STEPS, weights=weights), weights=weights)


class Timed:
    """A refiner as an inferer that waits for its device."""

    def __init__(self, refiner: Refiner) -> None:
        self.inferer = RefineInferer(refiner)

    def __call__(self, image: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        pred = self.inferer(image, network)
        if image.is_cuda:
            torch.cuda.synchronize()
        return pred


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means, but of seconds the median, and of folding the largest."""
    return {
        name: float({"seconds": np.median, "folding": np.max}.get(name, np.mean)([row[name] for row in rows]))
        for name in rows[0]
    } | {"n": len(rows)}


if __name__ == "__main__":
    start = time.perf_counter()
    fire.Fire(main)
    print(f"{time.perf_counter() - start:.0f} s")
