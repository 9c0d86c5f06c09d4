"""Tests of `istn_monai.transforms.postprocessing`: the pair on its own grids, and the whole chain."""

from __future__ import annotations

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ball, meta, pair_of, perturb, rand, small_istn, write_nifti, write_subjects
from monai.transforms import Compose, CopyItemsd, LoadImaged, ScaleIntensityRangePercentilesd

from istn_monai.geometry import resampling
from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.meta import affine_of
from istn_monai.networks import DisplacementNetwork
from istn_monai.transforms import postprocessing
from istn_monai.transforms.keys import IMAGE_KEYS, ORIGINAL_KEYS, PAIR_KEYS
from istn_monai.transforms.postprocessing import Representd, WarpPaird
from istn_monai.transforms.preprocessing import CheckPaird, ConcatPaird, InitialAlignmentd, SoIGroupsd
from istn_monai.transforms.registration_grid import RegistrationGridd

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from common import peak_mb

# --- WarpPaird -------------------------------------------------------------------------------------------------------


def warped_pair(dtype, size=(9, 8, 10), label_dtype=torch.uint8, ddf=None) -> tuple[dict, dict]:
    """A pair with equal grids before and after ``WarpPaird``."""
    image = (100 * rand(1, *size)).to(dtype)
    label = torch.as_tensor(59 * ball(size, [s / 2 for s in size], 3)[None]).to(label_dtype)
    data = {key: meta(image if "image" in key else label) for key in ORIGINAL_KEYS}
    data["image"] = meta(rand(2, *size))
    data["pred"] = torch.zeros(len(size), *size) if ddf is None else ddf
    return data, WarpPaird()(data)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
@pytest.mark.parametrize("size", [(9, 8), (9, 8, 10)])
def test_zero_field_on_equal_grids_is_the_moving_image(dtype, size):
    data, result = warped_pair(dtype, size)
    assert result["warped"].dtype == dtype
    torch.testing.assert_close(result["warped"].as_tensor(), data[ORIGINAL_KEYS[0]].as_tensor(), rtol=0, atol=1e-4)
    assert result["warped_label"].tolist() == data[ORIGINAL_KEYS[2]].tolist()
    assert not result["warped_label"].dtype.is_floating_point


def test_whole_numbers_are_rounded_not_cut():
    data = {key: meta(torch.tensor([[[10, 20]] * 2], dtype=torch.int16)) for key in ORIGINAL_KEYS[:2]}
    data["image"] = meta(torch.zeros(2, 2, 2))
    data["pred"] = torch.zeros(2, 2, 2)
    data["pred"][1, :, 0] = 0.77  # 17.7 between 10 and 20
    assert WarpPaird()(data)["warped"][0, 0].tolist() == [18, 20]


def test_a_registration_that_leads_past_the_image_is_said():
    with pytest.warns(UserWarning, match="takes no voxel of the grid into the image, the result is empty"):
        warped_pair(torch.float32, ddf=torch.full((3, 9, 8, 10), 1e4))


def test_shift_pulls_back_and_zero_lies_outside():
    """ddf +2 along the last axis: warped(x) = moving(x + 2)."""
    ddf = torch.zeros(3, 9, 8, 10)
    ddf[2] = 2.0
    data, result = warped_pair(torch.int16, ddf=ddf)
    moving, label = data[ORIGINAL_KEYS[0]].as_tensor(), data[ORIGINAL_KEYS[2]].as_tensor()
    assert torch.equal(result["warped"].as_tensor()[..., :-2], moving[..., 2:])
    assert torch.count_nonzero(result["warped"].as_tensor()[..., -2:]) == 0
    assert result["warped_label"][..., :-2].tolist() == label[..., 2:].tolist()


@pytest.mark.parametrize("exact", [True, False])
def test_slabs_are_the_same_as_all_at_once(monkeypatch, exact):
    data, _ = warped_pair(torch.int16, ddf=rand(3, 9, 8, 10))
    data |= {"initial_alignment": torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))}
    bspline = BSplineTransformation((9, 8, 10), 1.0, 4.0)
    warp = WarpPaird(bspline if exact else None)
    data |= {"theta": torch.randn(bspline.num_parameters)} if exact else {}
    whole = warp(data)
    for module in (postprocessing, resampling):
        monkeypatch.setattr(module, "SLAB", 170)  # two slices and a bit
    slabs = warp(data)
    for name in ("warped", "warped_label", "displacement"):
        torch.testing.assert_close(slabs[name].as_tensor(), whole[name].as_tensor(), rtol=0, atol=1e-5)


def bytes_per_voxel() -> list[float] | None:
    """Peaks of memory of a pair, of the fixed image's voxels; None if this system does not tell."""
    size = (128, 160, 128)
    image, label = meta(torch.zeros(1, *size, dtype=torch.int16)), meta(torch.zeros(1, *size, dtype=torch.uint8))
    data = {key: image if "image" in key else label for key in ORIGINAL_KEYS[:3]}
    data |= {"image": meta(torch.zeros(2, 16, 16, 16)), "pred": torch.zeros(3, 16, 16, 16), "theta": torch.zeros(12)}
    for module in (postprocessing, resampling):
        module.SLAB = 2**16  # else most of it would be a slab's own
    peaks = [peak_mb(lambda: WarpPaird(AffineTransformation((16, 16, 16)))(data), "cpu") for _ in range(3)]
    return None if None in peaks else [peak * 2**20 / image.numel() for peak in peaks]


def test_a_pair_needs_little_more_memory_than_its_results():
    """15 bytes for each voxel of the fixed image are results, 5 the moving image as floats and where labels meet.

    In a process of its own: what another test left to the system would count.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        peaks = pool.submit(bytes_per_voxel).result()
    if peaks is None:
        pytest.skip("this system does not tell the peak of memory")
    assert min(peaks) < 40  # what the system keeps for later only adds to it


def test_warped_label_has_the_labels_own_values_alone():
    label = torch.zeros(1, 12, 12)
    label[:, 2:6, 2:10], label[:, 6:10, 2:10] = 23, 59
    data = {key: meta(label) for key in ORIGINAL_KEYS}
    data["image"], data["pred"] = meta(torch.zeros(2, 12, 12)), torch.full((2, 12, 12), 0.4)
    assert set(WarpPaird()(data)["warped_label"].unique().tolist()) == {0, 23, 59}


def test_result_is_on_the_fixed_images_own_grid_and_a_label_is_not_needed():
    fixed = meta(rand(1, 14, 6), np.diag([0.5, 2.0, 1.0]), "/data/fixed.nii.gz")
    data = {ORIGINAL_KEYS[0]: meta(rand(1, 9, 9)), ORIGINAL_KEYS[1]: fixed}
    data |= {"image": meta(rand(2, 8, 8)), "pred": torch.zeros(2, 8, 8)}
    result = WarpPaird()(data)
    assert result["warped"].shape == (1, 14, 6) and "warped_label" not in result
    torch.testing.assert_close(affine_of(result["warped"]), affine_of(fixed))
    # fixed voxel (4, 3) is world (2, 6), moving voxel (2, 6)
    torch.testing.assert_close(result["warped"][0, 4, 3], data[ORIGINAL_KEYS[0]][0, 2, 6])


# --- Representd, the whole chain -------------------------------------------------------------------------------------


def test_representations_are_the_networks():
    network = DisplacementNetwork(perturb(small_istn((12, 11), channels=2)))
    image = meta(rand(2, 12, 11), np.diag([2.0, 2.0, 1.0]), "/data/fixed.nii.gz")
    result = Representd(network)({"image": image})
    expected = network.istn.represent(image.as_tensor()[None])
    for side, representation in zip(("moving", "fixed"), expected, strict=True):
        found = result[f"{side}_representation"]
        torch.testing.assert_close(found.as_tensor(), representation[0].detach())
        assert not found.requires_grad and torch.equal(found.affine, image.affine)


def test_the_bundles_chain_from_files(tmp_path):
    """Load to network input and back: with a zero field the warped label is the moving one, moved to the center."""
    shape = (14, 12, 13)
    files = write_subjects(tmp_path, 1, shape)[0]
    affine = np.eye(4)
    affine[:3, 3] = 30, -20, 10
    far = {
        key: write_nifti(tmp_path / f"far_{key}.nii.gz", LoadImaged("x")({"x": file})["x"].numpy(), affine)
        for key, file in files.items()
    }
    chain = Compose(
        [
            LoadImaged(PAIR_KEYS, image_only=True, ensure_channel_first=True),
            CheckPaird(3, [[1], [2]]),
            InitialAlignmentd("center"),
            CopyItemsd(PAIR_KEYS, names=ORIGINAL_KEYS),
            ScaleIntensityRangePercentilesd(IMAGE_KEYS, 0.5, 99.5, 0, 1, clip=True),
            SoIGroupsd(soi_labels=[[1], [2]]),
            RegistrationGridd((16, 16, 16)),
            ConcatPaird(),
        ]
    )
    result = chain(pair_of(files, far))
    assert result["image"].shape == (2, 16, 16, 16) and result["label"].shape == (4, 16, 16, 16)
    torch.testing.assert_close(result["image"][0], result["image"][1], rtol=0, atol=1e-4)
    assert torch.equal(result["label"][:2].as_tensor(), result["label"][2:].as_tensor())
    back = WarpPaird()(result | {"pred": torch.zeros(3, 16, 16, 16)})
    assert back["warped"].shape == (1, *shape)
    assert back["warped_label"].tolist() == result["fixed_label_original"].tolist()
    torch.testing.assert_close(affine_of(back["warped"]), torch.as_tensor(affine))
