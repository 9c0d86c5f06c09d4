"""Tests of `istn_monai.workflow.settings`: mistyped overrides, the bundle's folder, what a checkpoint says."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import BUNDLE, messages, write_json
from monai.bundle import ConfigParser, ConfigWorkflow

from istn_monai.network_settings import NetworkSettings
from istn_monai.options import SETTINGS
from istn_monai.weights import described, save_atomically
from istn_monai.workflow.settings import (
    FURTHER,
    MONAI_IDS,
    check_as_typed,
    check_settings,
    find_bundle_root,
    given,
    run_folder,
    running,
)

CONFIG = {
    "imports": ["$import istn_monai.workflow as workflow"],
    "bundle_root": "$workflow.find_bundle_root()",
    "max_epochs": 3,
    "double": "$2 * @max_epochs",
    "initialize": ["$workflow.check_settings()"],
    "run": ["$print(@double, @bundle_root)"],
}


def workflow(folder: Path, config=CONFIG, **overrides) -> ConfigWorkflow:
    file = write_json(folder / "configs" / "train.json", config)
    return ConfigWorkflow(str(file), logging_file=False, workflow_type="train", **overrides)


def run(*args, **overrides) -> None:
    one = workflow(*args, **overrides)
    one.initialize()
    one.run()


# --- check_settings --------------------------------------------------------------------------------------------------


def test_config_and_known_overrides_pass(tmp_path, capsys):
    run(tmp_path, max_epochs=5, batch_size=2)
    assert capsys.readouterr().out.startswith("10 ")


@pytest.mark.parametrize(
    "wrong, right",
    [("max_epochsss", "max_epochs"), ("spacng", "spacing"), ("batchsize", "batch_size"), ("soi_label", "soi_labels")],
)
def test_mistyped_override_names_itself_its_neighbor_and_all_settings(tmp_path, wrong, right):
    with pytest.raises(Exception) as error:
        run(tmp_path, **{wrong: 1})
    text = messages(error.value)
    assert f"unknown setting '{wrong}'" in text and f"did you mean '{right}'" in text
    assert all(name in text for name in SETTINGS)


def test_key_without_neighbor_is_refused_without_a_guess(tmp_path):
    with pytest.raises(Exception) as error:
        run(tmp_path, qwertyuiop=1)
    text = messages(error.value)
    assert "unknown setting 'qwertyuiop': Settings are" in text and "did you mean" not in text


#: MONAI copies what a macro refers to over it, and so the reference is gone when the settings are checked
MACRO = pytest.param("%my_depth", marks=pytest.mark.xfail(reason="a key that only a macro reads is taken for a typo"))


@pytest.mark.parametrize("reference", ["@my_depth", "$2 * @my_depth", "$[@my_depth, @seed][0]", MACRO])
def test_unknown_key_that_something_refers_to_is_accepted(tmp_path, reference):
    run(tmp_path, CONFIG | {"max_epochs": reference, "seed": 0}, my_depth=1)


def test_unknown_key_that_an_override_refers_to_is_accepted(tmp_path):
    run(tmp_path, max_epochs="@my_depth", my_depth=4)


def test_monai_ids_are_accepted(tmp_path):
    run(tmp_path, CONFIG | {"training": "@run", "displayable_configs": {}, "_meta_": {}, "network_def": {}})


def test_override_of_a_nested_key_is_accepted(tmp_path):
    run(tmp_path, CONFIG | {"train": {"x": 1}}, **{"train#x": 2})


def test_outside_a_config_there_is_nothing_to_check():
    check_settings()


# --- SETTINGS and the bundle -----------------------------------------------------------------------------------------


def is_knob(value) -> bool:
    """A plain value that a user would override: no reference, no expression, no component, no list of statements."""
    if isinstance(value, list):
        return all(is_knob(item) for item in value)
    return not isinstance(value, dict) and not str(value).startswith(("$", "@", "%"))


@pytest.mark.parametrize("name", ["train", "evaluate", "inference", "hippocampus"])
def test_every_knob_of_the_bundle_is_a_setting(name):
    config = json.loads((BUNDLE / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    knobs = {key for key, value in config.items() if is_knob(value)} - MONAI_IDS
    assert knobs
    assert not knobs - set(SETTINGS), "a knob that --help does not know"


def test_every_setting_is_in_the_bundle():
    files = sorted((BUNDLE / "configs").glob("*.json"))
    keys = {key for file in files for key in json.loads(file.read_text(encoding="utf-8"))}
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    read = keys | set(re.findall(r"given\('(\w+)'", text))  # where an overlay or the command line brings it
    assert not set(SETTINGS) - read - set(FURTHER), "a setting that nothing reads"


@pytest.mark.parametrize("files", [["train"], ["train", "evaluate"], ["train", "hippocampus"], ["inference"]])
def test_the_bundles_own_configs_pass_the_check(files):
    """All but the check is left out of initialize, and nothing is run."""
    paths = [str(BUNDLE / "configs" / f"{name}.json") for name in files]
    own = ConfigWorkflow(paths, logging_file=False, workflow_type="train", initialize=["$workflow.check_settings()"])
    own.initialize()
    wrong = ConfigWorkflow(paths, logging_file=False, initialize=["$workflow.check_settings()"], spatial_sizes=[8, 8])
    with pytest.raises(Exception) as error:
        wrong.initialize()
    assert "did you mean 'spatial_size'" in messages(error.value)


@pytest.mark.parametrize("names", [["train"], ["inference"], ["train", "evaluate"]], ids=lambda names: names[-1])
def test_the_check_comes_first_in_the_bundle(names):
    config = {}
    for name in names:
        config |= json.loads((BUNDLE / "configs" / f"{name}.json").read_text(encoding="utf-8"))
    what = {"train": "training", "evaluate": "evaluation", "inference": "inference"}[names[-1]]
    assert config["run"][0] == f"$workflow.check_{what}()"


# --- find_bundle_root ------------------------------------------------------------------------------------------------


def test_bundle_root_is_found_from_another_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(tmp_path / "bundle")
    assert printed_root(capsys) == str(tmp_path / "bundle")


@pytest.mark.parametrize("folder", ["bundle", "bundle/configs", "."])
def test_bundle_root_of_a_relative_config_file(tmp_path, monkeypatch, capsys, folder):
    file = write_json(tmp_path / "bundle" / "configs" / "train.json", CONFIG)
    monkeypatch.chdir(tmp_path / folder)
    one = ConfigWorkflow(os.path.relpath(file), logging_file=False, workflow_type="train")
    one.initialize()
    one.run()
    assert printed_root(capsys) == str(tmp_path / "bundle")


def test_bundle_root_can_be_given(tmp_path, capsys):
    run(tmp_path, bundle_root="/my/bundle")
    assert printed_root(capsys) == "/my/bundle"


def printed_root(capsys) -> str:
    return capsys.readouterr().out.split()[-1]


def test_bundle_root_without_workflow_is_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_bundle_root() == str(tmp_path)


def test_running_finds_the_innermost():
    class Owner:
        def __init__(self, inner=None):
            self.inner = inner

        def call(self):
            return self.inner.call() if self.inner else running(Owner)

    inner = Owner()
    assert Owner(inner).call() is inner
    assert running(Owner) is None


# --- given, trained_settings -----------------------------------------------------------------------------------------

SETTINGS_OF_FILE = {
    "imports": ["$import istn_monai.workflow as workflow"],
    "checkpoint_file": None,
    "settings": {"_target_": "istn_monai.workflow.trained_settings", "file": "@checkpoint_file"},
    "initialize": ["$workflow.check_settings()"],
    "run": ["$print(@settings.state_dict())"],
}
MINE = NetworkSettings(spatial_size=[16, 24], spacing=2, control_spacing=8, soi_labels=[[3]], initial_alignment="world")


@pytest.fixture
def checkpoint(tmp_path):
    file = tmp_path / "model.pt"
    save_atomically(described(MINE.network().state_dict(), {"settings": MINE.state_dict()}), file)
    return str(file)


def settings_with(checkpoint: str, **overrides) -> NetworkSettings:
    parser = ConfigParser(SETTINGS_OF_FILE | {"checkpoint_file": checkpoint} | overrides)
    return parser.get_parsed_content("settings")


def test_settings_are_those_of_the_checkpoint_whatever_the_defaults(checkpoint):
    assert settings_with(checkpoint) == MINE
    assert settings_with(checkpoint, spatial_size="auto", spacing=None) == MINE


@pytest.mark.parametrize("same", [{"spacing": [2, 2.0]}, {"control_spacing": [[8, 8]]}, {"soi_points": "none"}])
def test_an_override_that_says_the_same_is_accepted(checkpoint, same):
    assert settings_with(checkpoint, **same) == MINE


def test_alignment_and_size_may_differ_at_inference(checkpoint):
    other = settings_with(checkpoint, initial_alignment="moments", spatial_size=[32, 32])
    assert other == replace(MINE, initial_alignment="moments")  # the size is that of the grid, not of the network


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"spacing": 1}, "spacing 2 in training, 1 now"),
        ({"soi_labels": "none"}, r"soi_labels \[\[3\]\] in training, 'none' now"),
        ({"loss": "u"}, "loss 'i' in training, 'u' now"),
        ({"transformation": "affine"}, "transformation 'bspline' in training, 'affine' now"),
    ],
)
def test_an_override_that_contradicts_the_weights_names_both(checkpoint, wrong, said):
    with pytest.raises(Exception) as error:
        settings_with(checkpoint, **wrong)
    text = messages(error.value)
    assert checkpoint in text and re.search(said, text)


def test_without_a_checkpoint_the_config_counts(tmp_path):
    assert settings_with(str(tmp_path / "none.pt"), spacing=3).spacing == 3


def test_given_is_the_entry_as_it_stands_in_the_config():
    definition = {"_target_": "istn_monai.ITN", "spatial_dims": "@spatial_dims"}
    config = {
        "imports": SETTINGS_OF_FILE["imports"], "itn_def": definition, "nothing": None, "word": "none",
        "found": "$[workflow.given(name, 7) for name in ('itn_def', 'nothing', 'word', 'absent')]",
    }  # fmt: skip
    assert ConfigParser(config).get_parsed_content("found") == [definition, 7, None, 7]
    assert given("itn_def", 3) == 3  # outside a config


# --- run_folder ------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine_e_affine", "mine_points_i_bspline"):
        (tmp_path / "runs" / name / "models").mkdir(parents=True)
        (tmp_path / "runs" / name / "models" / "model.pt").touch()
    assert run_folder("mine", None, None) == "runs/mine_e_affine"
    assert run_folder("mine_points", None, None) == "runs/mine_points_i_bspline"
    assert run_folder("mine", "i", "bspline") == "runs/mine_i_bspline"  # which is to be made
    (tmp_path / "runs" / "mine_i_affine" / "models").mkdir(parents=True)
    (tmp_path / "runs" / "mine_i_affine" / "models" / "model.pt").touch()
    with pytest.raises(ValueError, match="mine_e_affine.*mine_i_affine.*give loss and transformation"):
        run_folder("mine", None, None)
    assert run_folder("mine", "i", None) == "runs/mine_i_affine"


# --- values of the wrong kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"augment": "false"}, "augment must be False, not the text 'false': write --augment False"),
        ({"qa": "maybe"}, "qa must be True or False, got 'maybe'"),
        ({"max_epochs": 0}, "max_epochs must be a whole number of at least 1, got 0"),
        ({"max_epochs": "2"}, "max_epochs must be 2, not the text '2'"),
        ({"output_dir": 2024}, "output_dir must be text: quote it twice"),
        ({"run_name": "../../elsewhere"}, "run_name must be a name without a path"),
        ({"device": "gpu"}, "device must be a device, such as cpu, cuda or cuda:0, got 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there: torch sees"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0, of at most 10, got nan"),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_before_any_work(config, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        check_settings(ConfigParser(config))


@pytest.mark.parametrize("name", ["max_epochs", "data_list_file", "output_dir", "device"])
def test_null_where_there_must_be_a_value_is_an_error_before_any_work(name):
    with pytest.raises(ValueError, match=f"{name} is null, but has to have a value: give one, or leave {name} out"):
        check_settings(ConfigParser({name: None}))


def test_expressions_and_nothing_are_left_to_their_evaluation():
    check_settings(ConfigParser({"max_epochs": "$1 + 1", "device": "$'cpu'", "cache_dir": None, "augment": "@qa"}))


@pytest.mark.parametrize("words", [["--moving_image", "scan#1"], ["--moving_image=scan#1"]])
def test_a_path_that_monai_reads_as_another_is_an_error(words):
    with pytest.raises(ValueError, match="moving_image: MONAI's command line takes 'scan#1' for 'scan': quote it"):
        check_as_typed("moving_image", "scan", words)
    check_as_typed("moving_image", "scan#1", ["--moving_image", "'scan#1'"])
