"""Tests of `istn_monai.workflow.evaluation`: metrics by hand, tables, files."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import ball, perturb, small_istn, write_nifti
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.frames import lps
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import world_transform
from istn_monai.io.itk_transforms import to_itk
from istn_monai.io.landmarks import Points, write_points
from istn_monai.metrics import FIELD_METRICS, box_of, inverse_consistency
from istn_monai.networks import ISTN, DisplacementNetwork
from istn_monai.qa.cohort import Entry
from istn_monai.qa.rules import traffic_light
from istn_monai.workflow.evaluation import (
    TABLE_TITLES,
    Evaluation,
    evaluation_folder,
    label_map,
    pair_metrics,
    soi_values,
    statistics,
    summarize,
    table,
)
from istn_monai.workflow.pair_metrics import merged_soi
from istn_monai.workflow.progress import Done, FieldSpread, Progress

SHAPE = (20, 22, 18)


def meta(array, spacing: float = 1.0, name: str = "x") -> MetaTensor:
    tensor = torch.as_tensor(np.asarray(array, np.float32))[None]
    affine = torch.diag(torch.tensor([spacing] * (tensor.ndim - 1) + [1.0]))
    return MetaTensor(tensor, affine=affine, meta={"filename_or_obj": f"/data/{name}.nii.gz"})


def labels_at(center, values=(1, 2), shape=SHAPE) -> np.ndarray:
    """Two balls beside each other."""
    first = ball(shape, center, 3).astype(int)
    second = ball(shape, [c + 6 * (axis == 1) for axis, c in enumerate(center)], 2).astype(int)
    return values[0] * first + values[1] * second


def pair_of_labels(moving, fixed, spacing: float = 1.0) -> dict:
    moving, fixed = meta(moving, spacing, "moving"), meta(fixed, spacing, "fixed")
    image = MetaTensor(torch.cat([moving, fixed]).as_tensor(), affine=fixed.affine)
    pair = {"moving_image": moving, "fixed_image": fixed, "moving_label": moving, "fixed_label": fixed}
    return pair | {f"{key}_original": value for key, value in pair.items()} | {"image": image}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def zero_ddf(shape=SHAPE) -> torch.Tensor:
    return torch.zeros(1, len(shape), *shape)


# --- metrics of a pair -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(1, 2), (23, 59)])
@pytest.mark.parametrize("shape, centers", [(SHAPE, ((8, 8, 9), (9, 9, 9))), ((24, 26), ((10, 9), (11, 11)))])
def test_metrics_of_the_identity_are_those_of_the_labels(values, shape, centers):
    moving, fixed = (labels_at(center, values, shape) for center in centers)
    metrics = pair_metrics(pair_of_labels(moving, fixed), zero_ddf(shape), [[values[0]], [values[1]]])
    assert metrics["dice_merged"] == pytest.approx(dice(moving > 0, fixed > 0), abs=1e-6)
    single = [dice(moving == value, fixed == value) for value in values]
    for value, expected in zip(values, single, strict=True):
        assert metrics[f"dice_{value}"] == pytest.approx(expected, abs=1e-6)
    assert metrics["dice_labels"] == pytest.approx(np.mean(single), abs=1e-6)
    assert metrics["folding"] == 0 and metrics["sdlogj"] == 0
    assert 0 < metrics["asd_merged"] < metrics["hd95_merged"] < 4


@pytest.mark.parametrize("values", [(1, 2), (23, 30)])
@pytest.mark.parametrize("shift", [(2, 0, 0), (1, -2, 3)])
def test_the_true_shift_registers_perfectly(values, shift):
    """fixed(x) = moving(x + shift): the ball of the fixed image lies at center - shift."""
    moving = labels_at((9, 8, 9), values)
    fixed = labels_at([c - s for c, s in zip((9, 8, 9), shift, strict=True)], values)
    ddf = zero_ddf() + torch.tensor(shift).view(1, 3, 1, 1, 1)
    pair, groups = pair_of_labels(moving, fixed), [list(values)]
    assert pair_metrics(pair, zero_ddf(), groups)["dice_merged"] < 0.8
    metrics = pair_metrics(pair, ddf, groups)
    for name in ("dice_merged", "dice_labels", *(f"dice_{value}" for value in values)):
        assert metrics[name] == pytest.approx(1.0)
    assert metrics["asd_merged"] == metrics["hd95_merged"] == 0
    assert pair_metrics(pair, -ddf, groups)["dice_merged"] < 0.5, "the wrong direction"


def test_labels_outside_the_groups_do_not_count():
    moving, fixed = labels_at((8, 8, 9), (1, 7)), labels_at((8, 8, 9), (1, 2))
    metrics = pair_metrics(pair_of_labels(moving, fixed), zero_ddf(), [[1]])
    assert metrics["dice_merged"] == metrics["dice_1"] == pytest.approx(1)
    assert "dice_7" not in metrics and "dice_2" not in metrics


def test_three_labels_in_two_groups_have_metrics_each():
    moving = labels_at((8, 8, 9), (23, 30)) + 59 * ball(SHAPE, (15, 15, 5), 2)
    metrics = pair_metrics(pair_of_labels(moving, moving), zero_ddf(), [[59, 23], [30]])
    assert {f"dice_{value}" for value in (23, 30, 59)} <= set(metrics)
    assert metrics["dice_labels"] == pytest.approx(1)


def test_maps_are_cut_at_half_their_maximum():
    """soi_labels None: a map of any scale; at half its maximum it is the ball's mask."""
    distance = np.linalg.norm(np.indices(SHAPE).T - np.array([9, 9, 9]), axis=-1).T
    soft = 80 / (1 + np.exp(2 * (distance - 4.1)))
    moved = np.roll(soft, 3, 0)
    metrics = pair_metrics(pair_of_labels(moved, soft), zero_ddf(), None)
    masks = [m > m.max() / 2 for m in (moved, soft)]
    assert metrics["dice_merged"] == metrics["dice_labels"] == pytest.approx(dice(*masks), abs=1e-6)
    ddf = zero_ddf()
    ddf[:, 0] = 3
    assert pair_metrics(pair_of_labels(moved, soft), ddf, None)["dice_merged"] == pytest.approx(1)


def test_distances_are_in_mm():
    moving, fixed = labels_at((8, 8, 9)), labels_at((10, 8, 9))
    small, large = (pair_metrics(pair_of_labels(moving, fixed, s), zero_ddf(), [[1, 2]]) for s in (1.0, 2.5))
    for name in ("asd_merged", "hd95_merged"):
        assert large[name] == pytest.approx(2.5 * small[name], rel=1e-5) and small[name] > 0
    assert large["dice_merged"] == pytest.approx(small["dice_merged"])


def test_a_label_that_is_missing_has_dice_zero_and_nan_distances():
    moving = 1 * ball(SHAPE, (8, 8, 9), 3).astype(int)
    metrics = pair_metrics(pair_of_labels(moving, labels_at((8, 8, 9))), zero_ddf(), [[1], [2]])
    assert metrics["dice_2"] == 0 and math.isnan(metrics["asd_2"]) and math.isnan(metrics["hd95_2"])
    assert metrics["dice_labels"] == pytest.approx(0.5)


def test_landmark_error_is_zero_for_the_true_motion_and_its_length_before(tmp_path):
    """The moving landmark lies 2 voxels (5 mm) further along the first axis, and 7 mm by the initial alignment."""
    label = labels_at((8, 8, 9))
    pair = pair_of_labels(label, label, spacing=2.5)
    fixed = torch.tensor([[20.0, 25.0, 20.0], [10.0, 30.0, 15.0]], dtype=torch.float64)
    moving = fixed + torch.tensor([5.0, 0.0, 7.0], dtype=torch.float64)
    for side, positions in (("fixed", fixed), ("moving", moving)):
        pair[f"{side}_points"] = str(write_points(Points(positions, ("a", "b")), tmp_path / f"{side}.csv"))
    start = torch.eye(4, dtype=torch.float64)
    start[2, 3] = 7.0
    pair["initial_alignment"] = start
    ddf = zero_ddf()
    assert pair_metrics(pair, ddf, [[1, 2]])["tre"] == pytest.approx(5.0)
    ddf[:, 0] = 2.0
    metrics = pair_metrics(pair, ddf, [[1, 2]])
    assert metrics["tre"] == pytest.approx(0.0, abs=1e-5) and metrics["tre_median"] == pytest.approx(0.0, abs=1e-5)
    assert pair_metrics(pair, -ddf, [[1, 2]])["tre"] == pytest.approx(10.0), "the wrong direction"
    write_points(Points(moving.flip(0), ("b", "a")), tmp_path / "moving.csv")
    assert pair_metrics(pair, ddf, [[1, 2]])["tre"] == pytest.approx(0.0, abs=1e-5), "they correspond by name"
    write_points(Points(moving[:1], ("a",)), tmp_path / "moving.csv")
    assert pair_metrics(pair, ddf, [[1, 2]])["tre"] == pytest.approx(0.0, abs=1e-5), "b has no counterpart"
    write_points(Points(moving[:1], ("c",)), tmp_path / "moving.csv")
    with pytest.raises(ValueError, match=r"no name is in both files: \['c'\] in .*moving.csv and \['a', 'b'\] in"):
        pair_metrics(pair, ddf, [[1, 2]])


def test_soi_that_is_moved_out_of_sight_has_dice_zero():
    label = labels_at((8, 8, 9))
    metrics = pair_metrics(pair_of_labels(label, label), zero_ddf() + 100, [[1, 2]])
    assert metrics["dice_merged"] == 0 and math.isnan(metrics["asd_merged"])


def test_folding_is_counted():
    ddf = zero_ddf()
    ddf[:, 0, 10:] = -5.0  # everything beyond row 10 comes from five rows before: rows fold there
    metrics = pair_metrics(pair_of_labels(labels_at((8, 8, 9)), labels_at((8, 8, 9))), ddf, [[1, 2]])
    assert metrics["folding"] == pytest.approx(2 / SHAPE[0]) and metrics["sdlogj"] > 0


def test_a_field_is_measured_in_mm_of_its_grid_and_by_the_names_of_everywhere():
    label = labels_at((8, 8, 9))
    metrics = pair_metrics(pair_of_labels(label, label, spacing=1.5), zero_ddf() + 2, [[1, 2]])
    assert set(FIELD_METRICS) <= set(metrics)
    assert metrics["displacement_mm"] == metrics["max_displacement_mm"] == pytest.approx(2 * 1.5 * 3**0.5)
    assert metrics["displacement"] == pytest.approx(2 * 3**0.5 / min(SHAPE))


def test_small_functions():
    assert soi_values([[59, 2], [23]]) == [2, 23, 59] and soi_values(None) == [1]
    assert label_map(meta(4 * ball((6, 6), (3, 3), 2)), None).max() == 1
    assert label_map(meta(4 * ball((6, 6), (3, 3), 2)), [[4]]).max() == 4
    large = torch.tensor([[[312782546, 312782550]]], dtype=torch.int32)
    assert merged_soi(label_map(MetaTensor(large), [[312782550]]), [[312782550]]).tolist() == [[[[0.0, 1.0]]]]
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[0, 4] = mask[3, 5] = True
    assert box_of(mask) == (slice(0, 6), slice(2, 8))


# --- summary ---------------------------------------------------------------------------------------------------------


def test_statistics_by_hand_ignoring_nan():
    assert statistics([1.0, 2.0, 6.0, float("nan")]) == {
        "mean": 3.0,
        "std": pytest.approx(math.sqrt((4 + 1 + 9) / 3)),
        "median": 2.0,
        "n": 3,
    }
    nothing = statistics([float("nan")] * 2)
    assert nothing["n"] == 0 and math.isnan(nothing["mean"])


def test_summary_is_by_method_and_of_numbers_alone():
    rows = [
        {"pair": n, "moving": "m", "method": method, "dice_merged": value, "asd_merged": distance}
        for n, method, value, distance in [
            (0, "Id", 0.5, 2.0), (0, "one-pass", 0.8, float("nan")), (1, "Id", 0.7, 4.0), (1, "one-pass", 0.6, 1.0)
        ]
    ]  # fmt: skip
    summary = summarize(rows)
    assert list(summary) == ["Id", "one-pass"] and set(summary["Id"]) == {"dice_merged", "asd_merged"}
    assert summary["Id"]["dice_merged"]["mean"] == pytest.approx(0.6)
    assert summary["Id"]["dice_merged"]["std"] == pytest.approx(0.1)
    assert summary["Id"]["asd_merged"]["mean"] == pytest.approx(3)
    assert summary["one-pass"]["asd_merged"] == {"mean": 1.0, "std": 0.0, "median": 1.0, "n": 1}
    assert summary["one-pass"]["dice_merged"]["n"] == 2


def test_summary_when_only_the_first_pair_lacks_a_distance():
    rows = [{"method": "Id", "asd_merged": value} for value in (float("nan"), 3.0)]
    assert summarize(rows)["Id"]["asd_merged"]["mean"] == 3.0


def test_table_has_a_line_for_each_method_and_folding_in_percent():
    metrics = {name: statistics([0.25, 0.75]) for name in TABLE_TITLES}
    text = table({"Id": metrics, "refined": metrics})
    lines = text.splitlines()
    assert len(lines) == 3 and lines[1].startswith("Id") and lines[2].startswith("refined")
    assert "0.500+-0.250" in lines[1] and "50.000+-25.000" in lines[1]
    assert len({len(line) for line in lines}) == 1


# --- Evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def evaluation(tmp_path):
    size = (16, 18)
    network = perturb(DisplacementNetwork(small_istn(size)), scale=0.02)
    centers = [((8, 6), (8, 7)), ((7, 6), (9, 7)), ((8, 7), (7, 7))]
    pairs = [pair_of_labels(*(labels_at(c, (1, 2), size) for c in both)) for both in centers]
    return Evaluation(
        pairs,
        network.train(),
        {"one-pass": SimpleInferer(), "still": lambda image, _: torch.zeros(1, 2, *size)},
        tmp_path / "deep" / "out",
        [[1], [2]],
        provenance={"checkpoint": "/x/model.pt"},
    )


def test_evaluation_writes_what_it_returns(evaluation, capsys):
    result = evaluation.run()
    folder = evaluation.output_dir
    assert json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) == result
    with open(folder / "evaluation.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["pair"], row["method"]) for row in rows] == [
        (str(n), method) for n in range(3) for method in ("Id", "one-pass", "still")
    ]
    for written, row in zip(rows, result["pairs"], strict=True):
        assert set(written) == set(row)
        assert all(float(written[k]) == pytest.approx(v, nan_ok=True) for k, v in row.items() if isinstance(v, float))
        assert written["moving"] == "/data/moving.nii.gz" and written["fixed"] == "/data/fixed.nii.gz"
    for method in ("Id", "one-pass", "still"):
        values = [float(row["dice_merged"]) for row in rows if row["method"] == method]
        assert result["summary"][method]["dice_merged"]["mean"] == pytest.approx(np.mean(values))
        assert result["summary"][method]["dice_merged"]["std"] == pytest.approx(np.std(values))
    assert result["provenance"]["checkpoint"] == "/x/model.pt" and "monai" in result["provenance"]
    printed = capsys.readouterr().out
    assert "one-pass" in printed and str(folder / "evaluation.csv") in printed


def test_evaluation_of_the_identity_is_that_of_the_labels_and_the_network_is_used(evaluation):
    rows = evaluation.evaluate_pair(1)
    moving, fixed = labels_at((7, 6), shape=(16, 18)), labels_at((9, 7), shape=(16, 18))
    by_method = {row["method"]: row for row in rows}
    assert by_method["Id"]["dice_merged"] == pytest.approx(dice(moving > 0, fixed > 0), abs=1e-6)
    assert by_method["Id"]["seconds"] == 0 < by_method["one-pass"]["seconds"]
    for name in ("dice_merged", "asd_merged", "folding"):
        assert by_method["still"][name] == by_method["Id"][name]
    pair = evaluation.dataset[1]
    ddf = evaluation.network(pair["image"].as_tensor()[None]).detach()
    assert ddf.abs().max() > 0.1
    expected = pair_metrics(pair, ddf, [[1], [2]])
    assert {k: by_method["one-pass"][k] for k in expected} == pytest.approx(expected, nan_ok=True)


def test_both_ways_it_says_how_far_the_two_fields_are_from_inverses(evaluation):
    assert all("inverse_consistency" not in row for row in evaluation.evaluate_pair(1))
    evaluation.both_ways = True
    rows = {row["method"]: row["inverse_consistency"] for row in evaluation.evaluate_pair(1)}
    image = evaluation.dataset[1]["image"].as_tensor()[None]
    swapped = torch.cat([image[:, 1:], image[:, :1]], dim=1)
    with torch.no_grad():
        there, back = evaluation.network(image), evaluation.network(swapped)
    assert rows["Id"] == rows["still"] == 0.0 < rows["one-pass"]
    assert rows["one-pass"] == pytest.approx(inverse_consistency(there, back, (1.0, 1.0))["inverse_consistency"])


class Turn(torch.nn.Module):
    """An STN that gives the same parameters for any pair: of an affine transformation, or of several lattices."""

    def __init__(self, theta: torch.Tensor) -> None:
        super().__init__()
        self.theta = torch.nn.Parameter(theta)

    def forward(self, representations: torch.Tensor) -> torch.Tensor:
        return self.theta.expand(len(representations), -1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["affine", "bspline"])
def test_beyond_the_registration_grid_it_judges_the_transform_that_is_written(tmp_path, dims, kind):
    """Labels and landmarks far outside of a small registration grid, on an oblique fixed image; the oracle is ITK."""
    size = (12, 14, 11)[:dims]
    transformation = (
        AffineTransformation(size) if kind == "affine" else BSplineTransformation(size, 1.0, 4.0, max_displacement=3.0)
    )
    theta = torch.full((1, transformation.num_parameters), 0.6) * torch.linspace(-1, 1, transformation.num_parameters)
    network = DisplacementNetwork(ISTN(None, Turn(theta), transformation)).eval()
    turn = torch.eye(dims + 1, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    turn[:dims, dims] = torch.tensor([-4.0, -14.0, -7.0], dtype=torch.float64)[:dims]
    both = (34, 38, 30)[:dims]
    fixed = MetaTensor(torch.as_tensor(ball(both, [s / 2 + 2 for s in both], 11))[None].float(), affine=turn)
    moving = MetaTensor(torch.as_tensor(ball(both, [s / 2 + 1 for s in both], 10))[None].float(), affine=turn)
    for image in (fixed, moving):
        image.meta["filename_or_obj"] = "x"
    image = MetaTensor(torch.rand(2, *size), affine=torch.eye(dims + 1, dtype=torch.float64))
    corners = Grid.of(fixed).corners().T[:, :dims]
    pair = {"moving_image": moving, "fixed_image": fixed, "image": image}
    pair |= {"moving_label": moving, "fixed_label": fixed}
    pair |= {f"{side}_label_original": {"moving": moving, "fixed": fixed}[side] for side in ("moving", "fixed")}
    names = [str(number) for number in range(len(corners))]
    for side in ("moving", "fixed"):
        pair[f"{side}_points"] = str(write_points(Points(corners, names), tmp_path / f"{side}.csv"))
    row = Evaluation([pair], network, {"one-pass": SimpleInferer()}, tmp_path, [[1]]).evaluate_pair(0)[1]

    written = to_itk(world_transform(transformation, theta, Grid.of(image)))
    flip = lps(dims)
    errors = [np.linalg.norm(flip @ written.TransformPoint((flip @ p).tolist()) - p) for p in corners.numpy()]
    assert row["tre"] == pytest.approx(np.mean(errors), abs=1e-4)
    images = [sitk.GetImageFromArray(label[0].numpy().T) for label in (moving, fixed)]
    for single in images:
        axes = (flip @ turn.numpy()[:dims, :dims]).ravel().tolist()
        single.SetDirection(axes)
        single.SetOrigin((flip @ turn.numpy()[:dims, dims]).tolist())
    warped = sitk.GetArrayFromImage(sitk.Resample(images[0], images[1], written, sitk.sitkLinear, 0.0)) > 0.5
    assert row["dice_merged"] == pytest.approx(dice(warped, sitk.GetArrayFromImage(images[1]) > 0.5), abs=2e-3)


def test_evaluation_puts_the_network_into_eval_mode(evaluation):
    assert evaluation.network.training
    evaluation.run()
    assert not evaluation.network.training


def test_json_of_a_pair_with_nan_is_json(evaluation):
    """Other programs than Python do not read NaN."""
    size = (16, 18)
    without = 1 * ball(size, (8, 7), 3).astype(int)
    evaluation.dataset[0] = pair_of_labels(without, labels_at((8, 7), shape=size))
    evaluation.run()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads((evaluation.output_dir / "evaluation.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(("given", "other"), [("moving_points", "fixed_points"), ("fixed_points", "moving_points")])
def test_landmarks_of_one_side_alone_are_said(evaluation, given, other):
    evaluation.dataset[1][given] = "p.csv"
    with pytest.warns(UserWarning, match=f"pair 1 has {given} without {other}: no landmarks are measured"):
        evaluation.run()


@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_missing_label_is_named(evaluation, side):
    for key in (f"{side}_label", f"{side}_label_original"):
        del evaluation.dataset[2][key]
    with pytest.raises(ValueError, match=f"needs '{side}_label' for each pair; pair 2 has none"):
        evaluation.run()
    assert json.loads((evaluation.output_dir / "evaluation.json").read_text(encoding="utf-8"))["failures"].keys() == {
        "pair 2"
    }


def test_maps_have_a_row_each(evaluation):
    evaluation.soi_labels = None
    row = evaluation.evaluate_pair(0)[0]
    assert row["dice_labels"] == row["dice_merged"] and not math.isnan(row["dice_merged"])


# --- once more -------------------------------------------------------------------------------------------------------


@pytest.fixture
def repeated(evaluation, tmp_path):
    """An evaluation whose pairs are of files, which a repeated one knows by their content."""
    evaluation.items = [
        {f"{side}_image": str(write_nifti(tmp_path / f"{side}_{n}.nii.gz", np.full((3, 3), n / 2)))
         for side in ("moving", "fixed")} for n in range(3)
    ]  # fmt: skip
    evaluation.dataset = Watched(evaluation.dataset)
    return evaluation


class Watched(list):
    """Pairs that note which of them were asked for, and raise what is wished."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.seen, self.errors = [], {}

    def __getitem__(self, number):
        self.seen.append(number)
        if number in self.errors:
            raise self.errors[number]
        return super().__getitem__(number)


def without_seconds(result):
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result["pairs"]]
    return rows, result["field_std_voxels"]


def test_an_evaluation_that_is_there_is_not_made_again(repeated, capsys):
    repeated.run()
    before, repeated.dataset.seen = state_of(repeated.output_dir), []
    assert without_seconds(repeated.run()) == without_seconds(json.loads(before["evaluation.json"]))
    assert repeated.dataset.seen == [] and state_of(repeated.output_dir) == before
    assert f"evaluated before: {repeated.output_dir / 'evaluation.json'}" in capsys.readouterr().out
    (repeated.output_dir / "evaluation.csv").unlink()
    repeated.run()
    assert repeated.dataset.seen == [0, 1, 2] and set(state_of(repeated.output_dir)) == set(before)


def state_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_another_evaluation_is_named_and_replaced_on_demand_alone(repeated):
    (repeated.output_dir / "models").mkdir(parents=True)  # a training run's, which stay
    (repeated.output_dir / "models" / "model.pt").write_text("mine", encoding="utf-8")
    repeated.run()
    for change, said in (
        (lambda e: e.options.update(split="validation"), "options.split: None then, 'validation' now"),
        (lambda e: e.items[1].update(moving_image=e.items[2]["moving_image"]), "pair 1: moving_image: other content"),
        (lambda e: e.items.append({}), "3 pairs then, 4 now"),
        (lambda e: next(e.network.parameters()).data.add_(1), "weights: another one then"),
    ):
        change(repeated)
        with pytest.raises(FileExistsError, match=f"is another evaluation .*{said}.*--overwrite"):
            repeated.run()
        repeated.overwrite = True
        repeated.run()
        repeated.overwrite = False
    assert {file.name for file in repeated.output_dir.iterdir()} == {"evaluation.csv", "evaluation.json", "models"}
    assert (repeated.output_dir / "models" / "model.pt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_an_evaluation_goes_on_with_what_is_missing_and_is_the_same_in_the_end(repeated, tmp_path, end):
    """After an interruption nothing is written; after a failed pair all but that, and a page that names it."""
    whole = without_seconds(repeated.run())
    repeated.overwrite = True
    repeated.output_dir = tmp_path / "new"
    repeated.results = evaluation_folder(tmp_path / "new")
    repeated.dataset.errors = {1: end("no such thing")}
    with pytest.raises(end, match="1 of 3 pairs failed .pair 1: no such thing" if end is ValueError else "no such"):
        repeated.run()
    written = {file.name for file in (tmp_path / "new").glob("[!.]*")}
    assert written == (set() if end is KeyboardInterrupt else {"evaluation.csv", "evaluation.json"})
    repeated.overwrite, repeated.dataset.errors, repeated.dataset.seen = False, {}, []
    rows, spread = without_seconds(repeated.run())
    assert repeated.dataset.seen == ([1, 2] if end is KeyboardInterrupt else [1])
    assert rows == whole[0] and spread == pytest.approx(whole[1], rel=1e-12)
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"evaluation.csv", "evaluation.json"}
    assert "failures" not in json.loads((tmp_path / "new" / "evaluation.json").read_text(encoding="utf-8"))


def test_what_an_evaluation_has_done_survives_with_pages_and_only_for_the_same(tmp_path):
    entry = Entry("pair_0003", "a → b", traffic_light({"folding": 0.0, "sdlogj": 0.1}).report(), b"picture", view=b"{}")
    done = Done({3: [{"pair": 3, "method": "Id", "tre": float("nan")}]}, {3: entry}, {"Id": FieldSpread()})
    done.spread["Id"].add(torch.ones(1, 2, 4, 5))
    progress = Progress(tmp_path / ".pairs", {"weights": "a"})
    progress.earlier()
    progress.keep(done, 3)
    (tmp_path / ".pairs" / "cut.pt").write_bytes(progress.file.read_bytes()[:100])  # of a killed process
    found = Progress(tmp_path / ".pairs", {"weights": "a"}).earlier()
    assert found.entries == {3: entry} and list(found.rows) == [3] and found.spread["Id"].number == 1
    assert Progress(tmp_path / ".pairs", {"weights": "b"}).earlier() == Done()
    assert Progress(tmp_path / ".pairs", {"weights": "a"}).earlier() == Done()


def test_the_datalist_and_files_of_others_are_not_replaced(repeated):
    repeated.output_dir.mkdir(parents=True)
    datalist = repeated.output_dir / "evaluation.json"
    datalist.write_text('{"testing": []}', encoding="utf-8")
    read = {"datalist": str(repeated.output_dir / ".." / "out" / "evaluation.json")}
    for repeated.read, repeated.overwrite in ((read, False), (read, True), ({}, False), ({}, True)):  # noqa: B020
        with pytest.raises(FileExistsError, match="would be replaced by a result|left alone"):
            repeated.run()
    assert state_of(repeated.output_dir) == {"evaluation.json": b'{"testing": []}'} and repeated.dataset.seen == []


def test_fields_on_grids_of_different_sizes_have_no_spread():
    """A registration grid covers its fixed image: some are larger."""
    spread = FieldSpread()
    for size in ((4, 5), (4, 6), (4, 5)):
        spread.add(torch.ones(1, 2, *size))
    assert spread.number == 3 and math.isnan(spread.std())
