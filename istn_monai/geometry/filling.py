"""What an image holds where a mask says that it does not count."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def filled(image: Tensor, known: Tensor) -> Tensor:
    """An image whose unknown voxels go on smoothly from those that are known, which alone count.

    From coarse to fine: a voxel that nothing near is known of has the mean of a larger neighborhood, interpolated
    linearly (push-pull, Gortler et al. 1996). A hole of zeros would be an edge that a network sees.

    Args:
        image: ``(C, *S)``; where it is not known it may have any value, also NaN.
        known: ``(1, *S)`` bool, true somewhere.

    Returns:
        ``(C, *S)``, in the image's dtype.

    Examples:
        >>> filled(torch.tensor([[1.0, torch.nan, torch.nan, 3.0]]), torch.tensor([[True, False, False, True]]))
        tensor([[1.0000, 1.5000, 2.5000, 3.0000]])
    """
    if known.all():
        return image
    if not known.any():
        raise ValueError("an image of which nothing is known cannot be filled: the mask is empty")
    values = torch.where(known, image, 0.0).to(torch.promote_types(image.dtype, torch.float32))
    return torch.where(known, image, pulled(values[None], known[None].to(values.dtype))[0].to(image.dtype))


def pulled(values: Tensor, weights: Tensor) -> Tensor:
    """``(1, C, *S)`` where the weights ``(1, 1, *S)`` are above 0, and interpolated from coarser levels elsewhere."""
    if (weights > 0).all():
        return values
    size = values.shape[2:]
    half = [(n + 1) // 2 for n in size]
    weight = nn.functional.interpolate(weights, half, mode="area")
    means = nn.functional.interpolate(values * weights, half, mode="area") / weight.clamp_min(1e-12)
    coarse = pulled(means, (weight > 0).to(weight.dtype))
    return torch.where(weights > 0, values, nn.functional.interpolate(coarse, size, mode=MODES[len(size)]))
