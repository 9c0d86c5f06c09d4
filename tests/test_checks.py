"""Every bad input gives an error that says what, where and what to do: `transforms.checks`, `datalist_checks`."""

from __future__ import annotations

import gzip
import re

import numpy as np
import pytest
import torch
from helpers import ball, meta, pair_of, rand, write_json, write_nifti, write_subjects
from monai.data import MetaTensor

from istn_monai.alignment import INITIAL_ALIGNMENTS
from istn_monai.geometry.composite import TRANSFORMATIONS, spatial_transformation
from istn_monai.io.datalist import read_datalist
from istn_monai.io.paths import check_output_dir
from istn_monai.losses import VARIANTS, ISTNLoss
from istn_monai.transforms.checks import (
    check_affine,
    check_choice,
    check_dims,
    check_image,
    check_label,
    check_soi_labels,
    source,
)
from istn_monai.transforms.preprocessing import CheckPaird, InitialAlignmentd
from istn_monai.workflow import datalist_checks as checks
from istn_monai.workflow.datalist_checks import check_datalist

SHAPE = (10, 12, 11)
LABELS = [[1], [2]]


@pytest.fixture
def pair(tmp_path):
    """A good pair on disk."""
    return pair_of(*write_subjects(tmp_path, 2, SHAPE))


def refused(pair, *said, dims=3, soi_labels=LABELS, need_labels=True, error=ValueError):
    """The error of a datalist, which must say all of ``said``."""
    with pytest.raises(error) as caught:
        check_datalist({"training": [pair]}, dims, soi_labels, need_labels)
    text = str(caught.value)
    for part in said:
        assert str(part) in text
    assert len(text) < 1000, "an error of a screenful hides what it says"
    return text


def image_array(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def label_array(shape=SHAPE) -> np.ndarray:
    return 2 * ball(shape, [s / 2 for s in shape], 3.5) - ball(shape, [s / 2 for s in shape], 2)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soi_labels", [LABELS, [[1, 2]], [[2]]])
def test_good_pair_passes(pair, soi_labels):
    check_datalist({"training": [pair], "validation": [pair]}, 3, soi_labels)


def test_good_pair_without_labels_passes_only_where_none_are_needed(pair):
    bare = {k: v for k, v in pair.items() if k.endswith("image")}
    check_datalist({"training": [bare]}, 3, LABELS, need_labels=False)
    refused(bare, "training[0]", "moving_label", "fixed_image")


def test_real_valued_maps_pass(pair, tmp_path):
    values = np.exp(-np.linalg.norm(np.indices(SHAPE).T - 5, axis=-1).T / 4).astype(np.float32)
    pair["moving_label"] = write_nifti(tmp_path / "map.nii.gz", values)
    check_datalist({"training": [pair]}, 3, None)


@pytest.mark.parametrize("key", ["moving_image", "fixed_image", "moving_label", "fixed_label"])
def test_missing_key_names_part_index_and_key(pair, key):
    bad = {k: v for k, v in pair.items() if k != key}
    with pytest.raises(ValueError, match=rf"testing\[1\] has no key '{key}'"):
        check_datalist({"training": [pair], "testing": [pair, bad]}, 3, LABELS)


@pytest.mark.parametrize("key", ["moving_image", "fixed_image", "moving_label", "fixed_label"])
def test_missing_file(pair, key, tmp_path):
    pair[key] = str(tmp_path / "nowhere" / "a.nii.gz")
    refused(pair, "training[0]", key.split("_")[0], pair[key], error=FileNotFoundError)


def test_missing_file_is_found_before_any_file_is_read(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "read_or_explain", lambda *_: pytest.fail("read a file first"))
    missing = pair | {"fixed_image": str(tmp_path / "no.nii.gz")}
    with pytest.raises(FileNotFoundError):
        check_datalist({"training": [pair] * 3 + [missing]}, 3, LABELS)


@pytest.mark.parametrize("key", ["moving_image", "fixed_label"])
@pytest.mark.parametrize("how", ["truncated", "text", "empty", "text in gzip"])
def test_unreadable_file(pair, key, how, tmp_path):
    file = tmp_path / "bad.nii.gz"
    with open(pair[key], "rb") as whole:
        content = whole.read()
    file.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "text": b"this is no image\n" * 30,
            "empty": b"",
            "text in gzip": gzip.compress(b"this is no image\n" * 30),
        }[how]
    )
    pair[key] = str(file)
    refused(pair, file, "training[0]", "cannot read")


def test_each_file_is_read_once(tmp_path, monkeypatch):
    files = write_subjects(tmp_path, 3, SHAPE)
    pairs = [pair_of(m, f) for m in files for f in files if m is not f]
    read = []
    for name in ("read_or_explain", "read_exactly"):
        original = getattr(checks, name)
        monkeypatch.setattr(checks, name, lambda *args, original=original: read.append(args[0]) or original(*args))
    check_datalist({"training": pairs}, 3, LABELS)
    assert sorted(read) == sorted(value for file in files for value in file.values())


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims, shape", [(3, (10, 12)), (2, SHAPE)])
def test_image_of_another_dimension(tmp_path, dims, shape):
    files = {
        "image": write_nifti(tmp_path / "i.nii.gz", image_array(shape)),
        "label": write_nifti(tmp_path / "l.nii.gz", label_array(shape)),
    }
    refused(pair_of(files, files), files["image"], f"{len(shape)}-D", f"{dims}-D", "spatial_size", dims=dims)


def test_good_2d_pair_passes(tmp_path):
    files = write_subjects(tmp_path, 2, (14, 12))
    check_datalist({"training": [pair_of(*files)]}, 2, LABELS)


@pytest.mark.parametrize("value, said", [(np.nan, "3 voxels"), (np.inf, "NaN or infinite"), (-np.inf, "NaN or inf")])
def test_image_with_nan_or_inf(pair, tmp_path, value, said):
    array = image_array()
    array[2, 3, 4:7] = value
    pair["fixed_image"] = write_nifti(tmp_path / "bad.nii.gz", array)
    refused(pair, pair["fixed_image"], said)


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_constant_image(pair, tmp_path, value):
    pair["moving_image"] = write_nifti(tmp_path / "bad.nii.gz", np.full(SHAPE, value, np.float32))
    refused(pair, pair["moving_image"], "constant", f"{value:g}")


@pytest.mark.parametrize("row", [[0, 0, 0, 0], [0, 0, 2, 5]])
def test_singular_affine(pair, tmp_path, row):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1] = row
    for key in ("moving_image", "moving_label"):
        array = image_array() if key.endswith("image") else label_array()
        pair[key] = write_nifti(tmp_path / f"{key}.nii.gz", array, affine)
    refused(pair, pair["moving_image"], "affine")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_affine_that_is_not_finite(value):
    """From a file MONAI's reader may repair it, from elsewhere nobody does."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[1, 3] = value
    image = MetaTensor(torch.zeros(1, 4, 4, 4), affine=affine, meta={"filename_or_obj": "/data/a.mha"})
    with pytest.raises(ValueError, match=r"fixed_image \(/data/a.mha\) has a header without a usable affine"):
        check_affine(image, "fixed_image")


def test_small_voxels_are_no_singular_affine():
    """Microscopy: 50 nm in each direction is a sound affine, whose determinant in mm is 1e-13."""
    check_affine(MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([5e-5, 5e-5, 5e-5, 1.0]))), "x")


def test_single_voxel_axis():
    with pytest.raises(ValueError, match=r"image needs 2 voxels along each axis, got size \(5, 1\)"):
        check_dims(torch.zeros(1, 5, 1), "image", 2)


def test_check_image_names_key_and_file():
    image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": "/data/a.nii.gz"})
    with pytest.raises(ValueError, match=r"moving_image \(/data/a.nii.gz\) is constant"):
        check_image(image, "moving_image", 2)
    assert source(torch.zeros(1), "moving_image") == "moving_image"


# --- labels ----------------------------------------------------------------------------------------------------------


def test_label_of_another_shape(pair, tmp_path):
    pair["moving_label"] = write_nifti(tmp_path / "bad.nii.gz", label_array((10, 12, 12)))
    refused(pair, pair["moving_label"], pair["moving_image"], "(10, 12, 12)", str(SHAPE), "grid of its image")


@pytest.mark.parametrize("change", [[(0, 3, 5.0)], [(1, 1, 2.0)], [(2, 3, -0.5)]])
def test_label_with_another_affine(pair, tmp_path, change):
    affine = np.eye(4)
    for row, column, value in change:
        affine[row, column] = value
    pair["fixed_label"] = write_nifti(tmp_path / "bad.nii.gz", label_array(), affine)
    refused(pair, pair["fixed_label"], pair["fixed_image"], "affine", "grid of its image")


def test_affines_that_differ_by_rounding_pass(pair, tmp_path):
    affine = np.eye(4)
    affine[0, 3] = 1e-3
    pair["fixed_label"] = write_nifti(tmp_path / "rounded.nii.gz", label_array(), affine)
    check_datalist({"training": [pair]}, 3, LABELS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_label_with_nan_or_inf(pair, tmp_path, value):
    array = label_array().astype(np.float32)
    array[0, 0, 0] = value
    pair["moving_label"] = write_nifti(tmp_path / "bad.nii.gz", array)
    refused(pair, pair["moving_label"], "NaN")


@pytest.mark.parametrize("soi_labels", [LABELS, [[1, 2]], None])
def test_empty_soi(pair, tmp_path, soi_labels):
    pair["moving_label"] = write_nifti(tmp_path / "bad.nii.gz", np.zeros(SHAPE, np.uint8))
    refused(pair, pair["moving_label"], "empty", soi_labels=soi_labels)


def test_soi_of_other_labels_says_which_there_are(pair, tmp_path):
    for key in ("moving_label", "fixed_label"):
        pair[key] = write_nifti(tmp_path / f"{key}.nii.gz", 7 * ball(SHAPE, (5, 5, 5), 3))
    refused(pair, pair["moving_label"], "empty SoI", "[1, 2]", "[0, 7]")


@pytest.mark.parametrize("soi_labels, unknown", [([[1], [2, 9]], "[9]"), ([[1, 2], [23], [30]], "[23, 30]")])
def test_label_ids_that_are_nowhere(pair, soi_labels, unknown):
    refused(pair, "soi_labels", unknown, "[0, 1, 2]", soi_labels=soi_labels)


def test_label_that_only_some_subjects_have_passes(pair, tmp_path):
    pair["moving_label"] = write_nifti(tmp_path / "one.nii.gz", ball(SHAPE, (5, 5, 5), 3))
    check_datalist({"training": [pair]}, 3, LABELS)


def test_check_label_with_several_channels():
    with pytest.raises(ValueError, match="moving_label must have one channel, a label map, got 2"):
        check_label(torch.ones(2, 4, 4), "moving_label", torch.ones(1, 4, 4), LABELS)


def test_empty_soi_is_fine_where_labels_are_only_carried_along():
    check_label(torch.zeros(1, 4, 4), "moving_label", torch.ones(1, 4, 4), LABELS, need_soi=False)
    check_label(torch.zeros(1, 4, 4), "moving_label", torch.ones(1, 4, 4), None, need_soi=False)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soi_labels", [None, [[1]], [[1, 2]], [[1], [2]], ((23, 30), (59,))])
def test_good_soi_labels(soi_labels):
    check_soi_labels(soi_labels)


@pytest.mark.parametrize(
    "soi_labels",
    [1, "1", "[[1,2]]", [], [1, 2], [[]], [[1], []], [[0]], [[1, 0]], [["1"]], [[1.5]], [[1], 2], {"a": [1]}],
)
def test_malformed_soi_labels(pair, soi_labels):
    with pytest.raises(ValueError) as error:
        check_soi_labels(soi_labels)
    text = str(error.value)
    assert "soi_labels" in text and "[[1,2]]" in text and repr(soi_labels) in text
    refused(pair, "soi_labels", soi_labels=soi_labels)


@pytest.mark.parametrize(
    "name, choices",
    [("loss", VARIANTS), ("transformation", TRANSFORMATIONS), ("initial_alignment", INITIAL_ALIGNMENTS)],
)
@pytest.mark.parametrize("value", ["nonsense", "", None, 3, ["u"]])
def test_unknown_choice(name, choices, value):
    with pytest.raises(ValueError) as error:
        check_choice(name, value, choices)
    assert name in str(error.value) and str(choices) in str(error.value) and repr(value) in str(error.value)
    for choice in choices:
        check_choice(name, choice, choices)


def test_unknown_choices_are_refused_by_the_components_too():
    with pytest.raises(ValueError, match="loss must be one of .*'z'"):
        ISTNLoss("z")
    with pytest.raises(ValueError, match="transformation must be one of .*'elastic'"):
        spatial_transformation("elastic", (8, 8))
    with pytest.raises(ValueError, match="initial_alignment must be one of .*'middle'"):
        InitialAlignmentd("middle")


def test_output_dir_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_output_dir("a/b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
    check_output_dir("a/b")


@pytest.mark.parametrize("below", ["", "/results", "/results/deep"])
def test_output_dir_that_cannot_be_written(tmp_path, below):
    """A path below a regular file: tests may run as root, whom no permission stops."""
    file = tmp_path / "file.txt"
    file.write_bytes(b"precious")
    with pytest.raises(OSError, match=rf"output_dir is not writable: {re.escape(str(file) + below)}.*choose another"):
        check_output_dir(f"{file}{below}")
    assert file.read_bytes() == b"precious"


def test_datalist_from_disk_to_error(tmp_path):
    """Both modules together: what a user of a datalist with a typo reads."""
    good = pair_of(*write_subjects(tmp_path, 2, SHAPE))
    file = write_json(tmp_path / "pairs.json", {"training": [good, good | {"fixed_label": "labels/case_99.nii.gz"}]})
    with pytest.raises(FileNotFoundError, match=r"training\[1\] fixed.*labels/case_99.nii.gz"):
        check_datalist(read_datalist(file, ["training"]), 3, LABELS)


def test_images_in_different_units_are_an_error():
    images = {"moving_image": MetaTensor(torch.rand(1, 9, 9)), "fixed_image": MetaTensor(torch.rand(1, 9, 9))}
    images["moving_image"].affine = torch.diag(torch.tensor([1e-3, 1e-3, 1.0]))
    with pytest.raises(ValueError, match=r"moving_image is 0\.009 mm large, fixed_image 9 mm: .*units"):
        CheckPaird(spatial_dims=2)(images)


@pytest.mark.parametrize("scale", [1.0, 0.005])
def test_a_label_beside_its_image_is_told_by_voxels_at_the_corners(scale):
    """Headers of different programs round; what they round away does not depend on the size of a voxel."""
    size, affine = (40, 50, 30), np.diag([scale, scale, 2 * scale, 1.0])
    image = meta(rand(1, *size), affine)

    def label(**changes):
        other = affine.copy()
        for place, value in changes.values():
            other[place] += value
        return meta(ball(size, (20, 25, 15), 8)[None], other)

    check_label(label(shift=((0, 3), 0.05 * scale)), "fixed_label", image, [[1]])
    for wrong in ({"spacing": ((1, 1), 0.0099 * scale)}, {"shift": ((0, 3), scale)}, {"turn": ((0, 1), 0.01 * scale)}):
        with pytest.raises(ValueError, match="fixed_label lies up to .* voxels beside its image"):
            check_label(label(**wrong), "fixed_label", image, [[1]])
