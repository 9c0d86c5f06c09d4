"""What labels and masks of the pair in hand give: the hippocampus test pairs with the shipped weights.

    python benchmarks/guidance.py [--device cuda:0] [--split testing] [--pairs 100] [--output FILE]

- one label (of the fixed image) and, in 100 steps, labels of both images guide the refinement
- a bright ball of 12 voxels, a lesion, is put on the structure's surface in the fixed image; a mask leaves it out

Means over pairs of Dice, SDlogJ and folding. Writes ``results/guidance.json``, which goes on where it was stopped.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import common
import fire
import torch
from monai.data import MetaTensor
from objective import summary
from speed import DATA

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import world_transform
from istn_monai.io.datalist import read_datalist
from istn_monai.io.images import read_image
from istn_monai.registration import Registration
from istn_monai.workflow.pair_metrics import pair_metrics

DIAMETER = 12  # voxels
BRIGHT = 2.0  # times the image's largest intensity
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "label of the fixed image": {"labels": ("fixed_label",)},
    "labels of both images": {"labels": ("moving_label", "fixed_label"), "steps": 100},
    "lesion, no mask": {"lesion": True},
    "lesion, masked": {"lesion": True, "mask": True},
}
KEPT = ("dice_merged", "dice_labels", "sdlogj", "folding")


def lesion_in(label: MetaTensor, seed: int) -> torch.Tensor:
    """``(1, *S)`` bool: a ball about a random voxel of the structure's surface."""
    inside = label.as_tensor()[0] > 0
    rim = (inside & (torch.nn.functional.avg_pool3d(inside[None].float(), 3, 1, 1)[0] < 1)).nonzero()
    center = rim[torch.randint(len(rim), (1,), generator=torch.Generator().manual_seed(seed))][0]
    grid = torch.stack(torch.meshgrid(*map(torch.arange, inside.shape), indexing="ij"))
    return ((grid - center.view(-1, 1, 1, 1)).square().sum(0) <= (DIAMETER / 2) ** 2)[None]


def pair_of(item: dict[str, str], case: dict[str, Any], seed: int) -> dict[str, Any]:
    """What registration gets."""
    pair: dict[str, Any] = {key: item[key] for key in ("moving_image", "fixed_image", *case.get("labels", ()))}
    image, label = (read_image(item[f"fixed_{kind}"]) for kind in ("image", "label"))
    lesion = lesion_in(label, seed)
    if case.get("lesion"):
        values = torch.where(lesion, BRIGHT * image.max(), image.as_tensor())
        pair["fixed_image"] = MetaTensor(values, affine=image.affine)
    if case.get("mask"):
        pair["fixed_mask"] = MetaTensor((~lesion).float(), affine=image.affine)
    return pair


def metrics(found: dict[str, Any], item: dict[str, str], network: Any, labels: Any) -> dict[str, float]:
    """Of what registration gave."""
    transform = world_transform(network.istn.transformation.cpu(), found["theta"][None].cpu(), Grid.of(found["image"]))
    originals = {f"{side}_label_original": read_image(item[f"{side}_label"]) for side in ("moving", "fixed")}
    originals["moving_label_original"].affine = found["moving_image_original"].affine  # initially aligned
    pair = found | originals
    values = pair_metrics(pair, torch.as_tensor(found["pred"])[None].cpu(), labels, transform)
    return {name: values[name] for name in KEPT}


def main(device: str = "cpu", split: str = "testing", pairs: int = 100, output: str | None = None) -> None:
    file = Path(output or common.RESULTS / "guidance.json")
    items = read_datalist(DATA / "pairs_100.json", [split])[split][:pairs]
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rows = known.get("pairs", {}) if known.get("provenance", {}).get("code") == common.code_hash() else {}
    result: dict[str, Any] = {"provenance": common.provenance(device), "split": split, "pairs": rows}
    registrations = {
        name: Registration(refine_steps=case.get("steps"), device=device, qa=False, use_labels=bool(case.get("labels")))
        for name, case in CASES.items()
    }
    for number, item in enumerate(items):
        for name, case in CASES.items():
            if len(rows.setdefault(name, [])) > number:
                continue
            registration, pair = registrations[name], pair_of(item, case, number)
            begin = time.perf_counter()
            found = registration(pair)
            seconds = time.perf_counter() - begin
            own = metrics(found, item, registration.network, registration.settings.soi_labels)
            rows[name].append(own | {"seconds": seconds})
        if number % 10 == 9 or number == len(items) - 1:
            result["summary"] = {name: summary(own) for name, own in rows.items()}
            common.write(result, file)
    for name, own in result["summary"].items():
        print(f"{name:26}", "  ".join(f"{key} {value:.4f}" for key, value in own.items()))


if __name__ == "__main__":
    start = time.perf_counter()
    fire.Fire(main)
    print(f"{time.perf_counter() - start:.0f} s")
