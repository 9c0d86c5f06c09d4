"""Tests of the image pyramid and of what refines one component after the other on it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import rand, small_istn
from monai.data import decollate_batch

from istn_monai import (
    AffineTransformation,
    BSplineTransformation,
    CompositeTransformation,
    DisplacementNetwork,
    Refiner,
    spatial_transformation,
)
from istn_monai.descent import gradient_scale, no_idle_threads
from istn_monai.directions import OneWay
from istn_monai.geometry.sampling import MovedGrid, voxel_grid
from istn_monai.geometry.separable import along_axes, area_weights, block_means
from istn_monai.inferer import RefineInferer, refinement_of
from istn_monai.levels import Level, checked_levels, levels_in_turn
from istn_monai.local_correlation import LocalCorrelation, Moments, window_weights
from istn_monai.metrics import jacobian_determinant
from istn_monai.objective import PairObjective
from istn_monai.turns import Turn

SIZE = (34, 30)


def blob(*center: float, size: tuple[int, ...] = SIZE, width: float = 5.0) -> torch.Tensor:
    """A smooth bump ``(1, 1, *S)``."""
    away = sum((grid - c) ** 2 for grid, c in zip(voxel_grid(size, torch.zeros(1)), center, strict=True))
    return torch.exp(-away / (2 * width**2))[None, None]


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two bumps each, which move apart."""
    return blob(10, 13) + 0.7 * blob(24, 18), blob(12, 14) + 0.7 * blob(22, 16)


def composite() -> CompositeTransformation:
    return spatial_transformation("affine_bspline", SIZE, 1.0, (12.0, 6.0))


# --- pyramid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride, weights", [(2, [1, 2, 1]), (3, [1, 1, 1]), (4, [1, 2, 2, 2, 1])])
@pytest.mark.parametrize("size", [(13,), (12, 17), (9, 10, 11)])
def test_a_voxel_of_the_pyramid_is_the_mean_of_those_around_it(stride, weights, size):
    image = rand(2, 3, *size)
    found = block_means(image, stride)
    assert found.shape == (2, 3, *(math.ceil(n / stride) for n in size))
    kernel = np.array(weights) / sum(weights)
    half = len(weights) // 2
    for place in ((1,) * len(size), tuple((n - 1 - half) // stride for n in size)):
        window = image[(1, 2, *[slice(p * stride - half, p * stride + half + 1) for p in place])].double().numpy()
        for _ in size:
            window = np.tensordot(kernel, window, 1)
        assert found[(1, 2, *place)].item() == pytest.approx(float(window), abs=1e-6)
    torch.testing.assert_close(block_means(torch.ones(1, 1, *size), stride), torch.ones(1, 1, *found.shape[2:]))
    assert torch.equal(block_means(image, 1), image)


def test_products_along_axes_are_those_of_einsum():
    image, matrices = rand(2, 3, 4, 5, 6), [rand(7, 4), rand(3, 5, seed=1), rand(2, 6, seed=2)]
    expected = torch.einsum("bcxyz,ix,jy,kz->bcijk", image, *matrices)
    torch.testing.assert_close(along_axes(image, matrices), expected)


@pytest.mark.parametrize("size", [(6, 7), (5, 4, 6)])
def test_gradients_by_hand_are_those_of_differences(size):
    torch.manual_seed(0)
    moving, fixed, ddf = (torch.rand(2, c, *size, dtype=torch.float64) for c in (1, 1, len(size)))
    windows = window_weights(size, 3, moving, 2)
    assert torch.autograd.gradcheck(lambda x: Moments.apply(x, fixed, windows), moving.requires_grad_())
    assert torch.autograd.gradcheck(lambda x: MovedGrid.apply(x, size, 1, [0] * len(size)), ddf.requires_grad_())


def test_windows_about_every_other_voxel_are_some_of_those_about_all():
    fixed, moving = rand(1, 1, 12, 15), rand(1, 1, 12, 15, seed=1)
    every = LocalCorrelation(fixed, 5, 2)
    means = along_axes(moving, window_weights((12, 15), 5, moving))[..., ::2, ::2]
    torch.testing.assert_close(along_axes(moving, every.windows), means)
    counts = torch.ones(1, 1, 12, 15)
    torch.testing.assert_close(every(moving), every(moving, counts))


def test_what_a_mask_leaves_out_is_in_no_mean_of_the_pyramid():
    moving, fixed = pair()
    mask = torch.ones(1, 1, *SIZE)
    mask[..., 5:9, 5:11] = 0
    values = []
    for outside in (0.0, 50.0):
        sides = [torch.where(mask > 0, image, outside) for image in (moving, fixed)]
        objective = PairObjective("accurate", *sides, (1.0, 1.0), guidance={"moving_mask": mask, "fixed_mask": mask})
        values.append(objective.at(2).fixed["structures"] * (block_means(mask, 2) > 0))
    assert torch.equal(*values)


# --- levels ----------------------------------------------------------------------------------------------------------


def test_levels_in_turn_use_all_steps_and_few_voxels():
    for steps in (1, 7, 50):
        for components in (1, 2, 5):
            levels = levels_in_turn(steps, components, (48, 64, 48))
            assert sum(level.steps for level in levels) == steps
            assert levels[-1].component == components - 1 and levels[-1].steps >= steps // 2
    strides = [[level.stride for level in levels_in_turn(9, 3, (n,) * 3)] for n in (20, 64, 256, 512)]
    assert strides == [[2, 1, 1], [4, 2, 2], [4, 2, 2], [8, 4, 4]]


def test_a_level_of_a_component_that_there_is_not_is_refused():
    moving, fixed = pair()
    with pytest.raises(ValueError, match="there is no component 3, the transformation has 3, numbered from 0"):
        Refiner(levels=[[2, 5, 3]], weights="intensities").register(composite(), moving, fixed)
    for refiner, transformation in (
        (Refiner(levels=[[2, 5, 0]], weights="intensities"), AffineTransformation(SIZE)),
        (Refiner(levels=[[2, 5, 0]]), composite()),
    ):
        with pytest.raises(ValueError, match="refine_levels of components need a transformation that has some"):
            refiner.register(transformation, moving, fixed)


# --- one after the other ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_component_alone_has_the_objective_of_all(number, stride):
    """But for the bending energy, and for sampling twice what those before it moved."""
    transformation, (moving, fixed) = composite(), pair()
    theta = 0.2 * torch.randn(1, transformation.num_parameters, generator=torch.Generator().manual_seed(1))
    objective = PairObjective({"structures": 1.0, "image": 0.1}, moving, fixed, (1.0, 1.0))
    turn = Turn(transformation, theta, Level(stride, 1, number), OneWay(transformation, objective))
    ddf, value = turn.evaluate(turn.start, stride)
    expected = objective(transformation(theta, stride), stride)
    torch.testing.assert_close(value, expected, rtol=1e-5 if number == 0 else 0.1, atol=1e-4)
    assert torch.equal(turn.whole(turn.start), theta)
    assert ddf.shape == (1, 2, *(math.ceil(n / stride) for n in SIZE))


@pytest.mark.parametrize("number", [0, 1])
def test_a_component_alone_bends_as_all_do_together(number):
    """Two lattices that move the same way: the bending energy of 2u is four times that of u, not twice."""
    lattice = BSplineTransformation(SIZE, 1.0, 12.0)
    image = torch.zeros(2, 1, *SIZE)
    theta = 0.2 * rand(2, lattice.num_parameters)
    transformation, objective = (
        CompositeTransformation([lattice] * 2),
        PairObjective({"mse": 1, "bending": 1}, image, image, (1, 1)),
    )
    turn = Turn(transformation, torch.cat([theta, theta], 1), Level(1, 1, number), OneWay(transformation, objective))
    expected = 4 * lattice.bending_energy(theta)
    torch.testing.assert_close(turn.evaluate(turn.start, 1)[1], expected, rtol=0.05, atol=0)


def test_landmarks_are_where_all_components_take_them():
    transformation, (moving, fixed) = composite(), pair()
    theta = 0.2 * torch.randn(1, transformation.num_parameters, generator=torch.Generator().manual_seed(1))
    points = {"moving_points": torch.tensor([[[9.0], [12.0]]]), "fixed_points": torch.tensor([[[12.0], [14.0]]])}
    objective = PairObjective({"landmarks": 1.0}, moving, fixed, (1.0, 1.0), guidance=points)
    turn = Turn(transformation, theta, Level(1, 1, 2), OneWay(transformation, objective))
    torch.testing.assert_close(turn.evaluate(turn.start, 1)[1], objective(transformation(theta)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"steps": 60}, {"levels": [[2, 25, 0], [2, 20, 1], [1, 20, 2], [1, 10]]}])
def test_components_in_turn_register_and_report(options):
    transformation, (moving, fixed) = composite(), pair()
    refiner = Refiner(weights={"image": 1.0, "bending": 0.1}, learning_rate=0.3, patience=99, **options)
    result = refiner.register(transformation, moving, fixed)
    report = result.reports[0]
    assert report.objective_end < 0.6 * report.objective_start
    assert len(report.trace) == refiner.steps + 1 and all(math.isfinite(value) for value in report.trace)
    assert 0 < report.steps <= refiner.steps
    assert sum(before for before, _ in report.terms.values()) == pytest.approx(report.objective_start, rel=1e-5)
    assert sum(after for _, after in report.terms.values()) == pytest.approx(report.objective_end, rel=1e-5)
    assert torch.equal(result.ddf, transformation(result.theta)) or torch.allclose(
        result.ddf, transformation(result.theta), atol=1e-5
    )
    assert jacobian_determinant(result.ddf).min() > 0


def test_a_batch_in_turn_gives_what_its_pairs_give_and_nothing_gets_worse():
    transformation = composite()
    moving, fixed = (torch.cat(sides) for sides in zip(pair(), pair()[::-1], (rand(1, 1, *SIZE),) * 2, strict=True))
    refiner = Refiner(steps=12, weights="accurate", learning_rate=50.0)
    both = refiner.register(transformation, moving, fixed)
    for number, report in enumerate(both.reports):
        one = refiner.register(transformation, moving[number : number + 1], fixed[number : number + 1])
        torch.testing.assert_close(one.theta[0], both.theta[number], rtol=1e-3, atol=1e-4)
        assert report.objective_end <= report.objective_start
    assert both.reports[2].objective_end == both.reports[2].objective_start and not both.theta[2].any()


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_the_scale_of_an_objective_does_not_matter(factor):
    """Steps that depend on grid or units would differ."""
    moving, fixed = pair()
    thetas = [
        Refiner(steps=15, weights={"image": scale, "bending": 0.1 * scale}).register(composite(), moving, fixed).theta
        for scale in (1.0, factor)
    ]
    torch.testing.assert_close(*thetas, rtol=1e-3, atol=1e-4)


def test_few_voxels_take_one_thread_and_the_others_come_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with no_idle_threads(2**16):
            assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), no_idle_threads(2**16 - 1):
            assert torch.get_num_threads() == 1
            _ = 1 / 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_gradients_without_size_stay_so():
    gradient = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert (gradient_scale(gradient) * gradient)[0].tolist() == [0.0, 0.0]
    assert (gradient_scale(gradient) * gradient)[1].square().mean().item() == pytest.approx(1.0)


def test_time_runs_out_in_turn_as_well():
    moving, fixed = pair()
    result = Refiner(steps=5000, weights="intensities", max_seconds=0.3).register(composite(), moving, fixed)
    assert len(result.reports[0].trace) == 5001 and result.reports[0].seconds < 10
    assert result.reports[0].objective_end <= result.reports[0].objective_start


def test_levels_may_have_a_component():
    assert checked_levels([[8, 60, 0], [2, 3, 1], [1, 2]])[0] == Level(8, 60, 0)
    assert area_weights(3, 2, torch.zeros(1)).sum(1).tolist() == [1.0, 1.0]


def test_the_metadata_keep_where_levels_begin_and_those_of_earlier_versions_are_read():
    network = DisplacementNetwork(small_istn(SIZE, transformation=composite()))
    ddf = RefineInferer(steps=9, weights="accurate")(torch.rand(1, 2, *SIZE), network)
    found = refinement_of(decollate_batch(ddf)[0]).report
    assert found.levels == tuple((level.stride, level.steps) for level in levels_in_turn(9, 3, SIZE))
    assert sum(steps for _, steps in found.levels) == len(found.trace) - 1 and "levels" not in found.numbers()
    del ddf.meta["refinement"]["levels"]
    assert refinement_of(decollate_batch(ddf)[0]).report.levels == ()
    at_once = RefineInferer(steps=3)(torch.rand(1, 2, *SIZE), network)
    assert refinement_of(decollate_batch(at_once)[0]).report.levels == ()
