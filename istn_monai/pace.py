"""How far a long work is: a line now and then, where no bar is drawn.

Convention:
    The environment variable ``ISTN_OUTPUT`` is "quiet" (errors and the last lines), "verbose" (also what MONAI's
    engines log) or not set; the commands' ``--quiet`` and ``--verbose`` set it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

OUTPUT = "ISTN_OUTPUT"
EVERY = 20.0  # seconds between two lines, at least
T = TypeVar("T")


def is_quiet() -> bool:
    """Whether nothing but errors and the last line is wanted."""
    return os.environ.get(OUTPUT) == "quiet"


def tell(text: str) -> None:
    """A line of output, at once; where nobody listens any more the work goes on."""
    if not is_quiet() and sys.stdout is not None:
        with suppress(OSError, ValueError):  # a closed pipe, a full disk, a closed file
            print(text, flush=True)


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


class Pace:
    """Says how far a work is and how long it takes still, not more often than is of use.

    Args:
        what: is done, the beginning of the lines.
        total: of its steps.
        unit: what a step is.
        every: seconds between two lines, at least.
        say: prints a line.
    """

    def __init__(
        self, what: str, total: int, unit: str = "step", every: float = EVERY, say: Callable[[str], None] = tell
    ) -> None:
        self.what, self.total, self.unit, self.every, self.say = what, total, unit, every, say
        self.start()

    def start(self) -> None:
        """Counts from now on: what came before was something else."""
        self.begin = self.last = time.monotonic()

    def __call__(self, done: int, more: str = "") -> None:
        """After so many steps; ``more`` is said of them."""
        now = time.monotonic()
        if now - self.last < self.every or not 0 < done < self.total:
            return
        self.last = now
        left = (now - self.begin) / done * (self.total - done)
        self.say(f"{self.what}: {self.unit} {done} of {self.total}{more}, about {in_words(left)} left")


def paced(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """Items one by one, with a line that begins, and further ones as :class:`Pace` has them."""
    tell(f"{what}: {len(items)} {unit}s")
    pace = Pace(what, len(items), unit)
    for done, item in enumerate(items, 1):
        yield item
        pace(done)
