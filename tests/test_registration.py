"""Registration of files: what is written opens in SimpleITK and means there what it means here."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import BUNDLE, pair_files, random_checkpoint, write_json, write_nifti
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged
from oracles import smooth_image

from istn_monai.apply import apply_transform
from istn_monai.io.images import read_image
from istn_monai.io.landmarks import Points, read_points, write_points
from istn_monai.options import ALWAYS, OF_COMMAND, REQUESTED
from istn_monai.options import SETTINGS as OPTIONS
from istn_monai.registration import (
    RESULTS,
    RegisterISTNd,
    Registration,
    register_datalist,
    register_files,
    represent_file,
)
from istn_monai.runs import evaluate_datalist
from istn_monai.workflow.errors import foreseen_cause
from istn_monai.workflow.result_folders import OUTPUTS

#: by dimension and transformation: a grid of 1.5 mm around images of 1 to 2 mm
SETTINGS = {
    (dims, name): {
        "spatial_size": [32, 24, 28][:dims], "spacing": 1.5, "control_spacing": [16, 8], "transformation": name,
        "soi_labels": [[1]], "device": "cpu",
    }
    for dims in (2, 3)
    for name in ("affine", "bspline")
}  # fmt: skip


def images_of(files):
    return {key: files[key] for key in ("moving_image", "fixed_image", "moving_label")}


@pytest.fixture(scope="module", params=SETTINGS, ids=lambda p: f"{p[1]}-{p[0]}d")
def registered(request, tmp_path_factory):
    """Files, results and settings of a refined registration."""
    folder = tmp_path_factory.mktemp("registered")
    files = pair_files(folder, request.param[0])
    settings = random_checkpoint(folder / "models", SETTINGS[request.param])
    registration = Registration(refine_steps=3, **settings)
    register_files(registration, folder / "out", inverse=True, **images_of(files))
    return files, folder / "out", settings


def by_simpleitk(image, reference, transform, interpolator=sitk.sitkLinear):
    """SimpleITK's resampling of files, as float64; outside lies the darkest value, as ours has it."""
    moving = sitk.ReadImage(str(image), sitk.sitkFloat64)
    darkest = float(sitk.GetArrayViewFromImage(moving).min())
    resampled = sitk.Resample(moving, sitk.ReadImage(str(reference)), transform, interpolator, darkest)
    return sitk.GetArrayFromImage(resampled)


def array(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(float)


def test_simpleitk_reproduces_the_warped_image_from_either_transform(registered):
    files, out, _ = registered
    warped = array(out / "warped.nii.gz")
    assert {file.name for file in out.iterdir()} == set(OUTPUTS) - {"moved_points.csv", "jacobian.nii.gz"}
    before = by_simpleitk(files["moving_image"], files["fixed_image"], sitk.Transform(warped.ndim, sitk.sitkIdentity))
    transform = sitk.ReadTransform(str(out / "transform.h5"))
    found = by_simpleitk(files["moving_image"], files["fixed_image"], transform)
    spread = np.ptp(warped)
    assert np.abs(before - warped).max() > 0.2 * spread
    # rounding puts a voxel at the very rim of the moving image on one side here, on the other there
    assert nib.load(out / "warped.nii.gz").get_data_dtype() == np.int16  # the file's own: whole numbers are rounded
    assert (np.abs(found - warped) > 0.501).mean() < 0.002
    field = sitk.Cast(sitk.ReadImage(str(out / "displacement.nii.gz")), sitk.sitkVectorFloat64)
    found = by_simpleitk(files["moving_image"], files["fixed_image"], sitk.DisplacementFieldTransform(field))
    assert (np.abs(found - warped) > 0.51).mean() < 0.01


def test_report_says_what_was_done(registered):
    _, out, _ = registered
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert set(report["transforms"]) == {"transform.h5", "displacement.nii.gz", "inverse_transform.h5"}
    assert report["transforms"]["inverse_transform.h5"]["residual_mm"]["max"] < 0.3
    assert report["refinement"]["objective_end"] <= report["refinement"]["objective_start"]
    assert {"steps", "seconds", "at_bound"} <= set(report["refinement"])


def test_apply_makes_the_same_image_and_label(registered, tmp_path):
    files, out, _ = registered
    for source, kind, name in (("moving_image", "linear", "warped"), ("moving_label", "label", "warped_label")):
        file = apply_transform(
            str(out / "transform.h5"), files[source], str(tmp_path / f"{name}.nii.gz"), files["fixed_image"],
            interpolation=kind,
        )  # fmt: skip
        assert np.abs(array(file) - array(out / f"{name}.nii.gz")).max() < 1e-3
        assert nib.load(file).get_data_dtype() == nib.load(files[source]).get_data_dtype()


def test_inverse_brings_the_fixed_image_to_the_moving_grid(registered, tmp_path):
    """By inversion of the forward file, and by SimpleITK with the inverse file."""
    files, out, _ = registered
    file = apply_transform(
        str(out / "transform.h5"),
        files["fixed_image"],
        str(tmp_path / "back.nii.gz"),
        files["moving_image"],
        inverse=True,
    )
    inverse = sitk.ReadTransform(str(out / "inverse_transform.h5"))
    expected = by_simpleitk(files["fixed_image"], files["moving_image"], inverse)
    difference = np.abs(array(file) - expected) / np.ptp(expected)
    assert np.median(difference) < 5e-3 and (difference > 0.02).mean() < 0.02


def test_points_and_a_blob_at_one_place_land_together(registered, tmp_path):
    """Images pull back, points push forward: a wrong direction or sign parts the two by millimeters."""
    files, out, _ = registered
    moving = nib.load(files["moving_image"])
    dims = moving.ndim
    flip = np.array([-1.0, -1.0, 1.0])[:dims]
    itk_transform, itk_fixed = sitk.ReadTransform(str(out / "transform.h5")), sitk.ReadImage(files["fixed_image"])
    center = itk_fixed.TransformContinuousIndexToPhysicalPoint([s / 2 for s in itk_fixed.GetSize()])
    # the blob is seen in the middle of the fixed image
    position = np.array(itk_transform.TransformPoint(center)) * flip
    middle = (np.linalg.inv(moving.affine) @ [*position, *[0.0] * (3 - dims), 1.0])[:dims]
    grid = np.meshgrid(*map(np.arange, moving.shape), indexing="ij")
    blob = np.exp(-sum((g - m) ** 2 for g, m in zip(grid, middle, strict=True)) / 8)
    write_nifti(tmp_path / "blob.nii.gz", blob, moving.affine)
    write_points(Points(torch.as_tensor(position)[None], ("blob",)), tmp_path / "moving.csv", "LPS")
    transform = str(out / "transform.h5")
    apply_transform(transform, str(tmp_path / "moving.csv"), str(tmp_path / "fixed.csv"))
    found = read_points(tmp_path / "fixed.csv").positions[0].numpy()
    assert np.abs(found * flip - center).max() < 0.05  # mm
    blob_file, warped_file = str(tmp_path / "blob.nii.gz"), str(tmp_path / "warped.nii.gz")
    file = apply_transform(transform, blob_file, warped_file, files["fixed_image"])
    warped = sitk.ReadImage(str(file), sitk.sitkFloat64)
    values = sitk.GetArrayFromImage(warped)
    index = np.array(warped.TransformPhysicalPointToContinuousIndex((found * flip).tolist()))
    peak = np.array(np.unravel_index(values.argmax(), values.shape)[::-1])
    assert np.abs(index - peak).max() < 1.6  # a sheared blob between voxels: its exact place is above


def test_a_datalist_goes_on_after_a_failed_pair(registered, tmp_path):
    files, _, settings = registered
    good = images_of(files)
    broken = good | {"moving_image": str(tmp_path / "absent.nii.gz")}
    datalist = write_json(tmp_path / "pairs.json", {"testing": [broken, good]})
    failures = register_datalist(Registration(refine_steps=0, **settings), datalist, "testing", tmp_path / "all")
    assert len(failures) == 1 and failures[0].startswith("pair_0000: moving_image: no such file")
    assert (tmp_path / "all" / "pair_0001" / "transform.h5").exists()


def test_representation_of_one_image(registered, tmp_path):
    files, out, settings = registered
    file = represent_file(Registration(refine_steps=0, **settings), files["fixed_image"], tmp_path / "m.nii.gz")
    # moving_image and fixed_image are one: its own grid is the fixed one's
    assert np.abs(nib.load(file).get_fdata() - nib.load(out / "fixed_representation.nii.gz").get_fdata()).max() < 1e-4
    with pytest.raises(FileExistsError, match="left alone"):
        represent_file(Registration(refine_steps=0, **settings), files["fixed_image"], file)


def test_errors_name_argument_and_file(registered, tmp_path):
    files, out, _ = registered
    transform, image = str(out / "transform.h5"), files["moving_image"]
    with pytest.raises(ValueError, match="reference is not set"):
        apply_transform(transform, image, str(tmp_path / "a.nii.gz"))
    with pytest.raises(ValueError, match="interpolation must be one of"):
        apply_transform(transform, image, str(tmp_path / "a.nii.gz"), image, interpolation="cubic")
    with pytest.raises(FileNotFoundError, match="input: no such file"):
        apply_transform(transform, str(tmp_path / "absent.nii.gz"), str(tmp_path / "a.nii.gz"), image)
    with pytest.raises(FileExistsError, match="left alone"):
        apply_transform(transform, image, image, image)
    (tmp_path / "p.csv").write_text("x,y,z\n1,2,3\n", encoding="utf-8")
    with pytest.raises(ValueError, match="does not say its frame"):
        apply_transform(transform, str(tmp_path / "p.csv"), str(tmp_path / "q.csv"))
    with pytest.raises(FileNotFoundError, match="no bundle"):
        Registration(bundle_root=tmp_path)


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii"])
def test_other_formats_mean_the_same(registered, tmp_path, suffix):
    """The moving files in another format, the fixed one as NIfTI."""
    files, out, settings = registered
    if suffix != ".nii" and array(files["moving_image"]).ndim == 2:
        pytest.skip("ITK's formats have no third dimension for the plane of a 2-D image")
    other = images_of(files)
    for key in ("moving_image", "moving_label"):
        other[key] = str(tmp_path / f"{key}{suffix}")
        sitk.WriteImage(sitk.ReadImage(files[key]), other[key])
    register_files(Registration(refine_steps=3, **settings), tmp_path / "out", **other)
    for name in ("warped", "warped_label"):
        difference = np.abs(array(tmp_path / "out" / f"{name}.nii.gz") - array(out / f"{name}.nii.gz"))
        assert (difference > 1).mean() < 0.002  # rounding, where a header keeps fewer digits


def test_png_files_mean_what_they_mean_to_itk(tmp_path):
    """They have no frame; a transform from MONAI's would be mirrored in every other tool."""
    settings = random_checkpoint(tmp_path / "models", SETTINGS[2, "bspline"])
    files = {}
    for seed, side in enumerate(("moving", "fixed")):
        values = (200 * smooth_image(((40, 33), (37, 44))[seed], seed)).astype(np.uint8)
        files[f"{side}_image"] = str(tmp_path / f"{side}.png")
        sitk.WriteImage(sitk.GetImageFromArray(values), files[f"{side}_image"])
    register_files(Registration(refine_steps=2, **settings), tmp_path / "out", **files)
    warped = array(tmp_path / "out" / "warped.nii.gz")
    transform = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    found = by_simpleitk(files["moving_image"], files["fixed_image"], transform)
    untouched = by_simpleitk(files["moving_image"], files["fixed_image"], sitk.Transform(2, sitk.sitkIdentity))
    assert np.abs(untouched - warped).max() > 40
    assert (np.abs(found - warped) > 0.501).mean() < 0.005
    image = sitk.ReadImage(str(tmp_path / "out" / "warped.nii.gz"))
    assert image.GetDirection() == (1, 0, 0, 1) and image.GetOrigin() == (0, 0)  # as ITK reads the PNG
    file = apply_transform(
        str(tmp_path / "out" / "transform.h5"), files["moving_image"], str(tmp_path / "a.nii.gz"), files["fixed_image"]
    )
    assert np.array_equal(array(file), warped)


def test_images_from_memory_are_registered_like_their_files(registered, tmp_path):
    """As hosts hand them over; the report then names no file."""
    files, out, settings = registered
    read = {key: read_image(file, dtype=None) for key, file in images_of(files).items()}
    images = {key: MetaTensor(image.as_tensor(), affine=image.affine) for key, image in read.items()}
    registration = Registration(refine_steps=3, **settings)
    registration.save(registration(images), tmp_path)
    for name in ("warped", "warped_label"):
        assert np.array_equal(array(tmp_path / f"{name}.nii.gz"), array(out / f"{name}.nii.gz"))
        mine, its = (nib.load(folder / f"{name}.nii.gz") for folder in (tmp_path, out))
        assert np.abs(mine.affine - its.affine).max() < 1e-6 and mine.get_data_dtype() == its.get_data_dtype()
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["inputs"]["fixed_image"]["file"] is None and "sha256" in report["inputs"]["fixed_image"]


def test_a_pair_is_refined_under_inference_mode_too(registered):
    files, _, settings = registered
    expected = Registration(refine_steps=2, **settings)(images_of(files))["theta"]
    with torch.inference_mode():
        read = {key: read_image(file, dtype=None) for key, file in images_of(files).items()}
        images = {key: MetaTensor(image.as_tensor(), affine=image.affine) for key, image in read.items()}
        found = Registration(refine_steps=2, **settings)(images)["theta"]
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_an_image_that_is_neither_file_nor_metatensor_is_refused(registered):
    files, _, settings = registered
    with pytest.raises(RuntimeError) as caught:  # MONAI's, around ours
        Registration(refine_steps=0, **settings)(images_of(files) | {"fixed_image": np.zeros((1, 8, 8, 8))})
    assert str(foreseen_cause(caught.value)).startswith("fixed_image must be a path or a channel-first MetaTensor")


def test_a_pair_is_registered_inside_a_compose(registered):
    """Under keys of the pipeline's own, from paths or from what MONAI's loader gives; the rest of the data stays."""
    files, out, settings = registered
    keys = {"atlas": "moving_image", "patient": "fixed_image", "atlas_label": "moving_label"}
    register = RegisterISTNd("atlas", "patient", "atlas_label", refine_steps=3, **settings)
    load = LoadImaged(list(keys), dtype=None, image_only=True, ensure_channel_first=True)
    for pipeline in (register, Compose([load, register])):
        result = pipeline({key: files[name] for key, name in keys.items()} | {"age": 70})
        assert result["age"] == 70 and set(RESULTS) <= set(result)
        for name in ("warped", "warped_label"):
            assert np.array_equal(result[name].as_tensor()[0].numpy(), nib.load(out / f"{name}.nii.gz").get_fdata())
    with pytest.raises(KeyError, match="no 'patient', only"):
        register({"atlas": files["moving_image"]})


def test_weights_know_their_settings_and_an_overlay_may_say_them_again(tmp_path):
    settings = random_checkpoint(tmp_path, SETTINGS[2, "affine"])
    file = write_json(tmp_path / "mine.json", settings | {"max_epochs": 3, "augment": True})
    for given in ({"model": tmp_path}, {"ckpt_dir": str(tmp_path)}, {"model": tmp_path, "config": file}):
        registration = Registration(refine_steps=0, device="cpu", **given)
        assert registration.settings.spatial_size == [32, 24] and registration.settings.transformation == "affine"
        assert registration.network.istn.transformation.spatial_size == (32, 24)
    with pytest.raises(Exception) as error:
        Registration(tmp_path, 0, spacing=7)
    assert "spacing" in str(foreseen_cause(error.value)) and "in training, 7 now" in str(foreseen_cause(error.value))
    with pytest.raises(FileNotFoundError, match="config: no such file: .*theirs.json"):
        Registration(None, 0, config=tmp_path / "theirs.json")


REFUSED = {
    "augment": True, "batch_size": 2, "cache_dir": "x", "max_epochs": 3, "num_workers": 1, "learning_rate": 0.1,
    "training_dtype": "bfloat16", "val_interval": 2, "similarity": {"_target_": "MSELoss"}, "points_map": "distance",
    "regularization": {"_target_": "BendingEnergyLoss"}, "regularization_weight": 2, "points_width": 3, "seed": 3,
    "evaluated_labels": [[1]], "evaluated_split": "testing", "fixed_label": "f", "moving_mask": "m", "fixed_mask": "m",
    "moving_points": "p", "fixed_points": "p", "loss_weights": "smooth", "contrast": "random",
    "moving_maps": "m", "fixed_maps": "m", "learn2reg": True,
    "itn_epochs": 1, "ema_decay": 0.9, "val_refine_steps": 5, "initial_weights": "x.pt",
}  # fmt: skip


def test_a_setting_either_changes_the_registration_or_is_refused(tmp_path):
    files, settings = pair_files(tmp_path, 2), random_checkpoint(tmp_path / "models", SETTINGS[2, "bspline"])
    for side, x in (("moving", 38.0), ("fixed", -2.0)):
        files[f"{side}_points"] = str(write_points(Points(torch.tensor([[x, 54.0]]), ("a",)), tmp_path / f"{side}.csv"))
    changes = {
        "refine_steps": 2, "refine_learning_rate": 0.01, "refine_weights": "structures", "spatial_size": [40, 32],
        "initial_alignment": "moments", "transformation": "svf", "use_labels": True, "use_points": True,
        "refine_levels": [[4, 3], [1, 2]],
    }  # fmt: skip
    alone = {"refine_levels": {"refine_steps": None}}  # which say how many steps there are
    given = ({}, *({name: value} | alone.get(name, {}) for name, value in changes.items()))
    found = [Registration(**{"refine_steps": 3} | settings | one)(files)["warped"].as_tensor() for one in given]
    same = [name for name, warped in zip(changes, found[1:], strict=True) if torch.equal(warped, found[0])]
    assert not same
    assert set(REFUSED) | OF_COMMAND["register"] | ALWAYS | REQUESTED == set(OPTIONS)
    for name, value in REFUSED.items():
        with pytest.raises(ValueError, match=f"register does not read the setting '{name}'"):
            Registration(**{name: value})
    for name in ("refine_weights", "refine_levels", "refine_learning_rate"):
        with pytest.raises(ValueError, match=f"{name} counts in a refinement alone"):
            Registration(refine_steps=0, **{name: changes[name]})
        with pytest.raises(ValueError, match=f"{name} counts in a refinement alone"):
            evaluate_datalist(BUNDLE, "pairs.json", tmp_path, "model.pt", refine_steps=0, **{name: changes[name]})
