"""Normalized mutual information of two images: alike where one tells the other, whatever their contrasts."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from istn_monai.geometry.sampling import at_least_float32
from istn_monai.geometry.separable import in_full_precision

BINS = 32
MOST = 2**17  # voxels that are looked at: more change the histogram little, and it takes 32 numbers for each
TINY = 1e-8


def scaled(values: Tensor, weights: Tensor) -> Tensor:
    """``(B, V)`` to [0, 1] by the least and the largest that count, ``weights`` above 0."""
    counted = weights > 0
    low = torch.where(counted, values, torch.inf).amin(1, keepdim=True).detach()
    high = torch.where(counted, values, -torch.inf).amax(1, keepdim=True).detach()
    span = high - low
    unit = ((values - low) / torch.where(span > 0, span, 1.0)).clamp(0, 1)
    return torch.where(counted, unit, 0.0)


def bin_weights(values: Tensor, bins: int = BINS) -> Tensor:
    """``(B, V)`` in [0, 1] to their fractions ``(B, V, bins)`` in the four nearest bins, which sum to 1.

    Cubic B-splines (Mattes et al. 2003): smooth in the values, and wide enough that interpolation of an image, which
    mixes neighbors, hardly changes its histogram.
    """
    place = values.unsqueeze(-1) * (bins - 3) + 1  # a bin beside the first and the last
    d = (place - torch.arange(bins, device=values.device, dtype=values.dtype)).abs()
    near = 2 / 3 - d.square() * (1 - d / 2)
    return torch.where(d < 1, near, (2 - d).clamp_min(0) ** 3 / 6)


@lru_cache
def every(spatial_size: tuple[int, ...]) -> int:
    """Each so-and-so-many-th voxel is looked at: no divisor of a size, which would leave out whole planes.

    Examples:
        >>> every((64, 64)), every((128, 128, 128)), every((48, 64, 48))
        (1, 15, 1)
    """
    step = -(-math.prod(spatial_size) // MOST)
    coprime = (n for n in range(1, 2 * step) if all(math.gcd(n, size) == 1 for size in spatial_size))
    return min(coprime, key=lambda n: abs(n - step))


def entropy(fractions: Tensor) -> Tensor:
    """Of fractions ``(B, ...)`` that sum to 1, ``(B,)``, in nats."""
    return -(fractions * fractions.clamp_min(TINY).log()).flatten(1).sum(1)


def normalized_mutual_information(moving: Tensor, fixed: Tensor, counts: Tensor | None = None) -> Tensor:
    """``(H(m) + H(f)) / H(m, f) - 1`` by the joint histogram (Studholme et al. 1999).

    It is 0 for independent images, and larger the more each tells of the other; 1 if histograms had no windows.

    Args:
        moving: ``(B, C, *S)``, of any range.
        fixed: likewise; channels are compared one by one, and averaged.
        counts: ``(B, 1, *S)``, by which voxels count; None if all do.

    Returns:
        ``(B,)``; differentiable.

    Examples:
        >>> image = torch.rand(1, 1, 64, 64)
        >>> tells = normalized_mutual_information(1 - image**2, image).item()
        >>> tells > 0.2 > 0.1 > normalized_mutual_information(torch.rand(1, 1, 64, 64), image).item()
        True
    """
    moving, fixed = at_least_float32(moving), at_least_float32(fixed)
    batch, channels = moving.shape[:2]
    voxels, step = moving[0, 0].numel(), every(tuple(moving.shape[2:]))
    weights = moving.new_ones(batch, 1, voxels) if counts is None else counts.flatten(2).to(moving)
    weights = weights.expand(-1, channels, -1).flatten(0, 1)[:, ::step]
    sides = (scaled(image.flatten(2).flatten(0, 1)[:, ::step], weights) for image in (moving, fixed))
    one, other = map(bin_weights, sides)
    with in_full_precision(one):
        joint = (one * weights.unsqueeze(-1)).transpose(1, 2) @ other
    joint = joint / joint.sum((1, 2), keepdim=True).clamp_min(TINY)
    both = entropy(joint.sum(2)) + entropy(joint.sum(1))
    return ((both + TINY) / (entropy(joint) + TINY) - 1).view(batch, channels).mean(1)
