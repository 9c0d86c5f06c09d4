"""metrics.py against analytic fields, hand-made numbers, scipy and ITK."""

import warnings

import itk
import numpy as np
import pytest
import torch
from oracles import DIMS, SIZE, apply, grid_points, max_abs, rotation
from scipy.ndimage import binary_erosion, distance_transform_edt

from istn_monai.metrics import (
    FIELD_METRICS,
    field_metrics,
    folding_fraction,
    inverse_consistency,
    jacobian_determinant,
    overlap,
    sd_log_jacobian,
    sd_log_jacobian_l2r,
)


def ddf_of(matrix, size):
    """The field ``(1, D, *S)`` of x -> matrix x."""
    points = grid_points(size)
    homogeneous = np.eye(len(size) + 1)
    homogeneous[:-1, :-1] = matrix
    return torch.as_tensor(apply(homogeneous, points) - points)[None]


# Jacobian


@pytest.mark.parametrize("dims", DIMS)
def test_determinant_of_linear_fields(dims):
    """Central and one-sided differences are exact, at the border too."""
    scales = np.diag([1.3, 0.6, 2.0][:dims])
    mixed = np.eye(dims) + np.random.default_rng(0).uniform(-0.4, 0.4, (dims, dims))
    flip = np.diag([-1.0, 1.0, 1.0][:dims])
    swap = np.eye(dims)[[1, 0, 2][:dims]]
    for matrix, expected in (
        (np.eye(dims), 1.0),
        (scales, 1.3 * 0.6 * (2.0 if dims == 3 else 1.0)),
        (rotation(dims, 1), 1.0),
        (mixed, np.linalg.det(mixed)),
        (flip, -1.0),
        (swap, -1.0),
    ):
        determinant = jacobian_determinant(ddf_of(matrix, SIZE[dims]))
        assert determinant.shape == (1, *SIZE[dims])
        assert max_abs(determinant, np.full(determinant.shape, expected)) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
def test_determinant_of_a_curved_field_equals_itk(dims):
    """itk.DisplacementFieldJacobianDeterminantFilter, inside the border, where both take central differences."""
    field = 0.4 * np.random.default_rng(0).normal(size=(dims, *SIZE[dims])).astype(np.float32)
    vectors = np.ascontiguousarray(np.moveaxis(field, 0, -1).transpose(*range(dims)[::-1], dims))
    image = itk.image_view_from_array(vectors, ttype=itk.Image[itk.Vector[itk.F, dims], dims])
    determinant = itk.DisplacementFieldJacobianDeterminantFilter[type(image), itk.F].New()
    determinant.SetInput(image)
    determinant.Update()
    expected = itk.array_from_image(determinant.GetOutput()).T
    interior = (slice(1, -1),) * dims
    ours = jacobian_determinant(torch.as_tensor(field)[None])[0]
    assert expected[interior].std() > 0.1
    assert max_abs(ours[interior], expected[interior]) < 1e-5


def test_a_batch_equals_its_items():
    ddf = torch.randn(3, 3, *SIZE[3], generator=torch.Generator().manual_seed(0))
    determinant = jacobian_determinant(ddf)
    for function, field in (
        (jacobian_determinant, ddf),
        (folding_fraction, determinant),
        (sd_log_jacobian, determinant),
        (sd_log_jacobian_l2r, determinant),
    ):
        singles = torch.cat([function(field[k : k + 1]) for k in range(3)])
        assert max_abs(function(field), singles) < 1e-12


@pytest.mark.parametrize("dims", DIMS)
def test_folding_of_a_half_space(dims):
    """Along the last axis x -> x up to voxel 3 and x -> 6 - x beyond: the slope is 1 before, 0 on, -1 after voxel 3."""
    size = SIZE[dims][:-1] + (8,)
    position = torch.arange(8, dtype=torch.float64)
    ddf = torch.zeros(2, dims, *size, dtype=torch.float64)
    ddf[0, -1] = torch.where(position <= 3, position, 6 - position) - position
    determinant = jacobian_determinant(ddf)
    assert max_abs(determinant[(0,) * dims], np.array([1, 1, 1, 0, -1, -1, -1, -1.0])) < 1e-12
    assert folding_fraction(determinant).tolist() == [5 / 8, 0.0]  # voxels 3 to 7: 0 counts as folded


@pytest.mark.parametrize("dims", DIMS)
def test_sd_log_jacobian_by_hand(dims):
    """Slopes along the last axis of 4 voxels at 0, 1, 3, 5: 1, 1.5, 2, 2 by differences."""
    ddf = torch.zeros(1, dims, *SIZE[dims][:-1], 4, dtype=torch.float64)
    ddf[:, -1] = torch.tensor([0.0, 1.0, 3.0, 5.0]) - torch.arange(4.0)
    logs = np.tile(np.log([1.0, 1.5, 2.0, 2.0]), int(np.prod(SIZE[dims][:-1])))
    assert max_abs(sd_log_jacobian(jacobian_determinant(ddf)), np.array([logs.std(ddof=1)])) < 1e-12
    uniform = ddf_of(1.7 * np.eye(dims), SIZE[dims])
    assert sd_log_jacobian(jacobian_determinant(uniform)).abs().max() < 1e-9


def test_folds_count_as_the_floor():
    """x -> x, then back: slopes 1, 1, 1, 0, -1, -1, -1, -1 become 1 and the floor."""
    position = torch.arange(8, dtype=torch.float64)
    ddf = torch.zeros(1, 2, 3, 8, dtype=torch.float64)
    ddf[:, -1] = torch.where(position <= 3, position, 6 - position) - position
    for floor in (1e-6, 1e-3):
        logs = np.tile([0.0] * 3 + [np.log(floor)] * 5, 3)
        assert max_abs(sd_log_jacobian(jacobian_determinant(ddf), floor), np.array([logs.std(ddof=1)])) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
def test_the_learn2reg_metric_adds_three_and_leaves_out_two_voxels_at_each_border(dims):
    """Determinants along the last axis: 1, 1, then 1, 0, -1, -1 inside, then -1, -1; the script's numpy by hand."""
    size = (6, 7, 8)[-dims:]
    position = torch.arange(8, dtype=torch.float64)
    ddf = torch.zeros(1, dims, *size, dtype=torch.float64)
    ddf[:, -1] = torch.where(position <= 3, position, 6 - position) - position
    expected = np.log(np.clip(np.array([1, 0, -1, -1.0]) + 3, 1e-9, 1e9)).std()
    assert max_abs(sd_log_jacobian_l2r(jacobian_determinant(ddf)), np.array([expected])) < 1e-12


# all of a field


@pytest.mark.parametrize("dims", DIMS)
def test_field_metrics_by_hand(dims):
    """All voxels move by (3, 4, 12) mm, 2 in 100 by ten times that, which is the percentile, and one by a hundred."""
    spacing, size = (1.5, 2.0, 4.0)[:dims], (5, 10, 20)[-dims:]
    length = (5.0, 13.0)[dims - 2]
    ddf = torch.zeros(dims, *size, dtype=torch.float64)
    ddf[:] = (torch.tensor([3.0, 4.0, 12.0][:dims]) / torch.tensor(spacing)).view(-1, *[1] * dims)
    flat = ddf.flatten(1)
    number = flat.shape[1]
    flat[:, : number // 50] *= 10
    flat[:, 0] *= 10
    found = field_metrics(flat.view_as(ddf), spacing)
    assert tuple(found) == FIELD_METRICS and all(type(value) is float for value in found.values())
    assert found["displacement_mm"] == pytest.approx(10 * length)
    assert found["max_displacement_mm"] == pytest.approx(100 * length)
    shortest = min(n * step for n, step in zip(size, spacing, strict=True))
    assert found["displacement"] == pytest.approx(10 * length / shortest)
    determinant = jacobian_determinant(flat.view_as(ddf)[None])
    assert found["folding"] == folding_fraction(determinant).item() > 0
    assert found["sdlogj"] == sd_log_jacobian(determinant).item()
    assert found["sdlogj_l2r"] == sd_log_jacobian_l2r(determinant).item() != found["sdlogj"]


def test_a_known_determinant_is_taken_and_not_computed_again(monkeypatch):
    ddf = ddf_of(np.diag([1.2, -0.7]), (9, 8))[0]
    expected = field_metrics(ddf, (1.0, 1.0))
    determinant = jacobian_determinant(ddf[None])[0]
    monkeypatch.setattr("istn_monai.metrics.jacobian_determinant", None)
    assert field_metrics(ddf, (1.0, 1.0), determinant) == expected
    assert expected["folding"] == 1.0


def test_the_learn2reg_metric_of_a_grid_without_an_inside_is_nan():
    found = field_metrics(torch.zeros(2, 4, 9), (1.0, 1.0))
    assert np.isnan(found["sdlogj_l2r"]) and found["sdlogj"] == 0.0


# overlap

BOX_SIZE = {2: (20, 16), 3: (16, 14, 12)}
MM = {2: (1.5, 0.8), 3: (1.5, 0.8, 2.2)}


def box(dims, low, high):
    mask = torch.zeros(BOX_SIZE[dims])
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return mask


def surface_distances(a, b, spacing):
    """Distances in mm of a's surface voxels to b's, by scipy."""
    a, b = a.numpy() > 0, b.numpy() > 0
    surface_a, surface_b = (m & ~binary_erosion(m) for m in (a, b))
    return distance_transform_edt(~surface_b, sampling=spacing)[surface_a]


@pytest.mark.parametrize("dims", DIMS)
def test_overlap_of_a_mask_with_itself(dims):
    mask = box(dims, [4] * dims, [9] * dims)
    assert overlap(mask, mask, MM[dims]) == {"dice": 1.0, "asd": 0.0, "hd95": 0.0}


@pytest.mark.parametrize("dims", DIMS)
def test_overlap_of_single_voxels_is_their_distance_in_mm(dims):
    first, second = [5] * dims, [5 + k for k in (3, 2, 4)[:dims]]
    expected = np.linalg.norm(np.array((3, 2, 4)[:dims]) * MM[dims])
    result = overlap(box(dims, first, [5 + 1] * dims), box(dims, second, [k + 1 for k in second]), MM[dims])
    assert result["dice"] == 0
    assert abs(result["asd"] - expected) < 1e-5
    assert abs(result["hd95"] - expected) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("axis", range(3))
def test_overlap_of_shifted_plates(dims, axis):
    """Plates one voxel thick, 2 voxels apart along one axis: every distance is 2 voxels of that axis in mm."""
    if axis >= dims:
        pytest.skip("no such axis")
    low, high = [3] * dims, [10] * dims
    low[axis], high[axis] = 4, 5
    far_low, far_high = list(low), list(high)
    far_low[axis], far_high[axis] = 6, 7
    result = overlap(box(dims, low, high), box(dims, far_low, far_high), MM[dims])
    assert result["dice"] == 0
    assert abs(result["asd"] - 2 * MM[dims][axis]) < 1e-5
    assert abs(result["hd95"] - 2 * MM[dims][axis]) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("shift", [1, 3])
def test_overlap_of_shifted_boxes(dims, shift):
    """Boxes of 7 voxels, shifted along the first axis: Dice (7 - k) / 7; distances by scipy."""
    low, high = [3] * dims, [10] * dims
    first, second = box(dims, low, high), box(dims, [3 + shift] + low[1:], [10 + shift] + high[1:])
    result = overlap(first, second, MM[dims])
    assert abs(result["dice"] - (7 - shift) / 7) < 1e-6
    there = surface_distances(first, second, MM[dims])
    back = surface_distances(second, first, MM[dims])
    assert abs(result["asd"] - np.concatenate([there, back]).mean()) < 1e-5
    assert abs(result["hd95"] - max(np.percentile(there, 95), np.percentile(back, 95))) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_overlap_of_different_shapes_is_symmetric_and_of_any_dtype(dims):
    """Masks that touch the image's border, of unequal surfaces."""
    first = box(dims, [0] * dims, [9, 4, 7][:dims])
    second = box(dims, [2, 1, 3][:dims], BOX_SIZE[dims])
    expected = overlap(first, second, MM[dims])
    there = surface_distances(first, second, MM[dims])
    back = surface_distances(second, first, MM[dims])
    assert abs(expected["asd"] - np.concatenate([there, back]).mean()) < 1e-5
    assert abs(expected["hd95"] - max(np.percentile(there, 95), np.percentile(back, 95))) < 1e-5
    both = (first * second).sum()
    assert abs(expected["dice"] - (2 * both / (first.sum() + second.sum())).item()) < 1e-6
    for result in (overlap(second, first, MM[dims]), overlap(first.bool(), second.to(torch.uint8), MM[dims])):
        assert result == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dims", DIMS)
def test_overlap_of_empty_masks(dims):
    """Distances are nan; Dice is 0 if one mask is empty; with two there is nothing to compare."""
    mask, empty = box(dims, [4] * dims, [9] * dims), torch.zeros(BOX_SIZE[dims])
    for pair, dice in (((mask, empty), 0.0), ((empty, mask), 0.0), ((empty, empty), np.nan)):
        result = overlap(*pair, MM[dims])
        np.testing.assert_equal(result["dice"], dice)
        assert np.isnan(result["asd"])
        assert np.isnan(result["hd95"])


@pytest.mark.parametrize("dims", [2, 3])
def test_inverse_consistency_is_the_distance_in_mm_of_points_from_where_they_come_back_to(dims):
    size, spacing = (9, 12, 10)[:dims], (2.0, 0.5, 3.0)[:dims]
    there = torch.zeros(1, dims, *size)
    there[:, 0], there[:, 1] = 2.0, -1.0
    assert inverse_consistency(there, -there, spacing)["inverse_consistency"] == 0.0
    back = -there
    back[:, 1] += 4.0  # off by 4 voxels of 0.5 mm
    assert inverse_consistency(there, back, spacing)["inverse_consistency"] == pytest.approx(2.0)
    length = (4.0**2 + 0.5**2) ** 0.5
    assert inverse_consistency(there, there * 0, spacing)["inverse_consistency"] == pytest.approx(length)
    assert np.isnan(inverse_consistency(there + 50, back, spacing)["inverse_consistency"])


def test_inverse_consistency_is_read_where_a_field_leads():
    """There by 3 voxels; the field back is right from there on alone."""
    there, back = torch.zeros(1, 2, 8, 5), torch.zeros(1, 2, 8, 5)
    there[:, 0] = 3.0
    back[:, 0, 3:] = -3.0
    assert inverse_consistency(there, back, (1.0, 1.0))["inverse_consistency"] == 0.0


def test_a_deprecation_inside_of_monai_is_not_heard_and_others_are(recwarn):
    warnings.simplefilter("always")
    mask = torch.zeros(8, 9, 10)
    mask[2:5, 3:6, 3:7] = 1
    assert overlap(mask, mask.roll(1, 0), (1.0, 1.0, 1.0))["asd"] > 0
    assert not [warning for warning in recwarn if "always_return_as_numpy" in str(warning.message)]
    warnings.warn("another", FutureWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn][-1] == "another"
