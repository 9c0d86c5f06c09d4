"""DICOM: one series of one stack where its slices lie, or one line that says what is wrong."""

import json
import locale
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import (
    DIRECTORY,
    REPORT,
    SECONDARY,
    SEG,
    SIZE,
    STRAIGHT,
    pixels_of,
    places,
    smooth,
    straight,
    write,
    write_frames,
    write_slice,
    write_stack,
)  # fmt: skip
from helpers import DATA_DIR
from monai.transforms import LoadImage

from istn_monai import LoadPaird
from istn_monai.apply import apply_transform
from istn_monai.geometry.frames import lps
from istn_monai.geometry.world_transform import WorldAffine, WorldTransform
from istn_monai.io.dicom import read_series
from istn_monai.io.dicom_headers import is_dicom, read_header
from istn_monai.io.images import read_or_explain
from istn_monai.io.itk_transforms import write_transform

REAL = DATA_DIR / "dicom_hippocampus"
RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1.1"


def turned(*degrees):
    """Axes turned about z, then x: columns are directions in LPS."""
    a, b = np.radians(degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return np.round(about_x @ about_z, 9)


def tilted(number, angle, step=2.5):
    """Positions of slices that move along their columns' direction, as under a tilted gantry."""
    return straight(number, step) + np.arange(number)[:, None] * [0, step * np.tan(np.radians(angle)), 0]


def by_itk(folder):
    return LoadImage(image_only=True, ensure_channel_first=True, dtype=None, reader="ITKReader")(folder)


def same(image, other):
    assert image.dtype == other.dtype and torch.equal(image.as_tensor(), other.as_tensor())
    assert torch.equal(image.affine, other.affine) and set(image.meta) >= set(other.meta) - {"spacing"}


def errors(image):
    """The difference of each voxel to the phantom, at the place that the affine gives it."""
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij"), -1)
    affine = image.affine.numpy()
    world = (grid @ affine[:3, :3].T + affine[:3, 3]) @ lps(3)
    return np.abs(image[0].numpy() - smooth(world))


# --- regular series --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is absent")
def test_a_real_series_is_bit_for_bit_what_itk_reads():
    image = read_series(REAL, "image")
    same(image, by_itk(REAL))
    assert image.shape == (1, 35, 51, 32) and image.meta["filename_or_obj"] == str(REAL)


@pytest.mark.parametrize("axes", [STRAIGHT, turned(30, 0), turned(-20, 35), turned(10, 90)[:, [1, 2, 0]]])
def test_a_regular_series_is_bit_for_bit_what_itk_reads_and_lies_where_the_formula_says(tmp_path, axes):
    folder = write_stack(tmp_path / "ct", straight(7, axes=axes)[::-1], axes)
    image = read_series(folder, "image")
    same(image, by_itk(folder))
    assert image.shape == (1, *SIZE, 7) and "resampled" not in image.meta
    assert errors(image).max() <= 0.51  # the phantom, rounded


def series_by_sitk(folder):
    """RAS affine of SimpleITK's own reading of a series."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, affine = reader.Execute(), np.eye(4)
    affine[:3, :3] = lps(3) @ np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = lps(3) @ image.GetOrigin()
    return affine


@pytest.mark.parametrize("axes", [STRAIGHT, turned(-20, 35)])
def test_a_negative_space_between_slices_does_not_turn_the_stack_around(tmp_path, axes):
    """ITK turns the normal of such a file around, but not the order of the slices of a series."""
    folder = write_stack(tmp_path / "mr", straight(7, axes=axes), axes, x00180088=("DS", -2.5))
    image = read_series(folder, "image")
    np.testing.assert_allclose(image.affine.numpy(), series_by_sitk(folder), atol=1e-9)
    assert errors(image).max() <= 0.51


def test_a_negative_space_between_slices_does_not_turn_a_tilted_stack_around(tmp_path):
    positions = tilted(10, 12.3)
    image = read_series(write_stack(tmp_path, positions, x00180088=("DS", -2.5)), "image")
    assert "gantry tilt" in image.meta["resampled"]
    assert_phantom(image, positions, 20)


def test_files_are_found_in_subfolders_and_sorted_by_place(tmp_path):
    folder = write_stack(tmp_path / "all", straight(6))
    expected = by_itk(folder)
    for number, name in enumerate(["z/9", "a/7", "q/1", "b/c/2", "00", "k"]):
        file = tmp_path / "moved" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.dcm").rename(file)
    (tmp_path / "moved" / "notes.txt").write_text("not DICOM", encoding="utf-8")
    (tmp_path / "moved" / "._00.dcm").write_text("of macOS", encoding="utf-8")
    same(read_series(tmp_path / "moved", "image"), expected)


def test_the_loader_reads_series_in_the_type_that_is_asked_for(tmp_path):
    folder = write_stack(tmp_path / "ct", straight(4))
    assert read_or_explain(folder, "image").dtype == torch.float32
    assert read_or_explain(folder, "image", dtype=None).dtype == by_itk(folder).dtype


def test_slopes_of_each_slice_are_applied_whatever_type_the_first_has(tmp_path):
    slopes = [1.0, 0.25, 2.5]
    for k, position in enumerate(straight(3)):
        scale = {"x00281053": ("DS", slopes[k]), "x00281052": ("DS", float(-k))}
        write_slice(tmp_path / f"{k}.dcm", np.full((10, 12), 101), position, **scale)
    image = read_series(tmp_path, "image")
    assert image[0, 5, 5].tolist() == [101, 24.25, 250.5]


def test_compressed_files_are_read(tmp_path):
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    language = locale.setlocale(locale.LC_ALL)  # GDCM's writer leaves the whole process in "C"
    folder = write_stack(tmp_path / "plain", straight(4))
    (tmp_path / "packed").mkdir()
    for file in folder.iterdir():
        image = sitk.ReadImage(str(file), sitk.sitkInt16)
        writer.SetFileName(str(tmp_path / "packed" / file.name))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, language)
    syntax = read_header(tmp_path / "packed" / "00.dcm").text(0x00020010)
    assert syntax.startswith("1.2.840.10008.1.2.4")  # JPEG of some kind
    packed, plain = (read_series(tmp_path / name, "image") for name in ("packed", "plain"))
    assert torch.equal(packed.as_tensor(), plain.as_tensor()) and torch.equal(packed.affine, plain.affine)


# --- one series ------------------------------------------------------------------------------------------------------


def test_several_series_are_listed_and_one_is_chosen(tmp_path, capsys):
    write_stack(tmp_path / "a", straight(5), series="1.2.3.1")
    write_slice(tmp_path / "b" / "scout.dcm", np.ones((10, 12)), (0, 0, 0), turned(0, 90), series="1.2.3.2")
    with pytest.raises(ValueError, match="holds 2 series, one is expected") as caught:
        read_series(tmp_path, "fixed_image")
    line = str(caught.value)
    assert "1.2.3.1 (CT phantom, 5 slices of 12 x 10)" in line and "1.2.3.2 (CT phantom, 1 slices" in line
    assert line.startswith(f"fixed_image: {tmp_path}") and "\n" not in line
    same(read_series(tmp_path, "image", "1.2.3.1"), by_itk(tmp_path / "a"))
    with pytest.raises(ValueError, match="no series 1.2.4; there are: 1.2.3.1"):
        read_series(tmp_path, "image", "1.2.4")


def test_objects_that_are_no_images_are_named_and_left_out(tmp_path, capsys):
    folder = write_stack(tmp_path, straight(5))
    expected = by_itk(folder)
    write(tmp_path / "report.dcm", REPORT, {0x00080060: ("CS", "SR"), 0x0020000E: ("UI", "1.2.7")})
    seg = {0x00080060: ("CS", "SEG"), 0x0020000E: ("UI", "1.2.6")}
    write(tmp_path / "seg.dcm", SEG, seg | pixels_of(np.ones((10, 12))))
    write(tmp_path / "DICOMDIR", DIRECTORY, {})
    same(read_series(folder, "image"), expected)
    assert capsys.readouterr().out == f"image: {folder}: not read: 1 SEG, 1 SR\n"
    write(tmp_path / "alone" / "seg.dcm", SEG, seg | pixels_of(np.ones((10, 12))))
    with pytest.raises(ValueError, match="no DICOM image, only 1 SEG"):
        read_series(tmp_path / "alone", "image")


def test_one_file_of_a_series_names_the_folder(tmp_path):
    folder = write_stack(tmp_path, straight(5))
    with pytest.raises(ValueError, match=f"02.dcm is one of 5 files of its series: give their folder, {folder}"):
        read_series(folder / "02.dcm", "image")
    alone = write_slice(tmp_path / "alone" / "1.dcm", np.ones((10, 12)), (1, 2, 3))
    assert read_series(alone, "image").shape == (1, 12, 10, 1)


def test_is_dicom_looks_into_files_and_folders(tmp_path):
    folder = write_stack(tmp_path / "a" / "b", straight(1))
    bare = tmp_path / "bare"
    bare.write_bytes((folder / "00.dcm").read_bytes()[132:])
    (tmp_path / "text").write_text("\x08\x00 nothing", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    assert [is_dicom(tmp_path / name) for name in ("a", "bare", "a/b/00.dcm")] == [True] * 3
    assert [is_dicom(tmp_path / name) for name in ("text", "empty", "absent")] == [False] * 3


# --- what is no stack ------------------------------------------------------------------------------------------------


def remove(folder):
    (folder / "03.dcm").unlink()


def twice(folder):
    write_slice(folder / "copy.dcm", np.ones((10, 12)), straight(8)[3], number=9, x00180081=("DS", 30.0))


def two_times(folder):
    for k, position in enumerate(straight(8)):
        write_slice(folder / f"later{k}.dcm", np.ones((10, 12)), position, number=k + 1, x00200012=("IS", 2))


def sagittal(folder):
    write_slice(folder / "scout.dcm", np.ones((10, 12)), (0, 0, 50), turned(0, 90))


def smaller(folder):
    write_slice(folder / "small.dcm", np.ones((9, 12)), (-20, 30, 27))


def finer(folder):
    write_slice(folder / "fine.dcm", np.ones((10, 12)), (-20, 30, 27), spacing=(1.5, 1.9))


def truncated(folder):
    content = (folder / "03.dcm").read_bytes()
    (folder / "03.dcm").write_bytes(content[:-100])


def early(folder):
    content = (folder / "03.dcm").read_bytes()
    (folder / "03.dcm").write_bytes(content[:200])


def empty(folder):
    (folder / "03.dcm").write_bytes(b"")


def wider(folder):
    for k in range(8, 12):
        write_slice(folder / f"{k}.dcm", np.ones((10, 12)), straight(8)[-1] + [0, 0, 5 * (k - 7)])


def color(folder):
    rgb = {"x00280002": ("US", 3), "x00280004": ("CS", "RGB")}
    write_slice(folder / "color.dcm", np.ones((10, 12)), straight(9)[-1], **rgb)


def nowhere(folder):
    write_slice(folder / "99.dcm", np.ones((10, 12)), straight(9)[-1], x00200032=("DS", ""))


def flipped(folder):
    write_slice(folder / "99.dcm", np.ones((10, 12)), straight(9)[-1], np.diag([-1.0, 1, -1]))


def taller(folder):
    for k, position in enumerate(straight(8)):
        write_slice(folder / f"{k:02d}.dcm", np.ones((10, 12)), position, x00280010=("US", 20))


def many(folder):
    for k, position in enumerate(straight(8)):
        write_slice(folder / f"{k:02d}.dcm", np.ones((10, 12)), position, x00280008=("IS", 3000000))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (taller, r"00.dcm is damaged: it has fewer voxels than its header promises"),
        (many, r"00.dcm is damaged: it has fewer voxels than its header promises"),
        (remove, r"lacks slices: 02.dcm and 04.dcm lie 5 mm apart, most others 2.5 mm"),
        (twice, r"a slice in the place of another: 03.dcm and copy.dcm both lie at \(-20, 30, 14.5\) mm"),
        (two_times, r"8 slices in the place of another: 00.dcm and later0.dcm"),
        (sagittal, r"several orientations: 00.dcm .*scout.dcm .*a localizer"),
        (flipped, r"several orientations: 00.dcm .*99.dcm"),
        (smaller, r"several sizes: 00.dcm 12 x 10, small.dcm 12 x 9"),
        (finer, r"several pixel sizes: 00.dcm 1.5 x 2 mm, fine.dcm 1.5 x 1.9 mm"),
        (truncated, r"03.dcm is damaged: it is truncated"),
        (early, r"03.dcm is damaged"),
        (empty, r"03.dcm is damaged: it does not begin as DICOM does"),
        (wider, r"lacks slices: 07.dcm and 8.dcm lie 5 mm apart"),
        (color, r"color.dcm is a color image \(RGB\)"),
        (nowhere, r"99.dcm does not say where its pixels lie"),
    ],
)
def test_what_is_no_stack_is_named_by_file_and_number(tmp_path, spoil, error):
    folder = write_stack(tmp_path / "ct", straight(8))
    assert read_series(folder, "image").shape == (1, 12, 10, 8)
    spoil(folder)
    with pytest.raises(ValueError, match=error) as caught:
        read_series(folder, "image")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"image: {folder}")


def test_slices_that_itk_leaves_nowhere_have_two_meanings(tmp_path):
    write_stack(tmp_path, straight(4), sop=SECONDARY)
    try:
        image = read_series(tmp_path, "image")
    except ValueError as error:
        assert "two meanings" in str(error)
    else:
        same(image, by_itk(tmp_path))


@pytest.mark.parametrize("size", [1.505, 1.5004])
def test_pixels_of_two_sizes_are_refused_by_where_they_put_the_last_one(tmp_path, size):
    """ITK takes ImagerPixelSpacing of a radiograph: 0.005 mm more in each pixel is 2.6 mm at the last of 512."""
    pixels = np.zeros((10, 512))
    for k, position in enumerate(straight(3)):
        write_slice(tmp_path / f"{k}.dcm", pixels, position, sop=RADIOGRAPH, x00181164=("DS", [2.0, size]))
    assert abs(np.linalg.norm(series_by_sitk(tmp_path)[:3, 0]) - size) < 1e-9
    with pytest.raises(ValueError, match=r"0.dcm has two meanings: .*pixels of \(1.5, 2\) mm.*ITK reads .*\(1.50"):
        read_series(tmp_path, "image")


def test_fine_stacks_are_judged_by_their_own_step(tmp_path):
    """0.01 mm is nothing between slices of a CT, and half a step of 0.02 mm of a micro-CT, or more than one."""
    fine = {"spacing": (0.008, 0.008)}
    folder = write_stack(tmp_path / "regular", straight(5, 0.008, origin=(0, 0, 0)), **fine)
    image = read_series(folder, "image")
    np.testing.assert_allclose(image.affine.numpy(), series_by_sitk(folder), atol=1e-9)
    positions = straight(5, 0.02, origin=(0, 0, 0))
    positions[2, 2] = 0.049
    image = read_series(write_stack(tmp_path / "uneven", positions, **fine), "image")
    assert image.meta["resampled"] == "slices 0.011 to 0.029 mm apart"
    positions[3] = positions[2]
    write_stack(tmp_path / "uneven", positions, **fine)
    with pytest.raises(ValueError, match="a slice in the place of another: 02.dcm and 03.dcm"):
        read_series(tmp_path / "uneven", "image")


# --- stacks that are resampled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [12.3, -20])
def test_a_tilted_stack_is_resampled_where_its_slices_lie(tmp_path, capsys, angle):
    folder = write_stack(tmp_path / "head", tilted(10, angle))
    image = read_series(folder, "image")
    assert image.meta["resampled"] == f"gantry tilt of {abs(angle):.1f} degrees"
    assert capsys.readouterr().out == (
        f"image: {folder}: gantry tilt of {abs(angle):.1f} degrees: resampled (linear) to a regular stack\n"
    )
    assert image.dtype == by_itk(folder).dtype and image.shape[1] == 12 and image.shape[3] == 10
    assert_phantom(image, tilted(10, angle), 20)
    # ITK alone is as far off as the gantry moved
    moved = by_itk(folder)
    assert errors(moved).max() > 100


def assert_phantom(image, positions, tolerance):
    """Voxels within all slices are those of the phantom, to within linear interpolation."""
    affine = image.affine.numpy()
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape[1:]), indexing="ij"), -1)
    world = (grid @ affine[:3, :3].T + affine[:3, 3]) @ lps(3)
    heights = positions[:, 2]
    known = np.ones(world.shape[:3], bool)
    for axis, extent in ((0, 11 * 1.5), (1, 9 * 2.0)):
        start = np.interp(world[..., 2], heights, positions[:, axis])
        known &= (world[..., axis] > start + 2) & (world[..., axis] < start + extent - 2)
    known &= (world[..., 2] >= heights[0] - 1e-6) & (world[..., 2] <= heights[-1] + 1e-6)
    assert known.mean() > 0.25
    difference = np.abs(image[0].numpy() - smooth(world))[known]
    assert difference.max() < tolerance


def test_slices_of_uneven_spacing_are_resampled_where_they_lie(tmp_path):
    positions = straight(10)
    positions[:, 2] += [0, 0.5, -0.3, 0.4, 0, 0.45, -0.4, 0, 0.3, 0]
    image = read_series(write_stack(tmp_path, positions), "image")
    assert image.meta["resampled"] == "slices 1.65 to 3.2 mm apart"
    assert_phantom(image, positions, 20)


def test_slices_that_sway_are_resampled_where_they_lie(tmp_path):
    positions = straight(10)
    positions[:, :2] += 3 * np.stack([np.sin(np.arange(10)), np.cos(np.arange(10))], 1)
    image = read_series(write_stack(tmp_path, positions), "image")
    assert "aside" in image.meta["resampled"]
    assert_phantom(image, positions, 20)


def test_what_is_within_the_tolerance_is_left_as_itk_reads_it(tmp_path):
    positions = straight(8)
    positions[3] += [0.02, 0, -0.02]  # 1 % of 2.5 mm is 0.025 mm
    folder = write_stack(tmp_path, positions)
    same(read_series(folder, "image"), by_itk(folder))


def test_a_tilted_label_map_gets_no_new_values(tmp_path, capsys):
    labels = np.zeros((10, 12), int)
    labels[2:8, 3:9], labels[4:6, 4:7] = 3, 7
    for k, position in enumerate(tilted(8, 15)):
        write_slice(tmp_path / f"{k}.dcm", labels, position)
    image = read_series(tmp_path, "label")
    assert image.unique().tolist() == [0, 3, 7] and "(nearest)" in capsys.readouterr().out


# --- files of several frames -----------------------------------------------------------------------------------------


def phantom_frames(positions, axes=STRAIGHT, spacing=(1.5, 2.0)):
    return np.stack([smooth(places(position, axes, spacing)).round() for position in positions])


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1), [3, 1, 0, 2, 5, 4]])
def test_frames_lie_where_they_say_in_whatever_order(tmp_path, order):
    axes = turned(20, -30)
    positions = straight(6, axes=axes)[order]
    file = write_frames(tmp_path / "all.dcm", phantom_frames(positions, axes), positions, axes)
    image = read_series(file, "image")
    assert image.shape == (1, *SIZE, 6) and errors(image).max() <= 0.51
    same(read_series(tmp_path, "image"), image)
    if order == slice(None):
        assert torch.equal(image.as_tensor(), by_itk(file).as_tensor())
        assert np.allclose(image.affine, by_itk(file).affine, atol=1e-6)


def test_two_stacks_of_frames_are_an_error_and_tilted_ones_are_resampled(tmp_path):
    positions = np.tile(straight(4), (2, 1))
    file = write_frames(tmp_path / "two.dcm", phantom_frames(positions), positions, stacks=list("11112222"))
    with pytest.raises(ValueError, match="4 slices in the place of another: two.dcm frame 1 .*stack '1' and '2'"):
        read_series(file, "image")
    positions = tilted(10, 12)
    file = write_frames(tmp_path / "tilted.dcm", phantom_frames(positions), positions)
    image = read_series(file, "image")
    assert image.meta["resampled"] == "gantry tilt of 12.0 degrees"
    assert_phantom(image, positions, 20)


def test_frames_without_places_or_of_several_slopes_are_refused(tmp_path):
    more = {"x00280008": ("IS", 3)}
    file = write_slice(tmp_path / "film.dcm", np.ones((3, 10, 12)), (0, 0, 0), **more)
    with pytest.raises(ValueError, match="3 frames and does not say where each lies"):
        read_series(file, "image")
    positions = straight(3)
    file = write_frames(tmp_path / "pet.dcm", phantom_frames(positions), positions, slopes=[1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="rescales each frame otherwise"):
        read_series(file, "image")


# --- where series are read -------------------------------------------------------------------------------------------


def test_a_pair_and_apply_read_the_series_that_is_chosen(tmp_path):
    both = tmp_path / "both"
    write_stack(both / "a", straight(5), series="1.2.3.1")
    write_stack(both / "b", straight(6), series="1.2.3.2")
    keys = ["moving_image", "fixed_image"]
    chosen = dict(zip(keys, ("1.2.3.1", "1.2.3.2"), strict=True))
    pair = LoadPaird(keys, series=chosen)(dict.fromkeys(keys, str(both)))
    assert [pair[key].shape[-1] for key in keys] == [5, 6]
    with pytest.raises(ValueError, match="moving_image: .* holds 2 series"):
        LoadPaird(keys)(dict.fromkeys(keys, str(both)))
    transform = write_transform(WorldTransform([WorldAffine(torch.eye(4).double())], 3), tmp_path / "identity.h5")
    result = apply_transform(
        str(transform), str(both), str(tmp_path / "out.nii.gz"), str(both), interpolation="linear", series="1.2.3.1",
        series_reference="1.2.3.2",
    )  # fmt: skip
    assert sitk.ReadImage(str(result)).GetSize() == (12, 10, 6)
    with pytest.raises(ValueError, match="is not DICOM and has no series"):
        read_or_explain(result, "input", series="1.2.3.1")


def test_the_bundle_passes_series_on():
    config = json.loads(
        (Path(__file__).parents[1] / "bundle" / "configs" / "inference.json").read_text(encoding="utf-8")
    )
    load = config["preprocessing"]["transforms"][1]
    assert load["series"] == {"moving_image": "@moving_series", "fixed_image": "@fixed_series"}
    assert config["moving_series"] is None and config["fixed_series"] is None
