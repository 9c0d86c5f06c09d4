"""The files of a result, by the command that writes them: a registered pair, or its representations alone."""

from __future__ import annotations

from pathlib import Path

from istn_monai.folders import TRANSFORM
from istn_monai.io.staging import ResultFolder
from istn_monai.qa.viewer import VIEW_PAGE
from istn_monai.transforms.keys import SIDES

IMAGES = ("warped", "warped_label", "moving_representation", "fixed_representation")
JACOBIAN = "jacobian.nii.gz"
DISPLACEMENT, INVERSE = "displacement.nii.gz", "inverse_transform.h5"
MOVED = "moved_points.csv"
QA_PAGE = "qa.png"
REPORT = "report.json"
OUTPUTS = (
    *(f"{name}.nii.gz" for name in IMAGES), DISPLACEMENT, JACOBIAN, TRANSFORM, INVERSE, MOVED, QA_PAGE, VIEW_PAGE,
    REPORT,
)  # fmt: skip
MOST_CHANNELS = 100  # of a representation, that are written
INITIAL = "initial.tfm"
KEYS = ("versions", "weights_sha256", "options", "inputs")  # of a report


def channel_file(side: str, number: int) -> str:
    """The file of one channel of a representation, with the suffix by which nnU-Net names channels.

    Examples:
        >>> channel_file("moving", 1)
        'moving_0001.nii.gz'
    """
    return f"{side}_{number:04d}.nii.gz"


#: of another engine's start
REPRESENTATIONS = (
    *(channel_file(side, number) for side in SIDES for number in range(MOST_CHANNELS)), INITIAL, REPORT,
)  # fmt: skip


def pair_folder(output_dir: str | Path) -> ResultFolder:
    """The results of one registered pair in a folder."""
    return ResultFolder(output_dir, OUTPUTS, REPORT, KEYS, REPRESENTATIONS)


def representations_folder(output_dir: str | Path) -> ResultFolder:
    """The representations of one pair in a folder."""
    return ResultFolder(output_dir, REPRESENTATIONS, REPORT, KEYS, OUTPUTS)
