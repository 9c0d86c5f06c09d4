"""Trains and evaluates with the bundle alone, and keeps the figures.

    python benchmarks/main_job.py CASE --data DIR [--runs DIR] [--refine_steps N] [--evaluate_only]

CASE is one of the keys of ``CASES``; DIR holds the data sets' folders. A run that was interrupted goes on. The summary
goes to ``benchmarks/results/CASE.json``, with commit, versions, device, data and seed. ``shipped_model`` makes the
weights in ``bundle/models``, in an hour on one core that knows bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path

import fire
from common import RESULTS, configs, default_device, provenance, write
from monai.bundle import run

CASES = {
    "synth2d_paper_i": ("synth2d", ["paper", "synth2d"], {"loss": "i"}),
    "shipped_model": (
        "hippocampus",
        ["hippocampus"],
        {
            "data_list_file": "pairs_1000.json",
            "loss": "e",
            "max_epochs": 6,
            "learning_rate": 0.002,
            "training_dtype": "bfloat16",
            "regulariser": {"_target_": "BendingEnergyLoss"},
            "regulariser_weight": 5,
        },
    ),
}
TEST_LIST = {"shipped_model": {"data_list_file": "pairs_100.json"}}  # where it is not the one of training


def main(case: str, data: str, runs: str = "runs", refine_steps: int = 50, evaluate_only: bool = False) -> None:
    folder, overlays, settings = CASES[case]
    output = Path(runs).absolute() / case
    settings = settings | {"dataset_dir": str(Path(data).absolute() / folder), "output_dir": str(output)}
    if not evaluate_only:
        run(run_id="training", config_file=configs("train", *overlays), **settings)
    settings |= {"refine_steps": refine_steps, "qa": False} | TEST_LIST.get(case, {})
    run(run_id="evaluation", config_file=configs("train", *overlays, "evaluate"), **settings)
    evaluation = json.loads((output / "evaluation.json").read_text())
    result = {
        "case": case,
        "data": f"{folder}: {evaluation['provenance']['part']} part",
        "refine_steps": refine_steps,
        "provenance": provenance(default_device()),
        "trained": evaluation["provenance"]["trained"],
        "field_std_voxels": evaluation["field_std_voxels"],
        "summary": evaluation["summary"],
    }
    file = RESULTS / f"{case}.json"
    write(result, file)
    print(f"written: {file}")


if __name__ == "__main__":
    fire.Fire(main)
