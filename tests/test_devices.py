"""Nothing stays behind on the CPU when the rest is on a GPU: all that computes, on an emulated second device."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import config, rand
from monai.bundle import run
from second_device import DEVICE, Far, second_device
from torch import nn

from istn_monai.io.itk_transforms import read_transform
from istn_monai.registration import Registration, register_files
from istn_monai.synthetic.pairs import synthesize

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import gpu

SMALL = {"spatial_size": [32, 32, 32], "control_spacing": [16, 8], "batch_size": 2, "max_epochs": 1}


def test_the_emulated_device_computes_alone():
    with second_device():
        layer, image = nn.Conv3d(1, 2, 3), rand(1, 1, 5, 5, 5)
        expected = layer(image)
        result = layer.to(DEVICE)(image.to(DEVICE))
        assert isinstance(result, Far) and torch.equal(result.cpu(), expected)
        result.square().mean().backward()
        assert isinstance(layer.weight.grad, Far)
        assert torch.equal(result[:, [1, 0], torch.tensor([1, 2])].cpu(), expected[:, [1, 0], torch.tensor([1, 2])])
        for wrong in (lambda: result + expected, lambda: expected[result[0, 0, 0, 0].long()], lambda: layer(image)):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()


def test_the_gpu_benchmark_finds_the_cpus_results(tmp_path, capsys):
    small = {"repeats": 1, "sizes": (16,), "large_size": (16, 24, 16), "pairs": 1, "steps": 2, "batches": (1,)}
    with second_device():
        gpu.main(device=DEVICE, output=str(tmp_path / "gpu.json"), **small)
    shown = capsys.readouterr().out
    assert "one pass against CPU" in shown and "registration," in shown and "written:" in shown


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    synthesize(folder, (32, 32, 32), train=2, validation=1, test=1)
    return folder


def figures(folder: Path) -> np.ndarray:
    """The numbers of an evaluation's table, but for its times."""
    with next(folder.rglob("evaluation.csv")).open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("pair", "moving", "fixed", "method", "seconds")]
    return np.array([[float(row[name] or "nan") for name in names] for row in rows])


@pytest.mark.parametrize(
    "special",
    [
        {"loss": "i", "augment": True},
        {"loss": "u", "similarity": "$monai.losses.LocalNormalizedCrossCorrelationLoss()", "transformation": "affine"},
    ],
    ids=lambda special: special["loss"],
)
def test_training_and_evaluation_of_the_bundle(toy, tmp_path, special):
    """The same as on the CPU, whose arithmetic the emulated device borrows."""
    tables = []
    for device in ("cpu", DEVICE):
        settings = SMALL | special | {"dataset_dir": str(toy), "output_dir": str(tmp_path / device), "device": device}
        with second_device():
            run(run_id="training", config_file=config("train"), **settings)
            small = {"refine_steps": 2, "refine_learning_rate": 0.008}  # larger steps make more of the rounding
            run(run_id="evaluation", config_file=config("train", "evaluate"), **settings, **small)
        tables.append(figures(tmp_path / device))
    assert np.allclose(*tables, rtol=1e-4, atol=1e-5, equal_nan=True)


def by_inference(files: dict[str, str], device: str, folder: Path) -> None:
    settings = {"output_dir": str(folder), "device": device}
    run(run_id="run", config_file=config("inference"), **settings, **files)


def by_command_line(files: dict[str, str], device: str, folder: Path) -> None:
    register_files(Registration(refine_steps=2, device=device), folder, inverse=True, **files)


@pytest.mark.parametrize("register", [by_inference, by_command_line])
def test_registration_of_files(toy, tmp_path, register):
    item = json.loads((toy / "pairs.json").read_text(encoding="utf-8"))["testing"][0]
    files = {key: str(toy / item[key]) for key in ("moving_image", "fixed_image", "moving_label")}
    for device in ("cpu", DEVICE):
        with second_device():
            register(files, device, tmp_path / device)
    for name in ("warped", "warped_label", "displacement", "moving_representation"):
        here, there = (nib.load(tmp_path / device / f"{name}.nii.gz").get_fdata() for device in ("cpu", DEVICE))
        assert np.allclose(here, there, atol=1e-3 * max(1.0, here.max())), name  # intensities have any scale
    assert read_transform(tmp_path / DEVICE / "transform.h5", dims=3)
