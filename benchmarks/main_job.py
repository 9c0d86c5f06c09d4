"""Trains and evaluates with the bundle alone, and keeps the metrics.

    python benchmarks/main_job.py CASE --data DIR [--runs DIR] [--refine_steps N] [--evaluate_only]

CASE is one of the keys of ``CASES``; DIR holds the data sets' folders (embedded data are made in ``runs``). A run that
was interrupted goes on. The summary goes to ``benchmarks/results/CASE.json``, with commit, versions, device, data and
seed. ``shipped_model`` makes the weights in ``bundle/models``, in an hour on one core that knows bfloat16. The cases
with ``points`` learn from landmarks alone; their evaluation compares labels, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fire
from common import RESULTS, configs, default_device, provenance, write
from monai.bundle import run
from synth2d_truth import truth_list

CASES = {
    "synth2d_paper_i": ("synth2d", ["paper", "synth2d"], {"loss": "i"}),
    "synth2d_points": ("synth2d", ["synth2d", "synth2d_points"], {"loss": "i", "training_dtype": "bfloat16"}),
    "embedded_points": (None, ["landmarks"], {"loss": "i", "training_dtype": "bfloat16", "max_epochs": 30}),
    "shipped_model": (
        "hippocampus",
        ["hippocampus"],
        {
            "data_list_file": "pairs_1000.json",
            "loss": "e",
            "max_epochs": 6,
            "learning_rate": 0.002,
            "training_dtype": "bfloat16",
            "regularization": {"_target_": "BendingEnergyLoss"},
            "regularization_weight": 5,
        },
    ),
}
#: settings of the evaluation alone: another datalist, labels that no training has seen; by the case's data and output
EVALUATION: dict[str, Callable[[Path, Path], dict]] = {
    "shipped_model": lambda data, output: {"data_list_file": "pairs_100.json"},
    "synth2d_points": lambda data, output: {"data_list_file": str(truth_list(data, output))},
    "embedded_points": lambda data, output: {"evaluated_labels": [[1], [2]]},
}


def main(case: str, data: str, runs: str = "runs", refine_steps: int = 50, evaluate_only: bool = False) -> None:
    folder, overlays, settings = CASES[case]
    output = Path(runs).absolute() / case
    settings = settings | {"output_dir": str(output), "synthetic_dir": str(output.with_name("embedded"))}
    dataset = Path(data).absolute() / (folder or "")
    if folder is not None:
        settings |= {"dataset_dir": str(dataset)}
    if not evaluate_only:
        run(run_id="training", config_file=configs("train", *overlays), **settings)
    settings |= {"refine_steps": refine_steps, "qa": False}
    if case in EVALUATION:
        settings |= EVALUATION[case](dataset, output)
    run(run_id="evaluation", config_file=configs("train", *overlays, "evaluate"), **settings)
    evaluation = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    made = evaluation["provenance"]
    result = {
        "case": case,
        "data": f"{folder or 'embedded'}: {made.get('split', made.get('part'))} split",
        "refine_steps": refine_steps,
        "provenance": provenance(default_device()),
        "trained": made["trained"],
        "field_std_voxels": evaluation["field_std_voxels"],
        "summary": evaluation["summary"],
    }
    file = RESULTS / f"{case}.json"
    write(result, file)
    print(f"written: {file}")


if __name__ == "__main__":
    fire.Fire(main)
