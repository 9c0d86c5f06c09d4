"""How far two images lie apart, estimated from their gradients alone: features that an STN need not learn.

In a window, the displacement d that best explains the difference of two images to first order, f - m = d . grad, is a
ratio of sums over the window (Lucas and Kanade 1981; Thirion's demons, 1998), here for each axis by itself. It has the
size and the direction of a displacement, which convolutions are slow to learn from examples, and instance norms take
away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from istn_monai.geometry.sampling import at_least_float32
from istn_monai.geometry.separable import along_axes

SCALES = 3  # finest is so many halvings before the level that reads them
REACH = 2.0  # voxels of a scale beyond which a gradient tells nothing
FLAT = 1e-3  # of the largest squared gradient, below which there is none
TINY = 1e-8


def neighbors(image: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The voxels before and after each one along an axis; beyond the border the border goes on."""
    last = image.shape[axis] - 1
    before = torch.cat([image.narrow(axis, 0, 1), image.narrow(axis, 0, last)], dim=axis)
    after = torch.cat([image.narrow(axis, 1, last), image.narrow(axis, last, 1)], dim=axis)
    return before, after


def binomial_weights(size: int, stride: int, like: Tensor) -> Tensor:
    """``(ceil(size / stride), size)``: weights 1, 2, 1 about each ``stride``-th voxel; beyond the border it goes on.

    Examples:
        >>> binomial_weights(4, 2, torch.zeros(1)).tolist()
        [[0.75, 0.25, 0.0, 0.0], [0.0, 0.25, 0.5, 0.25]]
    """
    every = torch.eye(size, device=like.device, dtype=like.dtype)
    before, after = neighbors(every, 0)
    return ((before + 2 * every + after) / 4)[::stride]


def smooth(image: Tensor, stride: int = 1) -> Tensor:
    """``(B, C, *S)`` with :func:`binomial_weights` along each axis, at each ``stride``-th voxel."""
    return along_axes(image, [binomial_weights(size, stride, image) for size in image.shape[2:]])


def gradient(image: Tensor) -> Tensor:
    """Central differences of ``(B, K, *S)``, per voxel, ``(B, K, D, *S)``; halved at the border."""
    sides = [neighbors(image, axis) for axis in range(2, image.ndim)]
    return torch.stack([(after - before) / 2 for before, after in sides], dim=2)


def products(moving: Tensor, fixed: Tensor) -> Tensor:
    """Difference times gradient along each axis, and squared gradient, over all channels: ``(B, D + 1, *S)``."""
    slope = gradient((moving + fixed) / 2)
    force = ((fixed - moving).unsqueeze(2) * slope).sum(1)
    return torch.cat([force, slope.square().sum((1, 2)).unsqueeze(1)], dim=1)


def estimate(sums: Tensor) -> Tensor:
    """Displacements ``(B, D, *S)`` in voxels of the scale that :func:`products` ``(B, D + 1, *S)`` are of."""
    force, squares = sums[:, :-1], sums[:, -1:]
    least = FLAT * squares.flatten(1).amax(1).view(-1, *[1] * (sums.ndim - 1))
    return (force / (squares + least + TINY)).clamp(-REACH, REACH)


def optical_flow(moving: Tensor, fixed: Tensor, levels: int) -> list[Tensor]:
    """Estimates of the displacement ``d`` with ``moving(x + d) = fixed(x)``, on coarser and coarser grids.

    Args:
        moving: ``(B, K, *S)``.
        fixed: likewise.
        levels: how many times the grid is halved.

    Returns:
        For each halving ``(B, D * scales, *S')`` in voxels of ``S``, from the up to 3 scales that are as fine or finer,
        the finest first; 0 where there is nothing to see.

    Examples:
        >>> fixed = torch.zeros(1, 1, 32, 32)
        >>> fixed[..., 10:22, 8:20] = 1
        >>> smooth = torch.nn.functional.avg_pool2d(fixed, 9, 1, 4)
        >>> flow = optical_flow(smooth.roll(2, 2), smooth, levels=2)[0]
        >>> flow.shape, round(flow[0, 0, 4, 7].item())
        (torch.Size([1, 2, 16, 16]), 2)
    """
    moving, fixed = at_least_float32(moving), at_least_float32(fixed)
    flows: list[Tensor] = []
    sums: list[tuple[int, Tensor]] = []
    for level in range(1, levels + 1):
        moving, fixed = smooth(moving, stride=2), smooth(fixed, stride=2)
        sums = [(scale, smooth(own, stride=2)) for scale, own in sums] + [(2**level, products(moving, fixed))]
        sums = sums[-SCALES:]
        flows.append(torch.cat([scale * estimate(smooth(own)) for scale, own in sums], dim=1))
    return flows
