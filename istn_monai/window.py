"""Where a pair is compared: in the box that holds what the fixed image shows, beyond which nothing is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.transforms.utils import generate_spatial_bounding_box
from torch import Tensor

SEEN = 0.1  # of a representation: what is less shows no structure
Box = Sequence[tuple[int, int]]


class Window(NamedTuple):
    """The part of a grid on which pairs are compared: a box that holds what the fixed images show.

    Attributes:
        slices: of the grid's axes.
        share: of the grid's voxels that lie in the box of each pair, ``(B,)``.
        counts: ``(B, 1, *T)``, 1 in the box of each pair, where they have different ones; else None.
    """

    slices: tuple[slice, ...]
    share: Tensor
    counts: Tensor | None


def boxes_of(images: Tensor, representations: Tensor) -> list[Box]:
    """Of each pair the smallest box that holds all that is not 0 in its image, and all that its representation shows.

    Args:
        images: the fixed ones, ``(B, C, *S)``.
        representations: likewise, ``(B, K, *S)``.
    """
    return [box_of(shown) for shown in (images != 0).any(1) | (representations.abs() > SEEN).any(1)]


def box_of(shown: Tensor) -> Box:
    """First and last index along each axis of what is true in ``(*S,)``; all if nothing is."""
    start, end = generate_spatial_bounding_box(shown[None], allow_smaller=True)
    return [(first, stop - 1) if stop else (0, n - 1) for first, stop, n in zip(start, end, shown.shape, strict=True)]


def window_of(boxes: Sequence[Box], stride: int, every: int, fixed: Tensor) -> Window:
    """The window that holds the boxes of all pairs, where each ``stride``-th voxel is compared.

    A box begins at a multiple of ``every``, as what is known at so-and-so-many-th voxels alone does on a whole grid: so
    the boxes of a batch change nothing for each other.

    Args:
        boxes: see :func:`boxes_of`, in voxels.
        stride: see above.
        every: likewise.
        fixed: the fixed side ``(B, C, *T)`` at each ``stride``-th voxel.
    """
    size, ends = torch.tensor(fixed.shape[2:]), torch.tensor(boxes)
    starts = ends[..., 0].div(stride * every, rounding_mode="floor") * every
    stops = (ends[..., 1].div(stride, rounding_mode="floor") + 2).minimum(size)
    share = ((stops - starts).prod(1) / math.prod(fixed.shape[2:])).to(fixed)
    first, last = starts.amin(0), stops.amax(0)
    slices = tuple(slice(*both) for both in zip(first.tolist(), last.tolist(), strict=True))
    if bool((starts == first).all() and (stops == last).all()):
        return Window(slices, share, None)
    counts = fixed.new_zeros(len(boxes), 1, *(last - first).tolist())
    for number, own in enumerate(zip((starts - first).tolist(), (stops - first).tolist(), strict=True)):
        counts[(number, 0, *(slice(*both) for both in zip(*own, strict=True)))] = 1
    return Window(slices, share, counts)
