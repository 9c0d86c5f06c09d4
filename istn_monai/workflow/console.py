"""What a long command says: brief lines, bars on a terminal alone, and in a training's folder all of it in a file.

Convention:
    The environment variable ``ISTN_OUTPUT`` is "quiet" (errors and the last lines), "verbose" (also what MONAI's
    engines log) or not set; the commands' ``--quiet`` and ``--verbose`` set it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from istn_monai.workflow.distributed import rank
from istn_monai.workflow.errors import OUTPUT

logger = logging.getLogger(__name__)
LOG = "training.log"
#: loggers whose lines are for those who look for a fault
DETAILED = ("ignite", "istn_monai.inferer", "istn_monai.workflow.checkpoints")
T = TypeVar("T")


def is_quiet() -> bool:
    """Whether nothing but errors and the last line is wanted."""
    return os.environ.get(OUTPUT) == "quiet"


def bars() -> bool:
    """Whether progress bars are drawn: on a terminal, by the first of several processes, and not with --quiet."""
    return sys.stderr.isatty() and rank() == 0 and not is_quiet()


def calm() -> None:
    """Leaves out what MONAI's engines and the refinement log of each step, except with --verbose."""
    for name in DETAILED:
        logging.getLogger(name).setLevel(logging.INFO if os.environ.get(OUTPUT) == "verbose" else logging.WARNING)


def say(text: str) -> None:
    """A line of output, of the first process; where nobody listens any more the work goes on."""
    if rank() > 0 or is_quiet() or sys.stdout is None:
        return
    with suppress(OSError, ValueError):  # a closed pipe, a full disk, a closed file
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def note(text: str, folder: str | Path) -> None:
    """A line of the log in the folder of a training, with the time; a full disk does not end the training."""
    if rank() > 0:
        return
    try:
        with (Path(folder).expanduser() / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")
    except OSError as error:
        logger.warning(f"no line in {LOG}: {error}")


def counted(items: Sequence[T], what: str, unit: str = "pair") -> Iterator[T]:
    """Items one by one, with a bar on a terminal; elsewhere with a line for each tenth of them."""
    if bars():
        yield from tqdm(items, desc=what, unit=unit, disable=not items)
        return
    step = max(1, math.ceil(len(items) / 10))
    for number, item in enumerate(items, 1):
        yield item
        if len(items) > 1 and (number % step == 0 or number == len(items)):
            say(f"{what}: {number} of {len(items)} {unit}s")


@contextmanager
def refining(inferer: Any) -> Iterator[None]:
    """A bar of the refinement's steps on a terminal, while a pair is registered."""
    refiner = getattr(inferer, "refiner", None)
    if refiner is None or not bars():
        yield
        return
    with tqdm(total=refiner.steps, desc="refining", unit="step", leave=False) as bar:
        refiner.on_step = bar.update
        try:
            yield
        finally:
            refiner.on_step = None


def in_words(seconds: float) -> str:
    """A time as people say it.

    Examples:
        >>> in_words(41.3), in_words(372), in_words(5000)
        ('41 s', '6 min', '1 h 23 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def device_in_words(device: torch.device) -> str:
    """A device, and how much of it works."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)
