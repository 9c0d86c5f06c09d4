"""Tests of `istn_monai.io.bids`: which image and which label map of a BIDS data set belong together."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ball, write_json, write_nifti

from istn_monai.io.bids import bids_subjects
from istn_monai.io.bids_files import entities_of
from istn_monai.io.data_folders import data_set_subjects
from istn_monai.io.datalist import SPLITS, read_datalist
from istn_monai.io.subject_files import EVERYTHING, Selection
from istn_monai.pairing import make_datalist
from istn_monai.planning.plan import write_plan

SUBJECTS = ("01", "02", "03", "04", "05", "06")
PREP = "derivatives/fmriprep"


def bids(root: Path, raw: tuple[str, ...] = ("T1w",), derived: tuple[str, ...] = ("dseg",), subjects=SUBJECTS) -> Path:
    """A data set of empty files: joining looks at names alone."""
    write_json(root / "dataset_description.json", {"Name": "mine", "BIDSVersion": "1.9.0"})
    for subject in subjects:
        add(root, subject, *raw)
        add(root / PREP, subject, *derived)
    return root


def add(tree: Path, subject: str, *ends: str, session: str | None = None) -> None:
    """Files of one subject."""
    folder = tree / f"sub-{subject}" / (f"ses-{session}" if session else "") / "anat"
    folder.mkdir(parents=True, exist_ok=True)
    for end in ends:
        (folder / f"sub-{subject}{f'_ses-{session}' if session else ''}_{end}.nii.gz").touch()


def joined(root: Path, modality: str | None = None, label_map: str | None = None) -> dict[str, list[tuple[str, str]]]:
    """Files of each subject, as seen from the data set."""
    found = bids_subjects(root, Selection(modality, label_map)).visits
    return {
        subject: [(str(v["image"].relative_to(root)), str(v["label"].relative_to(root))) for v in visits]
        for subject, visits in found.items()
    }


def test_names_are_entities_and_a_suffix():
    assert entities_of("sub-01_ses-2_desc-aseg_dseg") == ({"sub": "01", "ses": "2", "desc": "aseg"}, "dseg")
    assert [entities_of(name) for name in ("T1w", "sub-01_T1w_dseg", "sub-01", "ses-1_T1w", "sub-1_sub-1_T1w")] == [
        None
    ] * 5


# --- what belongs together -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["dseg", "desc-aseg_dseg", "space-T1w_dseg", "atlas-Neuromorphometrics_dseg"])
def test_label_maps_of_derivatives_lie_on_raw_images(tmp_path, label):
    root = bids(tmp_path / "ds", derived=(label, "label-GM_probseg", "desc-brain_mask"))
    assert joined(root)["sub-03"] == [("sub-03/anat/sub-03_T1w.nii.gz", f"{PREP}/sub-03/anat/sub-03_{label}.nii.gz")]
    assert len(joined(root)) == len(SUBJECTS)


@pytest.mark.parametrize("raw", ["", "rawdata"])
def test_raw_data_may_lie_beside_their_derivatives(tmp_path, raw):
    for subject in SUBJECTS:
        add(tmp_path / raw, subject, "T1w")
        add(tmp_path / "derivatives", subject, "dseg")
    found = data_set_subjects(tmp_path).visits["sub-01"][0]
    assert found["image"] == tmp_path / raw / "sub-01/anat/sub-01_T1w.nii.gz"
    assert found["label"] == tmp_path / "derivatives/sub-01/anat/sub-01_dseg.nii.gz"


def test_derivatives_by_themselves_are_a_data_set(tmp_path):
    root = bids(tmp_path / "ds", derived=("desc-preproc_T1w", "dseg"))
    assert joined(root / PREP)["sub-01"] == [
        ("sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", "sub-01/anat/sub-01_dseg.nii.gz")
    ]


def test_the_image_of_the_label_maps_own_pipeline_comes_before_the_raw_one(tmp_path):
    root = bids(tmp_path / "ds", derived=("desc-preproc_T1w", "desc-brain_T1w", "dseg"))
    assert joined(root)["sub-01"][0][0] == f"{PREP}/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"
    assert joined(root, "desc-brain")["sub-01"][0][0] == f"{PREP}/sub-01/anat/sub-01_desc-brain_T1w.nii.gz"


def test_files_of_other_spaces_are_never_joined(tmp_path):
    """A label map in the subject's space, and an image in the template's; and the other way round."""
    for index, (image, label) in enumerate(
        [("space-MNI152NLin6Asym_desc-preproc_T1w", "dseg"), ("T1w", "space-MNI152NLin6Asym_dseg"),
         ("space-MNI152NLin6Asym_T1w", "space-MNI152NLin2009cAsym_dseg"),
         ("space-MNI152NLin6Asym_res-1_T1w", "space-MNI152NLin6Asym_res-2_dseg"), ("T1w", "res-2_dseg"),
         ("run-1_T1w", "run-2_dseg")]
    ):  # fmt: skip
        with pytest.raises(ValueError, match="no label map has an image of its subject, session and space"):
            joined(bids(tmp_path / str(index), raw=(image,), derived=(label,)))


def test_a_label_map_without_a_session_lies_on_no_image_of_one(tmp_path):
    root = bids(tmp_path / "ds", raw=())
    for subject in SUBJECTS:
        add(root, subject, "T1w", session="1")
    with pytest.raises(ValueError, match="no label map has an image of its subject, session and space"):
        joined(root)


def test_the_subjects_own_space_comes_before_a_templates(tmp_path):
    space = "space-MNI152NLin2009cAsym_res-1"
    root = bids(tmp_path / "ds", derived=("desc-preproc_T1w", "dseg", f"{space}_desc-preproc_T1w", f"{space}_dseg"))
    assert joined(root)["sub-01"] == [
        (f"{PREP}/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz", f"{PREP}/sub-01/anat/sub-01_dseg.nii.gz")
    ]
    assert joined(root, "space-MNI152NLin2009cAsym")["sub-01"] == [
        (f"{PREP}/sub-01/anat/sub-01_{space}_desc-preproc_T1w.nii.gz", f"{PREP}/sub-01/anat/sub-01_{space}_dseg.nii.gz")
    ]


def test_a_subject_in_another_space_than_the_others_is_left_out_and_said(tmp_path):
    root = bids(tmp_path / "ds")
    add(root / PREP, "09", "space-MNI152NLin6Asym_T1w", "space-MNI152NLin6Asym_dseg")
    found = bids_subjects(root, EVERYTHING)
    assert "sub-09" not in found.visits
    assert found.remarks == ("1 left out, in another space: sub-09_space-MNI152NLin6Asym_dseg.nii.gz",)


def test_two_templates_are_an_error_until_one_is_chosen(tmp_path):
    files = [f"space-{space}_{end}" for space in ("MNIa", "MNIb") for end in ("T1w", "dseg")]
    root = bids(tmp_path / "ds", raw=(), derived=tuple(files))
    with pytest.raises(ValueError, match="several spaces, MNIa, MNIb: choose one, as by --modality space-MNI"):
        joined(root)
    assert all("MNIb" in file for file in joined(root, "space-MNIb")["sub-01"][0])


def test_sessions_are_told_apart_and_stay_in_one_split(tmp_path, capsys):
    root = bids(tmp_path / "ds", raw=(), derived=())
    for subject in SUBJECTS:
        for session in ("pre", "post"):
            add(root, subject, "T1w", session=session)
            add(root / PREP, subject, "dseg", session=session)
    found = bids_subjects(root, EVERYTHING)
    for visit in (visit for visits in found.visits.values() for visit in visits):
        assert visit["image"].name.replace("T1w", "dseg") == visit["label"].name
    assert found.remarks == ("6 subjects have 12 images: those of one subject stay in one split",)
    people = {}
    taken = set()
    for split, items in read_datalist(make_datalist(root, tmp_path / "pairs.json", None, 2, 2, 2), SPLITS).items():
        names = [Path(file).name for item in items for key, file in item.items() if key.endswith("image")]
        people[split] = {name.split("_")[0] for name in names}
        taken |= {name.split("_")[1] for name in names}
        assert all(Path(item["moving_image"]).name[:6] != Path(item["fixed_image"]).name[:6] for item in items)
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == 6
    assert taken == {"ses-pre", "ses-post"}


def test_runs_with_a_label_map_each_are_images_of_one_subject(tmp_path):
    root = bids(tmp_path / "ds", raw=("run-1_T1w", "run-2_T1w"), derived=("run-01_dseg", "run-02_dseg"))
    assert [[Path(file).name for file in visit] for visit in joined(root)["sub-01"]] == [
        ["sub-01_run-1_T1w.nii.gz", "sub-01_run-01_dseg.nii.gz"],
        ["sub-01_run-2_T1w.nii.gz", "sub-01_run-02_dseg.nii.gz"],
    ]


def test_t1w_counts_and_another_suffix_by_choice(tmp_path):
    root = bids(tmp_path / "ds", raw=("T2w", "T1w", "FLAIR"))
    found = bids_subjects(root, EVERYTHING)
    assert found.visits["sub-01"][0]["image"].name == "sub-01_T1w.nii.gz"
    assert found.remarks == ("T1w images count, FLAIR and T2w do not; see --modality",)
    assert joined(root, "T2w")["sub-01"][0][0].endswith("sub-01_T2w.nii.gz")
    with pytest.raises(ValueError, match="--modality PDw: there is no such file, but FLAIR, T1w, T2w"):
        joined(root, "PDw")


def test_label_maps_that_name_no_space_are_said_to_be_taken_for_those_of_another_suffix(tmp_path):
    """fMRIPrep's are in the space of T1w, whatever else there is."""
    root = bids(tmp_path / "ds", raw=("T1w", "T2w"))
    (remark,) = bids_subjects(root, Selection("T2w")).remarks
    assert "6 label maps name no space, as sub-01_dseg.nii.gz, and are taken to lie on T2w" in remark
    with pytest.raises(ValueError, match="no label map has an image"):
        joined(bids(tmp_path / "said", raw=("T1w", "T2w"), derived=("space-T1w_dseg",)), "T2w")
    assert bids_subjects(bids(tmp_path / "own", raw=("T2w",)), EVERYTHING).remarks == ()


# --- what fits equally well ------------------------------------------------------------------------------------------


def test_several_kinds_of_label_maps_are_an_error_until_one_is_chosen(tmp_path):
    root = bids(tmp_path / "ds", derived=("dseg", "desc-aseg_dseg", "desc-aparcaseg_dseg"))
    with pytest.raises(ValueError) as error:
        joined(root)
    assert "fmriprep/desc-aparcaseg_dseg, fmriprep/desc-aseg_dseg, fmriprep/dseg" in str(error.value)
    assert "--label_map" in str(error.value) and "\n" not in str(error.value)
    for asked, end in [("desc-aseg", "desc-aseg_dseg"), ("aseg", "desc-aseg_dseg"), ("dseg", "dseg"),
                       ("fmriprep/dseg", "dseg")]:  # fmt: skip
        assert joined(root, None, asked)["sub-01"][0][1] == f"{PREP}/sub-01/anat/sub-01_{end}.nii.gz"
    with pytest.raises(ValueError, match="--label_map other: there is no such file, but .*fmriprep/dseg"):
        joined(root, None, "other")


def test_two_pipelines_are_an_error_until_one_is_chosen_also_where_each_has_half_of_the_subjects(tmp_path):
    root = bids(tmp_path / "ds", subjects=SUBJECTS[:3])
    for subject in SUBJECTS[3:]:
        add(root, subject, "T1w")
        add(root / "derivatives" / "my_tool-7.1", subject, "dseg")
    with pytest.raises(ValueError, match=r"several kinds of label maps .*fmriprep/dseg, my_tool-7.1/dseg"):
        joined(root)
    assert set(joined(root, None, "my_tool-7.1")) == {"sub-04", "sub-05", "sub-06"}


def test_two_label_maps_of_one_image_are_an_error_that_names_both(tmp_path):
    root = bids(tmp_path / "ds")
    add(root / PREP, "02", "space-T1w_dseg")
    with pytest.raises(ValueError, match="two label maps fit equally well, .*sub-02_dseg.*sub-02_space-T1w_dseg"):
        joined(root)


def test_two_images_of_one_label_map_are_an_error_that_names_both(tmp_path):
    root = bids(tmp_path / "ds", raw=("run-1_T1w", "run-2_T1w"))
    with pytest.raises(
        ValueError, match="two images for sub-01_dseg.nii.gz fit .*run-1_T1w.*run-2_T1w.*--modality run-2"
    ):
        joined(root)
    assert joined(root, "run-2")["sub-01"][0][0].endswith("run-2_T1w.nii.gz")


# --- what is not there -----------------------------------------------------------------------------------------------


def test_images_without_label_map_and_label_maps_without_image_are_left_out_and_said(tmp_path):
    root = bids(tmp_path / "ds")
    add(root, "07", "T1w")
    add(root / PREP, "7", "dseg")
    found = bids_subjects(root, EVERYTHING)
    assert set(found.visits) == {f"sub-{subject}" for subject in SUBJECTS}
    assert found.remarks == (
        "1 left out, without a label map of the same subject, session and space: sub-07_T1w.nii.gz",
        "1 left out, without an image of the same subject, session and space: sub-7_dseg.nii.gz",
    )


def test_names_that_bids_does_not_know_are_said(tmp_path):
    root = bids(tmp_path / "ds", raw=("T1w", "T1w_seg"))
    assert bids_subjects(root, EVERYTHING).remarks == (
        "6 files left out, whose names are none of BIDS: sub-01_T1w_seg.nii.gz, sub-02_T1w_seg.nii.gz, "
        "sub-03_T1w_seg.nii.gz ...",
    )


def test_no_label_map_at_all_is_an_error_that_says_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="none of 12 files is a dseg, suffixes are T1w, probseg;"):
        joined(bids(tmp_path / "ds", derived=("label-GM_probseg",)))


def test_derivatives_without_images_are_an_error_that_asks_for_the_raw_data(tmp_path):
    with pytest.raises(ValueError, match="no image in .*fmriprep.*folder of the raw data"):
        joined(bids(tmp_path / "ds") / PREP)


def test_a_file_in_the_folder_of_another_subject_is_an_error(tmp_path):
    root = bids(tmp_path / "ds")
    (root / PREP / "sub-02/anat/sub-02_dseg.nii.gz").rename(root / PREP / "sub-02/anat/sub-01_dseg.nii.gz")
    with pytest.raises(ValueError, match="sub-01_dseg.nii.gz lies in sub-02, but its name says otherwise"):
        joined(root)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_of_structures_are_those_of_the_nearest_table_of_the_label_map(tmp_path):
    root = bids(tmp_path / "ds", derived=("desc-aseg_dseg",))
    header = "index\tname\n0\tBackground\n"
    (root / "desc-aparcaseg_dseg.tsv").write_text(f"{header}9\tOther\n", encoding="utf-8")
    assert bids_subjects(root, EVERYTHING).names == {}
    (root / "dseg.tsv").write_text(f"{header}1\tAny\n", encoding="utf-8")
    assert bids_subjects(root, EVERYTHING).names == {1: "Any"}
    (root / PREP / "dseg.tsv").write_text(f"{header}1\tNearer\n", encoding="utf-8")
    (root / PREP / "desc-aseg_dseg.tsv").write_text(f"{header}17\tHippocampus\n1\tOwn\n", encoding="utf-8")
    assert bids_subjects(root, EVERYTHING).names == {1: "Own", 17: "Hippocampus"}


@pytest.mark.parametrize("text", ["index,name\n1,a\n", "index\tname\none\ta\n", "name\na\n", "index\tname\n1\n\xff"])
def test_a_table_that_is_none_is_said(tmp_path, text):
    root = bids(tmp_path / "ds")
    (root / "dseg.tsv").write_text(text, encoding="latin-1")
    found = bids_subjects(root, EVERYTHING)
    assert found.names == {}
    assert len(found.remarks) == 1 and re.search("names of structures are not read: .*dseg.tsv", found.remarks[0])


def test_a_plan_of_a_bids_data_set_has_its_names(tmp_path, monkeypatch):
    shape, rng = (20, 26, 22), np.random.default_rng(0)
    root = bids(tmp_path / "ds")
    for subject in SUBJECTS:
        label = ball(shape, [size / 2 + rng.uniform(-1, 1) for size in shape], 6)
        image = (label + rng.normal(0, 0.1, shape)).astype(np.float32)
        write_nifti(root / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz", image)
        write_nifti(root / f"{PREP}/sub-{subject}/anat/sub-{subject}_dseg.nii.gz", label)
    (root / PREP / "dseg.tsv").write_text("index\tname\n1\tBall\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    plan, file = write_plan(root)
    assert plan.settings["run_name"] == "ds" and file == tmp_path / "ds_plan.json"
    assert plan.fingerprint["structures"]["1"]["name"] == "Ball"
