"""MONAI dictionary transforms for pairs of images: usable in any ``Compose``.

Keys of a pair: ``moving_image``, ``fixed_image`` and, where there are any, ``moving_label``, ``fixed_label``; each
channel-first MetaTensors on grids of their own. The order that the bundle uses: :class:`LoadPaird`,
:class:`CheckPaird`, :class:`InitialAlignmentd`, :class:`NormalizeIntensityRanged`, :class:`SoIGroupsd`,
:class:`istn_monai.RegistrationGridd`, :class:`istn_monai.AddLandmarkChannelsd`, :class:`ConcatPaird`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple
from torch import Tensor, nn

from istn_monai.alignment import INITIAL_ALIGNMENTS, check_start
from istn_monai.geometry.exact import working
from istn_monai.geometry.filling import filled
from istn_monai.geometry.grids import Grid, overlap_in_world
from istn_monai.geometry.meta import affine_of, in_place_of, values_of, with_affine
from istn_monai.geometry.resampling import unit_range
from istn_monai.io.any_transform import files_of
from istn_monai.io.images import Dtype, read_exactly, read_or_explain
from istn_monai.io.nifti_frames import check_nifti_frame
from istn_monai.linear_registration import SIMILARITIES
from istn_monai.transforms.checks import (
    check_choice,
    check_extents,
    check_image,
    check_label,
    check_mask,
    counting,
    scaled_to_one,
    source,
)
from istn_monai.transforms.inverses import NotInvertible
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS, MAP_KEYS, MASK_KEYS, PAIR_KEYS, Pair
from istn_monai.transforms.map_files import read_maps
from istn_monai.transforms.starts import start_of


class LoadPaird(MapTransform):
    """Reads the images, labels, masks and maps of a pair, channel-first, in ITK's frame; what a pair lacks is left out.

    A host may hand over images that it has in memory already: they are taken as they are.

    Args:
        keys: each holds a path, or a channel-first MetaTensor whose affine is RAS mm.
        nifti_frame: what counts in a NIfTI header that readers understand in two ways: "itk", "sform" or "qform"; None
            makes it an error. See :func:`istn_monai.io.nifti_frames.nifti_affine`.
        series: by key, the Series Instance UID to read of DICOM files; needed where there are several.
        dtype: of the images, float32 by default; None keeps the file's. Labels that it would round keep theirs.

    Examples:
        >>> image = MetaTensor([[[1.0, 2.0]]])
        >>> LoadPaird(["moving_image", "moving_label"])({"moving_image": image})["moving_image"].tolist()
        [[[1.0, 2.0]]]
    """

    def __init__(
        self,
        keys: Sequence[str] = (*PAIR_KEYS, *MASK_KEYS, *MAP_KEYS),
        nifti_frame: str | None = None,
        series: Mapping[str, str | None] | None = None,
        dtype: Dtype = torch.float32,
    ) -> None:
        super().__init__(keys, allow_missing_keys=True)
        check_nifti_frame(nifti_frame)
        self.series = series or {}
        self.nifti_frame, self.dtype = nifti_frame, dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Each key to ``(C, *S)``."""
        result = dict(data)
        for key in self.key_iterator(data):
            if key in MAP_KEYS and isinstance(data[key], (str, Path)):
                image = result[IMAGE_KEYS[MAP_KEYS.index(str(key))]]
                result[key] = read_maps(data[key], str(key), image, self.nifti_frame)
            else:
                result[key] = self.load(data[key], str(key))
        return result

    def load(self, image: Any, key: str) -> MetaTensor:
        """The image at a path; or the image that it is."""
        if isinstance(image, (str, Path)):
            if key in (*LABEL_KEYS, *MASK_KEYS):
                return read_exactly(image, key, self.nifti_frame, self.dtype)
            return read_or_explain(image, key, self.nifti_frame, self.series.get(key), self.dtype)
        if not isinstance(image, MetaTensor):
            raise ValueError(f"{key} must be a path or a channel-first MetaTensor with an affine, got {type(image)}")
        values = image.as_tensor()
        values = values.to(torch.uint8) if values.dtype == torch.bool else values
        if values.dtype in (torch.float16, torch.bfloat16):  # which files cannot hold
            values = values.float()
        result = MetaTensor(values, meta={"original_affine": image.affine.clone()} | dict(image.meta))
        result.affine = image.affine
        return result


def mask_of(data: Mapping[Hashable, Any], image_key: Hashable) -> Tensor | None:
    """Which voxels ``(1, *S)`` of an image of a pair count, bool; None if it has no mask."""
    mask = data.get(dict(zip(IMAGE_KEYS, MASK_KEYS, strict=True)).get(str(image_key)))
    return None if mask is None else counting(mask)


class CheckPaird(Transform):
    """Refuses what would give a wrong result without a word: see :func:`istn_monai.transforms.checks.check_image`,
    :func:`istn_monai.transforms.checks.check_label` and :func:`istn_monai.transforms.checks.check_mask`.

    Args:
        spatial_dims: that the configuration is for.
        soi_labels: groups of label values; None if labels are real-valued maps.
        need_soi: whether a label without any SoI raises an error; False where labels are only carried along.
        in_channels: that an image must have; None for any number.

    Examples:
        >>> image = MetaTensor(torch.rand(1, 8, 9))
        >>> CheckPaird(spatial_dims=2)({"moving_image": image, "fixed_image": torch.zeros_like(image)})
        Traceback (most recent call last):
        ...
        ValueError: fixed_image is constant (0): there is nothing to register
    """

    def __init__(
        self,
        spatial_dims: int,
        soi_labels: Sequence[Sequence[int]] | None = None,
        need_soi: bool = True,
        in_channels: int | None = None,
    ) -> None:
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.soi_labels = soi_labels
        self.need_soi = need_soi

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        for key, mask_key in zip(IMAGE_KEYS, MASK_KEYS, strict=True):
            if mask_key in data:
                check_mask(data[mask_key], mask_key, data[key])
            check_image(data[key], key, self.spatial_dims, self.in_channels, data.get(mask_key))
        check_extents({key: data[key] for key in IMAGE_KEYS})
        for key, image_key in zip(LABEL_KEYS, IMAGE_KEYS, strict=True):
            if key in data:
                check_label(data[key], key, data[image_key], self.soi_labels, self.need_soi)
        return dict(data)


class NormalizeIntensityRanged(MapTransform):
    """Intensities between two percentiles, scaled to [0, 1] and clipped there, whatever the scanner's scale; each
    channel by its own percentiles.

    Where an image has a mask (``moving_mask``, ``fixed_mask``) that is 0, it does not count, and goes on smoothly from
    where it does, see :func:`istn_monai.geometry.filling.filled`.

    An image so sparse that its percentiles coincide, which MONAI's ``ScaleIntensityRangePercentilesd`` leaves as it is,
    is scaled between its extremes.

    Args:
        keys: images.
        lower: percentile that becomes 0.
        upper: percentile that becomes 1.

    Examples:
        >>> image = MetaTensor(torch.linspace(-1000.0, 3000.0, 200).view(1, 10, 20))
        >>> scaled = NormalizeIntensityRanged("image")({"image": image})["image"]
        >>> scaled.min().item(), scaled.max().item()
        (0.0, 1.0)
    """

    def __init__(self, keys: Sequence[str] = IMAGE_KEYS, lower: float = 0.5, upper: float = 99.5) -> None:
        super().__init__(keys)
        self.lower = lower
        self.upper = upper

    def __repr__(self) -> str:
        """Class and percentiles, for a checkpoint's description."""
        return f"{type(self).__name__}(lower={self.lower}, upper={self.upper})"

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """Each key ``(C, *S)`` to the same in [0, 1], float32."""
        result = dict(data)
        for key in self.key_iterator(data):
            scaled = self.scaled(working(values_of(data[key])), mask_of(data, key))
            result[key] = in_place_of(scaled, data[key])
        return result

    def scaled(self, channels: Tensor, known: Tensor | None) -> Tensor:
        """``(C, *S)``, of which ``known`` ``(1, *S)`` counts."""
        counted = channels if known is None else channels[:, known[0]]
        unit = torch.stack([unit_range(channel, self.lower, self.upper) for channel in counted]).float()
        if known is None:
            return unit
        result = unit.new_zeros(channels.shape)
        result[:, known[0]] = unit
        return filled(result, known)


class SoIGroupsd(MapTransform):
    """Label maps to structure-of-interest (SoI) channels.

    Args:
        keys: label maps ``(1, *S)``.
        soi_labels: K groups of label values, e.g. ``[[1, 2]]`` (merged) or ``[[1], [2]]`` (two channels); None takes
            the map as it is, real-valued, and scales its maximum to 1 (landmark or distance maps).
        allow_missing_keys: skip pairs without labels.

    Examples:
        >>> label = MetaTensor(torch.tensor([[[0, 1, 2, 3]]]))
        >>> SoIGroupsd("label", [[1, 2], [3]])({"label": label})["label"].tolist()
        [[[0.0, 1.0, 1.0, 0.0]], [[0.0, 0.0, 0.0, 1.0]]]
    """

    def __init__(
        self,
        keys: Sequence[str] = LABEL_KEYS,
        soi_labels: Sequence[Sequence[int]] | None = ((1,),),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.soi_labels = soi_labels

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """Each key ``(1, *S)`` to ``(K, *S)`` float32 in [0, 1]."""
        result = dict(data)
        for key in self.key_iterator(data):
            result[key] = in_place_of(self.channels(values_of(data[key])), data[key])
        return result

    def channels(self, label: Tensor) -> Tensor:
        """``(1, *S)`` to ``(K, *S)``."""
        if self.soi_labels is None:
            return scaled_to_one(label, "a map of structures of interest")
        whole = label.round().long()
        return torch.cat([torch.isin(whole, whole.new_tensor(list(group))) for group in self.soi_labels]).float()


class InitialAlignmentd(NotInvertible):
    """Moves the moving image and label into the fixed image's world by editing their affines.

    Writes ``T0`` ``(D+1, D+1)``, fixed world to moving world in RAS mm, under ``initial_alignment``. Where a mask is 0,
    intensities do not count.

    Args:
        name: "world", "center", "moments", "principal_axes", "rigid", "affine" or "structures", see
            :func:`istn_monai.alignment.initial_alignment`; or the file of a linear transform, fixed to moving points.
            Images that do not overlap after it raise an error.
        keys: what to move along; those that are absent are skipped.
        similarity: of images where they are registered for it: "mse", "image" (local correlation), "nmi" or "mind".
        network: of "structures", an :class:`istn_monai.ISTN` or :class:`istn_monai.DisplacementNetwork`, which is
            shared, not copied.

    Examples:
        >>> fixed = MetaTensor(torch.rand(1, 8, 9))
        >>> moving = MetaTensor(fixed.as_tensor(), affine=torch.tensor([[1.0, 0, 50], [0, 1, -20], [0, 0, 1]]))
        >>> InitialAlignmentd("center")({"moving_image": moving, "fixed_image": fixed})["initial_alignment"].tolist()
        [[1.0, 0.0, 50.0], [0.0, 1.0, -20.0], [0.0, 0.0, 1.0]]
    """

    def __init__(
        self,
        name: str = "world",
        keys: Sequence[str] = ("moving_image", "moving_label", "moving_mask", "moving_maps"),
        similarity: str = "mse",
        network: nn.Module | None = None,
    ) -> None:
        check_start(name)
        check_choice("similarity", similarity, tuple(SIMILARITIES))
        self.name = name
        self.keys = ensure_tuple(keys)
        self.similarity, self.network = similarity, network

    @property
    def files(self) -> list[str]:
        """What it reads besides a pair: a transform's file, if that is where it begins, and those that it names."""
        return [] if self.name in INITIAL_ALIGNMENTS else list(map(str, files_of(self.name)))

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        result = dict(data)
        moving, fixed = (data[key] for key in IMAGE_KEYS)
        counting = [self.counting(data, key) for key in IMAGE_KEYS]
        matrix = start_of(self.name, counting[0], counting[1], self.similarity, self.network)
        result["initial_alignment"] = matrix
        for key in self.keys:
            if key in data:
                image = data[key]
                result[key] = with_affine(image.as_tensor(), Grid.of(image).aligned(matrix).affine, image)
        aligned = result[IMAGE_KEYS[0]] if IMAGE_KEYS[0] in self.keys else moving
        if not overlap_in_world(Grid.of(fixed), Grid.of(aligned)):
            raise ValueError(
                f"{source(moving, IMAGE_KEYS[0])} and {source(fixed, IMAGE_KEYS[1])} do not overlap in the world under "
                f"initial_alignment {self.name!r}: choose 'center' or 'moments'"
            )
        return result

    def counting(self, data: Mapping[Hashable, Any], key: str) -> MetaTensor:
        """An image of the pair, without what does not count of it."""
        image, known = data[key], mask_of(data, key)
        if known is None or self.name in ("world", "center"):
            return image
        return with_affine(filled(image.as_tensor(), known), affine_of(image), image)


class ConcatPaird(Transform):
    """Joins a pair for the network: ``image`` ``(2C, *S)``, ``label`` ``(2K, *S)`` if there are, ``mask`` ``(2, *S)``.

    Moving channels first, then fixed; the metadata is the fixed image's (MONAI's ``ConcatItemsd`` keeps the first).

    Args:
        with_label: whether labels are joined; where they are only carried along they need not be on one grid.
        with_mask: whether masks are joined, of ones where a pair has none, so that all pairs of a batch have them.

    Examples:
        >>> pair = {"moving_image": MetaTensor(torch.zeros(1, 4, 4)), "fixed_image": MetaTensor(torch.ones(1, 4, 4))}
        >>> ConcatPaird()(pair)["image"][:, 0, 0].tolist()
        [0.0, 1.0]
    """

    def __init__(self, with_label: bool = True, with_mask: bool = False) -> None:
        self.joined = {"image": IMAGE_KEYS} | ({"label": LABEL_KEYS} if with_label else {})
        self.joined |= {"mask": MASK_KEYS} if with_mask else {}

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        result = dict(data)
        if "mask" in self.joined:
            every = torch.ones_like(data[IMAGE_KEYS[1]][:1])
            data = dict.fromkeys(MASK_KEYS, every) | dict(data)
        for name, (moving, fixed) in self.joined.items():
            if moving in data and fixed in data:
                both = torch.cat([data[moving].as_tensor(), data[fixed].as_tensor()])
                result[name] = with_affine(both, affine_of(data[fixed]), data[fixed])
        return result
