"""Squared local correlation of two images (Avants et al. 2008)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from istn_monai.geometry.sampling import at_least_float32
from istn_monai.geometry.separable import along_axes

WIDTH = 9  # voxels of a window of local correlation (VoxelMorph's)
FLAT = 1e-5  # variance of intensities in [0, 1] below which a window tells nothing
TINY = 1e-8


def window_weights(spatial_size: Sequence[int], width: int, like: Tensor, every: int = 1) -> list[Tensor]:
    """For each axis of n voxels the matrix ``(ceil(n / every), n)`` of means over windows, as far as they lie in it.

    Args:
        spatial_size: ``*S``.
        width: of a window in voxels.
        like: for device and dtype.
        every: there is a window about each ``every``-th voxel.
    """
    places = [torch.arange(n, device=like.device) for n in spatial_size]
    bands = [((place[::every, None] - place).abs() <= width // 2).to(like) for place in places]
    return [band / band.sum(dim=1, keepdim=True) for band in bands]


def strided(image: Tensor, stride: int) -> Tensor:
    """Each ``stride``-th voxel of ``(B, C, *S)``."""
    return image[(..., *[slice(None, None, stride)] * (image.ndim - 2))]


def counted_mean(values: Tensor, counts: Tensor | None = None) -> Tensor:
    """Means ``(B,)`` of ``(B, C, *S)`` over the voxels that count, by ``(B, 1, *S)``; over all for None."""
    if counts is None:
        return values.flatten(1).mean(1)
    return (values * counts).flatten(1).sum(1) / (counts.flatten(1).sum(1) * values.shape[1]).clamp_min(TINY)


class Moments(torch.autograd.Function):
    """Means of a moving image, its square and its product with a fixed one, over windows; the gradient by hand.

    ``(B, C, *S)`` each to three of ``(B, C, *T)``, by a matrix ``(T_i, S_i)`` for each axis.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, moving: Tensor, fixed: Tensor, windows: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The three means."""
        ctx.save_for_backward(moving, fixed)  # here, since setup_context would cost 50 us a call
        ctx.windows = windows
        parts = torch.cat([moving, moving * moving, moving * fixed], 1)
        return along_axes(parts, windows).tensor_split(3, 1)  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, mean: Tensor, square: Tensor, product: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        """Of both images."""
        moving, fixed = ctx.saved_tensors
        spread = along_axes(torch.cat([mean, square, product], 1), [window.T for window in ctx.windows])
        mean, square, product = spread.tensor_split(3, 1)
        of_fixed = product * moving if ctx.needs_input_grad[1] else None
        return torch.addcmul(mean, square, moving, value=2).addcmul_(product, fixed), of_fixed, None


class LocalCorrelation:
    r"""Squared local correlation with a fixed image, averaged over windows (Avants et al. 2008; VoxelMorph).

    In each window :math:`(E[mf] - E[m] E[f])^2 / (\mathrm{Var}[m] \mathrm{Var}[f])`; 1 is a linear relation everywhere.

    Args:
        fixed: ``(B, C, *S)``, intensities in [0, 1] or so.
        width: of a window in voxels.
        every: there is a window about each ``every``-th voxel along each axis; windows overlap.

    Examples:
        >>> image = torch.rand(1, 1, 32, 34)
        >>> correlation = LocalCorrelation(image)
        >>> correlation(1.0 - 0.5 * image).item() > 0.99 > 0.2 > correlation(torch.rand(1, 1, 32, 34)).item()
        True
    """

    def __init__(self, fixed: Tensor, width: int = WIDTH, every: int = 1) -> None:
        fixed = at_least_float32(fixed)
        self.fixed, self.every = fixed, every
        self.windows = window_weights(fixed.shape[2:], width, fixed, every)
        self.mean, square = along_axes(torch.cat([fixed, fixed * fixed], 1), self.windows).chunk(2, 1)
        self.variance = (square - self.mean * self.mean).clamp_min(FLAT)

    def __call__(self, moving: Tensor, counts: Tensor | None = None) -> Tensor:
        """``(B, C, *S)`` to ``(B,)``; of the voxels alone that count, by ``(B, 1, *S)``, within windows too."""
        moving = at_least_float32(moving)
        if counts is None:
            mean, square, product = Moments.apply(moving, self.fixed, self.windows)
            fixed_mean, fixed_variance = self.mean, self.variance
        else:
            parts = torch.cat([moving, moving * moving, moving * self.fixed, self.fixed, self.fixed * self.fixed], 1)
            inside = along_axes(counts, self.windows).clamp_min(TINY)
            mean, square, product, fixed_mean, fixed_square = (along_axes(parts * counts, self.windows) / inside).chunk(
                5, 1
            )
            fixed_variance = (fixed_square - fixed_mean * fixed_mean).clamp_min(FLAT)
        variance = (square - mean * mean).clamp_min(FLAT)
        covariance = product - mean * fixed_mean
        counts = None if counts is None else strided(counts, self.every)
        return counted_mean(covariance * covariance / (variance * fixed_variance), counts)
