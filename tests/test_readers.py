"""Tests of `istn_monai.io.readers` and what guards them: what SimpleITK reads is read as it reads it, or refused."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import straight, write_stack
from helpers import ball, rand
from monai.data import MetaTensor
from monai.transforms import LoadImage
from PIL import Image

from istn_monai.geometry.frames import lps
from istn_monai.io.hashes import file_hash, file_state, files_of
from istn_monai.io.images import read_image, read_or_explain, write_image
from istn_monai.io.readers import SimpleITKReader

SIZE = (7, 6, 5)
VALUES = np.random.default_rng(0)


def placed(values: np.ndarray, vector: bool = False) -> sitk.Image:
    """An image on an oblique grid of steps of several sizes; values ``(.., Y, X)``."""
    image = sitk.GetImageFromArray(values, isVector=vector)
    dims = image.GetDimension()
    image.SetOrigin((-3.0, 4.0, 50.0)[:dims])
    image.SetSpacing((0.7, 1.5, 2.5)[:dims])
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])[:dims, :dims]
    image.SetDirection(turn.ravel().tolist())
    return image


def assert_as_by_itk(file: Path) -> None:
    """Type, values, and places of the voxels."""
    ours, expected = read_image(file, dtype=None), sitk.ReadImage(str(file))
    values = sitk.GetArrayFromImage(expected)
    channels = np.moveaxis(values, -1, 0) if expected.GetNumberOfComponentsPerPixel() > 1 else values[None]
    assert np.array_equal(ours.numpy(), channels.transpose(0, *range(channels.ndim - 1, 0, -1)))
    dims, last = expected.GetDimension(), [n - 1 for n in expected.GetSize()]
    for index in ([0] * dims, last):
        there = lps(dims) @ expected.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(ours.affine.numpy() @ [*index, 1.0], [*there, 1.0], atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".vtk"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "float64"])
def test_all_types_of_itk_are_read_exactly(tmp_path, dtype, suffix, dims):
    if (suffix, dims) == (".vtk", 2):
        pytest.skip("ITK's VTK files are 3-D")
    values = np.ones(SIZE[:dims], dtype) * (2**24 + 1 if dtype in ("uint32", "int64", "float64") else 77)
    image = placed(values)
    if suffix == ".vtk":  # has no direction
        image.SetDirection(np.eye(3).ravel().tolist())
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    assert_as_by_itk(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
@pytest.mark.parametrize("dims", [2, 3])
def test_components_are_channels(tmp_path, dtype, dims):
    sitk.WriteImage(placed((VALUES.random((*SIZE[:dims], 3)) * 99).astype(dtype), True), str(tmp_path / "a.nrrd"))
    assert_as_by_itk(tmp_path / "a.nrrd")
    assert read_image(tmp_path / "a.nrrd").shape == (3, *SIZE[:dims][::-1])


def test_the_reader_is_one_of_monai(tmp_path):
    sitk.WriteImage(placed(np.arange(210, dtype=np.int64).reshape(SIZE)), str(tmp_path / "a.mha"))
    load = LoadImage(reader=SimpleITKReader(), image_only=True, ensure_channel_first=True, dtype=None)
    assert np.array_equal(load(tmp_path / "a.mha").numpy(), read_image(tmp_path / "a.mha", dtype=None).numpy())


@pytest.mark.parametrize("name", ["a.gif", "a.pgm", "a.webp", "a.npy", "a.nii.bz2", "text.nrrd"])
def test_no_other_reader_takes_over_where_itk_fails(tmp_path, name):
    """Pillow, numpy and pynrrd would put the image elsewhere, nibabel would not ask for its units."""
    file = tmp_path / name
    if name.endswith("bz2"):
        nib.save(nib.Nifti1Image(np.zeros(SIZE, np.int16), np.eye(4)), tmp_path / "a.nii")
        file.write_bytes(bz2.compress((tmp_path / "a.nii").read_bytes()))
    elif name.endswith("npy"):
        np.save(file, np.zeros(SIZE))
    elif name.endswith("nrrd"):
        file.write_bytes(b"NRRD0005\ntype: float\ndimension: 3\nsizes: 2 2 2\nencoding: bzip2\n\n" + bytes(32))
    else:
        Image.fromarray((ball((20, 24), (8, 9), 5) * 200).astype(np.uint8)).save(file)
    with pytest.raises(ValueError, match=rf"image: cannot read .*{name}") as error:
        read_image(file)
    assert "pydicom" not in str(error.value) and "0x" not in str(error.value)


# --- damage ----------------------------------------------------------------------------------------------------------


def flipped(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 0x55
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.nhdr", "a.h5", "a.gipl.gz"])
def test_a_flipped_byte_in_compressed_voxels_is_an_error(tmp_path, name):
    values = VALUES.integers(0, 5, (20, 30, 30)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / name), True)
    read_image(tmp_path / name)
    packed = max((file for file in tmp_path.iterdir()), key=lambda file: file.stat().st_size)
    flipped(packed, 0.8)
    with pytest.raises(ValueError, match=rf"image: cannot read .*{name}"):
        read_image(tmp_path / name)


def test_a_wrong_checksum_of_compressed_voxels_is_an_error(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(VALUES.random((9, 9, 9))), str(tmp_path / "a.mha"), True)
    flipped(tmp_path / "a.mha", 1 - 1e-6)
    with pytest.raises(ValueError, match="a.mha: it is damaged or truncated"):
        read_image(tmp_path / "a.mha")


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.vtk", "a.gipl", "a.gipl.gz", "a.jpg", "a.bmp", "a.png", "a.h5"])
def test_a_file_without_its_end_is_an_error(tmp_path, name):
    flat = name.endswith(("jpg", "bmp", "png"))
    values = VALUES.integers(0, 255, (40, 50) if flat else (20, 24, 22)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / name), True)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"image: .*{name}"):
        read_image(tmp_path / name)


# --- NIfTI headers ---------------------------------------------------------------------------------------------------


def nifti(file: Path, *fields: tuple[int, str, float], dtype: str = "int16") -> Path:
    """A NIfTI file with some fields of its header, ``(place, format, value)``, as they are given."""
    nib.save(nib.Nifti1Image(np.full(SIZE, 78, dtype), np.eye(4)), file)
    content = bytearray(file.read_bytes())
    for place, kind, value in fields:
        struct.pack_into(f"<{kind}", content, place, value)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    "fields, words",
    [
        ([(108, "f", 0.0)], "begin inside it .vox_offset 0, not 352"),
        ([(108, "f", 16.0)], "begin inside it .vox_offset 16, not 352"),
        ([(108, "f", float("nan"))], "begin nowhere .vox_offset nan, not 352"),
        ([(108, "f", 1e6)], "is truncated: its header promises 1,000,420 bytes, the file has 772"),
        ([(112, "f", 0.0), (116, "f", 5.0)], "scl_slope 0 and scl_inter 5 have two meanings"),
        ([(112, "f", float("nan")), (116, "f", 5.0)], "scl_slope nan and scl_inter 5"),
        ([(112, "f", 2.0), (116, "f", float("nan"))], "invalid intercept nan|scl_inter nan"),
        ([(112, "f", 1e-30)], "scl_slope 1e-30"),
        ([(44, "h", 0)], r"header of \[7, 0, 5\] voxels"),
        ([(68, "h", 1006)], "says that its values are displacements"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_that_readers_understand_otherwise_are_refused(tmp_path, fields, words):
    with pytest.raises(ValueError, match=rf"image: .*a\.nii.*{words}"):
        read_image(nifti(tmp_path / "a.nii", *fields))


@pytest.mark.parametrize("slope, intercept", [(0.0, 0.0), (float("nan"), 0.0), (2.0, 5.0), (1.0, -3.0)])
def test_scaling_is_that_of_itk(tmp_path, slope, intercept):
    file = nifti(tmp_path / "a.nii", (112, "f", slope), (116, "f", intercept))
    assert np.array_equal(read_image(file).numpy()[0].T, sitk.GetArrayFromImage(sitk.ReadImage(str(file))))


@pytest.mark.parametrize(
    "fields",
    [[(124, "f", 100.0), (140, "i", 200)], [(112, "f", 1.0), (116, "f", 5.0)], [(112, "f", 3.0)]],
    ids=["the ranges of values", "an intercept", "a slope"],
)
def test_scaling_of_spm_is_an_error_wherever_it_stands(tmp_path, fields):
    """nibabel takes it from three places of an Analyze header, ITK from none."""
    header = nib.AnalyzeHeader()
    header.set_data_shape(SIZE)
    header.set_data_dtype(np.int16)
    content, values = bytearray(header.binaryblock), VALUES.integers(0, 99, SIZE).astype(np.int16)
    (tmp_path / "a.img").write_bytes(values.tobytes(order="F"))
    for place, kind, value in [(112, "f", 0.0), (116, "f", 0.0), *fields]:
        struct.pack_into(f"<{kind}", content, place, value)
    (tmp_path / "a.hdr").write_bytes(content)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.hdr"))).T, values)
    with pytest.raises(ValueError, match=r"a\.hdr has a header with SPM's scale factor"):
        read_image(tmp_path / "a.hdr", "itk")
    struct.pack_into("<ffff", content, 112, 0.0, 0.0, 0.0, 0.0)
    (tmp_path / "a.hdr").write_bytes(content)
    if (124, "f", 100.0) not in fields:
        assert np.array_equal(read_image(tmp_path / "a.hdr", "itk").numpy()[0], values)


def test_a_unit_of_time_without_a_meaning_is_unknown(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((*SIZE, 2), np.int16), np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[123] = 56 + 3  # microns
    (tmp_path / "a.nii").write_bytes(content)
    image = read_image(tmp_path / "a.nii")
    assert image.meta["time_step"] == (1.0, "unknown")
    assert abs(sitk.ReadImage(str(tmp_path / "a.nii")).GetSpacing()[0] - 1e-3) < 1e-9
    np.testing.assert_allclose(np.abs(image.affine.numpy().diagonal()), [1e-3, 1e-3, 1e-3, 1])


@pytest.mark.parametrize("volumes", [1, 2])
def test_axes_of_one_behind_the_fourth_are_left_out_as_itk_does(tmp_path, volumes):
    values = VALUES.integers(0, 99, (*SIZE, volumes, 1, 1)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1])), tmp_path / "a.nii")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii"))).T.reshape(*SIZE, volumes)
    assert np.array_equal(np.moveaxis(read_image(tmp_path / "a.nii").numpy(), 0, -1), expected)


def test_a_quaternion_of_length_1_is_read_whatever_its_rounding(tmp_path):
    for parts in ((0.0, 1.0, 0.0), (0.6, 0.8, 0.0), (0.57735026, 0.57735026, 0.57735033)):
        places = zip((256, 260, 264), parts, strict=True)
        quaternion = [(place, "f", part) for place, part in places]
        assert_as_by_itk(nifti(tmp_path / "a.nii", (252, "h", 1), (254, "h", 0), *quaternion))


def test_what_follows_a_compressed_file_is_called_the_cause(tmp_path):
    large = nib.Nifti1Image(VALUES.integers(0, 99, (50, 50, 50)).astype(np.int16), np.eye(4))
    for image in (large, nib.load(nifti(tmp_path / "a.nii"))):
        content = gzip.compress(image.to_bytes())
        (tmp_path / "a.nii.gz").write_bytes(content + b"other")
        with pytest.raises(ValueError, match=r"a\.nii\.gz: it is not compressed as its suffix says, or other bytes"):
            read_image(tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").write_bytes(content + bytes(9))  # a tape's
    assert read_image(tmp_path / "a.nii.gz").unique() == 78


def test_a_quaternion_longer_than_1_is_named_with_its_file(tmp_path):
    codes, quaternion = [(252, "h", 1), (254, "h", 0)], [(256, "f", 1.0001), (260, "f", 0.0), (264, "f", 0.0)]
    with pytest.raises(ValueError, match=r"image: .*a\.nii has a header whose qform has the quaternion .* 1\.0001,"):
        read_image(nifti(tmp_path / "a.nii", *codes, *quaternion))
    file = nifti(tmp_path / "b.nii", (252, "h", 1), *quaternion, (80, "f", 1.5))
    with pytest.raises(ValueError, match=r"b\.nii .*quaternion of its qform is longer than 1; .*: itk, sform$"):
        read_image(file)
    with pytest.raises(ValueError, match=r"b\.nii has no qform that can be read"):
        read_image(file, "qform")


def test_codes_of_forms_that_nifti_does_not_know_are_named(tmp_path):
    file = nifti(tmp_path / "a.nii", (252, "h", 6), (254, "h", 6), (280, "f", -1.0))
    with pytest.raises(ValueError, match=r"a\.nii .*for NIfTI knows no sform_code 6 and no qform_code 6, and nibabel"):
        read_image(file)


@pytest.mark.parametrize("name", ["a.Nii", "a.nii.GZ", "a.Nii.Gz", "a.MHA", "a.Mhd", "a.mgh.gz"])
def test_a_suffix_that_alone_keeps_a_file_from_being_read_is_named(tmp_path, name):
    file = nifti(tmp_path / "whole.nii").rename(tmp_path / name)
    with pytest.raises(ValueError, match=rf"image: .*{name} has the suffix {name[1:]}.*rename it"):
        read_image(file)


def test_suffixes_in_capitals_that_itk_reads_are_read(tmp_path):
    file = nifti(tmp_path / "a.nii")
    (tmp_path / "A.NII.GZ").write_bytes(gzip.compress(file.read_bytes()))
    assert_as_by_itk(tmp_path / "A.NII.GZ")
    assert_as_by_itk(file.rename(tmp_path / "B.NII"))


def test_a_pair_without_its_voxels_names_the_file_that_is_not_there(tmp_path):
    for given, gone in (("a.hdr", "a.img"), ("a.img", "a.hdr"), ("A.HDR", "A.IMG"), ("A.IMG", "A.HDR")):
        nib.save(nib.Nifti1Pair(np.ones(SIZE, np.int16), np.eye(4)), tmp_path / "a.hdr")
        for name in ("a.hdr", "a.img"):
            (tmp_path / name).rename(tmp_path / (name.upper() if given.isupper() else name))
        assert read_image(tmp_path / given).shape == (1, *SIZE)
        (tmp_path / gone).unlink()
        with pytest.raises(ValueError, match=rf"image: .*{given} has its (voxels|header) in .*{gone}, which is not"):
            read_image(tmp_path / given)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_four_axes_of_any_format_are_counted_in_the_error(tmp_path, suffix):
    volumes = sitk.JoinSeries([placed(np.ones(SIZE, np.int16))] * 2)
    sitk.WriteImage(volumes, str(tmp_path / f"a{suffix}"))
    with pytest.raises(ValueError, match=rf"image: .*a\{suffix} has 4 axes besides channels, of size \(5, 6, 7, 2\)"):
        read_image(tmp_path / f"a{suffix}")


def test_a_file_is_itself_whatever_lies_beside_it(tmp_path):
    """ITK takes the voxels of ``a.nii`` for those of ``a.nii.gz``."""
    nifti(tmp_path / "a.nii.gz.nii").rename(tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(np.full(SIZE, 5, np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii").unique() == 78 and read_image(tmp_path / "a.nii.gz").unique() == 5


def test_compressed_pairs_are_checked_as_single_files_are(tmp_path):
    pair = nib.Nifti1Pair(VALUES.integers(0, 99, SIZE).astype(np.int16), np.eye(4))
    pair.set_sform(np.eye(4), 2)
    moved = np.eye(4)
    moved[:3, 3] = 50.0
    pair.set_qform(moved, 1)
    nib.save(pair, tmp_path / "a.hdr")
    for end in ("hdr", "img"):
        (tmp_path / f"a.{end}.gz").write_bytes(gzip.compress((tmp_path / f"a.{end}").read_bytes()))
    for name in ("a.hdr.gz", "a.img.gz"):
        with pytest.raises(ValueError, match=f"{name} lies in two places"):
            read_image(tmp_path / name)
        assert (
            read_image(tmp_path / name, "qform").affine[0, 3] == 50 and read_image(tmp_path / name, "sform").mean() > 0
        )
    flipped(tmp_path / "a.img.gz", 1 - 1e-6)
    with pytest.raises(ValueError, match=r"a\.img\.gz: it is damaged|a\.img\.gz holds"):
        read_image(tmp_path / "a.hdr.gz", "sform")


def test_a_folder_without_dicom_says_so(tmp_path):
    (tmp_path / "scan.nii.gz").mkdir()
    nifti(tmp_path / "scan.nii.gz" / "a.nii")
    with pytest.raises(ValueError, match="image: .*scan.nii.gz is a folder without a DICOM file"):
        read_image(tmp_path / "scan.nii.gz")


# --- files that are made of several ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "list.mhd", "list.nhdr", "pattern.mhd", "pattern.nhdr", "a.hdr"])
def test_the_hash_of_an_image_is_that_of_all_its_files(tmp_path, name):
    image = sitk.GetImageFromArray(VALUES.integers(0, 99, SIZE).astype(np.int16))
    kind = Path(name).suffix
    file = tmp_path / name
    sitk.WriteImage(image, str(file if name.startswith("a") else tmp_path / f"whole{kind}"))
    if not name.startswith("a"):
        for number, plane in enumerate(sitk.GetArrayFromImage(image)):
            (tmp_path / f"{number}.raw").write_bytes(plane.tobytes())
        named = "LIST\n" + "\n".join(f"{n}.raw" for n in range(7)) if "list" in name else "%d.raw 0 6 1"
        named = named.replace("LIST", "LIST 2") if kind == ".nhdr" and "list" in name else named
        text = (tmp_path / f"whole{kind}").read_text(encoding="utf-8")
        text = text.replace("whole.raw", named) if kind == ".mhd" else text.replace("encoding: gzip", "encoding: raw")
        lines = [f"data file: {named}" if line.startswith("data file") else line for line in text.splitlines()]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert np.array_equal(read_image(file, dtype=None).numpy()[0].T, sitk.GetArrayFromImage(image))
    before = file_hash(file)
    last = next(path for path in ("6.raw", "a.raw", "a.raw.gz", "a.img") if (tmp_path / path).exists())
    flipped(tmp_path / last, 0.999)
    assert file_hash(file) != before


def test_slices_behind_a_link_to_a_folder_are_read_and_hashed(tmp_path):
    write_stack(tmp_path / "elsewhere", straight(4))
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path / "series")  # a ring
    assert read_image(tmp_path / "series").shape[-1] == 4
    assert len(files_of(tmp_path / "series")) == 4


def test_a_slice_that_is_replaced_by_an_older_one_of_its_size_is_seen(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(b"1234")
    before = file_state(tmp_path)
    (tmp_path / "b").write_bytes(b"5678")
    os.utime(tmp_path / "b", (1, 1))
    assert file_state(tmp_path)[:3] == before[:3] and file_state(tmp_path) != before
    assert len(file_state(tmp_path / "a")) == 3


def test_a_written_2d_image_of_several_channels_is_read_again(tmp_path):
    affine = torch.tensor([[-1.5, 0, 4], [0, 1, -3], [0, 0, 1]], dtype=torch.float64)
    image = MetaTensor(rand(3, 6, 5), affine=affine)
    write_image(image, tmp_path / "rgb.nii.gz")
    found = read_or_explain(tmp_path / "rgb.nii.gz", "image")
    assert torch.equal(found.as_tensor(), image.as_tensor()) and torch.equal(found.affine, affine)


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_a_2d_image_out_of_its_plane_is_refused_whichever_form_is_chosen(tmp_path, form):
    affine = np.eye(4)
    affine[:3, [0, 2]] = [[0.7, -0.7], [0, 0], [0.7, 0.7]]
    image = nib.Nifti1Image(np.ones((6, 5), np.float32), None)
    image.set_sform(affine, 1), image.set_qform(affine, 1)
    nib.save(image, tmp_path / "i.nii.gz")
    with pytest.raises(ValueError, match="does not lie in the plane of the first two axes"):
        read_or_explain(tmp_path / "i.nii.gz", "image", form)
