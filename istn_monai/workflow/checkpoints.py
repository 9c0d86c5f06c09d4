"""Checkpoints of a training: the best network and the last one, written whole, and refused where they do not fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from istn_monai.folders import BEST, LAST
from istn_monai.network_settings import NetworkSettings
from istn_monai.weights import Weights, described, read_weights, save_atomically
from istn_monai.workflow.distributed import barrier, rank

logger = logging.getLogger(__name__)


def load_checkpoint(file: str | Path, network: nn.Module, device: Any = "cpu") -> Weights:
    """Loads the weights in ``file`` into ``network``; what the file holds.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not a checkpoint, or one of another network.
    """
    weights = read_weights(file, device)
    weights.load_into(network)
    return weights


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What differs among the settings that both have, in words; nothing if all agree."""
    mine = json.loads(json.dumps(mine, default=str))
    names = [name for name in mine if name in theirs and theirs[name] != mine[name]]
    return "; ".join(f"{name}: {theirs[name]!r} in the checkpoint, {mine[name]!r} now" for name in names)


class Checkpoints:
    """Keeps ``model.pt``, the network at its best validation, and ``last.pt``, all that is needed to go on.

    An interrupted training goes on when it is started again with the same settings; with others it is refused at
    once, and what is there stays.

    Args:
        ckpt_dir: folder of both files.
        network: whose weights are kept.
        settings: of the network; kept with its weights, and compared.
        training: how it is trained; kept, and compared.
        optimizer: its state goes into ``last.pt``.
        lr_scheduler: likewise.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: nn.Module,
        settings: NetworkSettings,
        training: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
    ) -> None:
        self.best_file = Path(ckpt_dir).expanduser().absolute() / BEST
        self.last_file = self.best_file.with_name(LAST)
        self.network = network
        self.settings = settings
        self.training = dict(training)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.best, self.best_epoch = float("-inf"), 0
        if self.last_file.exists():
            self.check_same_training(read_weights(self.last_file))
        elif self.best_file.exists():
            raise FileExistsError(
                f"{self.best_file} exists without the {LAST} of a training to go on with; it is left alone: choose "
                "another ckpt_dir (or output_dir)"
            )

    def check_same_training(self, weights: Weights) -> None:
        """ValueError if a checkpoint is of a training with other settings than this one."""
        theirs = weights.settings
        network = {} if theirs is None else theirs.state_dict()
        what = [
            differing(self.settings.state_dict(), network),
            differing(self.training, weights.description.get("training", {})),
        ]
        if any(what):
            words = "; ".join(filter(None, what))
            raise ValueError(
                f"{weights.file} was made with other settings ({words}): choose another ckpt_dir (or output_dir)"
            )

    def weights(self, result: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """The network's state dictionary with its description."""
        description = {"settings": self.settings.state_dict(), "training": self.training, "result": result or {}}
        return described(self.network.state_dict(), description)

    def resume(self, trainer: Engine) -> None:
        """Takes up the training that ``last.pt`` holds; without one, starts it."""
        starts = not self.last_file.exists()
        barrier()  # all have looked before the first process writes
        if starts:
            self.save_last(trainer)  # before the first validation writes model.pt: both belong to this training
            return
        max_epochs = trainer.state.max_epochs
        progress = load_checkpoint(self.last_file, self.network, trainer.state.device).progress
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
        torch.manual_seed(torch.initial_seed() + trainer.state.epoch)  # or the first epochs' order would come again
        if self.best_file.exists():
            result = read_weights(self.best_file).description.get("result", {})
            self.best = result.get("validation_dice", self.best)
            self.best_epoch = result.get("epoch", self.best_epoch)
        logger.info(f"going on after epoch {trainer.state.epoch} of {self.last_file}")
        if trainer.state.epoch >= max_epochs:
            trainer.terminate()

    def save_last(self, trainer: Engine) -> None:
        """Writes ``last.pt``."""
        progress = {
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "trainer": dict(trainer.state_dict()),
        }
        self.save({"model": self.weights(), **progress}, self.last_file)

    def save_best(self, evaluator: Engine) -> None:
        """Writes ``model.pt`` if the evaluator's key metric is better than ever."""
        metric = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if metric > self.best:
            self.best, self.best_epoch = metric, evaluator.state.epoch
            self.save(self.weights({"validation_dice": metric, "epoch": self.best_epoch}), self.best_file)

    def save(self, content: Mapping[str, Any], file: Path) -> None:
        """Writes a file; of several processes, which all hold the same, the first one does."""
        if rank() == 0:
            save_atomically(content, file)

    def report(self) -> str:
        """Where the best network is, for a last line of output."""
        untrained = "" if self.best_epoch else "; epoch 0 is the network before training: nothing is learned yet"
        return f"best validation Dice {self.best:.4f}, epoch {self.best_epoch}, checkpoint {self.best_file}{untrained}"
