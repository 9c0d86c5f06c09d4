"""Landmarks in 3D Slicer's files: ``.mrk.json``, and the older ``.fcsv``.

Convention:
    - What Slicer has not placed (undefined, previewed or missing points) is no landmark.
    - Slicer reads the columns of an ``.fcsv`` by their place, whatever their header says; one that says another order
      is an error.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from istn_monai.io.json_files import unrepeated
from istn_monai.io.landmark_tables import AXES, Parsed, named, number_in

#: frames by what Slicer's versions call them
FCSV_FRAMES = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}
FCSV_COLUMNS = ("id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID")
#: what Slicer 5 writes after the last of these columns: undefined, preview, defined, missing
FCSV_STATUS = ("0", "1", "2", "3")
SLICER_3_COLUMNS = ("label", "x", "y", "z", "sel", "vis")
SPELLINGS = {"name": "label", "description": "desc", "associatednodeid": "associatedNodeID"}
NOT_PLACED = ("undefined", "preview", "missing")
LISTS, SHAPES = ("Fiducial", "PointList"), ("Line", "Angle", "Curve", "ClosedCurve")


def read_fcsv(text: str) -> Parsed:
    """Reads Slicer's older file; ValueError if it does not say clearly what it means."""
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    said = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition("=") for line in comments)]
    columns = fcsv_columns(dict(said))
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    rows = list(csv.reader((line for line in lines if not line.startswith("#")), strict=True))
    for number, row in enumerate(rows, 1):
        if not columns.index("z") < len(row) <= (len(columns) if columns == SLICER_3_COLUMNS else len(columns) + 2):
            raise ValueError(f"landmark {number} has {len(row)} cells, of columns {','.join(columns)}")
    cells = [dict(zip((*columns, "status"), row, strict=False)) for row in rows]
    name = "label" if any(row.get("label") for row in cells) else "id"
    kept = [number for number, row in enumerate(cells) if fcsv_placed(row, number + 1)]
    return Parsed(
        [[number_in(cells[number][axis], f"{axis} of landmark {number + 1}") for axis in AXES] for number in kept],
        named([cells[number].get(name, "") for number in kept], [number + 1 for number in kept]),
        fcsv_frame([value for name, value in said if name == "coordinatesystem"]),
        [cells[number].get("desc", "").strip() for number in kept],
    )


def fcsv_columns(said: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of a file, by its header; ValueError if it names those that Slicer reads in another order."""
    given = [column.strip().lower() for column in said.get("columns", "").split(",")]
    if "markups fiducial file version" not in said and given in ([""], [*SLICER_3_COLUMNS]):
        return SLICER_3_COLUMNS
    given = [SPELLINGS.get(column, column) for column in given]
    moved = [name for name in given if name in FCSV_COLUMNS and given.index(name) != FCSV_COLUMNS.index(name)]
    if moved:
        raise ValueError(f"Slicer reads the columns {','.join(FCSV_COLUMNS)} in this order, the header has {given}")
    return FCSV_COLUMNS


def fcsv_placed(row: Mapping[str, str], number: int) -> bool:
    """Whether a landmark is placed; ValueError if its status is none, as where a comma is one too many."""
    status = row.get("status", "2").strip()
    if status not in FCSV_STATUS:
        raise ValueError(f"landmark {number} has more cells than {','.join(FCSV_COLUMNS)}: quote commas in texts")
    return status == "2"


def fcsv_frame(said: Sequence[str]) -> str | None:
    """The frame of what stands for ``CoordinateSystem``: one, or none in Slicer 3."""
    if len(set(said)) > 1:
        raise ValueError(f"CoordinateSystem must be one, got {list(said)}")
    return frame_named(said[0]) if said else None


def frame_named(name: Any) -> str:
    """RAS or LPS, by what Slicer's versions call them, or a ValueError."""
    if str(name).upper() not in FCSV_FRAMES:
        raise ValueError(f"the coordinate system must be one of {', '.join(FCSV_FRAMES)}, got {name!r}")
    return FCSV_FRAMES[str(name).upper()]


def read_markups(text: str) -> Parsed:
    """Reads Slicer's markups; ValueError if they do not say clearly what they mean."""
    content = json.loads(text, object_pairs_hook=unrepeated)
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise ValueError("it must be a JSON object with a list of markups")
    if len(markups) != 1:
        names = [markup.get("name", f"number {number}") for number, markup in enumerate(markups, 1)]
        raise ValueError(f"it must hold one list of markups alone, got {names}: save each to a file of its own")
    markup = markups[0]
    check_markup(markup)
    numbered = {number: point for number, point in enumerate(markup["controlPoints"], 1) if is_placed(point)}
    labels = named([text_of(point, "label") for point in numbered.values()], list(numbered))
    return Parsed(
        [numbers_of(point, label) for point, label in zip(numbered.values(), labels, strict=True)],
        labels,
        None if markup.get("coordinateSystem") is None else frame_named(markup["coordinateSystem"]),
        [text_of(point, "description").strip() for point in numbered.values()],
        markup["type"] if markup.get("type") in SHAPES else "",
    )


def check_markup(markup: Mapping[str, Any]) -> None:
    """ValueError unless a list of markups consists of points in mm."""
    if markup.get("type", LISTS[0]) not in LISTS + SHAPES:
        raise ValueError(f"markups of type {markup['type']!r} have no landmarks, only {', '.join(LISTS + SHAPES)} have")
    unit = markup.get("coordinateUnits", "mm")
    if (unit[0] if isinstance(unit, list) and unit else unit) != "mm":  # a list is code, scheme and meaning
        raise ValueError(f"coordinateUnits must be mm, got {unit!r}")
    points = markup.get("controlPoints")
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        raise ValueError("controlPoints must be a list of points")


def is_placed(point: Mapping[str, Any]) -> bool:
    """Whether a point has a position, by its status."""
    status = point.get("positionStatus", "defined")
    if status not in ("defined", *NOT_PLACED):
        raise ValueError(f"positionStatus must be one of defined, {', '.join(NOT_PLACED)}, got {status!r}")
    return status == "defined"


def text_of(point: Mapping[str, Any], key: str) -> str:
    """A text of a point, or a ValueError."""
    value = point.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a text, got {value!r}")
    return value


def numbers_of(point: Mapping[str, Any], label: str) -> list[float]:
    """The position of a point, or a ValueError that names it."""
    position = point.get("position")
    if not isinstance(position, list) or [type(value) in (int, float) for value in position] != [True] * 3:
        raise ValueError(f"the position of {label!r} must be 3 numbers of mm, got {position!r}")
    return [float(value) for value in position]


def fcsv_text(
    positions: Sequence[Sequence[float]], labels: Sequence[str], frame: str, descriptions: Sequence[str] = ()
) -> str:
    """Slicer's older file; ValueError for a text of several lines, which it does not hold."""
    for text in (*labels, *descriptions):
        if "\n" in text or "\r" in text:
            raise ValueError(f".fcsv holds no text of several lines, got {text!r}: write .mrk.json")
    buffer = io.StringIO()
    buffer.write("# Markups fiducial file version = 4.11\n")
    buffer.write(f"# CoordinateSystem = {frame}\n# columns = {','.join(FCSV_COLUMNS)}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    told = descriptions or [""] * len(labels)
    for number, (label, position, description) in enumerate(zip(labels, positions, told, strict=True), 1):
        writer.writerow([number, *position, 0, 0, 0, 1, 1, 1, 0, label, description, ""])
    return buffer.getvalue()


def markups_text(
    positions: Sequence[Sequence[float]],
    labels: Sequence[str],
    frame: str,
    descriptions: Sequence[str] = (),
    shape: str = "",
) -> str:
    """Slicer's markups: of a shape, or a list of points."""
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    told = descriptions or [""] * len(labels)
    points = [
        {"id": str(number), "label": label, "position": list(position), "positionStatus": "defined"}
        | ({"description": description} if description else {})
        for number, (label, position, description) in enumerate(zip(labels, positions, told, strict=True), 1)
    ]
    markup = {"type": shape or LISTS[0], "coordinateSystem": frame, "coordinateUnits": "mm", "controlPoints": points}
    return json.dumps({"@schema": f"{schema}markups-schema-v1.0.3.json#", "markups": [markup]}, indent=1) + "\n"
