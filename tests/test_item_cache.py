"""Tests of `istn_monai.workflow.item_cache`: prepared items on disk, whatever happens to the files."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import meta, rand
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad
from monai.utils import MetaKeys

from istn_monai.transforms.preprocessing import InitialAlignmentd
from istn_monai.workflow.datasets import cached_dataset, hash_with_files, hash_with_named_files
from istn_monai.workflow.item_cache import packed, read_entry, unpacked, write_entry

MADE = []


def made(file):
    """A deterministic transform that notes that it is done."""
    MADE.append(file)
    return MetaTensor(torch.arange(12.0).reshape(1, 3, 4), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0])))


def something(file):
    """A transform that gives what no file can keep safely."""
    return object()


@pytest.fixture
def cache(tmp_path):
    """What reads an item through a cache on disk, and the folder."""
    (tmp_path / "a.txt").write_text("1", encoding="utf-8")
    MADE.clear()
    transform = Compose([Lambdad("moving_image", made)])
    return lambda: cached_dataset([{"moving_image": str(tmp_path / "a.txt")}], transform, tmp_path / "cache")[0]


def entry(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache").iterdir()
    return file


def test_an_entry_is_as_the_item_was_and_is_read_without_code(cache, tmp_path):
    images = [cache()["moving_image"], cache()["moving_image"]]
    assert len(MADE) == 1
    for image in images:
        assert isinstance(image, MetaTensor) and torch.equal(image.as_tensor(), made("").as_tensor())
        assert image.affine.tolist() == [[2, 0, 0], [0, 3, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:10],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"garbage" * 100,
        lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
    ],
    ids=["empty", "begun", "half", "truncated", "garbage", "bit flip"],
)
def test_a_damaged_entry_is_made_anew_with_a_warning(cache, tmp_path, caplog, damage):
    whole = cache()["moving_image"]
    file = entry(tmp_path)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with caplog.at_level(logging.WARNING):
        again = cache()["moving_image"]
    assert torch.equal(whole, again) and len(MADE) == 2
    assert str(file) in caplog.text and "prepared anew" in caplog.text
    assert read_entry(entry(tmp_path)) is not None and cache() and len(MADE) == 2


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("digest", [True, False])
def test_code_in_an_entry_never_runs(cache, tmp_path, write, digest):
    cache()
    file, trace = entry(tmp_path), tmp_path / "executed"
    write({"moving_image": Malicious(trace)}, file)
    if digest:
        content = file.read_bytes()
        file.write_bytes(hashlib.sha256(content).digest() + content)
    assert cache()["moving_image"].shape == (1, 3, 4)
    assert not trace.exists() and len(MADE) == 2


def test_what_cannot_be_kept_is_prepared_each_time(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("1", encoding="utf-8")
    transform = Compose([Lambdad("moving_image", something)])
    data = [{"moving_image": str(tmp_path / "a.txt")}]
    with caplog.at_level(logging.WARNING):
        assert type(cached_dataset(data, transform, tmp_path / "cache")[0]["moving_image"]) is object
    assert "a pair holds a object" in caplog.text and not list((tmp_path / "cache").iterdir())


def test_where_nothing_can_be_written_training_goes_on(cache, tmp_path, caplog, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING):
        assert cache()["moving_image"].shape == (1, 3, 4)
    assert "No space left" in caplog.text and not list((tmp_path / "cache").iterdir())


def test_all_that_transforms_make_comes_back(tmp_path):
    image = meta(rand(1, 4, 5).numpy(), np.diag([2.0, 3.0, 1.0]), "a.nii")
    image.meta |= {"text": np.array([b"x"]), "pixdim": np.ones(3, ">f4"), MetaKeys.SPACE: "RAS"}
    item = {"image": image, "name": "a", "none": None, "pair": (1, 2.5, [True]), "array": np.arange(3, dtype=np.int16)}
    write_entry(packed(item), tmp_path / "a.item")
    for back in (unpacked(packed(item)), read_entry(tmp_path / "a.item")):
        assert torch.equal(back["image"].as_tensor(), image.as_tensor())
        assert torch.equal(back["image"].affine, image.affine) and back["image"].meta["filename_or_obj"] == "a.nii"
        assert back["image"].meta["pixdim"].tolist() == [1, 1, 1] and "text" not in back["image"].meta
        assert {key: back[key] for key in ("name", "none", "pair")} == {"name": "a", "none": None, "pair": item["pair"]}
        assert back["array"].dtype == np.int16 and back["array"].tolist() == [0, 1, 2]


def test_a_change_of_any_file_that_an_item_is_made_of_is_seen(tmp_path):
    """Of voxels that a header names, of further channels, and of a transform that all pairs begin with."""
    voxels, maps, start = tmp_path / "a.raw", tmp_path / "m_0001.nii.gz", tmp_path / "start.tfm"
    header = "ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(header, encoding="utf-8")
    for file in (voxels, maps, tmp_path / "m_0000.nii.gz", start):
        file.write_bytes(b"1234")
    item = {"moving_image": str(tmp_path / "a.mhd"), "moving_maps": str(tmp_path / "m_0000.nii.gz")}
    transforms = [InitialAlignmentd(str(start))]
    seen = [(hash_with_files(item), hash_with_named_files(transforms))]
    for file, changes in ((voxels, (True, False)), (maps, (True, False)), (start, (False, True))):
        file.write_bytes(b"12345")
        seen.append((hash_with_files(item), hash_with_named_files(transforms)))
        assert tuple(one != other for one, other in zip(*seen[-2:], strict=True)) == changes
