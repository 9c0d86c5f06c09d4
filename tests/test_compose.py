"""Transforms joined to one file, and described, against SimpleITK's own composites and by hand."""

from __future__ import annotations

import re
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from oracles import DIMS, max_abs, oblique_affine, rng, rotation, smooth_image

from istn_monai.__main__ import main
from istn_monai.apply import apply_transform
from istn_monai.compose import compose_files
from istn_monai.geometry.world_transform import WorldAffine, WorldBSpline, WorldField, WorldTransform
from istn_monai.io.itk_transforms import read_transform, write_displacement, write_transform
from istn_monai.transform_info import factors, figures_on, is_transform, linear_kind, rotation_angle

SIZE, SPACING = {2: (22, 18), 3: (20, 16, 14)}, {2: (1.3, 0.9), 3: (1.5, 0.8, 1.9)}
CENTER = {2: [9.0, -4.0], 3: [9.0, -4.0, 6.0]}


def image_file(folder, name, dims, seed, values=None):
    """An oblique anisotropic image; 2-D ones in MetaImage, which has 2-D geometry."""
    affine = oblique_affine(SIZE[dims], SPACING[dims], seed, center=CENTER[dims])
    values = smooth_image(SIZE[dims], seed) if values is None else values
    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T.astype(np.float32)))
    columns = np.diag([-1.0, -1.0, 1.0][:dims]) @ affine[:-1]
    image.SetSpacing(np.linalg.norm(columns[:, :-1], axis=0).tolist())
    image.SetOrigin(columns[:, -1].tolist())
    image.SetDirection((columns[:, :-1] / np.linalg.norm(columns[:, :-1], axis=0)).ravel().tolist())
    file = folder / f"{name}.mha"
    sitk.WriteImage(image, str(file))
    return file, affine


def matrix(dims, seed):
    return oblique_affine((1,) * dims, (1.05, 0.95, 1.02)[:dims], seed, center=[3.0, -2.0, 1.0][:dims], angle=0.15)


def files(folder, dims):
    """An affine, a B-spline and a displacement field, each a file, all over the images."""
    lattice = (10, 9, 8)[:dims]
    affine = oblique_affine(lattice, (7.0, 6.0, 8.0)[:dims], 4, center=CENTER[dims])
    spline = WorldBSpline(torch.as_tensor(rng(1).normal(size=(dims, *lattice))), torch.as_tensor(affine))
    size = (14, 13, 12)[:dims]
    place = oblique_affine(size, (5.0, 4.5, 5.5)[:dims], 6, center=CENTER[dims])
    write_transform(WorldTransform([WorldAffine(matrix(dims, 5))], dims), folder / "affine.tfm")
    write_transform(WorldTransform([spline], dims), folder / "spline.h5")
    write_displacement(rng(2).normal(size=(dims, *size), scale=0.5), torch.as_tensor(place), folder / "warp.nii.gz")
    return [str(folder / name) for name in ("affine.tfm", "spline.h5", "warp.nii.gz")]


def by_simpleitk(names, points):
    """LPS points ``(D, N)`` through files, the last first, each by SimpleITK."""
    for name in reversed(names):
        if name.endswith(".nii.gz"):
            single = sitk.DisplacementFieldTransform(sitk.ReadImage(name, sitk.sitkVectorFloat64))
        else:
            single = sitk.ReadTransform(name)
        points = np.array([single.TransformPoint(point.tolist()) for point in points.T]).T
    return points


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("suffix", [".h5", ".tfm"])
def test_the_last_of_composed_transforms_acts_first(tmp_path, dims, suffix):
    names = files(tmp_path, dims)
    output = compose_files(names, str(tmp_path / f"c{suffix}"))
    points = np.array(CENTER[dims])[:, None] * [[-1.0], [-1.0], [1.0]][:dims] + rng(3).uniform(-12, 12, (dims, 300))
    expected = by_simpleitk(names, points)
    whole = sitk.ReadTransform(str(output))
    found = np.array([whole.TransformPoint(point.tolist()) for point in points.T]).T
    assert max_abs(found, expected) < 1e-4
    assert max_abs(by_simpleitk(names[::-1], points), expected) > 0.1  # the order shows


@pytest.mark.parametrize("dims", DIMS)
def test_images_resampled_by_the_composite_are_those_of_simpleitk(tmp_path, dims):
    moving, _ = image_file(tmp_path, "moving", dims, 1)
    fixed, _ = image_file(tmp_path, "fixed", dims, 2)
    output = compose_files(files(tmp_path, dims), str(tmp_path / "c.h5"))
    read = sitk.ReadImage(str(moving), sitk.sitkFloat32)
    darkest = float(sitk.GetArrayViewFromImage(read).min())
    whole = sitk.ReadTransform(str(output))
    expected = sitk.GetArrayFromImage(
        sitk.Resample(read, sitk.ReadImage(str(fixed)), whole, sitk.sitkLinear, darkest)
    ).T
    apply_transform(str(output), str(moving), str(tmp_path / "w.nii.gz"), str(fixed), interpolation="linear")
    found = nib.load(tmp_path / "w.nii.gz").get_fdata()
    assert (expected > darkest).mean() > 0.3
    assert np.quantile(np.abs(found - expected), 0.995) < 1e-4  # a voxel on an image's rim may be on either side


@pytest.mark.parametrize("dims", DIMS)
def test_an_inverse_member_takes_points_back(tmp_path, dims):
    """The inverse acts where the affine after it takes the reference's points."""
    affine, spline, _ = files(tmp_path, dims)
    reference, place = image_file(tmp_path, "reference", dims, 2)
    output = compose_files([affine, f"[{spline},1]", affine], str(tmp_path / "c.h5"), str(reference))
    index = rng(4).uniform(0, np.array(SIZE[dims])[:, None] - 1, (dims, 200))
    points = place[:-1, :-1] @ index + place[:-1, -1:]
    found = read_transform(output).transform_points(torch.as_tensor(points))
    single, bend = read_transform(affine), read_transform(spline)
    middle = single.inverse_points(found)  # what the inverse has made of the affine's
    assert max_abs(bend.transform_points(middle), single.transform_points(torch.as_tensor(points))) < 0.05
    assert max_abs(bend.transform_points(middle), middle) > 0.5


def test_the_inverse_of_a_linear_member_is_exact_and_needs_no_image(tmp_path):
    affine, *_ = files(tmp_path, 3)
    output = compose_files([f"[{affine},1]", affine], str(tmp_path / "c.h5"))
    points = torch.as_tensor(rng(4).uniform(-50, 50, (3, 50)))
    assert max_abs(read_transform(output).transform_points(points), points) < 1e-9


def test_the_inverse_of_a_transform_alone_is_one_command(tmp_path, monkeypatch, capsys):
    affine, spline, _ = files(tmp_path, 3)
    moving, place = image_file(tmp_path, "moving", 3, 2)
    compose_files([affine, spline], str(tmp_path / "t.h5"))
    words = ["compose", f"[{tmp_path}/t.h5,1]", "--reference", str(moving), "-o", str(tmp_path / "inverse.h5")]
    monkeypatch.setattr(sys, "argv", ["istn-monai", *words])
    main()
    index = rng(4).uniform(0, np.array(SIZE[3])[:, None] - 1, (3, 200))
    points = torch.as_tensor(place[:-1, :-1] @ index + place[:-1, -1:])
    back = read_transform(tmp_path / "inverse.h5").transform_points(points)
    assert max_abs(read_transform(tmp_path / "t.h5").transform_points(back), points) < 0.05


def test_plain_matrices_are_members_too(tmp_path):
    moving, _ = image_file(tmp_path, "moving", 3, 1)
    fixed, _ = image_file(tmp_path, "fixed", 3, 2)
    file = tmp_path / "m.mat"
    np.savetxt(file, matrix(3, 7))
    grids = {"reference": str(fixed), "moving": str(moving)}
    names = [f"greedy:{file}", f"fsl:{file}"]
    output = compose_files(names, str(tmp_path / "c.h5"), **grids)
    points = torch.as_tensor(rng(4).uniform(-20, 20, (3, 20)))
    singles = [
        read_transform(compose_files([name], str(tmp_path / f"{n}.h5"), **grids)) for n, name in enumerate(names)
    ]
    expected = singles[0].transform_points(singles[1].transform_points(points))
    assert max_abs(read_transform(output).transform_points(points), expected) < 1e-9
    assert max_abs(singles[0].transform_points(points), singles[1].transform_points(points)) > 0.1
    written = apply_transform(
        f"fsl:{file}", str(moving), str(tmp_path / "w.nii.gz"), str(fixed), interpolation="linear"
    )
    again = tmp_path / "v.nii.gz"
    apply_transform(str(tmp_path / "1.h5"), str(moving), str(again), str(fixed), interpolation="linear")
    assert max_abs(nib.load(written).get_fdata(), nib.load(again).get_fdata()) < 1e-5


def test_the_inverse_of_flirt_and_a_spline_leads_back(tmp_path):
    """Each inverse is laid where the one before it leads; reference is the image whose points the whole maps."""
    _, spline, _ = files(tmp_path, 3)
    moving, _ = image_file(tmp_path, "moving", 3, 1)
    fixed, place = image_file(tmp_path, "fixed", 3, 2)
    np.savetxt(tmp_path / "flirt.mat", matrix(3, 7))
    flirt = f"fsl:{tmp_path}/flirt.mat"
    there = read_transform(compose_files([flirt], str(tmp_path / "a.h5"), reference=str(fixed), moving=str(moving)))
    names = [f"[{spline},1]", f"[{flirt},1]"]
    back = compose_files(names, str(tmp_path / "back.h5"), reference=str(moving), moving=str(fixed))
    index = rng(4).uniform(2, np.array(SIZE[3])[:, None] - 3, (3, 200))
    points = torch.as_tensor(place[:-1, :-1] @ index + place[:-1, -1:])
    bent = read_transform(spline).transform_points(points)
    assert max_abs(bent, points) > 0.3
    assert max_abs(read_transform(back).transform_points(there.transform_points(bent)), points) < 0.05


@pytest.mark.parametrize(
    "names, options, said",
    [
        ([], {}, "transforms are missing"),
        (["{a3}", "{a2}"], {}, "is a transform of 3 dimensions, those after it of 2"),
        (["[{s3},1]"], {}, "give the image on whose grid it is needed"),
        (["[{s3},1]"], {"reference": "{i2}"}, "the transform has 3 dimensions, the grid 2|reference has 2 dim"),
        (["[{s3},1]", "{a2}"], {"reference": "{i3}"}, "the reference has 3 dimensions, the transforms have 2"),
        (["fsl:{m}"], {"reference": "{i3}"}, "give both"),
        (["fsl:{m}", "{a3}"], {"reference": "{i3}", "moving": "{i3}"}, "does not act first"),
        (["fsl:{m}", "fsl:{m}"], {"reference": "{i3}", "moving": "{i3}"}, "does not act first"),
        (["{m}"], {}, "greedy:FILE"),
        (["{i3}"], {}, "no displacement field"),
        (["greedy:{a3}"], {}, "a plain matrix is text"),
        (["absent.h5"], {}, "no such transform"),
        (["{a3}"], {"reference": "absent.nii.gz"}, "reference: no such file"),
        (["{a3}"], {"output": "{a3}"}, "would be replaced|exists and is left alone"),
        (["{a3}"], {"output": "{a3}", "overwrite": True}, "would be replaced"),
        (["[greedy:{m},1]"], {"output": "{m}.tfm", "moving": "{m}.tfm"}, "no such file|would be replaced"),
        (["{a3}"], {"output": "{a2}"}, "exists and is left alone"),
        (["{a3}"], {"output": "{a2}.nii.gz"}, "written as one of"),
    ],
)
def test_what_cannot_be_composed_says_why_and_changes_nothing(tmp_path, names, options, said):
    known = {"m": tmp_path / "m.mat"}
    np.savetxt(known["m"], matrix(3, 7))
    for dims in DIMS:
        folder = tmp_path / str(dims)
        folder.mkdir()
        known[f"a{dims}"], known[f"s{dims}"], _ = files(folder, dims)
        known[f"i{dims}"] = image_file(folder, "image", dims, 1)[0]
    given = {key: value.format(**known) if isinstance(value, str) else value for key, value in options.items()}
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises((ValueError, OSError), match=said):
        compose_files([name.format(**known) for name in names], **({"output": str(tmp_path / "c.h5")} | given))
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


# --- what ANTs writes ------------------------------------------------------------------------------------------------

#: 0GenericAffine.mat as ANTsPy 0.6.3 wrote it, in hexadecimal
ANTS_AFFINE = (
    "000000000c00000001000000000000001b000000416666696e655472616e73666f726d5f646f75626c655f335f3300000000"
    "80eb51f03f000000a09999a93f000000e051b89ebf00000040e17aa4bf000000803d0aef3f000000e051b8ae3f00000040e1"
    "7a943f000000a09999a9bf000000c0f528f03f0000000000000c4000000000000002c0000000000000fc3f00000000030000"
    "00010000000000000006000000666978656400000000000000244000000000000034c00000000000003e40"
)
#: LPS points, and where ANTsPy (antsApplyTransformsToPoints) takes them by that file
ANTS_POINTS = [[5.0, 7.0, -9.0], [-40.0, 12.0, 25.0]]
ANTS_MOVED = [[10.920000076, 1.800001144, -9.090000153], [-35.75, 10.490000725, 24.100000382]]


def test_an_affine_that_ants_wrote_goes_where_ants_takes_points(tmp_path):
    file = tmp_path / "0GenericAffine.mat"
    file.write_bytes(bytes.fromhex(ANTS_AFFINE))
    flip = np.array([[-1.0], [-1.0], [1.0]])
    for name in (file, compose_files([str(file)], str(tmp_path / "c.h5"))):
        found = flip * read_transform(name, 3).transform_points(torch.as_tensor(flip * np.array(ANTS_POINTS).T)).numpy()
        assert max_abs(found.T, np.array(ANTS_MOVED)) < 1e-4


def test_a_composite_in_single_precision_as_ants_writes_it_is_read(tmp_path):
    """antsRegistration --write-composite-transform: the affine before the field, which acts first."""
    values = rng(1).normal(size=3 * 4 * 5 * 6)
    lattice = [4, 5, 6, -20, 5, 9, 1.5, 2, 1.2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    members = {"CompositeTransform": ([], []), "AffineTransform": ([1, 2, 3, 4, 5, 6, 7, 8, 10, 1, 2, 3], [4, 5, 6])}
    members["DisplacementFieldTransform"] = (values, lattice)
    lines = ["#Insight Transform File V1.0"]
    for number, (kind, parts) in enumerate(members.items()):
        lines += [f"#Transform {number}", f"Transform: {kind}_float_3_3"]
        if number:
            both = zip(("Parameters", "FixedParameters"), parts, strict=True)
            lines += [f"{name}: {' '.join(map(str, part))}" for name, part in both]
    (tmp_path / "Composite.tfm").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = read_transform(tmp_path / "Composite.tfm")
    assert [type(part) for part in found.components] == [WorldAffine, WorldField]
    field, (numbers, center) = found.components[1].values.numpy(), members["AffineTransform"]
    expected = np.diag([-1.0, -1, 1]) @ values.reshape(6, 5, 4, 3)[2, 3, 1]
    assert max_abs(field[:, 1, 3, 2], expected) < 1e-6
    linear = np.array(numbers, dtype=float)[:9].reshape(3, 3)
    offset = np.array(numbers[9:]) + center - linear @ center
    moved = read_transform(tmp_path / "Composite.tfm").components[0].matrix.numpy()
    assert max_abs(np.diag([-1.0, -1, 1]) @ moved[:3, 3], offset) < 1e-5


# --- info ------------------------------------------------------------------------------------------------------------


def information(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["istn-monai", "info", *map(str, words)])
    main()
    return capsys.readouterr().out


@pytest.mark.parametrize("dims", DIMS)
def test_info_says_the_members_and_how_far_points_are_moved(tmp_path, monkeypatch, capsys, dims):
    names = files(tmp_path, dims)
    output = compose_files(names, str(tmp_path / "c.h5"))
    reference, place = image_file(tmp_path, "reference", dims, 2)
    said = information(monkeypatch, capsys, output, "--reference", reference)
    kinds = re.findall(r"^member \d +(affine|cubic B-spline|displacement field)", said, re.MULTILINE)
    assert kinds == ["affine", "cubic B-spline", "displacement field"]
    assert "LPS mm" in said and "fixed to moving points" in said and f"{dims}-D, 3 members" in said
    index = np.stack(np.meshgrid(*map(np.arange, SIZE[dims]), indexing="ij")).reshape(dims, -1)
    points = np.diag([-1.0, -1.0, 1.0][:dims]) @ (place[:-1, :-1] @ index + place[:-1, -1:])
    lengths = np.linalg.norm(by_simpleitk(names, points) - points, axis=0)
    mean, most = map(float, re.findall(r"displacement (\S+) mm on average, (\S+) mm at most", said)[-1])
    assert abs(mean - lengths.mean()) < 0.01 * lengths.mean() and abs(most - lengths.max()) < 0.01 * lengths.max()


def test_info_of_a_field_that_folds_says_so(tmp_path, monkeypatch, capsys):
    values = np.zeros((3, 9, 8, 7))
    values[0, 4] = 3.0  # a plane that overtakes the next ones, 1 mm apart
    file = write_displacement(values, torch.eye(4), tmp_path / "displacement.nii.gz")
    said = information(monkeypatch, capsys, file)
    assert "9x8x7 voxels of 1 x 1 x 1 mm" in said and "3 mm at most" in said
    assert "-0.5 to 2.5, 11.11% folded: not invertible there" in said  # of 9 planes one, (0 - 3) / 2 + 1


def test_info_of_a_field_whose_inverse_lacks_points_at_the_border_promises_none(tmp_path, monkeypatch, capsys):
    file = write_displacement(np.full((3, 9, 8, 7), 2.0), torch.eye(4), tmp_path / "displacement.nii.gz")
    said = information(monkeypatch, capsys, file)
    assert "0.00% folded: invertible there" in said and "at its border an inverse may lack points" in said


def test_a_jump_at_the_border_of_a_domain_is_no_fold(tmp_path, monkeypatch, capsys):
    """The field that acts first leads some points out of the domain of the other one, which moves all by 3 mm."""
    shift, moves = np.zeros((3, 12, 11, 10)), np.zeros((3, 12, 11, 10))
    shift[0], moves[0, 3:] = 3.0, 2.0
    fields = [WorldField(torch.as_tensor(values), torch.eye(4)) for values in (shift, moves)]
    said = information(monkeypatch, capsys, write_transform(WorldTransform(fields, 3), tmp_path / "t.h5"))
    whole = said[said.index("whole") :]
    assert "0.00% folded: invertible there" in whole and "without 220 points beside a border" in whole
    moves[0, 3], moves[0, 4:] = 3.0, 0.0  # a plane that overtakes the next one
    fields[1] = WorldField(torch.as_tensor(moves), torch.eye(4))
    said = information(monkeypatch, capsys, write_transform(WorldTransform(fields, 3), tmp_path / "f.h5"))
    assert "not invertible there" in said[said.index("whole") :]


def test_figures_do_not_depend_on_how_a_grid_is_cut(monkeypatch):
    from istn_monai import transform_info
    from istn_monai.geometry.grids import Grid

    grid = Grid((9, 8, 7), torch.as_tensor(oblique_affine((9, 8, 7), (1.5, 0.8, 1.9), 3)))
    bend = WorldTransform([WorldField(torch.as_tensor(rng(1).normal(size=(3, 9, 8, 7))), grid.affine)], 3)
    whole = figures_on(bend, grid)
    monkeypatch.setattr(transform_info, "AT_ONCE", 100)
    assert figures_on(bend, grid).text() == whole.text() and whole.folded > 0


def test_info_of_one_voxel_and_of_a_mirror(tmp_path, monkeypatch, capsys):
    flat = WorldTransform([WorldField(torch.full((3, 6, 5, 1), 2.0), torch.eye(4))], 3)
    file = write_transform(flat, tmp_path / "flat.h5")
    assert "3.46 mm at most" in information(monkeypatch, capsys, file)
    mirror = WorldTransform([WorldAffine(np.diag([-1.0, 1, 1, 1]))], 3)
    said = information(monkeypatch, capsys, write_transform(mirror, tmp_path / "m.tfm"))
    assert "determinant -1" in said and "it mirrors there" in said and "a box of 200 mm" in said


@pytest.mark.parametrize("dims", DIMS)
def test_a_matrix_is_a_rotation_scales_and_shears(dims):
    turned = rotation(dims, 3, 0.5)
    upper = np.triu(rng(4).uniform(0.1, 0.4, (dims, dims)), 1) + np.eye(dims)
    scales = np.array([1.2, 0.7, 1.1][:dims])
    found = factors(turned @ np.diag(scales) @ upper)
    for value, expected in zip(found, (turned, scales, upper[np.triu_indices(dims, 1)]), strict=True):
        assert max_abs(value, expected) < 1e-12
    angle = np.degrees(np.arccos(turned[0, 0] if dims == 2 else (np.trace(turned) - 1) / 2))
    assert abs(abs(rotation_angle(turned)) - angle) < 1e-9
    kinds = [linear_kind(m) for m in (np.eye(dims), turned, 1.1 * turned, found[0] @ upper)]
    assert kinds == ["translation", "rigid", "similarity", "affine"]


def test_info_of_a_result_is_that_of_its_transform(tmp_path, monkeypatch, capsys):
    affine, *_ = files(tmp_path, 3)
    compose_files([affine], str(tmp_path / "registration" / "transform.h5"))
    shown = []
    for name in ("registration", "registration/transform.h5"):
        monkeypatch.setattr(sys, "argv", ["istn-monai", "info", str(tmp_path / name)])
        main()
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "member 1" in shown[0]


def test_info_tells_transforms_from_models_by_the_file(tmp_path, monkeypatch):
    assert is_transform("a.h5") and is_transform("TransformParameters.0.txt") and is_transform("[a,1]")
    assert not is_transform("runs/x") and not is_transform("model.pt") and not is_transform(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["istn-monai", "info", "model.pt", "--reference", "a.nii.gz"])
    with pytest.raises(SystemExit, match="reference and moving are of a transform"):
        main()
