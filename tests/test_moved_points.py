"""Landmarks of a pair and of ``apply``: where they go, in which frame they are written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import ball, random_checkpoint, write_json, write_nifti

from istn_monai.apply import apply_transform
from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform, world_transform
from istn_monai.io.landmarks import Points, read_in_frame, read_points, write_points
from istn_monai.moved_points import check_points, errors
from istn_monai.registration import Registration, register_datalist
from istn_monai.transforms.landmarks import matched_in

SHIFT = (6.0, -4.0, 3.0)  # mm LPS, of a fixed point to where its anatomy is in the moving image


@pytest.fixture
def transform(tmp_path) -> str:
    """A translation, written by SimpleITK."""
    file = str(tmp_path / "t.tfm")
    sitk.WriteTransform(sitk.TranslationTransform(3, SHIFT), file)
    return file


def by_hand(rows, frame: str = "LPS") -> np.ndarray:
    """Where moving landmarks are on the fixed side, in the frame that they are in."""
    return np.array(rows) - np.array(SHIFT) * ([-1, -1, 1] if frame == "RAS" else 1)


@pytest.mark.parametrize("suffix", [".csv", ".fcsv", ".mrk.json"])
@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_apply_keeps_frame_names_and_descriptions_of_its_input(tmp_path, transform, suffix, frame):
    """The numbers in the file, not in memory, where a wrong frame would be undone."""
    rows = [[1.5, -2.0, 3.0], [10.0, 20.0, -30.25]]
    flip = torch.tensor([-1.0, -1, 1] if frame == "LPS" else [1.0, 1, 1], dtype=torch.float64)
    points = Points(torch.tensor(rows, dtype=torch.float64) * flip, ("AC", "PC"), ("first, seen", ""))
    file = write_points(points, tmp_path / f"in{suffix}", frame)
    moved = apply_transform(transform, str(file), str(tmp_path / "out.csv"))
    lines = Path(moved).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "label,x,y,z,frame,description" and lines[1].endswith(f',{frame},"first, seen"')
    found = [[float(cell) for cell in line.split(",")[1:4]] for line in lines[1:]]
    assert np.abs(found - by_hand(rows, frame)).max() < 1e-9
    back, own = read_in_frame(apply_transform(transform, str(moved), str(tmp_path / f"back{suffix}"), inverse=True))
    assert own == frame and (back.labels, back.descriptions) == (points.labels, points.descriptions)
    assert (back.positions - points.positions).abs().max() < 1e-9


def test_apply_takes_the_frame_of_a_file_that_does_not_say_it_from_the_caller(tmp_path, transform):
    (tmp_path / "p.csv").write_text("label;x;y;z\nAC;1,5;-2;3\n", encoding="utf-8")
    for frame in ("RAS", "LPS"):
        file = apply_transform(transform, str(tmp_path / "p.csv"), str(tmp_path / f"{frame}.csv"), frame=frame)
        row = Path(file).read_text(encoding="utf-8").splitlines()[1].split(",")
        assert row[4] == frame and np.abs(np.array(row[1:4], float) - by_hand([1.5, -2, 3], frame)).max() < 1e-9


def test_landmarks_of_another_dimension_are_refused_by_file(tmp_path, transform):
    (tmp_path / "flat.csv").write_text("label,x,y,frame\nAC,1,2,LPS\n", encoding="utf-8")
    (tmp_path / "deep.csv").write_text("label,x,y,z,frame\nAC,1,2,3,LPS\n", encoding="utf-8")
    flat, deep = (str(tmp_path / f"{name}.csv") for name in ("flat", "deep"))
    with pytest.raises(ValueError, match=r"flat.csv has 2-D landmarks, but the transform is 3-D; add a column z"):
        apply_transform(transform, flat, str(tmp_path / "out.csv"))
    with pytest.raises(ValueError, match=r"fixed_points: .*flat.csv has 2-D landmarks, but the network is 3-D"):
        check_points({"moving_points": deep, "fixed_points": flat}, 3)
    with pytest.raises(ValueError, match=r"deep.csv has 3-D landmarks, but the configuration is 2-D; in 2-D"):
        matched_in([flat, deep], 2)
    assert not (tmp_path / "out.csv").exists()
    with pytest.warns(UserWarning, match="fixed_points without moving_points: no landmarks are moved"):
        check_points({"fixed_points": deep}, 3)


def test_errors_before_are_those_that_the_initial_alignment_leaves(tmp_path):
    """The moving landmark lies 3 mm and 4 mm off, of which the alignment takes the 3."""
    files = {}
    for key, row in (("moving_points", [4.0, 6.0, 3.0]), ("fixed_points", [1.0, 2.0, 3.0])):
        file = write_points(Points(torch.tensor([row], dtype=torch.float64), ("AC",)), tmp_path / f"{key}.csv")
        files[key] = str(file)
    start = torch.eye(4, dtype=torch.float64)
    start[0, 3] = 3.0  # fixed to moving
    transform = world_transform(AffineTransformation((9,) * 3), torch.zeros(1, 12), Grid((9,) * 3, torch.eye(4)), start)
    found = errors(transform, files, start)
    assert found["before"]["tre_mm"]["AC"] == pytest.approx(4) and found["before"]["mean"] == pytest.approx(4)
    assert found["tre_mm"]["AC"] == pytest.approx(4)
    identity = world_transform(AffineTransformation((9,) * 3), torch.zeros(1, 12), Grid((9,) * 3, torch.eye(4)))
    assert errors(identity, files, torch.eye(4))["mean"] == pytest.approx(5)


def test_landmarks_of_a_datalist_are_moved_and_measured_with_its_pairs(tmp_path):
    """Where both sides have them; a pair whose landmarks do not fit fails by name, and the others go on."""
    settings = {"spatial_size": [16, 16], "transformation": "affine", "soi_labels": [[1]], "device": "cpu",
                "initial_alignment": "world"}  # fmt: skip
    weights = random_checkpoint(tmp_path / "weights", settings)
    for side, middle in (("moving", 7), ("fixed", 9)):
        write_nifti(tmp_path / f"{side}.nii.gz", ball((16, 16), (middle, 8), 4).astype(np.float32))
    rows = {"moving": "Label;x;y;Frame;Description\nAC;7,5;8;RAS;first\nPC;5;8;RAS;\n",
            "fixed": "name,x,y,frame\nPC,7,8,RAS\nAC,9,8,RAS\n",
            "deep": "name,x,y,z,frame\nAC,9,8,1,RAS\n"}  # fmt: skip
    for name, text in rows.items():
        (tmp_path / f"{name}.csv").write_text(text)
    images = {"moving_image": "moving.nii.gz", "fixed_image": "fixed.nii.gz"}
    pairs = [
        images | {"moving_points": "moving.csv", "fixed_points": "fixed.csv"},
        images | {"moving_points": "moving.csv"},
        images | {"moving_points": "deep.csv"},
    ]
    datalist = write_json(tmp_path / "pairs.json", {"testing": pairs})
    registration = Registration(refine_steps=0, qa=False, **weights)
    failures = register_datalist(registration, datalist, "testing", tmp_path / "out")
    assert len(failures) == 1 and "pair_0002: moving_points: " in failures[0]
    assert "deep.csv has 3-D landmarks, but the network is 2-D" in failures[0]
    folder = tmp_path / "out" / "pair_0000"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))["points"]
    assert report["before"]["tre_mm"] == pytest.approx({"AC": 1.5, "PC": 2.0})
    moved = read_points(folder / "moved_points.csv")
    itk_transform = sitk.ReadTransform(str(folder / "transform.h5"))
    back = [itk_transform.TransformPoint([-x, -y]) for x, y in moved.positions.tolist()]
    assert np.abs(np.array(back) - [[-7.5, -8], [-5, -8]]).max() < 1e-3, "SimpleITK takes them to where they were"
    assert moved.labels == ("AC", "PC") and moved.descriptions == ("first", "")
    found = np.array([itk_transform.TransformPoint([-x, -8.0]) for x in (9.0, 7.0)])
    lengths = np.linalg.norm(found - [[-7.5, -8], [-5, -8]], axis=1)
    assert report["tre_mm"] == pytest.approx({"AC": lengths[0], "PC": lengths[1]}, abs=1e-6), "as in evaluation"
    alone = json.loads((tmp_path / "out" / "pair_0001" / "report.json").read_text(encoding="utf-8"))["points"]
    assert set(alone) == {"moved_points.csv"} and (tmp_path / "out" / "pair_0001" / "moved_points.csv").exists()


def test_names_without_a_counterpart_are_in_the_report(tmp_path):
    files = {}
    for key, labels in {"moving_points": ("AC", "Ho\u0308he"), "fixed_points": ("H\u00f6he", "tip")}.items():
        files[key] = str(write_points(Points(torch.zeros(2, 3), labels), tmp_path / f"{key}.csv"))
    with pytest.warns(UserWarning, match="landmarks without a counterpart are left out"):
        check_points(files, 3)
    found = errors(WorldTransform([], 3), files)
    assert found["unmatched"] == {"moving_points": ["AC"], "fixed_points": ["tip"]}
    assert found["tre_mm"] == {"H\u00f6he": 0.0}
