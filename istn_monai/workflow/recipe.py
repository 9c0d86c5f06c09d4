"""What a long training has beyond the paper's: ITN first, average of weights, contrasts, refined validation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import SimpleInferer
from monai.transforms import RandBiasFieldd, RandGaussianSmoothd, RandSimulateLowResolutiond, Transform
from torch import Tensor, nn

from istn_monai.directions import check_invertible
from istn_monai.io.hashes import file_hash
from istn_monai.levels import USUAL_STEPS
from istn_monai.losses import DiceCrossEntropyLoss
from istn_monai.network_settings import NetworkSettings
from istn_monai.networks import ISTN, DisplacementNetwork, ISTNOutput
from istn_monai.refinement import Refiner
from istn_monai.transforms.contrast import RandContrastMapd, RandImageFromLabelsd
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS
from istn_monai.weights import read_weights
from istn_monai.workflow.inferers import AutocastInferer
from istn_monai.workflow.settings import given
from istn_monai.workflow.training import TrainingLoss

WARM_UP = 10  # steps in which an average follows its network closely


def inverse_if_symmetric(network: DisplacementNetwork, symmetric: bool) -> Callable[[Tensor], Tensor] | None:
    """For a symmetric training theta to the ddf of the other way round, see :class:`istn_monai.ISTNLoss`; else None.

    Raises:
        ValueError: if the transformation's inverse is not known.
    """
    if not symmetric:
        return None
    check_invertible(network.istn.transformation)
    return network.istn.transformation.inverse


def default_itn_similarity(settings: NetworkSettings) -> nn.Module | None:
    """Dice and cross-entropy for an ITN that gives probabilities; None, the other terms' similarity, for any other."""
    return DiceCrossEntropyLoss() if settings.segments else None


#: what counts for nothing where an ITN learns alone
IDLE_ALONE = ("loss_weights", "regularization", "itn_epochs")


class ITNFirstHandler:
    """Trainer handler: in the first epochs the ITN learns by itself, from Eq. 1's terms that need no transformation.

    A spatial transformer that sees representations of structures from its first step on has an easier task. Where there
    is none (``stn_def`` identity), the ITN learns by itself in all of them.

    Args:
        epochs: how many.
        loss: of the training.
        inferer: of the training.
        settings: of the network.
        max_epochs: of the training.

    Raises:
        ValueError: if there is no ITN, or fewer epochs altogether.
    """

    def __init__(
        self, epochs: int, loss: TrainingLoss, inferer: AutocastInferer, settings: NetworkSettings, max_epochs: int
    ) -> None:
        check_epochs(epochs, max_epochs, settings)
        warn_of_idle(settings)
        self.epochs = max_epochs if settings.starts_at_identity else epochs
        self.loss, self.inferer = loss, inferer

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.loss.itn_alone = self.inferer.itn_alone = engine.state.epoch <= self.epochs


def check_epochs(epochs: int, max_epochs: int, settings: NetworkSettings) -> None:
    """ValueError if there is no ITN that could learn by itself, or fewer epochs altogether, or nothing learns."""
    if settings.starts_at_identity and settings.loss in ("u", "s"):
        raise ValueError(
            f"stn_def identity leaves nothing to train with loss {settings.loss!r}, whose ITN does not learn: choose "
            "loss e or i; --model intensities registers without a network"
        )
    if epochs and not settings.has_itn:
        raise ValueError(f"itn_epochs is for loss e or i, which have an ITN, got loss {settings.loss!r}")
    if epochs > max_epochs:
        raise ValueError(f"itn_epochs are the first of max_epochs {max_epochs}, got {epochs}")


def warn_of_idle(settings: NetworkSettings) -> None:
    """A warning where a config says what has no effect, as the ITN learns alone."""
    idle = [name for name in IDLE_ALONE if given(name) not in (None, 0)] if settings.starts_at_identity else []
    if idle:
        told = f"no effect with stn_def identity, where the ITN learns alone: {', '.join(idle)}"
        warnings.warn(told, stacklevel=3)


class WeightAverage:
    """An exponential moving average of a network's weights, as a network of its own.

    Args:
        network: that is trained.
        decay: how much of the average stays at each step; 0 for no average: ``network`` itself is shown and kept.

    Attributes:
        network: the average.
    """

    def __init__(self, network: nn.Module, decay: float = 0.0) -> None:
        self.trained, self.decay = network, decay
        self.network = copy.deepcopy(network).requires_grad_(False) if decay else network

    @torch.no_grad()
    def update(self, engine: Engine) -> None:
        """After a step of a trainer."""
        decay = min(self.decay, engine.state.iteration / (engine.state.iteration + WARM_UP))
        for average, weight in zip(self.network.parameters(), self.trained.parameters(), strict=True):
            average.lerp_(weight, 1 - decay)
        for own, buffer in zip(self.network.buffers(), self.trained.buffers(), strict=True):
            own.copy_(buffer)  # statistics of batch norm are an average already

    def state_dict(self) -> Mapping[str, Any]:
        """What ``last.pt`` holds of it; nothing if there is no average."""
        return self.network.state_dict() if self.decay else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        if self.decay:
            self.network.load_state_dict(state)


class AverageHandler:
    """Trainer handler: keeps a :class:`WeightAverage`; comes before validation and checkpoints."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        if self.average.decay:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.average.update)


def validation_steps(settings: NetworkSettings, steps: int | None = None) -> int:
    """Steps of a refinement that validation is measured after.

    Args:
        settings: of the network.
        steps: None for none; or, where a refinement does all (``stn_def`` identity), as many as usual.

    Raises:
        ValueError: if they are none there, where one pass tells nothing.
    """
    if steps is None:
        steps = USUAL_STEPS if settings.starts_at_identity else 0
    if settings.starts_at_identity and not steps:
        raise ValueError(
            "val_refine_steps must be at least 1 with stn_def identity, whose one pass moves nothing, got 0"
        )
    return steps


class ValidationInferer(SimpleInferer):
    """One pass of a network, or a refinement after it, whose result comes in the form of a network's output.

    Args:
        refine_steps: 0 for one pass.
    """

    def __init__(self, refine_steps: int) -> None:
        super().__init__()
        self.refiner = Refiner(refine_steps, weights="accurate") if refine_steps else None

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> ISTNOutput:
        """The output for ``(B, 2C, *S)``."""
        if self.refiner is None:
            output: ISTNOutput = super().__call__(inputs, network, *args, **kwargs)
            return output
        result = self.refiner(checked_istn(network), inputs)
        return ISTNOutput(inputs, result.moving, result.fixed, result.theta, result.ddf)


def checked_istn(network: nn.Module) -> ISTN:
    """The network, an ISTN."""
    if not isinstance(network, ISTN):
        raise ValueError(f"val_refine_steps needs an ISTN, got {type(network).__name__}")
    return network


def network_from(settings: NetworkSettings, file: str | None = None) -> DisplacementNetwork:
    """A network to train.

    Args:
        settings: of the network.
        file: checkpoint whose weights it begins with, of a network of the same layers; None for random weights.

    Raises:
        ValueError: if the checkpoint's network has other layers.
    """
    network = settings.network()
    if file is not None:
        weights = read_weights(file)
        try:
            network.load_state_dict(dict(weights.state))  # without what it says: settings may be others
        except RuntimeError as error:
            what = " ".join(str(error).split())[:300]
            raise ValueError(f"initial_weights {file} do not fit the network of these settings: {what}") from error
    return network


def weights_name(file: str | None) -> str | None:
    """Name and short hash of a checkpoint, wherever it lies; None for none."""
    return None if file is None else f"{Path(file).name} {str(file_hash(file))[:8]}"


def contrasts(name: str, settings: NetworkSettings, prob: float = 0.3) -> list[Transform]:
    """Random changes of the images of a pair, each by itself, after which their contrast means nothing.

    Args:
        name: "own", for none; "random", by curves; "synthetic", drawn from labels; "any", by curves, and drawn from
            labels after that: an image as it is, by a curve, or drawn.
        settings: of the network.
        prob: probability of another contrast, for each image.
    """
    if name == "own":
        return []
    drawn, mapped = name in ("synthetic", "any"), name in ("random", "any")
    if drawn and not settings.soi_labels:
        raise ValueError(f"contrast {name} draws images from label maps: give soi_labels, or contrast random")
    structures = len(settings.soi_labels or [])
    drawing: dict[str, Any] = {"prob": prob, "allow_missing_keys": True, "channels": structures}
    transforms: list[Transform] = []
    for image, label in zip(IMAGE_KEYS, LABEL_KEYS, strict=True):
        transforms += [
            *([RandContrastMapd(image, prob=prob)] if mapped else []),
            *([RandImageFromLabelsd(image, label, **drawing)] if drawn else []),
            RandBiasFieldd(image, prob=0.3, coeff_range=(0.0, 0.2)),
            RandGaussianSmoothd(image, prob=0.2, sigma_x=(0.25, 1.0), sigma_y=(0.25, 1.0), sigma_z=(0.25, 1.0)),
            RandSimulateLowResolutiond(image, prob=0.2, zoom_range=(0.5, 1.0)),
        ]
    return transforms
