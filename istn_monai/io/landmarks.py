"""Landmark files: CSV, and 3D Slicer's ``.fcsv`` and ``.mrk.json``.

Convention:
    Positions are ``(N, D)`` in mm, RAS, in memory. A file says its own frame; a CSV file in a column ``frame``, or else
    the caller does: there is no default, because a wrong one mirrors the points without a word.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from istn_monai.geometry.frames import lps
from istn_monai.io.paths import absolute, replacing

FRAMES = ("RAS", "LPS")
POINT_SUFFIXES = (".csv", ".fcsv", ".mrk.json")
AXES = ("x", "y", "z")
FCSV_COLUMNS = ("id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID")
FCSV_FRAMES = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}


@dataclass(frozen=True)
class Points:
    """Landmarks.

    Attributes:
        positions: ``(N, D)`` in mm, RAS, float64.
        labels: N names.
    """

    positions: Tensor
    labels: tuple[str, ...]

    def chosen(self, labels: Sequence[str]) -> Points:
        """The landmarks of these names, in their order."""
        rows = [self.labels.index(label) for label in labels]
        return Points(self.positions[rows], tuple(labels))


def matched(first: str | Path, second: str | Path) -> tuple[Points, Points]:
    """The landmarks that two files have in common, by name, in the second file's order.

    A landmark that one of them lacks says nothing of how the two correspond, and is left out. Rows without a name have
    their number for one.

    Args:
        first: landmark file.
        second: landmark file.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, labels in {"a": ("AC", "PC"), "b": ("PC", "tip")}.items():
        ...     _ = write_points(Points(torch.rand(2, 3), labels), folder / f"{name}.csv")
        >>> [points.labels for points in matched(folder / "a.csv", folder / "b.csv")]
        [('PC',), ('PC',)]
    """
    files = (first, second)
    points = [read_points(file) for file in files]
    for file, own in zip(files, points, strict=True):
        twice = sorted({label for label in own.labels if own.labels.count(label) > 1})
        if twice:
            raise ValueError(f"{file}: landmarks correspond by name, but {twice} are there more than once; rename them")
    common = [label for label in points[1].labels if label in points[0].labels]
    if not common:
        names = " and ".join(f"{sorted(own.labels)} in {file}" for file, own in zip(files, points, strict=True))
        raise ValueError(f"landmarks correspond by name, and no name is in both files: {names}")
    return points[0].chosen(common), points[1].chosen(common)


def suffix_of(file: str | Path) -> str:
    """Which of ``POINT_SUFFIXES`` a file has, or a ValueError."""
    name = Path(file).name
    found = next((suffix for suffix in POINT_SUFFIXES if name.endswith(suffix)), None)
    if found is None:
        raise ValueError(f"landmarks are read from and written to {POINT_SUFFIXES}, got {name}")
    return found


def is_points(file: str | Path) -> bool:
    """Whether a file's name is that of a landmark file."""
    return Path(file).name.endswith(POINT_SUFFIXES)


def checked_frame(frame: str, file: str | Path) -> str:
    """RAS or LPS, or a ValueError that names the file."""
    if frame not in FRAMES:
        raise ValueError(f"{file}: the frame of landmarks must be one of {FRAMES}, got {frame!r}")
    return frame


def to_ras(positions: Tensor, frame: str) -> Tensor:
    """Positions ``(N, D)`` of a frame in RAS; and back, for it is a reflection."""
    return (
        positions * torch.as_tensor(lps(positions.shape[1]).diagonal().copy()) if frame == "LPS" else positions.clone()
    )


def read_points(file: str | Path, frame: str | None = None) -> Points:
    """Reads landmarks.

    Args:
        file: ``.csv`` with columns x, y (, z) and, if it has them, label (or name) and frame; ``.fcsv``; ``.mrk.json``.
        frame: "RAS" or "LPS", of a CSV file without a column ``frame``. A file that says another one raises
            an error.
    """
    path = absolute(file)
    suffix = suffix_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such landmark file: {path}")
    reader = {".csv": read_csv, ".fcsv": read_fcsv, ".mrk.json": read_markups}[suffix]
    try:
        positions, labels, own_frame = reader(path.read_text(encoding="utf-8-sig"))
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not a landmark file that can be read: {error}") from error
    if not positions:
        raise ValueError(f"{path} has no landmark")
    if own_frame is None and frame is None:
        raise ValueError(f"{path} does not say its frame: give frame RAS or LPS, or a column 'frame'")
    if None not in (own_frame, frame) and own_frame != frame:
        raise ValueError(f"{path} says that it is in {own_frame}, frame is {frame}")
    values = torch.tensor(positions, dtype=torch.float64)
    if values.ndim != 2 or not torch.isfinite(values).all():
        raise ValueError(f"{path}: landmarks need finite coordinates, the same number for each")
    return Points(to_ras(values, checked_frame(own_frame or frame or "", path)), tuple(labels))


Parsed = tuple[list[list[float]], list[str], str | None]


def read_csv(text: str) -> Parsed:
    """Positions, labels and frame of a CSV file."""
    names, *lines = [*csv.reader(io.StringIO(text))] or [[]]
    header = [name.strip().lower() for name in names]
    rows = [dict(zip(header, map(str.strip, line), strict=False)) for line in lines if line]
    check_cells(header, [line for line in lines if line])
    axes = [axis for axis in AXES if rows and axis in rows[0]]
    if axes[:2] != ["x", "y"]:
        raise ValueError(f"a CSV file needs columns x, y and, in 3-D, z; it has {list(rows[0]) if rows else 'no row'}")
    frames = {row["frame"].strip().upper() for row in rows if row.get("frame")}
    if len(frames) > 1 or (frames and not all(row.get("frame") for row in rows)):
        raise ValueError(f"one frame for all landmarks, in each row, got {sorted(frames)} and rows that say another")
    labels = [row.get("label") or row.get("name") or row.get("id") or str(number) for number, row in enumerate(rows, 1)]
    return [[float(row[axis]) for axis in axes] for row in rows], labels, next(iter(frames), None)


def check_cells(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """ValueError if a column is there twice, or a row has more or fewer cells than there are columns."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ValueError(f"the columns {twice} are there more than once")
    for number, line in enumerate(lines, 1):
        if len(line) < len(header) or any(cell.strip() for cell in line[len(header) :]):
            raise ValueError(f"landmark {number} has {len(line)} cells, the header {len(header)}: {','.join(line)}")


def read_fcsv(text: str) -> Parsed:
    """Positions, labels and frame of Slicer's older file."""
    header = [line for line in text.splitlines() if line.startswith("#")]
    named = dict(line.lstrip("# ").split("=", 1) for line in header if "=" in line)
    named = {key.strip(): value.strip() for key, value in named.items()}
    columns = named["columns"].split(",") if "columns" in named else list(FCSV_COLUMNS)
    rows = list(csv.DictReader((line for line in text.splitlines() if line and line[0] != "#"), fieldnames=columns))
    frame = FCSV_FRAMES[named["CoordinateSystem"]]
    return [[float(row[axis]) for axis in AXES] for row in rows], [row.get("label") or row["id"] for row in rows], frame


def read_markups(text: str) -> Parsed:
    """Positions, labels and frame of Slicer's markups."""
    markups = json.loads(text)["markups"]
    if not isinstance(markups, list) or len(markups) != 1 or not isinstance(markups[0], dict):
        raise ValueError("it must hold one list of markups alone: save each list to a file of its own")
    markup = markups[0]
    if (unit := markup.get("coordinateUnits", "mm")) not in ("mm", ["mm", "", "mm"]):
        raise ValueError(f"coordinateUnits must be mm, got {unit!r}")
    if not isinstance(markup["controlPoints"], list) or not all(isinstance(p, dict) for p in markup["controlPoints"]):
        raise ValueError("controlPoints must be a list of points")
    points = [point for point in markup["controlPoints"] if point.get("positionStatus", "defined") == "defined"]
    labels = [point.get("label") or str(number) for number, point in enumerate(points, 1)]
    return [list(map(float, point["position"])) for point in points], labels, FCSV_FRAMES[markup["coordinateSystem"]]


def write_points(points: Points, file: str | Path, frame: str = "LPS") -> Path:
    """Writes landmarks; the file says its frame.

    Args:
        points: in RAS.
        file: one of ``POINT_SUFFIXES``.
        frame: of the file.
    """
    path = absolute(file)
    suffix = suffix_of(path)
    positions = to_ras(points.positions, checked_frame(frame, path)).tolist()
    if suffix != ".csv" and len(positions[0]) != 3:
        raise ValueError(f"{path}: {suffix} holds 3-D landmarks alone; write 2-D ones as .csv")
    writer = {".csv": csv_text, ".fcsv": fcsv_text, ".mrk.json": markups_text}[suffix]
    text = writer(positions, points.labels, frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text)
    return path


def csv_text(positions: Sequence[Sequence[float]], labels: Sequence[str], frame: str) -> str:
    """A CSV file with columns label, x, y, z, frame."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["label", *AXES[: len(positions[0])], "frame"])
    writer.writerows([label, *position, frame] for label, position in zip(labels, positions, strict=True))
    return buffer.getvalue()


def fcsv_text(positions: Sequence[Sequence[float]], labels: Sequence[str], frame: str) -> str:
    """Slicer's older file."""
    buffer = io.StringIO()
    buffer.write("# Markups fiducial file version = 4.11\n")
    buffer.write(f"# CoordinateSystem = {frame}\n# columns = {','.join(FCSV_COLUMNS)}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    for number, (label, position) in enumerate(zip(labels, positions, strict=True), 1):
        writer.writerow([number, *position, 0, 0, 0, 1, 1, 1, 0, label, "", ""])
    return buffer.getvalue()


def markups_text(positions: Sequence[Sequence[float]], labels: Sequence[str], frame: str) -> str:
    """Slicer's markups."""
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    points = [
        {"id": str(number), "label": label, "position": list(position), "positionStatus": "defined"}
        for number, (label, position) in enumerate(zip(labels, positions, strict=True), 1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": frame, "coordinateUnits": "mm", "controlPoints": points}
    return json.dumps({"@schema": f"{schema}markups-schema-v1.0.3.json#", "markups": [markup]}, indent=1) + "\n"
