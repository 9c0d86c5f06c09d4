"""Tests of `istn_monai.synthetic`, which read the written files as a user would: through MONAI, never its arrays."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from monai.transforms import LoadImaged
from scipy.ndimage import map_coordinates

from istn_monai.synthetic import pairs as synthetic
from istn_monai.synthetic.pairs import synthesize
from istn_monai.synthetic.vessels import true_displacement

IMAGES = [f"{role}_{kind}" for role in ("moving", "fixed") for kind in ("image", "label", "landmarks")]
SMALL = {"spatial_size": (32, 40), "train": 2, "validation": 1, "test": 1}
CASES = {
    "3d": {"train": 6, "validation": 1, "test": 1},
    "2d_png": {"spatial_size": (64, 64), "train": 8, "validation": 1, "test": 1},
    "2d_nifti": {"spatial_size": (56, 72), "spacing": (1.25, 0.75), "image_format": "nii.gz"}
    | {"train": 6, "validation": 0, "test": 1},
    "3d_anisotropic": {"spatial_size": (40, 36, 48), "spacing": (1.0, 1.25, 0.75)}
    | {"train": 3, "validation": 0, "test": 0},
}


class Pair:
    """One item of the datalist: arrays, their grids and everything else about it."""

    def __init__(self, item: dict):
        data = LoadImaged(IMAGES, ensure_channel_first=True)({key: item[key] for key in IMAGES})
        self.array = {key: np.asarray(data[key][0]) for key in IMAGES}
        self.ndim = self.array["fixed_image"].ndim
        axes = [*range(self.ndim), -1]
        self.affine = {key: np.asarray(data[key].affine)[np.ix_(axes, axes)] for key in IMAGES}
        rows = {
            role: list(csv.reader(Path(item[f"{role}_points"]).open(encoding="utf-8"))) for role in ("moving", "fixed")
        }
        self.header = {role: r[0] for role, r in rows.items()}
        self.names = {role: [line[0] for line in r[1:]] for role, r in rows.items()}
        self.points = {role: np.array([line[1:-1] for line in r[1:]], float) for role, r in rows.items()}
        self.transform = json.loads(Path(item["transform"]).read_text(encoding="utf-8"))

    def to_voxel(self, key: str, world: np.ndarray) -> np.ndarray:
        return (world - self.affine[key][:-1, -1]) @ np.linalg.inv(self.affine[key][:-1, :-1]).T

    def center(self, role: str) -> np.ndarray:
        matrix, shape = self.affine[f"{role}_image"], np.array(self.array[f"{role}_image"].shape)
        return matrix[:-1, :-1] @ ((shape - 1) / 2) + matrix[:-1, -1]

    def world(self, role: str) -> np.ndarray:
        matrix, shape = self.affine[f"{role}_image"], self.array[f"{role}_image"].shape
        return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ matrix[:-1, :-1].T + matrix[:-1, -1]

    def warp(self, key: str, moving_world: np.ndarray, order: int = 0) -> np.ndarray:
        return map_coordinates(self.array[key], np.moveaxis(self.to_voxel(key, moving_world), -1, 0), order=order)

    def shifted(self, shift: np.ndarray | float = 0.0) -> np.ndarray:
        """Moving world of every fixed voxel with the images' centers aligned, then `shift` in mm."""
        return self.world("fixed") - self.center("fixed") + self.center("moving") + shift

    def truth(self) -> np.ndarray:
        return self.world("fixed") + true_displacement(self.transform, self.world("fixed"))

    def dice(self, moving_world: np.ndarray, labels: tuple[int, ...] = (1, 2)) -> float:
        a, b = (np.isin(x, labels) for x in (self.warp("moving_label", moving_world), self.array["fixed_label"]))
        return 2 * (a & b).sum() / (a.sum() + b.sum())


def pairs_of(path: Path, section: str = "training") -> list[Pair]:
    return [Pair(item) for item in load_decathlon_datalist(str(path), data_list_key=section, base_dir=str(path.parent))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, Path]:
    return {name: synthesize(tmp_path_factory.mktemp(name), **settings) for name, settings in CASES.items()}


@pytest.fixture(scope="module", params=CASES)
def case(request, paths) -> tuple[str, list[Pair]]:
    return request.param, pairs_of(paths[request.param])


# ---- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_datalist(paths, name):
    path, settings = paths[name], CASES[name]
    datalist = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "pairs.json" and {"name", "description", "seed", "synthetic"} <= set(datalist)
    assert datalist["labels"] == {"0": "background", "1": "trunk", "2": "branches"}
    for section, argument in (("training", "train"), ("validation", "validation"), ("testing", "test")):
        assert len(datalist[section]) == settings[argument]
        for item in datalist[section]:
            points = {f"{role}_points" for role in ("moving", "fixed")}
            assert set(item) == {*IMAGES, *points, "transform"}
            assert all(value.startswith(section + "/") and (path.parent / value).is_file() for value in item.values())
    written = set(contents(path.parent)) - {"pairs.json"}
    assert written == {v for s in ("training", "validation", "testing") for item in datalist[s] for v in item.values()}


def test_images_are_what_the_docstring_says(case):
    name, pairs = case
    size = np.array(CASES[name].get("spatial_size", (48, 64, 48)))
    spacing = np.broadcast_to(CASES[name].get("spacing", 1.0), size.shape)
    scales, origins, shapes = [], [], set()
    for pair in pairs:
        for role in ("moving", "fixed"):
            image, label, blobs = (pair.array[f"{role}_{kind}"] for kind in ("image", "label", "landmarks"))
            assert image.shape == label.shape == blobs.shape
            assert (image.shape >= size).all() and (image.shape <= size + 4).all()
            np.testing.assert_allclose(pair.affine[f"{role}_image"][:-1, :-1], np.diag(spacing))
            assert set(np.unique(label)) == {0, 1, 2}
            assert 0.01 < (label > 0).mean() < 0.25 and (label == 1).sum() > 50
            assert blobs.min() == 0 and 0.8 < blobs.max() / (255 if name == "2d_png" else 1) <= 1
            scales.append(np.percentile(image, 95))
            origins.append(pair.affine[f"{role}_image"][:-1, -1])
            shapes.add(image.shape)
    assert 80 < min(scales) and max(scales) < 12000 and max(scales) > 3 * min(scales)
    assert len(shapes) > 1
    assert (np.ptp(origins, 0) == 0).all() if name == "2d_png" else (np.ptp(origins, 0) > 10).all()


def test_tree_is_gray_in_a_bright_box_on_black(case):
    for pair in case[1]:
        for role in ("moving", "fixed"):
            image, label = pair.array[f"{role}_image"], pair.array[f"{role}_label"]
            box = np.percentile(image, 90)
            assert 0.3 < np.median(image[label > 0]) / box < 0.75
            first, last, rest = slice(0, 3), slice(-3, None), (slice(0, 3),) * (pair.ndim - 1)
            corners = [(first, *rest), (last, *rest), (last,) * pair.ndim]  # a box may reach one of them, hardly two
            assert np.median([np.median(image[corner]) for corner in corners]) < 0.1 * box


# ---- ground truth ----------------------------------------------------------------------------------------------------


def test_truth_maps_landmarks(case):
    for pair in case[1]:
        assert pair.header["fixed"] == pair.header["moving"] == ["label", *"xyz"[: pair.ndim], "frame"]
        assert pair.names["fixed"] == pair.names["moving"] and len(set(pair.names["fixed"])) == len(pair.names["fixed"])
        kinds = [name.split("_")[0] for name in pair.names["fixed"]]
        assert kinds.count("root") == 1 and kinds.count("tip") == (9, 16)[pair.ndim - 2]
        assert kinds.count("branching") == (8, 15)[pair.ndim - 2]
        fixed, moving = pair.points["fixed"], pair.points["moving"]
        displacement = true_displacement(pair.transform, fixed)
        assert np.abs(fixed + displacement - moving).max() < 1e-3
        # the affine part alone misses by up to nonlinear_mm, and by something
        matrix = np.array(pair.transform["matrix"])
        residual = np.linalg.norm(fixed @ matrix[:-1, :-1].T + matrix[:-1, -1] - moving, axis=-1)
        assert 0.3 < residual.max() <= 2.0


def test_truth_aligns_the_trees(case):
    name, pairs = case
    before = np.array([pair.dice(pair.shifted()) for pair in pairs])
    after = np.array([pair.dice(pair.truth()) for pair in pairs])
    print(f"{name}: Id {before.mean():.3f}, truth {after.mean():.3f}")
    assert after.mean() > 0.9 and after.min() > 0.87
    assert before.mean() < after.mean() - 0.3
    if name in ("3d", "2d_png"):  # the sizes were chosen for grids like these
        assert 0.25 < before.mean() < 0.5
    for labels in ((1,), (2,)):
        assert np.mean([pair.dice(pair.truth(), labels) for pair in pairs]) > 0.86


def test_truth_is_a_diffeomorphism(paths):
    pair = pairs_of(paths["2d_png"])[0]
    jacobian = np.stack(np.gradient(pair.truth(), axis=(0, 1)), -1)
    determinant = np.linalg.det(jacobian[1:-1, 1:-1])
    assert determinant.min() > 0.4 and determinant.max() < 1.8


def test_affine_only_without_nonlinear_part(tmp_path):
    pair = pairs_of(synthesize(tmp_path, **SMALL, nonlinear_mm=0))[0]
    matrix = np.array(pair.transform["matrix"])
    affine = pair.points["fixed"] @ matrix[:-1, :-1].T + matrix[:-1, -1]
    np.testing.assert_allclose(affine, pair.points["moving"], atol=1e-5)
    u, scales, v = np.linalg.svd(matrix[:-1, :-1])
    assert np.rad2deg(np.arccos(np.trace(u @ v) / 2)) < 20 and 0.8 < scales.min() < scales.max() < 1.25


def test_landmarks_lie_on_the_tree(case):
    for pair in case[1]:
        for role in ("moving", "fixed"):
            voxels = pair.to_voxel(f"{role}_label", pair.points[role])
            shape = np.array(pair.array[f"{role}_label"].shape)
            assert (voxels > 0).all() and (voxels < shape - 1).all()
            tree = (pair.array[f"{role}_label"] > 0).astype(float)
            assert map_coordinates(tree, voxels.T, order=1).min() > 0.2  # tips are 1.2 mm and thicker
            names = pair.names[role]
            root, fork = np.round(voxels[[names.index("root_0"), names.index("branching_1")]]).astype(int)
            assert pair.array[f"{role}_label"][tuple(root)] == pair.array[f"{role}_label"][tuple(fork)] == 1
            tips = np.round(voxels[["tip" in n for n in names]]).astype(int)
            assert (pair.array[f"{role}_label"][tuple(tips.T)] != 1).all()


def test_landmark_map_is_the_maximum_of_blobs(case):
    for pair in case[1][:2]:
        for role in ("moving", "fixed"):
            squared = ((pair.world(role)[..., None, :] - pair.points[role]) ** 2).sum(-1)
            expected = np.exp(-squared / (2 * 2.0**2)).max(-1)
            scale = 255 if case[0] == "2d_png" else 1
            assert np.abs(pair.array[f"{role}_landmarks"] / scale - expected).max() < 0.003


# ---- what makes it a benchmark ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["2d_png", "3d"])
def test_box_misleads(paths, name):
    """Aligning the bright regions misses the tree by millimeters, though a translation can do much for the tree."""
    misses, with_box, with_tree, nothing = [], [], [], []
    for pair in pairs_of(paths[name]):
        centers = []
        for role in ("moving", "fixed"):
            image = pair.array[f"{role}_image"]
            bright = (image > 0.25 * np.percentile(image, 95)).astype(float)  # box and tree, weighed equally
            centers.append((pair.world(role) * bright[..., None]).reshape(-1, pair.ndim).sum(0) / bright.sum())
        offset = pair.center("moving") - pair.center("fixed")
        box = centers[0] - centers[1] - offset
        tree = (pair.points["moving"] - pair.points["fixed"]).mean(0) - offset
        misses.append(np.linalg.norm(box - tree))
        with_box.append(pair.dice(pair.shifted(box)))
        with_tree.append(pair.dice(pair.shifted(tree)))
        nothing.append(pair.dice(pair.shifted()))
    print(
        f"{name}: box misses tree by {np.mean(misses):.2f} mm; Dice nothing {np.mean(nothing):.3f}, "
        f"box {np.mean(with_box):.3f}, tree {np.mean(with_tree):.3f}"
    )
    assert np.mean(misses) > 2
    assert np.mean(with_box) < np.mean(with_tree) - 0.1
    assert np.mean(with_box) < 0.6


def test_trees_share_one_anatomy(paths):
    """Landmarks of different pairs correspond: they vary about their mean less than they are spread over the image."""
    points = np.stack([pair.points["fixed"] - pair.center("fixed") for pair in pairs_of(paths["3d"])])
    between_pairs = np.linalg.norm(points - points.mean(0), axis=-1).mean()
    within_tree = np.linalg.norm(points - points.mean(1, keepdims=True), axis=-1).mean()
    assert 1.0 < between_pairs < 0.4 * within_tree


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_same_seed_same_files(tmp_path):
    a, b, c = (synthesize(tmp_path / n, **SMALL, seed=s).parent for n, s in (("a", 3), ("b", 3), ("c", 4)))
    assert contents(a) == contents(b)
    differ = [name for name, data in contents(c).items() if data != contents(a)[name]]
    assert len(differ) == len(contents(c))


def test_pair_does_not_depend_on_counts(tmp_path):
    few = contents(synthesize(tmp_path / "few", **{**SMALL, "train": 1, "validation": 0}).parent)
    many = contents(synthesize(tmp_path / "many", **{**SMALL, "train": 3, "validation": 2}).parent)
    del few["pairs.json"]
    assert len(few) == 18 and few.items() <= many.items()


def test_pairs_differ(tmp_path):
    files = contents(synthesize(tmp_path, **SMALL).parent)
    transforms = {data for name, data in files.items() if name.endswith("transform.json")}
    assert len(transforms) == 4


# ---- the folder ------------------------------------------------------------------------------------------------------


def mtimes(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_equal_set_is_reused(tmp_path):
    synthesize(tmp_path, **SMALL)
    before = mtimes(tmp_path)
    path = synthesize(str(tmp_path), **{**SMALL, "spatial_size": np.array([32, 40])}, spacing=(1, 1))
    assert path == tmp_path / "pairs.json" and mtimes(tmp_path) == before


def test_missing_file_is_made_again(tmp_path):
    synthesize(tmp_path, **SMALL)
    before = contents(tmp_path)
    (tmp_path / "testing" / "pair000_fixed_label.png").unlink()
    synthesize(tmp_path, **SMALL)
    assert contents(tmp_path) == before


def test_other_settings_need_overwrite(tmp_path):
    synthesize(tmp_path, **SMALL)
    (tmp_path / "training" / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=rf"{tmp_path}.*seed 0 \(now 1\).*overwrite=True"):
        synthesize(tmp_path, **SMALL, seed=1)
    assert contents(tmp_path) == before
    synthesize(tmp_path, **{**SMALL, "train": 1}, seed=1, overwrite=True)
    after = contents(tmp_path)
    assert after["training/notes.txt"] == b"mine"
    assert json.loads(after["pairs.json"])["seed"] == 1
    assert len(after) == 2 + 3 * 9, "files of the old set's second training pair should be gone"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", ['{"training": []}', "[]", "not json", '{"synthetic": {"seed": 0}}'])
def test_foreign_datalist_is_never_touched(tmp_path, content, overwrite):
    (tmp_path / "pairs.json").write_text(content, encoding="utf-8")
    with pytest.raises(FileExistsError, match="did not write"):
        synthesize(tmp_path, **SMALL, overwrite=overwrite)
    assert contents(tmp_path) == {"pairs.json": content.encode()}


def test_edited_datalist_is_foreign(tmp_path):
    path = synthesize(tmp_path / "set", **SMALL)
    (tmp_path / "precious.png").write_text("mine", encoding="utf-8")
    datalist = json.loads(path.read_text(encoding="utf-8"))
    datalist["training"][0]["fixed_image"] = "../precious.png"
    path.write_text(json.dumps(datalist), encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="a pairs.json that synthesize.. did not write"):
        synthesize(tmp_path / "set", **SMALL, overwrite=True)
    assert contents(tmp_path) == before


def test_foreign_folder(tmp_path):
    (tmp_path / "training").mkdir()
    precious = tmp_path / "training" / "precious.png"
    precious.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=f"{tmp_path} is not empty.*overwrite=True"):
        synthesize(tmp_path, **SMALL)
    synthesize(tmp_path, **SMALL, overwrite=True)
    assert precious.read_text(encoding="utf-8") == "mine" and len(contents(tmp_path)) == 2 + 4 * 9


def test_foreign_file_with_our_name_is_never_overwritten(tmp_path):
    (tmp_path / "training").mkdir()
    precious = tmp_path / "training" / "pair000_fixed_label.png"
    precious.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="pair000_fixed_label.png"):
        synthesize(tmp_path, **SMALL, overwrite=True)
    assert contents(tmp_path) == {"training/pair000_fixed_label.png": b"mine"}


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "seed": 5, "train": 1}], ids=["same", "other"])
def test_interrupted_set_is_made_again(tmp_path, monkeypatch, settings):
    clean = contents(synthesize(tmp_path / "clean", **settings).parent)
    write_pair, calls = synthetic._write_pair, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_pair(*args)

    monkeypatch.setattr(synthetic, "_write_pair", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "set", **SMALL)
    monkeypatch.undo()
    assert not (tmp_path / "set" / "pairs.json").exists()
    half = tmp_path / "set" / "training" / "pair000_fixed_image.png"
    half.write_bytes(half.read_bytes()[:100])
    synthesize(tmp_path / "set", **settings)
    assert contents(tmp_path / "set") == clean


def test_interrupted_overwrite_is_finished(tmp_path, monkeypatch):
    synthesize(tmp_path / "set", **SMALL)
    clean = contents(synthesize(tmp_path / "clean", **SMALL, seed=1).parent)
    monkeypatch.setattr(synthetic, "_write_pair", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthesize(tmp_path / "set", **SMALL, seed=1, overwrite=True)
    monkeypatch.undo()
    synthesize(tmp_path / "set", **SMALL, seed=1)
    assert contents(tmp_path / "set") == clean


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"spatial_size": (64,)}, "spatial_size should be 2 or 3 numbers, got"),
        ({"spatial_size": 64}, "spatial_size should be 2 or 3 numbers, got 64"),
        ({"spatial_size": (40, 40, 40, 40)}, "spatial_size should be 2 or 3 numbers"),
        ({"spatial_size": (31, 40)}, "spatial_size should be a whole number of at least 32, got 31"),
        ({"spatial_size": (40.5, 40)}, "spatial_size should be a whole number of at least 32, got 40.5"),
        ({"spacing": (1, 1, 1)}, "spacing should be 2 numbers"),
        ({"spacing": 0}, "spacing should be positive"),
        ({"spacing": -1.0}, "spacing should be positive"),
        ({"spacing": float("nan")}, "spacing should be positive"),
        ({"spacing": (1, "a")}, "spacing should be positive"),
        ({"spacing": 0.5}, "spacing should be positive numbers of mm that make each axis 32 mm or longer"),
        ({"train": -1}, "train should be a whole number of at least 0, got -1"),
        ({"validation": 1.5}, "validation should be a whole number"),
        ({"test": True}, "test should be a whole number"),
        ({"seed": -1}, "seed should be a whole number"),
        ({"seed": None}, "seed should be a whole number"),
        ({"shape_jitter": -1}, "shape_jitter should be a whole number"),
        ({"nonlinear_mm": -0.1}, "nonlinear_mm should be between 0 and 2.55 mm"),
        ({"nonlinear_mm": 3.0}, "nonlinear_mm should be between 0 and 2.55 mm.*got 3.0"),
        ({"nonlinear_mm": float("nan")}, "nonlinear_mm should be between"),
        ({"image_format": "jpg"}, "image_format should be 'nii.gz', 'png' or None, got 'jpg'"),
        ({"image_format": ""}, "image_format should be"),
        ({"image_format": "png", "spatial_size": (40, 40, 40)}, "image_format 'png' should be used with two axes"),
        ({"image_format": "png", "spacing": 1.5}, "image_format 'png' should be used with two axes and spacing 1"),
    ],
)
def test_bad_arguments(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path / "set", **{**SMALL, **bad})
    assert not (tmp_path / "set").exists()
