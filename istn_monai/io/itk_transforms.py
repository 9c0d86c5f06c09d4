"""Transforms for other tools: a registration as an ITK transform, written and read.

Convention:
    What is written maps fixed to moving world points (pull-back), the direction in which ITK, SimpleITK, ANTs and 3D
    Slicer resample. Inside the package world points are RAS; ITK's are LPS, and how the two differ stands here
    alone. This is also the only file that imports itk, and only when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.frames import flipped, lps
from istn_monai.geometry.world_transform import WorldAffine, WorldBSpline, WorldComponent, WorldField, WorldTransform

SUFFIXES = (".h5", ".tfm")


def load_itk() -> Any:
    """The itk package, or an ImportError that says how to get it."""
    try:
        import itk
    except ImportError as error:
        raise ImportError("transforms for other tools need itk: pip install itk") from error
    return itk


def parameters(values: Sequence[float] | np.ndarray) -> Any:
    """Numbers as ITK's parameters."""
    itk = load_itk()
    result = itk.OptimizerParameters[itk.D](len(values))
    for number, value in enumerate(values):
        result[number] = float(value)
    return result


def geometry(affine: Tensor | np.ndarray) -> tuple[list[float], list[float], np.ndarray]:
    """Origin, spacing and direction, in LPS, of an RAS affine ``(D+1, D+1)``."""
    affine = np.asarray(affine, dtype=float)
    columns = lps(len(affine) - 1) @ affine[:-1]
    spacing = np.linalg.norm(columns[:, :-1], axis=0)
    return columns[:, -1].tolist(), spacing.tolist(), np.ascontiguousarray(columns[:, :-1] / spacing)


def affine_of_geometry(origin: np.ndarray, spacing: np.ndarray, axes: np.ndarray) -> Tensor:
    """The RAS affine ``(D+1, D+1)`` of an ITK geometry."""
    dims = len(axes)
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = lps(dims) @ axes * spacing
    affine[:-1, -1] = lps(dims) @ origin
    return torch.as_tensor(affine)


def affine_to_itk(part: WorldAffine) -> Any:
    """``itk.AffineTransform``."""
    itk = load_itk()
    matrix = flipped(part.matrix)
    transform = itk.AffineTransform[itk.D, len(matrix) - 1].New()
    transform.SetParametersByValue(parameters([*matrix[:-1, :-1].ravel(), *matrix[:-1, -1]]))
    return transform


def bspline_to_itk(part: WorldBSpline) -> Any:
    """``itk.BSplineTransform``: its domain begins at the second control point."""
    itk = load_itk()
    dims = len(part.values)
    cells = [size - 3 for size in part.values.shape[1:]]
    affine = part.affine.clone()
    affine[:-1, -1] += affine[:-1, :-1].sum(1)
    origin, spacing, direction = geometry(affine)
    transform = itk.BSplineTransform[itk.D, dims, 3].New()
    transform.SetTransformDomainOrigin(origin)
    transform.SetTransformDomainDirection(itk.matrix_from_array(direction))
    transform.SetTransformDomainPhysicalDimensions([n * step for n, step in zip(cells, spacing, strict=True)])
    transform.SetTransformDomainMeshSize(cells)
    control = np.tensordot(lps(dims), part.values.numpy(), axes=1)
    transform.SetParametersByValue(parameters(np.concatenate([component.ravel(order="F") for component in control])))
    return transform


def components_last(field: Tensor | np.ndarray) -> np.ndarray:
    """Displacements ``(D, *S)`` in RAS as ITK keeps them: in LPS, ``(*reversed S, D)``."""
    values = np.asarray(field, dtype=float)
    return np.ascontiguousarray(np.tensordot(lps(len(values)), values, axes=1).T)


def field_to_itk(part: WorldField) -> Any:
    """``itk.DisplacementFieldTransform``."""
    itk = load_itk()
    values = components_last(part.values)
    dims = values.shape[-1]
    origin, spacing, direction = geometry(part.affine)
    transform = itk.DisplacementFieldTransform[itk.D, dims].New()
    transform.SetFixedParameters(parameters([*values.shape[-2::-1], *origin, *spacing, *direction.ravel()]))
    transform.SetParametersByValue(parameters(values.ravel()))
    return transform


TO_ITK: dict[type, Any] = {WorldAffine: affine_to_itk, WorldBSpline: bspline_to_itk, WorldField: field_to_itk}


def to_itk(transform: WorldTransform) -> Any:
    """``itk.CompositeTransform`` of the same parts."""
    itk = load_itk()
    composite = itk.CompositeTransform[itk.D, transform.dims].New()
    for part in transform.components:
        composite.AddTransform(TO_ITK[type(part)](part))
    return composite


def components_from_itk(transform: Any) -> list[WorldComponent]:
    """One ITK transform, of any linear kind, a cubic B-spline, a displacement field, or a composite of those."""
    itk = load_itk()
    name, dims = transform.GetNameOfClass(), transform.GetInputSpaceDimension()
    if name == "CompositeTransform":
        transform = itk.down_cast(transform)
        numbers = range(transform.GetNumberOfTransforms())
        return [part for number in numbers for part in components_from_itk(transform.GetNthTransform(number))]
    if transform.IsLinear():
        origin = np.array(list(transform.TransformPoint([0.0] * dims)))
        columns = [np.array(list(transform.TransformPoint(row.tolist()))) - origin for row in np.eye(dims)]
        matrix = np.eye(dims + 1)
        matrix[:-1] = np.column_stack([*columns, origin])
        return [WorldAffine(flipped(matrix))]
    # the type ends with the order of the spline if that is not 3
    if transform.GetTransformTypeAsString() == f"BSplineTransform_double_{dims}_{dims}":
        values, affine, shape = lattice_of(transform)
        control = values.reshape(dims, *shape).transpose(0, *range(dims, 0, -1))
        return [WorldBSpline(torch.as_tensor(np.tensordot(lps(dims), control, axes=1)), affine)]
    if name == "DisplacementFieldTransform":
        values, affine, shape = lattice_of(transform)
        return [WorldField(torch.as_tensor(np.tensordot(lps(dims), values.reshape(*shape, dims).T, axes=1)), affine)]
    raise ValueError(f"{name} is not supported: linear transforms, cubic B-splines and displacement fields are")


def lattice_of(transform: Any) -> tuple[np.ndarray, Tensor, tuple[int, ...]]:
    """Parameters, RAS affine and reversed size of the lattice of a B-spline or a displacement field."""
    dims = transform.GetInputSpaceDimension()
    fixed = np.array(list(transform.GetFixedParameters()))
    size, origin, spacing, axes = np.split(fixed, [dims, 2 * dims, 3 * dims])
    affine = affine_of_geometry(origin, spacing, axes.reshape(dims, dims))
    return np.array(list(transform.GetParameters())), affine, tuple(size.astype(int)[::-1])


def write_transform(transform: WorldTransform, file: str | Path) -> Path:
    """Writes a transform as ``.h5`` (3D Slicer, SimpleITK, ANTs) or ``.tfm`` (text)."""
    itk = load_itk()
    path = Path(file).expanduser().absolute()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"a transform is written as one of {SUFFIXES}, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = itk.TransformFileWriterTemplate[itk.D].New()
    writer.SetFileName(str(path))
    writer.SetInput(to_itk(transform))
    writer.Update()
    return path


def read_transform(file: str | Path, dims: int | None = None) -> WorldTransform:
    """Reads a transform that :func:`write_transform` or another tool wrote, in any format that ITK reads.

    Args:
        file: of several transforms in one file the last acts first, as in ITK.
        dims: that it must have; None for any.
    """
    itk = load_itk()
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no such transform: {path}")
    try:
        read = list(itk.transformread(str(path)))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a transform that ITK can read (.h5, .tfm, .txt, .mat ...)") from error
    found = read[0].GetInputSpaceDimension()
    if dims is not None and found != dims:
        raise ValueError(f"{path} is a transform of {found} dimensions, the images have {dims}")
    try:
        return WorldTransform([part for single in read for part in components_from_itk(single)], found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_displacement(field: Tensor | np.ndarray, affine: Tensor | np.ndarray, file: str | Path) -> Path:
    """Writes displacements ``(D, *S)`` in mm, RAS, as an image of vectors in LPS: so ITK, ANTs and Slicer read it."""
    itk = load_itk()
    path = Path(file).expanduser().absolute()
    values: np.ndarray = components_last(field).astype(np.float32)
    dims = values.shape[-1]
    image = itk.image_from_array(values, ttype=itk.Image[itk.Vector[itk.F, dims], dims])
    origin, spacing, direction = geometry(affine)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(itk.matrix_from_array(direction))
    itk.imwrite(image, str(path))
    return path
