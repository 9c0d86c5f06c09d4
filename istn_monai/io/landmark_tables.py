"""Landmarks in CSV files: ours, those that spreadsheets write, 3D Slicer's control point tables, and those of ANTs.

Convention:
    - The header names the columns, in any case. One that is not known is an error: it may be a name or a frame that is
      spelled another way, and without it landmarks would correspond by row, or be mirrored.
    - Columns are separated by commas, semicolons or tabs, whichever the header has most of. Beside the last two, a
      decimal comma is understood.
    - The frame is that of the column ``frame``, or of the columns themselves: Slicer's ``r, a, s`` are RAS and
      ``l, p, s`` LPS, and a table with ANTs' column ``t`` is in LPS, as ANTs reads it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

AXES = ("x", "y", "z")
#: columns that hold positions, with the frame that they say
POSITIONS = {("r", "a", "s"): "RAS", ("l", "p", "s"): "LPS", AXES: None, AXES[:2]: None}
NAMES = ("label", "name")
DESCRIPTIONS = ("description", "desc", "comment")
#: of other tools, read past: time and measures of ANTs, display in Slicer
OTHERS = (
    "t", "mass", "volume", "count", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "selected", "visible", "locked",
    "associatednodeid",
)  # fmt: skip
KNOWN = (*NAMES, "id", *AXES, "frame", *DESCRIPTIONS, "r", "a", "s", "l", "p", "defined", *OTHERS)
UNDEFINED = ("0", "0.0", "false", "no")  # cells of the column defined
SEPARATORS = (",", ";", "\t")
SEPARATOR_LINE = re.compile(r"\s*sep=(.)[ ,;\t]*\r?\n", re.IGNORECASE)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
Row = Mapping[str, str]


class Parsed(NamedTuple):
    """What a landmark file holds.

    Attributes:
        positions: as they stand there, in mm.
        labels: names.
        frame: RAS or LPS; None if the file does not say it.
        descriptions: one for each landmark; empty texts where there is none.
        shape: what they make up in Slicer, such as a Curve; empty for landmarks alone.
    """

    positions: list[list[float]]
    labels: list[str]
    frame: str | None
    descriptions: list[str]
    shape: str = ""


def read_csv(text: str) -> Parsed:
    """Reads a CSV file; ValueError if it does not say clearly what it means."""
    separator = separator_of(text)
    header, rows = table(text, separator)
    columns = position_columns(header, rows)
    if separator != SEPARATORS[0]:
        rows = with_points(rows, columns)
    kept = [number for number, row in enumerate(rows) if row.get("defined", "1").lower() not in UNDEFINED]
    name = name_column(rows)
    return Parsed(
        [[number_in(rows[number][name], f"{name} of landmark {number + 1}") for name in columns] for number in kept],
        named([rows[number].get(name, "") for number in kept], [number + 1 for number in kept]),
        frame_of(rows, columns),
        [next((rows[number][name] for name in DESCRIPTIONS if name in header), "") for number in kept],
    )


def separator_of(text: str) -> str:
    """What separates the columns: what Excel's line ``sep=;`` says, or what the header has most of."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    told = SEPARATOR_LINE.match(text)
    return told[1] if told else max(SEPARATORS, key=first.count)


def table(text: str, separator: str) -> tuple[list[str], list[dict[str, str]]]:
    """The names of the columns, in small letters, and the rows by them; rows that are empty are left out."""
    file = io.StringIO(SEPARATOR_LINE.sub("", text, count=1), newline="")
    lines = list(csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True))
    lines = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if not lines:
        raise ValueError("it is empty")
    header = [name.lower() for name in lines[0]]
    header[0] = header[0].removeprefix("#").strip()  # NumPy's savetxt writes it so
    check_columns(header)
    check_cells(header, lines[1:])
    return header, [dict(zip(header, line, strict=False)) for line in lines[1:]]


def check_columns(header: Sequence[str]) -> None:
    """ValueError if a column is there twice, is not known, or is one of two that say the same."""
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ValueError(f"the columns {twice} are there more than once")
    unknown = [name for name in header if name and name not in KNOWN]
    if unknown:
        raise ValueError(f"the columns {unknown} are not known, only {', '.join(KNOWN)}: rename or remove them")
    for names in (NAMES, DESCRIPTIONS):
        both = [name for name in names if name in header]
        if len(both) > 1:
            raise ValueError(f"the columns {both} may both be what is meant: remove one")


def check_cells(header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """ValueError if a row has more or fewer cells than there are columns, or one in a column without a name."""
    for number, line in enumerate(lines, 1):
        if len(line) < len(header) or any(line[len(header) :]):
            raise ValueError(f"landmark {number} has {len(line)} cells, the header {len(header)}: {','.join(line)!r}")
        if any(cell for name, cell in zip(header, line, strict=False) if not name):
            raise ValueError(f"landmark {number} has a cell in a column without a name: {','.join(line)!r}")


def position_columns(header: Sequence[str], rows: Sequence[Row]) -> tuple[str, ...]:
    """Which columns hold the positions; ValueError unless these are the only ones."""
    found = [columns for columns in POSITIONS if set(columns) <= set(header)]
    axes = {axis for columns in POSITIONS for axis in columns} & set(header)
    if not found or not rows or axes != set(found[0]):
        raise ValueError(
            "a CSV file needs columns x, y and, in 3-D, z (or r, a, s, or l, p, s), and a row for each landmark; got "
            f"columns {', '.join(header)} and {len(rows)} rows"
        )
    return found[0]


def frame_of(rows: Sequence[Row], columns: Sequence[str]) -> str | None:
    """The frame that rows say, by their cells or their columns; ValueError unless there is one frame, and one time."""
    if len({row.get("t") for row in rows}) > 1:
        raise ValueError("column t must be one time for all landmarks: give a file for each")
    said = {row.get("frame", "").upper() for row in rows}
    by_column = POSITIONS[tuple(columns)] or ("LPS" if "t" in rows[0] else None)
    if said == {""}:
        return by_column
    if len(said) > 1 or by_column not in (None, *said):
        raise ValueError(
            f"one frame for all landmarks, in each row, got {sorted(said)}"
            + (f" in columns that are {by_column}" if by_column else "")
        )
    return said.pop()


def name_column(rows: Sequence[Row]) -> str:
    """The column that names the landmarks: the first of label, name and id that is not empty."""
    return next((column for column in (*NAMES, "id") if any(row.get(column) for row in rows)), NAMES[0])


def named(labels: Sequence[str], numbers: Sequence[int] = ()) -> list[str]:
    """Names without blanks around them; numbers, from 1 if none are given, where there are none at all.

    ValueError if some have a name and some have none: their numbers would correspond by chance.
    """
    stripped = [label.strip() for label in labels]
    numbers = numbers or range(1, len(labels) + 1)
    blank = [number for number, label in zip(numbers, stripped, strict=True) if not label]
    if blank and len(blank) < len(stripped):
        raise ValueError(f"landmark {blank[0]} has no name, while others have one: name all of them, or none")
    return [label or str(number) for number, label in zip(numbers, stripped, strict=True)]


def with_points(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows with decimal points in the place of decimal commas; ValueError if there are both."""
    marks = {mark for row in rows for column in columns for mark in ".," if mark in row[column]}
    if len(marks) > 1:
        raise ValueError("positions have points and commas, and one of them may separate thousands: write 1234.5")
    return [row | {column: row[column].replace(",", ".") for column in columns} for row in rows]


def number_in(cell: str, place: str) -> float:
    """The number in a cell; Python's own ``float`` takes more, such as 1_000."""
    if not NUMBER.fullmatch(cell.strip()):
        hint = ": decimal commas need semicolons between the columns" if "," in cell else ""
        raise ValueError(f"{place} must be a number of mm, got {cell!r}{hint}")
    return float(cell)


def csv_text(
    positions: Sequence[Sequence[float]], labels: Sequence[str], frame: str, descriptions: Sequence[str] = ()
) -> str:
    """A CSV file with columns label, x, y, z, frame and, where there are any, description."""
    buffer = io.StringIO(newline="")
    # Python quotes a carriage return of itself from 3.13 on alone
    returns = any("\r" in text for text in (*labels, *descriptions))
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL)
    told = [[description] for description in descriptions] if any(descriptions) else [[] for _ in labels]
    writer.writerow(["label", *AXES[: len(positions[0])], "frame", *(["description"] if any(descriptions) else [])])
    writer.writerows(
        [label, *position, frame, *more] for label, position, more in zip(labels, positions, told, strict=True)
    )
    return buffer.getvalue()
