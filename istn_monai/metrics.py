"""Metrics of a registration: regularity of the displacement field, overlap and surface distances of labels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from torch import Tensor

from istn_monai.geometry.grids import within
from istn_monai.geometry.sampling import column, sample, voxel_grid, warp
from istn_monai.objective import LocalCorrelation

Metrics = dict[str, float]
#: what :func:`field_metrics` gives, by these names in reports, tables, QA and replies
FIELD_METRICS = ("displacement_mm", "max_displacement_mm", "displacement", "folding", "sdlogj", "sdlogj_l2r")


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of the Jacobian of ``x -> x + ddf(x)``, by central differences (one-sided at the border).

    Args:
        ddf: ``(B, D, *S)`` in voxels. The determinant is the same in mm, whatever the spacing.

    Returns:
        ``(B, *S)``; 1 for the identity, 0 or less where the field folds.
    """
    dims = ddf.ndim - 2
    gradients = torch.gradient(ddf.double(), dim=list(range(2, ddf.ndim)))
    jacobian = torch.stack(gradients, dim=-1).movedim(1, -2) + torch.eye(dims, dtype=torch.float64, device=ddf.device)
    return torch.linalg.det(jacobian)


def folding_fraction(determinant: Tensor) -> Tensor:
    """``(B,)``: the fraction of voxels that fold.

    Args:
        determinant: ``(B, *S)``, what :func:`jacobian_determinant` makes of a ddf; 0 or less is a fold.
    """
    return (determinant <= 0).double().flatten(1).mean(1)


def sd_log_jacobian(determinant: Tensor, floor: float = 1e-6) -> Tensor:
    """``(B,)``: SDlogJ, the standard deviation of the log of the Jacobian determinant; the true one.

    Args:
        determinant: ``(B, *S)``, what :func:`jacobian_determinant` makes of a ddf.
        floor: determinants below it count as it.
    """
    return determinant.clamp(min=floor).log().flatten(1).std(1)


def sd_log_jacobian_l2r(determinant: Tensor, counts: Tensor | None = None) -> Tensor:
    """``(B,)``: what the Learn2Reg challenge's script calls SDlogJ, ``std(log(clip(J + 3, 1e-9, 1e9)))``.

    To compare with published values alone: the 3 that it adds hides folding and shrinks the value about fourfold.
    Like the script it leaves out two voxels at each border; see :func:`sd_log_jacobian` for the true one.

    Args:
        determinant: ``(B, *S)``, what :func:`jacobian_determinant` makes of a ddf.
        counts: ``(*S)`` bool, the voxels that count; None for all.

    Returns:
        nan for a grid of fewer than 5 voxels along an axis, or if no voxel counts.
    """
    box = [slice(2, -2)] * (determinant.ndim - 1)
    inside = determinant[(slice(None), *box)].flatten(1)
    inside = inside if counts is None else inside[:, counts[tuple(box)].flatten()]
    if not inside.shape[1]:
        return determinant.new_full((len(determinant),), torch.nan)
    return (inside + 3).clamp(1e-9, 1e9).log().std(1, correction=0)


def field_metrics(ddf: Tensor, spacing: Sequence[float], determinant: Tensor | None = None) -> Metrics:
    """How far a displacement field moves points, and how regular it is.

    Args:
        ddf: ``(D, *S)`` in voxels, of one pair.
        spacing: voxel size in mm along each axis.
        determinant: ``(*S)``, the field's Jacobian determinant where it is known already; None computes it.

    Returns:
        By the names in ``FIELD_METRICS``: ``displacement_mm`` is the 99th percentile of the lengths of all
        displacements, ``max_displacement_mm`` the longest, both in mm; ``displacement`` is the percentile as a fraction
        of the grid's shortest side; ``folding`` the fraction of voxels that fold; ``sdlogj`` see
        :func:`sd_log_jacobian`; ``sdlogj_l2r`` see :func:`sd_log_jacobian_l2r`.
    """
    lengths = (ddf * column(ddf.new_tensor(list(spacing)), ddf.ndim)).norm(dim=0).flatten()
    far = lengths.kthvalue(max(1, round(0.99 * lengths.numel()))).values.item()
    shortest = min(size * mm for size, mm in zip(ddf.shape[1:], spacing, strict=True))
    known = jacobian_determinant(ddf[None]) if determinant is None else determinant[None]
    values = (far, lengths.max(), far / shortest, folding_fraction(known), sd_log_jacobian(known))
    numbers = map(float, (*values, sd_log_jacobian_l2r(known)))
    return dict(zip(FIELD_METRICS, numbers, strict=True))


def image_metrics(moving: Tensor, fixed: Tensor, ddf: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Metrics:
    """``lncc``: squared local correlation of the images of one pair, see :class:`LocalCorrelation`, where they count.

    Args:
        moving: ``(1, C, *S)`` in [0, 1], not warped.
        fixed: likewise.
        ddf: ``(1, D, *S)`` in voxels.
        masks: of both, ``(1, 1, *S)`` of 0 and 1; None if all counts.
    """
    counts = None if masks is None else warp(masks[0], ddf) * masks[1]
    return {"lncc": LocalCorrelation(fixed)(warp(moving, ddf), counts).item()}


def inverse_consistency(
    ddf: Tensor, back: Tensor, spacing: Sequence[float], structures: Tensor | None = None
) -> Metrics:
    """Distance in mm of points from where they come back to, there by one field, back by the other (Christensen and
    Johnson 2001): ``inverse_consistency`` is its mean, ``inverse_consistency_p99`` the 99th percentile.

    Args:
        ddf: ``(1, D, *S)`` in voxels, of moving registered to fixed.
        back: likewise, of fixed registered to moving, on the same grid.
        spacing: voxel size in mm along each axis.
        structures: ``(*S)``, how much of a structure of the fixed image is at a voxel; with it the mean there is
            ``inverse_consistency_structures``.

    Returns:
        Of the voxels that do not leave the grid; nan if all do.
    """
    points = voxel_grid(ddf.shape[2:], ddf) + ddf
    aside = (ddf + sample(back, points)) * column(ddf.new_tensor(list(spacing)), ddf.ndim - 1)
    inside = within(points, ddf.shape[2:])[0, 0]
    distances = aside[0].norm(dim=0)[inside]
    far = distances.kthvalue(max(1, round(0.99 * len(distances)))).values.item() if len(distances) else float("nan")
    found = {"inverse_consistency": distances.mean().item(), "inverse_consistency_p99": far}
    if structures is not None:
        weights = structures.to(distances)[inside].clamp_min(0)
        found["inverse_consistency_structures"] = ((weights * distances).sum() / weights.sum()).item()
    return found


def overlap(warped: Tensor, fixed: Tensor, spacing: Sequence[float]) -> Metrics:
    """Dice, and average and 95 % Hausdorff surface distance in mm, of two masks ``(*S)`` on one grid.

    With one mask empty Dice is 0 and the distances are nan; with both, all are nan: there is nothing to compare. The
    average surface distance is the symmetric one.
    """
    warped, fixed = warped.bool(), fixed.bool()
    result = dict.fromkeys(("dice", "asd", "hd95"), float("nan"))
    if warped.any() or fixed.any():
        box = box_of(warped | fixed)  # surface distances need no more, and are faster
        masks = warped[box][None, None].float(), fixed[box][None, None].float()
        result["dice"] = compute_dice(*masks, ignore_empty=False).item()
    if warped.any() and fixed.any():
        options = {"include_background": True, "spacing": list(spacing)}
        with warnings.catch_warnings():  # MONAI's own functions give the argument that it gives up
            warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
            result["asd"] = compute_average_surface_distance(*masks, symmetric=True, **options).item()
            result["hd95"] = compute_hausdorff_distance(*masks, percentile=95, **options).item()
    return result


def box_of(mask: Tensor, margin: int = 2) -> tuple[slice, ...]:
    """The box around a mask ``(*S)`` that is not empty, with a margin."""
    where = mask.nonzero()
    low, high = where.amin(0) - margin, where.amax(0) + margin + 1
    return tuple(slice(max(int(a), 0), int(b)) for a, b in zip(low, high, strict=True))


def without_nan(value: Any) -> Any:
    """nan as None, which JSON has."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
