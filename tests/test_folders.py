"""Tests of `istn_monai.folders`: which checkpoint, run and data a user means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BUNDLE

from istn_monai.folders import bundle_folder, find_weights, is_bundle, latest_run, run_of, to_evaluate, write_run


def make_run(folder: Path, datalist: str = "/data/pairs.json", age: int = 0) -> Path:
    file = folder / "models" / "model.pt"
    file.parent.mkdir(parents=True)
    file.touch()
    os.utime(file, (1e9 - age, 1e9 - age))
    write_run(folder, datalist)
    return file


def test_a_model_is_a_file_a_run_a_folder_of_checkpoints_or_a_bundle(tmp_path):
    file = make_run(tmp_path / "run")
    for model in (file, tmp_path / "run" / "models", tmp_path / "run"):
        assert find_weights(model) == find_weights(str(model)) == file
    assert find_weights(BUNDLE) == BUNDLE / "models" / "model.pt"
    assert is_bundle(BUNDLE) and not is_bundle(tmp_path)


@pytest.mark.parametrize(
    "name, said", [("absent", "no such file or folder"), ("empty", "no model.pt or models/model.pt")]
)
def test_what_is_no_model_is_named(tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"model: {said}.*{tmp_path / name}|model: {said}"):
        find_weights(tmp_path / name)


@pytest.mark.parametrize("name, meant", [("intensity", "intensities"), ("intensites", "intensities"),
                                         ("any_contrst", "any_contrast")])  # fmt: skip
def test_a_word_for_shipped_weights_that_is_mistyped_is_suggested(name, meant):
    with pytest.raises(FileNotFoundError, match=f"did you mean '{meant}'\\?"):
        find_weights(name)
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*/runs/mine; train first"):
        find_weights("runs/mine")


def test_the_latest_run_is_the_one_that_improved_last(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "new", age=1)
    make_run(tmp_path / "runs" / "old", age=9)
    monkeypatch.chdir(tmp_path)
    assert latest_run() == tmp_path / "runs" / "new" / "models" / "model.pt"
    assert run_of(latest_run()) == tmp_path / "runs" / "new"
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match="no training run"):
        latest_run(tmp_path / "nowhere")


def test_an_evaluation_needs_no_word_after_a_training(tmp_path, monkeypatch):
    file = make_run(tmp_path / "runs" / "mine", "/data/pairs.json")
    monkeypatch.chdir(tmp_path)
    expected = file, Path("/data/pairs.json"), tmp_path / "runs" / "mine"
    assert to_evaluate(None, None, None) == expected
    assert to_evaluate(None, "runs/mine", None) == expected
    assert to_evaluate(None, None, None, ckpt_dir="runs/mine/models") == expected
    assert to_evaluate("other.json", "runs/mine", "results") == (file, Path("other.json"), tmp_path / "results")


def test_with_data_alone_the_shipped_weights_are_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, datalist, folder = to_evaluate("pairs.json", None, None)
    assert file == bundle_folder() / "models" / "model.pt"
    assert (datalist, folder) == (Path("pairs.json"), tmp_path / "evaluation")


def test_weights_that_do_not_know_their_data_ask_for_a_datalist(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not say what it was trained on: give a datalist"):
        to_evaluate(None, str(BUNDLE), None)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["register", "--help"], ["evaluate", "--help"]])
def test_help_and_version_load_neither_torch_nor_monai(arguments):
    code = (
        "import sys, istn_monai.__main__ as m; sys.argv[1:] = " + repr(arguments) + "\n"
        "try:\n    m.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = {'torch', 'monai', 'itk', 'SimpleITK', 'matplotlib', 'nibabel'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("[]", "does not say"), ("{}", "does not say")])
def test_a_run_that_does_not_say_its_data_is_named(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine/models").mkdir(parents=True)
    (tmp_path / "runs/mine/models/model.pt").write_bytes(b"")
    (tmp_path / "runs/mine/run.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"run\.json {words}.*give a datalist"):
        to_evaluate(None, "runs/mine", None)


def test_a_model_that_is_no_path_is_named():
    with pytest.raises(TypeError, match="model must be the path .* got 7"):
        find_weights(7)  # type: ignore[arg-type]
