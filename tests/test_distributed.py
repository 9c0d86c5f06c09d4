"""Two processes on CPUs, as torchrun starts them: they train one network and split the pairs of an evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import run
from test_bundle import SMALL, config, toy, trained  # noqa: F401

from istn_monai.weights import read_weights
from istn_monai.workflow.distributed import gathered, start

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def torchrun(*arguments: str) -> str:
    """Two processes; what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def bundle_run(run_id: str, files: list[str], settings: dict) -> str:
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return torchrun("-m", "monai.bundle", "run", run_id, "--config_file", str(files), *options)


def test_two_processes_train_and_evaluate_like_one(toy, tmp_path):  # noqa: F811
    settings = {k: v for k, v in SMALL.items() if k != "device"} | {"dataset_dir": str(toy), "batch_size": 1}
    settings |= {"output_dir": str(tmp_path / "out"), "refine_steps": 3}
    output = bundle_run("training", config("train", "multi_gpu_train"), settings)
    assert output.count("best validation Dice") == 1
    checkpoint = torch.load(tmp_path / "out" / "models" / "last.pt", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 4  # 4 pairs, 2 for each process, 2 epochs
    weights = read_weights(tmp_path / "out" / "models" / "model.pt")
    assert weights.description["training"]["processes"] == 2
    assert not any(key.startswith("module.") for key in weights.state)
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 3  # the first process' handlers alone

    output = bundle_run("evaluation", config("train", "evaluate", "multi_gpu_evaluate"), settings)
    assert output.count("evaluation.csv") == 1
    merged = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    one = settings | {"ckpt_dir": str(tmp_path / "out/models"), "output_dir": str(tmp_path / "one"), "device": "cpu"}
    run(run_id="evaluation", config_file=config("train", "evaluate"), **one)
    single = json.loads((tmp_path / "one" / "evaluation.json").read_text(encoding="utf-8"))
    for mine, its in zip(merged["pairs"], single["pairs"], strict=True):
        assert mine.keys() == its.keys()
        assert {k: v for k, v in mine.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in its.items() if k != "seconds"}, abs=1e-6, nan_ok=True
        )
    assert merged["field_std_voxels"] == pytest.approx(single["field_std_voxels"], rel=1e-5)


def test_each_pair_of_a_datalist_is_registered_once(toy, trained, tmp_path):  # noqa: F811
    output, settings = trained
    options = {key: settings[key] for key in ("spatial_size", "control_spacing")}
    options |= {"ckpt_dir": output / "models", "output_dir": tmp_path, "refine_steps": 0}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    printed = torchrun("-m", "istn_monai", "register", str(Path(toy) / "pairs.json"), *words)
    assert printed.count("registered: results in") == 2
    assert sorted(file.name for file in tmp_path.glob("pair_*")) == ["pair_0000", "pair_0001"]
    assert [file.name for file in tmp_path.glob("qa*")] == ["qa.html"]
    page = (tmp_path / "qa.html").read_text(encoding="utf-8")
    assert "pair_0000" in page and "pair_0001" in page


def test_processes_that_know_nothing_of_each_other_are_refused(toy, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    settings = SMALL | {"dataset_dir": str(toy), "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as failure:
        run(run_id="training", config_file=config("train"), **settings)
    error = failure.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert "add multi_gpu_train.json" in str(error) and not (tmp_path / "models").exists()


def test_without_torchrun_nothing_is_connected():
    assert gathered({"a": 1}) == [{"a": 1}]
    with pytest.raises(ValueError, match="needs torchrun"):
        start("cpu")
