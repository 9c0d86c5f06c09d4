"""The bundle from end to end, as its users run it: train, go on, evaluate, register, export."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLE, config, messages
from monai.bundle import ConfigParser, ConfigWorkflow, load, run, verify_metadata, verify_net_in_out
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from istn_monai import NetworkSettings
from istn_monai.options import SETTINGS
from istn_monai.synthetic.pairs import synthesize
from istn_monai.weights import read_weights
from istn_monai.workflow.result_folders import OUTPUTS

CONFIGS = BUNDLE / "configs"
SMALL = {"spatial_size": [32, 32, 32], "control_spacing": [16, 8], "device": "cpu", "batch_size": 2, "max_epochs": 2}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small synthetic set."""
    folder = tmp_path_factory.mktemp("toy")
    synthesize(folder, (32, 32, 32), train=4, validation=2, test=2)
    return folder


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    """The folder of two epochs of training on it, and the settings."""
    output = tmp_path_factory.mktemp("trained")
    settings = SMALL | {"dataset_dir": str(toy), "output_dir": str(output)}
    run(run_id="training", config_file=config("train"), **settings)
    return output, settings


def test_training_leaves_checkpoints_curves_and_pictures(trained):
    output, _ = trained
    assert {file.name for file in (output / "models").iterdir()} == {"model.pt", "last.pt", "how_to_register.txt"}
    log = EventAccumulator(str(output / "tensorboard"))
    log.Reload()
    assert {"train_loss", "train_loss_iteration", "val_mean_dice"} <= set(log.Tags()["scalars"])
    assert log.Tags()["images"] == [f"validation pair {n + 1}" for n in range(len(log.Tags()["images"]))] != []
    assert (output / "training.png").stat().st_size > 5000 and (output / "training.csv").exists()
    log = (output / "training.log").read_text(encoding="utf-8")
    assert "training: 4 pairs, 2 for validation, of " in log and "on cpu (" in log and "learning_rate" in log
    lines = [line.split("  ", 1)[1] for line in log.splitlines()]
    assert lines[3].startswith("before training  validation Dice 0.")
    assert lines[4].startswith("epoch 1/2  loss ") and "left" in lines[4]
    assert lines[5].startswith("epoch 2/2  loss ") and "left" not in lines[5]
    assert lines[6].startswith("best validation Dice") and "how_to_register.txt" in lines[7]
    checkpoint = torch.load(output / "models" / "last.pt", weights_only=True)
    assert checkpoint["trainer"]["iteration"] == 4
    weights = read_weights(output / "models" / "model.pt")
    assert weights.settings.spatial_size == [32, 32, 32] and weights.validation is not None
    assert weights.description["training"]["normalization"] == "NormalizeIntensityRanged(lower=0.5, upper=99.5)"
    assert json.loads((output / "run.json").read_text(encoding="utf-8"))["datalist"].endswith("pairs.json")


def test_training_goes_on_and_refuses_other_settings(trained, tmp_path):
    output, settings = trained
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.pt", "last.pt"):
        (copy / name).write_bytes((output / "models" / name).read_bytes())
    run(run_id="training", config_file=config("train"), **settings | {"ckpt_dir": str(copy), "max_epochs": 3})
    assert torch.load(copy / "last.pt", weights_only=True)["trainer"]["iteration"] == 6
    before = (copy / "last.pt").read_bytes()
    with pytest.raises(RuntimeError) as failure:
        run(run_id="training", config_file=config("train"), **settings | {"ckpt_dir": str(copy), "learning_rate": 0.1})
    assert "last.pt" in messages(failure.value) and "learning_rate" in messages(failure.value)
    assert (copy / "last.pt").read_bytes() == before


@pytest.fixture(scope="module")
def evaluated(trained):
    output, settings = trained
    run(run_id="evaluation", config_file=config("train", "evaluate"), **settings)
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))


def test_evaluation_compares_before_and_after(trained, evaluated):
    assert set(evaluated["summary"]) == {"Id", "one-pass"}
    assert [row["method"] for row in evaluated["pairs"]] == ["Id", "one-pass"] * 2
    one_pass = evaluated["summary"]["one-pass"]
    assert {"dice_merged", "dice_1", "dice_2", "asd_merged", "hd95_1", "folding", "sdlogj", "seconds"} <= set(one_pass)
    assert one_pass["folding"]["mean"] == 0
    lines = (trained[0] / "evaluation.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5 and lines[0].startswith("pair,moving,fixed,method,dice_merged")


def test_evaluation_after_refinement(trained, tmp_path):
    output, settings = trained
    settings = settings | {"ckpt_dir": str(output / "models"), "output_dir": str(tmp_path), "refine_steps": 3}
    run(run_id="evaluation", config_file=config("train", "evaluate"), **settings)
    summary = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["summary"]
    assert list(summary) == ["Id", "one-pass", "refined"]


def test_refinement_differs_from_inference_by_its_inferer_alone():
    inference, overlay = (
        json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")) for name in ("inference", "refine")
    )
    assert list(overlay) == ["inferer"] and inference["inferer"] != overlay["inferer"]
    assert inference["refinement"] == "@run"


def test_inference_from_elsewhere_agrees_with_evaluation(toy, trained, evaluated, tmp_path, monkeypatch):
    output, settings = trained
    pair = json.loads((toy / "pairs.json").read_text(encoding="utf-8"))["testing"][0]
    files = {key: str(toy / pair[key]) for key in ("moving_image", "fixed_image", "moving_label")}
    monkeypatch.chdir(tmp_path)
    options = {key: settings[key] for key in ("spatial_size", "control_spacing", "device")}
    run(
        run_id="inference",
        config_file=config("inference"),
        output_dir="result",
        ckpt_dir=str(output / "models"),
        **files,
        **options,
    )
    result = tmp_path / "result"
    asked_for = {"inverse_transform.h5", "moved_points.csv", "jacobian.nii.gz"}
    assert {file.name for file in result.iterdir()} == set(OUTPUTS) - asked_for
    fixed, warped = nib.load(files["fixed_image"]), nib.load(result / "warped.nii.gz")
    assert warped.shape == fixed.shape
    assert np.abs(warped.affine - fixed.affine).max() < 1e-5
    representation = nib.load(result / "moving_representation.nii.gz")
    assert representation.shape == (32, 32, 32, 2)
    label = np.asanyarray(nib.load(result / "warped_label.nii.gz").dataobj)
    truth = np.asanyarray(nib.load(toy / pair["fixed_label"]).dataobj)
    row = next(row for row in evaluated["pairs"] if row["pair"] == 0 and row["method"] == "one-pass")
    for value in (1, 2):
        dice = 2 * ((label == value) & (truth == value)).sum() / ((label == value).sum() + (truth == value).sum())
        assert abs(dice - row[f"dice_{value}"]) < 0.01  # files: from the parameters; evaluation: from the ddf
    report = json.loads((result / "report.json").read_text(encoding="utf-8"))
    assert report["inputs"]["moving_image"]["file"] == files["moving_image"]
    assert report["metrics"]["folding"] == 0


def files_in(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_inference_and_evaluation_do_not_repeat_or_replace_what_is_there(toy, trained, tmp_path, capsys):
    """By the setting overwrite a result of other files or options is replaced, and nothing of it stays."""
    output, settings = trained
    pair = json.loads((toy / "pairs.json").read_text(encoding="utf-8"))["testing"][0]
    files = {key: str(toy / pair[key]) for key in ("moving_image", "fixed_image", "moving_label")}
    options = {"ckpt_dir": str(output / "models"), "device": "cpu", "qa": False}
    inference = {"config_file": config("inference"), "output_dir": str(tmp_path / "pair"), **options, **files}
    evaluation = settings | {"config_file": config("train", "evaluate"), "output_dir": str(tmp_path / "all"), **options}
    for run_id, given, other, said in (
        ("inference", inference, {"moving_label": None}, "moving_label: .* then, none now"),
        ("evaluation", evaluation, {"refine_steps": 1}, "refined.* now"),
    ):
        folder = tmp_path / {"inference": "pair", "evaluation": "all"}[run_id]
        run(run_id=run_id, **given)
        before = files_in(folder)
        capsys.readouterr()
        run(run_id=run_id, **given)
        assert files_in(folder) == before and " before: " in capsys.readouterr().out
        with pytest.raises(RuntimeError) as failure:
            run(run_id=run_id, **given | other)
        assert re.search(f"{said}.*--overwrite", messages(failure.value)) and files_in(folder) == before
        run(run_id=run_id, **given | other, overwrite=True)
        after = files_in(folder)
        assert not set(after.values()) & set(before.values())
        assert set(before) - set(after) == ({"warped_label.nii.gz"} if run_id == "inference" else set())


@pytest.mark.parametrize("loss", ["u", "s", "e"])
@pytest.mark.parametrize("transformation", ["affine", "bspline"])
def test_every_variant_trains(toy, tmp_path, loss, transformation):
    settings = SMALL | {"dataset_dir": str(toy), "output_dir": str(tmp_path), "max_epochs": 1, "augment": True}
    run(run_id="training", config_file=config("train"), **settings, loss=loss, transformation=transformation)
    weights = torch.load(tmp_path / "models" / "last.pt", weights_only=True)["model"]
    assert any(name.startswith("istn.itn.") for name in weights) == (loss not in "us")


def test_two_dimensions_with_the_papers_networks(tmp_path):
    synthesize(tmp_path / "toy", (48, 40), train=4, validation=2, test=2)
    settings = {"dataset_dir": str(tmp_path / "toy"), "output_dir": str(tmp_path / "run"), "device": "cpu"}
    settings |= {"spatial_size": [48, 40], "max_epochs": 1, "soi_labels": [[1, 2]], "initial_alignment": "center"}
    configs = ("train", "paper", "synth2d")
    run(run_id="training", config_file=config(*configs), **settings)
    run(run_id="evaluation", config_file=config(*configs, "evaluate"), **settings)
    summary = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))["summary"]
    assert summary["one-pass"]["dice_merged"]["n"] == 2


def test_hosts_find_all_they_need(toy, tmp_path):
    train = ConfigWorkflow(
        config("train"), workflow_type="train", dataset_dir=str(toy), output_dir=str(tmp_path), **SMALL
    )
    train.initialize()
    assert train.check_properties() == []
    inference = ConfigWorkflow(config("inference"), workflow_type="infer")
    inference.initialize()
    assert inference.check_properties() == []


def test_network_matches_its_metadata():
    meta = str(CONFIGS / "metadata.json")
    verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config("inference"), device="cpu")


def test_metadata_follows_the_schema(data_dir):
    schema = data_dir / "meta_schema_20240725.json"
    if not schema.exists():
        pytest.skip(f"MONAI's schema is not in {data_dir} (ISTN_DATA_DIR)")
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))


def test_the_training_config_has_the_defaults_of_the_settings_and_the_shipped_weights_share_them():
    parser = ConfigParser()
    parser.read_config(config("train"))
    assert parser.get_parsed_content("settings") == NetworkSettings()
    shipped = read_weights(CONFIGS.parent / "models" / "model.pt").settings
    assert replace(shipped, loss="i") == NetworkSettings()


def test_monai_loads_all_variables_and_writes_nothing(tmp_path, monkeypatch):
    shutil.copytree(CONFIGS.parent, tmp_path / "bundles" / "istn")
    before = {file: file.read_bytes() for file in (tmp_path / "bundles").rglob("*") if file.is_file()}
    monkeypatch.chdir(tmp_path)
    network = load("istn", bundle_dir=str(tmp_path / "bundles"), source="github")
    expected = torch.load(CONFIGS.parent / "models" / "model.pt", weights_only=True)
    found = network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    # the weights are older than the optical flow, whose heads give 0: the network is that of the weights
    others = {name for name in found if name not in expected}
    assert all(".flow_heads." in name and not found[name].any() for name in others)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("overlay", ["hippocampus", "brain", "brain_any_contrast", "synth2d", "paper"])
def test_overlays_build_their_network_and_set_nothing_unknown(overlay):
    assert set(json.loads((CONFIGS / f"{overlay}.json").read_text(encoding="utf-8"))) <= set(SETTINGS)
    parser = ConfigParser()
    parser.read_config(config("train", overlay))
    network = parser.get_parsed_content("network_def").eval()
    size = parser.get_parsed_content("spatial_size")
    with torch.no_grad():
        assert network(torch.rand(1, 2, *size)).shape == (1, len(size), *size)


BAD_SETTINGS = [
    ({"max_epochsss": 3}, "max_epochsss"),
    ({"loss": "x"}, "loss must be one of"),
    ({"transformation": "tps"}, "transformation must be one of"),
    ({"initial_alignment": "rigidly"}, "initial_alignment must be one of"),
    ({"soi_labels": [[1], [77]]}, "soi_labels [77]"),
    ({"soi_labels": "1"}, "soi_labels must be"),
    ({"spatial_size": [32, 32]}, "is 3-D"),
    ({"spatial_size": 32}, "spatial_size must be"),
    ({"spacing": "2mm"}, "spacing must be"),
    ({"data_list_file": "nowhere.json"}, "nowhere.json"),
    ({"dataset_dir": "/nowhere"}, "/nowhere"),
]


@pytest.mark.parametrize("bad, message", BAD_SETTINGS, ids=lambda value: str(value)[:30])
def test_bad_settings_stop_before_training(toy, tmp_path, bad, message):
    settings = SMALL | {"dataset_dir": str(toy), "output_dir": str(tmp_path / "run")} | bad
    with pytest.raises(RuntimeError) as failure:
        run(run_id="training", config_file=config("train"), **settings)
    assert message in messages(failure.value)
    assert not (tmp_path / "run" / "models").exists()


def test_a_checkpoint_of_another_architecture_is_refused(toy, trained, tmp_path):
    output, settings = trained
    with pytest.raises(RuntimeError) as failure:
        run(
            run_id="evaluation",
            config_file=config("train", "evaluate"),
            **settings
            | {"itn_def": {"_target_": "istn_monai.ITN", "spatial_dims": 3}}
            | {"output_dir": str(tmp_path), "ckpt_dir": str(output / "models")},
        )
    assert "itn_def None in training" in messages(failure.value) and "model.pt" in messages(failure.value)


def test_none_is_a_word(toy, tmp_path):
    settings = SMALL | {
        "dataset_dir": str(toy),
        "output_dir": str(tmp_path),
        "soi_labels": "none",
        "similarity": "none",
    }
    workflow = ConfigWorkflow(config("train"), workflow_type="train", **settings)
    workflow.initialize()
    assert workflow.parser.get_parsed_content("settings").soi_channels == 1
    assert isinstance(workflow.parser.get_parsed_content("train#loss").similarity, torch.nn.MSELoss)


def test_output_dir_that_cannot_be_written(toy, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    settings = SMALL | {"dataset_dir": str(toy), "output_dir": str(tmp_path / "file" / "run")}
    with pytest.raises(RuntimeError) as failure:
        run(run_id="training", config_file=config("train"), **settings)
    assert "output_dir is not writable" in messages(failure.value)
    settings |= {"output_dir": str(tmp_path / "run"), "ckpt_dir": str(tmp_path / "file" / "models")}
    with pytest.raises(RuntimeError) as failure:
        run(run_id="training", config_file=config("train"), **settings)
    assert "ckpt_dir is not writable" in messages(failure.value)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_inference_without_files_or_with_wrong_ones(toy, trained, tmp_path):
    output, settings = trained
    options = {key: settings[key] for key in ("spatial_size", "control_spacing", "device")}
    options |= {"ckpt_dir": str(output / "models"), "output_dir": str(tmp_path / "result")}
    pair = json.loads((toy / "pairs.json").read_text(encoding="utf-8"))["testing"][0]
    fixed = str(toy / pair["fixed_image"])
    cases = [
        ({}, "moving_image is not set"),
        ({"moving_image": "/nowhere.nii.gz", "fixed_image": fixed}, "/nowhere.nii.gz"),
        ({"moving_image": fixed, "fixed_image": fixed, "ckpt_dir": "/nowhere"}, "no checkpoint at /nowhere"),
        ({"moving_image": fixed, "fixed_image": fixed, "spacing": 2}, "other settings"),
        ({"moving_image": fixed, "fixed_image": fixed, "moving_labl": fixed}, "moving_labl"),
    ]
    for files, message in cases:
        with pytest.raises(Exception) as failure:
            run(run_id="inference", config_file=config("inference"), **options | files)
        assert message in messages(failure.value)
    assert not list((tmp_path / "result").glob("*")) if (tmp_path / "result").exists() else True


# --- landmarks instead of labels -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_without_labels(toy):
    """The small set's datalist without labels, and without one of the landmarks of one pair."""
    datalist = json.loads((toy / "pairs.json").read_text(encoding="utf-8"))
    for part in ("training", "validation", "testing"):
        datalist[part] = [{k: v for k, v in item.items() if not k.endswith("label")} for item in datalist[part]]
    points = (toy / datalist["training"][0]["moving_points"]).read_text(encoding="utf-8").splitlines(keepends=True)
    datalist["training"][0]["moving_points"] = "training/without_root.csv"
    (toy / "training" / "without_root.csv").write_text(
        "".join(line for line in points if "root" not in line), encoding="utf-8"
    )
    (toy / "landmarks.json").write_text(json.dumps(datalist), encoding="utf-8")
    return toy


@pytest.mark.parametrize("variant", ["e", "i"])
def test_landmarks_alone_train_and_evaluate(toy_without_labels, tmp_path, variant):
    groups = {"soi_points": [["root*"], ["branching*", "tip*"]], "data_list_file": "landmarks.json", "loss": variant}
    settings = SMALL | groups | {"dataset_dir": str(toy_without_labels), "output_dir": str(tmp_path), "max_epochs": 1}
    run(run_id="training", config_file=config("train", "landmarks"), **settings)
    kept = read_weights(tmp_path / "models" / "last.pt")
    assert kept.settings.soi_points == groups["soi_points"]
    assert all(torch.isfinite(weight).all() for weight in kept.state.values())
    run(run_id="evaluation", config_file=config("train", "landmarks", "evaluate"), **settings, refine_steps=2)
    summary = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["summary"]
    assert {"tre", "tre_median", "folding"} <= set(summary["refined"]) and "dice_merged" not in summary["refined"]
    with pytest.raises(RuntimeError) as failure:  # a channel means something else
        run(
            run_id="evaluation",
            config_file=config("train", "evaluate"),
            **settings | {"soi_points": "none", "soi_labels": [[1], [2]]},
        )
    assert "last.pt" not in messages(failure.value) and "soi_points" in messages(failure.value)


def test_labels_and_landmarks_train_together(toy, tmp_path):
    settings = SMALL | {"dataset_dir": str(toy), "output_dir": str(tmp_path), "max_epochs": 1, "points_map": "distance"}
    settings |= {"soi_labels": [[1, 2]], "soi_points": [["*"]], "augment": True}
    run(run_id="training", config_file=config("train"), **settings)
    assert (tmp_path / "models" / "last.pt").is_file()
    run(run_id="evaluation", config_file=config("train", "evaluate"), **settings, qa=False)
    summary = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["summary"]
    assert {"dice_merged", "tre"} <= set(summary["one-pass"])


def test_no_structure_at_all_is_refused(toy, tmp_path):
    with pytest.raises(RuntimeError) as failure:
        run(
            run_id="training",
            config_file=config("train"),
            **SMALL | {"dataset_dir": str(toy), "output_dir": str(tmp_path), "soi_labels": []},
        )
    assert "soi_labels must be a list of groups" in messages(failure.value)


def test_the_qa_page_takes_landmark_channels_for_maps():
    """A Gaussian's gray levels are no ambiguity about a structure."""
    assert NetworkSettings().mask_labels == [[1], [2]]
    assert NetworkSettings(soi_points=[["*"]]).mask_labels is None
    assert NetworkSettings(soi_labels=None).mask_labels is None
