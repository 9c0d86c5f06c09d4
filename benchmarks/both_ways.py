"""Registering both ways: how far points are off after the way there and the way back, and what accuracy it costs.

    python benchmarks/both_ways.py --data DIR [--pairs 100] [--output FILE]

The hippocampus pairs of the test split in DIR, shipped weights, default refinement. Each pair is registered by itself,
and again with its files exchanged, as two runs of the command would: with the default transformation; with svf, which
is refined from the same network's prediction; and with svf, symmetric. Points are the voxels of the fixed structures;
the error is the distance from where they come back to, through both written transforms, initial alignments included.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import fire
import torch
from common import RESULTS, Row, code_hash, provenance, write
from monai.transforms import LoadImage

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform, world_transform
from istn_monai.metrics import jacobian_determinant, sd_log_jacobian
from istn_monai.registration import Registration
from istn_monai.workflow.pair_metrics import label_metrics

METHODS = {
    "default": {},
    "svf": {"transformation": "svf"},
    "svf, symmetric": {"transformation": "svf", "symmetric": True},
}
SOI = [[1], [2]]
LOAD = LoadImage(image_only=True, ensure_channel_first=True, reader="NibabelReader")
SIDES = ("moving", "fixed")


def exchanged(pair: Row) -> Row:
    """A pair with moving and fixed in each other's place."""
    sides = zip(SIDES, SIDES[::-1], strict=True)
    return {f"{side}_{kind}": pair[f"{other}_{kind}"] for side, other in sides for kind in ("image", "label")}


def transform_of(registration: Registration, result: Row) -> WorldTransform:
    """What is written of a result."""
    transformation, grid = registration.network.istn.transformation, Grid.of(result["image"])
    return world_transform(transformation, result["theta"][None], grid, result["initial_alignment"])


def measured(registration: Registration, pair: Row) -> Row:
    """Dice, regularity, seconds and the error in mm of a pair."""
    begin = time.perf_counter()
    there = registration(pair)
    seconds = time.perf_counter() - begin
    back = registration(exchanged(pair))
    before = world_transform(registration.network.istn.transformation, there["theta"][None], Grid.of(there["image"]))
    dice = label_metrics(there | {"fixed_label_original": pair["fixed_label"]}, there["pred"][None], SOI, before)
    label = pair["fixed_label"]
    points = Grid.of(label).points()[:, label.as_tensor()[0] > 0]
    transforms = (transform_of(registration, result) for result in (there, back))
    moved = points
    for transform in transforms:
        moved = transform.transform_points(moved)
    error = (moved - points).norm(dim=0)
    determinant = jacobian_determinant(torch.as_tensor(there["pred"])[None])
    return {
        "dice_merged": dice["dice_merged"], "dice": dice["dice_labels"],
        "error": error.mean().item(), "error_p99": error.quantile(0.99).item(),
        "sdlogj": sd_log_jacobian(determinant).item(), "folding": (determinant <= 0).float().mean().item(),
        "seconds": seconds,
    }  # fmt: skip


def main(data: str, pairs: int = 100, output: str | None = None) -> None:
    source = Path(data).absolute() / "hippocampus"
    items = json.loads((source / "pairs_100.json").read_text(encoding="utf-8"))["testing"][:pairs]
    file = Path(output or RESULTS / "both_ways.json")
    code = code_hash()
    rows: list[Row] = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    ready = {name: Registration(qa=False, **options) for name, options in METHODS.items()}
    means: Row = {}
    for number, item in enumerate(items):
        pair = {key: LOAD(source / name) for key, name in item.items()}
        for name, registration in ready.items():
            key = {"pair": number, "method": name, "code": code}
            if any(key.items() <= row.items() for row in rows):
                continue
            kept = [row for row in rows if (row["pair"], row["method"]) != (number, name)]
            rows = [*kept, key | measured(registration, pair)]
            own = [row for row in rows if row["method"] == name]
            measures = list(own[0])[3:]
            means[name] = {what: statistics.mean(row[what] for row in own) for what in measures} | {"n": len(own)}
            write({"provenance": provenance("cpu", pairs=pairs), "means": means, "rows": rows}, file)
        print(number, {name: [round(value, 4) for value in row.values()] for name, row in means.items()}, flush=True)
    print(json.dumps(means, indent=1), f"\nwritten: {file}")


if __name__ == "__main__":
    fire.Fire(main)
