"""DICOM series: the one that is meant, its voxels, and a label map on its slices.

Why the SDK's ``DICOMSeriesToVolumeOperator`` does not read the voxels: in 4.0.0 it multiplies the direction of a row
by the spacing of the rows and that of a column by the spacing of the columns, which is the wrong way round where pixels
are not square (DICOM PS3.3, C.7.6.2.1.1), and it casts all slices to the type that suits the first one, in which
negative or fractional values of later slices are lost. So the files of the series that the SDK selected are read as
``istn-monai register`` reads a folder: by ITK, which also applies each slice's rescale slope and intercept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.deploy.core.domain.dicom_series import DICOMSeries
from monai.deploy.core.domain.dicom_series_selection import StudySelectedSeries
from monai.deploy.core.domain.dicom_study import DICOMStudy
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from pydicom import Dataset

from istn_monai.io.dicom import read_series as read_from

MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
TOLERANCE = 0.1  # voxels by which a slice may lie beside its place in a regular stack


def datasets(series: DICOMSeries) -> list[Dataset]:
    """The instances of a series, in the SDK's order."""
    return [instance.get_native_sop_instance() for instance in series.get_sop_instances()]


def is_image_series(series: DICOMSeries) -> bool:
    """Whether all instances are images of one slice; reports, segmentations and the like are not."""
    return all("PixelData" in dataset and "ImagePositionPatient" in dataset for dataset in datasets(series))


def described(series: DICOMSeries) -> str:
    """How an error names a series."""
    return f"{series.SeriesDescription or 'no description'} ({series.SeriesInstanceUID})"


class SeriesLoaderOperator(DICOMDataLoaderOperator):
    """The SDK's loader, also for series without what DICOM lets be empty (type 2) and tools for research leave out.

    In 4.0.0 the loader drops a series whose Series Number is empty, and the writer of DICOM SEG stops where one of
    ``MAY_BE_EMPTY`` is absent.
    """

    def populate_series_attributes(self, series: DICOMSeries, sop_instance: Dataset) -> None:
        attributes = Dataset(sop_instance)  # the instance itself stays as it is
        if attributes.get("SeriesNumber") is None:
            attributes.pop("SeriesNumber", None)
        super().populate_series_attributes(series, attributes)

    def load_data_to_studies(self, input_path: Path) -> list[DICOMStudy]:
        """The studies in a folder."""
        studies = super().load_data_to_studies(input_path)
        for dataset in (one for study in studies for series in study.get_all_series() for one in datasets(series)):
            for keyword in MAY_BE_EMPTY:
                if keyword not in dataset:
                    setattr(dataset, keyword, None)
        return studies


class OneSeriesSelectorOperator(DICOMSeriesSelectorOperator):
    """The SDK's selector, which must end with exactly one image series: the first one of several would be a guess.

    Args:
        key: of the image, as errors call it.
        rules: the SDK's, as JSON; "" takes the only image series that there is.
    """

    def __init__(self, fragment: Any, *args: Any, key: str, rules: str = "", **kwargs: Any) -> None:
        self.key = key
        super().__init__(fragment, *args, rules=rules, all_matched=True, **kwargs)

    def filter(
        self, selection_rules: Any, dicom_study_list: list, *args: Any, **kwargs: Any
    ) -> list[StudySelectedSeries]:
        """One study with one series, or a ValueError that lists what there is."""
        studies = super().filter(selection_rules, dicom_study_list, *args, **kwargs)
        found = [
            (study, selected)
            for study in studies
            for selected in study.selected_series
            if is_image_series(selected.series)
        ]
        if len(found) != 1:
            names = ", ".join(described(selected.series) for _, selected in found) or "none"
            raise ValueError(
                f"{self.key}: one DICOM series of single-slice images is expected, there are {len(found)}: {names}; "
                "hand over one alone, or choose with --series_rules"
            )
        study, selected = found[0]
        result = StudySelectedSeries(study.study)
        result.add_selected_series(selected)
        return [result]


def read_series(series: DICOMSeries, key: str) -> MetaTensor:
    """The voxels ``(1, X, Y, Z)`` of a series, in modality units, with its RAS affine in mm.

    Raises:
        ValueError: in one line, if its slices are no stack, see :mod:`istn_monai.io.dicom`.
    """
    folders = [Path(dataset.filename).absolute().parent for dataset in datasets(series)]
    return read_from(os.path.commonpath(folders), key, series.SeriesInstanceUID)


def slice_numbers(series: DICOMSeries, affine: np.ndarray, key: str) -> list[int]:
    """Which slice of a volume each instance of its series is.

    Args:
        series: of single slices.
        affine: of the volume, ``(4, 4)``, RAS.
        key: of the image, as errors call it.

    Raises:
        ValueError: if an instance is not where the affine has a slice.
    """
    positions = np.array([[float(x) for x in dataset.ImagePositionPatient] for dataset in datasets(series)])
    corners = np.c_[positions * [-1, -1, 1], np.ones(len(positions))]  # DICOM's LPS to RAS
    voxels = np.linalg.solve(affine, corners.T)[:3].T
    numbers = voxels[:, 2].round().astype(int)
    away = np.abs(voxels - np.c_[np.zeros_like(positions[:, :2]), numbers]).max()
    if away > TOLERANCE or sorted(numbers) != list(range(len(numbers))):
        raise ValueError(
            f"{key}: the slices of series {described(series)} are not a regular stack: one lies {away:.2g} voxels "
            "beside its place (a tilted gantry, or uneven spacing: it was resampled): no DICOM SEG lies on such "
            "slices; hand it over as NIfTI"
        )
    return numbers.tolist()


def frames(label: MetaTensor, series: DICOMSeries, segments: Mapping[int, int] | Sequence[int]) -> np.ndarray:
    """A label map as the frames of a DICOM SEG: ``(instances, rows, columns)``, in the order of the instances.

    Args:
        label: ``(1, X, Y, Z)`` on the grid of the series.
        series: that it belongs to.
        segments: label values, in ascending order; the first becomes segment 1.
    """
    values = label.as_tensor()[0].cpu().numpy()
    numbered = np.zeros(values.shape, np.uint16 if len(segments) > 255 else np.uint8)
    for number, value in enumerate(segments, 1):
        numbered[values == value] = number
    order = slice_numbers(series, label.affine.cpu().numpy(), "fixed_image")
    return np.ascontiguousarray(numbered.transpose(2, 1, 0)[order])
