"""Transforms for other tools: a registration as an ITK transform, written and read.

Convention:
    What is written maps fixed to moving world points (pull-back), the direction in which ITK, SimpleITK, ANTs and 3D
    Slicer resample. Inside the package world points are RAS; ITK's are LPS, see :mod:`istn_monai.geometry.frames`.
    SimpleITK's transforms are ITK's; this is the only file that imports itk, for the few files that SimpleITK cannot
    read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.openers import ImageOpener
from nibabel.wrapstruct import WrapStructError
from torch import Tensor

from istn_monai.geometry.frames import flipped, lps
from istn_monai.geometry.world_transform import WorldAffine, WorldBSpline, WorldComponent, WorldField, WorldTransform
from istn_monai.io.elastix import elastix_transforms, is_elastix
from istn_monai.io.file_checks import check_file
from istn_monai.io.foreign_transforms import check_vectors, foreign_format
from istn_monai.io.itk_geometry import affine_of_geometry, geometry, to_index_of
from istn_monai.io.nifti import check_written_suffix, slabs_of, write_nifti
from istn_monai.io.simple_itk import last_line, one_at_a_time, sitk, warnings_are_errors
from istn_monai.io.transform_kinds import check_kinds, no_voxels, unsupported
from istn_monai.io.whole_transforms import check_whole_transform

SUFFIXES = (".h5", ".tfm")
BEYOND = (RuntimeError, KeyError, IndexError)  # KeyError: a kind without a class; IndexError: a damaged text
FARTHEST = 1e6  # mm, that a displacement may be
VECTORS = ("vector of 32-bit float", "vector of 64-bit float")
NIFTI = (".nii", ".nii.gz", ".hdr", ".img")
IMAGES = (*NIFTI, ".mha", ".mhd", ".nrrd", ".nhdr", ".vtk")  # that may hold the vectors of a displacement field


def affine_to_itk(part: WorldAffine) -> sitk.Transform:
    """``AffineTransform``."""
    matrix = flipped(part.matrix)
    transform = sitk.AffineTransform(len(matrix) - 1)
    transform.SetMatrix(matrix[:-1, :-1].ravel().tolist())
    transform.SetTranslation(matrix[:-1, -1].tolist())
    return transform


def bspline_to_itk(part: WorldBSpline) -> sitk.Transform:
    """``BSplineTransform``: its fixed parameters are the geometry of the control points, as ours."""
    values = part.values.numpy()
    origin, spacing, direction = geometry(part.affine)
    transform = sitk.BSplineTransform(len(values), 3)
    transform.SetFixedParameters([*map(float, values.shape[1:]), *origin, *spacing, *direction])
    control = np.tensordot(lps(len(values)), values, axes=1)
    transform.SetParameters(np.concatenate([component.ravel(order="F") for component in control]).tolist())
    return transform


def components_last(field: Tensor | np.ndarray) -> np.ndarray:
    """Displacements ``(D, *S)`` in RAS as ITK keeps them: in LPS, ``(*reversed S, D)``."""
    values = np.asarray(field, dtype=float)
    return np.ascontiguousarray(np.tensordot(lps(len(values)), values, axes=1).T)


def vector_image(field: Tensor | np.ndarray, affine: Tensor | np.ndarray, dtype: type[np.floating]) -> sitk.Image:
    """Displacements ``(D, *S)`` in mm, RAS, on a grid of RAS affine ``(D+1, D+1)``, as ITK's image of LPS vectors."""
    image = sitk.GetImageFromArray(components_last(field).astype(dtype), isVector=True)
    origin, spacing, direction = geometry(affine)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def field_to_itk(part: WorldField) -> sitk.Transform:
    """``DisplacementFieldTransform``."""
    return sitk.DisplacementFieldTransform(vector_image(part.values, part.affine, np.float64))


TO_ITK: dict[type, Any] = {WorldAffine: affine_to_itk, WorldBSpline: bspline_to_itk, WorldField: field_to_itk}


def to_itk(transform: WorldTransform) -> sitk.CompositeTransform:
    """``CompositeTransform`` of the same parts."""
    composite = sitk.CompositeTransform(transform.dims)
    for part in transform.components:
        composite.AddTransform(TO_ITK[type(part)](part))
    return composite


def kind_of(transform: Any) -> tuple[str, int]:
    """Name and dimension of a transform of SimpleITK or of itk: its class, with the order of a B-spline."""
    if isinstance(transform, sitk.Transform):
        transform = transform.Downcast()
        order = f" of order {transform.GetOrder()}" if isinstance(transform, sitk.BSplineTransform) else ""
        return transform.GetName() + order, transform.GetDimension()
    name, dims = transform.GetNameOfClass(), transform.GetInputSpaceDimension()
    # itk's type ends with the order if that is not 3
    order = (
        transform.GetTransformTypeAsString().removeprefix(f"BSplineTransform_double_{dims}_{dims}").strip("_") or "3"
    )
    return (f"{name} of order {order}" if name == "BSplineTransform" else name), dims


def members_of(transform: Any) -> list[Any]:
    """The transforms of a composite of SimpleITK or of itk."""
    if not isinstance(transform, sitk.Transform):
        import itk

        transform = itk.down_cast(transform)
    return [transform.GetNthTransform(number) for number in range(transform.GetNumberOfTransforms())]


def components_from_itk(transform: Any) -> list[WorldComponent]:
    """One transform of SimpleITK or of itk: linear, cubic B-spline, displacement field, or a composite of those."""
    name, dims = kind_of(transform)
    members = members_of(transform) if name == "CompositeTransform" else []
    # SimpleITK's name for a linear kind that it does not know is a composite, whose member is that composite again
    if members and not (len(members) == 1 and transform.IsLinear()):
        return [part for member in members for part in components_from_itk(member)]
    if transform.IsLinear():
        return [WorldAffine(flipped(matrix_of(transform, dims)))]
    if name == "BSplineTransform of order 3":
        affine, shape, to_index = lattice_of(transform, dims)
        if min(shape) < 4:
            raise ValueError(
                f"a cubic B-spline has 4 control points or more along each axis, got {list(map(int, shape[::-1]))}"
            )
        control = parameters_of(transform).reshape(dims, *shape).transpose(0, *range(dims, 0, -1))
        return [WorldBSpline(torch.as_tensor(np.tensordot(lps(dims), control, axes=1)), affine, to_index)]
    if name == "DisplacementFieldTransform":
        affine, shape, to_index = lattice_of(transform, dims)
        values = parameters_of(transform).reshape(*shape, dims).T
        return [WorldField(torch.as_tensor(np.tensordot(lps(dims), values, axes=1)), affine, to_index)]
    raise unsupported(name)


def matrix_of(transform: Any, dims: int) -> np.ndarray:
    """``(D+1, D+1)`` of a linear transform of any kind, in LPS."""
    origin = np.array(list(transform.TransformPoint([0.0] * dims)))
    columns = [np.array(list(transform.TransformPoint(row.tolist()))) - origin for row in np.eye(dims)]
    matrix = np.eye(dims + 1)
    matrix[:-1] = np.column_stack([*columns, origin])
    return matrix


def lattice_of(transform: Any, dims: int) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """RAS affine, reversed size, and world to index of the lattice of a B-spline or a displacement field.

    Raises:
        ValueError: if it has none.
    """
    fixed = np.array(list(transform.GetFixedParameters()))
    size, origin, spacing, axes = np.split(fixed, [dims, 2 * dims, 3 * dims])
    if (size < 1).any():
        raise no_voxels(kind_of(transform)[0])
    axes = axes.reshape(dims, dims)
    return affine_of_geometry(origin, spacing, axes), tuple(size.astype(int)[::-1]), to_index_of(spacing, axes)


def parameters_of(transform: Any) -> np.ndarray:
    """Parameters of a B-spline or a displacement field, flat."""
    if isinstance(transform, sitk.Transform) and transform.GetTransformEnum() == sitk.sitkDisplacementField:
        # the same numbers; a large field as a tuple takes gigabytes
        return sitk.GetArrayFromImage(sitk.DisplacementFieldTransform(transform).GetDisplacementField()).ravel()
    return np.array(list(transform.GetParameters()))


def write_transform(transform: WorldTransform, file: str | Path) -> Path:
    """Writes a transform as ``.h5`` (3D Slicer, SimpleITK, ANTs) or ``.tfm`` (text)."""
    path = Path(file).expanduser().absolute()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a transform is written as one of {SUFFIXES}, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = to_itk(transform)
    with one_at_a_time:
        sitk.WriteTransform(written, str(path))
    return path


def write_affine(matrix: Tensor, file: Path) -> None:
    """Writes a linear transform by itself, for tools that know no composites (greedy, say)."""
    with one_at_a_time:
        sitk.WriteTransform(affine_to_itk(WorldAffine(matrix)), str(file))


def itk_transforms(path: Path) -> list[Any]:
    """As :func:`transforms_in`, of a file that was looked through before."""
    check_kinds(path)
    check_whole_transform(path)
    return transforms_in(path)


def transforms_in(path: Path) -> list[Any]:
    """The transforms in a file, by SimpleITK, or by itk where that cannot read all of it.

    Beyond SimpleITK are several transforms in one file, and linear kinds that it has no class for, such as
    ``CenteredAffineTransform``.

    Raises:
        ValueError: if neither can, or if itk, which might, is not installed.
    """
    try:
        with warnings_are_errors():
            read = sitk.ReadTransform(str(path))
            if kind_of(read)[0] == "CompositeTransform":
                members_of(read)
            return [read]
    except BEYOND as error:
        try:
            import itk
        except ImportError:
            raise ValueError(
                f"{path} is beyond SimpleITK ({last_line(error)}); itk reads more: pip install itk"
            ) from error
    try:
        with one_at_a_time:
            return list(itk.transformread(str(path)))
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"{path} is not a transform that ITK can read ({last_line(error)}): give .h5, .tfm, .txt or .mat of ITK"
        ) from error


def read_transform(file: str | Path, dims: int | None = None) -> WorldTransform:
    """Reads a transform that :func:`write_transform` or another tool wrote, in any format that ITK reads, or elastix's.

    Args:
        file: of several transforms in one file the last acts first, as in ITK. An image of vectors is a displacement
            field, LPS mm, fixed to moving, as ANTs and :func:`write_displacement` write it.
        dims: that it must have; None for any.

    Raises:
        ValueError: naming the file, what it is, and, of other tools' formats, how to convert it.
    """
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no such transform: {path}")
    foreign = foreign_format(path)
    if foreign:
        raise ValueError(f"{path} is no transform of ITK's, but {foreign}")
    try:
        transform = transform_in(path)
        check_numbers(transform)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    check_dimensions(transform, path, dims)
    return transform


def check_dimensions(transform: WorldTransform, file: Path, dims: int | None) -> None:
    """ValueError if a transform has not so many dimensions; None for any."""
    if dims is not None and transform.dims != dims:
        raise ValueError(f"{file} is a transform of {transform.dims} dimensions, the images have {dims}")


def check_numbers(transform: WorldTransform) -> None:
    """ValueError if any parameter is not finite, or if a displacement is farther than ``FARTHEST``."""
    for part in transform.components:
        values = part.matrix if isinstance(part, WorldAffine) else getattr(part, "values", torch.zeros(1))
        if not torch.isfinite(values).all():
            raise ValueError("it has parameters that are NaN or infinite: write it again")
        if not isinstance(part, WorldAffine) and values.abs().max() >= FARTHEST:
            raise ValueError(f"it has displacements of {values.abs().max():.3g} mm: it is damaged, or not in mm")


def transform_in(path: Path) -> WorldTransform:
    """See :func:`read_transform`."""
    if path.name.lower().endswith(IMAGES):
        field = read_displacement(path)
        return WorldTransform([field], len(field.values))
    read = elastix_transforms(path) if is_elastix(path) else itk_transforms(path)
    _, dims = kind_of(read[0])
    if dims not in (2, 3):
        raise ValueError(f"a transform of {dims} dimensions is not supported: of 2 and 3 are")
    return WorldTransform([part for single in read for part in components_from_itk(single)], dims)


def read_displacement(path: Path) -> WorldField:
    """The displacement field in an image of LPS vectors, as ITK reads it.

    Raises:
        ValueError: it is no such image.
    """
    check_file(path, "transform")
    if path.name.lower().endswith(NIFTI):
        check_vectors(nib.load(path))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        check_is_displacement(reader, path)
        image = reader.Execute()
    except RuntimeError as error:
        raise ValueError(f"{path} cannot be read by ITK ({last_line(error)})") from error
    dims = image.GetDimension()
    spacing, axes = np.array(image.GetSpacing()), np.array(image.GetDirection()).reshape(dims, dims)
    affine = affine_of_geometry(np.array(image.GetOrigin()), spacing, axes)
    vectors = sitk.GetArrayViewFromImage(image).T
    return WorldField(
        torch.as_tensor(np.tensordot(lps(dims), vectors.astype(float), axes=1)), affine, to_index_of(spacing, axes)
    )


def check_is_displacement(reader: sitk.ImageFileReader, path: Path) -> None:
    """ValueError, before its voxels are read, unless an image consists of vectors of real numbers."""
    dims, components = reader.GetDimension(), reader.GetNumberOfComponents()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if dims not in (2, 3) or components != dims or kind not in VECTORS:
        raise ValueError(
            f"{path} is an image of {dims} axes with {components} value(s) for each voxel, of {kind}, and no "
            "displacement field: give one with a vector of LPS mm for each voxel, as ITK and ANTs write it (in NIfTI 5 "
            "axes and intent vector), or a transform (.h5, .tfm, .mat ...)"
        )


def displacement_header(shape: Sequence[int], affine: Tensor | np.ndarray, file: Path) -> nib.Nifti1Header:
    """The NIfTI header of displacements ``(D, *S)``, as ITK writes it into ``file`` for an image of one voxel."""
    dims, *size = shape
    sitk.WriteImage(vector_image(np.zeros((dims, *[1] * dims)), affine, np.float32), str(file))
    try:
        with ImageOpener(file) as content:
            header = nib.Nifti1Header.from_fileobj(content)
    except (WrapStructError, EOFError) as error:  # ITK does not say that a disk is full
        raise OSError(f"{file} cannot be written: {error}") from error
    header["dim"][1 : dims + 1] = size
    return header


def write_displacement(field: Tensor | np.ndarray, affine: Tensor | np.ndarray, file: str | Path) -> Path:
    """Writes displacements ``(D, *S)`` in mm, RAS, as a NIfTI image of vectors in LPS, float32: so ITK, ANTs and Slicer
    read it.

    Needs no memory for a copy of the field.
    """
    path = Path(file).expanduser().absolute()
    check_written_suffix(path, "a displacement field")
    values = np.asarray(field)
    header = displacement_header(values.shape, affine, path)
    signs = lps(len(values)).diagonal().tolist()
    components = zip(signs, values, strict=True)
    write_nifti(header, (sign * slab + 0.0 for sign, volume in components for slab in slabs_of(volume)), path)
    return path
