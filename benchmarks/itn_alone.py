"""Trains the ITN of ``any_contrast.pt`` further, by itself, and joins it with the STN of the default weights.

    python benchmarks/itn_alone.py train own OUT.pt --start FILE [--steps 5000]
    python benchmarks/itn_alone.py train any OUT.pt --start OUT_OF_OWN.pt --steps 2000 --learning_rate 0.0006
    python benchmarks/itn_alone.py join OUT_OF_ANY.pt BEFORE.pt CHECKPOINT.pt

A training goes on where it was stopped. An image of the training cases is sampled once, from its own voxels, after a
random affine map (mirrored half of the time), B-splines and a shift. ``own`` changes its intensities as scanners do:
gamma, scale, bias field, blur, noise. ``any`` first maps half of the images by a random curve, an inversion in a third
of these, and aims at the mean of the labels and of what the two ITNs that know one contrast, the one of ``own`` and the
default's, see in the image as it was: so structures look alike whatever the contrast. Some 1 s a step of two images on
one core with bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import fire
import numpy as np
import torch
from contrast import dice
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation, ScaleIntensityRangePercentiles
from objective import Timed, refiner_of
from speed import DATA
from torch import Tensor, nn
from torch.nn import functional

from istn_monai.io.datalist import read_datalist
from istn_monai.registration import Registration
from istn_monai.weights import described, read_weights, save_atomically
from istn_monai.workflow.evaluation import Evaluation
from istn_monai.workflow.recipe import WeightAverage

SIZE = (48, 64, 48)
EVERY = 500  # steps between validations
REUSED, KEPT = 0.6, 500  # of the samples with a teacher's answer: how often one is taken again, and how many are kept
Case = tuple[Tensor, Tensor]


def cases(split: str) -> list[Case]:
    """Images ``(1, 1, *S)`` in [0, 1] and their two structures ``(1, 2, *S)``, in voxels of 1 mm."""
    pairs = read_datalist(DATA / "pairs_1000.json", [split])[split]
    files = sorted({(pair[f"{side}_image"], pair[f"{side}_label"]) for pair in pairs for side in ("moving", "fixed")})
    load = Compose([LoadImage(image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None)])
    scale = ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)
    found = []
    for image, label in files:
        values = load(label).as_tensor().round()
        structures = torch.cat([values == number for number in (1, 2)]).float()
        found.append((scale(load(image)).as_tensor()[None], structures[None]))
    return found


def places(size: Sequence[int]) -> Tensor:
    """Of voxels of 1 mm, ``(*S, 3)``, in mm from their middle."""
    return torch.stack(torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in size], indexing="ij"), -1)


def sampled(values: Tensor, points: Tensor) -> Tensor:
    """Values ``(1, C, *S)`` at points ``(*T, 3)``, mm from their middle; 0 beyond."""
    unit = points * 2 / torch.tensor(values.shape[2:], dtype=torch.float32)
    return functional.grid_sample(values, unit.flip(-1)[None], align_corners=False)


GRID = places(SIZE)


class Draws:
    """Random images ``(1, 1, *SIZE)`` with what is to be seen in them ``(1, 2, *SIZE)``.

    Args:
        known: the training cases.
        teacher: what it sees in an image of its own contrast; None where contrasts do not change.
        rng: of all that is random.
    """

    def __init__(self, known: list[Case], teacher: Callable[[Tensor], Tensor] | None, rng: np.random.Generator) -> None:
        self.known, self.teacher, self.rng = known, teacher, rng
        self.kept: list[Case] = []

    def __call__(self) -> Case:
        if self.teacher is None:
            image, structures = self.moved()
        else:
            image, structures = self.answered(self.teacher)
            image = self.by_curve(image) if self.rng.random() < 0.5 else image
        return self.changed(image), structures

    def moved(self) -> Case:
        """A case on the grid, moved at random."""
        image, structures = self.known[self.rng.integers(len(self.known))]
        both = sampled(torch.cat([image, structures], 1), self.points())
        return both[:, :1], both[:, 1:]

    def answered(self, teacher: Callable[[Tensor], Tensor]) -> Case:
        """Likewise, with the mean of the labels and the teacher's answer; or one that was kept."""
        few, full = len(self.kept) < KEPT // 3, len(self.kept) >= KEPT
        if few or not (full or self.rng.random() < REUSED):
            image, structures = self.moved()
            self.kept.append((image.half(), ((structures + teacher(image)) / 2).half()))
            number = len(self.kept) - 1
        else:
            number = int(self.rng.integers(len(self.kept)))
        image, structures = self.kept[number]
        return image.float(), structures.float()

    def points(self) -> Tensor:
        """Where the grid's voxels are sampled, ``(*SIZE, 3)``."""
        rng = self.rng
        if rng.random() > 0.9:
            return GRID + torch.tensor(rng.uniform(-0.5, 0.5, 3), dtype=torch.float32)
        x, y, z = rng.normal(0, 0.15, 3) if rng.random() < 0.7 else rng.uniform(-0.5, 0.5, 3)
        about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
        scales = np.exp(rng.normal(0, 0.08, 3) + rng.normal(0, 0.06)) * [rng.choice([-1, 1]), 1, 1]
        shears = np.eye(3)
        shears[np.triu_indices(3, 1)] = rng.normal(0, 0.06, 3)
        matrix = about_x @ about_y @ about_z @ shears @ np.diag(scales)
        points = GRID @ torch.tensor(matrix.T, dtype=torch.float32)
        points = points + torch.tensor(rng.normal(0, 2.5, 3), dtype=torch.float32)
        if rng.random() < 0.6:
            step, most = ((16, 2.5), (10, 1.2))[rng.integers(2)]
            knots = rng.normal(0, rng.uniform(0.2, most), (1, 3, *(n // step + 3 for n in SIZE)))
            field = functional.interpolate(torch.tensor(knots, dtype=torch.float32), size=SIZE, mode="trilinear")
            points = points + functional.avg_pool3d(field, 5, 1, 2)[0].movedim(0, -1)
        return points

    def by_curve(self, image: Tensor) -> Tensor:
        """By an inversion or a random piecewise-linear curve; what is 0 lies beyond the image, and stays."""
        knots = 2 if self.rng.random() < 0.35 else self.rng.integers(3, 9)
        heights = np.array([1.0, 0.0]) if knots == 2 else self.rng.uniform(size=knots)
        inside = image > 0
        values = np.interp(image.clamp(0, 1).numpy(), np.linspace(0, 1, knots), heights)
        mapped = torch.tensor(values, dtype=torch.float32)
        seen = mapped[inside]
        if len(seen) < 100:
            return image
        low, high = torch.quantile(seen[::7], torch.tensor([0.005, 0.995]))
        return ((mapped - low) / (high - low).clamp_min(1e-3)).clamp(0, 1) * inside

    def changed(self, image: Tensor) -> Tensor:
        """With the intensities of another scan."""
        rng, inside = self.rng, (image > 0).float()
        if rng.random() < 0.5:
            power, dark = rng.uniform(0.6, 1.7), rng.random() < 0.6
            image = (image.clamp(0, 1) ** power if dark else 1 - (1 - image.clamp(0, 1)) ** power) * inside
        if rng.random() < 0.4:
            image = image * rng.uniform(0.8, 1.25)
        if rng.random() < 0.3:
            mean = image.sum() / inside.sum().clamp_min(1)
            image = ((image - mean) * rng.uniform(0.7, 1.4) + mean) * inside
        if rng.random() < 0.25:
            bias = torch.tensor(rng.normal(0, 0.15, (1, 1, 3, 3, 3)), dtype=torch.float32)
            image = image * functional.interpolate(bias, size=SIZE, mode="trilinear", align_corners=True).exp()
        if rng.random() < 0.3:
            coarse = functional.interpolate(image, scale_factor=rng.uniform(0.5, 0.95), mode="trilinear")
            image = functional.interpolate(coarse, size=SIZE, mode="trilinear")
        if rng.random() < 0.4:
            noise = rng.normal(0, rng.uniform(0.01, 0.08), image.shape)
            image = image + torch.tensor(noise, dtype=torch.float32) * inside
        return image.clamp(-0.2, 1.5)


def backbone(model: str | None) -> nn.Module:
    """The network of the shipped weights' ITN, whose output are logits with the background first."""
    return Registration(model, device="cpu").network.istn.itn.backbone.to(memory_format=torch.channels_last_3d)


def teacher(start: str) -> Callable[[Tensor], Tensor]:
    """The mean of what two ITNs see."""
    one, other = backbone("any_contrast"), Registration(device="cpu").network.istn.itn
    one.load_state_dict(torch.load(start, weights_only=True)["average"])

    @torch.no_grad()
    def answer(image: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits, maps = one(image.contiguous(memory_format=torch.channels_last_3d)), other(image.clamp(0, 1))
        return (logits.float().softmax(1)[:, 1:] + maps.float().clamp(0, 1)) / 2

    return answer


def loss(logits: Tensor, structures: Tensor) -> Tensor:
    """Dice and five times the cross-entropy, whose mean is over many empty voxels."""
    seen = logits.float().softmax(1)[:, 1:]
    axes = (0, 2, 3, 4)
    overlap = (2 * (seen * structures).sum(axes) + 1e-5) / (seen.sum(axes) + structures.sum(axes) + 1e-5)
    wanted = torch.cat([1 - structures.sum(1, keepdim=True), structures], 1)
    return 1 - overlap.mean() - 5 * (wanted * logits.float().log_softmax(1)).sum(1).mean()


@torch.no_grad()
def dice_of(network: nn.Module, known: list[Case], inverted: bool = False) -> float:
    """Mean Dice of both structures, on the images' own voxels."""
    found = []
    for image, structures in known:
        shown = sampled(1 - image if inverted else image, GRID)
        logits = network(shown.contiguous(memory_format=torch.channels_last_3d))
        seen = sampled(logits.softmax(1)[:, 1:], places(structures.shape[2:]))[0] > 0.5
        found.append([dice(*both) for both in zip(seen, structures[0] > 0.5, strict=True)])
    return float(np.mean(found))


def train(part: str, output: str, start: str | None = None, steps: int = 5000, learning_rate: float = 0.0015) -> None:
    """Trains the ITN, "own" or "any"; ``output`` holds the network, its moving average and the optimizer."""
    torch.manual_seed(0)
    network, file, step = backbone("any_contrast"), Path(output), 0
    if start is not None:
        network.load_state_dict(torch.load(start, weights_only=True)["average"])
    average = WeightAverage(network, 0.998 if part == "own" else 0.997)
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=learning_rate, weight_decay=1e-3)
    if file.exists():
        state = torch.load(file, weights_only=True)
        step = state["step"]
        for name, module in (("network", network), ("average", average), ("optimizer", optimizer)):
            module.load_state_dict(state[name])
    draw = Draws(cases("training"), None if part == "own" else teacher(str(start)), np.random.default_rng([0, step]))
    validation = cases("validation")
    compiled = torch.compile(network)
    while step < steps:
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (step + 1) / 100) * (1 - step / steps) ** 0.9
        images, structures = (torch.cat(each) for each in zip(draw(), draw(), strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            logits = compiled(images.contiguous(memory_format=torch.channels_last_3d))
        value = loss(logits, structures)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10)
        optimizer.step()
        step += 1
        average.update(SimpleNamespace(state=SimpleNamespace(iteration=step)))
        if step % EVERY == 0 or step == steps:
            state = {"network": network, "average": average, "optimizer": optimizer}
            torch.save({"step": step} | {name: module.state_dict() for name, module in state.items()}, file)
            shown = [dice_of(average.network, validation, inverted) for inverted in (False, True)]
            print(f"step {step}: validation Dice {shown[0]:.4f}, inverted {shown[1]:.4f}", flush=True)


def refined_dice(registration: Registration, split: str = "validation") -> float:
    """Mean Dice of both structures after a refinement, of a split's pairs."""
    evaluation = Evaluation([], registration.network, {}, "unused", registration.settings.soi_labels, "cpu")
    evaluation.inferers = {"refined": Timed(refiner_of("accurate", registration.settings.transformation))}
    found = []
    for item in read_datalist(DATA / "pairs_100.json", [split])[split]:
        evaluation.dataset = [registration.content("preprocessing")(item)]
        found.append(evaluation.evaluate_pair(0)[1]["dice_labels"])
    return float(np.mean(found))


def join(itn: str, before: str, output: str, share: float = 0.4) -> None:
    """Writes a checkpoint of the default weights' STN and an ITN between two.

    The mean of the weights of ``before``, which is where the training began, and of what ``train any`` made of it is
    better than both, as other means of fine-tuned weights are (Wortsman et al., "Model soups", 2022).

    Args:
        itn: what ``train any`` wrote.
        before: checkpoint.
        output: likewise.
        share: of ``itn`` in the mean.
    """
    weights, registration = read_weights(before), Registration(before, device="cpu")
    network = registration.network
    own = network.istn.itn.backbone.state_dict()
    further = torch.load(itn, weights_only=True)["average"]
    network.istn.itn.backbone.load_state_dict({name: own[name].lerp(further[name], share) for name in own})
    network.istn.stn.load_state_dict(Registration(device="cpu").network.istn.stn.state_dict())
    halves = {name: values.half() for name, values in network.state_dict().items()}
    network.load_state_dict(halves)  # as the file has them
    training = weights.description["training"] | {"itn": "benchmarks/itn_alone.py", "stn": "of model.pt"}
    result = {"validation_dice": refined_dice(registration)}
    content = {"settings": weights.description["settings"], "training": training, "result": result}
    state = network.state_dict()
    for name, values in halves.items():
        state[name] = values
    save_atomically(described(state, content), Path(output))
    print(f"{result}, written: {output}")


if __name__ == "__main__":
    fire.Fire({"train": train, "join": join})
