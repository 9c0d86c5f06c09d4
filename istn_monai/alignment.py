"""Initial alignment: where a moving image lies in the fixed image's world before anything is learned about the pair.

Convention:
    ``T0`` ``(D+1, D+1)`` maps fixed to moving world points (pull-back), RAS mm; see :mod:`istn_monai.geometry.grids`.
"""

from __future__ import annotations

import itertools

import torch
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.names import INITIAL_ALIGNMENTS, is_file_name
from istn_monai.geometry.resampling import unit_ranges
from istn_monai.linear_registration import (
    Side,
    about,
    best_start,
    center_of_weights,
    linear_registration,
    translation,
    turned,
)

BY_INTENSITIES = ("moments", "principal_axes", "rigid", "affine")


def check_start(name: object) -> None:
    """ValueError unless a text is the name of an initial alignment, or may be that of a transform's file."""
    if not isinstance(name, str) or (name not in INITIAL_ALIGNMENTS and not is_file_name(name)):
        raise ValueError(f"initial_alignment must be one of {INITIAL_ALIGNMENTS}, or a transform's file, got {name!r}")


def center_of_mass(image: MetaTensor, name: str = "moments") -> Tensor:
    """World point ``(D,)`` of the first moment of the first channel of ``(C, *S)``, counted from its darkest voxel.

    Raises:
        ValueError: the channel is constant; ``name`` is that of the initial alignment.
    """
    values = image.as_tensor()[0]
    weights = values.double() - values.min()
    if weights.sum() == 0:
        raise ValueError(f"initial_alignment {name!r} needs an image that is not constant")
    return center_of_weights(weights, Grid.of(image))


def principal_axes(image: MetaTensor) -> Tensor:
    """Unit world vectors ``(D, D)``, one in each column: the principal axes of the first channel's mass, longest first.

    Counted from the darkest voxel, as :func:`center_of_mass`.
    """
    values = image.as_tensor()[0].double()
    weights = values - values.min()
    points = Grid.of(image).points() - center_of_mass(image, "principal_axes").view(-1, *[1] * weights.ndim)
    flat = points.flatten(1)
    covariance = (flat * weights.flatten()) @ flat.T / weights.sum()
    return torch.linalg.eigh(covariance).eigenvectors.flip(1)


def initial_alignment(name: str, moving: MetaTensor, fixed: MetaTensor, similarity: str = "mse") -> Tensor:
    """``T0`` ``(D+1, D+1)`` float64, fixed world to moving world point.

    Args:
        name: "world" trusts the headers (identity); "center" joins the middles of the two grids, for crops whose
            origins carry no anatomy; "moments" joins the centers of mass of the intensities; "principal_axes" also the
            axes of their second moments; "rigid" and "affine" go on from "moments" by a registration from many turns,
            see :func:`istn_monai.linear_registration.linear_registration`. "structures" needs a network, see
            :func:`istn_monai.structure_alignment.structure_alignment`.
        moving: ``(C, *S)``; of several channels the first one counts for moments.
        fixed: likewise.
        similarity: of the images, of "principal_axes", "rigid" and "affine".

    Raises:
        ValueError: the name is none of these, or an image is constant where its intensities are needed.
    """
    if name == "world":
        return torch.eye(fixed.ndim, dtype=torch.float64)
    if name == "center":
        return translation(Grid.of(moving).center - Grid.of(fixed).center)
    if name not in BY_INTENSITIES:
        raise ValueError(f"initial_alignment must be one of {INITIAL_ALIGNMENTS}, got {name!r}")
    centers = [center_of_mass(image, name) for image in (moving, fixed)]
    start = translation(centers[0] - centers[1])
    if name == "moments":
        return start
    if name == "principal_axes":
        return principal_alignment(moving, fixed, start, similarity)
    sides = in_unit_range(moving), in_unit_range(fixed)
    return linear_registration(*sides, [start, *turned(start, centers[1])], name, similarity)[0]


def in_unit_range(image: MetaTensor) -> Side:
    """An image, intensities of each channel in [0, 1]."""
    return Side(unit_ranges(image.as_tensor()), Grid.of(image))


def principal_alignment(moving: MetaTensor, fixed: MetaTensor, start: Tensor, similarity: str = "mse") -> Tensor:
    """``T0`` that joins the principal axes of two images: of the rotations that do, the one that makes them most alike.

    Axes have no sign: in 3-D four rotations join them, in 2-D two. ``start`` stays unless one of them is better by 5 %.
    """
    of_moving, of_fixed = principal_axes(moving), principal_axes(fixed)
    center = center_of_mass(fixed, "principal_axes")
    starts = [start]
    for signs in itertools.product((1.0, -1.0), repeat=len(center)):
        linear = of_moving @ torch.diag(torch.tensor(signs, dtype=torch.float64)) @ of_fixed.T
        if torch.linalg.det(linear) > 0:
            starts.append(start @ about(center, linear))
    return best_start(in_unit_range(moving), in_unit_range(fixed), starts, similarity)
