"""Tests of `istn_monai.io.nifti`: large files in slabs, which every reader takes."""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from istn_monai.io import nifti
from istn_monai.io.itk_transforms import write_displacement
from istn_monai.io.nifti import WRITTEN_SUFFIXES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from common import peak_mb


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
def test_a_field_of_many_blocks_is_the_same_in_all_readers(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(nifti, "BLOCK", 1000)
    field = torch.randn(3, 9, 8, 30)
    file = write_displacement(field, np.eye(4), tmp_path / f"field{suffix}")
    expected = field.numpy() * np.array([-1, -1, 1], dtype=np.float32)[:, None, None, None]
    by_nibabel = nib.load(file).get_fdata(dtype=np.float32)[:, :, :, 0]
    assert np.array_equal(np.moveaxis(by_nibabel, -1, 0), expected)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))).T, expected)
    kind = itk.Image[itk.Vector[itk.F, 3], 3]
    reader = itk.ImageFileReader[kind].New(FileName=str(file))
    reader.Update()
    assert np.array_equal(itk.array_from_image(reader.GetOutput()).T, expected)


def test_a_compressed_file_is_one_member_whose_checksum_holds():
    blocks = [bytes(range(256)) * 50, b"", b"end"]
    content = b"".join(nifti.gzipped(blocks))
    assert gzip.decompress(content) == b"".join(blocks)
    single = zlib.decompressobj(zlib.MAX_WBITS | 16)  # which stops after the first member
    assert single.decompress(content) == b"".join(blocks) and single.eof and not single.unused_data
    damaged = content[:-8] + bytes(8)
    with pytest.raises(gzip.BadGzipFile, match="CRC"):
        gzip.decompress(damaged)


def test_a_field_is_written_without_a_copy_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "BLOCK", 2**20)
    field = torch.zeros(3, 128, 160, 128)
    peak = peak_mb(lambda: write_displacement(field, np.eye(4), tmp_path / "field.nii.gz"), "cpu")
    if peak is None:
        pytest.skip("this system does not tell the peak of memory")
    assert peak * 2**20 < field.nbytes


def test_a_field_is_written_as_nifti_alone(tmp_path):
    with pytest.raises(ValueError, match="field.nrrd"):
        write_displacement(torch.zeros(2, 3, 3), np.eye(3), tmp_path / "field.nrrd")
