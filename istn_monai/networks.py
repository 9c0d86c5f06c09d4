"""Networks: the image transformer (ITN), and the ISTN that joins it with a spatial transformer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from monai.networks import nets
from monai.networks.layers import Conv, get_act_layer
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn

from istn_monai.convolutions import JoinedUpCat
from istn_monai.geometry.sampling import values_alone
from istn_monai.geometry.transformation import Transformation
from istn_monai.layers import StructureSoftmax, centered, crop_to, middle_of, pad_to_multiple, steady_convolutions

UNET_DIVISOR = 16  # a BasicUNet halves an image four times
AT_ONCE = 2**22  # voxels of images that a network gets together
KEY = "istn_monai"  # of a state dictionary's ``_metadata``: the description of a checkpoint, as JSON
LOADED = "what is loaded into this network (name its file as checkpoint_file, too: the network is made of it)"


class ITN(nn.Module):
    """The paper's image transformer network: a small residual encoder-decoder with 2-4-8-16 channels.

    Channel counts, kernel sizes and sums across the decoder are those of the authors' code
    (https://github.com/biomedia-mira/istn, ``pymira/nets/itn.py``). Any image size; the output has the input's size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: of the representation; for ISTN-e and ISTN-i the number K of SoI channels.

    Examples:
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
        steady_convolutions(self)

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

    Examples:
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


def unet(spatial_dims: int, in_channels: int, out_channels: int, features: Sequence[int]) -> nn.Module:
    """A BasicUNet for sizes that divide by ``UNET_DIVISOR``."""
    network = nets.BasicUNet(spatial_dims, in_channels, out_channels, features=features)
    for block in network.modules():
        if isinstance(block, UpCat):
            block.is_pad = False  # it would copy the features
            block.__class__ = JoinedUpCat
    steady_convolutions(network)
    return network


class SegmentationITN(BackboneITN):
    """A U-Net of a segmentation network's size, with probabilities of structures that do not overlap.

    Twice as many channels as the default has, four times as many weights, and twice its time. Its representations
    are best learned first by themselves (``itn_epochs`` of the bundle), with :class:`istn_monai.DiceCrossEntropyLoss`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: number K of structures, without the background.
        features: channels of MONAI's ``BasicUNet``.

    Examples:
        >>> itn = SegmentationITN(2, out_channels=3, features=(4, 4, 8, 8, 8, 4))
        >>> probabilities = itn(torch.rand(1, 1, 50, 39))
        >>> probabilities.shape, bool((probabilities.sum(1) <= 1 + 1e-6).all())
        (torch.Size([1, 3, 50, 39]), True)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        features: Sequence[int] = (16, 32, 64, 128, 256, 16),
    ) -> None:
        backbone = unet(spatial_dims, in_channels, out_channels + 1, features)
        super().__init__(backbone, UNET_DIVISOR, StructureSoftmax())


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
        itn_dtype: of the ITN's products where no gradient is wanted: None or ``torch.bfloat16``, by autocast. M' and F'
            are float32, and so is all that follows.

    Examples:
        >>> from istn_monai import STN, AffineTransformation
        >>> affine = AffineTransformation((24, 30))
        >>> output = ISTN(ITN(2), STN(2, 2, affine), affine)(torch.rand(1, 2, 24, 30))
        >>> output.moving_representation.shape, output.theta.shape, output.ddf.shape
        (torch.Size([1, 1, 24, 30]), torch.Size([1, 6]), torch.Size([1, 2, 24, 30]))
    """

    def __init__(
        self,
        itn: nn.Module | None,
        stn: nn.Module,
        transformation: Transformation,
        itn_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.itn = nn.Identity() if itn is None else itn
        self.stn = stn
        self.transformation = transformation
        self.itn_dtype = itn_dtype

    @property
    def has_itn(self) -> bool:
        """Whether the representations are made by an ITN; else they are the images."""
        return not isinstance(self.itn, nn.Identity)

    def represent(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """M' and F', ``(B, K, *S)`` each, of an input ``(B, 2C, *S)``, moving channels then fixed."""
        dims = self.transformation.spatial_dims
        if image.ndim != dims + 2 or image.shape[1] % 2:
            raise ValueError(
                f"image must be (B, 2C, *S), moving channels then fixed, with {dims} axes S, got {tuple(image.shape)}"
            )
        batch, channels = image.shape[0], image.shape[1] // 2
        images = image.reshape(2 * batch, channels, *image.shape[2:])  # one pass for the two of each pair
        moving, fixed = self.representations(images).unflatten(0, (batch, 2)).unbind(1)
        return moving, fixed

    def representations(self, images: Tensor) -> Tensor:
        """Of single images ``(B, C, *S)``, ``(B, K, *S)``."""
        size = tuple(images.shape[2:])
        # a smaller grid than that of training lies in zeros, as what is beyond an image does: norms see as much of them
        images = centered(images, self.transformation.spatial_size)
        found = self.transformed(images)
        if found.shape[2:] != images.shape[2:]:
            raise ValueError(
                f"the ITN must keep the image's size {tuple(images.shape[2:])}, it gave {tuple(found.shape[2:])}; see "
                "BackboneITN"
            )
        return middle_of(found, size).contiguous()

    def transformed(self, images: Tensor) -> Tensor:
        """What the ITN makes of ``(B, C, *S)``; where no gradient is wanted, as fast as the device can."""
        if not (values_alone() and self.has_itn):
            return self.itn(images)  # type: ignore[no-any-return]
        quick = images.device.type == "cpu" and images.ndim == 5
        with torch.autocast(images.device.type, self.itn_dtype) if self.itn_dtype else nullcontext():
            return (channels_last(self.itn, images) if quick else self.itn(images)).to(images.dtype)

    def forward(self, image: Tensor) -> ISTNOutput:
        """``(B, 2C, *S)``, moving channels then fixed, to all that the losses need.

        S may be another size than the network was built for, with the same spacing: lattices follow the grid.
        """
        moving, fixed = self.represent(image)
        theta = self.stn(torch.cat([moving, fixed], dim=1))
        return ISTNOutput(image, moving, fixed, theta, self.transformation.resized(image.shape[2:])(theta))


def channels_last(network: nn.Module, images: Tensor) -> Tensor:
    """What a network makes of 3-D images, with its kernels in the layout that has a voxel's channels side by side.

    Large images go one by one: it takes as long, and half of the memory.
    """
    if isinstance(network, torch.jit.ScriptModule):
        return network(images)  # type: ignore[no-any-return]
    if len(images) > 1 and images.numel() > AT_ONCE and not network.training:
        return torch.cat([channels_last(network, image) for image in images.split(1)])
    layout = torch.channels_last_3d
    if images.shape[1] == 1:  # of a single channel both layouts are the same, and strides say which is meant
        images = images.contiguous()
        images = images.as_strided(images.shape, (images.stride(0), 1, *images.stride()[2:]))
    kernels = {name: w.contiguous(memory_format=layout) for name, w in network.named_parameters() if w.ndim == 5}
    return torch.func.functional_call(network, kernels, (images,))  # type: ignore[no-any-return]


class DisplacementNetwork(nn.Module):
    """An ISTN that returns its ddf alone: one tensor in, one out, as bundles, exporters and hosts want it.

    Args:
        istn: the network; shared, not copied.
        in_channels: C, of one image.
        settings: that it was made of, :class:`istn_monai.network_settings.NetworkSettings`: weights that say what they
            are must be of these, also where others fit. None takes all that fit.

    Examples:
        >>> from istn_monai import STN, AffineTransformation
        >>> affine = AffineTransformation((24, 30))
        >>> DisplacementNetwork(ISTN(None, STN(2, 2, affine), affine))(torch.rand(1, 2, 24, 30)).shape
        torch.Size([1, 2, 24, 30])
    """

    def __init__(self, istn: ISTN, in_channels: int = 1, settings: Any = None) -> None:
        super().__init__()
        self.istn = istn
        self.in_channels = in_channels
        self.settings = settings

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As PyTorch; ValueError if the weights say, see :mod:`istn_monai.weights`, that they are of other settings."""
        trained = json.loads(getattr(state_dict, "_metadata", {}).get(KEY, "{}")).get("settings")
        if trained is not None and self.settings is not None and not self.settings.network_free:
            own = {name: value for name, value in self.settings.state_dict().items() if name != "spatial_size"}
            type(self.settings).of_state_dict(trained).overridden(own, LOADED)
        return super().load_state_dict(state_dict, *args, **kwargs)

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
