"""Which files are one, and that no input is replaced by a result."""

from __future__ import annotations

import os

import pytest

from istn_monai.io.images import read_image
from istn_monai.io.itk_transforms import read_displacement
from istn_monai.io.paths import check_apart, new_file


@pytest.fixture
def data(tmp_path):
    """An image ``data/out/warped.nii.gz``, of the name that a result has."""
    image = tmp_path / "data" / "out" / "warped.nii.gz"
    image.parent.mkdir(parents=True)
    image.write_text("mine", encoding="utf-8")
    return image


def by_itself(image):
    return image


def through_its_parent(image):
    return image.parent / ".." / "out" / image.name


def through_a_linked_folder(image):
    link = image.parents[2] / "link"
    link.symlink_to(image.parent)
    return link / image.name


def through_a_link(image):
    link = image.parents[2] / "link.nii.gz"
    link.symlink_to(image)
    return link


def through_a_hard_link(image):
    os.link(image, image.parents[2] / "hard.nii.gz")
    return image.parents[2] / "hard.nii.gz"


def relative(image):
    return os.path.relpath(image)


WAYS = [by_itself, through_its_parent, through_a_linked_folder, through_a_link, through_a_hard_link, relative]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_input_is_known_by_whatever_way_it_is_named(data, way):
    other = way(data)
    for output, given in ((data, other), (type(data)(os.path.abspath(other)), data)):
        with pytest.raises(FileExistsError, match="moving_image .* would be replaced by a result"):
            check_apart([data.with_name("a.nii.gz"), output], [("moving_image", given)])
    check_apart([data.with_name("a.nii.gz")], [("moving_image", other)])


def test_an_input_that_another_pair_is_still_to_write_is_known(tmp_path):
    """Neither is there yet."""
    output = tmp_path / "pair_0000" / "warped.nii.gz"
    with pytest.raises(FileExistsError, match="pair_0001: moving_image"):
        check_apart([output], [("pair_0001: moving_image", tmp_path / "x" / ".." / "pair_0000" / "warped.nii.gz")])


def test_a_folder_that_is_read_as_a_whole_takes_no_result(data):
    with pytest.raises(FileExistsError, match="would lie in moving_image"):
        check_apart([data.parent / "deeper" / "a.nii.gz"], [("moving_image", data.parent)])
    check_apart([data.parents[1] / "a.nii.gz"], [("moving_image", data.parent)])


def test_what_is_there_is_replaced_on_demand_alone_and_a_folder_never(data, tmp_path):
    with pytest.raises(FileExistsError, match="left alone.*--overwrite"):
        new_file(data)
    assert new_file(data, overwrite=True) == data
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(FileExistsError, match="left alone"):
        new_file(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="is a folder"):
        new_file(data.parent, overwrite=True)


def test_a_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="output is no file but a device or a pipe"):
            new_file(tmp_path / "pipe", overwrite=overwrite)


def test_a_pipe_is_never_opened_to_read(tmp_path):
    """Whoever opens it waits for a writer."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("a.nii", "a.mha", "a.nrrd", "a.mgz", "a.png", "a.dcm"):
        (tmp_path / name).symlink_to("pipe")
        with pytest.raises(ValueError, match=f"image: .*{name} is a device or a pipe, a file is expected"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match="transform: .*a.nii is a device or a pipe"):
        read_displacement(tmp_path / "a.nii")
    (tmp_path / "b.mhd").write_text("DimSize = 2 2\nElementDataFile = pipe\n", encoding="utf-8")
    with pytest.raises(ValueError, match="image: .*pipe is a device or a pipe"):
        read_image(tmp_path / "b.mhd")
