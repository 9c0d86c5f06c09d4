"""Tests of `istn_monai.networks`: sizes, sharing, starts at the identity, gradients, export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import perturb, rand, small_istn
from monai.networks.nets import BasicUNet, UNet
from oracles import max_abs
from torch import nn
from torch.nn import functional as F

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.composite import CompositeTransformation
from istn_monai.geometry.sampling import warp
from istn_monai.layers import SoftClamp
from istn_monai.losses import ISTNLoss
from istn_monai.networks import ISTN, ITN, BackboneITN, DisplacementNetwork
from istn_monai.stn import STN, PyramidSTN

GRIDS = [(24, 20), (23, 31), (18, 17, 21)]
STNS = [STN, PyramidSTN]


def transformation_of(name: str, size):
    affine = AffineTransformation(size)
    levels = [BSplineTransformation(size, 1.0, c) for c in (12.0, 6.0)]
    return {
        "affine": affine,
        "bspline": levels[1],
        "levels": CompositeTransformation(levels),
        "affine+levels": CompositeTransformation([affine, *levels]),
    }[name]


TRANSFORMATIONS = ["affine", "bspline", "levels", "affine+levels"]


# --- ITN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 12), (9, 7), (2, 3), (8, 4, 12), (5, 6, 7)])
@pytest.mark.parametrize("in_channels", [1, 2])
@pytest.mark.parametrize("out_channels", [1, 2, 3])
def test_itn_keeps_the_size(size, in_channels, out_channels):
    itn = ITN(len(size), in_channels, out_channels)
    assert itn(rand(2, in_channels, *size)).shape == (2, out_channels, *size)


@pytest.mark.parametrize("dims, total", [(2, 5031), (3, 13655)])
def test_itn_has_the_layers_of_the_authors_code(dims, total):
    layers = [m for m in ITN(dims).modules() if isinstance(m, nn.modules.conv._ConvNd)]
    found = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.bias is not None) for m in layers]
    assert found == [
        (1, 2, 3, 1, True),
        (2, 4, 3, 1, True),
        (4, 8, 2, 2, True),
        (8, 8, 3, 1, True),
        (8, 16, 2, 2, True),
        (16, 16, 3, 1, True),
        (16, 8, 2, 2, True),
        (8, 8, 3, 1, True),
        (8, 4, 2, 2, True),
        (4, 2, 3, 1, True),
        (2, 2, 3, 1, True),
        (2, 1, 3, 1, True),
    ]
    assert [m.transposed for m in layers] == [n in (6, 8) for n in range(12)]
    by_hand = sum(i * o * k**dims + o for i, o, k, *_ in found)
    assert sum(p.numel() for p in ITN(dims).parameters()) == by_hand == total


def test_itn_adds_the_encoder_to_the_decoder_and_ends_without_activation():
    """The forward pass, layer by layer with torch's functions alone."""
    itn = perturb(ITN(2, 1, 2), scale=0.3)
    w = [(m.weight, m.bias) for m in itn.modules() if isinstance(m, nn.modules.conv._ConvNd)]

    def conv(x, n, relu=True):
        x = F.conv2d(x, *w[n], padding=1)
        return x.relu() if relu else x

    image = rand(1, 1, 8, 12) - 0.5
    full = conv(conv(image, 0), 1)
    half = conv(F.conv2d(full, *w[2], stride=2), 3)
    quarter = conv(F.conv2d(half, *w[4], stride=2), 5)
    half = conv(F.conv_transpose2d(quarter, *w[6], stride=2) + half, 7)
    full = F.conv_transpose2d(half, *w[8], stride=2) + full
    expected = conv(conv(conv(full, 9), 10), 11, relu=False)
    torch.testing.assert_close(itn(image), expected)
    assert itn(image).min() < 0


# --- BackboneITN -----------------------------------------------------------------------------------------------------


def unet(dims: int, out_channels: int) -> nn.Module:
    return UNet(spatial_dims=dims, in_channels=1, out_channels=out_channels, channels=(4, 8, 8), strides=(2, 2))


def basic_unet(dims: int, out_channels: int) -> nn.Module:
    return BasicUNet(spatial_dims=dims, in_channels=1, out_channels=out_channels, features=(4, 4, 4, 4, 4, 4))


@pytest.mark.parametrize(
    "make, divisor, size",
    [(unet, 4, (16, 12)), (unet, 4, (17, 15)), (unet, 4, (9, 10, 11)), (basic_unet, 16, (37, 33))],
)
def test_backbone_keeps_any_size(make, divisor, size):
    itn = BackboneITN(make(len(size), 2), divisor)
    assert itn(rand(2, 1, *size)).shape == (2, 2, *size)


def test_backbone_sees_sizes_that_divide_and_an_image_that_divides_is_not_padded():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(tuple(x.shape[2:]))
            return 2 * x

    itn = BackboneITN(Spy(), 8)
    image = rand(1, 1, 9, 16)
    assert torch.equal(itn(image), 2 * image)
    assert torch.equal(itn(rand(1, 1, 24, 16)), 2 * rand(1, 1, 24, 16))
    assert seen == [(16, 16), (24, 16)]


@pytest.mark.parametrize("size", [(9, 16), (3, 5, 4)])
def test_backbone_trains_on_images_that_its_deepest_level_would_see_as_one_voxel(size):
    itn = BackboneITN(basic_unet(len(size), 2), 16)
    assert itn.train()(rand(1, 1, *size)).shape == (1, 2, *size)


def test_backbone_activation():
    image = 4 * rand(1, 1, 5, 6) - 2
    assert torch.equal(BackboneITN(nn.Identity())(image), image)
    torch.testing.assert_close(BackboneITN(nn.Identity(), activation="sigmoid")(image), image.sigmoid())


def test_soft_clamp_keeps_the_range_and_never_loses_the_gradient():
    x = torch.tensor([-3.0, 0.0, 0.25, 1.0, 5.0], dtype=torch.float64, requires_grad=True)
    y = SoftClamp(slope=0.1)(x)
    assert max_abs(y.detach(), np.array([-0.3, 0.0, 0.25, 1.0, 1.4])) < 1e-12
    inside = torch.tensor([-2.0, 0.3, 0.7, 4.0], dtype=torch.float64, requires_grad=True)
    SoftClamp(slope=0.1)(inside).sum().backward()
    assert max_abs(inside.grad, np.array([0.1, 1.0, 1.0, 0.1])) < 1e-12


def test_backbone_takes_an_activation_module_whose_settings_show_in_its_text():
    itn = BackboneITN(nn.Identity(), activation=SoftClamp(0.2))
    assert torch.equal(itn(torch.full((1, 1, 4, 4), -1.0)), torch.full((1, 1, 4, 4), -0.2))
    assert repr(itn) != repr(BackboneITN(nn.Identity(), activation=SoftClamp(0.3)))


# --- STN, PyramidSTN -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stn", STNS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("size", GRIDS)
def test_stn_starts_at_exactly_the_identity_whatever_the_input(stn, name, size):
    transformation = transformation_of(name, size)
    network = ISTN(None, stn(len(size), 2, transformation), transformation)
    output = network(1e3 * (rand(2, 2, *size) - 0.5))
    assert output.theta.shape == (2, transformation.num_parameters)
    assert output.ddf.shape == (2, len(size), *size)
    assert torch.count_nonzero(output.theta) == 0
    assert torch.count_nonzero(output.ddf) == 0


@pytest.mark.parametrize("stn", STNS)
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (7, 40), (16, 12, 14)])
def test_stn_takes_small_grids(stn, size):
    """16 voxels or fewer along all axes leave one voxel after four strides: an instance norm of one voxel fails."""
    transformation = AffineTransformation(size)
    theta = stn(len(size), 2, transformation)(rand(1, 2, *size))
    assert theta.shape == (1, transformation.num_parameters)


def heads_of(network: nn.Module) -> list[str]:
    """Names of the zero-initialized parameters."""
    return [name for name, p in network.named_parameters() if torch.count_nonzero(p) == 0]


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("stn", STNS)
def test_gradients_reach_the_heads_first_and_everything_after_one_step(stn, name):
    """A parameter that no gradient reaches is dead weight, and makes distributed training fail."""
    size = (33, 38)
    transformation = transformation_of(name, size)
    torch.manual_seed(0)
    network = stn(2, 2, transformation)
    heads = heads_of(network)
    assert heads and len(heads) < len(list(network.parameters()))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    target = rand(1, transformation.num_parameters, seed=4) - 0.5
    image = rand(1, 2, *size)

    def backward():
        optimiser.zero_grad()
        ((network(image) - target) ** 2).mean().backward()

    backward()
    for parameter, values in network.named_parameters():
        reached = values.grad is not None and values.grad.abs().max() > 0
        assert reached == (parameter in heads), parameter
    optimiser.step()
    backward()
    without = [n for n, p in network.named_parameters() if p.grad is None]
    assert not without, f"never used: {without}"
    # a bias before an instance norm has no effect, all else has one
    still = [n for n, p in network.named_parameters() if p.grad.abs().max() == 0 and not n.endswith("conv.bias")]
    assert not still


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("stn", STNS)
def test_the_first_steps_of_adam_are_small(stn, name):
    """A head sums hundreds of features: unscaled, theta would be near its bounds (tanh) after one step."""
    size = (33, 38)
    transformation = transformation_of(name, size)
    torch.manual_seed(0)
    network = stn(2, 2, transformation)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    image = rand(1, 2, *size)
    network(image).sum().backward()
    optimiser.step()
    theta = network(image).detach()
    assert 0 < -theta.mean() and theta.abs().max() < 0.2


def test_the_optical_flow_needs_two_representations():
    with pytest.raises(ValueError, match="in_channels must be even.*got 3; or give flow=False"):
        PyramidSTN(2, 3, AffineTransformation((24, 20)))
    assert PyramidSTN(2, 3, AffineTransformation((24, 20)), flow=False)(rand(1, 3, 24, 20)).shape == (1, 6)


def test_weights_without_the_optical_flow_are_loaded_and_give_the_same():
    transformation = BSplineTransformation((24, 20), control_spacing=(12, 6))
    old = perturb(PyramidSTN(2, 2, transformation, flow=False))
    network = nn.Sequential(perturb(PyramidSTN(2, 2, transformation)))  # as a part of another, with weights of its own
    state = {f"0.{name}": value for name, value in old.state_dict().items()}
    network.load_state_dict(state)
    image = rand(1, 2, 24, 20)
    assert torch.equal(network(image), old(image)) and old(image).abs().max() > 1e-3
    assert not any("flow" in name for name in state)
    whole = network.state_dict()
    del whole["0.flow_heads.0.layer.bias"]
    with pytest.raises(RuntimeError, match="flow_heads.0.layer.bias"):
        network.load_state_dict(whole)


def test_an_stn_that_reads_the_optical_flow_learns_in_few_steps():
    """Squares that have moved: without the flow 30 steps teach next to nothing."""
    size = (32, 32)
    errors = {}
    for flow in (True, False):
        torch.manual_seed(0)
        transformation = BSplineTransformation(size, control_spacing=8.0)
        stn = PyramidSTN(2, 2, transformation, flow=flow)
        optimizer = torch.optim.Adam(stn.parameters(), lr=5e-3)
        generator = torch.Generator().manual_seed(1)
        for _ in range(30):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            fixed = torch.zeros(1, 1, *size)
            fixed[..., 10:20, 12:21] = 1
            fixed = torch.nn.functional.avg_pool2d(fixed, 3, 1, 1)
            moving = fixed.roll(shift, (2, 3))
            error = (warp(moving, transformation(stn(torch.cat([moving, fixed], 1)))) - fixed).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            errors.setdefault(flow, []).append(error.item())
    assert sum(errors[True][-10:]) < 0.5 * sum(errors[False][-10:])


def test_gradients_reach_the_itn_through_the_stn_alone():
    """With loss s nothing but the predicted transformation tells the ITN anything."""
    network = small_istn((16, 12), seed=3)
    loss = ISTNLoss("s")
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)  # a large step saturates the tanh
    image, label = rand(2, 2, 16, 12), rand(2, 2, 16, 12, seed=1)
    reached = []
    for _ in range(2):
        optimiser.zero_grad()
        loss(network(image), label).backward()
        reached.append(sum(p.grad.abs().sum().item() for p in network.itn.parameters()))
        optimiser.step()
    assert reached[0] == 0 and reached[1] > 0


@pytest.mark.parametrize("stn", STNS)
def test_stn_hears_both_images(stn):
    transformation = AffineTransformation((20, 24))
    torch.manual_seed(0)
    network = perturb(stn(2, 2, transformation))
    image = rand(1, 2, 20, 24)
    theta = network(image)
    for channel in (0, 1):
        other = image.clone()
        other[:, channel] = rand(20, 24, seed=7)
        assert (network(other) - theta).abs().max() > 1e-5


def test_stn_is_the_authors_three_convolutions():
    network = STN(3, 2, AffineTransformation((16, 16, 16)))
    convs = [m for m in network.modules() if isinstance(m, nn.Conv3d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in convs] == [(2, 8, 5), (8, 16, 5), (16, 32, 5)]
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(32 * 6**3, 32), (32, 12)]
    single = STN(2, 2, AffineTransformation((16, 16)), hidden_channels=None)
    assert sum(isinstance(m, nn.Linear) for m in single.modules()) == 1


def test_pyramid_control_point_sees_its_own_place():
    """A change in one corner of the image moves control points there, and hardly those of the far corner."""
    size = (64, 64)
    transformation = BSplineTransformation(size, 1.0, 8.0)
    torch.manual_seed(0)
    network = PyramidSTN(2, 2, transformation, channels=(8, 8))
    perturb(network)
    image = rand(1, 2, *size)
    other = image.clone()
    other[..., :12, :12] = 1 - other[..., :12, :12]
    change = (network(other) - network(image)).unflatten(1, transformation.parameter_shapes[0])[0].abs().sum(0)
    assert change[:3, :3].mean() > 3 * change[-3:, -3:].mean()


# --- ISTN ------------------------------------------------------------------------------------------------------------


def test_istn_shares_the_itn_so_swapping_images_swaps_representations():
    network = perturb(small_istn((12, 11), channels=2))
    moving, fixed = rand(3, 1, 12, 11), rand(3, 1, 12, 11, seed=1)
    there = network.represent(torch.cat([moving, fixed], 1))
    back = network.represent(torch.cat([fixed, moving], 1))
    torch.testing.assert_close(there[0], back[1])
    torch.testing.assert_close(there[1], back[0])
    torch.testing.assert_close(there[0], network.itn(moving))
    assert not torch.allclose(there[0], there[1])


def test_istn_splits_several_channels_moving_first():
    class Weigh(nn.Module):
        """Makes each input channel's place visible in the output."""

        def forward(self, x):
            return torch.stack([x[:, 0] + 10 * x[:, 1], x[:, 0] * x[:, 1], x[:, 1]], 1)

    transformation = AffineTransformation((6, 5))
    network = ISTN(Weigh(), STN(2, 6, transformation, 2), transformation)
    image = rand(3, 4, 6, 5)
    moving, fixed = network.represent(image)
    assert moving.shape == fixed.shape == (3, 3, 6, 5)
    torch.testing.assert_close(moving, Weigh()(image[:, :2]))
    torch.testing.assert_close(fixed, Weigh()(image[:, 2:]))


def test_istn_gives_stn_moving_before_fixed():
    seen = []

    class Spy(STN):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    transformation = AffineTransformation((12, 11))
    network = ISTN(ITN(2), Spy(2, 2, transformation, 2), transformation)
    output = network(rand(2, 2, 12, 11))
    assert torch.equal(seen[0], torch.cat([output.moving_representation, output.fixed_representation], 1))
    assert torch.equal(output.ddf, transformation(output.theta))


def test_istn_without_itn_passes_images():
    image = rand(2, 2, 12, 11)
    output = small_istn(itn=False)(image)
    assert torch.equal(output.moving_representation, image[:, :1])
    assert torch.equal(output.fixed_representation, image[:, 1:])
    assert torch.equal(output.image, image)


def test_network_of_loss_u_trains_and_has_no_itn_parameters():
    network = small_istn(itn=False)
    assert not [name for name, _ in network.named_parameters() if name.startswith("itn")]
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    image = rand(2, 2, 12, 11)
    before = ISTNLoss("u")(network(image))
    before.backward()
    optimiser.step()
    assert not [name for name in network.state_dict() if name.startswith("itn")]
    assert ISTNLoss("u")(network(image)) != before


@pytest.mark.parametrize("shape", [(1, 3, 12, 11), (1, 2, 12, 11, 4), (2, 12, 11)])
def test_istn_refuses_wrong_inputs_and_says_both_shapes(shape):
    with pytest.raises(ValueError) as error:
        small_istn((12, 11))(torch.zeros(shape))
    assert "(B, 2C, *S)" in str(error.value) and "2 axes" in str(error.value) and str(shape) in str(error.value)


def test_istn_refuses_an_itn_that_changes_the_size():
    """Half the size and four times the channels hold as many numbers: reshaped they would be a wrong representation."""

    class Halves(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(x, 2).repeat(1, 4, 1, 1)

    transformation = AffineTransformation((8, 8))
    network = ISTN(Halves(), STN(2, 2, transformation, 2), transformation)
    with pytest.raises(ValueError, match="size|shape"):
        network.represent(rand(1, 2, 8, 8))


@pytest.mark.parametrize("stn", STNS)
def test_batch_equals_singles(stn):
    size = (20, 24)
    transformation = transformation_of("affine+levels", size)
    torch.manual_seed(0)
    network = perturb(ISTN(ITN(2), stn(2, 2, transformation), transformation)).eval().double()
    image = rand(3, 2, *size).double()
    with torch.no_grad():
        together = network(image)
        for index in range(3):
            for whole, single in zip(together, network(image[index : index + 1]), strict=True):
                torch.testing.assert_close(whole[index : index + 1], single)
    assert together.ddf.abs().max() > 0.01


# --- DisplacementNetwork ---------------------------------------------------------------------------------------------


def test_displacement_network_returns_the_ddf_and_shares_weights():
    istn = perturb(small_istn())
    network = DisplacementNetwork(istn)
    image = rand(2, 2, 12, 11)
    ddf = network(image)
    assert isinstance(ddf, torch.Tensor)
    assert torch.equal(ddf, istn(image).ddf)
    assert {p.data_ptr() for p in network.parameters()} == {p.data_ptr() for p in istn.parameters()}
    perturb(istn, seed=9)
    assert not torch.equal(network(image), ddf)


def exportable(stn) -> DisplacementNetwork:
    size = (17, 22)
    transformation = transformation_of("affine+levels", size)
    torch.manual_seed(0)
    return perturb(DisplacementNetwork(ISTN(ITN(2), stn(2, 2, transformation), transformation))).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stn", STNS)
def test_traced_network_gives_the_same_on_another_input(stn):
    network = exportable(stn)
    traced = torch.jit.trace(network, rand(1, 2, 17, 22))
    other = rand(1, 2, 17, 22, seed=5)
    torch.testing.assert_close(traced(other), network(other), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stn", STNS)
def test_exported_network_gives_the_same_on_another_input(stn):
    network = exportable(stn)
    exported = torch.export.export(network, (rand(1, 2, 17, 22),), strict=False).module()
    other = rand(1, 2, 17, 22, seed=5)
    torch.testing.assert_close(exported(other), network(other), rtol=1e-4, atol=1e-5)


def test_constants_of_the_transformation_stay_out_of_the_weights():
    network = DisplacementNetwork(small_istn())
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
