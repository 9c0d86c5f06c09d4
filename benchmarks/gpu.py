"""What ``speed.py`` times, on a GPU, with training, large pairs, and the GPU's results against the CPU's.

    python benchmarks/gpu.py [--repeats 7] [--output FILE]

Of the refinement alone of large pairs, one and several at a time, it also gives the share of the bandwidth of a copy
that their steps achieve, were all that they must move read and written once. Takes some minutes.

Everything is in true float32 (TF32 off) where nothing else is said. Writes
``benchmarks/results/gpu_<name of the GPU>.json``, ends with a short table, and fails if a result was wrong. Without a
GPU it says so and does nothing; ``--device cpu --sizes "(32,)" --large_size "(32,40,32)" --steps 2`` tries its ways
without one.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import common
import fire
import speed
import torch
from common import OURS, SEED, Row, random
from monai.bundle import ConfigParser
from torch import Tensor, nn

from istn_monai import BSplineTransformation, DiceMSELoss, ISTNLoss, Warp
from istn_monai.folders import INTENSITIES, find_weights
from istn_monai.levels import Levels
from istn_monai.refinement import Refiner
from istn_monai.weights import own_settings, read_weights

STEPS = 50  # of a refinement, so that figures of several GPUs compare
NO_GPU = "no CUDA device: nothing to measure (benchmarks/speed.py measures the CPU)"
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOSS_TOLERANCES = {"float32": 0.0, "bfloat16": 0.03, "float16": 0.01}  # of the loss, relative
#: CPU and GPU in true float32: voxels, images in [0, 1], and the objective relative to itself
TOLERANCES = {
    "B-spline field": 1e-4,
    "composed field": 1e-3,
    "warp": 1e-4,
    "representation": 1e-3,
    "one pass": 1e-2,
    "refined objective": 0.05,
}


class TrainingStep:
    """A step of the bundle's training, ISTN-i, on a copy of the network, as MONAI's trainer does it with ``amp``.

    Args:
        network: an ISTN.
        image: ``(B, 2C, *S)``.
        label: ``(B, 2K, *S)``.
        dtype: of autocast; None for none.
    """

    def __init__(self, network: nn.Module, image: Tensor, label: Tensor, dtype: torch.dtype | None) -> None:
        self.network = copy.deepcopy(network).train()
        self.image, self.label, self.dtype = image, label, dtype
        self.objective = ISTNLoss("i", DiceMSELoss())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-3, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(image.device.type, enabled=dtype is torch.float16)

    def loss(self) -> Tensor:
        """The loss as it is now."""
        with torch.autocast(self.image.device.type, self.dtype, enabled=self.dtype is not None):
            return self.objective(self.network(self.image), self.label)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(self.loss()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def structures(image: Tensor, groups: int) -> Tensor:
    """SoI for images ``(B, 2, *S)``, all that is bright: ``(B, 2 * groups, *S)``, moving channels, then fixed."""
    sides = image.split(1, dim=1)
    return torch.cat([side > 0.5 + 0.05 * group for side in sides for group in range(groups)], dim=1).float()


def time_training(parser: ConfigParser, repeats: int, device: str, batches: Sequence[int]) -> list[Row]:
    """Rows of a training step at each precision; ``error`` is that of the first loss, relative to float32's."""
    network = parser.get_parsed_content("network").istn
    size, spacing = speed.grid_of(parser)
    precisions = [name for name in PRECISIONS if name != "float16" or device.startswith("cuda")]
    rows = []
    for batch in batches:
        image = torch.cat([speed.smooth_pair(size, spacing, 2 * seed) for seed in range(batch)]).to(device)
        label = structures(image, parser.get_parsed_content("settings").soi_channels)
        steps = {name: TrainingStep(network, image, label, PRECISIONS[name]) for name in precisions}
        losses = {name: step.loss().item() for name, step in steps.items()}
        for name, times in common.measure(steps, repeats, device).items():
            error = abs(losses[name] / losses["float32"] - 1)
            agreement = {"loss": losses[name], "error": error, "tolerance": LOSS_TOLERANCES[name]}
            rows.append({"what": f"training step, batch {batch}", "candidate": name, **times, **agreement})
            print(common.line(rows[-1]), flush=True)
    return rows


def time_large_pair(size: Sequence[int], repeats: int, steps: int, device: str) -> list[Row]:
    """Rows of one pass and refinements of a large pair, by the default network with random weights."""
    torch.manual_seed(SEED)
    network = speed.bundle(device, shipped_weights=False).get_parsed_content("network")
    return speed.time_registration(network, speed.smooth_pair(size).to(device), steps, repeats, device)


def bytes_moved(levels: Levels, size: Sequence[int], channels: int) -> int:
    """What the steps of a refinement of one pair move at least, in float32: if field, warp and similarity are one
    kernel each, and each tensor between them is written once and read once, forward and backward.

    Args:
        levels: of the refinement.
        size: of the grid.
        channels: of all that is warped.
    """
    numbers = 2 * len(size) + 4 * channels  # field: written, read; moving: read; warped: written, read; fixed: read
    voxels = sum(level.steps * math.prod(math.ceil(n / level.stride) for n in size) for level in levels)
    return 4 * 2 * numbers * voxels


def bandwidth(device: str, repeats: int, megabytes: int = 256) -> float:
    """Bytes per second that a copy moves, reading and writing."""
    source = torch.zeros(megabytes * 2**18, device=device)
    target = torch.empty_like(source)
    seconds = common.measure({"copy": lambda: target.copy_(source)}, repeats, device)["copy"]["median"]
    return 2 * 4 * source.numel() / seconds


def refiners(steps: int) -> dict[str, tuple[Path, Refiner]]:
    """By preset the weights whose transformation is refined, and how: the shipped ones, and those without a network.

    The latter take their own number of steps where ``steps`` are those of this script.
    """
    shipped, intensities = find_weights(common.ROOT / "bundle"), find_weights(INTENSITIES)
    own = own_settings(intensities, refined=True)
    levels = [[stride, max(1, n * steps // STEPS), *rest] for stride, n, *rest in own["refine_levels"]]
    without = Refiner(weights=INTENSITIES, learning_rate=own["refine_learning_rate"], levels=levels)
    return {
        "accurate": (shipped, Refiner(steps, weights="accurate", patience=speed.NO_PATIENCE)),
        INTENSITIES: (intensities, without),
    }


def time_refinement(size: Sequence[int], repeats: int, steps: int, device: str, batches: Sequence[int]) -> list[Row]:
    """Rows of the refinement alone of large pairs, with the share of a copy's bandwidth that their steps achieve."""
    copied = bandwidth(device, repeats)
    rows = []
    for preset, (weights, refiner) in refiners(steps).items():
        transformation = read_weights(weights).settings.spatial_transformation().resized(size).to(device)
        levels = refiner.levels_in_turn(transformation)
        for batch in batches:
            pairs = torch.cat([speed.smooth_pair(size, seed=2 * seed) for seed in range(batch)]).to(device)
            call = partial(refiner.register, transformation, *pairs.chunk(2, 1))
            times = common.measure({OURS: call}, repeats, device)[OURS]
            channels = 1 if preset == INTENSITIES else 2  # the image, and the representation, which is the image here
            least = batch * bytes_moved(levels, size, channels)
            name = f"refinement alone, {preset}, steps: {sum(level.steps for level in levels)}, batch {batch}"
            share = {"bytes": least, "copy_bytes_per_s": copied, "share": least / copied / times["median"]}
            rows.append({"what": name, "candidate": OURS, **times, **share})
            print(common.line(rows[-1]), f" {share['share']:.0%} of a copy's {copied / 1e9:.0f} GB/s", flush=True)
    return rows


def outcomes(device: str, steps: int) -> dict[str, Tensor]:
    """What the parts give for one pair on a device, by name."""
    parser = speed.bundle(device)
    network = parser.get_parsed_content("network").istn
    image = speed.smooth_pair(*speed.grid_of(parser)).to(device)
    bspline = BSplineTransformation((64, 48, 56), 1.0, 8.0, max_displacement=None).to(device)
    with torch.no_grad():
        composed = network.transformation(random((1, network.transformation.num_parameters), device))
        results = {
            "B-spline field": bspline(random((1, bspline.num_parameters), device)),
            "composed field": composed,
            "warp": Warp()(image, composed),
            "representation": network.represent(image)[0],
            "one pass": network(image).ddf,
        }
    report = Refiner(steps=steps, patience=speed.NO_PATIENCE)(network, image).reports[0]
    return results | {"refined objective": torch.tensor(report.objective_end, dtype=torch.float64)}


def compare_with_cpu(steps: int, device: str) -> list[Row]:
    """Rows of the GPU's results against the CPU's; TF32 has no tolerance, its errors are for the record."""
    expected = outcomes("cpu", steps)
    rows = []
    for enabled in (False, True):
        with common.tf32(enabled):
            results = outcomes(device, steps)
        for what, tolerance in TOLERANCES.items():
            error = common.largest_difference(results[what], expected[what])
            scale = expected[what].item() if what == "refined objective" else 1.0
            candidate = f"{device}, TF32 {'on' if enabled else 'off'}"
            limit = None if enabled else tolerance
            rows.append(
                {"what": f"{what} against CPU", "candidate": candidate, "error": error / scale, "tolerance": limit}
            )
    print("\n".join(map(common.line, rows)), flush=True)
    return rows


def short_table(result: Row, size: int) -> str:
    """The numbers that matter, in a few lines."""
    own = [row for row in result["rows"] if row["candidate"] == OURS and f" {size}^3" in row["what"]]
    kept = own + [row for row in result["rows"] if "^3" not in row["what"]]
    return "\n".join([result["provenance"]["device"], *map(common.line, kept)])


def main(
    device: str = "cuda",
    repeats: int = 7,
    sizes: tuple[int, ...] = (64, 128, 192),
    large_size: tuple[int, ...] = (160, 192, 224),
    pairs: int = 10,
    steps: int = STEPS,
    batches: tuple[int, ...] = (1, 4),
    output: str | None = None,
) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        print(NO_GPU)
        return
    slug = re.sub(r"\W+", "_", common.device_name(device)).strip("_").lower()
    file = Path(output or common.RESULTS / f"gpu_{slug}.json")
    with common.tf32(False):
        result = speed.benchmark(device, repeats, sizes, pairs, steps)
        for section in (
            partial(compare_with_cpu, steps, device),
            partial(time_training, speed.bundle(device), repeats, device, batches),
            partial(time_large_pair, large_size, repeats, steps, device),
            partial(time_refinement, large_size, repeats, steps, device, batches),
        ):
            common.write(result, file)  # a section that fails does not take the others with it
            result["rows"] += section()
    common.write(result, file)
    shown = speed.shown_size(sizes)
    print("\n" + short_table(result, shown))
    speed.show(result, shown)
    print(f"written: {os.path.relpath(file)}")
    common.must_agree(result["rows"])


if __name__ == "__main__":
    fire.Fire(main)
