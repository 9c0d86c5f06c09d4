"""DICOM files as bytes, after PS3.5 and PS3.10 alone: no reader's idea of where a slice lies is in them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

LONG = ("OB", "OW", "SQ", "UN", "UT")
ENHANCED_CT, CT, SECONDARY, REPORT, SEG, DIRECTORY = (
    "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7",
    "1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.1.3.10",
)  # fmt: skip
EXPLICIT = "1.2.840.10008.1.2.1"
STRAIGHT = np.eye(3)  # columns: directions of columns, rows and slices, LPS
SIZE = (12, 10)  # columns, rows


def element(tag: int, vr: str, value: Any) -> bytes:
    """One element; a sequence's value is a list of items, each a list of elements."""
    if vr == "SQ":
        coded = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in map(b"".join, value))
    elif vr == "US":
        coded = struct.pack("<H", value)
    elif isinstance(value, bytes):
        coded = value
    else:
        many = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        coded = "\\".join(f"{one:.10g}" if isinstance(one, float) else str(one) for one in many).encode()
        coded += (b"\0" if vr == "UI" else b" ") * (len(coded) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (struct.pack("<HI", 0, len(coded)) if vr in LONG else struct.pack("<H", len(coded))) + coded


def write(file: Path, sop: str, elements: dict[int, tuple[str, Any]]) -> Path:
    """A file of so many elements."""
    instance = elements.setdefault(0x00080018, ("UI", f"1.2.{zlib.crc32(str(file).encode())}"))[1]
    meta = b"".join(
        element(tag, "UI", value) for tag, value in ((0x00020002, sop), (0x00020003, instance), (0x00020010, EXPLICIT))
    )
    everything = elements | {0x00080016: ("UI", sop)}
    body = b"".join(element(tag, *everything[tag]) for tag in sorted(everything))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + body)
    return file


def pixels_of(pixels: np.ndarray) -> dict[int, tuple[str, Any]]:
    """The elements of pixels ``([frames,] rows, columns)``, int16."""
    return {
        0x00280002: ("US", 1), 0x00280004: ("CS", "MONOCHROME2"), 0x00280010: ("US", pixels.shape[-2]),
        0x00280011: ("US", pixels.shape[-1]), 0x00280100: ("US", 16), 0x00280101: ("US", 16), 0x00280102: ("US", 15),
        0x00280103: ("US", 1), 0x7FE00010: ("OW", pixels.astype("<i2").tobytes()),
    }  # fmt: skip


def write_slice(
    file: Path, pixels: np.ndarray, position: Any, axes: np.ndarray = STRAIGHT, spacing: Any = (1.5, 2.0),
    series: str = "1.2.3", number: int = 1, sop: str = CT, **more: tuple[str, Any],
) -> Path:  # fmt: skip
    """A slice ``(rows, columns)``; ``spacing`` is between columns, then between rows; ``more`` by ``x00180081``."""
    own = {
        0x00080060: ("CS", "CT"), 0x0008103E: ("LO", "phantom"), 0x0020000D: ("UI", "1.2.9"),
        0x0020000E: ("UI", series), 0x00200013: ("IS", number),
        0x00200032: ("DS", [float(x) for x in position]), 0x00200037: ("DS", [*axes[:, 0], *axes[:, 1]]),
        0x00200052: ("UI", "1.2.8"), 0x00280030: ("DS", [float(spacing[1]), float(spacing[0])]),
        0x00281052: ("DS", 0.0), 0x00281053: ("DS", 1.0),
    }  # fmt: skip
    return write(file, sop, own | pixels_of(pixels) | {int(tag[1:], 16): value for tag, value in more.items()})


def write_frames(
    file: Path, pixels: np.ndarray, positions: Any, axes: np.ndarray = STRAIGHT, spacing: Any = (1.5, 2.0),
    stacks: Any = None, slopes: Any = None,
) -> Path:  # fmt: skip
    """An enhanced file of frames ``(frames, rows, columns)``."""
    shared = [
        element(0x00209116, "SQ", [[element(0x00200037, "DS", [*axes[:, 0], *axes[:, 1]])]]),
        element(0x00289110, "SQ", [[element(0x00280030, "DS", [float(spacing[1]), float(spacing[0])])]]),
    ]
    slopes = slopes or [1.0] * len(pixels)
    frames = [
        [
            element(0x00209111, "SQ", [[element(0x00209056, "SH", (stacks or ["1"] * len(pixels))[k])]]),
            element(0x00209113, "SQ", [[element(0x00200032, "DS", [float(x) for x in position])]]),
            element(0x00289145, "SQ", [[element(0x00281052, "DS", 0.0), element(0x00281053, "DS", slopes[k])]]),
        ]
        for k, position in enumerate(positions)
    ]
    own = {
        0x00080060: ("CS", "CT"), 0x0020000D: ("UI", "1.2.9"), 0x0020000E: ("UI", "1.2.3"),
        0x00280008: ("IS", len(pixels)), 0x52009229: ("SQ", [shared]), 0x52009230: ("SQ", frames),
    }  # fmt: skip
    return write(file, ENHANCED_CT, own | pixels_of(pixels))


def smooth(points: np.ndarray) -> np.ndarray:
    """A function of places ``(..., 3)`` in LPS mm, in about -900 to 900."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 400 * np.sin(x / 9) + 300 * np.cos(y / 11) + 200 * np.sin(z / 12 + x / 25)


def places(position: Any, axes: np.ndarray, spacing: Any, size: Any = SIZE) -> np.ndarray:
    """``(rows, columns, 3)``: where the pixels of a slice lie."""
    columns, rows = (np.arange(number) for number in size)
    return (
        np.asarray(position)
        + columns[None, :, None] * spacing[0] * axes[:, 0]
        + rows[:, None, None] * spacing[1] * axes[:, 1]
    )


def write_stack(
    folder: Path, positions: Any, axes: np.ndarray = STRAIGHT, spacing: Any = (1.5, 2.0), **options: Any
) -> Path:
    """Slices of :func:`smooth` at positions, ``00.dcm`` and so on, numbered from 1."""
    for number, position in enumerate(positions):
        pixels = smooth(places(position, axes, spacing)).round()
        write_slice(folder / f"{number:02d}.dcm", pixels, position, axes, spacing, number=number + 1, **options)
    return folder


def straight(
    number: int, step: float = 2.5, axes: np.ndarray = STRAIGHT, origin: Any = (-20.0, 30.0, 7.0)
) -> np.ndarray:
    """Positions ``(N, 3)`` of a regular stack."""
    return np.array(origin) + np.arange(number)[:, None] * step * axes[:, 2]
