"""Checkpoints: written whole, and refused where they do not fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from istn_monai.workflow.distributed import barrier, rank
from istn_monai.workflow.settings import Settings

logger = logging.getLogger(__name__)
BEST, LAST = "model.pt", "last.pt"


def save_atomically(content: Mapping[str, Any], file: Path) -> None:
    """Writes a checkpoint beside its place, then moves it there: an interruption leaves the old one whole.

    Of several processes, which all hold the same, the first writes.
    """
    if rank() > 0:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    torch.save(dict(content), part)
    os.replace(part, file)


def read_checkpoint(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """What a checkpoint holds, or a ValueError that names the file."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint that can be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint, a dictionary with 'model', but a {type(content).__name__}")
    return content


def load_checkpoint(file: str | Path, network: nn.Module, settings: Settings, device: Any = "cpu") -> dict[str, Any]:
    """Loads the weights in ``file`` into ``network``.

    Args:
        file: written by :class:`Checkpoints`, or a plain state dictionary.
        network: ``network_def``, see :class:`istn_monai.networks.DisplacementNetwork`.
        settings: the network's; a checkpoint made with others is refused, naming both.
        device: to load to.

    Returns:
        All that the checkpoint holds.
    """
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train first, or set ckpt_dir to the folder with {BEST}")
    content = read_checkpoint(path, device)
    content = content if "model" in content else {"model": content}
    settings.check(content, path)
    try:
        network.load_state_dict(content["model"])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} does not fit the network that the settings describe: {error}") from error
    return content


def provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of itself: settings, epoch, validation metric; for a report."""
    return {key: content[key] for key in ("settings", "epoch", "validation") if key in content}


class Checkpoints:
    """Keeps ``model.pt``, the network at its best validation, and ``last.pt``, all that is needed to go on.

    An interrupted training goes on when it is started again with the same settings; with others it is refused at
    once, and what is there stays.

    Args:
        ckpt_dir: folder of both files.
        network: whose weights are kept.
        settings: kept with them, and compared.
        optimizer: its state goes into ``last.pt``.
        lr_scheduler: likewise.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        network: nn.Module,
        settings: Settings,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
    ) -> None:
        self.best_file = Path(ckpt_dir).expanduser().absolute() / BEST
        self.last_file = self.best_file.with_name(LAST)
        self.network = network
        self.settings = settings
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.best = float("-inf")
        if self.last_file.exists():
            settings.check(read_checkpoint(self.last_file), self.last_file, resume=True)
        elif self.best_file.exists():
            raise FileExistsError(
                f"{self.best_file} exists without the {LAST} of a training to go on with; it is left alone: choose "
                "another ckpt_dir (or output_dir)"
            )

    def weights(self) -> dict[str, Any]:
        """What both files hold."""
        return {"model": self.network.state_dict(), "settings": self.settings.state_dict()}

    def resume(self, trainer: Engine) -> None:
        """Takes up the training that ``last.pt`` holds; without one, starts it."""
        starts = not self.last_file.exists()
        barrier()  # all have looked before the first process writes
        if starts:
            self.save_last(trainer)  # before the first validation writes model.pt: both belong to this training
            return
        max_epochs = trainer.state.max_epochs
        content = load_checkpoint(self.last_file, self.network, self.settings, trainer.state.device)
        self.optimizer.load_state_dict(content["optimizer"])
        self.lr_scheduler.load_state_dict(content["lr_scheduler"])
        if isinstance(self.lr_scheduler, LambdaLR):  # the saved rate is that of the old end, if the end has moved
            scheduler = self.lr_scheduler
            for group, base, factor in zip(
                self.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(scheduler.last_epoch)
        trainer.load_state_dict(content["trainer"])
        trainer.state.max_epochs = max_epochs
        torch.manual_seed(torch.initial_seed() + trainer.state.epoch)  # or the first epochs' order would come again
        if self.best_file.exists():
            self.best = read_checkpoint(self.best_file)["validation"]
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
        save_atomically(self.weights() | progress, self.last_file)

    def save_best(self, evaluator: Engine) -> None:
        """Writes ``model.pt`` if the evaluator's key metric is better than ever."""
        metric = float(evaluator.state.metrics[evaluator.state.key_metric_name])
        if metric > self.best:
            self.best = metric
            save_atomically(self.weights() | {"validation": metric, "epoch": evaluator.state.epoch}, self.best_file)

    def report(self) -> str:
        """Where the best network is, for a last line of output."""
        return f"best validation Dice {self.best:.4f}, checkpoint {self.best_file}"
