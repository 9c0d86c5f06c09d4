"""Transformations of every kind against ITK, against numpy by hand, and properties that hold for every theta."""

import math
from itertools import combinations

import itk
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import (
    DIMS,
    SIZE,
    SPACING,
    column,
    grid_points,
    itk_affine,
    itk_bspline,
    itk_ddf,
    itk_displacement,
    max_abs,
    normal,
    rng,
)
from scipy.ndimage import map_coordinates

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bending import bending_energy
from istn_monai.geometry.bspline import BSplineTransformation, cubic_bspline
from istn_monai.geometry.composite import CompositeTransformation, spatial_transformation
from istn_monai.geometry.dense import DenseTransformation
from istn_monai.geometry.svf import SVFTransformation
from istn_monai.metrics import jacobian_determinant

quick = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# Extents along the axes are 14.3, 5.6 mm and 12, 4.2, 10.5 mm.
CONTROL_SPACING = {
    2: {"scalar": 3.7, "per axis": (4.9, 2.3), "whole cells": (14.3 / 4, 1.4), "one cell": 40.0},
    3: {"scalar": 3.7, "per axis": (4.9, 2.3, 3.1), "whole cells": (3.0, 1.4, 2.1), "one cell": 40.0},
}
BSPLINES = [(dims, name) for dims in DIMS for name in CONTROL_SPACING[dims]]


def bspline_of(dims, control="per axis", **options):
    return BSplineTransformation(SIZE[dims], SPACING[dims], CONTROL_SPACING[dims].get(control, control), **options)


def affine_of(dims, **options):
    return AffineTransformation(SIZE[dims], SPACING[dims], **options)


def composite_of(dims):
    return CompositeTransformation(
        [affine_of(dims, max_translation=2.0, max_rotation=0.2), bspline_of(dims, 6.1), bspline_of(dims, "per axis")]
    )


def all_kinds(dims, size=None, spacing=None):
    size, spacing = size or SIZE[dims], spacing or SPACING[dims]
    return {
        "affine": AffineTransformation(size, spacing),
        "bspline": BSplineTransformation(size, spacing, 3.7),
        "free bspline": BSplineTransformation(size, spacing, 3.7, max_displacement=None),
        "composite": CompositeTransformation(
            [AffineTransformation(size, spacing, 1.0, 0.1, 0.1, 0.3), BSplineTransformation(size, spacing, 3.7)]
        ),
        "levels": spatial_transformation("bspline", size, spacing, (8.0, 4.0)),
        "svf": SVFTransformation(size, spacing, (8.0, 4.0)),
    }


KINDS = [(dims, kind) for dims in DIMS for kind in all_kinds(dims)]


def random_theta(transformation, seed=0, scale=1.0, batch=1, dtype=torch.float64):
    return normal(batch, transformation.num_parameters, seed=seed, scale=scale, dtype=dtype)


def in_mm(transformation, ddf):
    """One ddf ``(1, D, *S)`` in voxels as an array in mm."""
    return ddf[0].detach().double().numpy() * column(transformation.spacing, transformation.spatial_dims)


# theta


@pytest.mark.parametrize("dims, kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_theta_is_exactly_the_identity(dims, kind, dtype):
    transformation = all_kinds(dims)[kind]
    ddf = transformation(torch.zeros(2, transformation.num_parameters, dtype=dtype))
    assert ddf.shape == (2, dims, *SIZE[dims])
    assert ddf.dtype == dtype
    assert (ddf == 0.0).all()


@pytest.mark.parametrize("dims", DIMS)
def test_zero_theta_of_the_named_defaults_is_exactly_the_identity(dims):
    for name in ("affine", "bspline"):
        transformation = spatial_transformation(name, SIZE[dims], SPACING[dims])
        assert (transformation(torch.zeros(1, transformation.num_parameters)) == 0.0).all()


@pytest.mark.parametrize("dims, kind", KINDS)
def test_theta_of_another_shape_is_refused(dims, kind):
    transformation = all_kinds(dims)[kind]
    count = transformation.num_parameters
    for bad in (torch.zeros(count), torch.zeros(1, count + 1), torch.zeros(1, count, 1)):
        with pytest.raises(ValueError, match=rf"theta .*must be \(B, {count}\), got"):
            transformation(bad)


@pytest.mark.parametrize("dims, kind", KINDS)
def test_parameters_are_the_blocks_in_parameter_shapes(dims, kind):
    transformation = all_kinds(dims)[kind]
    assert transformation.num_parameters == sum(math.prod(shape) for shape in transformation.parameter_shapes)


@pytest.mark.parametrize("dims, kind", KINDS)
def test_a_batch_equals_its_items(dims, kind):
    transformation = all_kinds(dims)[kind]
    theta = random_theta(transformation, batch=3)
    singles = torch.cat([transformation(theta[k : k + 1]) for k in range(3)])
    assert max_abs(transformation(theta), singles) < 1e-12


@pytest.mark.parametrize("dims, kind", KINDS)
def test_gradients(dims, kind):
    """torch.autograd.gradcheck at its own tolerances, float64."""
    transformation = all_kinds(dims, (5, 4, 3)[:dims], (1.5, 0.7, 2.1)[:dims])[kind].double()
    theta = random_theta(transformation, seed=3, scale=0.3).requires_grad_()
    assert torch.autograd.gradcheck(transformation, (theta,))


# affine


def by_hand(dims, translation, rotation, log_scale, shear):
    """Eq. 3, M R S^-1 D S, homogeneous, in mm about the center; one rotation e_i towards e_j for each plane (i, j)."""

    def turn(angles):
        result = np.eye(dims)
        for (i, j), angle in zip(combinations(range(dims), 2), angles, strict=True):
            plane = np.eye(dims)
            plane[i, i] = plane[j, j] = math.cos(angle)
            plane[j, i], plane[i, j] = math.sin(angle), -math.sin(angle)
            result = result @ plane
        return result

    matrix = np.eye(dims + 1)
    axes = turn(shear)
    matrix[:dims, :dims] = turn(rotation) @ np.linalg.inv(axes) @ np.diag(np.exp(log_scale)) @ axes
    matrix[:dims, dims] = translation
    return matrix


def blocks(dims, theta, bounds):
    """The documented meaning of theta: [t, phi, s, psi], each bound * tanh."""
    planes = dims * (dims - 1) // 2
    parts = np.split(np.asarray(theta, dtype=float), np.cumsum([dims, planes, dims]))
    return [bound * np.tanh(part) for bound, part in zip(bounds, parts, strict=True)]


def field_by_hand(dims, matrix):
    """Displacement in mm on the grid of a matrix that acts about the grid's center, by itk.AffineTransform."""
    transform = itk.AffineTransform[itk.D, dims].New()
    center = [(n - 1) / 2 * h for n, h in zip(SIZE[dims], SPACING[dims], strict=True)]
    transform.SetCenter(center)
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:dims, :dims])))
    transform.SetTranslation([float(v) for v in matrix[:dims, dims]])
    return itk_ddf(transform, SIZE[dims], SPACING[dims])


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("seed", range(3))
def test_affine_equals_itk(dims, seed):
    bounds = (11.0, 0.9, 0.4, 0.7)
    affine = affine_of(dims, **dict(zip(BOUND_NAMES, bounds, strict=True)))
    theta = random_theta(affine, seed)
    matrix = by_hand(dims, *blocks(dims, theta[0], bounds))
    assert max_abs(affine.double().matrix(theta)[0], matrix) < 1e-6  # constants are rounded to float32
    expected = field_by_hand(dims, matrix)
    assert np.abs(expected).max() > 1.0
    assert max_abs(in_mm(affine, affine(theta)), expected) < 1e-5
    assert max_abs(in_mm(affine, affine.float()(theta.float())), expected) < 3e-5


BOUND_NAMES = ("max_translation", "max_rotation", "max_log_scale", "max_shear")


def single(affine, index, value):
    """theta ``(1, P)`` that is 0 but for one parameter, whose tanh is ``value``."""
    theta = torch.zeros(1, affine.num_parameters, dtype=torch.float64)
    theta[0, index] = math.atanh(value)
    return theta


@pytest.mark.parametrize("dims", DIMS)
def test_positive_translation_looks_further_along_its_axis(dims):
    affine = affine_of(dims, max_translation=10.0)
    for axis in range(dims):
        expected = np.zeros((dims, *SIZE[dims]))
        expected[axis] = 5.0  # mm
        assert max_abs(in_mm(affine, affine(single(affine, axis, 0.5))), expected) < 1e-5
        assert max_abs(affine(single(affine, axis, 0.5))[0, axis], expected[axis] / SPACING[dims][axis]) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_positive_rotation_turns_the_first_axis_of_its_plane_towards_the_second(dims):
    affine = affine_of(dims, max_rotation=1.0)
    for plane, (i, j) in enumerate(combinations(range(dims), 2)):
        matrix = affine.matrix(single(affine, dims + plane, 0.5))[0, :dims, :dims]
        expected = np.eye(dims)[i] * math.cos(0.5) + np.eye(dims)[j] * math.sin(0.5)
        assert max_abs(matrix[:, i], expected) < 1e-6
        rest = [k for k in range(dims) if k not in (i, j)]
        assert max_abs(matrix[:, rest + [i]], np.stack([*np.eye(dims)[rest], expected], axis=1)) < 1e-6
        assert abs(torch.linalg.det(matrix).item() - 1) < 1e-6


@pytest.mark.parametrize("dims", DIMS)
def test_a_log_scale_stretches_its_axis_about_the_center(dims):
    affine = affine_of(dims, max_log_scale=0.6)
    for axis in range(dims):
        theta = single(affine, dims + len(affine.planes) + axis, 0.5)
        distance = (grid_points(SIZE[dims]) - (column(SIZE[dims], dims) - 1) / 2) * column(SPACING[dims], dims)
        expected = np.zeros((dims, *SIZE[dims]))
        expected[axis] = distance[axis] * (math.exp(0.3) - 1)
        assert max_abs(in_mm(affine, affine(theta)), expected) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_shear_alone_does_nothing_and_turns_the_axes_of_the_scales(dims):
    affine = affine_of(dims)
    first = 2 * dims + len(affine.planes)
    theta = torch.zeros(1, affine.num_parameters, dtype=torch.float64)
    theta[0, first:] = 0.7
    assert affine(theta).abs().max() < 1e-12
    theta[0, dims + len(affine.planes)] = 1.0
    matrix = affine.matrix(theta)[0, :dims, :dims]
    assert max_abs(matrix, matrix.T) < 1e-12
    assert matrix[0, 1].abs() > 0.05


@pytest.mark.parametrize("dims", DIMS)
@quick
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.3, 1.0, 1e3]))
def test_affine_never_folds(dims, seed, scale):
    """The determinant is exp(sum s), whatever theta is."""
    affine = affine_of(dims, max_log_scale=0.5).double()
    theta = random_theta(affine, seed, scale)
    log_scale = blocks(dims, theta[0], (30.0, math.pi / 4, 0.5, math.pi / 4))[2]
    determinant = math.exp(log_scale.sum())
    assert abs(torch.linalg.det(affine.matrix(theta)[0]).item() - determinant) < 1e-5
    assert max_abs(jacobian_determinant(affine(theta)), np.full((1, *SIZE[dims]), determinant)) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_affine_bounds_hold_at_extremes(dims, sign):
    bounds = (7.0, 0.3, 0.2, 0.1)
    affine = affine_of(dims, **dict(zip(BOUND_NAMES, bounds, strict=True)))
    theta = torch.full((1, affine.num_parameters), sign * 1e3)
    for block, bound in zip(affine.decompose(theta), bounds, strict=True):
        assert max_abs(block, np.full(block.shape, sign * bound)) < 1e-6
    assert max_abs(affine.matrix(theta)[0], by_hand(dims, *blocks(dims, theta[0], bounds))) < 1e-5
    assert torch.isfinite(affine(theta)).all()


@pytest.mark.parametrize("dims", DIMS)
def test_affine_without_scale_and_shear_is_rigid(dims):
    rigid = affine_of(dims, max_log_scale=0.0, max_shear=0.0)
    rotation = rigid.matrix(random_theta(rigid, scale=3.0))[0, :dims, :dims]
    assert max_abs(rotation @ rotation.T, np.eye(dims)) < 1e-12
    assert abs(torch.linalg.det(rotation).item() - 1) < 1e-12


# B-spline


@pytest.mark.parametrize("dims, control", BSPLINES)
@pytest.mark.parametrize("max_displacement", [0.4, None])
def test_bspline_equals_itk(dims, control, max_displacement):
    """Every voxel, up to and on the domain's upper edge ("whole cells" reaches it)."""
    bspline = bspline_of(dims, control, max_displacement=max_displacement)
    theta = random_theta(bspline, seed=len(control))
    transform = itk_bspline(bspline, theta[0])
    expected = itk_ddf(transform, SIZE[dims], SPACING[dims])
    assert np.abs(expected).max() > 0.1
    assert (np.abs(expected).max(0) > 0).all()  # itk gives exactly 0 outside its domain
    tolerance = 1e-5 * max(1.0, np.abs(expected).max() / 10)  # "one cell" without bound moves 40 mm
    assert max_abs(in_mm(bspline, bspline.double()(theta)), expected) < tolerance
    assert max_abs(in_mm(bspline, bspline.float()(theta.float())), expected) < 3 * tolerance


@pytest.mark.parametrize("dims, control", BSPLINES)
def test_control_displacements_are_itks_coefficients(dims, control):
    bspline = bspline_of(dims, control)
    theta = random_theta(bspline)
    # SetParametersByValue's order: all displacements along the first axis first, first axis fastest
    transform = itk_bspline(bspline, theta[0])
    coefficients = np.array(list(transform.GetParameters()))
    ours = bspline.control_displacements(theta)[0]
    assert ours.shape == (dims, *bspline.control_shape)
    assert max_abs(np.concatenate([component.numpy().ravel(order="F") for component in ours]), coefficients) < 1e-6


@pytest.mark.parametrize("dims, control", BSPLINES)
def test_the_lattice_is_centered_and_covers_the_grid(dims, control):
    bspline = bspline_of(dims, control)
    for axis in range(dims):
        extent = (SIZE[dims][axis] - 1) * SPACING[dims][axis]
        step, cells = bspline.control_spacing[axis], bspline.cells[axis]
        assert cells == math.ceil(round(extent / step, 6))
        assert bspline.control_shape[axis] == cells + 3
        assert abs(bspline.domain_origin[axis] + cells * step / 2 - extent / 2) < 1e-12
        assert bspline.domain_origin[axis] < 1e-9


def test_whole_cells_are_not_gained_by_rounding():
    """0.7 * 6 / 1.4 is 2.9999999999999996 or 3.0000000000000004, depending on how it is computed."""
    for size in range(2, 60):
        for spacing in (0.1, 0.3, 0.7, 1.1, 1 / 3):
            for cells in (1, 2, 3, 7):
                control = (size - 1) * spacing / cells
                assert BSplineTransformation((size, 3), spacing, (control, 5.0)).cells[0] == cells


@pytest.mark.parametrize("dims, control", BSPLINES)
def test_equal_control_displacements_translate(dims, control):
    """The weights of a point sum to 1: constant coefficients move all by the same mm, with sign, axis by axis."""
    bspline = bspline_of(dims, control).double()
    for axis in range(dims):
        lattice = torch.zeros(1, *bspline.parameter_shapes[0], dtype=torch.float64)
        lattice[:, axis] = math.atanh(0.5)
        expected = np.zeros((dims, *SIZE[dims]))
        expected[axis] = 0.5 * 0.4 * bspline.control_spacing[axis]
        assert max_abs(in_mm(bspline, bspline(lattice.flatten(1))), expected) < 1e-6 * bspline.control_spacing[axis]


def test_cubic_bspline_values():
    t = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], dtype=torch.float64)
    values = np.array([2 / 3, 23 / 48, 1 / 6, 1 / 48, 0.0, 0.0])
    assert max_abs(cubic_bspline(t), values) < 1e-15
    assert max_abs(cubic_bspline(-t), values) < 1e-15


@pytest.mark.parametrize("dims", DIMS)
def test_bspline_bound_holds_at_extremes(dims):
    bspline = bspline_of(dims).double()
    for sign in (-1.0, 1.0):
        ddf = in_mm(bspline, bspline(torch.full((1, bspline.num_parameters), sign * 1e3, dtype=torch.float64)))
        expected = sign * 0.4 * column(bspline.control_spacing, dims) * np.ones((1, *SIZE[dims]))
        assert max_abs(ddf, expected) < 1e-5


# folding


def worst_lattice(bspline, seed):
    """Choi & Lee's worst case at a random point: every displacement against the diagonal slope of its weight."""
    dims = bspline.spatial_dims
    generator = rng(seed)
    values, slopes = [], []
    for cells in bspline.cells:
        distance = generator.uniform(0, cells) - (np.arange(cells + 3) - 1)
        at = torch.as_tensor(np.stack([distance - 1e-6, distance, distance + 1e-6]))
        low, middle, high = cubic_bspline(at).numpy()
        values.append(middle)
        slopes.append((high - low) / 2e-6)
    signs = generator.choice([-1.0, 1.0], dims)  # the diagonal's direction
    slope = sum(signs[k] * outer([slopes[a] if a == k else values[a] for a in range(dims)]) for k in range(dims))
    return torch.as_tensor(np.stack([-s * np.sign(slope) * 1e3 for s in signs])).reshape(1, -1)


def outer(vectors):
    result = vectors[0]
    for vector in vectors[1:]:
        result = result[..., None] * vector
    return result


PATTERNS = ("normal", "large", "corner", "worst")


def any_theta(transformation, pattern, seed):
    """From usual to adversarial parameters; at +-1e3 tanh saturates."""
    if pattern == "worst":
        components = getattr(transformation, "components", [transformation])
        return torch.cat([worst_lattice(one, seed + k) for k, one in enumerate(components)], dim=1)
    theta = random_theta(transformation, seed)
    return {"normal": theta, "large": 5 * theta, "corner": 1e3 * theta.sign()}[pattern]


FOLD_SIZE = {2: (27, 21), 3: (19, 15, 12)}
FOLD_SPACING = {2: (1.0, 0.7), 3: (1.0, 0.7, 1.3)}


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("control", [8.0, 5.3, 2.1])
@quick
@given(pattern=st.sampled_from(PATTERNS), seed=st.integers(0, 2**31))
def test_one_level_never_folds(dims, control, pattern, seed):
    """At the default bound, whatever theta is."""
    bspline = BSplineTransformation(FOLD_SIZE[dims], FOLD_SPACING[dims], control).double()
    assert jacobian_determinant(bspline(any_theta(bspline, pattern, seed))).min() > 0


@pytest.mark.parametrize("dims", DIMS)
def test_the_worst_case_is_close_to_the_bound(dims):
    """So that the test above can fail: a little above Choi & Lee's bound the same parameters do fold."""
    fine = BSplineTransformation((81, 61, 51)[:dims], 1.0, 20.0, max_displacement=0.4)
    wild = BSplineTransformation((81, 61, 51)[:dims], 1.0, 20.0, max_displacement=0.55)
    theta = worst_lattice(fine, 0)
    assert 0 < jacobian_determinant(fine(theta)).min() < 0.3
    assert jacobian_determinant(wild(theta)).min() < 0


@pytest.mark.parametrize("dims", DIMS)
@quick
@given(seed=st.integers(0, 2**31))
def test_composed_levels_do_not_fold(dims, seed):
    """The default levels on 1 mm voxels, for theta as networks and augmentation give them (standard deviation 1)."""
    levels = spatial_transformation("bspline", (28, 24, 20)[:dims], 1.0)
    assert jacobian_determinant(levels(random_theta(levels, seed))).min() > 0


# composition


@pytest.mark.parametrize("dims", DIMS)
def test_composition_moves_by_the_finest_part_first(dims):
    """x -> fine, then coarse interpolated linearly there (scipy), from the fields of ITK."""
    coarse, fine = bspline_of(dims, 9.1), bspline_of(dims, "per axis")
    composite = CompositeTransformation([coarse, fine]).double()
    theta = random_theta(composite, seed=4, scale=2.0)
    # theta: the first (coarsest) part's parameters first
    ours = in_mm(composite, composite(theta))
    of_coarse, of_fine = np.split(theta[0].numpy(), [coarse.num_parameters])
    size, spacing = SIZE[dims], SPACING[dims]
    u_coarse = itk_ddf(itk_bspline(coarse, of_coarse), size, spacing)
    u_fine = itk_ddf(itk_bspline(fine, of_fine), size, spacing)
    points = grid_points(size) + u_fine / column(spacing, dims)
    at = np.array([map_coordinates(component, points, order=1, mode="nearest") for component in u_coarse])
    assert max_abs(ours, u_fine + at) < 1e-5
    # the order matters here: the other one is far off
    points = grid_points(size) + u_coarse / column(spacing, dims)
    other = u_coarse + np.array([map_coordinates(c, points, order=1, mode="nearest") for c in u_fine])
    assert max_abs(ours, other) > 0.1


@pytest.mark.parametrize("dims", DIMS)
def test_composition_equals_an_itk_composite(dims):
    """ITK evaluates the coarse field exactly; linear interpolation is off by at most
    ``sum_a h_a^2 / 8 max |d^2u / dx_a^2|``, and a cubic B-spline's second derivative by at most ``4 max|d| / c^2``."""
    control, size, spacing = 12.0, SIZE[dims], SPACING[dims]
    coarse, fine = bspline_of(dims, control), bspline_of(dims, "per axis")
    composite = CompositeTransformation([coarse, fine]).double()
    theta = random_theta(composite, seed=4)
    of_coarse, of_fine = np.split(theta[0].numpy(), [coarse.num_parameters])
    transform = itk.CompositeTransform[itk.D, dims].New()
    for part, parameters in ((coarse, of_coarse), (fine, of_fine)):  # in the order of the composite
        transform.AddTransform(itk_bspline(part, parameters))
    points = grid_points(size) * column(spacing, dims)
    expected = itk_displacement(transform, points)
    moved = points + itk_displacement(itk_bspline(fine, of_fine), points)
    upper = column((np.array(size) - 1) * np.array(spacing), dims)
    interior = ((moved >= 0) & (moved <= upper)).all(0)  # beyond the grid ours keeps the border's displacement
    assert interior.mean() > 0.3
    tolerance = sum(h**2 / 8 for h in spacing) * 4 * 0.4 * control / control**2
    ours = in_mm(composite, composite(theta))
    assert max_abs(ours[:, interior], expected[:, interior]) < tolerance
    assert tolerance < 0.15 * np.abs(expected).max()


@pytest.mark.parametrize("dims", DIMS)
def test_composition_of_affine_and_translation_by_hand(dims):
    """An affine field is linear, so that interpolation is exact: T = A o t within the grid."""
    affine, shift = affine_of(dims, max_translation=1.0), affine_of(dims, max_translation=1.0)
    composite = CompositeTransformation([affine, shift]).double()
    theta = random_theta(composite, seed=5)
    theta[0, affine.num_parameters + dims :] = 0  # the second part: translation alone
    bounds = (1.0, math.pi / 4, 0.5, math.pi / 4)
    first, second = (by_hand(dims, *blocks(dims, part, bounds)) for part in theta[0].numpy().reshape(2, -1))
    half = (column(SIZE[dims], dims) - 1) / 2 * column(SPACING[dims], dims)
    points = grid_points(SIZE[dims]) * column(SPACING[dims], dims) - half
    expected = itk_displacement(itk_affine(first @ second), points)
    moved = points + column(second[:dims, dims], dims)
    interior = (np.abs(moved) <= half).all(0)
    assert interior.mean() > 0.3
    assert max_abs(in_mm(composite, composite(theta))[:, interior], expected[:, interior]) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_parameters_of_a_composite_are_split_in_order(dims):
    composite = composite_of(dims)
    counts = [part.num_parameters for part in composite.components]
    theta = torch.arange(composite.num_parameters)[None]
    assert [int(block[0, 0]) for block in composite.split(theta)] == [0, counts[0], counts[0] + counts[1]]
    assert composite.parameter_shapes == tuple(s for part in composite.components for s in part.parameter_shapes)
    for k, part in enumerate(composite.components):  # one part alone acts as on its own
        blocks_ = [torch.zeros(1, count) for count in counts]
        blocks_[k] = random_theta(part, seed=k).float()
        assert max_abs(composite(torch.cat(blocks_, dim=1)), part(blocks_[k])) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
def test_parts_on_other_grids_are_refused(dims):
    one = bspline_of(dims)
    size = BSplineTransformation([n + 1 for n in SIZE[dims]], SPACING[dims], 4.0)
    spacing = BSplineTransformation(SIZE[dims], 1.0, 4.0)
    for parts in ([one, size], [one, spacing], []):
        with pytest.raises(ValueError, match="transformations must be .* on one grid"):
            CompositeTransformation(parts)


def test_named_transformations():
    assert isinstance(spatial_transformation("affine", (9, 8)), AffineTransformation)
    levels = spatial_transformation("bspline", (9, 8, 7), (1.0, 2.0, 3.0), max_displacement=0.3)
    assert [part.control_spacing for part in levels.components] == [(c, c, c) for c in (24.0, 12.0, 6.0)]
    assert {part.max_displacement for part in levels.components} == {0.3}
    assert levels.spacing == (1.0, 2.0, 3.0)
    assert len(spatial_transformation("bspline", (9, 8), control_spacing=5.0).components) == 1
    with pytest.raises(ValueError, match="transformation must be one of .*affine.*bspline.*'elastic'"):
        spatial_transformation("elastic", (9, 8))


# errors name the argument


@pytest.mark.parametrize("bad", [(5,), (5, 5, 5, 5), (5, 1), (5, 0, 5), (-3, 4)])
def test_bad_spatial_size(bad):
    for kind in (AffineTransformation, BSplineTransformation):
        with pytest.raises(ValueError, match="spatial_size"):
            kind(bad)


def test_fractional_spatial_size_is_refused():
    """Whole numbers, says the message; 10.7 must not become 10 without a word."""
    with pytest.raises(ValueError, match="spatial_size"):
        AffineTransformation((10.7, 12))


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, (1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("name", ["spacing", "control_spacing"])
def test_bad_spacing(name, bad):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        BSplineTransformation((9, 8), **{name: bad})


@pytest.mark.parametrize("bad", [0.0, -0.4, math.nan, math.inf])
def test_bad_max_displacement(bad):
    with pytest.raises(ValueError, match="^max_displacement must be"):
        BSplineTransformation((9, 8), max_displacement=bad)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", BOUND_NAMES)
def test_bad_affine_bounds(name, bad):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        AffineTransformation((9, 8), **{name: bad})


# modules


@pytest.mark.parametrize("dims, kind", KINDS)
def test_holds_no_weights_and_no_state(dims, kind):
    transformation = all_kinds(dims)[kind]
    assert not list(transformation.parameters())
    assert not transformation.state_dict()
    attributes = {name: dict(module.__dict__) for name, module in transformation.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in transformation.named_buffers()}
    transformation(random_theta(transformation))
    assert {name: dict(module.__dict__) for name, module in transformation.named_modules()} == attributes
    assert buffers.keys() == dict(transformation.named_buffers()).keys()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in transformation.named_buffers())


@pytest.mark.parametrize("dims, kind", KINDS)
def test_dtype_follows_theta_and_is_never_below_float32(dims, kind):
    transformation = all_kinds(dims)[kind]
    theta = random_theta(transformation, scale=0.5)
    expected = transformation(theta)
    assert expected.dtype == torch.float64
    assert max_abs(transformation.double()(theta), expected) < 1e-12
    assert max_abs(transformation.to(torch.float32)(theta.float()), expected) < 1e-4
    for dtype in (torch.bfloat16, torch.float16):
        low = theta.to(dtype)
        assert transformation(low).dtype == torch.float32
        assert max_abs(transformation(low), transformation(low.float())) == 0


@pytest.mark.parametrize("dims, kind", KINDS)
def test_autocast_changes_nothing(dims, kind):
    transformation = all_kinds(dims)[kind]
    theta = random_theta(transformation).float()
    expected = transformation(theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = transformation(theta)
    assert result.dtype == torch.float32
    assert max_abs(result, expected) < 1e-6


@pytest.mark.parametrize("dims", DIMS)
def test_autocast_does_not_change_the_matrix_that_is_exported(dims):
    affine = affine_of(dims)
    theta = random_theta(affine).float()
    expected = affine.matrix(theta)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = affine.matrix(theta)
    assert max_abs(result, expected) < 1e-6


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dims, kind", KINDS)
def test_traces_to_the_same_function(dims, kind):
    transformation = all_kinds(dims)[kind]
    traced = torch.jit.trace(transformation, random_theta(transformation, seed=1).float(), check_trace=False)
    for seed in (2, 3):
        theta = random_theta(transformation, seed, batch=seed).float()
        assert max_abs(traced(theta), transformation(theta)) < 1e-5


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("name", ["affine", "bspline"])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_gives_every_so_many_voxels_of_the_same_field(dims, name, stride):
    size, spacing = (13, 10, 9)[:dims], (1.0, 2.0, 0.5)[:dims]
    transformation = spatial_transformation(name, size, spacing, control_spacing=12.0)
    theta = torch.randn(2, transformation.num_parameters, generator=torch.Generator().manual_seed(0)).double()
    expected = transformation(theta)[(..., *[slice(None, None, stride)] * dims)]
    assert max_abs(transformation(theta, stride), expected) < 1e-12


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_components_of_a_composite_are_known_at_the_voxels_of_a_stride(dims, stride):
    """SciPy's linear interpolation of the affine's field, at those voxels, where the B-spline moves them."""
    composite = spatial_transformation("affine_bspline", (13, 10, 9)[:dims], (1.0, 2.0, 0.5)[:dims], 12.0)
    theta = 0.3 * torch.randn(1, composite.num_parameters, generator=torch.Generator().manual_seed(0)).double()
    outer, inner = (
        part(own, stride)[0] for part, own in zip(composite.components, composite.split(theta), strict=True)
    )
    places = np.indices(inner.shape[1:]) + inner.numpy() / stride
    moved = [map_coordinates(component, places, order=1, mode="nearest") for component in outer.numpy()]
    assert max_abs(composite(theta, stride)[0], inner.numpy() + np.stack(moved)) < 1e-10


@pytest.mark.parametrize("dims", DIMS)
def test_components_between_others_alone(dims):
    composite = spatial_transformation("affine_bspline", (13, 10, 9)[:dims], 1.0, (12.0, 6.0))
    theta = torch.randn(2, composite.num_parameters, generator=torch.Generator().manual_seed(0)).double()
    blocks = list(composite.split(theta))
    assert torch.equal(composite.between(blocks, 0, 3), composite(theta))
    assert torch.equal(composite.between(blocks, 1, 2), composite.components[1](blocks[1]))
    assert composite.between(blocks, 1, 1) is None
    blocks[1] = torch.zeros_like(blocks[1])
    assert composite.between(blocks, 1, 2) is None
    assert torch.equal(composite.between(blocks, 1, 3), composite.components[2](blocks[2]))
    assert max_abs(composite.whole(torch.cat(blocks, 1)), composite(torch.cat(blocks, 1))) < 1e-12
    assert not composite.whole(torch.zeros_like(theta)).any()


@pytest.mark.parametrize("spacing, control_spacing", [((1.0, 2.0), 7.0), ((1.0, 0.7, 1.5), (6.0, 9.0, 7.5))])
def test_the_bending_energy_of_a_lattice_is_that_of_a_parabola_without_its_field(spacing, control_spacing):
    """Control points on a x^2 + b x y, in mm, make a spline with the second derivatives 2 a and b everywhere."""
    bspline = BSplineTransformation((21, 17, 19)[: len(spacing)], spacing, control_spacing, max_displacement=None)
    axes = [
        torch.arange(n, dtype=torch.float64) * c
        for n, c in zip(bspline.control_shape, bspline.control_spacing, strict=True)
    ]
    x, y = torch.meshgrid(*axes, indexing="ij")[:2]
    a, b = 0.003, 0.002
    lattice = torch.zeros(1, *bspline.parameter_shapes[0], dtype=torch.float64)
    lattice[:, 1] = (a * x**2 + b * x * y) / bspline.control_spacing[1]
    for stride in (1, 2):
        energy = bspline.bending_energy(lattice.flatten(1), stride)
        assert energy.item() == pytest.approx(4 * a**2 + 2 * b**2, rel=1e-4)
    assert AffineTransformation((9, 8))(torch.ones(1, 6)).any() and AffineTransformation((9, 8)).bending_energy(
        torch.ones(1, 6)
    ).tolist() == [0.0]


def test_the_bending_energy_of_a_lattice_is_about_that_of_differences_of_its_field():
    bspline = BSplineTransformation((40, 44, 36), 0.5, 8.0)
    theta = torch.randn(2, bspline.num_parameters, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        bspline.bending_energy(theta), bending_energy(bspline(theta), (0.5,) * 3), rtol=0.02, atol=0
    )
    small = BSplineTransformation((7, 5, 6), 1.5, 6.0)
    assert torch.autograd.gradcheck(small.bending_energy, random_theta(small, batch=2).requires_grad_())
    dense = DenseTransformation((9, 8))
    ddf = torch.rand(1, dense.num_parameters)
    torch.testing.assert_close(dense.bending_energy(ddf), bending_energy(dense(ddf), (1.0, 1.0)))


def test_numbers_of_numpy_are_numbers():
    affine = AffineTransformation(np.array([24, 20]), np.array([1.5, 1]))
    assert (affine.spatial_size, affine.spacing) == ((24, 20), (1.5, 1.0))
    assert BSplineTransformation(tuple(np.array([24, 20])), np.float32(2)).spacing == (2.0, 2.0)
