"""Representations for other engines: their files, where these lie, what is refused, and the joined transforms."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import ball, random_checkpoint, write_json, write_nifti
from oracles import rng
from scipy.spatial.transform import Rotation

from istn_monai.__main__ import main, register
from istn_monai.apply import apply_transform
from istn_monai.compose import compose_files
from istn_monai.engines import Representing
from istn_monai.geometry.components import WorldAffine
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.itk_transforms import read_transform, write_transform
from istn_monai.registration import Registration, register_datalist, register_files
from istn_monai.workflow.representations import WORLDS

ROOT = Path(__file__).parents[1]
SHAPES = {"moving": (17, 14, 15), "fixed": (14, 18, 12)}
SETTINGS = {
    "loss": "e", "transformation": "affine", "spatial_size": [16, 20, 14], "spacing": 1.0, "soi_labels": [[1], [2]],
    "initial_alignment": "world",
}  # fmt: skip
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def turned(*angles: float) -> np.ndarray:
    return Rotation.from_euler("xyz", angles).as_matrix()


def matrix_of(turn: np.ndarray, shift) -> np.ndarray:
    matrix = np.eye(len(turn) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = turn, shift
    return matrix


RIGID = matrix_of(turned(0.3, -0.2, 0.25), [2.0, -1.0, 1.5])
AFFINE = RIGID @ matrix_of(np.array([[1.1, 0.2, 0], [0, 0.9, 0.1], [0, 0, 1.05]]), [0, 0, 0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of two structures, 3-D."""
    return random_checkpoint(tmp_path_factory.mktemp("weights"), SETTINGS)["ckpt_dir"] + "/model.pt"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Oblique, anisotropic images of different grids, which overlap."""
    folder = tmp_path_factory.mktemp("pair")
    files = {}
    for number, (side, shape) in enumerate(SHAPES.items()):
        values = ball(shape, [n / 2 for n in shape], 4) + 0.1 * rng(number).random(shape)
        axes = turned(0.2 - 0.3 * number, 0.1, 0.4 * number) * [1.2, 0.9, 1.5 - 0.4 * number]
        affine = matrix_of(axes, -axes @ [(n - 1) / 2 for n in shape])
        files[f"{side}_image"] = write_nifti(folder / f"{side}.nii.gz", values.astype(np.float32), affine)
    return files


def start_file(folder, matrix):
    return str(
        write_transform(WorldTransform([WorldAffine(torch.as_tensor(matrix))], len(matrix) - 1), folder / "t.tfm")
    )


def written(folder, pair, weights, world="own", **settings):
    register_files(Representing(weights, world=world, device="cpu", **settings), folder, **pair)
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def at_points(image: sitk.Image, points: np.ndarray) -> np.ndarray:
    """Values of an image at LPS points, linear; NaN outside."""
    index = np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in points.tolist()])
    inside = ((index >= 0) & (index <= np.array(image.GetSize()) - 1)).all(axis=1)
    values = np.full(len(points), np.nan)
    values[inside] = [image.EvaluateAtContinuousIndex(place) for place in index[inside].tolist()]
    return values


def points_of(image: sitk.Image) -> np.ndarray:
    places = np.indices(image.GetSize()).reshape(image.GetDimension(), -1).T
    return np.array([image.TransformIndexToPhysicalPoint(place) for place in places.tolist()])


def test_channels_of_both_sides_the_start_and_a_report_are_written(tmp_path, pair, weights):
    names = written(tmp_path / "out", pair, weights)
    channels = [f"{side}_{number:04d}.nii.gz" for side in ("fixed", "moving") for number in range(2)]
    assert names == [*channels[:2], "initial.tfm", *channels[2:], "report.json"]
    for name in channels:
        image = sitk.ReadImage(str(tmp_path / "out" / name))
        assert image.GetDimension() == 3 and image.GetPixelID() == sitk.sitkFloat32
        assert image.GetNumberOfComponentsPerPixel() == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["options"]["engine"] == "none" and report["options"]["world"] == "own"
    assert set(report["inputs"]) == set(pair) and report["representations"]["moving"]["channels"] == 2
    assert sorted(report["files"]) == names and len(report["weights_sha256"]) == 64


@pytest.mark.parametrize(
    "matrix, world",
    [(np.eye(4), "own"), (RIGID, "own"), (RIGID, "aligned"), (AFFINE, "aligned")],
    ids=["identity-own", "rigid-own", "rigid-aligned", "affine-aligned"],
)
def test_the_written_start_takes_each_point_of_f_to_its_place_in_m(tmp_path, pair, weights, matrix, world):
    """SimpleITK alone finds M' of the registration grid at T0 of its points; an identity is written, too."""
    settings = {"initial_alignment": start_file(tmp_path, matrix)}
    written(tmp_path / "out", pair, weights, world, **settings)
    start = sitk.ReadTransform(str(tmp_path / "out" / "initial.tfm"))
    assert start.GetName() == "AffineTransform"
    wanted = FLIP @ matrix @ FLIP
    expected = Registration(weights, 0, device="cpu", qa=False, **settings)(pair)["moving_representation"].numpy()
    for number in range(2):
        fixed, moving = (
            sitk.ReadImage(str(tmp_path / "out" / f"{s}_{number:04d}.nii.gz")) for s in ("fixed", "moving")
        )
        points = points_of(fixed)
        there = np.array([start.TransformPoint(point) for point in points.tolist()])
        assert np.abs(there - (points @ wanted[:3, :3].T + wanted[:3, 3])).max() < 1e-5
        values = at_points(moving, points if world == "aligned" else there)
        known = ~np.isnan(values)
        assert known.mean() > 0.5
        assert np.abs(values - expected[number].ravel())[known].max() < 1e-4 * np.ptp(expected)


def test_of_a_sheared_start_m_lies_on_the_moving_images_own_grid(tmp_path, pair, weights):
    """And has there what SimpleITK makes of M' on the registration grid by the inverse of T0."""
    settings = {"initial_alignment": start_file(tmp_path, AFFINE)}
    written(tmp_path / "own", pair, weights, **settings)
    written(tmp_path / "aligned", pair, weights, "aligned", **settings)
    image = sitk.ReadImage(pair["moving_image"])
    back = sitk.ReadTransform(str(tmp_path / "own" / "initial.tfm")).GetInverse()
    for number in range(2):
        own, aligned = (sitk.ReadImage(str(tmp_path / world / f"moving_{number:04d}.nii.gz")) for world in WORLDS)
        assert own.GetSize() == image.GetSize()
        for name in ("GetOrigin", "GetSpacing", "GetDirection"):
            assert np.allclose(getattr(own, name)(), getattr(image, name)(), atol=1e-5)
        low = float(sitk.GetArrayViewFromImage(aligned).min())
        expected = sitk.GetArrayFromImage(sitk.Resample(aligned, image, back, sitk.sitkLinear, low))
        assert (expected != low).mean() > 0.1
        assert np.abs(sitk.GetArrayFromImage(own) - expected).max() < 1e-4 * np.ptp(expected)


def test_of_a_rigid_start_the_voxels_of_m_are_those_of_the_network(tmp_path, pair, weights):
    settings = {"initial_alignment": start_file(tmp_path, RIGID)}
    written(tmp_path / "out", pair, weights, **settings)
    expected = Registration(weights, 0, device="cpu", qa=False, **settings)(pair)["moving_representation"]
    for number in range(2):
        voxels = np.asarray(nib.load(tmp_path / "out" / f"moving_{number:04d}.nii.gz").dataobj)
        assert np.array_equal(voxels, expected[number].numpy())


def test_in_2d_channels_are_2d_images(tmp_path):
    settings = SETTINGS | {"spatial_size": [24, 20]}
    weights = random_checkpoint(tmp_path / "w", settings)["ckpt_dir"] + "/model.pt"
    affine = np.diag([1.5, 0.8, 1, 1])
    pair = {
        f"{side}_image": write_nifti(tmp_path / f"{side}.nii.gz", rng(n).random(shape).astype(np.float32), affine)
        for n, (side, shape) in enumerate({"moving": (22, 19), "fixed": (18, 25)}.items())
    }
    names = written(tmp_path / "out", pair, weights, initial_alignment="center")
    assert len(names) == 6
    start = sitk.ReadTransform(str(tmp_path / "out" / "initial.tfm"))
    moving, fixed = (sitk.ReadImage(str(tmp_path / "out" / f"{side}_0001.nii.gz")) for side in ("moving", "fixed"))
    assert start.GetDimension() == moving.GetDimension() == fixed.GetDimension() == 2
    index = [3, 5]
    assert np.allclose(
        start.TransformPoint(fixed.TransformIndexToPhysicalPoint(index)), moving.TransformIndexToPhysicalPoint(index)
    )


@pytest.mark.parametrize("world", ["own", "aligned"])
def test_a_known_motion_that_an_engine_finds_moves_the_image_onto_the_fixed_one(tmp_path, pair, weights, world):
    """The moving image is the fixed one elsewhere; what is left after T0 is what a perfect engine would find."""
    truth = matrix_of(turned(-0.2, 0.1, 0.3), [3.0, -2.0, 1.0])  # fixed to moving
    image = nib.load(pair["fixed_image"])
    moving = write_nifti(tmp_path / "moving.nii.gz", np.asarray(image.dataobj), truth @ image.affine)
    own = {"moving_image": moving, "fixed_image": pair["fixed_image"]}
    written(tmp_path / "out", own, weights, world, initial_alignment=start_file(tmp_path, RIGID))
    # from "own" ITK's tools, given initial.tfm, hand back the whole; from "aligned" what comes before T0
    found = truth if world == "own" else np.linalg.inv(RIGID) @ truth
    names = [str(start_file(tmp_path, found))]
    names = names if world == "own" else [str(tmp_path / "out" / "initial.tfm"), *names]
    joined = str(compose_files(names, str(tmp_path / "joined.h5")))
    warped = apply_transform(
        joined, moving, str(tmp_path / "warped.nii.gz"), pair["fixed_image"], interpolation="linear"
    )
    assert np.abs(nib.load(warped).get_fdata() - image.get_fdata()).max() < 1e-3 * np.ptp(image.get_fdata())


def test_a_deformation_after_the_start_counts_the_start_once(tmp_path, pair, weights):
    """As of greedy: the field is before T0, on the fixed grid; SimpleITK resamples as ``apply`` does."""
    written(tmp_path / "out", pair, weights, initial_alignment=start_file(tmp_path, RIGID))
    fixed, moving = (sitk.ReadImage(pair[f"{side}_image"], sitk.sitkFloat32) for side in ("fixed", "moving"))
    values = 0.4 * rng(3).normal(size=(*fixed.GetSize()[::-1], 3))
    field = sitk.GetImageFromArray(values.astype(np.float32), isVector=True)
    field.CopyInformation(fixed)
    sitk.WriteImage(field, str(tmp_path / "warp.nii.gz"))
    start = str(tmp_path / "out" / "initial.tfm")
    joined = str(compose_files([start, str(tmp_path / "warp.nii.gz")], str(tmp_path / "joined.h5")))
    by_hand = sitk.CompositeTransform(3)
    by_hand.AddTransform(sitk.ReadTransform(start))
    by_hand.AddTransform(sitk.DisplacementFieldTransform(sitk.Cast(field, sitk.sitkVectorFloat64)))
    low = float(sitk.GetArrayViewFromImage(moving).min())
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, by_hand, sitk.sitkLinear, low)).T
    warped = apply_transform(
        joined, pair["moving_image"], str(tmp_path / "warped.nii.gz"), pair["fixed_image"], interpolation="linear"
    )
    assert np.abs(nib.load(warped).get_fdata() - theirs).max() < 1e-3


def test_a_second_command_leaves_the_files_and_another_result_needs_overwrite(tmp_path, pair, weights):
    out = tmp_path / "out"
    representing = Representing(weights, device="cpu")
    assert register_files(representing, out, **pair)
    assert not register_files(representing, out, **pair)
    with pytest.raises(FileExistsError, match="world: 'own' then, 'aligned' now.*--overwrite"):
        register_files(Representing(weights, world="aligned", device="cpu"), out, **pair)
    registration = Registration(weights, 0, device="cpu", qa=False)
    with pytest.raises(FileExistsError, match="another result"):
        register_files(registration, out, **pair)
    registration.overwrite = True
    assert register_files(registration, out, **pair)
    assert not list(out.glob("*_0000.nii.gz")) and not (out / "initial.tfm").exists()
    assert register_files(Representing(weights, device="cpu", overwrite=True), out, **pair)
    assert not (out / "warped.nii.gz").exists() and not (out / "transform.h5").exists()
    assert (out / "moving_0001.nii.gz").exists()


def test_neither_an_input_nor_a_file_of_others_is_replaced(tmp_path, pair, weights):
    own = tmp_path / "moving_0000.nii.gz"
    own.write_bytes(open(pair["moving_image"], "rb").read())
    representing = Representing(weights, device="cpu", overwrite=True)
    with pytest.raises(FileExistsError, match="would be replaced by a result"):
        register_files(representing, tmp_path, **pair | {"moving_image": str(own)})
    with pytest.raises(FileExistsError, match="left alone"):
        register_files(representing, tmp_path, **pair)
    assert register_files(Registration(weights, 0, device="cpu", qa=False), tmp_path, **pair)
    assert own.read_bytes() == open(pair["moving_image"], "rb").read()


def test_pairs_of_a_datalist_go_to_folders_of_their_own(tmp_path, pair, weights, capsys):
    label = write_nifti(tmp_path / "label.nii.gz", np.ones(SHAPES["moving"], np.uint8))
    datalist = write_json(tmp_path / "pairs.json", {"testing": [pair, pair | {"moving_label": label}]})
    representing = Representing(weights, device="cpu")
    assert register_datalist(representing, datalist, "testing", tmp_path / "out") == []
    for number in range(2):
        assert (tmp_path / "out" / f"pair_000{number}" / "moving_0001.nii.gz").exists()
    assert not (tmp_path / "out" / "qa.html").exists()
    capsys.readouterr()
    assert register_datalist(representing, datalist, "testing", tmp_path / "out") == []
    assert "2 of 2 pairs were registered before" in capsys.readouterr().out


def test_masks_and_what_representations_are_made_of_count(tmp_path, pair, weights):
    values = np.ones(SHAPES["fixed"], np.uint8)
    values[: SHAPES["fixed"][0] // 2] = 0
    mask = write_nifti(tmp_path / "mask.nii.gz", values, nib.load(pair["fixed_image"]).affine)
    options = {"model": weights, "engine": "none"}
    register(*pair.values(), output_dir=str(tmp_path / "plain"), **options)
    register(*pair.values(), output_dir=str(tmp_path / "masked"), fixed_mask=mask, **options)
    found = [nib.load(tmp_path / name / "fixed_0000.nii.gz").get_fdata() for name in ("plain", "masked")]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    maps = {f"{side}_maps": str(tmp_path / "plain" / f"{side}_0000.nii.gz") for side in ("moving", "fixed")}
    register(*pair.values(), output_dir=str(tmp_path / "again"), representation="file", **maps, **options)
    again = nib.load(tmp_path / "again" / "fixed_0000.nii.gz").get_fdata()
    assert np.abs(again - found[0]).max() < 1e-6


@pytest.mark.parametrize(
    "options, named",
    [
        ({"inverse": True}, "inverse"), ({"refine_steps": 20}, "refine_steps"), ({"jacobian": True}, "jacobian"),
        ({"both_ways": True}, "both_ways"), ({"use_labels": True}, "use_labels"), ({"qa": False}, "qa"),
        ({"refine_weights": "smooth"}, "refine_weights"), ({"fixed_points": "p.csv"}, "fixed_points"),
        ({"moving_label": "l.nii"}, "moving_label"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_options_that_count_for_nothing_are_named(tmp_path, pair, weights, options, named):
    with pytest.raises(ValueError, match=f"^{named} would count for nothing: --engine none"):
        register(*pair.values(), output_dir=str(tmp_path / "out"), model=weights, engine="none", **options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_engine_lists_those_that_are_and_where_the_others_are_described(tmp_path, pair):
    with pytest.raises(ValueError, match=r"unknown engine 'ants': engines are istn .* none .*docs/engines.md"):
        register(*pair.values(), output_dir=str(tmp_path / "out"), engine="ants")
    with pytest.raises(ValueError, match="world 'own' is of --engine none alone"):
        register(*pair.values(), output_dir=str(tmp_path / "out"), world="own")
    with pytest.raises(ValueError, match="world must be"):
        register(*pair.values(), output_dir=str(tmp_path / "out"), engine="none", world="fixed")


def test_the_command_writes_representations(tmp_path, pair, weights, capsys, monkeypatch):
    words = [
        "register",
        *pair.values(),
        "--output_dir",
        str(tmp_path / "out"),
        "--engine",
        "none",
        "--world",
        "aligned",
    ]
    monkeypatch.setattr("sys.argv", ["istn-monai", *words, "--model", weights])
    main()
    assert "represented: results in" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "report.json").read_text())["options"]["world"] == "aligned"
    start = read_transform(tmp_path / "out" / "initial.tfm")
    assert torch.equal(start.components[0].matrix, torch.eye(4, dtype=torch.float64))


def test_representations_come_from_python_too(pair, weights):
    registration = Registration(weights, 0, device="cpu")
    own, aligned = (registration.represented(pair, world) for world in ("own", "aligned"))
    assert own["moving_representation"].shape == own["fixed_representation"].shape == (2, 16, 20, 14)
    start = torch.as_tensor(own["initial_alignment"]).double()
    assert torch.allclose(own["moving_representation"].affine, start @ aligned["moving_representation"].affine)
    with pytest.raises(ValueError, match="world"):
        registration.represented(pair, "elsewhere")


def test_the_table_of_the_results_is_what_was_measured():
    """Figures of docs/results.md against the JSON, whose summary is of its rows."""
    content = json.loads((ROOT / "benchmarks" / "results" / "engines.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = text.partition("## Other engines on the representations")[2].partition("\n## ")[0]
    found = {row["engine"]: row for row in content["summary"] if row["input"] == "representations"}
    images = {row["engine"]: row for row in content["summary"] if row["input"] == "images"}
    assert len(found) == len(images) == 5
    for engine, row in found.items():
        cells = [row["n"], *(f"{r['dice_merged']:.3f}" for r in (images[engine], row)), f"{row['gain']:+.3f}",
                 row["better"], *(f"{r['dice']:.3f}" for r in (images[engine], row))]  # fmt: skip
        assert f"| {engine} | " + " | ".join(map(str, cells)) + " |" in section, engine
        own = [r for r in content["rows"] if (r["engine"], r["input"]) == (engine, "representations")]
        assert np.isclose(np.mean([r["dice_merged"] for r in own]), row["dice_merged"]) and len(own) == row["n"]
    assert max(row["error"] for row in content["rows"]) < 2e-6
