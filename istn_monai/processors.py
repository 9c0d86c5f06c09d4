"""What a command takes of the machine: libraries, memory, and the processors that nothing else keeps busy."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

LOAD = Path("/proc/loadavg")  # Linux: three means, then "running/all" of this moment
LOOKS, PAUSE = 5, 0.01  # what runs at each of them is busy, what comes and goes is not; seconds
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # environment: how OpenMP's threads wait for each other
SPINS = "10000"  # about 10 microseconds, after which a thread sleeps
TRIM, MMAP = -1, -3  # glibc's mallopt: how much freed memory a process keeps, and from which size on a block is apart
KEPT = 2**29, 2**25  # bytes of both; by itself glibc comes to 2**26 and 2**25
MALLOC = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # environment: what the user has set


def running(file: Path = LOAD) -> int | None:
    """How many threads of the machine run at this moment, this one included; None where that is not said."""
    try:
        return int(file.read_text(encoding="ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return None


def free_processors(processors: int) -> int:
    """How many of so many processors nothing else keeps busy; at least one."""
    looks = []
    for _ in range(LOOKS):
        looks.append(running())
        time.sleep(PAUSE)
    busy = min((look for look in looks if look is not None), default=1) - 1
    return max(1, processors - max(busy, 0))


def use_free_processors(short: bool = True) -> None:
    """Sets PyTorch's threads for a command of seconds; ``OMP_NUM_THREADS`` goes before. Longer ones keep all.

    Threads of one product wait for each other: beside another busy process on two processors, 50 steps of a refinement
    took 0.92 s with two threads and 0.24 s with one.
    """
    import torch

    if short and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), free_processors(os.cpu_count() or 1)))


def wait_briefly() -> None:
    """Lets OpenMP's threads sleep soon while they wait for each other, unless the environment says how they wait.

    By default they keep their processors busy meanwhile. Beside another busy process on two of them, a training step of
    two threads took 11.8 s so, and 1.6 s like this; on a quiet machine 0.69 and 0.66 s. It counts for what is imported
    later: OpenMP reads the environment when torch loads it.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ[WAITING[1]] = SPINS


def keep_memory() -> None:
    """Lets the process keep up to half a GB of what it frees for what comes next, unless the environment says how much.

    By default glibc hands memory back as soon as it can, and Linux gives it again page by page, as zeros: a tenth of
    the time of a registration of 48 x 64 x 48 voxels, and of a training step. Other systems have other ways, and are
    left alone.
    """
    if sys.platform != "linux" or any(name in os.environ for name in MALLOC):
        return
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in zip((TRIM, MMAP), KEPT, strict=True):
            mallopt(parameter, value)


def load_libraries(short: bool = False) -> None:
    """Imports torch and MONAI without garbage collections, which take a third of the time and find nothing.

    What was loaded is left out of later ones too. A short command takes the processors that are free; the threads of a
    longer one do not keep others waiting.
    """
    if not short:  # a refinement of a second is quicker if they do, by a seventh
        wait_briefly()
    gc.disable()
    import monai  # noqa: F401

    gc.freeze()
    gc.enable()
    use_free_processors(short)
