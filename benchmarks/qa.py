"""The QA page's traffic light on good pairs and on wrong inputs, with the shipped weights.

    python benchmarks/qa.py --data DIR

DIR holds ``hippocampus``, ``brain`` and ``templates``. Registers all test pairs of the hippocampus, and for the first
few a wrong image of each kind in the place of the moving one (and of both, where it says so). Prints a table of
statuses after one pass and refined, and the metrics that matter most, and writes it to ``benchmarks/results/qa.json``.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from common import RESULTS, provenance, write
from scipy import ndimage

from istn_monai.qa.measures import measure, registered_pair
from istn_monai.qa.page import page_picture
from istn_monai.qa.rules import traffic_light
from istn_monai.registration import Registration
from istn_monai.workflow.errors import foreseen_cause

GOOD = "good pairs"
SHOWN = ("overlap_one_pass", "overlap", "ambiguity", "coverage", "displacement", "sdlogj")
HALF = np.array([18, 25, 18])  # voxels: half the size of a hippocampus crop
Case = tuple[str, Any, np.ndarray | None, str]  # what, moving voxels, their affine, which images are replaced


def load(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine."""
    image = nib.load(file)
    return np.asarray(image.dataobj, dtype=float), image.affine


def crop(image: np.ndarray, center: np.ndarray) -> np.ndarray:
    return image[tuple(slice(c - h, c + h) for c, h in zip(center, HALF, strict=True))]


def without_soi(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The largest block of an image with nothing of its structures."""
    low, high = (extreme(np.argwhere(label > 0), axis=0) for extreme in (np.min, np.max))
    blocks = []
    for axis in range(3):
        blocks += np.split(image, [low[axis], high[axis] + 1], axis)[::2]
    return max(blocks, key=np.size)


def middle(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """World point."""
    return affine[:3, :3] @ ((np.array(image.shape) - 1) / 2) + affine[:3, 3]


def moved(affine: np.ndarray, by: np.ndarray) -> np.ndarray:
    """An affine shifted by some mm."""
    result = affine.copy()
    result[:3, 3] += by
    return result


def wrong_inputs(folder: Path, pair: dict[str, str], seed: int) -> Iterator[Case]:
    """Each kind of wrong input for one pair; "moving", "fixed" or "both" says in whose place it stands."""
    (moving, affine), (label, _), fixed = (
        load(folder / "hippocampus" / pair[key]) for key in ("moving_image", "moving_label", "fixed_image")
    )
    rng = np.random.default_rng(seed)
    brains = sorted((folder / "brain" / "images").glob("*.nii.gz"))
    brain, brain_affine = load(brains[seed])
    for side in ("moving", "fixed"):
        yield f"whole brain, as {side}", brain, brain_affine, side
    yield "brain template (MNI152)", *load(folder / "templates" / "MNI152_T1_1mm_brain.nii.gz"), "moving"
    center = np.array(brain.shape) // 2
    yield "crop from a brain's middle", crop(brain, center), brain_affine, "moving"
    yield "crop of a brain's cortex", crop(brain, center + [37, 0, 28]), brain_affine, "moving"
    for distance in (20, 40):
        for axis, name in enumerate(("left-right", "front-back", "up-down")):
            shift = middle(*fixed) - middle(moving, affine) + distance * np.eye(3)[axis]
            yield f"shifted by {distance} mm {name}, `world`", moving, moved(affine, shift), "world"
    for axis, name in enumerate(("left-right", "front-back", "upside down")):
        yield f"flipped {name}", np.flip(moving, axis), affine, "moving"
    yield "turned by 90° about the long axis of the body", np.rot90(moving), affine, "moving"
    noise = [rng.random(moving.shape) for _ in range(2)]
    smooth = [ndimage.gaussian_filter(rng.normal(size=moving.shape), 3) for _ in range(2)]
    yield "white noise", noise[0], affine, "moving"
    yield "smooth noise", smooth[0], affine, "moving"
    yield "white noise, both", noise, affine, "both"
    yield "smooth noise, both", smooth, affine, "both"
    yield "structures cropped away", without_soi(moving, label), affine, "moving"
    yield "structures cropped away, as fixed", without_soi(moving, label), affine, "fixed"
    half = int(np.median(np.argwhere(label > 0)[:, 1]))
    yield "front half of the structures only", moving[:, half:], affine, "moving"
    erased = np.where(ndimage.binary_dilation(label > 0, iterations=2), np.median(moving), moving)
    yield "structures painted over in gray", erased, affine, "moving"
    yield "intensities inverted", moving.max() - moving, affine, "moving"
    for factor in (0.1, 2, 10):
        yield f"voxel size x {factor:g}", moving, affine @ np.diag([factor] * 3 + [1]), "moving"


def files_of(case: Case, good: dict[str, str], folder: Path) -> dict[str, str]:
    """The pair's files with the wrong ones in place."""
    _, voxels, affine, place = case
    sides = {"both": ("moving", "fixed"), "fixed": ("fixed",)}.get(place, ("moving",))
    files = dict(good)
    for side, array in zip(sides, voxels if place == "both" else [voxels], strict=True):
        file = folder / f"{side}.nii.gz"
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array, dtype=np.float32), affine), file)
        files[f"{side}_image"] = str(file)
    return files


def judged(registration: Registration, files: dict[str, str], draw: bool = False) -> dict[str, Any]:
    """Status after one pass and refined, metrics, and seconds of the page; or why the pair was refused."""
    try:
        result = registration(files)
    except Exception as error:  # MONAI wraps what a transform refuses
        return {"refused": str(foreseen_cause(error) or error)}
    begin = time.perf_counter()
    pair = registered_pair(result, registration.network)
    verdict = traffic_light(measure(pair))
    if draw:
        page_picture(pair, verdict)
    seconds = time.perf_counter() - begin
    one_pass = traffic_light(measure(replace(pair, ddf=pair.one_pass, refinement=None)))
    return verdict.report() | {"one_pass": one_pass.status, "seconds": seconds}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers of each status, and ranges of metrics."""
    known = [result for result in results if "refused" not in result]
    keys = {"one pass": "one_pass", "refined": "status"}
    statuses = {name: dict(Counter(result[key] for result in known)) for name, key in keys.items()}
    ranges = {f: [extreme(r["metrics"][f] for r in known) for extreme in (min, max)] for f in SHOWN if known}
    return {"pairs": len(results), "refused": len(results) - len(known), **statuses, **ranges}


@functools.cache
def registration(alignment: str) -> Registration:
    torch.set_num_threads(1)
    return Registration(device="cpu", initial_alignment=alignment)


def results_of(folder: Path, pair: dict[str, str], number: int, good: bool, wrong: bool) -> list[tuple[str, Any]]:
    """What becomes of one pair as it is, and with each wrong input."""
    files = {f"{side}_image": str(folder / "hippocampus" / pair[f"{side}_image"]) for side in ("moving", "fixed")}
    found = [(GOOD, judged(registration("center"), files, draw=True))] if good else []
    for case in wrong_inputs(folder, pair, number) if wrong else ():
        with tempfile.TemporaryDirectory() as place:
            use = registration("world" if case[3] == "world" else "center")
            found.append((case[0], judged(use, files_of(case, files, Path(place)))))
    return found


def main(data: str, good: int = 100, wrong: int = 4, workers: int = 2) -> None:
    folder = Path(data)
    pairs = json.loads((folder / "hippocampus" / "pairs_100.json").read_text(encoding="utf-8"))["testing"][
        : max(good, wrong)
    ]
    results = defaultdict(list)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(results_of, folder, pair, n, n < good, n < wrong) for n, pair in enumerate(pairs)]
        for job in jobs:
            for name, result in job.result():
                results[name].append(result)
    rows = {name: summary(found) for name, found in results.items()}
    for name, row in rows.items():
        print(f"{name:48}", *(f"{key} {value}" for key, value in row.items()))
    seconds = [result["seconds"] for result in results[GOOD]]
    print(f"page: median {np.median(seconds):.2f} s, longest {max(seconds):.2f} s")
    metrics = {name: [result.get("metrics") for result in found] for name, found in results.items()}
    content = {"provenance": provenance("cpu", workers=workers), "rows": rows, "page_seconds": seconds}
    write(content | {"metrics": metrics}, RESULTS / "qa.json")


if __name__ == "__main__":
    fire.Fire(main)
