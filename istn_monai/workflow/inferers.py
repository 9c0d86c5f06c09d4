"""Inferers of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

from istn_monai.networks import ISTNOutput


class AutocastInferer(SimpleInferer):
    """Runs an ISTN's convolutions in a shorter number format, on any device; its outputs are float32.

    MONAI's ``amp`` is for CUDA alone. The field and the warps stay in float32 by themselves.

    Args:
        dtype: "float32" for no change, "bfloat16" (it needs no scaling of gradients): about 1.7 times faster on CPUs
            that support it.
    """

    def __init__(self, dtype: str = "float32") -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"training_dtype must be 'float32' or 'bfloat16', got {dtype!r}")
        self.dtype = getattr(torch, dtype)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> ISTNOutput:
        """The network's output for ``(B, 2C, *S)``."""
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output: ISTNOutput = super().__call__(inputs, network, *args, **kwargs)
        return ISTNOutput(*(tensor.float() for tensor in output))
