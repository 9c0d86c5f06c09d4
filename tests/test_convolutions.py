"""Tests of `istn_monai.convolutions`, against PyTorch's own and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import rand
from monai.networks.nets.basic_unet import UpCat
from torch import nn
from torch.nn import functional as F

from istn_monai import Registration, convolutions
from istn_monai.layers import SteadyConv3d, steady_convolutions


@pytest.fixture
def narrow(monkeypatch):
    """A convolution to 8 channels, on a processor with AVX-512; and how often it takes two voxels at once."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    calls, own = [], convolutions.in_twos
    monkeypatch.setattr(convolutions, "in_twos", lambda *given: calls.append(1) or own(*given))
    network = nn.Sequential(nn.Conv3d(11, 8, 3, padding=1))
    steady_convolutions(network)
    return network[0], calls


@pytest.mark.parametrize("bias", [True, False])
def test_eight_channels_of_two_voxels_at_once_are_those_of_each(narrow, bias):
    convolution, calls = narrow
    if not bias:
        convolution.bias = None
    image = rand(2, 11, 5, 7, 6).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        found = convolution(image)
        expected = nn.Conv3d.forward(copy.deepcopy(convolution).double(), image.double())
    assert calls and found.is_contiguous(memory_format=torch.channels_last_3d)
    assert (found - expected).abs().max() < 1e-6
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        coarse = convolution(image)
    assert len(calls) == 2 and coarse.dtype == torch.bfloat16
    assert (coarse - expected).abs().max() < 0.02


def test_two_voxels_at_once_where_it_is_the_same_and_pays(narrow, monkeypatch):
    convolution, calls = narrow
    even = rand(2, 11, 5, 7, 6).contiguous(memory_format=torch.channels_last_3d)
    convolution(even)  # a gradient may be wanted
    with torch.no_grad():
        convolution(even[..., :5].contiguous(memory_format=torch.channels_last_3d))
        convolution(even.contiguous())
        assert not calls and convolutions.narrow(even, convolution.weight) and convolutions.is_plain(convolution)
        others = ("stride", (1, 1, 2)), ("padding", (0, 1, 1)), ("dilation", (1, 1, 2)), ("padding_mode", "reflect")
        for name, other in (*others, ("groups", 11)):
            with monkeypatch.context() as changed:
                changed.setattr(convolution, name, other)
                assert not convolutions.is_plain(convolution)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        convolution(even)
    assert not calls


# --- the way up of a U-Net -------------------------------------------------------------------------------------------


@pytest.fixture
def way_up(monkeypatch):
    """MONAI's block with all that it learns at random, and the same whose first layers are one."""
    monkeypatch.setattr(convolutions, "LEAST", 1)
    plain = UpCat(3, 12, 5, 8, "relu", ("instance", {"affine": True}), True, is_pad=False).eval()
    for number, values in enumerate(plain.parameters()):
        values.data = rand(*values.shape, seed=number) - 0.4
    joined = copy.deepcopy(plain)
    joined.__class__ = convolutions.JoinedUpCat
    steady_convolutions(joined)
    calls, own = [], convolutions.up_and_convolved
    monkeypatch.setattr(convolutions, "up_and_convolved", lambda *given: calls.append(1) or own(*given))
    return plain, joined, calls


def features_for(size):
    """Those of a way up, and the encoder's of twice the size."""
    layout = torch.channels_last_3d
    fine = rand(2, 5, *(2 * n for n in size), seed=1).contiguous(memory_format=layout)
    return rand(2, 12, *size).contiguous(memory_format=layout), fine


@pytest.mark.parametrize("size", [(3, 5, 4), (1, 2, 3), (1, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_up_and_convolved_at_once_is_one_after_the_other(way_up, size, bias):
    plain, joined, calls = way_up
    for block in (plain, joined):
        if not bias:
            block.upsample.deconv.bias = block.convs.conv_0.conv.bias = None
        block.convs.conv_0.adn = block.convs.conv_1 = nn.Identity()  # norms would hide what is added everywhere
    images = features_for(size)
    with torch.no_grad():
        found, expected = joined(*images), plain.double()(*(image.double() for image in images))
        assert calls and found.dtype == torch.float32
        assert (found - expected).abs().max() < 3e-6 * expected.abs().max()
        with torch.autocast("cpu", torch.bfloat16):
            coarse = joined(*images)
        assert coarse.dtype == torch.bfloat16
        assert (coarse - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 4, 3)])
def test_twice_the_size_is_pytorchs_transposed_convolution(size):
    x, kernel = rand(2, 3, *size).double(), rand(3, 5, 4, 4, 4, seed=1).double()
    expected = F.conv_transpose3d(x, kernel, stride=2, padding=1)
    assert (convolutions.doubled(x, kernel) - expected).abs().max() < 1e-12


def test_a_block_whose_layers_are_one_is_monais(way_up):
    plain, joined, calls = way_up
    images = features_for((4, 6, 5))
    with torch.no_grad():
        assert (joined(*images) - plain(*images)).abs().max() < 2e-5
    assert calls and joined.state_dict().keys() == plain.state_dict().keys()


def test_layers_are_one_only_where_it_is_the_same_and_pays(way_up, monkeypatch):
    plain, joined, calls = way_up
    images = x, fine = features_for((4, 6, 5))
    assert torch.equal(joined(*images), plain(*images))  # a gradient may be wanted
    with torch.no_grad():
        joined.is_pad = plain.is_pad = True
        odd = fine[..., :9].contiguous(memory_format=torch.channels_last_3d)
        assert not joined.joins(x, odd) and not joined.joins(x, None) and not joined.joins(x, fine.contiguous())
        assert joined.joins(*images)
        for module in (joined.upsample.deconv, joined.convs.conv_0):
            hook = module.register_forward_hook(lambda *_: None)  # weight_norm, or somebody looks at features
            assert not joined.joins(*images)
            hook.remove()
        monkeypatch.setattr(convolutions, "LEAST", 2**16)
        assert not joined.joins(*images)
        assert not joined.joins(rand(1, 12, 300, 300), rand(1, 5, 600, 600))
    assert not calls


def test_features_of_an_image_of_one_channel_are_channels_last_from_the_first_on():
    """Of one channel both layouts are the same; the other one would cost the next convolution twice the time."""
    network, found = Registration(refine_steps=0, device="cpu").network.istn, []
    for module in network.itn.modules():
        if isinstance(module, SteadyConv3d) and module.kernel_size == (3, 3, 3):
            module.register_forward_hook(
                lambda _, x, y: found.append(y.is_contiguous(memory_format=torch.channels_last_3d))
            )
    with torch.no_grad():
        network.represent(rand(1, 2, 48, 64, 48))
    assert len(found) > 15 and all(found)


def test_the_shipped_networks_way_up_is_one():
    """What the ITN finds is the same to rounding."""
    network = Registration(refine_steps=0, device="cpu").network.istn
    images = rand(1, 2, 48, 64, 48)
    with torch.no_grad():
        found = network.represent(images)
    blocks = [module for module in network.modules() if isinstance(module, convolutions.JoinedUpCat)]
    assert len(blocks) == 4
    for block in blocks:
        block.__class__ = UpCat
    with torch.no_grad():
        for one, other in zip(found, network.represent(images), strict=True):
            assert 0 < (one - other).abs().max() < 5e-5
