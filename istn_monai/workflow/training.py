"""Handlers and small functions that the bundle's training needs beyond MONAI's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from istn_monai.geometry.sampling import warp
from istn_monai.losses import DiceMSELoss, annotated, where
from istn_monai.networks import ISTNOutput
from istn_monai.refinement import cosine_to_zero
from istn_monai.workflow.checkpoints import Checkpoints, load_checkpoint


def cosine_schedule(optimizer: torch.optim.Optimizer, epochs: int, batches: int) -> LambdaLR:
    """A learning rate that falls to 0 along a cosine over all batches of all epochs."""
    return LambdaLR(optimizer, functools.partial(cosine_to_zero, steps=epochs * batches))


def default_similarity(loss: str) -> DiceMSELoss | None:
    """Dice and squared error for what is compared with structures; None, the squared error, for images ("u")."""
    return None if loss == "u" else DiceMSELoss()


def loss_of(output: Mapping[str, Any]) -> float:
    """The loss of an engine's output."""
    return output[CommonKeys.LOSS].item()


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its convolutions' weights in channels-last order: a third faster on CPUs, the same numbers.

    Weights are moved in place, as by ``Module.to``, which wants to be told 2-D or 3-D; images need no change.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in network.parameters():
        if weight.ndim in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.ndim])
    return network


def warped_and_fixed_soi(output: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Binary SoI of an engine's output, warped moving and fixed, ``(B, K, *S)`` each, for a Dice metric."""
    moving, fixed = torch.as_tensor(output[CommonKeys.LABEL]).chunk(2, dim=1)
    prediction: ISTNOutput = output[CommonKeys.PRED]
    # a channel that is empty in either image is empty in both: MONAI's Dice leaves it out
    known = annotated(moving) & annotated(fixed)
    warped_and_fixed = where(known, warp(moving, prediction.ddf), fixed)
    warped_soi, fixed_soi = ((soi > 0.5).float() for soi in warped_and_fixed)
    return warped_soi, fixed_soi


class ResumeHandler:
    """Trainer handler: goes on with ``last.pt`` at the start and writes it after each epoch."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer; comes after the ``LrScheduleHandler`` and before the ``ValidationHandler``."""
        engine.add_event_handler(Events.STARTED, self.checkpoints.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.checkpoints.save_last)


class KeepBestHandler:
    """Evaluator handler: writes ``model.pt`` at the best key metric."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.checkpoints.save_best)


class LoadHandler:
    """Loads a checkpoint into the network before an engine starts; see :func:`load_checkpoint`."""

    def __init__(self, file: str | Path, network: nn.Module) -> None:
        self.file = file
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        load_checkpoint(self.file, self.network, engine.state.device)


class ProgressHandler:
    """Trainer handler: a progress bar with the loss."""

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        bar = ProgressBar(desc="training")
        bar.attach(engine, output_transform=lambda output: {"loss": loss_of(output)})
