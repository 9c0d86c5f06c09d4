"""Tests of `istn_monai.losses`: the paper's equations, computed here with MONAI's own Warp."""

from __future__ import annotations

import pytest
import torch
from helpers import rand, random_output
from monai.losses import (
    BendingEnergyLoss,
    DiffusionLoss,
    GlobalMutualInformationLoss,
    LocalNormalizedCrossCorrelationLoss,
)
from monai.networks.blocks import Warp
from torch.nn.functional import mse_loss

from istn_monai.losses import VARIANTS, DiceMSELoss, ISTNLoss
from istn_monai.mind import mind_ssc
from istn_monai.mutual_information import normalized_mutual_information
from istn_monai.objective import LocalCorrelation, bending_energy

ALL = (*VARIANTS, "r")
SIZES = [(6, 7), (5, 6, 7)]


def by_hand(variant: str, output, label) -> dict[str, torch.Tensor]:
    """Equations 1 and 2 and section 2.3, with MONAI's Warp and torch's squared error."""
    warp = Warp(mode="bilinear", padding_mode="border")
    channels = output.image.shape[1] // 2
    m, f = output.image[:, :channels], output.image[:, channels:]
    m1, f1 = output.moving_representation, output.fixed_representation
    k = label.shape[1] // 2
    s_m, s_f = label[:, :k], label[:, k:]
    t = output.ddf
    if variant == "u":
        return {"stn_u": mse_loss(warp(m, t), f)}
    if variant == "r":
        return {"stn_r": mse_loss(warp(m1, t), f1)}
    terms = {"stn_s": mse_loss(warp(s_m, t), s_f)}
    if variant == "e":
        terms |= {"itn_moving": mse_loss(m1, s_m), "itn_fixed": mse_loss(f1, s_f)}
    if variant == "i":
        terms |= {"stn_i_moving": mse_loss(warp(m1, t), s_f), "stn_i_fixed": mse_loss(warp(s_m, t), f1)}
    return terms


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("variant", ALL)
def test_loss_is_the_papers_equation(variant, channels, size):
    output = random_output(size, channels=channels)
    label = rand(2, 2 * channels, *size, seed=9)
    expected = by_hand(variant, output, label)
    loss = ISTNLoss(variant)
    terms = loss.terms(output, label)
    assert set(terms) == set(expected), "a variant computes its own terms and no other"
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(loss(output, label), sum(expected.values()))
    assert loss(output, label).ndim == 0


def test_variants_are_all_different():
    output, label = random_output(), rand(2, 2, 6, 7, seed=9)
    values = [ISTNLoss(variant)(output, label).item() for variant in ALL]
    assert len({round(value, 6) for value in values}) == len(ALL)


def test_default_is_the_implicit_istn():
    output, label = random_output(), rand(2, 2, 6, 7, seed=9)
    assert ISTNLoss()(output, label) == ISTNLoss("i")(output, label)


@pytest.mark.parametrize("variant, calls", [("u", 1), ("s", 1), ("e", 3), ("i", 3), ("r", 1)])
def test_similarity_is_called_once_for_each_term(variant, calls):
    count = []

    def spy(prediction, target):
        count.append(1)
        return mse_loss(prediction, target)

    ISTNLoss(variant, spy)(random_output(), rand(2, 2, 6, 7, seed=9))
    assert len(count) == calls


@pytest.mark.parametrize("variant", ALL)
def test_prediction_comes_first_target_second(variant):
    """With d(prediction, target) = mean(prediction) a term tells what its first argument was."""
    output, label = random_output(), rand(2, 2, 6, 7, seed=9)
    warp = Warp(mode="bilinear", padding_mode="border")
    terms = ISTNLoss(variant, lambda prediction, target: prediction.mean()).terms(output, label)
    predictions = {
        "stn_u": warp(output.image[:, :1], output.ddf),
        "stn_s": warp(label[:, :1], output.ddf),
        "itn_moving": output.moving_representation,
        "itn_fixed": output.fixed_representation,
        "stn_i_moving": warp(output.moving_representation, output.ddf),
        "stn_i_fixed": output.fixed_representation,
        "stn_r": warp(output.moving_representation, output.ddf),
    }
    for name, value in terms.items():
        torch.testing.assert_close(value, predictions[name].mean())


def test_u_and_r_need_no_label_and_ignore_one():
    output = random_output()
    for variant in ("u", "r"):
        assert ISTNLoss(variant)(output) == ISTNLoss(variant)(output, rand(2, 2, 6, 7))


def test_s_needs_no_matching_representation():
    """STN-s never looks at the representation: K SoI channels and C image channels may differ."""
    output, label = random_output(channels=1), rand(2, 6, 6, 7, seed=9)
    torch.testing.assert_close(ISTNLoss("s")(output, label), by_hand("s", output, label)["stn_s"])


@pytest.mark.parametrize("variant", ["s", "e", "i"])
def test_missing_label_is_refused(variant):
    with pytest.raises(ValueError, match=f"loss '{variant}' needs label .*got None"):
        ISTNLoss(variant)(random_output())


@pytest.mark.parametrize("variant", ["s", "e", "i"])
@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 2, 6, 8), (2, 2, 6, 7, 1), (2, 2, 6)])
def test_label_of_another_shape_is_refused(variant, shape):
    with pytest.raises(ValueError) as error:
        ISTNLoss(variant)(random_output(), torch.zeros(shape))
    assert "(B, 2K, 6, 7)" in str(error.value) and str(shape) in str(error.value)


@pytest.mark.parametrize("variant", ["e", "i"])
def test_other_number_of_soi_channels_than_of_the_itn_is_refused(variant):
    with pytest.raises(ValueError, match="ITN has 1 channel.*label 2.*out_channels"):
        ISTNLoss(variant)(random_output(channels=1), torch.zeros(2, 4, 6, 7))


@pytest.mark.parametrize("variant", ["x", "U", "", None, "istn-e"])
def test_unknown_variant_is_refused(variant):
    with pytest.raises(ValueError, match=r"loss must be one of \('u', 's', 'e', 'i'\)"):
        ISTNLoss(variant)


@pytest.mark.parametrize("variant", ALL)
@pytest.mark.parametrize("name", ["lncc", "gmi"])
def test_similarity_can_be_swapped_for_one_of_monai(variant, name):
    size = (8, 9)
    similarity = {
        "lncc": LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=3),
        "gmi": GlobalMutualInformationLoss(num_bins=8),
    }[name]
    output, label = random_output(size), rand(2, 2, *size, seed=9)  # in [0, 1], as mutual information expects
    ddf = output.ddf.requires_grad_()
    representation = output.moving_representation.requires_grad_()
    loss = ISTNLoss(variant, similarity)
    terms = loss.terms(output, label)
    if "stn_s" in terms:
        warped = Warp(mode="bilinear", padding_mode="border")(label[:, :1], ddf)
        torch.testing.assert_close(terms["stn_s"], similarity(warped, label[:, 1:]))
    loss(output, label).backward()
    assert ddf.grad.isfinite().all() and ddf.grad.abs().max() > 0
    if variant in "eir":
        assert representation.grad.isfinite().all() and representation.grad.abs().max() > 0


@pytest.mark.parametrize("regularization", [BendingEnergyLoss(), DiffusionLoss()])
@pytest.mark.parametrize("weight", [0.1, 3.0])
@pytest.mark.parametrize("variant", ALL)
def test_regularization_adds_its_weighted_value(variant, weight, regularization):
    output, label = random_output(), rand(2, 2, 6, 7, seed=9)
    plain = ISTNLoss(variant)(output, label)
    loss = ISTNLoss(variant, regularization=regularization, regularization_weight=weight)
    assert regularization(output.ddf) > 0
    torch.testing.assert_close(loss.terms(output, label)["regularization"], weight * regularization(output.ddf))
    torch.testing.assert_close(loss(output, label), plain + weight * regularization(output.ddf))


@pytest.mark.parametrize("variant", ALL)
def test_gradient_with_respect_to_the_field(variant):
    """Against finite differences, at gradcheck's own tolerances; points stay clear of the kinks at whole voxels."""
    size = (5, 4)
    output = type(random_output())(*(t.double() for t in random_output(size, batch=1)))
    label = rand(1, 2, *size, seed=9).double()
    cells = torch.randint(-1, 2, output.ddf.shape, generator=torch.Generator().manual_seed(0))
    ddf = (cells + 0.2 + 0.6 * rand(*output.ddf.shape, seed=5)).double().requires_grad_()
    loss = ISTNLoss(variant, regularization=BendingEnergyLoss())
    assert torch.autograd.gradcheck(lambda field: loss(output._replace(ddf=field), label), (ddf,))


@pytest.mark.parametrize("variant", ["e", "i", "r"])
def test_gradient_with_respect_to_the_representations(variant):
    output = type(random_output())(*(t.double() for t in random_output((5, 4), batch=1)))
    label = rand(1, 2, 5, 4, seed=9).double()
    moving, fixed = (t.clone().requires_grad_() for t in output[1:3])

    def value(m, f):
        return ISTNLoss(variant)(output._replace(moving_representation=m, fixed_representation=f), label)

    assert torch.autograd.gradcheck(value, (moving, fixed))


# --- DiceMSELoss -----------------------------------------------------------------------------------------------------


def test_dice_mse_by_hand():
    p, t = rand(2, 3, 5, 6), (rand(2, 3, 5, 6, seed=1) > 0.5).float()
    axes, smooth = (2, 3), 1e-5
    dice = 1 - (2 * (p * t).sum(axes) + smooth) / ((p**2).sum(axes) + (t**2).sum(axes) + smooth)
    squared = ((p - t) ** 2).mean()
    torch.testing.assert_close(DiceMSELoss()(p, t), dice.mean() + squared)
    torch.testing.assert_close(DiceMSELoss(dice_weight=0.5, mse_weight=2)(p, t), 0.5 * dice.mean() + 2 * squared)


def test_dice_mse_is_zero_for_equal_masks_and_near_one_for_a_missed_small_structure():
    target = torch.zeros(1, 1, 10, 10, 10)
    target[..., 4:6, 4:6, 4:6] = 1.0
    assert DiceMSELoss()(target, target).item() == pytest.approx(0, abs=1e-6)
    assert mse_loss(torch.zeros_like(target), target) < 0.01
    assert DiceMSELoss()(torch.zeros_like(target), target) > 0.99


WEIGHTS = {"structures": 0.5, "image": 2.0, "mse": 5.0, "nmi": 6.0, "mind": 3.0, "bending": 4.0}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_add_the_terms_of_a_refinement(variant, size):
    output, label = random_output(size), rand(2, 2, *size, seed=9)
    spacing = (2.0, 1.0, 3.0)[: len(size)]
    plain, terms = (
        ISTNLoss(variant).terms(output, label),
        ISTNLoss(variant, weights=WEIGHTS, spacing=spacing).terms(output, label),
    )
    moving, fixed = output.image.chunk(2, 1)
    warp = Warp(mode="bilinear", padding_mode="border")
    expected = {name: 0.5 * value for name, value in plain.items()} | {
        "image": 2.0 * (1.0 - LocalCorrelation(fixed)(warp(moving, output.ddf)).mean()),
        "mse": 5.0 * mse_loss(warp(moving, output.ddf), fixed),
        "nmi": 6.0 * (1.0 - normalized_mutual_information(warp(moving, output.ddf), fixed).mean()),
        "mind": 3.0 * mse_loss(warp(mind_ssc(moving), output.ddf), mind_ssc(fixed)),
        "bending": 4.0 * bending_energy(output.ddf, spacing).mean(),
    }
    assert list(terms) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=lambda m, name=name: f"{name}: {m}")


def test_weights_of_a_loss_are_checked_and_a_weight_of_0_is_not_computed():
    assert list(ISTNLoss("s", weights={"structures": 1, "image": 0}).terms(random_output(), rand(2, 2, 6, 7))) == [
        "stn_s"
    ]
    assert "image" in ISTNLoss("e", weights="smooth").weights
    for weights in ({"labels": 1}, {"landmarks": 1}, {"bending": 1}, "strong", {"structures": -1}):
        with pytest.raises(ValueError, match="loss_weights"):
            ISTNLoss(weights=weights)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", ALL)
def test_where_a_mask_is_0_nothing_counts(variant, size):
    """Whatever lies there in images, representations and labels: changes no term, by any field, and has no gradient."""
    output, label = random_output(size), rand(2, 2, *size, seed=9)
    mask = torch.ones(2, 2, *size)
    mask[:, 0, 2:4, :3], mask[:, 1, -2:] = 0, 0
    loss = ISTNLoss(variant, DiceMSELoss(), weights=dict.fromkeys(WEIGHTS, 1.0))
    channels = output.image.shape[1] // 2
    image_mask = mask.repeat_interleave(channels, 1)
    changed = output._replace(
        image=torch.where(image_mask > 0, output.image, 7.0),
        moving_representation=torch.where(mask[:, :1] > 0, output.moving_representation, -3.0).requires_grad_(),
        fixed_representation=torch.where(mask[:, 1:] > 0, output.fixed_representation, 5.0).requires_grad_(),
    )
    before = loss.terms(output, {"label": label, "mask": mask})
    after = loss.terms(changed, {"label": torch.where(mask > 0, label, 1.0), "mask": mask})
    assert before and all(torch.equal(after[name], before[name]) for name in before)
    whole = loss.terms(output, label)
    assert any((value - whole[name]).abs() > 1e-4 for name, value in before.items())
    if variant in "ei":
        total = loss(changed, {"label": label, "mask": mask})
        sides = changed.moving_representation, changed.fixed_representation
        for gradient, own in zip(torch.autograd.grad(total, sides), mask.split(1, 1), strict=True):
            assert not gradient[own == 0].any() and gradient.any()


def test_a_mask_that_leaves_nothing_gives_no_loss_of_structures():
    output, label = random_output(), rand(2, 2, 6, 7, seed=9)
    terms = ISTNLoss("s", weights="accurate").terms(output, {"label": label, "mask": torch.zeros(2, 2, 6, 7)})
    assert terms["stn_s"] == 0 and all(value.isfinite() for value in terms.values())
