"""Landmarks as structures of interest: maps against SciPy, MONAI and by hand; names; missing ones; errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rand, random_output, write_nifti
from monai.data import MetaTensor
from monai.transforms import GenerateHeatmap
from oracles import max_abs
from scipy.spatial import cKDTree

from istn_monai.geometry.grids import Grid
from istn_monai.io.landmarks import Points, matched, write_points
from istn_monai.losses import DiceMSELoss, ISTNLoss, annotated
from istn_monai.network_settings import NetworkSettings
from istn_monai.networks import ISTNOutput
from istn_monai.transforms.augmentation import RandDeformd
from istn_monai.transforms.landmarks import AddLandmarkChannelsd, check_soi_points, landmark_map
from istn_monai.transforms.preprocessing import InitialAlignmentd, SoIGroupsd
from istn_monai.transforms.registration_grid import RegistrationGridd
from istn_monai.workflow.datalist_checks import check_points
from istn_monai.workflow.training import warped_and_fixed_soi

SIZE = {2: (14, 17), 3: (12, 15, 10)}


def oblique(dims: int, seed: int = 3) -> np.ndarray:
    """A rotated, anisotropic affine with an origin."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(dims, dims)))[0]
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = rotation * np.array([0.7, 1.9, 2.6])[:dims]
    affine[:-1, -1] = rng.uniform(-40, 40, dims)
    return affine


def world(affine: np.ndarray, voxels) -> np.ndarray:
    """Voxels ``(N, D)`` in mm."""
    return np.asarray(voxels, float) @ affine[:-1, :-1].T + affine[:-1, -1]


def points_at(folder: Path, name: str, positions, labels=None) -> str:
    positions = torch.as_tensor(np.asarray(positions), dtype=torch.float64)
    labels = tuple(labels or (f"p{n}" for n in range(len(positions))))
    return str(write_points(Points(positions, labels), folder / f"{name}.csv"))


def pair_on_grid(moving: str, fixed: str, affine: np.ndarray, size, **more) -> dict:
    image = MetaTensor(torch.zeros(1, *size), affine=torch.as_tensor(affine))
    return {"moving_image": image, "fixed_image": image, "moving_points": moving, "fixed_points": fixed, **more}


# --- maps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["heatmap", "distance"])
def test_maps_are_functions_of_the_distance_in_mm_on_any_grid(dims, kind):
    """SciPy's nearest neighbors give the distance; no voxel is the same along two axes."""
    affine, size, width = oblique(dims), SIZE[dims], 3.7
    voxels = np.random.default_rng(0).uniform(0, np.array(size) - 1, (5, dims))
    positions = world(affine, voxels)
    every = world(affine, np.indices(size).reshape(dims, -1).T)
    distance = cKDTree(positions).query(every)[0].reshape(size)
    expected = np.exp2(-((distance / width) ** 2)) if kind == "heatmap" else np.maximum(0, 1 - distance / (2 * width))
    found = landmark_map(torch.as_tensor(positions), Grid(size, affine), kind, width)
    assert found.dtype == torch.float32 and max_abs(found, torch.as_tensor(expected)) < 1e-6
    swapped = landmark_map(torch.as_tensor(positions[:, ::-1].copy()), Grid(size, affine), kind, width)
    assert max_abs(swapped, torch.as_tensor(expected)) > 0.1, "the order of axes matters"


@pytest.mark.parametrize("dims", [2, 3])
def test_heatmap_at_whole_voxels_is_monais(dims):
    """MONAI's is a Gaussian integrated over each voxel, truncated at some sigmas: a wide one is nearly the same."""
    size, sigma = (31, 33, 35)[:dims], 4.0
    point = torch.tensor([[14.0, 17.0, 16.0][:dims]])
    theirs = GenerateHeatmap(sigma, size, truncated=8.0)(point)[0]
    ours = landmark_map(point, Grid(size, torch.eye(dims + 1)), width=sigma * (2 * np.log(2)) ** 0.5)
    assert max_abs(ours, theirs) < 1e-2


@pytest.mark.parametrize("kind", ["heatmap", "distance"])
def test_maps_are_one_at_a_landmark_and_a_half_at_the_width(kind):
    found = landmark_map(
        torch.tensor([[4.0, 6.0]]), Grid((8, 12), torch.diag(torch.tensor([2.0, 1.0, 1.0]))), kind, 4.0
    )
    assert found[2, 6] == 1 and found[2, 10] == found[4, 6] == pytest.approx(0.5)
    assert not landmark_map(torch.zeros(0, 2), Grid((8, 12), torch.eye(3)), kind).any()


# --- channels of a pair ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_moving_landmarks_go_where_the_initial_alignment_takes_their_image(tmp_path, dims):
    """Two images with frames of their own, a dot in each at its landmark: the maps' peaks are the dots on the grid."""
    rng = np.random.default_rng(1)
    pair = {}
    for seed, side in enumerate(("moving", "fixed")):
        affine, size = oblique(dims, seed), tuple(n + 3 * seed for n in SIZE[dims])
        voxel = rng.integers(5, 8, dims)
        image = torch.zeros(1, *size)
        image[(0, *voxel)] = 1
        pair[f"{side}_image"] = MetaTensor(image, affine=torch.as_tensor(affine))
        pair[f"{side}_points"] = points_at(tmp_path, side, world(affine, voxel[None]))
    grid = RegistrationGridd((40,) * dims, 0.8)
    result = AddLandmarkChannelsd([["*"]], width=1.5)(grid(InitialAlignmentd("center")(pair)))
    for side in ("moving", "fixed"):
        dot, found = result[f"{side}_image"][0], result[f"{side}_label"][0]
        assert found.shape == dot.shape and found.max() > 0.7
        indices = torch.stack(torch.meshgrid(*map(torch.arange, dot.shape), indexing="ij")).double()
        centers = [(indices * m.as_tensor().double()).flatten(1).sum(1) / m.sum().item() for m in (dot, found)]
        assert max_abs(*centers) < 0.15, "voxels of 0.8 mm"


def test_groups_make_channels_by_name_after_those_of_labels(tmp_path):
    label = torch.zeros(1, 9, 9)
    label[:, 2:4] = 1
    moving = points_at(tmp_path, "moving", [[1, 1], [7, 7], [4, 4]], ["AC", "tip_1", "tip_2"])
    fixed = points_at(tmp_path, "fixed", [[4, 5], [7, 6], [2, 1]], ["tip_2", "tip_1", "AC"])
    labels = {key: MetaTensor(label, affine=torch.eye(3)) for key in ("moving_label", "fixed_label")}
    pair = pair_on_grid(moving, fixed, np.eye(3), (9, 9), **labels)
    groups = [["AC"], ["tip*"]]
    result = AddLandmarkChannelsd(groups, width=1)(SoIGroupsd(soi_labels=[[1], [3]])(pair))
    counts = [NetworkSettings(soi_labels=labels, soi_points=groups).soi_channels for labels in ([[1], [3]], None, [])]
    assert counts == [4, 3, 2]
    for side, ac, tips in (("moving", [1, 1], [[7, 7], [4, 4]]), ("fixed", [2, 1], [[7, 6], [4, 5]])):
        channels = result[f"{side}_label"].as_tensor()
        assert channels.shape == (4, 9, 9) and torch.equal(channels[:1], label) and not channels[1].any()
        assert (channels[2] == 1).nonzero().tolist() == [ac]
        assert sorted((channels[3] == 1).nonzero().tolist()) == sorted(tips)
    assert AddLandmarkChannelsd(None)(pair).keys() == pair.keys()


def test_a_landmark_that_one_image_lacks_is_in_neither_map(tmp_path):
    moving = points_at(tmp_path, "moving", [[1, 1], [7, 7]], ["AC", "PC"])
    fixed = points_at(tmp_path, "fixed", [[7, 6], [3, 3]], ["PC", "other"])
    result = AddLandmarkChannelsd([["PC"], ["AC", "other"]], width=1)(pair_on_grid(moving, fixed, np.eye(3), (9, 9)))
    for side, at in (("moving", [7, 7]), ("fixed", [7, 6])):
        channels = result[f"{side}_label"].as_tensor()
        assert (channels == 1).nonzero().tolist() == [[0, *at]] and not channels[1].any()
    assert [points.labels for points in matched(moving, fixed)] == [("PC",), ("PC",)]


def test_an_image_is_a_map_and_is_resampled_as_a_label(tmp_path):
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    maps = 200 * rand(8, 9, 7).numpy()
    files = [write_nifti(tmp_path / f"{n}.nii.gz", maps + n, affine) for n in range(2)]
    image = MetaTensor(torch.zeros(1, 8, 9, 7), affine=torch.as_tensor(affine))
    pair = {"moving_image": image, "fixed_image": image, "moving_points": files[0], "fixed_points": files[1]}
    labels = {f"{side}_label": MetaTensor(torch.as_tensor(maps + n)[None], affine=torch.as_tensor(affine))
              for n, side in enumerate(("moving", "fixed"))}  # fmt: skip
    grid = RegistrationGridd((10, 10, 10), 1.2)
    expected = grid(SoIGroupsd(soi_labels=None)(pair | labels))
    result = AddLandmarkChannelsd([["*"]])(grid(pair))
    for side in ("moving", "fixed"):
        assert max_abs(result[f"{side}_label"].as_tensor(), expected[f"{side}_label"].as_tensor()) < 1e-6


def test_augmentation_takes_landmarks_along_with_the_image(tmp_path):
    """The image is its own landmark map: after a random deformation it still is."""
    at = [[8.3, 11.6, 9.1], [14.2, 7.0, 12.5]]
    size, affine = (22, 20, 21), np.eye(4)
    pair = pair_on_grid(*(points_at(tmp_path, side, at) for side in "mf"), affine, size)
    pair = AddLandmarkChannelsd([["*"]], width=3)(pair)
    pair["fixed_image"] = MetaTensor(pair["fixed_label"].as_tensor().clone(), affine=torch.eye(4))
    keys = ["fixed_image", "fixed_label"]
    result = RandDeformd(keys, size, prob=1.0).set_random_state(0)(pair)
    assert max_abs(result["fixed_label"].as_tensor(), pair["fixed_label"].as_tensor()) > 0.1
    assert max_abs(result["fixed_label"].as_tensor(), result["fixed_image"].as_tensor()) < 1e-6


# --- a structure that an image lacks ---------------------------------------------------------------------------------


def soi_with(missing_moving=(), missing_fixed=(), size=(6, 7)) -> torch.Tensor:
    """Label ``(1, 4, *S)``, two channels moving and fixed; those named are empty."""
    label = rand(1, 4, *size, seed=9)
    for channel in missing_moving:
        label[:, channel] = 0
    for channel in missing_fixed:
        label[:, 2 + channel] = 0
    return label


def gradients(variant: str, label: torch.Tensor, similarity=None) -> tuple[torch.Tensor, ISTNOutput]:
    """The loss, and an output whose fields' gradients it filled."""
    output = ISTNOutput(*(part.requires_grad_() for part in random_output(batch=1, channels=2)))
    loss = ISTNLoss(variant, similarity)(output, label)
    loss.backward()
    return loss, output


@pytest.mark.parametrize("similarity", [None, DiceMSELoss()], ids=["mse", "dice+mse"])
@pytest.mark.parametrize("variant", ["s", "e", "i"])
def test_a_structure_missing_in_one_image_teaches_nothing_there(variant, similarity):
    """Channel 1 is not annotated in the moving image: no gradient from it, but from the fixed one's own in Eq. 1."""
    loss, output = gradients(variant, soi_with(missing_moving=[1]), similarity)
    whole, full = gradients(variant, soi_with(), similarity)
    assert torch.isfinite(loss) and loss < whole and torch.isfinite(output.ddf.grad).all() and output.ddf.grad.any()
    if variant == "s":
        return
    moving, fixed = output.moving_representation.grad, output.fixed_representation.grad
    assert not moving[:, 1].any() and moving[:, 0].any() and fixed[:, 0].any()
    assert fixed[:, 1].any() == (variant == "e")
    assert full.moving_representation.grad[:, 1].any(), "the test sees what there is to see"


@pytest.mark.parametrize("variant", ["s", "e", "i"])
def test_without_any_common_structure_the_gradient_of_the_warp_is_zero(variant):
    loss, output = gradients(variant, soi_with([0], [1]), DiceMSELoss())
    assert torch.isfinite(loss) and not output.ddf.grad.any()


def test_missing_structures_leave_the_other_pairs_of_a_batch_alone():
    """The mean over a batch is that of its pairs' losses, the missing channel counted as agreeing."""
    output = random_output(batch=2, channels=2)
    label = torch.cat([soi_with(), soi_with([1])])
    assert annotated(label[:, :2]).flatten(1).tolist() == [[True, True], [True, False]]
    single = [ISTNLoss("i")(ISTNOutput(*(p[n : n + 1] for p in output)), label[n : n + 1]) for n in range(2)]
    assert torch.isclose(ISTNLoss("i")(output, label), torch.stack(single).mean())


def test_validation_leaves_missing_structures_out():
    output = {"pred": random_output(batch=1, channels=2), "label": soi_with([1])}
    warped, fixed = warped_and_fixed_soi(output)
    assert fixed[:, 0].any() and not fixed[:, 1].any() and not warped[:, 1].any()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_landmarks_off_the_grid_are_refused_as_labels_are(tmp_path):
    inside, outside = [[4, 4]], [[4, 4], [40, 4], [4, -30]]
    pair = pair_on_grid(points_at(tmp_path, "m", outside), points_at(tmp_path, "f", inside * 3), np.eye(3), (9, 9))
    with pytest.raises(ValueError, match=r"m.csv: only 33 % of its SoI is on the registration grid of \(9, 9\)"):
        AddLandmarkChannelsd([["*"]])(pair)
    AddLandmarkChannelsd([["p0"]])(pair)  # the others are not asked for
    half = points_at(tmp_path, "half", [[4, 4], [12, 4]])
    result = AddLandmarkChannelsd([["p0"], ["p1"]])(pair | {"moving_points": half})
    for side in ("moving", "fixed"):
        assert annotated(result[f"{side}_label"].as_tensor()[None]).flatten().tolist() == [True, False]


def refused(tmp_path, moving: str, fixed: str, *said: str, dims: int = 2, groups=(("*",),)) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        check_points({"training": [{"moving_points": moving, "fixed_points": fixed}]}, dims, groups)
    assert all(part in str(caught.value) for part in ("training[0]", *said)), caught.value


def test_landmark_files_that_cannot_be_used_are_refused_with_place_and_reason(tmp_path):
    good = points_at(tmp_path, "good", [[1, 2], [3, 4]])
    check_points({"training": [{"moving_points": good, "fixed_points": good}]}, 2, [["p1"]])
    check_points({"training": [{}]}, 2, None)
    (tmp_path / "frameless.csv").write_text("label,x,y\np0,1,2\n", encoding="utf-8")
    refused(tmp_path, good, str(tmp_path / "frameless.csv"), "frameless.csv does not say its frame")
    refused(tmp_path, points_at(tmp_path, "other", [[1, 2]], ["q"]), good, "no name is in both files", "'q'", "'p1'")
    refused(tmp_path, points_at(tmp_path, "twice", [[1, 2]] * 2, ["a", "a"]), good, "['a'] are there more than once")
    refused(tmp_path, good, points_at(tmp_path, "deep", [[1, 2, 3]], ["p0"]), "3-D landmarks", "is 2-D")
    refused(tmp_path, good, str(tmp_path / "none.csv"), "no such landmark file")
    refused(tmp_path, good, str(tmp_path / "map.png"), "two landmark files or two maps")
    refused(tmp_path, *[str(tmp_path / "map.png")] * 2, "soi_points must be [['*']]", groups=[["a"], ["b"]])
    with pytest.raises(ValueError, match=r"\[\['tip\*'\]\] are in no pair of the datalist; there are \['p0', 'p1'\]"):
        check_points({"training": [{"moving_points": good, "fixed_points": good}]}, 2, [["*"], ["tip*"]])
    with pytest.raises(ValueError, match=r"training\[0\] has no 'moving_points', which soi_points need"):
        check_points({"training": [{}]}, 2, [["*"]])


@pytest.mark.parametrize("groups", [[], "AC", ["AC"], [[]], [[1]], {"a": 1}])
def test_malformed_groups_are_refused(groups):
    with pytest.raises(ValueError, match="soi_points must be a list of groups of landmark names"):
        check_soi_points(groups)


def test_unknown_maps_and_widths_are_refused():
    with pytest.raises(ValueError, match="points_map must be one of"):
        AddLandmarkChannelsd([["*"]], "blob")
    for width in (0, -1, "4", float("inf")):
        with pytest.raises(ValueError, match="points_width must be a number of mm above 0"):
            AddLandmarkChannelsd([["*"]], width=width)


def test_provided_overlays_name_known_settings():
    from istn_monai.workflow.settings import SETTINGS

    for name in ("landmarks", "synth2d_points"):
        file = Path(__file__).parents[1] / "bundle" / "configs" / f"{name}.json"
        assert set(json.loads(file.read_text(encoding="utf-8"))) <= set(SETTINGS)
