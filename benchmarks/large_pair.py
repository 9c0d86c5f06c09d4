"""Registers pairs of many voxels with the command, and keeps peak memory and seconds.

    python benchmarks/large_pair.py --data DIR [--pairs crop,head] [--sizes 400] [--before CHECKOUT] [--turns 1]
        [--work FOLDER] [--output FILE]
    python benchmarks/large_pair.py --data DIR --pairs whole --sizes 64,128,192,256 --output large_sizes.json

DIR holds the data sets' folders. A size of n means n^3 voxels; all pairs have a label map. ``crop`` are two hippocampus
cases on voxels of some 0.1 mm, and ``head`` two brains on voxels of 0.5 mm, of which the shipped weights' own
registration grid covers the middle. ``whole`` are the brains on voxels of 1 mm, that of the shipped weights, whose
network sees all of them. Images are resampled linearly to int16, with the noise of a scanner, so that compression has
real work. CHECKOUT is a folder with another commit of this repository: the command then runs there,
too, in turns with this one, and what both wrote is compared.

CPU seconds are user and system time of all threads: on a busy machine they say more than wall seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from common import RESULTS, ROOT, SEED, Row, commit, provenance, write
from torch import Tensor, nn

NOISE = 0.02  # standard deviation, as a fraction of the brightest value
#: moving and fixed case, image and label folder, voxel size (None: the image's extent in so many voxels), options
PAIRS = {
    "crop": (("hippocampus", "imagesTr", "labelsTr", "hippocampus_001", "hippocampus_003"), None, ()),
    "head": (("brain", "images", "labels", "1000", "1001"), 0.5, ("--spatial_size", "[48,64,48]")),
    "whole": (("brain", "images", "labels", "1000", "1001"), 1.0, ("--initial_alignment", "moments")),
}
#: largest difference of what two commits write; the displacement is in mm
SAME = {"warped.nii.gz": 0.0, "warped_label.nii.gz": 0.0, "displacement.nii.gz": 1e-5}


def resampled(values: Tensor, steps: Sequence[float], size: int, mode: str) -> Tensor:
    """``(*S)`` on ``size`` voxels along each axis about the same middle, ``steps`` old voxels apart; 0 outside."""
    axes = [((torch.arange(size) - (size - 1) / 2) * step * 2 / n) for step, n in zip(steps, values.shape, strict=True)]
    result = torch.empty((size,) * 3)
    for index, place in enumerate(axes[0]):  # a slice at a time: the points of all would take gigabytes
        grid = torch.stack(torch.meshgrid(place[None], axes[1], axes[2], indexing="ij")[::-1], dim=-1)
        result[index] = nn.functional.grid_sample(values[None, None], grid[None], mode, align_corners=False)[0, 0, 0]
    return result


def make_image(source: Path, target: Path, size: int, spacing: float | None, noise: float) -> None:
    """Writes a case on ``size`` voxels along each axis: an image as int16, a label map (without noise) as uint8."""
    image = nib.load(source)
    values = torch.as_tensor(np.asarray(image.dataobj, dtype=np.float32))
    old = np.asarray(image.header.get_zooms()[:3], dtype=float)
    steps = np.array(values.shape) / size if spacing is None else spacing / old
    if noise:
        values = values / values.max() * 1000
        fine = resampled(values, steps.tolist(), size, "bilinear")
        fine += torch.randn(fine.shape, generator=torch.Generator().manual_seed(SEED)) * noise * 1000 * (fine > 0)
    else:
        fine = resampled(values, steps.tolist(), size, "nearest")
    affine = image.affine @ np.diag([*steps, 1.0])
    middle = (np.array(values.shape) - 1) / 2 - steps * (size - 1) / 2
    affine[:3, 3] = image.affine[:3, :3] @ middle + image.affine[:3, 3]
    nib.save(nib.Nifti1Image(fine.numpy().round().astype(np.int16 if noise else np.uint8), affine), target)


def make_pair(name: str, size: int, data: Path, folder: Path) -> dict[str, Path]:
    """The files of a pair: ``moving``, ``fixed`` and ``moving_label``, made where they are missing."""
    (group, images, labels, *cases), spacing, _ = PAIRS[name]
    files = {}
    for role, kind, case in (("moving", images, 0), ("fixed", images, 1), ("moving_label", labels, 0)):
        files[role] = folder / f"{name}_{size}_{role}.nii.gz"
        if not files[role].exists():
            make_image(
                data / group / kind / f"{cases[case]}.nii.gz", files[role], size, spacing, NOISE * (kind == images)
            )
    return files


def run_command(checkout: Path, files: dict[str, Path], output: Path, options: Sequence[str]) -> Row:
    """Peak memory and seconds of ``register``, from start to end, with the code of a checkout."""
    command = [sys.executable, "-m", "istn_monai", "register", str(files["moving"]), str(files["fixed"])]
    command += ["--moving_label", str(files["moving_label"]), "--output_dir", str(output), *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=output.parent, env=os.environ | {"PYTHONPATH": str(checkout)})
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": wall,
        "displacement_mb": (output / "displacement.nii.gz").stat().st_size / 1e6,
    }


def difference(one: Path, other: Path) -> float:
    """Largest absolute difference of two images, compared a slab at a time."""
    first, second = nib.load(one), nib.load(other)
    if first.shape != second.shape or first.get_data_dtype() != second.get_data_dtype():
        return float("inf")
    both = [np.asanyarray(image.dataobj) for image in (first, second)]
    slabs = range(first.shape[0])
    return max(float(np.abs(both[0][s].astype(float) - both[1][s].astype(float)).max()) for s in slabs)


def numbers_of(transform: sitk.Transform) -> list[np.ndarray]:
    """All parameters of a composite, the fixed ones too: a file has a date as well."""
    composite = sitk.CompositeTransform(transform)
    parts = [composite.GetNthTransform(number) for number in range(composite.GetNumberOfTransforms())]
    return [np.array(numbers) for part in parts for numbers in (part.GetParameters(), part.GetFixedParameters())]


def compare(before: Path, after: Path) -> dict[str, float]:
    """Largest differences of what two commits wrote; SystemExit if a file differs by more than ``SAME``."""
    found = {name: difference(before / name, after / name) for name in SAME}
    transforms = [sitk.ReadTransform(str(folder / "transform.h5")) for folder in (before, after)]
    numbers = [np.concatenate(numbers_of(transform)) for transform in transforms]
    found["transform.h5"] = float(np.abs(numbers[0] - numbers[1]).max())
    wrong = [name for name, value in found.items() if value > SAME.get(name, 0.0)]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)} of both commits differ: {found}")
    return found


def main(
    data: str,
    before: str | None = None,
    turns: int = 1,
    pairs: Sequence[str] = ("crop", "head"),
    sizes: Sequence[int] = (400,),
    work: str | None = None,
    output: str = str(RESULTS / "large_pair.json"),
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        pairs, sizes = ((own,) if isinstance(own, (str, int)) else tuple(own) for own in (pairs, sizes))  # Fire's
        folder = Path(work or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        checkouts = {"after": ROOT} | ({} if before is None else {"before": Path(before).absolute()})
        rows: list[Row] = []
        differences = {}
        for name, size in product(pairs, sizes):
            files = make_pair(name, size, Path(data), folder)
            for turn in range(turns):
                for label, checkout in checkouts.items():
                    result = run_command(checkout, files, folder / f"{name}_{size}_{label}_{turn}", PAIRS[name][2])
                    rows.append({"pair": name, "size": size, "code": label, "turn": turn} | result)
                    print(rows[-1], flush=True)
            if before is not None:
                both = (folder / f"{name}_{size}_{label}_0" for label in ("before", "after"))
                differences[f"{name} {size}"] = compare(*both)
        commits = {label: commit(checkout) for label, checkout in checkouts.items()}
        options = {name: " ".join(PAIRS[name][2]) for name in pairs}
        result = {"provenance": provenance("cpu", options=options, commits=commits), "runs": rows}
        write(result | {"differences": differences}, output)
        print(f"written: {output}")


if __name__ == "__main__":
    fire.Fire(main)
