"""Made-up DICOM series whose geometry is known from the standard's formula, not from a reader."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_series(
    folder: Path, name: str, study: str, stored: np.ndarray, axes: np.ndarray, spacing: tuple[float, ...],
    origin: tuple[float, ...], slope: float, intercept: float,
) -> Path:  # fmt: skip
    """An MR series, files shuffled and in subfolders, with little more than DICOM demands; and its NIfTI twin.

    Args:
        stored: values ``(X, Y, Z)``, uint16; columns, rows, slices.
        axes: columns are the directions, in LPS, in which the column, row and slice numbers grow.
        spacing: between columns, rows and slices.
        origin: LPS mm.

    Returns:
        The twin, of modality values (float64), whose affine is computed here, by hand.
    """
    series, frame = generate_uid(), generate_uid()
    order = np.random.default_rng(1).permutation(stored.shape[2])
    for number, k in enumerate(order):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = folder / f"part{number % 2}" / f"{name}_{number:03d}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        one = FileDataset(file, {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.Modality, one.SeriesDescription, one.SeriesDate = "MR", name, "20260101"
        one.SeriesNumber, one.InstanceNumber = None, int(number) + 1
        one.ImageOrientationPatient = [*axes[:, 0], *axes[:, 1]]
        one.ImagePositionPatient = list(np.array(origin) + k * spacing[2] * axes[:, 2])
        one.PixelSpacing = [spacing[1], spacing[0]]  # DICOM: between rows, then between columns
        one.SliceThickness, one.RescaleSlope, one.RescaleIntercept = spacing[2], slope, intercept
        one.Rows, one.Columns, one.SamplesPerPixel = stored.shape[1], stored.shape[0], 1
        one.PhotometricInterpretation, one.PixelRepresentation = "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
        one.save_as(file, enforce_file_format=True)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = origin
    twin = nib.Nifti1Image(stored * slope + intercept, np.diag([-1.0, -1, 1, 1]) @ affine)
    nib.save(twin, folder.parent / f"{name}.nii.gz")
    return folder.parent / f"{name}.nii.gz"


def stored_values(file: Path) -> np.ndarray:
    values = np.asarray(nib.load(file).dataobj).astype(float)
    return (4000 * (values - values.min()) / np.ptp(values)).astype(np.uint16)
