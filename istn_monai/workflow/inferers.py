"""Inferers of the bundle, and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_tensor
from torch import Tensor

from istn_monai.inferer import RefineInferer
from istn_monai.levels import checked_levels
from istn_monai.network_settings import NetworkSettings, none_or
from istn_monai.networks import ISTN, ISTNOutput
from istn_monai.refinement import LEARNING_RATES
from istn_monai.representations import Representation
from istn_monai.transforms.keys import GUIDANCE

PAPER_RATE, PAPER_STEPS = 0.2, 50  # of control points with the paper's objective, and the steps below which it is less


def default_rate(
    transformation: str, steps: int, levels: Sequence[Sequence[int]] | None = None, weights: Any = "none"
) -> float | None:
    """The bundle's learning rate of theta: of the paper's objective; None, the refiner's own, of one with weights.

    In fewer steps than usual control points take smaller ones: 10 at the full rate end where they began.

    Args:
        transformation: its name.
        steps: of the refinement; none is as one.
        levels: in their place; None for none.
        weights: of the objective; "none" for the paper's.
    """
    if none_or(weights) is not None:
        return None
    levels = none_or(levels)
    steps = steps if levels is None else sum(level.steps for level in checked_levels(levels))
    if transformation not in ("bspline", "svf"):
        return LEARNING_RATES["theta"]
    return PAPER_RATE * min(1.0, max(1, steps) / PAPER_STEPS)


def one_pass(representation: Any) -> Inferer:
    """What evaluates a network's one pass: maps in the place of the ITN's output come as guidance."""
    return SimpleInferer() if Representation.of(representation).is_itn else RefineInferer(steps=0)


def maps_of(settings: NetworkSettings) -> int | None:
    """How many channels of one image the spatial transformer network takes; None where there is none."""
    return None if settings.starts_at_identity else settings.stn_channels // 2


def itn_dtype(name: str, device: Any) -> torch.dtype | None:
    """What an image transformer network computes in, outside of training, see :class:`istn_monai.ISTN`.

    Args:
        name: "float32", "bfloat16", or "auto", which is the latter on processors that multiply it: it takes three
            quarters of the time there, and changes the Dice of 40 pairs by .0001 in the mean.
        device: where it computes.
    """
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    quick = name == "auto" and torch.device(device).type == "cpu" and native()
    return torch.bfloat16 if quick or name == "bfloat16" else None


def prepare_guided(batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **_: Any) -> Any:
    """What an evaluator of MONAI's hands to an inferer of a batch of pairs: ``image``, and the guidance, if any."""
    image = batchdata["image"].to(device=device, non_blocking=non_blocking)
    guidance = {name: convert_to_tensor(value, track_meta=False) for name, value in batchdata.get(GUIDANCE, {}).items()}
    return image, None, (), {"guidance": guidance} if guidance else {}


def prepare_training(batchdata: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **_: Any) -> Any:
    """What a trainer of MONAI's gives the network, ``image``, and the loss: a mapping with ``label`` and ``mask``."""
    given = {
        name: batchdata[name].to(device=device, non_blocking=non_blocking)
        for name in ("image", "label", "mask")
        if name in batchdata
    }
    return given.pop("image"), given


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
        #: whether the ITN alone is wanted, see :class:`istn_monai.workflow.recipe.ITNFirstHandler`
        self.itn_alone = False

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> ISTNOutput:
        """The network's output for ``(B, 2C, *S)``."""
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            if self.itn_alone and isinstance(network, ISTN):  # DDP wants a gradient of all weights, so it gets all
                output = represented(network, inputs)
            else:
                output = super().__call__(inputs, network, *args, **kwargs)
        return ISTNOutput(*(tensor.float() for tensor in output))


def represented(network: ISTN, image: Tensor) -> ISTNOutput:
    """The representations of ``(B, 2C, *S)`` and the identity, without the spatial transformer network."""
    moving, fixed = network.represent(image)
    transformation = network.transformation.resized(image.shape[2:])
    theta = moving.new_zeros(len(image), transformation.num_parameters)
    ddf = moving.new_zeros(len(image), transformation.spatial_dims, *image.shape[2:])
    return ISTNOutput(image, moving, fixed, theta, ddf)
