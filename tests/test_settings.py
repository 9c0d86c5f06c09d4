"""Tests of `istn_monai.workflow.settings`: mistyped overrides, the bundle's folder, settings in a checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers import BUNDLE, write_json
from monai.bundle import ConfigWorkflow

from istn_monai.workflow.settings import MONAI_IDS, SETTINGS, Settings, caller_of_type, check_settings, find_bundle_root

CONFIG = {
    "imports": ["$import istn_monai"],
    "bundle_root": "$istn_monai.workflow.settings.find_bundle_root()",
    "max_epochs": 3,
    "double": "$2 * @max_epochs",
    "initialize": ["$istn_monai.workflow.settings.check_settings()"],
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


def messages(error: BaseException | None) -> str:
    """All texts of an error and of what caused it: MONAI wraps what an expression raises."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


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
    config = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
    knobs = {key for key, value in config.items() if is_knob(value)} - MONAI_IDS
    assert knobs
    assert not knobs - set(SETTINGS), "a knob that --help does not know"


def test_every_setting_is_in_the_bundle():
    files = sorted((BUNDLE / "configs").glob("*.json"))
    keys = {key for file in files for key in json.loads(file.read_text())}
    assert not set(SETTINGS) - keys, "a setting that nothing reads"


@pytest.mark.parametrize("files", [["train"], ["train", "evaluate"], ["train", "hippocampus"], ["inference"]])
def test_the_bundles_own_configs_pass_the_check(files):
    """All but the check is left out of initialize, and nothing is run."""
    paths = [str(BUNDLE / "configs" / f"{name}.json") for name in files]
    own = ConfigWorkflow(
        paths, logging_file=False, workflow_type="train", initialize=["$istn_monai.workflow.settings.check_settings()"]
    )
    own.initialize()
    wrong = ConfigWorkflow(
        paths, logging_file=False, initialize=["$istn_monai.workflow.settings.check_settings()"], spatial_sizes=[8, 8]
    )
    with pytest.raises(Exception) as error:
        wrong.initialize()
    assert "did you mean 'spatial_size'" in messages(error.value)


@pytest.mark.parametrize("names", [["train"], ["inference"], ["train", "evaluate"]], ids=lambda names: names[-1])
def test_the_check_comes_first_in_the_bundle(names):
    config = {}
    for name in names:
        config |= json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
    first = ["errors.explain_errors", "settings.check_settings"]
    steps = [step for entry in config["initialize"] for step in (config["check"] if entry == "@check" else [entry])]
    assert steps[:2] == [f"$istn_monai.workflow.{name}()" for name in first]


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


def test_caller_of_type_finds_the_innermost():
    class Owner:
        def __init__(self, inner=None):
            self.inner = inner

        def call(self):
            return self.inner.call() if self.inner else caller_of_type(Owner)

    inner = Owner()
    assert Owner(inner).call() is inner
    assert caller_of_type(Owner) is None


# --- Settings --------------------------------------------------------------------------------------------------------

NETWORK = {"transformation": "bspline", "spatial_size": [8, 9], "spacing": 1, "control_spacing": (24, 12)}
TRAINING = {"loss": "i", "batch_size": 4}


def test_same_settings_pass_also_after_a_way_through_json():
    mine = Settings(NETWORK, TRAINING)
    saved = {"settings": json.loads(json.dumps(mine.state_dict()))}
    mine.check(saved, "model.pt", resume=True)
    swapped = NETWORK | {"spatial_size": (8, 9), "control_spacing": [24, 12]}
    Settings(swapped, TRAINING).check(saved, "model.pt", resume=True)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    "key, value", [("transformation", "affine"), ("spatial_size", [8, 10]), ("control_spacing", 5)]
)
def test_other_network_settings_name_file_key_and_both_values(key, value, resume):
    theirs = {"settings": Settings(NETWORK, TRAINING).state_dict()}
    with pytest.raises(ValueError) as error:
        Settings(NETWORK | {key: value}, TRAINING).check(theirs, "/x/model.pt", resume)
    text = str(error.value)
    old = json.loads(json.dumps(NETWORK[key]))
    assert "/x/model.pt" in text and f"{key}: {old!r} in the checkpoint, {value!r} now" in text
    assert ("ckpt_dir" in text) == resume


def test_training_settings_matter_only_for_going_on():
    theirs = {"settings": Settings(NETWORK, TRAINING).state_dict()}
    mine = Settings(NETWORK, TRAINING | {"loss": "e", "batch_size": 2})
    mine.check(theirs, "model.pt")
    said = "loss: 'i' in the checkpoint, 'e' now; batch_size: 4 in the checkpoint, 2 now"
    with pytest.raises(ValueError, match=said):
        mine.check(theirs, "last.pt", resume=True)


def test_checkpoint_without_settings_is_not_compared():
    Settings(NETWORK, TRAINING).check({"model": {}}, "model.pt", resume=True)
    Settings(NETWORK).check({"settings": {"network": {"transformation": "bspline"}}}, "model.pt", resume=True)
