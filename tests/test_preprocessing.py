"""Tests of `istn_monai.transforms.preprocessing`: the transforms of a pair, one by one and in the bundle's order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import meta, rand, write_nifti
from monai.data import MetaTensor

from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.io.images import read_image
from istn_monai.transforms.augmentation import RandDeformd
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS, ORIGINAL_KEYS, PAIR_KEYS
from istn_monai.transforms.postprocessing import WarpPaird
from istn_monai.transforms.preprocessing import (
    CheckPaird,
    ConcatPaird,
    InitialAlignmentd,
    NormalizeIntensityRanged,
    SoIGroupsd,
)
from istn_monai.transforms.registration_grid import RegistrationGridd


def pair_data(moving_shape=(8, 9), fixed_shape=(8, 9), channels=1) -> dict:
    """Four MetaTensors with names and affines of their own."""
    data = {}
    for number, key in enumerate(PAIR_KEYS):
        shape = moving_shape if key.startswith("moving") else fixed_shape
        values = rand(channels, *shape, seed=number)
        values = (values > 0.5).float() if key.endswith("label") else values
        data[key] = meta(values, torch.diag(torch.tensor([1.0] * len(shape) + [1.0])), f"/data/{key}.nii.gz")
        data[key].affine[:-1, -1] = 1.0 + (key.startswith("fixed"))
    return data


# --- with_affine -----------------------------------------------------------------------------------------------------


def test_with_affine_keeps_the_metadata_and_leaves_the_original_alone():
    original = meta(rand(1, 4, 5), np.diag([2.0, 2.0, 1.0]), "/data/a.nii.gz")
    original.meta["note"] = "kept"
    before = original.clone()
    affine = torch.diag(torch.tensor([3.0, 4.0, 1.0])).double()
    result = with_affine(rand(1, 4, 5, seed=1), affine, original)
    assert result.meta["note"] == "kept" and result.meta["filename_or_obj"] == "/data/a.nii.gz"
    assert torch.equal(affine_of(result), affine)
    assert torch.equal(result.as_tensor(), rand(1, 4, 5, seed=1))
    assert torch.equal(original.affine, before.affine) and torch.equal(original.as_tensor(), before.as_tensor())
    result.meta["note"] = "changed"
    assert original.meta["note"] == "kept"


def test_affine_of_a_2d_image_with_a_4x4_affine():
    affine = np.diag([2.0, 3.0, 1.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    small = affine_of(MetaTensor(torch.zeros(1, 4, 5), affine=torch.as_tensor(affine)))
    assert small.tolist() == [[2, 0, 5], [0, 3, 6], [0, 0, 1]] and small.dtype == torch.float64


# --- CheckPaird ------------------------------------------------------------------------------------------------------


def test_check_pair_passes_a_good_one_unchanged():
    data = pair_data()
    result = CheckPaird(2, [[1]])(data)
    assert result == data and result is not data
    assert set(CheckPaird(2)({k: data[k] for k in IMAGE_KEYS})) == set(IMAGE_KEYS)


@pytest.mark.parametrize("key", PAIR_KEYS)
def test_check_pair_names_key_and_file(key):
    data = pair_data()
    data[key][0, 2, 3] = float("nan")
    with pytest.raises(ValueError, match=rf"{key} \(/data/{key}.nii.gz\).*NaN"):
        CheckPaird(2, [[1]])(data)


@pytest.mark.parametrize("key", LABEL_KEYS)
def test_check_pair_compares_a_label_with_its_own_image(key):
    data = pair_data(moving_shape=(8, 9), fixed_shape=(10, 7))
    CheckPaird(2, [[1]])(data)
    other = {"moving_label": "fixed_label", "fixed_label": "moving_label"}[key]
    data[key] = data[other]
    with pytest.raises(ValueError, match="must be on the grid of its image"):
        CheckPaird(2, [[1]])(data)


def test_check_pair_empty_soi():
    data = pair_data()
    data["moving_label"] = meta(torch.zeros(1, 8, 9), data["moving_image"].affine)
    CheckPaird(2, [[1]], need_soi=False)(data)
    with pytest.raises(ValueError, match="moving_label.*empty SoI"):
        CheckPaird(2, [[1]])(data)


def test_check_pair_dimension():
    with pytest.raises(
        ValueError, match="is 2-D.*configuration is 3-D.*needs 3-D images; to train.*give 2 numbers"
    ) as e:
        CheckPaird(3)(pair_data())
    assert "must be written without it" not in str(e.value)
    deep = MetaTensor(rand(1, 8, 9, 1))
    with pytest.raises(ValueError, match="is 3-D.*needs 2-D images .*third axis of 1 voxel must be written without it"):
        CheckPaird(2)({"moving_image": deep, "fixed_image": deep})


def test_several_volumes_of_a_nifti_are_told_from_colors(tmp_path):
    series = read_image(write_nifti(tmp_path / "series.nii.gz", rand(7, 8, 9, 2).numpy()))
    with pytest.raises(ValueError, match=r"is 4-D, with 2 volumes: give one of them.*fslroi IN OUT 0 1.*slicer\[") as e:
        CheckPaird(3, in_channels=1)({"moving_image": series, "fixed_image": series})
    assert "set in_channels" not in str(e.value) and "series.nii.gz" in str(e.value)
    CheckPaird(3, in_channels=2)({"moving_image": series, "fixed_image": series})
    color = MetaTensor(rand(3, 8, 9))
    with pytest.raises(ValueError, match=r"has 3 channel\(s\), the configuration 1: give images of one channel"):
        CheckPaird(2, in_channels=1)({"moving_image": color, "fixed_image": color})


# --- SoIGroupsd ------------------------------------------------------------------------------------------------------

LABEL = np.array([[[0, 1, 2, 1], [2, 2, 0, 59], [30, 0, 23, 1]]], np.float32)


@pytest.mark.parametrize(
    "groups, expected",
    [
        ([[1, 2]], [(LABEL[0] == 1) | (LABEL[0] == 2)]),
        ([[1], [2]], [LABEL[0] == 1, LABEL[0] == 2]),
        ([[2], [1]], [LABEL[0] == 2, LABEL[0] == 1]),
        ([[23, 30], [59], [1]], [np.isin(LABEL[0], (23, 30)), LABEL[0] == 59, LABEL[0] == 1]),
    ],
)
def test_soi_groups(groups, expected):
    data = {key: meta(LABEL, np.diag([2.0, 2.0, 1.0]), "/data/l.nii.gz") for key in LABEL_KEYS}
    result = SoIGroupsd(soi_labels=groups)(data)
    for key in LABEL_KEYS:
        assert result[key].shape == (len(groups), 3, 4) and result[key].dtype == torch.float32
        assert np.array_equal(result[key].numpy(), np.stack(expected).astype(np.float32))
        assert torch.equal(result[key].affine, data[key].affine)
        assert result[key].meta["filename_or_obj"] == "/data/l.nii.gz"


def test_soi_groups_round_what_a_float_file_holds():
    label = meta(np.array([[[0.9999, 2.0001, 1.4]]], np.float32))
    assert SoIGroupsd(["l"], [[1], [2]])({"l": label})["l"].tolist() == [[[1, 0, 1]], [[0, 1, 0]]]


def test_soi_none_takes_the_map_and_scales_its_maximum_to_one():
    values = 40 * rand(1, 5, 6)
    result = SoIGroupsd(["l"], None)({"l": meta(values)})["l"]
    torch.testing.assert_close(result.as_tensor(), values / values.max())
    assert result.max() == 1


def test_soi_groups_missing_label():
    with pytest.raises(KeyError):
        SoIGroupsd()({})
    assert SoIGroupsd(allow_missing_keys=True)({}) == {}


# --- InitialAlignmentd -----------------------------------------------------------------------------------------------


def test_initial_alignment_moves_image_and_label_together_and_leaves_the_fixed_ones():
    data = pair_data(moving_shape=(8, 9), fixed_shape=(12, 7))
    result = InitialAlignmentd("center")(data)
    matrix = result["initial_alignment"]
    for key in ("moving_image", "moving_label"):
        torch.testing.assert_close(matrix @ affine_of(result[key]), affine_of(data[key]))
        assert torch.equal(result[key].as_tensor(), data[key].as_tensor())
    for key in ("fixed_image", "fixed_label"):
        assert result[key] is data[key]
    middles = [
        affine_of(result[key]) @ torch.tensor([*((s - 1) / 2 for s in result[key].shape[1:]), 1.0]).double()
        for key in IMAGE_KEYS
    ]
    torch.testing.assert_close(*middles)


# --- RegistrationGridd -----------------------------------------------------------------------------------------------


def checkerboard(*shape: int) -> torch.Tensor:
    return (torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0) % 2).float()[None]


@pytest.mark.parametrize("shape", [(30, 33), (24, 27, 30)])
def test_downsampling_does_not_alias(shape):
    """Every third voxel of a checkerboard is a checkerboard again; its mean is what a coarse voxel should hold."""
    image = meta(checkerboard(*shape))
    size = [s // 3 for s in shape]
    result = RegistrationGridd(size, 3.0)({"fixed_image": image})["fixed_image"][0]
    inside = result[tuple(slice(2, -2) for _ in shape)]
    assert (inside - 0.5).abs().max() < 0.08


def test_downsampling_along_one_axis_leaves_the_others_sharp():
    """Stripes along an axis that keeps its voxels stay; stripes along the coarser one become their mean."""
    stripes = (torch.arange(30) % 2).float()
    fine = meta(stripes[:, None].expand(30, 30)[None].clone())
    sharp = RegistrationGridd((30, 10), (1.0, 3.0))({"fixed_image": fine})["fixed_image"][0]
    assert torch.allclose(sharp[2:-2, 2:-2], stripes[2:-2, None].expand(26, 6), atol=1e-5)
    blurred = RegistrationGridd((10, 30), (3.0, 1.0))({"fixed_image": fine})["fixed_image"][0]
    assert (blurred[2:-2, 2:-2] - 0.5).abs().max() < 0.25


@pytest.mark.parametrize("spacing", [1.5, 2.0, 2.7, (3.0, 1.0)])
@pytest.mark.parametrize("shape", [(31, 40), (36, 33)])
def test_downsampling_moves_nothing(shape, spacing):
    """A ramp holds at each voxel its own place: whatever is area_averaged, the place must stay right."""
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(s)) for s in shape), indexing="ij"))
    size = [int(s / h) for s, h in zip(shape, np.broadcast_to(spacing, 2), strict=True)]
    result = RegistrationGridd(size, spacing)({"fixed_image": meta(ramps)})["fixed_image"]
    voxels = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).double().flatten(1)
    places = affine_of(result)[:2, :2] @ voxels + affine_of(result)[:2, 2:]
    inside = (slice(None), slice(2, -2), slice(2, -2))
    expected = places.unflatten(1, size).float()
    torch.testing.assert_close(result.as_tensor()[inside], expected[inside], rtol=0, atol=1e-2)


def test_constant_interior_stays_constant():
    result = RegistrationGridd((10, 11), 3.0)({"fixed_image": meta(torch.full((1, 36, 36), 5.0))})["fixed_image"][0]
    assert torch.allclose(result[2:-2, 2:-2], torch.tensor(5.0), atol=1e-3)


@pytest.mark.parametrize("size", [31, 32, 33])
def test_a_coarser_grid_within_the_image_is_not_darkened_at_its_border(size):
    """Points at 0, 3 ... 30 mm (or the like) all lie in the image of ones, and no zero from beyond reaches them."""
    result = RegistrationGridd((11, 11), 3.0)({"fixed_image": meta(torch.ones(1, size, size))})["fixed_image"]
    assert result.min() > 0.99


def test_beyond_the_border_lies_zero():
    data = {"fixed_image": meta(1 + rand(1, 6, 7))}
    result = RegistrationGridd((12, 11))(data)["fixed_image"]
    torch.testing.assert_close(result[:, 3:-3, 2:-2].as_tensor(), data["fixed_image"].as_tensor())
    frame = result.as_tensor().clone()
    frame[:, 3:-3, 2:-2] = 0
    assert frame.abs().max() < 1e-5


def test_same_grid_is_left_as_it_is_and_the_moving_image_follows_the_fixed_ones_grid():
    data = pair_data(moving_shape=(10, 12), fixed_shape=(8, 9))
    result = RegistrationGridd((8, 9))(data)
    torch.testing.assert_close(result["fixed_image"].as_tensor(), data["fixed_image"].as_tensor())
    for key in PAIR_KEYS:
        assert result[key].shape == (1, 8, 9)
        torch.testing.assert_close(affine_of(result[key]), affine_of(data["fixed_image"]))
        assert result[key].meta["filename_or_obj"] == f"/data/{key}.nii.gz"
    # moving origin 1 mm, fixed origin 2 mm, along each axis: fixed voxel (0, 0) lies on moving voxel (1, 1)
    torch.testing.assert_close(result["moving_image"].as_tensor(), data["moving_image"].as_tensor()[:, 1:9, 1:10])


def test_flipped_and_transposed_files_of_one_anatomy_give_one_grid():
    values = rand(1, 8, 9)
    plain = meta(values)
    flipped = np.array([[0, -1.0, 7], [1, 0, 0], [0, 0, 1]])  # voxel (j, i') of the file is world (7 - i', j)
    turned = meta(values.flip(1).mT.contiguous(), flipped)
    results = [RegistrationGridd((8, 9))({"fixed_image": image})["fixed_image"] for image in (plain, turned)]
    torch.testing.assert_close(results[0].as_tensor(), results[1].as_tensor())


def test_registration_grid_refuses_nonsense():
    with pytest.raises(ValueError, match="spatial_size"):
        RegistrationGridd((8,))
    with pytest.raises(ValueError, match="spacing"):
        RegistrationGridd((8, 9), (1.0, 1.0, 1.0))


# --- RandDeformd -----------------------------------------------------------------------------------------------------

KEYS = ["moving_image", "moving_label"]


def soft_ball(size, center, radius=7.0) -> torch.Tensor:
    points = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).float()
    distance = (points - torch.tensor(center).view(-1, *[1] * len(size))).norm(dim=0)
    return torch.sigmoid(radius - distance)[None]


def deform_data(size) -> dict:
    image = soft_ball(size, [s / 2 for s in size])
    return {"moving_image": meta(image), "moving_label": meta((image > 0.5).float()), "fixed_image": meta(image)}


@pytest.mark.parametrize("size", [(24, 28), (20, 22, 24)])
def test_image_and_label_are_deformed_together(size):
    data = deform_data(size)
    deform = RandDeformd(KEYS, size, prob=1.0).set_random_state(seed=2)
    for _ in range(3):
        result = deform(data)
        image, label = (result[key].as_tensor() for key in KEYS)
        assert (image - data["moving_image"].as_tensor()).abs().max() > 0.1, "it moves"
        # linear sampling and thresholding do not commute, but they differ at the rim alone
        certain = (image - 0.5).abs() > 0.4
        assert torch.equal((image > 0.5)[certain], (label > 0.5)[certain]) and (image[certain] > 0.5).any()
        assert result["fixed_image"] is data["fixed_image"]
        assert all(result[key].shape == data[key].shape for key in KEYS)
        assert torch.equal(result["moving_image"].affine, data["moving_image"].affine)


def test_beyond_the_border_of_a_deformed_image_lies_zero():
    """An image of ones: what comes from outside is 0, where repeating the border would give 1."""
    data = {key: meta(torch.ones(1, 24, 28)) for key in KEYS}
    deform = RandDeformd(KEYS, (24, 28), prob=1.0, max_translation=20.0).set_random_state(seed=0)
    result = deform(data)["moving_image"]
    assert result.min() == 0 and (result > 0.999).any()


def test_deformation_is_reproducible():
    data = deform_data((24, 28))
    draws = [RandDeformd(KEYS, (24, 28), prob=1.0).set_random_state(seed=s)(data)["moving_image"] for s in (5, 5, 6)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    one = RandDeformd(KEYS, (24, 28), prob=1.0).set_random_state(seed=5)
    assert not torch.equal(one(data)["moving_image"], one(data)["moving_image"]), "each call draws anew"


def test_probability_zero_is_the_identity_and_a_half_is_about_half():
    data = deform_data((24, 28))
    never = RandDeformd(KEYS, (24, 28), prob=0.0).set_random_state(seed=0)
    assert all(never(data)["moving_image"] is data["moving_image"] for _ in range(10))
    half = RandDeformd(KEYS, (24, 28), prob=0.5).set_random_state(seed=0)
    moved = sum(half(data)["moving_image"] is not data["moving_image"] for _ in range(60))
    assert 18 <= moved <= 42


@pytest.mark.parametrize("size", [(24, 28), (16, 18, 20)])
@pytest.mark.parametrize("strength", [0.4, 3.0])
def test_deformation_never_folds(size, strength):
    """By forward differences, the smallest cells there are; also where all parameters are near their bounds."""
    deform = RandDeformd(KEYS, size, prob=1.0, strength=strength).set_random_state(seed=0)
    for _ in range(8):
        ddf = deform.transformation(deform.randomize())[0].double()
        points = ddf + torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))
        inner = (slice(None), *(slice(-1) for _ in size))
        columns = [points.diff(dim=axis + 1) for axis in range(len(size))]
        columns = [c[tuple(slice(n - 1) if i else slice(None) for i, n in enumerate((1, *size)))] for c in columns]
        assert columns[0].shape == points[inner].shape
        jacobian = torch.stack(columns, 1).movedim((0, 1), (-2, -1))
        assert torch.linalg.det(jacobian).min() > 0


def test_strength_and_bounds_scale_the_deformation():
    def mean_motion(**options) -> float:
        deform = RandDeformd(KEYS, (24, 28), prob=1.0, **options).set_random_state(seed=0)
        return sum(deform.transformation(deform.randomize()).abs().mean().item() for _ in range(10))

    assert mean_motion(strength=0.1) < 0.5 * mean_motion(strength=0.4)
    assert mean_motion(max_translation=1.0) < mean_motion(max_translation=12.0)
    still = {f"max_{name}": 0.0 for name in ("translation", "rotation", "log_scale", "shear")}
    assert 0 < mean_motion(**still) < mean_motion()


# --- NormalizeIntensityRanged and what the grid keeps


@pytest.mark.parametrize("scale", [1e2, 1e6])
def test_intensities_of_any_range_become_0_to_1(scale):
    values = torch.linspace(-0.3, 1.0, 1001).reshape(1, 7, 11, 13)
    result = NormalizeIntensityRanged(["x"])({"x": meta(values * scale)})["x"].as_tensor()
    assert result.min() == 0 and result.max() == 1
    middle = (values + 0.3) / 1.3
    expected = ((middle - 0.005) / 0.99).clamp(0, 1)
    assert (result - expected).abs().max() < 1e-3


def test_a_sparse_image_is_scaled_between_its_extremes():
    values = torch.zeros(1, 20, 20, 20)
    values[0, 3:5, 7, 7] = 1e5
    result = NormalizeIntensityRanged(["x"])({"x": meta(values)})["x"].as_tensor()
    assert result.unique().tolist() == [0.0, 1.0]


def test_a_grid_that_cuts_the_soi_off_is_refused_and_named():
    label = torch.zeros(1, 40, 40, 40)
    label[:, 2:8, 18:22, 18:22] = 1
    data = {key: meta(label + 0.0, name=f"/data/{key}.nii.gz") for key in PAIR_KEYS}
    RegistrationGridd((40, 16, 16))(data)
    with pytest.raises(ValueError, match=r"moving_label \(/data/moving_label.nii.gz\): only 0 % of its SoI"):
        RegistrationGridd((16, 16, 16))(data)


def test_outside_the_moving_image_lies_its_darkest_value():
    data = {key: meta(torch.full((1, 4, 4), -1000.0).index_fill(1, torch.tensor([3]), 50)) for key in ORIGINAL_KEYS[:2]}
    data["image"] = meta(torch.zeros(2, 4, 4))
    data["pred"] = torch.zeros(2, 4, 4).index_fill(0, torch.tensor([0]), 2.0)
    assert WarpPaird()(data)["warped"][0, :, 0].tolist() == [-1000.0, 50.0, -1000.0, -1000.0]


# --- ConcatPaird -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
def test_concat_puts_moving_first_and_takes_the_fixed_ones_metadata(channels):
    data = pair_data(channels=channels)
    result = ConcatPaird()(data)
    for name in ("image", "label"):
        assert torch.equal(result[name][:channels].as_tensor(), data[f"moving_{name}"].as_tensor())
        assert torch.equal(result[name][channels:].as_tensor(), data[f"fixed_{name}"].as_tensor())
        assert result[name].meta["filename_or_obj"] == f"/data/fixed_{name}.nii.gz"
        assert torch.equal(result[name].affine, data[f"fixed_{name}"].affine)
    assert set(result) == {*PAIR_KEYS, "image", "label"}


def test_concat_joins_masks_of_ones_where_there_are_none():
    data = pair_data()
    mask = (torch.rand_like(data["fixed_image"]) > 0.5).float()
    none = ConcatPaird(with_mask=True)(data)["mask"]
    both = ConcatPaird(with_mask=True)(data | {"fixed_mask": mask})["mask"].as_tensor()
    assert none.shape[0] == 2 and none.eq(1).all()
    assert both[0].eq(1).all() and torch.equal(both[1:], mask.as_tensor())
    assert "mask" not in ConcatPaird()(data | {"fixed_mask": mask})


@pytest.mark.parametrize("missing", [LABEL_KEYS, ("fixed_label",)])
def test_concat_without_both_labels_makes_no_label(missing):
    result = ConcatPaird()({k: v for k, v in pair_data().items() if k not in missing})
    assert "image" in result and "label" not in result


@pytest.mark.parametrize("spacing", [0.05, 0.1, 1.0])
def test_random_deformations_leave_structures_of_any_size_in_the_picture(spacing):
    size = (48, 64)
    label = torch.zeros(1, *size)
    label[:, 16:32, 20:44] = 1
    data = {key: MetaTensor(label.clone()) for key in KEYS}
    deform = RandDeformd(KEYS, size, spacing, prob=1.0).set_random_state(seed=1)
    left = [deform(data)["moving_image"].sum().item() / label.sum().item() for _ in range(40)]
    assert min(left) > 0.5
    affine, bspline = deform.transformation.components
    assert bspline.control_spacing[0] == pytest.approx(min(16, 16 * spacing))


@pytest.mark.parametrize("make", [InitialAlignmentd, lambda keys: RegistrationGridd((8, 8), keys=keys)])
def test_one_key_may_be_a_word(make):
    assert make(keys="fixed_image").keys == ("fixed_image",)


def test_an_empty_map_is_an_error_not_nan():
    with pytest.raises(ValueError, match="map of structures of interest is empty"):
        SoIGroupsd(soi_labels=None)({"moving_label": MetaTensor(torch.zeros(1, 4, 4))})
