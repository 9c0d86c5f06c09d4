"""Exported networks give what the eager one gives, on another input than the one that they were exported with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import BUNDLE, rand, random_checkpoint
from monai.bundle import ckpt_export, onnx_export

from istn_monai.registration import Registration

SIZE = [24, 28, 20]
VARIANTS = {
    "istn-bspline": {"spatial_size": SIZE, "control_spacing": [12, 6]},
    "istn-affine-two-channels": {"spatial_size": SIZE, "transformation": "affine", "in_channels": 2},
    "stn-2d": {"spatial_size": [32, 24], "control_spacing": [8], "loss": "u", "soi_labels": [[1]]},
}


@pytest.fixture(params=VARIANTS)
def case(request, tmp_path):
    """A copy of the bundle elsewhere with random weights, its settings, the eager network, an input and its field."""
    bundle = tmp_path / "copy"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models"))
    settings = VARIANTS[request.param] | {"device": "cpu"}
    random_checkpoint(bundle / "models", settings)
    network = Registration(bundle, refine_steps=0, **settings).network
    image = rand(2, 2 * settings.get("in_channels", 1), *settings["spatial_size"], seed=5)
    expected = network(image).detach()  # convolutions in the order of an export: without a gradient they take another
    assert expected.abs().max() > 0.5
    return bundle, settings, network, image, expected


def exported(export, bundle: Path, settings: dict, name: str, **options) -> str:
    """MONAI's command with its defaults, but for the size that the metadata do not know."""
    file = bundle / "models" / name
    export(
        net_id="network_def",
        filepath=str(file),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        **options,
        **settings,
    )
    return str(file)


def shape_of(settings: dict) -> list[int]:
    return [1, 2 * settings.get("in_channels", 1), *settings["spatial_size"]]


@pytest.mark.parametrize("use_trace", [False, True])
def test_torchscript(case, use_trace):
    bundle, settings, _, image, expected = case
    options = {"use_trace": True, "input_shape": shape_of(settings)} if use_trace else {}
    module = torch.jit.load(exported(ckpt_export, bundle, settings, "model.ts", **options))
    with torch.no_grad():
        assert (module(image) - expected).abs().max() < 1e-5


def test_onnx(case):
    onnxruntime = pytest.importorskip("onnxruntime")
    bundle, settings, _, image, expected = case
    file = exported(onnx_export, bundle, settings, "model.onnx", input_shape=shape_of(settings))
    session = onnxruntime.InferenceSession(file)
    fields = [session.run(None, {session.get_inputs()[0].name: one.numpy()})[0] for one in image.split(1)]
    assert np.abs(np.concatenate(fields) - expected.numpy()).max() < 1e-3


def test_torch_export_of_the_network_and_of_the_itn_alone(case, tmp_path):
    _, _, network, image, expected = case
    program = torch.export.export(network, (torch.zeros_like(image),))
    assert (program.module()(image) - expected).abs().max() < 1e-5
    one = image.chunk(2, dim=1)[0]
    torch.export.save(torch.export.export(network.istn.itn, (torch.zeros_like(one),)), tmp_path / "itn.pt2")
    with torch.no_grad():
        found, wanted = torch.export.load(tmp_path / "itn.pt2").module()(one), network.istn.itn(one)
    assert (found - wanted).abs().max() < 1e-5
