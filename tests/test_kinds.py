"""Options and settings are read in their own types, or refused in one line that names them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from istn_monai import kinds
from istn_monai.__main__ import COMMANDS
from istn_monai.arguments import checked_arguments, options_of
from istn_monai.network_settings import none_or
from istn_monai.options import KINDS, OF_COMMAND, SETTINGS, typed, typed_settings

SWITCHES = sorted(name for name, kind in KINDS.items() if kind is kinds.switch)
PATHS = sorted(name for name, kind in KINDS.items() if kind is kinds.path)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("word", ["false", "False", "no", "none", "off", "0", 0, False])
def test_a_switch_that_is_switched_off_in_words_is_off(name, word):
    assert typed(name, word) is False


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "1", 1, True])
def test_a_switch_that_is_switched_on_in_words_is_on(name, word):
    assert typed(name, word) is True


@pytest.mark.parametrize("word", ["maybe", "", "2", 2, -1, 0.5, 1.0, [], "[]"])
def test_what_is_neither_on_nor_off_is_an_error(word):
    with pytest.raises(ValueError, match=r"^inverse must be True or False, got "):
        typed("inverse", word)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("word", ["2024", "1e3", "1_0", "0x10", "-1", "None", "True", "[1,2]", "a,b", "scan#1", "'x'"])
def test_a_path_is_what_was_typed(name, word):
    assert typed(name, word) == word


def test_a_path_may_begin_with_the_home_folder_or_with_a_tilde_that_is_none(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert typed("model", "~/run") == "/home/me/run"
    assert typed("model", "~nobody-of-this-name/run") == os.path.abspath("~nobody-of-this-name/run")


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_epochs", 0), ("max_epochs", "many"), ("max_epochs", 1.5), ("max_epochs", "nan"), ("max_epochs", True),
        ("batch_size", "-1"), ("num_workers", "two"), ("num_workers", -1), ("val_interval", 0), ("seed", -1),
        ("seed", 2**32), ("seed", "x"), ("refine_steps", "1.5"), ("refine_steps", ""), ("refine_steps", "True"),
        ("learning_rate", -1), ("learning_rate", "nan"), ("learning_rate", "inf"), ("learning_rate", 1e30),
        ("refine_learning_rate", -1), ("refine_learning_rate", "[0.1]"), ("regularization_weight", "heavy"),
        ("regularization_weight", -1), ("max_displacement", "far"), ("spacing", 0), ("spacing", "[1,1]x"),
        ("spacing", [1, 1, 1, 1]), ("control_spacing", []), ("control_spacing", [24, -6]), ("spatial_size", [48]),
        ("spatial_size", "[48,64,0]"), ("spatial_size", "large"), ("device", "gpu"), ("device", "cuda:x"),
        ("device", "cpu:-1"), ("device", ""), ("device", 7), ("loss", "x"), ("loss", 1), ("transformation", "elastic"),
        ("training_dtype", "float16"), ("similarity", "x"), ("similarity", "{}"), ("regularization", [1]),
        ("run_name", "../elsewhere"), ("run_name", "a/b"), ("run_name", ".."), ("output_dir", ""),
        ("output_dir", "a\0b"), ("output_dir", 2024), ("model", True), ("frame", "ITK"), ("train", "True"),
        ("image_format", "jpg"),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_one_line_that_names_option_and_value(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as error:
        typed(name, value)
    assert ", got " in str(error.value) or "quote it" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, some", [("control_spacing", "at least one number"), ("spacing", "2 or 3 numbers")])
def test_an_empty_list_is_told_how_many_numbers_there_must_be(name, some):
    with pytest.raises(ValueError, match=re.escape(f"{name} must be a number, or a list of {some}, got '[]'")):
        typed(name, "[]")


@pytest.mark.parametrize(
    "name, value, meant",
    [
        ("max_epochs", "12", 12), ("learning_rate", "1e-3", 1e-3), ("spatial_size", "[48,64,48]", [48, 64, 48]),
        ("spatial_size", "auto", "auto"), ("spacing", "1", 1), ("spacing", "[1,1,2.5]", [1, 1, 2.5]),
        ("soi_labels", "[[1],[2]]", [[1], [2]]), ("soi_points", "[['AC','PC']]", [["AC", "PC"]]),
        ("soi_labels", "none", "none"), ("max_displacement", "none", "none"), ("device", "cuda:0", "cuda:0"),
        ("regularization", "{'_target_':'BendingEnergyLoss'}", {"_target_": "BendingEnergyLoss"}), ("qa", None, None),
    ],
)  # fmt: skip
def test_what_is_typed_becomes_what_is_meant(name, value, meant):
    assert typed(name, value) == meant


@pytest.mark.parametrize("word", ["None", "none", "null", "NULL"])
@pytest.mark.parametrize(
    "name", ["dataset_dir", "cache_dir", "initial_weights", "similarity", "regularization", "stn_def"]
)
def test_a_word_for_none_is_none_and_no_file_or_definition(name, word):
    assert none_or(typed(name, word)) is None


@pytest.mark.parametrize("name, value", [("dataset_dir", "none/of"), ("cache_dir", "nullable")])
def test_what_begins_like_a_word_for_none_is_itself(name, value):
    assert none_or(typed(name, value)) == value


def test_every_setting_has_a_kind_or_is_text():
    assert set(SETTINGS) - set(KINDS) == {"evaluated_split"}


@pytest.mark.parametrize("command, name", [("register", "similarity"), ("register", "augment"), ("evaluate", "loss_")])
def test_a_setting_that_a_command_does_not_read_is_an_error(command, name):
    with pytest.raises(ValueError, match=name):
        typed_settings(command, {name: "x"})


def test_each_command_takes_what_its_help_lists():
    defaults = {"spacing": 1, "device": "cpu"}
    for command, names in OF_COMMAND.items():
        for name in names & set(defaults):
            assert typed_settings(command, {name: defaults[name]}) == {name: defaults[name]}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_option_is_found_before_any_work(command):
    names, _ = options_of(COMMANDS[command])
    wrong = names[0] + "x"
    with pytest.raises(ValueError, match=f"unknown (option|setting) '{wrong}': did you mean '{names[0]}'"):
        checked_arguments(COMMANDS[command], [f"--{wrong}", "1"])


@pytest.mark.parametrize(
    "command, words, reason",
    [
        ("apply", ["t.h5", "a.nii.gz"], "output is missing"),
        (
            "apply",
            ["t.h5", "a", "b", "r", "False", "linear", "RAS", "False", "itk", "more"],
            "10 values without a name",
        ),
        ("register", ["a", "b", "--model"], "model needs a value"),
        ("register", ["a", "b", "--qa", "no", "--qa", "yes"], "qa is given twice"),
        ("register", ["a", "--moving", "b"], None),
        ("register", ["a", "b", "-o", "x"], "output_dir, overwrite begin so"),
        ("info", ["---model", "x"], "unknown option"),
    ],
)
def test_what_is_missing_or_too_much_is_named(command, words, reason):
    if reason is None:
        assert checked_arguments(COMMANDS[command], words) == ["a", "--moving=b"]
        return
    with pytest.raises(ValueError, match=reason):
        checked_arguments(COMMANDS[command], words)


def test_switches_and_short_options_keep_their_values():
    words = ["a", "b", "--inverse", "--refine-steps=3", "-s", "testing"]
    checked = ["a", "b", "--inverse", "--refine_steps=3"]
    with pytest.raises(ValueError, match="split, spacing, spatial_size, symmetric begin so"):
        checked_arguments(COMMANDS["register"], words)
    assert checked_arguments(COMMANDS["register"], words[:4]) == checked
    assert checked_arguments(COMMANDS["apply"], ["a", "b", "c", "-r", "d"]) == ["a", "b", "c", "--reference=d"]
    assert checked_arguments(COMMANDS["apply"], ["a", "b", "-o", "c"]) == ["a", "b", "--output=c"]  # not overwrite
    assert checked_arguments(COMMANDS["compose"], ["a", "b", "c", "d", "-o", "e"])[-1] == "--output=e"
    with pytest.raises(ValueError, match="output is missing"):
        checked_arguments(COMMANDS["compose"], ["a", "b"])


def test_settings_that_training_does_not_read_are_refused():
    with pytest.raises(ValueError, match="train does not read the setting 'refine_steps'"):
        typed_settings("train", {"refine_steps": 3})
    assert typed_settings("register", {"refine_steps": 3}) == {"refine_steps": 3}
    with pytest.raises(ValueError, match="learning_rate"):
        typed_settings("train", {"learning_rate": 0})


def test_a_dash_alone_is_refused():
    with pytest.raises(ValueError, match="'-' alone"):
        checked_arguments(COMMANDS["register"], ["a", "b", "-", "upper"])


def test_the_home_of_nobody_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(typed("moving", "~nobody-here/a.nii")).expanduser() == tmp_path / "~nobody-here/a.nii"
