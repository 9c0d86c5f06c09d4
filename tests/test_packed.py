"""Tests of `istn_monai.io.packed`: headers of text, and compressed voxels that ITK would leave as memory was."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from istn_monai.io.images import read_image
from istn_monai.io.packed import text_header

VALUES = np.random.default_rng(0).integers(0, 99, (5, 6, 7)).astype(np.int16)
STREAM = zlib.compress(VALUES.tobytes())


def metaimage(file: Path, fields: str, stream: bytes = STREAM) -> Path:
    """Compressed voxels of 7 x 6 x 5, in a file of their own or not."""
    voxels = file.with_suffix(".zraw")
    text = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        f"CompressedData = True\n{fields}DimSize = 7 6 5\nElementType = MET_SHORT\n"
        f"ElementDataFile = {'LOCAL' if file.suffix == '.mha' else voxels.name}\n"
    )
    file.write_bytes(text.encode() + (stream if file.suffix == ".mha" else b""))
    if file.suffix == ".mhd":
        voxels.write_bytes(stream)
    return file


def nrrd(file: Path, fields: str, body: bytes) -> Path:
    text = f"NRRD0004\ntype: short\ndimension: 3\nendian: little\nsizes: 7 6 5\n{fields}\n"
    file.write_bytes(text.encode() + body)
    return file


def assert_read(file: Path) -> None:
    assert np.array_equal(read_image(file, dtype=None).numpy()[0].T, VALUES)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(file))), VALUES)


@pytest.mark.parametrize("size", ["", "0", "10", "-1", "x", str(len(STREAM) + 9)])
def test_a_metaimage_that_says_wrongly_how_much_is_compressed_is_an_error(tmp_path, size):
    """ITK leaves its voxels as memory was and goes on, or fails without a reason."""
    file = metaimage(tmp_path / "a.mha", f"CompressedDataSize = {size}\n" if size else "")
    with pytest.raises(ValueError, match=rf"image: .*a\.mha .*write CompressedDataSize = {len(STREAM)}, or") as caught:
        read_image(file)
    assert f"says {size or 'nothing'}:" in str(caught.value)


@pytest.mark.parametrize("word", ["True", "1", "T"])
def test_a_metaimage_that_says_how_much_is_compressed_is_read(tmp_path, word):
    file = metaimage(tmp_path / "a.mha", f"CompressedData = {word}\n\nCompressedDataSize : {len(STREAM)}\n")
    assert_read(file)
    with pytest.raises(ValueError, match="CompressedDataSize"):
        read_image(metaimage(tmp_path / "b.mha", f"CompressedData = {word}\n"))


def test_compressed_voxels_in_a_file_of_their_own_need_no_size(tmp_path):
    for fields in ("", "CompressedDataSize = 0\n", f"CompressedDataSize = {len(STREAM)}\n"):
        assert_read(metaimage(tmp_path / "a.mhd", fields))


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_whole_stream_of_too_few_voxels_is_an_error(tmp_path, suffix):
    short = zlib.compress(VALUES.tobytes()[:100])
    file = metaimage(tmp_path / f"a{suffix}", f"CompressedDataSize = {len(short)}\n", short)
    with pytest.raises(ValueError, match=rf"a\{suffix} is truncated: .* 420 bytes, its voxels have 100"):
        read_image(file)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_truncated_metaimage_is_called_so(tmp_path, suffix):
    """ITK says that there is no such file."""
    file = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(VALUES), str(file))
    voxels = file.with_suffix(".raw") if suffix == ".mhd" else file
    voxels.write_bytes(voxels.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"a\{suffix} is truncated: its header promises 420 bytes, .* have 415"):
        read_image(file)


@pytest.mark.parametrize("field", ["NDims", "DimSize", "ElementType"])
def test_a_metaimage_without_a_field_that_it_needs_is_an_error_that_names_it(tmp_path, field):
    file = metaimage(tmp_path / "a.mha", f"CompressedDataSize = {len(STREAM)}\n")
    file.write_bytes(file.read_bytes().replace(field.encode(), b"Own", 1))
    with pytest.raises(ValueError, match=rf"image: .*a\.mha has a header without {field}: write it again"):
        read_image(file)


def test_numbers_that_are_written_out_are_read(tmp_path):
    text = "NDims = 2\nBinaryData = False\nDimSize = 3 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_text(f"ObjectType = Image\n{text}1 2 3 4 5 6\n", encoding="utf-8")
    assert read_image(tmp_path / "a.mha").numpy()[0].T.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_compressed_voxels_behind_something_else_are_an_error(tmp_path):
    file = metaimage(tmp_path / "a.mha", f"CompressedDataSize = {len(STREAM)}\nHeaderSize = -1\n")
    with pytest.raises(ValueError, match="a.mha has compressed voxels and HeaderSize = -1"):
        read_image(file)


def test_headers_of_any_length_are_read(tmp_path):
    """Slicer's of 140 segments have more than 64 KiB."""
    more = "".join(f"Segment{number}_Name:=structure {'x' * 400}\n" for number in range(400))
    file = nrrd(tmp_path / "a.seg.nrrd", f"encoding: gzip\n{more}", gzip.compress(VALUES.tobytes()))
    assert text_header(file).length > 2**17
    assert_read(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="a.seg.nrrd: it is damaged"):
        read_image(file)


@pytest.mark.parametrize("pair", ["encoding:=gzip", "sizes:=100000 100000 1", "data file:=b.raw", "byte skip:=9"])
def test_pairs_of_a_name_and_a_value_are_no_fields_of_nrrd(tmp_path, pair):
    assert_read(nrrd(tmp_path / "a.nrrd", f"encoding: raw\n{pair}\n", VALUES.tobytes()))


def test_fields_of_another_format_are_no_fields_of_metaimage(tmp_path):
    fields = f"CompressedDataSize = {len(STREAM)}\nsizes = 100000 100000 1\nbyteskip = 5\nComment = a: b = c\n"
    file = metaimage(tmp_path / "a.mha", fields)
    assert_read(file)
    flipped = bytearray(file.read_bytes())
    flipped[-1] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(ValueError, match="a.mha: it is damaged"):
        read_image(file)


def test_a_number_that_is_none_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="image: cannot read .*a.nrrd.*byte_skip"):
        read_image(nrrd(tmp_path / "a.nrrd", "encoding: gzip\nbyte skip: x\n", gzip.compress(VALUES.tobytes())))


@pytest.mark.parametrize("named", ["gone.raw", "LIST\n0.raw", "%d.raw 0 4 1"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_file_of_voxels_that_is_not_there_is_named(tmp_path, named, packed):
    for name, first in (("a.mhd", "ObjectType = Image\nNDims = 3\nBinaryData = True\n"), ("a.nhdr", "NRRD0004\n")):
        said = {
            "a.mhd": f"CompressedData = {packed}\nDimSize = 7 6 5\nElementType = MET_SHORT\n"
            f"ElementDataFile = {named}\n",
            "a.nhdr": "type: short\ndimension: 3\nendian: little\nsizes: 7 6 5\n"
            f"encoding: {'gzip' if packed else 'raw'}\ndata file: {named}\n",
        }[name]
        (tmp_path / name).write_text(first + said, encoding="utf-8")
        missing = "gone.raw" if named == "gone.raw" else "0.raw"
        with pytest.raises(ValueError, match=rf"image: .*{name} has its voxels in .*{missing}, which is not there"):
            read_image(tmp_path / name)
