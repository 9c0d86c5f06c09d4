"""Convolutions in less time than PyTorch takes, with the same results; those of a U-Net's way up without any gradient.

Between a transposed convolution and the convolution behind it lies nothing but a concatenation, so together they are
linear: the convolution's kernel for the encoder's features is applied to these alone, and the rest is one transposed
convolution of 4 x 4 x 4 voxels. That takes half of the time of both, and less memory, as nothing is concatenated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets.basic_unet import UpCat
from torch import Tensor, nn
from torch.nn import functional

from istn_monai.geometry.sampling import values_alone

LEAST = 2**16  # voxels from which on it is faster: kernels are multiplied at each call


def is_plain(convolution: nn.Conv3d) -> bool:
    """Whether a convolution is of 3 x 3 x 3 voxels, keeps the size, and sees zeros beyond the border."""
    own = convolution.kernel_size, convolution.stride, convolution.padding, convolution.dilation
    return own == ((3, 3, 3), *[(1, 1, 1)] * 3) and convolution.groups == 1 and convolution.padding_mode == "zeros"


def narrow(image: Tensor, weight: Tensor) -> bool:
    """Whether :func:`in_twos` is for these: to 8 channels, which fill half of a register of AVX-512."""
    return (
        values_alone()
        and weight.shape[0] == 8 <= weight.shape[1]
        and image.shape[-1] % 2 == 0
        and image.is_contiguous(memory_format=torch.channels_last_3d)
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def in_twos(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution, see :func:`is_plain`, of neighbors along the last axis at once, in two thirds of the time.

    They are channels of every second voxel: with channels last in memory these lie as those of all voxels do. Four taps
    take the place of three, in registers that are full.

    Args:
        image: ``(B, C, *S)``, channels last, as what comes, ``(B, O, *S)``; the last axis is even.
        weight: ``(O, C, 3, 3, 3)``.
        bias: ``(O,)``, or None.
    """
    kernel = torch.cat([functional.pad(weight, side) for side in ((0, 1), (1, 0))])
    kernel = kernel.contiguous(memory_format=torch.channels_last_3d)
    bias = None if bias is None else bias.repeat(2)
    twos = functional.conv3d(image, kernel, bias, stride=(1, 1, 2), padding=1)
    return twos.movedim(1, -1).unflatten(-1, (2, -1)).flatten(-3, -2).movedim(-1, 1)


def same_size(image: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution, see :func:`is_plain`, in the quicker way."""
    conv3d = functional.conv3d
    return in_twos(image, weight, bias) if narrow(image, weight) else conv3d(image, weight, bias, padding=1)


class JoinedUpCat(UpCat):
    """MONAI's block; where no gradient is wanted, its two first layers are one, with the same result."""

    def forward(self, x: Tensor, x_e: Tensor | None) -> Tensor:
        """``(B, C, *S)`` and the encoder's features ``(B, E, *T)``, to ``(B, O, *T)``."""
        if not self.joins(x, x_e):
            return super().forward(x, x_e)  # type: ignore[no-any-return]
        first, convolution, up = self.convs.conv_0, self.convs.conv_0.conv, self.upsample.deconv
        joined = up_and_convolved(x, x_e, up.weight, up.bias, convolution.weight, convolution.bias)
        return self.convs.conv_1(first.adn(joined))  # type: ignore[no-any-return]

    def joins(self, x: Tensor, x_e: Tensor | None) -> bool:
        """Whether :func:`up_and_convolved` is for these."""
        if not values_alone() or x_e is None or x.ndim != 5 or x.device.type != "cpu":
            return False
        up, convolution = getattr(self.upsample, "deconv", None), self.convs.conv_0.conv
        passed = self.upsample, up, self.convs, self.convs.conv_0, convolution
        if any(module._forward_hooks or module._forward_pre_hooks for module in passed if module is not None):
            return False  # they would not be called: weight_norm, and whoever looks at features
        return (
            isinstance(up, nn.ConvTranspose3d)
            and (up.kernel_size, up.stride, up.padding, up.output_padding) == (*[(2, 2, 2)] * 2, *[(0, 0, 0)] * 2)
            and up.groups == 1
            and isinstance(convolution, nn.Conv3d)
            and is_plain(convolution)
            and all(2 * n == m for n, m in zip(x.shape[2:], x_e.shape[2:], strict=True))
            and x_e[0, 0].numel() >= LEAST
            and x_e.is_contiguous(memory_format=torch.channels_last_3d)
        )


def up_and_convolved(
    x: Tensor, encoded: Tensor, up: Tensor, up_bias: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """The convolution of encoded features and of a transposed convolution, without any gradient.

    Args:
        x: ``(B, C, *S)``.
        encoded: ``(B, E, *T)``, T twice S.
        up: kernel ``(C, M, 2, 2, 2)`` of the transposed convolution of stride 2.
        up_bias: its bias ``(M,)``, or None.
        weight: kernel ``(O, E + M, 3, 3, 3)`` of the convolution.
        bias: its bias ``(O,)``, or None.

    Returns:
        ``(B, O, *T)``.
    """
    layout = torch.channels_last_3d
    own, other = (part.contiguous(memory_format=layout) for part in weight.tensor_split([encoded.shape[1]], 1))
    result = same_size(encoded, own, bias)
    with torch.autocast("cpu", enabled=False):
        kernel = functional.conv3d(up, other, padding=2)
        constant = None if up_bias is None else of_constant(up_bias, other, encoded.shape[2:])
    result += doubled(x, kernel)
    return result if constant is None else result.add_(constant)


def doubled(x: Tensor, kernel: Tensor) -> Tensor:
    """``functional.conv_transpose3d(x, kernel, stride=2, padding=1)``, in half of the time.

    Two voxels along an axis, the second of one place and the first of the next, see the same two places: so all eight
    are channels of one convolution by 2 x 2 x 2, which are then put side by side.

    Args:
        x: ``(B, C, *S)``.
        kernel: ``(C, O, 4, 4, 4)``.

    Returns:
        ``(B, O, *T)``, T twice S; channels last.
    """
    channels, outputs = kernel.shape[:2]
    places = kernel.view(channels, outputs, *[2] * 6).flip(2, 4, 6).permute(3, 5, 7, 1, 0, 2, 4, 6)
    places = places.reshape(8 * outputs, channels, 2, 2, 2).contiguous(memory_format=torch.channels_last_3d)
    both = functional.conv3d(x, places, padding=1).movedim(1, -1).unflatten(-1, (2, 2, 2, outputs))
    both = both.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return both[:, 1:-1, 1:-1, 1:-1].movedim(-1, 1)


def of_constant(values: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """The convolution of an image ``(1, M, *size)`` that is the same everywhere, ``(M,)``, and 0 beyond its border.

    ``(1, O, *size)``, channels last: that of 3 x 3 x 3 voxels has all that there is, of corners, edges, faces and the
    inside.
    """
    places = same_size(values.view(1, -1, 1, 1, 1).expand(1, -1, 3, 3, 3), weight, None).movedim(1, -1)
    for axis, n in enumerate(size, 1):
        voxels = torch.arange(n)
        places = places.index_select(axis, (voxels > 0).int() + (voxels == n - 1).int())
    return places.movedim(-1, 1)
