"""What can be registered in the place of an ITN's output: the label maps themselves, and MIND-SSC without any network.

    python benchmarks/representations.py --data DATA/hippocampus --work FOLDER

The bundle's own evaluation of the 100 test pairs of ``pairs_100.json``; FOLDER holds what is done, and an interrupted
one goes on. Writes ``results/representations.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import common
import fire

from istn_monai.folders import bundle_folder, find_weights
from istn_monai.runs import evaluate_datalist

LABEL_LEVELS = [[4, 20, 0], [2, 30, 1], [1, 60, 2]]
#: by name: what is registered, by which weights, and how
CASES: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "labels": ("labels", None, {"refine_weights": "structures", "refine_levels": LABEL_LEVELS}),
    "MIND-SSC": ("mind", "intensities", {}),
}
KEPT = ("dice_merged", "dice_labels", "lncc", "sdlogj", "folding", "seconds")


def main(data: str, work: str, output: str = str(common.RESULTS / "representations.json")) -> None:
    """See above.

    Args:
        data: folder of the hippocampus data.
        work: folder of the evaluations.
        output: JSON file.
    """
    rows = []
    for name, (representation, model, settings) in CASES.items():
        folder = Path(work) / name
        evaluate_datalist(
            bundle_folder(),
            Path(data) / "pairs_100.json",
            folder,
            find_weights(bundle_folder() if model is None else model),
            representation=representation,
            evaluated_labels=[[1], [2]],
            qa=False,
            both_ways=False,
            device="cpu",
            **settings,
        )
        summary = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["summary"]["refined"]
        rows.append({"registered": name, "n": summary["dice_merged"]["n"]} | {k: summary[k]["mean"] for k in KEPT})
        print(rows[-1], flush=True)
    common.write({"provenance": common.provenance("cpu"), "rows": rows}, Path(output))


if __name__ == "__main__":
    fire.Fire(main)
