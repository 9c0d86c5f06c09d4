"""What is registered in the place of an ITN's representation, on the registration grid."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from istn_monai.foreign_networks import bundle_maps, maps_of
from istn_monai.geometry.grids import Grid, overlap_in_world, registration_grid
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.geometry.resampling import area_averaged, unit_ranges
from istn_monai.geometry.transformation import per_axis
from istn_monai.io.images import check_affine, check_dims
from istn_monai.io.values import check_finite, plain
from istn_monai.mind import REGISTERED, mind_ssc
from istn_monai.representations import Representation
from istn_monai.transforms.checks import source
from istn_monai.transforms.guidance import structures_on_grid
from istn_monai.transforms.keys import MAP_KEYS, MAPS, ORIGINAL_KEYS, SIDES, Pair
from istn_monai.transforms.preprocessing import SoIGroupsd
from istn_monai.transforms.registration_grid import LIMIT, on_grid

ABOUT_1 = (-1.0, 2.0)  # maps in this range are of one scale already, as probabilities are, and stay as they are
#: what a QA page takes maps for, by their source, see :class:`istn_monai.qa.measures.RegisteredPair`; else "map"
SHOWN_AS = {"labels": "mask", "image": "image", "mind": "image"}


class RepresentationMapsd(Transform):
    """Adds ``moving_maps`` and ``fixed_maps`` ``(K, *S)``, what is registered in the place of the ITN's output.

    Comes after :class:`istn_monai.RegistrationGridd`, and before :class:`istn_monai.Guidanced`, which hands them on.
    Channels whose values lie beyond [-1, 2] are scaled, each to [0, 1] from the least to the largest value of both
    images.

    Args:
        representation: see :class:`istn_monai.representations.Representation`; of "itn" nothing is added.
        soi_labels: groups of label values that are the channels of "labels", see :class:`istn_monai.SoIGroupsd`.
        channels: that the spatial transformer network takes of one image; None for any number.
        device: where a network of somebody else runs.

    Raises:
        ValueError: naming the file, if a pair lacks what is registered, or if its maps do not fit each other, their
            images or the network.

    Examples:
        >>> image = MetaTensor(torch.rand(1, 24, 20))
        >>> pair = {"moving_image": image, "fixed_image": image}
        >>> RepresentationMapsd("mind")(pair)["fixed_maps"].shape
        torch.Size([4, 24, 20])
    """

    def __init__(
        self,
        representation: Any = "itn",
        soi_labels: Sequence[Sequence[int]] | None = ((1,),),
        channels: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.representation = Representation.of(representation)
        self.groups = SoIGroupsd(soi_labels=soi_labels)
        self.channels = channels
        self.device = str(device)

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        if self.representation.is_itn:
            return dict(data)
        made = [self.of_side(data, side) for side in SIDES]
        sides = dict(zip(MAP_KEYS, self.on_one_scale(made, Grid.of(data["fixed_image"])), strict=True))
        self.check_channels(sides)
        affine = affine_of(data["fixed_image"])
        found = {key: with_affine(maps, affine, data.get(key, MetaTensor(maps))) for key, maps in sides.items()}
        return dict(data) | found | {MAPS: SHOWN_AS.get(self.representation.source, "map")}

    @property
    def files(self) -> list[str]:
        """What it reads besides a pair: the network of somebody else."""
        return [str(self.representation.path)] if self.representation.is_network else []

    def of_side(self, data: Mapping[Hashable, Any], side: str) -> MetaTensor:
        """All channels ``(K, *S)`` of one side, on whatever grid they are made, where the pair is aligned."""
        kind, image = self.representation.kind, data[f"{side}_image"]
        if kind == "image":
            return image
        if kind == "mind":
            maps = mind_ssc(self.continued(data, side)[None], *REGISTERED)[0]
            return with_affine(maps, affine_of(data["fixed_image"]), image)
        if kind == "labels":
            return self.of_labels(data, side)
        if kind == "file":
            return of_file(data, side)
        return self.of_bundle(data, side) if kind == "bundle" else self.of_network(data, side)

    def continued(self, data: Mapping[Hashable, Any], side: str) -> Tensor:
        """An image ``(C, *S)`` on the registration grid, its border going on beyond it, which would be an edge else.

        Of a masked one, whose values may be anything where the mask is 0, what was made of it counts.
        """
        image = data[f"{side}_image"]
        if f"{side}_mask" not in data:
            image = data.get(ORIGINAL_KEYS[SIDES.index(side)], image)
        return area_averaged(plain(image).float()[None], Grid.of(image), Grid.of(data["fixed_image"]))[0]

    def of_labels(self, data: Mapping[Hashable, Any], side: str) -> MetaTensor:
        """The structures of a label map."""
        key = f"{side}_label"
        if key not in data:
            raise ValueError(f"representation labels: the pair has no {key}: give moving_label and fixed_label")
        if self.groups.soi_labels == []:
            raise ValueError("representation labels: the network knows none, only landmarks (soi_labels [])")
        return structures_on_grid(data[key], key, self.groups, Grid.of(data["fixed_image"]), "to be registered")

    def of_bundle(self, data: Mapping[Hashable, Any], side: str) -> MetaTensor:
        """What a MONAI bundle makes of an image's file."""
        original = data.get(ORIGINAL_KEYS[SIDES.index(side)], data[f"{side}_image"])
        file = original.meta.get("filename_or_obj")
        if not file:
            raise ValueError(
                f"representation bundle: {side}_image came from memory, and a bundle reads a file: give one"
            )
        maps = bundle_maps(self.representation, str(file), self.device)
        if side != SIDES[0]:
            return maps
        start = torch.as_tensor(data.get("initial_alignment", torch.eye(maps.ndim))).double()
        return with_affine(maps.as_tensor(), Grid.of(maps).aligned(start).affine, maps)

    def of_network(self, data: Mapping[Hashable, Any], side: str) -> MetaTensor:
        """What a network of somebody else makes of an image."""
        image, grid = data[f"{side}_image"], Grid.of(data["fixed_image"])
        spacing, normalization = self.representation.spacing, self.representation.normalization
        if spacing is None and normalization == "range":  # as the pair is on its grid already
            return with_affine(maps_of(self.representation, plain(image).float(), self.device), grid.affine, image)
        original = data.get(ORIGINAL_KEYS[SIDES.index(side)], image)
        own = grid if spacing is None else along_axes(Grid.of(original), spacing)
        seen = self.normalized(area_averaged(plain(original).float()[None], Grid.of(original), own)[0])
        return with_affine(maps_of(self.representation, seen, self.device), own.affine, image)

    def normalized(self, image: Tensor) -> Tensor:
        """An image ``(C, *S)`` as a network of somebody else wants it."""
        if self.representation.normalization == "none":
            return image.float()
        if self.representation.normalization == "range":
            return unit_ranges(image)
        axes = tuple(range(1, image.ndim))
        deviation = image.float().std(axes, keepdim=True).clamp_min(1e-8)
        return (image.float() - image.float().mean(axes, keepdim=True)) / deviation

    def on_one_scale(self, made: Sequence[MetaTensor], grid: Grid) -> list[Tensor]:
        """The channels of both sides that are taken, on the registration grid, of one scale, weighted."""
        sides = [with_affine(self.taken(maps, made), affine_of(maps), maps) for maps in made]
        low, high = (torch.stack([of(side.flatten(1), 1).values for side in sides]) for of in (torch.min, torch.max))
        low, high = low.amin(0), high.amax(0)
        if bool((low >= ABOUT_1[0]).all()) and bool((high <= ABOUT_1[1]).all()):
            found = [on_grid(side, grid).as_tensor() for side in sides]
        else:  # zeros beyond the maps would be an edge: their border goes on
            column = (-1, *[1] * grid.spatial_dims)
            span = (high - low).clamp_min(1e-12).view(column)
            values = [(side.as_tensor() - low.view(column)) / span for side in sides]
            found = [area_averaged(v[None], Grid.of(s), grid)[0] for v, s in zip(values, sides, strict=True)]
        if (weights := self.representation.weights) is not None:
            if len(weights) != len(found[0]):
                raise ValueError(f"representation: weights must have {len(found[0])} numbers, got {len(weights)}")
            found = [maps * maps.new_tensor(weights).sqrt().view(-1, *[1] * grid.spatial_dims) for maps in found]
        return found

    def taken(self, maps: MetaTensor, made: Sequence[MetaTensor]) -> Tensor:
        """The channels of one side that are taken, of both that were made."""
        counts = [len(side) for side in made]
        if counts[0] != counts[1]:
            raise ValueError(
                f"representation {self.representation.source}: the moving side has {counts[0]} channels, the fixed one "
                f"{counts[1]}: both must have the same"
            )
        channels = self.representation.channels or tuple(range(counts[0]))
        if max(channels) >= counts[0]:
            raise ValueError(
                f"representation: there are {counts[0]} channels, from 0 on, got channels {list(channels)}"
            )
        return plain(maps)[list(channels)].float()

    def check_channels(self, sides: Mapping[str, Tensor]) -> None:
        """ValueError if there is nothing to register, or not what the network takes."""
        for key, maps in sides.items():
            name = f"representation {self.representation.source}: {key}"
            if not torch.isfinite(maps).all():
                raise ValueError(f"{name} have NaN or infinite values on the registration grid: check what made them")
            if not bool((maps.flatten(1).amax(1) > maps.flatten(1).amin(1)).any()):
                raise ValueError(f"{name} are constant on the registration grid: there is nothing to register")
        found = len(sides[MAP_KEYS[0]])
        if self.channels is not None and found != self.channels:
            raise ValueError(
                f"representation {self.representation.source} has {found} channel(s), and the network was trained on "
                f"{self.channels}: take so many by channels, or model intensities, which has no network and takes any"
            )


def along_axes(image: Grid, spacing: Any) -> Grid:
    """A grid of this spacing that covers an image, along its axes."""
    steps = per_axis("spacing of representation", spacing, image.spatial_dims)
    turned = registration_grid(image, [2] * image.spatial_dims, steps)
    corners = turned.voxels(image.corners())
    size = [max(2, int(n) + 1) for n in (corners.amax(1) - corners.amin(1) + 0.5).tolist()]
    if math.prod(size) > LIMIT:
        raise ValueError(f"representation: spacing {steps} mm makes {math.prod(size):,} voxels of an image: give more")
    return registration_grid(image, size, steps)


def of_file(data: Mapping[Hashable, Any], side: str) -> MetaTensor:
    """Maps of one side that came from files, or from memory."""
    key = f"{side}_maps"
    if key not in data:
        raise ValueError(f"representation file: the pair has no {key}: give {' and '.join(MAP_KEYS)}")
    check_maps(data[key], key, Grid.of(data["fixed_image"]))
    return data[key]


def check_maps(maps: Any, key: str, grid: Grid) -> None:
    """ValueError for maps of another dimension, with NaN, or that lie elsewhere than the registration grid."""
    if not isinstance(maps, MetaTensor):
        raise ValueError(f"{key} must be files, or channel-first MetaTensors with an affine, got {type(maps).__name__}")
    check_dims(maps, key, grid.spatial_dims)
    check_affine(maps, key)
    check_finite(plain(maps), source(maps, key))
    if not overlap_in_world(grid, Grid.of(maps)):
        raise ValueError(f"{source(maps, key)} lie elsewhere than their image: check the affine in the header")
