"""The bundle's training: killed and gone on with, watched, failing; its numbers are those of an uninterrupted one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import config
from monai.bundle import run
from monai.handlers import mlflow_handler

from istn_monai.networks import ISTN
from istn_monai.synthetic.pairs import synthesize
from istn_monai.weights import read_weights
from istn_monai.workflow.checkpoints import Checkpoints
from istn_monai.workflow.run_lock import HELD

TINY = {
    "spatial_size": [16, 16], "spacing": 2, "control_spacing": [16, 8], "initial_alignment": "world", "device": "cpu",
    "batch_size": 2, "max_epochs": 3, "val_interval": 2, "augment": True, "training_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    synthesize(folder, (32, 32), train=4, validation=1, test=1)
    return folder


def train(toy, output, **options) -> None:
    settings = TINY | {"dataset_dir": str(toy), "output_dir": str(output)} | options
    run(run_id="training", config_file=config("train"), **settings)


class Client:
    """As much of MLflow's as MONAI's handler calls."""

    logged: list[tuple[str, float, int]] = []

    def __init__(self, tracking_uri):
        self.experiment = SimpleNamespace(experiment_id="0", lifecycle_stage="active")
        self.run = SimpleNamespace(info=SimpleNamespace(run_id="0", status="RUNNING"), data=SimpleNamespace(params={}))

    def get_experiment_by_name(self, name):
        return self.experiment

    def search_runs(self, experiment):
        return []

    def create_run(self, experiment_id, run_name):
        return self.run

    def get_run(self, number):
        return self.run

    def log_batch(self, run_id, metrics, params, tags):
        self.logged.extend((key, float(value), step) for key, value, _, step in metrics)

    def log_artifact(self, *_):
        pass

    def set_terminated(self, *_):
        pass


@pytest.fixture
def mlflow(monkeypatch):
    """MLflow, which is large and not needed, as MONAI sees it; what is logged."""
    stages, status = SimpleNamespace(ACTIVE="active"), SimpleNamespace(FINISHED=3, to_string=str)
    entities = SimpleNamespace(
        Metric=lambda *values: values, Param=lambda *values: values, LifecycleStage=stages, RunStatus=status
    )
    monkeypatch.setattr(mlflow_handler, "mlflow", SimpleNamespace(MlflowClient=Client, entities=entities))
    monkeypatch.setattr(Client, "logged", [])
    return Client.logged


def test_killed_and_gone_on_with_a_training_gives_the_same_whatever_loads_its_data(toy, tmp_path, mlflow, monkeypatch):
    train(toy, tmp_path / "whole", tracking="mlflow")
    steps = {step for key, value, step in mlflow if key == "train_loss" and value > 0}
    assert steps >= set(range(1, 7)) and "val_mean_dice" in {key for key, _, _ in mlflow}

    save_last, options = Checkpoints.save_last, {"num_workers": 1, "cache_dir": str(tmp_path / "cache")}

    def killed(checkpoints, trainer):
        if trainer.state.epoch == 2:  # model.pt, the table and TensorBoard have epoch 2, last.pt has not
            raise KeyboardInterrupt
        save_last(checkpoints, trainer)

    monkeypatch.setattr(Checkpoints, "save_last", killed)
    with pytest.raises(KeyboardInterrupt):
        train(toy, tmp_path / "parts", **options)
    monkeypatch.undo()
    assert not HELD
    train(toy, tmp_path / "parts", **options)
    for name in ("model.pt", "last.pt"):
        whole, parts = (read_weights(tmp_path / folder / "models" / name) for folder in ("whole", "parts"))
        assert whole.description == parts.description
        assert all(torch.equal(value, parts.state[key]) for key, value in whole.state.items())
    tables = [(tmp_path / folder / "training.csv").read_text(encoding="utf-8") for folder in ("whole", "parts")]
    assert tables[0] == tables[1] and [line[0] for line in tables[0].split()] == ["e", "0", "1", "2", "3"]
    assert (tmp_path / "parts" / "training.png").exists()
    left = {file.name for file in (tmp_path / "parts" / "models").iterdir()}
    assert left == {"model.pt", "last.pt", "how_to_register.txt"}


def test_a_network_that_gives_nan_stops_and_leaves_no_checkpoint(toy, tmp_path, monkeypatch):
    forward = ISTN.forward

    def broken(network, image):
        output = forward(network, image)
        return output._replace(ddf=output.ddf * torch.nan) if network.training else output

    monkeypatch.setattr(ISTN, "forward", broken)
    with pytest.raises(RuntimeError) as failure:
        train(toy, tmp_path, max_epochs=1)
    said = str(failure.value.__cause__)
    assert "is not finite in epoch 1, iteration 1: try a lower learning_rate than 0.001 or training_dtype" in said
    assert not list((tmp_path / "models").iterdir())
