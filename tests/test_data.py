"""Tests of `istn_monai.io.datalist`, `pairing` and `workflow.datasets`: reading and drawing datalists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from helpers import write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist
from monai.transforms import Compose, Lambdad, RandLambdad

from istn_monai.io.datalist import SPLITS, pair_item, read_datalist
from istn_monai.pairing import draw_pairs, fewest_subjects, image_files, make_datalist, split_subjects
from istn_monai.workflow.datasets import as_pairs, cached_dataset, datalist_file

SIDES = ("moving", "fixed")
PAIR = {"moving_image": "a.nii.gz", "fixed_image": "sub/b.nii.gz", "moving_label": "../l.nii.gz"}


def touch_subjects(folder: Path, number: int, labels: bool = True) -> Path:
    """Empty files: drawing pairs looks at names alone."""
    for kind in ("images", "labels") if labels else ("images",):
        (folder / kind).mkdir(parents=True)
        for index in range(number):
            (folder / kind / f"case_{index:03d}.nii.gz").touch()
    return folder


# --- read_datalist ---------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    file = write_json(tmp_path / "deep" / "pairs.json", {part: [PAIR] for part in SPLITS})
    monkeypatch.chdir(tmp_path)  # a relative name of the datalist, from anywhere
    for name in (file, "deep/pairs.json"):
        items = read_datalist(name)
        assert list(items) == list(SPLITS)
        for part in SPLITS:
            (item,) = items[part]
            assert set(item) == set(PAIR) and all(Path(v).is_absolute() for v in item.values())
            assert item["fixed_image"] == str(tmp_path / "deep" / "sub" / "b.nii.gz")
            assert Path(item["moving_label"]).resolve() == tmp_path / "l.nii.gz"


def test_absolute_paths_stay_and_other_keys_are_left_out(tmp_path):
    pair = {"moving_image": "/data/a.nii.gz", "fixed_image": "/data/b.nii.gz", "age": 70, "comment": "x"}
    items = read_datalist(write_json(tmp_path / "pairs.json", {"training": [pair]}), ["training"])
    assert items == {"training": [{"moving_image": "/data/a.nii.gz", "fixed_image": "/data/b.nii.gz"}]}


def test_only_the_asked_parts_must_be_there(tmp_path):
    file = write_json(tmp_path / "pairs.json", {"testing": [PAIR]})
    assert list(read_datalist(file, ["testing"])) == ["testing"]


def test_missing_datalist_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "no.json"))):
        read_datalist(tmp_path / "no.json")


@pytest.mark.parametrize("content", [b"{'training': 1}", b"", b"\xff\xfe\x00 not text", b"{"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    file = tmp_path / "pairs.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is not JSON"):
        read_datalist(file)


def test_json_that_is_no_object(tmp_path):
    file = write_json(tmp_path / "pairs.json", [PAIR])
    with pytest.raises(ValueError, match="must be a JSON object.*got list"):
        read_datalist(file)


@pytest.mark.parametrize("value", [None, [], {}, "a.nii.gz"])
def test_missing_part_names_the_parts_there_are(tmp_path, value):
    content = {"training": [PAIR], "validation": value, "testing": [PAIR], "name": "x"}
    if value is None:
        del content["validation"]
    file = write_json(tmp_path / "pairs.json", content)
    with pytest.raises(ValueError) as error:
        read_datalist(file)
    assert str(file) in str(error.value)
    assert "'validation'" in str(error.value) and "['testing', 'training']" in str(error.value)


@pytest.mark.parametrize("key", ["moving_image", "fixed_image"])
def test_missing_key_names_part_index_and_key(tmp_path, key):
    bad = {k: v for k, v in PAIR.items() if k != key}
    file = write_json(tmp_path / "pairs.json", {"training": [PAIR, PAIR, bad]})
    with pytest.raises(ValueError) as error:
        read_datalist(file, ["training"])
    assert str(file) in str(error.value) and "training[2]" in str(error.value) and repr(key) in str(error.value)


@pytest.mark.parametrize("value", [None, 7, ["a.nii.gz", "b.nii.gz"]])
def test_a_path_that_is_no_text_names_part_index_and_key(tmp_path, value):
    file = write_json(tmp_path / "pairs.json", {"training": [PAIR, PAIR | {"fixed_image": value}]})
    with pytest.raises(ValueError) as error:
        read_datalist(file, ["training"])
    assert "training[1]" in str(error.value) and "'fixed_image'" in str(error.value)


@pytest.mark.parametrize("item", ["a.nii.gz", 3, ["a", "b"]])
def test_an_item_that_is_no_pair(tmp_path, item):
    file = write_json(tmp_path / "pairs.json", {"training": [item]})
    with pytest.raises(ValueError, match=rf"training\[0\].*{type(item).__name__}"):
        read_datalist(file, ["training"])


def test_pair_item_keeps_what_is_given(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    item = pair_item(moving_image="~/a.nii.gz", fixed_image="b.nii.gz", moving_label=None)
    assert item == {"moving_image": "/home/me/a.nii.gz", "fixed_image": "b.nii.gz"}


def test_datalist_file_joins_folder_and_name(tmp_path):
    assert datalist_file(str(tmp_path), "pairs.json") == str(tmp_path / "pairs.json")
    assert datalist_file(str(tmp_path), "/elsewhere/pairs.json") == "/elsewhere/pairs.json"


# --- image_files -----------------------------------------------------------------------------------------------------


def test_image_files_by_name_without_suffix_and_without_hidden_or_other_files(tmp_path):
    for name in ("b.nii.gz", "a.1.nii", "c.png", "._b.nii.gz", "notes.txt", "pairs.json"):
        (tmp_path / name).touch()
    assert {name: file.name for name, file in image_files(tmp_path, "images").items()} == {
        "a.1": "a.1.nii",
        "b": "b.nii.gz",
        "c": "c.png",
    }


def test_image_files_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"images: no such folder: {re.escape(str(tmp_path / 'no'))}"):
        image_files(tmp_path / "no", "images")
    with pytest.raises(ValueError, match=f"labels: no image .* in {re.escape(str(tmp_path))}"):
        image_files(tmp_path, "labels")


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
        content = json.loads(file.read_text())
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
        return make_datalist(data / "images", data / name, data / "labels", 8, 2, 4, seed).read_text()

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
    assert all(not Path(v).is_absolute() for v in json.loads(file.read_text())["training"][0].values())
    for part, pairs in read_datalist(file).items():
        for pair, monai in zip(pairs, load_decathlon_datalist(str(file), data_list_key=part), strict=True):
            assert set(pair) == {"moving_image", "fixed_image", "moving_label", "fixed_label"}
            assert all(Path(value).is_file() for value in pair.values())
            assert Path(monai["moving_image"]).resolve() == Path(pair["moving_image"]).resolve()


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


# --- as_pairs --------------------------------------------------------------------------------------------------------


def labelled(number: int, name: str = "case") -> list[dict[str, str]]:
    return [{"image": f"{name}_{index}.nii", "label": f"{name}_{index}_label.nii"} for index in range(number)]


def test_pairs_are_pairs_already():
    assert as_pairs([PAIR], labelled(3)) == [PAIR]


def test_labelled_images_are_paired_with_each_other():
    pairs = as_pairs(labelled(3))
    assert {(pair["moving_image"], pair["fixed_image"]) for pair in pairs} == {
        (f"case_{a}.nii", f"case_{b}.nii") for a in range(3) for b in range(3) if a != b
    }
    assert all(pair[f"{side}_label"] == pair[f"{side}_image"][:-4] + "_label.nii" for pair in pairs for side in SIDES)


def test_many_images_get_seven_partners_each_the_same_each_time():
    pairs = as_pairs(labelled(140))
    assert len(pairs) == len({tuple(pair.values()) for pair in pairs}) == 980
    assert all(pair["moving_image"] != pair["fixed_image"] for pair in pairs)
    assert len({pair["moving_image"] for pair in pairs}) > 130
    assert pairs == as_pairs(labelled(140))


def test_validation_images_are_paired_with_those_of_training():
    pairs = as_pairs(labelled(2, "validation"), labelled(5))
    assert [pair["fixed_image"] for pair in pairs] == [f"validation_{n}.nii" for n in (0, 0, 1, 1)]
    assert all(pair["moving_image"].startswith("case") for pair in pairs)
    assert {pair["fixed_image"] for pair in as_pairs([], labelled(2))} == {"case_0.nii", "case_1.nii"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_pair_needs_two_images(number):
    for items in (as_pairs, lambda images: as_pairs([], images)):
        with pytest.raises(ValueError, match=f"two labelled images at least, got {number}"):
            items(labelled(number))


# --- cached_dataset --------------------------------------------------------------------------------------------------


READ = []


def read_number(file):
    """A deterministic transform that notes what it is asked for."""
    READ.append(file)
    return float(Path(file).read_text())


def reading_then_random():
    READ.clear()
    return Compose([
        Lambdad("moving_image", read_number, overwrite="value"), RandLambdad("value", lambda x: x + 0.5, prob=1.0)
    ])  # fmt: skip


def test_prepared_pairs_on_disk_are_done_once_until_a_file_changes(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("1")
    items, preparing = [{"moving_image": str(file)}], reading_then_random()
    for _ in range(2):  # a second dataset is a later run
        dataset = cached_dataset(items, preparing, tmp_path / "cache")
        assert [dataset[0]["value"], dataset[0]["value"]] == [1.5, 1.5]
    assert len(READ) == 1
    file.write_text("23")
    assert cached_dataset(items, preparing, tmp_path / "cache")[0]["value"] == 23.5
    assert len(READ) == 2


def test_prepared_pairs_in_memory_write_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("1")
    dataset = cached_dataset([{"moving_image": str(tmp_path / "a.txt")}], reading_then_random())
    assert dataset[0]["value"] == dataset[0]["value"] == 1.5
    assert len(READ) == 1 and [f.name for f in tmp_path.iterdir()] == ["a.txt"]
