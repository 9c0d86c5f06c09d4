"""Images from files, through MONAI's readers, all in the frame in which ITK's tools see them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform


def itk_framed(image: MetaTensor) -> MetaTensor:
    """An image in ITK's frame, also where its file has none: PNG, JPEG and the like.

    ITK, SimpleITK and 3D Slicer take the pixel index of such a file as LPS mm, MONAI's reader as RAS mm, which is
    mirrored along both axes: a transform written from there would be wrong in all of them.

    Args:
        image: as read by MONAI; left alone if its file says where it lies.
    """
    if "mode" not in image.meta:  # MONAI's PILReader alone notes the colour mode
        return image
    affine = image.affine.clone()
    affine[[0, 1], [0, 1]] = -1.0
    result = MetaTensor(image.as_tensor(), meta=dict(image.meta) | {"original_affine": affine.clone(), "space": "RAS"})
    result.affine = affine
    return result


def read_image(file: str | Path, **options: Any) -> MetaTensor:
    """An image, channel-first, in ITK's frame; ``options`` are those of MONAI's ``LoadImage``."""
    return itk_framed(LoadImage(image_only=True, ensure_channel_first=True, **options)(file))


class ItkFramed(MapTransform):
    """:func:`itk_framed` for a dictionary; it comes next after ``LoadImaged``.

    Args:
        keys: images and labels.
        allow_missing_keys: as in MONAI.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Each key ``(C, *S)`` to the same voxels."""
        return dict(data) | {key: itk_framed(data[key]) for key in self.key_iterator(data)}
