"""Other registration tools and ours: the same pairs, the same start, the same number of threads, in turns.

    python benchmarks/peers.py --data DIR --case brain [--pairs 6] [--threads 2] [--methods SyNQuick,greedy,...]
        [--peer_python /path/to/other/venv/bin/python] [--work DIR] [--output FILE] [--again] [--check]

DIR holds the data sets' folders; the pairs are the first ones of the case's test split. The images of a pair are
prepared once, for all methods: in float32, the moving one with an affine that joins the centers of mass (brains) or
the middles of the grids (hippocampus), so all tools start from one place without knowing it.

For each pair each method runs in a process of its own, one after the other: whatever else the machine does hits all
alike. ``seconds`` are those of the registration of loaded images (affine and deformable), ``command_seconds`` those of
the whole process, with the start of Python, the imports, reading and writing; ``cpu_seconds`` is what all its threads
took, which on a busy machine says more; ``peak_gb`` is its largest resident memory. What a method leaves is a dense
displacement field; one evaluator warps the moving label (nearest neighbor) and image (linear) by it, so nobody's own
interpolation counts. ``peer_methods.py`` has the methods and their settings.

The peers run in PEER_PYTHON, which needs neither torch nor this project. A method that is not installed is left out;
one that fails leaves a row with its ``error``. A row is written as soon as it is there and not measured again, unless
code changed or ``--again`` says so; the summary is of this code's rows. ``--check`` also compares the Dice with that of
the label as the tool itself warps it, which tells wrong directions; whole commands then take longer.

Not among the peers: hf-deepali, a library of parts, which has no registration to call. convexAdam has no affine part.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from common import RESULTS, ROOT, Row, code_hash, listed, provenance, write
from monai.transforms import LoadImage
from peer_methods import FIELD, METHODS, OWN_LABEL
from torch import Tensor

from istn_monai.alignment import initial_alignment
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.resampling import unit_range
from istn_monai.geometry.sampling import sample
from istn_monai.metrics import folding_fraction, jacobian_determinant, overlap, sd_log_jacobian
from istn_monai.objective import LocalCorrelation

#: by case: the initial alignment, and the methods that run unless others are named
CASES = {
    "brain": ("moments", ("SyNQuick", "SyN", "greedy", "convexAdam", "ours_intensities")),
    "hippocampus": (
        "center",
        ("SyN", "greedy", "greedy_deformable", "elastix", "convexAdam", "fireants", "ours_one_pass", "ours_refined"),
    ),
}
OURS = "istn-monai"  # the package
METHODS_FILE = str(Path(__file__).with_name("peer_methods.py"))
START = "start"  # the row of a pair as it is before any registration
#: allowed difference of the evaluator's Dice and of a tool's own warping; larger for those that do not warp a label map
#: once by nearest neighbors: ours interpolates it linearly, convexAdam warps it after resampling it to the fixed grid
SAME_DICE, ROUGHLY = 0.002, {"convexAdam": 0.02, "ours_intensities": 0.02, "ours_one_pass": 0.02, "ours_refined": 0.02}
LOAD = LoadImage(image_only=True, ensure_channel_first=True, reader="NibabelReader")
METRICS = {
    "Dice": "dice",
    "merged Dice": "dice_merged",
    "ASD, mm": "asd",
    "LNCC": "lncc",
    "SDlogJ": "sdlogj",
    "folding": "folding",
}
SECONDS = {"s, registration": "seconds", "s, command": "command_seconds", "s, CPUs": "cpu_seconds"}


def save(values: Tensor, affine: Tensor, file: Path) -> None:
    """``(1, *S)`` as NIfTI, with the same affine in both of its places."""
    array = values[0].numpy()
    image = nib.Nifti1Image(array if array.dtype == np.float32 else array.astype(np.int16), affine.numpy())
    image.set_sform(affine.numpy(), 1)
    image.set_qform(affine.numpy(), 1)
    nib.save(image, file)


def prepare(item: dict[str, str], data: Path, start: str, folder: Path) -> None:
    """Writes the images and label maps of a pair, the moving ones where ``start`` puts them."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = {key: LOAD(data / file) for key, file in item.items()}
    matrix = initial_alignment(start, loaded["moving_image"], loaded["fixed_image"])
    for role in ("moving", "fixed"):
        grid = Grid.of(loaded[f"{role}_image"])
        affine = grid.aligned(matrix).affine if role == "moving" else grid.affine
        save(loaded[f"{role}_image"].as_tensor().float(), affine, folder / f"{role}.nii.gz")
        save(loaded[f"{role}_label"].as_tensor().to(torch.int16), affine, folder / f"{role}_label.nii.gz")


def environment(threads: int) -> dict[str, str]:
    """Of the processes: so many threads, whoever asks, and this project's code."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    numbers = dict.fromkeys([f"{name}_NUM_THREADS" for name in names], str(threads))
    numbers["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    return {**os.environ, **numbers, "PYTHONPATH": str(ROOT)}


def run_method(python: str, method: str, case: str, folder: Path, output: Path, threads: int, check: bool) -> Row:
    """Registers a pair in a process of its own.

    Returns:
        ``seconds``, ``command_seconds``, ``cpu_seconds`` and ``peak_gb``; or ``error``.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    files = [output / "stdout.txt", output / "stderr.txt"]
    options = [method, case, str(folder), str(output), str(threads), *["own_label"] * check]
    measure = [sys.executable, METHODS_FILE, "measure", *map(str, files), python, METHODS_FILE, *options]
    told = subprocess.run(
        measure, stdout=subprocess.PIPE, encoding="utf-8", check=True, env=environment(threads), cwd=output
    ).stdout
    needed = json.loads(told)
    lines, errors = (file.read_text(encoding="utf-8", errors="replace").splitlines() for file in files)
    found = [line for line in lines if line.startswith('{"seconds"')]
    code = needed.pop("returncode")
    if code or not found:
        return {"error": f"ended with {code}: {' '.join(errors[-1:])}"}
    return json.loads(found[-1]) | needed


def read_field(file: Path, fixed: Grid) -> Tensor:
    """``(3, *S)`` float64 in mm, RAS, of an LPS vector image on the fixed image's grid."""
    image = nib.load(file)
    if image.shape != (*fixed.spatial_size, 1, 3) or not np.allclose(image.affine, fixed.affine, atol=1e-3):
        raise ValueError(f"the field must be on the fixed image's grid, {fixed}, got {image.shape}, {image.affine}")
    field = torch.as_tensor(np.asarray(image.dataobj, dtype=np.float64))[..., 0, :].movedim(-1, 0)
    return field * torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64).view(3, 1, 1, 1)


def dice_of_labels(warped: Tensor, fixed: Tensor) -> dict[str, float]:
    """``dice``, the mean over the labels of the fixed map, and ``dice_merged``, of all labels as one; of ``(*S)``."""
    warped, fixed = warped.long().flatten(), fixed.long().flatten()
    size = int(max(warped.max(), fixed.max())) + 1
    of_warped, of_fixed = (torch.bincount(labels, minlength=size) for labels in (warped, fixed))
    both = torch.bincount(fixed[warped == fixed], minlength=size)
    there = of_fixed[1:].nonzero().flatten() + 1
    each = 2 * both[there] / (of_warped[there] + of_fixed[there])
    merged = 2 * ((warped > 0) & (fixed > 0)).sum() / ((warped > 0).sum() + (fixed > 0).sum())
    return {"dice": each.mean().item(), "dice_merged": merged.item(), "labels": len(there)}


def surface_distance(warped: Tensor, fixed: Tensor, spacing: Sequence[float]) -> float:
    """The mean over the labels of the fixed map of their average symmetric surface distance, in mm; of ``(*S)``.

    A label that nothing of the warped map has does not count.
    """
    labels = [label for label in fixed.unique().tolist() if label > 0 and (warped == label).any()]
    return statistics.mean(overlap(warped == label, fixed == label, spacing)["asd"] for label in labels)


def evaluate(file: Path | None, folder: Path) -> Row:
    """What the displacement field of a method is worth; None for no displacement.

    Returns:
        Dice and ``asd`` of the labels; ``lncc`` of the images in [0, 1], where the fixed one is not at its darkest, so
        of a brain and not of the nothing around it; and, of the field on the whole fixed grid, ``sdlogj`` and
        ``folding``, the fraction of voxels whose Jacobian determinant is 0 or less.
    """
    images = {role: LOAD(folder / f"{role}.nii.gz") for role in ("moving", "fixed", "moving_label", "fixed_label")}
    fixed, moving = Grid.of(images["fixed"]), Grid.of(images["moving"])
    field = torch.zeros(3, *fixed.spatial_size, dtype=torch.float64) if file is None else read_field(file, fixed)
    places = moving.voxels(fixed.points() + field)[None]
    values = {role: image.as_tensor()[None].float() for role, image in images.items()}
    warped_label = sample(values["moving_label"], places.float(), "nearest", "zeros")
    ddf = torch.tensordot(torch.linalg.inv(fixed.affine[:3, :3]), field, dims=1)
    determinant = jacobian_determinant(ddf[None])
    warped = sample(unit_range(values["moving"]), places.float(), "bilinear", "zeros")
    counts = (values["fixed"] > values["fixed"].min()).float()
    labels = warped_label[0, 0], values["fixed_label"][0, 0]
    return dice_of_labels(*labels) | {
        "asd": surface_distance(*labels, fixed.spacing),
        "lncc": LocalCorrelation(unit_range(values["fixed"]))(warped, counts).item(),
        "sdlogj": sd_log_jacobian(determinant).item(),
        "folding": folding_fraction(determinant).item(),
    }


def checked(row: Row, folder: Path, output: Path) -> Row:
    """A row with the Dice of the label map as the tool itself warps it, and an ``error`` if that is another one."""
    own, fixed = LOAD(output / OWN_LABEL), LOAD(folder / "fixed_label.nii.gz")
    row |= {"own_dice": dice_of_labels(own.as_tensor()[0].round(), fixed.as_tensor()[0])["dice"]}
    if abs(row["own_dice"] - row["dice"]) > ROUGHLY.get(row["method"], SAME_DICE):
        row["error"] = f"its field gives a Dice of {row['dice']:.4f}, its own warping {row['own_dice']:.4f}"
    return row


def measured(
    python: str,
    method: str,
    case: str,
    folder: Path,
    threads: int,
    check: bool,
    judge: Callable[[Path, Path], Row] = evaluate,
) -> Row:
    """What a method needs for a pair, and what it makes of it, which ``judge`` tells by a field's file and the pair."""
    output = folder / method
    row = run_method(python, method, case, folder, output, threads, check) | {"method": method}
    try:
        if "error" not in row:
            row |= judge(output / FIELD, folder)
            row = checked(row, folder, output) if check else row
            shutil.rmtree(output)
    except (OSError, ValueError) as error:
        row["error"] = str(error)
    return row


def interpreters(methods: Sequence[str], peer_python: str) -> tuple[dict[str, str], dict[str, dict[str, str | None]]]:
    """The interpreter of each method that is installed there, and the versions in both."""
    pythons = {"ours": sys.executable, "peers": peer_python}
    versions = {}
    for name, python in pythons.items():
        told = subprocess.run(
            [python, METHODS_FILE, "installed"], capture_output=True, encoding="utf-8", check=True, env=environment(1)
        ).stdout
        versions[name] = json.loads(told)
    chosen = {}
    for method in methods:
        package = METHODS[method][0]
        if package == OURS:
            chosen[method] = sys.executable
        elif versions["peers"][package] is not None:
            chosen[method] = peer_python
        else:
            print(f"left out: {method}, {peer_python} has no {package}", flush=True)
    return chosen, versions


def summary(rows: Sequence[Row]) -> dict[str, Row]:
    """By method: means of metrics, medians of seconds, the largest peak, and seconds over those of the fastest peer."""
    found: dict[str, Row] = {}
    for method in (START, *METHODS):
        good = [row for row in rows if row["method"] == method and "error" not in row]
        if good:
            found[method] = {"n": len(good)} | {key: statistics.mean(r[key] for r in good) for key in METRICS.values()}
        if good and method != START:
            found[method] |= {key: statistics.median(row[key] for row in good) for key in SECONDS.values()}
            found[method]["peak_gb"] = max(row["peak_gb"] for row in good)
    peers = [row for method, row in found.items() if method != START and METHODS[method][0] != OURS]
    for method, row in found.items():
        if peers and method != START:
            for key in SECONDS.values():
                row[f"{key}_over_fastest_peer"] = row[key] / min(peer[key] for peer in peers)
    return found


def table(found: dict[str, Row]) -> str:
    """A summary as Markdown."""
    heads = ["method", "n", *METRICS, *SECONDS, "peak GB", *(f"x fastest peer: {name}" for name in SECONDS)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    keys = [*SECONDS.values(), "peak_gb", *(f"{key}_over_fastest_peer" for key in SECONDS.values())]
    for method, row in found.items():
        cells = [method, str(row["n"]), *(f"{row[key]:.4f}" for key in METRICS.values())]
        cells += [f"{row[key]:.2f}" if key in row else "" for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def said(row: Row) -> str:
    """A row for people."""
    keys = (*METRICS.values(), "error_mm", "error_95_mm", *SECONDS.values(), "peak_gb", "own_dice", "error")
    numbers = {key: f"{row[key]:.4g}" if key != "error" else row[key] for key in keys if key in row}
    return f"{row['pair']}  {row['method']}: " + "  ".join(f"{key} {value}" for key, value in numbers.items())


class Run:
    """The rows of a file, one for each pair and method, and which of them were made as they would be now.

    Args:
        output: JSON file of the results.
        threads: of all methods.
        settings: what the provenance says besides code and machine.
    """

    def __init__(self, output: Path, threads: int, **settings: Any) -> None:
        self.output, self.settings = output, settings
        self.own = {"threads": threads, "code": code_hash(), "check": settings["check"]}
        self.rows: list[Row] = []
        if output.exists():
            self.rows = json.loads(output.read_text(encoding="utf-8"))["rows"]

    def current(self) -> list[Row]:
        return [row for row in self.rows if self.own.items() <= row.items()]

    def done(self, method: str, pair: str) -> bool:
        """Whether there is a row of this code, without error."""
        return any((row["method"], row["pair"]) == (method, pair) and "error" not in row for row in self.current())

    def summary(self) -> dict[str, Any]:
        return summary(self.current())

    def add(self, row: Row) -> None:
        """Keeps a row in the place of an older one, and writes the file."""
        row = row | self.own
        keys = ("method", "pair", "threads")
        self.rows = [other for other in self.rows if any(other[key] != row[key] for key in keys)] + [row]
        content = {"provenance": provenance("cpu", **self.settings), "summary": self.summary()}
        write(content | {"rows": self.rows}, self.output)
        print(said(row), flush=True)


def main(
    data: str,
    case: str,
    pairs: int = 6,
    threads: int = 2,
    methods: str | Sequence[str] | None = None,
    peer_python: str = sys.executable,
    work: str | None = None,
    output: str | None = None,
    again: bool = False,
    check: bool = False,
) -> None:
    start, default = CASES[case]
    names = listed(methods or default)
    pythons, versions = interpreters(names, peer_python)
    source = Path(data).absolute() / case
    items = json.loads((source / "pairs_100.json").read_text(encoding="utf-8"))["testing"][:pairs]
    torch.set_num_threads(threads)
    file = Path(output or RESULTS / f"peers_{case}_{threads}t.json")
    run = Run(file, threads, case=case, pairs=pairs, initial_alignment=start, check=check, installed=versions)
    with tempfile.TemporaryDirectory() as temporary:
        for item in items:
            sides = [Path(item[f"{role}_image"]).name.split(".")[0] for role in ("moving", "fixed")]
            pair = "_to_".join(sides)
            folder = Path(work or temporary).absolute() / case / pair
            todo = [name for name in pythons if again or not run.done(name, pair)]
            if todo:
                prepare(item, source, start, folder)
                run.add({"method": START, "pair": pair} | evaluate(None, folder))
            for name in todo:
                run.add({"pair": pair} | measured(pythons[name], name, case, folder, threads, check))
    print(table(summary(run.current())), f"\nwritten: {file}", sep="\n")


if __name__ == "__main__":
    fire.Fire(main)
