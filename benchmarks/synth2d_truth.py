"""Landmark files for the authors' 2-D toy, which has its landmarks as maps and its true transformations as matrices.

A map's peaks in the fixed image, and where the truth takes them: the error of a registration there is in pixels, which
the project reads as mm. The matrices take pixels (column, row) of an untransformed tree to those of either image.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from istn_monai.io.landmarks import Points, to_ras, write_points


def peaks(file: Path) -> np.ndarray:
    """Columns and rows ``(N, 2)`` of a map's local maxima above half its own, away from its border."""
    values = np.asarray(Image.open(file), dtype=float).T
    highest = (values == ndimage.maximum_filter(values, 7)) & (values > values.max() / 2)
    labels, number = ndimage.label(highest, np.ones((3, 3)))
    found = np.array(ndimage.center_of_mass(highest, labels, range(1, number + 1)))
    return found[((found > 2) & (found < np.array(values.shape) - 3)).all(1)]


def truth(moving: Path, fixed: Path) -> np.ndarray:
    """``(3, 3)``, pixels of the fixed image to pixels of the moving one."""
    matrices = [np.loadtxt(file.with_name(f"{file.stem}_transform.txt")) for file in (moving, fixed)]
    to_moving, to_fixed = (matrix[np.ix_([0, 1, 3], [0, 1, 3])] for matrix in matrices)
    return np.linalg.solve(to_moving, to_fixed)


def truth_list(folder: Path, output: Path) -> Path:
    """A datalist of the toy's test pairs with landmark files in the place of maps.

    Args:
        folder: of the toy, with ``pairs.json``.
        output: folder to write the files to.
    """
    items = []
    for number, pair in enumerate(json.loads((folder / "pairs.json").read_text(encoding="utf-8"))["testing"]):
        item = {key: str(folder / file) for key, file in pair.items() if key.endswith(("image", "label"))}
        fixed = peaks(folder / pair["fixed_points"])
        matrix = truth(Path(item["moving_image"]), Path(item["fixed_image"]))
        moving = fixed @ matrix[:2, :2].T + matrix[:2, 2]
        for side, pixels in (("moving", moving), ("fixed", fixed)):
            labels = tuple(f"peak_{index}" for index in range(len(pixels)))
            file = output / f"pair_{number:02d}_{side}_points.csv"
            item[f"{side}_points"] = str(write_points(Points(to_ras(torch.as_tensor(pixels), "LPS"), labels), file))
        items.append(item)
    path = output / "pairs.json"
    path.write_text(json.dumps({"testing": items}, indent=1), encoding="utf-8")
    return path
