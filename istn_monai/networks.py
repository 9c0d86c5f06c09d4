"""Networks: the image transformer (ITN), the spatial transformer (STN), and the two joined (ISTN)."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers import Conv, Pool, get_act_layer
from torch import Tensor, nn

from istn_monai.geometry.transformation import Transformation
from istn_monai.layers import AdaptiveAveragePool, Scaled, corner_ratios, crop_to, pad_to_multiple, stretched


class ITN(nn.Module):
    """The paper's image transformer network: a small residual encoder-decoder with 2-4-8-16 channels.

    Channel counts, kernel sizes and sums across the decoder are those of the authors' code
    (https://github.com/biomedia-mira/istn, ``pymira/nets/itn.py``). Any image size; the output has the input's size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: of the representation; for ISTN-e and ISTN-i the number K of SoI channels.

    Example:
        >>> ITN(spatial_dims=3, out_channels=2)(torch.rand(1, 1, 17, 20, 15)).shape
        torch.Size([1, 2, 17, 20, 15])
    """

    def __init__(self, spatial_dims: int, in_channels: int = 1, out_channels: int = 1) -> None:
        super().__init__()
        conv, up = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]

        def same(inputs: int, outputs: int) -> nn.Module:
            """A convolution that keeps the size."""
            return conv(inputs, outputs, kernel_size=3, padding=1)

        relu = nn.ReLU()
        self.encoder1 = nn.Sequential(same(in_channels, 2), relu, same(2, 4), relu)
        self.encoder2 = nn.Sequential(conv(4, 8, kernel_size=2, stride=2), same(8, 8), relu)
        self.bottleneck = nn.Sequential(conv(8, 16, kernel_size=2, stride=2), same(16, 16), relu)
        self.up2 = up(16, 8, kernel_size=2, stride=2)
        self.decoder2 = nn.Sequential(same(8, 8), relu)
        self.up1 = up(8, 4, kernel_size=2, stride=2)
        self.decoder1 = nn.Sequential(same(4, 2), relu, same(2, 2), relu, same(2, out_channels))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, in_channels, *S)`` to ``(B, out_channels, *S)``."""
        padded = pad_to_multiple(image, 4)
        full = self.encoder1(padded)
        half = self.encoder2(full)
        half = self.decoder2(self.up2(self.bottleneck(half)) + half)
        return crop_to(self.decoder1(self.up1(half) + full), image.shape[2:])


class BackboneITN(nn.Module):
    """Any network that maps an image to an image of the same size, as an ITN.

    Args:
        backbone: for example ``monai.networks.nets.BasicUNet``; its output channels are the representation's.
        size_divisor: the backbone's sizes must divide by it (2 to the number of its stride-2 steps); others are
            padded and cropped. An instance norm at the deepest level needs 2 voxels: smaller images are padded to twice
            the divisor.
        activation: of the output: a module, e.g. :class:`istn_monai.layers.SoftClamp` for representations in [0, 1], or
            the name of a MONAI activation; None for none.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> itn = BackboneITN(BasicUNet(2, 1, 3, features=(4, 4, 8, 8, 8, 4)), size_divisor=16, activation="sigmoid")
        >>> itn(torch.rand(1, 1, 50, 39)).shape
        torch.Size([1, 3, 50, 39])
    """

    def __init__(self, backbone: nn.Module, size_divisor: int = 1, activation: nn.Module | str | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.size_divisor = size_divisor
        named = get_act_layer(activation) if isinstance(activation, str) else activation
        self.activation = nn.Identity() if named is None else named

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *S)`` to ``(B, K, *S)``."""
        padded = pad_to_multiple(image, self.size_divisor, least=min(self.size_divisor, 2))
        representation = self.backbone(padded)
        return self.activation(crop_to(representation, image.shape[2:]))


class STN(nn.Module):
    """The paper's spatial transformer network: three convolutions (8-16-32 channels, kernel 5), then a regressor.

    As in the authors' code, but padded, and pooled to a fixed size before the regressor, so that any image size goes.
    The regressor starts at zero: theta = 0, the identity.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of moving and fixed representation together.
        transformation: whose parameters are predicted.
        pool_size: size of the pooled features along each axis.
        hidden_channels: of the hidden layer; None for none (the authors' choice for B-splines).

    Example:
        >>> from istn_monai import AffineTransformation
        >>> STN(2, in_channels=2, transformation=AffineTransformation((24, 30)))(torch.rand(1, 2, 24, 30))
        tensor([[0., 0., 0., 0., 0., 0.]], grad_fn=<MulBackward0>)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        transformation: Transformation,
        pool_size: int = 6,
        hidden_channels: int | None = 32,
    ) -> None:
        super().__init__()
        self.transformation = transformation
        conv, pool = Conv[Conv.CONV, spatial_dims], Pool[Pool.AVG, spatial_dims]
        channels = (in_channels, 8, 16, 32)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(channels, channels[1:], strict=False):
            layers += [conv(inputs, outputs, kernel_size=5, padding=2), nn.ReLU(), pool(2, ceil_mode=True)]
        self.features = nn.Sequential(*layers, AdaptiveAveragePool(pool_size), nn.Flatten())
        width = channels[-1] * pool_size**spatial_dims
        hidden = [] if hidden_channels is None else [nn.Linear(width, hidden_channels), nn.ReLU()]
        last = nn.Linear(hidden_channels or width, transformation.num_parameters)
        self.regressor = nn.Sequential(*hidden, Scaled(last))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, in_channels, *S)`` to theta ``(B, P)``."""
        theta = self.regressor(self.features(image))
        expected = self.transformation.resized(image.shape[2:]).num_parameters
        if theta.shape[1] != expected:
            raise ValueError(
                f"this STN predicts {theta.shape[1]} parameters, a lattice of control points on a grid of "
                f"{tuple(image.shape[2:])} voxels has {expected}: set spatial_size to the grid that it was built for, "
                f"{self.transformation.spatial_size}, or use PyramidSTN"
            )
        return theta


class PyramidSTN(nn.Module):
    """A stronger STN: a small encoder-decoder that predicts each lattice of control points from features of its size.

    Where :class:`STN` regresses thousands of control points from one pooled vector, here a control point sees the
    features around it; blocks of global parameters (affine) come from the pooled deepest features. All heads start at
    zero: theta = 0, the identity.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of moving and fixed representation together.
        transformation: whose parameters are predicted.
        channels: of the features at 1/2, 1/4, 1/8 ... of the image's size.
        pool_size: size of the pooled features along each axis, for global parameters.

    Example:
        >>> from istn_monai import BSplineTransformation
        >>> bspline = BSplineTransformation((24, 30), control_spacing=6.0)
        >>> theta = PyramidSTN(2, in_channels=2, transformation=bspline)(torch.rand(1, 2, 24, 30))
        >>> theta.shape == (1, bspline.num_parameters), theta.any()
        (True, tensor(False))
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        transformation: Transformation,
        channels: Sequence[int] = (16, 32, 32, 32),
        pool_size: int = 3,
    ) -> None:
        super().__init__()
        self.transformation = transformation
        shapes = transformation.parameter_shapes

        def block(inputs: int, outputs: int, strides: int) -> nn.Module:
            """Convolution, norm and activation."""
            return Convolution(spatial_dims, inputs, outputs, strides=strides, act="LEAKYRELU", norm="INSTANCE")

        # an instance norm needs 2 voxels: small grids get fewer levels
        channels = channels[: max(1, (max(transformation.spatial_size) - 1).bit_length() - 1)]

        inputs = (in_channels, *channels)
        size = transformation.spatial_size
        #: for each block of parameters, how many decoder steps its features come from
        self.depths = tuple(decoder_steps(shape, size, len(channels)) for shape in shapes)
        levels = [halved(size, len(channels) - step) for step in range(max(self.depths) + 1)]
        #: features from one point to the next, from level to level and from a level to a lattice; see `stretched`. They
        #: stay those of this size on a grid of another, so that a point sees the features as far from the center.
        self.level_ratios = [corner_ratios(*pair) for pair in itertools.pairwise(levels)]
        self.lattice_ratios = [
            corner_ratios(levels[depth], shape[1:]) if len(shape) > 1 else []
            for depth, shape in zip(self.depths, shapes, strict=True)
        ]
        self.encoder = nn.ModuleList(block(i, o, 2) for i, o in zip(inputs, channels, strict=False))
        deepest = channels[-1]
        skips = list(reversed(channels[:-1]))[: max(self.depths)]  # finer features than any head reads are not made
        self.decoder = nn.ModuleList(block(deepest + skip, deepest, 1) for skip in skips)
        conv = Conv[Conv.CONV, spatial_dims]
        width = deepest * pool_size**spatial_dims
        self.heads = nn.ModuleList(
            Scaled(conv(deepest, shape[0], kernel_size=3, padding=1))
            if len(shape) > 1
            else nn.Sequential(AdaptiveAveragePool(pool_size), nn.Flatten(), Scaled(nn.Linear(width, shape[0])))
            for shape in shapes
        )

    def forward(self, image: Tensor) -> Tensor:
        """``(B, in_channels, *S)`` to theta ``(B, P)``."""
        shapes = self.transformation.resized(image.shape[2:]).parameter_shapes
        levels = self.levels(image)
        blocks = []
        for head, shape, depth, ratios in zip(self.heads, shapes, self.depths, self.lattice_ratios, strict=True):
            # a lattice reaches a cell beyond the image: its outer points see the border, the heads' kernels the rest
            features = levels[depth] if len(shape) == 1 else stretched(levels[depth], shape[1:], ratios)
            blocks.append(head(features).flatten(1))
        return torch.cat(blocks, dim=1)

    def levels(self, image: Tensor) -> list[Tensor]:
        """Features from the coarsest level to the finest that a head reads."""
        skips = []
        features = image
        for encode in self.encoder:
            features = encode(features)
            skips.append(features)
        levels = [features]
        for decode, skip, ratios in zip(self.decoder, reversed(skips[:-1]), self.level_ratios, strict=False):
            finer = stretched(levels[-1], skip.shape[2:], ratios)
            levels.append(decode(torch.cat([finer, skip], dim=1)))
        return levels


def halved(spatial_size: Sequence[int], times: int) -> list[int]:
    """Size of the features after so many convolutions of stride 2."""
    return [math.ceil(size / 2**times) for size in spatial_size]


def decoder_steps(shape: Sequence[int], spatial_size: Sequence[int], levels: int) -> int:
    """Decoder steps of ``levels - 1`` until the features are as fine as a lattice; 0 for global parameters."""
    if len(shape) == 1:
        return 0
    for steps in range(levels - 1):
        size = halved(spatial_size, levels - steps)
        if all(s >= control for s, control in zip(size, shape[1:], strict=True)):
            return steps
    return levels - 1


class ISTNOutput(NamedTuple):
    """What an ISTN computes for a batch.

    Attributes:
        image: the input ``(B, 2C, *S)``, moving then fixed.
        moving_representation: M' ``(B, K, *S)``, not warped.
        fixed_representation: F' ``(B, K, *S)``.
        theta: ``(B, P)``.
        ddf: ``(B, D, *S)`` in voxels, ``warped(x) = moving(x + ddf(x))``.
    """

    image: Tensor
    moving_representation: Tensor
    fixed_representation: Tensor
    theta: Tensor
    ddf: Tensor


class ISTN(nn.Module):
    """Image-and-spatial transformer network (paper, Fig. 2): ITN, then STN, then transformation.

    Args:
        itn: shared by moving and fixed image, ``(B, C, *S)`` to ``(B, K, *S)``; None passes the images on, which is
            how the authors train STN-u and STN-s.
        stn: ``(B, 2K, *S)`` to theta ``(B, P)``.
        transformation: theta to ddf.

    Example:
        >>> from istn_monai import AffineTransformation
        >>> affine = AffineTransformation((24, 30))
        >>> output = ISTN(ITN(2), STN(2, 2, affine), affine)(torch.rand(1, 2, 24, 30))
        >>> output.moving_representation.shape, output.theta.shape, output.ddf.shape
        (torch.Size([1, 1, 24, 30]), torch.Size([1, 6]), torch.Size([1, 2, 24, 30]))
    """

    def __init__(self, itn: nn.Module | None, stn: nn.Module, transformation: Transformation) -> None:
        super().__init__()
        self.itn = nn.Identity() if itn is None else itn
        self.stn = stn
        self.transformation = transformation

    def represent(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """M' and F', ``(B, K, *S)`` each, of an input ``(B, 2C, *S)``, moving channels then fixed."""
        dims = self.transformation.spatial_dims
        if image.ndim != dims + 2 or image.shape[1] % 2:
            raise ValueError(
                f"image must be (B, 2C, *S), moving channels then fixed, with {dims} axes S, got {tuple(image.shape)}"
            )
        batch, channels, size = image.shape[0], image.shape[1] // 2, tuple(image.shape[2:])
        both = self.itn(image.reshape(2 * batch, channels, *size))  # one pass for the two of each pair
        if both.shape[2:] != image.shape[2:]:
            raise ValueError(
                f"the ITN must keep the image's size {size}, it gave {tuple(both.shape[2:])}; see BackboneITN"
            )
        moving, fixed = both.unflatten(0, (batch, 2)).unbind(1)
        return moving, fixed

    def forward(self, image: Tensor) -> ISTNOutput:
        """``(B, 2C, *S)``, moving channels then fixed, to all that the losses need.

        S may be another size than the network was built for, with the same spacing: lattices follow the grid.
        """
        moving, fixed = self.represent(image)
        theta = self.stn(torch.cat([moving, fixed], dim=1))
        return ISTNOutput(image, moving, fixed, theta, self.transformation.resized(image.shape[2:])(theta))


class DisplacementNetwork(nn.Module):
    """An ISTN that returns its ddf alone: one tensor in, one out, as bundles, exporters and hosts want it.

    Args:
        istn: the network; shared, not copied.
        in_channels: C, of one image.

    Example:
        >>> from istn_monai import AffineTransformation
        >>> affine = AffineTransformation((24, 30))
        >>> DisplacementNetwork(ISTN(None, STN(2, 2, affine), affine))(torch.rand(1, 2, 24, 30)).shape
        torch.Size([1, 2, 24, 30])
    """

    def __init__(self, istn: ISTN, in_channels: int = 1) -> None:
        super().__init__()
        self.istn = istn
        self.in_channels = in_channels

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` compiles instead, and so MONAI's ``ckpt_export``: a trace of this network.

        Sizes are fixed, so a trace loses nothing; the batch may be of any size. ITNs of other libraries need not be
        scriptable.
        """
        size = self.istn.transformation.spatial_size
        example = next(self.parameters()).new_zeros(1, 2 * self.in_channels, *size)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of checks of the size, which is fixed
            return TracedNetwork(torch.jit.trace(self, example))

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 2C, *S)``, moving channels then fixed, to the ddf ``(B, D, *S)`` in voxels."""
        return self.istn(image).ddf


class TracedNetwork(nn.Module):
    """A network that was traced, for ``torch.jit.script``."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, image: Tensor) -> Tensor:
        """As the network."""
        return self.traced(image)
