"""The paper's Table 1 on public data: STN-u, STN-s, ISTN-e, ISTN-i with affine and B-spline transformations.

    python benchmarks/table1.py run CASE --data DIR [--runs DIR] [--transformations affine,bspline] [--methods u,s,e,i]
    python benchmarks/table1.py show CASE --data DIR

CASE is a key of ``CASES``; DIR holds the data sets' folders. Each cell of the table (transformation x method) is
trained, its refinement's learning rate chosen on the validation pairs, and evaluated on the test pairs before and after
50 steps of refinement; ``Id`` comes with each, and ``SoI``, the label maps themselves registered, is the best case. The
learning rate of training is chosen on the validation pairs too, in short trainings of ``RATES_OF``, for all cases.

A finished cell is a file in ``benchmarks/results/table1``, with commit, versions, device, data, seed and the metrics of
each pair, and is not done again: an interrupted run goes on where it stopped, and several processes may share a case.
``show`` prints the tables, with the difference of each two methods and its interval over subjects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import fire
import numpy as np
import torch
from common import RESULTS as ALL_RESULTS
from common import configs, default_device, listed, provenance, write
from monai.bundle import ConfigParser, run
from monai.data import Dataset
from monai.transforms import Compose, CopyItemsd
from torch import Tensor, nn

from istn_monai import ISTN
from istn_monai.inferer import RefineInferer
from istn_monai.io.datalist import read_datalist
from istn_monai.transforms.keys import ORIGINAL_KEYS, PAIR_KEYS
from istn_monai.transforms.preprocessing import ConcatPaird, InitialAlignmentd
from istn_monai.workflow.evaluation import Evaluation

RESULTS = ALL_RESULTS / "table1"
METHODS = {"u": "STN-u", "s": "STN-s", "e": "ISTN-e", "i": "ISTN-i", "soi": "SoI"}
LEARNING_RATES = (1e-3, 2e-3)
DTYPE = "bfloat16"  # of the networks in training; all else is float32
REFINEMENT_RATES = {"affine": (0.02, 0.05, 0.1), "bspline": (0.05, 0.1, 0.2), "affine+bspline": (0.02, 0.05, 0.1)}
REFINE_STEPS = 50
SAMPLES = 10000  # of a bootstrap
SOI_STEPS, SOI_RATE = 200, 0.05  # the label maps' own registration starts from the identity
KEPT = ("pair", "method", "dice_merged", "dice_labels", "asd_merged", "hd95_merged", "folding", "sdlogj", "sdlogj_l2r")


@dataclass(frozen=True)
class Case:
    """One table: a data set, its overlays and settings, and the epochs that every method gets, by transformation."""

    folder: str
    overlays: tuple[str, ...]
    epochs: dict[str, int]
    settings: dict[str, Any]
    #: by transformation
    special: dict[str, dict[str, Any]] = field(default_factory=dict)


CASES = {
    "hippocampus": Case("hippocampus", ("hippocampus",), {"affine": 12, "bspline": 8}, {"soi_labels": [[1, 2]]}),
    "hippocampus_1000": Case(
        "hippocampus",
        ("hippocampus",),
        {"affine": 1, "bspline": 1},
        {"soi_labels": [[1, 2]], "data_list_file": "pairs_1000.json"},
    ),
    "brain": Case(
        "brain",
        ("brain",),
        {"affine": 4, "bspline": 3, "affine+bspline": 3},
        {},
        special={
            "bspline": {"control_spacing": 30, "initial_alignment": "rigid"},
            "affine+bspline": {"control_spacing": 30},  # in one call, without a registration before
        },
    ),
}
RATES_OF, SHORT_EPOCHS = ("hippocampus", "affine"), 2  # whose trainings choose the learning rate for all, and how


class Cell:
    """One transformation and one method of a case: what is run for it, and where it is kept.

    Args:
        case: name of the case.
        transformation: "affine" or "bspline".
        method: a key of ``METHODS``.
        data: folder of the data sets.
        runs: folder of the trainings.
    """

    def __init__(self, case: str, transformation: str, method: str, data: str, runs: str) -> None:
        self.case, self.name = CASES[case], f"{case}_{transformation}_{method}"
        self.method, self.epochs = method, self.case.epochs[transformation]
        self.chooses_rate = (case, transformation) == RATES_OF
        self.runs = Path(runs).absolute()
        self.file = RESULTS / f"{self.name}.json"
        self.settings = self.case.settings | self.case.special.get(transformation, {})
        self.settings |= {
            "dataset_dir": str(Path(data).absolute() / self.case.folder),
            "transformation": transformation,
            "cache_dir": str(self.runs / "cache" / case.removesuffix("_1000")),
            "output_dir": str(self.runs / self.name),
        }

    def train(self, output_dir: Path, epochs: int, learning_rate: float) -> Path:
        """Trains, or goes on, and returns ``model.pt``."""
        settings = self.settings | {"output_dir": str(output_dir), "max_epochs": epochs, "loss": self.method}
        settings |= {"training_dtype": DTYPE}
        run(
            run_id="training",
            config_file=configs("train", *self.case.overlays),
            learning_rate=learning_rate,
            **settings,
        )
        return output_dir / "models" / "model.pt"

    def learning_rate(self) -> tuple[float, dict[str, float]]:
        """The rate with the best validation Dice in a short training, and all of them."""
        if not self.chooses_rate:
            other = RESULTS / f"{'_'.join(RATES_OF)}_{self.method}.json"
            return json.loads(other.read_text(encoding="utf-8"))["learning_rate"], {}
        found = {}
        for rate in LEARNING_RATES:
            model = self.train(self.runs / "rates" / f"{self.name}_{rate}", SHORT_EPOCHS, rate)
            found[str(rate)] = torch.load(model, weights_only=True)["validation"]
        return float(max(found, key=lambda rate: found[rate])), found

    def evaluate(self, split: str, rate: float) -> dict[str, Any]:
        """The bundle's evaluation of a split of the datalist, with refinement at a learning rate."""
        settings = self.settings | {"evaluated_split": split, "refine_steps": REFINE_STEPS, "loss": self.method}
        settings["refine_weights"] = "none"  # the paper's objective
        settings |= {"evaluate#refined#learning_rate": rate, "qa": False, "overwrite": True}
        run(run_id="evaluation", config_file=configs("train", *self.case.overlays, "evaluate"), **settings)
        return json.loads((Path(self.settings["output_dir"]) / "evaluation.json").read_text(encoding="utf-8"))

    def refinement_rate(self) -> tuple[float, dict[str, float]]:
        """The rate of refinement with the best Dice on the validation pairs, and all of them."""
        found = {}
        for rate in REFINEMENT_RATES[self.settings["transformation"]]:
            found[str(rate)] = self.evaluate("validation", rate)["summary"]["refined"]["dice_merged"]["mean"]
        return float(max(found, key=lambda rate: found[rate])), found

    def soi_bound(self) -> dict[str, Any]:
        """Evaluation of the label maps' own registration, from the identity: no network, all of the truth."""
        parser = ConfigParser()
        parser.read_config(configs("train", *self.case.overlays))
        parser.update(self.settings)
        content = parser.get_parsed_content
        prepare = list(content("prepare"))
        aligned = next(n for n, step in enumerate(prepare, 1) if isinstance(step, InitialAlignmentd))
        keep = CopyItemsd(PAIR_KEYS, names=ORIGINAL_KEYS, allow_missing_keys=True)
        steps = [*prepare[:aligned], keep, *prepare[aligned:], labels_as_images]
        pairs = read_datalist(content("train#dataset#data").file, ["testing"])["testing"]
        transformation = content("settings").spatial_transformation()
        return Evaluation(
            Dataset(pairs, Compose(steps)),
            ISTN(None, Identity(transformation.num_parameters), transformation),
            {"refined": RefineInferer(steps=SOI_STEPS, learning_rate=SOI_RATE)},
            self.settings["output_dir"],
            content("settings").soi_labels,
            overwrite=True,
        ).run()

    def metrics(self) -> dict[str, Any]:
        """Trains, chooses and evaluates: what the cell's file holds."""
        if self.method == "soi":
            return {"refinement_rate": SOI_RATE, "evaluation": self.soi_bound()}
        rate, rates = self.learning_rate()
        self.train(Path(self.settings["output_dir"]), self.epochs, rate)
        refinement_rate, refinement_rates = self.refinement_rate()
        return {
            "learning_rate": rate,
            "validation_dice_of_rates": rates,
            "refinement_rate": refinement_rate,
            "validation_dice_of_refinement_rates": refinement_rates,
            "evaluation": self.evaluate("testing", refinement_rate),
        }

    def run(self) -> None:
        """Writes the cell's file, if it is not there yet."""
        if self.file.exists():
            print(f"already done: {self.file.name}")
            return
        content = self.metrics()
        evaluation = content.pop("evaluation")
        content |= {
            "settings": {key: value for key, value in self.settings.items() if not key.endswith("_dir")},
            "epochs": self.epochs,
            "trained": evaluation["provenance"].get("trained"),
            "provenance": provenance(default_device(), seed=0),
            "field_std_voxels": evaluation["field_std_voxels"],
            "summary": evaluation["summary"],
            "pairs": [{key: row[key] for key in KEPT} for row in evaluation["pairs"]],
        }
        write(content, self.file)
        print(f"written: {self.file}")


class Identity(nn.Module):
    """An STN that has learned nothing."""

    def __init__(self, num_parameters: int) -> None:
        super().__init__()
        self.num_parameters = num_parameters

    def forward(self, image: Tensor) -> Tensor:
        """theta = 0, ``(B, P)``."""
        return image.new_zeros(len(image), self.num_parameters)


def labels_as_images(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair on the registration grid, its SoI in the place of its images."""
    joined = ConcatPaird()(pair)
    return joined | {"image": joined["label"]}


def train_and_evaluate(
    case: str,
    data: str,
    runs: str = "runs/table1",
    transformations: str = "affine,bspline",
    methods: str = "soi,u,s,e,i",
) -> None:
    """Does the cells of a case that are not done yet."""
    for transformation in listed(transformations):
        for method in listed(methods):
            Cell(case, transformation, method, data, runs).run()


def finished(case: str, transformation: str) -> dict[str, dict[str, Any]]:
    """The cells of a case that are done, by method."""
    files = {method: RESULTS / f"{case}_{transformation}_{method}.json" for method in METHODS}
    return {method: json.loads(file.read_text(encoding="utf-8")) for method, file in files.items() if file.exists()}


def values(cell: Mapping[str, Any], stage: str, metric: str) -> np.ndarray:
    """A metric of all pairs of a cell, in the order of pairs; stage is "Id", "one-pass" or "refined"."""
    return np.array([row[metric] for row in cell["pairs"] if row["method"] == stage], dtype=float)


def entry(cell: Mapping[str, Any], stage: str, metric: str) -> str:
    """Mean and standard deviation over pairs."""
    found = values(cell, stage, metric)
    return f"{np.nanmean(found):.3f} ± {np.nanstd(found):.3f}" if found.size else ""


def show(case: str, data: str) -> None:
    """Prints the tables of a case as Markdown.

    Args:
        case: one of ``CASES``.
        data: folder of the data sets, whose datalists say which subjects a pair has.
    """
    for transformation in CASES[case].epochs:
        cells = finished(case, transformation)
        if not cells:
            continue
        number = len(values(next(iter(cells.values())), "Id", "dice_merged"))
        print(f"\n**{case}, {transformation}, n = {number}**\n")
        print("| | refinement | Id | " + " | ".join(METHODS[method] for method in cells) + " |")
        print("|---" * (3 + len(cells)) + "|")
        for title, metric in (("Dice", "dice_merged"), ("ASD mm", "asd_merged"), ("SDlogJ", "sdlogj")):
            if all(np.nanmax(values(cell, "refined", metric)) < 1e-3 for cell in cells.values()):
                continue  # affine transformations have no SDlogJ
            for word, stage in (("before", "one-pass"), ("after", "refined")):
                start = entry(next(iter(cells.values())), "Id", metric) if word == "before" else ""
                row = [entry(cell, stage, metric) for cell in cells.values()]
                print(f"| {title} | {word} | {start} | " + " | ".join(row) + " |")
        if len(cells.keys() - {"soi"}) > 1:
            for stage in ("one-pass", "refined"):
                print("\n".join(paired_tests(cells, subjects_of(case, data), stage)))


def subjects_of(case: str, data: str) -> np.ndarray:
    """``(n, 2)``: numbers of the moving and the fixed subject of each test pair."""
    folder = Path(data) / CASES[case].folder
    name = configs_value(case, "data_list_file")
    items = read_datalist(folder / name, ["testing"])["testing"]
    names = [[item["moving_image"], item["fixed_image"]] for item in items]
    return np.unique(names, return_inverse=True)[1].reshape(-1, 2)


def configs_value(case: str, name: str) -> Any:
    """A setting of a case."""
    parser = ConfigParser()
    parser.read_config(configs("train", *CASES[case].overlays))
    return CASES[case].settings.get(name, parser.get(name))


def interval(difference: np.ndarray, subjects: np.ndarray) -> str:
    """95 % interval of a mean over pairs, by a bootstrap of the subjects: pairs of one subject are not independent.

    A pair counts as often as both its subjects were drawn, their numbers multiplied.
    """
    rng, count = np.random.default_rng(0), subjects.max() + 1
    means = []
    for _ in range(SAMPLES):
        drawn = np.bincount(rng.integers(count, size=count), minlength=count)
        weights = drawn[subjects].prod(axis=1)
        if weights.any():
            means.append(np.average(difference, weights=weights))
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{low:+.3f} to {high:+.3f}"


def paired_tests(cells: Mapping[str, Mapping[str, Any]], subjects: np.ndarray, stage: str) -> list[str]:
    """Differences of Dice of each two methods, with their intervals over subjects, as Markdown."""
    title = {"one-pass": "one-pass Dice", "refined": "refined Dice"}[stage]
    lines = ["", f"| {title} | mean difference | 95 % interval over {subjects.max() + 1} subjects | better in |"]
    lines.append("|---|---|---|---|")
    for one, other in combinations([method for method in cells if method != "soi"], 2):
        difference = values(cells[other], stage, "dice_merged") - values(cells[one], stage, "dice_merged")
        better = f"{(difference > 0).sum()} of {len(difference)}"
        names = f"{METHODS[other]} - {METHODS[one]}"
        lines.append(f"| {names} | {difference.mean():+.3f} | {interval(difference, subjects)} | {better} |")
    return lines


if __name__ == "__main__":
    fire.Fire({"run": train_and_evaluate, "show": show})
