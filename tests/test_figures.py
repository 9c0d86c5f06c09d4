"""The paper's figures: their scripts train once, go on, and draw what the captions say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ball
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
pytest.importorskip("tensorboard")
import figure_sheets
import figure_trainings
import figures
from monai.data import MetaTensor

SIZE = (20, 28, 24)


def pair_3d(shift: int = 2) -> dict[str, MetaTensor]:
    soi = [torch.as_tensor(ball(SIZE, (10, 14 + s, 12), 5)).float() for s in (shift, 0)]
    return {"image": MetaTensor(torch.stack([0.2 + 0.5 * one for one in soi])), "label": MetaTensor(torch.stack(soi))}


def shifted(voxels: float) -> torch.Tensor:
    return torch.tensor([0.0, voxels, 0.0])[:, None, None, None].expand(3, *SIZE).clone()


def colors(figure, color) -> int:
    """How many pixels of a drawn figure are nearly of a color."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    return int((np.abs(pixels - to_rgb(color)).max(-1) < 0.1).sum())


@pytest.fixture
def small_toy(monkeypatch):
    monkeypatch.setattr(figure_trainings, "TOY_SIZE", (32, 32))
    monkeypatch.setattr(figure_trainings, "TOY_PAIRS", 2)
    small = figure_trainings.synthesize
    monkeypatch.setattr(figure_trainings, "synthesize", lambda *a, **k: small(*a, **k, validation=1, test=1))


def test_toy_figures_train_once(small_toy, tmp_path, monkeypatch):
    settings = {"runs": str(tmp_path / "runs"), "epochs": 1}
    figures.main(1, str(tmp_path / "one.png"), **settings)
    trained = []
    run = figure_trainings.run
    monkeypatch.setattr(figure_trainings, "run", lambda **k: (trained.append(k["output_dir"]), run(**k)))
    figures.main(3, str(tmp_path / "three.png"), **settings)
    assert [Path(folder).name for folder in trained] == ["toy_masks_e", "toy_landmarks_e", "toy_landmarks_i"]
    figures.main(3, str(tmp_path / "again.png"), **settings)
    assert len(trained) == 3
    assert (tmp_path / "three.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert Image.open(tmp_path / "one.png").width > 1000


def test_a_stage_has_the_dice_of_its_displacement():
    assert figures.stage(pair_3d(2), shifted(2))[0] == "Dice 1.00"
    assert figures.stage(pair_3d(2), shifted(0))[0] != "Dice 1.00"


@pytest.mark.parametrize("view", [0, 1, 2])
def test_contours_are_magenta_and_green_until_they_agree(view):
    drawn = {}
    for voxels in (0.0, 2.0):
        row = {"initial": figures.stage(pair_3d(2), shifted(voxels))}
        drawn[voxels] = colors(figure_sheets.structures_sheet([row], view), figure_sheets.FIXED)
    assert drawn[0.0] > 50  # the moving contour is drawn last, over the fixed one
    assert drawn[2.0] < drawn[0.0]


def test_close_ups_hold_the_structures_of_all_pairs():
    rows = [{"initial": figures.stage(pair_3d(s), shifted(0))} for s in (0, 6)]
    plane = figure_sheets.planes_of(rows[0]["initial"][1])[0]
    across, up = figure_sheets.box(rows, plane, margin=3.0)
    assert (across, up) == (5 + 3, (10 + 6) / 2 + 3)


def test_heat_maps_are_as_hot_as_the_representation():
    pair = figures.stage(pair_3d(), shifted(0))[1]
    hottest = 0.75 * np.array([0xD7, 0x00, 0x2B]) / 255 + 0.25 * 0.7  # over the structure's gray
    drawn = {}
    for heat in (0.0, 1.0):
        sheet = figure_sheets.heat_sheet({"ISTN-e": (pair, heat * pair.moving_representation)})
        drawn[heat] = colors(sheet, tuple(hottest))
    assert drawn[1.0] > drawn[0.0] + 1000


def test_the_diagram_is_no_figure():
    with pytest.raises(ValueError, match="figure must be 1, 3, 4 or 5"):
        figures.main(2, "two.png")
