"""Work in several processes, as ``torchrun`` starts them: who does what, and how the results come together.

The overlays ``multi_gpu_train.json`` and ``multi_gpu_evaluate.json`` call this; in one process all of it does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # the first process may prepare data while the others wait


def started() -> bool:
    """Whether the processes are connected."""
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """Number of this process, 0 for the first."""
    return distributed.get_rank() if started() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if started() else int(os.environ.get("WORLD_SIZE", 1))


def process_device() -> str:
    """The device of this process: a GPU of its own, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def start(device: str) -> None:
    """Connects the processes that ``torchrun`` started, by nccl on GPUs and gloo on CPUs."""
    if "RANK" not in os.environ:
        raise ValueError(
            "a multi_gpu config needs torchrun, which says how many processes there are: "
            "torchrun --standalone --nproc_per_node=2 -m monai.bundle run ..."
        )
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    if not started():
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)


def stop() -> None:
    """Ends the connection."""
    if started():
        distributed.destroy_process_group()


@contextmanager
def connected() -> Iterator[None]:
    """Connects the processes that ``torchrun`` started, while it lasts; nothing for a single one."""
    if world_size() > 1 and not started():
        start(process_device())
    try:
        yield
    finally:
        stop()


def check_started(overlay: str) -> None:
    """ValueError in one of several processes that are not connected: each would write the same files."""
    if world_size() > 1 and not started():
        raise ValueError(f"there are {world_size()} processes that know nothing of each other: add {overlay}")


def barrier() -> None:
    """Waits until all processes are here."""
    if started():
        distributed.barrier()


def first_process_first(action: Callable[[], T]) -> T:
    """What ``action`` gives; the others do it when the first has done, and find its files."""
    if rank() > 0:
        barrier()
    result = action()
    if rank() == 0:
        barrier()
    return result


def gathered(own: Any) -> list[Any]:
    """What each process gives, in their order, in all of them."""
    if not started():
        return [own]
    everyone = [None] * world_size()
    distributed.all_gather_object(everyone, own)
    return everyone
