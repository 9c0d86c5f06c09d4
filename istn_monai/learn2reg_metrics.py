"""Metrics of Learn2Reg, as its own evaluation takes them of a displacement, to compare with what it publishes.

They differ from :mod:`istn_monai.workflow.pair_metrics`: labels are warped to the nearest voxel, and are 0 beyond the
centers of the outermost ones; surface distances are in voxels and weighted by area; SDlogJ is of ``J + 3``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from scipy.ndimage import map_coordinates

from istn_monai.metrics import jacobian_determinant, sd_log_jacobian_l2r

SDLOGJ, DSC, HD95 = "LogJacDetStd", "DSC", "HD95"
TRE = {"landmarks": "TRE_lm", "keypoints": "TRE_kp"}
SMALL_IS_GOOD = (SDLOGJ, *TRE.values())  # of these "30" is the quantile 0.7, of the others (HD95 among them) 0.3
Metric = dict[str, Any]  #: ``{"mean": number, "detailed": number or list}``


def warped_labels(moving: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """A label map of the moving image on the fixed image's grid.

    Args:
        moving: ``(H', W', D')``.
        displacement: ``(H, W, D, 3)`` in voxels.
    """
    places = np.indices(displacement.shape[:3]) + np.moveaxis(displacement, -1, 0)
    return map_coordinates(moving, places, order=0)


def each_label(
    metric: Callable[[np.ndarray, np.ndarray], float],
    fixed: np.ndarray,
    moving: np.ndarray,
    warped: np.ndarray,
    labels: Sequence[int],
) -> Metric:
    """A metric of each label, nan for one that either image lacks, and the mean of the others."""
    known = [bool((fixed == value).any() and (moving == value).any()) for value in labels]
    values = [
        metric(fixed == value, warped == value) if there else float("nan")
        for value, there in zip(labels, known, strict=True)
    ]
    return {"mean": float(np.nanmean(values)) if any(known) else float("nan"), "detailed": values}


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice coefficient of two masks."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def robust_hausdorff(one: np.ndarray, other: np.ndarray, percent: float = 95.0) -> float:
    """The larger one of the percentiles of distances, there and back, of the surfaces of two masks, in voxels.

    Each piece of surface counts by its area. Infinite if a mask is empty.
    """
    if not (one.any() and other.any()):
        return float("inf")
    pair = torch.from_numpy(one), torch.from_numpy(other)
    first, second, first_areas, second_areas = (
        part.numpy() for part in get_mask_edges(*pair, spacing=(1.0,) * one.ndim)
    )
    there = percentile(get_surface_distance(first, second), first_areas[first], percent)
    return max(there, percentile(get_surface_distance(second, first), second_areas[second], percent))


def percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    """The distance below which so many percent of an area lie."""
    order = np.lexsort((areas, distances))
    below = np.cumsum(areas[order], dtype=float)
    place = np.searchsorted(below / below[-1], percent / 100)
    return float(distances[order][min(place, len(order) - 1)])


def sdlogj(displacement: np.ndarray, mask: np.ndarray | None = None) -> float:
    """What the challenge calls SDlogJ, see :func:`istn_monai.metrics.sd_log_jacobian_l2r`; where a mask is 1."""
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(displacement, -1, 0), dtype=float))
    counts = None if mask is None else torch.from_numpy(mask == 1)
    return sd_log_jacobian_l2r(jacobian_determinant(field[None]), counts).item()


def target_errors(
    displacement: np.ndarray, fixed: np.ndarray, moving: np.ndarray, spacing: Sequence[float]
) -> np.ndarray:
    """``(N,)`` in mm: how far landmarks are from where the fixed ones are found, by cubic splines of the displacement.

    Args:
        displacement: ``(H, W, D, 3)`` in voxels.
        fixed: ``(N, 3)`` in voxels.
        moving: likewise.
        spacing: voxel size of the moving image in mm.
    """
    moved = np.stack([map_coordinates(component, fixed.T) for component in np.moveaxis(displacement, -1, 0)], axis=1)
    return np.linalg.norm((fixed + moved - moving) * np.asarray(spacing), axis=1)


def aggregated(cases: Sequence[Mapping[str, Metric]]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and "30", the robustness, of each metric over the pairs.

    Args:
        cases: metrics of each pair by name, the same ones of all pairs.
    """
    found = {}
    for name in cases[0]:
        means = np.array([case[name]["mean"] for case in cases])
        quantile = np.quantile(means, 0.7 if name in SMALL_IS_GOOD else 0.3)
        found[name] = {"mean": float(means.mean()), "std": float(means.std()), "30": float(quantile)}
    return found
