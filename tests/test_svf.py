"""Stationary velocity fields against SciPy's solution of the ODE and MONAI's integration; closed inverses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.networks.blocks import DVF2DDF
from oracles import DIMS, SIZE, SPACING, max_abs
from scipy.integrate import solve_ivp
from scipy.interpolate import BSpline

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.composite import CompositeTransformation, spatial_transformation
from istn_monai.geometry.names import bounds_of, kinds_of
from istn_monai.geometry.sampling import compose
from istn_monai.geometry.svf import SVFTransformation, checked_steps
from istn_monai.metrics import jacobian_determinant

LARGE = {2: (40, 33), 3: (32, 40, 27)}
LEVELS = (24.0, 12.0, 6.0)
quick = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def normal(transformation, scale=1.0, seed=0, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, transformation.num_parameters, generator=generator)


def inner(field, rim=4):
    return field[(..., *[slice(rim, -rim)] * (field.ndim - 2))]


def stays_inside(ddf):
    """``(B, *S)``: which voxels a field leaves within the grid, beyond which it is that of the border."""
    size = ddf.shape[2:]
    voxels = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
    last = torch.tensor(size).view(-1, *[1] * len(size)) - 1
    moved = voxels + ddf
    return ((moved > 1) & (moved < last - 1) & (voxels >= 4) & (voxels <= last - 4)).all(1)


def velocity_by_scipy(svf, theta):
    """A function of points ``(N, D)`` in voxels, of SciPy's tensor-product B-splines, constant beyond the grid."""
    blocks = theta[0].split([level.num_parameters for level in svf.levels])
    last = np.array(svf.spatial_size) - 1.0

    def velocity(points):
        points = np.clip(points, 0, last)
        total = np.zeros_like(points)
        for level, block in zip(svf.levels, blocks, strict=True):
            lattice = 0.4 * np.tanh(block.double().numpy()).reshape(level.parameter_shapes[0])
            weights = []
            for axis, (n, step, cell) in enumerate(
                zip(level.control_shape, svf.spacing, level.control_spacing, strict=True)
            ):
                place = (points[:, axis] * step - level.domain_origin[axis]) / cell + 1
                knots = np.arange(-2, n + 2)  # of control point i the basis spans i - 2 to i + 2
                basis = BSpline(knots.astype(float), np.eye(n), 3, extrapolate=False)
                weights.append(np.nan_to_num(basis(np.minimum(place, n - 2 - 1e-12))))
            letters = "abc"[: len(weights)]
            spec = f"z{letters}," + ",".join(f"n{letter}" for letter in letters) + "->nz"
            scale = np.array(level.control_spacing) / np.array(svf.spacing)
            total += np.einsum(spec, lattice, *weights) * scale
        return total

    return velocity


def solved(svf, theta, points):
    """Displacements of points ``(N, D)`` in voxels, by SciPy."""
    velocity = velocity_by_scipy(svf, theta)

    def right_side(_, flat):
        return velocity(flat.reshape(points.shape)).ravel()

    return solve_ivp(right_side, (0, 1), points.ravel(), rtol=1e-7, atol=1e-6).y[:, -1].reshape(points.shape) - points


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("control", [12.0, (16.0, 8.0)])
def test_exponential_is_the_solution_of_the_ode(dims, control):
    svf = SVFTransformation(LARGE[dims], 1.0, control)
    theta = normal(svf)
    ddf = svf(theta)[0]
    axes = [torch.arange(6, n - 6, 3.0) for n in svf.spatial_size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, dims)
    expected = solved(svf, theta, points.double().numpy())
    found = ddf[(slice(None), *points.long().T)].T.double().numpy()
    error = np.linalg.norm(found - expected, axis=1)
    assert np.linalg.norm(expected, axis=1).max() > 2.5  # it moves
    assert error.mean() < 0.02 and np.quantile(error, 0.99) < 0.06


@pytest.mark.parametrize("dims", DIMS)
def test_anisotropic_lattice_follows_the_ode(dims):
    spacing = (0.7, 1.3, 2.0)[:dims]
    svf = SVFTransformation(LARGE[dims], spacing, 15.0)
    theta = normal(svf, seed=3)
    points = np.array([[20.0, 15.0, 12.0], [15.0, 22.0, 14.0]])[:, :dims]
    expected = solved(svf, theta, points)
    found = svf(theta)[0][(slice(None), *torch.as_tensor(points).long().T)].T.numpy()
    assert max_abs(found, expected) < 0.03


@pytest.mark.parametrize("dims", DIMS)
def test_exponential_is_that_of_monai(dims):
    svf = SVFTransformation(LARGE[dims], 1.0, (16.0, 8.0))
    theta = normal(svf)
    theirs = DVF2DDF(num_steps=10, mode="bilinear", padding_mode="border")(svf.velocity(theta))
    error = inner(svf(theta) - theirs).norm(dim=1)
    assert error.mean() < 0.02 and error.quantile(0.99) < 0.06


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_there_and_back_is_where_it_began(dims, scale):
    svf = SVFTransformation(LARGE[dims], 1.0, LEVELS)
    theta = normal(svf, scale, seed=1)
    for outer, first in ((svf(theta), svf.inverse(theta)), (svf.inverse(theta), svf(theta))):
        error = compose(outer, first).norm(dim=1)[stays_inside(first)]
        assert error.mean() <= 0.02 and error.quantile(0.99) <= 0.1
    assert torch.equal(svf.inverse(theta), svf(-theta))


@pytest.mark.parametrize("dims", DIMS)
@quick
@given(st.integers(0, 10_000))
def test_nothing_folds_at_the_bound(dims, seed):
    svf = SVFTransformation(LARGE[dims], 1.0, LEVELS)
    theta = 30.0 * torch.sign(normal(svf, seed=seed))
    for ddf in (svf(theta), svf.inverse(theta)):
        assert inner(jacobian_determinant(ddf)[:, None], 1).min() > 0


@pytest.mark.parametrize("dims", DIMS)
def test_identity_and_gradient(dims):
    svf = SVFTransformation(SIZE[dims], SPACING[dims], (6.0, 3.0)).double()
    zero = torch.zeros(2, svf.num_parameters)
    assert not svf(zero).any() and not svf.inverse(zero).any()
    small = SVFTransformation((6, 5, 4)[:dims], 1.0, 4.0)
    theta = normal(small, 0.4, seed=2).double().requires_grad_()
    assert torch.autograd.gradcheck(small, theta)
    assert torch.autograd.gradcheck(small.inverse, theta)


def test_small_parameters_mean_what_they_mean_of_composed_bsplines():
    size = (30, 26)
    svf, levels = (spatial_transformation(name, size, 1.0, (12.0, 6.0)) for name in ("svf", "bspline"))
    assert svf.parameter_shapes == levels.parameter_shapes
    theta = normal(svf, 1e-3)
    moved = svf(theta)
    assert max_abs(moved, levels(theta)) < 0.02 * moved.abs().max() < 1e-3


def test_a_stride_leaves_out_voxels():
    svf = SVFTransformation((40, 33), 1.0, (16.0, 8.0))
    theta = normal(svf)
    error = inner(svf(theta, 2) - svf(theta)[..., ::2, ::2], 3).norm(dim=1)
    assert error.mean() < 0.03 and error.max() < 0.15
    assert svf.inverse(theta, 2).shape == (1, 2, 20, 17)


def test_steps_follow_the_largest_velocity():
    assert checked_steps(None, 0.3) == checked_steps(None, 4.0) == 2
    assert checked_steps(None, 16.8) == 5
    assert SVFTransformation((40, 40), 0.5, 24.0).steps == math.ceil(math.log2(0.4 * 48)) == 5
    assert SVFTransformation((40, 40), 1.0, 24.0, steps=9).resized((30, 30)).steps == 9
    for steps in (1, 3, 13, 4.0, True):
        with pytest.raises(
            ValueError, match=r"steps of svf must be a whole number from 4 to 12 for velocities up to 9.6"
        ):
            SVFTransformation((40, 40), 1.0, 24.0, steps=steps)
    with pytest.raises(ValueError, match="max_displacement of svf must be a positive fraction"):
        SVFTransformation((40, 40), max_displacement=None)
    with pytest.raises(ValueError, match="control_spacing must be"):
        SVFTransformation((40, 40), control_spacing=())


@pytest.mark.parametrize("dims", DIMS)
def test_inverse_of_an_affine_is_that_of_its_matrix(dims):
    affine = AffineTransformation(SIZE[dims], SPACING[dims])
    theta = normal(affine, 0.5).double()
    matrix = torch.linalg.inv(affine.matrix(theta))[0]
    voxels = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in SIZE[dims]], indexing="ij")).double()
    spacing = torch.tensor(SPACING[dims]).double().view(-1, *[1] * dims)
    center = (torch.tensor(SIZE[dims]).double().view(-1, *[1] * dims) - 1) / 2
    mm = (voxels - center) * spacing
    expected = torch.tensordot(matrix[:-1, :-1] - torch.eye(dims), mm, dims=1) + matrix[:-1, -1].view(-1, *[1] * dims)
    assert max_abs(affine.inverse(theta)[0], expected / spacing) < 1e-9


@pytest.mark.parametrize("dims", DIMS)
def test_inverse_of_a_composite_is_that_of_its_parts_in_turn(dims):
    composite = spatial_transformation(
        "affine+svf", LARGE[dims], 1.0, (16.0, 8.0), affine_bounds={"translation": 3, "rotation": 10, "scale": 1.1}
    )
    assert composite.invertible
    theta = normal(composite, 0.7)
    error = inner(compose(composite(theta), composite.inverse(theta)), 8).norm(dim=1)
    assert error.mean() < 0.02 and error.quantile(0.99) < 0.1
    wrong_way = inner(compose(composite(theta), composite(theta)), 8).norm(dim=1)
    assert wrong_way.mean() > 1


def test_what_has_no_inverse_in_closed_form_says_so():
    for transformation in (BSplineTransformation((9, 9)), spatial_transformation("affine+bspline", (9, 9))):
        assert not transformation.invertible
        with pytest.raises(TypeError, match="has no inverse in closed form: affine transformations and svf have"):
            transformation.inverse(torch.zeros(1, transformation.num_parameters))


def test_names_of_transformations():
    assert kinds_of("affine_bspline") == kinds_of("affine+bspline") == ("affine", "bspline")
    rigid = spatial_transformation("rigid+bspline", (20, 20), 1.0, (8.0, 4.0))
    assert isinstance(rigid, CompositeTransformation) and len(rigid.components) == 3
    theta = torch.zeros(1, rigid.num_parameters)
    theta[:, :6] = 5.0
    matrix = rigid.components[0].matrix(theta[:, :6])[0, :2, :2]
    assert max_abs(matrix @ matrix.T, torch.eye(2)) < 1e-6
    for name in ("bspline+affine", "affine+affine", "", "fine", None, "affine+", "svf+bspline"):
        with pytest.raises(ValueError, match="transformation must be one of rigid, affine, bspline, svf, or several"):
            spatial_transformation(name, (20, 20))


def test_bounds_of_an_affine_are_settings():
    bounds = {"translation": 60, "rotation": 90, "scale": 2, "shear": 0}
    affine = spatial_transformation("affine", (20, 20), affine_bounds=bounds)
    translation, rotation, log_scale, shear = affine.decompose(torch.full((1, 6), 20.0))
    assert translation[0, 0] == 60 and rotation.item() == pytest.approx(math.pi / 2)
    assert log_scale.exp()[0, 0].item() == pytest.approx(2) and shear.item() == 0
    assert bounds_of("affine") == {}
    wrong = [
        (
            "affine",
            {"turn": 3},
            "affine_bounds of affine must be numbers by name, of translation, rotation, scale, shear",
        ),
        ("rigid", {"scale": 2}, "affine_bounds of rigid must be numbers by name, of translation, rotation"),
        ("affine", {"translation": math.inf}, "affine_bounds: translation must be a number from 0 to 10000"),
        ("affine", {"rotation": None}, "affine_bounds: rotation must be a number from 0 to 180"),
        ("affine", {"scale": 0.5}, "affine_bounds: scale must be a number from 1 to 10"),
        ("affine", 3, "affine_bounds of affine must be numbers by name"),
        (
            "bspline",
            {"rotation": 30},
            "affine_bounds are of rigid and affine transformations, and transformation is 'bspl",
        ),
    ]
    for name, bounds, message in wrong:
        with pytest.raises(ValueError, match=message):
            spatial_transformation(name, (20, 20), affine_bounds=bounds)
