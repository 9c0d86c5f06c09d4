"""Command line: ``python -m istn_monai COMMAND --help`` (or ``istn-monai``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire

from istn_monai.apply import apply_transform
from istn_monai.pairing import make_datalist
from istn_monai.registration import (
    Registration,
    bundle_folder,
    evaluate_datalist,
    register_datalist,
    register_files,
    represent_file,
)
from istn_monai.synthetic.pairs import synthesize as write_synthetic_pairs
from istn_monai.workflow.distributed import connected
from istn_monai.workflow.errors import exit_with_cause


def pairs(
    images: str,
    output: str,
    labels: str | None = None,
    train: int = 100,
    val: int = 10,
    test: int = 100,
    seed: int = 0,
    landmarks: str | None = None,
) -> str:
    """Makes a datalist of random pairs from a folder of images, no subject in two parts.

    Args:
        images: folder with one image for each subject.
        output: JSON file to write; an existing one is left alone.
        labels: folder with label maps of the images' names.
        train: number of training pairs.
        val: number of validation pairs.
        test: number of test pairs.
        seed: of the draw.
        landmarks: folder with landmark files (.csv, .fcsv, .mrk.json), or landmark maps, of the images' names.
    """
    return f"written: {make_datalist(images, output, labels, train, val, test, seed, landmarks)}"


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
    file = write_synthetic_pairs(
        output_dir, spatial_size, spacing, train, val, test, seed, image_format, overwrite=overwrite
    )
    return f"written: {file}"


def register(
    moving: str,
    fixed: str | None = None,
    output_dir: str = "registration",
    moving_label: str | None = None,
    refine_steps: int = 50,
    inverse: bool = False,
    part: str = "testing",
    bundle_root: str | None = None,
    **settings: Any,
) -> str:
    """Registers two images, or all pairs of a datalist, with the bundle's network; no annotation is needed.

    Writes for each pair warped.nii.gz (the moving image on the fixed image's own grid), transform.h5 and
    displacement.nii.gz (fixed to moving points; open in ITK, 3D Slicer, ANTs), both representations, report.json, and
    qa.png, which shows how well it went; of a datalist also qa.html with all of these.

    Args:
        moving: image to be warped; or a datalist (.json), whose pairs go to output_dir/pair_0000 and so on.
        fixed: image that it is warped to.
        output_dir: folder for results.
        moving_label: label map that is warped along.
        refine_steps: of test-time refinement; 0 takes the network's prediction.
        inverse: also write inverse_transform.h5, moving to fixed points.
        part: of a datalist.
        bundle_root: folder of the bundle; the package's own by default.
        settings: any of the bundle's, e.g. --ckpt_dir, --initial_alignment, --device, --qa False for no QA page; or an
            overlay that has them, --config FILE.json.
    """
    registration = Registration(bundle_root, refine_steps, **settings)
    if fixed is not None:
        register_files(
            registration, output_dir, inverse, moving_image=moving, fixed_image=fixed, moving_label=moving_label
        )
        return f"written: {Path(output_dir).expanduser().absolute()}"
    if not moving.endswith(".json"):
        raise ValueError("fixed is not set: give two images, or one datalist (.json)")
    with connected():
        failures = register_datalist(registration, moving, part, output_dir, inverse)
    if failures:
        raise ValueError("\n".join([f"{len(failures)} pairs failed:", *failures]))
    return f"written: {Path(output_dir).expanduser().absolute()}"


def represent(image: str, output: str, bundle_root: str | None = None, **settings: Any) -> str:
    """Writes the representation that the network makes of one image, for registration by another tool.

    Args:
        image: any image of the kind that the network was trained on.
        output: NIfTI file to write, on the registration grid; an existing one is left alone.
        bundle_root: folder of the bundle; the package's own by default.
        settings: any of the bundle's, e.g. --ckpt_dir; or an overlay that has them, --config FILE.json.
    """
    return f"written: {represent_file(Registration(bundle_root, 0, **settings), image, output)}"


def evaluate(
    datalist: str, output_dir: str, refine_steps: int = 50, bundle_root: str | None = None, **settings: Any
) -> str:
    """Evaluates the network on annotated pairs: Dice, surface distances, folding, before and after registration.

    Args:
        datalist: JSON file of pairs with labels.
        output_dir: folder for evaluation.csv, evaluation.json and qa.html.
        refine_steps: of test-time refinement; 0 for none.
        bundle_root: folder of the bundle; the package's own by default.
        settings: any of the bundle's, e.g. --ckpt_dir, --evaluated_split, --soi_labels, --qa False; or an overlay that
            has them, --config FILE.json.
    """
    evaluate_datalist(bundle_folder(bundle_root), datalist, output_dir, refine_steps, **settings)
    return f"written: {Path(output_dir).expanduser().absolute()}"


COMMANDS = {
    "register": register,
    "apply": apply_transform,
    "represent": represent,
    "evaluate": evaluate,
    "pairs": pairs,
    "synthesize": synthesize,
}


def main() -> None:
    """Runs a command; a foreseen failure is one line and exit code 1."""
    try:
        fire.Fire(COMMANDS, name="istn-monai")
    except Exception as error:
        exit_with_cause(error, "istn-monai")


if __name__ == "__main__":
    main()
