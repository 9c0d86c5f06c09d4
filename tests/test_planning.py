"""Tests of planning: what a data set is (`istn_monai.planning.dataset`, `fingerprint`), and settings from it."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import ball, config, meta, pair_of, write_json, write_nifti, write_subjects
from hypothesis import given
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from PIL import Image

import istn_monai.planning.grid as grid
import istn_monai.planning.subjects as subjects
from istn_monai.alignment import initial_alignment, translation
from istn_monai.geometry.grids import Grid, registration_grid
from istn_monai.io.images import read_image
from istn_monai.io.landmarks import Points, write_points
from istn_monai.network_settings import NetworkSettings
from istn_monai.options import SETTINGS
from istn_monai.planning.dataset import data_set, name_of, pair_counts, source_of
from istn_monai.planning.fingerprint import ALIGNMENTS, MOST_SUBJECTS, Fingerprint, fingerprint, shift, spread
from istn_monai.planning.grid import MOST_VOXELS, groups_by_size, plain, size_for, spacings
from istn_monai.planning.plan import NOTES, Plan, plan_of, write_plan
from istn_monai.planning.rules import rounded
from istn_monai.transforms.registration_grid import kept, on_grid

SHAPE = (20, 26, 22)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """The current folder, where plans are written: not that of the data."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def subject_folder(folder: Path, number: int = 6, shape=SHAPE, seed: int = 0) -> Path:
    write_subjects(folder, number, shape, seed)
    return folder


def label_folder(folder: Path, labels: list[np.ndarray], affines: list[np.ndarray] | None = None, noise=0.05) -> Path:
    """A folder with these label maps, each with an image that shows them."""
    rng = np.random.default_rng(0)
    for index, label in enumerate(labels):
        affine = affines[index] if affines else np.diag([1.0, 1, 1, 1])
        image = (label > 0) + rng.normal(0, noise, label.shape)
        write_nifti(folder / "images" / f"s{index}.nii.gz", image.astype(np.float32), affine)
        write_nifti(folder / "labels" / f"s{index}.nii.gz", label, affine)
    return folder


def measure(folder: Path) -> Fingerprint:
    source = source_of(folder)
    return fingerprint(data_set(source, Path("drawn.json").absolute()))


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


# --- from a folder to pairs ------------------------------------------------------------------------------------------


@given(st.integers(6, 300))
def test_pair_counts_can_be_drawn_and_leave_most_subjects_for_training(number):
    counts = pair_counts(number)
    assert min(counts.values()) >= 1
    assert counts["train"] <= 100 and counts["validation"] <= 10 and counts["test"] <= 50
    assert counts["train"] >= counts["validation"]


def test_a_folder_is_only_read_and_its_pairs_lie_beside_the_plan(tmp_path, elsewhere):
    folder = subject_folder(tmp_path / "mine", 7)
    before = state_of(folder)
    plan, file = write_plan(folder)
    assert state_of(folder) == before
    assert file == elsewhere / "mine_plan.json"
    assert {entry.name for entry in elsewhere.iterdir()} == {"mine_plan.json", "mine_pairs.json"}
    assert plan.settings["dataset_dir"] == str(elsewhere) and plan.settings["data_list_file"] == "mine_pairs.json"
    pairs = json.loads((elsewhere / "mine_pairs.json").read_text(encoding="utf-8"))
    people = {}
    for split in ("training", "validation", "testing"):
        people[split] = {Path(file).name for item in pairs[split] for file in item.values()}
    assert sum(map(len, people.values())) == len(set().union(*people.values())) == 7, "a subject is in two splits"


@pytest.mark.parametrize(
    "images, labels, suffix",
    [("images", "labels", ""), ("imagesTr", "labelsTr", ""), ("imagesTr", "labelsTr", "_0000")],
)
def test_folders_of_the_decathlon_and_image_names_of_nnunet_are_known(tmp_path, images, labels, suffix):
    folder = subject_folder(tmp_path / "mine")
    for file in list((folder / "images").iterdir()):
        file.rename(file.with_name(file.name.replace(".nii.gz", f"{suffix}.nii.gz")))
    (folder / "images").rename(folder / "renamed")
    (folder / "renamed").rename(folder / images)
    (folder / "labels").rename(folder / labels)
    items = data_set(folder, tmp_path / "pairs.json").items["training"]
    for item in items:
        stem = Path(item["fixed_label"]).name.removesuffix(".nii.gz")
        assert Path(item["fixed_image"]).name == f"{stem}{suffix}.nii.gz"


def test_a_datalist_in_the_folder_is_used_and_others_are_named(tmp_path, capsys):
    folder = tmp_path / "mine"
    files = write_subjects(folder, 4, SHAPE)
    pairs = {"training": [pair_of(files[0], files[1])], "validation": [pair_of(files[2], files[3])]}
    write_json(folder / "pairs.json", pairs)
    write_json(folder / "pairs_100.json", pairs)
    write_json(folder / "dataset.json", {"name": "of the decathlon"})
    plan, _ = write_plan(folder)
    assert (plan.settings["dataset_dir"], plan.settings["data_list_file"]) == (str(folder), "pairs.json")
    note = capsys.readouterr().out
    assert "pairs_100.json" in note and "dataset.json" not in note


def test_masks_may_be_of_some_images_and_hide_what_may_be_nan(tmp_path):
    folder = tmp_path / "mine"
    files = write_subjects(folder, 4, SHAPE)
    broken = nib.load(files[0]["image"])
    values, mask = broken.get_fdata(), np.ones(SHAPE, np.uint8)
    values[:3], mask[:3] = np.nan, 0
    write_nifti(Path(files[0]["image"]), values.astype(np.float32), broken.affine)
    write_nifti(tmp_path / "mask.nii.gz", mask, broken.affine)
    masked = pair_of(files[0], files[1]) | {"moving_mask": str(tmp_path / "mask.nii.gz")}
    pairs = {"training": [masked, pair_of(files[1], files[2])], "validation": [pair_of(files[2], files[3])]}
    plan, _ = write_plan(Path(write_json(folder / "pairs.json", pairs)))
    assert plan.settings["soi_labels"]
    del masked["moving_mask"]
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_plan(Path(write_json(folder / "others.json", pairs)))


def test_names_are_fit_for_files():
    assert name_of(Path("/a/my data (new)")) == "my_data_new"
    assert name_of(Path("/a/brains/pairs.json")) == "brains"
    assert name_of(Path("/a/few.json")) == "a_few"
    assert name_of(Path("/")) == "data"


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_volume_thickness_and_place_of_a_structure_are_in_mm():
    """A slab of 3 x 12 x 10 voxels of 2 x 1 x 1.5 mm in a flipped and permuted file: 6 mm thick."""
    label = np.zeros((1, 16, 20, 18), np.uint8)
    label[0, 4:7, 5:17, 6:16] = 3
    affine = np.array([[0.0, -1, 0, 30], [-2, 0, 0, 7], [0, 0, 1.5, -4], [0, 0, 0, 1]])
    _, found = subjects.label_structures(meta(label, affine), is_map=False)
    assert set(found) == {3}
    slab = found[3]
    assert slab.volume == 3 * 12 * 10 * 2 * 1 * 1.5
    assert slab.thickness == pytest.approx(6, abs=1.1)
    middle = affine @ [5, 10.5, 10.5, 1]
    assert torch.allclose(slab.center, torch.from_numpy(middle[:3]))
    size = (slab.corners.amax(1) - slab.corners.amin(1)).tolist()
    assert size == [12, 6, 15]


def test_a_structure_is_measured_without_those_that_its_box_holds(tmp_path):
    label = 2 * ball(SHAPE, (9, 12, 10), 6) - ball(SHAPE, (9, 12, 10), 4)
    _, found = subjects.label_structures(meta(label[None]), is_map=False)
    assert {value: structure.volume for value, structure in found.items()} == {
        value: np.count_nonzero(label == value) for value in (1, 2)
    }


def test_spacings_are_those_of_the_axes_of_the_registration_grid(tmp_path):
    """Files whose axes are I, R, A."""
    affine = np.array([[0.0, 2, 0, 0], [0, 0, 3, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])
    labels = [ball(SHAPE, (10, 13, 11), 5) for _ in range(6)]
    found = measure(label_folder(tmp_path / "mine", labels, [affine] * 6))
    assert np.allclose(found.spacings(), [2, 3, 1])
    summary = found.summary()
    assert summary["orientations"] == {"IRA": 6}
    assert summary["size_voxels"]["median"] == [26, 22, 20]
    assert json.loads(json.dumps(summary)) == summary


def test_alignments_are_those_of_training(tmp_path):
    files = write_subjects(tmp_path, 2, SHAPE)
    for index, offset in enumerate(([3.0, -2, 5], [-40, 7, 0])):
        image = nib.load(files[index]["image"])
        affine = np.diag([1.0, 2, 1.5, 1])
        affine[:3, 3] = offset
        write_nifti(Path(files[index]["image"]), np.asarray(image.dataobj), affine)
        write_nifti(Path(files[index]["label"]), np.asarray(nib.load(files[index]["label"]).dataobj), affine)
    moving, fixed = (subjects.measured(subjects.Files(file["image"], file["label"], None), None) for file in files)
    images = [read_image(file["image"]) for file in files]
    for name in ALIGNMENTS:
        assert torch.allclose(translation(shift(name, moving, fixed)), initial_alignment(name, *images), atol=1e-6), (
            name
        )


def test_distances_and_dice_under_each_alignment_are_known_for_a_moved_structure(tmp_path):
    """The same image at another place in the world, and a structure at another place in the image."""
    labels, affines = [], []
    for index in range(6):
        labels.append(ball((24, 24, 24), (10 + index % 2 * 4, 12, 12), 5))
        affine = np.eye(4)
        affine[:3, 3] = [0, 30 * index, 0]
        affines.append(affine)
    found = measure(label_folder(tmp_path / "mine", labels, affines, noise=0))
    measured_pairs = found.distances["center"][1]
    assert all(min(abs(value - wanted) for wanted in (0, 4)) < 1e-6 for value in measured_pairs)
    assert min(found.distances["world"][1]) >= 30 and max(found.overlaps["world"][1]) == 0
    assert max(found.distances["moments"][1]) < 1e-6 and min(found.overlaps["moments"][1]) == 1
    for distance, overlap in zip(measured_pairs, found.overlaps["center"][1], strict=True):
        assert overlap == 1 if distance < 1 else overlap < 0.6


def test_of_many_subjects_some_are_read_each_once_and_it_says_so(tmp_path, monkeypatch, capsys):
    number = MOST_SUBJECTS + 15
    shape = (8, 9, 8)
    label_folder(tmp_path / "mine", [ball(shape, (4, 4, 4), 2)] * number)
    files = []
    for name in ("read_or_explain", "read_exactly"):
        read = getattr(subjects, name)
        monkeypatch.setattr(subjects, name, lambda file, *more, read=read: files.append(str(file)) or read(file, *more))
    found = measure(tmp_path / "mine")
    assert len(files) == len(set(files)) == 2 * MOST_SUBJECTS
    assert len(found.subjects) == MOST_SUBJECTS
    assert re.search(rf"reading {MOST_SUBJECTS} of \d+ subjects", capsys.readouterr().out)


@given(st.integers(1, 200), st.integers(2, 30))
def test_spread_takes_first_and_last_and_nothing_twice(length, number):
    taken = spread(range(length), number)
    assert len(taken) == len(set(taken)) == min(length, number)
    assert taken == sorted(taken) and (taken[0], taken[-1]) == (0, length - 1)


def test_label_maps_and_real_valued_maps_are_told_apart():
    shape = (24, 24, 24)
    labels = ball(shape, (12, 12, 12), 8) + ball(shape, (10, 12, 12), 4) * 200
    smooth = np.exp(-(((np.indices((24, 24)) - 12) ** 2).sum(0)) / 40)
    assert not subjects.is_real_valued(labels.astype(float))
    assert subjects.is_real_valued(smooth)
    assert subjects.is_real_valued((255 * smooth).round())
    assert not subjects.is_real_valued(255 * ball((24, 24), (12, 12), 7))


# --- rules -----------------------------------------------------------------------------------------------------------


@given(st.floats(1e-3, 1e4))
def test_round_numbers_are_near(value):
    assert 0.85 < rounded(value) / value < 1.2


def test_groups_hold_similar_volumes_and_are_as_few_as_asked_for():
    volumes = {value: 4.5**value for value in range(1, 13)}
    assert groups_by_size(volumes, 12) == [[value] for value in range(12, 0, -1)]
    groups = groups_by_size(volumes, 8)
    assert len(groups) <= 8 and sorted(sum(groups, [])) == sorted(volumes)
    assert groups_by_size({5: 10.0, 6: 11.0, 7: 400.0}, 8) == [[7], [5, 6]]


def test_sizes_are_multiples_of_16_or_of_8_where_that_is_too_large():
    assert size_for(np.array([20.5, 29, 22]), (1, 1, 1)) == (48, 64, 48)
    assert size_for(np.array([32.5, 32.5, 32.5]), (1, 1, 1)) == (80, 80, 80)  # neither fits
    size = size_for(np.array([33.0, 32, 32]), (1, 1, 1))
    assert size == (72, 64, 64) and math.prod(size) <= MOST_VOXELS < 80 * 64 * 64


def settings_of(folder: Path) -> dict:
    return write_plan(folder, overwrite=True)[0].settings


def test_a_small_data_set_becomes_settings_of_a_network_with_a_reason_each(tmp_path):
    plan, file = write_plan(subject_folder(tmp_path / "mine"))
    settings = plan.settings
    assert set(settings) <= set(SETTINGS)
    network = {name: settings[name] for name in NetworkSettings.__dataclass_fields__ if name in settings}
    assert NetworkSettings(**network).soi_channels == 2
    assert settings["soi_labels"] == [[1], [2]] and settings["in_channels"] == 1 and settings["loss"] == "e"
    assert settings["spatial_size"] == [32, 32, 32] and settings["spacing"] == 1
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(plan.content()))
    assert set(content) == {*settings, NOTES} and set(content[NOTES]["reasons"]) == set(settings)
    assert all(content[NOTES]["reasons"].values()) and content[NOTES]["estimate"]["memory_gb"] > 0


def test_a_plan_is_an_overlay_of_the_training_config(tmp_path):
    _, file = write_plan(subject_folder(tmp_path / "mine"))
    parser = ConfigParser()
    parser.read_config([*config("train"), str(file)])
    settings = parser.get_parsed_content("settings")
    assert list(settings.spatial_size) == [32, 32, 32]
    assert len(parser.get_parsed_content("validate#dataset#data")) == pair_counts(6)["validation"]


def test_the_table_names_each_setting_within_120_columns(tmp_path):
    plan, _ = write_plan(subject_folder(tmp_path / ("long_name_" * 15)))
    lines = plan.table().splitlines()
    assert max(map(len, lines)) <= 120
    assert set(plan.settings) <= {line.split()[0] for line in lines if line[:1].strip()}
    assert "estimated" in plan.table().lower() and "GB" in plan.table()


def test_structures_far_from_the_middle_are_on_the_grid_of_every_pair(tmp_path):
    """Of large images, of which the grid covers the surroundings of small structures alone; they lie at either end."""
    labels, affines = [], []
    for index in range(6):
        place = 200 + 230 * (index % 2)
        labels.append(ball((600, 620), (300, place), 2))
        affine = np.eye(4)
        affine[1, 3] = 5 * index - place
        affines.append(affine)
    plan, _ = write_plan(label_folder(tmp_path / "mine", labels, affines))
    settings = plan.settings
    assert settings["initial_alignment"] == "world" and settings["spatial_size"][0] < 600
    for item in data_set(source_of("mine_pairs.json"), Path("unused.json")).items["training"]:
        grid = registration_grid(Grid.of(read_image(item["fixed_image"])), settings["spatial_size"], 1)
        for side in ("moving", "fixed"):
            label = read_image(item[f"{side}_label"])
            assert kept(label, on_grid(label, grid)) == pytest.approx(1, abs=0.01)


def test_large_images_with_thick_structures_are_covered_coarsely_and_thin_structures_finely(tmp_path):
    shape = (96, 96, 96)
    thick = [ball(shape, (48, 48, 48 + index), 20) for index in range(6)]
    whole = write_plan(label_folder(tmp_path / "thick", thick))[0].settings
    # noise fills the whole image
    assert whole["spacing"] > 1 and min(whole["spatial_size"]) * whole["spacing"] >= 96
    assert math.prod(whole["spatial_size"]) <= MOST_VOXELS
    thin = [ball(shape, (48, 48, 48 + index), 2) for index in range(6)]
    near = write_plan(label_folder(tmp_path / "thin", thin))[0].settings
    assert near["spacing"] == 1 and near["spatial_size"] == [32, 32, 48]


def test_thick_slices_keep_their_spacing(tmp_path):
    labels = [ball((40, 40, 10), (20, 20, 5 - index % 2), 4) for index in range(6)]
    folder = label_folder(tmp_path / "mine", labels, [np.diag([0.8, 0.8, 4, 1])] * 6)
    assert settings_of(folder)["spacing"] == [0.8, 0.8, 4]
    steps = spacings(measure(folder))
    assert steps[0] == (0.8, 0.8, 4) and steps[-1][0] == steps[-1][2] and (1.6, 1.6, 4) in steps
    assert plain((2.0, 2.0)) == 2 and plain((2.0, 1.5)) == [2, 1.5]


def test_levels_are_as_fine_as_the_structure_and_reach_as_far_as_it_moves(tmp_path):
    shape = (48, 48, 48)
    labels = []
    for index in range(6):
        label = np.zeros(shape, np.uint8)
        label[8:40, 20:26, 14 + 2 * (index % 2) : 22 + 2 * (index % 2)] = 1
        label[8 + 20 * (index % 2) : 12 + 20 * (index % 2), 20:36, 14:22] = 1  # not affine
        labels.append(label)
    settings = settings_of(label_folder(tmp_path / "mine", labels))
    levels = settings["control_spacing"]
    assert settings["transformation"] == "bspline"
    assert all(coarse == 2 * fine for coarse, fine in zip(levels, levels[1:], strict=False))
    assert 5 <= levels[-1] <= 8 and levels[0] >= 16


def test_the_coarsest_level_is_half_as_wide_as_the_structure_even_if_it_hardly_moves(tmp_path):
    labels = []
    for index in range(6):
        label = np.zeros((48, 48, 24), np.uint8)
        label[6:42, 21:27, 8:16] = 1
        label[6:12, 10:21, 8:16] = label[36:42, 27:38, 8:16] = 1  # a Z, and its mirror image: one centroid
        labels.append(label if index % 2 else label[::-1])
    plan, _ = write_plan(label_folder(tmp_path / "mine", labels))
    assert plan.settings["transformation"] == "bspline" and plan.settings["control_spacing"][0] >= 18
    assert measure(tmp_path / "mine").apart("center", [1]) < 1


def test_structures_of_one_shape_are_registered_affinely(tmp_path):
    labels = [ball((32, 32, 32), (14 + index % 3, 16, 17 - index % 2), 7) for index in range(6)]
    settings = settings_of(label_folder(tmp_path / "mine", labels))
    assert settings["transformation"] == "affine" and "control_spacing" not in settings


def test_of_many_labels_those_that_are_rare_thin_or_never_overlap_are_left_out(tmp_path):
    labels = []
    for index in range(6):
        label = np.zeros((40, 40, 40), np.uint8)
        for value in range(1, 11):  # ten cubes that hardly move
            x, y = divmod(value - 1, 4)
            label[x * 12 + 1 : x * 12 + 9, y * 10 + 1 : y * 10 + 9, 4 + index % 2 : 12 + index % 2] = value
        label[20:38, 20:38, 20:38] = 20
        label[2:10, 2:10, 30:31] = 30  # thin
        label[2 + 5 * index : 6 + 5 * index, 12:16, 30:34] = 40  # never overlaps
        if index:
            label[20:30, 2:10, 20:28] = 50  # rare
        labels.append(label)
    plan, file = write_plan(label_folder(tmp_path / "mine", labels))
    assert plan.settings["soi_labels"] == [[20], list(range(1, 11))]
    reason = json.loads(file.read_text(encoding="utf-8"))[NOTES]["reasons"]["soi_labels"]
    assert re.search("left out: 30, 40, 50", reason)


def test_of_a_pair_of_structures_both_are_taken_where_one_is_thick_enough(tmp_path):
    labels = []
    for _ in range(6):
        label = np.zeros((64, 40, 40), np.uint8)
        for value in range(1, 11):  # ten cubes
            x, y = divmod(value - 1, 4)
            label[20 + x * 8 : 27 + x * 8, y * 10 + 1 : y * 10 + 8, 4:11] = value
        label[4:11, 20:27, 24:31] = 20
        label[53:59, 20:27, 24:31] = 21  # its other side, thinner by a voxel
        label[34:40, 2:9, 30:37] = 30  # as thin, without another side
        labels.append(label)
    folder = label_folder(tmp_path / "mine", labels)
    measured = measure(folder)
    assert measured.thickness(20) > measured.thickness(21) == measured.thickness(30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "FEWEST_THICK", (measured.thickness(20) + measured.thickness(21)) / 2)
        assert grid.choose_structures(measured).keys == (*range(1, 11), 20, 21)


def test_a_structure_is_found_on_the_other_side_of_the_body(tmp_path):
    label = np.zeros((40, 30, 30), np.uint8)
    for value, corner in {1: (4, 10, 10), 2: (30, 11, 10), 3: (17, 4, 20), 4: (4, 20, 2), 5: (30, 2, 22)}.items():
        label[tuple(slice(start, start + 6) for start in corner)] = value
    found = measure(label_folder(tmp_path / "mine", [label] * 6))
    assert [found.mirrored(value, [1, 2, 3, 4, 5]) for value in (1, 2, 3, 4, 5)] == [2, 1, None, None, None]


def test_real_valued_maps_in_two_dimensions(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(6):
        place = np.array([30, 34]) + rng.uniform(-3, 3, 2)
        smooth = 255 * np.exp(-((np.indices((64, 64)) - place[:, None, None]) ** 2).sum(0) / 60)
        for kind, noise in (("images", 20), ("labels", 0)):
            values = (smooth * 0.8 + rng.uniform(0, 1, smooth.shape) * noise).astype(np.uint8)
            (tmp_path / "flat" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "flat" / kind / f"{index}.png")
    settings = settings_of(tmp_path / "flat")
    assert settings["soi_labels"] == "none" and settings["spatial_size"] == [64, 64] and settings["loss"] == "i"


@pytest.mark.parametrize("number, expected", [(3, [["L0"], ["L1"], ["L2"]]), (12, [["*"]])])
def test_landmarks_in_the_place_of_labels(tmp_path, number, expected):
    folder = subject_folder(tmp_path / "mine")
    shutil.rmtree(folder / "labels")
    rng = np.random.default_rng(0)
    places = rng.uniform(3, 17, (number, 3))
    for index in range(6):
        positions = torch.from_numpy(places + rng.normal(0, 1, places.shape))
        write_points(
            Points(positions, tuple(f"L{n}" for n in range(number))), folder / "landmarks" / f"case_{index:02d}.csv"
        )
    settings = settings_of(folder)
    assert settings["soi_labels"] == [] and settings["soi_points"] == expected and settings["loss"] == "i"
    network = {name: settings[name] for name in NetworkSettings.__dataclass_fields__ if name in settings}
    assert NetworkSettings(**network).soi_channels == len(expected)


def test_landmarks_without_a_common_name_are_refused_by_their_files(tmp_path):
    pair = {}
    for side, name in (("moving", "AC"), ("fixed", "PC")):
        pair[f"{side}_image"] = write_nifti(tmp_path / f"{side}.nii.gz", ball((8, 8, 8), (4, 4, 4), 2))
        points = Points(torch.ones(1, 3, dtype=torch.float64), (name,))
        pair[f"{side}_points"] = str(write_points(points, tmp_path / f"{side}.csv"))
    datalist = write_json(tmp_path / "pairs.json", {"training": [pair], "validation": [pair]})
    with pytest.raises(
        ValueError, match=r"no training pair shares one: \['AC'\] in .*moving.csv and \['PC'\] in .*fixed"
    ):
        write_plan(datalist)


def test_the_plan_for_the_hippocampus_is_the_hand_made_one(hippocampus, tmp_path):
    plan = write_plan(hippocampus / "pairs_100.json")[0]
    given = {"soi_labels": [[1], [2]], "initial_alignment": "center", "spacing": 1, "spatial_size": [48, 64, 48],
             "transformation": "bspline", "control_spacing": [24, 12, 6], "max_epochs": 40, "batch_size": 1,
             "augment": True, "loss": "e"}  # fmt: skip
    assert {name: plan.settings[name] for name in given} == given


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_existing_plan_is_left_alone_unless_it_may_be_replaced(tmp_path, elsewhere):
    folder = subject_folder(tmp_path / "mine")
    (elsewhere / "mine_plan.json").write_text("precious", encoding="utf-8")
    with pytest.raises(FileExistsError, match=f"{elsewhere}/mine_plan.json.*overwrite"):
        write_plan(folder)
    with pytest.raises(FileExistsError, match="is no plan and is left alone"):
        write_plan(folder, overwrite=True)
    assert state_of(elsewhere) == {"mine_plan.json": b"precious"}
    (elsewhere / "mine_plan.json").write_text(json.dumps({"_plan_": {}, "run_name": "earlier"}), encoding="utf-8")
    plan, file = write_plan(folder, overwrite=True)
    assert isinstance(plan, Plan) and json.loads(file.read_text(encoding="utf-8"))["run_name"] == "mine"


@pytest.mark.parametrize("drawn", [True, False])
def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path, elsewhere, monkeypatch, drawn):
    folder = tmp_path / "mine"
    files = write_subjects(folder, 6, SHAPE)
    if not drawn:  # what fails is the plan itself
        pairs = {"training": [pair_of(files[0], files[1])], "validation": [pair_of(files[2], files[3])]}
        write_json(folder / "pairs.json", pairs)
    full = OSError("disk full")
    monkeypatch.setattr("istn_monai.io.paths.os.replace", lambda *files: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="disk full"):
        write_plan(folder)
    assert state_of(elsewhere) == {}


def test_training_plans_once_and_then_goes_on_with_the_plan_as_the_user_left_it(
    tmp_path, elsewhere, capsys, monkeypatch
):
    folder = subject_folder(tmp_path / "mine")
    file = plan_of(folder)
    assert file == elsewhere / "mine_plan.json" and "spatial_size" in capsys.readouterr().out
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"max_epochs": 3}))
    monkeypatch.setattr("istn_monai.planning.fingerprint", lambda data: pytest.fail("measured again"))
    before = state_of(elsewhere)
    assert plan_of(folder) == file and state_of(elsewhere) == before
    assert f"using {file}" in capsys.readouterr().out
    assert plan_of(file) == file  # settings are taken as they are


def test_a_plan_of_other_data_is_in_the_way(tmp_path, elsewhere):
    plan_of(subject_folder(tmp_path / "one" / "mine"))
    (elsewhere / "mine_pairs.json").unlink()
    with pytest.raises(FileExistsError, match="mine_plan.json was made from other data than .*two/mine"):
        plan_of(subject_folder(tmp_path / "two" / "mine", 8))


def test_pairs_of_a_folder_that_has_grown_are_not_replaced(tmp_path, elsewhere):
    folder = subject_folder(tmp_path / "mine")
    plan_of(folder)
    subject_folder(folder, 9)
    before = state_of(elsewhere)
    with pytest.raises(FileExistsError, match="mine_pairs.json exists and holds other pairs"):
        plan_of(folder)
    assert state_of(elsewhere) == before


# --- bad input -------------------------------------------------------------------------------------------------------


def broken(change):
    """A folder of six subjects after a change."""

    def make(tmp_path: Path) -> Path:
        folder = subject_folder(tmp_path / "mine")
        change(folder)
        return folder

    return make


def without(*names: str):
    return broken(lambda folder: [shutil.rmtree(folder / name) for name in names])


def one_subject(folder: Path) -> None:
    for kind in ("images", "labels"):
        for index in range(1, 6):
            (folder / kind / f"case_{index:02d}.nii.gz").unlink()


def flat_subject(folder: Path) -> None:
    for kind in ("images", "labels"):
        write_nifti(folder / kind / "case_03.nii.gz", ball((20, 20), (9, 9), 4).astype(np.float32))


def colored_subject(folder: Path) -> None:
    write_nifti(folder / "images" / "case_03.nii.gz", np.random.default_rng(0).random((*SHAPE, 2), np.float32))


def other_grid(folder: Path) -> None:
    write_nifti(folder / "labels" / "case_03.nii.gz", ball((18, 26, 22), (9, 13, 11), 4))


def other_place(folder: Path) -> None:
    write_nifti(folder / "labels" / "case_03.nii.gz", ball(SHAPE, (9, 13, 11), 4), np.diag([1.0, 1, 1.5, 1]))


def empty_label(folder: Path) -> None:
    write_nifti(folder / "labels" / "case_03.nii.gz", np.zeros(SHAPE, np.uint8))


def unreadable(folder: Path) -> None:
    (folder / "images" / "case_03.nii.gz").write_bytes(b"not an image")


def missing_file(folder: Path) -> None:
    files = [{kind: f"{kind}s/case_{n:02d}.nii.gz" for kind in ("image", "label")} for n in (0, 1, 2, 7)]
    pairs = {"training": [pair_of(files[0], files[1])], "validation": [pair_of(files[2], files[3])]}
    write_json(folder / "pairs.json", pairs)


def partly_labeled(folder: Path) -> None:
    files = [{kind: f"{kind}s/case_{n:02d}.nii.gz" for kind in ("image", "label")} for n in range(4)]
    pairs = {"training": [pair_of(files[0], files[1])], "validation": [pair_of(files[2], files[3])]}
    del pairs["validation"][0]["moving_label"]
    write_json(folder / "pairs.json", pairs)


BAD = {
    "no folder": (lambda tmp_path: tmp_path / "no", FileNotFoundError, "no such folder or file: .*/no; give a folder"),
    "an image": (lambda tmp_path: subject_folder(tmp_path / "mine") / "images" / "case_00.nii.gz", ValueError,
                 r"must be a folder or a datalist \(.json\), got the file .*case_00.nii.gz"),
    "no images": (without("images"), FileNotFoundError, "no folder images or imagesTr in .*mine: data are"),
    "no labels": (without("labels"), FileNotFoundError, "no labels and no landmarks .* in .*mine: training needs them"),
    "one subject": (broken(one_subject), ValueError, "mine has 1 subject, at least 6 are needed.*add subjects"),
    "mixed dimensions": (broken(flat_subject), ValueError, "mixed dimensions: .* is [23]-D, .*case_.* [23]-D.*remove"),
    "mixed channels": (broken(colored_subject), ValueError, "mixed channels: .* has [12], .*case_.* [12]"),
    "label of another size": (broken(other_grid), ValueError, r"case_03.nii.gz.* has size \(18, 26, 22\).*resample it"),
    "label at another place": (broken(other_place), ValueError, "case_03.nii.gz.*voxels beside its image.*correct"),
    "image without a label": (broken(lambda folder: (folder / "labels" / "case_03.nii.gz").unlink()), ValueError,
                              "1 images have no label of the same name in .*labels.*case_03"),
    "empty label": (broken(empty_label), ValueError, "case_03.nii.gz.* is empty"),
    "unreadable": (broken(unreadable), ValueError, "cannot read .*case_03.nii.gz"),
    "missing file": (broken(missing_file), FileNotFoundError,
                     r"pairs.json: validation\[0\] fixed_image: no such file: .*case_07.nii.gz"),
    "some pairs without labels": (broken(partly_labeled), ValueError,
                                  r"1 pairs lack moving_label or fixed_label .* first is validation\[0\]"),
    "not JSON": (lambda tmp_path: Path(shutil.copy(__file__, tmp_path / "a.json")), ValueError, "a.json is not JSON"),
    "settings": (lambda tmp_path: write_json(tmp_path / "a.json", {"run_name": "a"}), ValueError,
                 "a.json has no pairs but settings"),
}  # fmt: skip


@pytest.mark.parametrize("make, error, text", BAD.values(), ids=BAD)
def test_bad_data_are_refused_in_one_line_and_no_plan_is_written(tmp_path, elsewhere, make, error, text):
    data = make(tmp_path)
    with pytest.raises(error, match=text) as raised:
        write_plan(data)
    assert "\n" not in str(raised.value)
    assert not list(elsewhere.glob("*_plan.json"))
    assert not list(elsewhere.glob(".*"))


def test_labels_of_two_kinds_are_an_error(tmp_path, elsewhere):
    """One real-valued map among numbered structures is a mistake: its values would be taken as a probability."""
    folder = subject_folder(tmp_path / "mine")
    file = sorted((folder / "labels").iterdir())[1]
    label = nib.load(file)
    write_nifti(file, (0.4 * label.get_fdata()).astype(np.float32), label.affine)
    with pytest.raises(ValueError, match=rf"mixed labels: .*{file.name} has fractions .* has numbered structures"):
        write_plan(folder)
    assert state_of(elsewhere) == {}  # nor are the pairs left that were drawn
