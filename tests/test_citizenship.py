"""All public transforms as MONAI's own: copied, pickled, in other processes, inverted or refused, saved by name."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from helpers import meta, rand, small_istn, write_json, write_nifti
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Invertd, MapTransform, SaveImaged, Transform

import istn_monai
from istn_monai import AffineTransformation, DisplacementNetwork, LoadPaird, RegisterISTNd, WarpPaird
from istn_monai.io.landmarks import Points, write_points
from istn_monai.moved_points import check_points, errors, moved
from istn_monai.registration import pairs_of

AFFINE = AffineTransformation((12, 11))
ARGUMENTS = {
    "CheckPaird": {"spatial_dims": 2}, "RegistrationGridd": {"spatial_size": (8, 8)}, "WarpPaird": {},
    "AddLandmarkChannelsd": {"groups": [["*"]]}, "Guidanced": {"weights": {"labels": 1.0}},
    "RandContrastMapd": {"keys": ["moving_image"]},
    "RandImageFromLabelsd": {"keys": ["moving_image"], "label_keys": ["moving_label"]},
    "RandDeformd": {"keys": ["moving_image"], "spatial_size": (12, 11)},
    "Representd": {"network": DisplacementNetwork(small_istn())}, "RegisterISTNd": {"refine_steps": 0, "device": "cpu"},
}  # fmt: skip
PUBLIC = {name: getattr(istn_monai, name) for name in istn_monai.__all__}
TRANSFORMS = sorted(n for n, c in PUBLIC.items() if inspect.isclass(c) and issubclass(c, Transform))


def made(name: str) -> Transform:
    return PUBLIC[name](**ARGUMENTS.get(name, {}))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_public_transform_can_be_pickled_and_copied(name):
    transform = made(name)
    for copied in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform), Compose([transform])):
        assert copied is not None
    assert type(copy.deepcopy(transform)) is type(transform)


def test_transforms_work_in_a_spawned_worker():
    names = [name for name in TRANSFORMS if name in ("CheckPaird", "NormalizeIntensityRanged", "RegistrationGridd")]
    pair = {"moving_image": meta(rand(1, 12, 11)), "fixed_image": meta(rand(1, 12, 11, seed=1))}
    data = Dataset([pair], Compose([made(name) for name in names]))
    loader = DataLoader(data, batch_size=1, num_workers=1, multiprocessing_context="spawn")
    assert next(iter(loader))["moving_image"].shape == (1, 1, 8, 8)


def test_register_takes_keys_as_map_transforms_do():
    register = RegisterISTNd(keys=["a", "b"], refine_steps=0, device="cpu")
    assert isinstance(register, MapTransform) and register.keys == ("a", "b", "moving_label")
    assert RegisterISTNd("m", "f", "l", refine_steps=0, device="cpu").keys == ("m", "f", "l")
    with pytest.raises(KeyError, match="no 'a'"):
        register({"b": 1})


def test_what_cannot_be_inverted_says_so():
    pair = {"moving_image": meta(rand(1, 12, 11)), "fixed_image": meta(rand(1, 12, 11, seed=1))}
    grid = Compose([made("NormalizeIntensityRanged"), made("RegistrationGridd")])
    with pytest.raises(RuntimeError) as raised:
        Invertd("pred", grid, "fixed_image")(grid(pair) | {"pred": meta(rand(1, 8, 8))})
    assert "RegistrationGridd has no inverse" in str(raised.value.__cause__)


@pytest.mark.parametrize("label", ["labels/moving.nii.gz", "other.nii.gz"])
def test_warped_image_and_label_are_saved_to_files_of_their_own(tmp_path, label):
    files = {"moving_image": "images/moving.nii.gz", "fixed_image": "fixed.nii.gz", "moving_label": label}
    for seed, file in enumerate(files.values()):
        values = rand(7, 5, 6, seed=seed).numpy()
        write_nifti(tmp_path / "data" / file, values.round().astype(np.uint8) if file == label else values)
    pair = LoadPaird()({key: str(tmp_path / "data" / file) for key, file in files.items()})
    pair = {f"{key}_original": image for key, image in pair.items()} | {"image": pair["fixed_image"]}
    result = WarpPaird()(pair | {"pred": torch.zeros(3, 7, 5, 6)})
    assert result["warped"].meta["filename_or_obj"] == str(tmp_path / "data" / "images" / "moving.nii.gz")
    save = SaveImaged(["warped", "warped_label"], output_dir=tmp_path / "out", separate_folder=False, print_log=False)
    save(result)
    assert len(list((tmp_path / "out").iterdir())) == 2


# --- landmarks of a datalist -----------------------------------------------------------------------------------------


def test_a_pairs_landmarks_are_moved_and_measured(tmp_path):
    from istn_monai.geometry.grids import Grid
    from istn_monai.geometry.world_transform import world_transform

    points = {"moving_points": [[1.0, 2, 3], [4, 5, 6]], "fixed_points": [[1.0, 2, 3], [4, 5, 8]]}
    files = {
        key: str(write_points(Points(torch.tensor(rows, dtype=torch.float64), ("AC", "PC")), tmp_path / f"{key}.csv"))
        for key, rows in points.items()
    }
    check_points(files)
    identity = world_transform(AffineTransformation((9, 9, 9)), torch.zeros(1, 12), Grid((9, 9, 9), torch.eye(4)))
    assert moved(identity, files).positions.tolist() == points["moving_points"]
    assert errors(identity, files) == {"tre_mm": {"AC": 0.0, "PC": 2.0}, "mean": 1.0}
    assert errors(identity, {"moving_points": files["moving_points"]}) == {}
    with pytest.raises(ValueError, match="moving_points: .*no landmark file"):
        check_points({"moving_points": "map.nii.gz"})


def test_keys_of_a_datalist_that_nothing_reads_are_named(tmp_path):
    item = {"moving_image": "a", "fixed_image": "b", "moving_points": "c.csv", "protocol": "d", "id": 1}
    with pytest.raises(ValueError, match="unknown key 'moving_lable': did you mean 'moving_label'"):
        pairs_of(write_json(tmp_path / "l.json", {"testing": [item | {"moving_lable": "d"}]}), "testing")
    with pytest.warns(UserWarning, match=r"'id', 'protocol'"):
        assert set(pairs_of(write_json(tmp_path / "l.json", {"testing": [item]}), "testing")[0]) >= {"moving_points"}


def test_a_label_beside_a_datalist_is_refused():
    from istn_monai.__main__ import register

    with pytest.raises(ValueError, match="moving_label is for two images"):
        register("pairs.json", moving_label="label.nii.gz")
