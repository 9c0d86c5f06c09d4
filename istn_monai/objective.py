"""What a refinement minimizes: named terms with weights, that serve any grid, spacing and size of a structure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from istn_monai.geometry.sampling import sample_moved
from istn_monai.guidance import Guidance, both_masks, checked_guidance, label_difference, landmark_difference
from istn_monai.mind import mind_ssc
from istn_monai.mutual_information import normalized_mutual_information
from istn_monai.refine_weights import IMAGE_TERMS, term_weights
from istn_monai.transforms.keys import POINT_KEYS

WIDTH = 9  # voxels of a window of local correlation (VoxelMorph's)
FLAT = 1e-5  # variance of intensities in [0, 1] below which a window tells nothing
TINY = 1e-8
Loss = Callable[..., Tensor]


def window_weights(spatial_size: Sequence[int], width: int, like: Tensor) -> list[Tensor]:
    """For each axis of n voxels the ``(n, n)`` matrix of means over windows, as far as they lie in the image."""
    places = [torch.arange(n, device=like.device) for n in spatial_size]
    bands = [((place[:, None] - place).abs() <= width // 2).to(like) for place in places]
    return [band / band.sum(dim=1, keepdim=True) for band in bands]


def window_means(images: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Means of ``(B, C, *S)`` over windows, by :func:`window_weights`.

    A product with one banded matrix for each axis: on CPUs much faster than a convolution, whose sums GPUs may round
    as TF32 besides.
    """
    for axis, means in enumerate(weights[:-1], 2):
        images = (means @ images.flatten(axis + 1)).view(images.shape)
    return images @ weights[-1].T


def strided(image: Tensor, stride: int) -> Tensor:
    """Each ``stride``-th voxel of ``(B, C, *S)``."""
    return image[(..., *[slice(None, None, stride)] * (image.ndim - 2))]


def counted_mean(values: Tensor, counts: Tensor | None = None) -> Tensor:
    """Means ``(B,)`` of ``(B, C, *S)`` over the voxels that count, by ``(B, 1, *S)``; over all for None."""
    if counts is None:
        return values.flatten(1).mean(1)
    return (values * counts).flatten(1).sum(1) / (counts.flatten(1).sum(1) * values.shape[1]).clamp_min(TINY)


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
        self.fixed, self.windows = fixed, window_weights(fixed.shape[2:], width, fixed)
        self.mean, square = window_means(torch.cat([fixed, fixed * fixed], 1), self.windows).chunk(2, 1)
        self.variance = (square - self.mean * self.mean).clamp_min(FLAT)

    def __call__(self, moving: Tensor, counts: Tensor | None = None) -> Tensor:
        """``(B, C, *S)`` to ``(B,)``; of the voxels alone that count, by ``(B, 1, *S)``, within windows too."""
        products = torch.cat([moving, moving * moving, moving * self.fixed], 1)
        if counts is None:
            mean, square, product = window_means(products, self.windows).chunk(3, 1)
            fixed_mean, fixed_variance = self.mean, self.variance
        else:
            parts = torch.cat([products, self.fixed, self.fixed * self.fixed], 1)
            share = window_means(counts, self.windows).clamp_min(TINY)
            mean, square, product, fixed_mean, fixed_square = (
                window_means(parts * counts, self.windows) / share
            ).chunk(5, 1)
            fixed_variance = (fixed_square - fixed_mean * fixed_mean).clamp_min(FLAT)
        variance = (square - mean * mean).clamp_min(FLAT)
        covariance = product - mean * fixed_mean
        return counted_mean(covariance * covariance / (variance * fixed_variance), counts)


def image_terms(
    names: Container[str],
    warped: Tensor,
    fixed: Tensor,
    counts: Tensor | None = None,
    correlation: LocalCorrelation | None = None,
) -> dict[str, Tensor]:
    """Of ``image``, ``mse`` and ``nmi`` those that are named, ``(B,)`` each, see :class:`PairObjective`.

    Args:
        names: of terms.
        warped: moving images ``(B, C, *S)``.
        fixed: likewise.
        counts: ``(B, 1, *S)``, by which voxels count; None if all do.
        correlation: with ``fixed``, where it is known already.
    """
    terms: dict[str, Tensor] = {}
    if "image" in names:
        terms["image"] = 1.0 - (correlation or LocalCorrelation(fixed))(warped, counts)
    if "mse" in names:
        terms["mse"] = counted_mean((warped - fixed).square(), counts)
    if "nmi" in names:
        terms["nmi"] = 1.0 - normalized_mutual_information(warped, fixed, counts)
    return terms


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


class Objective(Protocol):
    """What is minimized for the pairs in hand."""

    def __call__(self, ddf: Tensor, stride: int = 1) -> Tensor:
        """``(B,)`` of a ddf ``(B, D, *S)`` known at each ``stride``-th voxel."""

    def terms(self, ddf: Tensor, stride: int = 1) -> dict[str, Tensor]:
        """Likewise, of what it is the sum of, by name."""


class LossObjective:
    """Losses of MONAI's kind, which take one pair: ``similarity + weight * regularization``; without named terms.

    Args:
        moving: image or representation ``(B, K, *S)``.
        fixed: likewise.
        similarity: of two images ``(1, K, *S)``.
        regularization: of a ddf ``(1, D, *S)``; None for none.
        weight: its factor.
    """

    def __init__(
        self, moving: Tensor, fixed: Tensor, similarity: Loss, regularization: Loss | None, weight: float
    ) -> None:
        self.moving, self.fixed = moving, fixed
        self.similarity, self.regularization, self.weight = similarity, regularization, weight

    def terms(self, ddf: Tensor, stride: int = 1) -> dict[str, Tensor]:
        """None."""
        return {}

    def __call__(self, ddf: Tensor, stride: int = 1) -> Tensor:
        """See :class:`Objective`."""
        sides = sample_moved(self.moving, ddf, stride).split(1), strided(self.fixed, stride).split(1)
        return torch.stack([self.of_pair(*pair) for pair in zip(ddf.split(1), *sides, strict=True)])

    def of_pair(self, ddf: Tensor, warped: Tensor, fixed: Tensor) -> Tensor:
        """Of one pair, a scalar."""
        value = self.similarity(warped, fixed)
        return value if self.regularization is None else value + self.weight * self.regularization(ddf)


class PairObjective:
    """The objective of pairs in hand, a weighted sum of terms.

    - ``structures``: mean squared difference of the representations, as a fraction of their mean square: the paper's
      ``r`` (Sec. 2.3), whatever part of the grid the structures fill.
    - ``image``: 1 - :class:`LocalCorrelation` of the images.
    - ``mse``: mean squared difference of the images.
    - ``nmi``: 1 - :func:`istn_monai.mutual_information.normalized_mutual_information`, for different contrasts.
    - ``mind``: mean squared difference of :func:`istn_monai.mind.mind_ssc` of the images, for different contrasts.
    - ``bending``: :func:`bending_energy`.
    - ``labels``: :func:`label_difference` of labels of the pair; of one side alone, from the other's representation.
    - ``landmarks``: :func:`landmark_difference`.

    Where a mask is 0, structures and image do not count; what lies there may have any finite value.

    Args:
        weights: see :func:`istn_monai.refine_weights.term_weights`.
        moving: representation ``(B, K, *S)``.
        fixed: likewise.
        spacing: of the grid in mm.
        images: moving and fixed image ``(B, C, *S)``; None takes the representations for images.
        guidance: labels, landmarks and masks, see :mod:`istn_monai.guidance`.

    Raises:
        ValueError: if a term has a weight and the pair has nothing for it.
    """

    def __init__(
        self,
        weights: str | Mapping[str, float],
        moving: Tensor,
        fixed: Tensor,
        spacing: Sequence[float],
        images: Sequence[Tensor] | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        self.weights = term_weights(weights)
        self.spacing = spacing
        guidance = checked_guidance(guidance or {}, self.weights, moving)
        self.points = [guidance[name] for name in POINT_KEYS] if "landmarks" in self.weights else []
        sides = {"structures": (moving, fixed)}
        if images is not None and any(name in self.weights for name in IMAGE_TERMS):
            sides["image"] = (images[0], images[1])
        if "mind" in self.weights:
            sides["mind"] = tuple(map(mind_ssc, sides["structures"] if images is None else images[:2]))
        if "labels" in self.weights:
            sides["labels"] = (guidance.get("moving_label", moving), guidance.get("fixed_label", fixed))
        if (both := both_masks(guidance, moving)) is not None:
            sides["mask"] = both
        self.channels = [both[0].shape[1] for both in sides.values()]
        self.names = list(sides)
        self.moving, self.fixed = (torch.cat([both[side] for both in sides.values()], 1) for side in (0, 1))
        masks = sides.get("mask", (None, None))
        size = sum(counted_mean(side.square(), mask) for side, mask in zip((moving, fixed), masks, strict=True)) / 2
        self.size = size.clamp_min(TINY)
        self.targets: dict[int, tuple[dict[str, Tensor], LocalCorrelation | None]] = {}

    def parts(self, joined: Tensor) -> dict[str, Tensor]:
        """What was joined along the channels, by name."""
        return dict(zip(self.names, joined.split(self.channels, 1), strict=True))

    def target(self, stride: int) -> tuple[dict[str, Tensor], LocalCorrelation | None]:
        """The fixed side at each ``stride``-th voxel, and the correlation with its image."""
        if stride not in self.targets:
            fixed = self.parts(strided(self.fixed, stride))
            width = max(3, WIDTH // stride // 2 * 2 + 1)
            image = fixed.get("image", fixed["structures"])
            self.targets[stride] = fixed, LocalCorrelation(image, width) if "image" in self.weights else None
        return self.targets[stride]

    def terms(self, ddf: Tensor, stride: int = 1) -> dict[str, Tensor]:
        """The weighted terms by name, ``(B,)`` each, of a ddf ``(B, D, *S)`` known at each ``stride``-th voxel."""
        fixed, correlation = self.target(stride)
        warped = self.parts(sample_moved(self.moving, ddf, stride))
        # which voxels count is no reason to move: the terms would fall if the masks were moved apart
        counts = warped["mask"].detach() * fixed["mask"] if "mask" in fixed else None
        terms: dict[str, Tensor] = {}
        if "structures" in self.weights:
            difference = warped["structures"] - fixed["structures"]
            terms["structures"] = counted_mean(difference.square(), counts) / self.size
        moving_image, fixed_image = (side.get("image", side["structures"]) for side in (warped, fixed))
        terms |= image_terms(self.weights, moving_image, fixed_image, counts, correlation)
        if "mind" in self.weights:
            terms["mind"] = counted_mean((warped["mind"] - fixed["mind"]).square(), counts)
        if "bending" in self.weights:
            terms["bending"] = bending_energy(ddf, self.spacing, stride)
        if "labels" in self.weights:
            terms["labels"] = label_difference(warped["labels"], fixed["labels"])
        if "landmarks" in self.weights:
            terms["landmarks"] = landmark_difference(ddf, self.points, self.spacing, stride)
        return {name: self.weights[name] * value for name, value in terms.items()}

    def __call__(self, ddf: Tensor, stride: int = 1) -> Tensor:
        """The sum of the terms, ``(B,)``."""
        return torch.stack(list(self.terms(ddf, stride).values())).sum(0)
