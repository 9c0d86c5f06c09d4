"""Tests of `istn_monai.layers`, against PyTorch's own and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import rand
from torch import nn
from torch.nn import functional as F

from istn_monai import ITN, STN, AffineTransformation, PyramidSTN, SegmentationITN
from istn_monai import instance_norm as layout
from istn_monai.layers import (
    AdaptiveAveragePool,
    CentralInstanceNorm,
    SteadyConv3d,
    crop_to,
    pad_to_multiple,
    steady_convolutions,
)

AFFINE = AffineTransformation((16, 16, 16))


def test_padding_repeats_the_border_at_the_end_and_cropping_undoes_it():
    image = rand(2, 1, 5, 6, 7)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (2, 1, 8, 8, 8)
    assert torch.equal(padded[:, :, :5, :6, :7], image)
    assert torch.equal(padded[0, 0, 7, :6, :7], image[0, 0, 4])
    assert torch.equal(crop_to(padded, image.shape[2:]), image)
    assert pad_to_multiple(padded, 4) is padded


@pytest.mark.parametrize("size", [(12, 9), (7, 3), (6, 5, 13), (3, 2, 4), (1, 3, 8)])
def test_pooling_is_pytorchs(size):
    image = rand(2, 3, *size)
    expected = (F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d)(image, 3)
    assert (AdaptiveAveragePool(3)(image) - expected).abs().max() < 1e-6


# --- instance norm with channels last --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 31, 20), (16, 16, 16)])
@pytest.mark.parametrize("window", [(99, 99, 99), (13, 16, 9), (13, 15, 9)], ids=["whole", "middle", "odd"])
@pytest.mark.parametrize("affine", [True, False])
def test_channels_last_keep_their_layout_and_have_the_same_norm(size, window, affine, monkeypatch):
    monkeypatch.setattr(layout, "LEAST", 1)
    monkeypatch.setattr(layout, "SLAB", 10_000)  # several slabs, the last one shorter
    plain = nn.InstanceNorm3d(8, affine=affine)
    if affine:
        with torch.no_grad():
            plain.weight.copy_(rand(8, seed=1))
            plain.bias.copy_(rand(8, seed=2))
    norm = CentralInstanceNorm(plain, window)
    features = (5 + 3 * rand(2, 8, *size)).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        quick = norm(features)
        assert layout.keeps_layout(features) and quick.is_contiguous(memory_format=torch.channels_last_3d)
        expected = copy.deepcopy(norm).double()(features.double())
        assert (quick.double() - expected).abs().max() < 3e-6
        assert (quick - norm(features.contiguous())).abs().max() < 3e-6
    assert torch.equal(norm(features).detach(), norm(features.contiguous()).detach())  # with gradients, PyTorch's own


def test_statistics_of_bfloat16_are_float32():
    """Of 27,000 numbers about 30, whose sum bfloat16 would not know to a tenth."""
    features = (30 + rand(1, 8, 30, 30, 30)).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    norm = CentralInstanceNorm(nn.InstanceNorm3d(8), (30, 30, 30))
    with torch.no_grad():
        assert layout.keeps_layout(features)
        quick, expected = norm(features), norm(features.double())
    assert quick.dtype == torch.bfloat16 and quick.is_contiguous(memory_format=torch.channels_last_3d)
    assert ((quick - expected).abs() <= 2**-8 * expected.abs() + 1e-5).all()


def test_the_layout_is_kept_only_where_it_pays():
    features = rand(1, 8, 24, 24, 24).contiguous(memory_format=torch.channels_last_3d)
    assert not layout.keeps_layout(features)  # a gradient may be wanted
    with torch.no_grad():
        assert layout.keeps_layout(features)
        assert not layout.keeps_layout(features.contiguous())
        assert not layout.keeps_layout(features.half())
        assert not layout.keeps_layout(features[..., :4].contiguous(memory_format=torch.channels_last_3d))
        assert not layout.keeps_layout(rand(1, 8, 300, 300).contiguous(memory_format=torch.channels_last))


@pytest.fixture
def strided():
    """A plain one, and the same as it is in a network."""
    plain = nn.Conv3d(3, 5, 3, stride=2, padding=1)
    network = nn.Sequential(copy.deepcopy(plain), nn.Conv2d(1, 1, 1))
    steady_convolutions(network)
    assert type(network[0]) is SteadyConv3d and type(network[1]) is nn.Conv2d
    assert network[0].state_dict().keys() == plain.state_dict().keys()
    return plain, network[0]


def test_a_single_image_is_convolved_as_a_batch_is(strided, monkeypatch):
    plain, steady = strided
    calls, own = [], torch.mkldnn_convolution
    monkeypatch.setattr(torch, "mkldnn_convolution", lambda *given: calls.append(1) or own(*given))
    image = rand(1, 3, 8, 9, 7)
    with torch.no_grad():
        assert (steady(image) - plain(image)).abs().max() < 1e-5
        assert len(calls) == torch.backends.mkldnn.is_available()
        assert torch.equal(steady(rand(2, 3, 8, 9, 7)), plain(rand(2, 3, 8, 9, 7)))
    assert torch.equal(steady(image), plain(image))  # a gradient may be wanted
    with torch.no_grad():
        assert torch.equal(steady.double()(image.double()), plain.double()(image.double()))
    assert len(calls) == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("size, float32", [((4, 2, 5), True), ((3, 3, 3), False)])
def test_features_narrower_than_the_kernel_are_float32_also_where_others_are_not(strided, size, float32):
    """The weights' gradients of oneDNN in bfloat16 are in part what the memory held before."""
    image, gradients = rand(2, 3, *size), []
    for convolution, enabled in zip(strided, (False, True), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = convolution(image)
        assert found.dtype == (torch.bfloat16 if enabled and not float32 else torch.float32)
        gradients.append(torch.autograd.grad(found.float().square().sum(), convolution.weight)[0])
    assert torch.equal(*gradients) == float32
    torch.testing.assert_close(*gradients, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("network", [ITN(3), STN(3, 2, AFFINE), PyramidSTN(3, 2, AFFINE), SegmentationITN(3)])
def test_all_networks_have_steady_convolutions(network):
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv3d)]
    assert convolutions and all(isinstance(module, SteadyConv3d) for module in convolutions)
