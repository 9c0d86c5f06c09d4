"""The further rules by which a fingerprint becomes settings: transformation and training; and all choices together.

Each of the small functions is one rule, and sees what was decided before it, see :mod:`istn_monai.planning.grid`. Their
numbers come from the bundle's hand-made settings and from docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from istn_monai.planning.fingerprint import Fingerprint
from istn_monai.planning.grid import (
    VOXELS_THICK,
    Choice,
    RegistrationGrid,
    Structures,
    choose_alignment,
    choose_grid,
    choose_structures,
    plain,
    points_width,
    thinnest,
)

ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
MAX_DISPLACEMENT = 0.4  # of a level, as a fraction of its control spacing: train.json's, which cannot fold
MOST_LEVELS = 4
REFERENCE_VOXELS = 48 * 64 * 48
STEPS = {"bspline": 4000, "affine": 1000}  # of training, on a grid of REFERENCE_VOXELS; half of it at least
ENOUGH_PAIRS = 1000  # that need no augmentation
AFFINE_DICE = 0.97  # that the structures' own affine registration reaches if their shapes are the same


def rounded(value: float) -> float:
    """The nearest round number, by ratio.

    Examples:
        >>> rounded(6.2), rounded(17.0), rounded(0.9)
        (6, 15, 1.0)
    """
    power = 10.0 ** math.floor(math.log10(value))
    nearest = min(ROUND, key=lambda number: abs(math.log(value / power / number)))
    result = round(nearest * power, 6)
    return int(result) if power >= 1 and result == int(result) else result


@dataclass(frozen=True)
class Estimate:
    """Of a training: a simple model of time and memory.

    Attributes:
        memory_gb: of the process, in float32, with all pairs in memory.
        minutes: on one CPU core.
    """

    memory_gb: float
    minutes: float

    def text(self) -> str:
        """A sentence."""
        return (
            f"Estimated for training: {self.memory_gb:.1f} GB of memory, and about {self.minutes:.0f} minutes on one "
            "CPU core in float32 (a simple model of voxels and steps; less with bfloat16 or on a GPU)."
        )


def choices(found: Fingerprint) -> tuple[Choice, ...]:
    """All settings that depend on a fingerprint."""
    soi = choose_structures(found)
    alignment = choose_alignment(found, soi.keys)
    grid = choose_grid(found, soi, alignment.value)
    transformation = choose_transformation(found, soi, alignment.value, grid)
    batch = choose_batch(found, grid)
    training = choose_training(found, grid, batch.value, transformation[0].value)
    first = found.first
    settings = [
        Choice("in_channels", first.channels, "of all images that were read"),
        Choice("soi_labels", soi.labels if soi.labels is not None else [], soi.reason),
        *([Choice("soi_points", soi.points, soi.reason)] if soi.points else []),
        alignment,
        Choice("spacing", plain(grid.spacing), grid.reasons[0]),
        Choice("spatial_size", list(grid.size), grid.reasons[1]),
        *([Choice("points_width", points_width(grid), "half width of a landmark's map: two voxels or more")]
          if soi.points else []),
        *transformation,
        choose_loss(soi),
        batch,
        *training,
    ]  # fmt: skip
    return tuple(settings)


# --- transformation --------------------------------------------------------------------------------------------------


def choose_transformation(found: Fingerprint, soi: Structures, alignment: str, grid: RegistrationGrid) -> list[Choice]:
    """Affine where structures differ by no more than that; else B-spline levels."""
    reached = found.affine_dice(alignment, soi.labels if isinstance(soi.labels, list) else [])
    words = f"after the structures' own affine registration Dice is {reached:.2f} ({AFFINE_DICE} would be enough)"
    if reached >= AFFINE_DICE:
        words = f"the structures' own affine registration reaches Dice {reached:.2f}: their shapes are the same"
        return [Choice("transformation", "affine", words)]
    if math.isnan(reached):
        words = "landmarks of different subjects"
    return [Choice("transformation", "bspline", words), choose_levels(found, soi, alignment, grid)]


def choose_levels(found: Fingerprint, soi: Structures, alignment: str, grid: RegistrationGrid) -> Choice:
    """Control spacings in mm: the finest is as wide as the thinnest structure, each next one twice that.

    Until all levels together move as far as structures lie apart, twice, for their ends move more than their
    centroids, and the coarsest is half as wide as the structures are long, so that it moves them as a whole.
    """
    thin = thinnest(found, soi.keys)
    width = 2 * points_width(grid) if thin is None else thin
    finest_level = rounded(max(width, VOXELS_THICK * max(grid.spacing)))
    apart, length = found.apart(alignment, soi.keys, 90), found.length(soi.keys)
    levels = [finest_level]
    while len(levels) < MOST_LEVELS and (MAX_DISPLACEMENT * sum(levels) < 2 * apart or levels[0] < length / 2):
        levels.insert(0, 2 * levels[0])
    total = MAX_DISPLACEMENT * sum(levels)
    reason = (
        f"the finest follows what is {width:.1f} mm thick, but no less than {VOXELS_THICK} voxels; the coarsest moves "
        f"structures {length:.0f} mm long; together they move up to {total:.0f} mm, centroids lie {apart:.1f} mm apart"
    )
    return Choice("control_spacing", levels, reason)


# --- training --------------------------------------------------------------------------------------------------------


def choose_loss(soi: Structures) -> Choice:
    """ISTN-e for label maps; ISTN-i for what the results show with it alone."""
    if isinstance(soi.labels, list) and soi.labels:
        return Choice(
            "loss", "e", "label maps: ISTN-e learns faster than ISTN-i, and is ahead in all results with labels"
        )
    return Choice("loss", "i", "maps and landmarks are tested with ISTN-i")


def choose_batch(found: Fingerprint, grid: RegistrationGrid) -> Choice:
    """Small grids in one batch, as many as have the voxels of a usual grid, one at least."""
    number = max(1, min(10, round(REFERENCE_VOXELS * 1.1 / grid.voxels), found.pairs["training"] // 10))
    return Choice("batch_size", number, f"{number * grid.voxels:,} voxels in a step")


def choose_training(found: Fingerprint, grid: RegistrationGrid, batch: int, transformation: str) -> list[Choice]:
    """Epochs, augmentation, number format."""
    pairs = found.pairs["training"]
    slower = min(1.0, max(0.5, REFERENCE_VOXELS / (grid.voxels * batch)))
    steps = STEPS[transformation] * slower
    epochs = max(5, min(400, round(steps * batch / pairs)))
    words = f"{math.ceil(pairs / batch) * epochs} steps: {STEPS[transformation]} on a small grid, fewer on a large one"
    augment = pairs < ENOUGH_PAIRS
    fast = bfloat16_is_fast()
    return [
        Choice("max_epochs", epochs, words),
        Choice("augment", augment, f"{pairs} training pairs; from {ENOUGH_PAIRS} on it is not needed"),
        Choice("training_dtype", "bfloat16" if fast else "float32",
               f"this machine has {'' if fast else 'no '}hardware for bfloat16"),
    ]  # fmt: skip


def bfloat16_is_fast() -> bool:
    """Whether this machine's hardware computes in bfloat16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def estimate(decided: Sequence[Choice], found: Fingerprint) -> Estimate:
    """Memory and time of the settings.

    Measured on grids of 160 000 to 290 000 voxels with the default networks, on a CPU: a training step takes 7
    microseconds a voxel, and activations some 3.3 kB, and .1 kB for each SoI channel.
    """
    settings = {choice.name: choice.value for choice in decided}
    voxels = math.prod(settings["spatial_size"])
    labels = settings["soi_labels"]
    soi = (1 if labels == "none" else len(labels)) + len(settings.get("soi_points", []))
    pairs = found.pairs["training"] + found.pairs["validation"]
    cache = pairs * voxels * 2 * (settings["in_channels"] + soi) * 4
    step = voxels * settings["batch_size"]
    memory = 0.5e9 + step * (3300 + 100 * soi) + cache
    steps = settings["max_epochs"] * math.ceil(found.pairs["training"] / settings["batch_size"])
    return Estimate(round(memory / 1e9, 1), round(steps * step * 7e-6 / 60))
