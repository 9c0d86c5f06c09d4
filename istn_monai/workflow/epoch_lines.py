"""A line for each epoch of a training: how it went, how good the network is, how long it will take."""

from __future__ import annotations

import math
import time
from pathlib import Path

from ignite.engine import Engine, Events

from istn_monai.pace import in_words
from istn_monai.workflow.checkpoints import Checkpoints
from istn_monai.workflow.console import note, say


class EpochLineHandler:
    """Trainer handler: a line for each epoch, on the terminal and in ``training.log``.

    Args:
        output_dir: folder of the training.
        evaluator: the engine of the validation, whose key metric is shown.
        checkpoints: that know the best epoch; comes after what validates.
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine, checkpoints: Checkpoints) -> None:
        self.folder, self.evaluator, self.checkpoints = output_dir, evaluator, checkpoints
        self.begin = self.epoch_begin = 0.0
        self.first = 0

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.line)

    def start(self, trainer: Engine) -> None:
        """Says where it begins."""
        self.begin = self.epoch_begin = time.monotonic()
        self.first = trainer.state.epoch
        if self.first:
            most = trainer.state.max_epochs
            done = f"trained already for {self.first} epochs, max_epochs is {most}"
            said = f"going on after epoch {self.first} of {most}" if self.first < most else done
        else:
            said = f"before training  {self.validation(trainer)}".rstrip()
        self.tell(said)

    def line(self, trainer: Engine) -> None:
        """Says how an epoch went."""
        now, epoch, epochs = time.monotonic(), trainer.state.epoch, trainer.state.max_epochs
        took, self.epoch_begin = now - self.epoch_begin, now
        left = (now - self.begin) / (epoch - self.first) * (epochs - epoch)
        loss = trainer.state.metrics.get("train_loss", math.nan)
        parts = [f"epoch {epoch:>{len(str(epochs))}}/{epochs}", f"loss {loss:.4f}", self.validation(trainer)]
        parts += [in_words(took), f"left {in_words(left)}" if left else ""]
        self.tell("  ".join(part for part in parts if part))

    def tell(self, text: str) -> None:
        """On the terminal and in the log."""
        say(text)
        note(text, self.folder)

    def validation(self, trainer: Engine) -> str:
        """What the validation of this epoch gave; nothing where there was none."""
        state = self.evaluator.state
        if state.epoch != trainer.state.epoch or state.key_metric_name not in state.metrics:
            return ""
        said = f"validation Dice {state.metrics[state.key_metric_name]:.4f}"
        best = f" (best {self.checkpoints.best:.4f}, epoch {self.checkpoints.best_epoch})"
        return said + best if trainer.state.epoch else said
