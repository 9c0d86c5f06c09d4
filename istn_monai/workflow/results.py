"""Writing a registered pair to disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import get_package_version
from torch import nn

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.meta import affine_of
from istn_monai.geometry.transformation import Transformation
from istn_monai.geometry.world_transform import WorldTransform, world_transform
from istn_monai.inferer import refinement_of
from istn_monai.io.images import save_image
from istn_monai.io.itk_transforms import write_displacement, write_transform
from istn_monai.io.paths import absolute, check_output_dir
from istn_monai.metrics import FIELD_METRICS, field_metrics, without_nan
from istn_monai.qa.inspector import PairInspector

IMAGES = ("warped", "warped_label", "moving_representation", "fixed_representation")
DISPLACEMENT, TRANSFORM, INVERSE = "displacement.nii.gz", "transform.h5", "inverse_transform.h5"
QA_PAGE = "qa.png"
MARGIN = 4  # steps of the inverse's field around the moving image, beyond which it would be truncated
OUTPUTS = (*(f"{name}.nii.gz" for name in IMAGES), DISPLACEMENT, TRANSFORM, INVERSE, QA_PAGE, "report.json")


def check_pair_files(output_dir: str | Path, **files: str | None) -> Path:
    """Refuses missing input files, and an output folder where a result would replace an input.

    Args:
        output_dir: folder for results.
        files: ``moving_image``, ``fixed_image`` and, optionally, ``moving_label``.

    Returns:
        The folder's absolute path, made.
    """
    outputs = {absolute(output_dir) / name for name in OUTPUTS}
    for key, file in files.items():
        if file is None:
            if key.endswith("image"):
                raise ValueError(f"{key} is not set: give --{key} FILE")
            continue
        path = absolute(file)
        if not path.exists():
            raise FileNotFoundError(f"{key}: no such file: {path}")
        if path in outputs:
            raise FileExistsError(f"{key} {path} would be replaced by a result: choose another output_dir")
    return check_output_dir(output_dir)


def covering_grid(image: Grid, spacing: float) -> Grid:
    """A grid of at least ``spacing`` mm that covers an image and ``MARGIN`` steps around it."""
    factors = [max(1.0, spacing / step) for step in image.spacing]
    steps = [math.ceil((n - 1) / factor - 1e-6) for n, factor in zip(image.spatial_size, factors, strict=True)]
    to_voxel = torch.diag(torch.tensor([*factors, 1.0], dtype=torch.float64))
    to_voxel[:-1, -1] = -MARGIN * to_voxel.diagonal()[:-1]
    return Grid(tuple(n + 1 + 2 * MARGIN for n in steps), image.affine @ to_voxel)


def inverse_of(
    transform: WorldTransform, pair: Mapping[str, Any], start: torch.Tensor, spacing: float
) -> tuple[WorldTransform, dict[str, float]]:
    """The inverse, and how far from themselves points of the fixed image come back in mm, through both.

    Args:
        transform: of the pair.
        pair: with the original images.
        start: the initial alignment, which the original moving image's affine has.
        spacing: of the field that the inverse is kept as, in mm.
    """
    aligned, fixed = (Grid.of(pair[f"{side}_image_original"]) for side in ("moving", "fixed"))
    moving = Grid(aligned.spatial_size, start.double() @ aligned.affine)  # as in its file
    inverse = transform.inverse(covering_grid(moving, spacing))
    points = fixed.points().flatten(1)
    moved = transform.transform_points(points)
    seen = moving.contains(moved)
    if not seen.any():
        return inverse, {}
    error = (inverse.transform_points(moved[:, seen]) - points[:, seen]).norm(dim=0)
    return inverse, {"mean": error.mean().item(), "max": error.max().item()}


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_hash(file: str) -> str | None:
    """SHA-256 of a file, or of all files in a folder (a DICOM series) one after another, by name; None for nothing."""
    path = Path(file)
    digest = hashlib.sha256()
    for single in [path] if path.is_file() else sorted(path.rglob("*")):
        if single.is_file():
            digest.update(single.read_bytes())
    return digest.hexdigest() if path.exists() else None


class SavePairHandler:
    """Evaluator handler: writes images, transforms and ``report.json``; ``OUTPUTS`` lists them.

    Args:
        output_dir: folder.
        network: whose weights are named in the report.
        options: resolved settings for the report.
        transformation: whose parameters ``theta`` is; None writes the displacement field alone.
        inverse: also writes the transform from moving to fixed points.
        qa: also writes a QA page, and its status and reasons into the report; see :mod:`istn_monai.qa`.
        soi_labels: groups of label values that the network was trained on, None for real-valued maps; for the QA page.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        options: Mapping[str, Any] | None = None,
        transformation: Transformation | None = None,
        inverse: bool = False,
        qa: bool = True,
        soi_labels: Sequence[Sequence[int]] | None = ((1,),),
    ) -> None:
        self.inverse = inverse
        self.inspect = PairInspector(network, soi_labels) if qa else None
        self.output_dir = absolute(output_dir)
        self.network = network
        self.transformation = transformation
        self.options = dict(options or {})

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        # MONAI's postprocessing leaves what it adds in the output, what it was given in the batch
        for pair, output in zip(engine.state.batch, engine.state.output, strict=True):
            self.save(pair | output, torch.as_tensor(output["pred"]))

    def save(self, pair: Mapping[str, Any], ddf: torch.Tensor) -> None:
        """Writes one pair's results; ``ddf`` is ``(D, *S)``."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        for name in IMAGES:
            if name in pair:
                save_image(pair[name], self.output_dir / f"{name}.nii.gz")
        transforms = self.save_transforms(pair)
        report = self.report(pair) | {"transforms": transforms}
        note = ""
        if self.inspect is None:
            report["metrics"] = field_metrics(ddf.cpu(), Grid.of(pair["image"]).spacing)
        else:
            verdict, page = self.inspect(pair)
            page.save(self.output_dir / QA_PAGE)
            report["metrics"] = {name: verdict.metrics[name] for name in FIELD_METRICS}
            report["qa"] = verdict.report()
            note = f"; QA {verdict.status}, see {QA_PAGE}"
        (self.output_dir / "report.json").write_text(json.dumps(without_nan(report), indent=1, default=str))
        print(f"registered: results in {self.output_dir}{note}")

    def save_transforms(self, pair: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Writes what there is of transforms; what they are, for the report."""
        written: dict[str, dict[str, Any]] = {}
        if "displacement" in pair:
            field = pair["displacement"]
            write_displacement(field.as_tensor().cpu(), affine_of(field), self.output_dir / DISPLACEMENT)
            written[DISPLACEMENT] = {
                "maps": "fixed to moving points",
                "frame": "LPS mm",
                "on": "the fixed image's grid",
            }
        if self.transformation is None or "theta" not in pair:
            return written
        theta, start = (torch.as_tensor(pair[key]) for key in ("theta", "initial_alignment"))
        transform = world_transform(self.transformation, theta[None], Grid.of(pair["image"]), start)
        write_transform(transform, self.output_dir / TRANSFORM)
        written[TRANSFORM] = {"maps": "fixed to moving points", "frame": "LPS mm"}
        if self.inverse:
            inverse, residual = inverse_of(transform, pair, start, min(self.transformation.spacing))
            write_transform(inverse, self.output_dir / INVERSE)
            written[INVERSE] = {"maps": "moving to fixed points", "frame": "LPS mm", "residual_mm": residual}
        return written

    def report(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """What was done, and with what."""
        inputs = {}
        for key in ("moving_image", "fixed_image", "moving_label"):
            if f"{key}_original" in pair:
                image = pair[f"{key}_original"]
                file = image.meta.get("filename_or_obj")  # an image from memory has none
                inputs[key] = {
                    "file": file and str(file),
                    "sha256": file and file_hash(str(file)),
                    "shape": list(image.shape[1:]),
                    "affine": np.asarray(image.meta["original_affine"]).tolist(),
                }
        grid, refinement = Grid.of(pair["image"]), refinement_of(pair["pred"])
        return {
            "versions": {
                "istn-monai": get_package_version("istn_monai"),
                "monai": monai.__version__,
                "torch": torch.__version__,
            },
            "weights_sha256": weights_hash(self.network),
            "options": self.options,
            "inputs": inputs,
            "initial_alignment": torch.as_tensor(pair["initial_alignment"]).tolist(),
            "registration_grid": {"shape": list(grid.spatial_size), "affine": grid.affine.tolist()},
            "frame": "affines and initial_alignment in RAS mm; initial_alignment maps fixed to moving world points",
            "refinement": {} if refinement is None else asdict(refinement.report),
        }
