"""What the networks are made of beyond MONAI's own layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from istn_monai.convolutions import is_plain, same_size
from istn_monai.geometry.sampling import values_alone
from istn_monai.geometry.separable import linear_weights
from istn_monai.instance_norm import instance_norm, keeps_layout

SMALL = 2**18  # voxels of an image


def pad_to_multiple(image: Tensor, divisor: int, least: int = 1) -> Tensor:
    """``(B, C, *S)`` with border values repeated at each axis' end until its size is a multiple of ``divisor``.

    The multiple is 1 or ``least``, whatever is larger.
    """
    padding = [max(-(-size // divisor), least) * divisor - size for size in image.shape[2:]]
    if not any(padding):
        return image
    ends = [value for size in reversed(padding) for value in (0, size)]
    return nn.functional.pad(image, ends, mode="replicate")


def crop_to(image: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """``(B, C, *S)`` cropped at each axis' end to ``spatial_size``."""
    return image[(slice(None), slice(None), *(slice(size) for size in spatial_size))]


def centered(image: Tensor, least: Sequence[int]) -> Tensor:
    """``(B, C, *S)`` in the middle of zeros, so that no axis has fewer voxels than ``least``."""
    missing = [max(n - size, 0) for n, size in zip(least, image.shape[2:], strict=True)]
    if not any(missing):
        return image
    ends = [end for number in reversed(missing) for end in (number // 2, number - number // 2)]
    return nn.functional.pad(image, ends)


def middle_of(image: Tensor, spatial_size: Sequence[int]) -> Tensor:
    """What :func:`centered` put into the middle, ``(B, C, *spatial_size)``."""
    starts = [(size - n) // 2 for size, n in zip(image.shape[2:], spatial_size, strict=True)]
    return image[(..., *(slice(start, start + n) for start, n in zip(starts, spatial_size, strict=True)))]


class AdaptiveAveragePool(nn.Module):
    """PyTorch's ``AdaptiveAvgPool``, in 2-D and 3-D, as one small matrix product for each axis.

    ONNX has no adaptive pooling for sizes that are no multiple of ``output_size``.

    Args:
        output_size: along each axis.

    Examples:
        >>> AdaptiveAveragePool(2)(torch.arange(6.0).view(1, 1, 2, 3))
        tensor([[[[0.5000, 1.5000],
                  [3.5000, 4.5000]]]])
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def weights(self, size: int) -> Tensor:
        """``(output_size, size)``: output i is the mean from ``floor(i s / n)`` to ``ceil((i + 1) s / n)``."""
        weights = torch.zeros(self.output_size, size)
        for row in range(self.output_size):
            first, last = row * size // self.output_size, -(-(row + 1) * size // self.output_size)
            weights[row, first:last] = 1.0 / (last - first)
        return weights

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, *S)`` to ``(B, C, output_size, ...)``."""
        for axis in range(2, features.ndim):
            weights = self.weights(int(features.shape[axis])).to(features)
            features = (features.movedim(axis, -1) @ weights.T).movedim(-1, axis)
        return features

    def extra_repr(self) -> str:
        """The size."""
        return f"output_size={self.output_size}"


def stretched(features: Tensor, size: Sequence[int], ratios: Sequence[float]) -> Tensor:
    """Features at the points of a lattice, linear between them, the lattice's center on the features' center.

    Args:
        features: ``(B, C, *F)``; beyond their border the border goes on.
        size: number of points along each axis, ``*N``.
        ratios: distance of two points in features, along each axis. ``(F - 1) / (N - 1)`` is corner to corner.

    Returns:
        ``(B, C, *N)``

    Examples:
        >>> features = torch.arange(5.0).view(1, 1, 5, 1)
        >>> stretched(features, (3, 1), (2.0, 1.0)).flatten(), stretched(features, (3, 1), (0.5, 1.0)).flatten()
        (tensor([0., 2., 4.]), tensor([1.5000, 2.0000, 2.5000]))
    """
    if list(ratios) == corner_ratios(features.shape[2:], size):
        mode = {2: "bilinear", 3: "trilinear"}[len(size)]
        return nn.functional.interpolate(features, tuple(size), mode=mode, align_corners=True)
    for axis, (points, ratio) in enumerate(zip(size, ratios, strict=True), 2):
        last = features.shape[axis] - 1
        places = ratio * (torch.arange(points) - (points - 1) / 2) + last / 2
        weights = linear_weights(places.clamp(0, last), last + 1).to(features)
        features = (features.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return features


def corner_ratios(features: Sequence[int], size: Sequence[int]) -> list[float]:
    """The ratios of :func:`stretched` with which the outermost points lie on the outermost features."""
    return [(f - 1) / max(n - 1, 1) for f, n in zip(features, size, strict=True)]


class CentralInstanceNorm(nn.Module):
    """Instance norm that takes its statistics from a window in the middle of the features.

    A registration grid that is larger than the one of training has a larger fraction of empty border, which shifts the
    statistics of the whole: a network that was trained on 48 x 64 x 48 voxels lost .054 of refined Dice on 80 x 112 x
    80, and none of it with this window. On features that are not larger than the window it is the plain instance norm.

    Args:
        norm: an instance norm of PyTorch, whose weights it takes over, names included.
        window: size of the window, ``*W``.

    Examples:
        >>> features = torch.rand(1, 2, 4, 4)
        >>> norm = CentralInstanceNorm(nn.InstanceNorm2d(2), window=(4, 4))
        >>> padded = nn.functional.pad(features, (8, 8, 8, 8))
        >>> torch.allclose(norm(padded)[..., 8:12, 8:12], norm(features), atol=1e-6)
        True
    """

    def __init__(self, norm: nn.Module, window: Sequence[int]) -> None:
        super().__init__()
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        self.eps = norm.eps
        self.window = tuple(window)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, *S)`` to the same."""
        size = features.shape[2:]
        whole = all(s <= w for s, w in zip(size, self.window, strict=True))
        middle = features if whole else middle_of(features, [*map(min, size, self.window)])
        if keeps_layout(features):
            return instance_norm(features, middle, self.weight, self.bias, self.eps)
        if whole:
            return nn.functional.instance_norm(features, weight=self.weight, bias=self.bias, eps=self.eps)
        axes = tuple(range(2, features.ndim))
        variance, mean = torch.var_mean(middle, axes, correction=0, keepdim=True)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is None:
            return (features - mean) * scale
        weight, bias = (own.view(-1, *[1] * len(size)) for own in (self.weight, self.bias))
        return torch.addcmul(bias - mean * weight * scale, features, weight * scale)

    def extra_repr(self) -> str:
        """The window."""
        return f"window={self.window}"


def with_central_statistics(network: nn.Module, in_channels: int, spatial_size: Sequence[int]) -> nn.Module:
    """The network, its instance norms replaced by :class:`CentralInstanceNorm` with the windows of one image size.

    Args:
        network: ``(B, in_channels, *S)`` to anything; changed in place.
        in_channels: channels of its input.
        spatial_size: image size of training: there the network stays what it was, to the last bit.
    """
    norms = (nn.InstanceNorm2d, nn.InstanceNorm3d)
    names = [name for name, module in network.named_modules() if isinstance(module, norms)]
    if not names:
        return network
    windows: dict[str, tuple[int, ...]] = {}
    # shapes alone; the meta device imports PyTorch's compiler, which takes longer than a small image
    device = "cpu" if math.prod(spatial_size) <= SMALL else "meta"
    shadow = copy.deepcopy(network).to(device).eval()
    for name in names:
        place = nn.Identity()  # as a norm, it keeps the shape
        place.register_forward_pre_hook(lambda _, x, name=name: windows.update({name: tuple(x[0].shape[2:])}))
        shadow.set_submodule(name, place)
    with torch.no_grad():
        shadow(torch.zeros(1, in_channels, *spatial_size, device=device))
    for name, window in windows.items():
        network.set_submodule(name, CentralInstanceNorm(network.get_submodule(name), window))
    return network


class SteadyConv3d(nn.Conv3d):
    """A 3-D convolution that oneDNN computes right, and some in a quarter or two thirds of the time.

    Of features narrower than the kernel, as the deepest ones of a small grid are, the weights' gradients in bfloat16
    are in part memory that nothing was written to (PyTorch 2.13 on processors with AVX512-BF16): those are computed in
    float32. PyTorch leaves batches and large images alone to oneDNN, and has a slower way for others. And 8 channels
    are half as fast as 16, see :func:`istn_monai.convolutions.in_twos`.
    """

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *S)``, as ``nn.Conv3d``."""
        if image.device.type != "cpu":
            return super().forward(image)
        if torch.is_autocast_enabled("cpu"):
            if all(n >= k for n, k in zip(image.shape[2:], self.kernel_size, strict=True)):
                return self.usual(image)
            with torch.autocast("cpu", enabled=False):
                return super().forward(image.float())
        return self.alone(image) if self.is_alone(image) else self.usual(image)

    def usual(self, image: Tensor) -> Tensor:
        """Of a batch."""
        return same_size(image, self.weight, self.bias) if is_plain(self) else super().forward(image)

    def is_alone(self, image: Tensor) -> bool:
        """Whether :meth:`alone` is for these."""
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        whole = image.dtype == self.weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
        return plain and whole and len(image) == 1 and values_alone()

    def alone(self, image: Tensor) -> Tensor:
        """Of one image ``(1, C, *S)``."""
        return torch.mkldnn_convolution(  # type: ignore[no-any-return]
            image, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def steady_convolutions(network: nn.Module) -> None:
    """Makes the 3-D convolutions of a network :class:`SteadyConv3d`, in place, weights and names as they are."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            module.__class__ = SteadyConv3d


class SoftClamp(nn.Module):
    """Output activation for representations in [0, 1]: the identity there, and a gentle slope outside.

    A sigmoid would keep the range too, but where a structure fills little of the image, a Dice term drives its inputs
    so far down within one epoch that no gradient comes back, and the representation stays a blob. Without any bound the
    implicit loss (Eq. 2) finds its trivial minimum instead: representations of zero and a warp that throws the
    structures out.

    Args:
        slope: below 0 and above 1.

    Examples:
        >>> SoftClamp()(torch.tensor([-1.0, 0.5, 2.0]))
        tensor([-0.0500,  0.5000,  1.0500])
    """

    def __init__(self, slope: float = 0.05) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return self.slope * x + (1.0 - self.slope) * x.clamp(0.0, 1.0)

    def extra_repr(self) -> str:
        """The slope."""
        return f"slope={self.slope}"


class StructureSoftmax(nn.Module):
    """Output activation for structures that do not overlap: probabilities over them and the background.

    The first channel is the background's, and is left out of what comes: what the others lack to 1 is its probability.

    Examples:
        >>> StructureSoftmax()(torch.zeros(1, 3, 2)).tolist()
        [[[0.3333333432674408, 0.3333333432674408], [0.3333333432674408, 0.3333333432674408]]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, K + 1, *S)`` to ``(B, K, *S)``."""
        return x.softmax(1)[:, 1:]


class Scaled(nn.Module):
    """A last layer that starts as the identity transformation, theta = 0, and leaves it in small steps.

    Adam moves each weight by the learning rate, whatever the gradient. A sum over n inputs, all with the same sign of
    gradient, moves n times as far: theta would be at its bounds after a few steps, where ``tanh`` gives no gradient
    back. So the sum is divided by the square root of n.

    Args:
        layer: a convolution or a linear layer.
        inputs: n; None counts all. Features that hardly differ from place to place count once.

    Examples:
        >>> Scaled(nn.Linear(16, 2))(torch.rand(1, 16)).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, layer: nn.Module, inputs: int | None = None) -> None:
        super().__init__()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        self.layer = layer
        self.factor = (inputs or layer.weight[0].numel()) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return self.layer(x) * self.factor
