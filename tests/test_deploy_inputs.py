"""What the MONAI Deploy application makes of its input folder and options; the rest: tests/integration."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hosts" / "monai_deploy"))
from inputs import Source, find_pair, model_settings  # noqa: E402
from options import parse_options  # noqa: E402


def place(folder, *names):
    """Empty files; those that end with .dcm begin as DICOM does."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\0" * 128 + b"DICM" if name.endswith(".dcm") else b"")
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["fixed.nii.gz", "moving.nii"], {"fixed_image": "fixed.nii.gz", "moving_image": "moving.nii"}),
        (
            ["fixed/1.dcm", "fixed/deep/2.dcm", "moving_t1.nii.gz", "moving_label.nii.gz", "notes.txt"],
            {"fixed_image": "fixed/", "moving_image": "moving_t1.nii.gz", "moving_label": "moving_label.nii.gz"},
        ),
        (
            ["fixed/any.nii.gz", "moving/1.dcm", "moving_label/seg.dcm", "fixed_label.nii.gz"],
            {"fixed_image": "fixed/any.nii.gz", "moving_image": "moving/", "moving_label": "moving_label/"},
        ),
        (["a/1.dcm", "moving.nii.gz"], {"fixed_image": "/", "moving_image": "moving.nii.gz"}),
    ],
)
def test_pair_is_found(tmp_path, names, expected):
    pair = find_pair(place(tmp_path, *names))
    assert pair == {key: Source(tmp_path / name.strip("/"), name.endswith("/")) for key, name in expected.items()}


def test_atlas_stands_in_for_a_moving_image_that_is_absent(tmp_path):
    study, atlas = place(tmp_path / "study", "1.dcm"), place(tmp_path / "atlas", "t1.nii.gz", "labels.nii.gz")
    pair = find_pair(study, atlas / "t1.nii.gz", atlas / "labels.nii.gz")
    assert [source.path.name for source in pair.values()] == ["study", "t1.nii.gz", "labels.nii.gz"]
    place(study, "moving.nii.gz")
    assert set(find_pair(study, atlas / "t1.nii.gz", atlas / "labels.nii.gz")) == {"fixed_image", "moving_image"}


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ([], "fixed_image: nothing is named fixed"),
        (["fixed.nii.gz"], "moving_image: nothing is named moving.*ISTN_ATLAS"),
        (["fixed.nii.gz", "moving_label.nii.gz"], "but no image moving"),
        (["fixed.nii.gz", "fixed/1.dcm", "moving.nii.gz"], "fixed_image: one is expected"),
        (["fixed/1.dcm", "fixed/a.nii.gz", "moving.nii.gz"], "both DICOM files and a.nii.gz"),
        (["fixed/readme.txt", "moving.nii.gz"], "neither an image file nor DICOM"),
    ],
)
def test_what_is_missing_or_ambiguous_is_named(tmp_path, names, error):
    with pytest.raises((FileNotFoundError, ValueError), match=error):
        find_pair(place(tmp_path, *names))


def test_model_paths(tmp_path):
    bundle = place(tmp_path / "repository" / "bundle", "configs/inference.json", "models/model.pt")
    runs = place(tmp_path / "runs" / "models", "model.pt")
    root = {"bundle_root": str(bundle)}
    assert model_settings(None) == {}
    assert model_settings(bundle) == model_settings(bundle.parent) == root
    assert model_settings(bundle / "models" / "model.pt") == {**root, "checkpoint_file": f"{bundle}/models/model.pt"}
    assert model_settings(bundle / "models") == {**root, "ckpt_dir": str(bundle / "models")}
    assert model_settings(runs) == {"ckpt_dir": str(runs)}
    with pytest.raises(FileNotFoundError, match="neither a bundle"):
        model_settings(tmp_path)


def test_options_come_from_the_command_line_then_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ISTN_REFINE_STEPS", "7")
    monkeypatch.setenv("ISTN_ATLAS", "atlas.nii.gz")
    options, rest = parse_options(["-i", "IN", "--refine_steps", "3", "-m", "MODEL"])
    assert (options.refine_steps, options.atlas, rest) == (3, Path("atlas.nii.gz"), ["-i", "IN", "-m", "MODEL"])
    rules = {"selections": [{"name": "fixed", "conditions": {"Modality": "MR"}}]}
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules), encoding="utf-8")
    options, _ = parse_options(["--series_rules", str(file), "--segments", '{"2": {"label": "tail"}}'])
    assert {key: json.loads(text) for key, text in options.series_rules.items()} == {"fixed_image": rules}
    assert options.segments == {2: {"label": "tail"}} and options.refine_steps == 7
    with pytest.raises(ValueError, match="segments: objects with some of"):
        parse_options(["--segments", '{"tail": {}}'])
