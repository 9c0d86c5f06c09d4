"""Tests of `istn_monai.objective` and `istn_monai.refine_weights`: each term against numbers by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import rand
from scipy.ndimage import uniform_filter

from istn_monai import AffineTransformation, BSplineTransformation, Refiner
from istn_monai.geometry.bending import bending_gradient
from istn_monai.geometry.sampling import warp
from istn_monai.geometry.separable import along_axes
from istn_monai.local_correlation import window_weights
from istn_monai.mind import mind_ssc
from istn_monai.objective import LocalCorrelation, PairObjective, bending_energy
from istn_monai.refine_weights import PRESETS, term_weights

SIZES = [(11, 14), (9, 12, 10)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [3, 5, 9])
def test_window_means_are_those_of_scipy_and_of_what_is_inside_at_the_border(size, width):
    image = rand(1, 2, *size)
    means = along_axes(image, window_weights(size, width, image))
    inner = (slice(None), slice(None), *[slice(width // 2, n - width // 2) for n in size])
    expected = uniform_filter(image.numpy(), [0, 0, *[width] * len(size)])
    np.testing.assert_allclose(means[inner], expected[inner], atol=1e-6)
    corner = image[(0, 0, *[slice(0, width // 2 + 1)] * len(size))].mean()
    assert means[(0, 0, *[0] * len(size))].item() == pytest.approx(corner.item(), abs=1e-6)


@pytest.mark.parametrize("size", [(7, 8), (5, 6, 7)])
def test_local_correlation_is_the_mean_of_squared_correlations_of_windows(size):
    fixed, moving, width = rand(1, 1, *size), rand(1, 1, *size, seed=1), 3
    values = []
    for place in itertools.product(*map(range, size)):
        window = tuple(slice(max(0, p - width // 2), p + width // 2 + 1) for p in place)
        one, other = (image[0, 0].double().numpy()[window].ravel() for image in (fixed, moving))
        values.append(np.corrcoef(one, other)[0, 1] ** 2)
    assert LocalCorrelation(fixed, width)(moving).item() == pytest.approx(np.mean(values), abs=2e-3)


def test_flat_windows_tell_nothing_and_scale_and_sign_do_not_matter():
    image = rand(1, 1, 20, 22)
    flat = torch.cat([image[..., :11], torch.zeros(1, 1, 20, 11)], dim=3)
    assert LocalCorrelation(flat)(torch.zeros_like(flat)).item() == 0
    assert LocalCorrelation(image)(3 - 2 * image).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 2.5), (1.0, 1.5, 0.5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_bending_energy_is_that_of_a_parabola_in_mm_on_any_grid(spacing, stride):
    """u = (a x^2 + b x y) e_x in mm has the second derivatives 2 a and b: the energy is 4 a^2 + 2 b^2."""
    size, a, b = (17, 13, 15)[: len(spacing)], 0.02, 0.03
    axes = [torch.arange(0, n, stride, dtype=torch.float64) * step for n, step in zip(size, spacing, strict=True)]
    x, y = torch.meshgrid(*axes, indexing="ij")[:2]
    ddf = torch.zeros(1, len(spacing), *x.shape, dtype=torch.float64)
    ddf[:, 0] = (a * x**2 + b * x * y) / spacing[0]
    assert bending_energy(ddf, spacing, stride).item() == pytest.approx(4 * a**2 + 2 * b**2, rel=1e-9)


def test_affine_fields_bend_nothing_and_grids_of_a_few_voxels_are_fine():
    ddf = AffineTransformation((9, 8, 7))(rand(1, 12))
    assert bending_energy(ddf, (1, 1, 1)).item() < 1e-9
    assert bending_energy(torch.ones(1, 2, 2, 2), (1, 1)).item() == 0


@pytest.mark.parametrize("size, spacing", [((7, 6), (1.5, 0.8)), ((5, 4, 6), (1.0, 2.0, 0.7)), ((2, 4, 1), (1, 1, 1))])
def test_the_gradient_of_bending_energy_is_autograds(size, spacing):
    ddf = rand(2, len(size), *size).double().requires_grad_()
    energy = bending_energy(ddf, spacing, 2)
    found = bending_gradient(ddf.detach(), spacing, 2)
    assert (found - torch.autograd.grad(energy.sum(), ddf)[0]).abs().max() < 1e-12
    assert ((found * ddf).flatten(1).sum(1) / 2 - energy).abs().max() < 1e-12  # it is quadratic


def test_the_objective_is_the_sum_of_its_weighted_terms():
    moving, fixed, images = rand(2, 2, 12, 13), rand(2, 2, 12, 13, seed=1), (rand(2, 1, 12, 13, seed=2),) * 2
    ddf = rand(2, 2, 12, 13, seed=3)
    objective = PairObjective({"structures": 2, "image": 0.5, "bending": 3}, moving, fixed, (1.5, 1.5), images)
    terms = objective.terms(ddf)
    squares = (moving.square() + fixed.square()).flatten(1).mean(1) / 2
    expected = (warp(moving, ddf) - fixed).square().flatten(1).mean(1) / squares
    torch.testing.assert_close(terms["structures"], 2 * expected)
    torch.testing.assert_close(terms["image"], 0.5 * (1 - LocalCorrelation(images[1], 5, 2)(warp(images[0], ddf))))
    torch.testing.assert_close(terms["bending"], 3 * bending_energy(ddf, (1.5, 1.5)))
    torch.testing.assert_close(objective(ddf), sum(terms.values()))


def test_structures_count_alike_whatever_part_of_the_grid_they_fill():
    small = torch.zeros(1, 1, 20, 20)
    small[..., 8:12, 8:12] = 1.0
    large = torch.nn.functional.pad(small, [20] * 4)
    values = [
        PairObjective("structures", x, x.roll(2, 2), (1, 1))(torch.zeros(1, 2, *x.shape[2:])) for x in (small, large)
    ]
    torch.testing.assert_close(*values)


def test_gradients_are_those_of_differences():
    torch.manual_seed(0)
    moving, fixed, ddf = (torch.rand(1, c, 6, 7, dtype=torch.float64) for c in (1, 1, 2))
    objective = PairObjective("accurate", moving, fixed, (1.0, 1.5))
    assert torch.autograd.gradcheck(objective, (0.8 * ddf).requires_grad_())


@pytest.mark.parametrize("target", ["theta"])
def test_a_batch_is_refined_as_its_pairs_one_by_one_and_terms_are_reported(target):
    fixed = torch.zeros(2, 1, 24, 20)
    fixed[0, :, 8:14, 6:12], fixed[1, :, 10:15, 4:13] = 1.0, 1.0
    moving = fixed.roll(1, 2)
    images = fixed + 0.2 * rand(2, 1, 24, 20), moving
    transformation = BSplineTransformation((24, 20), 1.0, 6.0)
    refiner = Refiner(steps=12, weights="accurate")
    both = refiner.register(transformation, moving, fixed, images=images)
    for number, report in enumerate(both.reports):
        one = slice(number, number + 1)
        alone = refiner.register(transformation, moving[one], fixed[one], images=tuple(i[one] for i in images))
        torch.testing.assert_close(both.theta[one], alone.theta, atol=2e-4, rtol=0)
        assert set(report.terms) == set(PRESETS["accurate"])
        starts, ends = zip(*report.terms.values(), strict=True)
        assert sum(starts) == pytest.approx(report.objective_start, rel=1e-5)
        assert sum(ends) == pytest.approx(report.objective_end, rel=1e-5) and sum(ends) < sum(starts)


def cropped_images(size, boxes):
    """Images and representations of pairs, ``(B, 1, *S)`` each, the fixed ones 0 outside a box of slices."""
    inside = torch.zeros(len(boxes), 1, *size)
    for number, box in enumerate(boxes):
        inside[(number, 0, *box)] = 1
    fixed, shown = (0.2 + 0.8 * rand(len(boxes), 1, *size, seed=seed) for seed in (0, 1))
    return rand(len(boxes), 1, *size, seed=2), fixed * inside, (rand(len(boxes), 1, *size, seed=3), shown * inside)


def test_pairs_are_compared_in_the_box_that_the_fixed_image_shows():
    """By hand: the terms are those of the box, by its share of the grid; beyond it nothing counts."""
    size, box = (20, 22), (slice(4, 13), slice(8, 18))
    moving, fixed, images = cropped_images(size, [box])
    weights = {"structures": 1.0, "image": 1.0}
    objective = PairObjective(weights, moving, fixed, (1.0, 1.0), images)
    ddf = torch.zeros(1, 2, *size)
    terms = objective.terms(ddf)
    window = (..., slice(4, 14), slice(8, 19))  # of even beginnings, and a voxel more, on which a coarser one may lie
    share, scale = 10 * 11 / (20 * 22), (moving.square().mean() + fixed.square().mean()) / 2
    expected = (moving - fixed)[window].square().mean() * share / scale
    assert terms["structures"].item() == pytest.approx(expected.item(), rel=1e-5)
    correlation = LocalCorrelation(images[1][window], 5, 2)(images[0][window])
    assert terms["image"].item() == pytest.approx(1 - share * correlation.item(), rel=1e-5)
    outside = torch.ones(size)
    outside[window[1:]] = 0
    others = PairObjective(weights, moving + outside, fixed, (1.0, 1.0), (images[0] - outside, images[1]))
    others.size = objective.size
    assert others.terms(ddf) == terms
    moved = (0.3 * rand(1, 2, *size)).requires_grad_()
    (gradient,) = torch.autograd.grad(objective(moved), moved)
    assert (gradient * outside == 0).all() and (gradient[window] != 0).any()


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(21, 26), (17, 20, 18)])
def test_boxes_of_a_batch_do_not_mix(size, stride):
    boxes = [
        [slice(3 + axis, n - 5) for axis, n in enumerate(size)],
        [slice(6, n - 2 - axis) for axis, n in enumerate(size)],
    ]
    moving, fixed, images = cropped_images(size, boxes)
    strided = [-(-n // stride) for n in size]
    ddf = rand(2, len(size), *strided) - 0.5
    together = PairObjective("accurate", moving, fixed, [1.0] * len(size), images).terms(ddf, stride)
    for one in (slice(0, 1), slice(1, 2)):
        alone = PairObjective("accurate", moving[one], fixed[one], [1.0] * len(size), [i[one] for i in images])
        for name, value in alone.terms(ddf[one], stride).items():
            assert value.item() == pytest.approx(together[name][one].item(), rel=1e-4)


def test_all_of_the_grid_counts_where_a_term_or_a_mask_needs_it():
    size, box = (20, 22), (slice(4, 13), slice(8, 18))
    moving, fixed, images = cropped_images(size, [box])
    whole = [(0, 19), (0, 21)]
    ones = torch.ones_like(fixed)
    made = {
        "in a box": PairObjective("accurate", moving, fixed, (1.0, 1.0), images),
        "no images": PairObjective("accurate", moving, fixed, (1.0, 1.0)),
        "another term": PairObjective({"structures": 1, "mse": 1}, moving, fixed, (1.0, 1.0), images),
        "a mask": PairObjective("accurate", moving, fixed, (1.0, 1.0), images, {"fixed_mask": ones}),
        "empty": PairObjective("accurate", moving, 0 * fixed, (1.0, 1.0), (images[0], 0 * images[1])),
        "a representation": PairObjective("accurate", moving, ones, (1.0, 1.0), images),
    }
    assert made.pop("in a box").boxes == [[(4, 12), (8, 17)]]
    assert all(objective.boxes == [whole] for objective in made.values())


def test_weights_that_make_no_sense_are_named():
    assert term_weights("smooth") == PRESETS["smooth"] and term_weights({"image": 1, "bending": 0}) == {"image": 1.0}
    for wrong in (
        "smoth",
        {"structure": 1},
        {"image": -1},
        {"image": float("nan")},
        {"bending": 1},
        {"image": True},
        3,
    ):
        with pytest.raises(ValueError, match="refine_weights"):
            term_weights(wrong)
    with pytest.raises(ValueError, match="not both"):
        Refiner(weights="smooth", regularization=bending_energy)


@pytest.mark.parametrize("size", [(9, 8), (7, 8, 6)])
def test_mind_is_that_of_its_paper_by_hand(size):
    """Patches of 3 voxels at a distance of 2, in plain loops, borders continued."""
    image, dims, radius, dilation = rand(1, 1, *size).double(), len(size), 1, 2
    values = image[0, 0].numpy()

    def at(place):
        return values[tuple(min(max(p, 0), n - 1) for p, n in zip(place, size, strict=True))]

    steps = [tuple(sign * dilation * (axis == a) for a in range(dims)) for axis in range(dims) for sign in (-1, 1)]
    couples = [(s, t) for s, t in itertools.combinations(steps, 2) if any(x + y for x, y in zip(s, t, strict=True))]

    def squared(place, couple):
        one, other = (at([p + d for p, d in zip(place, step, strict=True)]) for step in couple)
        return (one - other) ** 2

    distances = np.zeros((len(couples), *size))
    for number, couple in enumerate(couples):
        field = np.array([squared(place, couple) for place in itertools.product(*map(range, size))]).reshape(size)
        distances[number] = uniform_filter(field, 2 * radius + 1, mode="nearest")
    distances -= distances.min(0)
    variance = distances.mean(0)
    expected = np.exp(-distances / variance.clip(1e-3 * variance.mean(), 1e3 * variance.mean()))
    np.testing.assert_allclose(mind_ssc(image, radius, dilation)[0], expected, atol=1e-10)


@pytest.mark.parametrize("term, contrast", [("mind", True), ("nmi", True), ("mse", False), ("image", True)])
@pytest.mark.parametrize("given", [False, True])
def test_terms_of_the_images_align_them(term, contrast, given):
    """Also those of another contrast; as the representations, or beside representations that say nothing."""
    fixed = torch.nn.functional.interpolate(rand(1, 1, 8, 7), (40, 36), mode="bicubic").clamp(0, 1)
    moving = fixed.roll(2, 2)
    moving = 1 - moving.sqrt() if contrast else moving
    refiner = Refiner(steps=60, weights={term: 1.0}, coarse_steps=0)
    nothing = torch.zeros_like(fixed)
    pair = (nothing, nothing, None, (moving, fixed)) if given else (moving, fixed)
    result = refiner.register(AffineTransformation((40, 36)), *pair)
    assert list(result.reports[0].terms) == [term]
    ddf = result.ddf[0]
    assert ddf[0, 8:-8, 8:-8].mean().item() == pytest.approx(2, abs=0.3)
    assert ddf[1, 8:-8, 8:-8].abs().mean().item() < 0.3


@pytest.mark.parametrize("term", ["image", "mse", "nmi"])
def test_what_a_mask_leaves_out_changes_no_term_of_the_images(term):
    moving, fixed = rand(1, 1, 20, 18, seed=1), rand(1, 1, 20, 18, seed=2)
    mask = torch.ones_like(fixed)
    mask[..., :6] = 0
    ddf = torch.zeros(1, 2, 20, 18)
    changed = torch.where(mask > 0, fixed, 0.9)
    values = [
        PairObjective({term: 1.0}, moving, image, (1.0, 1.0), guidance={"fixed_mask": mask})(ddf)
        for image in (fixed, changed)
    ]
    assert torch.equal(*values)
    assert not torch.equal(values[0], PairObjective({term: 1.0}, moving, fixed, (1.0, 1.0))(ddf))


@pytest.mark.parametrize("side", ["moving", "fixed"])
@pytest.mark.parametrize("term", ["structures", "image", "mse", "nmi"])
def test_what_a_mask_leaves_out_changes_nothing_where_the_field_moves_by_parts_of_a_voxel(term, side):
    moving, fixed = rand(1, 1, 20, 18, seed=1), rand(1, 1, 20, 18, seed=2)
    mask = torch.ones_like(fixed)
    mask[..., :6] = 0
    values = []
    for outside in (0.5, 1e3):
        images = {"moving": moving, "fixed": fixed}
        images[side] = torch.where(mask > 0, images[side], outside)
        objective = PairObjective({term: 1.0}, **images, spacing=(1.0, 1.0), guidance={f"{side}_mask": mask})
        values.append([objective(torch.full((1, 2, -(-20 // n), -(-18 // n)), 0.4), n).item() for n in (1, 2)])
    assert values[0] == values[1]


def test_labels_count_beyond_a_mask_too():
    label = torch.zeros(1, 1, 20, 18)
    label[..., 4:12, 3:9] = 1
    mask = (label == 0).float()
    guidance = {"moving_label": label, "fixed_label": label, "moving_mask": mask, "fixed_mask": mask}
    objective = PairObjective({"labels": 1.0, "image": 1.0}, label, label, (1.0, 1.0), guidance=guidance)
    for stride in (1, 2):
        assert objective.terms(torch.zeros(1, 2, 20 // stride, 18 // stride), stride)["labels"].item() < 1e-6
        assert objective.terms(torch.ones(1, 2, 20 // stride, 18 // stride), stride)["labels"].item() > 0.05


@pytest.mark.parametrize("counts", [None, torch.ones(1, 1, 8, 9, dtype=torch.float64)])
def test_local_correlation_has_the_gradients_of_both_images(counts):
    pair = [rand(1, 1, 8, 9, seed=seed).double().requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(lambda moving, fixed: LocalCorrelation(fixed, 5)(moving, counts), pair)


def test_half_precision_of_others_changes_no_term():
    """Autocast would make products of the windows bfloat16, and a variance what rounding leaves."""
    moving, fixed = 5 + rand(1, 1, 20, 18, seed=1), 5 + rand(1, 1, 20, 18, seed=2)
    weights = {"structures": 1, "image": 1, "mse": 1, "nmi": 1, "mind": 1, "bending": 1}
    ddf = 0.3 * rand(1, 2, 20, 18, seed=3)
    expected = PairObjective(weights, moving, fixed, (1.0, 1.0)).terms(ddf)
    with torch.autocast("cpu", torch.bfloat16):
        found = PairObjective(weights, moving, fixed, (1.0, 1.0)).terms(ddf)
    assert all(torch.equal(found[name], own) for name, own in expected.items())


@pytest.mark.parametrize("term", ["bending energy", "local correlation"])
def test_second_derivatives(term):
    """By finite differences of the gradient."""
    image, fixed = (rand(1, 1, 9, 10, seed=seed).double() for seed in (1, 2))
    spline = BSplineTransformation((9, 10), control_spacing=4.0).double()
    start = rand(1, spline.num_parameters).double() - 0.5 if term == "bending energy" else image
    value = spline.bending_energy if term == "bending energy" else LocalCorrelation(fixed)

    def gradient(at):
        return torch.autograd.grad(value(at).sum(), at, create_graph=True)[0]

    at = start.clone().requires_grad_()
    direction = torch.ones_like(at) + rand(*at.shape, seed=3)
    (found,) = torch.autograd.grad(gradient(at), at, direction)
    sides = [gradient((start + step * direction).requires_grad_()).detach() for step in (1e-5, -1e-5)]
    expected = (sides[0] - sides[1]) / 2e-5
    assert expected.abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
