"""Runs the application through its command line and compares its results with ``istn-monai register``.

Started by monai_deploy.py, in the environment that it made. Cases: two NIfTI files; a real DICOM series and a
configured atlas; an oblique series of anisotropic voxels, with rescale slope, files in any order, as fixed and moving
series of one study, against its NIfTI twin whose geometry is computed here; two series with a DICOM SEG; errors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from deploy_series import stored_values, write_series
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "hosts" / "monai_deploy" / "app.py"
STEPS = 10
IMAGES = ("warped", "warped_label", "displacement", "fixed_representation", "moving_representation")
outcomes: dict[str, bool] = {}


def check(what: str, good: bool, figures: str = "") -> None:
    print(f"{'ok  ' if good else 'FAIL'} {what}{': ' if figures else ''}{figures}", flush=True)
    outcomes[what] = outcomes.get(what, True) and good


def close(what: str, values: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    same_shape = np.shape(values) == np.shape(expected)
    error = np.abs(np.asarray(values, float) - np.asarray(expected, float)).max() if same_shape else np.inf
    check(what, error <= tolerance, f"largest difference {error:.2g} (allowed {tolerance:.2g})")


# ---------------------------------------------------------------------------------------------------------- running


def run_app(folder: Path, output: Path, *options: str | Path, **variables: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, APP, "-i", folder, "-o", output, *options]
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    start = time.monotonic()
    done = subprocess.run(
        list(map(str, command)), capture_output=True, encoding="utf-8", env=environment, cwd=folder.parent
    )
    print(f"     app.py on {folder.name}: exit code {done.returncode}, {time.monotonic() - start:.0f} s", flush=True)
    (folder.parent / f"{folder.name}.log").write_text(done.stdout + done.stderr)
    return done


def run_cli(output: Path, moving: Path, fixed: Path, label: Path | None, steps: int = STEPS) -> Path:
    program = Path(sys.executable).with_name("istn-monai")
    command = [program, "register", moving, fixed, "--output_dir", output, "--refine_steps", steps]
    command += ["--moving_label", label] if label else []
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return output


def must_run(done: subprocess.CompletedProcess, name: str) -> bool:
    check(f"{name}: runs", done.returncode == 0, "" if done.returncode == 0 else done.stderr[-2000:])
    return done.returncode == 0


# -------------------------------------------------------------------------------------------------------- comparing


def compare(
    name: str, app: Path, cli: Path, moving_dtype: np.dtype, tolerance: float = 0.0, refined: bool = True
) -> None:
    """All outputs of the application against those of the command line."""
    for image in IMAGES:
        found, expected = (nib.load(folder / f"{image}.nii.gz") for folder in (app, cli))
        scale = max(1.0, float(np.abs(expected.get_fdata()).max()))
        # a label may tip over where two classes are equally near; a geometry that is off moves many more voxels
        close(f"{name}: {image}, voxels", found.get_fdata() / scale, expected.get_fdata() / scale, tolerance)
        close(f"{name}: {image}, affine", found.affine, expected.affine, 1e-5 if tolerance else 0)
        same = found.get_data_dtype() == expected.get_data_dtype()
        check(f"{name}: {image}, data type", same, str(found.get_data_dtype()))
    kept = nib.load(app / "warped.nii.gz").get_data_dtype()
    check(f"{name}: warped keeps the moving image's data type", kept == moving_dtype, str(kept))
    points = points_in(nib.load(cli / "warped.nii.gz"))
    mapped = [transformed(folder / "transform.h5", points) for folder in (app, cli)]
    close(f"{name}: transform.h5, points in mm", *mapped, tolerance=max(1e-9, 10 * tolerance))
    reports = [json.loads((folder / "report.json").read_text(encoding="utf-8")) for folder in (app, cli)]
    names = ("weights_sha256", "options", "registration_grid", "initial_alignment")
    if not tolerance:
        check(f"{name}: report", all(reports[0][key] == reports[1][key] for key in names), ", ".join(names))
    done = reports[0]["refinement"]
    better = done["objective_end"] < done["objective_start"] if refined else done["steps"] == 0
    check(f"{name}: {'refined' if refined else 'one pass'}", better, str(done))


def points_in(image: nib.Nifti1Image) -> np.ndarray:
    """Points in the middle of an image, LPS mm."""
    voxels = np.random.default_rng(0).uniform(0.2, 0.8, (200, 3)) * (np.array(image.shape[:3]) - 1)
    return nib.affines.apply_affine(image.affine, voxels) * [-1, -1, 1]


def transformed(file: Path, points: np.ndarray) -> np.ndarray:
    transform = sitk.ReadTransform(str(file))
    return np.array([transform.TransformPoint(point.tolist()) for point in points])


def check_segmentation(name: str, output: Path, series: Path, names: list[str] | None = None) -> None:
    """The DICOM SEG against warped_label.nii.gz, in the world: voxel for voxel, wherever its frames say they are."""
    files = list(output.glob("*.dcm"))
    check(f"{name}: one DICOM SEG", len(files) == 1, str(len(files)))
    seg = highdicom.seg.segread(files[0])
    sources = [pydicom.dcmread(file) for file in series.rglob("*.dcm")]
    referred = {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    check(
        f"{name}: SEG refers to the fixed series",
        referred == {source.SOPInstanceUID for source in sources}
        and seg.ReferencedSeriesSequence[0].SeriesInstanceUID == sources[0].SeriesInstanceUID
        and seg.StudyInstanceUID == sources[0].StudyInstanceUID
        and seg.FrameOfReferenceUID == sources[0].FrameOfReferenceUID,
        f"{len(referred)} instances",
    )
    label = nib.load(output / "warped_label.nii.gz")
    volume = seg.get_volume(combine_segments=True)
    indices = np.argwhere(np.ones(volume.array.shape, bool))
    world = nib.affines.apply_affine(volume.affine, indices) * [-1, -1, 1]  # DICOM's LPS to RAS
    voxels = nib.affines.apply_affine(np.linalg.inv(label.affine), world)
    close(f"{name}: SEG's voxels lie on the label's grid", voxels, voxels.round(), 1e-3)
    values = np.asarray(label.dataobj).round().astype(int)
    segments = np.unique(values[values > 0])
    expected = np.searchsorted(segments, values) + 1
    expected[values == 0] = 0
    inside = tuple(voxels.round().astype(int).T)
    close(f"{name}: SEG's content", volume.array.ravel(), expected[inside], 0)
    labeled = (values > 0).sum()
    check(f"{name}: SEG leaves nothing out", (volume.array > 0).sum() == labeled > 0, f"{labeled} voxels")
    found = [str(item.SegmentLabel) for item in seg.SegmentSequence]
    wanted = names or [f"label {value}" for value in segments]
    check(f"{name}: SEG's segments", found == wanted, ", ".join(found))


# ------------------------------------------------------------------------------------------------------------ cases


def copied(folder: Path, **files: Path) -> Path:
    folder.mkdir(parents=True)
    for name, file in files.items():
        shutil.copy(file, folder / f"{name}.nii.gz")
    return folder


def case_nifti(work: Path, moving: Path, label: Path, fixed: Path) -> None:
    """The moving image as int16 with values that 8 bit do not hold."""
    folder = copied(work / "nifti", moving_label=label, fixed=fixed)
    nib.save(nib.Nifti1Image(stored_values(moving).astype(np.int16), nib.load(moving).affine), folder / "moving.nii.gz")
    moving = folder / "moving.nii.gz"
    if must_run(run_app(folder, work / "nifti_out", "--refine_steps", str(STEPS)), "two NIfTI files"):
        cli = run_cli(work / "nifti_cli", moving, fixed, label)
        compare("two NIfTI files", work / "nifti_out", cli, np.dtype(np.int16))
        largest = np.asarray(nib.load(work / "nifti_out" / "warped.nii.gz").dataobj).max()
        check("two NIfTI files: more than 8 bit", largest > 255, str(largest))


def case_atlas(work: Path, moving: Path, label: Path, series: Path) -> None:
    """A DICOM series and nothing else in the folder; the atlas is configured, the bundle given with -m."""
    shutil.copytree(series, work / "study")
    done = run_app(
        *(work / "study", work / "study_out", "-m", ROOT / "bundle"),
        *("--segments", APP.with_name("segments_hippocampus.json")),
        **{"ISTN_ATLAS": moving, "ISTN_ATLAS_LABEL": label, "ISTN_REFINE_STEPS": STEPS},
    )
    if must_run(done, "DICOM and atlas"):
        cli = run_cli(work / "study_cli", moving, series, label)
        compare("DICOM and atlas", work / "study_out", cli, nib.load(moving).get_data_dtype())
        names = ["Hippocampus, anterior", "Hippocampus, posterior"]
        check_segmentation("DICOM and atlas", work / "study_out", series, names)


def case_oblique(work: Path, moving: Path, label: Path, fixed: Path) -> None:
    """Two series of one study, chosen by rules; slope and intercept give fractions and negative values."""
    folder, study = work / "oblique", generate_uid()
    axes, spacing = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix(), (0.8, 1.3, 1.1)
    fixed_twin = write_series(
        folder / "dicom", "target", study, stored_values(fixed), axes, spacing, (13.0, -40.0, 70.0), 0.5, -100.0
    )
    header = nib.load(moving)
    moving_twin = write_series(
        folder / "dicom", "source", study, stored_values(moving), np.diag([-1.0, -1, 1]),
        header.header.get_zooms()[:3], tuple(header.affine[:3, 3] * [-1, -1, 1]), 0.25, -7.5,
    )  # fmt: skip
    shutil.copytree(folder / "dicom", work / "two_series" / "fixed")  # for the errors
    shutil.copy(label, folder / "dicom" / "moving_label.nii.gz")
    rules = {
        "selections": [
            {"name": "fixed", "conditions": {"SeriesDescription": "^target$"}},
            {"name": "moving", "conditions": {"SeriesDescription": "^source$"}},
        ]
    }
    done = run_app(
        *(folder / "dicom", work / "oblique_out", "-m", repository(work)),
        *("--refine_steps", str(STEPS), "--series_rules", json.dumps(rules)),
        *("--segments", json.dumps({"1": {"label": "head"}, "2": {"label": "tail"}})),
    )
    if not must_run(done, "oblique study"):
        return
    only_fixed = work / "only_target"
    only_fixed.mkdir()
    for file in (folder / "dicom").rglob("target*.dcm"):
        shutil.copy(file, only_fixed)
    cli = run_cli(work / "oblique_cli", moving_twin, only_fixed, label)
    compare("oblique study, CLI on the series", work / "oblique_out", cli, np.dtype(np.float64), 1e-4)
    twin = run_cli(work / "oblique_twin", moving_twin, fixed_twin, label)
    compare("oblique study, CLI on the NIfTI twin", work / "oblique_out", twin, np.dtype(np.float64), 1e-4)
    check_segmentation("oblique study", work / "oblique_out", only_fixed, ["head", "tail"])
    case_back(work, only_fixed, next((work / "oblique_out").glob("*.dcm")))


def case_back(work: Path, series: Path, segmentation: Path) -> None:
    """Both DICOM, and the label a DICOM SEG, the one that was just written; its segments keep their names. One pass."""
    folder, target = work / "back", work / "back" / "fixed"
    shutil.copytree(work / "study", target)
    shutil.copytree(series, folder / "moving")
    (folder / "moving_label").mkdir()
    shutil.copy(segmentation, folder / "moving_label")
    if must_run(run_app(folder, work / "back_out", "--refine_steps", "0"), "two series and SEG"):
        label = segmentation.with_name("warped_label.nii.gz")
        cli = run_cli(work / "back_cli", series, target, label, steps=0)
        compare("two series and SEG", work / "back_out", cli, np.dtype(np.float64), refined=False)
        check_segmentation("two series and SEG", work / "back_out", target, ["head", "tail"])


def repository(work: Path) -> Path:
    """A folder of models, as the SDK has them, with the bundle in it."""
    shutil.copytree(ROOT / "bundle", work / "models" / "hippocampus")
    return work / "models"


def case_errors(work: Path, moving: Path, fixed: Path) -> None:
    alone = copied(work / "no_moving", fixed=fixed)
    two_files = copied(work / "two_files", fixed=fixed, fixed_2=fixed, moving=moving)
    shutil.copy(moving, work / "two_series" / "moving.nii.gz")
    gap = copied(work / "gap", moving=moving)
    shutil.copytree(work / "study", gap / "fixed", ignore=shutil.ignore_patterns("12.dcm"))
    pair = copied(work / "pair", fixed=fixed, moving=moving)
    empty = work / "empty"
    empty.mkdir()
    cases = [
        (alone, [], "moving_image: nothing is named moving*"),
        (two_files, [], "fixed_image: one is expected"),
        (work / "two_series", [], "fixed_image: one DICOM series of single-slice images is expected, there are 2"),
        (gap, [], "lacks slices"),
        (empty, [], "fixed_image: nothing is named fixed*"),
        (pair, ["-m", alone], "model: "),
        (pair, ["--refine_steps", "-1"], "argument --refine_steps"),
        (pair, ["--segments", '{"1": {"name": "x"}}'], "segments: objects with some of"),
    ]
    for folder, options, text in cases:
        output = work / f"{folder.name}_out"
        done = run_app(folder, output, *options)
        last = (done.stderr.strip().splitlines() or [""])[-1]
        check(f"error of {folder.name}", done.returncode != 0 and text in last and "Traceback" not in done.stderr, last)
        check(f"error of {folder.name}: nothing written", not output.is_dir() or not any(output.iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for results; what is in it is removed")
    arguments = parser.parse_args()
    work, data = arguments.work, arguments.data
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    start = time.monotonic()
    images, labels = (data / "hippocampus" / name for name in ("imagesTr", "labelsTr"))
    moving, label, fixed = (
        images / "hippocampus_003.nii.gz", labels / "hippocampus_003.nii.gz", images / "hippocampus_001.nii.gz"
    )  # fmt: skip
    case_nifti(work, moving, label, fixed)
    case_atlas(work, moving, label, data / "dicom_hippocampus")
    case_oblique(work, moving, label, fixed)
    case_errors(work, moving, fixed)
    failed = [what for what, good in outcomes.items() if not good]
    print(f"MONAI Deploy, {time.monotonic() - start:.0f} s" + "".join(f"\n  FAIL {what}" for what in failed))
    print(f"checks: {len(outcomes) - len(failed)} passed, {len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
