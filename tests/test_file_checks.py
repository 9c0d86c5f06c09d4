"""Tests of `istn_monai.io.file_checks`: what is refused by its header, and damaged ends."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import write_nifti

from istn_monai.io.file_checks import check_file, most_voxels
from istn_monai.io.images import read_or_explain


def header(shape) -> bytes:
    found = nib.Nifti1Header()
    found.set_data_shape(shape)
    found.set_data_dtype(np.uint8)
    found["magic"], found["vox_offset"] = b"n+1", 352
    return found.binaryblock + bytes(4)


def test_a_header_that_promises_too_much_is_refused_before_reading(tmp_path):
    file = tmp_path / "bomb.nii.gz"
    file.write_bytes(gzip.compress(header((1500, 1500, 1500)) + bytes(10**6)))
    with pytest.raises(ValueError, match=r"moving_image: .*bomb.nii.gz has 3,375,000,000 voxels.*ISTN_MAX_VOXELS"):
        read_or_explain(file, "moving_image")
    for name, text in {"a.nrrd": b"NRRD0004\nsizes: 1500 1500 1500\n", "a.mha": b"DimSize = 1500 1500 1500\n"}.items():
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match="3,375,000,000 voxels"):
            check_file(tmp_path / name, "x")


def test_a_header_that_its_file_cannot_fill_is_refused(tmp_path):
    file = tmp_path / "short.nii.gz"
    file.write_bytes(gzip.compress(header((600, 600, 600)) + bytes(100)))
    with pytest.raises(ValueError, match="is truncated"):
        check_file(file, "x")
    plain = tmp_path / "short.nii"
    plain.write_bytes(header((80, 80, 80)) + bytes(100))
    with pytest.raises(ValueError, match="is truncated"):
        check_file(plain, "x")


def test_zeros_behind_a_small_image_are_not_expanded(tmp_path):
    file = tmp_path / "behind.nii.gz"
    file.write_bytes(gzip.compress(header((5, 5, 5)) + bytes(2**25)))
    with pytest.raises(ValueError, match="holds .* bytes or more"):
        check_file(file, "x")


@pytest.mark.parametrize("damage", ["crc", "cut", "flip"])
def test_damage_anywhere_in_a_compressed_file_is_an_error(tmp_path, damage):
    file = tmp_path / "a.nii.gz"
    write_nifti(file, np.random.default_rng(0).integers(0, 255, (9, 10, 11)).astype(np.uint8))
    check_file(file, "x")
    content = bytearray(file.read_bytes())
    place = {"crc": -6, "flip": len(content) // 2, "cut": -1}[damage]
    content[place] ^= 16
    file.write_bytes(content[:-5] if damage == "cut" else content)
    with pytest.raises(ValueError, match=r"x: .*a.nii.gz: it is damaged or truncated"):
        read_or_explain(file, "x")


def test_the_limit_is_a_setting_that_is_checked(monkeypatch):
    monkeypatch.setenv("ISTN_MAX_VOXELS", "1000")
    assert most_voxels() == 1000
    monkeypatch.setenv("ISTN_MAX_VOXELS", "1e9")
    with pytest.raises(ValueError, match="ISTN_MAX_VOXELS must be"):
        most_voxels()


def test_an_sform_that_is_not_finite_is_refused(tmp_path):
    data = bytearray(Path(write_nifti(tmp_path / "a.nii", np.ones((3, 4, 5), np.float32))).read_bytes())
    data[280:296] = np.full(4, np.nan, np.float32).tobytes()  # srow_x
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match="moving_image: .*a.nii has a header whose sform is not finite"):
        check_file(tmp_path / "a.nii", "moving_image")


VTK_HEAD = (
    "# vtk DataFile Version 3.0\n{title}\n{kind}\nDATASET STRUCTURED_POINTS\nDIMENSIONS 4 5 6\nSPACING 1 2 3\n"
    "ORIGIN 0 0 0\nPOINT_DATA 120\nSCALARS s short 1\nLOOKUP_TABLE default\n"
)


@pytest.mark.parametrize("title", ["a scan", "ASCII"])
def test_a_truncated_vtk_of_text_or_of_bytes_is_an_error_whatever_its_title(tmp_path, title):
    text = VTK_HEAD.format(title=title, kind="ASCII") + "\n".join(map(str, range(120))) + "\n"
    data = VTK_HEAD.format(title=title, kind="BINARY").encode() + np.arange(120, dtype=">i2").tobytes() + b"\n"
    for content, lost in ((text.encode(), 40), (data, 40)):
        file = tmp_path / "scan.vtk"
        file.write_bytes(content)
        assert sorted(read_or_explain(str(file), "image").as_tensor().flatten().tolist()) == list(range(120))
        file.write_bytes(content[:-lost])
        with pytest.raises(ValueError, match=r"scan\.vtk is truncated: its header promises"):
            read_or_explain(str(file), "image")


def test_a_truncated_stack_of_mrc_is_an_error_by_either_suffix(tmp_path):
    import SimpleITK as sitk

    for suffix in (".mrc", ".rec"):
        file = tmp_path / f"stack{suffix}"
        sitk.WriteImage(sitk.Image([20, 20, 20], sitk.sitkInt16), str(file), imageIO="MRCImageIO")
        file.write_bytes(file.read_bytes()[:-4000])
        with pytest.raises(ValueError, match=f"stack{suffix} is truncated"):
            read_or_explain(str(file), "image")
