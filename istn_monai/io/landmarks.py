"""Landmark files: CSV, and 3D Slicer's ``.fcsv`` and ``.mrk.json``.

Convention:
    Positions are ``(N, D)`` in mm, RAS, in memory. A file says its own frame; a CSV file in a column ``frame``, or else
    the caller does: there is no default, because a wrong one mirrors the points without a word. What the files hold is
    in :mod:`istn_monai.io.landmark_tables` (CSV) and :mod:`istn_monai.io.landmark_markups` (Slicer).
"""

from __future__ import annotations

import codecs
import csv
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from istn_monai.geometry.frames import lps
from istn_monai.io.landmark_markups import (
    FCSV_COLUMNS,
    FCSV_FRAMES,
    fcsv_text,
    markups_text,
    read_fcsv,
    read_markups,
)
from istn_monai.io.landmark_tables import AXES, Parsed, check_cells, csv_text, read_csv
from istn_monai.io.paths import absolute, replacing
from istn_monai.io.voxel_landmarks import image_beside, read_voxel_csv

__all__ = [
    "AXES", "FCSV_COLUMNS", "FCSV_FRAMES", "FRAMES", "MARKUPS", "POINT_SUFFIXES", "Parsed", "Points", "check_cells",
    "check_dims", "checked_frame", "csv_text", "fcsv_text", "is_points", "markups_text", "matched", "read_csv",
    "read_fcsv", "read_in_frame", "read_markups", "read_points", "same_name", "suffix_of", "to_ras", "unmatched",
    "warn_unmatched", "write_points",
]  # fmt: skip
FRAMES = ("RAS", "LPS")
MARKUPS = ".mrk.json"
POINT_SUFFIXES = (".csv", ".fcsv", MARKUPS)
#: encodings by the mark that a file begins with; that of UTF-32 begins with that of UTF-16
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Points:
    """Landmarks.

    Attributes:
        positions: ``(N, D)`` in mm, RAS, float64.
        labels: N names.
        descriptions: N texts, empty for a landmark that has none; or no text at all.
        shape: what they make up in Slicer: Line, Angle, Curve or ClosedCurve; empty for landmarks alone.
    """

    positions: Tensor
    labels: tuple[str, ...]
    descriptions: tuple[str, ...] = ()
    shape: str = ""

    def chosen(self, labels: Sequence[str]) -> Points:
        """The landmarks of these names, in their order."""
        return self.at([self.labels.index(label) for label in labels])

    def at(self, rows: Sequence[int]) -> Points:
        """Some of the landmarks by their place, from 0."""
        told = tuple(self.descriptions[row] for row in rows) if self.descriptions else ()
        labels = tuple(self.labels[row] for row in rows)
        return replace(self, positions=self.positions[list(rows)], labels=labels, descriptions=told)

    def moved_to(self, positions: Tensor) -> Points:
        """The same landmarks at other positions ``(N, D)``."""
        return replace(self, positions=positions)


def matched(first: str | Path, second: str | Path) -> tuple[Points, Points]:
    """The landmarks that two files have in common, by name, in the second file's order.

    A landmark that one of them lacks says nothing of how the two correspond, and is left out. Rows without a name have
    their number for one. Names are compared as Unicode means them, and both come as the second file spells them.

    Args:
        first: landmark file.
        second: landmark file.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, labels in {"a": ("AC", "PC"), "b": ("PC", "tip")}.items():
        ...     _ = write_points(Points(torch.rand(2, 3), labels), folder / f"{name}.csv")
        >>> [points.labels for points in matched(folder / "a.csv", folder / "b.csv")]
        [('PC',), ('PC',)]
    """
    files = (first, second)
    points = [read_points(file) for file in files]
    names = [[same_name(label) for label in own.labels] for own in points]
    for file, own in zip(files, names, strict=True):
        twice = sorted({label for label in own if own.count(label) > 1})
        if twice:
            raise ValueError(f"{file}: landmarks correspond by name, but {twice} are there more than once; rename them")
    common = [label for label in names[1] if label in names[0]]
    if not common:
        there = " and ".join(f"{sorted(own.labels)} in {file}" for file, own in zip(files, points, strict=True))
        raise ValueError(f"landmarks correspond by name, and no name is in both files: {there}")
    second_points = points[1].at([names[1].index(label) for label in common])
    first_points = points[0].at([names[0].index(label) for label in common])
    return replace(first_points, labels=second_points.labels), second_points


def same_name(label: str) -> str:
    """A name as it is compared: an accent is one with its letter, whichever way the file holds it."""
    return unicodedata.normalize("NFC", label)


def unmatched(first: str | Path, second: str | Path) -> tuple[list[str], list[str]]:
    """The names in either file that the other one lacks."""
    labels = [read_points(file).labels for file in (first, second)]
    known = [{same_name(label) for label in own} for own in labels]
    left, right = (
        [label for label in own if same_name(label) not in other]
        for own, other in zip(labels, known[::-1], strict=True)
    )
    return left, right


def warn_unmatched(first: str | Path, second: str | Path) -> None:
    """Warns of the landmarks that only one of two files has, and says if letters' case alone sets them apart."""
    alone = unmatched(first, second)
    if not any(alone):
        return
    folded = [{same_name(label).casefold() for label in own} for own in alone]
    case = sorted(label for label in alone[0] if same_name(label).casefold() in folded[1])
    said = " and ".join(f"{own} in {file}" for own, file in zip(alone, (first, second), strict=True) if own)
    hint = f"; {case} differs in letters' case alone" if case else ""
    warnings.warn(f"landmarks without a counterpart are left out: {said}{hint}", stacklevel=3)


def suffix_of(file: str | Path) -> str:
    """Which of ``POINT_SUFFIXES`` a file has, or a ValueError."""
    name = Path(file).name
    found = next((suffix for suffix in POINT_SUFFIXES if name.lower().endswith(suffix)), None)
    if found is None:
        raise ValueError(f"landmarks are read from and written to {POINT_SUFFIXES}, got {name}")
    return found


def is_points(file: str | Path) -> bool:
    """Whether a file's name is that of a landmark file."""
    return Path(file).name.lower().endswith(POINT_SUFFIXES)


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


def decoded(content: bytes) -> str:
    """The text of a file in Unicode: by the mark that it begins with, or else UTF-8.

    Any other encoding is a ValueError: which of many it is, and so the names, would be a guess.
    """
    encoding = next((name for mark, name in ENCODINGS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"its text is not {encoding} ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError("it holds zero bytes and is no text: save it as UTF-8")
    return text


def read_points(file: str | Path, frame: str | None = None) -> Points:
    """Reads landmarks.

    Args:
        file: ``.csv`` with columns x, y (, z) and, if it has them, label (or name), description and frame; Slicer's
            and ANTs' tables; ``.fcsv``; ``.mrk.json``; Learn2Reg's, see :mod:`istn_monai.io.voxel_landmarks`.
        frame: "RAS" or "LPS", of a file that does not say its own. A file that says another one raises an error.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it does not say clearly what it means.
    """
    return read_in_frame(file, frame)[0]


def read_in_frame(file: str | Path, frame: str | None = None) -> tuple[Points, str]:
    """Landmarks as :func:`read_points` gives them, and the frame of their file."""
    path = absolute(file)
    suffix = suffix_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such landmark file: {path}")
    reader: Callable[[str], Parsed] = {".csv": read_csv, ".fcsv": read_fcsv, MARKUPS: read_markups}[suffix]
    if (image := image_beside(path)) is not None:
        reader = partial(read_voxel_csv, image=image)
    try:
        parsed = reader(decoded(path.read_bytes()))
    except (ValueError, OverflowError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path} is not a landmark file that can be read: {error}") from error
    broken = [
        text for text in (*parsed.labels, *parsed.descriptions) if any("\ud800" <= sign <= "\udfff" for sign in text)
    ]
    if broken:
        raise ValueError(f"{path}: {broken[0]!r} holds half a character (a lone surrogate): write the whole one")
    if not parsed.positions:
        raise ValueError(f"{path} has no landmark")
    if parsed.frame is None and frame is None:
        where = {".csv": "a column 'frame'", ".fcsv": "a line '# CoordinateSystem = LPS'"}
        raise ValueError(
            f"{path} does not say its frame: give {where.get(suffix, 'a coordinateSystem')}, or the option frame, RAS "
            "or LPS, where there is one (apply)"
        )
    if None not in (parsed.frame, frame) and parsed.frame != frame:
        raise ValueError(f"{path} says that it is in {parsed.frame}, frame is {frame}")
    values = torch.tensor(parsed.positions, dtype=torch.float64)
    if not torch.isfinite(values).all():
        raise ValueError(f"{path}: landmarks need finite coordinates")
    own = checked_frame(parsed.frame or frame or "", path)
    told = tuple(parsed.descriptions) if any(parsed.descriptions) else ()
    return Points(to_ras(values, own), tuple(parsed.labels), told, parsed.shape), own


def check_dims(points: Points, file: str | Path, spatial_dims: int, what: str) -> None:
    """ValueError, naming the file, unless landmarks have as many coordinates as ``what`` has axes."""
    dims = points.positions.shape[1]
    if dims != spatial_dims:
        raise ValueError(
            f"{file} has {dims}-D landmarks, but {what} is {spatial_dims}-D; "
            + ("in 2-D they need a CSV file with columns x and y alone" if spatial_dims == 2 else "add a column z")
        )


def write_points(points: Points, file: str | Path, frame: str = "LPS") -> Path:
    """Writes landmarks; the file says its frame. Blanks around names and descriptions are not kept, nor is a shape in
    other files than ``.mrk.json``.

    Args:
        points: in RAS.
        file: one of ``POINT_SUFFIXES``.
        frame: of the file.

    Raises:
        ValueError: naming the file, if its format cannot hold the landmarks.
    """
    path = absolute(file)
    suffix = suffix_of(path)
    positions = to_ras(points.positions, checked_frame(frame, path)).tolist()
    if not positions:
        raise ValueError(f"{path}: there is no landmark to write")
    if suffix != ".csv" and len(positions[0]) != 3:
        raise ValueError(f"{path}: {suffix} holds 3-D landmarks alone; write 2-D ones as .csv")
    markups = partial(markups_text, shape=points.shape)
    writers: dict[str, Callable[..., str]] = {".csv": csv_text, ".fcsv": fcsv_text, MARKUPS: markups}
    try:
        text = writers[suffix](positions, points.labels, frame, points.descriptions)
        if "\0" in text:
            raise ValueError("a name or description has a zero byte in it")
        content = text.encode("utf-8")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with replacing(path) as part:
        part.write_bytes(content)
    return path
