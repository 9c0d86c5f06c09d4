"""Plain matrices of numbers as transforms: greedy's and FSL's, which do not say themselves what they mean.

Convention:
    ``ras`` (greedy, c3d): RAS mm, from fixed to moving points, as world transforms here. ``fsl`` (flirt): from moving
    to fixed points, each in the mm of its image's voxels, whose first axis runs the other way where the determinant of
    the image's affine is positive; so both images' grids belong to it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.components import WorldAffine
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform

CONVENTIONS = ("ras", "fsl")
LARGEST = 2**16  # bytes of a file of 16 numbers


def read_matrix(
    file: str | Path, convention: str, moving: Grid | None = None, fixed: Grid | None = None
) -> WorldTransform:
    """Reads a plain matrix, 4x4 (3x3 in 2-D), as fixed to moving world points.

    Args:
        file: text of numbers, row after row.
        convention: "ras" or "fsl", see the module.
        moving: grid of the image that was registered; of "fsl" alone.
        fixed: grid of the image that it was registered to; of "fsl" alone.

    Raises:
        ValueError: naming the file, if it is no such matrix, or is singular, or a grid is missing.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {CONVENTIONS}, got {convention!r}")
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no such transform: {path}")
    try:
        matrix = homogeneous(path)
        if convention == "fsl":
            matrix = fsl_to_world(matrix, moving, fixed)
        return WorldTransform([WorldAffine(matrix)], len(matrix) - 1)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def homogeneous(file: Path) -> Tensor:
    """``(D+1, D+1)`` of a text of 9 or 16 numbers."""
    text = file.read_bytes()[: LARGEST + 1].decode("latin-1")
    expected = "a plain matrix is text of 4 rows of 4 numbers (in 2-D 3 of 3), of which the last is 0 0 0 1 (0 0 1)"
    try:
        rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.split()]
    except ValueError as error:
        raise ValueError(f"{expected}; it is none ({error})") from error
    if len(text) > LARGEST or len(rows) not in (3, 4) or any(len(row) != len(rows) for row in rows):
        raise ValueError(f"{expected}; it has rows of {[len(row) for row in rows[:5]]} numbers")
    matrix = np.array(rows)
    if not np.allclose(matrix[-1], np.eye(len(rows))[-1], atol=1e-6):
        raise ValueError(f"{expected}; its last row is {matrix[-1].tolist()}")
    matrix[-1] = np.eye(len(rows))[-1]
    return torch.as_tensor(matrix)


def fsl_to_world(matrix: Tensor, moving: Grid | None, fixed: Grid | None) -> Tensor:
    """``(4, 4)``: flirt's matrix as fixed to moving points of the world."""
    if moving is None or fixed is None:
        raise ValueError(
            "a matrix of flirt's is of two images: give both, the one that was moved (flirt -in) and the one that it "
            "was moved to (flirt -ref)"
        )
    dims = {len(matrix) - 1, moving.spatial_dims, fixed.spatial_dims}
    if dims != {3}:
        raise ValueError(f"flirt's matrices and images are of 3 dimensions, got {sorted(dims)}")
    WorldAffine(matrix)  # or ValueError: it is singular
    to_moving = moving.affine @ torch.linalg.inv(voxel_to_fsl(moving))
    return to_moving @ torch.linalg.inv(matrix) @ voxel_to_fsl(fixed) @ torch.linalg.inv(fixed.affine)


def voxel_to_fsl(grid: Grid) -> Tensor:
    """``(D+1, D+1)``: voxels of an image to FSL's coordinates: in mm, x from the last voxel for a positive determinant.

    Examples:
        >>> voxel_to_fsl(Grid((5, 4, 3), torch.diag(torch.tensor([2.0, 1, 1, 1]))))[0].tolist()
        [-2.0, 0.0, 0.0, 8.0]
    """
    matrix = torch.diag(torch.tensor([*grid.spacing, 1.0], dtype=torch.float64))
    if torch.linalg.det(grid.affine[:-1, :-1]) > 0:
        matrix[0, 0], matrix[0, -1] = -grid.spacing[0], (grid.spatial_size[0] - 1) * grid.spacing[0]
    return matrix
