"""What the values of an image are: labels or intensities, finite, and exact in the numbers that hold them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.exact import EXACT, EXACT_DOUBLE, largest

LARGEST = 1e30  # float32 ends at 3.4e38, and sums over an image must stay below it
ROWS, FEW, MANY = 2048, 8, 64
LINEAR, LABEL = "linear", "label"


def plain(image: Tensor) -> Tensor:
    """A MetaTensor's values: its own arithmetic is slow, and whole brains are large."""
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def check_finite(image: Tensor, name: str) -> None:
    """ValueError if voxels are NaN, infinite, or larger than float32 computes with.

    Args:
        image: any.
        name: how errors call it.
    """
    values = plain(image)
    if values.is_complex():
        raise ValueError(f"{name} has complex values: give its magnitude")
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{name} has {bad} voxels that are NaN or infinite; repair the file first")
    limit = LARGEST if values.is_floating_point() else EXACT_DOUBLE
    most = largest(values)
    if most > limit:
        bad = int((values.double().abs() > limit).sum())
        raise ValueError(
            f"{name} has {bad} voxels beyond {limit:g}, the largest {most}: more than can be computed with; rescale "
            "or repair the file first"
        )


def check_whole(label: Tensor, name: str, what: str = "label map") -> None:
    """ValueError unless values are whole numbers that are held exactly, as a label map's are."""
    values = plain(label)
    if values.is_floating_point():
        broken = int((values != values.round()).sum())
        if broken:
            raise ValueError(
                f"{name} must be a {what} of whole numbers, but {broken} voxels are not (a probability map?): "
                "threshold it first"
            )
    limit = EXACT if values.dtype in (torch.float32, torch.float16, torch.bfloat16) else EXACT_DOUBLE
    if largest(values) >= limit and values.is_floating_point():
        raise ValueError(f"{name} has label values of {limit:,} and more, which are not exact: give a file of integers")


def interpolation_of(image: Tensor) -> str | None:
    """How an image is interpolated, by its values: "label", "linear", or None if they do not say.

    Fractions are intensities; two values are labels. Of whole numbers, neighbors are compared along each axis, where
    one of them at least is not background (the most frequent value). Labels are equal to half of their neighbors or
    more along one axis, to a quarter along all (slices may be doubled, or thick), and steps between more than 8 of them
    are not by one gray level alone. Intensities take more than 64 values, and either fewer than a quarter are equal to
    their neighbors along an axis or they change by single levels.

    Args:
        image: ``(C, *S)``.

    Examples:
        >>> labels = torch.zeros(1, 20, 20).index_fill(1, torch.arange(5, 15), 1)
        >>> interpolation_of(labels), interpolation_of(torch.rand(1, 20, 20))
        ('label', 'linear')
    """
    values = plain(image)
    if values.dtype == torch.bool:
        return LABEL
    if values.is_floating_point() and bool((values != values.round()).any()):
        return LINEAR
    along = [changes(values.movedim(axis, -1)) for axis in range(1, values.ndim) if values.shape[axis] > 1]
    number = max((own.values for own in along), default=0)
    if number <= 2:
        return LABEL
    equal, gradual = [own.equal for own in along], along[-1].gradual
    if max(equal) >= 0.5 and min(equal) >= 0.25 and (number <= FEW or gradual < 0.5):
        return LABEL
    return LINEAR if number > MANY and (min(equal) < 0.25 or gradual >= 0.5) else None


class Changes(NamedTuple):
    """How whole numbers change along rows.

    Attributes:
        values: how many there are.
        equal: fraction of the neighbors that are equal, of those that are not both background.
        gradual: of the others, the fraction of those whose values are next to each other among all that there are.
    """

    values: int
    equal: float
    gradual: float


def changes(values: Tensor) -> Changes:
    """Of some rows, along the last axis."""
    rows = values.reshape(-1, values.shape[-1])
    rows = rows[:: max(1, len(rows) // ROWS)]
    present, ranks, counts = rows.unique(return_inverse=True, return_counts=True)
    steps, background = ranks.diff().abs(), counts.argmax()
    steps = steps[(ranks[:, 1:] != background) | (ranks[:, :-1] != background)]
    parts = steps == 0, steps[steps > 0] == 1
    return Changes(len(present), *(part.double().mean().nan_to_num(1.0).item() for part in parts))


def check_labels(label: Tensor, name: str, what: str = "label map") -> None:
    """ValueError if what is given as a label map has fractions, inexact values, or looks like an intensity image."""
    check_whole(label, name, what)
    if interpolation_of(label) == LINEAR:
        raise ValueError(
            f"{name} must be a {what}, but its values change from voxel to voxel as an intensity image's do: give "
            f"the {what} of that image"
        )
