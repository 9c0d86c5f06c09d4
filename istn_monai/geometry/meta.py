"""The geometry that a MetaTensor carries."""

from __future__ import annotations

from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.grids import Grid


def affine_of(image: MetaTensor) -> Tensor:
    """The affine of a channel-first image as ``(D+1, D+1)`` float64."""
    return Grid.of(image).affine


def with_affine(image: Tensor, affine: Tensor, like: MetaTensor) -> MetaTensor:
    """An image with the metadata of another and an affine of its own."""
    result = MetaTensor(image, meta=dict(like.meta))
    result.affine = affine  # after meta, which holds the old one
    return result
