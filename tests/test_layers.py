"""Tests of `istn_monai.layers`, against PyTorch's own and by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import rand
from monai.networks.nets.basic_unet import UpCat
from torch import nn
from torch.nn import functional as F

from istn_monai import ITN, STN, AffineTransformation, PyramidSTN, Registration, SegmentationITN, layers, up_convolution
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
def convolutions():
    """A plain one, and the same as it is in a network."""
    plain = nn.Conv3d(3, 5, 3, stride=2, padding=1)
    network = nn.Sequential(copy.deepcopy(plain), nn.Conv2d(1, 1, 1))
    steady_convolutions(network)
    assert type(network[0]) is SteadyConv3d and type(network[1]) is nn.Conv2d
    assert network[0].state_dict().keys() == plain.state_dict().keys()
    return plain, network[0]


def test_a_single_image_is_convolved_as_a_batch_is(convolutions, monkeypatch):
    plain, steady = convolutions
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


@pytest.fixture
def narrow(monkeypatch):
    """A convolution to 8 channels, on a processor with AVX-512; and how often it takes two voxels at once."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    calls, own = [], layers.in_twos
    monkeypatch.setattr(layers, "in_twos", lambda *given: calls.append(1) or own(*given))
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
        assert not calls and layers.narrow(even, convolution.weight) and layers.is_plain(convolution)
        others = ("stride", (1, 1, 2)), ("padding", (0, 1, 1)), ("dilation", (1, 1, 2)), ("padding_mode", "reflect")
        for name, other in (*others, ("groups", 11)):
            with monkeypatch.context() as changed:
                changed.setattr(convolution, name, other)
                assert not layers.is_plain(convolution)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        convolution(even)
    assert not calls


# --- the way up of a U-Net -------------------------------------------------------------------------------------------


@pytest.fixture
def way_up(monkeypatch):
    """MONAI's block with all that it learns at random, and the same whose first layers are one."""
    monkeypatch.setattr(up_convolution, "LEAST", 1)
    plain = UpCat(3, 12, 5, 8, "relu", ("instance", {"affine": True}), True, is_pad=False).eval()
    for number, values in enumerate(plain.parameters()):
        values.data = rand(*values.shape, seed=number) - 0.4
    joined = copy.deepcopy(plain)
    joined.__class__ = up_convolution.JoinedUpCat
    steady_convolutions(joined)
    calls, own = [], up_convolution.up_and_convolved
    monkeypatch.setattr(up_convolution, "up_and_convolved", lambda *given: calls.append(1) or own(*given))
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
    assert (up_convolution.doubled(x, kernel) - expected).abs().max() < 1e-12


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
        monkeypatch.setattr(up_convolution, "LEAST", 2**16)
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
    blocks = [module for module in network.modules() if isinstance(module, up_convolution.JoinedUpCat)]
    assert len(blocks) == 4
    for block in blocks:
        block.__class__ = UpCat
    with torch.no_grad():
        for one, other in zip(found, network.represent(images), strict=True):
            assert 0 < (one - other).abs().max() < 5e-5


@pytest.mark.parametrize("size, float32", [((4, 2, 5), True), ((3, 3, 3), False)])
def test_features_narrower_than_the_kernel_are_float32_also_where_others_are_not(convolutions, size, float32):
    """The weights' gradients of oneDNN in bfloat16 are in part what the memory held before."""
    image, gradients = rand(2, 3, *size), []
    for convolution, enabled in zip(convolutions, (False, True), strict=True):
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
