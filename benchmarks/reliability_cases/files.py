"""Inputs that each case has, how to spoil them, and what results must be: by ITK, not by this package.

All names are relative to the current folder, the case's own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

SIZE = (20, 24, 18)
M, F, ML, FL = "m.nii.gz", "f.nii.gz", "ml.nii.gz", "fl.nii.gz"
TINY, FLAT, T = "tiny.pt", "flat.pt", "t.h5"
AFFINES = {
    M: np.array([[-1.1, 0.1, 0, 12], [0.1, 1.0, 0, -9], [0, 0.0, 1.2, 4], [0, 0, 0, 1]]),
    F: np.array([[-1.0, 0, 0, 10], [0, 1.05, 0, -10], [0, 0, 1.25, 3], [0, 0, 0, 1]]),
}
MOVE = (1.5, -2.0, 0.75)  # mm, LPS, of t.h5


def orthogonal(affine: np.ndarray) -> np.ndarray:
    """The nearest affine without shear."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    result = affine.copy()
    result[:3, :3] = left @ right * spacing
    return result


def blob(center: Sequence[float], size: Sequence[int] = SIZE, radius: float = 4.0) -> np.ndarray:
    """A ball of ones."""
    grid = np.meshgrid(*map(np.arange, size), indexing="ij")
    return (sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2).astype(np.uint8)


def image(seed: int, size: Sequence[int] = SIZE, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """An image between about 0 and 1000, and its label map of 1 and 2."""
    rng = np.random.default_rng(seed)
    center = [n / 2 + shift for n in size]
    label = 2 * blob(center, size, 5) - blob([center[0] - 2, *center[1:]], size, 3)
    smooth = ndimage.gaussian_filter(rng.normal(size=size), 1.5)
    return (500 + 120.0 * label.astype(float) + 400 * smooth).astype(np.float32), label.astype(np.uint8)


def save(array: np.ndarray, file: str = M, affine: np.ndarray | None = None) -> None:
    """Writes NIfTI in the place of one of the files, with an affine that all readers understand in the same way."""
    known = AFFINES.get({ML: M, FL: F}.get(file, file), AFFINES[M])
    affine = orthogonal(known) if affine is None else affine
    affine = np.vstack([affine[:3], [0, 0, 0, 1]])
    written = nib.Nifti1Image(array, None, dtype=array.dtype)
    written.header.set_zooms([*np.linalg.norm(affine[:3, :3], axis=0), *[1.0] * (array.ndim - 3)][: array.ndim])
    written.set_sform(affine, 1)
    written.set_qform(affine, 1)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    nib.save(written, file)


def voxels(file: str = M) -> np.ndarray:
    """What a NIfTI file holds, in its own dtype."""
    return np.asanyarray(nib.load(file).dataobj)


def changed(change: Callable[[np.ndarray], np.ndarray], file: str = M) -> Callable[[], None]:
    """Makes a file anew with other voxels."""
    return lambda: save(change(voxels(file)), file)


def with_voxel(value: float, dtype: type = np.float64) -> Callable[[np.ndarray], np.ndarray]:
    """One voxel of an image gets a value."""

    def change(array: np.ndarray) -> np.ndarray:
        result = array.astype(dtype)
        result[3, 4, 5] = value
        return result

    return change


def header(change: Callable[[bytearray], None], file: str = "m.nii") -> Callable[[], None]:
    """Writes m.nii with another header: 348 bytes and the voxels after them."""

    def make() -> None:
        nib.save(nib.load(M), file)
        content = bytearray(Path(file).read_bytes())
        change(content)
        Path(file).write_bytes(bytes(content))

    return make


def put(offset: int, values: Sequence[float], dtype: str) -> Callable[[bytearray], None]:
    """Changes a field of a header."""

    def change(content: bytearray) -> None:
        packed = np.asarray(values, dtype=dtype).tobytes()
        content[offset : offset + len(packed)] = packed

    return change


def content(file: str, change: Callable[[bytes], bytes] | bytes | str) -> Callable[[], None]:
    """Writes a file: what it holds, changed; or new."""

    def make() -> None:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        new = change(Path(file).read_bytes()) if callable(change) else change
        Path(file).write_bytes(new.encode() if isinstance(new, str) else new)

    return make


def flipped_bit(place: float) -> Callable[[bytes], bytes]:
    """One bit of a file changes, at a fraction of its length (or bytes from its end, if negative)."""

    def change(old: bytes) -> bytes:
        at = int(place) if place < 0 else int(place * len(old))
        new = bytearray(old)
        new[at] ^= 0x10
        return bytes(new)

    return change


def copied(source: str, *targets: str) -> Callable[[], None]:
    """Copies a file to other names."""

    def make() -> None:
        for target in targets:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)

    return make


def both(*makes: Callable[[], None]) -> Callable[[], None]:
    """One after the other."""

    def make() -> None:
        for one in makes:
            one()

    return make


def as_json(value: Any, file: str) -> Callable[[], None]:
    """Writes JSON."""
    return content(file, json.dumps(value))


PAIR = {"moving_image": M, "fixed_image": F}
LABELED = PAIR | {"moving_label": ML, "fixed_label": FL}


def datalist(*pairs: Any, file: str = "pairs.json", split: str = "testing", **others: Any) -> Callable[[], None]:
    """Writes a datalist with one split."""
    return as_json({split: list(pairs), **others}, file)


def subjects(number: int = 6, folder: str = "data", size: Sequence[int] = SIZE, labels: bool = True) -> None:
    """A data set: images and labels of some subjects."""
    for index in range(number):
        values, label = image(10 + index, size, 0.3 * index)
        name = f"case_{index}.nii.gz"
        save(values, f"{folder}/images/{name}")
        if labels:
            save(label, f"{folder}/labels/{name}")


def training_pairs(file: str = "train.json", **changes: Any) -> Callable[[], None]:
    """A datalist of two subjects for the smallest training."""
    turned = {
        key: LABELED[key.replace("moving", "x").replace("fixed", "moving").replace("x", "fixed")] for key in LABELED
    }
    return as_json({"training": [LABELED | changes, turned], "validation": [LABELED], "testing": [LABELED]}, file)


#: settings of the smallest training: seconds
SMALL = (
    "--spatial_size=[12,12,12]",
    "--spacing=2",
    "--transformation=affine",
    "--max_epochs=1",
    "--output_dir=run",
    "--device=cpu",
)


def train(*options: str, data: str = "train.json") -> tuple[str, ...]:
    """The command of a small training; an option ``--name=value`` takes the place of its own."""
    given = dict(option.split("=", 1) for option in (*SMALL, *options))
    return ("train", data, *(f"{name}={value}" for name, value in given.items()))


def register(*options: str, moving: str = M, fixed: str | None = F, out: str = "out") -> tuple[str, ...]:
    """The command of a small registration."""
    images = (moving,) if fixed is None else (moving, fixed)
    return ("register", *images, *quick(out, TINY, options))


def evaluate(*options: str, datalist: str = "pairs.json", model: str = TINY, out: str = "ev") -> tuple[str, ...]:
    """The command of a small evaluation."""
    return ("evaluate", datalist, *quick(out, model, options))


def quick(out: str, model: str, options: Sequence[str]) -> tuple[str, ...]:
    """Options that make a command quick, in the place of which others may be given, and these others."""
    plain = {"--output_dir": out, "--model": model, "--refine_steps": "0", "--qa": "False", "--device": "cpu"}
    named = {word.partition("=")[0] for word in options}
    return (*(word for key, value in plain.items() if key not in named for word in (key, value)), *options)


def apply(*options: str, transform: str = T, input: str = M, output: str = "moved.nii.gz") -> tuple[str, ...]:
    """The command that applies the transform."""
    return ("apply", transform, input, output, *options)


# --- what every case has ---------------------------------------------------------------------------------------------


def make_base(folder: Path) -> None:
    """Writes what every case has: a pair with labels, two small networks, a transform, landmarks."""
    import os

    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for file, label_file, seed, shift in ((M, ML, 0, 0.0), (F, FL, 1, 1.0)):
        values, label = image(seed, shift=shift)
        save(values, file)
        save(label, label_file)
    sitk.WriteTransform(sitk.TranslationTransform(3, MOVE), T)
    Path("p.csv").write_text("label,x,y,z,frame\nAC,1,2,3,LPS\nPC,-4,5.5,6,LPS\n", encoding="utf-8")
    network(TINY, (16, 16, 16), spacing=2.0)
    network(FLAT, (16, 16), soi_labels=[[1]])


def network(file: str, size: Sequence[int], change: Callable[[Any], None] | None = None, **settings: Any) -> None:
    """Writes a small network whose heads move points by some mm, its weights changed."""
    import torch

    from istn_monai import NetworkSettings
    from istn_monai.weights import described

    known = {"transformation": "affine", "loss": "s", "spatial_size": list(size)} | settings
    described_by = NetworkSettings(**known)
    torch.manual_seed(0)
    made = described_by.network()
    for head in made.istn.stn.heads:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    state = described(made.state_dict(), {"settings": described_by.state_dict()})
    if change is not None:
        change(state)
    torch.save(state, file)


# --- what results must be --------------------------------------------------------------------------------------------


def itk_resampled(moving: Any, fixed: Any, transform: Any, nearest: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A moving image on the fixed one's grid by ITK, and where it was inside by more than a voxel."""
    import SimpleITK as sitk

    kind = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    warped = sitk.Resample(moving, fixed, transform, kind, 0.0, sitk.sitkFloat64)
    ones = sitk.GetImageFromArray(np.pad(np.ones([n - 2 for n in moving.GetSize()[::-1]]), 1))
    ones.CopyInformation(moving)
    inside = sitk.Resample(ones, fixed, transform, sitk.sitkLinear, 0.0) > 0.999
    return sitk.GetArrayFromImage(warped), sitk.GetArrayFromImage(inside) > 0


def must_agree(found: np.ndarray, wanted: np.ndarray, inside: np.ndarray, what: str) -> None:
    """AssertionError unless two arrays agree where it counts."""
    assert found.shape == wanted.shape, f"{what} has shape {found.shape}, must have {wanted.shape}"
    assert np.isfinite(found).all(), f"{what} has values that are not finite"
    assert inside.sum() > 20, f"{what}: nothing to compare"
    span = max(float(np.ptp(wanted[inside])), 1e-12)
    rounding = 0.51 if found.dtype.kind in "iu" else 0.0
    off = float(np.abs(found[inside].astype(float) - wanted[inside]).max())
    assert off <= rounding + 2e-3 * span, f"{what} is off by {off:.4g} of {span:.4g}"


def registered(out: str = "out", moving: str = M, fixed: str = F, label: str | None = None) -> Callable[[], None]:
    """Checks that a registration's files are what ITK makes of its transform."""

    def check() -> None:
        import SimpleITK as sitk

        report = json.loads(Path(out, "report.json").read_text(encoding="utf-8"))
        assert report["inputs"], "report.json names no inputs"
        pair = [sitk.ReadImage(file) for file in (moving, fixed)]
        transform = sitk.ReadTransform(str(Path(out, T.replace("t.", "transform."))))
        warped = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(out, "warped.nii.gz"))))
        wanted, inside = itk_resampled(*pair, transform)
        must_agree(warped, wanted, inside, "warped")
        field = sitk.GetArrayFromImage(sitk.ReadImage(str(Path(out, "displacement.nii.gz"))))
        assert np.isfinite(field).all() and np.abs(field).max() > 0, "displacement is zero or not finite"
        if label is not None:
            right_labels(Path(out, "warped_label.nii.gz"), label, pair[1], transform)

    return check


def right_labels(file: str | Path, label: str, fixed: Any, transform: Any) -> None:
    """AssertionError unless a warped label map has the values of its source, and nearly where ITK puts them."""
    import SimpleITK as sitk

    before, after = voxels(label).astype(object), voxels(str(file)).astype(object)
    lost = set(np.unique(after)) - set(np.unique(before)) - {0}
    assert not lost, f"warped label has values {sorted(lost)[:4]} that its file has not"
    values = [value for value in np.unique(before) if value != 0]
    ranks = np.zeros(before.shape, np.int16)
    for number, value in enumerate(values, 1):
        ranks[before == value] = number
    nib.save(nib.Nifti1Image(ranks, nib.load(label).affine), ".ranked.nii.gz")
    wanted, inside = itk_resampled(sitk.ReadImage(".ranked.nii.gz"), fixed, transform, nearest=True)
    for number, value in enumerate(values, 1):
        one, two = (after == value).T & inside, (wanted == number) & inside
        overlap = 2 * (one & two).sum() / max(one.sum() + two.sum(), 1)
        sizes = f"{one.sum()} voxels, by ITK {two.sum()}, Dice {overlap:.2f}"
        assert overlap > 0.75 and abs(one.sum() / two.sum() - 1) < 0.2, f"label {value}: {sizes}"


def moved_image(
    output: str = "moved.nii.gz", input: str = M, reference: str = F, inverse: bool = False, label: bool = False
) -> Callable[[], None]:
    """Checks what ``apply`` wrote."""

    def check() -> None:
        import SimpleITK as sitk

        transform = sitk.ReadTransform(T)
        transform = transform.GetInverse() if inverse else transform
        fixed = sitk.ReadImage(reference)
        if label:
            return right_labels(output, input, fixed, transform)
        wanted, inside = itk_resampled(sitk.ReadImage(input), fixed, transform)
        return must_agree(sitk.GetArrayFromImage(sitk.ReadImage(output)), wanted, inside, output)

    return check


def moved_points(rows: Mapping[str, Sequence[float]], output: str = "moved.csv") -> Callable[[], None]:
    """Checks that landmarks, by name in LPS mm, went to the fixed side: against the transform's direction."""

    def check() -> None:
        import csv

        with open(output, encoding="utf-8", newline="") as file:
            found = {
                row["label"]: [float(row[axis]) for axis in "xyz"] + [row["frame"]] for row in csv.DictReader(file)
            }
        assert list(found) == list(rows), f"names {list(found)}, must be {list(rows)}"
        for name, place in rows.items():
            wanted = np.subtract(place, MOVE) * ([-1, -1, 1] if found[name][3] == "RAS" else 1)
            off = np.abs(np.subtract(found[name][:3], wanted)).max()
            assert off < 1e-3, f"{name} is off by {off:.3g} mm"

    return check


def absent(*files: str) -> Callable[[], None]:
    """Checks that some files were not written."""

    def check() -> None:
        there = [file for file in files if Path(file).exists()]
        assert not there, f"{there} must not be there"

    return check


def present(*files: str) -> Callable[[], None]:
    """Checks that some files were written."""

    def check() -> None:
        missing = [file for file in files if not Path(file).exists()]
        assert not missing, f"{missing} must be there"

    return check
