"""Test-time refinement: what it must reach, and what it must leave alone."""

from __future__ import annotations

import contextlib
import time

import pytest
import torch
from monai.data import MetaTensor, decollate_batch
from monai.losses import BendingEnergyLoss, LocalNormalizedCrossCorrelationLoss

from istn_monai import (
    ISTN,
    ITN,
    AffineTransformation,
    BSplineTransformation,
    CompositeTransformation,
    DisplacementNetwork,
    PyramidSTN,
    Warp,
    spatial_transformation,
)
from istn_monai.descent import check_finite_step
from istn_monai.geometry.sampling import sample
from istn_monai.inferer import RefineInferer, refinement_of
from istn_monai.refinement import Refiner
from istn_monai.workflow.inferers import default_rate
from istn_monai.workflow.settings import steps_of

SIZE = (24, 20, 18)


def blob(*center, size=SIZE, width=3.0):
    """A smooth blob ``(1, 1, *size)``."""
    axes = torch.meshgrid(*(torch.arange(float(s)) for s in size), indexing="ij")
    squared = sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True))
    return torch.exp(-squared / (2 * width**2))[None, None]


@pytest.fixture
def network():
    """An ISTN with heads that are not zero, so that its one-pass prediction moves something."""
    torch.manual_seed(0)
    transformation = CompositeTransformation([BSplineTransformation(SIZE, 1.0, spacing) for spacing in (12.0, 8.0)])
    network = ISTN(ITN(3), PyramidSTN(3, 2, transformation), transformation).eval()
    for head in network.stn.heads:
        torch.nn.init.normal_(head.layer.weight, std=0.5)
    return network


@pytest.fixture
def image():
    torch.manual_seed(1)
    return torch.rand(3, 2, *SIZE)


@pytest.mark.parametrize("size", [(24, 20), SIZE])
def test_a_known_shift_is_found_with_its_sign(size):
    center = [s / 2 for s in size]
    shift = [3.0, -2.0, 1.0][: len(size)]
    fixed = blob(*center, size=size)
    moving = blob(*(c + s for c, s in zip(center, shift, strict=True)), size=size)
    rigid = AffineTransformation(size, max_translation=10.0, max_rotation=0.2, max_log_scale=0.0, max_shear=0.0)
    result = Refiner(steps=200, patience=200).register(rigid, moving, fixed)
    translation = rigid.matrix(result.theta)[0, :-1, -1]
    middle = [s // 2 for s in size]
    found = result.ddf[(0, slice(None), *middle)]
    assert (found - torch.tensor(shift)).abs().max() < 0.1
    assert translation.abs().max() > 0.5
    assert (Warp()(moving, result.ddf) - fixed).abs().max() < 0.05  # a blob blurs between voxels


def test_network_is_never_changed(network, image):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [p.requires_grad for p in network.parameters()]
    for target in ("theta", "stn"):
        Refiner(steps=3, target=target)(network, image)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("target", ["theta", "stn"])
@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_works_in_every_gradient_mode(network, image, target, mode):
    refiner = Refiner(steps=4, target=target)
    expected = refiner(network, image[:1])
    with mode():
        result = refiner(network, image[:1] * 1.0)
    assert torch.equal(result.ddf, expected.ddf)
    if target == "theta":  # an STN that nobody trained has little to follow
        assert result.reports[0].objective_end < result.reports[0].objective_start


@pytest.mark.parametrize("target", ["theta", "stn"])
def test_a_batch_equals_its_singles(network, image, target):
    refiner = Refiner(steps=12, target=target, patience=4, tolerance=0.02)
    batch = refiner(network, image)
    for index in range(len(image)):
        single = refiner(network, image[index : index + 1])
        assert (batch.ddf[index] - single.ddf[0]).abs().max() < 1e-3
        assert batch.reports[index].steps == single.reports[0].steps


@pytest.mark.parametrize("learning_rate", [1e-3, 0.1, 50.0])
def test_never_worse_than_the_start(network, image, learning_rate):
    result = Refiner(steps=6, learning_rate=learning_rate)(network, image)
    moving, fixed = network.represent(image)
    for index, report in enumerate(result.reports):
        warped = Warp()(moving[index : index + 1], result.ddf[index : index + 1])
        assert abs(((warped - fixed[index]) ** 2).mean().item() - report.objective_end) < 1e-6
        assert report.objective_end <= report.objective_start
        assert 0 <= report.at_bound <= 1


def test_no_steps_give_the_one_pass_prediction(network, image):
    result = Refiner(steps=0)(network, image)
    assert torch.equal(result.ddf, network(image).ddf)
    assert all(report.steps == 0 for report in result.reports)


@pytest.mark.parametrize("target", ["theta", "stn"])
def test_coarse_steps_are_cheaper_and_chosen_on_all_voxels(network, image, target):
    """The representations are noise on every second voxel: what helps those alone must not count as better."""
    strides = []
    transformation = network.transformation
    transformation.register_forward_pre_hook(lambda module, arguments: strides.append((*arguments, 1)[1]))
    result = Refiner(steps=8, target=target, coarse_steps=4, patience=99)(network, image[:1])
    assert strides[-10:] == [1, 2, 2, 2, 1, 1, 1, 1, 1, 1]  # start; coarse; full and the last look; the final field
    moving, fixed = network.represent(image[:1])
    best = ((Warp()(moving, result.ddf) - fixed) ** 2).mean().item()
    assert abs(best - result.reports[0].objective_end) < 1e-6 and best <= result.reports[0].objective_start


def test_coarse_steps_by_default():
    defaults = {
        target: Refiner(steps=steps, target=target).strides.count(2) for target, steps in [("theta", 50), ("stn", 50)]
    }
    assert defaults == {"theta": 25, "stn": 0}
    assert Refiner(steps=9).strides == [2] * 4 + [1] * 5 and Refiner(steps=1000).strides.count(2) == 25
    assert Refiner(regularization=BendingEnergyLoss()).strides == [1] * 50


def test_levels_are_strides_and_steps_from_coarse_to_fine(network, image):
    refiner = Refiner(levels=[[4, 2], [2, 3], [1, 4]], weights="accurate", patience=99)
    assert refiner.steps == 9 and refiner.strides == [4, 4, 2, 2, 2, 1, 1, 1, 1]
    same = Refiner(steps=9, coarse_steps=5, weights="accurate", patience=99)
    levels = Refiner(levels=((2, 5), (1, 4)), weights="accurate", patience=99)
    assert torch.equal(levels(network, image).theta, same(network, image).theta)
    assert not torch.equal(refiner(network, image).theta, same(network, image).theta)
    seen = torch.tensor(refiner(network, image[:1]).reports[0].trace).isfinite()
    assert seen.tolist() == [True, *[False] * 4, *[True] * 5]  # what is chosen is known on all voxels
    assert "levels=[(4, 2), (2, 3), (1, 4)]" in repr(RefineInferer(refiner))


@pytest.mark.parametrize(
    "levels",
    [
        [],
        [[2, 5]],
        [[1, 5], [2, 5]],
        [[2, 0], [1, 5]],
        [[9, 5], [1, 5]],
        [[4, 5, 0], [8, 5, 0]],
        [[2, 5, -1]],
        [[2, 5, 0, 1]],
        [[2, 5], [2, 5], [1, 1]],
        [[1, 2.0]],
        [3],
        "x",
    ],
)
def test_levels_of_another_form_are_refused(levels):
    with pytest.raises(ValueError, match="refine_levels must be stride and steps"):
        Refiner(levels=levels)


def test_levels_take_the_place_of_others():
    for other in ({"coarse_steps": 3}, {"regularization": BendingEnergyLoss()}):
        with pytest.raises(ValueError, match="levels go with neither coarse_steps nor a regularization"):
            Refiner(levels=[[2, 5], [1, 5]], **other)


def test_coarse_steps_do_the_work():
    """Coarse steps alone, then one full step: a shift of two voxels is found."""
    fixed, moving = blob(12, 10, 9), blob(14, 10, 9)
    rigid = AffineTransformation(SIZE, max_translation=10.0, max_rotation=0.2, max_log_scale=0.0, max_shear=0.0)
    result = Refiner(steps=100, coarse_steps=50, patience=99).register(rigid, moving, fixed)
    assert result.reports[0].objective_end < 0.01 * result.reports[0].objective_start


def test_stops_on_a_plateau_and_in_time():
    same = blob(12, 10, 9)
    transformation = BSplineTransformation(SIZE, 1.0, 8.0)
    begin = time.perf_counter()
    Refiner(steps=100_000, patience=3).register(transformation, same, same)
    Refiner(steps=100_000, patience=100_000, max_seconds=0.2).register(transformation, same, blob(13, 10, 9))
    assert time.perf_counter() - begin < 10


def test_similarity_and_regularization_are_swappable(network, image):
    lncc = LocalNormalizedCrossCorrelationLoss(spatial_dims=3, kernel_size=5)
    result = Refiner(steps=4, similarity=lncc)(network, image[:1])
    assert result.reports[0].objective_end < result.reports[0].objective_start < 0
    rough, smooth = (
        Refiner(steps=8, regularization=BendingEnergyLoss(), regularization_weight=weight)(network, image[:1]).ddf
        for weight in (0.0, 100.0)
    )
    assert BendingEnergyLoss()(smooth) < BendingEnergyLoss()(rough)


def test_inferer_serves_bundle_and_hosts(network, image):
    inferer = RefineInferer(steps=2)
    whole = DisplacementNetwork(network)
    with torch.no_grad():
        ddf = inferer(image, whole, "ignored", moving_image=image)
    assert torch.equal(ddf, Refiner(steps=2)(network, image).ddf)
    assert not ddf.requires_grad


def test_errors_name_the_argument(network, image):
    with pytest.raises(ValueError, match="target must be one of"):
        Refiner(target="itn")
    with pytest.raises(ValueError, match="steps must be"):
        Refiner(steps=-1)
    with pytest.raises(ValueError, match="coarse_steps must be"):
        Refiner(coarse_steps=-1)
    with pytest.raises(ValueError, match="moving and fixed must both be"):
        Refiner().register(AffineTransformation(SIZE), image[:, :1], image[:, :1, :10])


def test_no_steps_are_the_networks_own_prediction(network):
    image = torch.cat([blob(11, 9, 8), blob(13, 10, 9)], dim=1)
    with torch.no_grad():
        expected = DisplacementNetwork(network)(image)
    ddf = RefineInferer(steps=0)(image, DisplacementNetwork(network))
    assert torch.equal(ddf.as_tensor(), expected)
    assert ddf.meta["refinement"]["steps"].tolist() == [0] and expected.abs().max() > 0.1


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("by_index", [False, True], ids=["decollated", "indexed"])
def test_the_reader_gives_back_what_the_refiner_reported(network, steps, by_index):
    """Of each pair of a batch: the numbers, the whole trace with its nan, and both parameters."""
    image = torch.cat([torch.cat([blob(11, 9, 8), blob(13, 10 + k, 9)], dim=1) for k in range(2)])
    expected = Refiner(steps=steps, coarse_steps=2)(network, image)
    batch = RefineInferer(steps=steps, coarse_steps=2)(image, DisplacementNetwork(network))
    for number, pred in enumerate(batch[k] for k in range(2)) if by_index else enumerate(decollate_batch(batch)):
        found, report = refinement_of(pred), expected.reports[number]
        assert torch.equal(found.theta, expected.theta[number])
        assert torch.equal(found.theta_start, expected.theta_start[number])
        own, theirs = found.report.numbers(), report.numbers()
        del own["seconds"], theirs["seconds"]
        assert own == pytest.approx(theirs) and type(found.report.steps) is int
        assert found.report.trace == pytest.approx(report.trace, nan_ok=True) and isinstance(found.report.trace, tuple)
        assert found.report.refined == (steps > 0) and len(found.report.trace) == steps + 1
    assert not torch.equal(expected.theta[0], expected.theta[1])


def test_the_reader_knows_a_field_of_no_refinement_and_refuses_a_batch(network):
    image = torch.cat([blob(11, 9, 8), blob(13, 10, 9)], dim=1)
    assert refinement_of(torch.zeros(3, 4, 5, 6)) is None and refinement_of(MetaTensor(torch.zeros(3, 4, 5, 6))) is None
    assert refinement_of(None) is None
    batch = RefineInferer(steps=1)(image, DisplacementNetwork(network))
    with pytest.raises(ValueError, match=r"pred must be the ddf \(D, \*S\) of one pair"):
        refinement_of(batch)


# --- learning rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "rate", "damping"),
    [
        ("bspline", {"steps": 5}, 0.4 * 5 / 25, 0.01),
        ("bspline", {"steps": 50}, 0.4, 0.01),
        ("affine", {"steps": 5}, 0.1, 0.01),
        ("affine+bspline", {"steps": 25}, 0.4, 0.01),  # one after the other
        ("affine+bspline", {"levels": [[2, 10], [1, 15]]}, 0.1, 0.01),  # at once
        ("bspline", {"weights": {"labels": 4.0}, "steps": 50}, 0.3, 0.01),  # at once
        ("svf", {"steps": 25}, 0.3, 0.01),
        ("bspline", {"weights": "intensities", "steps": 25}, 0.4, 4.0),
        ("bspline", {"weights": None}, 0.05, 1e-8),  # the paper's objective
        ("bspline", {"learning_rate": 0.3}, 0.3, 0.01),
    ],
)
def test_the_learning_rate_is_what_suits_the_transformation(name, options, rate, damping):
    transformation = spatial_transformation(name, (24, 20), control_spacing=(8.0, 4.0))
    descent = Refiner(**({"weights": "accurate"} | options)).descent(0.0, transformation)
    assert descent.learning_rate == pytest.approx(rate) and descent.epsilon == damping
    assert descent.relative == (options.get("weights", "accurate") is not None)


def test_the_paper_s_objective_keeps_its_rates_and_labels_take_more_steps():
    assert [default_rate(name, 25) for name in ("bspline", "affine", "affine+bspline")] == [0.1, 0.05, 0.05]
    assert default_rate("bspline", 25, weights="accurate") is None  # the refiner's own
    assert [steps_of(None, {"use_labels": use}) for use in (False, True)] == [25, 50]
    assert steps_of(7, {"use_labels": True}) == 7


def test_what_is_finite_goes_on_though_its_sum_is_not():
    check_finite_step(1, torch.tensor([3e38, 3e38]), torch.zeros(1))
    for values, ddf, what in ((torch.inf, 0.0, "objective"), (0.0, torch.nan, "displacement field")):
        with pytest.raises(ValueError, match=f"the {what} is NaN or infinite at step 1"):
            check_finite_step(1, torch.tensor([values]), torch.tensor([ddf]))


@pytest.mark.parametrize("weights", [None, "smooth"])
def test_another_grid_works_in_inference_mode(network, weights):
    pair = torch.rand(1, 2, 20, 24, 16)
    expected = Refiner(steps=2, weights=weights)(network, pair).ddf
    with torch.inference_mode():
        assert torch.equal(Refiner(steps=2, weights=weights)(network, pair).ddf, expected)


def test_a_start_that_nothing_is_better_than_took_no_steps_and_has_its_own_parameters():
    composite = spatial_transformation("bspline", (24, 20), control_spacing=(12.0, 6.0))
    image = blob(12, 10, size=(24, 20))
    refiner = Refiner(levels=[[2, 3, 0], [1, 1, 1]], learning_rate=9.0, weights="smooth")
    result = refiner.register(composite, image, image)
    report = result.reports[0]
    assert torch.equal(result.theta, result.theta_start)
    assert (report.steps, report.at_bound, report.objective_end) == (0, 0.0, report.objective_start)


def test_parameters_near_their_bounds_are_those_of_all_components_that_have_one():
    theta = torch.zeros(2, 6 + 98)
    theta[0, :3], theta[1] = 3, -3
    affine = AffineTransformation((24, 20))
    for bound, expected in ((0.4, [3 / 6, 1.0]), (None, [3 / 6, 6 / 104])):
        bspline = BSplineTransformation((24, 20), 1.0, 6.0, bound)
        found = CompositeTransformation([affine, bspline]).near_bounds(theta)
        assert found.tolist() == pytest.approx(expected)
        assert CompositeTransformation([affine, bspline]).near_bounds(torch.zeros(1, 104)).tolist() == [0]
        refined = Refiner(steps=0).register(bspline, *torch.rand(2, 2, 1, 24, 20), theta[:, 6:])
        assert [report.at_bound for report in refined.reports] == [0.0, float(bound is not None)]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"patience": 0}, "patience must be a whole number"),
        ({"patience": 2.5}, "patience must be a whole number"),
        ({"tolerance": -5}, "tolerance must be a fraction"),
        ({"max_seconds": -1}, "max_seconds must be above 0"),
        ({"regularization_weight": float("nan")}, "regularization_weight must be a finite number"),
        ({"target": "stn", "levels": [[2, 3, 1], [2, 3, 0]]}, "levels of components are of theta"),
        ({"refiner": Refiner(steps=3)}, "give a refiner, or the options of one"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        RefineInferer(**{"steps": 4} | options)


def test_theta_of_another_batch_is_named():
    images = torch.rand(2, 2, 1, 24, 20)
    affine = AffineTransformation((24, 20))
    with pytest.raises(ValueError, match=r"theta must be of 2 pairs.*\(1, 6\)"):
        Refiner(steps=0).register(affine, *images, torch.zeros(1, 6))
    with pytest.raises(ValueError, match="one batch, got 2 and 1"):
        sample(images[0], torch.zeros(1, 2, 24, 20))


@pytest.mark.parametrize("steps", [0, 2])
def test_a_field_lies_where_the_images_lie(network, image, steps):
    """As what SimpleInferer gives: MONAI's SaveImaged then names and places it by the image."""
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))[None].expand(len(image), 4, 4)
    batch = MetaTensor(image, affine=affine, meta={"filename_or_obj": [f"{n}.nii.gz" for n in range(len(image))]})
    batch.is_batch = True
    ddf = RefineInferer(steps=steps)(batch, DisplacementNetwork(network))
    assert torch.equal(ddf.affine, affine)
    assert [one.meta["filename_or_obj"] for one in decollate_batch(ddf)] == batch.meta["filename_or_obj"]


def test_a_wrapped_network_is_refined_like_the_network(network, image):
    expected = RefineInferer(steps=2)(image, network)
    assert torch.equal(RefineInferer(steps=2)(image, torch.nn.DataParallel(network)), expected)
