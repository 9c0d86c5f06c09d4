"""Whether ``istn-monai evaluate --learn2reg`` gives the numbers of Learn2Reg's own evaluation, for the same files.

    python benchmarks/learn2reg.py --data DIR --evaluation FOLDER --python PYTHON [--pairs 20] [--output FILE]

DIR holds the data sets' folders. FOLDER is ``evaluation`` of the challenge's repository, MDL-UzL/L2R, and PYTHON an
interpreter with what it needs, in versions of its time: NumPy 1.23, SciPy 1.9, pandas 1.5, nibabel 4.0, evalutils 0.3.
The first test pairs of the hippocampus are padded to one grid about their centers, and named and listed as in the
challenge. They are registered with the shipped weights and the default refinement, and evaluated. Its own script
then reads the same displacements, once without masks and once with them. Landmarks, for TRE, are random places: they
test the arithmetic, not the registration. The benchmark fails if any number of any pair differs by more than 1e-3.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
from common import RESULTS, Row, must_agree, provenance, write
from scipy.ndimage import binary_dilation

from istn_monai.folders import bundle_folder, find_weights
from istn_monai.io.datalist import read_datalist
from istn_monai.runs import evaluate_datalist
from istn_monai.workflow.learn2reg import MEASURED, SUBMISSION, Submission

SIZE = (56, 68, 60)
LANDMARKS = 50
TOLERANCE = 1e-3
METHODS = [
    {"name": "LogJacDetStd", "metric": "sdlogj"},
    {"name": "DSC", "metric": "dice", "labels": [1, 2]},
    {"name": "HD95", "metric": "hd95", "labels": [1, 2]},
    {"name": "TRE_kp", "metric": "tre", "dest": "keypoints"},
]


def padded(volume: np.ndarray) -> np.ndarray:
    """A volume in the middle of the common grid, with its darkest value around it."""
    rest = np.array(SIZE) - volume.shape
    assert (rest >= 0).all(), f"{volume.shape} is larger than the common grid {SIZE}"
    return np.pad(volume, [(n // 2, n - n // 2) for n in rest], constant_values=volume.min())


def write_case(folder: Path, name: str, image: str, label: str, rng: np.random.Generator) -> None:
    """Image, label map, mask and landmarks of one case, as the challenge names them."""
    values, labels = (padded(np.asarray(nib.load(file).dataobj)) for file in (image, label))
    mask = binary_dilation(labels > 0, iterations=6)
    volumes = {"images": values.astype(np.float32), "labels": labels.astype(np.uint8), "masks": mask.astype(np.uint8)}
    for room, volume in volumes.items():
        (folder / f"{room}Tr").mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / f"{room}Tr" / f"{name}.nii.gz")
    (folder / "keypointsTr").mkdir(exist_ok=True)
    points = rng.uniform(2, np.array(SIZE) - 3, (LANDMARKS, 3))
    np.savetxt(folder / "keypointsTr" / f"{name}.csv", points, delimiter=",", fmt="%.3f")


def make_set(folder: Path, pairs: list[dict[str, str]]) -> Path:
    """A data set in the challenge's form; its ``*_dataset.json``."""
    rng, names, listed = np.random.default_rng(0), {}, []
    for pair in pairs:
        for side in ("fixed", "moving"):
            image = pair[f"{side}_image"]
            if image not in names:
                names[image] = f"HippocampusMR_{len(names) + 1:04d}_0000"
                write_case(folder, names[image], image, pair[f"{side}_label"], rng)
        listed.append({side: f"./imagesTr/{names[pair[f'{side}_image']]}.nii.gz" for side in ("fixed", "moving")})
    content = {
        "name": "HippocampusMR", "labels": {"0": {"0": "background", "1": "anterior", "2": "posterior"}},
        "tensorImageShape": {"0": list(SIZE)}, "numRegistration_val": len(listed), "registration_val": listed,
    }  # fmt: skip
    file = folder / "HippocampusMR_dataset.json"
    write(content, file)
    return file


def by_the_challenge(evaluation: Path, python: str, dataset: Path, submission: Path, masked: bool) -> dict[str, Any]:
    """What its own script says of a submission."""
    config, result = dataset.with_name("config.json"), dataset.with_name(f"challenge_{masked}.json")
    pairs = json.loads(dataset.read_text(encoding="utf-8"))["registration_val"]
    settings = {"task_name": "HippocampusMR", "evaluation_methods": METHODS, "expected_shape": [*SIZE, 3]}
    write(settings | {"eval_pairs": pairs, "masked_evaluation": masked}, config)
    paths = {"-i": submission, "-d": dataset.parent, "-o": result, "-c": config}
    words = [str(word) for option in paths.items() for word in option]
    own = os.environ | {"PYTHONPATH": str(evaluation / "surface-distance"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([python, str(evaluation / "evaluation.py"), *words], check=True, env=own)
    return json.loads(result.read_text(encoding="utf-8"))


def inside_masks(dataset: Path, submission: Path) -> dict[str, Any]:
    """Ours of the same files under the name of a task whose SDlogJ is taken inside masks."""
    content = json.loads(dataset.read_text(encoding="utf-8"))
    other = dataset.with_name("AbdomenMRCT_dataset.json")
    write(content | {"name": "AbdomenMRCT"}, other)
    return Submission(other, read_datalist(other, ["validation"])["validation"], submission).measured()


def rows_of(what: str, ours: dict[str, Any], theirs: dict[str, Any]) -> list[Row]:
    """For each metric its largest difference, of any pair and label, and of what is said of all pairs."""
    rows = []
    for method in METHODS:
        name = method["name"]
        apart = [
            np.abs(np.subtract(ours[key][case][name][number], theirs[key][case][name][number])).max()
            for key, number in (("cases", "mean"), ("cases", "detailed"))
            for case in theirs[key]
        ]
        apart += [abs(ours["aggregates"][name][key] - value) for key, value in theirs["aggregates"][name].items()]
        row = {
            "what": f"{name}, {what}",
            "candidate": "MDL-UzL/L2R",
            "error": float(max(apart)),
            "tolerance": TOLERANCE,
        }
        rows.append(row | {"ours": ours["aggregates"][name], "theirs": theirs["aggregates"][name]})
    return rows


def main(
    data: str, evaluation: str, python: str, pairs: int = 20, output: str = str(RESULTS / "learn2reg.json")
) -> None:
    """Registers, evaluates twice, and compares."""
    chosen = read_datalist(Path(data) / "hippocampus" / "pairs_100.json", ["testing"])["testing"][:pairs]
    with tempfile.TemporaryDirectory() as work:
        dataset = make_set(Path(work) / "data", chosen)
        folder = Path(work) / "evaluation"
        settings: dict[str, Any] = {"learn2reg": True, "qa": False, "both_ways": False, "evaluated_split": "validation"}
        evaluate_datalist(bundle_folder(), dataset, folder, find_weights(bundle_folder()), **settings)
        rows = []
        for masked, what in ((False, "everywhere"), (True, "inside masks")):
            theirs = by_the_challenge(Path(evaluation).resolve(), python, dataset, folder / SUBMISSION, masked)
            ours = json.loads((folder / MEASURED).read_text(encoding="utf-8"))
            rows += rows_of(what, inside_masks(dataset, folder / SUBMISSION) if masked else ours, theirs)
    for row in rows:
        print(f"{row['what']:28} ours {row['ours']['mean']:.5f}, theirs {row['theirs']['mean']:.5f}, "
              f"largest difference {row['error']:.1e}")  # fmt: skip
    must_agree(rows)
    write({"provenance": provenance("cpu", pairs=pairs, size=SIZE, landmarks=LANDMARKS), "rows": rows}, output)


if __name__ == "__main__":
    fire.Fire(main)
