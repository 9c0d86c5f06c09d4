"""Tests of `istn_monai.io.nifti_frames` and `readers`: place and values are what SimpleITK reads, or an error."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from istn_monai.io.images import read_image, read_or_explain

SIZE = (5, 6, 7)


def oblique(spacing=(1.0, 1.5, 2.0), angles=(10, 20, 30), origin=(-10, 20, 30)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def write(file, sform=None, qform=None, codes=(0, 0), units="mm", zooms=None, size=SIZE, dtype=np.float32):
    """A NIfTI file whose header says just that."""
    header = nib.Nifti1Header()
    header.set_data_shape(size)
    header.set_data_dtype(dtype)
    if qform is not None:
        header.set_qform(qform, 1)
    if sform is not None:
        header.set_sform(sform, 1)
        if qform is None:
            header["pixdim"][1:4] = np.linalg.norm(sform[:3, :3], axis=0)
    if zooms is not None:
        header["pixdim"][1:4] = zooms
    header["sform_code"], header["qform_code"] = codes
    header.set_xyzt_units(units)
    voxels = np.random.default_rng(0).integers(0, 99, size).astype(dtype)
    header["magic"], header["vox_offset"] = b"n+1", 352
    file.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    return file


def places_by_itk(file) -> np.ndarray:
    """World points, RAS, of the first and last voxels along each axis, by SimpleITK."""
    image = sitk.ReadImage(str(file))
    dims = image.GetDimension()
    corners = itertools.product(*((0, n - 1) for n in image.GetSize()))
    signs = np.array([-1, -1, 1][:dims])
    return np.array([np.array(image.TransformIndexToPhysicalPoint(corner)) * signs for corner in corners])


def places(image) -> np.ndarray:
    """The same of an image that the package read."""
    dims = image.ndim - 1
    affine = image.affine.numpy()
    affine = affine[[*range(dims), -1]][:, [*range(dims), -1]]
    corners = np.array([*itertools.product(*((0, n - 1) for n in image.shape[1:]))], dtype=float)
    return corners @ affine[:dims, :dims].T + affine[:dims, dims]


def test_an_sform_and_a_qform_that_differ_are_an_error_naming_both(tmp_path):
    moved = oblique(origin=(-5, 20, 30))
    for codes in ((2, 1), (2, 2), (3, 1), (4, 2)):  # nibabel takes the sform, ITK the qform
        file = write(tmp_path / "a.nii", moved, oblique(), codes)
        with pytest.raises(
            ValueError, match=r"moving_image: .*a\.nii lies in two places: .* 5 mm apart .*sform.*qform"
        ):
            read_or_explain(file, "moving_image")
    for name, expected in {"sform": moved, "qform": oblique(), "itk": oblique()}.items():
        np.testing.assert_allclose(read_image(file, name).affine.numpy(), expected, atol=1e-5)


def test_where_both_readers_take_the_same_form_the_other_one_does_not_matter(tmp_path):
    moved = oblique(origin=(-5, 20, 30))
    for codes in ((1, 1), (1, 2), (1, 0), (0, 1), (0, 2), (2, 0)):
        file = write(tmp_path / "a.nii", moved, oblique(), codes)
        np.testing.assert_allclose(places(read_image(file)), places_by_itk(file), atol=1e-4)


def test_a_header_without_any_form_is_an_error_unless_chosen(tmp_path):
    file = write(tmp_path / "a.nii", codes=(0, 0), zooms=(1, 2, 3))
    with pytest.raises(ValueError, match="two places: .*neither sform nor qform"):
        read_image(file)
    np.testing.assert_allclose(places(read_image(file, "itk")), places_by_itk(file), atol=1e-4)
    with pytest.raises(ValueError, match="has no qform"):
        read_image(file, "qform")


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_units_are_honored_as_itk_honors_them(tmp_path, unit):
    file = write(tmp_path / "a.nii", oblique(), oblique(), (1, 1), unit)
    np.testing.assert_allclose(places(read_image(file)), places_by_itk(file), rtol=1e-5)
    np.testing.assert_allclose(read_image(file, "sform").affine, read_image(file).affine, rtol=1e-5)


@pytest.mark.parametrize("column", [[0.3, 1, 0], [1e-3, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1e-9, 0]])
def test_axes_that_are_not_at_right_angles_are_an_error(tmp_path, column):
    sheared = np.eye(4)
    sheared[:3, 1] = column
    file = write(tmp_path / "a.nii", sheared, codes=(1, 0))
    with pytest.raises(ValueError, match=r"image: .*a\.nii.*(not at right angles|sheared|two places)"):
        read_image(file)


def test_a_sheared_sform_gives_way_to_the_qform_only_if_chosen(tmp_path):
    sheared = oblique()
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    file = write(tmp_path / "a.nii", sheared, oblique(), (1, 1))
    with pytest.raises(ValueError, match="two places"):
        read_image(file)
    np.testing.assert_allclose(read_image(file, "qform").affine, oblique(), atol=1e-5)
    with pytest.raises(ValueError, match="not at right angles"):
        read_image(file, "sform")


def test_voxel_sizes_other_than_the_sforms_are_an_error(tmp_path):
    file = write(tmp_path / "a.nii", oblique(), codes=(1, 0), zooms=(3, 3, 3))
    with pytest.raises(ValueError, match=r"two places: .*voxel sizes \[3\.0, 3\.0, 3\.0\]"):
        read_image(file)


FORMS = st.tuples(
    st.tuples(*[st.floats(0.05, 20)] * 3),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(-300, 300)] * 3),
    st.permutations(range(3)),
    st.booleans(),
)


def form(spacing, angles, origin, order, mirrored) -> np.ndarray:
    affine = oblique((1, 1, 1), angles, origin)
    affine[:3, :3] = affine[:3, :3][:, list(order)] * spacing
    affine[:3, 0] *= -1 if mirrored else 1
    return affine


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sform=FORMS, qform=FORMS, same=st.booleans(), codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    units=st.sampled_from(["mm", "micron", "meter", "unknown"]), dims=st.integers(2, 3),
)  # fmt: skip
def test_any_header_lies_where_simpleitk_sees_it_or_is_refused(tmp_path, sform, qform, same, codes, units, dims):
    first = form(*sform)
    file = write(tmp_path / "any.nii", first, first if same else form(*qform), codes, units, size=SIZE[:dims])
    try:
        image = read_image(file)
    except ValueError as error:
        assert "any.nii" in str(error)
        return
    expected = places_by_itk(file)
    np.testing.assert_allclose(places(image), expected, atol=1e-4 * max(1.0, np.abs(expected).max() / 1e3))


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">f8", ">u2"])
def test_big_endian_files_are_read(tmp_path, dtype):
    voxels = np.random.default_rng(0).integers(0, 99, SIZE)
    for suffix, kind in {"nii": nib.Nifti1Image, "mgz": nib.MGHImage}.items():
        header = nib.Nifti1Header(endianness=">") if suffix == "nii" else None
        stored = voxels.astype(dtype if suffix == "nii" else np.int16)
        nib.save(kind(stored, oblique(), header), tmp_path / f"a.{suffix}")
        image = read_image(tmp_path / f"a.{suffix}", dtype=None)
        assert torch.equal(image.as_tensor()[0].double(), torch.tensor(voxels).double())
        np.testing.assert_allclose(image.affine, oblique(), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_complex_and_color_voxels_are_named(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.zeros(SIZE, dtype), oblique()), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a\.nii.*(complex numbers|colors)"):
        read_image(tmp_path / "a.nii")


def test_whole_numbers_beyond_63_bits_are_named_and_smaller_ones_exact(tmp_path):
    for value in (2**63 - 1, 2**53 + 1, 4000000001):
        nib.save(nib.Nifti1Image(np.full(SIZE, value, np.uint64), oblique(), dtype=np.uint64), tmp_path / "a.nii")
        assert read_image(tmp_path / "a.nii", dtype=None).unique().tolist() == [value]
    nib.save(nib.Nifti1Image(np.full(SIZE, 2**64 - 1, np.uint64), oblique(), dtype=np.uint64), tmp_path / "a.nii")
    with pytest.raises(ValueError, match="18446744073709551615"):
        read_image(tmp_path / "a.nii", dtype=None)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LPS", "LAS", "scanner-xyz"])
def test_nrrd_lies_where_simpleitk_sees_it_whatever_is_installed(tmp_path, space):
    text = (
        f"NRRD0005\ntype: float\ndimension: 3\nspace: {space}\nsizes: 5 6 7\n"
        "space directions: (2,0,0) (0,1,0) (0,0,3)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
        "space origin: (1,2,3)\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(text.encode() + np.arange(210, dtype="<f4").tobytes())
    np.testing.assert_allclose(places(read_image(tmp_path / "a.nrrd")), places_by_itk(tmp_path / "a.nrrd"), atol=1e-5)


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr", ".nii.gz", ".hdr"])
@pytest.mark.parametrize("dims", [2, 3])
def test_files_of_itk_come_as_they_were_written(tmp_path, suffix, dims):
    image = sitk.GetImageFromArray(np.random.default_rng(0).random(SIZE[:dims]).astype(np.float32))
    image.SetSpacing([0.7, 1.3, 2.1][:dims])
    image.SetOrigin([3.0, -4.0, 5.0][:dims])
    if dims == 3:
        image.SetDirection(Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix().ravel())
    file = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(file))
    found = read_image(file, dtype=None)
    assert np.array_equal(found.numpy()[0], sitk.GetArrayFromImage(image).T)
    np.testing.assert_allclose(places(found), places_by_itk(file), atol=1e-4)


def test_flat_pictures_mean_what_they_mean_to_itk(tmp_path):
    values = (np.arange(30).reshape(5, 6) * 8).astype(np.uint8)
    pictures = {
        "a.png": Image.fromarray(values), "p.png": Image.fromarray(values).convert("P"),
        "b.png": Image.fromarray(values > 99), "a.bmp": Image.fromarray(values), "a.tif": Image.fromarray(values),
    }  # fmt: skip
    for name, picture in pictures.items():
        file = tmp_path / name
        picture.save(file, dpi=(100, 100))
        image = read_image(file)
        expected = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        expected = expected[..., 0] if expected.ndim == 3 else expected
        assert image.shape == (1, 6, 5) and np.array_equal(image.numpy()[0], expected.T), name
        np.testing.assert_allclose(places(image), places_by_itk(file), atol=1e-5)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype(np.uint8)).save(tmp_path / "c.png")
    assert len(read_image(tmp_path / "c.png")) == 3  # colors stay, and the number of channels is checked


def test_a_damaged_mgz_is_an_error(tmp_path):
    nib.save(nib.MGHImage(np.random.default_rng(0).random(SIZE).astype(np.float32), oblique()), tmp_path / "a.mgz")
    content = (tmp_path / "a.mgz").read_bytes()
    (tmp_path / "a.mgz").write_bytes(content[:-30])
    with pytest.raises(ValueError, match=r"image: .*a\.mgz"):
        read_image(tmp_path / "a.mgz")


def test_every_command_takes_the_choice(tmp_path):
    """Of a pair whose headers have two meanings: refused, or read as chosen, and recorded."""
    from istn_monai.options import KINDS, OF_COMMAND
    from istn_monai.transforms.preprocessing import LoadPaird

    file = str(write(tmp_path / "a.nii", oblique(origin=(-5, 20, 30)), oblique(), (2, 1)))
    pair = {"moving_image": file, "fixed_label": file}
    with pytest.raises(ValueError, match="moving_image: .*two places"):
        LoadPaird()(pair)
    loaded = LoadPaird(nifti_frame="sform")(pair)
    assert all(image.affine[0, 3] == -5 for image in loaded.values())
    with pytest.raises(ValueError, match="nifti_frame must be one of"):
        LoadPaird(nifti_frame="scanner")
    assert "nifti_frame" in KINDS and all("nifti_frame" in names for names in OF_COMMAND.values())


def test_more_axes_than_an_image_has_are_an_error(tmp_path):
    for size in ((*SIZE, 1, 3), (*SIZE, 2, 2, 2)):
        nib.save(nib.Nifti1Image(np.ones(size, np.float32), oblique()), tmp_path / "a.nii")
        with pytest.raises(ValueError, match=r"image: .*a\.nii"):
            read_image(tmp_path / "a.nii")
