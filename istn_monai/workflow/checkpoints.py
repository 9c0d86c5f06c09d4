"""Checkpoints of a training: the best network and the last one, written whole; those that do not fit raise an error."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from istn_monai.folders import BEST, LAST
from istn_monai.network_settings import NetworkSettings
from istn_monai.weights import Weights, described, read_weights, save_atomically, warn_if_untrained
from istn_monai.workflow.distributed import barrier, rank

logger = logging.getLogger(__name__)
ELSEWHERE = "choose another --run_name, or another ckpt_dir or output_dir"


def load_checkpoint(file: str | Path, network: nn.Module, device: Any = "cpu") -> Weights:
    """Loads the weights in ``file`` into ``network``; what the file holds. Says so if they are untrained.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not a checkpoint, or one of another network.
    """
    weights = read_weights(file, device)
    weights.load_into(network)
    warn_if_untrained(weights)
    return weights


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What differs among the settings that both have, in words; nothing if all agree."""
    mine = json.loads(json.dumps(mine, default=str))
    names = [name for name in mine if name in theirs and theirs[name] != mine[name]]
    return "; ".join(f"{name}: {theirs[name]!r} in the checkpoint, {mine[name]!r} now" for name in names)


UNTRAINED = (
    "; epoch 0 is the network before training: nothing is learned yet. Train longer (max_epochs), and see whether "
    "initial_alignment brings the structures near to each other"
)


class Checkpoints:
    """Keeps ``model.pt``, the network at its best validation, and ``last.pt``, all that is needed to go on.

    An interrupted training goes on when it is started again with the same settings, from its last whole epoch; others
    are an error at once, and what is there stays. A training of which no epoch is complete holds nothing: one
    with other settings takes its place.

    Nothing is written before the first step has succeeded. Then comes ``last.pt`` of epoch 0; from then on ``model.pt``
    comes before the ``last.pt`` of its epoch. Killed between the two, the epoch is done again, and gives the same.

    Args:
        ckpt_dir: folder of both files.
        network: whose weights are kept.
        settings: of the network; kept with its weights, and compared.
        training: how it is trained; kept, and compared.
        optimizer: its state goes into ``last.pt``; None only looks what is there.
        lr_scheduler: likewise.
        average: of the weights, which ``model.pt`` then holds; None for the network's own.
        inference: how the weights are registered with unless a user says otherwise, see
            :func:`istn_monai.weights.own_settings`; kept, and not compared.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: nn.Module,
        settings: NetworkSettings,
        training: Mapping[str, Any],
        optimizer: Any,
        lr_scheduler: Any,
        average: Any = None,
        inference: Mapping[str, Any] | None = None,
    ) -> None:
        self.best_file = Path(ckpt_dir).expanduser().absolute() / BEST
        self.last_file = self.best_file.with_name(LAST)
        self.network = network
        self.settings = settings
        self.training = dict(training)
        self.inference = dict(inference or {})
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.average = average
        self.best, self.best_epoch = float("-inf"), 0
        #: whole epochs of the training that is there
        self.done = 0
        #: what is written once the first step has succeeded
        self.waiting: dict[Path, Mapping[str, Any]] = {}
        self.starts = not self.last_file.exists()
        if not self.starts:
            last = self.read(self.last_file)
            self.starts = bool(self.other_settings(last)) and self.holds_nothing(last)
            if not self.starts:
                self.check_same_training(last)
                state = last.progress["trainer"]
                self.done = state["iteration"] // state["epoch_length"] if state["iteration"] else 0
                self.recall_best()  # one that cannot be read is told at once
        elif self.best_file.exists():
            raise FileExistsError(
                f"{self.best_file} exists without the {LAST} of a training to go on with; it is left alone: {ELSEWHERE}"
            )

    def read(self, file: Path) -> Weights:
        """A checkpoint of the training that is there.

        Raises:
            ValueError: naming the file and what to do, if no training can go on with it.
        """
        try:
            weights = read_weights(file)
            if file == self.last_file and "trainer" not in weights.progress:
                raise ValueError(f"{file} holds weights alone, not a training to go on with")
        except ValueError as error:
            raise ValueError(f"{error} (to train here, move {file.parent} away first; or {ELSEWHERE})") from error
        return weights

    def holds_nothing(self, last: Weights) -> bool:
        """Whether no epoch of a training is complete, so that its files may be replaced."""
        if last.progress["trainer"].get("iteration") != 0:
            return False
        if not self.best_file.exists():
            return True
        best = self.read(self.best_file)
        return best.untrained and best.description.get("training") == last.description.get("training")

    def other_settings(self, weights: Weights) -> str:
        """What differs between the training of a checkpoint and this one, in words; nothing if all agree."""
        theirs = weights.settings
        network = {} if theirs is None else theirs.state_dict()
        what = [
            differing(self.settings.state_dict(), network),
            differing(self.training, weights.description.get("training", {})),
        ]
        return "; ".join(filter(None, what))

    def check_same_training(self, weights: Weights) -> None:
        """ValueError if a checkpoint is of a training with other settings than this one."""
        words = self.other_settings(weights)
        if words:
            raise ValueError(f"{weights.file} was made with other settings ({words}): {ELSEWHERE}")

    def weights(self, network: nn.Module, result: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """A network's state dictionary with its description.

        Raises:
            ValueError: if weights are NaN or infinite, which are never written.
        """
        state = network.state_dict()
        broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise ValueError(f"the network's weights are not finite, in {broken[0]}: {self.advice()}")
        description = {"settings": self.settings.state_dict(), "training": self.training, "result": result or {}}
        return described(state, description | ({"inference": self.inference} if self.inference else {}))

    def advice(self) -> str:
        """What to do where a training has left the finite numbers, for the end of an error."""
        rate, dtype = self.training.get("learning_rate"), self.training.get("dtype")
        tries = ["a lower learning_rate" + ("" if rate is None else f" than {rate}")]
        tries += ["training_dtype float32"] if dtype == "bfloat16" else []
        kept = f"; {self.last_file} keeps the last whole epoch" if self.last_file.exists() else ""
        return f"try {' or '.join(tries)}, or look for odd values in the data; choose another output_dir for it{kept}"

    def resume(self, trainer: Engine) -> None:
        """Takes up the training that ``last.pt`` holds; without one, starts it."""
        barrier()  # all have looked before the first process writes
        if self.starts:
            self.waiting[self.last_file] = deepcopy(self.progress(trainer))
            return
        max_epochs = trainer.state.max_epochs
        progress = load_checkpoint(self.last_file, self.network, trainer.state.device).progress
        if self.average is not None:
            self.average.load_state_dict(progress.get("average", {}))
        self.optimizer.load_state_dict(progress["optimizer"])
        self.lr_scheduler.load_state_dict(progress["lr_scheduler"])
        if isinstance(self.lr_scheduler, LambdaLR):  # the saved rate is that of the old end, if the end has moved
            scheduler = self.lr_scheduler
            for group, base, factor in zip(
                self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(scheduler.last_epoch)
        trainer.load_state_dict(progress["trainer"])
        trainer.state.max_epochs = max_epochs
        self.recall_best()
        logger.info(f"going on after epoch {trainer.state.epoch} of {self.last_file}")
        if trainer.state.epoch >= max_epochs:
            trainer.terminate()

    def recall_best(self) -> None:
        """Takes up the best validation so far, if ``model.pt`` is of this training."""
        best = self.read(self.best_file) if self.best_file.exists() else None
        if best is not None and not self.other_settings(best):
            result = best.description.get("result", {})
            self.best = result.get("validation_dice", self.best)
            self.best_epoch = result.get("epoch", self.best_epoch)

    def progress(self, trainer: Engine) -> Mapping[str, Any]:
        """What ``last.pt`` holds."""
        return {
            "model": self.weights(self.network),
            **({"average": self.average.state_dict()} if self.average is not None else {}),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "trainer": dict(trainer.state_dict()),
        }

    def begin(self) -> None:
        """After the first step of a training: writes what has waited for it, ``last.pt`` first."""
        for file, content in self.waiting.items():
            self.save(content, file)
        self.waiting.clear()

    def save_last(self, trainer: Engine) -> None:
        """Writes ``last.pt``."""
        self.save(self.progress(trainer), self.last_file)

    def save_best(self, evaluator: Engine) -> None:
        """Writes ``model.pt`` if the evaluator's key metric is better than ever."""
        metric = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if metric > self.best:
            self.best, self.best_epoch = metric, evaluator.state.epoch
            kept = self.network if self.average is None else self.average.network
            content = self.weights(kept, {"validation_dice": metric, "epoch": self.best_epoch})
            if self.waiting:
                self.waiting[self.best_file] = deepcopy(content)
            else:
                self.save(content, self.best_file)

    def save(self, content: Mapping[str, Any], file: Path) -> None:
        """Writes a file; of several processes, which all hold the same, the first one does."""
        if rank() == 0:
            save_atomically(content, file)

    def report(self) -> str:
        """Where the best network is, for a last line of output."""
        untrained = "" if self.best_epoch else UNTRAINED
        return f"best validation Dice {self.best:.4f}, epoch {self.best_epoch}, checkpoint {self.best_file}{untrained}"
