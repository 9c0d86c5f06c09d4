"""What a refinement minimizes: named terms with weights, that serve any grid, spacing and size of a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from istn_monai.geometry.sampling import sample_moved
from istn_monai.refine_weights import term_weights

WIDTH = 9  # voxels of a window of local correlation (VoxelMorph's)
FLAT = 1e-5  # variance of intensities in [0, 1] below which a window tells nothing
TINY = 1e-8


def window_means(images: Tensor, width: int) -> Tensor:
    """Means over windows of ``width`` voxels along each axis, as far as they lie in the image, ``(B, C, *S)``.

    A product with one banded matrix for each axis: on CPUs much faster than a convolution, whose sums GPUs may round
    as TF32 besides.
    """
    for axis in range(2, images.ndim):
        place = torch.arange(images.shape[axis], device=images.device)
        band = ((place[:, None] - place).abs() <= width // 2).to(images)
        means = band / band.sum(dim=1, keepdim=True)
        if axis == images.ndim - 1:
            images = images @ means.T
        else:
            images = (means @ images.flatten(axis + 1)).view(images.shape)
    return images


class LocalCorrelation:
    r"""Squared local correlation with a fixed image, averaged over windows (Avants et al. 2008; VoxelMorph).

    In each window :math:`(E[mf] - E[m] E[f])^2 / (\mathrm{Var}[m] \mathrm{Var}[f])`; 1 is a linear relation everywhere.

    Args:
        fixed: ``(B, C, *S)``, intensities in [0, 1] or so.
        width: of a window in voxels.

    Example:
        >>> image = torch.rand(1, 1, 32, 34)
        >>> correlation = LocalCorrelation(image)
        >>> correlation(1.0 - 0.5 * image).item() > 0.99 > 0.2 > correlation(torch.rand(1, 1, 32, 34)).item()
        True
    """

    def __init__(self, fixed: Tensor, width: int = WIDTH) -> None:
        self.fixed, self.width = fixed, width
        self.mean, square = window_means(torch.cat([fixed, fixed * fixed], 1), width).chunk(2, 1)
        self.variance = (square - self.mean * self.mean).clamp_min(FLAT)

    def __call__(self, moving: Tensor) -> Tensor:
        """``(B, C, *S)`` to ``(B,)``."""
        products = torch.cat([moving, moving * moving, moving * self.fixed], 1)
        mean, square, product = window_means(products, self.width).chunk(3, 1)
        variance = (square - mean * mean).clamp_min(FLAT)
        covariance = product - mean * self.mean
        return (covariance * covariance / (variance * self.variance)).flatten(1).mean(1)


def bending_energy(ddf: Tensor, spacing: Sequence[float], stride: int = 1) -> Tensor:
    """Mean squared second derivatives of a displacement in mm, in 1/mm^2, ``(B,)`` (Rueckert et al. 1999).

    Args:
        ddf: ``(B, D, *S)`` in voxels, at each ``stride``-th voxel.
        spacing: of a voxel in mm, along each axis.
        stride: see ``ddf``.
    """
    dims = len(spacing)
    displacement = ddf * ddf.new_tensor(spacing).view(-1, *[1] * dims)
    total = ddf.new_zeros(len(ddf))
    for i in range(dims):
        first = displacement.diff(dim=2 + i)
        for j in range(i, dims):
            second = first.diff(dim=2 + j) / (stride * stride * spacing[i] * spacing[j])
            if second.numel():
                total = total + (1.0 if i == j else 2.0) * second.square().flatten(2).mean(2).sum(1)
    return total


class PairObjective:
    """The objective of pairs in hand, a weighted sum of terms.

    - ``structures``: mean squared difference of the representations, as a fraction of their mean square: the paper's
      ``r`` (Sec. 2.3), whatever part of the grid the structures fill.
    - ``image``: 1 - :class:`LocalCorrelation` of the images.
    - ``bending``: :func:`bending_energy`.

    Args:
        weights: see :func:`istn_monai.refine_weights.term_weights`.
        moving: representation ``(B, K, *S)``.
        fixed: likewise.
        spacing: of the grid in mm.
        images: moving and fixed image ``(B, C, *S)``; None takes the representations for images.
    """

    def __init__(
        self,
        weights: str | Mapping[str, float],
        moving: Tensor,
        fixed: Tensor,
        spacing: Sequence[float],
        images: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.weights = term_weights(weights)
        self.spacing = spacing
        self.channels = moving.shape[1]
        with_images = images is not None and "image" in self.weights
        self.moving = torch.cat([moving, images[0]], 1) if images is not None and with_images else moving
        self.fixed = torch.cat([fixed, images[1]], 1) if images is not None and with_images else fixed
        self.own = slice(self.channels if with_images else 0, None)  # channels of the images
        size = (moving.square().flatten(1).mean(1) + fixed.square().flatten(1).mean(1)) / 2
        self.size = size.clamp_min(TINY)
        self.strided: dict[int, tuple[Tensor, LocalCorrelation | None]] = {}

    def target(self, stride: int) -> tuple[Tensor, LocalCorrelation | None]:
        """The fixed side at each ``stride``-th voxel, and the correlation with its image."""
        if stride not in self.strided:
            fixed = self.fixed[(..., *[slice(None, None, stride)] * (self.fixed.ndim - 2))]
            width = WIDTH // stride // 2 * 2 + 1
            correlation = LocalCorrelation(fixed[:, self.own], width) if "image" in self.weights else None
            self.strided[stride] = fixed, correlation
        return self.strided[stride]

    def terms(self, ddf: Tensor, stride: int = 1) -> dict[str, Tensor]:
        """The weighted terms by name, ``(B,)`` each, of a ddf ``(B, D, *S)`` known at each ``stride``-th voxel."""
        fixed, correlation = self.target(stride)
        warped = sample_moved(self.moving, ddf, stride)
        terms: dict[str, Tensor] = {}
        if "structures" in self.weights:
            difference = warped[:, : self.channels] - fixed[:, : self.channels]
            terms["structures"] = difference.square().flatten(1).mean(1) / self.size
        if correlation is not None:
            terms["image"] = 1.0 - correlation(warped[:, self.own])
        if "bending" in self.weights:
            terms["bending"] = bending_energy(ddf, self.spacing, stride)
        return {name: self.weights[name] * value for name, value in terms.items()}

    def __call__(self, ddf: Tensor, stride: int = 1) -> Tensor:
        """The sum of the terms, ``(B,)``."""
        return torch.stack(list(self.terms(ddf, stride).values())).sum(0)
