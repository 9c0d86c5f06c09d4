"""Tests of `istn_monai.workflow.datasets`."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import write_json
from monai.transforms import Compose, Lambdad, RandLambdad

from istn_monai.workflow.datasets import as_pairs, cached_dataset, datalist_name, is_hosted, read_pairs

SIDES = ("moving", "fixed")
PAIR = {"moving_image": "a.nii.gz", "fixed_image": "sub/b.nii.gz", "moving_label": "../l.nii.gz"}


def test_pairs_know_their_datalist_wherever_it_lies(tmp_path):
    file = write_json(tmp_path / "a" / "pairs.json", {"training": [PAIR]})
    pairs = read_pairs(str(tmp_path / "a"), "pairs.json", "training")
    assert pairs == [{key: str(tmp_path / "a" / value) for key, value in PAIR.items()}] and pairs.file == file
    assert read_pairs("/elsewhere", str(file), "training") == pairs
    copy = write_json(tmp_path / "b" / "pairs.json", {"training": [PAIR]})
    other = write_json(tmp_path / "c" / "pairs.json", {"training": [PAIR, PAIR]})
    names = [datalist_name(read_pairs(None or str(f.parent), f.name, "training")) for f in (file, copy, other)]
    assert names[0] == names[1] != names[2] and names[0].startswith("pairs.json ")
    with pytest.raises(FileNotFoundError, match="datalist not found"):
        read_pairs(str(tmp_path), "pairs.json", "training")


def test_data_of_a_host_are_no_datalist(tmp_path):
    file = write_json(tmp_path / "pairs.json", {"training": [PAIR]})
    assert not is_hosted(read_pairs(str(tmp_path), file.name, "training"))
    assert is_hosted([PAIR]) and datalist_name([PAIR]) is None


# --- as_pairs --------------------------------------------------------------------------------------------------------


def labeled(number: int, name: str = "case") -> list[dict[str, str]]:
    return [{"image": f"{name}_{index}.nii", "label": f"{name}_{index}_label.nii"} for index in range(number)]


def test_pairs_are_pairs_already():
    assert as_pairs([PAIR], labeled(3)) == [PAIR]


def test_labeled_images_are_paired_with_each_other():
    pairs = as_pairs(labeled(3))
    assert {(pair["moving_image"], pair["fixed_image"]) for pair in pairs} == {
        (f"case_{a}.nii", f"case_{b}.nii") for a in range(3) for b in range(3) if a != b
    }
    assert all(pair[f"{side}_label"] == pair[f"{side}_image"][:-4] + "_label.nii" for pair in pairs for side in SIDES)


def test_many_images_get_seven_partners_each_the_same_each_time():
    pairs = as_pairs(labeled(140))
    assert len(pairs) == len({tuple(pair.values()) for pair in pairs}) == 980
    assert all(pair["moving_image"] != pair["fixed_image"] for pair in pairs)
    assert len({pair["moving_image"] for pair in pairs}) > 130
    assert pairs == as_pairs(labeled(140))


def test_validation_images_are_paired_with_those_of_training():
    pairs = as_pairs(labeled(2, "validation"), labeled(5))
    assert [pair["fixed_image"] for pair in pairs] == [f"validation_{n}.nii" for n in (0, 0, 1, 1)]
    assert all(pair["moving_image"].startswith("case") for pair in pairs)
    assert {pair["fixed_image"] for pair in as_pairs([], labeled(2))} == {"case_0.nii", "case_1.nii"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_pair_needs_two_images(number):
    for items in (as_pairs, lambda images: as_pairs([], images)):
        with pytest.raises(ValueError, match=f"two labeled images at least, got {number}"):
            items(labeled(number))


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
