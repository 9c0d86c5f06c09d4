"""``apply``: numbers and surfaces as in SimpleITK, curves, and wrong options. See also test_moved_points.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from oracles import rng

from istn_monai.apply import apply_transform
from istn_monai.geometry.resampling import warp_intensities

ROTATED = sitk.Euler3DTransform((8, 7, 6), 0.2, -0.3, 0.4, (1.3, 0.7, -1.1))
SIZE = (12, 14, 16)


@pytest.fixture
def apply(tmp_path):
    """Applies a transform of SimpleITK's to an image of numbers, on the image's own grid; gives numbers."""

    def applied(transform, values, **options):
        image, file = tmp_path / "m.nrrd", tmp_path / "t.h5"
        sitk.WriteImage(sitk.GetImageFromArray(values), str(image))
        sitk.WriteTransform(transform, str(file))
        options = {"reference": str(image), "overwrite": True} | options
        return sitk.GetArrayFromImage(
            sitk.ReadImage(str(apply_transform(str(file), str(image), str(tmp_path / "o.nii.gz"), **options)))
        )

    return applied


def by_itk(transform, values, interpolation, outside):
    image = sitk.GetImageFromArray(values)
    return sitk.GetArrayFromImage(sitk.Resample(image, image, transform, interpolation, outside))


@pytest.mark.parametrize("top", [1e7, 1e-3])
def test_real_numbers_of_64_bits_are_interpolated_in_64_bits(apply, top):
    values = top + top * 1e-7 * rng(0).uniform(size=SIZE)
    found = apply(ROTATED, values, interpolation="linear")
    expected = by_itk(ROTATED, values, sitk.sitkLinear, values.min())
    assert found.dtype == np.float64 and (expected != values.min()).mean() > 0.3
    assert np.abs(found - expected).max() < 1e-14 * top


@pytest.mark.parametrize("top", [2**31 - 1, 10**6])
def test_whole_numbers_of_32_bits_are_interpolated_and_then_rounded(apply, top):
    values = (rng(0).uniform(size=SIZE) * top).astype(np.int32)
    found = apply(ROTATED, values, interpolation="linear")
    expected = by_itk(ROTATED, values.astype(float), sitk.sitkLinear, float(values.min()))
    assert found.dtype == np.int32
    assert np.abs(found - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("interpolation", ["nearest", "label", "auto"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_outside_of_a_label_map_without_background_is_background(apply, interpolation, dtype):
    values = np.full(SIZE, 3, dtype)
    values[:, 7:] = 5
    moved = sitk.TranslationTransform(3, (6, 0, 0))
    found = apply(moved, values, interpolation=interpolation)
    assert np.array_equal(found, by_itk(moved, values, sitk.sitkNearestNeighbor, 0))
    assert (found == 0).sum() == 12 * 14 * 6


def test_outside_of_intensities_is_the_darkest_also_of_the_nearest(apply):
    values = rng(0).uniform(-1000, 1000, SIZE).astype(np.float32)
    moved = sitk.TranslationTransform(3, (6, 0, 0))
    found = apply(moved, values, interpolation="nearest")
    assert np.array_equal(found, by_itk(moved, values, sitk.sitkNearestNeighbor, float(values.min())))


def test_a_transform_that_leads_past_the_image_is_said(apply):
    values = rng(0).uniform(1, 2, SIZE).astype(np.float32)
    with pytest.warns(UserWarning, match="takes no voxel of the grid into the image, the result is empty"):
        found = apply(sitk.TranslationTransform(3, (1e5, 0, 0)), values)
    assert (found == values.min()).all()


@pytest.fixture
def markup(tmp_path):
    """Writes a markup of Slicer's of three points, and a translation."""
    sitk.WriteTransform(sitk.TranslationTransform(3, (6, 0, 0)), str(tmp_path / "t.h5"))

    def written(shape):
        points = [{"label": name, "position": [place, 2, 3]} for place, name in enumerate("abc")]
        content = {"type": shape, "coordinateSystem": "LPS", "controlPoints": points}
        (tmp_path / "m.mrk.json").write_text(json.dumps({"markups": [content]}))
        return str(tmp_path / "m.mrk.json")

    return written


@pytest.mark.parametrize("shape", ["Curve", "ClosedCurve", "Line", "Angle", "Fiducial"])
def test_curves_lines_and_angles_of_slicer_stay_what_they_are(tmp_path, markup, shape):
    file = apply_transform(str(tmp_path / "t.h5"), markup(shape), str(tmp_path / "o.mrk.json"))
    (found,) = json.loads(file.read_text())["markups"]
    assert found["type"] == shape
    assert [point["position"] for point in found["controlPoints"]] == [[place - 6, 2, 3] for place in range(3)]


def test_landmarks_take_an_inverse_by_ants_notation_without_any_image(tmp_path, markup):
    name, places = f"[{tmp_path / 't.h5'},1]", []
    for number, options in enumerate(({}, {"inverse": True})):
        file = apply_transform(name, markup("Line"), str(tmp_path / f"{number}.mrk.json"), **options)
        places.append([point["position"][0] for point in json.loads(file.read_text())["markups"][0]["controlPoints"]])
    assert places == [[6, 7, 8], [-6, -5, -4]]
    with pytest.raises(ValueError, match="two images, which landmarks do not name: write it as a transform"):
        apply_transform(f"fsl:{tmp_path / 't.h5'}", markup("Line"), str(tmp_path / "f.mrk.json"))


def test_outside_of_each_channel_is_its_own_darkest_value():
    image = torch.stack([torch.linspace(-1000, 500, 64).view(8, 8), torch.linspace(0, 1, 64).view(8, 8)])
    outside = warp_intensities(image, torch.full((1, 2, 1, 1), 20.0))
    assert outside.flatten().tolist() == [-1000, 0]


def test_a_curve_is_not_written_to_a_file_of_landmarks_alone(tmp_path, markup):
    for suffix in (".csv", ".fcsv"):
        with pytest.raises(ValueError, match=rf"m\.mrk\.json is a Curve of Slicer's, which o{suffix} cannot hold: wri"):
            apply_transform(str(tmp_path / "t.h5"), markup("Curve"), str(tmp_path / f"o{suffix}"))
    assert apply_transform(str(tmp_path / "t.h5"), markup("PointList"), str(tmp_path / "o.csv")).is_file()


def test_words_for_false_are_false_also_in_python(tmp_path, markup):
    file = markup("Fiducial")
    for word, place in ((False, -6), ("false", -6), ("no", -6), (True, 6), ("true", 6)):
        out = apply_transform(str(tmp_path / "t.h5"), file, str(tmp_path / "o.csv"), inverse=word, overwrite=True)
        assert float(out.read_text().splitlines()[1].split(",")[1]) == place
    with pytest.raises(ValueError, match="inverse must be True or False, got 'maybe'"):
        apply_transform(str(tmp_path / "t.h5"), file, str(tmp_path / "o.csv"), inverse="maybe", overwrite=True)


@pytest.mark.parametrize(
    ("option", "error", "words"),
    [
        ({"reference": "/nowhere.nii.gz"}, FileNotFoundError, "reference: no such file: /nowhere.nii.gz"),
        ({"interpolation": "nonsense"}, ValueError, "interpolation must be one of .*'nonsense'"),
        ({"frame": "lps"}, ValueError, "frame must be one of RAS, LPS, got 'lps'"),
    ],
)
def test_options_that_are_wrong_are_errors_also_with_landmarks(tmp_path, markup, option, error, words):
    with pytest.raises(error, match=words):
        apply_transform(str(tmp_path / "t.h5"), markup("Fiducial"), str(tmp_path / "o.csv"), **option)
    assert not (tmp_path / "o.csv").exists()


def test_a_frame_with_an_image_is_an_error(apply):
    with pytest.raises(ValueError, match=r"frame is of landmarks, and input is an image \(.*m\.nrrd\): leave it out"):
        apply(ROTATED, np.zeros(SIZE, np.uint8), frame="RAS")


@pytest.mark.parametrize("kind", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat32])
def test_an_image_in_the_place_of_the_transform_is_said(tmp_path, apply, kind):
    apply(ROTATED, np.zeros(SIZE, np.uint8))  # writes o.nii.gz, an image, and t.h5
    sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(tmp_path / "o.nii.gz")), kind), str(tmp_path / "i.nii.gz"))
    names = {name: str(tmp_path / name) for name in ("i.nii.gz", "t.h5", "out.nii.gz")}
    with pytest.raises(ValueError, match=r"input: .*t\.h5 is a transform: give the transform first, then the input"):
        apply_transform(names["i.nii.gz"], names["t.h5"], names["out.nii.gz"], reference=names["i.nii.gz"])
    with pytest.raises(ValueError, match=r"i\.nii\.gz is an image of 3 axes with 1 value\(s\).*, and no displacement"):
        apply_transform(names["i.nii.gz"], names["i.nii.gz"], names["out.nii.gz"], reference=names["i.nii.gz"])
    assert not (tmp_path / "out.nii.gz").exists()
