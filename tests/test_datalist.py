"""Tests of `istn_monai.io.datalist`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import write_json

from istn_monai.io.datalist import SPLITS, read_datalist
from istn_monai.workflow.datasets import pair_item

PAIR = {"moving_image": "a.nii.gz", "fixed_image": "sub/b.nii.gz", "moving_label": "../l.nii.gz"}


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
        read_datalist(file, ["training"], ("moving_image", "fixed_image"))
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


def test_a_key_twice_is_an_error_that_names_it(tmp_path):
    (tmp_path / "pairs.json").write_text('{"testing": [{"moving_image": "a", "fixed_image": "b", "fixed_image": "c"}]}')
    with pytest.raises(ValueError, match=r"pairs\.json is not JSON: the key 'fixed_image' is there more than once"):
        read_datalist(tmp_path / "pairs.json", ["testing"])


def test_a_byte_order_mark_is_read_over(tmp_path):
    file = write_json(tmp_path / "pairs.json", {"testing": [PAIR]})
    before = read_datalist(file, ["testing"])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_datalist(file, ["testing"]) == before


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_path_is_an_error_that_names_its_key(tmp_path, value):
    file = write_json(tmp_path / "pairs.json", {"testing": [PAIR, PAIR | {"fixed_points": value}]})
    with pytest.raises(ValueError, match=r"testing\[1\] has an empty path for 'fixed_points': give a file"):
        read_datalist(file, ["testing"])
