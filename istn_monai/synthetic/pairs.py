"""Synthetic pairs with a known transformation: a vessel tree in a bright box whose pose misleads intensities.

This is the toy of the paper's Figures 1 and 3, in 2-D and 3-D. The structure of interest is a tree (label 1 = trunk,
2 = branches). The moving tree is the fixed one pushed through a known smooth transformation; the bright box around it
has a random pose of its own in either image, so aligning intensities aligns the boxes and misaligns the trees.
Every tree is a deformation of one template ("anatomy"), so what is learned on some pairs holds for others.

Convention:
    - Points are in world mm, RAS, one row each; for PNG files, which have no header, world is the pixel index in LPS,
      as in ITK: spacing 1 mm, origin 0, x = tensor axis 0 and y = tensor axis 1 of MONAI's ``LoadImage``.
    - The transformation is a pull-back, as everywhere in this package: fixed world -> moving world.
    - Both images are rendered from geometry, at every voxel's own position; no image is ever resampled.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.utils import optional_import
from PIL import Image

from istn_monai.io.file_checks import most_voxels
from istn_monai.io.landmarks import Points, to_ras, write_points
from istn_monai.io.paths import PART, replacing
from istn_monai.synthetic.vessels import (
    Grid,
    Vessel,
    apply_transform,
    fitting_transform,
    landmarks_of,
    render_image,
    render_landmarks,
    render_tree,
    template_tree,
)

__all__ = ["synthesize"]
tqdm, has_tqdm = optional_import("tqdm", name="tqdm")
VERSION = 3  # of what is drawn: a set made by another version is not the same set
SECTIONS = {"training": "train", "validation": "validation", "testing": "test"}  # in the datalist: argument's name
LABELS = {"0": "background", "1": "trunk", "2": "branches"}
MIN_SIZE = 32  # voxels and mm: a smaller grid has no room for a tree that moves


def _random_grid(rng: np.random.Generator, settings: Mapping[str, Any]) -> Grid:
    """The nominal grid and up to `shape_jitter` voxels more, anywhere in the world unless the file cannot say where."""
    size, spacing = np.array(settings["spatial_size"]), np.array(settings["spacing"])
    shape = size + rng.integers(0, settings["shape_jitter"] + 1, len(size))
    origin = rng.uniform(-100, 100, len(size)).round(2)
    return Grid(shape, spacing, origin * (settings["image_format"] != "png"))


def _write_image(path: Path, array: np.ndarray, grid: Grid) -> None:
    if path.suffix == ".png":
        with replacing(path, durable=False) as part:
            Image.fromarray(np.ascontiguousarray(array.T)).save(part)  # a PNG's rows are y, tensor axis 1 in MONAI
        return
    affine, ndim = np.eye(4), array.ndim
    affine[range(ndim), range(ndim)], affine[:ndim, 3] = grid.spacing, grid.origin
    image = nib.Nifti1Image(array.astype(np.int16) if array.dtype == np.uint16 else array, affine)
    image.header.set_xyzt_units("mm")
    with replacing(path, durable=False) as part:
        nib.save(image, part)


def _write_pair(folder: Path, item: Mapping[str, str], rng: np.random.Generator, settings: Mapping[str, Any]) -> None:
    """Draw one pair and write the files that `item` names."""
    grids = {"moving": _random_grid(rng, settings), "fixed": _random_grid(rng, settings)}
    spacing, center = grids["fixed"].spacing, grids["fixed"].center
    extent = settings["spatial_size"] * spacing
    template = template_tree(extent, spacing)
    anatomy = {"nonlinear_mm": 0.12 * extent.min(), "wavelengths": (0.5, 1.0), "waves": 6, "strength": 0.5}
    subject = fitting_transform(template, rng, 0 * center, center, extent, **anatomy)
    tree = [Vessel(apply_transform(subject, v.points), v.radii, v.label) for v in template]
    names, landmarks = landmarks_of(template)  # before rounding can tell a branch's beginning from its parent
    landmarks = apply_transform(subject, landmarks)
    nonlinear_mm = settings["nonlinear_mm"]
    png = settings["image_format"] == "png"
    frame = "LPS" if png else "RAS"
    truth = fitting_transform(tree, rng, center, grids["moving"].center, extent, nonlinear_mm=nonlinear_mm)
    for role, grid in grids.items():
        depth = render_tree(grid, tree, truth if role == "moving" else None)
        points = apply_transform(truth, landmarks) if role == "moving" else landmarks
        blobs = render_landmarks(grid, points)
        blobs = (blobs * 255).round().astype(np.uint8) if png else blobs.astype(np.float32)
        _write_image(folder / item[f"{role}_image"], render_image(rng, grid, depth, extent), grid)
        label = np.where(depth[0] > 0, 1, 2 * (depth[1] > 0)).astype(np.uint8)  # branches begin at the trunk's surface
        _write_image(folder / item[f"{role}_label"], label, grid)
        _write_image(folder / item[f"{role}_landmarks"], blobs, grid)
        in_ras = to_ras(torch.as_tensor(points), frame)
        write_points(Points(in_ras, tuple(names)), folder / item[f"{role}_points"], frame)
    text = json.dumps({"direction": f"fixed world -> moving world, mm, {frame}", **truth}, default=np.ndarray.tolist)
    with replacing(folder / item["transform"], durable=False) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _count(name: str, value: Any, smallest: int = 0) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < smallest:
        raise ValueError(f"{name} should be a whole number of at least {smallest}, got {value!r}.")
    return int(value)


def _numbers(name: str, values: Any, lengths: tuple[int, ...]) -> list[Any]:
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or len(values) not in lengths:
        raise ValueError(f"{name} should be {' or '.join(map(str, lengths))} numbers, got {values!r}.")
    return list(values)


def _check_nonlinear(nonlinear_mm: Any, extent: float) -> float:
    """Waves no shorter than `extent` mm have slopes of at most 1/2 then: no folds, and `_invert` converges."""
    largest = extent / (4 * np.pi)
    if not isinstance(nonlinear_mm, (int, float)) or not 0 <= nonlinear_mm <= largest:
        raise ValueError(
            f"nonlinear_mm should be between 0 and {largest:.2f} mm, where a grid of {extent:g} mm would fold, "
            f"got {nonlinear_mm!r}."
        )
    return float(nonlinear_mm)


def _settings(
    spatial_size: Any, spacing: Any, image_format: Any, nonlinear_mm: Any, seed: Any, shape_jitter: Any, **counts: Any
) -> dict[str, Any]:
    """Arguments checked and in their JSON form: two sets with equal settings are equal, file by file."""
    size = [_count("spatial_size", s, MIN_SIZE) for s in _numbers("spatial_size", spatial_size, (2, 3))]
    if math.prod(size) > most_voxels():
        raise ValueError(f"spatial_size should have at most {most_voxels():,} voxels in all, got {tuple(size)}.")
    number = (int, float)
    spacings = _numbers("spacing", [spacing] * len(size) if isinstance(spacing, number) else spacing, (len(size),))
    extent = [n * s if isinstance(s, number) and np.isfinite(s) else 0.0 for n, s in zip(size, spacings, strict=True)]
    if min(extent) < MIN_SIZE:
        raise ValueError(
            f"spacing should be positive numbers of mm that make each axis {MIN_SIZE} mm or longer, "
            f"got {spacing!r} for spatial_size {tuple(size)}."
        )
    if image_format is None:
        image_format = "png" if len(size) == 2 else "nii.gz"
    if image_format not in ("nii.gz", "png"):
        raise ValueError(f"image_format should be 'nii.gz', 'png' or None, got {image_format!r}.")
    if image_format == "png" and (len(size) != 2 or set(spacings) != {1}):
        raise ValueError(
            "image_format 'png' should be used with two axes and spacing 1, for a PNG stores no more, "
            f"got spatial_size {tuple(size)} and spacing {spacing!r}; use 'nii.gz'."
        )
    return {
        "version": VERSION,
        "spatial_size": size,
        "spacing": [float(s) for s in spacings],
        **{name: _count(name, value) for name, value in counts.items()},
        "seed": _count("seed", seed),
        "image_format": image_format,
        "nonlinear_mm": _check_nonlinear(nonlinear_mm, min(extent)),
        "shape_jitter": _count("shape_jitter", shape_jitter),
    }


def _datalist(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `pairs.json` says: a function of the settings alone, so that it also tells which files are ours."""
    image = settings["image_format"]
    kinds = {"image": image, "label": image, "points": "csv", "landmarks": image}
    endings = {f"{role}_{kind}": end for kind, end in kinds.items() for role in ("moving", "fixed")}
    endings["transform"] = "json"
    return {
        "name": f"{len(settings['spatial_size'])}-D synthetic vessel trees in a bright box",
        "description": "The tree is the structure of interest; the box moves independently and misleads intensities.",
        "labels": LABELS,
        "seed": settings["seed"],
        "synthetic": dict(settings),
        **{
            section: [
                {key: f"{section}/pair{i:03d}_{key}.{end}" for key, end in endings.items()}
                for i in range(settings[argument])
            ]
            for section, argument in SECTIONS.items()
        },
    }


def _files(datalist: Mapping[str, Any]) -> Iterator[str]:
    return itertools.chain.from_iterable(item.values() for section in SECTIONS for item in datalist[section])


def _read_ours(path: Path) -> dict[str, Any] | None:
    """The datalist in `path` if this module wrote it and nobody edited it since, else None."""
    try:
        datalist = json.loads(path.read_text(encoding="utf-8"))
        return datalist if datalist == _datalist(datalist["synthetic"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _claim(folder: Path, datalist: Mapping[str, Any], overwrite: bool) -> None:
    """Mark `folder` as being written with `datalist`, and delete the set that an earlier call left there.

    Refuses unless the folder is new, empty or interrupted (marked), or holds this very set with files missing, or
    `overwrite` is given. Deletes and replaces nothing that this module did not write, whatever `overwrite` says.
    """
    final, plan = folder / "pairs.json", folder / "pairs.json.part"
    complete, free = _read_ours(final), overwrite or plan.exists()
    advice = "choose another output_dir or remove that folder yourself"
    if final.exists() and complete is None:
        raise FileExistsError(f"output_dir {folder} holds a pairs.json that synthesize() did not write: {advice}.")
    if complete not in (None, datalist) and not free:
        new, old = datalist["synthetic"], complete["synthetic"]
        different = ", ".join(f"{key} {old.get(key)} (now {new[key]})" for key in new if new[key] != old.get(key))
        raise FileExistsError(f"output_dir {folder} holds a set with {different}: {advice}, or pass overwrite=True.")
    parts = folder.glob(f"{PART}*")  # of a call that was killed as it began
    if complete is None and not free and folder.exists() and set(folder.iterdir()) - set(parts):
        raise FileExistsError(f"output_dir {folder} is not empty: {advice}, or pass overwrite=True to add to it.")
    ours = {name for old in (complete, _read_ours(plan)) if old for name in _files(old)}
    foreign = [name for name in _files(datalist) if name not in ours and (folder / name).exists()]
    if foreign:
        raise FileExistsError(f"output_dir {folder} has a {foreign[0]} that synthesize() did not write: {advice}.")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(plan) as part:
        part.write_text(json.dumps(datalist, indent=1) + "\n", encoding="utf-8")
    for name in sorted(ours):
        (folder / name).unlink(missing_ok=True)
    final.unlink(missing_ok=True)


def synthesize(
    output_dir: str | os.PathLike,
    spatial_size: Sequence[int] = (48, 64, 48),
    spacing: float | Sequence[float] = 1.0,
    train: int = 40,
    validation: int = 8,
    test: int = 8,
    seed: int = 0,
    image_format: str | None = None,
    nonlinear_mm: float = 2.0,
    shape_jitter: int = 4,
    overwrite: bool = False,
) -> Path:
    """Write a synthetic set of pairs and its MONAI datalist, or reuse the one that an earlier call wrote.

    Args:
        output_dir: folder for `pairs.json` and the folders `training`, `validation`, `testing`. It must be new,
            empty, or hold a set of this function: an equal one is reused, an interrupted one is made again.
        spatial_size: voxels per axis, 2 or 3 axes, 32 or more each.
        spacing: voxel size in mm, one number or one per axis.
        train, validation, test: number of pairs in each section. Pair i is the same whatever these numbers are.
        seed: everything follows from it.
        image_format: "nii.gz", "png" (2-D only), or None: PNG in 2-D and NIfTI in 3-D.
        nonlinear_mm: bound on the non-linear part of the true transformation, in mm; 0 makes it affine. The affine
            part has angles to 15 degrees per plane, log-scales to .1, shears to .1, translations to 4 mm.
        shape_jitter: an image has up to this many voxels more than `spatial_size`, per axis.
        overwrite: replace a set of this function that was made with other settings. Files of others stay, always.

    Returns:
        Path of `pairs.json`. Each item names images (intensities of arbitrary scale), labels (0, 1 = trunk,
        2 = branches), landmarks as `*_points.csv` (world mm, RAS; for PNG pixels, LPS, x = tensor axis 0, y = axis 1;
        rows correspond) and as maps of blobs with sigma 2 mm (in [0, 1], PNG 0..255), and `transform`, see
        `true_displacement`. Contents are centered in their images.

    Note: one process at a time may write a folder; in distributed training let rank 0 do it.
    """
    counts = {"train": train, "validation": validation, "test": test}
    settings = _settings(spatial_size, spacing, image_format, nonlinear_mm, seed, shape_jitter, **counts)
    folder, datalist = Path(output_dir), _datalist(settings)
    final, plan = folder / "pairs.json", folder / "pairs.json.part"
    if not plan.exists() and _read_ours(final) == datalist and all((folder / f).is_file() for f in _files(datalist)):
        return final
    _claim(folder, datalist, overwrite)
    jobs = [(i, j, item) for i, section in enumerate(SECTIONS) for j, item in enumerate(datalist[section])]
    for i, j, item in tqdm(jobs, desc=f"synthesize {folder}", unit="pair", disable=None) if has_tqdm else jobs:
        (folder / item["transform"]).parent.mkdir(exist_ok=True)
        _write_pair(folder, item, np.random.default_rng([settings["seed"], i, j]), settings)
    os.replace(plan, final)  # last and atomic: a folder with the plan in it is one that was interrupted
    return final
