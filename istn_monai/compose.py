"""Joining transforms, of any kind and their inverses, into one that ITK's tools read.

Convention:
    ``T = T_1 o T_2 o ... o T_n``: the last one acts on a point first, as in ``itk.CompositeTransform``. The order of
    ``antsApplyTransforms -t`` is the reverse. All map fixed to moving points, RAS mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.any_transform import file_of, parts_of, read_any_transform
from istn_monai.io.file_checks import most_voxels
from istn_monai.io.images import load_image
from istn_monai.io.itk_transforms import SUFFIXES, write_transform
from istn_monai.io.paths import check_apart, new_file, replacing

MARGIN = 4  # voxels around what is mapped, within which the field of an inverse is known, too


def compose_files(
    transforms: Sequence[str],
    output: str,
    reference: str | None = None,
    moving: str | None = None,
    overwrite: bool = False,
    nifti_frame: str | None = None,
) -> Path:
    """Writes transforms as one composite.

    Args:
        transforms: by their names, see :mod:`istn_monai.io.any_transform`, in the order of the module's formula.
        output: ``.h5`` or ``.tfm`` to write.
        reference: image whose points are mapped (fixed), where a matrix of flirt's or an inverse needs it.
        moving: image that flirt moved.
        overwrite: replace an existing output; never a file that is read here.
        nifti_frame: itk, sform or qform, where readers understand a NIfTI header in two ways.

    Raises:
        ValueError: there is no transform; two are of different dimensions; an image is missing or of others.
    """
    if not transforms:
        raise ValueError("transforms are missing: give one file or more, of which the last acts first")
    path = new_file(output, overwrite=overwrite)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"output: a transform is written as one of {SUFFIXES}, got {path.name}")
    read = [("transform", file_of(name)) for name in transforms]
    images = [(name, file) for name, file in (("reference", reference), ("moving", moving)) if file is not None]
    check_apart([path], [*read, *images], "choose another output")
    grids = {name: Grid.of(load_image(file, name, None, nifti_frame)) for name, file in images}
    composed = composed_transforms(transforms, grids.get("reference"), grids.get("moving"))
    with replacing(path) as part:
        write_transform(composed, part)
    return path


def composed_transforms(
    names: Sequence[str], reference: Grid | None = None, moving: Grid | None = None
) -> WorldTransform:
    """The composite of transforms by their names, in the order of the module's formula.

    Args:
        names: see :mod:`istn_monai.io.any_transform`.
        reference: grid of the fixed image.
        moving: grid of the moving one.
    """
    if late := [name for name in names[:-1] if parts_of(name)[0] == "fsl:"]:
        raise ValueError(
            f"{late[0]} does not act first (the last one does), so reference and moving are not its own images: write "
            "it with its own ones first, compose fsl:... --reference ... --moving ... -o a.h5, and give a.h5 here"
        )
    whole: WorldTransform | None = None
    for name in reversed(names):  # the one that acts first says where the next one is needed
        prefix, _, inverse = parts_of(name)
        fixed = reference
        if inverse and not prefix and reference is not None:
            fixed = reached(whole or WorldTransform([], reference.spatial_dims), reference, name)
        single = read_any_transform(name, None, moving, fixed)
        if whole is not None and single.dims != whole.dims:
            raise ValueError(
                f"{name} is a transform of {single.dims} dimensions, those after it of {whole.dims}: give "
                "transforms of one dimension"
            )
        whole = WorldTransform([*single.components, *(whole.components if whole else ())], single.dims)
    if whole is None:
        raise ValueError("no transform to compose: give one or more")
    return whole


def reached(transform: WorldTransform, grid: Grid, name: str) -> Grid:
    """A grid of the same axes and spacing that covers where a transform takes the voxels of a grid, and ``MARGIN``.

    Args:
        transform: fixed points to those that the next transform maps.
        grid: of the fixed image.
        name: of the transform that is to be inverted there, for the error.
    """
    if transform.dims != grid.spatial_dims:
        raise ValueError(
            f"the reference has {grid.spatial_dims} dimensions, the transforms have {transform.dims}: give images and "
            "transforms of one dimension"
        )
    places = grid.voxels(transform.on_grid(grid)).flatten(1)
    first, last = (places.amin(dim=1).floor() - MARGIN, places.amax(dim=1).ceil() + MARGIN)
    size = [int(n) + 1 for n in (last - first).tolist()]
    if math.prod(size) > most_voxels():
        raise ValueError(
            f"{name} is to be inverted over {size} voxels of the reference's size, where the transforms after it lead: "
            "too many; give a reference of larger voxels"
        )
    shift = torch.eye(grid.spatial_dims + 1, dtype=torch.float64)
    shift[:-1, -1] = first
    return Grid(tuple(size), grid.affine @ shift)
