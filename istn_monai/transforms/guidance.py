"""What guides a refinement besides the images, from files: labels, landmarks and masks, on the registration grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from torch import Tensor

from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.io.landmarks import check_dims, matched
from istn_monai.refine_weights import check_guided
from istn_monai.transforms.checks import source
from istn_monai.transforms.keys import GUIDANCE, LABEL_KEYS, MAP_KEYS, MAPS, MASK_KEYS, POINT_KEYS, Pair
from istn_monai.transforms.preprocessing import SoIGroupsd
from istn_monai.transforms.registration_grid import check_kept, kept, on_grid

MOST_LABELS = 32  # a real-valued map in whole numbers, as of a PNG, has more


def structures_on_grid(label: MetaTensor, key: str, groups: SoIGroupsd, grid: Grid, what: str) -> MetaTensor:
    """The structures ``(K, *S)`` of a label map on the registration grid.

    Args:
        label: ``(1, *S)``, on a grid of its own.
        key: what errors call it.
        groups: label values to channels.
        grid: the registration grid.
        what: the labels are for, for the error.

    Raises:
        ValueError: naming the file, if it has none of the labels, or if they are not on the grid.
    """
    name = source(label, key)
    if groups.soi_labels is None:
        check_one_structure(label, name)
    soi = with_affine(groups.channels(label.as_tensor()), affine_of(label), label)
    if not soi.any():
        raise ValueError(f"{name} has none of the labels {groups.soi_labels}, {what}")
    found = on_grid(soi, grid)
    check_kept(kept(soi, found), name, grid)
    return found


def check_one_structure(label: Tensor, name: str) -> None:
    """ValueError for a map of a few whole numbers, labels, where none are known: it would count as a real-valued map,
    by the size of its numbers."""
    values = label.unique()
    labels = [int(value) for value in values if value != 0]
    if bool((values == values.round()).all()) and 1 < len(labels) <= MOST_LABELS:
        raise ValueError(
            f"{name} holds the labels {labels}, and which of them are the structures is not known: give soi_labels, "
            f"such as {[[value] for value in labels]} (with --model intensities), or a map of one structure"
        )


class Guidanced(Transform):
    """Adds ``guidance``, what a :class:`istn_monai.RefineInferer` takes besides the images; none where there is none.

    Comes after :class:`istn_monai.RegistrationGridd`, which masks go through as images do. Labels and landmarks are
    taken along if they have a weight, masks and maps if there are any. See :mod:`istn_monai.guidance`.

    Args:
        weights: of the refinement's terms, see :func:`istn_monai.refine_weights.guided_weights`; None for none.
        soi_labels: groups of label values that are the channels of labels, see :class:`istn_monai.SoIGroupsd`.

    Raises:
        ValueError: naming the file, if a label or a mask has nothing on the registration grid, if the masks have no
            place in common, or if a landmark lies beyond the grid.

    Examples:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.rand(1, 8, 9))
        >>> label = MetaTensor((torch.arange(72).view(1, 8, 9) > 40).float())
        >>> pair = {"moving_image": image, "fixed_image": image, "fixed_label": label}
        >>> Guidanced({"labels": 1.0}, [[1]])(pair)["guidance"]["fixed_label"].shape
        torch.Size([1, 8, 9])
    """

    def __init__(
        self, weights: Mapping[str, float] | None, soi_labels: Sequence[Sequence[int]] | None = ((1,),)
    ) -> None:
        self.weights = dict(weights or {})
        self.groups = SoIGroupsd(LABEL_KEYS, soi_labels)

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """Adds tensors by their keys, without a batch."""
        check_guided(data, self.weights)
        guidance = self.masks(data) | {key: data[key].as_tensor() for key in MAP_KEYS if MAPS in data}
        if "labels" in self.weights:
            guidance |= self.labels(data)
        if "landmarks" in self.weights:
            guidance |= self.points(data)
        return dict(data) | ({GUIDANCE: guidance} if guidance else {})

    def masks(self, data: Mapping[Hashable, Any]) -> dict[str, Tensor]:
        """``(1, *S)`` of 0 and 1."""
        masks = {key: (data[key].as_tensor() > 0.5).float() for key in MASK_KEYS if key in data}
        names = " and ".join(source(data[key], key) for key in masks)
        if masks and not torch.stack(list(masks.values())).prod(0).any():
            common = "nothing on the registration grid" if len(masks) == 1 else "no place in common"
            raise ValueError(
                f"{names}: {common}, after initial_alignment: nothing would count; check the masks, or choose another "
                "initial_alignment"
            )
        return masks

    def labels(self, data: Mapping[Hashable, Any]) -> dict[str, Tensor]:
        """``(K, *S)`` in [0, 1]."""
        if self.groups.soi_labels == []:
            raise ValueError(
                "labels shall guide the refinement, but the network knows none, only landmarks (soi_labels [])"
            )
        grid = Grid.of(data["fixed_image"])
        found = {}
        for key in LABEL_KEYS:
            if key not in data:
                continue
            found[key] = structures_on_grid(data[key], key, self.groups, grid, "which shall guide")
        sides = [soi.as_tensor() for soi in found.values()]
        if len(sides) == 2 and not (sides[0].flatten(1).any(1) & sides[1].flatten(1).any(1)).any():
            names = " and ".join(source(data[key], key) for key in found)
            raise ValueError(f"{names} have none of the labels {self.groups.soi_labels} in common, none would guide")
        return dict(zip(found, sides, strict=True))

    def points(self, data: Mapping[Hashable, Any]) -> dict[str, Tensor]:
        """``(D, N)`` in voxels of the registration grid."""
        grid, files = Grid.of(data["fixed_image"]), [str(data[key]) for key in POINT_KEYS]
        both = matched(*files)
        for key, file, points in zip(POINT_KEYS, files, both, strict=True):
            check_dims(points, f"{key}: {file}", grid.spatial_dims, "the network")
        start = torch.as_tensor(data.get("initial_alignment", torch.eye(grid.spatial_dims + 1))).double()
        moving, fixed = (points.positions.T for points in both)
        seen = grid.contains(fixed)
        if not seen.all():
            beyond = [label for label, one in zip(both[1].labels, seen.tolist(), strict=True) if not one]
            raise ValueError(
                f"{POINT_KEYS[1]}: {files[1]}: {beyond} lie beyond the registration grid, where they cannot guide: "
                "leave them out, correct them, or choose a larger spatial_size"
            )
        moving = map_points(torch.linalg.inv(start), moving)
        return {key: grid.voxels(points).float() for key, points in zip(POINT_KEYS, (moving, fixed), strict=True)}


def batched(data: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The guidance of a pair as that of a batch of one, without metadata; empty for none."""
    return {key: convert_to_tensor(guide, track_meta=False)[None] for key, guide in data.get(GUIDANCE, {}).items()}
