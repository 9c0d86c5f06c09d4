"""Landmark error between two brain templates, registered on their intensities by the Refiner alone, without a network.

    python benchmarks/landmarks.py --data DIR [--splits 10]

DIR holds ``templates``: MNI152NLin6Asym (moving) and Colin27 (fixed), 32 anatomical landmarks each. Prints the mean
target registration error in mm for no registration, rigid, affine, and affine with B-splines; then that of 16 random
landmarks that guide the registration, and of the 16 others, without and with them. Writes all to
``benchmarks/results/landmarks.json``.
"""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import fire
import torch
from common import RESULTS, provenance, write
from monai.losses import BendingEnergyLoss, LocalNormalizedCrossCorrelationLoss
from monai.transforms import Compose, LoadImaged
from torch import Tensor

from istn_monai import AffineTransformation, BSplineTransformation, CompositeTransformation
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform, world_transform
from istn_monai.metrics import folding_fraction, jacobian_determinant
from istn_monai.refinement import Refiner
from istn_monai.transforms.preprocessing import InitialAlignmentd, NormalizeIntensityRanged
from istn_monai.transforms.registration_grid import RegistrationGridd

FILES = {"moving_image": "MNI152_T1_1mm_brain.nii.gz", "fixed_image": "ch2bet.nii.gz"}
SPACES = {"moving": "MNI152NLin6Asym", "fixed": "Colin27"}
SIZE, SPACING = (72, 88, 72), 2.5
CONTROL_SPACING = (40.0, 20.0)
#: with landmarks that guide: finer, so that each can be met
GUIDED_SPACING = (40.0, 20.0, 10.0)
WEIGHTS = {"image": 0.05, "bending": 2.0}
LANDMARKS = 0.001  # a tenth of the default, which has to hold out against structures of weight 1
STEPS = 100


def landmarks(folder: Path, space: str) -> Tensor:
    """``(3, N)`` in mm, RAS."""
    with open(folder / "afids32_ras_mm.csv", encoding="utf-8", newline="") as file:
        rows = [[float(row[f"{space}_{axis}"]) for axis in "xyz"] for row in csv.DictReader(file)]
    return torch.tensor(rows, dtype=torch.float64).T


def errors(transform: WorldTransform | None, fixed: Tensor, moving: Tensor) -> dict[str, float]:
    """Distances in mm of the moving landmarks from where the fixed ones are mapped to."""
    found = fixed if transform is None else transform.transform_points(fixed)
    distance = (found - moving).norm(dim=0)
    return {"mean": distance.mean().item(), "median": distance.median().item(), "max": distance.max().item()}


def guided(
    pair: dict[str, Any], affine: Tensor, fixed: Tensor, moving: Tensor, splits: int, weight: float = LANDMARKS
) -> dict[str, Any]:
    """Errors with and without 16 landmarks that guide, for each of several random splits.

    Args:
        pair: on the registration grid.
        affine: theta of the affine registration to start from.
        fixed: landmarks ``(3, 32)`` in mm.
        moving: likewise.
        splits: how many.
        weight: of the landmarks.
    """
    levels = [BSplineTransformation(SIZE, SPACING, spacing) for spacing in GUIDED_SPACING]
    transformation = CompositeTransformation([AffineTransformation(SIZE, SPACING), *levels])
    theta = torch.nn.functional.pad(affine, (0, transformation.num_parameters - affine.shape[1]))
    images, grid = [pair[key].as_tensor()[None] for key in FILES], Grid.of(pair["fixed_image"])

    def registered(chosen: Tensor | None) -> tuple[Tensor, float]:
        """Errors ``(32,)`` in mm, and the fraction of voxels that fold."""
        weights = WEIGHTS | ({} if chosen is None else {"landmarks": weight})
        points = {"moving_points": moving, "fixed_points": fixed}
        guidance = {} if chosen is None else {n: grid.voxels(p[:, chosen])[None].float() for n, p in points.items()}
        refiner = Refiner(steps=STEPS, learning_rate=0.1, weights=weights)
        result = refiner.register(transformation, *images, theta, guidance=guidance)
        transform = world_transform(transformation, result.theta, grid, pair["initial_alignment"])
        folding = folding_fraction(jacobian_determinant(result.ddf)).item()
        return (transform.transform_points(fixed) - moving).norm(dim=0), folding

    alone, _ = registered(None)
    rows = []
    for seed in range(splits):
        order = torch.randperm(fixed.shape[1], generator=torch.Generator().manual_seed(seed))
        chosen, others = order.chunk(2)
        errors, folding = registered(chosen)
        rows.append(
            {
                "chosen": errors[chosen].median().item(),
                "others": errors[others].median().item(),
                "others_without": alone[others].median().item(),
                "folding": folding,
            }
        )
        print("  ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()), flush=True)
    medians = {name: torch.tensor([row[name] for row in rows]).median().item() for name in rows[0]}
    return {"weights": WEIGHTS | {"landmarks": weight}, "splits": rows, "medians": medians}


def main(data: str, threads: int = 2, splits: int = 10) -> None:
    torch.set_num_threads(threads)
    folder = Path(data) / "templates"
    fixed, moving = (landmarks(folder, SPACES[side]) for side in ("fixed", "moving"))
    load = [
        LoadImaged(list(FILES), image_only=True, ensure_channel_first=True),
        InitialAlignmentd("world"),
        NormalizeIntensityRanged(),
        RegistrationGridd(SIZE, SPACING),
    ]
    pair: dict[str, Any] = Compose(load)({key: str(folder / name) for key, name in FILES.items()})
    images = [pair[key].as_tensor()[None] for key in FILES]
    affine = AffineTransformation(SIZE, SPACING)
    rigid = AffineTransformation(SIZE, SPACING, max_log_scale=0.0, max_shear=0.0)
    levels = [BSplineTransformation(SIZE, SPACING, spacing) for spacing in CONTROL_SPACING]
    lncc = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=7)
    linear = Refiner(steps=100, learning_rate=0.02, similarity=lncc)
    smooth = Refiner(
        steps=100, learning_rate=0.05, similarity=lncc, regularization=BendingEnergyLoss(), regularization_weight=1.0
    )
    rows: dict[str, dict[str, Any]] = {"none": errors(None, fixed, moving)}
    theta = linear_theta = None
    for name, transformation, refiner in (
        ("rigid", rigid, linear),
        ("affine", affine, linear),
        ("affine + B-splines", CompositeTransformation([affine, *levels]), smooth),
    ):
        begin = time.perf_counter()
        if theta is not None:  # goes on from the one before, whose parameters come first
            theta = torch.nn.functional.pad(theta, (0, transformation.num_parameters - theta.shape[1]))
        result = refiner.register(transformation, *images, theta)
        theta = result.theta
        linear_theta = theta if name == "affine" else linear_theta
        transform = world_transform(transformation, theta, Grid.of(pair["fixed_image"]), pair["initial_alignment"])
        rows[name] = errors(transform, fixed, moving) | {
            "folding": folding_fraction(jacobian_determinant(result.ddf)).item(),
            "seconds": time.perf_counter() - begin,
        }
        print(f"{name:20} TRE {rows[name]['mean']:.2f} mm (before {rows['none']['mean']:.2f})", flush=True)
    result: dict[str, Any] = {"provenance": provenance("cpu", pair=FILES), "target_registration_error_mm": rows}
    if splits:
        result["landmarks_that_guide"] = guided(pair, linear_theta, fixed, moving, splits)
        print(result["landmarks_that_guide"]["medians"])
    write(result, RESULTS / "landmarks.json")


if __name__ == "__main__":
    fire.Fire(main)
