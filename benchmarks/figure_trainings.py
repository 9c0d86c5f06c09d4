"""The trainings behind the figures: done through the bundle, kept in a folder, and done only once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import configs
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, run
from monai.metrics import compute_dice
from monai.utils import convert_to_tensor
from table1 import DTYPE, METHODS, RATES_OF, RESULTS, Cell
from torch import Tensor

from istn_monai.folders import LAST
from istn_monai.geometry.grids import Grid
from istn_monai.io.datalist import read_datalist
from istn_monai.networks import ISTN
from istn_monai.qa.measures import RegisteredPair
from istn_monai.refinement import Refinement, Refiner
from istn_monai.synthetic.pairs import synthesize
from istn_monai.weights import read_weights
from istn_monai.workflow.checkpoints import load_checkpoint
from istn_monai.workflow.inferers import default_rate

TOY_SIZE, TOY_PAIRS, TOY_EPOCHS = (96, 96), 100, 30
REFINE_STEPS = 50


class KeepRepresentations:
    """Evaluator handler: keeps M' ``(K, *S)`` of the first validation pair, at each validation in a file.

    Args:
        folder: of the files, ``0000.pt`` for epoch 0 and so on.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = engine.state.output["pred"].moving_representation[0]
        torch.save(kept.detach().cpu().clone(), self.folder / f"{engine.state.epoch:04d}.pt")


@dataclass(frozen=True)
class Training:
    """One training of the bundle, and pairs registered with what it gave.

    Attributes:
        overlays: names of the bundle's configs beside train.json.
        settings: of the bundle, with ``output_dir``.
        epochs: how many.
        refine_rate: learning rate of the refinement; None for the bundle's.
    """

    overlays: tuple[str, ...]
    settings: Mapping[str, Any]
    epochs: int
    refine_rate: float | None = None

    @property
    def output(self) -> Path:
        """Its folder."""
        return Path(self.settings["output_dir"])

    @property
    def pictures(self) -> Path:
        """Where :class:`KeepRepresentations` puts them."""
        return self.output / "representations"

    @cached_property
    def parser(self) -> ConfigParser:
        """The bundle's configuration with these settings."""
        parser = ConfigParser()
        parser.read_config(configs("train", *self.overlays))
        parser.update(dict(self.settings))
        return parser

    def finished(self) -> bool:
        """Whether it has come to its end."""
        last = self.output / "models" / LAST
        progress = read_weights(last).progress["trainer"] if last.exists() else {"iteration": 0, "epoch_length": 1}
        return progress["iteration"] >= self.epochs * progress["epoch_length"]

    def train(self) -> Training:
        """Starts it, goes on with it, or leaves a finished one as it is."""
        if not self.finished():
            keep = {"_target_": f"{__name__}.KeepRepresentations", "folder": str(self.pictures)}
            handlers = [*self.parser.get("validate#handlers"), keep]
            settings = dict(self.settings) | {"max_epochs": self.epochs, "validate#handlers": handlers}
            run(run_id="training", config_file=configs("train", *self.overlays), **settings)
        return self

    @cached_property
    def network(self) -> ISTN:
        """At its best validation."""
        content = self.parser.get_parsed_content
        network = content("network_def")
        load_checkpoint(content("ckpt_dir") + "/model.pt", network)
        return network.istn.eval()

    def pair(self, number: int, split: str = "testing") -> dict[str, Tensor]:
        """A pair of the datalist on the registration grid, ``image`` and ``label``, each moving then fixed."""
        content = self.parser.get_parsed_content
        item = read_datalist(content("train#dataset#data").file, [split])[split][number]
        steps = [*content("prepare"), content("join")[0]]
        for step in steps:
            item = step(item)
        return {key: item[key] for key in ("image", "label")}

    def refined(self, pair: Mapping[str, Tensor]) -> Refinement:
        """The pair's transformation: one pass, then refined on the representations."""
        name = self.parser.get_parsed_content("transformation")
        rate = default_rate(name, REFINE_STEPS) if self.refine_rate is None else self.refine_rate
        return Refiner(steps=REFINE_STEPS, learning_rate=rate)(self.network, plain(pair["image"])[None])


def plain(image: Tensor) -> Tensor:
    """A tensor without metadata."""
    return convert_to_tensor(image, track_meta=False)


def with_structures(pair: Mapping[str, Tensor], ddf: Tensor) -> RegisteredPair:
    """A registered pair for the panels of QA pages, with the annotated structures in the place of M' and F'."""
    moving, fixed = plain(pair["image"]).chunk(2)
    moving_soi, fixed_soi = plain(pair["label"]).chunk(2)
    everywhere = torch.ones(ddf.shape[1:], dtype=torch.bool)
    spacing = Grid.of(pair["image"]).spacing
    return RegisteredPair(
        ("moving", "fixed"),
        moving,
        fixed,
        moving_soi,
        fixed_soi,
        ddf,
        ddf,
        spacing,
        everywhere,
        everywhere,
        None,
        "mask",
    )


def dice(moving: Tensor, fixed: Tensor) -> float:
    """Dice of two binarised structures ``(K, *S)``, the mean over channels."""
    return compute_dice(moving[None] > 0.5, fixed[None] > 0.5).mean().item()


def toy_training(loss: str, soi: str, runs: str, epochs: int | None) -> Training:
    """ISTN-e or ISTN-i, affine, on the 2-D toy, which is drawn here; ``soi`` is "masks" or "landmarks"."""
    folder = Path(runs).absolute()
    data = folder / "toy"
    datalist = json.loads(synthesize(data, TOY_SIZE, train=TOY_PAIRS, nonlinear_mm=0).read_text(encoding="utf-8"))
    landmarks = {
        split: [as_landmarks(pair) for pair in datalist[split]] for split in ("training", "validation", "testing")
    }
    (data / "landmarks.json").write_text(json.dumps(landmarks, indent=1) + "\n", encoding="utf-8")
    settings = {
        "dataset_dir": str(data),
        "data_list_file": {"masks": "pairs.json", "landmarks": "landmarks.json"}[soi],
        "soi_labels": {"masks": [[1, 2]], "landmarks": "none"}[soi],
        "output_dir": str(folder / f"toy_{soi}_{loss}"),
        "loss": loss,
        "transformation": "affine",
        "spatial_size": list(TOY_SIZE),
        "batch_size": 4,
        "learning_rate": 0.002,
        "device": "cpu",
    }
    return Training((), settings, epochs or TOY_EPOCHS)


def as_landmarks(pair: Mapping[str, str]) -> dict[str, str]:
    """A pair of the toy with its landmark maps as the structures of interest."""
    return {
        **{f"{side}_image": pair[f"{side}_image"] for side in ("moving", "fixed")},
        **{f"{side}_label": pair[f"{side}_landmarks"] for side in ("moving", "fixed")},
    }


def table_trainings(
    case: str, transformation: str, methods: Sequence[str], data: str, runs: str, epochs: int | None
) -> dict[str, Training]:
    """Trainings of Table 1, by the method's name, with the settings and the learning rates that it has."""
    trainings = {}
    for method in methods:
        cell = Cell(case, transformation, method, data, runs)
        settings = cell.settings | {"loss": method, "training_dtype": DTYPE}
        settings |= {"learning_rate": chosen("_".join(RATES_OF), method, "learning_rate")}
        rate = chosen(f"{case}_{transformation}", method, "refinement_rate")
        trainings[METHODS[method]] = Training(cell.case.overlays, settings, epochs or cell.epochs, rate)
    return trainings


def chosen(cells: str, method: str, metric: str) -> float | None:
    """What Table 1 found best on validation pairs; None where it is not known."""
    file = RESULTS / f"{cells}_{method}.json"
    return json.loads(file.read_text(encoding="utf-8"))[metric] if file.exists() else None
