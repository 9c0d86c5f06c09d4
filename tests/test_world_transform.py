"""World transforms against ITK's transforms of the same numbers, on oblique anisotropic grids."""

from __future__ import annotations

import itk
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    DIMS,
    SIZE,
    SPACING,
    apply,
    column,
    grid_points,
    inside,
    itk_affine,
    itk_bspline,
    itk_displacement,
    max_abs,
    normal,
    oblique_affine,
    rng,
    rotation,
)

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.composite import CompositeTransformation
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.transformation import Transformation
from istn_monai.geometry.world_transform import WorldAffine, WorldTransform, world_transform
from istn_monai.io.itk_transforms import (
    components_from_itk,
    read_transform,
    to_itk,
    write_displacement,
    write_transform,
)

KINDS = ("affine", "bspline", "levels", "affine+levels", "dense")


class Dense(Transformation):
    """A transformation that ITK has no parameters for: smooth in theta, one number for each axis."""

    def __init__(self, spatial_size, spacing):
        super().__init__(spatial_size, spacing)
        self.parameter_shapes = ((self.spatial_dims,),)

    def displacement(self, theta, stride=1):
        waves = torch.as_tensor(np.sin(grid_points(self.spatial_size) / 3.0))
        return 0.3 * theta[:, :, None].unflatten(2, (1,) * self.spatial_dims) * waves


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


def registration(kind, dims, scale=1.0):
    """A transformation with parameters, its oblique grid, and an initial alignment that turns and shifts."""
    transformation = transformation_of(kind, dims)
    theta = normal(1, transformation.num_parameters, seed=11, scale=scale, dtype=torch.float64)
    grid = oblique_affine(SIZE[dims], SPACING[dims], seed=12, center=[7.0, -11.0, 5.0][:dims])
    start = oblique_affine((1,) * dims, (1.0,) * dims, seed=13, center=[20.0, 3.0, -9.0][:dims])
    return transformation, theta, Grid(SIZE[dims], grid), torch.as_tensor(start)


def points_in(grid, count, seed, reach=1.0):
    """Random world points ``(D, N)`` in a grid, well off its border for a reach of 1."""
    half = (np.array(grid.spatial_size) - 1) / 2
    voxels = half + rng(seed).uniform(-reach, reach, (count, len(half))) * (half - 0.3)
    return torch.as_tensor(apply(grid.affine, voxels.T))


def itk_chain(transformation, theta, points):
    """Points ``(D, N)`` in mm from the grid's first voxel through ITK's transforms, the last part first."""
    parts = transformation.components if isinstance(transformation, CompositeTransformation) else [transformation]
    blocks = transformation.split(theta) if isinstance(transformation, CompositeTransformation) else [theta]
    middle = column((np.array(transformation.spatial_size) - 1) * np.array(transformation.spacing) / 2, 1)
    for part, block in reversed(list(zip(parts, blocks, strict=True))):
        if isinstance(part, AffineTransformation):  # acts about the middle
            points = points + itk_displacement(itk_affine(part.matrix(block)[0]), points - middle)
        else:
            points = points + itk_displacement(itk_bspline(part, block[0]), points)
    return points


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_points_go_where_itk_takes_them(kind, dims):
    """Into the grid's mm, through ITK's transforms with hand-set parameters, back to the world, then T0."""
    transformation, theta, grid, start = registration(kind, dims)
    points = points_in(grid, 300, seed=14, reach=1.5)  # some outside the grid, where B-splines end
    spacing = column(SPACING[dims], 1)
    affine = grid.affine.numpy()
    in_grid = apply(np.linalg.inv(affine), points.numpy()) * spacing
    expected = apply(start, apply(affine, itk_chain(transformation, theta, in_grid) / spacing))
    found = world_transform(transformation, theta, grid, start).transform_points(points)
    assert np.abs(expected - apply(start, points.numpy())).max() > 0.5  # the pair's own part does something
    assert max_abs(found, expected) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_voxels_move_as_the_field_says(dims, kind):
    """The field of several levels is interpolated between voxels, the points are not."""
    transformation, theta, grid, _ = registration(kind, dims, scale=0.3)
    moved = world_transform(transformation, theta, grid).on_grid(grid)
    expected = apply(grid.affine, grid_points(SIZE[dims]) + transformation(theta)[0].numpy())
    interior = inside(grid_points(SIZE[dims]), SIZE[dims], margin=0.5)
    assert max_abs(moved[:, interior], expected[:, interior]) < (0.05 if "levels" in kind else 1e-6)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_written_itk_itself_and_read_back_it_is_the_same_map(tmp_path, kind, dims, suffix):
    transform = world_transform(*registration(kind, dims))
    points = points_in(registration(kind, dims)[2], 200, seed=15)
    expected = transform.transform_points(points)
    file = write_transform(transform, tmp_path / f"transform{suffix}")
    by_itk = itk.transformread(str(file))[0]
    flip = np.diag([-1.0, -1.0, 1.0][:dims])
    moved = np.array([list(by_itk.TransformPoint(point.tolist())) for point in (flip @ points.numpy()).T])
    assert max_abs(flip @ moved.T, expected) < 1e-5
    back = read_transform(file, dims)
    assert [type(part) for part in back.components] == [type(part) for part in transform.components]
    assert max_abs(back.transform_points(points), expected) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_inverse_undoes_it(kind, dims):
    transformation, theta, grid, start = registration(kind, dims)
    transform = world_transform(transformation, theta, grid, start)
    points = points_in(grid, 300, seed=16, reach=0.6)
    there = transform.transform_points(points)
    assert max_abs(transform.inverse_points(there), points) < 2e-3
    assert transform.inverse_error(there).max() < 2e-3
    if kind == "affine":
        assert max_abs(transform.inverse_points(there), points) < 1e-10


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", ["affine", "levels", "affine+levels"])
def test_inverse_as_a_transform_of_its_own(tmp_path, kind, dims):
    """Written, read, and applied after the forward one: affine parts exact, the field up to its interpolation."""
    transformation, theta, grid, start = registration(kind, dims, scale=0.4)
    transform = world_transform(transformation, theta, grid, start)
    size = tuple(6 * s + 1 for s in SIZE[dims])  # a grid in the moving world, finer than the levels, twice as large
    fine = grid.affine.clone()
    fine[:-1, :-1] /= 3
    fine[:-1, -1] += grid.center - Grid(size, fine).center
    inverse = transform.inverse(Grid(size, start @ fine))
    back = read_transform(write_transform(inverse, tmp_path / "inverse.h5"), dims)
    points = points_in(grid, 200, seed=19, reach=0.6)
    returned = back.transform_points(transform.transform_points(points))
    assert max_abs(returned, points) < (1e-9 if kind == "affine" else 0.05)
    assert len(inverse.components) == {"affine": 2, "levels": 2, "affine+levels": 3}[kind]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 1.0))
def test_the_default_levels_can_be_inverted(seed, scale):
    levels = CompositeTransformation([BSplineTransformation((24, 20, 22), 1.0, c) for c in (12.0, 6.0)])
    theta = scale * torch.randn(1, levels.num_parameters, generator=torch.Generator().manual_seed(seed))
    grid = Grid((24, 20, 22), np.eye(4))
    transform = world_transform(levels, theta, grid)
    points = points_in(grid, 200, seed=seed, reach=0.7)
    assert transform.inverse_error(transform.transform_points(points)).max() < 0.01


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("axes", ["along", "permuted and flipped", "aside"])
def test_voxels_move_as_points_do(dims, axes):
    """Along its lattice a B-spline is a product of matrices, to the ends of its domain; elsewhere it is sampled."""
    transform = world_transform(*registration("levels", dims))
    lattice = transform.components[-1]
    grid = registration("levels", dims)[2]
    turn = {"along": np.eye(dims), "permuted and flipped": -np.eye(dims)[::-1], "aside": rotation(dims, seed=3)}[axes]
    fine = grid.affine.clone()
    fine[:-1, :-1] = fine[:-1, :-1] @ torch.as_tensor(turn.copy()) / 1.7
    size = tuple(4 * n for n in grid.spatial_size)  # beyond the lattice
    fine[:-1, -1] += grid.center - Grid(size, fine).center
    fixed = Grid(size, fine)
    moved = transform.on_grid(fixed)
    assert max_abs(moved.flatten(1), transform.transform_points(fixed.points().flatten(1))) < 1e-9
    assert (lattice.on_grid(fixed) is None) == (axes == "aside")
    slabs = [transform.on_grid(fixed, slab=slab) for slab in fixed.slabs(50)]
    assert len(slabs) > 5 and max_abs(torch.cat(slabs, dim=1), moved) < 1e-12


def test_many_points_in_chunks_are_the_same(monkeypatch):
    transform = world_transform(*registration("affine+levels", 3))
    points = points_in(registration("affine+levels", 3)[2], 50, seed=17)
    expected = transform.transform_points(points)
    monkeypatch.setattr("istn_monai.geometry.world_transform.POINTS_AT_ONCE", 7)
    assert max_abs(transform.transform_points(points), expected) < 1e-12


@pytest.mark.parametrize("kind", ["Euler3DTransform", "TranslationTransform", "VersorRigid3DTransform"])
def test_linear_transforms_of_other_tools(tmp_path, kind):
    """ANTs, elastix and Slicer write these."""
    template = getattr(itk, kind)
    transform = (template[itk.D, 3] if kind == "TranslationTransform" else template[itk.D]).New()
    values = {"TranslationTransform": [3.0, -4.0, 5.0]}.get(kind, [0.1, -0.2, 0.15, 3.0, -4.0, 5.0])
    parameters = itk.OptimizerParameters[itk.D](len(values))
    for number, value in enumerate(values):
        parameters[number] = value
    transform.SetParametersByValue(parameters)
    itk.transformwrite([transform], str(tmp_path / "t.tfm"))
    points = torch.as_tensor(rng(18).uniform(-50, 50, (3, 20)))
    flip = np.diag([-1.0, -1.0, 1.0])
    expected = flip @ np.array([list(transform.TransformPoint(p.tolist())) for p in (flip @ points.numpy()).T]).T
    assert max_abs(read_transform(tmp_path / "t.tfm").transform_points(points), expected) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
def test_displacement_file_is_a_field_that_itk_reads(tmp_path, dims):
    transformation, theta, grid, start = registration("levels", dims)
    world = apply(grid.affine, grid_points(SIZE[dims]))
    moved = world_transform(transformation, theta, grid, start).on_grid(grid).numpy()
    file = write_displacement(moved - world, grid.affine, tmp_path / "displacement.nii.gz")
    reader = itk.ImageFileReader[itk.Image[itk.Vector[itk.F, dims], dims]].New(FileName=str(file))
    reader.Update()
    transform = itk.DisplacementFieldTransform[itk.F, dims].New()
    transform.SetDisplacementField(reader.GetOutput())
    interior = (slice(None), *[slice(1, -1)] * dims)
    flip = np.diag([-1.0, -1.0, 1.0][:dims])
    points = flip @ world[interior].reshape(dims, -1)
    found = points + itk_displacement(transform, points)
    assert max_abs(flip @ found, moved[interior].reshape(dims, -1)) < 1e-4


def test_unreadable_wrong_and_singular_transforms_are_named(tmp_path):
    (tmp_path / "broken.h5").write_text("not a transform", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.h5 is not a transform that ITK can read"):
        read_transform(tmp_path / "broken.h5")
    with pytest.raises(FileNotFoundError, match=r"no such transform: .*absent.h5"):
        read_transform(tmp_path / "absent.h5")
    flat = world_transform(*registration("affine", 2))
    with pytest.raises(ValueError, match=r"t.tfm is a transform of 2 dimensions, the images have 3"):
        read_transform(write_transform(flat, tmp_path / "t.tfm"), 3)
    with pytest.raises(ValueError, match=r"written as one of .*, got t.nii"):
        write_transform(flat, tmp_path / "t.nii")
    with pytest.raises(ValueError, match="finite and invertible"):
        WorldTransform([WorldAffine(np.diag([1.0, 0.0, 1.0, 1.0]))], 3)
    transformation, theta, grid, start = registration("affine", 2)
    with pytest.raises(ValueError, match=r"theta must be \(1, P\)"):
        world_transform(transformation, theta.expand(2, -1), grid, start)
    with pytest.raises(ValueError, match=r"theta of AffineTransformation must be \(B, 6\)"):
        world_transform(transformation, theta[:, :5], grid, start)


def test_a_transform_that_is_not_supported_is_named():
    kernel = itk.ThinPlateSplineKernelTransform[itk.D, 3].New()
    with pytest.raises(ValueError, match=r"ThinPlateSplineKernelTransform is not supported: linear transforms, cubic"):
        components_from_itk(kernel)


def test_itk_composite_has_the_parts_in_order():
    transform = world_transform(*registration("affine+levels", 3))
    assert to_itk(transform).GetNumberOfTransforms() == 4


def test_a_grid_of_other_voxels_than_the_transformations_is_refused():
    """Millimeters would be counted as voxels."""
    transformation, grid = AffineTransformation((8, 9)), Grid((8, 9), torch.diag(torch.tensor([2.0, 2.0, 1.0])))
    with pytest.raises(ValueError, match=r"voxels of \(1.0, 1.0\) mm, the grid has \(2.0, 2.0\)"):
        world_transform(transformation, torch.zeros(1, 6), grid)
