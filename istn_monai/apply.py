"""Applying a written transform to other files: images, label maps, landmarks.

Convention:
    A registration's transform maps fixed to moving points. With it an image of the moving side comes onto the fixed
    side's grid (pull-back), while landmarks of the moving side go to the fixed side by its inverse (push-forward).
    ``inverse`` turns both round: what lies on the fixed side goes to the moving one.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import torch
from monai.data import MetaTensor

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.meta import with_affine
from istn_monai.geometry.resampling import intensities, on_grid_in_slabs, whole_labels
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.any_transform import file_of, needs_grids, parts_of, read_any_transform
from istn_monai.io.images import TIME, load_image, source, write_image
from istn_monai.io.landmarks import (
    FRAMES,
    MARKUPS,
    Points,
    check_dims,
    is_points,
    read_in_frame,
    suffix_of,
    write_points,
)
from istn_monai.io.nifti import check_written_suffix
from istn_monai.io.paths import absolute, check_apart, new_file
from istn_monai.io.values import check_finite, check_whole, interpolation_of
from istn_monai.kinds import choice, switch

MOST_LOST = 0.5  # fraction of the voxels that may have no inverse
NAMED = 5  # landmarks that an error names
TRANSFORMS = (".h5", ".hdf5", ".tfm", ".mat")  # suffixes of files that hold nothing else here
INTERPOLATIONS = ("auto", "linear", "nearest", "label")


def resample_image(
    image: MetaTensor,
    transform: WorldTransform,
    reference: MetaTensor,
    inverse: bool = False,
    interpolation: str = "auto",
) -> MetaTensor:
    """``image`` on the grid of ``reference``, in its own dtype.

    Args:
        image: ``(C, *S)``, of the moving side (of the fixed side, if ``inverse``).
        transform: fixed to moving points.
        reference: an image of the other side.
        inverse: see the module.
        interpolation: "auto", see :func:`chosen_interpolation`, "linear", "nearest", or "label": linear one-hot, then
            the largest.

    Raises:
        ValueError: with ``inverse``, if more than ``MOST_LOST`` of the voxels have none; fewer are a warning, and
            become what lies outside of the image.
    """
    check_interpolation(interpolation)
    if interpolation == "auto":
        interpolation = chosen_interpolation(image)
    grid = Grid.of(reference)
    values = image.as_tensor()
    if interpolation == "label":
        samplers = [whole_labels(channel[None]) for channel in values]
    else:
        is_label = interpolation == "nearest" and interpolation_of(image) == "label"
        mode = {"linear": "bilinear"}.get(interpolation, interpolation)
        samplers = [intensities(values, mode, outside=0 if is_label else None)]

    lost = 0

    def found(slab: slice) -> torch.Tensor:
        """Where the voxels of a slab are found, ``(1, D, *slab)``."""
        nonlocal lost
        points = transform.on_grid(grid, inverse, slab)
        lost += int(points.isnan().any(dim=0).sum())
        return Grid.of(image).voxels(points)[None]

    named = {str(number): sampler for number, sampler in enumerate(samplers)}
    warped = on_grid_in_slabs(grid, found, named, values.shape[1:])
    check_inverted(lost, math.prod(grid.spatial_size))
    result = with_affine(torch.cat(list(warped.values())), grid.affine, reference)
    result.meta.pop(TIME, None)
    result.meta |= {TIME: image.meta[TIME]} if TIME in image.meta else {}
    return result


def check_interpolation(interpolation: str) -> None:
    """ValueError if there is no such interpolation."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be one of {INTERPOLATIONS}, got {interpolation!r}")


def check_inverted(lost: int, voxels: int) -> None:
    """Warning, or ValueError for too many, that voxels have no inverse."""
    if not lost:
        return
    text = f"the transform has no inverse at {lost} of {voxels} voxels of the reference ({lost / voxels:.1%})"
    if lost > MOST_LOST * voxels:
        raise ValueError(f"{text}: give a transform that folds nothing and covers the image, or its own inverse")
    warnings.warn(f"{text}: they are filled as what lies outside of the image", stacklevel=3)


def chosen_interpolation(image: MetaTensor, interpolation: str = "auto") -> str:
    """What "auto" is for an image, printed; see :func:`istn_monai.io.values.interpolation_of`. Others stay.

    Raises:
        ValueError: naming the file, if its values do not say whether they are labels or intensities.
    """
    chosen = interpolation_of(image) if interpolation == "auto" else interpolation
    if chosen is None:
        raise ValueError(
            f"{source(image, 'input')} may hold labels or intensities, its values do not say which: give interpolation "
            "label or linear"
        )
    if chosen == "label":
        check_whole(image, source(image, "input"))
    print(f"interpolation: {chosen}")
    return chosen


def move_points(points: Points, transform: WorldTransform, inverse: bool = False, leave_out: bool = False) -> Points:
    """Landmarks of the moving side on the fixed side; the other way round, if ``inverse``.

    Args:
        points: in RAS.
        transform: fixed to moving points.
        inverse: see the module.
        leave_out: those that the transform has no inverse at are left out, with a warning, as long as any is left.

    Raises:
        ValueError: naming the landmarks that the transform has no inverse at.
    """
    if points.positions.shape[1] != transform.dims:
        raise ValueError(f"the landmarks have {points.positions.shape[1]} coordinates, the transform {transform.dims}")
    move = transform.transform_points if inverse else transform.inverse_points
    moved = move(points.positions.T).T
    lost = moved.isnan().any(dim=1).nonzero()[:, 0].tolist()
    if lost:
        names = [points.labels[row] or f"row {row + 1}" for row in lost[:NAMED]]
        places = [[round(value, 2) for value in points.positions[row].tolist()] for row in lost[:NAMED]]
        named = ", ".join(f"{name} at {place}" for name, place in zip(names, places, strict=True))
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        words = f"the transform has no inverse at {len(lost)} of {len(moved)} landmarks: {named}{more} (RAS mm)"
        if not leave_out or len(lost) == len(moved):
            raise ValueError(f"{words}; leave them out, or give a transform that covers them")
        warnings.warn(f"{words}; they are left out", stacklevel=2)
    return points.moved_to(moved).at([row for row in range(len(moved)) if row not in set(lost)])


def check_options(input: str, reference: str | None, interpolation: str, frame: str | None) -> None:
    """ValueError, or FileNotFoundError, for options that are wrong, also where they do not count."""
    check_interpolation(interpolation)
    choice(*FRAMES)("frame", frame)
    if reference is not None and not absolute(reference).exists():
        raise FileNotFoundError(f"reference: no such file: {reference}")
    if frame is not None and not is_points(input):
        raise ValueError(f"frame is of landmarks, and input is an image ({input}): leave it out")
    if str(input).lower().endswith(TRANSFORMS):
        raise ValueError(f"input: {input} is a transform: give the transform first, then the input and the output")


def check_shape(points: Points, file: str, output: Path) -> None:
    """ValueError if landmarks are those of a curve, a line or an angle, and the output cannot say so."""
    if points.shape and suffix_of(output) != MARKUPS:
        raise ValueError(
            f"{file} is a {points.shape} of Slicer's, which {output.name} cannot hold: write {MARKUPS}, or convert it "
            "to a point list in Slicer"
        )


def check_files(output: Path, transform: str, input: str, reference: str | None) -> None:
    """FileExistsError if the output is a file that is read; ValueError if its suffix is not one for what it will be."""
    read: list[tuple[str, str | Path]] = [("transform", file_of(transform)), ("input", input)]
    check_apart([output], [*read, *([("reference", reference)] if reference else [])], "choose another output")
    if is_points(input):
        suffix_of(output)
    else:
        check_written_suffix(output)


def transform_of_points(name: str) -> tuple[WorldTransform, bool]:
    """A transform by its name, and whether its inverse is meant: points need no grid on which to know that."""
    prefix, file, inverse = parts_of(name)
    if prefix == "fsl:":
        raise ValueError(
            f"{name}: a matrix of flirt's is of two images, which landmarks do not name: write it as a transform, "
            "compose fsl:... --reference ... --moving ... -o a.h5, and give a.h5"
        )
    return (read_any_transform(prefix + file), True) if inverse else (read_any_transform(name), False)


def apply_transform(
    transform: str,
    input: str,
    output: str,
    reference: str | None = None,
    inverse: bool = False,
    interpolation: str = "auto",
    frame: str | None = None,
    overwrite: bool = False,
    nifti_frame: str | None = None,
    series: str | None = None,
    series_reference: str | None = None,
) -> Path:
    """Applies a transform to another file: brings what belongs to the moving image to the fixed one.

    Args:
        transform: transform.h5 or displacement.nii.gz of register, or any other by its name, see
            :mod:`istn_monai.io.any_transform`.
        input: image, label map, or landmarks (.csv, .fcsv, .mrk.json).
        output: file to write; an existing one is left alone, unless ``overwrite``.
        reference: image whose grid the result has: the fixed one (with inverse the moving one).
        inverse: bring what belongs to the fixed image to the moving one.
        interpolation: linear, nearest, label (linear one-hot, then the largest), or auto: label or linear, by the
            image's values, and printed; values that do not say which raise an error.
        frame: RAS or LPS, of landmarks whose file does not say it. The result is in the frame of the input; curves,
            lines and angles of Slicer's stay what they are.
        overwrite: replace an existing output; never a file that is read here.
        nifti_frame: itk, sform or qform, where readers understand a NIfTI header in two ways.
        series: Series Instance UID of the input, where its DICOM folder holds several.
        series_reference: likewise, of the reference.
    """
    inverse = bool(switch("inverse", inverse))
    check_options(input, reference, interpolation, frame)
    path = new_file(output, overwrite=overwrite)
    check_files(path, transform, input, reference)
    if is_points(input):
        own, turned = transform_of_points(transform)
        inverse = inverse != turned
        points, own_frame = read_in_frame(input, frame)
        check_dims(points, input, own.dims, "the transform")
        check_shape(points, input, path)
        return write_points(move_points(points, own, inverse), path, own_frame)
    loaded = None if reference is not None and needs_grids(transform) else read_any_transform(transform)
    if reference is None:
        raise ValueError("reference is not set: give the image whose grid the result is to have")
    named = ((input, "input", series), (reference, "reference", series_reference))
    dims = None if loaded is None else loaded.dims
    images = [load_image(file, name, dims, nifti_frame, uid) for file, name, uid in named]
    if loaded is None:
        moving, fixed = map(Grid.of, images[::-1] if inverse else images)
        loaded = read_any_transform(transform, images[0].ndim - 1, moving, fixed)
    check_finite(images[0], source(images[0], "input"))
    interpolation = chosen_interpolation(images[0], interpolation)
    write_image(resample_image(images[0], loaded, images[1], inverse, interpolation), path)
    return path
