"""Checks of images and labels. Each error says what, where, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.exact import working
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.meta import affine_of
from istn_monai.io.images import TIME, check_affine, check_dims, source
from istn_monai.io.values import check_finite, check_labels, plain

EXTENTS = 100.0  # times by which images of one pair may differ in size
MOST_ASIDE = 0.1  # voxels that headers written by different programs may round away
SMALLEST_RANGE = 1e-12  # of intensities that can be scaled to [0, 1]


def check_image(
    image: Tensor, key: str, spatial_dims: int, in_channels: int | None = None, mask: Tensor | None = None
) -> None:
    """Refuses what cannot be registered: wrong dimension or channels, bad affine, NaN or Inf, a constant image.

    Args:
        image: ``(C, *S)``.
        key: what errors call it.
        spatial_dims: number of axes that the configuration asks for.
        in_channels: number of channels that the configuration asks for; None for any.
        mask: ``(1, *S)``; where it is 0, an image may have any value. None for none.
    """
    check_dims(image, key, spatial_dims)
    if in_channels is not None and image.shape[0] != in_channels:
        raise ValueError(f"{source(image, key)} {other_channels(image, in_channels)}")
    check_affine(image, key)
    values = plain(image) if mask is None else plain(image)[:, plain(mask)[0] != 0]
    check_finite(values, source(image, key))
    low, high = working(torch.stack(torch.aminmax(values)))  # in the numbers that it is computed with
    if low == high:
        where = "" if mask is None else f" where {source(mask, 'its mask')} is not 0"
        raise ValueError(f"{source(image, key)} is constant ({low.item():g}){where}: there is nothing to register")
    if float(high) - float(low) < SMALLEST_RANGE:
        raise ValueError(f"{source(image, key)} has a range below {SMALLEST_RANGE:g}: rescale its intensities")


def other_channels(image: Tensor, wanted: int) -> str:
    """What an image has instead of the wanted number of channels, and what to do."""
    found = image.shape[0]
    train = f"in training in_channels {found} takes all as channels"
    if isinstance(image, MetaTensor) and TIME in image.meta and wanted == 1:
        return (
            f"is 4-D, with {found} volumes: give one of them, such as the first by fslroi IN OUT 0 1, or in Python by "
            f"nibabel.load(IN).slicer[..., 0].to_filename(OUT); {train}"
        )
    kind = "one channel (a color PNG has 3)" if wanted == 1 else f"{wanted} channels"
    return f"has {found} channel(s), the configuration {wanted}: give images of {kind}; {train}"


def check_mask(mask: Tensor, key: str, image: Tensor) -> None:
    """Refuses a mask that is on another grid than its image, is no map of whole numbers, or has none but 0.

    Args:
        mask: ``(1, *S)``.
        key: what errors call it.
        image: ``(C, *S)``, the image it belongs to.
    """
    check_on_grid(mask, key, image, "mask")
    name, values = source(mask, key), plain(mask)
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite voxels; repair the file first")
    check_labels(values, name, "mask")
    if (values < 0).any():
        raise ValueError(f"{name} has values below 0: a mask is 0 where its image does not count")
    if not values.any():
        raise ValueError(f"{name} is empty: a mask is not 0 where its image counts")


def counting(mask: Tensor) -> Tensor:
    """Which voxels a mask says count, bool: where it is not 0."""
    return plain(mask) != 0


def corners_aside(label: MetaTensor, image: MetaTensor) -> float:
    """How far the corners of a label lie from those of an image of its size, in voxels of the image."""
    own = Grid.of(label)
    here = own.voxels(own.corners())
    return (Grid.of(image).voxels(own.corners()) - here).abs().max().item()


def check_on_grid(label: Tensor, key: str, image: Tensor, what: str) -> None:
    """Refuses a label or a mask (``what`` it is) that has several channels or lies on another grid than its image."""
    name = source(label, key)
    if label.shape[0] != 1:
        raise ValueError(f"{name} must have one channel, a {what} map, got {label.shape[0]}")
    of = f"its image {source(image, '')}".rstrip()
    if label.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"{name} has size {tuple(label.shape[1:])}, {of} {tuple(image.shape[1:])}: a {what} must be on the grid of "
            "its image; resample it with nearest neighbor"
        )
    if isinstance(label, MetaTensor) and isinstance(image, MetaTensor):
        aside = corners_aside(label, image)
        if not aside < MOST_ASIDE:
            raise ValueError(
                f"{name} lies up to {aside:.3g} voxels beside {of}, at a corner: a {what} must be on the grid of its "
                f"image; correct the header or resample the {what}"
            )


def check_label(
    label: Tensor, key: str, image: Tensor, soi_labels: Sequence[Sequence[int]] | None, need_soi: bool = True
) -> None:
    """Refuses a label that is on another grid than its image, has several channels, NaN or Inf, or no SoI at all.

    Args:
        label: ``(1, *S)``.
        key: what errors call it.
        image: ``(C, *S)``, the image it belongs to.
        soi_labels: groups of label values that make up the SoI; None for a real-valued map.
        need_soi: whether an empty SoI is an error.
    """
    check_on_grid(label, key, image, "label")
    name = source(label, key)
    values = plain(label)
    if not torch.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite voxels; repair the file first")
    if soi_labels is not None or not need_soi:  # else it is a real-valued map
        check_labels(values, name)
    if need_soi and soi_labels is None and values.max() <= 0:
        raise ValueError(f"{name} is empty: a map of structures of interest needs values above 0")
    if need_soi and soi_labels is not None:
        wanted = sorted({value for group in soi_labels for value in group})
        present = sorted(int(value) for value in values.round().unique())
        if not set(wanted) & set(present):
            raise ValueError(f"{name} has an empty SoI: none of soi_labels {wanted} is in it, only {present}")


def scaled_to_one(values: Tensor, name: str) -> Tensor:
    """A real-valued map as float32 with a maximum of 1, or a ValueError that names it if it has none above 0."""
    largest = values.max()
    if not largest > 0:
        raise ValueError(f"{name} is empty: a map needs values above 0")
    return values.float() / largest


def check_soi_labels(soi_labels: Any, soi_points: Any = None, name: str = "soi_labels") -> None:
    """ValueError that calls them ``name`` unless they are None or groups of whole numbers, e.g. [[1, 2]] or [[1], [2]].

    No group at all, [], is for landmarks alone, where there are ``soi_points``.
    """
    if soi_labels is None or (soi_points is not None and soi_labels in ([], ())):
        return
    groups_ok = isinstance(soi_labels, (list, tuple)) and len(soi_labels) > 0
    if not groups_ok or not all(
        isinstance(g, (list, tuple)) and g and all(isinstance(v, int) and v != 0 for v in g) for g in soi_labels
    ):
        raise ValueError(
            f"{name} must be a list of groups of label values other than 0, one group for each SoI channel, such "
            f'as "[[1,2]]" (merged) or "[[1],[2]]" (two channels), or none for real-valued maps, or [] '
            f"beside soi_points for landmarks alone; got {soi_labels!r}"
        )


def reads_labels(soi_labels: Sequence[Any] | None) -> bool:
    """Whether these settings look at labels at all: [] does not."""
    return soi_labels is None or len(soi_labels) > 0


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def check_extents(images: Mapping[str, Tensor]) -> None:
    """ValueError if one of several images is ``EXTENTS`` times as large as another in the world: units are mistaken.

    Args:
        images: by key, ``(C, *S)``, in mm.
    """
    extents = {}
    for key, image in images.items():
        affine = affine_of(image)[:-1, :-1].double()
        extents[key] = float((affine.norm(dim=0) * torch.tensor(image.shape[1:])).max())
    small, large = (choose(extents, key=lambda key: extents[key]) for choose in (min, max))
    if extents[large] > EXTENTS * extents[small]:
        raise ValueError(
            f"{source(images[small], small)} is {extents[small]:.3g} mm large, {source(images[large], large)} "
            f"{extents[large]:.3g} mm: check the voxel sizes and units in their headers"
        )
