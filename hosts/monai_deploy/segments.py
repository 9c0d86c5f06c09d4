"""Label maps and DICOM: what their values are, and DICOM SEG as input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from highdicom import VolumeGeometry
from highdicom.seg import segread
from inputs import Source, one_of
from monai.data import MetaTensor
from monai.deploy.operators.dicom_seg_writer_operator import SegmentDescription
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import SegmentationStorage

import istn_monai
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.io.dicom import is_dicom
from istn_monai.io.images import read_or_explain


def segmentation_file(source: Source) -> Path | None:
    """The DICOM SEG of a label, if it is one."""
    if not source.is_dicom:
        return None
    files = [file for file in source.path.rglob("*") if file.is_file() and is_dicom(file)]
    classes = {file: dcmread(file, specific_tags=["SOPClassUID"]).SOPClassUID for file in files}
    found = [file for file, kind in classes.items() if kind == SegmentationStorage]
    return one_of(found, "moving_label") if found else None


def read_segmentation(file: Path, image: MetaTensor) -> MetaTensor:
    """A DICOM SEG as label map ``(1, X, Y, Z)`` of its segments' numbers, on the grid of its image.

    Raises:
        ValueError: if its frames are not slices of that grid, or segments overlap.
    """
    affine = np.diag([-1.0, -1, 1, 1]) @ affine_of(image).numpy()  # RAS to DICOM's LPS
    try:
        grid = VolumeGeometry(affine, tuple(image.shape[1:]), "PATIENT")
        volume = segread(file).get_volume(combine_segments=True).match_geometry(grid, tol=1e-3)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"moving_label: {file} does not give one label for each voxel of the moving image ({error}); a DICOM SEG "
            "on the slices of the moving series, without overlapping segments, is expected"
        ) from error
    label = with_affine(torch.as_tensor(volume.array.astype(np.int32))[None], affine_of(image), image)
    label.meta["filename_or_obj"] = str(file)
    return label


def segments_in(file: Path) -> dict[int, dict[str, Any]]:
    """What a DICOM SEG says of its segments, by number, as ``segment_description`` takes it."""
    segmentation = segread(file)
    described = {int(number): segmentation.get_segment_description(number) for number in segmentation.segment_numbers}
    return {
        number: {
            "label": one.segment_label,
            "type": words(one.segmented_property_type),
            "category": words(one.segmented_property_category),
        }
        for number, one in described.items()
    }


def words(concept: Any) -> list[str]:
    """The three words of a code."""
    return [concept.value, concept.scheme_designator, concept.meaning]


def segments_of(source: Source, given: Mapping[int, Mapping[str, Any]]) -> dict[int, SegmentDescription]:
    """The description of each value of a label map, in ascending order.

    Args:
        source: of the label map.
        given: says more, or otherwise, than a DICOM SEG does; see ``segment_description``.

    Raises:
        ValueError: if there is no value, or one is not a whole number above 0: a DICOM SEG could not hold it.
    """
    segmentation = segmentation_file(source)
    if segmentation is not None:
        known = segments_in(segmentation)
        values = sorted(known)
    else:
        known, values = {}, label_values(source)
    return {value: segment_description(value, {**known.get(value, {}), **given.get(value, {})}) for value in values}


def label_values(source: Source) -> list[int]:
    """The values of a label map other than the background 0, in ascending order, or a ValueError."""
    label = read_or_explain(source.path, "moving_label", dtype=None)
    values = [float(value) for value in np.unique(label.numpy()) if value]
    if not values or not all(value.is_integer() and value > 0 for value in values):
        raise ValueError(
            f"moving_label: whole numbers, and some above 0, are expected in {source.path}, "
            f"there are {values[:10] or 'only zeros'}"
        )
    return [int(value) for value in values]


def code(value: Any, given: Any, default: Code) -> Code:
    """A code from its three words."""
    if given is None:
        return default
    if not isinstance(given, list) or len(given) != 3 or not all(isinstance(word, str) for word in given):
        raise ValueError(f"segments: [value, scheme, meaning] is expected for a code of {value}, got {given!r}")
    return Code(*given)


def segment_description(value: int, given: Mapping[str, Any]) -> SegmentDescription:
    """The description of a label value: what is known of it or, as in 3D Slicer, an unspecified tissue.

    Args:
        value: of the label map.
        given: ``label`` (text), ``type`` and ``category`` (codes as [value, scheme, meaning]), or some of them.
    """
    unspecified = codes.SCT.Tissue if "type" not in given else codes.SCT.AnatomicalStructure
    return SegmentDescription(
        segment_label=given.get("label", f"label {value}"),
        segmented_property_category=code(value, given.get("category"), unspecified),
        segmented_property_type=code(value, given.get("type"), codes.SCT.Tissue),
        algorithm_name="istn-monai",
        algorithm_version=istn_monai.__version__,
    )
