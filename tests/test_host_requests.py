"""Tests of `istn_monai.workflow.host_requests`: what a request may name, and what the reply says."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import BUNDLE, random_checkpoint, write_nifti, write_subjects
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from istn_monai.metrics import FIELD_METRICS
from istn_monai.qa.rules import traffic_light
from istn_monai.registration import Registration
from istn_monai.workflow.host_requests import (
    STUDIES,
    Replyd,
    RequestError,
    RequestPaird,
    check_apart,
    check_holds,
    check_id,
    narrowed,
)

IMAGE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.fixture
def studies(tmp_path, monkeypatch) -> Path:
    """A studies folder of three images, two with labels, and a file beside it that no request may have."""
    monkeypatch.delenv(STUDIES, raising=False)
    monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder = tmp_path / "studies"
    for file in ("a.nii.gz", "b.nii.gz", "c.nii", "labels/final/b.nii.gz", "labels/original/b.nii.gz"):
        write_nifti(folder / file, IMAGE)
    write_nifti(folder / "labels" / "original" / "c.nii.gz", IMAGE)
    write_nifti(tmp_path / "secret.nii.gz", IMAGE)
    write_nifti(tmp_path / "tmp" / "tmpab12cd_9.nii.gz", IMAGE)
    return folder


@pytest.fixture
def upload(studies) -> str:
    return str(studies.parent / "tmp" / "tmpab12cd_9.nii.gz")


def request(studies: Path, **values) -> dict:
    """A request as MONAI Label hands it over, its image found."""
    return {"image": str(studies / "a.nii.gz"), "image_path": str(studies / "a.nii.gz"), "device": "cpu"} | values


# --- where the pair comes from ----------------------------------------------------------------------------------------


def test_pairs_pass_unchanged():
    pair = {"fixed_image": "anywhere/a.nii.gz", "moving_image": "../b.nii.gz", "label": 3}
    assert RequestPaird()(pair) == pair


@pytest.mark.parametrize("name", ["b", "b.nii.gz"])
def test_id_finds_image_and_final_label(studies, name):
    found = RequestPaird()(request(studies, moving_image=name))
    assert found["fixed_image"] == str(studies / "a.nii.gz")
    assert found["moving_image"] == str(studies / "b.nii.gz")
    assert found["moving_label"] == str(studies / "labels" / "final" / "b.nii.gz")
    assert found["request"] == {"moving_image": "b.nii.gz", "moving_label": "b.nii.gz", "warnings": []}


def test_label_of_another_suffix_and_tag(studies):
    found = RequestPaird()(request(studies, moving_image="c"))
    assert found["moving_image"] == str(studies / "c.nii")
    assert found["moving_label"] == str(studies / "labels" / "original" / "c.nii.gz")


def test_suffixes_of_image_and_label_may_differ(studies):
    found = RequestPaird()(request(studies, moving_image="c.nii"))
    assert found["moving_label"] == str(studies / "labels" / "original" / "c.nii.gz")


def test_label_by_its_own_id(studies):
    found = RequestPaird()(request(studies, moving_image="b", moving_label="c"))
    assert found["moving_label"] == str(studies / "labels" / "original" / "c.nii.gz")


def test_image_without_label_is_warned_of(studies):
    found = RequestPaird()(request(studies, image=str(studies / "b.nii.gz"), moving_image="a"))
    assert "moving_label" not in found
    assert "no label" in found["request"]["warnings"][0]


def test_id_before_upload_before_atlas(studies, upload, tmp_path):
    transform = RequestPaird(moving_image="atlas.nii.gz", moving_label="atlas_label.nii.gz", root=str(tmp_path))
    by_id = transform(request(studies, moving_image="b", label=upload))
    assert (by_id["moving_image"], by_id["moving_label"]) == (str(studies / "b.nii.gz"), upload)
    uploaded = transform(request(studies, label=upload, moving_image=""))
    assert uploaded["moving_image"] == upload and "moving_label" not in uploaded and "label" not in uploaded
    assert uploaded["request"]["moving_image"] == "upload"
    atlas = transform(request(studies))
    assert atlas["moving_image"] == str(tmp_path / "atlas.nii.gz")
    assert atlas["moving_label"] == str(tmp_path / "atlas_label.nii.gz")


def test_upload_with_the_label_of_an_id(studies, upload):
    found = RequestPaird()(request(studies, label=upload, moving_label="b"))
    assert found["moving_image"] == upload
    assert found["moving_label"] == str(studies / "labels" / "final" / "b.nii.gz")


def test_uploaded_fixed_image_needs_the_hosts_studies_folder(studies, upload, monkeypatch):
    monkeypatch.setenv(STUDIES, str(studies))
    found = RequestPaird()(request(studies, image=upload, moving_image="b"))
    assert (found["fixed_image"], found["moving_image"]) == (upload, str(studies / "b.nii.gz"))


def test_image_of_a_session(studies, monkeypatch):
    monkeypatch.setenv(STUDIES, str(studies))
    image = write_nifti(studies.parent / "sessions" / "1" / "a.nii.gz", IMAGE)
    assert RequestPaird()(request(studies, image=image, moving_image="b"))["fixed_image"] == image


def test_images_that_were_read_already_are_taken():
    fixed, moving = MetaTensor(torch.zeros(1, 2, 2)), MetaTensor(torch.ones(1, 2, 2))
    found = RequestPaird()({"image": fixed, "moving_image": moving})
    assert found["fixed_image"] is fixed and found["moving_image"] is moving


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(data: dict, status: int, text: str) -> None:
    with pytest.raises(RequestError, match=text) as error:
        RequestPaird()(data)
    assert error.value.status == status


@pytest.mark.parametrize("key", ["moving_image", "moving_label"])
@pytest.mark.parametrize("name", ["{secret}", "../secret", "labels/final/b", "..", ".hidden", "a\\b", "b\0.nii"])
def test_paths_are_refused(studies, key, name):
    name = name.format(secret=studies.parent / "secret.nii.gz")
    refused(request(studies, **{"moving_image": "b", key: name}), 403, f"{key}.*paths are not allowed")


def test_links_out_of_the_studies_folder_are_refused(studies):
    for folder in (studies, studies / "labels" / "final"):
        (folder / "link.nii.gz").symlink_to(studies.parent / "secret.nii.gz")
    refused(request(studies, moving_image="link"), 403, "leads out")
    refused(request(studies, moving_image="b", moving_label="link"), 403, "leads out")
    refused(request(studies, image=str(studies / "link.nii.gz"), moving_image="b"), 403, "image must be an id")


def test_studies_folder_may_be_a_link_itself(studies, monkeypatch):
    link = studies.parent / "link"
    link.symlink_to(studies, target_is_directory=True)
    monkeypatch.setenv(STUDIES, str(link))
    assert RequestPaird()(request(studies, moving_image="b"))["moving_image"] == str(link / "b.nii.gz")


def test_remote_datastore_serves_what_it_has_cached(studies, upload, monkeypatch):
    monkeypatch.setenv(STUDIES, "https://pacs.example/dicom-web")
    refused(request(studies, moving_image="b"), 403, "image must be an id")
    refused(request(studies, image=upload, moving_image="b"), 404, "no image 'b'")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_CACHE_PATH", str(studies))
    assert RequestPaird()(request(studies, moving_image="b"))["moving_image"] == str(studies / "b.nii.gz")


@pytest.mark.parametrize("image", ["secret.nii.gz", "studies/../secret.nii.gz", "tmp/other.nii.gz"])
def test_image_from_elsewhere_is_refused(studies, monkeypatch, image):
    monkeypatch.setenv(STUDIES, str(studies))
    write_nifti(studies.parent / "tmp" / "other.nii.gz", IMAGE)
    refused(request(studies, image=str(studies.parent / image), moving_image="b"), 403, "image must be an id")


@pytest.mark.parametrize("name", ["a/b", "..", ".lock", "a\\b", "a\nb", "a\0b", "", "a" * 300])
def test_an_id_is_no_path(name):
    with pytest.raises(RequestError, match="paths are not allowed") as error:
        check_id(name, "image")
    assert error.value.status == 403 and len(str(error.value)) < 600


def test_the_studies_lie_apart_from_all_that_the_host_runs(tmp_path):
    check_apart(tmp_path / "studies", {"app": tmp_path / "app", "bundle": tmp_path / "studies_app"})
    (tmp_path / "link").symlink_to(tmp_path / "studies")
    for folder in ("studies", "studies/app", ".", "link/app", "app/../studies/model"):
        with pytest.raises(ValueError, match="studies folder .* and the app folder .* must not lie in each other"):
            check_apart(tmp_path / "studies", {"app": tmp_path / folder})


def test_only_what_the_host_made_is_an_upload(studies):
    link = studies.parent / "tmp" / "tmpaaaaaaaa.nii.gz"
    link.symlink_to(studies.parent / "secret.nii.gz")
    for file in (link, studies.parent / "secret.nii.gz", studies.parent / "tmp" / "tmpbbbbbbbb.nii.gz"):
        refused(request(studies, label=str(file)), 403, "label must be an upload")


def test_missing_images_and_labels_are_named(studies):
    refused(request(studies), 400, "moving_image is missing")
    refused(request(studies, moving_image="nobody"), 404, "no image 'nobody'")
    refused(request(studies, moving_image="b", moving_label="a"), 404, "no label 'a'")
    refused(request(studies, image="", moving_image="b"), 404, "no image with this id")
    refused(request(studies, moving_image=7), 400, "got int")
    refused(request(studies, image=7, moving_image="b"), 400, "got int")
    refused(request(studies, label=7), 403, "label must be an upload")


def test_an_image_is_not_registered_to_itself(studies):
    refused(request(studies, moving_image="a"), 400, "is the patient's image itself; choose another case")
    refused(request(studies, moving_image="a.nii.gz"), 400, "choose another case")


def test_a_request_brings_nothing_else_to_read(studies):
    secret = str(studies.parent / "secret.nii.gz")
    smuggled = dict.fromkeys(
        [
            "fixed_image",
            "fixed_label",
            "moving_label_original",
            "warped_label",
            "theta",
            "maps",
            "moving_maps",
            "fixed_maps",
            "initial_alignment",
            "displacement",
            "moving_representation",
        ],
        secret,
    )
    found = RequestPaird()(request(studies, moving_image="b", **smuggled))
    assert secret not in map(str, found.values()) and found["fixed_image"] == str(studies / "a.nii.gz")


@pytest.mark.parametrize("steps", [-1, 1001, True, 2.5, "10", "$1 + 1", {"_target_": "builtins.int"}, None])
def test_refine_steps_must_be_a_number(studies, steps):
    refused(request(studies, moving_image="b", refine_steps=steps), 400, "refine_steps must be a whole number")


# --- the reply --------------------------------------------------------------------------------------------------------


def served(folder: Path, settings: dict, **values) -> dict:
    """What MONAI Label does with the bundle and a request, by hand: each transform, one batch, one element of it."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(folder), "device": "cpu"} | settings)
    steps = values.setdefault("refine_steps", 0)
    parser["displayable_configs"].update({"refine_steps": steps})
    parser.parse()
    data = values
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(Path(settings["ckpt_dir"]) / "model.pt"))
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    return data


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> tuple[Path, dict]:
    """Two subjects on different oblique grids as a datastore, and a small network for them."""
    folder = tmp_path_factory.mktemp("example")
    turn = np.array([[0, -0.88, 0.78, 5], [0.9, 0, 0, -3], [0, 0.66, 1.04, 7], [0, 0, 0, 1]])
    for number, (files, shape) in enumerate(
        zip(write_subjects(folder / "raw", 2), ((10, 12, 11), (10, 12, 11)), strict=True)
    ):
        for kind, place in (("image", "studies"), ("label", "studies/labels/final")):
            values = np.asarray(nib.load(files[kind]).dataobj)[: shape[0] - number]
            write_nifti(folder / place / f"case_{number}.nii.gz", values, turn if number else None)
    settings = random_checkpoint(
        folder / "models", {"spatial_size": [16, 16, 16], "control_spacing": [8, 4], "device": "cpu"}
    )
    return folder, settings


@pytest.mark.parametrize("steps", [0, 5])
def test_reply_is_the_moving_label_on_the_images_own_grid(example, steps):
    folder, settings = example
    image = folder / "studies" / "case_1.nii.gz"
    data = served(folder, settings, image=str(image), moving_image="case_0", refine_steps=steps)
    own = nib.load(image)
    assert data["pred"].shape == (1, *own.shape) and data["pred"].dtype == torch.uint8
    # what MONAI Label sizes and places the result by
    assert tuple(data["image"].meta["spatial_shape"]) == own.shape
    np.testing.assert_allclose(data["image"].meta["original_affine"], own.affine, atol=1e-6)
    files = {"moving_image": folder / "studies" / "case_0.nii.gz", "fixed_image": image}
    files["moving_label"] = folder / "studies" / "labels" / "final" / "case_0.nii.gz"
    expected = Registration(refine_steps=steps, **settings)({key: str(file) for key, file in files.items()})
    assert len(expected["warped_label"].unique()) == 3
    assert torch.equal(data["pred"].as_tensor().long(), expected["warped_label"].as_tensor().long())
    result = json.loads(json.dumps(data["result"]))
    assert result["moving_image"] == "case_0.nii.gz"
    assert (result["objective_end"] < result["objective_start"]) == (steps > 0)
    assert ("objective" in result) == (steps > 0) and set(FIELD_METRICS) <= set(result)
    assert result["steps"] <= steps and result["seconds"] >= 0 and result["folding"] == 0


@pytest.mark.parametrize("steps", [0, 5])
def test_a_reply_has_the_light_of_the_qa_page(example, steps, tmp_path):
    folder, settings = example
    image = folder / "studies" / "case_1.nii.gz"
    data = served(folder, settings, image=str(image), moving_image="case_0", refine_steps=steps)
    files = {"moving_image": folder / "studies" / "case_0.nii.gz", "fixed_image": image}
    files["moving_label"] = folder / "studies" / "labels" / "final" / "case_0.nii.gz"
    registration = Registration(refine_steps=steps, **settings)
    registration.save(registration({key: str(file) for key, file in files.items()}), tmp_path / "result")
    written = json.loads((tmp_path / "result" / "report.json").read_text(encoding="utf-8"))["qa"]
    assert written["status"] in ("amber", "red") and any("overlap" in reason for reason in written["reasons"])
    assert data["result"]["qa"] == {name: written[name] for name in ("status", "reasons", "skipped")}


def test_reply_without_label_is_the_warped_image(example):
    folder, settings = example
    (folder / "studies" / "case_2.nii.gz").write_bytes((folder / "studies" / "case_0.nii.gz").read_bytes())
    image = folder / "studies" / "case_1.nii.gz"
    data = served(folder, settings, image=str(image), moving_image="case_2")
    assert torch.equal(data["pred"].as_tensor(), data["warped"].as_tensor()) and data["pred"].dtype == torch.float32
    assert "no label" in data["result"]["warnings"][0]


def test_data_of_the_command_line_pass_unchanged():
    data = {"pred": torch.zeros(3, 2, 2, 2), "image": torch.zeros(2, 2, 2, 2)}
    assert Replyd()(data) == data


def registered(ddf, refinement=None, affine=None) -> dict:
    """What a host's postprocessing has of a pair: a field, and what a refinement of 10 steps left beside it."""
    steps = {"steps": 4, "seconds": 0.5, "objective_start": 2.0, "objective_end": 1.0, "at_bound": 0.0}
    steps |= {"trace": (2.0, *[float("nan")] * 3, 1.0, 1.5)} | (refinement or {})
    meta = {"theta": torch.zeros(6), "theta_start": torch.zeros(6), "refinement": steps}
    image = MetaTensor(torch.zeros(2, *ddf.shape[1:]), torch.eye(4) if affine is None else affine)
    return {"pred": MetaTensor(ddf, meta=meta), "image": image, "request": {"moving_image": "m", "warnings": ["w"]}}


def test_report_measures_displacement_in_mm():
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))[[1, 0, 2, 3]]  # axes swapped
    ddf = torch.zeros(3, 6, 6, 6)
    ddf[0], ddf[1] = 1.5, -0.5  # 3 mm and 1.5 mm
    result = Replyd().report(registered(ddf, affine=affine))
    assert result["max_displacement_mm"] == pytest.approx(np.hypot(3.0, 1.5))
    assert result["displacement"] == pytest.approx(np.hypot(3.0, 1.5) / 6)
    assert result["folding"] == 0 and result["objective"] == 0.5 and result["steps"] == 4
    assert (result["objective_start"], result["objective_end"]) == (2.0, 1.0) and result["moving_image"] == "m"
    assert result["warnings"] == ["w"] and result["qa"]["status"] == "red" and len(result["qa"]["reasons"]) == 1
    assert result["qa"]["reasons"][0].startswith("red: points move far")  # .56 of the grid's side


@pytest.mark.parametrize(
    "refinement, change, text",
    [
        ({"objective_end": 2.0, "steps": 0}, 0.0, "red: the refinement improved little or nothing"),
        ({"at_bound": 0.06}, 0.0, "amber: the transformation wants to go further"),
        ({}, -2.0, "red: the field folds"),
        ({}, 14.0, "red: points move far"),
    ],
)
def test_the_rules_of_qa_judge_a_reply_without_representations(refinement, change, text):
    """The very reasons of the QA page's judge, of what can be measured then."""
    ddf = torch.zeros(3, 32, 32, 32)
    assert Replyd().report(registered(ddf))["qa"]["reasons"] == []
    ddf[0] = change * (torch.arange(32.0).view(-1, 1, 1) if change < 0 else 1)
    result = Replyd().report(registered(ddf, refinement))
    judged = traffic_light({name: result[name] for name in (*FIELD_METRICS, "objective", "at_bound")})
    assert result["qa"]["reasons"] == judged.reasons and result["qa"]["status"] == judged.status
    assert any(reason.startswith(text) for reason in judged.reasons)


def test_one_pass_is_not_expected_to_improve():
    one_pass = {"trace": (2.0,), "steps": 0, "objective_end": 2.0}
    result = Replyd().report(registered(torch.zeros(3, 32, 32, 32), one_pass))
    assert result["qa"]["reasons"] == [] and "objective" not in result and result["steps"] == 0


@pytest.mark.parametrize(
    "values, kind",
    [([0, 255], torch.uint8), ([0, 256], torch.int16), ([-1, 2], torch.int16), ([0, 40000], torch.int32)],
)
def test_label_maps_take_the_smallest_type(values, kind):
    label = narrowed(torch.tensor(values))
    assert label.dtype == kind and label.tolist() == values


@pytest.mark.parametrize(
    "dtype, values", [("uint8", [0, 256]), ("uint8", [-1.0, 5.0]), ("int16", [40000]), ("uint16", [-1])]
)
def test_a_type_that_the_result_does_not_fit_is_refused(dtype, values):
    with pytest.raises(RequestError, match=f"result_dtype {dtype} holds .* leave result_dtype out"):
        check_holds(dtype, torch.tensor(values))


@pytest.mark.parametrize("dtype, values", [("uint8", [0, 255]), ("int16", [-5.0]), ("float32", [1e9]), (None, [-1])])
def test_a_type_that_the_result_fits_is_taken(dtype, values):
    check_holds(dtype, torch.tensor(values))
