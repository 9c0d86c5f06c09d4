"""Readers as MONAI has them, one for each file, with voxels as torch can hold them.

Convention:
    nibabel reads NIfTI, Analyze and MGZ, SimpleITK all else, and no other takes over where one fails: MONAI would
    choose by what is installed, and its other readers put NRRD, PNG, GIF and TIFF elsewhere than ITK does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader, NibabelReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple

from istn_monai.geometry.frames import lps
from istn_monai.io.nifti_frames import nifti_affine
from istn_monai.io.simple_itk import sitk, warnings_shown

NIFTI = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
MGH = (".mgz", ".mgh")


def is_nifti(file: str | Path) -> bool:
    """Whether a file's name is one of NIfTI or Analyze, in any letters."""
    return Path(file).name.lower().endswith(NIFTI)


def is_mgh(file: str | Path) -> bool:
    """Whether a file's name is one of FreeSurfer's volumes."""
    return Path(file).name.lower().endswith(MGH)


def check_suffix(file: Path, place: str) -> None:
    """ValueError for a suffix that alone keeps a file from being read: ITK knows some in certain letters only."""
    given = next((end for end in (*NIFTI, ".mha", ".mhd", ".mgh.gz") if file.name.lower().endswith(end)), "")
    own = file.name[len(file.name) - len(given) :]
    if given == ".mgh.gz":
        raise ValueError(f"{place}: {file} has the suffix {own}, .mgz is expected: rename it")
    if own not in (given, given.upper() if given in NIFTI else given):
        raise ValueError(f"{place}: {file} has the suffix {own}, which ITK does not read in these letters: rename it")


def native(voxels: np.ndarray) -> np.ndarray:
    """Voxels in a type and byte order that torch knows, their values as they are.

    Raises:
        ValueError: for complex and color voxels, and for integers beyond 64 bits with a sign.

    Examples:
        >>> native(np.array([1, 2], dtype=">i2")).dtype.isnative, native(np.array([True])).dtype
        (True, dtype('uint8'))
    """
    kind = voxels.dtype.kind
    if kind not in "biuf":
        what = {"c": "complex numbers", "V": "colors"}.get(kind, str(voxels.dtype))
        raise ValueError(f"its voxels are {what}: write magnitude, phase, or gray values to a file of their own")
    if kind == "b":
        return voxels.astype(np.uint8)
    if voxels.dtype == np.uint64 and voxels.size and voxels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"its values go up to {voxels.max()}, whole numbers up to 2^63 - 1 can be held")
    if voxels.dtype.itemsize > 8:
        return voxels.astype(np.float64)
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


class TooManyAxes(ValueError):
    """An image has more axes than space."""


def check_axes(size: Sequence[int]) -> None:
    """TooManyAxes unless an image of this size has two or three axes besides channels."""
    if len(size) not in (2, 3):
        raise TooManyAxes(
            f"has {len(size)} axes besides channels, of size {tuple(size)}; an image has 2 or 3: write one volume to a "
            "file of its own"
        )


class FramedNibabelReader(NibabelReader):
    """nibabel, with an affine that was looked at before.

    Args:
        affine: RAS, mm, ``(4, 4)``; None for nibabel's own.
    """

    def __init__(self, affine: np.ndarray | None) -> None:
        super().__init__()
        self.affine = affine

    def _get_affine(self, img: Any) -> np.ndarray:
        """Of an image that nibabel loaded."""
        return super()._get_affine(img) if self.affine is None else self.affine.copy()

    def _get_array_data(self, img: Any, filename: Any) -> np.ndarray:
        """Its voxels, without axes of one behind the fourth: NIfTI has up to seven, and ITK leaves those out."""
        voxels = native(super()._get_array_data(img, filename))
        return voxels.reshape(voxels.shape[:4]) if voxels.shape[4:] == (1,) * (voxels.ndim - 4) else voxels


class SimpleITKReader(ImageReader):
    """SimpleITK, for MONAI's ``LoadImage``: an image where ITK sees it, of any of its types and number of components.

    MONAI's ``ITKReader`` knows neither 64 nor signed 8 bits, nor most vectors.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """ITK looks at the content of a file."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Any:
        """One file."""
        (file,) = ensure_tuple(data)
        with warnings_shown(False):
            return sitk.ReadImage(str(file), **kwargs)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """``(*S)``, or ``(*S, C)`` of several components, and its metadata, with a RAS affine in mm.

        Raises:
            ValueError: for an image of more than three axes.
        """
        dims, several = img.GetDimension(), img.GetNumberOfComponentsPerPixel() > 1
        check_axes(img.GetSize())
        values = sitk.GetArrayFromImage(img)
        values = values.transpose(*reversed(range(dims)), *([dims] if several else []))
        affine = np.eye(dims + 1)
        affine[:dims, :dims] = lps(dims) @ np.reshape(img.GetDirection(), (dims, dims)) @ np.diag(img.GetSpacing())
        affine[:dims, dims] = lps(dims) @ img.GetOrigin()
        return native(values), {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.SPATIAL_SHAPE: np.array(img.GetSize()),
            MetaKeys.ORIGINAL_CHANNEL_DIM: -1 if several else float("nan"),
        }


def reader_of(file: Path, place: str, nifti_frame: str | None = None) -> ImageReader:
    """The reader for a file.

    Args:
        file: that is there.
        place: how errors call it.
        nifti_frame: see :func:`istn_monai.io.nifti_frames.nifti_affine`.

    Raises:
        ValueError: if a NIfTI header has more than one meaning.
    """
    if is_nifti(file):
        return FramedNibabelReader(nifti_affine(file, place, nifti_frame))
    return FramedNibabelReader(None) if is_mgh(file) else SimpleITKReader()
