"""RAS and LPS: how the two differ stands here alone."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def lps(dims: int) -> np.ndarray:
    """``(D, D)``: RAS to LPS, and back. Like ITK's 3-D images, 2-D ones flip their first two axes."""
    return np.diag([-1.0, -1.0, 1.0][:dims])


def flipped(matrix: Tensor | np.ndarray) -> np.ndarray:
    """A map ``(D+1, D+1)`` of RAS points as one of LPS points, and back."""
    matrix = np.array(matrix, dtype=float)
    flip = lps(len(matrix) - 1)
    matrix[:-1] = flip @ matrix[:-1]
    matrix[:, :-1] = matrix[:, :-1] @ flip
    return matrix
