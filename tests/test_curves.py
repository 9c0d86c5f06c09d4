"""Tests of `istn_monai.workflow.curves`: pictures of pairs for TensorBoard, and the curves of a training."""

from __future__ import annotations

import csv
import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import rand, random_output, small_istn
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from PIL import Image

from istn_monai.qa.measures import largest_slices
from istn_monai.workflow.curves import (
    LINE,
    PairImageHandler,
    TrainingCurveHandler,
    column,
    draw_curves,
    pair_picture,
    plane_of,
    read_rows,
    write_rows,
)

SIZE = (12, 10)


# ---- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, channels", [((12, 10), 1), ((12, 10), 2), ((7, 9, 11), 1), ((7, 9, 11), 3)])
def test_pair_picture_is_a_row_of_five_in_color(size, channels):
    output = random_output(size, channels=channels)
    output = output._replace(moving_representation=50 * output.moving_representation - 20)
    label = (rand(2, 2 * channels, *size, seed=7) > 0.5).float()
    picture = pair_picture(output, label)
    assert picture.shape == (3, size[1], 5 * size[0])
    assert picture.min() >= 0 and picture.max() <= 1
    gray, color = picture[..., : 4 * size[0]], picture[..., 4 * size[0] :]
    assert torch.equal(gray[0], gray[1]) and torch.equal(gray[0], gray[2])
    assert color[0].any() and color[1].any() and torch.equal(color[0], color[2])  # magenta and green


def test_pair_picture_shows_fixed_then_moving_warped():
    output = random_output((6, 5))
    output = output._replace(ddf=torch.zeros_like(output.ddf))
    picture = pair_picture(output, rand(2, 2, 6, 5))
    shown = [output.image[0, 1], output.image[0, 0], output.fixed_representation[0, 0]]
    shown += [output.moving_representation[0, 0]]
    for number, image in enumerate(shown):
        torch.testing.assert_close(picture[0, :, 6 * number : 6 * (number + 1)], image.T.flip(0))


def test_it_is_cut_where_the_structure_is_largest():
    soi = torch.zeros(2, 4, 5, 7)
    soi[0, 1, 2, 3], soi[1, 1:3, 2, 5] = 1.0, 1.0
    assert largest_slices(soi)[2:] == [5] and largest_slices(soi[..., 0])[2:] == []
    plane = plane_of(soi, [5])
    assert plane.shape == (5, 4) and plane.sum() == 2 and plane[5 - 1 - 2, 1:3].all()


def test_gray_means_the_same_at_all_epochs():
    assert torch.equal(plane_of(torch.full((1, 4, 5), 0.25), []), torch.full((5, 4), 0.25))
    assert torch.equal(plane_of(torch.tensor([[[-2.0, 3.0]]]), []), torch.tensor([[1.0], [0.0]]))


@pytest.mark.parametrize("number, shown", [(5, [1, 2, 3]), (2, [1, 2])])
def test_the_first_pairs_are_shown_at_each_validation(tmp_path, number, shown):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pairs = [{"image": rand(2, *SIZE, seed=n), "label": rand(2, *SIZE, seed=n)} for n in range(number)]
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(pairs)),
        network=small_istn(SIZE),
        val_handlers=[PairImageHandler(str(tmp_path))],
        decollate=False,
    )
    for epoch in (0, 1, 3):
        evaluator.run(epoch)
    events = accumulators.EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == [f"validation pair {n}" for n in shown]
    assert [event.step for event in events.Images("validation pair 2")] == [0, 1, 3]
    first = events.Images("validation pair 1")[0]
    assert (first.width, first.height) == (180, 30 + 2 * LINE)


# ---- curves ----------------------------------------------------------------------------------------------------------

DICE = {0: 0.2, 2: 0.7, 4: 0.6, 6: 0.65}  # validated every second epoch


def trained(folder, epochs: int, start: int = 0, stop: int | None = None) -> None:
    """A training of losses 1 / epoch, taken up after `start` and interrupted after `stop`."""
    evaluator = SimpleNamespace(state=SimpleNamespace(key_metric_name="val_mean_dice", epoch=-1, metrics={}))
    trainer = Engine(lambda engine, batch: None)

    def validate(engine):
        engine.state.metrics["train_loss"] = 1 / max(engine.state.epoch, 1)
        if engine.state.epoch in DICE:
            evaluator.state.epoch = engine.state.epoch
            evaluator.state.metrics["val_mean_dice"] = DICE[engine.state.epoch]

    def begin(engine):
        engine.state.epoch = start
        if start == 0:
            evaluator.state.epoch, evaluator.state.metrics["val_mean_dice"] = 0, DICE[0]

    def end(engine):
        if engine.state.epoch == stop:
            raise KeyboardInterrupt

    trainer.add_event_handler(Events.STARTED, begin)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    TrainingCurveHandler(folder, evaluator).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, end)
    trainer.run([0], max_epochs=epochs)


def test_curves_hold_loss_and_dice_of_all_epochs(tmp_path):
    trained(tmp_path, 6)
    rows = read_rows(tmp_path / "training.csv")
    assert column(rows, "validation") == ([0, 2, 4, 6], list(DICE.values()))
    assert column(rows, "loss") == ([1, 2, 3, 4, 5, 6], [1 / n for n in range(1, 7)])
    with (tmp_path / "training.csv").open() as lines:
        assert list(csv.reader(lines))[:3] == [["epoch", "loss", "validation"], ["0", "", "0.2"], ["1", "1.0", ""]]
    picture = Image.open(tmp_path / "training.png")
    assert picture.size[0] > 800 and len(set(picture.convert("RGB").getdata())) > 20


def test_terms_of_the_loss_stand_beside_it(tmp_path):
    rows = [
        {"epoch": 0.0, "validation": 0.2},
        {"epoch": 1.0, "loss": 3.0, "validation": 0.4, "stn_s": 1.0, "image": 2.0},
    ]
    write_rows(rows, tmp_path / "training.csv")
    assert (tmp_path / "training.csv").read_text().splitlines()[0] == "epoch,loss,validation,stn_s,image"
    assert read_rows(tmp_path / "training.csv") == rows
    draw_curves(rows, tmp_path / "training.png")
    assert Image.open(tmp_path / "training.png").size[0] > 800


@pytest.mark.parametrize("resumed_after", [3, 2])  # 2: killed between the table and the checkpoint
def test_a_resumed_training_shows_the_whole_history_once(tmp_path, resumed_after):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, 6, stop=3)
    assert (tmp_path / "training.png").exists()  # renewed after each epoch
    trained(tmp_path, 6, start=resumed_after)
    interrupted = (tmp_path / "training.csv").read_text(encoding="utf-8")
    trained(tmp_path / "other", 6)
    assert interrupted == (tmp_path / "other" / "training.csv").read_text(encoding="utf-8")
    assert (tmp_path / "training.png").exists()


@pytest.mark.parametrize(
    "content", ["epoch;loss\n1;0,5\n", "epoch,loss\nx,1\n", "", "loss\n1\n", "epoch,loss\n1,2,3\n"]
)
def test_a_table_that_was_changed_does_not_stop_a_training(tmp_path, content):
    (tmp_path / "training.csv").write_text(content, encoding="utf-8")
    trained(tmp_path, 4, start=3)
    assert [row["epoch"] for row in read_rows(tmp_path / "training.csv")] == [4]


def test_a_new_training_begins_a_new_table(tmp_path):
    trained(tmp_path, 6)
    trained(tmp_path, 2)
    assert column(read_rows(tmp_path / "training.csv"), "loss") == ([1, 2], [1, 0.5])


def test_without_matplotlib_it_says_so_and_training_ends_well(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        trained(tmp_path, 2)
    assert "no training.png" in caplog.text and "pip install matplotlib" in caplog.text
    assert (tmp_path / "training.csv").exists() and not (tmp_path / "training.png").exists()
