"""Handlers and small functions that the bundle's training needs beyond MONAI's own."""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import IterationEvents
from monai.handlers import ValidationHandler
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from istn_monai.adam import cosine_to_zero
from istn_monai.geometry.sampling import warp
from istn_monai.losses import Counts, DiceMSELoss, ISTNLoss, Target, annotated, where
from istn_monai.network_settings import NetworkSettings, none_or
from istn_monai.networks import ISTNOutput
from istn_monai.pace import Pace
from istn_monai.workflow.checkpoints import Checkpoints, load_checkpoint
from istn_monai.workflow.console import EVERY_STEPS, bars, say
from istn_monai.workflow.datasets import seed_of
from istn_monai.workflow.distributed import gathered, rank
from istn_monai.workflow.errors import one_line
from istn_monai.workflow.run_lock import release

TERM = "train_"  # before the name of a term, among a trainer's metrics


def cosine_schedule(optimizer: torch.optim.Optimizer, epochs: int, batches: int) -> LambdaLR:
    """A learning rate that falls to 0 along a cosine over all batches of all epochs."""
    return LambdaLR(optimizer, functools.partial(cosine_to_zero, steps=epochs * batches))


def default_similarity(loss: str) -> DiceMSELoss | None:
    """Dice and squared error for what is compared with structures; None, the squared error, for images ("u")."""
    return None if loss == "u" else DiceMSELoss()


class TrainingLoss(ISTNLoss):
    """An :class:`istn_monai.ISTNLoss` of the bundle's settings, whose terms a :class:`TermsHandler` follows.

    Args:
        variant: "u", "s", "e" or "i".
        similarity: a loss of two images, None, or the word none.
        regularization: a loss of the ddf, None, or the word none.
        settings: of the network; None for one whose ITN learns.
        options: as of :class:`istn_monai.ISTNLoss`.
    """

    def __init__(
        self,
        variant: str,
        similarity: Any = None,
        regularization: Any = None,
        settings: NetworkSettings | None = None,
        **options: Any,
    ) -> None:
        # without annotation, a representation that is given takes the place of the image
        variant = "r" if settings is not None and settings.frozen and variant == "u" else variant
        super().__init__(variant, none_or(similarity), none_or(regularization), **options)
        if "structures" not in self.weights:
            warnings.warn(f"loss_weights {self.weights} have no structures: labels teach nothing", stacklevel=2)
        #: whether the ITN learns by itself, see :class:`istn_monai.workflow.recipe.ITNFirstHandler`
        self.itn_alone = False
        #: of the last batch, without gradients
        self.latest: dict[str, Tensor] = {}

    def forward(self, output: ISTNOutput, label: Target | None = None) -> Tensor:
        """The loss of a batch."""
        terms = self.of_the_itn(output, label) if self.itn_alone else self.terms(output, label)
        self.latest = {name: value.detach() for name, value in terms.items()}
        return torch.stack(list(terms.values())).sum()

    def of_the_itn(self, output: ISTNOutput, label: Target | None) -> dict[str, Tensor]:
        """The terms that need no transformation; theta has a gradient, of 0, where all weights must have one (DDP)."""
        batch = label if isinstance(label, Mapping) else {"label": label}
        terms = self.segmentation(output, batch.get("label"), Counts(output.ddf, batch.get("mask")))
        return terms | {"itn_moving": terms["itn_moving"] + 0 * output.theta.sum()}


class TermsHandler:
    """Trainer handler: the mean of each term of the loss over an epoch, among the trainer's metrics.

    From there they go to TensorBoard and into ``training.csv``. A loss of one term has nothing to add.

    Args:
        loss: a :class:`TrainingLoss`; of another one nothing is known.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self.sums: dict[str, Tensor] = {}
        self.batches = 0

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer; comes before what writes metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.report)

    def start(self) -> None:
        """Begins an epoch."""
        self.sums, self.batches = {}, 0

    def add(self) -> None:
        """Takes in a batch."""
        for name, value in getattr(self.loss, "latest", {}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.batches += 1

    def report(self, engine: Engine) -> None:
        """Adds the means, over all processes, to the trainer's metrics, as ``train_NAME``."""
        everyone = gathered(({name: value.item() for name, value in self.sums.items()}, self.batches))
        batches = sum(number for _, number in everyone)
        if len(self.sums) > 1:
            for name in self.sums:
                engine.state.metrics[TERM + name] = sum(sums[name] for sums, _ in everyone) / batches


def loss_of(output: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> float:
    """The loss of a trainer's output, which may be a list as MONAI's engines give it."""
    return (output if isinstance(output, Mapping) else output[0])[CommonKeys.LOSS].item()


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


def run_training(trainer: Engine) -> None:
    """Runs a trainer; under ``python -m monai.bundle`` a foreseen failure ends the program in one line.

    Other processes may train in its folder afterwards.
    """
    try:
        with one_line():
            trainer.run()
    finally:
        release()


class SeedHandler:
    """Trainer handler: seeds all generators when an epoch begins, so that none depends on what was before.

    What a network draws (dropout) is then the same after an interruption, which is always one between epochs.

    Args:
        seed: any whole number.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = seed_of(self.seed, rank(), engine.state.epoch)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


class FiniteHandler:
    """Trainer handler: stops at the first field, loss or gradient with NaN or infinity, before it reaches the weights.

    The backward pass of PyTorch's ``grid_sample`` crashes in 2-D at coordinates that are NaN.

    Args:
        checkpoints: of the training, which know what to try.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer; comes before MONAI's ``StatsHandler``, which would print a traceback."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_output)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.check_gradients)
        engine.add_event_handler(Events.EXCEPTION_RAISED, raise_error)

    def check_output(self, engine: Engine) -> None:
        """Before the backward pass."""
        output = engine.state.output
        prediction = output[CommonKeys.PRED]
        values = {"loss": output[CommonKeys.LOSS], "theta": prediction.theta, "displacement field": prediction.ddf}
        self.check(engine, torch.stack([value.isfinite().all() for value in values.values()]), list(values))

    def check_gradients(self, engine: Engine) -> None:
        """Before the optimizer's step; Adam squares them, so their sum of squares must be finite too."""
        gradients = [weight.grad for weight in engine.network.parameters() if weight.grad is not None]
        norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).square().sum()
        self.check(engine, norm.isfinite()[None], ["gradient"])

    def check(self, engine: Engine, finite: Tensor, names: Sequence[str]) -> None:
        """ValueError that names the first that is not finite, and where."""
        broken = [name for name, whole in zip(names, finite.tolist(), strict=True) if not whole]
        if broken:
            where = f"in epoch {engine.state.epoch}, iteration {engine.state.iteration}"
            raise ValueError(f"training stopped, its {broken[0]} is not finite {where}: {self.checkpoints.advice()}")


def raise_error(error: BaseException) -> None:
    """Raises an error at once; MONAI's ``StatsHandler`` prints a traceback first, also of one that says all."""
    raise error


class OutputListHandler:
    """Trainer handler: makes the output of an iteration a list, as MONAI's does that takes batches apart.

    MONAI's MLflow tracking wants the loss from such a list.
    """

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        engine.state.output = [engine.state.output]


class ResumeHandler:
    """Trainer handler: goes on with ``last.pt`` at the start."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer; comes after the ``LrScheduleHandler`` and before the ``ValidateHandler``."""
        engine.add_event_handler(Events.STARTED, self.checkpoints.resume)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.checkpoints.begin)


class ValidateHandler(ValidationHandler):
    """Trainer handler: validates before the first epoch and after each ``interval`` of them, not when it goes on.

    Args:
        validator: the evaluator.
        interval: in epochs.
    """

    def __init__(self, validator: Engine, interval: int = 1) -> None:
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        super().attach(engine)
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Validates the network before training."""
        if engine.state.epoch == 0:
            self(engine)


class KeepLastHandler:
    """Trainer handler: writes ``last.pt`` after each epoch; comes after all that belongs to an epoch."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
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
    """Trainer handler: how far an epoch is, and the loss: a bar on a terminal, elsewhere a line now and then."""

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        if bars():
            bar = ProgressBar(desc="training")
            bar.attach(engine, output_transform=lambda output: {"loss": loss_of(output)})
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.step)

    def start(self, engine: Engine) -> None:
        """Begins an epoch."""
        self.before = engine.state.iteration
        self.pace = Pace(f"epoch {engine.state.epoch}", engine.state.epoch_length, every=EVERY_STEPS, say=say)

    def step(self, engine: Engine) -> None:
        """After a step."""
        self.pace(engine.state.iteration - self.before, f", loss {loss_of(engine.state.output):.4f}")
