"""Registration of pairs whose contrasts differ from those of training, and the ITN as a segmentation network.

    python benchmarks/contrast.py [--model FILE] [--pairs 100] [--name shipped] [--output FILE]

The hippocampus test pairs as they are, with the intensities of the moving image, of the fixed one, or of both inverted,
and by random piecewise-linear curves of 3 to 8 knots, another one for each image. Means over pairs of Dice, local
correlation, SDlogJ and folding, on the fixed image's own grid, after one pass and refined; and of what the ITN segments
in each test image, likewise on its own grid. Writes ``results/contrast.json``, which goes on where it was stopped, with
a section for each ``name``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import fire
import numpy as np
import torch
from monai.data import MetaTensor
from objective import KEPT, STEPS, Timed, refiner_of, summary
from speed import DATA

from istn_monai.geometry.grids import Grid
from istn_monai.io.datalist import read_datalist
from istn_monai.io.images import read_image
from istn_monai.registration import Registration
from istn_monai.transforms.keys import IMAGE_KEYS
from istn_monai.transforms.registration_grid import on_grid
from istn_monai.workflow.evaluation import Evaluation

MOVING, FIXED = IMAGE_KEYS
INVERTED, CURVE = "inverted", "curve"
#: by name, what happens to which image
CONTRASTS: dict[str, dict[str, str]] = {
    "own": {},
    "moving inverted": {MOVING: INVERTED},
    "fixed inverted": {FIXED: INVERTED},
    "both inverted": {MOVING: INVERTED, FIXED: INVERTED},
    "moving by a random curve": {MOVING: CURVE},
    "both by random curves": {MOVING: CURVE, FIXED: CURVE},
}
METHODS = ("one pass", "accurate", "smooth", "the paper's r")


def changed(file: str, kind: str | None, rng: np.random.Generator) -> str | MetaTensor:
    """An image in another contrast; its path if it stays as it is."""
    if kind is None:
        return file
    image = read_image(file)
    values = image.as_tensor().double().numpy()
    low, high = np.percentile(values, [0.5, 99.5])
    unit = np.clip((values - low) / (high - low), 0, 1)
    heights = np.array([1.0, 0.0]) if kind == INVERTED else rng.uniform(size=rng.integers(3, 9))
    mapped = np.interp(unit, np.linspace(0, 1, len(heights)), heights)
    return MetaTensor(torch.as_tensor(mapped, dtype=torch.float32), affine=image.affine, meta=dict(image.meta))


def contrasted(item: dict[str, str], changes: dict[str, str], number: int) -> dict[str, Any]:
    """A pair in other contrasts, the same ones for its number."""
    rng = np.random.default_rng([common.SEED, number])
    return dict(item) | {key: changed(item[key], changes.get(key), rng) for key in IMAGE_KEYS}


def segmentations(registration: Registration, items: list[dict[str, str]]) -> Iterator[dict[str, float]]:
    """Dice of the ITN's structures with the labels, of each image once, on the image's own grid."""
    files = sorted({(item[f"{side}_image"], item[f"{side}_label"]) for item in items for side in ("moving", "fixed")})
    for image, label in files:
        data = registration.content("preprocessing")(dict.fromkeys(IMAGE_KEYS, image))
        with torch.no_grad():
            _, representation = registration.network.istn.represent(data["image"].as_tensor()[None])
        truth = read_image(label)
        found = on_grid(MetaTensor(representation[0], affine=data["image"].affine), Grid.of(truth)).as_tensor()
        groups = registration.settings.soi_labels or []
        masks = torch.stack([torch.isin(truth[0].as_tensor(), torch.tensor(group)) for group in groups])
        yield {
            "dice_labels": float(np.mean([dice(*both) for both in zip(found > 0.5, masks, strict=True)])),
            "dice_merged": dice(found.sum(0) > 0.5, masks.any(0)),
        }


def dice(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two masks."""
    return (2 * (one & other).sum() / (one.sum() + other.sum())).item()


def main(
    model: str | None = None,
    name: str = "shipped",
    pairs: int = 100,
    only: tuple[str, ...] = tuple(CONTRASTS),
    methods: tuple[str, ...] = METHODS[:2],
    device: str = "cpu",
    output: str | None = None,
) -> None:
    file = Path(output or common.RESULTS / "contrast.json")
    items = read_datalist(DATA / "pairs_100.json", ["testing"])["testing"][:pairs]
    registration = Registration(model, device=device)
    kind = registration.settings.transformation
    evaluation = Evaluation([], registration.network, {}, "unused", registration.settings.soi_labels, device)
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    before = known.get(name, {})
    same = before.get("weights") == registration.weights_sha256
    section: dict[str, Any] = {"weights": registration.weights_sha256, "pairs": before.get("pairs", {}) if same else {}}
    refiners = {
        method: refiner_of({"one pass": 0, "the paper's r": None}.get(method, method), kind) for method in methods
    }
    evaluation.inferers = {method: Timed(refiner) for method, refiner in refiners.items()}
    for contrast in only:
        rows = section["pairs"].setdefault(contrast, {})
        for number, item in enumerate(items):
            if all(len(rows.get(method, ())) > number for method in methods):
                continue
            evaluation.dataset = [registration.content("preprocessing")(contrasted(item, CONTRASTS[contrast], number))]
            for row in evaluation.evaluate_pair(0)[1:]:
                rows.setdefault(row["method"], [])[number:] = [{key: row[key] for key in (*KEPT, "seconds")}]
        shown = {method: summary(own) for method, own in rows.items()}
        section.setdefault("summary", {})[contrast] = shown
        save(file, name, section, device)
        for method, values in shown.items():
            print(
                f"{name:10} {contrast:26} {method:10}", "  ".join(f"{k} {v:.4f}" for k, v in values.items()), flush=True
            )
    section["segmentation"] = summary(list(segmentations(registration, items)))
    print(name, "ITN", section["segmentation"])
    save(file, name, section, device)


def save(file: Path, name: str, section: dict[str, Any], device: str) -> None:
    """Writes a section beside the others."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    common.write(known | {name: section | {"provenance": common.provenance(device), "steps": STEPS}}, file)


if __name__ == "__main__":
    start = time.perf_counter()
    fire.Fire(main)
    print(f"{time.perf_counter() - start:.0f} s")
