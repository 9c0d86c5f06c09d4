"""Inverses of displacement fields whose inverse is known: turned, zoomed, and torn ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from oracles import DIMS, max_abs, oblique_affine, rng

from istn_monai.apply import move_points, resample_image
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldField, WorldTransform
from istn_monai.io.landmarks import Points


def linear_field(dims, degrees, zoom):
    """A turn and a zoom about the middle of an oblique grid, as a field."""
    size = (30, 23, 27)[:dims]
    affine = torch.as_tensor(oblique_affine(size, (1.0, 2.0, 1.5)[:dims], 3, center=[5.0, -9.0, 11.0][:dims]))
    grid, angle = Grid(size, affine), np.deg2rad(degrees)
    matrix = torch.eye(dims, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    places = grid.points() - grid.center.view(-1, *[1] * dims)
    return grid, WorldTransform([WorldField(torch.tensordot(zoom * matrix, places, dims=1) - places, affine)], dims)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("degrees", "zoom"), [(30, 1), (75, 1), (120, 1), (180, 1), (0, 0.25), (0, 4), (90, 2.5)])
def test_fields_that_turn_and_zoom_far_are_inverted(dims, degrees, zoom):
    grid, transform = linear_field(dims, degrees, zoom)
    half = (torch.tensor(grid.spatial_size).double()[:, None] - 1) / 2
    index = half + torch.as_tensor(rng(1).uniform(-0.6, 0.6, (dims, 300))) * half
    points = grid.affine[:-1, :-1] @ index + grid.affine[:-1, -1:]
    assert max_abs(transform.inverse_points(transform.transform_points(points)), points) < 5e-3


@pytest.mark.parametrize("dims", DIMS)
def test_points_without_an_inverse_are_named(dims):
    """A field that halves lengths: what lies between its image and its border is reached from nowhere."""
    grid, transform = linear_field(dims, 0, 0.5)
    corner = grid.points().flatten(1)[:, :1]
    positions = torch.cat([grid.center[:, None], corner], dim=1).T
    with pytest.raises(ValueError, match=r"no inverse at 1 of 2 landmarks: PC at \["):
        move_points(Points(positions, ("AC", "PC")), transform)


def test_voxels_without_an_inverse_are_counted_and_dark():
    grid, transform = linear_field(2, 0, 0.8)
    image = MetaTensor(torch.rand(1, *grid.spatial_size) + 1, affine=grid.affine)
    image[0, 0, 0] = -3.0
    with pytest.warns(UserWarning, match=r"no inverse at \d+ of 690 voxels of the reference \(3"):
        result = resample_image(image, transform, image, inverse=True, interpolation="linear")
    assert (result[0] == -3.0).double().mean() > 0.3 and result[0, 15, 11] > 0.9
    with pytest.raises(ValueError, match=r"no inverse at \d+ of 690 voxels"):
        resample_image(image, linear_field(2, 0, 0.5)[1], image, inverse=True, interpolation="linear")


def lattice_field(size, displacement, step=3.0):
    """Displacements of a lattice's points, as a field around the world's origin, and points anywhere in its domain."""
    dims = len(size)
    affine = torch.diag(torch.tensor([*[step] * dims, 1.0], dtype=torch.float64))
    affine[:-1, -1] = -step * (torch.tensor(size) - 1) / 2
    half = torch.tensor(size)[:, None] * step / 2 - 1e-6
    return WorldField(displacement(Grid(size, affine).points()), affine), half * torch.as_tensor(
        rng(4).uniform(-1, 1, (dims, 2000))
    )


def lost(field, points):
    """How many of the points in a field's domain are not found again, or some other place that is taken there."""
    there = field.transform_points(points)
    again = field.transform_points(field.inverse_points(there))
    return int((~((again - there).norm(dim=0) < 1e-3)).sum())


@pytest.mark.parametrize("dims", DIMS)
def test_no_place_of_a_field_that_turns_or_mirrors_is_lost(dims):
    """Also where the field is continued by half a voxel, which is a fold."""
    for degrees in (90, 115, 180):
        turn = torch.eye(dims, dtype=torch.float64)
        angle = np.deg2rad(degrees)
        turn[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        assert lost(*lattice_field((20, 17, 12)[:dims], lambda x, m=turn: torch.tensordot(m, x, dims=1) - x)) == 0
    for sign in ([-1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]):
        mirror = torch.tensor(sign[:dims]).double().view(-1, *[1] * dims)
        assert lost(*lattice_field((20, 17, 12)[:dims], lambda x, m=mirror: m * x - x)) == 0


@pytest.mark.parametrize("dims", DIMS)
def test_no_place_of_a_field_that_folds_in_many_cells_is_lost(dims):
    noise = torch.as_tensor(rng(5).normal(0, 1.5, (dims, *(20, 17, 12)[:dims])))
    assert lost(*lattice_field(noise.shape[1:], lambda x: noise)) == 0


@pytest.mark.parametrize("size", [(1, 9, 8), (9, 1, 1), (1, 1, 1), (2, 1, 3), (9, 1), (1, 1)])
def test_fields_one_voxel_thick_are_inverted(size):
    for spread in (0.3, 3.0, 40.0):
        noise = torch.as_tensor(rng(6).normal(0, spread, (len(size), *size)))
        assert lost(*lattice_field(size, lambda x, u=noise: u)) == 0
