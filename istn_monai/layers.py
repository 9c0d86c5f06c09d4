"""What the networks are made of beyond MONAI's own layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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


class AdaptiveAveragePool(nn.Module):
    """PyTorch's ``AdaptiveAvgPool``, in 2-D and 3-D, as one small matrix product for each axis.

    ONNX has no adaptive pooling for sizes that are no multiple of ``output_size``.

    Args:
        output_size: along each axis.

    Example:
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


class SoftClamp(nn.Module):
    """Output activation for representations in [0, 1]: the identity there, and a gentle slope outside.

    A sigmoid would keep the range too, but where a structure fills little of the image, a Dice term drives its inputs
    so far down within one epoch that no gradient comes back, and the representation stays a blob. Without any bound the
    implicit loss (Eq. 2) finds its trivial minimum instead: representations of zero and a warp that throws the
    structures out.

    Args:
        slope: below 0 and above 1.

    Example:
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


class Scaled(nn.Module):
    """A last layer that starts as the identity transformation, theta = 0, and leaves it in small steps.

    Adam moves each weight by the learning rate, whatever the gradient. A sum over n inputs, all with the same sign of
    gradient, moves n times as far: theta would be at its bounds after a few steps, where ``tanh`` gives no gradient
    back. So the sum is divided by the square root of n.

    Example:
        >>> Scaled(nn.Linear(16, 2))(torch.rand(1, 16)).tolist()
        [[0.0, 0.0]]
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        self.layer = layer
        self.factor = layer.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return self.layer(x) * self.factor
