"""The picture of the two random contrasts in the documentation: one image, drawn again and again.

    python benchmarks/contrast_gallery.py --data DATA/hippocampus --output docs/pictures/contrasts.png

The first row is the image, its structures, and ``RandContrastMapd``; the second one ``RandImageFromLabelsd``.
"""

from __future__ import annotations

from pathlib import Path

import fire
import torch
from common import SEED
from monai.data import MetaTensor
from PIL import Image
from torch import Tensor

from istn_monai import LoadPaird, NormalizeIntensityRanged, RandContrastMapd, RandImageFromLabelsd, SoIGroupsd
from istn_monai.io.datalist import read_datalist

DRAWS, ZOOM, GAP = 6, 4, 4
COLORS = torch.tensor([[0.85, 0.19, 0.15], [0.1, 0.6, 0.3]])  # of the structures


def plane(volume: Tensor, index: int) -> Tensor:
    """A sagittal plane ``(C, height, width)``, superior up, of ``(C, x, y, z)``."""
    return volume[:, index].transpose(1, 2).flip(1)


def colored(gray: Tensor, soi: Tensor) -> Tensor:
    """``(3, H, W)``: a gray plane ``(1, H, W)`` with structures ``(K, H, W)`` on it."""
    color = torch.einsum("kc,khw->chw", COLORS, soi)
    return gray * (1 - 0.5 * soi.sum(0)) + 0.5 * color


def row(pictures: list[Tensor]) -> Tensor:
    """Pictures ``(3, H, W)`` side by side, with white between them."""
    white = torch.ones(3, pictures[0].shape[1], GAP)
    return torch.cat([part for picture in pictures for part in (picture, white)][:-1], dim=2)


def draws(transform: RandContrastMapd | RandImageFromLabelsd, pair: dict[str, MetaTensor], index: int) -> list[Tensor]:
    """The plane in several draws."""
    made = [transform.set_random_state(SEED + number)(pair)["image"].as_tensor() for number in range(DRAWS)]
    return [plane(image, index).expand(3, -1, -1) for image in made]


def main(data: str, output: str = "contrasts.png", pair: int = 0) -> None:
    item = read_datalist(Path(data) / "pairs_100.json", ["testing"])["testing"][pair]
    loaded = LoadPaird()({"moving_image": item["moving_image"], "moving_label": item["moving_label"]})
    loaded = SoIGroupsd(["moving_label"], [[1], [2]])(NormalizeIntensityRanged("moving_image")(loaded))
    one = {"image": loaded["moving_image"], "label": loaded["moving_label"]}
    index = int(one["label"].as_tensor().sum((0, 2, 3)).argmax())
    gray, soi = (plane(one[key].as_tensor().float(), index) for key in ("image", "label"))
    both = [gray.expand(3, -1, -1), colored(gray, soi)]
    rows = [
        row(both + draws(RandContrastMapd("image", prob=1.0), one, index)),
        row(both + draws(RandImageFromLabelsd("image", "label", prob=1.0), one, index)),
    ]
    white = torch.ones(3, GAP, rows[0].shape[2])
    sheet = torch.cat([rows[0], white, rows[1]], dim=1).clamp(0, 1)
    enlarged = sheet.repeat_interleave(ZOOM, 1).repeat_interleave(ZOOM, 2)
    Image.fromarray((255 * enlarged).byte().permute(1, 2, 0).numpy()).save(output)


if __name__ == "__main__":
    fire.Fire(main)
