"""Images from files, through MONAI's readers, all in the frame in which ITK's tools see them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
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


def read_or_explain(file: str | Path, place: str, **options: Any) -> MetaTensor:
    """The image in ``file``, or a ValueError that names it; ``options`` are those of MONAI's ``LoadImage``."""
    try:
        return read_image(file, **options)
    except Exception as error:
        raise ValueError(f"{place}: cannot read {file}: is it a whole image file? ({last_line(error)})") from error


def last_line(error: BaseException) -> str:
    """The last line of an error's text: MONAI's reader errors are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class LoadPaird(MapTransform):
    """Reads the images and labels of a pair, channel-first, in ITK's frame; keys that a pair lacks are left out.

    A host may hand over images that it has in memory already: they are taken as they are.

    Args:
        keys: each holds a path, or a channel-first MetaTensor whose affine is RAS mm.
        options: of MONAI's ``LoadImage``; ``dtype`` None keeps the file's.

    Example:
        >>> image = MetaTensor([[[1.0, 2.0]]])
        >>> LoadPaird(["moving_image", "moving_label"])({"moving_image": image})["moving_image"].tolist()
        [[[1.0, 2.0]]]
    """

    def __init__(self, keys: Sequence[str], **options: Any) -> None:
        super().__init__(keys, allow_missing_keys=True)
        self.options = options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Each key to ``(C, *S)``."""
        return dict(data) | {key: self.load(data[key], str(key)) for key in self.key_iterator(data)}

    def load(self, image: Any, key: str) -> MetaTensor:
        """The image at a path; or the image that it is."""
        if isinstance(image, (str, Path)):
            return read_or_explain(image, key, **self.options)
        if not isinstance(image, MetaTensor):
            raise ValueError(f"{key} must be a path or a channel-first MetaTensor with an affine, got {type(image)}")
        result = MetaTensor(image.as_tensor(), meta={"original_affine": image.affine.clone()} | dict(image.meta))
        result.affine = image.affine
        return result
