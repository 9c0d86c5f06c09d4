"""Tests of `istn_monai.workflow.host_training`: the bundle's training on data that a host such as MONAI Label gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import pytest
import torch
from helpers import BUNDLE, random_checkpoint, write_json, write_subjects
from monai.bundle import ConfigParser

from istn_monai import NetworkSettings
from istn_monai.weights import read_weights
from istn_monai.workflow.datasets import read_pairs
from istn_monai.workflow.host_training import copy_once, output_folder, publish

SMALL = {"spatial_size": [16, 16, 16], "control_spacing": [8, 4], "device": "cpu"}


def hosted_training(folder: Path, training: list, validation: list | None, **settings) -> Path:
    """Runs ``train.json`` as MONAI Label does: flat lists of images, its own handlers, a bundle's folder."""
    configs = folder / "configs"
    configs.mkdir(exist_ok=True)
    for name in ("train.json", "metadata.json"):
        (configs / name).write_bytes((BUNDLE / "configs" / name).read_bytes())
    parser = ConfigParser()
    parser.read_config(str(configs / "train.json"))
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(folder / "models" / "model.pt"),
        "load_dict": {"model": "$@network"},
        "strict": False,
    }
    lists = {"train#dataset#data": training} | ({} if validation is None else {"validate#dataset#data": validation})
    monai.bundle.run(
        run_id="run",
        init_id=None,
        final_id=None,
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "train.json"),
        **{"bundle_root": str(folder), "train#trainer#max_epochs": 1, "num_workers": 0},
        **lists,
        **{"train#handlers": [loader, *parser.get("train#handlers")]},
        **SMALL,
        **settings,
    )
    return next((folder / "runs").iterdir())


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    """A served copy of the bundle, with weights of its own."""
    monkeypatch.chdir(tmp_path)
    random_checkpoint(tmp_path / "served" / "models", SMALL)
    return tmp_path / "served"


def weights(file: Path) -> dict[str, torch.Tensor]:
    return read_weights(file).state


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(one[key], other[key], rtol=0, atol=1e-9) for key in one)


@pytest.mark.parametrize("number", [1, None])
def test_trains_from_the_served_network_and_publishes_the_best(bundle, number, capsys):
    before = weights(bundle / "models" / "model.pt")
    images = write_subjects(bundle.parent / "data", 4)
    validation = images[:number] if number is not None else None
    run = hosted_training(bundle, images[1:], validation, learning_rate=1e-12)
    # with next to no learning rate the network is the one that training began with
    assert equal(weights(run / "models" / "last.pt"), before)
    assert equal(weights(bundle / "models" / "model.pt"), before)
    assert equal(weights(bundle / "models" / "original.pt"), before)
    assert "served from now on" in capsys.readouterr().out
    assert sorted(path.name for path in bundle.parent.iterdir()) == ["data", "served"]  # nothing synthetic


def test_the_first_network_is_kept_through_further_trainings(bundle):
    first = weights(bundle / "models" / "model.pt")
    images = write_subjects(bundle.parent / "data", 3)
    (bundle / "models" / "original.pt").write_bytes((bundle / "models" / "model.pt").read_bytes())
    torch.save({"model": {k: 0 * v for k, v in first.items()}}, bundle / "models" / "model.pt")
    run = hosted_training(bundle, images[1:], images[:1])
    assert equal(weights(bundle / "models" / "original.pt"), first)
    assert equal(weights(bundle / "models" / "model.pt"), weights(run / "models" / "model.pt"))
    assert not equal(weights(run / "models" / "last.pt"), weights(bundle / "models" / "original.pt"))


def half(copy):
    """A copy that ends on a full disk, with half of the file written."""

    def broken(source, target, **_):
        copy(source, target)
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(28, "No space left on device")

    return broken


def test_the_first_network_is_kept_whole_or_not_at_all(bundle, monkeypatch):
    models = bundle / "models"
    before = (models / "model.pt").read_bytes()
    checkpoints = SimpleNamespace(best_file=models / "model.pt")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copy2", half(shutil.copyfile))
        with pytest.raises(OSError, match="No space left"):
            publish(checkpoints, str(bundle))
    assert [file.name for file in models.iterdir()] == ["model.pt"] and (models / "model.pt").read_bytes() == before
    publish(checkpoints, str(bundle))
    assert (models / "original.pt").read_bytes() == before


def test_the_served_bundle_is_copied_whole_or_not_at_all(tmp_path, monkeypatch):
    served = tmp_path / "app" / "model" / "istn"
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copytree", lambda source, target, **_: Path(target).mkdir() or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy_once(BUNDLE, served)
    assert not list(served.parent.iterdir())
    assert copy_once(BUNDLE, served) == served and (served / "configs" / "inference.json").is_file()
    (served / "configs" / "inference.json").write_text("changed", encoding="utf-8")
    copy_once(BUNDLE, served)
    assert (served / "configs" / "inference.json").read_text(encoding="utf-8") == "changed"
    assert [file.name for file in served.parent.iterdir()] == ["istn"]


def test_one_image_is_too_few(bundle):
    with pytest.raises(Exception) as error:
        hosted_training(bundle, write_subjects(bundle.parent / "data", 1), [])
    assert "two labeled images at least, got 1" in str(root(error.value))


def root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def test_the_command_line_is_not_a_host(tmp_path):
    file = write_json(tmp_path / "pairs.json", {"training": [{"moving_image": "a.nii", "fixed_image": "b.nii"}]})
    own, settings = read_pairs(str(tmp_path), file.name, "training"), NetworkSettings(loss="i", transformation="affine")
    assert output_folder(own, str(tmp_path), "mine", settings) == "runs/mine_i_affine"
    folder = output_folder([{"image": "a.nii", "label": "b.nii"}], str(tmp_path), "mine", settings)
    assert folder.startswith(str(tmp_path / "runs"))
