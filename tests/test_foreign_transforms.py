"""Transforms that other tools write: fields against SimpleITK, other formats by the error that names them."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from oracles import DIMS, max_abs, oblique_affine, rng

from istn_monai.io.itk_transforms import read_transform, vector_image, write_displacement

SHAPES = {2: (7, 5), 3: (7, 5, 6)}


def field(dims):
    affine = oblique_affine(SHAPES[dims], (4.0, 2.5, 3.2)[:dims], 3, center=[9.0, -4.0, 6.0][:dims])
    return rng(1).normal(size=(dims, *SHAPES[dims])), affine


def by_simpleitk(image, points):
    """Points ``(D, N)`` in RAS by SimpleITK's own field."""
    flip = np.array([-1.0, -1.0, 1.0])[: len(points), None]
    transform = sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))
    return flip * np.array([transform.TransformPoint(point.tolist()) for point in (flip * points).T]).T


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_a_displacement_image_is_a_transform_as_in_itk_to_half_a_voxel_beyond_its_centers(tmp_path, dims, suffix):
    values, affine = field(dims)
    file = tmp_path / f"1Warp{suffix}"
    sitk.WriteImage(vector_image(values, affine, np.float32), str(file))
    index = rng(2).uniform(-1.0, 1.0, (dims, 600)) + (rng(3).random((dims, 600)) * np.array(SHAPES[dims])[:, None])
    points = affine[:-1, :-1] @ index + affine[:-1, -1:]
    expected = by_simpleitk(sitk.ReadImage(str(file)), points)
    found = read_transform(file, dims).transform_points(torch.as_tensor(points))
    moved = np.abs(expected - points).max(axis=0) > 0
    assert 0.1 < moved.mean() < 0.99
    assert max_abs(found, expected) < 1e-4


@pytest.mark.parametrize("dims", DIMS)
def test_our_own_displacement_file_is_read_back(tmp_path, dims):
    values, affine = field(dims)
    (back,) = read_transform(write_displacement(values, affine, tmp_path / "displacement.nii.gz")).components
    assert max_abs(back.values, values) < 1e-6 and max_abs(back.affine, affine) < 1e-4


def test_vectors_that_nifti_marks_as_ras_are_read_as_itk_reads_them(tmp_path):
    """Intent 1006: ITK turns them to LPS on reading; 1007 it takes as they are."""
    values = rng(4).normal(size=(5, 4, 6, 1, 3)).astype(np.float32)
    found = {}
    for code in (1006, 1007):
        image = nib.Nifti1Image(values, np.eye(4))
        image.header["intent_code"] = code
        nib.save(image, tmp_path / f"{code}.nii")
        found[code] = read_transform(tmp_path / f"{code}.nii").components[0].values
    assert max_abs(found[1006], np.moveaxis(values[:, :, :, 0], -1, 0)) < 1e-6
    assert max_abs(found[1007][:2], -found[1006][:2]) < 1e-6


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("flirt.mat", "1 0 0 3\n0 1 0 4\n0 0 1 5\n0 0 0 1\n", "a plain matrix of numbers.*greedy:FILE.*fsl:FILE"),
        ("reg.lta", "type      = 1\nnxforms   = 1\n", "lta_convert"),
        ("t.xfm", "MNI Transform File\nTransform_Type = Linear;\n", "MINC"),
        ("a.aff12.1D", "# 3dAllineate matrices\n1 0 0 3 0 1 0 4 0 0 1 5\n", "AFNI"),
    ],
)
def test_formats_of_others_are_named_with_how_to_convert_them(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name} is no transform of ITK's, but .*{said}"):
        read_transform(tmp_path / name)


def test_images_that_are_no_displacements_are_named(tmp_path):
    shapes = {"scalar": (5, 4, 6), "volumes": (5, 4, 6, 3), "two": (5, 4, 6, 1, 2)}
    for name, shape in shapes.items():
        image = nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4))
        image.header["intent_code"] = 1007 if name == "two" else 0
        nib.save(image, tmp_path / f"{name}.nii")
        with pytest.raises(ValueError, match=f"{name}.nii is an image of . axes with . value.*no displacement field"):
            read_transform(tmp_path / f"{name}.nii")
    image = nib.Nifti1Image(np.zeros((5, 4, 6, 1, 3), np.float32), np.eye(4))
    image.header.set_intent(1007, name="NREG_TRANS")
    nib.save(image, tmp_path / "niftyreg.nii")
    with pytest.raises(ValueError, match="niftyreg.nii: the file is NiftyReg's transform"):
        read_transform(tmp_path / "niftyreg.nii")


@pytest.mark.parametrize(("kind", "slope"), [(np.int16, 0.01), (np.uint8, 0.5), (np.int16, 1.0), (np.float32, 2.0)])
def test_vectors_of_whole_numbers_or_scaled_ones_are_refused_before_itk_reads_them(tmp_path, kind, slope):
    """ITK writes beyond its memory where it rescales vectors: the process ends."""
    image = nib.Nifti1Image(np.ones((20, 20, 20, 1, 3), kind), np.eye(4))
    image.header["intent_code"] = 1007
    image.header.set_slope_inter(slope, 0.0)
    nib.save(image, tmp_path / "u.nii")
    with pytest.raises(ValueError, match=f"u.nii: the file's voxels are {np.dtype(kind)}.*: write .* as float32"):
        read_transform(tmp_path / "u.nii")


def test_vectors_of_big_endian_files_are_read_and_analyze_is_named(tmp_path):
    image = nib.Nifti1Image(np.ones((5, 4, 6, 1, 3), np.float32), np.eye(4), nib.Nifti1Header(endianness=">"))
    image.header["intent_code"] = 1007
    nib.save(image, tmp_path / "big.nii")
    assert (read_transform(tmp_path / "big.nii").components[0].values[2] == 1).all()
    nib.save(nib.AnalyzeImage(np.zeros((5, 4, 6), np.float32), np.eye(4)), tmp_path / "old.hdr")
    with pytest.raises(ValueError, match=r"old.hdr: the file is of Analyze's format"):
        read_transform(tmp_path / "old.hdr")
