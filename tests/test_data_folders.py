"""Tests of `istn_monai.io.data_folders`: plain folders, and those of nnU-Net and the Decathlon."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import DATA_DIR, ball, write_json, write_nifti

from istn_monai.io.data_folders import data_set_subjects, is_data_set, named_subjects
from istn_monai.io.datalist import SPLITS, read_datalist
from istn_monai.io.subject_files import Selection, Subjects, structure_names
from istn_monai.pairing import make_datalist
from istn_monai.planning.dataset import data_set, source_of
from istn_monai.planning.plan import write_plan

SHAPE = (20, 26, 22)
DESCRIPTION = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "Anterior": 1, "Posterior": 2, "whole": [1, 2]},
    "numTraining": 6,
    "file_ending": ".nii.gz",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """The current folder, where plans are written."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def touched(folder: Path, *names: str) -> Path:
    """Empty files: joining looks at names alone."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def nnunet(folder: Path, channels: int = 1, cases: int = 6, ending: str = ".nii.gz", **description) -> Path:
    """nnU-Net's raw folder, of empty files."""
    names = [f"hip_{number:03d}" for number in range(cases)]
    touched(folder, *(f"labelsTr/{name}{ending}" for name in names), f"imagesTs/hip_100_0000{ending}")
    touched(folder, *(f"imagesTr/{name}_{c:04d}{ending}" for name in names for c in range(channels)))
    write_json(folder / "dataset.json", DESCRIPTION | {"file_ending": ending} | description)
    return folder


def filled(folder: Path, unlabeled: int | None = None, channels: int = 1) -> Path:
    """The same with images that a plan can be made of."""
    nnunet(folder, channels)
    rng = np.random.default_rng(0)
    for index in range(6):
        center = [size / 2 + rng.uniform(-1, 1) for size in SHAPE]
        label = 2 * ball(SHAPE, center, 6) - ball(SHAPE, center, 4)
        image = label + rng.normal(0, 0.1, SHAPE)
        if unlabeled is not None:
            label[:3, :3, :3] = unlabeled
        write_nifti(folder / "labelsTr" / f"hip_{index:03d}.nii.gz", label.astype(np.uint8))
        for channel in range(channels):
            write_nifti(folder / "imagesTr" / f"hip_{index:03d}_{channel:04d}.nii.gz", image.astype(np.float32))
    return folder


def image_names(found: Subjects) -> dict[str, str]:
    return {case: visit["image"].name for case, (visit,) in found.visits.items()}


# --- nnU-Net ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".tif"])
def test_a_folder_of_nnunet_has_images_with_labels_and_names(tmp_path, ending):
    found = data_set_subjects(nnunet(tmp_path / "Dataset004_Hippocampus", ending=ending))
    assert found.remarks == () and found.names == {1: "Anterior", 2: "Posterior"}
    assert len(found.visits) == 6
    for case, (visit,) in found.visits.items():
        assert visit["image"].name == f"{case}_0000{ending}" and visit["label"].name == f"{case}{ending}"


def test_names_of_structures_are_those_of_both_versions_of_nnunet():
    first = {"0": "background", "1": "Anterior", "2": "Posterior"}
    second = {"background": 0, "Anterior": 1, "Posterior": [2], "whole": [1, 2], "ignore": 3}
    assert structure_names(first) == {1: "Anterior", 2: "Posterior"}
    assert structure_names(second) == {1: "Anterior", 2: "Posterior", 3: "ignore"}
    assert structure_names(None) == structure_names(["Anterior"]) == structure_names({"a": None, "b": True}) == {}


@pytest.mark.parametrize(
    "asked, channel, said",
    [(None, 0, r"channel 0 \(T1\)"), ("1", 1, r"channel 1 \(T2\)"), ("0001", 1, "1"), ("t2", 1, "1")],
)
def test_of_several_channels_one_counts_and_is_said(tmp_path, asked, channel, said):
    found = data_set_subjects(nnunet(tmp_path / "mine", channels=2), Selection(asked))
    assert set(image_names(found).values()) == {f"hip_{number:03d}_{channel:04d}.nii.gz" for number in range(6)}
    assert len(found.remarks) == 1 and re.search(f"{said}.* counts, 6 files of other channels do not", found.remarks[0])


@pytest.mark.parametrize("asked, text", [("2", "6 cases have no channel 2.*channels are 0, 1"),
                                         ("FLAIR", "'FLAIR' is no channel.*T1, T2")])  # fmt: skip
def test_a_channel_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path, asked, text):
    with pytest.raises(ValueError, match=text):
        data_set_subjects(nnunet(tmp_path / "mine", channels=2), Selection(asked))


def test_a_case_without_the_channel_that_counts_is_named(tmp_path):
    folder = nnunet(tmp_path / "mine", channels=2)
    (folder / "imagesTr" / "hip_003_0000.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 cases have no channel 0, for example hip_003;"):
        data_set_subjects(folder)


def test_numbers_of_subjects_are_no_channels(tmp_path):
    """hip_0001 is a case where a label map is called so, and channel 1 of hip where none is."""
    names = [f"hip_{number:04d}.nii.gz" for number in range(6)]
    folder = touched(tmp_path / "mine", *(f"{kind}/{name}" for kind in ("imagesTr", "labelsTr") for name in names))
    assert set(image_names(data_set_subjects(folder)).values()) == set(names)
    for name in names:
        (folder / "imagesTr" / name).rename(folder / "imagesTr" / name.replace(".nii.gz", "_0000.nii.gz"))
    assert image_names(data_set_subjects(folder)) == {f"hip_{n:04d}": f"hip_{n:04d}_0000.nii.gz" for n in range(6)}


def test_a_case_called_as_another_ones_channel_is_itself(tmp_path):
    names = ["hip.nii.gz", "hip_0001.nii.gz"]
    folder = touched(tmp_path / "mine", *(f"{kind}/{name}" for kind in ("images", "labels") for name in names))
    assert image_names(data_set_subjects(folder)) == {"hip": names[0], "hip_0001": names[1]}


def test_two_images_of_one_case_are_an_error_that_names_both(tmp_path):
    folder = touched(nnunet(tmp_path / "mine"), "imagesTr/hip_002.nii.gz")
    with pytest.raises(ValueError, match=r"hip_002.nii.gz and hip_002_0000.nii.gz are both channel 0 of hip_002"):
        data_set_subjects(folder)


def test_without_labels_several_channels_are_an_error_unless_one_is_asked_for(tmp_path):
    """left_0001 and right_0001 may be channels, or subjects."""
    files = [f"images/{side}_{number:04d}.png" for side in ("left", "right") for number in range(2)]
    folder = touched(tmp_path, *files) / "images"
    with pytest.raises(ValueError, match="such as left_0000, left_0001, right_0000 ...: .*--modality 0"):
        named_subjects(folder)
    assert image_names(named_subjects(folder, selection=Selection("1"))) == {
        side: f"{side}_0001.png" for side in ("left", "right")
    }


def test_files_that_nnunet_lists_may_lie_anywhere(tmp_path):
    cases = {
        f"c{n}": {"images": [f"../scans/{n}_t1.nii.gz", f"../scans/{n}_t2.nii.gz"], "label": f"../truth/{n}.nii.gz"}
        for n in range(6)
    }
    folder = tmp_path / "Dataset005_Listed"
    write_json(folder / "dataset.json", DESCRIPTION | {"dataset": cases})
    found = data_set_subjects(folder, Selection("T2"))
    visit = found.visits["c3"][0]
    assert visit["image"].resolve() == (tmp_path / "scans" / "3_t2.nii.gz").resolve()
    assert visit["label"].resolve() == (tmp_path / "truth" / "3.nii.gz").resolve()
    write_json(folder / "dataset.json", DESCRIPTION | {"dataset": cases | {"c9": {"images": "a.nii.gz"}}})
    with pytest.raises(ValueError, match="dataset.json: dataset 'c9' must have a list 'images'"):
        data_set_subjects(folder)


def test_another_number_of_cases_than_the_description_says_is_said(tmp_path):
    found = data_set_subjects(nnunet(tmp_path / "mine", numTraining=260))
    assert len(found.remarks) == 1 and "numTraining 260, and there are 6 cases" in found.remarks[0]


def test_a_description_that_is_no_json_is_an_error_that_names_it(tmp_path, elsewhere):
    folder = nnunet(tmp_path / "mine")
    (folder / "dataset.json").write_text("{'labels': 1}", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{re.escape(str(folder / 'dataset.json'))} is not JSON"):
        write_plan(folder)
    assert not list(elsewhere.iterdir())


def test_the_description_stands_for_its_folder_unless_it_has_pairs(tmp_path):
    folder = nnunet(tmp_path / "mine", training=[{"image": "imagesTr/hip_000.nii.gz", "label": "labelsTr/a.nii.gz"}])
    assert source_of(folder / "dataset.json") == folder
    pairs = {"training": [{"moving_image": "a.nii.gz", "fixed_image": "b.nii.gz"}]}
    assert source_of(write_json(folder / "dataset.json", pairs)) == folder / "dataset.json"


def test_the_list_of_the_decathlon_is_not_called_a_datalist(tmp_path, capsys):
    folder = nnunet(tmp_path / "mine", training=[{"image": "imagesTr/hip_000.nii.gz", "label": "labelsTr/a.nii.gz"}])
    data_set(folder, tmp_path / "drawn.json")
    assert capsys.readouterr().out == ""


def test_a_plan_says_the_names_of_structures(tmp_path):
    plan, _ = write_plan(filled(tmp_path / "mine"))
    reasons = {choice.name: choice.reason for choice in plan.choices}
    assert "1 Anterior, 2 Posterior" in reasons["soi_labels"]
    assert {key: entry["name"] for key, entry in plan.fingerprint["structures"].items()} == {
        "1": "Anterior", "2": "Posterior"
    }  # fmt: skip


def test_what_nobody_labeled_is_no_structure(tmp_path):
    folder = filled(tmp_path / "mine", unlabeled=3)
    write_json(folder / "dataset.json", DESCRIPTION | {"labels": DESCRIPTION["labels"] | {"ignore": 3}})
    plan, _ = write_plan(folder)
    assert plan.settings["soi_labels"] == [[1], [2]]
    assert "nobody labeled" in next(choice.reason for choice in plan.choices if choice.name == "soi_labels")


def test_the_real_hippocampus_is_a_folder_of_the_decathlon(tmp_path):
    folder = DATA_DIR / "hippocampus"
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}")
    found = data_set_subjects(folder)
    assert len(found.visits) == 200 and found.remarks == ()
    assert all(visit["image"].name == visit["label"].name for (visit,) in found.visits.values())


# --- plain folders ---------------------------------------------------------------------------------------------------


def test_a_label_under_another_name_is_named_with_its_image(tmp_path):
    names = [f"c{number}.nii.gz" for number in range(6)]
    folder = touched(tmp_path / "mine", *(f"{kind}/{name}" for kind in ("images", "labels") for name in names))
    (folder / "labels" / "c3.nii.gz").rename(folder / "labels" / "c3_seg.nii.gz")
    with pytest.raises(
        ValueError, match=r"1 images .* c3.nii.gz; without an image there: c3_seg.nii.gz: give both one"
    ):
        data_set_subjects(folder)


def test_labels_without_an_image_are_left_out_and_said(tmp_path):
    folder = nnunet(tmp_path / "mine")
    (folder / "imagesTr" / "hip_002_0000.nii.gz").unlink()
    found = data_set_subjects(folder)
    assert "hip_002" not in found.visits and len(found.visits) == 5
    assert "1 label files without an image of their name are left out: hip_002.nii.gz" in found.remarks


def test_a_choice_of_label_maps_where_there_is_none_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="label_map chooses among the label maps of BIDS"):
        data_set_subjects(nnunet(tmp_path / "mine"), Selection(None, "aseg"))


@pytest.mark.parametrize("place", [".", "Dataset004_Hippocampus/imagesTr"])
def test_a_folder_above_or_below_the_data_sets_is_an_error_that_names_it(tmp_path, place):
    nnunet(tmp_path / "raw" / "Dataset004_Hippocampus")
    with pytest.raises(
        FileNotFoundError, match="no folder images or imagesTr.* did you mean .*Dataset004_Hippocampus?"
    ):
        data_set_subjects(tmp_path / "raw" / place)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_of_a_data_set_have_its_labels_and_their_names(tmp_path, capsys):
    folder = nnunet(tmp_path / "Dataset004_Hippocampus", channels=2)
    file = make_datalist(folder, tmp_path / "pairs.json", None, 2, 1, 1, selection=Selection("T2"))
    assert "channel 1 (T2)" in capsys.readouterr().out
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["name"] == "Dataset004_Hippocampus" and content["labels"] == {"1": "Anterior", "2": "Posterior"}
    for items in read_datalist(file, SPLITS).values():
        for item in items:
            for side in ("moving", "fixed"):
                case = Path(item[f"{side}_label"]).name.removesuffix(".nii.gz")
                assert Path(item[f"{side}_image"]).name == f"{case}_0001.nii.gz"


def test_a_folder_of_images_is_no_data_set_whatever_else_it_holds(tmp_path):
    folder = touched(tmp_path / "mine", "a.nii.gz", "images/b.nii.gz")
    assert not is_data_set(folder) and is_data_set(nnunet(tmp_path / "other"))


def test_a_choice_among_files_of_data_with_pairs_is_an_error(tmp_path):
    folder = nnunet(tmp_path / "mine")
    pairs = make_datalist(folder, folder / "pairs.json", None, 2, 1, 1)
    for source in (folder, pairs):
        with pytest.raises(ValueError, match="pairs.json has its pairs already"):
            data_set(source, tmp_path / "drawn.json", Selection("1"))
