"""Trains and evaluates the bundle's overlays on their data, and keeps the figures.

    python benchmarks/main_job.py CASE --data DIR [--runs DIR] [--refine_steps N] [--evaluate_only]

CASE is one of the keys of ``CASES``; DIR holds the data sets' folders. A run that was interrupted goes on. The summary
goes to ``benchmarks/results/main_job_CASE.json``, with commit, versions, device, data and seed.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import fire
import torch
from common import RESULTS, commit, configs, write
from monai.bundle import run

CASES = {
    "hippocampus_i": ("hippocampus", ["hippocampus"], {"loss": "i"}),
    "hippocampus_e": ("hippocampus", ["hippocampus"], {"loss": "e"}),
    "brain_i": ("brain", ["brain"], {"loss": "i"}),
    "synth2d_paper_i": ("synth2d", ["paper", "synth2d"], {"loss": "i"}),
}


def main(case: str, data: str, runs: str = "runs", refine_steps: int = 0, evaluate_only: bool = False) -> None:
    folder, overlays, settings = CASES[case]
    settings = settings | {"dataset_dir": str(Path(data) / folder), "output_dir": str(Path(runs) / case)}
    if not evaluate_only:
        run(run_id="training", config_file=configs("train", *overlays), **settings)
    settings |= {"refine_steps": refine_steps}
    run(run_id="evaluation", config_file=configs("train", *overlays, "evaluate"), **settings)
    evaluation = json.loads((Path(runs) / case / "evaluation.json").read_text())
    result = {
        "case": case,
        "commit": commit(),
        "device": f"{platform.machine()}, {torch.get_num_threads()} threads"
        if not torch.cuda.is_available()
        else torch.cuda.get_device_name(),
        "data": f"{folder}: {evaluation['provenance']['part']} part",
        "versions": {key: evaluation["provenance"][key] for key in ("monai", "torch")},
        "trained": evaluation["provenance"]["trained"],
        "field_std_voxels": evaluation["field_std_voxels"],
        "summary": evaluation["summary"],
    }
    file = RESULTS / f"main_job_{case}.json"
    write(result, file)
    print(f"written: {file}")


if __name__ == "__main__":
    fire.Fire(main)
