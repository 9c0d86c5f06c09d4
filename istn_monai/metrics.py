"""Metrics of a registration: regularity of the displacement field, overlap and surface distances of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from torch import Tensor


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


def folding_fraction(ddf: Tensor) -> Tensor:
    """``(B,)``: the fraction of voxels whose Jacobian determinant is 0 or less."""
    return (jacobian_determinant(ddf) <= 0).double().flatten(1).mean(1)


def sd_log_jacobian(ddf: Tensor, floor: float = 1e-6) -> Tensor:
    """``(B,)``: SDlogJ, the standard deviation of the log of the Jacobian determinant.

    The true one; determinants below ``floor`` count as ``floor``.
    """
    return jacobian_determinant(ddf).clamp(min=floor).log().flatten(1).std(1)


def sd_log_jacobian_l2r(ddf: Tensor) -> Tensor:
    """``(B,)``: what the Learn2Reg challenge's script calls SDlogJ, ``std(log(clip(J + 3, 1e-9, 1e9)))``.

    To compare with published figures alone: the 3 that it adds hides folding and shrinks the figure about fourfold.
    Like the script it leaves out two voxels at each border; see :func:`sd_log_jacobian` for the true one.
    """
    inside = (slice(None), *[slice(2, -2)] * (ddf.ndim - 2))
    return (jacobian_determinant(ddf)[inside] + 3).clamp(1e-9, 1e9).log().flatten(1).std(1, correction=0)


def overlap(warped: Tensor, fixed: Tensor, spacing: Sequence[float]) -> dict[str, float]:
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
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
