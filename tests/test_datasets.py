"""Tests of `istn_monai.workflow.datasets`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import write_json
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, RandLambdad, RandRotated

from istn_monai.synthetic.pairs import synthesize
from istn_monai.workflow.datasets import (
    EpochSampler,
    as_pairs,
    cached_dataset,
    datalist_name,
    is_hosted,
    read_pairs,
    seed_of,
    validation_pairs,
)
from istn_monai.workflow.pair_files import pairs_of

SIDES = ("moving", "fixed")
PAIR = {"moving_image": "a.nii.gz", "fixed_image": "sub/b.nii.gz", "moving_label": "../l.nii.gz"}


def test_pairs_know_their_datalist_wherever_it_lies(tmp_path):
    file = write_json(tmp_path / "a" / "pairs.json", {"training": [PAIR]})
    pairs = read_pairs(str(tmp_path / "a"), "pairs.json", "training")
    assert pairs == [{key: str(tmp_path / "a" / value) for key, value in PAIR.items()}] and pairs.file == file
    assert read_pairs("/elsewhere", str(file), "training") == pairs
    assert read_pairs(None, str(file), "training") == pairs
    copy = write_json(tmp_path / "b" / "pairs.json", {"training": [PAIR]})
    other = write_json(tmp_path / "c" / "pairs.json", {"training": [PAIR, PAIR]})
    names = [datalist_name(read_pairs(None or str(f.parent), f.name, "training")) for f in (file, copy, other)]
    assert names[0] == names[1] != names[2] and names[0].startswith("pairs.json ")
    with pytest.raises(FileNotFoundError, match="datalist not found"):
        read_pairs(str(tmp_path), "pairs.json", "training")


@pytest.mark.parametrize("key", ["moving_pointss", "fixed_point", "fixed_lable"])
def test_a_mistyped_key_of_a_datalist_is_an_error_in_evaluation_and_training_as_in_registration(tmp_path, key):
    splits = {"training": [PAIR], "validation": [PAIR | {key: "x.csv"}], "testing": [PAIR, PAIR | {key: "x.csv"}]}
    write_json(tmp_path / "pairs.json", splits)
    for read in (
        lambda: read_pairs(str(tmp_path), "pairs.json", "testing"),
        lambda: validation_pairs(read_pairs(str(tmp_path), "pairs.json", "training")),
        lambda: pairs_of(tmp_path / "pairs.json", "testing"),
    ):
        with pytest.raises(ValueError, match=rf"pairs\.json: unknown key '{key}': did you mean '(moving|fixed)_"):
            read()


def test_a_key_that_nothing_reads_is_a_warning(tmp_path):
    write_json(tmp_path / "pairs.json", {"testing": [PAIR | {"moving_landmarks": "m.csv"}]})
    with pytest.warns(UserWarning, match=r"the keys \['moving_landmarks'\] are not read"):
        assert len(read_pairs(str(tmp_path), "pairs.json", "testing")) == 1


def test_what_synthesize_writes_is_not_called_mistyped(tmp_path, recwarn):
    file = synthesize(tmp_path / "data", (32, 32), train=1, validation=1, test=1, image_format="nii.gz")
    assert len(read_pairs(str(file.parent), file.name, "testing")) == 1
    assert not [warning for warning in recwarn if "mistyped" in str(warning.message)]


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
    return float(Path(file).read_text(encoding="utf-8"))


def reading_then_random():
    READ.clear()
    return Compose([
        Lambdad("moving_image", read_number, overwrite="value"), RandLambdad("value", lambda x: x + 0.5, prob=1.0)
    ])  # fmt: skip


def test_prepared_pairs_on_disk_are_done_once_until_a_file_changes(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("1", encoding="utf-8")
    items, preparing = [{"moving_image": str(file)}], reading_then_random()
    for _ in range(2):  # a second dataset is a later run
        dataset = cached_dataset(items, preparing, tmp_path / "cache")
        assert [dataset[0]["value"], dataset[0]["value"]] == [1.5, 1.5]
    assert len(READ) == 1
    file.write_text("23", encoding="utf-8")
    assert cached_dataset(items, preparing, tmp_path / "cache")[0]["value"] == 23.5
    assert len(READ) == 2


def test_prepared_pairs_in_memory_write_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("1", encoding="utf-8")
    dataset = cached_dataset([{"moving_image": str(tmp_path / "a.txt")}], reading_then_random())
    assert dataset[0]["value"] == dataset[0]["value"] == 1.5
    assert len(READ) == 1 and [f.name for f in tmp_path.iterdir()] == ["a.txt"]


# --- chance ----------------------------------------------------------------------------------------------------------


def numbered_images(file):
    return torch.arange(36.0).reshape(1, 6, 6) + float(Path(file).read_text(encoding="utf-8"))


def epochs_of(folder: Path, seed: int = 0, epochs=(1, 2), **loading) -> torch.Tensor:
    """All batches of some epochs of a randomly rotated set in random order."""
    items = []
    for number in range(5):
        file = folder / f"{number}.txt"
        file.write_text(str(100 * number), encoding="utf-8")
        items.append({"moving_image": str(file)})
    changes = [Lambdad("moving_image", numbered_images), RandRotated("moving_image", 1.0, prob=0.8)]
    dataset = cached_dataset(items, Compose(changes), loading.pop("cache_dir", None), seed=seed)
    loader = DataLoader(dataset, sampler=EpochSampler(dataset, seed), batch_size=2, **loading)
    batches = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)
        batches += [torch.as_tensor(batch["moving_image"]) for batch in loader]
    return torch.cat(batches)


def test_items_depend_on_seed_and_epoch_alone(tmp_path):
    known = epochs_of(tmp_path)
    one, two = known.chunk(2)
    assert sorted(one.amin((1, 2, 3)).div(100).floor().tolist()) != one.amin((1, 2, 3)).div(100).floor().tolist()
    assert not torch.equal(one, two) and not torch.equal(known, epochs_of(tmp_path, seed=1))
    assert torch.equal(two, epochs_of(tmp_path, epochs=[2])), "as after an interruption"
    others = [{"num_workers": 1}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]
    for loading in [*others, {"cache_dir": tmp_path / "cache"}, {"cache_dir": tmp_path / "cache", "num_workers": 2}]:
        torch.rand(3)  # the global generator is elsewhere
        assert torch.equal(known, epochs_of(tmp_path, **loading)), loading


def test_several_processes_share_the_items_of_an_epoch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for number in "01":
        monkeypatch.setenv("RANK", number)
        found += EpochSampler(range(6), seed=3)
    assert sorted(found) == list(range(6)) and found != sorted(found)


def test_seeds_of_other_numbers_are_others():
    seeds = [seed_of(*numbers) for numbers in [(0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (2**40, 0)]]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)
