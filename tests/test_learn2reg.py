"""Tests of Learn2Reg's files and metrics: datalists, landmarks in voxels, displacements, numbers by hand and SciPy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import ball, perturb, small_istn, write_json, write_nifti
from monai.inferers import SimpleInferer
from monai.transforms import Compose, CopyItemsd
from oracles import oblique_affine
from scipy import ndimage

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.components import WorldAffine
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.datalist import read_datalist
from istn_monai.io.itk_transforms import write_transform
from istn_monai.io.landmarks import matched, read_points
from istn_monai.io.learn2reg import as_datalist, displacement_name, is_learn2reg, label_values
from istn_monai.learn2reg_metrics import (
    aggregated,
    each_label,
    percentile,
    robust_hausdorff,
    sdlogj,
    target_errors,
    warped_labels,
)
from istn_monai.networks import DisplacementNetwork
from istn_monai.planning.dataset import data_set
from istn_monai.transforms.preprocessing import ConcatPaird, InitialAlignmentd, LoadPaird
from istn_monai.transforms.registration_grid import RegistrationGridd
from istn_monai.workflow.datasets import read_pairs
from istn_monai.workflow.evaluation import Evaluation
from istn_monai.workflow.learn2reg import Submission, evaluated_labels, export, measure, read_displacement, submission
from istn_monai.workflow.pair_files import pairs_of

SIZE, SPACING = (14, 11, 17), (1.0, 2.0, 0.8)
AFFINE = oblique_affine(SIZE, SPACING, seed=3)
IMAGE = "./images{}/Set_{:04d}_{}.nii.gz"


def name_of(case: int, modality: str = "0000", folder: str = "Tr") -> str:
    return IMAGE.format(folder, case, modality)


def pair(fixed: str, moving: str) -> dict[str, str]:
    return {"fixed": fixed, "moving": moving}


def dataset(folder: Path, **others) -> Path:
    """The JSON of a set of seven cases, two of which are a pair for validation."""
    content = {
        "name": "Set", "modality": {"0": "MR"}, "tensorImageShape": {"0": list(SIZE)}, "numTraining": 7,
        "labels": {"0": {"0": "background", "1": "one", "2": "two"}},
        "training": [{"image": name_of(n), "label": name_of(n).replace("images", "labels")} for n in range(1, 8)],
        "registration_val": [pair(name_of(1), name_of(2))],
        "registration_test": [pair(name_of(11, folder="Ts"), name_of(12, folder="Ts"))],
    }  # fmt: skip
    return write_json(folder / "Set_dataset.json", content | others)


def labels_at(center) -> np.ndarray:
    return ball(SIZE, center, 3) + 2 * ball(SIZE, [center[0], center[1], center[2] + 7], 2)


def write_case(folder: Path, name: str, center, size=SIZE, affine=AFFINE) -> None:
    """Image, label map and mask of a case."""
    rng = np.random.default_rng(len(name))
    labels = labels_at(center)[: size[0], : size[1], : size[2]]
    image = ndimage.gaussian_filter(labels.astype(np.float32) + 0.1 * rng.random(labels.shape), 1)
    write_nifti(folder / name, image.astype(np.float32), affine)
    write_nifti(folder / name.replace("images", "labels"), labels.astype(np.uint8), affine)
    mask = ndimage.binary_dilation(labels > 0, iterations=3).astype(np.uint8)
    write_nifti(folder / name.replace("images", "masks"), mask, affine)


def write_landmarks(folder: Path, room: str, name: str, points: np.ndarray) -> Path:
    file = folder / room / Path(name).name.replace(".nii.gz", ".csv")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(file, points, delimiter=",", fmt="%.3f")
    return file


def whole_set(folder: Path, **others) -> Path:
    """A set whose pair for validation is there, with all that belongs to it."""
    for number, center in ((1, (6, 5, 4)), (2, (7, 6, 6))):
        write_case(folder, name_of(number), center)
        points = np.random.default_rng(number).uniform(1, np.array(SIZE) - 2, (5, 3))
        write_landmarks(folder, "keypointsTr", name_of(number), points)
    return dataset(folder, **others)


def smooth_field(seed: int = 0, scale: float = 4.0) -> np.ndarray:
    """``(*SIZE, 3)`` in voxels."""
    noise = np.random.default_rng(seed).normal(size=(*SIZE, 3)) * scale
    return np.stack([ndimage.gaussian_filter(noise[..., axis], 1.5) for axis in range(3)], axis=-1) * 3


# --- datalists -------------------------------------------------------------------------------------------------------


def test_pairs_for_validation_are_those_that_are_evaluated_and_none_of_their_images_is_trained_on(tmp_path):
    items = read_datalist(dataset(tmp_path))
    (judged,) = items["testing"]
    assert items["validation"] == items["testing"]
    assert judged["fixed_image"] == str(tmp_path / "imagesTr" / "Set_0001_0000.nii.gz")
    assert judged["moving_label"] == str(tmp_path / "labelsTr" / "Set_0002_0000.nii.gz")
    trained = {Path(item[key]).name for item in items["training"] for key in ("moving_image", "fixed_image")}
    assert trained == {Path(name_of(n)).name for n in range(3, 8)}
    assert len(items["training"]) == 20  # ordered pairs of five
    assert read_datalist(dataset(tmp_path)) == items


def test_pairs_of_a_set_are_trained_on_where_it_lists_some_but_for_those_of_validation(tmp_path):
    listed = [pair(name_of(n), name_of(n, "0001")) for n in (1, 3, 4)]
    items = read_datalist(dataset(tmp_path, training_paired_images=listed, registration_val=listed[:1]))
    assert [Path(item["moving_image"]).name for item in items["training"]] == [
        Path(name_of(n, "0001")).name for n in (3, 4)
    ]


def test_images_that_are_not_paired_are_trained_on_in_the_modalities_of_validation(tmp_path):
    images = [{"image": name_of(n, modality)} for n in range(1, 5) for modality in ("0000", "0001")]
    file = dataset(tmp_path, training=images, registration_val=[pair(name_of(1), name_of(1, "0001"))])
    training = read_datalist(file, ["training"])["training"]
    assert len(training) == 9
    assert all(item["fixed_image"].endswith("_0000.nii.gz") for item in training)
    assert all(item["moving_image"].endswith("_0001.nii.gz") for item in training)


def test_lists_of_a_set_are_splits_of_their_own(tmp_path):
    (item,) = pairs_of(dataset(tmp_path), "registration_test")
    assert item == {f"{side}_image": str(tmp_path / "imagesTs" / f"Set_{n}_0000.nii.gz")
                    for side, n in (("moving", "0012"), ("fixed", "0011"))}  # fmt: skip


def test_labels_masks_and_landmarks_are_found_by_their_names_where_the_json_does_not_list_them(tmp_path):
    file = whole_set(tmp_path, training=[])
    (item,) = read_datalist(file, ["testing"])["testing"]
    rooms = {"label": "labelsTr", "mask": "masksTr", "points": "keypointsTr"}
    for side, number in (("moving", 2), ("fixed", 1)):
        for kind, room in rooms.items():
            suffix = ".csv" if kind == "points" else ".nii.gz"
            assert item[f"{side}_{kind}"] == str(tmp_path / room / f"Set_{number:04d}_0000{suffix}")


def test_landmarks_set_by_hand_come_before_keypoints_and_each_pair_of_modalities_has_its_own(tmp_path):
    write_case(tmp_path, name_of(1, "0001"), (6, 5, 4))
    write_case(tmp_path, name_of(1, "0002"), (6, 5, 4))
    for room in ("keypointsTr", "keypoints02Tr", "landmarks00010002Tr"):
        for modality in ("0001", "0002"):
            write_landmarks(tmp_path, room, name_of(1, modality), np.ones((2, 3)))
    content = {"registration_val": [pair(name_of(1, "0002"), name_of(1, "0001"))]}
    (item,) = as_datalist(content, tmp_path)["testing"]
    assert {Path(item[f"{side}_points"]).parent.name for side in ("moving", "fixed")} == {"landmarks00010002Tr"}
    for modality in ("0001", "0002"):
        (tmp_path / "landmarks00010002Tr" / Path(name_of(1, modality)).name.replace(".nii.gz", ".csv")).unlink()
    (item,) = as_datalist(content, tmp_path)["testing"]
    assert {Path(item[f"{side}_points"]).parent.name for side in ("moving", "fixed")} == {"keypoints02Tr"}


@pytest.mark.parametrize(
    "content",
    [
        {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}]},  # the Medical Segmentation Decathlon
        {"training": [{"moving_image": "a.nii.gz", "fixed_image": "b.nii.gz"}]},
        {"registration_val": []},
        {"registration_val": 20},
        {"registration_val": [{"fixed": 1, "moving": 2}]},
        {},
    ],
)
def test_a_json_of_another_kind_is_not_taken_for_learn2regs(tmp_path, content):
    assert not is_learn2reg(content)
    with pytest.raises(ValueError, match=r"other\.json is no \*_dataset\.json of Learn2Reg.*registration_val"):
        evaluated_labels(write_json(tmp_path / "other.json", content))


def test_a_plan_takes_the_json_as_a_datalist(tmp_path):
    for number in range(1, 8):
        write_case(tmp_path, name_of(number), (6, 5, 4))
    found = data_set(dataset(tmp_path), tmp_path / "drawn.json")
    assert found.kinds == ("label",) and len(found.items["training"]) == 20


def test_a_label_that_the_json_lists_and_that_is_not_there_is_named(tmp_path):
    for number in range(1, 8):
        write_case(tmp_path, name_of(number), (6, 5, 4))
    (tmp_path / "labelsTr" / "Set_0002_0000.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"moving_label: no such file: .*labelsTr.Set_0002_0000\.nii\.gz"):
        data_set(dataset(tmp_path), tmp_path / "drawn.json")


def test_label_values_are_those_of_all_modalities_without_the_background():
    assert label_values({"labels": {"0": {"0": "background", "2": "b"}, "1": {"10": "c"}}}) == [2, 10]
    assert label_values({"labels": {"0": "background", "1": "a", "2": "b"}}) == [1, 2]
    assert label_values({"labels": {"0": {}}}) == label_values({}) == []


# --- landmarks -------------------------------------------------------------------------------------------------------


def test_landmarks_in_voxels_lie_where_their_image_has_these_voxels(tmp_path):
    write_case(tmp_path, name_of(1), (6, 5, 4))
    voxels = np.array([[0, 0, 0], [13, 10, 16], [2.5, 7, 1.25]])
    points = read_points(write_landmarks(tmp_path, "landmarksTr", name_of(1), voxels))
    expected = nib.affines.apply_affine(nib.load(tmp_path / name_of(1)).affine, voxels)
    assert np.abs(points.positions.numpy() - expected).max() < 1e-4
    assert points.labels == ("1", "2", "3")


def test_landmarks_in_voxels_correspond_by_their_rows(tmp_path):
    for number in (1, 2):
        write_case(tmp_path, name_of(number), (6, 5, 4))
        write_landmarks(tmp_path, "keypointsTr", name_of(number), np.full((number + 1, 3), number))
    files = [tmp_path / "keypointsTr" / f"Set_000{n}_0000.csv" for n in (1, 2)]
    assert [own.labels for own in matched(*files)] == [("1", "2")] * 2


def test_landmarks_with_a_header_or_without_an_image_are_those_of_any_csv_file(tmp_path):
    file = write_landmarks(tmp_path, "landmarksTr", name_of(1), np.ones((2, 3)))
    with pytest.raises(ValueError, match="columns"):
        read_points(file)
    write_case(tmp_path, name_of(1), (6, 5, 4))
    file.write_text("x,y,z,frame\n1,2,3,RAS\n", encoding="utf-8")
    assert read_points(file).positions.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("text", ["1,2\n", "1,2,3,4\n", "1,2,\n"])
def test_landmarks_that_are_no_three_numbers_are_named_by_their_row(tmp_path, text):
    write_case(tmp_path, name_of(1), (6, 5, 4))
    file = write_landmarks(tmp_path, "landmarksTr", name_of(1), np.ones((1, 3)))
    file.write_text("1,2,3\n" + text, encoding="utf-8")
    with pytest.raises(ValueError, match="landmark 2"):
        read_points(file)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_labels_are_pulled_from_the_nearest_voxel_along_the_axes_of_the_array():
    moving = np.zeros((5, 6, 7))
    moving[3, 1, 4] = 2
    field = np.zeros((5, 6, 7, 3))
    field[1, 2, 3] = (2, -1, 1)  # to the voxel
    field[2, 2, 2] = (1.4, -1.4, 1.6)  # nearest to it
    field[4, 1, 6] = (0.2, 0, 0)  # beyond the last center
    warped = warped_labels(moving, field)
    assert {tuple(place) for place in np.argwhere(warped)} == {(1, 2, 3), (2, 2, 2), (3, 1, 4)}


def test_a_label_that_either_image_lacks_does_not_count():
    fixed, moving, warped = np.array([1, 1, 2, 0]), np.array([1, 2, 2, 3]), np.array([1, 2, 2, 3])
    found = each_label(lambda one, other: 2 * (one & other).sum() / (one.sum() + other.sum()), fixed, moving, warped,
                       [1, 2, 3, 4])  # fmt: skip
    assert found["detailed"][:2] == pytest.approx([2 / 3, 2 / 3]) and np.isnan(found["detailed"][2:]).all()
    assert found["mean"] == pytest.approx(2 / 3)


def test_surface_distance_of_a_moved_box_is_by_how_much_it_moved():
    one = np.zeros((12, 14, 20), bool)
    one[3:9, 4:10, 3:9] = True
    for steps, axis in ((2, 0), (3, 1), (5, 2)):
        assert robust_hausdorff(one, np.roll(one, steps, axis)) == pytest.approx(steps)
    assert robust_hausdorff(one, one) == 0 and robust_hausdorff(one, np.zeros_like(one)) == np.inf


def test_surface_counts_by_its_area():
    """A spike of one voxel on a large box: less than a twentieth of the surface, so the 95th percentile is 0."""
    one = np.zeros((30, 32, 34), bool)
    one[4:24, 5:25, 6:26] = True
    other = one.copy()
    other[12, 12, 26:33] = True
    assert robust_hausdorff(one, other) == 0
    assert robust_hausdorff(one, other, 100) == pytest.approx(7)


def test_a_percentile_is_that_of_area_not_of_the_number_of_pieces():
    distances, areas = np.array([3.0, 1.0, 2.0]), np.array([8.0, 1.0, 1.0])
    assert [percentile(distances, areas, percent) for percent in (5, 15, 50)] == [1, 2, 3]


def test_sdlogj_is_that_of_the_jacobian_by_scipy():
    field = smooth_field()
    gradients = [[ndimage.correlate1d(field[..., c], [-0.5, 0, 0.5], axis=a) for a in range(3)] for c in range(3)]
    jacobian = np.moveaxis(np.array(gradients), (0, 1), (-2, -1)) + np.eye(3)
    logs = np.log(np.clip(np.linalg.det(jacobian) + 3, 1e-9, 1e9))
    inside = (slice(2, -2),) * 3
    mask = np.random.default_rng(0).integers(0, 2, SIZE)
    assert logs[inside].std() > 0.1
    assert sdlogj(field) == pytest.approx(logs[inside].std(), abs=1e-12)
    assert sdlogj(field, mask) == pytest.approx(logs[inside][mask[inside] == 1].std(), abs=1e-12)


def test_landmarks_err_in_mm_of_the_moving_image():
    field = np.zeros((*SIZE, 3))
    field[...] = (1, -2, 0.5)
    fixed = np.array([[4.0, 5.0, 6.0], [7.0, 6.0, 9.0]])
    moving = fixed + (1, -2, 0.5) + np.array([[3, 0, 0], [0, 2, -1]])
    assert target_errors(field, fixed, moving, (2.0, 3.0, 4.0)) == pytest.approx([6, np.hypot(6, 4)], abs=1e-6)


def test_robustness_is_the_quantile_on_the_bad_side():
    means = {"LogJacDetStd": np.arange(11.0), "DSC": np.arange(11.0) / 10, "TRE_kp": np.arange(11.0)[::-1]}
    cases = [{name: {"mean": values[n], "detailed": []} for name, values in means.items()} for n in range(11)]
    found = aggregated(cases)
    assert (found["LogJacDetStd"]["30"], found["DSC"]["30"], found["TRE_kp"]["30"]) == pytest.approx((7, 0.3, 7))
    assert found["DSC"]["mean"] == pytest.approx(0.5) and found["TRE_kp"]["std"] == pytest.approx(np.sqrt(10))


# --- submissions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "modalities, name",
    [
        (("0000", "0001"), "disp_0003_0007.nii.gz"),
        (("0000", "0000"), "disp_0003_0000_0007_0000.nii.gz"),
        (("0001", "0000"), "disp_0003_0001_0007_0000.nii.gz"),
    ],
)
def test_a_displacement_is_named_as_the_challenge_looks_for_it(modalities, name):
    assert displacement_name(name_of(3, modalities[0]), f"/data/{name_of(7, modalities[1])}") == name


def test_a_name_without_numbers_says_what_is_expected():
    with pytest.raises(ValueError, match=r"patient\.nii\.gz: Learn2Reg names an image by case and modality"):
        displacement_name("imagesTr/patient.nii.gz", name_of(1))


class Shift(SimpleInferer):
    """A registration that finds the same displacement everywhere, in voxels of the registration grid."""

    def __call__(self, inputs, network, *args, **kwargs):
        return torch.tensor([1.0, -0.5, 2.0]).view(1, 3, 1, 1, 1).expand(1, 3, *inputs.shape[2:]).clone()


def evaluation(file: Path, output: Path, inferer=None, start: str = "world", **settings) -> Evaluation:
    """What the bundle's evaluation makes, of a small network without training."""
    items = read_datalist(file, ["testing"])["testing"]
    keys = ["moving_image", "fixed_image", "moving_label", "fixed_label"]
    transform = Compose([
        LoadPaird(), InitialAlignmentd(start), CopyItemsd(keys, names=[f"{key}_original" for key in keys]),
        RegistrationGridd(spatial_size=(16, 24, 16), spacing=1.0), ConcatPaird(with_label=False),
    ])  # fmt: skip
    network = DisplacementNetwork(small_istn(transformation=AffineTransformation((16, 24, 16), 1.0)))
    made = [transform({key: value for key, value in item.items() if key in keys}) for item in items]
    return Evaluation(made, perturb(network), {"one": inferer or SimpleInferer()}, output, [[1], [2]], items=items,
                      learn2reg=Submission(file, items, output / "submission"), **settings)  # fmt: skip


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


DISPLACEMENT = "disp_0001_0000_0002_0000.nii.gz"


@pytest.mark.parametrize("start, aside", [("world", (0, 0, 0)), ("center", (40.0, -25.0, 60.0))])
def test_an_evaluation_writes_displacements_in_voxels_of_the_array_initial_alignment_included(tmp_path, start, aside):
    file = whole_set(tmp_path / "set")
    there = AFFINE.copy()
    there[:3, 3] += aside
    write_case(tmp_path / "set", name_of(2), (7, 6, 6), affine=there)
    made = evaluation(file, tmp_path / "out", Shift(), start, both_ways=False)
    made.run()
    field = nib.load(tmp_path / "out" / "submission" / DISPLACEMENT)
    assert field.shape == (*SIZE, 3) and field.get_data_dtype() == np.float32
    step = Grid.of(made.dataset[0]["image"]).affine[:3, :3].numpy() @ [1.0, -0.5, 2.0]  # mm in the world
    expected = np.linalg.solve(AFFINE[:3, :3], step)
    assert np.abs(field.get_fdata() - expected).max() < 1e-3
    assert np.abs(expected).min() > 0.05 and np.unique(np.abs(expected).round(2)).size == 3


def test_where_headers_put_the_images_does_not_matter_to_a_displacement_in_voxels(tmp_path):
    fields = []
    for name, aside in (("here", (0, 0, 0)), ("there", (40.0, -25.0, 60.0))):
        file = whole_set(tmp_path / name)
        there = AFFINE.copy()
        there[:3, 3] += aside
        write_case(tmp_path / name, name_of(2), (7, 6, 6), affine=there)
        evaluation(file, tmp_path / f"out_{name}", start="center").run()
        fields.append(nib.load(tmp_path / f"out_{name}" / "submission" / DISPLACEMENT).get_fdata())
    assert np.abs(fields[0] - fields[1]).max() < 1e-3 < np.abs(fields[0]).max()


def test_an_evaluation_gives_the_challenges_metrics_of_the_files_that_it_wrote(tmp_path, capsys):
    file = whole_set(tmp_path / "set")
    evaluation(file, tmp_path / "out").run()
    result = read_json(tmp_path / "out" / "learn2reg.json")
    (case,) = result["cases"]
    field = nib.load(tmp_path / "out" / "submission" / DISPLACEMENT).get_fdata()
    fixed, moving = (nib.load(tmp_path / "set" / "labelsTr" / f"Set_000{n}_0000.nii.gz").get_fdata() for n in (1, 2))
    places = [grid + field[..., axis] for axis, grid in enumerate(np.meshgrid(*map(np.arange, SIZE), indexing="ij"))]
    warped = ndimage.map_coordinates(moving, places, order=0)
    expected = [2 * ((fixed == n) & (warped == n)).sum() / ((fixed == n).sum() + (warped == n).sum()) for n in (1, 2)]
    assert case == "0001_0000<--0002_0000" and np.abs(field).max() > 0.05
    assert result["cases"][case]["DSC"]["detailed"] == pytest.approx(expected)
    assert result["aggregates"]["DSC"]["mean"] == pytest.approx(np.mean(expected))
    before = [2 * ((fixed == n) & (moving == n)).sum() / ((fixed == n).sum() + (moving == n).sum()) for n in (1, 2)]
    assert result["initial"]["DSC"]["mean"] == pytest.approx(np.mean(before))
    assert result["masked"] is False and list(result["aggregates"]) == ["LogJacDetStd", "DSC", "HD95", "TRE_kp"]
    assert "Learn2Reg Set, 1 pairs" in capsys.readouterr().out
    assert "learn2reg.json" in read_json(tmp_path / "out" / "evaluation.json")["files"]


def test_smoothness_is_taken_inside_masks_for_the_tasks_of_which_the_challenge_does_so(tmp_path):
    found = {}
    for name in ("OASIS", "LungCT"):
        file = whole_set(tmp_path / name, name=name)
        own = Submission(file, read_datalist(file, ["testing"])["testing"], tmp_path / name / "submission")
        field = smooth_field()
        own.folder.mkdir()
        nib.save(nib.Nifti1Image(field, AFFINE), own.files[0])
        found[name] = own.measured()["aggregates"]["LogJacDetStd"]["mean"]
    mask = nib.load(tmp_path / "LungCT" / "masksTr" / "Set_0001_0000.nii.gz").get_fdata()
    assert found["LungCT"] == pytest.approx(sdlogj(field, mask)) != pytest.approx(found["OASIS"])
    assert found["OASIS"] == pytest.approx(sdlogj(field))


def test_an_evaluation_that_is_there_is_not_done_again_unless_displacements_are_gone(tmp_path, capsys):
    file = whole_set(tmp_path / "set")
    evaluation(file, tmp_path / "out").run()
    evaluation(file, tmp_path / "out").run()
    assert "evaluated before" in capsys.readouterr().out
    written = tmp_path / "out" / "submission" / DISPLACEMENT
    written.unlink()
    evaluation(file, tmp_path / "out").run()
    assert written.is_file() and "evaluated before" not in capsys.readouterr().out


def test_displacements_of_others_are_left_alone(tmp_path):
    file = whole_set(tmp_path / "set")
    other = tmp_path / "out" / "submission" / DISPLACEMENT
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=rf"{DISPLACEMENT} is there already: choose another output_dir"):
        evaluation(file, tmp_path / "out").run()
    assert other.read_bytes() == b"mine"
    evaluation(file, tmp_path / "out", overwrite=True).run()
    assert nib.load(other).shape == (*SIZE, 3)


def test_the_bundle_makes_a_submission_where_it_is_asked_for(tmp_path):
    items = read_pairs(str(tmp_path), whole_set(tmp_path).name, "testing")
    assert submission(False, items, tmp_path) is None
    assert submission(True, items, tmp_path / "out").files == [tmp_path / "out" / "submission" / DISPLACEMENT]


def test_labels_that_an_evaluation_compares_are_those_of_the_task(tmp_path):
    assert evaluated_labels(whole_set(tmp_path / "a")) == [[1], [2]]
    assert evaluated_labels(whole_set(tmp_path / "b", labels={})) == [[1], [2]]  # of the label maps
    assert evaluated_labels(whole_set(tmp_path / "c", labels={"0": {"0": "background", "7": "x"}})) == [[7]]


# --- wrong input -----------------------------------------------------------------------------------------------------


def submission_of(file: Path) -> Submission:
    return Submission(file, read_datalist(file, ["testing"])["testing"], file.parent / "submission")


@pytest.mark.parametrize("size, affine", [((13, 11, 17), AFFINE), (SIZE, AFFINE @ np.diag([1.2, 1, 1, 1]))])
def test_pairs_on_two_grids_are_an_error_that_says_what_to_do(tmp_path, size, affine):
    file = whole_set(tmp_path)
    write_case(tmp_path, name_of(2), (6, 5, 4), size, affine)
    with pytest.raises(ValueError, match=r"0001_0000<--0002_0000: Learn2Reg compares images of one grid.*resample"):
        submission_of(file)


def test_pairs_without_anything_to_compare_are_an_error(tmp_path):
    write_case(tmp_path, name_of(1), (6, 5, 4))
    write_case(tmp_path, name_of(2), (6, 5, 4))
    for file in (tmp_path / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="neither labels .* nor landmarks"):
        submission_of(dataset(tmp_path, training=[]))


def test_a_pair_that_lacks_what_others_have_is_named(tmp_path):
    whole_set(tmp_path)
    write_case(tmp_path, name_of(3), (6, 5, 4))
    pairs = [pair(name_of(1), name_of(2)), pair(name_of(1), name_of(3))]
    with pytest.raises(ValueError, match="pair 0001_0000<--0003_0000 lacks TRE_kp"):
        submission_of(dataset(tmp_path, registration_val=pairs))


def test_a_displacement_of_another_shape_is_named_with_both(tmp_path):
    own = submission_of(whole_set(tmp_path))
    own.folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((3, *SIZE), np.float32), AFFINE), own.files[0])
    with pytest.raises(ValueError, match=re.escape(f"{DISPLACEMENT} has shape (3, 14, 11, 17)")):
        read_displacement(own.files[0], own.items[0])
    with pytest.raises(FileNotFoundError, match="1 displacements are missing"):
        Submission(own.folder.parent / "Set_dataset.json", own.items, tmp_path / "empty").measured()


# --- submissions of registered files ---------------------------------------------------------------------------------


def registered(folder: Path, fixed: str, moving: str, matrix: np.ndarray) -> Path:
    """What ``register`` leaves of a pair, as far as it counts here."""
    folder.mkdir(parents=True)
    write_transform(WorldTransform([WorldAffine(torch.as_tensor(matrix))], 3), folder / "transform.h5")
    inputs = {
        key: {"file": str(file), "shape": list(nib.load(file).shape), "affine": nib.load(file).affine.tolist()}
        for key, file in (("moving_image", moving), ("fixed_image", fixed))
    }
    write_json(folder / "report.json", {"inputs": inputs})
    return folder


@pytest.mark.parametrize("alone", [True, False])
def test_registered_pairs_are_written_where_simpleitk_takes_their_voxels(tmp_path, alone):
    file = whole_set(tmp_path)
    write_case(tmp_path, name_of(2), (7, 6, 6), affine=oblique_affine(SIZE, SPACING, seed=8, center=(3, 1, -2)))
    images = [str(tmp_path / name_of(n)) for n in (1, 2)]
    matrix = np.eye(4)
    matrix[:3] += np.random.default_rng(1).normal(size=(3, 4)) * [0.1, 0.1, 0.1, 2]
    folder = tmp_path / "registered"
    registered(folder if alone else folder / "pair_0000", *images, matrix)
    (written,) = export(folder, tmp_path / "submission")
    assert written == tmp_path / "submission" / DISPLACEMENT
    field, transform = nib.load(written).get_fdata(), sitk.ReadTransform(str(next(folder.rglob("transform.h5"))))
    fixed, moving = map(sitk.ReadImage, images)
    for voxel in np.random.default_rng(0).integers(0, SIZE, (40, 3)).tolist():
        point = transform.TransformPoint(fixed.TransformIndexToPhysicalPoint(voxel))
        found = moving.TransformPhysicalPointToContinuousIndex(point)
        assert np.abs(field[tuple(voxel)] - (np.array(found) - voxel)).max() < 1e-3
    with pytest.raises(FileExistsError, match=DISPLACEMENT):
        export(folder, tmp_path / "submission")
    export(folder, tmp_path / "submission", overwrite=True)
    assert "DSC" in measure(file, "testing", tmp_path / "submission")
    assert set(read_json(tmp_path / "submission.json")["cases"]) == {"0001_0000<--0002_0000"}


def test_a_folder_without_registered_pairs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no report.json in"):
        export(tmp_path, tmp_path / "submission")


@pytest.mark.parametrize("report", [{"inputs": {"moving_image": {}, "fixed_image": {}}}, {"mine": 1}])
def test_a_folder_without_a_registration_is_named(tmp_path, report):
    """As ``register --engine none`` leaves it, or a report of somebody else."""
    write_json(tmp_path / "pair_0000" / "report.json", report)
    with pytest.raises(ValueError, match="pair_0000 holds no registered pair"):
        export(tmp_path, tmp_path / "out")
