"""Landmark files that cannot be understood, or only nearly."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliability_cases.files import apply, content, moved_points
from reliability_cases.judge import Expected
from reliability_cases.runner import Case

KIND = "landmarks"
HEAD = "label,x,y,z,frame\n"
AC, PC = "AC,1,2,3,LPS\n", "PC,-4,5.5,6,LPS\n"
ROWS = {"AC": (1, 2, 3), "PC": (-4, 5.5, 6)}


def case(
    name: str, text: bytes | str, ending: str = "fails", file: str = "q.csv", rows: dict[str, Any] = ROWS, *options: str
) -> Case:
    """Landmarks through ``apply``; if they are moved, names and places must be right."""
    command = apply(*options, input=file, output="moved.csv")
    check = moved_points(rows) if ending != "fails" else None
    return Case(KIND, name, command, Expected(ending, (file, "frame")), content(file, text), check)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from tables()
    yield from broken_tables()
    yield from markups()
    yield from evaluated()


def tables() -> Iterator[Case]:
    """CSV files that say what they mean."""
    yield case("two landmarks", HEAD + AC + PC, "works")
    yield case("a byte-order mark", "\ufeff" + HEAD + AC + PC, "works")
    yield case("a byte-order mark before x", "\ufeffx,y,z,label,frame\n1,2,3,AC,LPS\n-4,5.5,6,PC,LPS\n", "either")
    yield case("lines that end with CR LF", (HEAD + AC + PC).replace("\n", "\r\n"), "works")
    yield case("lines that end with CR", (HEAD + AC + PC).replace("\n", "\r"), "either")
    yield case("one landmark", HEAD + AC, "works", rows={"AC": (1, 2, 3)})
    yield case("blank lines", HEAD + "\n" + AC + "\n" + PC + "\n\n", "either")
    yield case("names in quotes, with commas", HEAD + '"a, ""b""",1,2,3,LPS\n', "works", rows={'a, "b"': (1, 2, 3)})
    yield case("names in unicode", HEAD + "Ä ß 海,1,2,3,LPS\n", "works", rows={"Ä ß 海": (1, 2, 3)})
    yield case("the column name", HEAD.replace("label", "name") + AC + PC, "works")
    for word in ("Label", "LABEL", "Name", " label"):
        yield case(f"the column {word!r}", HEAD.replace("label", word) + AC + PC, "either")
    yield case("the column Frame", HEAD.replace("frame", "Frame") + AC + PC, "either")
    yield case("columns X, Y, Z", "label,X,Y,Z,frame\n" + AC + PC, "either")
    yield case("blanks after commas", (HEAD + AC + PC).replace(",", ", "), "either")
    yield case("frame in small letters", (HEAD + AC + PC).replace("LPS", "lps"), "either")
    yield case(
        "a further column",
        HEAD.replace("\n", ",note\n") + AC.replace("\n", ",x\n") + PC.replace("\n", ",y\n"),
        "either",
    )
    yield case("the frame by option", "label,x,y,z\nAC,1,2,3\nPC,-4,5.5,6\n", "works", "q.csv", ROWS, "--frame", "LPS")
    yield case(
        "the frame by option in small letters",
        "label,x,y,z\nAC,1,2,3\nPC,-4,5.5,6\n",
        "either",
        "q.csv",
        ROWS,
        "--frame",
        "lps",
    )
    yield case("scientific notation", HEAD + "AC,1e0,2e+0,3E0,LPS\n" + PC, "works")
    one = {"AC": (1, 2, 3)}
    yield case("semicolons", (HEAD + AC).replace(",", ";"), "works", rows=one)
    decimal = "label;x;y;z;frame\nAC;1,0;2,5;3,0;LPS\n"
    yield case("semicolons and decimal commas", decimal, "works", rows={"AC": (1, 2.5, 3)})
    yield case("tabs", (HEAD + AC).replace(",", "\t"), "works", rows=one)
    yield case("UTF-16", (HEAD + AC).encode("utf-16"), "works", rows=one)
    yield case("names twice", HEAD + AC + AC.replace("1,2", "2,2"), "either", rows={"AC": (2, 2, 3)})


def broken_tables() -> Iterator[Case]:
    """CSV files that do not."""
    for name, text in {
        "empty": "",
        "a header alone": HEAD,
        "no header": AC + PC,
        "no x": HEAD.replace("x,", "") + AC.replace("1,", ""),
        "no z": "label,x,y,frame\nAC,1,2,LPS\n",
        "no frame": "label,x,y,z\nAC,1,2,3\n",
        "nan": HEAD + "AC,nan,2,3,LPS\n",
        "inf": HEAD + "AC,1,inf,3,LPS\n",
        "1e400": HEAD + "AC,1,1e400,3,LPS\n",
        "text": HEAD + "AC,one,2,3,LPS\n",
        "an empty coordinate": HEAD + "AC,,2,3,LPS\n",
        "a row too short": HEAD + AC + "PC,1,2\n",
        "a row too long": HEAD + "AC,1,2,3,LPS,9,9\n",
        "two frames": HEAD + AC + PC.replace("LPS", "RAS"),
        "an unknown frame": HEAD + AC.replace("LPS", "XYZ"),
        "a frame in one row alone": HEAD + AC + PC.replace("LPS", ""),
        "not text": bytes(range(256)),
        "a decimal comma in quotes": HEAD + 'AC,"1,5",2,3,LPS\n',
        "JSON": '{"a": 1}',
    }.items():
        yield case(name, text)
    yield case("another frame by option", HEAD + AC + PC, "fails", "q.csv", ROWS, "--frame", "RAS")
    yield case("an unknown frame by option", "label,x,y,z\nAC,1,2,3\n", "fails", "q.csv", ROWS, "--frame", "XYZ")
    yield Case(KIND, "missing", apply(input="none.csv", output="moved.csv"), Expected("fails", ("none.csv",)))
    yield Case(
        KIND,
        "a folder",
        apply(input="d.csv", output="moved.csv"),
        Expected("fails", ("d.csv",)),
        lambda: Path("d.csv").mkdir(),
    )
    yield Case(KIND, "written as .txt", apply(input="p.csv", output="moved.txt"), Expected("fails", ("moved.txt",)))
    yield Case(
        KIND, "written as an image", apply(input="p.csv", output="moved.nii.gz"), Expected("fails", ("moved.nii.gz",))
    )
    far = HEAD + "AC,1e30,2,3,LPS\n"
    yield case("1e30 mm away", far, "either", rows={"AC": (1e30, 2, 3)})


def markup(**changes: Any) -> str:
    """A .mrk.json file."""
    points = [{"label": name, "position": place, "positionStatus": "defined"} for name, place in ROWS.items()]
    one = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points} | changes
    return json.dumps({"markups": [{key: value for key, value in one.items() if value is not None}]})


def markups() -> Iterator[Case]:
    """3D Slicer's files."""
    file = "q.mrk.json"
    yield case("markups", markup(), "works", file)
    yield case("markups in meters", markup(coordinateUnits="m"), "fails", file)
    undefined = [{"label": "AC", "position": [0, 0, 0], "positionStatus": "undefined"}]
    for name, text in {
        "markups, not JSON": "{",
        "markups, a list": "[]",
        "markups, none": '{"markups": []}',
        "markups, empty": "{}",
        "markups, no points": markup(controlPoints=None),
        "markups, all undefined": markup(controlPoints=undefined),
        "markups, no frame": markup(coordinateSystem=None),
        "markups, frame 7": markup(coordinateSystem="7"),
        "markups, a text for a place": markup(controlPoints=[{"label": "AC", "position": "here"}]),
        "markups, two numbers": markup(controlPoints=[{"label": "AC", "position": [1, 2]}]),
        "markups, NaN": markup(controlPoints=[{"label": "AC", "position": [1, 2, float("nan")]}]),
        "markups, points an object": markup(controlPoints={"a": 1}),
        "markups, null": '{"markups": [null]}',
    }.items():
        yield case(name, text, "fails", file)
    several = json.dumps({"markups": json.loads(markup())["markups"] * 2})
    yield case("several markups", several, "fails", file)
    columns = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
    head = f"# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = {columns}\n"
    row = "1,1,2,3,0,0,0,1,1,1,0,AC,,\n"
    yield case("fcsv", head + row, "works", "q.fcsv", {"AC": (1, 2, 3)})
    yield case("fcsv without a frame", head.replace("# CoordinateSystem = LPS\n", "") + row, "fails", "q.fcsv")
    yield case("fcsv without points", head, "fails", "q.fcsv")
    yield case("fcsv, a short row", head + "1,1,2\n", "fails", "q.fcsv")
    yield case("fcsv, text", head + row.replace("1,2,3", "a,b,c"), "fails", "q.fcsv")


def evaluated() -> Iterator[Case]:
    """Landmarks of a data set."""
    from reliability_cases.files import F, M, both, datalist, train

    pair = {"moving_image": M, "fixed_image": F, "moving_points": "a.csv", "fixed_points": "b.csv"}
    lists = both(datalist(pair, split="training", validation=[pair], testing=[pair], file="train.json"))
    options = ("--soi_labels=[]", "--soi_points=[['*']]")
    for name, (one, two) in {
        "no name in both": (HEAD + AC, HEAD + PC),
        "names twice in one": (HEAD + AC + AC, HEAD + AC),
        "training, nan": (HEAD + "AC,nan,1,1,LPS\n", HEAD + AC),
        "training, an empty file": ("", HEAD + AC),
        "training, one without frame": ("label,x,y,z\nAC,1,2,3\n", HEAD + AC),
        "training, 2-D": ("label,x,y,frame\nAC,1,2,LPS\n", HEAD + AC),
    }.items():
        make: Callable[[], None] = both(lists, content("a.csv", one), content("b.csv", two))
        words = Expected("fails", ("a.csv", "b.csv", "training[0]", "soi_points"))
        yield Case(KIND, name, train(*options), words, make)
