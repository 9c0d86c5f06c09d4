"""Transforms for other tools: a registration as an ITK transform in world space, written, read and inverted.

Convention:
    What is written maps fixed to moving world points (pull-back), the direction in which ITK, SimpleITK, ANTs and 3D
    Slicer resample: ``T0 o (id + u)``. Inside the package world points are RAS; ITK's are LPS, and this file is the
    only one that knows. It is also the only one that imports itk, and only when it is used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from istn_monai.bspline import BSplineTransformation
from istn_monai.spatial import AffineTransformation, CompositeTransformation
from istn_monai.transformation import Transformation
from istn_monai.world import grid_centre

SUFFIXES = (".h5", ".tfm", ".txt", ".mat", ".xfm")
WRITTEN_SUFFIXES = (".h5", ".tfm")


def load_itk() -> Any:
    """The itk package, or an ImportError that says how to get it."""
    try:
        import itk
    except ImportError as error:
        raise ImportError("transforms for other tools need itk: pip install itk") from error
    return itk


def lps(dims: int) -> np.ndarray:
    """``(D, D)``: RAS to LPS, and back. ITK's 2-D images flip both axes, as 3-D ones flip their first two."""
    return np.diag([-1.0, -1.0, 1.0][:dims])


def map_to_lps(matrix: Tensor | np.ndarray) -> np.ndarray:
    """A map ``(D+1, D+1)`` from RAS to RAS points as one from LPS to LPS points."""
    matrix = np.array(matrix, dtype=float)
    flip = lps(len(matrix) - 1)
    matrix[:-1] = flip @ matrix[:-1]
    matrix[:, :-1] = matrix[:, :-1] @ flip
    return matrix


def affine_to_itk(matrix: Tensor | np.ndarray) -> Any:
    """``itk.AffineTransform`` of a world map ``(D+1, D+1)``, RAS."""
    itk = load_itk()
    values = map_to_lps(matrix)
    dims = len(values) - 1
    transform = itk.AffineTransform[itk.D, dims].New()
    transform.SetParametersByValue(parameters([*values[:-1, :-1].ravel(), *values[:-1, -1]]))
    return transform


def parameters(values: Sequence[float] | np.ndarray) -> Any:
    """Numbers as ITK's parameters."""
    itk = load_itk()
    result = itk.OptimizerParameters[itk.D](len(values))
    for number, value in enumerate(values):
        result[number] = float(value)
    return result


def directions(grid_affine: Tensor) -> np.ndarray:
    """``(D, D)``: unit vectors of a grid's axes in RAS, as columns."""
    columns = grid_affine[:-1, :-1].double().numpy()
    return columns / np.linalg.norm(columns, axis=0)


def from_grid(transformation: Transformation, grid_affine: Tensor) -> np.ndarray:
    """``(D+1, D+1)``: mm along the grid's axes from its centre, to RAS."""
    matrix = np.eye(transformation.spatial_dims + 1)
    matrix[:-1, :-1] = directions(grid_affine)
    matrix[:-1, -1] = grid_centre(transformation.spatial_size, grid_affine).numpy()
    return matrix


def bspline_to_itk(bspline: BSplineTransformation, theta: Tensor, grid_affine: Tensor) -> Any:
    """``itk.BSplineTransform`` of one level, ``theta`` ``(1, P)``: the same control points in LPS."""
    itk = load_itk()
    dims = bspline.spatial_dims
    axes = lps(dims) @ directions(grid_affine)
    extent = np.array([cells * c for cells, c in zip(bspline.cells, bspline.control_spacing, strict=True)])
    centre = lps(dims) @ grid_centre(bspline.spatial_size, grid_affine).numpy()  # the domain's too
    transform = itk.BSplineTransform[itk.D, dims, 3].New()
    transform.SetTransformDomainOrigin((centre - axes @ (extent / 2)).tolist())
    transform.SetTransformDomainDirection(itk.matrix_from_array(np.ascontiguousarray(axes)))
    transform.SetTransformDomainPhysicalDimensions(extent.tolist())
    transform.SetTransformDomainMeshSize(list(bspline.cells))
    control = np.tensordot(axes, bspline.control_displacements(theta.double())[0].numpy(), axes=1)
    transform.SetParametersByValue(parameters(np.concatenate([part.ravel(order="F") for part in control])))
    return transform


def geometry(affine: Tensor | np.ndarray) -> tuple[list[float], list[float], np.ndarray]:
    """Origin, spacing and direction, in LPS, of an RAS affine ``(D+1, D+1)``."""
    affine = np.asarray(affine, dtype=float)
    columns = lps(len(affine) - 1) @ affine[:-1]
    spacing = np.linalg.norm(columns[:, :-1], axis=0)
    return columns[:, -1].tolist(), spacing.tolist(), np.ascontiguousarray(columns[:, :-1] / spacing)


def components_last(field: Tensor | np.ndarray) -> np.ndarray:
    """Displacements ``(D, *S)`` in RAS as ITK keeps them: in LPS, ``(*reversed S, D)``."""
    values = np.asarray(field, dtype=float)
    return np.ascontiguousarray(np.tensordot(lps(len(values)), values, axes=1).T)


def field_to_itk(field: Tensor | np.ndarray, affine: Tensor | np.ndarray) -> Any:
    """``itk.DisplacementFieldTransform`` of displacements ``(D, *S)`` in mm, RAS, on a grid with an affine."""
    itk = load_itk()
    values = components_last(field)
    dims = values.shape[-1]
    origin, spacing, direction = geometry(affine)
    transform = itk.DisplacementFieldTransform[itk.D, dims].New()
    fixed = [*reversed(values.shape[:-1]), *origin, *spacing, *direction.ravel()]
    transform.SetFixedParameters(parameters(fixed))
    transform.SetParametersByValue(parameters(values.ravel()))
    return transform


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


def parts_of(transformation: Transformation, theta: Tensor) -> Iterator[tuple[Transformation, Tensor]]:
    """The single transformations of a composition with their parameters, the one that acts last first."""
    if isinstance(transformation, CompositeTransformation):
        for part, block in zip(transformation.parts, transformation.split(theta), strict=True):
            yield from parts_of(part, block)
    else:
        yield transformation, theta


def part_to_itk(transformation: Transformation, theta: Tensor, grid_affine: Tensor) -> Any:
    """One transformation in world space: parametric where ITK has the same, else its displacement field."""
    if isinstance(transformation, BSplineTransformation):
        return bspline_to_itk(transformation, theta, grid_affine)
    to_world = from_grid(transformation, grid_affine)
    if isinstance(transformation, AffineTransformation):
        matrix = transformation.matrix(theta.double())[0].numpy()
        return affine_to_itk(to_world @ matrix @ np.linalg.inv(to_world))
    millimetres = np.tensordot(grid_affine[:-1, :-1].numpy(), transformation(theta.double())[0].numpy(), axes=1)
    return field_to_itk(millimetres, grid_affine)


def to_itk(transformation: Transformation, theta: Tensor, grid_affine: Tensor, initial_alignment: Tensor) -> Any:
    """The whole registration of one pair as an ``itk.CompositeTransform``, fixed to moving world points.

    Args:
        transformation: of the registration grid.
        theta: ``(1, P)``.
        grid_affine: of the registration grid, ``(D+1, D+1)``, RAS.
        initial_alignment: ``T0`` ``(D+1, D+1)``, fixed to moving world points, RAS.
    """
    if theta.ndim != 2 or len(theta) != 1:
        raise ValueError(f"theta must be (1, P), one pair, got {tuple(theta.shape)}")
    theta, grid_affine = theta.detach().cpu(), grid_affine.detach().cpu().double()
    itk = load_itk()
    composite = itk.CompositeTransform[itk.D, transformation.spatial_dims].New()
    composite.AddTransform(affine_to_itk(initial_alignment))  # what is added last acts first
    for part, block in parts_of(copy.deepcopy(transformation).cpu(), theta):
        composite.AddTransform(part_to_itk(part, block, grid_affine))
    return composite


def write_transform(transform: Any, file: str | Path) -> Path:
    """Writes an ITK transform as ``.h5`` (3D Slicer, SimpleITK, ANTs) or ``.tfm`` (text)."""
    itk = load_itk()
    path = Path(file).expanduser().absolute()
    if path.suffix not in WRITTEN_SUFFIXES:
        raise ValueError(f"a transform is written as one of {WRITTEN_SUFFIXES}, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = itk.TransformFileWriterTemplate[itk.D].New()
    writer.SetFileName(str(path))
    writer.SetInput(transform)
    writer.Update()
    return path


def read_transform(file: str | Path, dims: int | None = None) -> Any:
    """Reads any transform that ITK reads, as an ``itk.CompositeTransform``.

    Args:
        file: written by :func:`write_transform`, or by another tool.
        dims: that it must have; None for any.
    """
    itk = load_itk()
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no such transform: {path}")
    try:
        parts = itk.transformread(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a transform that ITK can read (one of {SUFFIXES})") from error
    found = parts[0].GetInputSpaceDimension()
    if dims is not None and found != dims:
        raise ValueError(f"{path} is a transform of {found} dimensions, the images have {dims}")
    if isinstance(parts[0], itk.CompositeTransform[itk.D, found]) and len(parts) == 1:
        return parts[0]
    composite = itk.CompositeTransform[itk.D, found].New()
    for part in parts:
        composite.AddTransform(part)
    return composite


def transform_world_points(transform: Any, points: Tensor | np.ndarray) -> np.ndarray:
    """RAS points ``(N, D)`` through an ITK transform."""
    values = np.asarray(points, dtype=float)
    flip = lps(values.shape[1])
    return (
        np.array([list(transform.TransformPoint(point.tolist())) for point in values @ flip]).reshape(-1, len(flip))
        @ flip
    )
