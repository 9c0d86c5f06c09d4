"""Tests of `istn_monai.export`: ITK transforms against the package's own arithmetic, on oblique grids."""

from __future__ import annotations

import itk
import numpy as np
import pytest
import torch
from oracles import DIMS, SIZE, SPACING, apply, column, grid_points, max_abs, normal, oblique_affine, rng

from istn_monai.bspline import BSplineTransformation
from istn_monai.export import (
    read_transform,
    to_itk,
    transform_world_points,
    write_displacement,
    write_transform,
)
from istn_monai.spatial import AffineTransformation, CompositeTransformation
from istn_monai.transformation import Transformation

KINDS = ("affine", "bspline", "levels", "affine+levels", "dense")


class Dense(Transformation):
    """A transformation that ITK has no parameters for: smooth in theta, one number for each axis."""

    def __init__(self, spatial_size, spacing):
        super().__init__(spatial_size, spacing)
        self.parameter_shapes = ((self.spatial_dims,),)

    def displacement(self, theta, stride=1):
        waves = torch.as_tensor(np.sin(grid_points(self.spatial_size) / 3.0))
        return theta[:, :, None].unflatten(2, (1,) * self.spatial_dims) * waves


def transformation_of(kind, dims):
    size, spacing = SIZE[dims], SPACING[dims]
    affine = AffineTransformation(size, spacing, max_translation=3.0, max_rotation=0.3)
    levels = [BSplineTransformation(size, spacing, c) for c in (6.0, 3.0)]
    return {
        "affine": affine,
        "bspline": levels[1],
        "levels": CompositeTransformation(levels),
        "affine+levels": CompositeTransformation([affine, *levels]),
        "dense": Dense(size, spacing),
    }[kind]


def registration(kind, dims):
    """A transformation with parameters, its oblique grid, and an initial alignment that turns and shifts."""
    transformation = transformation_of(kind, dims)
    theta = normal(1, transformation.num_parameters, seed=11, dtype=torch.float64)
    grid = oblique_affine(SIZE[dims], SPACING[dims], seed=12, centre=[7.0, -11.0, 5.0][:dims])
    start = oblique_affine((1,) * dims, (1.0,) * dims, seed=13, centre=[20.0, 3.0, -9.0][:dims])
    return transformation, theta, torch.as_tensor(grid), torch.as_tensor(start)


def expected_points(transformation, theta, grid, start, points):
    """RAS points ``(N, D)`` by the package's own arithmetic: into the grid's mm, moved, and back, then ``T0``."""
    dims = points.shape[1]
    spacing = np.linalg.norm(grid[:dims, :dims].numpy(), axis=0)
    middle = (np.array(transformation.spatial_size) - 1) / 2
    voxels = apply(np.linalg.inv(grid), points.T)
    in_grid = (voxels - column(middle, 1)) * column(spacing, 1)
    moved = transformation.transform_points(theta, torch.as_tensor(in_grid).reshape(1, dims, -1, *[1] * (dims - 1)))
    voxels = moved.reshape(dims, -1).numpy() / column(spacing, 1) + column(middle, 1)
    return apply(start, apply(grid, voxels)).T


def points_in(grid, size, count, seed):
    """Random RAS points ``(N, D)`` in a grid, well off its border."""
    voxels = rng(seed).uniform(0.3, np.array(size) - 1.3, (count, len(size)))
    return apply(grid, voxels.T).T


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", KINDS[:-1])
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_written_and_read_it_maps_points_as_the_package_does(tmp_path, kind, dims, suffix):
    transformation, theta, grid, start = registration(kind, dims)
    points = points_in(grid, SIZE[dims], 200, seed=14)
    file = write_transform(to_itk(transformation, theta, grid, start), tmp_path / f"transform{suffix}")
    found = transform_world_points(read_transform(file, dims), points)
    expected = expected_points(transformation, theta, grid, start, points)
    assert np.abs(expected - apply(start, points.T).T).max() > 0.5  # the pair's own part does something
    assert max_abs(found, expected) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_what_itk_has_no_parameters_for_becomes_a_field(tmp_path, dims):
    """At the grid's voxels the field is what the transformation gives there."""
    transformation, theta, grid, start = registration("dense", dims)
    voxels = grid_points(SIZE[dims])
    interior = (slice(None), *[slice(1, -1)] * dims)
    displaced = voxels + transformation(theta)[0].numpy()
    points = apply(grid, voxels)[interior].reshape(dims, -1).T
    expected = apply(start, apply(grid, displaced))[interior].reshape(dims, -1).T
    found = transform_world_points(
        read_transform(write_transform(to_itk(*registration("dense", dims)), tmp_path / "t.h5")), points
    )
    assert max_abs(found, expected) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_displacement_file_is_a_field_that_itk_reads(tmp_path, dims):
    transformation, theta, grid, start = registration("levels", dims)
    world = apply(grid, grid_points(SIZE[dims]))
    moved = expected_points(transformation, theta, grid, start, world.reshape(dims, -1).T).T.reshape(world.shape)
    file = write_displacement(moved - world, grid, tmp_path / "displacement.nii.gz")
    kind = itk.Image[itk.Vector[itk.F, dims], dims]
    reader = itk.ImageFileReader[kind].New(FileName=str(file))
    reader.Update()
    transform = itk.DisplacementFieldTransform[itk.F, dims].New()
    transform.SetDisplacementField(reader.GetOutput())
    interior = (slice(None), *[slice(1, -1)] * dims)
    points = world[interior].reshape(dims, -1).T
    assert max_abs(transform_world_points(transform, points), moved[interior].reshape(dims, -1).T) < 1e-4


def test_unreadable_and_wrong_transforms_are_named(tmp_path):
    (tmp_path / "broken.h5").write_text("not a transform")
    with pytest.raises(ValueError, match=r"broken.h5 is not a transform that ITK can read"):
        read_transform(tmp_path / "broken.h5")
    with pytest.raises(FileNotFoundError, match=r"no such transform: .*absent.h5"):
        read_transform(tmp_path / "absent.h5")
    file = write_transform(to_itk(*registration("affine", 2)), tmp_path / "t.tfm")
    with pytest.raises(ValueError, match=r"t.tfm is a transform of 2 dimensions, the images have 3"):
        read_transform(file, 3)
    with pytest.raises(ValueError, match=r"written as one of .*, got t.nii"):
        write_transform(to_itk(*registration("affine", 2)), tmp_path / "t.nii")
    with pytest.raises(ValueError, match=r"theta must be \(1, P\)"):
        transformation, theta, grid, start = registration("affine", 2)
        to_itk(transformation, theta.expand(2, -1), grid, start)
