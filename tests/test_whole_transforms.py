"""Transform files that were truncated: found before ITK takes what they lack for zeros or for the identity."""

from __future__ import annotations

import itk
import pytest
import SimpleITK as sitk

from istn_monai.io.itk_transforms import read_transform
from istn_monai.io.paths import replacing
from istn_monai.io.transform_kinds import KINDS
from istn_monai.io.whole_transforms import (
    LATTICES,
    NO_FIXED,
    NO_NUMBERS,
    PARAMETERS,
    check_whole_transform,
    expected_numbers,
)

EULER = sitk.Euler3DTransform((11, -22, 33), 0.3, -0.2, 0.5, (5, -6, 7))
AFFINE = sitk.AffineTransform(EULER.GetMatrix(), (3, 4, 5), (1, 2, 3))


def fields(size=4):
    return sitk.DisplacementFieldTransform(sitk.Image([size] * 3, sitk.sitkVectorFloat64))


def spline():
    transform = sitk.BSplineTransform(3, 3)
    transform.SetTransformDomainMeshSize((2, 3, 4))
    return transform


def test_all_kinds_have_as_many_numbers_as_in_itk():
    """The fourth fixed parameter of Euler3DTransform is new; files without it are read as before."""
    counted = 0
    for name in KINDS - {*LATTICES, *NO_NUMBERS, "MatrixOffsetTransformBase"}:
        for dims in (2, 3):
            wrapped = list(getattr(itk, name).keys())
            keys = [key for key in ((itk.D, dims, dims), (itk.D, dims), (itk.D,)) if key in wrapped]
            made = getattr(itk, name)[keys[0]].New() if keys else None
            if made is None or made.GetInputSpaceDimension() != dims:
                assert dims not in PARAMETERS[name]
                continue
            fixed, parameters = expected_numbers(name, dims, ())
            assert parameters == PARAMETERS[name][dims] == made.GetNumberOfParameters(), name
            of_itk = made.GetNumberOfFixedParameters() - name.endswith("Euler3DTransform")
            assert fixed == of_itk or (fixed == 0 and name in NO_FIXED), name
            counted += 1
    assert counted == 29


@pytest.mark.parametrize("suffix", [".tfm", ".mat"])
@pytest.mark.parametrize("transform", [EULER, AFFINE, fields(), spline()], ids=lambda transform: transform.GetName())
def test_a_transform_file_truncated_anywhere_is_an_error_that_says_so(tmp_path, transform, suffix):
    """At each byte of a small file, and at 60 of a large one; only blanks at its end may be missing."""
    file = tmp_path / f"t{suffix}"
    sitk.WriteTransform(transform, str(file))
    check_whole_transform(file)
    whole = file.read_bytes()
    last = len(whole.rstrip(b" \n")) if suffix == ".tfm" else len(whole)
    begin = whole.index(b"Transform:") + 12 if suffix == ".tfm" else 1
    for length in sorted({last - 1, last, *range(begin, last, max(1, last // 60))}):
        if length == len(whole):
            continue
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="it is truncated, .*: copy or write it again"):
            check_whole_transform(file)


def test_a_truncated_composite_is_an_error(tmp_path):
    file = tmp_path / "t.tfm"
    sitk.WriteTransform(sitk.CompositeTransform([EULER, AFFINE]), str(file))
    lines = file.read_text().splitlines(keepends=True)
    for number in (3, 4, 5, 6, 8, 9, 10):
        file.write_text("".join(lines[:number]))
        with pytest.raises(ValueError, match=r"t\.tfm: it is truncated"):
            read_transform(file)


def test_what_is_missing_is_named(tmp_path):
    file = tmp_path / "t.tfm"
    sitk.WriteTransform(EULER, str(file))
    text = file.read_text()
    file.write_text(text.replace("-0.2 ", ""))
    with pytest.raises(ValueError, match=r"t\.tfm: it is truncated, its Euler3DTransform has 5 of 6 Parameters: copy"):
        read_transform(file)
    file.write_text(text[: text.index("FixedParameters")])
    with pytest.raises(ValueError, match="its Euler3DTransform has no FixedParameters"):
        read_transform(file)


def test_a_truncated_hdf5_file_is_one_line_without_what_hdf5_says(tmp_path, capfd):
    file = tmp_path / "t.h5"
    sitk.WriteTransform(spline(), str(file))
    whole = file.read_bytes()
    for length in (4, 50, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"t\.h5: it is truncated"):
            read_transform(file)
    assert capfd.readouterr().err == ""


def test_what_itk_says_of_a_file_that_it_cannot_read_is_in_the_error(tmp_path):
    (tmp_path / "t.tfm").write_text("#Insight Transform File V1.0\nnonsense\n")
    with pytest.raises(ValueError, match=r"t\.tfm is not a transform that ITK can read \(.*delimited.*\)"):
        read_transform(tmp_path / "t.tfm")


def test_a_text_file_that_is_not_whole_does_not_count_as_written(tmp_path):
    """ITK's writer does not say that the disk was full."""
    file = tmp_path / "t.tfm"
    file.write_text("before", encoding="utf-8")
    with pytest.raises(OSError, match="t.tfm"), replacing(file) as part:
        sitk.WriteTransform(AFFINE, str(part))
        part.write_bytes(part.read_bytes()[:-9])
    assert file.read_text(encoding="utf-8") == "before"
