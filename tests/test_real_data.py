"""The shipped model on real MRI, which lies outside the project: see ISTN_DATA_DIR in the README."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers import BUNDLE, DATA_DIR, config, random_checkpoint
from monai.bundle import run

from istn_monai.registration import Registration, register_files

DATA, SERIES, BRAIN = (DATA_DIR / name for name in ("hippocampus", "dicom_hippocampus", "brain"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no hippocampus data at {DATA} (set ISTN_DATA_DIR)")


@pytest.fixture(scope="module")
def pair():
    """The first test pair of two images of different shape, absolute paths."""
    for item in json.loads((DATA / "pairs_100.json").read_text(encoding="utf-8"))["testing"]:
        files = {key: str(DATA / path) for key, path in item.items()}
        if nib.load(files["moving_image"]).shape != nib.load(files["fixed_image"]).shape:
            return files
    raise AssertionError("no such pair")


def simpleitk_agrees(result: Path, moving: sitk.Image, fixed: sitk.Image) -> None:
    """SimpleITK makes the warped image from the original moving one and the written transform."""
    warped = sitk.ReadImage(str(result / "warped.nii.gz"))
    assert warped.GetSize() == fixed.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(warped, get)(), getattr(fixed, get)(), atol=1e-4)
    darkest = float(sitk.GetArrayViewFromImage(moving).min())
    transform = sitk.ReadTransform(str(result / "transform.h5"))
    resampled = sitk.Resample(sitk.Cast(moving, sitk.sitkFloat64), fixed, transform, sitk.sitkLinear, darkest)
    found, ours = sitk.GetArrayFromImage(resampled), sitk.GetArrayFromImage(warped).astype(float)
    # whole numbers are rounded; and rounding may put a voxel at the very rim of the moving image on either side
    tolerance = 1e-3 * np.ptp(ours) + 0.5 * (warped.GetPixelID() not in (sitk.sitkFloat32, sitk.sitkFloat64))
    assert (np.abs(found - ours) > tolerance).mean() < 1e-3


@pytest.fixture(scope="module")
def figures(pair, tmp_path_factory):
    """What evaluation says of this pair, by method."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "pairs.json").write_text(json.dumps({"testing": [pair]}), encoding="utf-8")
    run(
        run_id="evaluation",
        config_file=config("train", "hippocampus", "evaluate"),
        dataset_dir=str(folder),
        data_list_file="pairs.json",
        ckpt_dir=str(BUNDLE / "models"),
        output_dir=str(folder),
        refine_steps=50,
        device="cpu",
    )
    rows = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["pairs"]
    return {row["method"]: row for row in rows}


def test_registration_helps_and_refinement_helps_more(figures):
    assert figures["Id"]["dice_labels"] + 0.05 < figures["one-pass"]["dice_labels"] < figures["refined"]["dice_labels"]
    assert figures["refined"]["folding"] < 1e-3


@pytest.mark.parametrize(
    "run_id, overlays, method", [("inference", [], "one-pass"), ("refinement", ["refine"], "refined")]
)
def test_files_agree_with_evaluation(pair, figures, tmp_path, monkeypatch, run_id, overlays, method):
    monkeypatch.chdir(tmp_path)
    files = {key: pair[key] for key in ("moving_image", "fixed_image", "moving_label")}
    run(run_id=run_id, config_file=config("inference", *overlays), output_dir="result", device="cpu", **files)
    fixed = nib.load(pair["fixed_image"])
    warped = nib.load("result/warped.nii.gz")
    assert warped.shape == fixed.shape
    assert np.abs(warped.affine - fixed.affine).max() < 1e-5
    label = np.asanyarray(nib.load("result/warped_label.nii.gz").dataobj)
    truth = np.asanyarray(nib.load(pair["fixed_label"]).dataobj)
    for value in (1, 2):
        ours, theirs = label == value, truth == value
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert abs(dice - figures[method][f"dice_{value}"]) < 0.01
    simpleitk_agrees(Path("result"), sitk.ReadImage(pair["moving_image"]), sitk.ReadImage(pair["fixed_image"]))


def test_forward_and_inverse_bring_points_back(pair, tmp_path):
    files = {key: pair[key] for key in ("moving_image", "fixed_image")}
    register_files(Registration(device="cpu"), tmp_path / "out", inverse=True, **files)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["transforms"]["inverse_transform.h5"]["residual_mm"]["max"] < 0.1  # voxels are of 1 mm


@pytest.mark.skipif(not SERIES.is_dir(), reason=f"no DICOM series at {SERIES}")
@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_a_dicom_series_and_a_nifti_file(pair, tmp_path, side):
    other = "fixed" if side == "moving" else "moving"
    files = {f"{side}_image": str(SERIES), f"{other}_image": pair[f"{other}_image"]}
    register_files(Registration(refine_steps=10, device="cpu"), tmp_path / "out", **files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(SERIES)))
    read = {f"{side}_image": reader.Execute(), f"{other}_image": sitk.ReadImage(files[f"{other}_image"])}
    simpleitk_agrees(tmp_path / "out", read["moving_image"], read["fixed_image"])
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["refinement"]["objective_end"] < report["refinement"]["objective_start"]
    assert len(report["inputs"][f"{side}_image"]["sha256"]) == 64


@pytest.mark.skipif(not BRAIN.is_dir(), reason=f"no brain data at {BRAIN}")
@pytest.mark.parametrize("transformation", ["affine", "bspline"])
def test_whole_brains_come_out_at_their_own_resolution(tmp_path, transformation):
    """1 mm, LAS headers with arbitrary origins; any weights do, for it is the geometry that is tested."""
    settings = {
        "spatial_size": [64, 72, 64], "spacing": 3, "control_spacing": [60, 30], "transformation": transformation,
        "soi_labels": [[48]], "initial_alignment": "moments", "device": "cpu",
    }  # fmt: skip
    files = {f"{side}_image": str(BRAIN / "images" / f"{n}.nii.gz") for side, n in (("moving", 1000), ("fixed", 1119))}
    registration = Registration(refine_steps=2, **random_checkpoint(tmp_path / "models", settings))
    register_files(registration, tmp_path / "out", **files)
    simpleitk_agrees(tmp_path / "out", *(sitk.ReadImage(files[f"{side}_image"]) for side in ("moving", "fixed")))
