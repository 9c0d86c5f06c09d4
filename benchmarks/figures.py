"""The paper's figures 1, 3, 4 and 5, each made by one command.

    python benchmarks/figures.py 1 --output fig1.png                      # the toy before, after intensities, ISTN
    python benchmarks/figures.py 3 --output fig3.png                      # what the ITN makes of it, over training
    python benchmarks/figures.py 4 --output fig4.png --data DATA          # contours after refinement, real MRI
    python benchmarks/figures.py 5 --output fig5.png --data DATA          # M' as heat maps, real MRI

Figures 1 and 3 need no data: the toy is drawn. Figures 4 and 5 take the trainings of Table 1 (``--case hippocampus`` or
``brain``, ``--transformation affine`` or ``bspline``), for which DATA holds the data sets' folders. What is not trained
yet is trained, into ``--runs``; a second call goes on, and re-uses what is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import fire
import torch
from figure_sheets import course_sheet, heat_sheet, structures_sheet, toy_sheet
from figure_trainings import dice, plain, table_trainings, toy_training, with_structures
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from istn_monai.qa.measures import RegisteredPair
from istn_monai.refinement import Refiner

TOY_STAGES = (0, 1, 2, 5, 10, 30)  # epochs that Figure 3 shows, where they exist
INTENSITY_STEPS = 200


def stage(pair: Mapping[str, Tensor], ddf: Tensor) -> tuple[str, RegisteredPair]:
    """A pair at a stage of its registration, and its Dice."""
    registered = with_structures(pair, ddf)
    moved = registered.warped(registered.moving_representation, ddf)
    return f"Dice {dice(moved, registered.fixed_representation):.2f}", registered


def figure1(runs: str, epochs: int | None, pairs: Sequence[int], loss: str = "i") -> Figure:
    """A pair of the toy: before, aligned by its intensities, and by an ISTN; all affine."""
    training = toy_training(loss, "masks", runs, epochs).train()
    pair = training.pair(pairs[0])
    moving, fixed = plain(pair["image"])[None].chunk(2, dim=1)
    intensity = Refiner(steps=INTENSITY_STEPS).register(training.network.transformation, moving, fixed).ddf[0]
    ddfs = {
        "before": torch.zeros_like(intensity),
        "intensity affine": intensity,
        "ISTN": training.refined(pair).ddf[0],
    }
    return toy_sheet({name: stage(pair, ddf) for name, ddf in ddfs.items()})


def figure3(runs: str, epochs: int | None) -> Figure:
    """M' of one pair over the course of training: masks and landmarks, explicit and implicit."""
    rows = {}
    for soi in ("masks", "landmarks"):
        for loss in "ei":
            training = toy_training(loss, soi, runs, epochs).train()
            pair = training.pair(0, "validation")
            stages = {
                f"epoch {stage}": torch.load(training.pictures / f"{stage:04d}.pt", weights_only=True)
                for stage in sorted({*TOY_STAGES, training.epochs})
                if stage <= training.epochs
            }
            rows[f"{soi}, ISTN-{loss}"] = {
                "moving M": plain(pair["image"]).chunk(2)[0],
                **stages,
                "SoI": plain(pair["label"]).chunk(2)[0],
            }
    return course_sheet(rows)


def figure4(case: str, transformation: str, data: str, runs: str, epochs: int | None, pairs: Sequence[int]) -> Figure:
    """Structures' contours over real images after refinement, of all methods."""
    trainings = table_trainings(case, transformation, "usei", data, runs, epochs)
    rows = []
    for number in pairs:
        row: dict[str, tuple[str, RegisteredPair]] = {}
        for name, training in trainings.items():
            pair = training.train().pair(number)
            ddf = training.refined(pair).ddf[0]
            row.setdefault("initial", stage(pair, torch.zeros_like(ddf)))
            row[name] = stage(pair, ddf)
        rows.append(row)
    return structures_sheet(rows, view={"hippocampus": 2, "brain": 1}[case.split("_")[0]])


def figure5(case: str, transformation: str, data: str, runs: str, epochs: int | None, pairs: Sequence[int]) -> Figure:
    """M' of explicit and implicit ISTNs as heat maps over a test image, with the annotated contours."""
    rows = {}
    for name, training in table_trainings(case, transformation, "ei", data, runs, epochs).items():
        pair = training.train().pair(pairs[0])
        with torch.no_grad():
            heat = training.network.represent(plain(pair["image"])[None])[0][0]
        rows[name] = (with_structures(pair, torch.zeros(heat.ndim - 1, *heat.shape[1:])), heat)
    return heat_sheet(rows)


def main(
    figure: int,
    output: str,
    data: str | None = None,
    runs: str = "runs/figures",
    epochs: int | None = None,
    case: str = "hippocampus",
    transformation: str = "bspline",
    pairs: int | Sequence[int] = (0, 1, 2),
) -> None:
    """Draws a figure of the paper, after the trainings that it needs.

    Args:
        figure: 1, 3, 4 or 5.
        output: PNG file.
        data: folder of the data sets, for figures 4 and 5; default the environment's ISTN_DATA_DIR.
        runs: folder of the trainings.
        epochs: of each training; None is what the committed figures have.
        case: of figures 4 and 5, a case of table1.py: "hippocampus", "brain".
        transformation: of figures 4 and 5: "affine", "bspline".
        pairs: number or numbers of the test pairs that are shown; figures 1 and 5 take the first.
    """
    data = data or os.environ.get("ISTN_DATA_DIR", "../shared/data")
    pairs = [pairs] if isinstance(pairs, int) else list(pairs)
    if figure in (1, 3):
        drawn = figure1(runs, epochs, pairs) if figure == 1 else figure3(runs, epochs)
    elif figure in (4, 5):
        draw = {4: figure4, 5: figure5}[figure]
        drawn = draw(case, transformation, data, runs, epochs, pairs)
    else:
        raise ValueError(f"figure must be 1, 3, 4 or 5 (the paper's Figure 2 is a diagram), got {figure!r}")
    save(drawn, output)
    print(f"written: {output}")


def save(figure: Figure, output: str) -> None:
    """As PNG."""
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(output)


if __name__ == "__main__":
    fire.Fire(main)
