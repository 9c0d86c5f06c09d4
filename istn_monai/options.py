"""The bundle's settings by name, with what they mean: what its configs and the command line take."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from istn_monai.folders import bundle_folder

SETTINGS: dict[str, str] = {
    "bundle_root": "the bundle's folder; found from the config file by default",
    "dataset_dir": "folder of the data; none makes the embedded synthetic set",
    "data_list_file": "datalist in dataset_dir (or an absolute path)",
    "synthetic_dir": "where the embedded synthetic set is made",
    "run_name": "names the default output_dir, runs/NAME_LOSS_TRANSFORMATION",
    "output_dir": "folder for results",
    "ckpt_dir": "folder of the checkpoints model.pt (best) and last.pt",
    "device": "cpu, cuda:0, ...",
    "seed": "of all random numbers",
    "transformation": "affine or bspline",
    "control_spacing": "of bspline: mm, one number for each level, coarse to fine",
    "max_displacement": "of bspline: bound of a level as a fraction of its control spacing; none for no bound",
    "loss": "u, s, e or i: STN-u, STN-s, ISTN-e, ISTN-i",
    "similarity": "MONAI loss that compares two images in all terms; none is the paper's mean squared error",
    "regularization": "MONAI loss of the ddf; none by default",
    "regularization_weight": "its factor",
    "spatial_size": "voxels of the registration grid; at inference auto covers the fixed image",
    "spacing": "its voxel size in mm",
    "soi_labels": "groups of label values, one for each SoI channel; none takes labels as real-valued maps, [] none",
    "soi_points": "groups of landmark names, one for each further SoI channel; [['*']] is all in one; none for none",
    "points_map": "what a landmark becomes: heatmap (Gaussian) or distance (cut distance map)",
    "points_width": "mm from a landmark at which its map has fallen to a half",
    "initial_alignment": "world, center, moments or rigid",
    "in_channels": "channels of an image",
    "itn_def": "MONAI's JSON of another image transformer network",
    "stn_def": "MONAI's JSON of another spatial transformer network",
    "checkpoint_file": "the network that is loaded; ckpt_dir/model.pt by default",
    "augment": "random affine, elastic and intensity changes in training",
    "cache_dir": "folder that keeps prepared pairs for later runs; none keeps them in memory",
    "num_workers": "processes that load data",
    "max_epochs": "of training",
    "batch_size": "pairs in a training batch",
    "learning_rate": "at the start; follows a cosine to 0",
    "training_dtype": "of the networks in training: float32 or bfloat16, which is faster on hardware that supports it",
    "val_interval": "epochs between validations",
    "moving_image": "file to be warped (inference)",
    "fixed_image": "file whose grid is the result's (inference)",
    "moving_label": "label map to be warped along (inference)",
    "qa": "writes the QA page: qa.png of a pair, qa.html of an evaluation; False leaves it out",
    "overwrite": "replaces an earlier result of other inputs, weights or options: all its files are removed first",
    "evaluated_labels": "as soi_labels, of what evaluation compares; soi_labels by default",
    "evaluated_split": "part of the datalist to evaluate",
    "refine_steps": "steps of test-time refinement, in evaluation (0 for none) and refinement",
    "refine_learning_rate": "of Adam on the transformation's parameters; larger fits more and is less smooth",
}

#: what only training reads
TRAINING = {
    "dataset_dir", "data_list_file", "synthetic_dir", "run_name", "ckpt_dir", "seed", "transformation",
    "control_spacing", "max_displacement", "loss", "similarity", "regularization", "regularization_weight", "spacing",
    "soi_labels", "soi_points", "points_map", "points_width", "in_channels", "itn_def", "stn_def", "augment",
    "cache_dir", "num_workers", "max_epochs", "batch_size", "learning_rate", "training_dtype", "val_interval",
}  # fmt: skip
#: the settings that the help of a command lists; what a network was trained with, it knows
OF_COMMAND = {
    "train": TRAINING | {"output_dir", "device", "spatial_size", "initial_alignment"},
    "evaluate": {
        "device", "seed", "spatial_size", "initial_alignment", "qa", "evaluated_labels", "evaluated_split",
        "refine_learning_rate", "cache_dir", "overwrite",
    },
    "register": {"device", "spatial_size", "initial_alignment", "qa", "refine_learning_rate", "overwrite"},
}  # fmt: skip
CONFIGS = {"train": ("train",), "evaluate": ("train", "evaluate"), "register": ("inference",)}


def defaults(command: str) -> dict[str, Any]:
    """The defaults of a command's settings as they stand in the bundle's configs; expressions are left out."""
    content: dict[str, Any] = {}
    for name in CONFIGS[command]:
        content |= json.loads((bundle_folder() / "configs" / f"{name}.json").read_text())
    return {name: value for name, value in content.items() if not str(value).startswith("$")}


def with_settings(command: str) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Decorator: the command's help lists the settings of the bundle that it takes, with defaults and meanings."""

    def decorate(function: Callable[..., str]) -> Callable[..., str]:
        """Adds the settings to signature and docstring."""
        signature = inspect.signature(function)
        own = list(signature.parameters.values())
        names = sorted(OF_COMMAND[command] - set(signature.parameters))
        known = defaults(command)
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
        function.__signature__ = signature.replace(parameters=[*own[:-1], *added, own[-1]])  # type: ignore[attr-defined]
        lines = [f"        {name}: {SETTINGS[name]}{shown(known.get(name))}." for name in names]
        function.__doc__ = re.sub(r"\s*$", "\n", function.__doc__ or "") + "\n".join(lines) + "\n"
        return function

    return decorate


def shown(default: Any) -> str:
    """A default in words; nothing where there is none."""
    return "" if default is None else f" (default {json.dumps(default)})"
