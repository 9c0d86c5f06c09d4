"""A transform by its name, as it is typed: a file of any kind that is read, what a plain matrix means, an inverse.

Convention:
    ``FILE``; ``greedy:FILE`` and ``fsl:FILE``, plain matrices, see :mod:`istn_monai.io.matrix_files`; ``[FILE,1]``,
    as ANTs writes it, the inverse of any of these, and ``[FILE,0]`` itself. What comes maps fixed to moving points.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from istn_monai.geometry.components import WorldAffine, WorldComponent
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.elastix import elastix_files
from istn_monai.io.itk_transforms import check_dimensions, read_transform
from istn_monai.io.matrix_files import read_matrix

CONVENTION_OF = {"greedy:": "ras", "fsl:": "fsl"}  # by prefix
BRACKETS = re.compile(r"\[(?P<file>.+?)(?:,\s*(?P<inverse>[01]))?\s*\]")


def parts_of(name: str) -> tuple[str, str, bool]:
    """Prefix, file and whether the inverse is meant, of a transform's name.

    Examples:
        >>> parts_of("[fsl:flirt.mat,1]")
        ('fsl:', 'flirt.mat', True)
        >>> parts_of("transform.h5")
        ('', 'transform.h5', False)
    """
    text = str(name)
    found = None if Path(text).exists() else BRACKETS.fullmatch(text)
    file, inverse = (found["file"].strip(), found["inverse"] == "1") if found else (text, False)
    prefix = next((known for known in CONVENTION_OF if file.startswith(known) and not Path(file).exists()), "")
    return prefix, file.removeprefix(prefix), inverse


def file_of(name: str) -> Path:
    """The file that a transform's name means, absolute."""
    return Path(parts_of(name)[1]).expanduser().absolute()


def files_of(name: str) -> list[Path]:
    """The files that a transform's name means, absolute: one, or elastix's parameter file and its initial ones."""
    file = file_of(name)
    return elastix_files(file) if file.is_file() else [file]


def needs_grids(name: str) -> bool:
    """Whether a transform's name says that images belong to it: a matrix of flirt's, an inverse."""
    prefix, _, inverse = parts_of(name)
    return prefix == "fsl:" or inverse


def read_any_transform(
    name: str, dims: int | None = None, moving: Grid | None = None, fixed: Grid | None = None
) -> WorldTransform:
    """Reads a transform by its name, see the module.

    Args:
        name: of the file, with what is to be said of it.
        dims: that the transform must have; None for any.
        moving: grid of the image that is moved, for ``fsl:`` alone.
        fixed: grid of the image that it is moved to, for ``fsl:``; and where the inverse of what is not linear
            is needed: so far its displacement field reaches. An inverse moves what its file took as fixed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, what it is and what is expected; a grid is missing.
    """
    prefix, file, inverse = parts_of(name)
    if prefix:
        own = (fixed, moving) if inverse else (moving, fixed)  # a matrix whose inverse is meant led the other way
        transform = read_matrix(file, CONVENTION_OF[prefix], *own)
        check_dimensions(transform, file_of(name), dims)
    else:
        transform = read_transform(file, dims)
    if not inverse:
        return transform
    linear = all(isinstance(part, WorldAffine) for part in transform.components)
    if fixed is None and not linear:
        raise ValueError(
            f"{name}: the inverse of what is not linear is a displacement field: give the image on whose grid it is "
            "needed (reference)"
        )
    if fixed is not None and fixed.spatial_dims != transform.dims:
        raise ValueError(f"{name}: the transform has {transform.dims} dimensions, the grid {fixed.spatial_dims}")
    return inverse_of(transform, fixed)


def inverse_of(transform: WorldTransform, grid: Grid | None) -> WorldTransform:
    """The inverse: what is linear at either end exactly, all between as one field.

    Args:
        transform: any.
        grid: of the points that the inverse is to map; None for a linear transform.
    """
    parts = list(transform.components)
    last: list[WorldComponent] = []
    while parts and isinstance(part := parts[-1], WorldAffine):
        last.append(WorldAffine(torch.linalg.inv(part.matrix)))
        parts.pop()
    rest = WorldTransform(parts, transform.dims)
    if not parts or grid is None:
        return WorldTransform(last, transform.dims)
    return WorldTransform([*last, *rest.inverse(grid).components], transform.dims)
