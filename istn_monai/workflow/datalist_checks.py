"""Checks of a whole datalist before any work."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from istn_monai.io.images import read_exactly, read_or_explain
from istn_monai.io.landmarks import is_points, warn_unmatched
from istn_monai.transforms.checks import check_image, check_label, check_mask, check_soi_labels, plain
from istn_monai.transforms.keys import IMAGE_KEYS, POINT_KEYS, SIDES
from istn_monai.transforms.landmarks import Groups, matched_in, members, point_files, used_names

Item = TypeVar("Item", bound=Mapping)


def places(items: Mapping[str, Sequence[Item]]) -> Iterator[tuple[str, Item]]:
    """All pairs of a datalist, each with its place as errors name it, such as ``training[3]``."""
    for split, pairs in items.items():
        for index, pair in enumerate(pairs):
            yield f"{split}[{index}]", pair


def check_datalist(
    items: Mapping[str, Sequence[Mapping[str, str]]],
    spatial_dims: int,
    soi_labels: Sequence[Sequence[int]] | None = None,
    need_labels: bool = True,
    in_channels: int | None = None,
    read_labels: bool = True,
    nifti_frame: str | None = None,
) -> None:
    """Reads every file of a datalist once; what is wrong is an error that names split, index, key and file.

    Args:
        items: ``{split: [{key: path}]}``, as :func:`istn_monai.io.datalist.read_datalist` gives them.
        spatial_dims: of the configuration.
        soi_labels: groups of label values that make up the SoI; None for real-valued maps.
        need_labels: whether pairs without labels are an error.
        in_channels: number of channels that the configuration asks for; None for any.
        read_labels: False leaves labels alone, whether there are any or not.
        nifti_frame: as of :class:`istn_monai.LoadPaird`.
    """
    if read_labels:
        check_soi_labels(soi_labels)
    subjects: dict[tuple[str, str | None, str | None], str] = {}
    for place, pair in places(items):
        for side in SIDES:
            image, label = f"{side}_image", f"{side}_label"
            for key in [image, label] if need_labels and read_labels else [image]:
                if key not in pair:
                    raise ValueError(f"{place} has no key {key!r}, only {sorted(pair)}")
            files = (pair[image], pair.get(label) if read_labels else None, pair.get(f"{side}_mask"))
            subjects.setdefault(files, f"{place} {side}")
    for paths, place in subjects.items():
        for file in paths:
            if file is not None and not Path(file).exists():
                raise FileNotFoundError(f"{place}: no such file: {file}")
    present: set[int] = set()
    bar = tqdm(subjects.items(), desc="checking data", unit="image", leave=False, disable=None)  # on a terminal
    for (image, label, mask), place in bar:
        loaded = read_or_explain(image, place, nifti_frame)
        counted = None if mask is None else read_or_explain(mask, place, nifti_frame)
        if counted is not None:
            check_mask(counted, place, loaded)
        check_image(loaded, place, spatial_dims, in_channels, counted)
        if label is not None:
            loaded_label = read_exactly(label, place, nifti_frame)
            check_label(loaded_label, place, loaded, soi_labels)
            if soi_labels is not None:
                present.update(int(value) for value in plain(loaded_label).round().unique().tolist())
    unknown = sorted({value for group in soi_labels or () for value in group} - present)
    if unknown and present:
        raise ValueError(f"soi_labels {unknown} are in no label file of the datalist; there are {sorted(present)}")


def check_points(
    items: Mapping[str, Sequence[Mapping[Hashable, Any]]],
    spatial_dims: int,
    soi_points: Groups | None,
    nifti_frame: str | None = None,
) -> None:
    """Reads all landmarks of a datalist once; what is wrong is an error that names split, index and file.

    Args:
        items: ``{split: [{key: path}]}``, as :func:`istn_monai.io.datalist.read_datalist` gives them.
        spatial_dims: of the configuration.
        soi_points: groups of names; None leaves landmarks alone.
        nifti_frame: of maps, as of :class:`istn_monai.LoadPaird`.
    """
    if soi_points is None:
        return
    names: set[str] = set()
    maps = False
    for place, item in places(items):
        files = point_files(item, place)
        try:
            if is_points(files[0]):
                names.update(checked_points(files, spatial_dims, soi_points))
            else:
                maps = True
                check_maps(item, spatial_dims, soi_points, nifti_frame)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{place}: {error}") from error
    unknown = [group for group in soi_points if not members(sorted(names), group)]
    if unknown and not maps:
        raise ValueError(f"soi_points {unknown} are in no pair of the datalist; there are {sorted(names)}")


def checked_points(files: Sequence[str], spatial_dims: int, soi_points: Groups) -> Sequence[str]:
    """The names that two landmark files share; ValueError if no group means any, or the dimension is another."""
    labels = matched_in(files, spatial_dims)[1].labels
    used_names(labels, soi_points, files)
    warn_unmatched(*files)
    return labels


def check_maps(
    item: Mapping[Hashable, Any], spatial_dims: int, soi_points: Groups, nifti_frame: str | None = None
) -> None:
    """ValueError unless the maps of a pair are whole, on their images' grids, not empty, and one channel is wanted."""
    if len(soi_points) != 1:
        raise ValueError(f"{item[POINT_KEYS[0]]} is a map, one channel: soi_points must be [['*']], got {soi_points}")
    for key, image_key in zip(POINT_KEYS, IMAGE_KEYS, strict=True):
        if not Path(str(item[key])).is_file():
            raise FileNotFoundError(f"no such file: {item[key]}")
        image = read_or_explain(item[image_key], image_key, nifti_frame)
        check_image(image, image_key, spatial_dims)
        check_label(read_or_explain(item[key], key, nifti_frame), key, image, None)
