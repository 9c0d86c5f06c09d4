"""What guides a refinement besides the images of the pair in hand: labels, landmarks and masks of one or both sides.

By the keys of a pair, all on the registration grid: ``moving_label`` and ``fixed_label`` ``(B, L, *S)`` in [0, 1],
``moving_points`` and ``fixed_points`` ``(B, D, N)`` in voxels, ``moving_mask`` and ``fixed_mask`` ``(B, 1, *S)`` of 0
and 1; any of them may be missing. :class:`istn_monai.transforms.guidance.Guidanced` makes them from files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from istn_monai.geometry.sampling import column, sample

LABELS = ("moving_label", "fixed_label")
POINTS = ("moving_points", "fixed_points")
MASKS = ("moving_mask", "fixed_mask")
GUIDES = (*LABELS, *POINTS, *MASKS)
TINY = 1e-8
Guidance = Mapping[str, Tensor]


def label_difference(warped: Tensor, fixed: Tensor) -> Tensor:
    """1 - soft Dice of structures ``(B, K, *S)``, the mean of the channels that hold anything, ``(B,)``.

    The mean squared difference of each channel as a fraction of its mean squares, so that small structures count.
    """
    size = (warped.square() + fixed.square()).flatten(2).sum(2)
    difference = (warped - fixed).square().flatten(2).sum(2)
    held = (fixed.flatten(2).amax(2) > 0).to(size)
    return (held * difference / size.clamp_min(TINY)).sum(1) / held.sum(1).clamp_min(1)


def landmark_difference(ddf: Tensor, points: Sequence[Tensor], spacing: Sequence[float], stride: int = 1) -> Tensor:
    """Mean squared distance in mm^2 of landmarks from where the fixed ones are found in the moving image, ``(B,)``.

    Args:
        ddf: ``(B, D, *S)`` in voxels, at each ``stride``-th voxel; linear between them.
        points: moving and fixed, ``(B, D, N)`` each, in voxels of the registration grid.
        spacing: of a voxel in mm, along each axis.
        stride: see ``ddf``.
    """
    moving, fixed = points
    places = fixed.view(*fixed.shape, *[1] * (ddf.ndim - 3))
    found = fixed + sample(ddf, places / stride).view(fixed.shape)
    return ((found - moving) * column(ddf.new_tensor(spacing), 2)).square().sum(1).mean(1)


def check_both_labels(guidance: Guidance) -> None:
    """ValueError if one label is missing, where an image would take its place."""
    if missing := [name for name in LABELS if name not in guidance]:
        raise ValueError(
            f"the network has no ITN, whose representation could stand for a label: give {' and '.join(missing)}"
        )


def checked_guidance(guidance: Guidance, weights: Mapping[str, float], like: Tensor) -> dict[str, Tensor]:
    """Guidance as float tensors on the device of the representation ``like`` ``(B, K, *S)``.

    Raises:
        ValueError: naming what a term lacks, or what has another shape or name than this module says.
    """
    if unknown := sorted(set(guidance) - set(GUIDES)):
        raise ValueError(f"guidance must be of {GUIDES}, got {unknown}")
    if "labels" in weights and not any(name in guidance for name in LABELS):
        raise ValueError("the weights have labels: give moving_label, fixed_label, or both")
    if "landmarks" in weights and not all(name in guidance for name in POINTS):
        raise ValueError("the weights have landmarks: give moving_points and fixed_points")
    batch, grid = len(like), tuple(like.shape[2:])
    both = [guidance.get(name, like) for name in LABELS]
    channels = both[0].shape[1]
    if "labels" in weights and channels != both[1].shape[1]:
        raise ValueError(
            f"labels of both sides, or a label and the other side's representation, must have as many channels, got "
            f"{channels} and {both[1].shape[1]}"
        )
    shapes = dict(zip(LABELS, [(batch, own.shape[1], *grid) for own in both], strict=True))
    shapes |= dict.fromkeys(MASKS, (batch, 1, *grid))
    if all(name in guidance for name in POINTS):
        shapes |= dict.fromkeys(POINTS, (batch, len(grid), guidance[POINTS[0]].shape[-1]))
    for name, value in guidance.items():
        if tuple(value.shape) != shapes.get(name, tuple(value.shape)):
            raise ValueError(f"{name} must be {shapes[name]}, got {tuple(value.shape)}")
    return {name: torch.as_tensor(value).to(like) for name, value in guidance.items()}
