"""Modality-independent descriptors of an image, by which images of different contrasts are compared."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from istn_monai.geometry.sampling import at_least_float32

RADIUS, DILATION = 2, 2  # of ConvexAdam, for voxels of 1 to 2 mm
REGISTERED = (1, 2)  # radius and dilation of images that are registered on it: those of ConvexAdam's registration
#: of the mean variance over an image: what a voxel's own is kept between
LEAST, MOST = 1e-3, 1e3
POOL = {1: nn.functional.avg_pool1d, 2: nn.functional.avg_pool2d, 3: nn.functional.avg_pool3d}


def mind_ssc(image: Tensor, radius: int = RADIUS, dilation: int = DILATION) -> Tensor:
    """MIND-SSC, self-similarity context (Heinrich et al., MICCAI 2013), as ConvexAdam has it.

    How alike patches around a voxel are to each other: of each two of its 2 D neighbors that are not opposite, the mean
    squared difference of the patches there, less the smallest of them, as a fraction v of their mean, becomes exp(-v).
    It depends on structure, not on intensities.

    Args:
        image: ``(B, C, *S)``.
        radius: of a patch, in voxels.
        dilation: distance of the neighbors, in voxels.

    Returns:
        ``(B, C * 2 D (D - 1), *S)`` in [0, 1], of each image of the batch by itself.

    Examples:
        >>> image = torch.rand(1, 1, 16, 18)
        >>> torch.allclose(mind_ssc(image), mind_ssc(3 - 2 * image), atol=1e-3)
        True
    """
    image, dims = at_least_float32(image), image.ndim - 2
    padded = nn.functional.pad(image, [dilation] * 2 * dims, mode="replicate")

    def neighbor(axis: int, step: int) -> Tensor:
        """The image, moved along an axis."""
        starts = [dilation + (step if other == axis else 0) for other in range(dims)]
        return padded[(..., *[slice(start, start + n) for start, n in zip(starts, image.shape[2:], strict=True)])]

    around = [(axis, neighbor(axis, step)) for axis in range(dims) for step in (-dilation, dilation)]
    squares = [(one - two).square() for (a, one), (b, two) in combinations(around, 2) if a != b]
    joined = nn.functional.pad(torch.cat(squares, 1), [radius] * 2 * dims, mode="replicate")
    distances = POOL[dims](joined, 2 * radius + 1, stride=1).unflatten(1, (len(squares), -1))
    distances = distances - distances.amin(1, keepdim=True)
    variance = distances.mean(1, keepdim=True)
    mean = variance.flatten(1).mean(1).view(-1, *[1] * (variance.ndim - 1))
    return torch.exp(-distances / variance.clamp(LEAST * mean, MOST * mean).clamp_min(1e-12)).flatten(1, 2)
