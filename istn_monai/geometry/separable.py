"""Linear maps of images that act along each axis by itself: one small matrix product for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def along_axes(images: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """``(B, C, *S)`` to ``(B, C, *T)`` by a matrix ``(T_i, S_i)`` for each axis, the last axis first.

    On CPUs much faster than a convolution, whose sums GPUs may round as TF32 besides.
    """
    images = images @ matrices[-1].T
    for axis in reversed(range(len(matrices) - 1)):
        before, after = images.shape[: axis + 2], images.shape[axis + 3 :]
        product = matrices[axis] @ images.reshape(math.prod(before), images.shape[axis + 2], math.prod(after))
        images = product.view(*before, len(matrices[axis]), *after)
    return images


def area_weights(size: int, stride: int, like: Tensor) -> Tensor:
    """``(ceil(size / stride), size)``: means over ``stride`` voxels about each ``stride``-th one, as far as there are.

    Examples:
        >>> area_weights(5, 2, torch.zeros(1))[1].tolist()
        [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    voxels = torch.arange(size, device=like.device, dtype=like.dtype)
    covered = ((stride + 1) / 2 - (voxels[::stride, None] - voxels).abs()).clamp(0, 1)
    return covered / covered.sum(1, keepdim=True)


def block_means(images: Tensor, stride: int) -> Tensor:
    """``(B, C, *S)`` at each ``stride``-th voxel, of which each is the mean of those around it (image pyramid)."""
    if stride == 1:
        return images
    return along_axes(images, [area_weights(size, stride, images) for size in images.shape[2:]])
