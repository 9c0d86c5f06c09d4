"""Commands about files, without a network: transforms applied, joined and described; datalists and data made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from istn_monai.options import command
from istn_monai.processors import load_libraries


@command()
def apply(
    transform: str,
    input: str,
    output: str,
    reference: str | None = None,
    inverse: bool = False,
    interpolation: str = "auto",
    frame: str | None = None,
    overwrite: bool = False,
    nifti_frame: str | None = None,
    *,
    series: str | None = None,
    series_reference: str | None = None,
) -> str:
    """Applies a transform to another file: brings what belongs to the moving image to the fixed one.

    Args:
        transform: transform.h5 of register, or any other, in any form that compose takes.
        input: image, label map, or landmarks (.csv, .fcsv, .mrk.json).
        output: file to write; an existing one is left alone.
        reference: image whose grid the result has: the fixed one (with inverse the moving one).
        inverse: bring what belongs to the fixed image to the moving one.
        interpolation: auto (label or linear, by the image's values), linear, nearest, or label (linear one-hot, then
            the largest).
        frame: RAS or LPS, of landmarks whose file does not say it; the result is in the frame of the input.
        overwrite: replace an existing output.
        nifti_frame: what counts where readers understand a NIfTI header in two ways: itk, sform or qform.
        series: Series Instance UID of the input, where its DICOM folder holds several.
        series_reference: likewise, of the reference.
    """
    load_libraries()
    from istn_monai.apply import apply_transform

    options = (inverse, interpolation, frame, overwrite, nifti_frame, series, series_reference)
    return f"written: {apply_transform(transform, input, output, reference, *options)}"


@command()
def compose(
    *transforms: str,
    output: str,
    reference: str | None = None,
    moving: str | None = None,
    overwrite: bool = False,
    nifti_frame: str | None = None,
) -> str:
    """Joins transforms into one, an ITK composite: T = T1 o T2 o ... o Tn, the last one acts on a point first.

    All map points of the fixed image to the moving one, as what is joined does. The order is that of ITK's composites,
    and the reverse of antsApplyTransforms: its -t 1Warp.nii.gz -t 0GenericAffine.mat is compose 0GenericAffine.mat
    1Warp.nii.gz here. Where an affine registration came first and a B-spline one after it, the affine file comes first.

    A transform is any file that ITK or elastix wrote (ANTs, Slicer), or a displacement field. "[FILE,1]" is the inverse
    of one: compose "[transform.h5,1]" --reference moving.nii.gz -o inverse.h5 inverts a transform. greedy:FILE and
    fsl:FILE are the plain matrices of greedy (c3d) and of FSL's flirt.

    Args:
        transforms: FILE, "[FILE,1]", greedy:FILE or fsl:FILE, one or more.
        output: .h5 or .tfm to write; an existing one is left alone.
        reference: image whose points the result maps (fixed; of an inverse alone, the moving one): needed for fsl:FILE,
            and for inverses of what is not linear, which become displacement fields that cover it.
        moving: image that flirt moved, for fsl:FILE; of "[fsl:FILE,1]" the one that it was moved to.
        overwrite: replace an existing output.
        nifti_frame: what counts where readers understand a NIfTI header in two ways: itk, sform or qform.
    """
    load_libraries()
    from istn_monai.compose import compose_files

    return f"written: {compose_files(transforms, output, reference, moving, overwrite, nifti_frame)}"


@command()
def info(
    model: str | None = None,
    reference: str | None = None,
    moving: str | None = None,
    nifti_frame: str | None = None,
) -> str:
    """Says what a file is: a checkpoint (network, grid, structures, data, result) or a transform (what it does).

    Args:
        model: checkpoint, or folder of a training run or of a bundle; the shipped weights by default. Or a transform,
            by its suffix (.h5, .tfm, .txt, .mat, .nii.gz ...), in any form that compose takes, or the folder of a
            registered pair, for its transform.h5.
        reference: of a transform: image on whose grid displacements and folding are measured (fixed).
        moving: image that flirt moved, for fsl:FILE; of "[fsl:FILE,1]" the one that it was moved to.
        nifti_frame: what counts where readers understand a NIfTI header in two ways: itk, sform or qform.
    """
    load_libraries()
    from istn_monai.folders import TRANSFORM, bundle_folder, find_weights
    from istn_monai.transform_info import is_transform, transform_information
    from istn_monai.weights import information, read_weights

    if model is not None and (result := Path(model).expanduser() / TRANSFORM).is_file():
        model = str(result)
    if model is not None and is_transform(model):
        return transform_information(model, reference, moving, nifti_frame)
    if reference is not None or moving is not None:
        raise ValueError(f"reference and moving are of a transform, and {model or 'the model'} is none: leave them out")
    return information(read_weights(find_weights(bundle_folder() if model is None else model)))


@command()
def pairs(
    images: str,
    output: str,
    labels: str | None = None,
    train: int = 100,
    val: int = 10,
    test: int = 100,
    seed: int = 0,
    landmarks: str | None = None,
    overwrite: bool = False,
    *,
    modality: str | None = None,
    label_map: str | None = None,
) -> str:
    """Draws random pairs of a folder of images, so that no subject appears in more than one split.

    Args:
        images: folder with one image for each subject; or that of a data set, of nnU-Net, of the Decathlon, of BIDS, or
            with images and labels in it.
        output: JSON file to write; an existing one is left alone.
        labels: folder with label maps of the images' names.
        train: number of training pairs.
        val: number of validation pairs.
        test: number of test pairs.
        seed: of the draw.
        landmarks: folder with landmark files (.csv, .fcsv, .mrk.json), or landmark maps, of the images' names.
        overwrite: replace an existing datalist.
        modality: the image that counts where subjects have several: of nnU-Net a channel by number or name (default 0),
            of BIDS a suffix or entities, such as T2w (default T1w).
        label_map: likewise the label map of BIDS: entities, a pipeline, or both, such as fmriprep/desc-aseg.
    """
    load_libraries()
    from istn_monai.io.subject_files import Selection
    from istn_monai.pairing import make_datalist

    chosen = Selection(modality, label_map)
    return f"written: {make_datalist(images, output, labels, train, val, test, seed, landmarks, overwrite, chosen)}"


@command()
def synthesize(
    output_dir: str,
    spatial_size: Sequence[int] = (48, 64, 48),
    spacing: float | Sequence[float] = 1.0,
    train: int = 40,
    val: int = 8,
    test: int = 8,
    seed: int = 0,
    image_format: str | None = None,
    overwrite: bool = False,
) -> str:
    """Writes the paper's toy: vessel trees in a bright box whose pose misleads intensities, with a datalist.

    Args:
        output_dir: folder; must be new, empty, or hold a set of this command.
        spatial_size: voxels, two or three numbers.
        spacing: voxel size in mm.
        train: number of training pairs.
        val: number of validation pairs.
        test: number of test pairs.
        seed: everything follows from it.
        image_format: nii.gz, or png in 2-D.
        overwrite: replace a set of this command that was made with other settings.
    """
    load_libraries()
    from istn_monai.synthetic.pairs import synthesize as write_synthetic_pairs

    file = write_synthetic_pairs(
        output_dir, spatial_size, spacing, train, val, test, seed, image_format, overwrite=overwrite
    )
    return f"written: {file}"
