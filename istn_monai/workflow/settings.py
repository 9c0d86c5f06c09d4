"""The bundle's settings: which there are, whether an override is one of them, and what a checkpoint was made with.

MONAI takes any override, also a mistyped one, without a word. :func:`check_settings` is the first thing that the
bundle's ``initialize`` calls, and refuses what nothing would read.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from torch import nn

SETTINGS: dict[str, str] = {
    "bundle_root": "the bundle's folder; found from the config file by default",
    "dataset_dir": "folder of the data; none makes the embedded synthetic set",
    "data_list_file": "datalist in dataset_dir (or an absolute path)",
    "synthetic_dir": "where the embedded synthetic set is made",
    "run_name": "names the default output_dir",
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
    "spatial_size": "voxels of the registration grid",
    "spacing": "its voxel size in mm",
    "soi_labels": "groups of label values, one for each SoI channel; none takes labels as real-valued maps, [] none",
    "soi_points": "groups of landmark names, one for each further SoI channel; [['*']] is all in one; none for none",
    "points_map": "what a landmark becomes: heatmap (Gaussian) or distance (truncated distance map)",
    "points_width": "mm from a landmark at which its map has fallen to a half",
    "initial_alignment": "world, center, moments or rigid",
    "in_channels": "channels of an image",
    "itn_def": "the image transformer network",
    "stn_def": "the spatial transformer network",
    "checkpoint_file": "the network that is loaded; ckpt_dir/model.pt by default",
    "augment": "random affine, elastic and intensity changes in training",
    "cache_rate": "fraction of the training pairs kept in memory",
    "cache_dir": "folder that keeps prepared pairs for later runs; none keeps them in memory",
    "num_workers": "processes that load data",
    "max_epochs": "of training",
    "batch_size": "pairs in a training batch",
    "learning_rate": "at the start; follows a cosine to 0",
    "training_dtype": "of the networks in training: float32 or bfloat16, which is faster where the hardware knows it",
    "val_interval": "epochs between validations",
    "moving_image": "file to be warped (inference)",
    "fixed_image": "file whose grid is the result's (inference)",
    "moving_label": "label map to be warped along (inference)",
    "qa": "writes the QA page: qa.png of a pair, qa.html of an evaluation; False leaves it out",
    "evaluated_labels": "as soi_labels, of what evaluation compares; soi_labels by default",
    "evaluated_split": "split of the datalist to evaluate",
    "refine_steps": "steps of test-time refinement, in evaluation (0 for none) and refinement",
    "refine_learning_rate": "of Adam on the transformation's parameters; larger fits more and is less smooth",
}
#: top-level ids that MONAI itself reads, and those for a host or for :mod:`istn_monai.registration` alone
MONAI_IDS = {
    "imports", "initialize", "run", "finalize", "training", "evaluation", "inference", "refinement",
    "train", "validate", "evaluate", "dataset", "dataloader", "evaluator", "inferer", "preprocessing",
    "postprocessing", "handlers", "network_def", "network", "displayable_configs", "check", "_meta_", "_mode_",
    "save_execute_config", "tracking_uri", "experiment_name", "is_not_rank0",
}  # fmt: skip


def none_or(value: Any) -> Any:
    """None for the words "none" and "null": on MONAI's command line ``--key None`` is as if it were not there."""
    return None if isinstance(value, str) and value.lower() in ("none", "null") else value


def architecture(network: nn.Module) -> str:
    """Short hash of a network's architecture, from its ``repr``."""
    return hashlib.sha256(repr(network).replace("(components)", "(parts)").encode()).hexdigest()[:12]


def caller_of_type(kind: type) -> Any:
    """The innermost object of a type that is ``self`` in the call stack, or None.

    Expressions in a MONAI config cannot reach the parser or the workflow that evaluates them; both are in the stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


def find_bundle_root() -> str:
    """The folder of the bundle whose config is being run, or "." where that cannot be known.

    ``configs/`` lies in the bundle's folder; so a command works from any directory without ``--bundle_root``.
    """
    workflow = caller_of_type(ConfigWorkflow)
    folder = Path.cwd() if workflow is None else Path(workflow.config_root_path).absolute()
    return str(folder.parent if folder.name == "configs" else folder)


def check_settings() -> None:
    """ValueError if the config under evaluation has a top-level key that nothing reads: a mistyped override.

    A key counts as read if it is one of ``SETTINGS``, one that MONAI reads, or if another entry refers to it with @.
    """
    parser = caller_of_type(ConfigParser)
    if parser is None:
        return
    config = parser.get()
    read = set(re.findall(r"@(\w+)", json.dumps(config, default=str)))
    for key in config:
        if key not in read and key not in SETTINGS and key not in MONAI_IDS:
            close = difflib.get_close_matches(key, SETTINGS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"unknown setting {key!r}: {hint}Settings are: {', '.join(sorted(SETTINGS))}")


class Settings:
    """The settings that a network was built and trained with, kept in its checkpoint.

    Args:
        network: settings without which its weights mean nothing; a checkpoint with others is refused.
        training: how it was trained; continuing with others is refused, using its weights is not.
    """

    def __init__(self, network: Mapping[str, Any], training: Mapping[str, Any] | None = None) -> None:
        # through JSON, so that tuples, lists and MONAI's own containers compare equal
        self.network: dict[str, Any] = json.loads(json.dumps(network, default=str))
        self.training: dict[str, Any] = json.loads(json.dumps(training or {}, default=str))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Plain dictionaries, for a checkpoint."""
        return {"network": self.network, "training": self.training}

    def check(self, checkpoint: Mapping[str, Any], file: str | Path, resume: bool = False) -> None:
        """ValueError, naming file and settings, if a checkpoint's settings are not these.

        Args:
            checkpoint: has what :meth:`state_dict` gave under "settings"; without it there is nothing to compare.
            file: its place, for the error.
            resume: whether the settings of training must agree as well.
        """
        theirs = checkpoint.get("settings", {})
        for kind, mine in (("network", self.network), ("training", self.training if resume else {})):
            other = theirs.get(kind, {})
            differing = [key for key in mine if key in other and other[key] != mine[key]]
            if differing:
                what = "; ".join(f"{key}: {other[key]!r} in the checkpoint, {mine[key]!r} now" for key in differing)
                remedy = "choose another ckpt_dir (or output_dir)" if resume else "give the settings it was made with"
                raise ValueError(f"{file} was made with other settings ({what}): {remedy}")
