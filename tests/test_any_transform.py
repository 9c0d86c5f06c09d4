"""Transforms by their names: elastix's files, plain matrices of greedy and FSL, inverses, against ITK and nibabel."""

from __future__ import annotations

import math

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from oracles import DIMS, apply, max_abs, oblique_affine, rng, rotation

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import WorldAffine, WorldField, WorldTransform
from istn_monai.io.any_transform import parts_of, read_any_transform
from istn_monai.io.itk_transforms import read_transform, write_transform
from istn_monai.io.matrix_files import read_matrix

CENTER = {2: [12.0, -7.0], 3: [12.0, -7.0, 20.0]}
FLIP = np.array([-1.0, -1.0, 1.0])


def elastix_text(kind, dims, values, **entries):
    """A parameter file, as elastix writes it."""
    common = {
        "Transform": kind, "NumberOfParameters": len(values), "TransformParameters": values,
        "InitialTransformParametersFileName": "NoInitialTransform", "HowToCombineTransforms": "Compose",
        "FixedImageDimension": dims, "MovingImageDimension": dims,
    } | entries  # fmt: skip
    lines = ["// of a test"]
    for name, value in common.items():
        words = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        quoted = " ".join(f'"{word}"' if isinstance(word, str) else repr(float(word)) for word in words)
        lines.append(f"({name} {quoted.replace('.0 ', ' ')})" if name.startswith("Grid") else f"({name} {quoted})")
    return "\n".join(lines).replace("Dimension 2.0", "Dimension 2").replace("Dimension 3.0", "Dimension 3") + "\n"


def written(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def in_lps(transform, points):
    """A world transform on points ``(D, N)`` of LPS."""
    flip = FLIP[: len(points), None]
    return flip * transform.transform_points(torch.as_tensor(flip * points)).numpy()


def turn(axis, angle):
    """A rotation about an axis, counterclockwise, by hand."""
    first, second = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = math.cos(angle)
    matrix[second, first], matrix[first, second] = math.sin(angle), -math.sin(angle)
    return matrix


def about(matrix, shift, dims):
    """``A (x - c) + c + t`` of points ``(D, N)``."""
    center = np.array(CENTER[dims])[:, None]
    return lambda points: matrix @ (points - center) + center + np.array(shift)[:, None]


def linear_cases():
    """Kind, dimension, parameters, further entries, and the map in plain numpy."""
    x, y, z, shift = 0.3, -0.2, 0.5, [4.0, -3.0, 2.0]
    zxy, zyx = ({"ComputeZYX": word} for word in ("false", "true"))
    turns = turn(0, x), turn(1, y), turn(2, z)
    flat = turns[2][:2, :2]
    versor = np.array([0.1, -0.2, 0.3])
    angle, axis = 2 * math.asin(np.linalg.norm(versor)), versor / np.linalg.norm(versor)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turned = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    full = {dims: np.eye(dims) + 0.2 * rng(dims).normal(size=(dims, dims)) for dims in DIMS}
    return [
        ("TranslationTransform", 2, shift[:2], {}, about(np.eye(2), shift[:2], 2)),
        ("TranslationTransform", 3, shift, {}, about(np.eye(3), shift, 3)),
        ("EulerTransform", 2, [z, *shift[:2]], {}, about(flat, shift[:2], 2)),
        ("EulerTransform", 3, [x, y, z, *shift], zxy, about(turns[2] @ turns[0] @ turns[1], shift, 3)),
        ("EulerTransform", 3, [x, y, z, *shift], zyx, about(turns[2] @ turns[1] @ turns[0], shift, 3)),
        ("SimilarityTransform", 2, [1.2, z, *shift[:2]], {}, about(1.2 * flat, shift[:2], 2)),
        ("SimilarityTransform", 3, [*versor, *shift, 0.8], {}, about(0.8 * turned, shift, 3)),
        ("AffineTransform", 2, [*full[2].ravel(), *shift[:2]], {}, about(full[2], shift[:2], 2)),
        ("AffineTransform", 3, [*full[3].ravel(), *shift], {}, about(full[3], shift, 3)),
    ]  # fmt: skip


@pytest.mark.parametrize("kind, dims, values, entries, expected", linear_cases())
def test_linear_files_of_elastix_are_the_formulas_of_its_manual(tmp_path, kind, dims, values, entries, expected):
    text = elastix_text(kind, dims, values, CenterOfRotationPoint=CENTER[dims], **entries)
    points = rng(1).uniform(-80, 80, (dims, 200))
    found = read_transform(written(tmp_path, "TransformParameters.0.txt", text), dims)
    assert max_abs(in_lps(found, points), expected(points)) < 1e-9


def spline(dims):
    """A B-spline of ITK on an oblique anisotropic lattice, the entries that elastix has for it, and points in it."""
    size, spacing, axes = [8, 7, 9][:dims], [7.0, 9.5, 6.0][:dims], rotation(dims, 4)
    origin = np.array([5.0, -30.0, 11.0][:dims])
    transform = sitk.BSplineTransform(dims, 3)
    transform.SetFixedParameters([*map(float, size), *origin.tolist(), *spacing, *axes.ravel().tolist()])
    values = rng(5).normal(scale=2.0, size=dims * math.prod(size)).tolist()
    transform.SetParameters(values)
    index = rng(6).uniform(0.5, np.array(size)[:, None] - 1.5, (dims, 400))  # some outside of its domain
    points = axes @ (index * np.array(spacing)[:, None]) + origin[:, None]
    entries = {
        "GridSize": size, "GridIndex": [0] * dims, "GridSpacing": spacing, "GridOrigin": origin.tolist(),
        "GridDirection": axes.T.ravel().tolist(), "BSplineTransformSplineOrder": 3, "UseCyclicTransform": "false",
    }  # fmt: skip
    return transform, values, entries, points


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("how", ["InitialTransformParametersFileName", "InitialTransformParameterFileName"])
def test_a_chain_of_elastix_is_its_b_spline_after_its_affine(tmp_path, dims, how):
    transform, values, entries, points = spline(dims)
    matrix = np.eye(dims) + 0.05 * rng(7).normal(size=(dims, dims))
    linear = [*matrix.ravel(), *CENTER[dims]]
    text = elastix_text("AffineTransform", dims, linear, CenterOfRotationPoint=CENTER[dims])
    written(tmp_path, "TransformParameters.0.txt", text)
    text = elastix_text("BSplineTransform", dims, values, **entries).replace("Order 3.0", "Order 3")
    text = text.replace("InitialTransformParametersFileName", how)
    text = text.replace("NoInitialTransform", "/elsewhere/TransformParameters.0.txt")  # it lies beside, too
    moved = about(matrix, CENTER[dims], dims)(points)
    expected = np.array([transform.TransformPoint(point.tolist()) for point in moved.T]).T
    found = read_transform(written(tmp_path, "TransformParameters.1.txt", text), dims)
    assert 0.1 < (np.abs(expected - moved).max(axis=0) > 0).mean() < 1
    assert max_abs(in_lps(found, points), expected) < 1e-9


def test_the_index_of_a_grid_of_elastix_is_where_it_begins(tmp_path):
    transform, values, entries, points = spline(3)
    axes = np.array(entries["GridDirection"]).reshape(3, 3).T
    moved = np.array(entries["GridOrigin"]) - axes @ (np.array(entries["GridSpacing"]) * [2, -1, 3])
    entries |= {"GridIndex": [2, -1, 3], "GridOrigin": moved.tolist()}
    text = elastix_text("BSplineTransform", 3, values, **entries).replace("Order 3.0", "Order 3")
    expected = np.array([transform.TransformPoint(point.tolist()) for point in points.T]).T
    found = read_transform(written(tmp_path, "t.txt", text))
    assert max_abs(in_lps(found, points), expected) < 1e-9


AFFINE = elastix_text("AffineTransform", 3, [1, 0, 0, 0, 1, 0, 0, 0, 1, 3, 4, 5], CenterOfRotationPoint=[0, 0, 0])
INITIAL = 'InitialTransformParametersFileName "NoInitialTransform"'


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("AffineTransform", "AffineDTITransform", "AffineDTITransform of elastix is not read"),
        ("(CenterOfRotationPoint", "(Other", "no .CenterOfRotationPoint ...., is it truncated"),
        ("4.0 5.0)", "4.0)", "must be 12 numbers, it has 11"),
        ("4.0 5.0)", "4.0 5", "line 4 is no .Name value .* of elastix's, or truncated"),
        ("4.0 5.0)", "4.0 nan)", "NaN or infinite"),
        ("4.0 5.0)", "4.0 x)", "must be 12 numbers"),
        ("MovingImageDimension 3", "MovingImageDimension 2", "maps 3 to 2 dimensions"),
        (f"({INITIAL})\n", "", "no .InitialTransformParametersFileName"),
        (INITIAL, INITIAL.replace("No", "x"), "initial transform xInitialTransform is not there"),
        (INITIAL, INITIAL.replace("NoInitialTransform", "t.txt"), "comes back to"),
        (INITIAL, INITIAL.replace("NoInitialTransform", "other.txt"), "other.txt is no parameter file"),
        ('NoInitialTransform")\n(HowToCombineTransforms "Compose', 't.txt")\n(HowToCombineTransforms "Add', "by .Add."),
        ("// of a test", '(UseDirectionCosines "false")', "without the images' directions"),
        ("1.0 0.0 0.0 0.0 1.0", "0.0 0.0 0.0 0.0 1.0", "invertible"),
    ],
)
def test_a_file_of_elastix_that_is_not_read_says_why(tmp_path, old, new, said):
    written(tmp_path, "other.txt", "no parameters\n")
    assert old in AFFINE
    with pytest.raises(ValueError, match=f"t.txt.*{said}"):
        read_transform(written(tmp_path, "t.txt", AFFINE.replace(old, new)))


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("BSplineTransformSplineOrder", 2, "order 2"), ("UseCyclicTransform", "true", "cyclic"),
        ("GridSize", [3, 7, 9], "4 control points"), ("GridSpacing", [7.0, 0.0, 6.0], "4 control points"),
        ("GridDirection", [1.0, 0.0], "must be 9 numbers"),
    ],
)  # fmt: skip
def test_a_b_spline_of_elastix_that_is_not_read_says_why(tmp_path, name, value, said):
    _, values, entries, _ = spline(3)
    text = elastix_text("BSplineTransform", 3, values, **(entries | {name: value})).replace(".0)\n(UseC", ")\n(UseC")
    with pytest.raises(ValueError, match=f"t.txt.*{said}"):
        read_transform(written(tmp_path, "t.txt", text))


def test_a_truncated_file_of_elastix_is_never_a_transform(tmp_path):
    lines = AFFINE.splitlines(keepends=True)
    cut = AFFINE.index("(CenterOfRotationPoint")
    for end in [*range(40, cut + 20, 7), sum(map(len, lines)) - 2]:
        with pytest.raises(ValueError, match=r"t\.txt"):
            read_transform(written(tmp_path, "t.txt", AFFINE[:end]))


def test_dimensions_are_compared_for_all_kinds(tmp_path):
    written(tmp_path, "t.txt", AFFINE)
    written(tmp_path, "m.mat", "1 0 0 3\n0 1 0 4\n0 0 1 5\n0 0 0 1\n")
    for name in ("t.txt", "greedy:m.mat"):
        name = name.replace("greedy:", f"greedy:{tmp_path}/") if ":" in name else f"{tmp_path}/{name}"
        with pytest.raises(ValueError, match="of 3 dimensions, the images have 2"):
            read_any_transform(name, 2)


# --- plain matrices --------------------------------------------------------------------------------------------------


def matrix_text(matrix):
    return "\n".join("  ".join(f"{value:.12g}" for value in row) for row in np.asarray(matrix)) + "\n"


@pytest.mark.parametrize("dims", DIMS)
def test_a_matrix_of_greedy_maps_fixed_to_moving_points_in_ras(tmp_path, dims):
    matrix = oblique_affine((1,) * dims, (1.1, 0.9, 1.2)[:dims], 5, center=[3.0, -2.0, 1.0][:dims])
    file = written(tmp_path, "affine.mat", matrix_text(matrix))
    points = rng(1).uniform(-50, 50, (dims, 20))
    found = read_any_transform(f"greedy:{file}", dims).transform_points(torch.as_tensor(points))
    assert max_abs(found, apply(matrix, points)) < 1e-9
    back = read_any_transform(f"[greedy:{file},1]").transform_points(found)
    assert max_abs(back, points) < 1e-9


@pytest.mark.parametrize("moving_sign", [1, -1])
@pytest.mark.parametrize("fixed_sign", [1, -1])
def test_a_matrix_of_flirt_is_of_voxels_in_mm_with_x_turned_for_positive_determinants(
    tmp_path, moving_sign, fixed_sign
):
    """Point by point, by nibabel's headers: FSL takes x of a moving voxel to x of the fixed one."""
    images, grids = {}, {}
    for name, size, spacing, seed, sign in (
        ("moving", (9, 7, 6), (1.5, 0.7, 2.1), 1, moving_sign),
        ("fixed", (8, 11, 5), (1.2, 1.9, 0.8), 2, fixed_sign),
    ):
        affine = oblique_affine(size, spacing, seed, center=[9.0, -4.0, 6.0], signs=[sign, 1, 1])
        images[name] = nib.Nifti1Image(np.zeros(size, np.float32), affine)
        grids[name] = Grid(size, torch.as_tensor(images[name].affine))
    flirt = oblique_affine((1, 1, 1), (1.1, 0.9, 1.2), 3, center=[3.0, -2.0, 1.0])
    file = written(tmp_path, "flirt.mat", matrix_text(flirt))

    def scaled(image, voxel):
        """A voxel in FSL's coordinates."""
        x, y, z = voxel * np.array(image.header.get_zooms())
        if np.linalg.det(image.affine) > 0:
            x = (image.shape[0] - 1) * image.header.get_zooms()[0] - x
        return np.array([x, y, z])

    for seed in range(10):
        voxel = rng(seed).uniform(0, 6, 3)
        place = apply(flirt, scaled(images["moving"], voxel))  # of the fixed image, in FSL's coordinates
        zooms = np.array(images["fixed"].header.get_zooms())
        if np.linalg.det(images["fixed"].affine) > 0:
            place[0] = (images["fixed"].shape[0] - 1) * zooms[0] - place[0]
        in_fixed = nib.affines.apply_affine(images["fixed"].affine, place / zooms)
        in_moving = nib.affines.apply_affine(images["moving"].affine, voxel)
        found = read_any_transform(f"fsl:{file}", 3, **grids).transform_points(torch.as_tensor(in_fixed)[:, None])
        assert max_abs(found[:, 0], in_moving) < 1e-5


@pytest.mark.parametrize(
    "text, said",
    [
        ("1 0 0 3\n0 1 0 4\n0 0 1 5\n", r"rows of \[4, 4, 4\] numbers"),
        ("1 0 0 3\n0 1 0 4\n0 0 1 5\n0 0 0 2\n", "its last row is"),
        ("1 0 0 3\n0 1 0 4\n1 1 0 5\n0 0 0 1\n", "invertible"),
        ("1 0 0 nan\n0 1 0 4\n0 0 1 5\n0 0 0 1\n", "finite"),
        ("#Insight Transform File V1.0\n", "plain matrix is text"),
        ("", "plain matrix is text"),
    ],
)
def test_what_is_no_plain_matrix_says_so(tmp_path, text, said):
    file = written(tmp_path, "m.mat", text)
    for name in (f"greedy:{file}", f"fsl:{file}"):
        grid = Grid((5, 4, 3), torch.eye(4))
        with pytest.raises(ValueError, match=f"m.mat.*{said}"):
            read_any_transform(name, moving=grid, fixed=grid)


def test_a_matrix_of_flirt_needs_both_images_of_three_dimensions(tmp_path):
    file = written(tmp_path, "m.mat", matrix_text(np.eye(4)))
    with pytest.raises(ValueError, match="m.mat: a matrix of flirt's is of two images: give both"):
        read_any_transform(f"fsl:{file}", fixed=Grid((5, 4, 3), torch.eye(4)))
    with pytest.raises(ValueError, match="of 3 dimensions"):
        read_any_transform(f"fsl:{file}", moving=Grid((5, 4), torch.eye(3)), fixed=Grid((5, 4, 3), torch.eye(4)))
    with pytest.raises(FileNotFoundError, match="no such transform"):
        read_matrix(tmp_path / "absent.mat", "ras")
    with pytest.raises(ValueError, match="convention must be one of"):
        read_matrix(file, "lps")


# --- inverses --------------------------------------------------------------------------------------------------------


def test_names_in_brackets_say_whether_the_inverse_is_meant(tmp_path):
    assert parts_of("[a b.mat, 1]") == ("", "a b.mat", True)
    assert parts_of("[a.mat,0]") == ("", "a.mat", False) == parts_of("a.mat")
    assert parts_of("[greedy:a.mat,1]") == ("greedy:", "a.mat", True)
    literal = written(tmp_path, "[t,1]", "")
    assert parts_of(str(literal)) == ("", str(literal), False)  # a file of that name


@pytest.mark.parametrize("dims", DIMS)
def test_the_inverse_of_linear_ends_is_exact_and_of_the_rest_a_field(tmp_path, dims):
    size = (20, 18, 16)[:dims]
    affine = torch.as_tensor(oblique_affine(size, (1.5, 1.1, 1.3)[:dims], 3))
    grid = Grid(size, affine)
    waves = torch.sin(grid.points() / 6).flip(0) * 1.5
    matrices = [oblique_affine((1,) * dims, (1.1, 0.9, 1.0)[:dims], seed, angle=0.2) for seed in (4, 5)]
    whole = WorldTransform([WorldAffine(matrices[0]), WorldField(waves, affine), WorldAffine(matrices[1])], dims)
    file = write_transform(whole, tmp_path / "t.h5")
    inverse = read_any_transform(f"[{file},1]", fixed=Grid(size, torch.as_tensor(matrices[0]) @ affine))
    assert [type(part) for part in inverse.components] == [WorldAffine, WorldField, WorldAffine]
    middle = grid.points()[(slice(None), *[slice(5, -5)] * dims)].flatten(1)
    start = WorldTransform([WorldAffine(np.linalg.inv(matrices[1]))], dims).transform_points(middle)
    back = inverse.transform_points(whole.transform_points(start))
    assert (whole.transform_points(start) - start).norm(dim=0).max() > 1
    assert max_abs(back, start) < 0.1  # of a field that is linear between its voxels
    with pytest.raises(ValueError, match="displacement field: give the image on whose grid it is needed"):
        read_any_transform(f"[{file},1]")
    with pytest.raises(ValueError, match=f"has {dims} dimensions, the grid {5 - dims}"):
        read_any_transform(f"[{file},1]", fixed=Grid((4,) * (5 - dims), torch.eye(6 - dims)))


def test_an_inverse_of_flirt_led_the_other_way(tmp_path):
    """A matrix of ``-in fixed -ref moving`` that is inverted is that of ``-in moving -ref fixed``."""
    grids = {
        name: Grid(size, torch.as_tensor(oblique_affine(size, spacing, seed, center=[9.0, -4.0, 6.0], signs=signs)))
        for name, size, spacing, seed, signs in (
            ("moving", (9, 7, 6), (1.5, 0.7, 2.1), 1, [1, 1, 1]), ("fixed", (8, 11, 5), (1.2, 1.9, 0.8), 2, [-1, 1, 1]),
        )
    }  # fmt: skip
    flirt = oblique_affine((1, 1, 1), (1.1, 0.9, 1.2), 3, center=[3.0, -2.0, 1.0])
    there = written(tmp_path, "there.mat", matrix_text(flirt))
    back = written(tmp_path, "back.mat", matrix_text(np.linalg.inv(flirt)))
    points = torch.as_tensor(rng(0).uniform(-20, 20, (3, 50)))
    expected = read_any_transform(f"fsl:{there}", 3, **grids).transform_points(points)
    found = read_any_transform(f"[fsl:{back},1]", 3, **grids).transform_points(points)
    assert max_abs(found, expected) < 1e-4
