"""The command line, in a process of its own where that matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import write_subjects

from istn_monai import __version__
from istn_monai.__main__ import COMMANDS, main
from istn_monai.arguments import FLAGS, help_of

ROOT = Path(__file__).parents[1]


def istn_monai(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "istn_monai", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve subjects, images and labels of the same names."""
    root = tmp_path_factory.mktemp("subjects")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
        for number in range(12):
            nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), root / kind / f"s{number:02d}.nii.gz")
    return root


def test_pairs_shares_no_subject_and_keeps_what_is_there(folder):
    output = folder / "lists" / "pairs.json"
    arguments = ("pairs", "--images", folder / "images", "--labels", folder / "labels", "--output", output)
    numbers = ("--train", 10, "--val", 2, "--test", 4, "--seed", 3)
    done = istn_monai(*arguments, *numbers)
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text(encoding="utf-8"))
    subjects = {}
    for part, number in (("training", 10), ("validation", 2), ("testing", 4)):
        assert len(content[part]) == number
        subjects[part] = {Path(pair[f"{side}_image"]).name for pair in content[part] for side in ("moving", "fixed")}
        assert all((output.parent / path).exists() for pair in content[part] for path in pair.values())
    assert not subjects["training"] & subjects["validation"]
    assert not subjects["training"] & subjects["testing"]
    assert not subjects["validation"] & subjects["testing"]
    again = istn_monai(*arguments, "--train", 1, "--val", 1, "--test", 1)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1 and "exists" in again.stderr
    assert json.loads(output.read_text(encoding="utf-8")) == content


def test_synthesize_writes_a_datalist(tmp_path):
    output = tmp_path / "toy"
    sizes = ("--spatial_size", "[40,32]", "--train", 1, "--val", 1, "--test", 1)
    done = istn_monai("synthesize", output, *sizes)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((output / "pairs.json").read_text(encoding="utf-8"))) >= {"training", "validation", "testing"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_names_the_flags_of_all(command):
    said = help_of(command, COMMANDS[command])
    assert all(f"\n    {flag}\n        {what}" in said for flag, what in FLAGS.items())
    assert set(FLAGS) == {"--quiet", "--verbose", "--debug"}


def test_the_help_of_evaluate_says_which_words_need_no_name():
    assert "DATA and OUTPUT_DIR may stand first" in help_of("evaluate", COMMANDS["evaluate"])


def test_help_names_the_commands():
    done = istn_monai("--help")
    assert done.returncode == 0
    said = done.stdout + done.stderr
    assert all(name in said for name in ("register", "apply", "represent", "evaluate", "pairs", "synthesize"))


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("register", "absent.nii.gz", "b.nii.gz"), "moving_image: no such file"),
        (("register", "a.nii.gz"), "fixed is not set"),
        (("register", "a.nii.gz", "b.nii.gz", "--initial_alignement", "world"), "did you mean 'initial_alignment'?"),
        (("apply", "absent.h5", "a.nii.gz", "b.nii.gz"), "no such transform"),
        (("represent", "absent.nii.gz", "b.nii.gz"), "image: no such file"),
        (("evaluate", "absent.json", "out"), "datalist not found"),
        (("register", "a.nii.gz", "b.nii.gz", "--model", "/absent"), "model: no such file or folder: /absent"),
        (("register", "a.nii.gz", "b.nii.gz", "--model", "docs"), "model: no model.pt or models/model.pt in"),
        (("register", "a.nii.gz", "b.nii.gz", "--model", "README.md"), "is not a checkpoint that can be read"),
        (("info", "setup.cfg"), "is not a checkpoint that can be read"),
        (("represent", "a.nii.gz", "b.nii.gz", "--spacing", 3), "spacing 1 in training, 3 now"),
        (("evaluate", "--model", "bundle"), "does not say what it was trained on: give a datalist"),
        (("train", "/absent"), "/absent"),
        (("plan", "docs"), "docs"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(arguments, reason, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["istn-monai", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    said = str(end.value.code)  # which Python prints, and ends with 1
    assert said.startswith("istn-monai: ") and reason in said and "\n" not in said
    assert "Traceback" not in capsys.readouterr().err


def test_a_failure_of_a_process_is_its_exit_code():
    done = istn_monai("apply", "absent.h5", "a.nii.gz", "b.nii.gz")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no such transform" in done.stderr


def test_an_error_in_the_bundle_ends_with_its_reason(tmp_path):
    config = Path(__file__).parents[1] / "bundle" / "configs" / "inference.json"
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--config_file", str(config)]
    done = subprocess.run(
        [*command, "--moving_imag", "a.nii.gz"], capture_output=True, encoding="utf-8", cwd=tmp_path, check=False
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("istn-monai: unknown setting 'moving_imag': did you mean 'moving_image'?")


@pytest.mark.parametrize(
    "run, options, reason",
    [
        ("training", ("--max_epochs", 0), "max_epochs must be a whole number of at least 1, got 0"),
        ("inference", ("--moving_image", "nan.nii.gz", "--fixed_image", "nan.nii.gz"), "1 voxels that are NaN"),
    ],
)
def test_whatever_fails_in_the_bundle_is_one_line_without_a_traceback(tmp_path, run, options, reason):
    values = np.random.default_rng(0).random((8, 9, 10), np.float32)
    values[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "nan.nii.gz")
    config = {"training": "train", "inference": "inference"}[run]
    file = Path(__file__).parents[1] / "bundle" / "configs" / f"{config}.json"
    command = [sys.executable, "-m", "monai.bundle", "run", run, "--config_file", str(file), *map(str, options)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=tmp_path, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("istn-monai: ") and reason in last and "Traceback" not in done.stdout + done.stderr
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["nan.nii.gz"]


def test_version_and_info():
    assert istn_monai("--version").stdout == f"istn-monai {__version__}\n"
    done = istn_monai("info")
    assert done.returncode == 0 and "trained on 48x64x48 voxels" in done.stdout


def test_from_a_folder_to_a_registration_without_any_setting(tmp_path):
    """The whole way of a newcomer, in a folder of their own; the data are only read."""
    write_subjects(tmp_path / "mine", 8)
    (tmp_path / "work").mkdir()
    before = sorted((tmp_path / "mine").rglob("*"))
    images = sorted((tmp_path / "mine" / "images").iterdir())
    small = ("--max_epochs", 1, "--device", "cpu")
    for arguments in (("train", "../mine", *small), ("train", "../mine", *small), ("evaluate", "--refine_steps", 2)):
        done = istn_monai(*arguments, folder=tmp_path / "work")
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("written") == 1 and "evaluation.csv and evaluation.json and qa.html" in done.stdout
    assert "istn-monai: one pass and 2 steps of refinement\n" in done.stdout
    assert "always_return_as_numpy" not in done.stderr
    run = next((tmp_path / "work" / "runs").iterdir())
    assert {"models", "run.json", "training.csv", "evaluation.json", "qa.html"} <= {file.name for file in run.iterdir()}
    register = ("register", images[0], images[1], "--model", run, "--refine_steps", 2)
    done = istn_monai(*register, folder=tmp_path / "work")
    assert done.returncode == 0, done.stderr[-2000:]
    first = f"registering {images[0].name} to {images[1].name}: 2 steps of refinement on "
    assert done.stdout.index(first) < done.stdout.index("registered: results in")
    assert (tmp_path / "work" / "registration" / "transform.h5").is_file()
    assert sorted((tmp_path / "mine").rglob("*")) == before


def test_the_package_imports_without_itk():
    code = "import sys; sys.modules['itk'] = None; import istn_monai, istn_monai.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
