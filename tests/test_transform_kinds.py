"""Transform files that ITK would take for what they are not, or end the process over: named before it reads them."""

from __future__ import annotations

import itk
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from oracles import max_abs

from istn_monai.io.itk_transforms import read_transform
from istn_monai.io.transform_kinds import KINDS, check_kinds

HEADER = "#Insight Transform File V1.0\n"
AFFINE = ("AffineTransform_double_3_3", [1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3], [0, 0, 0])
TURN = ("Euler2DTransform_double_2_2", [0.1, 1, 1], [0, 0])
COMPOSITE = ("CompositeTransform_double_3_3", [], [])
LATTICE = [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]  # origin, spacing, axes


def written(file, *transforms):
    """A file of ITK's text format."""
    text = HEADER
    for number, (kind, values, fixed) in enumerate(transforms):
        numbers = [" ".join(map(str, part)) for part in (values, fixed)]
        text += f"#Transform {number}\nTransform: {kind}\nParameters: {numbers[0]}\nFixedParameters: {numbers[1]}\n"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("transforms", "named"),
    [
        ([AFFINE, TURN], "of 3 and of 2 dimensions, AffineTransform and Euler2DTransform"),
        ([TURN, AFFINE], "of 2 and of 3 dimensions"),
        ([COMPOSITE, TURN], "of 3 and of 2 dimensions"),  # ITK reads memory that is not its own
    ],
)
def test_transforms_of_several_dimensions_in_a_file_are_refused(tmp_path, transforms, named):
    with pytest.raises(ValueError, match=f"t.tfm: it holds transforms {named}"):
        read_transform(written(tmp_path / "t.tfm", *transforms))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        ("AzimuthElevationToCartesianTransform_double_3_3", AFFINE[1], AFFINE[2]),  # IsLinear is true of it
        (
            "ConstantVelocityFieldTransform_double_3_3",
            [0.5] * 192,
            [4, 4, 4, *LATTICE],
        ),  # ends the process in a composite
        ("ThinPlateSplineKernelTransform_double_3_3", [0, 0, 0, 1, 0, 0], [0, 0, 0, 9, 0, 0]),
    ],
)
def test_kinds_that_are_not_read_are_named_alone_and_in_composites(tmp_path, kind, inside):
    file = written(tmp_path / "t.tfm", *([COMPOSITE] if inside else []), kind)
    with pytest.raises(ValueError, match=f"t.tfm: {kind[0].split('_')[0]} is not supported: linear transforms, cubic"):
        read_transform(file)


def test_kinds_without_a_class_in_simpleitk_are_read_in_composites(tmp_path):
    centered = ("CenteredAffineTransform_double_3_3", [1, 0.5, 0, 0, 1, 0, 0, 0, 1, 4, 5, 6, 1, 2, 3], [0, 0, 0])
    file = written(tmp_path / "t.tfm", COMPOSITE, AFFINE, centered)
    (by_itk,) = itk.transformread(str(file))
    expected = np.array(list(by_itk.TransformPoint([7.0, 8.0, 9.0])))
    point = torch.tensor([[-7.0], [-8.0], [9.0]], dtype=torch.float64)
    assert max_abs(read_transform(file).transform_points(point)[:, 0], expected * [-1, -1, 1]) < 1e-9


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_lattices_without_points_are_refused(tmp_path, suffix):
    sitk.WriteTransform(sitk.DisplacementFieldTransform(3), str(tmp_path / f"empty{suffix}"))
    with pytest.raises(ValueError, match=f"empty{suffix}: it holds a DisplacementFieldTransform of no points"):
        read_transform(tmp_path / f"empty{suffix}")


@pytest.mark.parametrize(
    ("kind", "size", "named"),
    [
        (
            "DisplacementFieldTransform",
            [0, 0, 0],
            "DisplacementFieldTransform of no points",
        ),  # ends SimpleITK's process
        ("DisplacementFieldTransform", [3, 0, 3], "DisplacementFieldTransform of no points"),
        ("BSplineTransform", [1, 1, 1], "4 control points or more along each axis, got .1, 1, 1"),
    ],
)
def test_lattices_that_are_too_small_are_refused(tmp_path, kind, size, named):
    values = [0.5] * 3 * int(np.prod(size))
    with pytest.raises(ValueError, match=f"t.tfm: .*{named}"):
        read_transform(written(tmp_path / "t.tfm", (f"{kind}_double_3_3", values, [*size, *LATTICE])))


def test_names_are_found_in_files_of_all_formats(tmp_path):
    """An affine transform of each kind of file; a name that is not read must be one that was found."""
    transform = itk.AffineTransform[itk.D, 3].New()
    for suffix in (".tfm", ".mat", ".h5"):
        itk.transformwrite([transform], str(tmp_path / f"t{suffix}"))
        content = (tmp_path / f"t{suffix}").read_bytes()
        (tmp_path / f"t{suffix}").write_bytes(content.replace(b"AffineTransform_", b"AzimutTransform_"))
        with pytest.raises(ValueError, match="AzimutTransform is not supported"):
            check_kinds(tmp_path / f"t{suffix}")
    assert "AffineTransform" in KINDS
