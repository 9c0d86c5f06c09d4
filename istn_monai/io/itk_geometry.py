"""Where ITK's images and lattices lie: origin, spacing and direction in LPS, and the affine in RAS that is ours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.frames import lps
from istn_monai.io.simple_itk import sitk


def geometry(affine: Tensor | np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """Origin, spacing and direction (row by row), in LPS, of an RAS affine ``(D+1, D+1)``."""
    affine = np.asarray(affine, dtype=float)
    columns = lps(len(affine) - 1) @ affine[:-1]
    spacing = np.linalg.norm(columns[:, :-1], axis=0)
    return columns[:, -1].tolist(), spacing.tolist(), (columns[:, :-1] / spacing).ravel().tolist()


def affine_of_geometry(origin: np.ndarray, spacing: np.ndarray, axes: np.ndarray) -> Tensor:
    """The RAS affine ``(D+1, D+1)`` of an ITK geometry."""
    dims = len(axes)
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = lps(dims) @ axes * spacing
    affine[:-1, -1] = lps(dims) @ origin
    return torch.as_tensor(affine)


def to_index_of(spacing: Sequence[float], axes: np.ndarray) -> Tensor:
    """``(D, D)``, world in RAS to index, to the last bit as ITK inverts a geometry, which no other inverse is."""
    dims = len(axes)
    image = sitk.Image([1] * dims, sitk.sitkUInt8)
    image.SetSpacing(list(map(float, spacing)))
    image.SetDirection(np.asarray(axes, dtype=float).ravel().tolist())
    columns = [image.TransformPhysicalPointToContinuousIndex(row.tolist()) for row in np.eye(dims)]
    return torch.as_tensor(np.array(columns).T @ lps(dims))
