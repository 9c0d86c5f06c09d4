"""Where a pair's initial alignment comes from: intensities, a file, or the structures that a network finds."""

from __future__ import annotations

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from istn_monai.alignment import INITIAL_ALIGNMENTS, initial_alignment
from istn_monai.geometry.components import WorldAffine
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.meta import with_affine
from istn_monai.geometry.resampling import unit_ranges
from istn_monai.io.any_transform import read_any_transform
from istn_monai.linear_registration import Side
from istn_monai.networks import ISTN
from istn_monai.structure_alignment import structure_alignment
from istn_monai.transforms.registration_grid import covering_grid, on_grid

STRUCTURES = "structures"


def start_of(
    name: str, moving: MetaTensor, fixed: MetaTensor, similarity: str = "mse", network: nn.Module | None = None
) -> Tensor:
    """``T0`` ``(D+1, D+1)`` float64, fixed to moving world point, RAS mm.

    Args:
        name: one of :data:`istn_monai.alignment.INITIAL_ALIGNMENTS`, or a transform's file, see
            :func:`istn_monai.io.any_transform.read_any_transform`.
        moving: ``(C, *S)``.
        fixed: likewise.
        similarity: see :func:`istn_monai.alignment.initial_alignment`.
        network: of "structures", an :class:`istn_monai.ISTN` or :class:`istn_monai.DisplacementNetwork`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming what is wrong with it, or with the images.
    """
    if name == STRUCTURES:
        return by_structures(moving, fixed, network)
    if name in INITIAL_ALIGNMENTS:
        return initial_alignment(name, moving, fixed, similarity)
    return from_file(name, Grid.of(moving), Grid.of(fixed))


def from_file(name: str, moving: Grid, fixed: Grid) -> Tensor:
    """The matrix of a linear transform's file, fixed to moving points, RAS mm.

    Raises:
        ValueError: if it is not linear, or not of the images' dimension; or what reading says.
    """
    transform = read_any_transform(name, moving.spatial_dims, moving, fixed)
    matrix = torch.eye(moving.spatial_dims + 1, dtype=torch.float64)
    for part in transform.components:
        if not isinstance(part, WorldAffine):
            raise ValueError(
                f"initial_alignment {name} holds a {type(part).__name__.removeprefix('World')}, which bends: only "
                "linear transforms can be a start. Give its affine part, and join the rest by istn-monai compose"
            )
        matrix = matrix @ part.matrix
    return matrix


def by_structures(moving: MetaTensor, fixed: MetaTensor, network: nn.Module | None) -> Tensor:
    """See :func:`istn_monai.structure_alignment.structure_alignment`, affine.

    Raises:
        ValueError: if there is no network with an ITN.
    """
    istn = getattr(network, "istn", network)
    if not isinstance(istn, ISTN) or not istn.has_itn:
        raise ValueError(
            "initial_alignment 'structures' needs a trained network with an ITN (loss e or i), to register or "
            "evaluate with: choose moments, principal_axes, rigid or affine"
        )
    device = next(istn.parameters()).device

    def represent(image: Tensor) -> Tensor:
        """See :data:`istn_monai.structure_alignment.Represent`."""
        with torch.no_grad():
            return istn.representations(image[None].to(device))[0].cpu().float()

    there, here = (on_grid_of_network(image, istn) for image in (moving, fixed))
    return structure_alignment(there, here, represent)


def on_grid_of_network(image: MetaTensor, istn: ISTN) -> Side:
    """An image, intensities in [0, 1], on a grid that covers it, of the voxels that a network was trained on."""
    spacing, size = istn.transformation.spacing, istn.transformation.spatial_size
    values = unit_ranges(image.as_tensor())
    grid = covering_grid(image, spacing, size)
    return Side(on_grid(with_affine(values, Grid.of(image).affine, image), grid).as_tensor(), grid)
