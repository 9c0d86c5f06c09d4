"""Registration without a network: any transformation, on grids of any spacing, where voxels count, not millimeters."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from oracles import max_abs

from istn_monai.folders import find_weights
from istn_monai.geometry.grids import Grid
from istn_monai.levels import Parts, checked_levels, levels_of_parts
from istn_monai.network_settings import NetworkSettings
from istn_monai.registration import Registration
from istn_monai.weights import own_settings, read_weights

LEVELS = [[4, 10, 0], [2, 10, 1]]


def blobs(shift: float) -> torch.Tensor:
    """A textured ellipsoid ``(1, 28, 32, 26)``, moved along two axes by a number of voxels."""
    axes = np.meshgrid(*[np.arange(n, dtype=float) for n in (28, 32, 26)], indexing="ij")
    x, y, z = axes[0] - 13.5 - shift, axes[1] - 15.5 + shift / 2, axes[2] - 12.5
    inside = np.exp(-(((x / 9) ** 2 + (y / 11) ** 2 + (z / 8) ** 2) ** 4))
    return torch.as_tensor(inside * (2 + np.cos(x / 2) + np.sin(y / 2.5) * np.cos(z / 2)), dtype=torch.float32)[None]


def pair_of(voxel: float) -> dict[str, MetaTensor]:
    """The same voxels, however large they are."""
    affine = np.diag([voxel, voxel, voxel, 1.0])
    return {f"{side}_image": MetaTensor(blobs(s), affine=affine) for side, s in (("moving", 2.0), ("fixed", 0.0))}


@pytest.mark.parametrize("voxel", [0.05, 2.0])
def test_what_is_found_does_not_depend_on_the_size_of_voxels(voxel):
    found = {}
    for spacing in (1.0, voxel):
        registration = Registration(
            "intensities", spacing=spacing, initial_alignment="center", refine_levels=LEVELS, device="cpu", qa=False
        )
        found[spacing] = registration(pair_of(spacing))
    one, other = found.values()
    assert one["theta"].abs().max() > 0.05  # something moved
    assert max_abs(one["theta"], other["theta"]) < 1e-5
    assert max_abs(one["displacement"].as_tensor() * voxel, other["displacement"].as_tensor()) < 1e-4 * voxel


def test_no_network_comes_to_weights_of_none():
    settings = read_weights(find_weights("intensities")).settings
    with pytest.raises(ValueError, match="itn_def None in training, 'mind' now"):
        settings.overridden({"itn_def": "mind"}, "weights")


def test_lengths_follow_the_spacing_unless_they_are_given():
    settings = read_weights(find_weights("intensities")).settings
    assert settings.network_free
    wide = settings.overridden({"spacing": 2}, "weights")
    assert wide.control_spacing == [40, 12, 8, 6, 5] and wide.affine_bounds == {"translation": 60}
    own = settings.overridden({"spacing": 2, "control_spacing": [30, 20, 10, 9, 8], "affine_bounds": {}}, "weights")
    assert own.control_spacing == [30, 20, 10, 9, 8] and own.affine_bounds == {}
    assert settings.overridden({"spacing": [3, 2, 4]}, "weights").control_spacing == [40, 12, 8, 6, 5]
    assert settings.overridden({"initial_alignment": "center"}, "weights").control_spacing == [20, 6, 4, 3, 2.5]


def test_bending_energy_weighs_as_much_per_voxel():
    file = find_weights("intensities")
    assert own_settings(file, True, {"spacing": 2})["refine_weights"] == {"image": 1.0, "bending": 1.2}
    assert own_settings(file, True)["refine_weights"] == "intensities"
    maps = own_settings(file, True, {"representation": "mind", "spacing": 0.5})["refine_weights"]
    assert maps == {"structures": 1.0, "bending": 0.075}
    assert "refine_weights" not in own_settings(file, False, {"spacing": 2})


#: of an affine transformation and five levels of B-splines, as the weights have them
OWN = [[8, 60, 0], [4, 40, 0], [4, 60, 1], [2, 60, 2], [2, 50, 3], [2, 50, 4], [1, 20, 5]]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (Parts(1, 5), OWN),
        (Parts(0, 5), [[4, 60, 0], [2, 60, 1], [2, 50, 2], [2, 50, 3], [1, 20, 4]]),
        (Parts(1, 1), [[8, 60, 0], [4, 40, 0], [4, 60, 1], [2, 160, 1], [1, 20, 1]]),
        (Parts(1, 2), [[8, 60, 0], [4, 40, 0], [4, 60, 1], [2, 160, 2], [1, 20, 2]]),
        (Parts(0, 1), [[4, 60], [2, 160], [1, 20]]),
        (Parts(1, 0), [[8, 60], [4, 40], [2, 20], [1, 10]]),
        (Parts(2, 0), [[8, 60, 0], [4, 40, 0], [8, 60, 1], [4, 40, 1], [2, 20, 1], [1, 10, 1]]),
        (
            Parts(1, 7),
            [[8, 60, 0], [4, 40, 0], [4, 60, 1], [2, 60, 2], [2, 50, 3], *([2, 50, n] for n in (4, 5, 6)), [1, 20, 7]],
        ),
    ],
)
def test_levels_of_another_transformation(parts, expected):
    found = levels_of_parts(OWN, Parts(1, 5), parts)
    assert found == expected
    assert checked_levels(found)


def test_levels_that_leave_components_alone_still_do():
    levels = [[8, 60, 0], [4, 60, 1], [2, 30, 2], [1, 30, 2]]  # of five lattices, three of them at rest
    assert levels_of_parts(levels, Parts(1, 5), Parts(1, 6)) == levels
    assert levels_of_parts(levels, Parts(1, 5), Parts(0, 1)) == [[4, 60], [2, 30], [1, 30]]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("rigid", {}),
        ("affine", {"affine_bounds": {"rotation": 20}}),
        ("bspline", {}),
        ("svf", {"control_spacing": [12, 6]}),
        ("affine+svf", {"control_spacing": [12, 6], "symmetric": True}),
        ("rigid+bspline", {"control_spacing": 8}),
    ],
)
def test_any_transformation_without_a_network(name, given):
    moving, fixed = (MetaTensor(blobs(shift), affine=np.diag([2, 2, 2, 1.0])) for shift in (2.0, 0.0))
    options = {"transformation": name, "spacing": 2, "initial_alignment": "world"} | given
    registration = Registration("intensities", device="cpu", qa=False, **options)
    result = registration({"moving_image": moving, "fixed_image": fixed})
    assert type(registration.network.istn.transformation).__name__.startswith(
        {"rigid": "Affine", "affine": "Affine", "svf": "SVF"}.get(name, "Composite")
    )
    inside = blobs(0.0)[0] > 0.5
    found = result["displacement"].as_tensor()[:, inside]  # of points, RAS mm: 2 voxels to the one side, 1 back
    assert max_abs(found.mean(1), torch.tensor([4.0, -2.0, 0.0])) < 0.4
    if given.get("symmetric"):
        before = (moving.as_tensor() - fixed.as_tensor()).abs()[0, inside].mean()
        assert (result["warped"].as_tensor() - fixed.as_tensor()).abs()[0, inside].mean() < 0.2 * before


@pytest.mark.parametrize(
    "given",
    [{"spacing": 2}, {"transformation": "affine"}, {"control_spacing": [12, 6]}, {"affine_bounds": {"rotation": 90}}],
)
def test_weights_of_a_network_keep_what_they_were_trained_with(given):
    settings = NetworkSettings(transformation="affine+bspline", control_spacing=[16, 8])
    with pytest.raises(ValueError, match="trained with other settings.*: leave them out, or take --model intensities"):
        settings.overridden(given, "weights")
    with pytest.raises(ValueError, match="loss 'i' in training, 's' now.*: leave them out$"):
        settings.overridden(given | {"loss": "s"}, "weights")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            {"transformation": "rigid", "control_spacing": [12, 6]},
            r"control_spacing \[12, 6\] does not .*rigid",
        ),
        ({"transformation": "affine", "max_displacement": 0.3}, "max_displacement 0.3 does not count in .*affine"),
        ({"transformation": "svf", "affine_bounds": {"rotation": 9}}, "affine_bounds are of rigid and affine .*'svf'"),
        ({"transformation": "bspline", "symmetric": True}, "symmetric needs a transformation whose inverse is known"),
    ],
)
def test_what_would_be_passed_over_is_an_error_before_any_work(given, error):
    with pytest.raises(ValueError, match=error):
        Registration("intensities", device="cpu", qa=False, **given)


@pytest.mark.parametrize(("voxel", "told"), [(1.0, False), (2.0, False), (0.6, False), (3.0, True), (0.05, True)])
def test_voxels_of_another_size_are_told(voxel, told):
    registration = Registration("intensities", 1, initial_alignment="world", device="cpu", qa=False)
    image = MetaTensor(blobs(0.0)[:, :, :16], affine=np.diag([voxel, voxel, 3 * voxel, 1.0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registration.warn_of_spacing(Grid.of(image))
    assert [f"voxels of {voxel:g} mm" in str(each.message) for each in caught] == [True] * told


def test_what_a_config_says_counts_as_what_is_typed(tmp_path):
    config = tmp_path / "mine.json"
    config.write_text(
        json.dumps({"spacing": 2, "transformation": "svf", "refine_learning_rate": "$0.1 * 2"}), encoding="utf-8"
    )
    typed = Registration("intensities", device="cpu", spacing=2, transformation="svf")
    read = Registration("intensities", device="cpu", config=config)
    for name in ("refine_weights", "refine_levels", "spacing", "transformation"):
        assert read.parser.get(name) == typed.parser.get(name)
    assert read.content("refine_learning_rate") == 0.2
    assert read.settings == typed.settings and read.term_weights == {"image": 1.0, "bending": 1.2}
    config.write_text(json.dumps({"refine_weights": "smooth", "refine_levels": [[1, 5]]}), encoding="utf-8")
    other = Registration("intensities", device="cpu", config=config)
    assert other.term_weights["bending"] == 5 and other.parser.get("refine_levels") == [[1, 5]]


def test_images_of_two_axes_have_weights_of_their_own():
    options = {"initial_alignment": "world", "device": "cpu", "qa": False}
    pair = {
        f"{side}_image": MetaTensor(blobs(shift)[..., 13], affine=np.diag([1.0, 2.0, 1.0]))
        for side, shift in (("moving", 2.0), ("fixed", 0.0))
    }
    found = Registration("intensities_2d", **options)(pair)["displacement"].as_tensor()
    inside = blobs(0.0)[0, ..., 13] > 0.5
    assert found.shape[0] == 2 and max_abs(found[:, inside].mean(1), torch.tensor([2.0, -2.0])) < 0.3
    with pytest.raises(RuntimeError) as told:
        Registration("intensities", **options)(pair)
    assert "without a network, model intensities_2d registers them" in str(told.value.__cause__ or told.value)


def test_what_was_not_found_is_told():
    options = {"initial_alignment": "world", "device": "cpu", "qa": False}
    wild = Registration("intensities", refine_levels=[[2, 3], [1, 2]], refine_learning_rate=10, **options)
    with pytest.warns(UserWarning, match="nothing better than its start, so this is the initial alignment alone"):
        wild(pair_of(1.0))
    found = Registration("intensities", refine_levels=LEVELS, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found(pair_of(1.0))


def test_all_components_at_once_move_in_smaller_steps():
    file = find_weights("intensities")
    assert own_settings(file, True)["refine_learning_rate"] == 0.5
    assert "refine_learning_rate" not in own_settings(file, True, {"refine_levels": [[4, 10], [1, 15]]})
    alone = {"refine_levels": [[4, 10], [1, 15]], "transformation": "svf"}
    assert own_settings(file, True, alone)["refine_learning_rate"] == 0.5
    at_once = Registration("intensities", refine_levels=[[4, 10], [2, 25], [1, 15]], device="cpu", qa=False)
    result = at_once(pair_of(1.0) | {"fixed_image": pair_of(1.0)["fixed_image"]})
    inside = blobs(0.0)[0] > 0.5
    assert max_abs(result["displacement"].as_tensor()[:, inside].mean(1), torch.tensor([2.0, -1.0, 0.0])) < 0.5


def test_a_number_of_steps_takes_the_place_of_the_weights_own_levels():
    assert Registration("intensities", device="cpu").parser.get("refine_levels")
    inferer = Registration("intensities", refine_steps=10, device="cpu").content("inferer")
    assert inferer.refiner.levels is None and inferer.refiner.steps == 10


def test_a_number_of_steps_that_is_typed_counts_also_where_it_is_the_usual_one():
    steps = {}
    for given in (None, 25, 26):
        inferer = Registration("intensities", refine_steps=given, device="cpu", qa=False).content("inferer")
        transformation = read_weights(find_weights("intensities")).settings.spatial_transformation()
        steps[given] = sum(level.steps for level in inferer.refiner.levels_in_turn(transformation))
    assert steps == {None: 170, 25: 25, 26: 26}
    with pytest.raises(ValueError, match="refine_steps 10 and refine_levels both say how many steps there are"):
        Registration("intensities", refine_steps=10, refine_levels=LEVELS)


def test_without_a_network_and_without_steps_nothing_moves_and_that_is_said():
    registration = Registration("intensities", refine_steps=0, initial_alignment="world", device="cpu", qa=False)
    with pytest.warns(UserWarning, match="this is the initial alignment alone; give refine_steps above 0"):
        result = registration(pair_of(1.0))
    assert not result["displacement"].any()


def test_labels_whose_structures_are_not_known_are_refused_and_known_ones_count_alike():
    """They counted as a real-valued map, by the size of their numbers: one stray voxel moved all."""
    pair = pair_of(2.0)
    for side in ("moving", "fixed"):
        image = pair[f"{side}_image"]
        values = torch.where(image.as_tensor() > 2, 1, 0) + torch.where(image.as_tensor() > 3, 1, 0)
        pair[f"{side}_label"] = MetaTensor(values.to(torch.uint8), affine=image.affine)
    renamed = dict(pair) | {
        f"{side}_label": MetaTensor(pair[f"{side}_label"].as_tensor() * 50, affine=pair["fixed_image"].affine)
        for side in ("moving", "fixed")
    }
    options = {"refine_levels": LEVELS, "device": "cpu", "qa": False, "spacing": 2.0, "initial_alignment": "center"}
    for how in ({"use_labels": True}, {"representation": "labels"}):
        with pytest.raises(RuntimeError) as error:
            Registration("intensities", **options, **how)(pair)
        assert "holds the labels [1, 2]" in str(error.value.__cause__)
        one, other = (
            Registration("intensities", soi_labels=labels, **options, **how)(files)["pred"]
            for labels, files in (([[1], [2]], pair), ([[50], [100]], renamed))
        )
        assert torch.equal(one, other) and one.abs().max() > 0.3
