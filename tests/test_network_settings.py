"""Tests of `istn_monai.network_settings`: settings that check themselves, build the network, and go into a file."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import BUNDLE, rand

from istn_monai import ITN, STN, NetworkSettings, PyramidSTN
from istn_monai.layers import CentralInstanceNorm

SMALL = {"spatial_size": (16, 24), "spacing": 2, "control_spacing": (16, 8), "soi_labels": ((1,), (2, 3))}
PAPER = json.loads((BUNDLE / "configs" / "paper.json").read_text(encoding="utf-8"))


def test_settings_build_the_network_that_they_describe():
    settings = NetworkSettings(**SMALL)
    network = settings.network()
    assert (settings.spatial_dims, settings.soi_channels, settings.stn_channels) == (2, 2, 4)
    assert network.istn.transformation.spatial_size == (16, 24) and network.istn.transformation.spacing == (2.0, 2.0)
    assert [part.control_spacing for part in network.istn.transformation.components] == [(16.0, 16.0), (8.0, 8.0)]
    assert network.istn.represent(torch.zeros(1, 2, 16, 24))[0].shape == (1, 2, 16, 24)
    assert network(torch.zeros(1, 2, 16, 24)).shape == (1, 2, 16, 24)


@pytest.mark.parametrize("loss", ["u", "s"])
def test_without_an_itn_the_stn_sees_the_images(loss):
    settings = NetworkSettings(loss=loss, in_channels=2, **SMALL)
    assert not settings.has_itn and settings.stn_channels == 4
    assert not [name for name in settings.network().state_dict() if "itn" in name]
    assert settings.network()(rand(1, 4, 16, 24)).shape == (1, 2, 16, 24)


def test_none_is_a_word_and_tuples_are_lists():
    typed = NetworkSettings(**SMALL | {"soi_points": "none", "max_displacement": "None"})
    read = NetworkSettings.of_state_dict(json.loads(json.dumps(typed.state_dict())))
    assert typed == read and typed.soi_points is None and typed.max_displacement is None
    assert typed.soi_labels == [[1], [2, 3]]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"loss": "x"}, "loss must be one of"),
        ({"transformation": "elastic"}, "transformation must be one of"),
        ({"initial_alignment": "middle"}, "initial_alignment must be one of"),
        ({"spatial_size": [16, 1]}, "spatial_size must be 2 or 3 whole numbers"),
        ({"spatial_size": "16"}, "spatial_size must be 2 or 3 whole numbers"),
        ({"spacing": [1, 1, 1]}, "spacing must be a positive number or 2 of them"),
        ({"spacing": -1}, "spacing must be a positive number"),
        ({"control_spacing": [0]}, "control_spacing must be a positive number"),
        ({"max_displacement": -0.4}, "max_displacement must be a positive fraction"),
        ({"soi_labels": [1, 2]}, "soi_labels must be a list of groups"),
        ({"soi_labels": []}, "soi_labels must be a list of groups"),
        ({"soi_points": ["AC"]}, "soi_points must be a list of groups"),
        ({"in_channels": 0}, "in_channels must be a whole number"),
        ({"in_channels": True}, "in_channels must be a whole number"),
        ({"itn_def": "BasicUNet"}, "itn_def must be JSON"),
        ({"itn_def": {"spatial_dims": 2}}, "itn_def must be JSON"),
        ({"spacing": torch.ones(1)}, "must be JSON"),
    ],
)
def test_a_wrong_setting_is_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        NetworkSettings(**SMALL | wrong)


# --- definitions of other networks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("transformation, hidden", [("affine", 32), ("bspline", None)])
def test_the_papers_networks_are_kept_as_json_and_built_from_it(transformation, hidden):
    settings = NetworkSettings(
        **SMALL | {"transformation": transformation, "itn_def": PAPER["itn_def"], "stn_def": PAPER["stn_def"]}
    )
    assert settings.itn_def == {"_target_": "istn_monai.ITN", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    assert settings.stn_def["hidden_channels"] == hidden and settings.stn_def["in_channels"] == 4
    again = NetworkSettings.of_state_dict(json.loads(json.dumps(settings.state_dict())))
    assert again == settings
    istn = again.network().istn
    assert isinstance(istn.itn, ITN) and isinstance(istn.stn, STN)
    assert istn.stn.transformation is istn.transformation


def test_a_network_of_monai_as_itn():
    definition = {
        "_target_": "BasicUNet", "spatial_dims": "@spatial_dims", "in_channels": "@in_channels",
        "out_channels": "$2 * @soi_channels // 2", "features": [4, 4, 8, 8, 8, 4],
    }  # fmt: skip
    settings = NetworkSettings(**SMALL | {"spatial_size": (32, 32), "itn_def": definition})
    assert settings.itn_def["out_channels"] == 2
    assert settings.network()(rand(1, 2, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    "definition",
    [
        {"_target_": "os.system", "command": "touch here"},
        {"_target_": "torch.nn.functional.torch.os.system", "command": "touch here"},
        {"_target_": "monai.networks.nets.basic_unet.torch.os.system", "command": "touch here"},
        {"_target_": "torch.nn.Sequential", "_mode_": "debug"},
        {"_target_": "torch.nn.Conv2d", "in_channels": "$__import__('os').system('touch here')"},
        {"_target_": "torch.nn.Conv2d", "in_channels": ["%other.json"]},
        {"_target_": "istn_monai.ITN", "inner": {"_target_": "subprocess.run", "args": ["touch", "here"]}},
        {"_target_": "load", "name": "x"},
        {"_target_": 3},
        {"_target_": "istn_monai.FrozenITN", "representation": "torchscript:network.ts"},
        {"_target_": "istn_monai.frozen.FrozenITN", "representation": {"source": "export:network.pt2"}, "sha256": ""},
    ],
)
def test_a_definition_from_a_file_runs_no_code(definition, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = NetworkSettings(**SMALL).state_dict()
    for name in ("itn_def", "stn_def"):
        with pytest.raises(ValueError, match=f"{name} of the checkpoint"):
            NetworkSettings.of_state_dict(state | {name: definition})
    assert not list(tmp_path.iterdir())


def test_settings_of_a_newer_version_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown settings \\['velocity'\\].*newer version"):
        NetworkSettings.of_state_dict(NetworkSettings(**SMALL).state_dict() | {"velocity": 1})


# --- any grid --------------------------------------------------------------------------------------------------------


def test_on_its_own_size_the_network_is_that_with_plain_instance_norms():
    settings = NetworkSettings(**SMALL)
    network = settings.network().eval()
    norms = [module for module in network.modules() if isinstance(module, CentralInstanceNorm)]
    assert norms and not [m for m in network.modules() if isinstance(m, torch.nn.InstanceNorm2d)]
    image = rand(1, 2, 16, 24)
    own = network.istn.represent(image)[0]
    for norm in norms:
        norm.window = (10**6,) * 2  # the statistics of all features
    assert torch.equal(network.istn.represent(image)[0], own)


def test_a_smaller_grid_is_seen_as_the_middle_of_the_grid_of_training():
    network = NetworkSettings(**SMALL).network().eval()
    small = rand(1, 2, 12, 21)
    whole = torch.nn.functional.pad(small, (1, 2, 2, 2))  # 16 x 24
    for found, expected in zip(network.istn.represent(small), network.istn.represent(whole), strict=True):
        assert torch.equal(found, expected[..., 2:14, 1:22])
    assert network(small).shape == (1, 2, 12, 21)


def test_the_representation_of_a_padded_image_is_that_of_the_image():
    """Zeros around an image on a larger grid leave what the ITN sees of it: the windows of its norms see the same."""
    network = NetworkSettings(**SMALL | {"spatial_size": (32, 32)}).network().eval()
    image = torch.zeros(1, 2, 32, 32)
    image[..., 12:20, 12:20] = rand(1, 2, 8, 8)
    padded = torch.nn.functional.pad(image, (32, 32, 32, 32))
    inner = (..., slice(12, 20), slice(12, 20))

    def difference() -> float:
        small, large = (network.istn.represent(x)[0] for x in (image, padded))
        return (small[inner] - large[..., 32:64, 32:64][inner]).abs().mean().item()

    windowed = difference()
    for module in network.modules():
        if isinstance(module, CentralInstanceNorm):
            module.window = (10**6,) * 2  # plain instance norms
    assert windowed < 0.4 * difference()
    assert isinstance(network.istn.stn, PyramidSTN)
    assert network(padded).shape == (1, 2, 96, 96)


@pytest.mark.parametrize("window", [(8, 10, 6), (4, 5, 3)], ids=["all", "middle"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_norm_does_the_same_in_any_layout(window, layout):
    """By hand: each channel of each image, less the mean of its window, over the root of its variance."""
    plain = torch.nn.InstanceNorm3d(3, affine=True)
    torch.nn.init.normal_(plain.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(plain.bias, generator=torch.Generator().manual_seed(1))
    norm = CentralInstanceNorm(plain, window)
    features = (5 * rand(2, 3, 8, 10, 6)).contiguous(memory_format=layout)
    expected = torch.empty(2, 3, 8, 10, 6)
    for image in range(2):
        for channel in range(3):
            own = features[image, channel].double()
            middle = own[tuple(slice((n - w) // 2, (n - w) // 2 + w) for n, w in zip(own.shape, window, strict=True))]
            own = (own - middle.mean()) / (middle.var(correction=0) + norm.eps).sqrt()
            expected[image, channel] = own * plain.weight[channel] + plain.bias[channel]
    with torch.no_grad():
        found = norm(features)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(norm(features), found, rtol=0, atol=1e-5)  # as in a training


def test_representations_without_a_gradient_are_those_of_a_training():
    network = NetworkSettings(**SMALL | {"spatial_size": (16, 24, 20), "spacing": 1.0}).network().eval()
    image = rand(1, 2, 16, 24, 20)
    expected = network.istn.represent(image)[0].detach()
    with torch.no_grad():
        torch.testing.assert_close(network.istn.represent(image)[0], expected, rtol=0, atol=1e-5)
