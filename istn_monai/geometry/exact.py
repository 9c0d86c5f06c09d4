"""Numbers that hold an image's values exactly."""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 2**24  # up to here float32 holds all whole numbers
EXACT_DOUBLE = 2**53  # and float64
INTERPOLATED = 2**16  # up to here what float32 interpolates between whole numbers is right to a hundredth


def largest(values: Tensor) -> float:
    """The largest absolute value."""
    return max(abs(extreme.item()) for extreme in torch.aminmax(values)) if values.numel() else 0.0


def working(values: Tensor) -> Tensor:
    """Values in float32; in float64 where float32 would round whole numbers, from 2^24 on."""
    wide = values.dtype in (torch.int32, torch.int64, torch.float64)
    return values.double() if wide and largest(values) > EXACT else values.float()


def interpolated(values: Tensor) -> Tensor:
    """Values in the numbers in which they are interpolated: float64 where float32 would show in the result."""
    whole = values.dtype in (torch.int32, torch.int64)
    wide = values.dtype == torch.float64 or (whole and largest(values) > INTERPOLATED)
    return values.double() if wide else values.float()
