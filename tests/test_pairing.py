"""Tests of `istn_monai.pairing`: datalists with random pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist

from istn_monai.io.datalist import SPLITS, read_datalist
from istn_monai.io.named_files import named_files
from istn_monai.pairing import draw_pairs, fewest_subjects, make_datalist, split_subjects

SIDES = ("moving", "fixed")
PAIR = {"moving_image": "a.nii.gz", "fixed_image": "sub/b.nii.gz", "moving_label": "../l.nii.gz"}


def touch_subjects(folder: Path, number: int, labels: bool = True) -> Path:
    """Empty files: drawing pairs looks at names alone."""
    for kind in ("images", "labels") if labels else ("images",):
        (folder / kind).mkdir(parents=True)
        for index in range(number):
            (folder / kind / f"case_{index:03d}.nii.gz").touch()
    return folder


# --- named_files -----------------------------------------------------------------------------------------------------


def test_named_files_by_name_without_suffix_and_without_hidden_or_other_files(tmp_path):
    for name in ("b.nii.gz", "a.1.nii", "c.png", "._b.nii.gz", "notes.txt", "pairs.json"):
        (tmp_path / name).touch()
    assert {name: file.name for name, file in named_files(tmp_path, "images").items()} == {
        "a.1": "a.1.nii",
        "b": "b.nii.gz",
        "c": "c.png",
    }


def test_named_files_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"images: no such folder: {re.escape(str(tmp_path / 'no'))}"):
        named_files(tmp_path / "no", "images")
    with pytest.raises(ValueError, match=f"labels: no image .* in {re.escape(str(tmp_path))}"):
        named_files(tmp_path, "labels")


# --- splitting and drawing -------------------------------------------------------------------------------------------


@given(st.integers(0, 5000))
def test_fewest_subjects_is_the_smallest_that_is_enough(pairs):
    n = fewest_subjects(pairs)
    assert n * (n - 1) >= pairs
    assert n == 0 or (n - 1) * (n - 2) < pairs


@given(st.integers(2, 12), st.integers(0, 40), st.integers(0, 10**6))
def test_drawn_pairs_are_different_and_of_different_subjects(subjects, number, seed):
    names = [f"s{i}" for i in range(subjects)]
    number = min(number, subjects * (subjects - 1))
    pairs = draw_pairs(names, number, np.random.default_rng(seed))
    assert len(pairs) == len(set(pairs)) == number
    assert all(moving != fixed and {moving, fixed} <= set(names) for moving, fixed in pairs)


def test_every_ordered_pair_can_be_drawn():
    pairs = draw_pairs("abcd", 12, np.random.default_rng(0))
    assert set(pairs) == {(m, f) for m in "abcd" for f in "abcd" if m != f}


@settings(deadline=None)
@given(st.integers(2, 60), st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(0, 60)), st.integers(0, 99))
def test_no_subject_is_in_two_parts_and_each_part_has_enough(number, counts, seed):
    names = [f"s{i}" for i in range(number)]
    wanted = dict(zip(SPLITS, counts, strict=True))
    needed = sum(fewest_subjects(n) for n in counts)
    if not sum(counts):
        return
    if needed > number:
        with pytest.raises(ValueError, match=f"{number} subjects are too few"):
            split_subjects(names, wanted, np.random.default_rng(seed))
        return
    split = split_subjects(names, wanted, np.random.default_rng(seed))
    together = [name for part in split.values() for name in part]
    assert sorted(together) == sorted(names), "each subject is used, once"
    assert set(split) == {part for part, n in wanted.items() if n}
    for part, subjects in split.items():
        assert len(subjects) * (len(subjects) - 1) >= wanted[part]


# --- make_datalist ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(8, 40), st.integers(1, 12), st.integers(0, 6), st.integers(0, 12), st.integers(0, 99))
def test_datalist_has_exactly_the_pairs_asked_for_and_no_subject_twice(number, train, validation, test, seed):
    counts = {"training": train, "validation": validation, "testing": test}
    if sum(map(fewest_subjects, counts.values())) > number:
        return
    with TemporaryDirectory() as folder:
        data = touch_subjects(Path(folder), number)
        file = make_datalist(data / "images", data / "pairs.json", data / "labels", train, validation, test, seed)
        content = json.loads(file.read_text(encoding="utf-8"))
        subjects = {}
        for part, n in counts.items():
            pairs = [(pair["moving_image"], pair["fixed_image"]) for pair in content.get(part, [])]
            assert len(pairs) == len(set(pairs)) == n
            assert all(moving != fixed for moving, fixed in pairs)
            subjects[part] = {name for pair in pairs for name in pair}
            for pair in content.get(part, []):
                for side in ("moving", "fixed"):
                    assert Path(pair[f"{side}_label"]).name == Path(pair[f"{side}_image"]).name
                    assert Path(pair[f"{side}_label"]).parent.name == "labels"
        assert sum(map(len, subjects.values())) == len(set().union(*subjects.values()))


def test_the_seed_alone_decides(tmp_path):
    data = touch_subjects(tmp_path, 20)

    def draw(name: str, seed: int) -> str:
        return make_datalist(data / "images", data / name, data / "labels", 8, 2, 4, seed).read_text(encoding="utf-8")

    assert draw("a.json", 3) == draw("b.json", 3) != draw("c.json", 4)


def test_existing_output_is_left_alone(tmp_path):
    data = touch_subjects(tmp_path, 20)
    output = data / "pairs.json"
    output.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=re.escape(str(output))):
        make_datalist(data / "images", output, data / "labels", 2, 1, 1)
    assert output.read_bytes() == b"precious"


def test_images_without_label_are_named(tmp_path):
    data = touch_subjects(tmp_path, 12)
    (data / "labels" / "case_003.nii.gz").unlink()
    with pytest.raises(ValueError, match="1 images have no label of the same name.*case_003"):
        make_datalist(data / "images", data / "pairs.json", data / "labels", 2, 1, 1)
    assert not (data / "pairs.json").exists()


def test_pairs_with_landmarks_have_the_files_of_the_images_names(tmp_path):
    """Of any kind, beside labels or without them."""
    folder = touch_subjects(tmp_path, 6)
    (folder / "points").mkdir()
    for index, suffix in enumerate([".csv", ".fcsv", ".mrk.json", ".png", ".csv", ".nii.gz"]):
        (folder / "points" / f"case_{index:03d}{suffix}").touch()
    for name, labels in (("both", folder / "labels"), ("alone", None)):
        file = make_datalist(folder / "images", tmp_path / f"{name}.json", labels, 4, 0, 2, landmarks=folder / "points")
        for items in read_datalist(file, ["training", "testing"]).values():
            for item in items:
                assert ("moving_label" in item) == (labels is not None)
                for side in SIDES:
                    stems = {Path(item[f"{side}_{kind}"]).name.split(".")[0] for kind in ("image", "points")}
                    assert len(stems) == 1 and Path(item[f"{side}_points"]).is_file()
    (folder / "points" / "case_003.png").unlink()
    with pytest.raises(ValueError, match="1 images have no points of the same name.*case_003"):
        make_datalist(folder / "images", tmp_path / "c.json", None, 4, 0, 2, landmarks=folder / "points")


def test_too_few_subjects_says_how_many_are_needed(tmp_path):
    data = touch_subjects(tmp_path, 10)
    with pytest.raises(ValueError) as error:
        make_datalist(data / "images", data / "pairs.json", data / "labels", 30, 2, 6)
    text = str(error.value)
    assert "10 subjects" in text
    assert "'training': 6" in text and "'validation': 2" in text and "'testing': 3" in text  # 30, 2, 6 = n (n - 1)
    assert not (data / "pairs.json").exists()
    make_datalist(data / "images", data / "pairs.json", data / "labels", 20, 2, 6)  # 5 + 2 + 3: just enough


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 1, 1), (1.5, 1, 1), ("3", 1, 1)])
def test_counts_that_make_no_sense(tmp_path, counts):
    data = touch_subjects(tmp_path, 10)
    with pytest.raises(ValueError, match="train.*whole numbers"):
        make_datalist(data / "images", data / "pairs.json", None, *counts)


def test_count_errors_use_the_names_of_the_arguments(tmp_path):
    with pytest.raises(ValueError, match="train, validation and test"):
        make_datalist(touch_subjects(tmp_path, 4) / "images", tmp_path / "pairs.json", train=-1)


@pytest.mark.parametrize("output", ["pairs.json", "lists/deep/pairs.json", "../elsewhere/pairs.json"])
def test_paths_resolve_from_the_datalists_folder(tmp_path, output):
    data = touch_subjects(tmp_path / "data", 8)
    file = make_datalist(data / "images", data / output, data / "labels", 3, 1, 1)
    assert file.is_absolute()
    assert all(not Path(v).is_absolute() for v in json.loads(file.read_text(encoding="utf-8"))["training"][0].values())
    for part, pairs in read_datalist(file).items():
        for pair, monai in zip(pairs, load_decathlon_datalist(str(file), data_list_key=part), strict=True):
            assert set(pair) == {"moving_image", "fixed_image", "moving_label", "fixed_label"}
            assert all(Path(value).is_file() for value in pair.values())
            assert Path(monai["moving_image"]).resolve() == Path(pair["moving_image"]).resolve()


@pytest.mark.parametrize("given", ["link/lists", "real/deep/lists"], ids=["output by a link", "images by a link"])
def test_paths_resolve_past_linked_folders(tmp_path, given):
    """``..`` leads to the folder above where a link leads, not to the one above the link."""
    touch_subjects(tmp_path / "real" / "deep" / "data", 8)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    other = {"link/lists": "real/deep", "real/deep/lists": "link/../deep"}[given]
    file = make_datalist(tmp_path / other / "data" / "images", tmp_path / given / "pairs.json", None, 3, 1, 1)
    assert all(Path(path).is_file() for pair in read_datalist(file)["training"] for path in pair.values())


def test_suffixes_in_capitals_are_suffixes(tmp_path):
    """A file that is left out silently is not missed until the results are counted."""
    for name in ("a.NII.GZ", "b.Nii", "c.nii.gz", "d.MGZ"):
        (tmp_path / name).touch()
    assert {name: file.name for name, file in named_files(tmp_path, "images").items()} == {
        "a": "a.NII.GZ", "b": "b.Nii", "c": "c.nii.gz", "d": "d.MGZ"
    }  # fmt: skip


def test_without_labels(tmp_path):
    data = touch_subjects(tmp_path, 8, labels=False)
    file = make_datalist(data / "images", data / "pairs.json", None, 3, 1, 1)
    assert set(read_datalist(file)["training"][0]) == {"moving_image", "fixed_image"}


def test_relative_folders(tmp_path, monkeypatch):
    touch_subjects(tmp_path / "data", 8)
    monkeypatch.chdir(tmp_path)
    file = make_datalist("data/images", "pairs.json", "data/labels", 3, 1, 1)
    assert file == tmp_path / "pairs.json"
    assert all(Path(value).is_file() for value in read_datalist(file)["training"][0].values())
