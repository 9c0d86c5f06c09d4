"""Command line: ``python -m istn_monai COMMAND --help`` (or ``istn-monai``)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import fire

from istn_monai.data import make_datalist
from istn_monai.synthetic import synthesize as write_synthetic_pairs


def pairs(
    images: str,
    output: str,
    labels: str | None = None,
    train: int = 100,
    val: int = 10,
    test: int = 100,
    seed: int = 0,
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
    """
    return f"written: {make_datalist(images, output, labels, train, val, test, seed)}"


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


COMMANDS = {"pairs": pairs, "synthesize": synthesize}


def main() -> None:
    """Runs a command; a foreseen failure is one line and exit code 1."""
    try:
        fire.Fire(COMMANDS, name="istn-monai")
    except (OSError, ValueError) as error:
        sys.exit(f"istn-monai: {error}")


if __name__ == "__main__":
    main()
