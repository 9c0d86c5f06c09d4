"""Landmark files: frames, formats, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from oracles import max_abs

from istn_monai.io.landmarks import Points, is_points, read_points, write_points

RAS = torch.tensor([[1.5, -2.0, 3.0], [10.0, 20.0, -30.25]], dtype=torch.float64)
LPS = [[-1.5, 2.0, 3.0], [-10.0, -20.0, -30.25]]
POINTS = Points(RAS, ("AC", "one, with a comma"))


@pytest.mark.parametrize("name", ["p.csv", "p.fcsv", "p.mrk.json"])
@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_written_points_read_back_whatever_the_frame(tmp_path, name, frame):
    back = read_points(write_points(POINTS, tmp_path / name, frame))
    assert max_abs(back.positions, RAS) < 1e-12 and back.labels == POINTS.labels
    assert read_points(tmp_path / name, frame).labels == POINTS.labels
    assert is_points(tmp_path / name) and not is_points("p.nii.gz")


def test_files_as_slicer_writes_them(tmp_path):
    """LPS numbers in the files, RAS in memory: the first two axes change sign."""
    fcsv = "# Markups fiducial file version = 5.2\n# CoordinateSystem = LPS\n"
    fcsv += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    fcsv += "".join(f"{n},{x},{y},{z},0,0,0,1,1,1,0,F-{n},,\n" for n, (x, y, z) in enumerate(LPS, 1))
    (tmp_path / "p.fcsv").write_text(fcsv)
    old = fcsv.replace("= LPS", "= 0")  # 0 is RAS
    (tmp_path / "old.fcsv").write_text(old)
    markups = {"markups": [{"coordinateSystem": "LPS", "controlPoints": [
        {"label": "F-1", "position": LPS[0]}, {"label": "F-2", "position": LPS[1]},
        {"label": "not placed", "position": [0, 0, 0], "positionStatus": "undefined"},
    ]}]}  # fmt: skip
    (tmp_path / "p.mrk.json").write_text(json.dumps(markups))
    for name in ("p.fcsv", "p.mrk.json"):
        found = read_points(tmp_path / name)
        assert max_abs(found.positions, RAS) < 1e-12 and found.labels == ("F-1", "F-2")
    assert max_abs(read_points(tmp_path / "old.fcsv").positions, torch.tensor(LPS)) < 1e-12


def test_csv_needs_a_frame_and_takes_it_from_the_caller_or_a_column(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("name,x,y,z\nAC,-1.5,2.0,3.0\n")
    with pytest.raises(ValueError, match="p.csv does not say its frame: give frame RAS or LPS"):
        read_points(file)
    assert max_abs(read_points(file, "LPS").positions, RAS[:1]) < 1e-12
    assert max_abs(read_points(file, "RAS").positions, torch.tensor(LPS[:1])) < 1e-12
    file.write_text("label,x,y,frame\na,1,2,ras\n")
    assert read_points(file).positions.tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="says that it is in RAS, frame is LPS"):
        read_points(file, "LPS")
    with pytest.raises(ValueError, match="frame of landmarks must be one of"):
        (tmp_path / "q.csv").write_text("x,y\n1,2\n")
        read_points(tmp_path / "q.csv", "RAI")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.csv", "a,b\n1,2\n", "needs columns x, y"),
        ("p.csv", "x,y,frame\n", "needs columns x, y"),
        ("p.csv", "x,y,frame\n1,two,RAS\n", "could not convert"),
        ("p.csv", "x,y,frame\n1,2,RAS\n1,2,LPS\n", "one frame for all"),
        ("p.csv", "x,y,frame\n1,nan,RAS\n", "finite coordinates"),
        ("p.fcsv", "1,2,3\n", "CoordinateSystem"),
        ("p.mrk.json", "{}", "markups"),
        ("p.mrk.json", '{"markups": [{"coordinateSystem": "LPS", "controlPoints": []}]}', "has no landmark"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        read_points(tmp_path / name)


def test_wrong_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such landmark file"):
        read_points(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="landmarks are read from and written to"):
        read_points(tmp_path / "p.txt")
    with pytest.raises(ValueError, match="3-D landmarks alone"):
        write_points(Points(RAS[:, :2], POINTS.labels), tmp_path / "p.fcsv")


def test_a_csv_with_a_byte_order_mark_and_headers_in_any_case_keeps_its_names(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("Label, X ,y,Z,Frame\nAC,1,2,3,ras\n", encoding="utf-8-sig")
    points = read_points(file)
    assert points.labels == ("AC",) and points.positions.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "label,x,y,z,frame\nAC,1,2,3,LPS,7\n", "landmark 1 has 6 cells, the header 5"),
        ("a.csv", "label,x,y,z,frame\nAC,1,2\n", "landmark 1 has 3 cells"),
        ("a.csv", "label,x,X,y,frame\nAC,1,2,3,LPS\n", "more than once"),
        ("a.csv", "label,x,y,z,frame\nAC,1,2,3,LPS\nPC,1,2,3,\n", "one frame for all landmarks"),
        ("a.mrk.json", '{"markups": [{"coordinateUnits": "m"}]}', "coordinateUnits must be mm, got 'm'"),
        ("a.mrk.json", '{"markups": [{}, {}]}', "one list of markups"),
        ("a.mrk.json", '{"markups": [{"controlPoints": {}}]}', "controlPoints must be a list"),
    ],
)
def test_what_a_landmark_file_does_not_say_clearly_is_refused_by_its_name(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name} is not a landmark file.*{words}"):
        read_points(tmp_path / name)
