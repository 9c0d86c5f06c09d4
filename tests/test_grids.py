"""`Grid`: sizes and affines that travel together, against nibabel, ITK and numbers by hand."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from oracles import DIMS, apply, grid_points, itk_image, max_abs, oblique_affine

from istn_monai.geometry.grids import Grid, map_points, overlap_in_world, registration_grid
from istn_monai.geometry.meta import affine_of

SIZE = {2: (7, 5), 3: (7, 5, 6)}
SPACING = (1.5, 2.0, 0.75)
CENTER = (31.0, -12.0, 57.0)


def oblique(dims, seed=3, size=None) -> np.ndarray:
    """An affine with turned, swapped and flipped axes."""
    signs, order = (-1.0, 1.0, 1.0)[:dims], (1, 0, 2)[:dims]
    return oblique_affine(size or SIZE[dims], SPACING[:dims], seed, CENTER[:dims], signs, order, angle=0.4)


@pytest.mark.parametrize("dims", DIMS)
def test_spacing_extent_and_center_by_hand(dims):
    grid = Grid(SIZE[dims], oblique(dims))
    assert grid.spatial_dims == dims
    assert max_abs(np.array(grid.spacing), np.array(SPACING[:dims])) < 1e-12
    assert max_abs(np.array(grid.extent), np.array(SPACING[:dims]) * SIZE[dims]) < 1e-11
    assert max_abs(grid.center, np.array(CENTER[:dims])) < 1e-12


def test_spacing_is_that_of_the_columns_of_a_sheared_affine():
    """The rows of this matrix have other lengths."""
    grid = Grid((4, 4), torch.tensor([[3.0, 5.0, 1.0], [4.0, 12.0, 2.0], [0.0, 0.0, 1.0]]))
    assert grid.spacing == (5.0, 13.0)
    assert grid.points()[:, 2, 1].tolist() == [3 * 2 + 5 * 1 + 1, 4 * 2 + 12 * 1 + 2]


@pytest.mark.parametrize("dims", DIMS)
def test_points_are_nibabels_and_itks(dims):
    affine, size = oblique(dims), SIZE[dims]
    points = Grid(size, affine).points()
    assert points.dtype == torch.float64 and points.shape == (dims, *size)
    by_nibabel = nib.affines.apply_affine(affine, np.moveaxis(np.indices(size), 0, -1))
    assert max_abs(points, np.moveaxis(by_nibabel, -1, 0)) < 1e-12
    image = itk_image(np.zeros(size), affine)
    flip = np.array([-1.0, -1.0, 1.0])[:dims]
    for index in ((0,) * dims, tuple(n - 1 for n in size), (3, 1, 2)[:dims]):
        physical = np.array(image.TransformIndexToPhysicalPoint(list(index)))
        assert max_abs(points[(slice(None), *index)], flip * physical) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
def test_the_matrix_to_another_grid_keeps_the_world_point(dims):
    one, other = Grid(SIZE[dims], oblique(dims)), Grid((9, 8, 7)[:dims], oblique(dims, seed=8, size=(9, 8, 7)[:dims]))
    voxels = torch.as_tensor(grid_points(SIZE[dims]))
    there = map_points(one.to(other), voxels)
    assert max_abs(apply(other.affine, there), apply(one.affine, voxels)) < 1e-10
    assert max_abs(there, voxels) > 0.5  # the two grids are not alike
    assert max_abs(other.voxels(one.points()), there) < 1e-10
    assert max_abs(one.to(one), np.eye(dims + 1)) < 1e-12


@pytest.mark.parametrize("dims", DIMS)
def test_contains_is_itks_region(dims):
    size, affine = SIZE[dims], oblique(dims)
    voxels = np.random.default_rng(0).uniform(-2, np.array(size) + 1, (400, dims)).T
    world = apply(affine, voxels)
    image = itk_image(np.zeros(size), affine)
    inside, to_index = image.GetLargestPossibleRegion().IsInside, image.TransformPhysicalPointToIndex
    flip = np.array([-1.0, -1.0, 1.0])[:dims]
    expected = np.array([inside(to_index((flip * point).tolist())) for point in world.T])
    assert 20 < expected.sum() < 380
    assert np.array_equal(Grid(size, affine).contains(torch.as_tensor(world)).numpy(), expected)


def test_a_grid_of_an_image_is_its_size_and_its_affine_in_as_many_axes():
    affine = torch.diag(torch.tensor([2.0, 3.0, 9.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([4.0, 5.0, 6.0])
    grid = Grid.of(MetaTensor(torch.zeros(2, 7, 5), affine=affine))
    assert grid.spatial_size == (7, 5)
    assert grid.affine.tolist() == [[2.0, 0.0, 4.0], [0.0, 3.0, 5.0], [0.0, 0.0, 1.0]]
    image = MetaTensor(torch.zeros(1, 7, 5, 6), affine=affine)
    assert torch.equal(Grid.of(image).affine, affine_of(image)) and Grid.of(image).spatial_dims == 3


@pytest.mark.parametrize("dims", DIMS)
def test_aligned_is_the_inverse_of_t0_times_the_affine(dims):
    start = np.eye(dims + 1)
    start[:2, :2], start[:dims, -1] = [[0.0, -1.0], [1.0, 0.0]], (5.0, -7.0, 2.0)[:dims]
    grid = Grid(SIZE[dims], oblique(dims))
    aligned = grid.aligned(torch.as_tensor(start))
    assert max_abs(apply(start, aligned.points()), grid.points()) < 1e-10  # T0 leads from the fixed to the moving world
    assert aligned.spatial_size == grid.spatial_size and aligned != grid


def test_it_is_a_value():
    affine = torch.eye(3)
    grid = Grid([4, 5], affine)
    affine[0, 0] = 7.0  # the caller's tensor is not the grid's
    assert grid.affine[0, 0] == 1.0 and grid.affine.dtype == torch.float64 and grid.spatial_size == (4, 5)
    assert grid == Grid((4, 5), np.eye(3)) and hash(grid) == hash(Grid((4, 5), np.eye(3)))
    assert grid != Grid((5, 4), np.eye(3)) and grid != Grid((4, 5), np.diag([1.0, 2.0, 1.0]))
    with pytest.raises(AttributeError):
        grid.spatial_size = (1, 1)


@pytest.mark.parametrize("affine", [np.eye(3), np.eye(4)[:3], np.ones(4)])
def test_an_affine_of_another_dimension_is_named(affine):
    with pytest.raises(ValueError, match=r"affine of a grid of size \(4, 5, 6\) must be \(4, 4\), got \("):
        Grid((4, 5, 6), affine)


def test_overlap_is_seen_from_both_sides():
    """A small grid between the sampled points of a large one, and one that is far away."""
    large, small = Grid((160, 160), torch.eye(3)), Grid((3, 3), torch.tensor([[1.0, 0, 4], [0, 1, 4], [0, 0, 1]]))
    assert overlap_in_world(large, small) and overlap_in_world(small, large)
    away = Grid((3, 3), torch.tensor([[1.0, 0, 400], [0, 1, 4], [0, 0, 1]]))
    assert not overlap_in_world(large, away) and not overlap_in_world(away, large)


@pytest.mark.parametrize("dims", DIMS)
def test_a_registration_grid_is_nibabels_closest_canonical_orientation(dims):
    if dims == 2:
        pytest.skip("nibabel's images have three axes; tests/test_resampling.py has 2-D by hand")
    fixed = Grid(SIZE[3], oblique(3))
    grid = registration_grid(fixed, (12, 10, 8), (1.0, 2.0, 3.0))
    image = nib.as_closest_canonical(nib.Nifti1Image(np.zeros(SIZE[3], np.float32), oblique(3)))
    expected = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    assert max_abs(grid.affine[:3, :3] / torch.tensor(grid.spacing), expected) < 1e-9
    assert max_abs(np.array(grid.spacing), np.array([1.0, 2.0, 3.0])) < 1e-12
    assert max_abs(grid.center, fixed.center.numpy()) < 1e-12 and grid.spatial_size == (12, 10, 8)
