"""Pictures of a training: validation pairs for TensorBoard, and the curves of loss and Dice as a file."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardHandler
from monai.utils import CommonKeys, convert_to_tensor
from torch import Tensor

from istn_monai.geometry.sampling import warp
from istn_monai.io.paths import replacing
from istn_monai.networks import ISTNOutput
from istn_monai.qa.measures import largest_slices
from istn_monai.workflow.training import TERM

logger = logging.getLogger(__name__)
CURVES, TABLE = "training.png", "training.csv"
TERM_COLORS = ("#e8710a", "#159a57", "#9334e6", "#d93025", "#8a6d3b", "#5f6368", "#e52592", "#12b5cb", "#000000")
COLUMNS = ("epoch", "loss", "validation")  # and the terms of the loss
LARGER, LINE = 3, 14  # of TensorBoard's pictures: pixels a voxel, and pixels a line of text
SHOWN = ("F", "M warped", "F'", "M' warped", "SoI: M magenta, F green")
BEST_COLOR = "#d93025"  # of the best epoch
Row = dict[str, float]


class PairImageHandler(TensorBoardHandler):
    """Evaluator handler: TensorBoard pictures of the first validation pairs, the same at each validation.

    One row for each pair: F, warped M, F', warped M', and the warped SoI (magenta) over the fixed one (green; white
    where they agree), three times larger than their voxels, with a caption. The slice is the one where the fixed SoI
    is largest; gray is from 0 to 1 at all epochs.

    Args:
        log_dir: folder that TensorBoard reads.
        pairs: how many.
    """

    def __init__(self, log_dir: str, pairs: int = 3) -> None:
        super().__init__(log_dir=log_dir)
        self.pairs = pairs

    def attach(self, engine: Engine) -> None:
        """Attaches to an evaluator, whose batches are pairs in a fixed order."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        number = engine.state.iteration
        if number > self.pairs:
            return
        picture = pair_picture(engine.state.output[CommonKeys.PRED], engine.state.output[CommonKeys.LABEL])
        picture = captioned(enlarged(picture), f"validation pair {number}, epoch {engine.state.epoch}")
        self._writer.add_image(f"validation pair {number}", picture, engine.state.epoch)
        self._writer.flush()


def pair_picture(output: ISTNOutput, label: Tensor) -> Tensor:
    """The row of pictures of a batch's first pair, ``(3, height, 5 * width)`` in [0, 1]."""
    moving, fixed = output.image[:1].chunk(2, dim=1)
    moving_soi, fixed_soi = convert_to_tensor(label, track_meta=False)[:1].chunk(2, dim=1)
    ddf = output.ddf[:1]
    slices = largest_slices(fixed_soi[0])[2:]
    gray = [fixed, warp(moving, ddf), output.fixed_representation[:1], warp(output.moving_representation[:1], ddf)]
    row = [plane_of(image[0], slices).expand(3, -1, -1) for image in gray]
    magenta, green = plane_of(warp(moving_soi, ddf)[0], slices), plane_of(fixed_soi[0], slices)
    return torch.cat([*row, torch.stack([magenta, green, magenta])], dim=2)


def enlarged(picture: Tensor, times: int = LARGER) -> Tensor:
    """A picture ``(3, H, W)`` with each of its pixels as a square of so many."""
    return picture.repeat_interleave(times, 1).repeat_interleave(times, 2)


def captioned(picture: Tensor, text: str) -> Tensor:
    """A row of five pictures ``(3, H, W)`` below a line of text and what each of them is."""
    from PIL import Image, ImageDraw

    band = Image.new("RGB", (picture.shape[2], 2 * LINE), "black")
    draw = ImageDraw.Draw(band)
    draw.text((4, 2), text, fill="white")
    for number, name in enumerate(SHOWN):
        draw.text((4 + number * picture.shape[2] // len(SHOWN), LINE), name, fill="white")
    pixels = torch.frombuffer(bytearray(band.tobytes()), dtype=torch.uint8).view(2 * LINE, -1, 3)
    return torch.cat([pixels.permute(2, 0, 1).to(picture) / 255, picture], dim=1)


def plane_of(image: Tensor, slices: list[int]) -> Tensor:
    """``(C, *S)`` to a picture ``(S[1], S[0])`` in [0, 1]: the largest of the channels, one slice of further axes."""
    plane = image.detach().float()[(..., *slices)].amax(0)
    return plane.clamp(0, 1).T.flip(0).cpu()


class TrainingCurveHandler:
    """Trainer handler: writes ``training.csv`` and ``training.png`` after each epoch.

    Both hold loss, its terms where there are several, and validation metric of all epochs, also of those before an
    interruption.

    Args:
        output_dir: folder of both files.
        evaluator: the engine of the validation, whose key metric is shown.
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine) -> None:
        self.folder = Path(output_dir).expanduser()
        self.evaluator = evaluator
        self.rows: list[Row] = []

    def attach(self, engine: Engine) -> None:
        """Attaches to a trainer; comes after those that resume and validate, before the one that writes ``last.pt``.

        So an epoch that is complete has its row; one without its ``last.pt`` is done again, and gets another.
        """
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.record)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.draw)

    def start(self, trainer: Engine) -> None:
        """Takes up what is known of the epochs that are done, and a validation before the first one."""
        table = self.folder / TABLE
        self.rows = []
        if trainer.state.epoch == 0:  # a table is that of another training
            self.record(trainer)
        elif table.exists():
            self.rows = [row for row in read_rows(table) if row["epoch"] <= trainer.state.epoch]

    def record(self, trainer: Engine) -> None:
        """Adds an epoch."""
        row = {"epoch": float(trainer.state.epoch)}
        names = {"loss": (trainer, "train_loss"), "validation": (self.evaluator, self.evaluator.state.key_metric_name)}
        for column, (engine, name) in names.items():
            if engine.state.epoch == trainer.state.epoch and name in engine.state.metrics:
                row[column] = float(engine.state.metrics[name])
        if "loss" in row:
            terms = {name for name in trainer.state.metrics if name.startswith(TERM)} - {TERM + "loss"}
            row |= {name.removeprefix(TERM): float(trainer.state.metrics[name]) for name in sorted(terms)}
        self.rows.append(row)
        write_rows(self.rows, self.folder / TABLE)

    def draw(self, trainer: Engine) -> None:
        """Writes the picture; without matplotlib, says so."""
        try:
            draw_curves(self.rows, self.folder / CURVES)
        except ImportError as error:
            if trainer.state.epoch < trainer.state.max_epochs:
                return  # once is enough
            logger.warning(f"no {CURVES}: {error}; `pip install matplotlib`. The numbers are in {self.folder / TABLE}")


def read_rows(file: Path) -> list[Row]:
    """The rows of ``training.csv``, without the cells that are empty; none, with a warning, if it was changed."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]
        return sorted(rows, key=lambda row: row["epoch"])
    except (ValueError, KeyError, TypeError, csv.Error):
        logger.warning(f"{file} is not as training wrote it: its rows are left out from now on")
        return []


def write_rows(rows: list[Row], file: Path) -> None:
    """Writes them, whole numbers as such."""
    with replacing(file) as part, part.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, [*COLUMNS, *terms_in(rows)])
        writer.writeheader()
        writer.writerows(row | {"epoch": int(row["epoch"])} for row in rows)


def terms_in(rows: list[Row]) -> list[str]:
    """Names of the terms of the loss, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in COLUMNS))


def column(rows: list[Row], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values, where there are any."""
    known = [row for row in rows if name in row]
    return [row["epoch"] for row in known], [row[name] for row in known]


def draw_curves(rows: list[Row], file: Path) -> None:
    """Loss, with its terms, and validation Dice over epochs, the best epoch marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), dpi=100, layout="constrained")
    loss, dice = figure.subplots(1, 2, sharex=True)
    draw_curve(loss, *column(rows, "loss"), title="Training loss", color="#2f6fb5")
    terms = terms_in(rows)
    for name, color in zip(terms, TERM_COLORS, strict=False):
        loss.plot(*column(rows, name), linewidth=1.0, color=color, label=name)
    if terms:
        loss.lines[0].set_label("sum")
        loss.legend(fontsize=8, frameon=False)
    epochs, values = column(rows, "validation")
    draw_curve(dice, epochs, values, title="Validation Dice", color="#159a57")
    if values:
        best = max(range(len(values)), key=values.__getitem__)  # the first, which is the one that was kept
        dice.plot(epochs[best], values[best], "o", markersize=9, markerfacecolor="none", color=BEST_COLOR)
        dice.axvline(epochs[best], color=BEST_COLOR, linewidth=0.8, linestyle=":")
        dice.set_title(
            f"best {values[best]:.3f} at epoch {epochs[best]:.0f}", loc="right", color=BEST_COLOR, fontsize=10
        )
    with replacing(file) as part:
        FigureCanvasAgg(figure).print_png(str(part))


def draw_curve(axes: Any, epochs: list[float], values: list[float], title: str, color: str) -> None:
    """One curve over epochs."""
    axes.plot(epochs, values, ".-", color=color, linewidth=1.4, markersize=5)
    axes.set_title(title, loc="left", fontsize=11, weight="bold")
    axes.set_xlabel("epoch", fontsize=10)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color="#e8ebee", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
