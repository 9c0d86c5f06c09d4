"""Images from files, through MONAI's readers, all where ITK's tools see them; and back."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import torch
from monai.data import ImageReader, MetaTensor
from monai.transforms import EnsureChannelFirst
from monai.transforms.io.array import switch_endianness
from monai.utils import ImageMetaKey, get_equivalent_dtype
from torch import Tensor

from istn_monai.geometry.exact import EXACT, largest
from istn_monai.geometry.grids import square
from istn_monai.geometry.meta import affine_of
from istn_monai.io.dicom import is_dicom, read_series
from istn_monai.io.file_checks import check_file
from istn_monai.io.nifti_frames import check_right_angles
from istn_monai.io.nifti_headers import units_of
from istn_monai.io.paths import replacing
from istn_monai.io.readers import TooManyAxes, check_axes, is_nifti, reader_of
from istn_monai.io.simple_itk import last_line

TIME = "time_step"  # key of the metadata of several volumes, see :func:`time_step`
DISPLACEMENTS = 1006  # NIfTI's intent
Dtype: TypeAlias = type | np.dtype | torch.dtype | None
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def gray(image: MetaTensor, file: Path) -> MetaTensor:
    """A picture without colors, one channel, where three say the same, as ITK reads gray palettes; others as they are.

    Args:
        image: channel-first.
        file: that it is from.
    """
    same = file.suffix.lower() in PICTURES and len(image) == 3 and bool((image == image[:1]).all())
    return image[:1] if same else image


def read_image(
    file: str | Path, nifti_frame: str | None = None, series: str | None = None, dtype: Dtype = np.float32
) -> MetaTensor:
    """An image, channel-first, where ITK sees it, its affine RAS mm.

    Args:
        file: image file, or folder of one DICOM series.
        nifti_frame: see :func:`istn_monai.io.nifti_frames.nifti_affine`.
        series: Series Instance UID of DICOM; needed where there are several.
        dtype: of the image; None keeps the file's.
    """
    return read_or_explain(file, "image", nifti_frame, series, dtype)


def read_or_explain(
    file: str | Path,
    place: str,
    nifti_frame: str | None = None,
    series: str | None = None,
    dtype: Dtype = np.float32,
) -> MetaTensor:
    """As :func:`read_image`, or a ValueError that calls the file ``place`` and names it."""
    path = Path(file)
    if not path.exists():
        raise FileNotFoundError(f"{place}: no such file: {file}")
    check_file(path, place)
    if is_dicom(path):
        return in_dtype(read_series(path, place, series), dtype)
    if path.is_dir():
        raise ValueError(f"{place}: {file} is a folder without a DICOM file: give an image file")
    if series is not None:
        raise ValueError(f"{place}: {file} is not DICOM and has no series: leave series out")
    reader = reader_of(path, place, nifti_frame)
    try:
        image = gray(in_dtype(loaded(path, reader), dtype), path)
        check_axes(image.shape[1:])
    except TooManyAxes as error:
        raise ValueError(f"{place}: {file} {error}") from error
    except Exception as error:
        raise ValueError(f"{place}: cannot read {file}: is it a whole image file? ({last_line(error)})") from error
    check_right_angles(square(image.affine, image.ndim - 1).numpy(), path, place)
    check_intent(image, path, place)
    if is_nifti(path) and image.ndim == 4 and len(image) > 1:
        image.meta[TIME] = time_step(path)
    return image


def read_exactly(file: str | Path, key: str, nifti_frame: str | None = None, dtype: Dtype = np.float32) -> MetaTensor:
    """A label map in a dtype, unless that would round its values."""
    label = read_or_explain(file, key, nifti_frame, dtype=None)
    return label if largest(label.as_tensor()) >= EXACT else in_dtype(label, dtype)


def loaded(file: Path, reader: ImageReader) -> MetaTensor:
    """As MONAI's ``LoadImage`` hands an image over, channel-first, by this reader alone."""
    values, meta = reader.get_data(reader.read(str(file)))
    meta = switch_endianness(meta, "<") | {ImageMetaKey.FILENAME_OR_OBJ: str(file)}
    return folded(EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(values, meta)))


def folded(image: MetaTensor) -> MetaTensor:
    """A 2-D image of several channels ``(C, X, Y, 1)``, which NIfTI has behind a third axis, as ``(C, X, Y)``."""
    if image.ndim != 4 or len(image) == 1 or image.shape[-1] > 1:
        return image
    result = MetaTensor(image.as_tensor()[..., 0], meta=dict(image.meta))
    result.affine = square(image.affine, 2)
    return result


def in_dtype(image: MetaTensor, dtype: Dtype) -> MetaTensor:
    """An image in another type; None keeps its own."""
    return image if dtype is None else image.to(get_equivalent_dtype(dtype, torch.Tensor))


def check_intent(image: MetaTensor, file: Path, place: str) -> None:
    """ValueError for a NIfTI image that says it is one of displacements, whose signs ITK turns while reading."""
    if int(image.meta.get("intent_code", 0)) == DISPLACEMENTS:
        raise ValueError(
            f"{place}: {file} says that its values are displacements (NIfTI intent {DISPLACEMENTS}): give an image, or "
            "correct the header"
        )


def time_step(file: Path) -> tuple[float, str]:
    """The time between two volumes of a NIfTI file and its unit, which MONAI's reader does not keep."""
    header = nib.load(file).header
    return float(header.get_zooms()[3]), units_of(header)[1]


def save_image(image: MetaTensor, file: Path) -> None:
    """Writes a channel-first image as NIfTI in mm, several channels as its last axis, which may be that of time."""
    array = image.as_tensor().detach().cpu().numpy()
    dims = array.ndim - 1
    if array.dtype.itemsize == 8 and array.dtype.kind in "iu":  # NIfTI's readers do not know those
        array = array.astype(np.result_type(*(np.min_scalar_type(int(value)) for value in (array.min(), array.max()))))
    channels, *size = array.shape
    # NIfTI's first three axes are space, so channels are the fourth
    array = array[0] if channels == 1 else np.moveaxis(array, 0, -1).reshape(*size, *[1] * (3 - dims), channels)
    affine = np.eye(4)
    original = np.asarray(image.meta.get("original_affine", affine))
    if original.shape == affine.shape:
        affine = original.astype(float)  # a 2-D image keeps its plane in space
    small = affine_of(image).numpy()
    affine[:dims, :dims], affine[:dims, 3] = small[:dims, :dims], small[:dims, dims]
    written = nib.Nifti1Image(array, affine, dtype=array.dtype)
    step, unit = image.meta.get(TIME, (1.0, "unknown"))
    written.header.set_xyzt_units("mm", unit)
    if written.ndim > 3:
        written.header["pixdim"][4] = step
    nib.save(written, file)


def write_image(image: MetaTensor, file: Path) -> None:
    """As :func:`save_image`, whole or not at all, in a folder that is made for it."""
    with replacing(file) as part:
        save_image(image, part)


def load_image(
    file: str, name: str, dims: int | None, nifti_frame: str | None = None, series: str | None = None
) -> MetaTensor:
    """A channel-first image of so many dimensions, None for any, or an error that names the argument and the file."""
    path = Path(file).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file: {path}")
    image = read_or_explain(path, name, nifti_frame, series, dtype=None)
    dims = image.ndim - 1 if dims is None else dims
    if image.ndim - 1 != dims:
        raise ValueError(f"{source(image, name)} is {image.ndim - 1}-D, the transform {dims}-D: both must be the same")
    check_dims(image, name, dims)
    check_affine(image, name)
    return image


def source(image: Tensor, key: str) -> str:
    """How an error names an image: its key and, where known, its file."""
    file = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    return f"{key} ({file})" if file else key


def check_dims(image: Tensor, key: str, spatial_dims: int) -> None:
    """ValueError unless ``image`` is ``(C, *S)`` with as many axes as the configuration, 2 voxels along each."""
    found = image.ndim - 1
    if found != spatial_dims:
        flat = " (a 2-D image stored with a third axis of 1 voxel must be written without it)"
        raise ValueError(
            f"{source(image, key)} is {found}-D, of size {tuple(image.shape[1:])}, but the configuration is "
            f"{spatial_dims}-D, as its weights are: it needs {spatial_dims}-D images{flat if found == 3 else ''}; "
            f"to train a network for {found}-D images, give {found} numbers as spatial_size; without a network, model "
            f"{'intensities_2d' if found == 2 else 'intensities'} registers them"
        )
    if min(image.shape[1:]) < 2:
        raise ValueError(f"{source(image, key)} needs 2 voxels along each axis, got size {tuple(image.shape[1:])}")


def check_affine(image: Tensor, key: str) -> None:
    """ValueError unless the header's affine is finite and can be inverted."""
    if not isinstance(image, MetaTensor):
        return
    affine = square(image.affine, image.ndim - 1)
    axes = affine[:-1, :-1] / affine[:-1, :-1].norm(dim=0)  # of length 1, so that voxels may be of any size
    if not torch.isfinite(affine).all() or not abs(torch.linalg.det(axes).item()) > 1e-6:
        raise ValueError(
            f"{source(image, key)} has a header without a usable affine in its {image.ndim - 1} axes: "
            f"{affine.tolist()}; repair it"
        )
