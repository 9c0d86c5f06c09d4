"""benchmarks/multimodal_pairs.py: the pairs are what the documents say, and errors of known motions are errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import multimodal
import multimodal_pairs
from peers import LOAD, evaluate

from istn_monai.geometry.grids import Grid

ROOT = Path(__file__).parents[1]
HEAD = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])  # LAS, as the averages
FINE = np.array([[-3.0, 0, 0, 90], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]])
FOV = np.array([180, 216, 180])  # mm


def written(values: np.ndarray, affine: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), file)


def ball(affine: np.ndarray, radius: float, center=(0.0, -18.0, 18.0)) -> np.ndarray:
    """Around a point of the world."""
    size = np.ceil(FOV / np.abs(np.diag(affine)[:3])).astype(int)
    points = np.einsum("ij,j...->i...", affine[:3, :3], np.indices(size)) + affine[:3, 3, None, None, None]
    return np.linalg.norm(points - np.array(center)[:, None, None, None], axis=0) < radius


@pytest.fixture
def data(tmp_path):
    """Two averages, a subject, and labels, all of balls."""
    random = np.random.default_rng(0)
    texture = gaussian_filter(random.normal(size=ball(HEAD, 1).shape), 1.5)
    texture = (texture - texture.min()) / np.ptp(texture)
    head, there = ball(HEAD, 80), tmp_path / "multimodal"
    written(head * (50 + 150 * texture), HEAD, there / "mni_t1.nii.gz")
    written(head * (200 - 150 * texture), HEAD, there / "mni_t2.nii.gz")
    written(ball(FINE, 60), FINE, there / multimodal_pairs.MASK)
    written(7 * ball(FINE, 55) + 2 * ball(FINE, 20), FINE, there / multimodal_pairs.LABELS)
    far = FINE + np.array([[0, 0, 0, 300.0]] + [[0] * 4] * 3)
    written(100 * ball(FINE, 60, (9, -18, 18)), far, tmp_path / "brain" / "images" / "1.nii.gz")
    written(7 * ball(FINE, 60, (9, -18, 18)), far, tmp_path / "brain" / "labels" / "1.nii.gz")
    items = {"testing": [{"moving_image": "images/1.nii.gz"}]}
    (tmp_path / "brain" / "pairs_100.json").write_text(json.dumps(items))
    return tmp_path


def exact_field(folder: Path) -> tuple[Grid, torch.Tensor]:
    """The registration of a known motion, found by fixed-point steps: what its truth takes to each fixed voxel."""
    fixed, moving = (Grid.of(LOAD(folder / f"{role}.nii.gz")) for role in ("fixed", "moving"))
    truth = torch.load(folder / "truth.pt", weights_only=True).double()
    points = fixed.points()
    found = points.clone()
    for _ in range(40):
        places = moving.voxels(found).numpy()
        shown = np.stack([map_coordinates(axis, places, order=1, mode="nearest") for axis in truth.numpy()])
        found = found + (points - torch.as_tensor(shown))
    return fixed, found - points


def write_field(fixed: Grid, field: torch.Tensor, file: Path) -> None:
    lps = field.numpy() * np.array([-1.0, -1.0, 1.0])[:, None, None, None]
    nib.save(nib.Nifti1Image(np.moveaxis(lps, 0, -1)[..., None, :].astype(np.float32), fixed.affine.numpy()), file)


@pytest.mark.parametrize("contrast", ["t1", "t2"])
def test_the_exact_registration_of_a_known_motion_has_no_error(data, contrast):
    folder = data / "pair"
    multimodal_pairs.write_motion(folder, data, 0, contrast)
    before = multimodal_pairs.motion_error(None, folder)
    write_field(*exact_field(folder), data / "field.nii.gz")
    after = multimodal_pairs.motion_error(data / "field.nii.gz", folder)
    assert before["error_mm"] > 3 and before["folding"] == 0
    assert after["error_largest_mm"] < 0.05 and after["folding"] == 0
    assert after["error_mm"] <= after["error_95_mm"] <= after["error_largest_mm"]


def test_the_exact_registration_shows_the_average_again(data):
    folder = data / "pair"
    multimodal_pairs.write_motion(folder, data, 1, "t1")
    fixed, field = exact_field(folder)
    moving, average = (LOAD(folder / f"{role}.nii.gz")[0].numpy() for role in ("moving", "fixed"))
    places = Grid.of(LOAD(folder / "moving.nii.gz")).voxels(fixed.points() + field).numpy()
    inside = LOAD(folder / "fixed_label.nii.gz")[0].numpy() > 0
    error = np.abs(map_coordinates(moving, places, order=1) - average)[inside].mean()
    assert error < 6 < np.abs(average[inside] - average[inside].mean()).mean()  # two interpolations blur


def test_a_motion_turns_moves_and_bends_as_much_as_it_says():
    grid = Grid((60, 60, 60), torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0])))
    inside = torch.ones(grid.spatial_size, dtype=torch.bool)
    motion = multimodal_pairs.known_motion(grid, inside, 3) - grid.points()
    flat = grid.points().flatten(1) - grid.center[:, None]
    design = torch.cat([flat, torch.ones_like(flat[:1])])
    linear = torch.linalg.lstsq(design.T, motion.flatten(1).T).solution.T
    scales = torch.linalg.svdvals(torch.eye(3, dtype=torch.float64) + linear[:, :3])
    assert 1 / 1.12 < scales.min() and scales.max() < 1.12
    assert linear[:, 3].norm().item() == pytest.approx(multimodal_pairs.SHIFT, abs=1.5)
    bent = (motion.flatten(1) - linear @ design).norm(dim=0)
    assert 2.0 < bent.max() < 7.0  # the affine fit takes some of it
    other = multimodal_pairs.known_motion(grid, inside, 4) - grid.points()
    assert (other - motion).abs().max() > 1.0


def test_a_subject_is_compared_with_labels_that_are_the_same_for_all_contrasts(data):
    found = {}
    for contrast in ("t1", "t2"):
        multimodal_pairs.write_subject(data / contrast, data, "1", contrast)
        found[contrast] = LOAD(data / contrast / "fixed_label.nii.gz")
        image = LOAD(data / contrast / "fixed.nii.gz")
        assert (image[0] > 0).sum() < 1.1 * (found[contrast][0] > 0).sum()  # no skull
        before = evaluate(None, data / contrast)
        assert before["labels"] == 2 and before["dice_merged"] > 0.85  # the centers are one
    assert torch.equal(found["t1"], found["t2"])


def test_pairs_begin_with_all_contrasts_of_the_first_subject(data):
    pairs = multimodal.pairs_of(data, 6, 2, ["t1", "t2"], ["subjects", "motions"])
    assert [pair.name for pair in pairs[:4]] == [
        "subjects_1_to_t1", "subjects_1_to_t2", "motions_0_to_t1", "motions_0_to_t2",
    ]  # fmt: skip
    assert len(pairs) == 6  # there is one subject
    with pytest.raises(ValueError, match="contrasts must be of t1, t2, pd, epi, got flair"):
        multimodal.pairs_of(data, 1, 1, ["flair"], ["motions"])
    with pytest.raises(ValueError, match="tables must be of subjects, motions, stripped, got heads"):
        multimodal.pairs_of(data, 1, 1, ["t1"], ["heads"])


def test_without_the_skull_a_motion_is_the_same(data):
    for name in ("motions", "stripped"):
        multimodal.prepare(multimodal.Pair(name, "0", "t1"), data, data / name)
    heads, brains = (
        {file.name: LOAD(file)[0] for file in (data / name).glob("*.gz")} for name in ("motions", "stripped")
    )
    for role in ("moving", "fixed"):
        inside = heads[f"{role}_label.nii.gz"].as_tensor() > 0
        assert torch.equal(brains[f"{role}_label.nii.gz"].as_tensor() > 0, inside)
        assert torch.equal(brains[f"{role}.nii.gz"][inside], heads[f"{role}.nii.gz"][inside])
        assert not brains[f"{role}.nii.gz"][~inside].any() and heads[f"{role}.nii.gz"][~inside].any()
    truths = [torch.load(data / name / "truth.pt", weights_only=True) for name in ("motions", "stripped")]
    assert torch.equal(*truths)


@pytest.mark.parametrize("file", ["multimodal.json", "multimodal_trained.json"])
def test_the_tables_of_the_results_are_what_was_measured(file):
    """Numbers of docs/results.md against the JSON, whose summary is of its rows."""
    content = json.loads((ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = text.partition("## Brains of other contrasts")[2].partition("\n## ")[0]
    told = [line.split(" | ")[1:5] for line in section.splitlines() if line.startswith("| ")]
    for table, found in content["summary"].items():
        key, digits = ("dice", 3) if table == "subjects" else ("error_mm", 2)
        for method in {name for rows in found.values() for name in rows}:
            rows = [found.get(contrast, {}).get(method) for contrast in multimodal_pairs.CONTRASTS]
            expected = [f"{row[key]:.{digits}f}" if row else "" for row in rows]
            assert any([cell.split(" (")[0].strip() for cell in cells] == expected for cells in told), (table, method)
        for contrast, methods in found.items():
            for method, row in methods.items():
                wanted = {"table": table, "contrast": contrast, "method": method}
                own = [r for r in content["rows"] if wanted.items() <= r.items()]
                assert np.isclose(np.mean([r[key] for r in own]), row[key]) and len(own) == row["n"]
