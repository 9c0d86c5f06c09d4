"""Linear maps of images that act along each axis by itself: one small matrix product for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

SAME_LINE = 2e-5  # voxels by which points of a line may leave it: float32 rounds places in large images by as much


def along_axes(images: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """``(B, C, *S)`` to ``(B, C, *T)`` by a matrix ``(T_i, S_i)`` for each axis, the last axis first.

    On CPUs much faster than a convolution, whose sums GPUs may round as TF32 besides.
    """
    with in_full_precision(images):
        images = images @ matrices[-1].T
        for axis in reversed(range(len(matrices) - 1)):
            before, after = images.shape[: axis + 2], images.shape[axis + 3 :]
            product = matrices[axis] @ images.reshape(math.prod(before), images.shape[axis + 2], math.prod(after))
            images = product.view(*before, len(matrices[axis]), *after)
        return images


def in_full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Products of tensors on this one's device in the dtype that they have, also under autocast.

    In half precision a variance ``E[x^2] - E[x]^2`` is what rounding leaves, and points are a third of a voxel off.
    """
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


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


def axes_of(matrix: Tensor, spatial_size: Sequence[int]) -> list[int] | None:
    """Which axis a map ``(D+1, D+1)`` of a grid's voxels takes each of its axes to; None if it takes one to several.

    Examples:
        >>> axes_of(torch.tensor([[0.0, -2.0, 3.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), (5, 6))
        [1, 0]
        >>> axes_of(torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), (5, 6)) is None
        True
    """
    linear = matrix[:-1, :-1].double().abs()
    axes: list[int] = linear.argmax(0).tolist()
    if sorted(axes) != list(range(len(axes))):
        return None
    across = linear.clone()
    across[axes, range(len(axes))] = 0
    leaves = across @ (across.new_tensor(spatial_size) - 1)
    return axes if leaves.max() <= SAME_LINE else None


def linear_weights(places: Tensor, size: int) -> Tensor:
    """``(T, size)``: of linear interpolation at places ``(T,)`` in voxels of a line of so many, with zeros beyond it.

    Examples:
        >>> linear_weights(torch.tensor([0.25, -0.5]), 3).tolist()
        [[0.75, 0.25, 0.0], [0.5, 0.0, 0.0]]
    """
    return (1 - (places[:, None] - torch.arange(size, device=places.device)).abs()).clamp(min=0)


def resampled_along_axes(
    image: Tensor,
    matrix: Tensor,
    axes: Sequence[int],
    spatial_size: Sequence[int],
    border: bool,
    samples: Sequence[int],
) -> Tensor:
    """:func:`istn_monai.geometry.sampling.resample` for a map whose :func:`axes_of` are known.

    Args:
        image: ``(B, C, *S)``, all finite: a product spreads what is not along its line.
        matrix: ``(D+1, D+1)``.
        axes: its axes.
        spatial_size: size of the new grid.
        border: whether the border goes on beyond the image, where else zeros are.
        samples: along each axis, how many in a voxel of the new grid are averaged.
    """
    weights = []
    for axis, (own, size, number) in enumerate(zip(axes, spatial_size, samples, strict=True)):
        in_voxels = (torch.arange(size * number, dtype=torch.float64) + 0.5) / number - 0.5
        places = matrix[own, axis].item() * in_voxels + matrix[own, -1].item()
        last = image.shape[2 + own] - 1
        if border or last == 0:  # a single voxel goes on, as grid_sample has it
            places = places.clamp(0, last)
        weights.append(linear_weights(places, last + 1).unflatten(0, (size, number)).mean(1).to(image))
    return along_axes(image.permute(0, 1, *(2 + own for own in axes)), weights)
