"""The geometry that a MetaTensor carries."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.grids import Grid


def affine_of(image: MetaTensor) -> Tensor:
    """The affine of a channel-first image as ``(D+1, D+1)`` float64."""
    return Grid.of(image).affine


def with_affine(image: Tensor, affine: Tensor, like: MetaTensor) -> MetaTensor:
    """An image with the metadata of another and an affine of its own.

    Where it lies as the other does, voxel by voxel, MONAI's records of what was done before stay, so that this can be
    inverted.
    """
    result = MetaTensor(image, meta=dict(like.meta))
    result.affine = affine  # after meta, which holds the old one
    if result.shape[1:] == like.shape[1:] and torch.equal(affine_of(result), affine_of(like)):
        result.applied_operations = list(like.applied_operations)
        for operation in like.pending_operations:
            result.push_pending_operation(operation)
    return result


def values_of(image: Any) -> Tensor:
    """The values of a MetaTensor, a tensor or an array."""
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)


def in_place_of(values: Tensor, image: Any) -> Tensor:
    """New values of an image, with its metadata where it has any."""
    return with_affine(values, affine_of(image), image) if isinstance(image, MetaTensor) else values
