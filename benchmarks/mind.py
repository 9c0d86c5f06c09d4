"""MIND-SSC against ConvexAdam's (pip install --no-deps convexAdam): random images, and a whole brain.

    python benchmarks/mind.py

Writes ``results/mind.json``. ConvexAdam orders the channels as its C++ code did: they are compared in sorted order.
"""

from __future__ import annotations

import common
import fire
import torch
from speed import DATA

from istn_monai.io.images import read_image
from istn_monai.mind import mind_ssc

BRAIN = DATA.parent / "templates" / "ch2bet.nii.gz"
TOLERANCE = 1e-4


def main() -> None:
    from convexAdam.convex_adam_utils import MINDSSC

    images = {f"random {size}": torch.rand(1, 1, *size) for size in ((20, 22, 24), (33, 17, 29))}
    if BRAIN.is_file():
        brain = read_image(BRAIN).as_tensor()[None].float()
        images[BRAIN.name] = brain / brain.max()
    rows = []
    for name, image in images.items():
        for radius, dilation in ((2, 2), (1, 2), (1, 1)):
            own = mind_ssc(image, radius, dilation).sort(1)[0]
            theirs = MINDSSC(image, radius, dilation, device="cpu").sort(1)[0]
            error = common.largest_difference(own, theirs)
            what = f"{name}, radius {radius}, dilation {dilation}"
            rows.append({"what": what, "candidate": "MIND-SSC", "error": error, "tolerance": TOLERANCE})
            print(common.line(rows[-1]), flush=True)
    provenance = common.provenance("cpu", convexAdam=common.version("convexAdam"))
    common.write({"provenance": provenance, "rows": rows}, common.RESULTS / "mind.json")
    common.must_agree(rows)


if __name__ == "__main__":
    fire.Fire(main)
