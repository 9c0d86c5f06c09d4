"""Registration into folders where something is already: skipped, refused, replaced, gone on with; one pair or many."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_files import straight, write_stack
from helpers import ball, random_checkpoint, write_json, write_nifti
from nibabel.filebasedimages import ImageFileError

from istn_monai.apply import apply_transform
from istn_monai.io.itk_transforms import read_transform
from istn_monai.io.landmarks import read_points
from istn_monai.pairing import make_datalist
from istn_monai.registration import Registration, register_datalist, register_files, represent_file
from istn_monai.workflow.provenance import weights_hash
from istn_monai.workflow.result_folders import OUTPUTS, pair_folder

SETTINGS = {
    "spatial_size": [24, 20], "transformation": "affine", "soi_labels": [[1]], "initial_alignment": "world",
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("weights"), SETTINGS)


@pytest.fixture(scope="module")
def registration(weights):
    """Without QA pages, which take a second each."""
    return Registration(refine_steps=0, qa=False, **weights)


@pytest.fixture
def images(tmp_path):
    """Three images, and labels of theirs, in a folder of their own."""
    for number in range(3):
        blob = ball((24, 20), (11 + number, 10), 6).astype(np.float32)
        write_nifti(tmp_path / "data" / f"{number}.nii.gz", blob + np.random.default_rng(number).random(blob.shape) / 9)
        write_nifti(tmp_path / "data" / f"label_{number}.nii.gz", blob.astype(np.uint8))
    return tmp_path / "data"


def pair(images, moving: int | str = 0, fixed: int | str = 1, label: bool = False) -> dict[str, str]:
    files = {"moving_image": images / f"{moving}.nii.gz", "fixed_image": images / f"{fixed}.nii.gz"}
    files |= {"moving_label": images / f"label_{moving}.nii.gz"} if label else {}
    return {key: str(file) for key, file in files.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def again(registration, weights, **settings):
    return Registration(refine_steps=0, **weights | {"qa": False, "overwrite": True} | settings)


# --- one pair --------------------------------------------------------------------------------------------------------


def test_a_result_that_is_there_is_not_made_again_whatever_its_files_are_called(registration, images, tmp_path):
    assert register_files(registration, tmp_path / "out", **pair(images))
    before = contents(tmp_path / "out")
    assert not register_files(registration, tmp_path / "out", **pair(images))
    os.utime(images / "0.nii.gz", (1, 1))
    shutil.copytree(images, tmp_path / "copy")
    assert not register_files(registration, tmp_path / "out", **pair(tmp_path / "copy"))
    assert contents(tmp_path / "out") == before
    assert json.loads(before["report.json"])["files"] == sorted(before, key=OUTPUTS.index)


def test_a_result_of_other_files_weights_or_options_is_named_and_left_alone(registration, weights, images, tmp_path):
    register_files(registration, tmp_path / "out", **pair(images))
    before = contents(tmp_path / "out")

    def other(**settings):
        return Registration(refine_steps=settings.pop("refine_steps", 0), **weights | {"qa": False} | settings)

    changed = other()
    next(changed.network.parameters()).data.add_(1)
    changed.weights_sha256 = weights_hash(changed.network.state_dict())
    others = [
        ("moving_image: other content than .*0.nii.gz had then, in .*2.nii.gz now", registration, pair(images, 2), {}),
        ("moving_label: none then, .*label_0.nii.gz now", registration, pair(images, label=True), {}),
        ("inverse: False then, True now", registration, pair(images), {"inverse": True}),
        ("qa: False then, True now", other(qa=True), pair(images), {}),
        ("inferer: .*steps=0.* then, .*steps=2.* now", other(refine_steps=2), pair(images), {}),
        (r"spatial_size: \[24, 20\] then, \[28, 28\] now", other(spatial_size=[28, 28]), pair(images), {}),
        ("itn_dtype: 'float32' then, 'bfloat16' now", other(itn_dtype="bfloat16"), pair(images), {}),
        ("weights: another one then", changed, pair(images), {}),
    ]
    for said, another, files, options in others:
        with pytest.raises(FileExistsError, match=f"{said}.*--overwrite"):
            register_files(another, tmp_path / "out", **options, **files)
    assert contents(tmp_path / "out") == before


def test_another_series_of_the_same_folder_is_another_pair(tmp_path):
    """A folder's content does not say which of its series was read."""
    settings = SETTINGS | {"spatial_size": [16, 16, 16]}
    weights = random_checkpoint(tmp_path / "weights", settings)
    for number, uid in enumerate(("1.2.3", "1.2.4")):
        stack = write_stack(tmp_path / uid, straight(8, origin=(-20.0, 30.0, 7.0 + 3 * number)), series=uid)
        for file in stack.iterdir():
            (tmp_path / "both").mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / "both" / f"{uid}_{file.name}")
    files = {"moving_image": str(tmp_path / "both"), "fixed_image": str(tmp_path / "1.2.3")}

    def of(uid: str) -> Registration:
        return Registration(refine_steps=0, qa=False, moving_series=uid, **weights)

    assert register_files(of("1.2.3"), tmp_path / "out", **files)
    assert not register_files(of("1.2.3"), tmp_path / "out", **files)
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match="moving_series: '1.2.3' then, '1.2.4' now"):
        register_files(of("1.2.4"), tmp_path / "out", **files)
    assert contents(tmp_path / "out") == before


def test_overwriting_leaves_nothing_of_the_earlier_pair(registration, weights, images, tmp_path):
    """A plain pair after one with label and inverse; a file of the user's own stays."""
    register_files(registration, tmp_path / "out", inverse=True, **pair(images, label=True))
    assert {"warped_label.nii.gz", "inverse_transform.h5"} <= set(contents(tmp_path / "out"))
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    assert register_files(again(registration, weights), tmp_path / "out", **pair(images, 2))
    register_files(registration, tmp_path / "new", **pair(images, 2))
    assert set(contents(tmp_path / "out")) == {"notes.txt", *contents(tmp_path / "new")}


def test_files_of_others_stay_even_when_overwriting(registration, weights, images, tmp_path):
    for name, content in (("qa.png", "mine"), ("report.json", '{"a": 1}')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(content, encoding="utf-8")
        with pytest.raises(FileExistsError, match="left alone"):
            register_files(again(registration, weights), folder, **pair(images))
        assert contents(folder) == {name: content.encode()}


@pytest.mark.parametrize("way", ["linked folder", "hard link", "parent", "weights"])
def test_no_input_is_replaced_by_a_result(registration, weights, images, tmp_path, way):
    (images / "0.nii.gz").rename(images / "warped.nii.gz")
    files = pair(images) | {"moving_image": str(images / "warped.nii.gz")}
    out = tmp_path / "out"
    if way == "linked folder":
        out.symlink_to(images)
    elif way == "hard link":
        out.mkdir()
        os.link(images / "warped.nii.gz", out / "warped.nii.gz")
    elif way == "parent":
        out = images / "deeper" / ".."
    else:
        registration = again(registration, weights)
        registration.read["checkpoint_file"] = str(out / "warped.nii.gz")
        files = pair(images, 2)
    before = contents(images)
    for command in (registration, again(registration, weights)) if way != "weights" else (registration,):
        with pytest.raises(FileExistsError, match="would be replaced by a result"):
            register_files(command, out, **files)
    assert contents(images) == before


def test_a_result_from_which_a_file_is_missing_is_made_again(registration, images, tmp_path):
    register_files(registration, tmp_path / "out", **pair(images))
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "transform.h5").unlink()
    assert register_files(registration, tmp_path / "out", **pair(images))
    assert set(contents(tmp_path / "out")) == set(before)


def test_a_result_that_appeared_meanwhile_is_not_replaced(registration, images, tmp_path):
    """The bundle's handlers and hosts save what they have registered themselves."""
    result = registration(pair(images))
    register_files(registration, tmp_path / "out", **pair(images, 2))
    with pytest.raises(FileExistsError, match="moving_image: other content"):
        registration.save(result, tmp_path / "out")


# --- many pairs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def datalist(images, tmp_path):
    return write_json(tmp_path / "pairs.json", {"testing": [pair(images, m, f) for m, f in ((0, 1), (1, 2), (2, 0))]})


class Counting:
    """A registration that notes which pairs it was asked for, and fails for some."""

    def __init__(self, registration, errors=None):
        self.__dict__.update(registration.__dict__)
        self.registration, self.errors, self.seen = registration, errors or {}, []
        self.saver, self.guides = registration.saver, registration.guides

    def content(self, name):
        return self.registration.content(name)

    def __call__(self, files):
        name = Path(files["moving_image"]).name
        self.seen.append(name)
        if name in self.errors:
            raise self.errors[name]
        return self.registration(files)


ERRORS = [KeyError("theta"), ImageFileError("bad header"), MemoryError(), OSError(28, "No space left on device"),
          ZeroDivisionError("division by zero"), AssertionError()]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_cohort_goes_on_after_any_failure_and_is_finished_by_the_same_command(
    registration, datalist, tmp_path, error
):
    counting = Counting(registration, {"1.nii.gz": error})
    failures = register_datalist(counting, datalist, "testing", tmp_path / "all")
    assert len(failures) == 1 and failures[0].startswith("pair_0001: ") and len(failures[0]) > 15
    listed = json.loads((tmp_path / "all" / "failures.json").read_text(encoding="utf-8"))["failed_pairs"]
    assert [f"{name}: {reason}" for name, reason in listed.items()] == failures
    counting.errors, counting.seen = {}, []
    assert register_datalist(counting, datalist, "testing", tmp_path / "all") == []
    assert counting.seen == ["1.nii.gz"] and not (tmp_path / "all" / "failures.json").exists()
    assert all(pair_folder(tmp_path / "all" / f"pair_000{n}").is_whole() for n in range(3))


def test_an_interrupt_is_no_failure_of_a_pair_and_what_is_done_stays(registration, datalist, tmp_path):
    counting = Counting(registration, {"1.nii.gz": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        register_datalist(counting, datalist, "testing", tmp_path / "all")
    counting.errors, counting.seen = {}, []
    assert register_datalist(counting, datalist, "testing", tmp_path / "all") == []
    assert counting.seen == ["1.nii.gz", "2.nii.gz"]


def test_a_changed_input_stops_a_cohort_before_any_work(registration, weights, datalist, images, tmp_path):
    register_datalist(registration, datalist, "testing", tmp_path / "all")
    before = contents(tmp_path / "all")
    shutil.copy(images / "1.nii.gz", images / "2.nii.gz")
    counting = Counting(registration)
    with pytest.raises(FileExistsError, match=r"pair_0001 holds another result .*fixed_image.*\(2 pairs of 3"):
        register_datalist(counting, datalist, "testing", tmp_path / "all")
    assert counting.seen == [] and contents(tmp_path / "all") == before
    counting = Counting(again(registration, weights))
    assert register_datalist(counting, datalist, "testing", tmp_path / "all") == [] and len(counting.seen) == 3


def test_pairs_of_a_longer_datalist_do_not_stay_beside_those_of_a_shorter_one(
    registration, weights, datalist, images, tmp_path
):
    register_datalist(registration, datalist, "testing", tmp_path / "all")
    (tmp_path / "all" / "pair_0007").mkdir()  # a folder of the user's own
    shorter = write_json(tmp_path / "short.json", {"testing": [pair(images, 0, 1)]})
    with pytest.raises(FileExistsError, match="pair_0001 is a result of an earlier datalist with more pairs"):
        register_datalist(registration, shorter, "testing", tmp_path / "all")
    assert register_datalist(again(registration, weights), shorter, "testing", tmp_path / "all") == []
    assert sorted(file.name for file in (tmp_path / "all").iterdir()) == ["pair_0000", "pair_0007"]


def test_no_pair_reads_what_another_one_writes_nor_is_the_datalist_replaced(registration, images, tmp_path):
    before = contents(images)
    chained = [pair(images), pair(images) | {"moving_image": str(tmp_path / "all" / "pair_0000" / "warped.nii.gz")}]
    counting = Counting(registration)
    for items, folder, name in (
        (chained, tmp_path / "all", "pairs.json"),
        (chained[:1], tmp_path / "lists", "failures.json"),
    ):
        datalist = write_json(tmp_path / "lists" / name, {"testing": items})
        with pytest.raises(FileExistsError, match="would be replaced by a result"):
            register_datalist(counting, datalist, "testing", folder)
    assert counting.seen == [] and contents(images) == before and not (tmp_path / "all").exists()


@pytest.mark.parametrize("name", ["qa.html", "failures.json"])
def test_a_page_or_list_of_the_users_own_is_left_alone(registration, datalist, tmp_path, name):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / name).write_text("<html>mine</html>", encoding="utf-8")
    with pytest.raises(FileExistsError, match=f"{name} is no .* left alone"):
        register_datalist(registration, datalist, "testing", tmp_path / "all")
    assert contents(tmp_path / "all") == {name: b"<html>mine</html>"}


def test_two_commands_on_one_folder_share_the_pairs(weights, datalist, tmp_path):
    """In one process here: each has its own lock files, which is what tells processes apart."""
    counts = [Counting(Registration(refine_steps=0, qa=False, **weights)) for _ in range(2)]
    failures: list[str] = []

    def work(registration):
        failures.extend(register_datalist(registration, datalist, "testing", tmp_path / "all"))

    threads = [threading.Thread(target=work, args=[registration]) for registration in counts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and sorted(counts[0].seen + counts[1].seen) == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]


def test_the_page_shows_finished_pairs_too_and_draws_none_anew(weights, datalist, images, tmp_path, monkeypatch):
    registration = Registration(refine_steps=0, **weights)
    two = write_json(
        tmp_path / "two.json", {"testing": json.loads(datalist.read_text(encoding="utf-8"))["testing"][:2]}
    )
    register_datalist(registration, two, "testing", tmp_path / "all")
    before = (tmp_path / "all" / "qa.html").read_text(encoding="utf-8")
    monkeypatch.setattr("istn_monai.qa.cohort.jpeg", lambda page: pytest.fail("a picture is made anew"))
    register_datalist(registration, two, "testing", tmp_path / "all")
    assert (tmp_path / "all" / "qa.html").read_text(encoding="utf-8") == before
    monkeypatch.undo()
    write_nifti(images / "wrong.nii.gz", np.zeros((24, 20)))
    three = json.loads(two.read_text(encoding="utf-8"))["testing"] + [pair(images, 0, "wrong")]
    write_json(two, {"testing": three})
    assert len(register_datalist(registration, two, "testing", tmp_path / "all")) == 1
    page = (tmp_path / "all" / "qa.html").read_text(encoding="utf-8")
    shown = re.findall(r'<details id="(\w+)"', page)
    assert shown[0] == "pair_0002" and set(shown[1:]) == {"pair_0000", "pair_0001"}


# --- single files ----------------------------------------------------------------------------------------------------


def test_a_representation_has_a_suffix_and_replaces_no_other_file(registration, weights, images, tmp_path):
    (tmp_path / "rep.nii").write_text("mine", encoding="utf-8")
    for name in ("rep", "rep.png", "rep.nii.txt"):
        with pytest.raises(ValueError, match="written as one of"):
            represent_file(registration, str(images / "0.nii.gz"), tmp_path / name)
    assert (tmp_path / "rep.nii").read_text(encoding="utf-8") == "mine"
    with pytest.raises(FileExistsError, match="image .* would be replaced"):
        represent_file(again(registration, weights), str(images / "0.nii.gz"), images / ".." / "data" / "0.nii.gz")
    represent_file(again(registration, weights), str(images / "0.nii.gz"), tmp_path / "rep.nii")
    assert nib.load(tmp_path / "rep.nii").shape == (24, 20)


def test_apply_replaces_on_demand_alone_and_never_what_it_reads(registration, images, tmp_path):
    register_files(registration, tmp_path / "out", **pair(images))
    transform, image, fixed = str(tmp_path / "out" / "transform.h5"), str(images / "0.nii.gz"), str(images / "1.nii.gz")
    output = tmp_path / "applied.nii.gz"
    apply_transform(transform, image, str(output), fixed)
    first = nib.load(output).get_fdata()
    with pytest.raises(FileExistsError, match="--overwrite"):
        apply_transform(transform, fixed, str(output), fixed)
    apply_transform(transform, fixed, str(output), fixed, overwrite=True)
    assert np.abs(nib.load(output).get_fdata() - first).max() > 0.01
    os.link(fixed, tmp_path / "hard.nii.gz")
    for target in (image, tmp_path / "hard.nii.gz", images / "." / ".." / "data" / "1.nii.gz"):
        with pytest.raises(FileExistsError, match="would be replaced by a result"):
            apply_transform(transform, image, str(target), fixed, overwrite=True)
    with pytest.raises(ValueError, match="written as one of"):
        apply_transform("absent.h5", image, str(tmp_path / "a.png"), fixed)
    assert sorted(file.name for file in tmp_path.glob(".*")) == []


def test_pairs_leave_an_equal_datalist_and_replace_another_on_demand_alone(images, tmp_path):
    for number in range(3, 9):
        shutil.copy(images / "0.nii.gz", images / f"{number}.nii.gz")
    for label in images.glob("label_*"):
        label.unlink()
    output, counts = tmp_path / "lists" / "pairs.json", {"train": 2, "validation": 1, "test": 1}
    make_datalist(images, output, **counts)
    before, state = output.read_bytes(), output.stat().st_mtime_ns
    make_datalist(images, output, **counts)
    assert output.read_bytes() == before and output.stat().st_mtime_ns == state
    with pytest.raises(FileExistsError, match="left alone"):
        make_datalist(images, output, **counts, seed=1)
    make_datalist(images, output, **counts, seed=1, overwrite=True)
    assert json.loads(output.read_text(encoding="utf-8"))["seed"] == 1
    output.write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(FileExistsError, match="no datalist"):
        make_datalist(images, output, **counts, overwrite=True)
    with pytest.raises(FileExistsError, match="would be replaced"):
        make_datalist(images, images / "0.nii.gz", **counts, overwrite=True)


# --- landmarks --------------------------------------------------------------------------------------------------------


def test_landmarks_are_moved_with_the_pair_and_belong_to_its_result(registration, images, tmp_path):
    points = {}
    for key, x in (("moving_points", 10), ("fixed_points", 11)):
        points[key] = tmp_path / f"{key}.csv"
        points[key].write_text(f"label,x,y,frame\nAC,{x},9,RAS\n", encoding="utf-8")
    files = pair(images) | {key: str(file) for key, file in points.items()}
    assert register_files(registration, tmp_path / "out", **files)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    transform = read_transform(tmp_path / "out" / "transform.h5")
    moved = read_points(tmp_path / "out" / "moved_points.csv").positions
    back = transform.transform_points(moved.T).T
    assert (back - torch.tensor([[10.0, 9.0]], dtype=torch.float64)).abs().max() < 1e-3
    fixed, moving = (torch.tensor([[x], [9.0]], dtype=torch.float64) for x in (11.0, 10.0))
    expected = (transform.transform_points(fixed) - moving).norm().item()
    assert report["points"]["tre_mm"]["AC"] == pytest.approx(expected, abs=1e-4)
    assert {"moving_points", "fixed_points"} <= set(report["inputs"])
    assert not register_files(registration, tmp_path / "out", **files)
    points["fixed_points"].write_text("label,x,y,frame\nAC,12,9,RAS\n", encoding="utf-8")
    with pytest.raises(FileExistsError, match="fixed_points: other content"):
        register_files(registration, tmp_path / "out", **files)


def test_a_copy_of_a_result_is_none_of_an_earlier_cohort_and_old_failures_go(
    registration, weights, datalist, images, tmp_path
):
    folder = tmp_path / "all"
    register_datalist(Counting(registration, {"2.nii.gz": OSError("gone")}), datalist, "testing", folder)
    assert "pair_0002" in (folder / "failures.json").read_text(encoding="utf-8")
    shutil.copytree(folder / "pair_0001", folder / "pair_0001_good")
    before = contents(folder / "pair_0001_good")
    shorter = write_json(tmp_path / "short.json", {"testing": [pair(images, 0, 1)]})
    with pytest.raises(FileExistsError, match="pair_0001 is a result of an earlier datalist"):
        register_datalist(registration, shorter, "testing", folder)
    assert register_datalist(again(registration, weights), shorter, "testing", folder) == []
    assert contents(folder / "pair_0001_good") == before and not (folder / "pair_0001").exists()
    assert not (folder / "failures.json").exists()


def test_another_file_behind_the_same_name_is_another_pair(registration, images, tmp_path):
    """Of the same size and time: what a link points to counts."""
    for number in (0, 2):
        nib.save(nib.load(images / f"{number}.nii.gz"), tmp_path / f"{number}.nii")
        os.utime(tmp_path / f"{number}.nii", (1, 1))
    link = tmp_path / "link.nii"
    link.symlink_to("0.nii")
    files = {"moving_image": str(link), "fixed_image": str(images / "1.nii.gz")}
    assert register_files(registration, tmp_path / "out", **files)
    assert not register_files(registration, tmp_path / "out", **files)
    link.unlink()
    link.symlink_to("2.nii")
    with pytest.raises(FileExistsError, match="moving_image: other content"):
        register_files(registration, tmp_path / "out", **files)
