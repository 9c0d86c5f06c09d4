"""Labels, landmarks and masks that guide a refinement: terms against numbers by hand, files, and what is refused."""

from __future__ import annotations

import itertools
import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import ball, config, meta, rand, random_checkpoint, write_json, write_nifti
from monai.bundle import run
from monai.data import MetaTensor
from oracles import oblique_affine, smooth_image
from second_device import DEVICE, second_device

from istn_monai import (
    ISTN,
    STN,
    AffineTransformation,
    BSplineTransformation,
    Guidanced,
    NormalizeIntensityRanged,
    Refiner,
    RegistrationGridd,
)
from istn_monai.__main__ import register
from istn_monai.geometry.filling import filled
from istn_monai.geometry.resampling import intensities
from istn_monai.geometry.sampling import sample, warp
from istn_monai.guidance import label_difference, landmark_difference, other_way
from istn_monai.io.images import read_image
from istn_monai.io.landmarks import Points, write_points
from istn_monai.moved_points import unmet
from istn_monai.objective import LocalCorrelation, PairObjective, counted_mean
from istn_monai.refine_weights import GUIDE_WEIGHTS, PRESETS, guided_weights
from istn_monai.registration import RegisterISTNd, Registration, register_datalist, register_files
from istn_monai.workflow.datalist_checks import check_datalist
from istn_monai.workflow.errors import foreseen_cause

SIZES = [(11, 14), (9, 12, 10)]


@pytest.mark.parametrize("size", [(7, 8), (5, 6, 7)])
def test_windows_of_a_masked_correlation_are_those_of_what_counts(size):
    fixed, moving, width = rand(1, 1, *size), rand(1, 1, *size, seed=1), 3
    counts = (rand(1, 1, *size, seed=2) > 0.3).float()
    values, counted = [], counts[0, 0].numpy() > 0
    for place in itertools.product(*map(range, size)):
        window = tuple(slice(max(0, p - width // 2), p + width // 2 + 1) for p in place)
        one, other = (image[0, 0].double().numpy()[window][counted[window]] for image in (fixed, moving))
        if counted[place]:
            values.append(np.corrcoef(one, other)[0, 1] ** 2 if len(one) > 1 else 0.0)
    correlation = LocalCorrelation(fixed, width)
    assert correlation(moving, counts).item() == pytest.approx(np.mean(values), abs=3e-3)
    assert correlation(moving, torch.ones_like(counts)).item() == pytest.approx(correlation(moving).item(), abs=1e-6)


def test_what_does_not_count_has_no_part_in_structures_and_image():
    moving, fixed = rand(1, 2, 12, 13), rand(1, 2, 12, 13, seed=1)
    masks = [torch.ones(1, 1, 12, 13) for _ in range(2)]
    masks[0][..., 2:6, 3:8], masks[1][..., 5:9, 6:11] = 0, 0
    guidance = dict(zip(("moving_mask", "fixed_mask"), masks, strict=True))
    results = []
    for value in (0.0, 7.0):
        pair = [torch.where(mask > 0, image, value) for mask, image in zip(masks, (moving, fixed), strict=True)]
        objective = PairObjective({"structures": 1, "image": 1}, *pair, (1, 1), guidance=guidance)
        results.append(objective(torch.zeros(1, 2, 12, 13)))
    torch.testing.assert_close(*results, atol=1e-5, rtol=0)  # sampling is exact to its rounding


@pytest.mark.parametrize("size", SIZES)
def test_label_difference_is_one_minus_dice_of_channels_that_hold_anything(size):
    one, other = ((rand(2, 3, *size, seed=seed) > 0.6).float() for seed in (0, 1))
    one[1, 2], other[1, 2] = 0, 0
    expected = []
    for a, b in zip(one.numpy(), other.numpy(), strict=True):
        dices = [2 * (x * y).sum() / (x.sum() + y.sum()) for x, y in zip(a, b, strict=True) if y.any()]
        expected.append(1 - np.mean(dices))
    np.testing.assert_allclose(label_difference(one, other), expected, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1.5, 0.8), (1.0, 2.0, 0.5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_landmark_difference_is_the_distance_in_mm_where_the_field_takes_them(spacing, stride):
    dims = len(spacing)
    size = (17, 13, 15)[:dims]
    transformation = AffineTransformation(size)
    ddf = transformation(0.3 * rand(1, transformation.num_parameters).double())
    coarse = ddf[(..., *[slice(None, None, stride)] * dims)]
    fixed, moving = (2 + 8 * rand(1, dims, 5, seed=seed).double() for seed in (1, 2))
    found = fixed + sample(ddf, fixed.view(1, dims, 5, *[1] * (dims - 1))).view(1, dims, 5)
    expected = (((found - moving) * torch.tensor(spacing).view(1, -1, 1)) ** 2).sum(1).mean()
    result = landmark_difference(coarse, (moving, fixed), spacing, stride)
    assert result.item() == pytest.approx(expected.item(), rel=1e-5)  # affine fields are linear between voxels


def test_gradients_of_guided_terms_are_those_of_differences():
    generator = torch.Generator().manual_seed(0)
    moving, fixed = (torch.rand(1, 1, 6, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    ddf = 0.8 * torch.rand(1, 2, 6, 7, generator=generator, dtype=torch.float64)
    points = [1.3 + 3 * torch.rand(1, 2, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    guidance = {
        "moving_label": moving.round(), "fixed_label": fixed.round(), "moving_points": points[0],
        "fixed_points": points[1], "fixed_mask": (fixed > 0.2).double(),
    }  # fmt: skip
    weights = {"structures": 1, "image": 0.5, "bending": 1, "labels": 1, "landmarks": 0.1}
    objective = PairObjective(weights, moving, fixed, (1.0, 1.5), guidance=guidance)
    assert torch.autograd.gradcheck(objective, ddf.requires_grad_())


def discs(*centers, size=(24, 20), radius=4):
    """``(1, 1, *size)``, a disc each, and a texture."""
    return [torch.as_tensor(ball(size, center, radius))[None, None].float() for center in centers]


@pytest.mark.parametrize("target", ["theta", "stn"])
def test_labels_and_landmarks_lead_where_the_images_do_not(target):
    """The images are alike already; what is told of them lies 3 voxels apart."""
    image = rand(1, 1, 24, 20)
    both = torch.cat([image, image], 1)
    moving, fixed = discs((14, 10), (11, 10))
    points = {"moving_points": torch.tensor([[[14.0, 10.0]]]).mT, "fixed_points": torch.tensor([[[11.0, 10.0]]]).mT}
    transformation = AffineTransformation((24, 20))
    network = ISTN(None, STN(2, 2, transformation), transformation).eval()
    for weights, guidance in (
        ({"labels": 1.0}, {"moving_label": moving, "fixed_label": fixed}),
        ({"landmarks": 1.0}, points),
    ):
        refiner = Refiner(60, target, weights=weights)
        ddf = refiner(network, both, guidance).ddf
        assert ddf[0, 0, 11, 10].item() == pytest.approx(3, abs=0.6), (weights, target)


def test_one_label_is_compared_with_the_representation_of_the_other_side():
    moving, fixed = discs((14, 10), (11, 10))
    objective = PairObjective({"labels": 1}, moving, torch.zeros_like(fixed), (1, 1), guidance={"fixed_label": fixed})
    still = torch.zeros(1, 2, 24, 20)
    assert objective(still).item() == pytest.approx(label_difference(moving, fixed).item())
    with pytest.raises(ValueError, match="as many channels, got 2 and 1"):
        PairObjective({"labels": 1}, moving.repeat(1, 2, 1, 1), moving, (1, 1), guidance={"fixed_label": fixed})


def test_a_weight_of_zero_is_none_to_the_last_bit():
    moving, fixed = rand(1, 1, 24, 20), rand(1, 1, 24, 20, seed=1)
    transformation = BSplineTransformation((24, 20), 1.0, 6.0)
    points = {name: 5 + 10 * rand(1, 2, 3, seed=seed) for seed, name in enumerate(("moving_points", "fixed_points"))}
    labels = dict(zip(("moving_label", "fixed_label"), discs((14, 10), (11, 10)), strict=True))
    without = Refiner(8, weights="accurate").register(transformation, moving, fixed)
    zero = Refiner(8, weights=PRESETS["accurate"] | {"landmarks": 0, "labels": 0})
    assert torch.equal(zero.register(transformation, moving, fixed, guidance=points | labels).theta, without.theta)


def test_weights_of_what_a_pair_brings_along():
    assert guided_weights("accurate") == PRESETS["accurate"] and guided_weights("none") is None
    assert guided_weights("accurate", use_points=True) == PRESETS["accurate"] | {
        "landmarks": GUIDE_WEIGHTS["landmarks"]
    }
    assert "structures" not in guided_weights("accurate", use_labels=True)
    assert guided_weights({"labels": 0.5, "structures": 1}, use_labels=True) == {"labels": 0.5, "structures": 1.0}
    with pytest.raises(ValueError, match="refine_weights is none.* no labels and landmarks"):
        guided_weights("none", True, True)
    for weights, guidance, message in (
        ({"labels": 1}, {}, "give moving_label, fixed_label, or both"),
        ({"landmarks": 1}, {"moving_points": torch.zeros(1, 2, 3)}, "give fixed_points"),
        ({"image": 1}, {"mask": torch.zeros(1, 1, 6, 7)}, "guidance must be of"),
        ({"image": 1}, {"fixed_mask": torch.zeros(1, 1, 6, 8)}, r"fixed_mask must be \(1, 1, 6, 7\)"),
        (
            {"landmarks": 1},
            {"moving_points": torch.zeros(1, 2, 3), "fixed_points": torch.zeros(1, 3, 2)},
            "fixed_points must be",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            PairObjective(weights, rand(1, 1, 6, 7), rand(1, 1, 6, 7), (1, 1), guidance=guidance)
    with pytest.raises(ValueError, match="knows of no fixed_mask: give refine_weights other than none"):
        Refiner(2).register(
            AffineTransformation((6, 7)), rand(1, 1, 6, 7), rand(1, 1, 6, 7), guidance={"fixed_mask": rand(1, 1, 6, 7)}
        )


@pytest.mark.parametrize("size", SIZES)
def test_a_filled_image_keeps_what_is_known_and_depends_on_nothing_else(size):
    image, known = rand(2, *size), rand(1, *size, seed=3) > 0.4
    results = [filled(torch.where(known, image, value), known) for value in (0.0, 1e20, torch.nan, torch.inf)]
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(results[0][:, known[0]], image[:, known[0]])
    assert results[0].min() >= image[:, known[0]].min() and results[0].max() <= image[:, known[0]].max()


def test_a_hole_in_a_slope_is_filled_with_the_slope():
    slope = torch.linspace(0, 1, 32).view(1, 32, 1).expand(1, 32, 24).clone()
    known = torch.ones_like(slope, dtype=torch.bool)
    known[:, 12:18, 8:14] = False
    assert (filled(slope.masked_fill(~known, 9.0), known) - slope).abs().max() < 0.1


def test_percentiles_are_those_of_what_counts():
    image = rand(1, 30, 20)
    mask = torch.ones(1, 30, 20)
    mask[:, :10] = 0
    pair = {"moving_image": meta(torch.where(mask > 0, image, 1e6)), "moving_mask": meta(mask)}
    found = NormalizeIntensityRanged(["moving_image"])(pair)["moving_image"].as_tensor()
    low, high = np.percentile(image[:, 10:], [0.5, 99.5])
    np.testing.assert_allclose(found[:, 10:], ((image[:, 10:] - low) / (high - low)).clip(0, 1), atol=1e-5)
    assert counted_mean(torch.stack([image, image]), mask[None].expand(2, -1, -1, -1)).tolist() == pytest.approx(
        [image[:, 10:].mean().item()] * 2
    )


SETTINGS = {
    dims: {
        "spatial_size": [32, 24, 28][:dims], "spacing": 1.5, "control_spacing": [16, 8], "transformation": "bspline",
        "soi_labels": [[1]], "device": "cpu", "loss": {2: "u", 3: "i"}[dims],  # without an ITN, and with one
    }
    for dims in (2, 3)
}  # fmt: skip


def write_pair(folder, dims):
    """Files of a pair, oblique and of different grids, with labels, masks and landmarks, and their affines."""
    files, affines = {}, []
    points = Points(torch.tensor([[3.0, 2.0, 1.0], [-6.0, 4.0, 2.0], [1.0, -5.0, -3.0]])[:, :dims], ("a", "b", "c"))
    for seed, side in enumerate(("moving", "fixed")):
        size = ((26, 19, 22), (21, 25, 18))[seed][:dims]
        affine = oblique_affine(size, ((1.4, 1.1, 1.7), (1.2, 1.0, 1.9))[seed][:dims], seed + 3, [0.0, 0.0, 0.0][:dims])
        full = np.eye(4)
        full[:dims, :dims], full[:dims, 3] = affine[:dims, :dims], affine[:dims, dims]
        affines.append(full)
        mask = np.ones(size, np.uint8)
        mask[tuple(slice(s // 3, s // 3 + 5) for s in size)] = 0
        image = (1000 * smooth_image(size, seed)).astype(np.float32)
        label = ball(size, [s / 2 for s in size], 5)
        for name, array in (("image", image), ("label", label), ("mask", mask)):
            files[f"{side}_{name}"] = write_nifti(folder / f"{side}_{name}.nii.gz", array, full)
        files[f"{side}_points"] = str(
            write_points(points.moved_to(points.positions + 2 * seed), folder / f"{side}.csv")
        )
    return files, affines


@pytest.fixture(scope="module", params=[2, 3])
def masked(request, tmp_path_factory):
    """Files, affines and settings."""
    folder = tmp_path_factory.mktemp("masked")
    files, affines = write_pair(folder, request.param)
    return files, affines, random_checkpoint(folder / "models", SETTINGS[request.param])


def chosen(files, *names):
    return {key: file for key, file in files.items() if key.endswith("image") or key in names}


@pytest.mark.parametrize("alignment", ["world", "rigid"])
@pytest.mark.parametrize("value", [5000.0, np.nan, np.inf])
def test_what_is_masked_out_changes_nothing_at_all(masked, tmp_path, alignment, value):
    files, affines, settings = masked
    registration = Registration(refine_steps=4, initial_alignment=alignment, **settings)
    given = chosen(files, "moving_mask", "fixed_mask")
    first = registration(given)
    for side, affine in zip(("moving", "fixed"), affines, strict=True):
        image, mask = (np.asanyarray(nib.load(files[f"{side}_{name}"]).dataobj) for name in ("image", "mask"))
        changed = write_nifti(tmp_path / f"{side}.nii.gz", np.where(mask == 0, np.float32(value), image), affine)
        found = registration(given | {f"{side}_image": changed})
        assert torch.equal(torch.as_tensor(found["theta"]), torch.as_tensor(first["theta"])), side
    unmasked = registration(chosen(files))
    assert not torch.equal(torch.as_tensor(unmasked["theta"]), torch.as_tensor(first["theta"]))


def test_the_warped_image_is_the_users_own_and_results_know_their_masks(masked, tmp_path):
    files, _, settings = masked
    registration = Registration(refine_steps=2, **settings)
    given = chosen(files, "moving_mask", "fixed_mask", "moving_label")
    assert register_files(registration, tmp_path / "out", **given)
    inputs = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["inputs"]
    assert inputs["moving_mask"]["sha256"] and set(inputs) == set(given)
    result = registration(given)
    plain = Registration(refine_steps=0, **settings)(given)
    spread = plain["moving_image_original"].max() - plain["moving_image_original"].min()
    assert torch.equal(result["moving_image_original"].as_tensor(), plain["moving_image_original"].as_tensor())
    assert result["warped"].max() <= result["moving_image_original"].max() and spread > 0
    assert not register_files(registration, tmp_path / "out", **given)  # the same
    with pytest.raises(FileExistsError, match="moving_mask: .* then, none now"):
        register_files(registration, tmp_path / "out", **{k: v for k, v in given.items() if k != "moving_mask"})


def test_labels_and_landmarks_of_files_guide_and_are_reported(masked, tmp_path):
    files, _, settings = masked
    plain = Registration(refine_steps=30, **settings)
    guided = Registration(refine_steps=30, use_labels=True, use_points=True, **settings)
    register_files(plain, tmp_path / "plain", **chosen(files, "moving_points", "fixed_points"))
    everything = chosen(files, "moving_points", "fixed_points", "moving_label", "fixed_label")
    register_files(guided, tmp_path / "guided", **everything)
    reports = [json.loads((tmp_path / n / "report.json").read_text(encoding="utf-8")) for n in ("plain", "guided")]
    assert reports[1]["points"]["mean"] < 0.8 * reports[0]["points"]["mean"]
    terms = reports[1]["refinement"]["terms"]
    assert set(terms) == {"image", "bending", "labels", "landmarks"}
    assert terms["labels"][1] < terms["labels"][0] and terms["landmarks"][1] < terms["landmarks"][0]
    assert set(reports[1]["inputs"]) == set(everything)


def test_landmarks_that_contradict_the_others_are_named(masked, tmp_path):
    files, _, settings = masked
    dims = len(settings["spatial_size"])
    where = torch.tensor([[0, 0, 0], [4, 0, 0], [0, 4, 0], [-4, 0, 0], [0, -4, 0]])[:, :dims].double()
    for side in ("moving", "fixed"):
        names = ("a", "b", "c", "d", "e")
        there = where.clone()
        there[0] += 12.0 * (side == "moving")
        write_points(Points(there, names), tmp_path / f"{side}.csv")
    points = {f"{side}_points": str(tmp_path / f"{side}.csv") for side in ("moving", "fixed")}
    with pytest.warns(UserWarning, match="not met: .*'a'"):
        register_files(
            Registration(refine_steps=10, use_points=True, **settings), tmp_path / "out", **chosen(files), **points
        )
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert "a" in report["points"]["unmet"]


def test_a_dictionary_and_a_datalist_bring_their_guides_along(masked, tmp_path):
    files, _, settings = masked
    options = {"refine_steps": 4, "use_labels": True, "use_points": True} | settings
    result = RegisterISTNd(**options)(files)
    assert {"labels", "landmarks"} <= set(result["pred"].meta["refinement"]["terms"])
    assert torch.equal(
        result["theta"], Registration(refine_steps=4, use_labels=True, use_points=True, **settings)(files)["theta"]
    )
    datalist = write_json(tmp_path / "pairs.json", {"testing": [files]})
    assert register_datalist(Registration(qa=False, **options), datalist, "testing", tmp_path / "all") == []
    report = json.loads((tmp_path / "all" / "pair_0000" / "report.json").read_text(encoding="utf-8"))
    assert set(report["inputs"]) == set(files) and "tre_mm" in report["points"]


def test_the_bundle_gives_what_the_command_gives(masked, tmp_path):
    files, _, settings = masked
    options = {"refine_steps": 4, "use_labels": True, "use_points": True}
    found = Registration(**options, **settings)(files)
    run(
        run_id="refinement", config_file=config("inference", "refine"), output_dir=str(tmp_path / "out"), qa=False,
        **options, **settings, **files,
    )  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    expected = found["pred"].meta["refinement"]["terms"]
    assert {name: both[1] for name, both in report["refinement"]["terms"].items()} == pytest.approx(
        {name: float(both[1]) for name, both in expected.items()}, rel=1e-5
    )
    assert set(report["inputs"]) == set(files) and "tre_mm" in report["points"]


def test_what_guides_goes_to_the_device_of_the_network(masked):
    files, _, settings = masked
    options = settings | {"refine_steps": 3, "use_labels": True, "use_points": True}
    found = []
    for device in ("cpu", DEVICE):
        with second_device():
            found.append(Registration(**options | {"device": device})(files)["theta"].cpu())
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)


def test_the_bundle_refuses_before_any_work_what_would_not_count(masked, tmp_path):
    files, _, settings = masked
    for given, options, message in (
        (chosen(files, "fixed_label"), {}, "fixed_label counts with use_labels alone"),
        (chosen(files), {"use_labels": True, "refine_steps": 0}, "give moving_label"),
        (
            chosen(files, "fixed_label"),
            {"use_labels": True, "refine_steps": 0},
            "use_labels: labels count in a refinement",
        ),
        (chosen(files) | {"moving_points": files["moving_mask"]}, {}, "moving_points: .* is no landmark file"),
        (chosen(files), {"refine_steps": 0, "refine_levels": [[1, 2]]}, "refine_levels counts in a refinement alone"),
        (chosen(files), {"refine_levels": [[1, 2]], "run_id": "inference"}, "refine_levels counts in a refinement"),
        (chosen(files), {"refine_steps": 30, "run_id": "inference"}, "refine_steps counts in a refinement alone"),
    ):
        names = ["inference"] if options.get("run_id") else ["inference", "refine"]
        with pytest.raises((ValueError, RuntimeError)) as error:
            run(
                config_file=config(*names), output_dir=str(tmp_path / "out"), **settings, **given,
                **{"run_id": "refinement"} | options,
            )  # fmt: skip
        assert re.search(message, str(foreseen_cause(error.value)))
        assert not (tmp_path / "out" / "report.json").exists()


def test_the_word_none_stands_for_no_levels(masked, tmp_path):
    files, _, settings = masked
    options = {"output_dir": str(tmp_path / "out"), "refine_steps": 2, "qa": False}
    run(run_id="refinement", config_file=config("inference", "refine"), refine_levels="none", **options, **settings,
        **chosen(files))  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    found = Registration(refine_steps=2, refine_levels="none", **settings)(chosen(files))
    assert report["refinement"]["objective_end"] == pytest.approx(
        float(found["pred"].meta["refinement"]["objective_end"]), rel=1e-5
    )


def test_masks_and_guides_that_make_no_sense_are_named(masked, tmp_path):
    files, affines, settings = masked
    shape = {side: np.asarray(nib.load(files[f"{side}_mask"]).dataobj).shape for side in ("moving", "fixed")}
    empty = write_nifti(tmp_path / "empty.nii.gz", np.zeros(shape["fixed"], np.uint8), affines[1])
    halves = {}
    for side, affine, half in zip(("moving", "fixed"), affines, (slice(0, 3), slice(-3, None)), strict=True):
        array = np.zeros(shape[side], np.uint8)
        array[half] = 1
        halves[f"{side}_mask"] = write_nifti(tmp_path / f"{side}_half.nii.gz", array, affine)
    far = str(write_points(Points(torch.full((1, len(shape["fixed"])), 500.0), ("a",)), tmp_path / "far.csv"))
    other = write_nifti(tmp_path / "other.nii.gz", np.ones([n + 1 for n in shape["fixed"]], np.uint8), affines[1])
    points = chosen(files, "moving_points", "fixed_points")
    for given, options, message in (
        (chosen(files) | {"fixed_mask": empty}, {}, "fixed_mask .*empty.nii.gz.* is empty"),
        (chosen(files) | halves, {}, "moving_half.nii.gz.*fixed_half.nii.gz.*no place in common"),
        (chosen(files) | {"fixed_mask": other}, {}, "fixed_mask .*other.nii.gz.* has size"),
        (points | {"fixed_points": far}, {"use_points": True}, "fixed_points: .*far.csv: .'a'. lie beyond"),
        (chosen(files), {"use_points": True}, "give moving_points and fixed_points"),
        (chosen(files), {"use_labels": True}, "give moving_label, fixed_label, or both"),
        (chosen(files, "fixed_label"), {}, "fixed_label counts with use_labels alone"),
    ):
        registration = Registration(refine_steps=2, **settings, **options)
        with pytest.raises((ValueError, RuntimeError)) as error:
            register_files(registration, tmp_path / "out", **given)
        assert re.search(message, str(foreseen_cause(error.value)))
        assert not (tmp_path / "out" / "report.json").exists()
    with pytest.raises(ValueError, match="use_labels: labels count in a refinement alone"):
        Registration(refine_steps=0, use_labels=True, **settings)
    with pytest.raises(ValueError, match="moving_mask is for two images"):
        register(str(write_json(tmp_path / "p.json", {"testing": [files]})), moving_mask=files["moving_mask"])


@pytest.mark.parametrize("where", ["all", "none"])
def test_landmarks_of_which_none_is_met_are_all_named(where):
    tre_mm = {"a": 59.0, "b": 60.0, "c": 61.0} if where == "all" else {"a": 0.4, "b": 1.9}
    assert unmet(tre_mm, (1.0, 1.0, 1.0)) == (list(tre_mm) if where == "all" else [])


def test_labels_that_have_nothing_in_common_or_no_counterpart_are_refused(masked, tmp_path):
    files, affines, settings = masked
    shape = nib.load(files["fixed_label"]).shape
    other = write_nifti(tmp_path / "two.nii.gz", 2 * ball(shape, [s / 2 for s in shape], 5), affines[1])
    both = random_checkpoint(tmp_path / "both", settings_without_weights(settings) | {"soi_labels": [[1], [2]]})
    cases = ((both, chosen(files, "moving_label") | {"fixed_label": other}, "have none of the labels .* in common"),)
    if settings["loss"] == "u":
        cases += (
            (settings, chosen(files, "fixed_label"), "the network has no ITN.* give moving_label"),
            (settings, chosen(files, "moving_label"), "the network has no ITN.* give fixed_label"),
        )
    for given, pair, message in cases:
        with pytest.raises((ValueError, RuntimeError)) as error:
            Registration(refine_steps=2, use_labels=True, **given)(pair)
        assert re.search(message, str(foreseen_cause(error.value)))


def settings_without_weights(settings):
    return {name: value for name, value in settings.items() if name not in ("checkpoint_file", "ckpt_dir")}


def test_a_weight_of_zero_says_that_a_term_shall_not_count(masked):
    files, _, settings = masked
    weights = "{'image':1,'bending':1,'labels':0,'landmarks':0}"
    for given in (weights, {"image": 1, "bending": 1, "labels": 0, "landmarks": 0}):
        registration = Registration(refine_steps=2, refine_weights=given, use_labels=True, use_points=True, **settings)
        assert registration.term_weights == {"image": 1.0, "bending": 1.0}
    with pytest.raises(ValueError, match="refine_weights counts in a refinement alone"):
        Registration(refine_steps=0, refine_weights={"labels": 1}, **settings)


def test_images_in_memory_may_have_labels_of_true_and_false(masked):
    files, _, settings = masked
    pair = {key: read_image(files[key]) for key in ("moving_image", "fixed_image", "moving_label")}
    registration = Registration(refine_steps=0, **settings)
    expected = registration(pair)["warped_label"]
    found = registration(
        pair | {"moving_label": MetaTensor(pair["moving_label"] > 0, affine=pair["moving_label"].affine)}
    )
    assert torch.equal(found["warped_label"].as_tensor(), expected.as_tensor().to(torch.uint8))


def test_what_lies_outside_of_an_image_with_nan_is_its_darkest_number():
    image = torch.tensor([[[3.0, torch.nan], [5.0, 7.0]]])
    assert intensities(image)(torch.full((1, 2, 1, 1), -9.0)).item() == 3.0


def test_evaluation_takes_nan_that_a_mask_leaves_out(masked, tmp_path):
    files, affines, settings = masked
    image, mask = (np.asanyarray(nib.load(files[f"fixed_{name}"]).dataobj) for name in ("image", "mask"))
    changed = write_nifti(tmp_path / "nan.nii.gz", np.where(mask == 0, np.float32(np.nan), image), affines[1])
    dims = len(settings["spatial_size"])
    with pytest.raises(ValueError, match="NaN"):
        check_datalist({"testing": [files | {"fixed_image": changed, "fixed_mask": None}]}, dims, [[1]])
    check_datalist({"testing": [files | {"fixed_image": changed}]}, dims, [[1]])


def test_any_number_but_0_counts_alike_in_a_mask():
    image = meta(rand(1, 24, 20))
    mask = torch.ones(1, 24, 20)
    mask[:, 6:13, 5:11] = 0
    grids = [
        RegistrationGridd((15, 13), 1.7)(
            {"moving_image": image, "fixed_image": image, "fixed_mask": meta(mask * value)}
        )
        for value in (1, 255, 3)
    ]
    found = [Guidanced(None)(grid)["guidance"]["fixed_mask"] for grid in grids]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and 0 < found[0].mean() < 1


def test_guidanced_takes_nothing_along_that_has_no_weight():
    image = meta(rand(1, 12, 13))
    pair = {"moving_image": image, "fixed_image": image, "fixed_label": image, "moving_points": "none.csv"}
    assert "guidance" not in Guidanced(None)(pair) and "guidance" not in Guidanced({"image": 1})(pair)
    assert warp(rand(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)).shape == (1, 1, 4, 4)


def test_the_other_way_round_all_of_a_pair_changes_places():
    image = torch.arange(4.0).view(1, 4, 1, 1)  # two channels each
    guides = {"moving_label": "a", "fixed_label": "b", "fixed_points": "c", "moving_mask": "d"}
    swapped, others = other_way(image, guides)
    assert swapped.flatten().tolist() == [2, 3, 0, 1]
    assert others == {"fixed_label": "a", "moving_label": "b", "moving_points": "c", "fixed_mask": "d"}
    assert other_way(swapped, others)[1] == guides


def test_no_landmarks_at_all_are_said():
    nothing = {name: torch.zeros(1, 2, 0) for name in ("moving_points", "fixed_points")}
    with pytest.raises(ValueError, match="moving_points holds nothing"):
        PairObjective({"landmarks": 1.0}, rand(1, 1, 8, 9), rand(1, 1, 8, 9), (1.0, 1.0), guidance=nothing)
