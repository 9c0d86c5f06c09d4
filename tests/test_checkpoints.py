"""Tests of `istn_monai.workflow.checkpoints` and its handlers: interruption, continuation, the best network."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import BUNDLE, perturb, rand, small_istn
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanDice

from istn_monai.losses import ISTNLoss
from istn_monai.network_settings import NetworkSettings
from istn_monai.networks import DisplacementNetwork
from istn_monai.weights import read_weights, save_atomically
from istn_monai.workflow.checkpoints import ELSEWHERE, Checkpoints, load_checkpoint
from istn_monai.workflow.training import (
    FiniteHandler,
    KeepBestHandler,
    KeepLastHandler,
    LoadHandler,
    ResumeHandler,
    ValidateHandler,
    warped_and_fixed_soi,
)

SIZE = (12, 10)
SETTINGS = NetworkSettings(loss="s", transformation="affine", spatial_size=SIZE)
TRAINING = {"batch_size": 2}


class Setup:
    """A tiny training like the bundle's: same handlers, in the bundle's order."""

    def __init__(self, folder: Path, max_epochs=4, settings=SETTINGS, training=TRAINING, metrics=None, size=SIZE):
        self.network_def = DisplacementNetwork(small_istn(size, seed=1))
        network = self.network_def.istn
        images = [rand(2, *size, seed=n) for n in range(4)]
        pairs = [{"image": image, "label": (image > 0.5).float()} for image in images]
        loader = DataLoader(Dataset(pairs), batch_size=2, shuffle=False)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=4)
        self.checkpoints = Checkpoints(folder, self.network_def, settings, training, self.optimizer, self.scheduler)
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=loader,
            network=network,
            key_val_metric={"val_mean_dice": MeanDice(output_transform=warped_and_fixed_soi)},
            val_handlers=[KeepBestHandler(self.checkpoints)],
            decollate=False,
        )
        self.validated: list[int] = []
        self.rates: list[float] = []
        if metrics is not None:  # as if validation had given these
            self.evaluator.run = lambda epoch=1: self.pretend(epoch, metrics)
        handlers = {
            "ResumeHandler": ResumeHandler(self.checkpoints),
            "LrScheduleHandler": LrScheduleHandler(self.scheduler, print_lr=False),
            "ValidateHandler": ValidateHandler(self.evaluator),
            "KeepLastHandler": KeepLastHandler(self.checkpoints),
            "FiniteHandler": FiniteHandler(self.checkpoints),
        }
        self.trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=max_epochs,
            train_data_loader=loader,
            network=network,
            optimizer=self.optimizer,
            loss_function=ISTNLoss("s"),
            train_handlers=[handlers[name] for name in bundle_order() if name in handlers],
            decollate=False,
        )
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self.note_rate)

    def pretend(self, epoch: int, metrics) -> None:
        self.validated.append(epoch)
        self.evaluator.state.epoch = epoch
        self.evaluator.state.key_metric_name = "val_mean_dice"
        self.evaluator.state.metrics = {"val_mean_dice": metrics.get(epoch, float("nan"))}
        self.checkpoints.save_best(self.evaluator)

    def note_rate(self) -> None:
        self.rates.append(self.optimizer.param_groups[0]["lr"])

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.network_def.state_dict().items()}


def bundle_order() -> list[str]:
    config = json.loads((BUNDLE / "configs" / "train.json").read_text(encoding="utf-8"))
    return [handler["_target_"].rsplit(".", 1)[-1] for handler in config["train"]["handlers"]]


def interrupted(folder: Path, after: int, **options) -> Setup:
    """A training of four epochs that is killed when its third would begin."""
    setup = Setup(folder, **options)

    def kill(engine):
        if engine.state.epoch > after:
            raise KeyboardInterrupt

    setup.trainer.add_event_handler(Events.EPOCH_STARTED, kill)
    with pytest.raises(KeyboardInterrupt):
        setup.trainer.run()
    return setup


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 2, 3])
def test_interrupted_and_continued_equals_uninterrupted_to_the_last_bit(tmp_path, after):
    whole = Setup(tmp_path / "whole")
    whole.trainer.run()
    interrupted(tmp_path / "parts", after)
    rest = Setup(tmp_path / "parts")
    rest.trainer.run()
    assert rest.trainer.state.epoch == 4 and rest.trainer.state.iteration == 8
    assert rest.rates == whole.rates[after:], "learning rates"
    assert any(not torch.equal(value, Setup(tmp_path / "x").weights()[name]) for name, value in whole.weights().items())
    for name, value in whole.weights().items():
        assert torch.equal(value, rest.weights()[name]), name


def test_a_finished_training_is_not_trained_further(tmp_path):
    first = Setup(tmp_path)
    first.trainer.run()
    content = (tmp_path / "last.pt").read_bytes()
    again = Setup(tmp_path)
    again.trainer.run()
    assert not again.rates
    assert all(torch.equal(value, again.weights()[name]) for name, value in first.weights().items())
    assert (tmp_path / "last.pt").read_bytes() == content


def test_a_finished_training_can_be_prolonged(tmp_path):
    Setup(tmp_path, max_epochs=2).trainer.run()
    longer = Setup(tmp_path, max_epochs=4)
    longer.trainer.run()
    assert longer.trainer.state.epoch == 4 and len(longer.rates) == 2


def stopped_at(folder: Path, event, when: int, **options) -> Setup:
    """A training that is killed at the given occurrence of an event, after all handlers of the bundle."""
    setup = Setup(folder, **options)

    @setup.trainer.on(event(once=when))
    def kill():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        setup.trainer.run()
    return setup


def test_nothing_is_written_before_the_first_step_has_succeeded(tmp_path):
    stopped_at(tmp_path, Events.ITERATION_STARTED, 1, metrics={0: 0.4})
    assert not list(tmp_path.iterdir())
    Setup(tmp_path, training={"batch_size": 4}).trainer.run()  # the corrected command


def test_after_the_first_step_last_is_there_before_the_best(tmp_path, monkeypatch):
    written = []
    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *a: written.append(a[2].name) or save(*a))
    before = stopped_at(tmp_path, Events.ITERATION_COMPLETED, 1, metrics={0: 0.4})
    assert written == ["last.pt", "model.pt"]
    last, best = read_weights(tmp_path / "last.pt"), read_weights(tmp_path / "model.pt")
    assert last.progress["trainer"]["iteration"] == 0 and best.untrained and best.validation == 0.4
    untrained = Setup(tmp_path / "x").weights()
    assert all(torch.equal(last.state[name], value) for name, value in untrained.items())
    assert all(torch.equal(best.state[name], value) for name, value in untrained.items())
    assert any(not torch.equal(before.weights()[name], value) for name, value in untrained.items())


@pytest.mark.parametrize("best", [True, False])
def test_a_training_without_a_whole_epoch_makes_way_for_other_settings(tmp_path, best):
    stopped_at(tmp_path, Events.ITERATION_COMPLETED, 1, metrics={0: 0.4})
    if not best:
        (tmp_path / "model.pt").unlink()
    Setup(tmp_path, training={"batch_size": 4}, metrics={0: 0.3, 1: 0.2}, max_epochs=1).trainer.run()
    assert read_weights(tmp_path / "model.pt").validation == 0.3  # not the other training's 0.4
    assert read_weights(tmp_path / "last.pt").description["training"] == {"batch_size": 4}


def test_a_first_epoch_whose_network_was_kept_is_not_replaced(tmp_path):
    setup = Setup(tmp_path, metrics={0: 0.4, 1: 0.5})

    @setup.trainer.on(Events.EPOCH_COMPLETED)
    def no_last():  # killed between model.pt and last.pt
        raise KeyboardInterrupt

    setup.checkpoints.save_last = lambda trainer: None
    with pytest.raises(KeyboardInterrupt):
        setup.trainer.run()
    assert read_weights(tmp_path / "model.pt").description["result"]["epoch"] == 1
    with pytest.raises(ValueError, match="batch_size: 2 in the checkpoint, 4 now"):
        Setup(tmp_path, training={"batch_size": 4})


@pytest.mark.parametrize("name", ["model.pt", "last.pt"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_while_or_before_any_file_is_written_it_gives_the_same(tmp_path, monkeypatch, name, number):
    metrics = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.25, 4: 0.4}
    Setup(tmp_path / "whole", metrics=metrics).trainer.run()
    save, calls = Checkpoints.save, []

    def killed(checkpoints, content, file):
        calls.append(file.name)
        if calls.count(name) == number and file.name == name:
            raise KeyboardInterrupt
        save(checkpoints, content, file)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        Setup(tmp_path / "parts", metrics=metrics).trainer.run()
    monkeypatch.undo()
    Setup(tmp_path / "parts", metrics=metrics).trainer.run()
    for file in ("model.pt", "last.pt"):
        whole, parts = (read_weights(tmp_path / folder / file) for folder in ("whole", "parts"))
        assert whole.description == parts.description
        assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items())


def test_last_holds_all_that_is_needed(tmp_path):
    setup = Setup(tmp_path, max_epochs=2)
    setup.trainer.run()
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert set(content) == {"model", "optimizer", "lr_scheduler", "trainer"}
    weights = read_weights(tmp_path / "last.pt")
    assert weights.settings == SETTINGS and weights.description["training"] == TRAINING
    assert set(weights.progress) == {"optimizer", "lr_scheduler", "trainer"}
    assert all(torch.equal(content["model"][name], value) for name, value in setup.weights().items())


# --- the best network ------------------------------------------------------------------------------------------------


def test_best_is_kept_and_a_later_worse_one_does_not_replace_it(tmp_path):
    setup = Setup(tmp_path, metrics={1: 0.5, 2: 0.8, 3: 0.6, 4: 0.7})
    seen = {}
    setup.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.__setitem__(e.state.epoch, setup.weights()))
    setup.trainer.run()
    best = read_weights(tmp_path / "model.pt")
    assert best.description["result"] == {"validation_dice": 0.8, "epoch": 2}
    assert all(torch.equal(best.state[name], value) for name, value in seen[2].items())
    assert best.settings == SETTINGS and not best.progress
    assert "0.8000" in setup.checkpoints.report() and str(tmp_path / "model.pt") in setup.checkpoints.report()


@pytest.mark.parametrize("later, kept", [({3: 0.6, 4: 0.7}, (0.8, 2)), ({3: 0.6, 4: 0.9}, (0.9, 4))])
def test_best_survives_a_resume(tmp_path, later, kept):
    metrics = {1: 0.5, 2: 0.8} | later
    interrupted(tmp_path, 2, metrics=metrics)
    content = (tmp_path / "model.pt").read_bytes()
    rest = Setup(tmp_path, metrics=metrics)
    rest.trainer.run()
    assert rest.validated == [3, 4]
    result = read_weights(tmp_path / "model.pt").description["result"]
    assert (result["validation_dice"], result["epoch"]) == kept
    assert ((tmp_path / "model.pt").read_bytes() == content) == (kept[1] == 2)
    assert f"{kept[0]:.4f}" in rest.checkpoints.report()


def test_an_untrained_best_network_is_said(tmp_path):
    checkpoints = Setup(tmp_path, metrics={0: 0.5, 1: 0.4}).checkpoints
    setup = Setup(tmp_path, max_epochs=1, metrics={0: 0.5, 1: 0.4})
    setup.pretend(0, {0: 0.5})
    assert "epoch 0 is the network before training" in setup.checkpoints.report()
    setup.pretend(1, {1: 0.6})
    assert "before training" not in setup.checkpoints.report() and "epoch 1" in setup.checkpoints.report()
    assert "before training" in checkpoints.report()  # nothing was validated


def test_best_by_a_real_validation(tmp_path):
    setup = Setup(tmp_path, max_epochs=2)
    found = []
    setup.evaluator.add_event_handler(Events.COMPLETED, lambda e: found.append(e.state.metrics["val_mean_dice"]))
    setup.trainer.run()
    assert len(found) == 3
    assert read_weights(tmp_path / "model.pt").validation == pytest.approx(max(found))


def test_nan_is_never_best(tmp_path):
    Setup(tmp_path, metrics={1: float("nan"), 2: 0.3, 3: float("nan"), 4: 0.2}).trainer.run()
    assert read_weights(tmp_path / "model.pt").validation == 0.3


# --- what is not finite ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_before_the_backward_pass(tmp_path):
    Setup(tmp_path, max_epochs=1, training={"learning_rate": 0.5}).trainer.run()
    kept = (tmp_path / "last.pt").read_bytes()
    setup = Setup(tmp_path, training={"learning_rate": 0.5})
    setup.trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda e: e.state.batch["image"].fill_(torch.nan))
    with pytest.raises(ValueError) as error:
        setup.trainer.run()
    said = str(error.value)
    assert "not finite in epoch 2, iteration 4" in said and "lower learning_rate than 0.5" in said
    assert str(tmp_path / "last.pt") in said and "\n" not in said
    assert (tmp_path / "last.pt").read_bytes() == kept


def test_a_gradient_that_is_not_finite_stops_before_the_step(tmp_path):
    setup = Setup(tmp_path)
    before = setup.weights()
    next(iter(setup.network_def.parameters())).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(ValueError, match="its gradient is not finite in epoch 1, iteration 1"):
        setup.trainer.run()
    assert all(torch.equal(before[name], value) for name, value in setup.weights().items())
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    setup = Setup(tmp_path, max_epochs=1)
    with torch.no_grad():
        next(iter(setup.network_def.parameters())).fill_(torch.nan)
    with pytest.raises(ValueError, match="weights are not finite, in .*: try a lower learning_rate"):
        setup.checkpoints.save_last(setup.trainer)
    assert not list(tmp_path.iterdir())


def test_an_unforeseen_error_is_not_swallowed(tmp_path):
    setup = Setup(tmp_path)
    setup.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        setup.trainer.run()


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other, said",
    [
        ({"settings": replace(SETTINGS, transformation="bspline")}, "transformation: 'affine' in the checkpoint"),
        ({"settings": replace(SETTINGS, loss="i")}, "loss: 's' in the checkpoint, 'i' now"),
        ({"settings": replace(SETTINGS, spatial_size=(9, 9))}, "spatial_size: [12, 10] in the checkpoint, [9, 9] now"),
        ({"training": {"batch_size": 4}}, "batch_size: 2 in the checkpoint, 4 now"),
    ],
)
def test_other_settings_are_refused_before_training_and_nothing_is_touched(tmp_path, other, said):
    Setup(tmp_path, max_epochs=1).trainer.run()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"model.pt", "last.pt"}
    with pytest.raises(ValueError) as error:
        Setup(tmp_path, **other)
    assert str(tmp_path / "last.pt") in str(error.value) and said in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_foreign_model_is_refused_and_left_alone(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"shipped weights")
    with pytest.raises(FileExistsError, match=rf"{re.escape(str(tmp_path / 'model.pt'))}.*left alone.*ckpt_dir"):
        Setup(tmp_path)
    assert (tmp_path / "model.pt").read_bytes() == b"shipped weights"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


def test_a_broken_last_is_named(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "last.pt"))):
        Setup(tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == b"garbage"


def test_a_training_on_another_device_can_be_gone_on_with(tmp_path, monkeypatch):
    """Tensors that were saved on a GPU load on a machine without one only if torch.load is told where to."""
    Setup(tmp_path, max_epochs=1).trainer.run()
    load, places = torch.load, []
    monkeypatch.setattr(torch, "load", lambda *a, **k: places.append(k.get("map_location")) or load(*a, **k))
    Setup(tmp_path, max_epochs=2).trainer.run()
    assert places and None not in places


# --- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "half written"])
def test_an_interruption_while_saving_leaves_the_old_file_whole(tmp_path, monkeypatch, moment):
    file = tmp_path / "last.pt"
    save_atomically({"model": torch.ones(3)}, file)
    before = file.read_bytes()

    def fails(content, path):
        if moment == "half written":
            Path(path).write_bytes(before[:40])
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"model": torch.zeros(3)}, file)
    assert file.read_bytes() == before
    monkeypatch.undo()
    save_atomically({"model": torch.zeros(3)}, file)
    assert torch.equal(torch.load(file, weights_only=True)["model"], torch.zeros(3))
    assert [f.name for f in tmp_path.iterdir()] == ["last.pt"]


def test_training_goes_on_after_an_interruption_while_saving(tmp_path, monkeypatch):
    whole = Setup(tmp_path / "whole")
    whole.trainer.run()
    setup = Setup(tmp_path / "parts")
    save, calls = torch.save, []

    def fails_late(content, path):
        calls.append(path)
        if len(calls) > 3:
            raise OSError("disk full")
        save(content, path)

    monkeypatch.setattr(torch, "save", fails_late)
    with pytest.raises(OSError, match="disk full"):
        setup.trainer.run()
    monkeypatch.undo()
    rest = Setup(tmp_path / "parts")
    rest.trainer.run()
    assert 0 < len(rest.rates) < 4
    assert all(torch.equal(value, rest.weights()[name]) for name, value in whole.weights().items())


# --- loading ---------------------------------------------------------------------------------------------------------


def saved_model(folder: Path) -> Path:
    Setup(folder, max_epochs=1).trainer.run()
    return folder / "model.pt"


def test_load_checkpoint_loads_and_returns_all(tmp_path):
    file = saved_model(tmp_path)
    network = perturb(DisplacementNetwork(small_istn(SIZE)), seed=5)
    weights = load_checkpoint(file, network)
    assert {"settings", "training", "result", "versions"} <= set(weights.description)
    assert all(torch.equal(weights.state[name], value) for name, value in network.state_dict().items())


def test_load_checkpoint_takes_a_plain_state_dictionary(tmp_path):
    network = perturb(DisplacementNetwork(small_istn(SIZE)), seed=5)
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    other = DisplacementNetwork(small_istn(SIZE))
    assert load_checkpoint(tmp_path / "plain.pt", other).settings is None
    assert torch.equal(other(rand(1, 2, *SIZE)), network(rand(1, 2, *SIZE)))


def test_load_checkpoint_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"no checkpoint at {re.escape(str(tmp_path / 'model.pt'))}.*ckpt_dir"):
        load_checkpoint(tmp_path / "model.pt", DisplacementNetwork(small_istn(SIZE)))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 not a zip"])
def test_load_checkpoint_garbage(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / 'model.pt'))} is not a checkpoint"):
        load_checkpoint(tmp_path / "model.pt", DisplacementNetwork(small_istn(SIZE)))


@pytest.mark.parametrize("damaged, cause", [("last.pt", "is not a checkpoint"), ("model.pt", "is not a checkpoint"),
                                             ("model.pt as last.pt", "holds weights alone")])  # fmt: skip
def test_files_that_no_training_can_go_on_with_are_told_at_once_and_what_to_do(tmp_path, damaged, cause):
    interrupted(tmp_path, 2)
    if " as " in damaged:
        (tmp_path / "last.pt").write_bytes((tmp_path / "model.pt").read_bytes())
    else:
        (tmp_path / damaged).write_bytes((tmp_path / damaged).read_bytes()[:1000])
    with pytest.raises(ValueError) as error:
        Setup(tmp_path)
    said = str(error.value)
    assert f"{tmp_path / damaged.split()[-1]} {cause}" in said
    assert said.endswith(f"(to train here, move {tmp_path} away first; or {ELSEWHERE})")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": 3}])
def test_load_checkpoint_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "model.pt"))):
        load_checkpoint(tmp_path / "model.pt", DisplacementNetwork(small_istn(SIZE)))


def test_load_checkpoint_of_another_architecture(tmp_path):
    file = saved_model(tmp_path)
    network = DisplacementNetwork(small_istn(SIZE, channels=3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} does not fit the network"):
        load_checkpoint(file, network)
    assert set(before) == set(network.state_dict())


def test_load_handler_loads_when_the_engine_starts(tmp_path):
    file = saved_model(tmp_path)
    network = perturb(DisplacementNetwork(small_istn(SIZE)), seed=5)
    loader = DataLoader(Dataset([{"image": rand(2, *SIZE), "label": rand(2, *SIZE)}]))
    evaluator = SupervisedEvaluator(
        device="cpu", val_data_loader=loader, network=network, val_handlers=[LoadHandler(file, network)]
    )
    evaluator.run()
    expected = torch.load(file, weights_only=True)
    assert all(torch.equal(expected[name], value) for name, value in network.state_dict().items())
