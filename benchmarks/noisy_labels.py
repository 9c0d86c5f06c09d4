"""Explicit against implicit representations where training labels are noisy: ISTN-e and ISTN-i, hippocampus.

    python benchmarks/noisy_labels.py --data DIR [--runs DIR] [--epochs 2] [--pairs 100]

Of each training image the label map is shifted by 2 voxels in a random direction, and each of its two labels is left
out with a probability of 0.3 (one always stays). Validation and test labels are clean. Writes
``results/noisy_labels.json``; a training that is there is not done again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from common import RESULTS, configs, default_device, provenance, write
from monai.bundle import run

from istn_monai.io.datalist import read_datalist

SHIFT, DROPPED, LABELS = 2.0, 0.3, (1, 2)
SPLITS = ("training", "validation", "testing")
REFINE_STEPS = 50


def noisy_label(file: str, target: Path) -> str:
    """A noisy copy of a label map, the same for the same file name."""
    rng = np.random.default_rng(list(Path(file).name.encode()))
    image = nib.load(file)
    values = np.asarray(image.dataobj)
    direction = rng.normal(size=3)
    step = np.rint(SHIFT * direction / np.linalg.norm(direction)).astype(int)
    moved = np.roll(values, step, axis=(0, 1, 2))  # background lies at the border
    dropped = [label for label in LABELS if rng.random() < DROPPED]
    for label in dropped[: len(LABELS) - 1]:
        moved = np.where(moved == label, 0, moved)
    target.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(moved.astype(np.uint8), image.affine), target / Path(file).name)
    return str(target / Path(file).name)


def datalist(data: Path, runs: Path, noisy: bool, pairs: int) -> Path:
    """A datalist whose training labels are noisy or not."""
    splits = read_datalist(data / "pairs_100.json", SPLITS)
    content: dict[str, Any] = {split: [dict(item) for item in splits[split]] for split in SPLITS}
    content["testing"] = content["testing"][:pairs]
    if noisy:
        for item in content["training"]:
            item |= {key: noisy_label(item[key], runs / "labels") for key in ("moving_label", "fixed_label")}
    runs.mkdir(parents=True, exist_ok=True)
    file = runs / f"pairs_{'noisy' if noisy else 'clean'}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def trained_and_evaluated(file: Path, runs: Path, loss: str, epochs: int) -> dict[str, Any]:
    """The summary of one training's evaluation."""
    folder = runs / f"{file.stem}_{loss}"
    settings = {
        "dataset_dir": str(file.parent), "data_list_file": file.name, "loss": loss, "output_dir": str(folder),
        "cache_dir": str(runs / "cache"), "training_dtype": "bfloat16",
    }  # fmt: skip
    run(
        run_id="training",
        config_file=configs("train", "hippocampus"),
        max_epochs=epochs,
        learning_rate=2e-3,
        augment=True,
        **settings,
    )
    run(
        run_id="evaluation",
        config_file=configs("train", "hippocampus", "evaluate"),
        refine_steps=REFINE_STEPS,
        refine_weights="none",
        qa=False,
        both_ways=False,
        overwrite=True,
        **settings,
    )
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["summary"]


def main(data: str, runs: str = "runs/noisy_labels", epochs: int = 2, pairs: int = 100) -> None:
    place, result_file = Path(runs).absolute(), RESULTS / "noisy_labels.json"
    known = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else {}
    same = known.get("epochs") == epochs and known.get("pairs") == pairs
    cells: dict[str, Any] = known["cells"] if same else {}
    for loss in ("e", "i"):
        for labels in ("noisy", "clean"):
            name = f"{labels}_{loss}"
            if name in cells:
                continue
            file = datalist(Path(data) / "hippocampus", place, labels == "noisy", pairs)
            cells[name] = trained_and_evaluated(file, place, loss, epochs)
            result = {"provenance": provenance(default_device(), seed=0), "epochs": epochs, "pairs": pairs}
            write(result | {"shift": SHIFT, "dropped": DROPPED, "cells": cells}, result_file)
    for name, cell in cells.items():
        words = [f"{stage} {cell[stage]['dice_labels']['mean']:.3f}" for stage in ("one-pass", "refined")]
        print(f"{name:10}", "  ".join(words))


if __name__ == "__main__":
    fire.Fire(main)
