"""How to use a trained network, in a text beside its weights: whoever finds the folder need not look elsewhere."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from istn_monai import __version__
from istn_monai.folders import RUN
from istn_monai.io.paths import replacing
from istn_monai.network_definitions import own_networks
from istn_monai.weights import BEST
from istn_monai.workflow.checkpoints import UNTRAINED, Checkpoints

HOW_TO = "how_to_register.txt"
TEXT = """\
A network for image registration, trained with istn-monai {version}
{what}
{result}

Two images (labels are not needed; --moving_label carries a label map along):

    istn-monai register MOVING.nii.gz FIXED.nii.gz --model {model} --output_dir registration

Look at registration/qa.png first. registration/warped.nii.gz lies on the fixed image; registration/transform.h5 maps
fixed to moving points and opens in 3D Slicer, ITK, SimpleITK and ANTs:

    import SimpleITK as sitk
    moving, fixed = sitk.ReadImage("MOVING.nii.gz"), sitk.ReadImage("FIXED.nii.gz")
    warped = sitk.Resample(moving, fixed, sitk.ReadTransform("registration/transform.h5"))

Other images, label maps and landmarks of the moving image:

    istn-monai apply registration/transform.h5 OTHER.nii.gz WARPED.nii.gz --reference FIXED.nii.gz

All pairs of a datalist, and metrics of pairs with labels:

    istn-monai register PAIRS.json --model {model} --output_dir registrations
    istn-monai evaluate PAIRS.json --model {model} --output_dir evaluation

From Python, and inside a MONAI Compose:

    from istn_monai import Registration, RegisterISTNd
    result = Registration({quoted})({{"moving_image": "MOVING.nii.gz", "fixed_image": "FIXED.nii.gz"}})
    transform = RegisterISTNd("moving", "fixed", model={quoted})

What the network is: istn-monai info {model}

(Paths are as seen from the folder in which it was trained.)
"""


def write_how_to(checkpoints: Checkpoints) -> Path:
    """Writes the text beside the best weights.

    Args:
        checkpoints: of the training; the folder is named as it is seen from the current one.
    """
    folder = checkpoints.best_file.parent
    run = folder.parent if folder.name == "models" and (folder.parent / RUN).is_file() else checkpoints.best_file
    model = os.path.relpath(run)
    model = str(run) if model.startswith("..") else model
    settings = checkpoints.settings
    what = f"{settings.loss}, {settings.transformation}; structures {settings.soi_labels}; {settings.spacing} mm"
    what += "".join(f"; {name} {network}" for name, network in own_networks(settings).items())
    result = f"{BEST} is epoch {checkpoints.best_epoch}, validation Dice {checkpoints.best:.4f}"
    result += "" if checkpoints.best_epoch else UNTRAINED
    file = folder / HOW_TO
    with replacing(file) as part:
        said = {"version": __version__, "what": what, "result": result}
        part.write_text(TEXT.format(**said, model=shlex.quote(model), quoted=repr(model)), encoding="utf-8")
    return file
