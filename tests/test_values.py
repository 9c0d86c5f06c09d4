"""Tests of `istn_monai.io.values`: labels or intensities, finite and exact; and of what their users do with them."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import ball, meta, rand
from oracles import smooth_image

from istn_monai.apply import chosen_interpolation, resample_image
from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.resampling import warp_intensities, warp_label_map
from istn_monai.geometry.world_transform import WorldTransform, world_transform
from istn_monai.io.images import read_or_explain, save_image
from istn_monai.io.values import check_finite, check_labels, interpolation_of
from istn_monai.refinement import Refiner
from istn_monai.transforms.checks import check_image, check_label
from istn_monai.transforms.postprocessing import WarpPaird
from istn_monai.transforms.preprocessing import LoadPaird, NormalizeIntensityRanged
from istn_monai.weights import read_weights

IDS = (8589934597, 4000000001, 2**24 + 1)


def centers(size) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))[None]


@pytest.mark.parametrize("value", IDS)
def test_label_values_stay_exact_from_file_to_file(tmp_path, value):
    array = np.zeros((6, 7, 8), np.uint64)
    array[2:5, 2:5, 2:5] = value
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=np.uint64), tmp_path / "a.nii.gz")
    label = LoadPaird()({"moving_label": str(tmp_path / "a.nii.gz")})["moving_label"]
    for warped in (warp_label_map(label.as_tensor(), centers(array.shape)),
                   warp_intensities(label.as_tensor(), centers(array.shape), "nearest")):  # fmt: skip
        assert warped.unique().tolist() == [0, value]
        save_image(meta(warped), tmp_path / "b.nii.gz")
        assert read_or_explain(tmp_path / "b.nii.gz", "x", dtype=None).unique().tolist() == [0, value]


def test_integers_near_two_to_the_thirty_keep_their_steps():
    image = (2**30 + torch.arange(56)).view(1, 7, 8).int()
    assert torch.equal(warp_intensities(image, centers((7, 8))), image)
    scaled = NormalizeIntensityRanged("image")({"image": meta(image)})["image"]
    assert len(scaled.unique()) > 50


@pytest.mark.parametrize("value", [1e300, 1e35, float("inf"), float("nan"), 2**60])
def test_values_beyond_what_is_computed_with_are_named(value):
    dtype = torch.int64 if isinstance(value, int) else torch.float64
    image = torch.ones(1, 5, 6, dtype=dtype)
    image[0, 2, 2] = value
    with pytest.raises(ValueError, match=r"fixed_image \(/a.nii\) has 1 voxels (beyond|that are NaN)"):
        check_image(meta(image, name="/a.nii"), "fixed_image", 2)
    with pytest.raises(ValueError, match="1 voxels"):
        check_finite(image, "input")


def test_the_largest_number_of_32_bits_that_is_too_large_is_counted():
    with pytest.raises(ValueError, match="1 voxels beyond"):
        check_finite(torch.tensor([1.0, 1e30]), "input")


@pytest.mark.parametrize(
    ("label", "words"),
    [(rand(1, 9, 9), "probability"), (torch.arange(900.0).view(1, 30, 30), "intensity image")],
)
def test_what_is_no_label_map_is_refused_as_one(label, words):
    image = meta(rand(*label.shape))
    with pytest.raises(ValueError, match=f"moving_label must be a label map.*{words}"):
        check_label(meta(label), "moving_label", image, [[1]])
    with pytest.raises(ValueError, match=words):
        check_label(meta(label), "moving_label", image, None, need_soi=False)
    check_label(meta(label), "moving_label", image, None)  # a real-valued map


def test_labels_in_float32_from_two_to_the_24_on_are_refused():
    with pytest.raises(ValueError, match="16,777,216"):
        check_labels(torch.zeros(1, 4, 4).index_fill(1, torch.tensor([1]), 2.0**24), "label")


def test_labels_and_intensities_are_told_apart():
    size = (24, 25, 26)
    discs = sum(n * torch.as_tensor(ball(size, [6 + 4 * n] * 3, 3).astype(np.int16)) for n in range(1, 4))
    noise = torch.as_tensor(np.random.default_rng(0).normal(size=size)) * 20
    smooth = torch.as_tensor(200 * smooth_image(size, 0))
    assert interpolation_of(discs[None]) == "label" and interpolation_of(discs[None].float()) == "label"
    assert interpolation_of(smooth[None].short()) == "linear"
    assert interpolation_of((smooth + noise)[None].short()) == "linear"
    assert interpolation_of((1000 * smooth - 1024)[None].int()) == "linear"
    atlas = torch.arange(64).repeat_interleave(4)[:, None].expand(256, 30) * 7919 % 997
    assert interpolation_of(atlas.T[None].contiguous()) == "label"
    few = torch.randint(0, 9, (1, 20, 20))
    assert interpolation_of(few) is None
    for axis in range(3):  # slices that are there twice are no labels
        assert interpolation_of((smooth + noise).short().repeat_interleave(2, axis)[None]) == "linear"
        assert interpolation_of(discs.repeat_interleave(2, axis)[None]) == "label"
    thick = discs.repeat_interleave(3, 0).repeat_interleave(3, 1)  # of slices that are three times as thick
    assert interpolation_of(thick[None]) == "label"
    with pytest.raises(ValueError, match="give interpolation label or linear"):
        chosen_interpolation(meta(few))


def test_a_label_map_is_resampled_as_labels_by_default(capsys):
    grid = Grid((20, 20), torch.eye(3))
    affine = AffineTransformation((20, 20))
    move = world_transform(affine, torch.tensor([[0.3, 0.2, 0.4, 0, 0, 0]]), grid)
    label = meta((3 * ball((20, 20), (9, 10), 5) + 4 * ball((20, 20), (9, 10), 3))[None])
    assert set(resample_image(label, move, label).unique().tolist()) == {0, 3, 7}
    assert "interpolation: label" in capsys.readouterr().out


def test_each_channel_is_scaled_by_its_own_percentiles():
    first, second = rand(1, 12, 13), rand(1, 12, 13, seed=1)
    scale = NormalizeIntensityRanged("image")
    both = scale({"image": meta(torch.cat([first, 4000 * second]))})["image"].as_tensor()
    assert torch.equal(both[:1], scale({"image": meta(first)})["image"].as_tensor())
    assert both[0].max() == 1 == both[1].max()


@pytest.mark.parametrize("what", ["loss", "start"])
def test_refinement_stops_before_the_gradient_of_what_is_not_finite(what):
    affine, image = AffineTransformation((12, 11)), rand(1, 1, 12, 11)
    refiner = Refiner(steps=2, similarity=(lambda a, b: (a - b).sum() * float("nan")) if what == "loss" else None)
    start = torch.full((1, affine.num_parameters), float("nan")) if what == "start" else None
    with pytest.raises(ValueError, match="NaN or infinite at step 0"):
        refiner.register(affine, image, image.roll(1, 2), start)


@pytest.mark.parametrize("key", ["theta", "pred"])
def test_a_prediction_that_is_not_finite_is_an_error(key):
    image = meta(rand(1, 5, 6))
    pair = {"moving_image_original": image, "fixed_image_original": image, "image": image, "pred": torch.zeros(2, 5, 6)}
    bad = {key: torch.full((2, 5, 6), float("nan"))}
    with pytest.raises(ValueError, match=f"{key}.*NaN or infinite"):
        WarpPaird()(pair | bad)


@pytest.mark.parametrize("wrong", [{"learning_rate": float("nan")}, {"learning_rate": 0.0}, {"steps": None},
                                   {"steps": True}])  # fmt: skip
def test_a_refiner_of_no_use_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Refiner(**wrong)


def test_an_image_that_is_constant_in_float32_is_refused():
    image = 1e6 + 1e-3 * torch.linspace(0, 1, 30, dtype=torch.float64).view(1, 5, 6)
    with pytest.raises(ValueError, match="fixed_image is constant"):
        check_image(meta(image), "fixed_image", 2)


def test_complex_images_and_weights_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="moving_image has complex values"):
        check_image(meta(torch.ones(1, 5, 6, dtype=torch.complex64)), "moving_image", 2)
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c.pt has complex weights, in a"):
        read_weights(tmp_path / "c.pt")


@pytest.mark.parametrize("unit, step", [("sec", 2.5), ("msec", 800.0), ("unknown", 1.0)])
def test_volumes_keep_their_time_step_and_a_written_image_is_in_mm(tmp_path, unit, step):
    """What moves is the time series; the reference, of one volume and in microns, has no say in its time."""
    series = nib.Nifti1Image(rand(7, 6, 5, 4).numpy(), np.diag([2.0, 2.0, 3.0, 1.0]))
    series.header.set_xyzt_units("mm", unit)
    series.header["pixdim"][4] = step
    nib.save(series, tmp_path / "series.nii.gz")
    reference = nib.Nifti1Image(rand(5, 5, 5).numpy(), np.diag([2e3, 2e3, 3e3, 1.0]))
    reference.header.set_xyzt_units("micron", "hz")
    nib.save(reference, tmp_path / "reference.nii.gz")
    moving, fixed = (read_or_explain(tmp_path / f"{name}.nii.gz", name) for name in ("series", "reference"))
    save_image(resample_image(moving, WorldTransform([], 3), fixed, interpolation="linear"), tmp_path / "a.nii.gz")
    written = nib.load(tmp_path / "a.nii.gz")
    assert written.shape == (5, 5, 5, 4) and written.header.get_zooms() == pytest.approx((2.0, 2.0, 3.0, step))
    assert written.header.get_xyzt_units() == ("mm", unit)
    assert np.allclose(written.dataobj, series.dataobj[:5, :5, :5], atol=1e-6)
