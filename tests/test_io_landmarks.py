"""Landmark files: frames, formats, and what is refused."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import max_abs

from istn_monai.io.landmarks import (
    POINT_SUFFIXES,
    Points,
    is_points,
    matched,
    read_in_frame,
    read_points,
    unmatched,
    warn_unmatched,
    write_points,
)

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
    (tmp_path / "p.fcsv").write_text(fcsv, encoding="utf-8")
    old = fcsv.replace("= LPS", "= 0")  # 0 is RAS
    (tmp_path / "old.fcsv").write_text(old, encoding="utf-8")
    markups = {"markups": [{"coordinateSystem": "LPS", "controlPoints": [
        {"label": "F-1", "position": LPS[0]}, {"label": "F-2", "position": LPS[1]},
        {"label": "not placed", "position": [0, 0, 0], "positionStatus": "undefined"},
    ]}]}  # fmt: skip
    (tmp_path / "p.mrk.json").write_text(json.dumps(markups), encoding="utf-8")
    for name in ("p.fcsv", "p.mrk.json"):
        found = read_points(tmp_path / name)
        assert max_abs(found.positions, RAS) < 1e-12 and found.labels == ("F-1", "F-2")
    assert max_abs(read_points(tmp_path / "old.fcsv").positions, torch.tensor(LPS)) < 1e-12


def test_csv_needs_a_frame_and_takes_it_from_the_caller_or_a_column(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("name,x,y,z\nAC,-1.5,2.0,3.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="p.csv does not say its frame: give a column .frame., or the option frame"):
        read_points(file)
    assert max_abs(read_points(file, "LPS").positions, RAS[:1]) < 1e-12
    assert max_abs(read_points(file, "RAS").positions, torch.tensor(LPS[:1])) < 1e-12
    file.write_text("label,x,y,frame\na,1,2,ras\n", encoding="utf-8")
    assert read_points(file).positions.tolist() == [[1.0, 2.0]]
    with pytest.raises(ValueError, match="says that it is in RAS, frame is LPS"):
        read_points(file, "LPS")
    with pytest.raises(ValueError, match="frame of landmarks must be one of"):
        (tmp_path / "q.csv").write_text("x,y\n1,2\n", encoding="utf-8")
        read_points(tmp_path / "q.csv", "RAI")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.csv", "a,s\n1,2\n", "needs columns x, y"),
        ("p.csv", "x,y,frame\n", "needs columns x, y"),
        ("p.csv", "x,y,frame\n1,two,RAS\n", "y of landmark 1 must be a number of mm, got 'two'"),
        ("p.csv", "x,y,frame\n1,2,RAS\n1,2,LPS\n", "one frame for all"),
        ("p.csv", "x,y,frame\n1,nan,RAS\n", "must be a number of mm, got 'nan'"),
        ("p.csv", "x,y,frame\n1,1e400,RAS\n", "finite coordinates"),
        ("p.csv", 'x,y,frame\n1,"2,RAS\n', "unexpected end of data"),
        ("p.csv", "x,y,frame\n1,1_0,RAS\n", "must be a number of mm, got '1_0'"),
        ("p.fcsv", "1,2,3\n", "landmark 1 has 3 cells"),
        ("p.fcsv", "1,1,2,3\n", "give a line '# CoordinateSystem = LPS', or the option frame"),
        ("p.mrk.json", "{}", "markups"),
        ("p.mrk.json", '{"markups": [{"coordinateSystem": "LPS", "controlPoints": []}]}', "has no landmark"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
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
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} is not a landmark file.*{words}"):
        read_points(tmp_path / name)


# --- what other tools and people write ------------------------------------------------------------------------------


def read_text(folder: Path, text: str | bytes, name: str = "p.csv", frame: str | None = None) -> Points:
    """What a file of this content holds."""
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_points(folder / name, frame)


TABLE = "Label,x,y,z,Frame\nAC,1.5,-2,3,RAS\nPC,10,20,-30.25,RAS\n"


@pytest.mark.parametrize("column", ["label", "Label", "LABEL", " label", "Name", "name ", "id", " ID", '"label"'])
def test_names_are_found_however_their_column_is_spelled(tmp_path, column):
    """Without them, landmarks would correspond by row."""
    points = read_text(tmp_path, TABLE.replace("Label", column))
    assert points.labels == ("AC", "PC") and points.positions.tolist() == RAS.tolist()


def test_a_frame_is_seen_however_its_column_is_spelled(tmp_path):
    """Without it, positions would be mirrored."""
    for column in ("frame", "Frame", " FRAME "):
        points = read_text(tmp_path, TABLE.replace("Frame", column).replace("RAS", "lps"))
        assert points.positions.tolist() == [[-1.5, 2, 3], [-10, -20, -30.25]]


@pytest.mark.parametrize("column", ["lable", "x (mm)", "Koordinatensystem", "frame_", "point", "structure"])
def test_a_column_that_is_not_known_is_an_error_that_names_it_and_the_known_ones(tmp_path, column):
    with pytest.raises(ValueError, match="p.csv.*are not known, only label, name, id, x, y, z, frame") as caught:
        read_text(tmp_path, TABLE.replace("Label", column))
    assert repr(column.lower()) in str(caught.value)


def test_two_columns_of_one_meaning_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"\['label', 'name'\] may both be what is meant"):
        read_text(tmp_path, "label,name,x,y,frame\n1,AC,1,2,RAS\n")
    with pytest.raises(ValueError, match="in columns that are RAS"):
        read_text(tmp_path, "label,r,a,s,frame\nAC,1,2,3,LPS\n")
    with pytest.raises(ValueError, match="needs columns x, y"):
        read_text(tmp_path, "label,x,y,r,a,s\nAC,1,2,3,4,5\n")


def test_an_index_column_without_a_name_is_an_error_and_empty_cells_are_not(tmp_path):
    with pytest.raises(ValueError, match="landmark 1 has a cell in a column without a name: '0,AC"):
        read_text(tmp_path, ",label,x,y,frame\n0,AC,1,2,RAS\n")
    points = read_text(tmp_path, "label,x,y,frame,,\nAC,1,2,RAS,,\n,,,,,\n\n")
    assert points.labels == ("AC",)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_files_in_any_unicode_encoding_keep_their_names(tmp_path, encoding):
    points = read_text(tmp_path, TABLE.replace("AC", "Fu\u00df \u6d77").encode(encoding))
    assert points.labels == ("Fu\u00df \u6d77", "PC") and points.positions.tolist() == RAS.tolist()


def test_names_in_another_encoding_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="p.csv.*is not utf-8.*save it as UTF-8"):
        read_text(tmp_path, TABLE.replace("AC", "Fu\u00df").encode("latin-1"))
    with pytest.raises(ValueError, match="p.csv.*zero bytes"):
        read_text(tmp_path, TABLE.encode("utf-16-le"))


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("mark", [".", ","])
def test_semicolons_tabs_and_decimal_commas_are_understood(tmp_path, separator, mark):
    text = TABLE.replace(",", separator).replace(".", mark)
    for content in (text, text.replace("\n", "\r\n"), text.replace("\n", "\r"), f"sep={separator}\r\n{text}"):
        points = read_text(tmp_path, content)
        assert points.labels == ("AC", "PC") and points.positions.tolist() == RAS.tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('label,x,y,frame\nAC,"1,5",2,RAS\n', "x of landmark 1 must be a number of mm, got '1,5': decimal commas need"),
        ("label,x,y,frame\nAC,1,5,2,RAS\n", "landmark 1 has 5 cells, the header 4"),
        ("label;x;y;frame\nAC;1.234,5;2;RAS\n", "points and commas"),
        ("label;x;y;frame\nAC;1,5;2.5;RAS\n", "points and commas"),
        ("label;x;y;frame\nAC;1,234,567;2;RAS\n", "must be a number of mm"),
        ("label x y frame\nAC 1 2 RAS\n", "not known"),
        ("label,x,y,z,frame\nAC,1,2,,RAS\n", "z of landmark 1 must be a number of mm, got ''"),
        ("label,x,y,frame\nAC,1,\u0661,RAS\n", "y of landmark 1 must be a number"),
        ("label,x,y,frame\nAC,1,2,RAS\n,3,4,RAS\n", "landmark 2 has no name, while others have one"),
    ],
)
def test_numbers_and_rows_that_have_two_meanings_are_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=f"p.csv.*{words}"):
        read_text(tmp_path, text)


def test_tables_of_slicer_say_their_frame_in_their_columns(tmp_path):
    """As ExportControlPointsToCSV writes them; a point that is not defined has no place."""
    rest = "defined,selected,visible,locked,description\n"
    points = read_text(tmp_path, f"label,l,p,s,{rest}a,-1.5,2,3,1,1,1,0,\nb,0,0,0,0,1,1,0,\nc,1,2,3,1,1,1,0,said\n")
    assert points.positions.tolist() == [[1.5, -2, 3], [-1, -2, 3]] and points.labels == ("a", "c")
    assert points.descriptions == ("", "said")
    points = read_text(tmp_path, f"label,r,a,s,{rest}a,1.5,-2,3,1,1,1,0,\n")
    assert points.positions.tolist() == [[1.5, -2, 3]]
    with pytest.raises(ValueError, match="says that it is in RAS, frame is LPS"):
        read_points(tmp_path / "p.csv", "LPS")


def test_tables_of_ants_are_in_lps(tmp_path):
    """The example of antsApplyTransformsToPoints, and as NumPy's savetxt writes such a table."""
    points = read_text(tmp_path, "x,y,z,t,label,comment\n82.5,116.5,0,0,1,this is the breast\n137.5,35.5,0,0,2,beak\n")
    assert points.positions.tolist() == [[-82.5, -116.5, 0], [-137.5, -35.5, 0]]
    assert points.labels == ("1", "2") and points.descriptions == ("this is the breast", "beak")
    points = read_text(tmp_path, "# x,y,z,t,label,mass,volume,count\n1.00000,2.00000,3.00000,0.00000,7,0,0,0\n")
    assert points.positions.tolist() == [[-1, -2, 3]] and points.labels == ("7",)
    with pytest.raises(ValueError, match="column t must be one time"):
        read_text(tmp_path, "x,y,z,t\n1,2,3,0\n1,2,3,1\n")


HEAD = "# Markups fiducial file version = 4.10\n"
COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"


@pytest.mark.parametrize("said, sign", [("0", 1), ("RAS", 1), ("1", -1), ("LPS", -1), (" lps ", -1)])
def test_fcsv_of_all_versions_say_their_frame(tmp_path, said, sign):
    text = f"{HEAD}# CoordinateSystem = {said}\n{COLUMNS}n_0,1.5,-2,3,0,0,0,1,1,1,0,AC,text,\n"
    points = read_text(tmp_path, text, "p.fcsv")
    assert points.positions.tolist() == [[sign * 1.5, sign * -2, 3]]
    assert points.labels == ("AC",) and points.descriptions == ("text",)


def test_fcsv_that_do_not_say_their_frame_take_it_from_the_caller(tmp_path):
    """Versions 4 before the line was there, and Slicer 3, whose columns are others."""
    row = "n_0,1.5,-2,3,0,0,0,1,1,1,0,AC,,\n"
    old = "# Fiducial List file F.fcsv\n# version = 2\n# name = F\n# label,x,y,z,sel,vis\nAC,1.5,-2,3,1,1\n"
    for text in (HEAD + COLUMNS + row, old):
        with pytest.raises(ValueError, match="p.fcsv does not say its frame.*# CoordinateSystem = LPS"):
            read_text(tmp_path, text, "p.fcsv")
        assert read_text(tmp_path, text, "p.fcsv", "RAS").positions.tolist() == [[1.5, -2, 3]]
        assert read_text(tmp_path, text, "p.fcsv", "LPS").labels == ("AC",)


def test_fcsv_of_slicer_5_leave_out_what_is_not_placed(tmp_path):
    """It writes a point's status (2 is placed) and another cell beyond the columns of the header."""
    rows = [f"{n},{n},2,3,0,0,0,1,1,1,0,F-{n},,,{status},0\n" for n, status in ((1, 2), (2, 0), (3, 1), (4, 3), (5, 2))]
    points = read_text(tmp_path, f"{HEAD}# CoordinateSystem = RAS\n{COLUMNS}{''.join(rows)}", "p.fcsv")
    assert points.labels == ("F-1", "F-5") and points.positions[:, 0].tolist() == [1, 5]


@pytest.mark.parametrize(
    "row", ["1,1,5,2,3,0,0,0,1,1,1,0,AC,,", "1,1,5,2,0,3,0,0,0,1,1,1,0,AC,,", "1,1,2,3,0,0,0,1,1,1,0,A,C,,"]
)
def test_fcsv_with_a_comma_too_many_are_refused(tmp_path, row):
    """As decimal commas and commas in names are: cells would be read from their neighbors."""
    with pytest.raises(ValueError, match="p.fcsv.*landmark 1 has more cells"):
        read_text(tmp_path, f"{HEAD}# CoordinateSystem = RAS\n{COLUMNS}{row}\n", "p.fcsv")


def test_suffixes_are_known_in_capitals(tmp_path):
    assert is_points("P.CSV") and read_text(tmp_path, TABLE, "P.CSV").labels == ("AC", "PC")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (f"{HEAD}# CoordinateSystem = 2\n{COLUMNS}", "coordinate system must be one of 0, 1, RAS, LPS, got '2'"),
        (f"{HEAD}# CoordinateSystem = LPS\n# CoordinateSystem = RAS\n{COLUMNS}", "CoordinateSystem must be one"),
        (f"{HEAD}# CoordinateSystem = LPS\n# columns = label,x,y,z\n", "Slicer reads the columns"),
        (f"{HEAD}# CoordinateSystem = LPS\n# columns = id,z,y,x\n", "Slicer reads the columns"),
    ],
)
def test_fcsv_headers_of_another_meaning_than_slicers_are_refused(tmp_path, header, words):
    with pytest.raises(ValueError, match=f"p.fcsv.*{words}"):
        read_text(tmp_path, f"{header}1,1,2,3,0,0,0,1,1,1,0,AC,,\n", "p.fcsv")


def markups(points: list, **changes) -> str:
    """A .mrk.json file."""
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points} | changes
    return json.dumps({"markups": [markup]})


def test_markups_keep_numbers_of_points_without_names_where_others_are_not_placed(tmp_path):
    """Else the landmarks after one that is not placed would correspond to others."""
    points = [{"position": [n, 2, 3], "positionStatus": s} for n, s in enumerate(("defined", "missing", "defined"))]
    assert read_text(tmp_path, markups(points), "p.mrk.json").labels == ("1", "3")


def test_markups_say_millimeters_as_a_word_or_as_a_code(tmp_path):
    points = [{"label": "AC", "position": [1, 2, 3]}]
    for unit in ("mm", ["mm", "UCUM", "millimeter"]):
        found = read_text(tmp_path, markups(points, coordinateUnits=unit), "p.mrk.json")
        assert found.positions.tolist() == [[-1, -2, 3]]
    for unit in ("um", "m", ["um", "UCUM", "micrometer"], None, []):
        with pytest.raises(ValueError, match="coordinateUnits must be mm, got"):
            read_text(tmp_path, markups(points, coordinateUnits=unit), "p.mrk.json")


@pytest.mark.parametrize(
    "position", [[1, 2], [1, 2, 3, 4], ["1", "2", "3"], [True, 2, 3], None, "here", 7, [1, 2, None]]
)
def test_markups_without_three_numbers_are_refused_by_file_and_point(tmp_path, position):
    with pytest.raises(ValueError, match=r"p.mrk.json.*the position of 'AC' must be 3 numbers of mm, got"):
        read_text(tmp_path, markups([{"label": "AC", "position": position}]), "p.mrk.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (markups([{"label": "AC", "position": [10**400, 0, 0]}]), "too large"),
        (markups([{"label": "AC", "position": [float("nan"), 0, 0]}]), "finite"),
        (markups([{"label": 7, "position": [1, 2, 3]}]), "label must be a text, got 7"),
        (markups([], type="ROI"), "markups of type 'ROI' have no landmarks"),
        (markups([{"position": [1, 2, 3], "positionStatus": "?"}]), "positionStatus must be one of"),
        (json.dumps({"markups": [{"name": "F"}, {"name": "G"}]}), r"one list of markups alone, got \['F', 'G'\]"),
        (markups([{"label": "AC", "position": [1, 2, 3]}], coordinateSystem="IJK"), "coordinate system must be one"),
        (markups([{"label": "AC", "position": [1, 2, 3]}], coordinateSystem=None), "does not say its frame"),
    ],
)
def test_markups_that_are_not_clear_are_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=f"p.mrk.json.*{words}"):
        read_text(tmp_path, text, "p.mrk.json")


# --- what is written is read ----------------------------------------------------------------------------------------


TEXTS = st.text(max_size=12).map(str.strip)
NUMBERS = st.floats(-1e6, 1e6)


@st.composite
def landmarks(draw, dims: int) -> Points:
    """Landmarks with any names, positions and descriptions."""
    names = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=4))
    rows = st.lists(NUMBERS, min_size=dims, max_size=dims)
    positions = draw(st.lists(rows, min_size=len(names), max_size=len(names)))
    told = tuple(draw(st.lists(TEXTS, min_size=len(names), max_size=len(names))))
    return Points(torch.tensor(positions, dtype=torch.float64), tuple(names), told if any(told) else ())


@given(st.data(), st.sampled_from(POINT_SUFFIXES), st.sampled_from(["RAS", "LPS"]), st.sampled_from([2, 3]))
def test_what_is_written_is_read_exactly_or_refused(data, suffix, frame, dims):
    points = data.draw(landmarks(3 if suffix != ".csv" else dims))
    texts = (*points.labels, *points.descriptions)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"p{suffix}"
        if suffix == ".fcsv" and any(mark in text for text in texts for mark in "\r\n"):
            with pytest.raises(ValueError, match="p.fcsv: .*several lines"):
                write_points(points, file, frame)
            return
        if any("\0" in text for text in texts) and suffix != ".mrk.json":
            with pytest.raises(ValueError, match="p..*zero"):
                write_points(points, file, frame)
            return
        back, own = read_in_frame(write_points(points, file, frame))
    assert (back.labels, back.descriptions, own) == (points.labels, points.descriptions, frame)
    assert torch.equal(back.positions, points.positions)


def test_what_no_file_can_hold_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="p.csv: there is no landmark to write"):
        write_points(Points(torch.zeros(0, 3), ()), tmp_path / "p.csv")
    with pytest.raises(ValueError, match="p.csv: 'utf-8' codec can't encode"):
        write_points(Points(torch.zeros(1, 3), ("\ud800",)), tmp_path / "p.csv")


def test_chosen_and_moved_landmarks_keep_their_descriptions():
    points = Points(RAS, ("AC", "PC"), ("first", "second"))
    assert points.chosen(["PC"]).descriptions == ("second",)
    assert points.moved_to(RAS + 1).descriptions == points.descriptions
    assert Points(RAS, ("AC", "PC")).chosen(["PC"]).descriptions == ()


# --- names that correspond, and files that are nearly right -----------------------------------------------------------


def pair_of_files(folder, moving, fixed):
    """Two CSV files of landmarks with these names."""
    files = folder / "moving.csv", folder / "fixed.csv"
    for file, labels in zip(files, (moving, fixed), strict=True):
        write_points(Points(torch.arange(3.0 * len(labels)).view(-1, 3), tuple(labels)), file)
    return files


def test_names_correspond_however_unicode_spells_them(tmp_path):
    """Composed and decomposed; what either file holds stays as it is."""
    composed, decomposed = "H\u00f6he", "Ho\u0308he"
    files = pair_of_files(tmp_path, [decomposed, "AC"], ["AC", composed])
    moving, fixed = matched(*files)
    assert moving.labels == fixed.labels == ("AC", composed) and moving.positions[1].tolist() == [0, 1, 2]
    assert read_points(files[0]).labels[0] == decomposed
    assert unmatched(*files) == ([], [])
    with pytest.raises(ValueError, match="more than once"):
        matched(*pair_of_files(tmp_path, [composed, decomposed], [composed]))


def test_names_without_a_counterpart_are_said(tmp_path):
    files = pair_of_files(tmp_path, ["AC", "PC", "left"], ["ac", "PC"])
    with pytest.warns(UserWarning, match=r"\['AC', 'left'\] in .*moving.csv and \['ac'\] in .*; \['AC'\] differs in l"):
        warn_unmatched(*files)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unmatched(files[0], files[0])


@pytest.mark.parametrize("frame", ["RAS", "LPS"])
def test_fcsv_of_slicer_3_name_their_columns_and_take_their_frame_from_the_caller(tmp_path, frame):
    text = (
        "# Fiducial List file /a/F.fcsv\n# version = 2\n# name = F\n# numPoints = 1\n# columns = label,x,y,z,sel,vis\n"
    )
    with pytest.raises(ValueError, match="does not say its frame: give"):
        read_text(tmp_path, text + "AC,1.5,-2,3,1,1\n", "p.fcsv")
    points = read_text(tmp_path, text + "AC,1.5,-2,3,1,1\n", "p.fcsv", frame)
    sign = -1 if frame == "LPS" else 1
    assert points.labels == ("AC",) and points.positions.tolist() == [[sign * 1.5, sign * -2, 3]]


@pytest.mark.parametrize("cell", ["no", "No", "false", "FALSE", "0"])
def test_rows_that_are_not_defined_are_left_out_even_without_a_name(tmp_path, cell):
    points = read_text(tmp_path, f"label,r,a,s,defined\nAC,1,2,3,yes\n,0,0,0,{cell}\n", "p.csv")
    assert points.labels == ("AC",)


def test_points_of_markups_that_are_not_placed_need_no_name(tmp_path):
    points = [{"label": "AC", "position": [1, 2, 3]}, {"label": "", "positionStatus": "undefined"}]
    content = {"markups": [{"type": "Fiducial", "coordinateSystem": "RAS", "controlPoints": points}]}
    assert read_text(tmp_path, json.dumps(content), "p.mrk.json").labels == ("AC",)


def test_markups_with_a_key_twice_or_half_a_character_are_refused(tmp_path):
    text = '{"markups": [{"coordinateSystem": "RAS", "controlPoints": [{"label": "%s", "position": [1, 2, 3]%s}]}]}'
    with pytest.raises(ValueError, match=r"p.mrk.json .*the key 'position' is there more than once"):
        read_text(tmp_path, text % ("AC", ', "position": [3, 2, 1]'), "p.mrk.json")
    with pytest.raises(ValueError, match=r"p.mrk.json: .*half a character"):
        read_text(tmp_path, text % ("A\\ud800", ""), "p.mrk.json")
