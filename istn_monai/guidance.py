"""What guides a refinement besides the images of the pair in hand: labels, landmarks and masks of one or both sides.

By the keys of a pair, all on the registration grid: ``moving_label`` and ``fixed_label`` ``(B, L, *S)`` in [0, 1],
``moving_points`` and ``fixed_points`` ``(B, D, N)`` in voxels, ``moving_mask`` and ``fixed_mask`` ``(B, 1, *S)`` of 0
and 1; any of them may be missing, and labels and landmarks count by their weights alone.
:class:`istn_monai.transforms.guidance.Guidanced` makes them from files.

``moving_maps`` and ``fixed_maps`` ``(B, K, *S)``, both or none, are registered in the place of an ITN's output, see
:class:`istn_monai.transforms.representations.RepresentationMapsd`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from istn_monai.geometry.sampling import column, sample
from istn_monai.refine_weights import check_guided
from istn_monai.transforms.keys import LABEL_KEYS, MAP_KEYS, MASK_KEYS, POINT_KEYS, SIDES

GUIDES = (*LABEL_KEYS, *POINT_KEYS, *MASK_KEYS)
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


def other_way(image: Tensor, guidance: Guidance) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch ``(B, 2C, *S)`` and its guidance with moving and fixed in each other's place."""
    return torch.cat(image.chunk(2, dim=1)[::-1], dim=1), other_guidance(guidance)


def other_guidance(guidance: Guidance) -> dict[str, Tensor]:
    """A batch's guidance with moving and fixed in each other's place."""
    swapped = {key: f"{SIDES[1 - SIDES.index(side)]}_{kind}" for key in guidance for side, kind in [key.split("_")]}
    return {swapped[key]: value for key, value in guidance.items()}


def representations_of(guidance: Guidance) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor]]:
    """The maps that are registered in the place of an ITN's output, None for none, and all other guidance.

    Raises:
        ValueError: if those of one side are missing, or of another shape.
    """
    others = {key: value for key, value in guidance.items() if key not in MAP_KEYS}
    maps = [guidance[key] for key in MAP_KEYS if key in guidance]
    if not maps:
        return None, others
    if len(maps) == 1 or maps[0].shape != maps[1].shape:
        raise ValueError(f"{' and '.join(MAP_KEYS)} must be of one shape, got {[tuple(one.shape) for one in maps]}")
    return (maps[0], maps[1]), others


def both_masks(guidance: Guidance, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both masks ``(B, 1, *S)``, of ones where one is missing; None if both are. ``like`` is ``(B, K, *S)``."""
    if not any(key in guidance for key in MASK_KEYS):
        return None
    moving, fixed = (guidance[key].to(like) if key in guidance else torch.ones_like(like[:, :1]) for key in MASK_KEYS)
    return moving, fixed


def check_both_labels(guidance: Guidance) -> None:
    """ValueError if one label is missing, where an image would take its place."""
    if missing := [name for name in LABEL_KEYS if name not in guidance]:
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
    check_guided(guidance, weights)
    batch, grid = len(like), tuple(like.shape[2:])
    both = [guidance.get(name, like) for name in LABEL_KEYS]
    channels = both[0].shape[1]
    if "labels" in weights and channels != both[1].shape[1]:
        raise ValueError(
            f"labels of both sides, or a label and the other side's representation, must have as many channels, got "
            f"{channels} and {both[1].shape[1]}"
        )
    shapes = dict(zip(LABEL_KEYS, [(batch, own.shape[1], *grid) for own in both], strict=True))
    shapes |= dict.fromkeys(MASK_KEYS, (batch, 1, *grid))
    if all(name in guidance for name in POINT_KEYS):
        shapes |= dict.fromkeys(POINT_KEYS, (batch, len(grid), guidance[POINT_KEYS[0]].shape[-1]))
    for name, value in guidance.items():
        if tuple(value.shape) != shapes.get(name, tuple(value.shape)):
            raise ValueError(f"{name} must be {shapes[name]}, got {tuple(value.shape)}")
        if not value.numel():
            raise ValueError(f"{name} holds nothing, its shape is {tuple(value.shape)}: leave it out")
    return {name: torch.as_tensor(value).to(like) for name, value in guidance.items()}
