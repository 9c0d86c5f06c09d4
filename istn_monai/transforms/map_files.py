"""Maps that come with an image, such as probabilities of structures: several channels, from one file or several."""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from istn_monai.geometry.grids import Grid, square
from istn_monai.io.file_checks import check_file
from istn_monai.io.images import read_or_explain
from istn_monai.io.json_files import read_json
from istn_monai.io.readers import is_nifti
from istn_monai.transforms.keys import MAP_KEYS

FIRST = re.compile(r"_0000(?=\.[^/]+$)")  # nnU-Net's suffix of the first channel
MOST_CHANNELS = 100
KEY = "probabilities"  # of an nnU-Net prediction's archive
#: what `register` writes beside its report, in the world of the initial alignment
ALIGNED, REPORT = "moving_representation.nii.gz", "report.json"


def channel_files(file: str | Path) -> list[Path]:
    """The files of all channels, in order: of ``NAME_0000.nii.gz`` also ``NAME_0001.nii.gz`` and so on; else the file.

    Examples:
        >>> [path.name for path in channel_files("/nowhere/maps.nii.gz")]
        ['maps.nii.gz']
    """
    path = Path(file).expanduser()
    if not FIRST.search(path.name):
        return [path]
    numbered = [path.with_name(FIRST.sub(f"_{number:04d}", path.name)) for number in range(1, MOST_CHANNELS)]
    there = [other.is_file() for other in numbered]
    if not all(there[: sum(there)]):
        missing = numbered[there.index(False)].name
        raise ValueError(f"of the channels of {path}, {missing} is missing, and later ones are there")
    return [path, *numbered[: sum(there)]]


def with_channels(files: Mapping[str, str]) -> dict[str, str]:
    """Files of a pair by key, with the further files of maps, which are inputs as the first one is."""
    further = {
        f"{key}_{number:04d}": str(path)
        for key in MAP_KEYS
        if files.get(key)
        for number, path in enumerate(channel_files(files[key]))
        if number
    }
    return dict(files) | further


def read_maps(file: str | Path, key: str, image: MetaTensor, nifti_frame: str | None = None) -> MetaTensor:
    """Maps ``(K, *S)`` float32, on a grid of their own, where ITK sees them.

    Args:
        file: an image of several channels; the first of several files, see :func:`channel_files`; or nnU-Net's
            ``.npz`` of probabilities, which has no affine and is on its image's grid.
        key: what errors call it.
        image: that the maps are of, ``(C, *S)``.
        nifti_frame: see :func:`istn_monai.io.nifti_frames.nifti_affine`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming the file, if it cannot be read, has no place in the world, or is in another world.
    """
    if Path(file).suffix.lower() == ".npz":
        return from_archive(Path(file).expanduser(), key, image)
    check_own_world(Path(file).expanduser(), key)
    files = channel_files(file)
    channels = [flat(read_channels(path, key, nifti_frame), image) for path in files]
    first = channels[0]
    for other, path in zip(channels, files, strict=True):
        if other.shape[1:] != first.shape[1:] or not torch.allclose(other.affine, first.affine, atol=1e-4):
            raise ValueError(f"{key}: {path} is on another grid than {file}: all channels must be on one")
    check_placed(first, key, file, image)
    result = MetaTensor(torch.cat([channel.as_tensor() for channel in channels]), meta=dict(first.meta))
    result.affine = first.affine
    return result


def read_channels(path: Path, key: str, nifti_frame: str | None) -> MetaTensor:
    """An image of one channel or several, also as ITK writes them into NIfTI: along a fifth axis."""
    if not is_nifti(path) or not path.is_file():
        return read_or_explain(path, key, nifti_frame)
    check_file(path, key)
    image = nib.load(path)
    if image.ndim != 5 or image.shape[3] != 1:
        return read_or_explain(path, key, nifti_frame)
    header = image.header.copy()
    header["intent_code"] = 0  # a vector, whose values ITK would turn if it were a displacement
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        nib.save(type(image)(np.asanyarray(image.dataobj)[..., 0, :], None, header), copy)
        found = read_or_explain(copy, key, nifti_frame)
    found.meta["filename_or_obj"] = str(path)
    return found


def flat(maps: MetaTensor, image: MetaTensor) -> MetaTensor:
    """Maps of a 2-D image, of which NIfTI keeps the channels as a fourth axis after a third one of 1 voxel, in 2-D."""
    if image.ndim != 3 or maps.ndim != 4 or maps.shape[-1] != 1:
        return maps
    result = MetaTensor(maps.as_tensor()[..., 0], meta=dict(maps.meta))
    result.affine = square(maps.affine, 2)
    return result


def check_placed(maps: MetaTensor, key: str, file: str | Path, image: MetaTensor) -> None:
    """ValueError for a NIfTI file that does not say where it lies, on another grid than its image."""
    codes = [int(maps.meta.get(name, 1)) for name in ("sform_code", "qform_code")]
    same = maps.shape[1:] == image.shape[1:] and torch.allclose(Grid.of(maps).affine, Grid.of(image).affine, atol=1e-4)
    if not any(codes) and not same:
        raise ValueError(
            f"{key}: {file} has no affine (its sform and qform codes are 0), and is on another grid than its image, "
            f"{tuple(maps.shape[1:])} and {tuple(image.shape[1:])} voxels: save it with the affine of what it is on"
        )


def check_own_world(path: Path, key: str) -> None:
    """ValueError for a moving representation of this package's that lies in the world of the initial alignment."""
    report = path.with_name(REPORT)
    if key != MAP_KEYS[0] or not report.is_file():
        return
    content = read_json(report, "report", "a JSON object")
    start: Any = content.get("initial_alignment")
    options = content.get("options")
    aligned = isinstance(options, Mapping) and options.get("world") == "aligned" and path.name.startswith("moving_")
    moved = start is not None and not np.allclose(start, np.eye(len(start)), atol=1e-6)
    if moved and (path.name == ALIGNED or aligned):
        raise ValueError(
            f"{key}: {path} lies where the initial alignment of its registration took it, not where its image lies: "
            "write it by istn-monai register --engine none (--world own), or by istn-monai represent"
        )


def from_archive(path: Path, key: str, image: MetaTensor) -> MetaTensor:
    """Probabilities ``(K, *S)`` of nnU-Net, whose arrays have the last axis first."""
    if not path.is_file():
        raise FileNotFoundError(f"{key}: no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            array = archive[KEY]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{key}: {path} is no archive with {KEY}, as nnU-Net writes them ({error})") from error
    maps = torch.from_numpy(array.astype(np.float32))
    maps = maps.permute(0, *reversed(range(1, maps.ndim)))
    if maps.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"{key}: {path} has {tuple(maps.shape[1:])} voxels and no affine, its image {tuple(image.shape[1:])}: it "
            "must be on its image's grid; save it as an image with an affine"
        )
    result = MetaTensor(maps.contiguous(), meta={"filename_or_obj": str(path)})
    result.affine = Grid.of(image).affine
    return result
