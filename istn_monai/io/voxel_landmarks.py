"""Landmarks of Learn2Reg: rows of voxel numbers without a header, of the image of their name in the folder beside.

Convention:
    ``landmarksTr/X_0001_0000.csv`` (or ``keypointsTr``, ``keypoints01Tr`` ...) counts voxels of
    ``imagesTr/X_0001_0000.nii.gz`` from 0, along the axes of its array. Landmarks correspond by their rows.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from istn_monai.io.landmark_tables import Parsed, number_in
from istn_monai.io.nifti_frames import nifti_affine

FOLDER = re.compile(r"(?:landmarks|keypoints)\d*(T[rs])")


def image_beside(file: Path) -> Path | None:
    """The image whose voxels a landmark file counts; None for a file of another kind, or one with a header."""
    found = FOLDER.fullmatch(file.parent.name)
    if found is None or file.suffix != ".csv" or not file.is_file():
        return None
    image = file.parents[1] / f"images{found[1]}" / f"{file.stem}.nii.gz"
    with open(file, encoding="utf-8", errors="replace") as lines:
        first = lines.readline()
    return image if image.is_file() and not re.search("[a-df-zA-DF-Z]", first) else None


def read_voxels(text: str) -> list[list[float]]:
    """Rows of three voxel numbers, or a ValueError that names the row."""
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise ValueError(f"landmark {number} has {len(row)} numbers, a landmark of Learn2Reg 3: {','.join(row)!r}")
    return [[number_in(cell, f"landmark {number}") for cell in row] for number, row in enumerate(rows, 1)]


def read_voxel_csv(text: str, image: Path) -> Parsed:
    """Landmarks in RAS mm, named by their rows.

    Args:
        text: of the file.
        image: whose voxels it counts.
    """
    voxels = read_voxels(text)
    affine = nifti_affine(image, "image of the landmarks")
    positions = np.array(voxels).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]
    labels = [str(number) for number in range(1, len(voxels) + 1)]
    return Parsed(positions.tolist(), labels, "RAS", [""] * len(voxels))
