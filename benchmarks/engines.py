"""Other engines on the representations, and the same engines with the same settings on the images.

    python benchmarks/engines.py --data DIR [--pairs 20] [--engines "greedy;elastix"] [--output FILE]
        [--peer_python /path/to/other/venv/bin/python] [--again]

DIR holds ``hippocampus/``; the pairs are the first ones of its test split. What ``istn-monai register --engine none``
writes are both representations of the shipped weights and T0. From there each engine of ``engine_methods.py`` registers
the images, and then the representations, in a process of its own, with one thread; the peers' interpreter needs neither
torch nor this project. ``istn-monai compose`` joins what it has written, and ``apply`` moves image and labels by that.

``dice`` is the mean over both structures, ``dice_merged`` takes them as one. ``error`` is the largest difference, over
the image's range, between the moving image as SimpleITK resamples it by the joined transform and as ``apply`` does. A
row is written as soon as it is there and not measured again, unless code changed or ``--again`` says so.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from common import RESULTS, Row, code_hash, provenance, write
from engine_methods import METHODS
from peers import dice_of_labels, environment

from istn_monai.apply import apply_transform
from istn_monai.compose import compose_files
from istn_monai.engines import Representing
from istn_monai.geometry.grids import Grid
from istn_monai.io.images import load_image
from istn_monai.io.itk_transforms import read_transform
from istn_monai.registration import register_files

METHODS_FILE = str(Path(__file__).with_name("engine_methods.py"))
START, INPUTS = "start", ("images", "representations")
TOLERANCE = 1e-3  # of the image's range
RIM = 1e-4  # voxels
METRICS = ("dice_merged", "dice_1", "dice_2", "dice", "seconds", "error")


def values_of(file: str | Path) -> np.ndarray:
    """The voxels of a file."""
    return np.asarray(nib.load(file).dataobj, dtype=float)


def resampling_error(transform: str, pair: dict[str, str], warped: str | Path) -> float:
    """The largest difference of a warped image from SimpleITK's, over the moving image's range.

    Where a place lies on the moving image's rim, rounding tells whether it counts as inside: it is left out.
    """
    import SimpleITK as sitk

    moving, fixed = (sitk.ReadImage(pair[f"{side}_image"], sitk.sitkFloat64) for side in ("moving", "fixed"))
    values = sitk.GetArrayViewFromImage(moving)
    loaded = sitk.ReadTransform(transform)
    theirs = sitk.Resample(moving, fixed, loaded, sitk.sitkLinear, float(values.min()), sitk.sitkFloat64)
    difference = np.abs(sitk.GetArrayFromImage(theirs).T - values_of(warped))
    own, other = (Grid.of(load_image(pair[f"{side}_image"], side, 3)) for side in ("moving", "fixed"))
    places = own.voxels(read_transform(transform).on_grid(other)).numpy()
    size = np.reshape(own.spatial_size, (3, 1, 1, 1))
    rim = np.minimum(np.abs(places + 0.5), np.abs(places - size + 0.5)).min(axis=0) < RIM
    return float(difference[~rim].max() / np.ptp(values))


def evaluated(transforms: Sequence[str], pair: dict[str, str], folder: Path) -> Row:
    """What transforms, in the order of ``compose``, make of a pair."""
    joined = str(compose_files(transforms, str(folder / "joined.h5"), overwrite=True))
    moving = nib.load(pair["moving_image"])
    nib.save(nib.Nifti1Image(moving.get_fdata(dtype=np.float32), moving.affine), folder / "moving.nii.gz")
    floating = pair | {"moving_image": str(folder / "moving.nii.gz")}  # whole numbers would be rounded
    reference = pair["fixed_image"]
    warped = [
        apply_transform(joined, floating[f"moving_{what}"], str(folder / f"warped_{what}.nii.gz"), reference,
                        interpolation=how, overwrite=True)
        for what, how in (("image", "linear"), ("label", "label"))
    ]  # fmt: skip
    labels = [torch.as_tensor(values_of(file)).round().long() for file in (warped[1], pair["fixed_label"])]
    found = {f"dice_{n}": dice_of_labels((labels[0] == n).long(), (labels[1] == n).long())["dice"] for n in (1, 2)}
    return dice_of_labels(*labels) | found | {"error": resampling_error(joined, floating, warped[0])}


def measured(engine: str, what: str, pair: dict[str, str], folder: Path, python: str) -> Row:
    """What an engine finds, on the images or on the representations."""
    output = folder / f"{engine}_{what}".replace(" ", "_").replace(",", "")
    output.mkdir(exist_ok=True)
    sides = ("fixed", "moving")
    files = [[pair[f"{side}_image"]] for side in sides]
    if what == "representations":
        files = [sorted(map(str, folder.glob(f"{side}_0*.nii.gz"))) for side in sides]
    command = [python, METHODS_FILE, engine, str(folder), str(output), *(",".join(side) for side in files)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment(1), cwd=output, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if done.returncode or not lines:
        return {"failed": f"ended with {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])}"}
    told = json.loads(lines[-1])
    return {"seconds": told["seconds"]} | evaluated(told["transforms"], pair, output)


def summary(rows: Sequence[Row]) -> list[Row]:
    """For each engine and input the means of the metrics, the largest error, and how many pairs gained."""
    found = []
    for engine, what in dict.fromkeys((row["engine"], row["input"]) for row in rows):
        own = {row["pair"]: row for row in rows if (row["engine"], row["input"]) == (engine, what)}
        good = [row for row in own.values() if "failed" not in row]
        if not good:
            continue
        mean = {key: statistics.mean(row[key] for row in good) for key in METRICS if key in good[0]}
        mean["error"] = max(row["error"] for row in good)
        other = {row["pair"]: row for row in rows if row["engine"] == engine and row["input"] == INPUTS[0]}
        both = [(row, other[row["pair"]]) for row in good if "dice_merged" in other.get(row["pair"], {})]
        if what == INPUTS[1] and both:
            gains = [row["dice_merged"] - image["dice_merged"] for row, image in both]
            mean |= {"gain": statistics.mean(gains), "better": sum(gain > 0 for gain in gains)}
        found.append({"engine": engine, "input": what, "n": len(good), "failed": len(own) - len(good)} | mean)
    return found


def table(found: Sequence[Row]) -> str:
    """A summary as Markdown."""
    keys = ("n", *METRICS[:5], "gain", "better")
    lines = ["| " + " | ".join(("engine", "input", *keys)) + " |", "|---" * (len(keys) + 2) + "|"]
    for row in found:
        cells = [f"{row[key]:.3f}" if isinstance(row.get(key), float) else str(row.get(key, "")) for key in keys]
        lines.append("| " + " | ".join([row["engine"], row["input"], *cells]) + " |")
    return "\n".join(lines)


class Run:
    """The rows of a file, and which of them are of this code.

    Args:
        output: JSON file of the results.
        again: none is.
        settings: what the provenance says besides code and machine.
    """

    def __init__(self, output: Path, again: bool, **settings: Any) -> None:
        self.output, self.settings, self.code = output, settings, code_hash()
        self.rows: list[Row] = []
        if output.exists() and not again:
            rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
            self.rows = [row for row in rows if row["code"] == self.code]

    def done(self, **keys: Any) -> bool:
        """Whether there is a row."""
        return any(keys.items() <= row.items() for row in self.rows)

    def add(self, row: Row) -> None:
        """Keeps a row and writes the file."""
        self.rows.append(row | {"code": self.code})
        content = {"provenance": provenance("cpu", **self.settings), "summary": summary(self.rows), "rows": self.rows}
        write(content, self.output)
        print(json.dumps(row), flush=True)


def main(
    data: str,
    pairs: int = 20,
    engines: str | None = None,
    peer_python: str = sys.executable,
    output: str | None = None,
    again: bool = False,
) -> None:
    """Runs the comparison; see the module."""
    torch.set_num_threads(1)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    source = Path(data).absolute() / "hippocampus"
    items = json.loads((source / "pairs_100.json").read_text(encoding="utf-8"))["testing"][:pairs]
    told = subprocess.run([peer_python, METHODS_FILE, "installed"], capture_output=True, encoding="utf-8", check=True)
    versions = json.loads(told.stdout)
    names = [name for name in (engines.split(";") if engines else METHODS) if versions[METHODS[name][0]]]
    run = Run(Path(output or RESULTS / "engines.json"), again, pairs=pairs, installed=versions, tolerance=TOLERANCE)
    representing = Representing(device="cpu")
    for number, item in enumerate(items):
        pair = {key: str(source / file) for key, file in item.items()}
        cases = [(engine, what) for engine in names for what in INPUTS]
        todo = [case for case in cases if not run.done(pair=number, engine=case[0], input=case[1])]
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work)
            if todo:
                register_files(representing, folder, moving_image=pair["moving_image"], fixed_image=pair["fixed_image"])
            if todo and not run.done(pair=number, engine=START):
                row = evaluated([str(folder / "initial.tfm")], pair, folder)
                run.add({"pair": number, "engine": START, "input": ""} | row)
            for engine, what in todo:
                row = measured(engine, what, pair, folder, peer_python)
                run.add({"pair": number, "engine": engine, "input": what} | row)
    print(table(summary(run.rows)), f"\nwritten: {run.output}", sep="\n")
    wrong = [row for row in run.rows if row.get("error", 0) > TOLERANCE or "failed" in row]
    if wrong:
        raise SystemExit(f"{len(wrong)} rows failed or differ from SimpleITK, the first: {wrong[0]}")


if __name__ == "__main__":
    fire.Fire(main)
