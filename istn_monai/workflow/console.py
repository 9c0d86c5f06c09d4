"""What a long command says: brief lines, bars on a terminal alone, and in a training's folder all of it in a file.

Where no bar is drawn, :class:`istn_monai.pace.Pace` says how far a work is.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from istn_monai.pace import OUTPUT, Pace, is_quiet
from istn_monai.transforms.keys import IMAGE_KEYS
from istn_monai.workflow.distributed import rank

logger = logging.getLogger(__name__)
LOG = "training.log"
EVERY_STEPS = 30.0  # seconds between two lines of a training, a refinement or an evaluation
#: loggers whose lines are for those who look for a fault
DETAILED = ("ignite", "istn_monai.inferer", "istn_monai.workflow.checkpoints")
T = TypeVar("T")


def bars() -> bool:
    """Whether progress bars are drawn: on a terminal, by the first of several processes, and not with --quiet."""
    return sys.stderr.isatty() and rank() == 0 and not is_quiet()


def calm() -> None:
    """Leaves out what MONAI's engines and the refinement log of each step, except with --verbose.

    Also what ignite logs of an error, an interruption among them: it raises the same, and that has its own line.
    """
    for name in DETAILED:
        level = logging.CRITICAL if name == "ignite" else logging.WARNING
        logging.getLogger(name).setLevel(logging.INFO if os.environ.get(OUTPUT) == "verbose" else level)


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
    """Items one by one, with a bar on a terminal; elsewhere with a line before each tenth of them, or a slow one."""
    if bars():
        yield from tqdm(items, desc=what, unit=unit, disable=not items)
        return
    step = max(1, math.ceil(len(items) / 10))
    last = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        if len(items) > 1 and (number % step == 0 or now - last >= EVERY_STEPS):
            say(f"{what}: {unit} {number + 1} of {len(items)}")
            last = now
        yield item


def begin_pair(files: Mapping[str, Any], inferer: Any, device: torch.device) -> None:
    """Says which pair is registered now, and what takes its time."""
    moving, fixed = (Path(str(files[key])).name for key in IMAGE_KEYS)
    say(f"registering {moving} to {fixed}: {way_of(inferer)} on {device_in_words(device)}")


def way_of(inferer: Any) -> str:
    """How an inferer registers, in words."""
    steps = getattr(getattr(inferer, "refiner", None), "steps", 0)
    return f"{steps} steps of refinement" if steps else "one pass"


@contextmanager
def refining(inferer: Any) -> Iterator[None]:
    """How far the refinement is while a pair is registered: a bar of its steps on a terminal, elsewhere lines."""
    refiner = getattr(inferer, "refiner", None)
    if refiner is None:
        yield
        return
    with tqdm(total=refiner.steps, desc="refining", unit="step", leave=False, disable=not bars()) as bar:
        done, pace = count(0), Pace("refining", refiner.steps, every=EVERY_STEPS, say=say)
        # before the first step the network has run
        refiner.on_step = bar.update if bars() else lambda: pace(number) if (number := next(done)) else pace.start()
        try:
            yield
        finally:
            refiner.on_step = None


def device_in_words(device: torch.device) -> str:
    """A device, and how much of it works."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)
