"""Writing a registered pair to disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import nn

from istn_monai.checks import check_output_dir
from istn_monai.dictionary import affine_of
from istn_monai.export import write_displacement, write_transform
from istn_monai.metrics import folding_fraction, sd_log_jacobian
from istn_monai.transformation import Transformation
from istn_monai.world_transform import world_transform

IMAGES = ("warped", "warped_label", "moving_representation", "fixed_representation")
DISPLACEMENT, TRANSFORM = "displacement.nii.gz", "transform.h5"
OUTPUTS = (*(f"{name}.nii.gz" for name in IMAGES), DISPLACEMENT, TRANSFORM, "report.json")


def check_pair_files(output_dir: str | Path, **files: str | None) -> Path:
    """Refuses missing input files, and an output folder where a result would replace an input.

    Args:
        output_dir: folder for results.
        files: ``moving_image``, ``fixed_image`` and, optionally, ``moving_label``.

    Returns:
        The folder's absolute path, made.
    """
    outputs = {Path(output_dir).expanduser().absolute() / name for name in OUTPUTS}
    for key, file in files.items():
        if file is None:
            if key.endswith("image"):
                raise ValueError(f"{key} is not set: give --{key} FILE")
            continue
        path = Path(file).expanduser().absolute()
        if not path.exists():
            raise FileNotFoundError(f"{key}: no such file: {path}")
        if path in outputs:
            raise FileExistsError(f"{key} {path} would be replaced by a result: choose another output_dir")
    return check_output_dir(output_dir)


def save_image(image: MetaTensor, file: Path) -> None:
    """Writes a channel-first image as NIfTI, several channels as its last axis."""
    array = image.as_tensor().detach().cpu().numpy()
    dims = array.ndim - 1
    if array.dtype.kind == "i":  # label maps: as few bytes as their values need
        array = array.astype(np.result_type(*(np.min_scalar_type(int(value)) for value in (array.min(), array.max()))))
    channels, *size = array.shape
    # NIfTI's first three axes are space, so channels are the fourth
    array = array[0] if channels == 1 else np.moveaxis(array, 0, -1).reshape(*size, *[1] * (3 - dims), channels)
    affine = np.eye(4)
    original = np.asarray(image.meta.get("original_affine", affine))
    if original.shape == affine.shape:
        affine = original.astype(float)  # a 2-D image keeps its plane in space
    small = affine_of(image).numpy()
    affine[:dims, :dims], affine[:dims, 3] = small[:dims, :dims], small[:dims, dims]
    nib.save(nib.Nifti1Image(array, affine), file)


def weights_hash(network: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def file_hash(file: str) -> str | None:
    """SHA-256 of a file; None for a folder."""
    path = Path(file)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


class SavePairHandler:
    """Evaluator handler: writes images, transforms and ``report.json``; ``OUTPUTS`` lists them.

    Args:
        output_dir: folder.
        network: whose weights are named in the report.
        options: resolved settings for the report.
        transformation: whose parameters ``theta`` is; None writes the displacement field alone.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        options: Mapping[str, Any] | None = None,
        transformation: Transformation | None = None,
    ) -> None:
        self.output_dir = Path(output_dir).expanduser().absolute()
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
        if "displacement" in pair:
            field = pair["displacement"]
            write_displacement(field.as_tensor().cpu(), affine_of(field), self.output_dir / DISPLACEMENT)
        if self.transformation is not None and "theta" in pair:
            theta, start = (torch.as_tensor(pair[key]) for key in ("theta", "initial_alignment"))
            transform = world_transform(self.transformation, theta[None], affine_of(pair["image"]), start)
            write_transform(transform, self.output_dir / TRANSFORM)
        report = self.report(pair, ddf)
        (self.output_dir / "report.json").write_text(json.dumps(report, indent=1, default=str))
        print(f"registered: results in {self.output_dir}")

    def report(self, pair: Mapping[str, Any], ddf: torch.Tensor) -> dict[str, Any]:
        """What was done, with what, and how regular the field is."""
        inputs = {}
        for key in ("moving_image", "fixed_image", "moving_label"):
            if f"{key}_original" in pair:
                image = pair[f"{key}_original"]
                file = str(image.meta["filename_or_obj"])
                original = np.asarray(image.meta["original_affine"]).tolist()
                inputs[key] = {
                    "file": file, "sha256": file_hash(file), "shape": list(image.shape[1:]), "affine": original
                }  # fmt: skip
        field = ddf[None].cpu()
        return {
            "versions": {"monai": monai.__version__, "torch": torch.__version__},
            "weights_sha256": weights_hash(self.network),
            "options": self.options,
            "inputs": inputs,
            "initial_alignment": torch.as_tensor(pair["initial_alignment"]).tolist(),
            "registration_grid": {"shape": list(ddf.shape[1:]), "affine": affine_of(pair["image"]).tolist()},
            "frame": "affines and initial_alignment in RAS mm; initial_alignment maps fixed to moving world points",
            "transforms": {
                TRANSFORM: "ITK composite, fixed to moving points, LPS mm",
                DISPLACEMENT: "vectors in LPS mm on the fixed image's grid, from fixed to moving points",
            },
            "refinement": {
                name: torch.as_tensor(value).tolist()
                for name, value in getattr(pair.get("pred"), "meta", {}).get("refinement", {}).items()
            },
            "max_displacement_voxels": ddf.norm(dim=0).max().item(),
            "folding_fraction": folding_fraction(field).item(),
            "sdlogj": sd_log_jacobian(field).item(),
        }
