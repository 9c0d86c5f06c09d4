"""How far initial alignments reach: moving images turned, scaled and moved, beside the same pairs as they are.

    python benchmarks/turned.py --data DIR --case hippocampus [--pairs 20] [--alignments structures,...] [--output FILE]

DIR holds the data sets' folders; the pairs are the first of the case's test split. Each moving image's content is
turned by 40 degrees about a random axis, enlarged by 1.2 and moved by 20 mm in a random direction, on a larger grid of
the same voxels, so that nothing of it is truncated; its header says nothing of it. Hippocampus pairs are registered
with the shipped weights, brains without any network; both with the default refinement. Merged Dice and that of labels
are on the fixed image's own grid. Pairs that are there already are not registered again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from common import RESULTS, Row, code_hash, listed, provenance, write
from monai.data import MetaTensor
from monai.transforms import LoadImage
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import world_transform
from istn_monai.registration import Registration
from istn_monai.workflow.pair_metrics import label_metrics

DEGREES, SCALE, SHIFT = 40.0, 1.2, 20.0  # mm
#: by case: weights, label groups, how the pairs as they are begin, and how the turned ones do
CASES: dict[str, tuple[str | None, list[list[int]] | None, str, tuple[str, ...]]] = {
    "hippocampus": (None, [[1], [2]], "center", ("center", "structures")),
    "brain": ("intensities", None, "moments", ("affine",)),
}
LOAD = LoadImage(image_only=True, ensure_channel_first=True, reader="NibabelReader")


def motion(rng: np.random.Generator, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix ``(3, 3)`` and a shift ``(3,)`` in voxels, of content about the middle of the grid."""
    axis, direction = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    linear = SCALE * Rotation.from_rotvec(np.radians(DEGREES) * axis).as_matrix()
    return linear * spacing / spacing[:, None], SHIFT * direction / spacing


def moved(image: MetaTensor, linear: np.ndarray, shift: np.ndarray, order: int) -> MetaTensor:
    """The content of ``(1, *S)`` moved on a larger grid about the same middle."""
    values = image.as_tensor()[0].numpy()
    size = np.array(values.shape)
    larger = np.ceil(SCALE * np.linalg.norm(size) + 2 * np.abs(shift)).astype(int)
    middles = (size - 1) / 2, (larger - 1) / 2
    back = np.linalg.inv(linear)
    offset = middles[0] - back @ (middles[1] + shift)
    content = affine_transform(values.astype(np.float32), back, offset, tuple(larger), order=order, cval=values.min())
    affine = np.array(image.affine)
    affine[:3, 3] += affine[:3, :3] @ (middles[0] - middles[1])
    return MetaTensor(torch.as_tensor(content)[None], affine=affine)


def registered(registration: Registration, pair: dict[str, Any], soi_labels: list[list[int]]) -> Row:
    """Dice and seconds of a pair."""
    begin = time.perf_counter()
    result = registration(pair)
    seconds = time.perf_counter() - begin
    transform = world_transform(
        registration.network.istn.transformation, result["theta"][None], Grid.of(result["image"]),
    )  # fmt: skip
    # labels lie where the initial alignment has put them
    known = result | {"fixed_label_original": pair["fixed_label"]}
    found = label_metrics(known, result["pred"][None], soi_labels, transform)
    return {"dice_merged": found["dice_merged"], "dice": found["dice_labels"], "seconds": seconds}


def main(
    data: str,
    case: str,
    pairs: int = 20,
    alignments: str | Sequence[str] | None = None,
    output: str | None = None,
) -> None:
    model, groups, plain, default = CASES[case]
    names = listed(alignments or default)
    source = Path(data).absolute() / case
    items = json.loads((source / "pairs_100.json").read_text(encoding="utf-8"))["testing"][:pairs]
    file = Path(output or RESULTS / f"turned_{case}.json")
    code = code_hash()
    rows: list[Row] = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    runs = {("as it is", plain): None} | {("turned", name): None for name in names}
    ready = {name: Registration(model, initial_alignment=name, qa=False) for name in {plain, *names}}
    for number, item in enumerate(items):
        rng = np.random.default_rng(number)
        loaded = {key: LOAD(source / name) for key, name in item.items()}
        linear, shift = motion(rng, np.array(loaded["moving_image"].pixdim))
        turned = loaded | {
            f"moving_{kind}": moved(loaded[f"moving_{kind}"], linear, shift, order)
            for kind, order in (("image", 1), ("label", 0))
        }
        labels = groups or [[value] for value in loaded["fixed_label"].unique().int().tolist() if value]
        for how, name in runs:
            key = {"pair": number, "moving": how, "initial_alignment": name, "code": code}
            if any(key.items() <= row.items() for row in rows):
                continue
            row = registered(ready[name], turned if how == "turned" else loaded, labels)
            rows = [old for old in rows if not {**key, "code": old["code"]}.items() <= old.items()] + [key | row]
            print(*(f"{value:.4f}" if isinstance(value, float) else value for value in rows[-1].values()), flush=True)
            write({"provenance": provenance("cpu", case=case, pairs=pairs), "rows": rows}, file)
    means = {
        f"{how}, {name}": {
            measure: statistics.mean(
                row[measure] for row in rows if (row["moving"], row["initial_alignment"]) == (how, name)
            )
            for measure in ("dice_merged", "dice", "seconds")
        }
        for how, name in runs
    }
    write({"provenance": provenance("cpu", case=case, pairs=pairs), "means": means, "rows": rows}, file)
    print(json.dumps(means, indent=1), f"\nwritten: {file}")


if __name__ == "__main__":
    fire.Fire(main)
