"""What a refinement minimizes: named terms with weights, that serve any grid, spacing and size of a structure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from istn_monai.geometry.bending import bending_energy
from istn_monai.geometry.sampling import compose, sample_moved, warp, warp_part
from istn_monai.geometry.separable import block_means
from istn_monai.guidance import Guidance, both_masks, checked_guidance, label_difference, landmark_difference
from istn_monai.local_correlation import LocalCorrelation, counted_mean, strided
from istn_monai.mind import mind_ssc
from istn_monai.mutual_information import normalized_mutual_information
from istn_monai.refine_weights import IMAGE_TERMS, term_weights
from istn_monai.transforms.keys import POINT_KEYS
from istn_monai.window import Window, boxes_of, window_of

TINY = 1e-8
WINDOWED = {"structures", "image", "bending", "landmarks"}  # terms that need nothing from beyond the fixed image
UNMASKED = {"labels", "mask"}  # parts in which all counts
WINDOW, EVERY = 5, 2  # voxels of a window of local correlation, at any resolution; there is one about every second
Loss = Callable[..., Tensor]


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


class Resolution(NamedTuple):
    """A pair at each so-and-so-many-th voxel.

    Attributes:
        moving: all that is warped, ``(B, C, *S)``.
        window: where it is compared.
        fixed: what it is compared with there, by name.
        correlation: with the fixed image, if that counts.
    """

    moving: Tensor
    window: Window
    fixed: dict[str, Tensor]
    correlation: LocalCorrelation | None


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

    Where a mask is 0, structures and image do not count; what lies there may have any finite value, but for ``mind``,
    whose patches reach across a mask's edge. Nor do they beyond a box that holds all that the fixed image shows:
    nothing is known there, and it need not be sampled.

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
        windowed = images is not None and set(self.weights) <= WINDOWED
        images = (moving, fixed) if images is None else (images[0], images[1])
        sides = {}
        if "structures" in self.weights or not set(self.weights) & {*IMAGE_TERMS, "labels"}:
            sides["structures"] = (moving, fixed)
        if any(name in self.weights for name in IMAGE_TERMS):
            sides["image"] = images
        if "mind" in self.weights:
            sides["mind"] = (mind_ssc(images[0]), mind_ssc(images[1]))
        if "labels" in self.weights:
            sides["labels"] = (guidance.get("moving_label", moving), guidance.get("fixed_label", fixed))
        if (both := both_masks(guidance, moving)) is not None:
            sides["mask"] = both
        self.channels = [both[0].shape[1] for both in sides.values()]
        self.names = list(sides)
        self.moving, self.fixed = (torch.cat([both[side] for both in sides.values()], 1) for side in (0, 1))
        masks = sides.get("mask", (None, None))
        whole = [(0, n - 1) for n in fixed.shape[2:]]
        self.boxes = boxes_of(images[1], fixed) if windowed and "mask" not in sides else [whole] * len(fixed)
        size = sum(counted_mean(side.square(), mask) for side, mask in zip((moving, fixed), masks, strict=True)) / 2
        self.size = size.clamp_min(TINY)
        self.resolutions: dict[int, Resolution] = {}
        self.outer: Tensor | None = None

    def parts(self, joined: Tensor) -> dict[str, Tensor]:
        """What was joined along the channels, by name."""
        return dict(zip(self.names, joined.split(self.channels, 1), strict=True))

    def at(self, stride: int) -> Resolution:
        """Both sides at each ``stride``-th voxel."""
        if stride not in self.resolutions:
            moving, fixed = (self.reduced(joined, stride) for joined in (self.moving, self.fixed))
            window = window_of(self.boxes, stride, EVERY, fixed)
            parts = self.parts_that_count(fixed[(..., *window.slices)].contiguous())
            correlation = LocalCorrelation(parts["image"], WINDOW, EVERY) if "image" in self.weights else None
            self.resolutions[stride] = Resolution(moving, window, parts, correlation)
        return self.resolutions[stride]

    def after(self, ddf: Tensor, stride: int) -> PairObjective:
        """The objective of what moves fixed points before a ddf does, known at each ``stride``-th voxel: of the moving
        side as that ddf warped it, at this stride alone."""
        own = self.at(stride)
        other = copy.copy(self)
        other.outer = ddf
        other.resolutions = {stride: own._replace(moving=warp(own.moving, ddf / stride))}
        return other

    def reduced(self, joined: Tensor, stride: int) -> Tensor:
        """One side, area-averaged at each ``stride``-th voxel; with zeros in the place of what a mask leaves out."""
        parts = self.parts(joined)
        if "mask" in parts:
            joined = torch.cat([part if name in UNMASKED else part * parts["mask"] for name, part in parts.items()], 1)
        return block_means(joined, stride)

    def parts_that_count(self, joined: Tensor) -> dict[str, Tensor]:
        """What was joined, averaged and warped, by name: as means over what a mask has, where there is one."""
        parts = self.parts(joined)
        if "mask" not in parts:
            return parts
        inside = parts["mask"].clamp_min(TINY)
        return {name: part if name in UNMASKED else part / inside for name, part in parts.items()}

    def terms(self, ddf: Tensor, stride: int = 1, bending: Tensor | None = None) -> dict[str, Tensor]:
        """The weighted terms by name, ``(B,)`` each, of a ddf ``(B, D, *S)`` known at each ``stride``-th voxel.

        ``bending`` ``(B,)`` is its bending energy, where that is known already.
        """
        moving, window, fixed, correlation = self.at(stride)
        moved = ddf[(..., *window.slices)] / stride
        warped = self.parts_that_count(warp_part(moving, moved, [axis.start for axis in window.slices]))
        # which voxels count is no reason to move: the terms would fall if the masks were moved apart
        counts = warped["mask"].detach() * fixed["mask"] if "mask" in fixed else window.counts
        terms: dict[str, Tensor] = {}
        if "structures" in self.weights:
            difference = warped["structures"] - fixed["structures"]
            terms["structures"] = counted_mean(difference.square(), counts) * window.share / self.size
        if "image" in fixed:
            terms |= image_terms(self.weights, warped["image"], fixed["image"], counts, correlation)
        if "image" in terms:  # no correlation beyond the window
            terms["image"] = 1 - window.share * (1 - terms["image"])
        if "mind" in self.weights:
            terms["mind"] = counted_mean((warped["mind"] - fixed["mind"]).square(), counts)
        if "bending" in self.weights:
            terms["bending"] = bending_energy(ddf, self.spacing, stride) if bending is None else bending
        if "labels" in self.weights:
            terms["labels"] = label_difference(warped["labels"], fixed["labels"])
        if "landmarks" in self.weights:
            whole = ddf if self.outer is None else compose(self.outer, ddf, stride)
            terms["landmarks"] = landmark_difference(whole, self.points, self.spacing, stride)
        return {name: self.weights[name] * value for name, value in terms.items()}

    def __call__(self, ddf: Tensor, stride: int = 1, bending: Tensor | None = None) -> Tensor:
        """The sum of the terms, ``(B,)``."""
        return torch.stack(list(self.terms(ddf, stride, bending).values())).sum(0)
