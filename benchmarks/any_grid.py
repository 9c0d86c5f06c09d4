"""The shipped weights on registration grids of other sizes than the one of training.

    python benchmarks/any_grid.py DATA

DATA has the folder ``hippocampus``. For the first test pairs the merged Dice of the moving label is compared with that
on the grid of training, 48 x 64 x 48, after one pass and refined; "padded" doubles both images along each axis with
zeros. Writes ``results/any_grid.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from common import RESULTS, provenance, write
from monai.data import MetaTensor
from monai.transforms import LoadImage
from tqdm import tqdm

from istn_monai import Registration
from istn_monai.metrics import overlap

TRAINED = (48, 64, 48)
GRIDS = {
    "40x56x40": (40, 56, 40),
    "64x64x64": (64, 64, 64),
    "45x61x47": (45, 61, 47),
    "80x112x80": (80, 112, 80),
    "auto, padded": "auto",
}
METHODS = {"one pass": 0, "refined": 50}


def padded(image: MetaTensor) -> MetaTensor:
    """An image ``(1, *S)`` with zeros around it, twice as large along each axis, where it was in the world."""
    before = [size // 2 for size in image.shape[1:]]
    after = [size - half for size, half in zip(image.shape[1:], before, strict=True)]
    ends = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    affine = image.affine.clone()
    affine[:3, 3] -= affine[:3, :3] @ torch.tensor(before, dtype=affine.dtype)
    return MetaTensor(torch.nn.functional.pad(image.as_tensor(), ends), affine=affine)


def dice(registration: Registration, images: dict[str, MetaTensor]) -> float:
    """Merged Dice of the warped moving label."""
    moving = {key: image for key, image in images.items() if key != "fixed_label"}
    warped = registration(moving)["warped_label"]
    masks = [torch.as_tensor(label)[0] > 0 for label in (warped, images["fixed_label"])]
    return overlap(*masks, (1.0, 1.0, 1.0))["dice"]


def main(data: str, pairs: int = 20) -> None:
    torch.set_num_threads(1)
    folder = Path(data) / "hippocampus"
    items = json.loads((folder / "pairs_100.json").read_text(encoding="utf-8"))["testing"][:pairs]
    load = LoadImage(image_only=True, ensure_channel_first=True, reader="NibabelReader")
    loaded = [{key: load(folder / file) for key, file in item.items()} for item in items]
    rows: dict[str, dict[str, Any]] = {}
    for name, size in {"x".join(map(str, TRAINED)): TRAINED, **GRIDS}.items():
        images = [{k: padded(v) for k, v in pair.items()} for pair in loaded] if "padded" in name else loaded
        row = rows[name] = {}
        for method, steps in METHODS.items():
            registration = Registration(refine_steps=steps, device="cpu", spatial_size=size, qa=False)
            row[method] = [dice(registration, pair) for pair in tqdm(images, desc=f"{name}, {method}")]
        first = next(iter(rows.values()))
        differences = {method: np.mean(row[method]) - np.mean(first[method]) for method in METHODS}
        print(name, *(f"{m} {np.mean(row[m]):.4f} ({differences[m]:+.4f})" for m in METHODS), sep="   ", flush=True)
    write({"provenance": provenance("cpu", pairs=pairs), "dice": rows}, RESULTS / "any_grid.json")


if __name__ == "__main__":
    fire.Fire(main)
