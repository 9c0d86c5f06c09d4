"""Evaluation of a network on annotated pairs: metrics for each pair and in summary, as a table, CSV and JSON.

Labels are compared on the fixed image's own grid, where a user meets them: the moving label is sampled once, as linear
one-hot, then 0.5 (merged SoI) or the largest (single labels). Regularity is that of the field on the registration grid.
"""

from __future__ import annotations

import csv
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch
from monai.inferers import Inferer
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from tqdm import tqdm

from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.resampling import pull_back_landmarks, pull_back_points, warp_labels
from istn_monai.geometry.sampling import sample
from istn_monai.io.landmarks import is_points, matched
from istn_monai.io.paths import absolute
from istn_monai.metrics import Metrics, box_of, field_metrics, overlap, without_nan
from istn_monai.qa.cohort import QA_COHORT, Entry, jpeg, write_cohort
from istn_monai.qa.inspector import PairInspector
from istn_monai.transforms.checks import reads_labels
from istn_monai.transforms.keys import LABEL_KEYS, POINT_KEYS
from istn_monai.transforms.postprocessing import Representd
from istn_monai.workflow.distributed import gathered, rank, world_size

#: columns of the table: metrics and their titles; landmarks only where there are any
TABLE_TITLES = {
    "dice_merged": "Dice merged", "dice_labels": "Dice labels", "asd_merged": "ASD mm", "hd95_merged": "HD95 mm",
    "tre": "TRE mm", "tre_median": "TRE median", "folding": "folding %", "sdlogj": "SDlogJ",
    "sdlogj_l2r": "SDlogJ L2R", "seconds": "s",
}  # fmt: skip
IDENTITY = "Id"


def soi_values(soi_labels: Sequence[Sequence[int]] | None) -> list[int]:
    """All label values of the groups, sorted; [1] for a real-valued map, whose threshold is half its maximum."""
    return [1] if soi_labels is None else sorted({value for group in soi_labels for value in group})


def label_map(label: MetaTensor, soi_labels: Sequence[Sequence[int]] | None) -> Tensor:
    """``(1, 1, *S)``: label values as they are, a real-valued map scaled to a maximum of 1."""
    values = label.as_tensor()[None].float()
    return values / values.max() if soi_labels is None else values.round()


def merged_soi(labels: Tensor, soi_labels: Sequence[Sequence[int]] | None) -> Tensor:
    """What :func:`label_map` gives to 1 in any SoI and 0 elsewhere; a real-valued map as it is."""
    return labels if soi_labels is None else torch.isin(labels, labels.new_tensor(soi_values(soi_labels))).float()


def label_metrics(pair: Mapping[str, Any], ddf: Tensor, soi_labels: Sequence[Sequence[int]] | None) -> Metrics:
    """Dice, ASD and HD95 (mm) of the merged SoI and of each label, on the fixed image's own grid.

    Args:
        pair: preprocessed; moving and fixed label under ``*_label_original``, ``image`` on the registration grid.
        ddf: ``(1, D, *S)`` on the registration grid.
        soi_labels: groups of label values; None for real-valued maps.
    """
    moving, fixed = (pair[f"{side}_label_original"] for side in ("moving", "fixed"))
    points = pull_back_points(ddf, Grid.of(pair["image"]), Grid.of(fixed), Grid.of(moving))
    values = soi_values(soi_labels)
    moving_map, fixed_map = label_map(moving, soi_labels), label_map(fixed, soi_labels)[0, 0]
    warped_soi = sample(merged_soi(moving_map, soi_labels), points, padding_mode="zeros")[0, 0] > 0.5
    fixed_soi = merged_soi(fixed_map, soi_labels) > 0.5
    box = box_of(warped_soi | fixed_soi)  # nothing is to be seen elsewhere, and a brain is large
    spacing = Grid.of(fixed).spacing
    metrics = {f"{k}_merged": v for k, v in overlap(warped_soi[box], fixed_soi[box], spacing).items()}
    if soi_labels is None:
        return metrics | {"dice_labels": metrics["dice_merged"]}
    warped_labels = warp_labels(moving_map, points[(..., *box)], values)[0, 0]
    for value in values:
        single = overlap(warped_labels == value, fixed_map[box] == value, spacing)
        metrics |= {f"{name}_{value}": number for name, number in single.items()}
    metrics["dice_labels"] = statistics([metrics[f"dice_{value}"] for value in values])["mean"]
    return metrics


def landmark_metrics(pair: Mapping[str, Any], ddf: Tensor) -> Metrics:
    """Target registration error in mm, mean and median over a pair's landmarks; nothing if it has no landmark files.

    The distance of each landmark of the moving image from where the fixed one of the same name is mapped to.
    """
    files = [str(pair.get(key, "")) for key in POINT_KEYS]
    if not all(map(is_points, files)):
        return {}
    moving, fixed = matched(*files)
    found = pull_back_landmarks(ddf, Grid.of(pair["image"]), fixed.positions.T)
    if "initial_alignment" in pair:
        found = map_points(torch.as_tensor(pair["initial_alignment"], dtype=torch.float64), found)
    distances = (found - moving.positions.T).norm(dim=0)
    return {"tre": distances.mean().item(), "tre_median": distances.median().item()}


def pair_metrics(pair: Mapping[str, Any], ddf: Tensor, soi_labels: Sequence[Sequence[int]] | None) -> Metrics:
    """All metrics of one pair and one field; arguments as in :func:`label_metrics`."""
    labels = label_metrics(pair, ddf, soi_labels) if reads_labels(soi_labels) else {}
    return labels | landmark_metrics(pair, ddf) | field_metrics(ddf[0], Grid.of(pair["image"]).spacing)


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """``{method: {metric: {mean, std, median, n}}}`` over pairs, ignoring nan."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        names = dict.fromkeys(name for row in own for name, value in row.items() if isinstance(value, float))
        summary[method] = {name: statistics([row.get(name, float("nan")) for row in own]) for name in names}
    return summary


def statistics(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation over pairs, median and number of what is not nan."""
    known = np.array([value for value in values if not np.isnan(value)])
    if not known.size:
        return {"mean": float("nan"), "std": float("nan"), "median": float("nan"), "n": 0}
    return {
        "mean": float(known.mean()), "std": float(known.std()), "median": float(np.median(known)), "n": len(known)
    }  # fmt: skip


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The summary as text, mean +- standard deviation over pairs."""
    columns = [column for column in TABLE_TITLES if column in next(iter(summary.values()))]
    lines = [f"{'':10}" + "".join(f"{TABLE_TITLES[column]:>16}" for column in columns)]
    for method, metrics in summary.items():
        cells = []
        for column in columns:
            factor = 100.0 if column == "folding" else 1.0
            cells.append(f"{factor * metrics[column]['mean']:.3f}+-{factor * metrics[column]['std']:.3f}")
        lines.append(f"{method:10}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


class FieldSpread:
    """How much fields differ over pairs: near 0, the network has collapsed to one warp for all."""

    def __init__(self) -> None:
        self.number = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, ddf: Tensor) -> None:
        """Takes in a field ``(1, D, *S)``."""
        self.number += 1
        self.total = self.total + ddf.double()
        self.squares = self.squares + ddf.double() ** 2

    def merge(self, other: FieldSpread) -> None:
        """Takes in the fields of another."""
        self.number += other.number
        self.total = self.total + other.total
        self.squares = self.squares + other.squares

    def std(self) -> float:
        """Standard deviation over pairs in voxels, mean over voxels and components."""
        mean = self.total / self.number
        return float(torch.as_tensor(self.squares / self.number - mean**2).clamp(min=0).sqrt().mean())


def merged_spreads(spreads: Sequence[Mapping[str, FieldSpread]]) -> dict[str, FieldSpread]:
    """The spreads of several processes' fields, by method, as one."""
    merged: dict[str, FieldSpread] = {}
    for method, spread in (item for own in spreads for item in own.items()):
        merged.setdefault(method, FieldSpread()).merge(spread)
    return merged


class Evaluation:
    """Evaluates registrations of annotated pairs, before and after.

    Args:
        dataset: preprocessed pairs with labels, see the bundle's ``evaluate.json``.
        network: maps ``image`` to the ddf.
        inferers: by the name of the method, e.g. ``{"one-pass": SimpleInferer()}``; "Id" is always there.
        output_dir: folder for ``evaluation.csv`` (all pairs) and ``evaluation.json`` (summary and pairs).
        soi_labels: groups of label values; None for real-valued maps; [] for landmarks alone.
        device: where the network is.
        provenance: kept in the JSON, e.g. checkpoint and settings.
        qa: also writes ``qa.html``, the QA pages of all pairs after the last method; needs a ``DisplacementNetwork``.
        maps: whether the network's SoI are real-valued maps or landmarks, for the QA page; None if ``soi_labels`` says
            so.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        network: nn.Module,
        inferers: Mapping[str, Inferer],
        output_dir: str | Path,
        soi_labels: Sequence[Sequence[int]] | None,
        device: torch.device | str = "cpu",
        provenance: Mapping[str, Any] | None = None,
        qa: bool = False,
        maps: bool | None = None,
    ) -> None:
        self.dataset = dataset
        self.network = network
        self.inferers = dict(inferers)
        self.output_dir = absolute(output_dir)
        self.soi_labels = soi_labels
        self.device = device
        self.provenance = dict(provenance or {})
        self.inspect = PairInspector(network, None if maps else soi_labels) if qa else None
        self.entries: list[Entry] = []

    def run(self) -> dict[str, Any]:
        """Evaluates, writes both files, prints the table, and returns what the JSON holds.

        Several processes split the pairs among themselves; the first writes.
        """
        self.network.eval()
        own: list[dict[str, Any]] = []
        self.entries = []
        spread: dict[str, FieldSpread] = {}
        numbers = range(rank(), len(self.dataset), world_size())
        for number in tqdm(numbers, desc="evaluating", unit="pair", disable=rank() > 0):
            own += self.evaluate_pair(number, spread)
        rows = sorted(itertools.chain.from_iterable(gathered(own)), key=lambda row: row["pair"])
        self.entries = list(itertools.chain.from_iterable(gathered(self.entries)))
        summary = summarize(rows)
        result = {
            "summary": summary,
            "field_std_voxels": {method: fields.std() for method, fields in merged_spreads(gathered(spread)).items()},
            "provenance": self.provenance | {"monai": monai.__version__, "torch": torch.__version__},
            "pairs": rows,
            "qa": {entry.name: entry.status for entry in sorted(self.entries, key=lambda entry: entry.name)},
        }
        if rank() > 0:
            return result
        self.write(result)
        print(table(summary))
        names = ["evaluation.json", *([QA_COHORT] if self.entries else [])]
        print(f"written to {self.output_dir / 'evaluation.csv'} and {' and '.join(names)}")
        return result

    def evaluate_pair(self, number: int, spread: dict[str, FieldSpread] | None = None) -> list[dict[str, Any]]:
        """One row of metrics for each method; the fields are added to ``spread``, if there is one."""
        pair = self.dataset[number]
        for key in LABEL_KEYS if reads_labels(self.soi_labels) else POINT_KEYS:
            if key not in pair:
                raise ValueError(f"evaluation needs {key!r} for each pair; pair {number} has none")
            if key in POINT_KEYS and not is_points(str(pair[key])):
                raise ValueError(f"{pair[key]} is no landmark file: give evaluated_labels, for it has no TRE")
        image = pair["image"].as_tensor()[None].to(self.device)
        files = {side: str(pair[f"{side}_image"].meta["filename_or_obj"]) for side in ("moving", "fixed")}
        nothing = torch.zeros(1, image.ndim - 2, *image.shape[2:])
        fields, seconds = {IDENTITY: nothing}, {IDENTITY: 0.0}
        for method, inferer in self.inferers.items():
            start = time.perf_counter()
            with torch.no_grad():
                pred = inferer(image, self.network)
            fields[method] = convert_to_tensor(pred, track_meta=False, device="cpu")
            seconds[method] = time.perf_counter() - start
        if self.inspect is not None and self.inferers:
            self.entries.append(self.entry(f"pair_{number:04d}", pair, pred))
        for method, ddf in fields.items():
            if spread is not None:
                spread.setdefault(method, FieldSpread()).add(ddf)
        return [
            {"pair": number, **files, "method": method, **pair_metrics(pair, ddf, self.soi_labels)}
            | {"seconds": seconds[method]}
            for method, ddf in fields.items()
        ]

    def entry(self, name: str, pair: Mapping[str, Any], pred: Tensor) -> Entry:
        """The QA page of one pair and the ddf ``(1, D, *S)`` that a method found."""
        assert self.inspect is not None
        result = Representd(self.network)(dict(pair) | {"pred": decollate_batch(pred)[0]})
        verdict, page = self.inspect({str(key): value for key, value in result.items()})
        files = " → ".join(
            Path(str(pair[f"{side}_image"].meta["filename_or_obj"])).name for side in ("moving", "fixed")
        )
        return Entry(name, files, verdict.report(), jpeg(page))

    def write(self, result: Mapping[str, Any]) -> None:
        """``evaluation.csv`` and ``evaluation.json``."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with open(self.output_dir / "evaluation.csv", "w", newline="") as file:
            columns = dict.fromkeys(name for row in result["pairs"] for name in row)  # not all pairs have landmarks
            writer = csv.DictWriter(file, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(result["pairs"])
        (self.output_dir / "evaluation.json").write_text(json.dumps(without_nan(result), indent=1, default=str))
        if self.entries:
            method = list(self.inferers)[-1]
            write_cohort(self.entries, self.output_dir / QA_COHORT, f"Registration QA of an evaluation, {method}")
