"""Small images, files and networks that several test modules need."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.transformation import Transformation
from istn_monai.network_settings import NetworkSettings
from istn_monai.networks import ISTN, ITN, ISTNOutput
from istn_monai.stn import STN
from istn_monai.weights import described, save_atomically

BUNDLE = Path(__file__).parents[1] / "bundle"
#: real data sets, outside the project; see the README
DATA_DIR = Path(os.environ.get("ISTN_DATA_DIR", BUNDLE.parents[1] / "shared" / "data")).expanduser().absolute()


def config(*names: str) -> list[str]:
    """Files of the bundle's configs."""
    return [str(BUNDLE / "configs" / f"{name}.json") for name in names]


def messages(error: BaseException | None) -> str:
    """All texts of an error and of what caused it: MONAI wraps what an expression raises."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own, so that no test depends on the order of tests."""
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [0, 1], the same for the same seed."""
    return torch.rand(*shape, generator=seeded(seed))


def ball(shape, center, radius: float) -> np.ndarray:
    """A filled ball (ellipse, in 2-D a disc) as uint8 0 and 1."""
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return (sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2).astype(np.uint8)


def meta(array, affine=None, name: str | None = None) -> MetaTensor:
    """A channel-first image with an affine and, if wanted, a file name."""
    tensor = torch.as_tensor(np.asarray(array))
    return MetaTensor(
        tensor,
        affine=torch.eye(tensor.ndim) if affine is None else torch.as_tensor(affine),
        meta={"filename_or_obj": name} if name else None,
    )


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    """Writes a NIfTI file, also with affines that nibabel's constructor would decompose and refuse.

    The voxel sizes agree with the affine: else MONAI's reader takes the header for broken and repairs it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(array), np.eye(4))
    if affine is not None:
        image.header.set_sform(affine, code=2)
        image.header.set_qform(None, code=0)
        image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0)[: np.ndim(array)])
        image = nib.Nifti1Image(np.asarray(array), None, image.header)
    nib.save(image, path)
    return str(path)


def pair_files(folder: Path, dims: int, turn: int = 1, radius: float = 0) -> dict[str, str]:
    """Moving and fixed image and label, oblique, anisotropic, of different size, spacing and place.

    Args:
        folder: to write to.
        dims: 2 or 3.
        turn: whether the fixed image is turned against the moving one; 0 for alike.
        radius: of a second structure in the label; 0 for none.
    """
    from oracles import oblique_affine, smooth_image  # which need itk

    files = {}
    for seed, side in enumerate(("moving", "fixed")):
        size = ((26, 19, 22), (21, 25, 18))[seed][:dims]
        spacing = ((1.4, 1.1, 1.7), (1.2, 1.0, 1.9))[seed][:dims]
        affine = oblique_affine(size, spacing, turn * seed + 3, [(40.0, -7.0, 12.0), (-3.0, 55.0, 8.0)][seed][:dims])
        full = np.eye(4)
        full[:dims, :dims], full[:dims, 3] = affine[:dims, :dims], affine[:dims, dims]
        label = ball(size, [s / 2 for s in size], 5)
        label = label + ball(size, [s / 3 for s in size], radius) if radius else label
        image = (200 * smooth_image(size, seed)).astype(np.int16)
        files[f"{side}_image"] = write_nifti(folder / f"{side}.nii.gz", image, full)
        files[f"{side}_label"] = write_nifti(folder / f"{side}_label.nii.gz", label, full)
    return files


def write_subjects(folder: Path, number: int, shape=(10, 12, 11), seed: int = 0) -> list[dict[str, str]]:
    """Images and label maps (1 and 2) on disk, one ``{"image", "label"}`` for each subject."""
    rng = np.random.default_rng(seed)
    files = []
    for index in range(number):
        center = [s / 2 + rng.uniform(-1, 1) for s in shape]
        label = 2 * ball(shape, center, 3.5) - ball(shape, center, 2)
        image = (label + rng.normal(0, 0.1, shape)).astype(np.float32)
        files.append(
            {
                "image": write_nifti(folder / "images" / f"case_{index:02d}.nii.gz", image),
                "label": write_nifti(folder / "labels" / f"case_{index:02d}.nii.gz", label.astype(np.uint8)),
            }
        )
    return files


def pair_of(moving: dict[str, str], fixed: dict[str, str]) -> dict[str, str]:
    """The datalist item of two subjects."""
    return {f"{side}_{key}": f[key] for side, f in (("moving", moving), ("fixed", fixed)) for key in f}


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def random_checkpoint(folder: Path, settings: dict) -> dict:
    """Random weights whose heads move points by some millimeters, and the settings with the place they are at."""
    names = {field.name for field in fields(NetworkSettings)}
    described_by = NetworkSettings(**{name: value for name, value in settings.items() if name in names})
    torch.manual_seed(0)
    network = described_by.network()
    torch.manual_seed(0)  # whatever the network has drawn
    for head in network.istn.stn.heads:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.6)
    state = described(network.state_dict(), {"settings": described_by.state_dict()})
    save_atomically(state, folder / "model.pt")
    return settings | {"ckpt_dir": str(folder)}


def small_istn(
    spatial_size=(12, 11), itn: bool = True, channels: int = 1, transformation: Transformation | None = None, seed=0
) -> ISTN:
    """A tiny ISTN (seeded weights) for a 2-D or 3-D grid."""
    torch.manual_seed(seed)
    transformation = transformation or AffineTransformation(spatial_size)
    dims = transformation.spatial_dims
    return ISTN(ITN(dims, 1, channels) if itn else None, STN(dims, 2 * channels, transformation, 2, 8), transformation)


def perturb(network: torch.nn.Module, seed: int = 1, scale: float = 0.05) -> torch.nn.Module:
    """Moves all weights a little, so that zero-initialized heads move images."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return network


def random_output(
    spatial_size=(6, 7), batch: int = 2, image_channels: int = 1, channels: int = 1, amplitude: float = 1.3, seed=0
) -> ISTNOutput:
    """What a network might give: random images, representations, and a ddf of up to ``amplitude`` voxels."""
    dims = len(spatial_size)
    image = rand(batch, 2 * image_channels, *spatial_size, seed=seed)
    moving, fixed = (rand(batch, channels, *spatial_size, seed=seed + n) for n in (1, 2))
    ddf = amplitude * (2 * rand(batch, dims, *spatial_size, seed=seed + 3) - 1)
    return ISTNOutput(image, moving, fixed, torch.zeros(batch, 6), ddf)
