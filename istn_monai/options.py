"""The bundle's settings and the commands' options by name: what they mean, and of what kind they are."""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fire.decorators import SetParseFn

from istn_monai import kinds
from istn_monai.folders import bundle_folder
from istn_monai.kinds import Kind, choice, none_or, number, numbers, whole
from istn_monai.transforms.keys import LABEL_KEYS, MAP_KEYS, MASK_KEYS, POINT_KEYS

SETTINGS: dict[str, str] = {
    "bundle_root": "the bundle's folder; found from the config file by default",
    "dataset_dir": "folder of the data; without it, and without a whole path of a datalist, the synthetic set is made",
    "data_list_file": "datalist in dataset_dir (or an absolute path)",
    "synthetic_dir": "where the embedded synthetic set is made",
    "run_name": "names the default output_dir, runs/NAME_LOSS_TRANSFORMATION",
    "output_dir": "folder for results",
    "ckpt_dir": "folder of the checkpoints model.pt (best) and last.pt",
    "device": "cpu, cuda:0, ...",
    "seed": "of all random numbers",
    "transformation": "rigid, affine, bspline, svf (velocity field), or several joined: affine+bspline",
    "control_spacing": "of bspline and svf: mm, one number for each level, coarse to fine",
    "max_displacement": "likewise: bound of a level as a fraction of its control spacing; none for no bound of bspline",
    "affine_bounds": "of rigid and affine, by name: translation in mm, rotation and shear in degrees, scale (factor)",
    "loss": "u, s, e or i: STN-u, STN-s, ISTN-e, ISTN-i",
    "similarity": "MONAI loss that compares two images in all terms; none is the paper's mean squared error",
    "regularization": "MONAI loss of the ddf; none by default",
    "regularization_weight": "its factor",
    "loss_weights": "of the loss's own terms (structures) and of image, mse, nmi, mind, bending: by name, or a preset",
    "spatial_size": "voxels of the registration grid; at inference auto covers what the fixed image shows, image all",
    "spacing": "its voxel size in mm",
    "soi_labels": "groups of label values, one for each SoI channel; none takes labels as real-valued maps, [] none",
    "soi_points": "groups of landmark names, one for each further SoI channel; [['*']] is all in one; none for none",
    "points_map": "what a landmark becomes: heatmap (Gaussian) or distance (cut distance map)",
    "points_width": "mm from a landmark at which its map has fallen to a half",
    "initial_alignment": "world, center, moments, principal_axes, rigid, affine, structures, or a transform's file",
    "initial_similarity": "of images in principal_axes, rigid and affine: mse, image (local correlation), nmi or mind",
    "in_channels": "channels of an image",
    "nifti_frame": "what counts where readers understand a NIfTI header in two ways: itk, sform or qform",
    "itn_def": "segmentation, a large U-Net; for loss u and s mind, torchscript:PATH ...; or MONAI's JSON of a network",
    "initial_weights": "checkpoint whose weights a training begins with; none begins with random ones",
    "itn_epochs": "of max_epochs, the first ones, in which the image transformer network learns by itself",
    "contrast": "of images in training: own; random, by random curves; synthetic, drawn from labels; any, both",
    "ema_decay": "of a moving average of the weights, which model.pt then holds; 0 for none, 0.999 for long trainings",
    "val_refine_steps": "steps of the refinement before a validation's Dice; 0 for one pass",
    "stn_def": "identity, for none: refined from the start; or MONAI's JSON of another spatial transformer network",
    "checkpoint_file": "the network that is loaded; ckpt_dir/model.pt by default",
    "augment": "random affine, elastic and intensity changes in training",
    "cache_dir": "folder that keeps prepared pairs for later runs; none keeps them in memory",
    "num_workers": "processes that load data",
    "max_epochs": "of training",
    "batch_size": "pairs in a training batch",
    "learning_rate": "at the start; follows a cosine to 0",
    "training_dtype": "of the networks in training: float32 or bfloat16, which is faster on hardware that supports it",
    "itn_dtype": "of the image transformer network outside of training: float32, bfloat16, or auto for what is faster",
    "val_interval": "epochs between validations",
    "moving_image": "file to be warped (inference)",
    "fixed_image": "file whose grid is the result's (inference)",
    "moving_label": "label map to be warped along (inference)",
    "fixed_label": "label map of the fixed image, for use_labels",
    "moving_mask": "map of whole numbers on the moving image's grid; where it is 0, the image does not count",
    "fixed_mask": "likewise, of the fixed image",
    "moving_points": "landmarks to be moved along, and for use_points (inference)",
    "fixed_points": "landmarks whose distance from the moved ones is reported, and for use_points",
    "moving_series": "Series Instance UID of the moving image, where its DICOM folder holds several",
    "fixed_series": "likewise, of the fixed image",
    "representation": "what is registered: itn, image, labels, file, mind, or torchscript:, export: or bundle:PATH",
    "moving_maps": "maps of the moving image, such as probabilities, for the representation file",
    "fixed_maps": "likewise, of the fixed image",
    "both_ways": "also register the other way round, for the inverse-consistency error",
    "symmetric": "refine (in training: learn) both ways at once, for svf and affine: the other way is then the inverse",
    "jacobian": "also write the Jacobian determinant of the whole transform on the fixed image's grid, jacobian.nii.gz",
    "qa": "writes the QA page: qa.png and view.html of a pair, qa.html of an evaluation; False leaves it out",
    "overwrite": "replaces an earlier result of other inputs, weights or options: all its files are removed first",
    "evaluated_labels": "as soi_labels, of what evaluation compares; soi_labels by default",
    "learn2reg": "also write a submission to that challenge, and its own metrics; data is its *_dataset.json",
    "evaluated_split": "part of the datalist to evaluate",
    "refine_steps": "steps of test-time refinement, in evaluation (0 for none) and refinement",
    "refine_levels": "stride and steps of each level, coarse to fine: [[4,10],[2,25],[1,15]]; instead of refine_steps",
    "refine_weights": "what refinement minimizes: accurate, smooth, structures, or weights by name",
    "use_labels": "moving_label and fixed_label, or one of them, guide the refinement",
    "use_points": "the landmarks of both images guide the refinement",
    "refine_learning_rate": "of Adam on the transformation's parameters; larger fits more and is less smooth",
}

#: of what kind each setting and each option of a command is; what is not here is text
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "data",
            "moving",
            "fixed",
            "image",
            "input",
            "output",
            "registered",
            "transform",
            "transforms",
            "reference",
            "images",
            "labels",
            "landmarks",
            "model",
            "config",
            "bundle_root",
            "data_list_file",
            "synthetic_dir",
            "output_dir",
            "ckpt_dir",
            "checkpoint_file",
            "moving_image",
            "fixed_image",
        ),
        kinds.path,
    ),
    **dict.fromkeys(
        ("dataset_dir", "cache_dir", "initial_weights", *LABEL_KEYS, *MASK_KEYS, *POINT_KEYS, *MAP_KEYS),
        none_or(kinds.path),
    ),
    **dict.fromkeys(("moving_series", "fixed_series", "series", "series_reference"), kinds.text),
    **dict.fromkeys(("augment", "qa", "overwrite", "inverse", "both_ways", "dry_run"), kinds.switch),
    **dict.fromkeys(("symmetric", "jacobian", "learn2reg"), kinds.switch),
    **dict.fromkeys(("use_labels", "use_points"), kinds.switch),
    **dict.fromkeys(("max_epochs", "batch_size", "val_interval", "in_channels"), whole(1)),
    **dict.fromkeys(("num_workers", "train", "val", "test"), whole(0)),
    "refine_steps": whole(0),
    **dict.fromkeys(("val_refine_steps", "itn_epochs"), whole(0)),
    **dict.fromkeys(("similarity", "regularization"), none_or(kinds.definition)),
    "stn_def": none_or(kinds.stn_definition),
    "itn_def": none_or(kinds.itn_definition),
    "contrast": choice("own", "random", "synthetic", "any"),
    "ema_decay": number(least=0, most=0.99999),
    **dict.fromkeys(("soi_labels", "soi_points", "evaluated_labels"), kinds.structure),
    "run_name": kinds.folder_name,
    "device": kinds.device,
    "seed": whole(0, 2**32 - 1025),  # each process adds its rank to it
    "transformation": kinds.transformation,
    "affine_bounds": none_or(kinds.affine_bounds),
    "representation": kinds.representation,
    "control_spacing": numbers(number(above=0)),
    "max_displacement": none_or(number(above=0)),
    "loss": choice("u", "s", "e", "i"),
    "regularization_weight": number(least=0),
    "spatial_size": kinds.size,
    "spacing": numbers(number(above=0), (2, 3)),
    "points_map": choice("heatmap", "distance"),
    "points_width": number(above=0),
    "initial_alignment": kinds.start,
    "initial_similarity": choice("mse", "image", "nmi", "mind"),
    "learning_rate": number(above=0, most=10),
    "refine_learning_rate": none_or(number(above=0, most=10)),
    "refine_levels": none_or(kinds.levels),
    "refine_weights": none_or(kinds.term_weights),
    "loss_weights": none_or(kinds.loss_weights),
    "training_dtype": choice("float32", "bfloat16"),
    "itn_dtype": choice("auto", "float32", "bfloat16"),
    "frame": choice("RAS", "LPS"),
    "nifti_frame": none_or(choice("itk", "sform", "qform")),
    "image_format": choice("nii.gz", "png"),
    **dict.fromkeys(("modality", "label_map"), none_or(kinds.text)),
    "world": none_or(choice("own", "aligned")),
}

#: what only training reads
TRAINING = {
    "dataset_dir", "data_list_file", "synthetic_dir", "run_name", "ckpt_dir", "seed", "transformation",
    "control_spacing", "max_displacement", "affine_bounds", "loss", "similarity", "regularization",
    "regularization_weight", "loss_weights", "spacing", "soi_labels", "soi_points", "points_map", "points_width",
    "in_channels", "itn_def", "stn_def", "initial_weights", "itn_epochs", "contrast", "augment", "cache_dir",
    "num_workers", "max_epochs", "batch_size", "learning_rate", "training_dtype", "ema_decay", "val_interval",
    "val_refine_steps", "symmetric",
}  # fmt: skip
#: the settings that the help of a command lists; what a network was trained with, it knows
OF_COMMAND = {
    "train": TRAINING | {
        "output_dir", "nifti_frame", "device", "spatial_size", "initial_alignment", "initial_similarity",
    },
    "evaluate": {
        "device", "seed", "spatial_size", "initial_alignment", "initial_similarity", "qa", "both_ways",
        "evaluated_labels", "evaluated_split", "symmetric", "refine_learning_rate", "refine_levels", "refine_weights",
        "cache_dir", "overwrite", "nifti_frame", "itn_dtype", "learn2reg", "representation",
    },
    "register": {
        "device", "spatial_size", "initial_alignment", "initial_similarity", "qa", "both_ways", "jacobian", "symmetric",
        "refine_learning_rate", "refine_levels", "refine_weights", "overwrite", "nifti_frame", "moving_series",
        "fixed_series", "use_labels", "use_points", "itn_dtype", "representation", "transformation", "spacing",
        "control_spacing", "max_displacement", "affine_bounds",
    },
    "represent": {"device", "spatial_size", "nifti_frame", "itn_dtype", "representation", "spacing", "overwrite"},
}  # fmt: skip
CONFIGS = {
    "train": ("train",), "evaluate": ("train", "evaluate"), "register": ("inference",), "represent": ("inference",),
}  # fmt: skip


#: what a network was trained with, and where things are: given to other commands, it is compared with the weights
COMPARED = {
    "loss", "transformation", "control_spacing", "max_displacement", "affine_bounds", "spacing", "soi_labels",
    "soi_points", "in_channels", "itn_def", "stn_def", "checkpoint_file", "ckpt_dir", "dataset_dir", "data_list_file",
    "run_name", "synthetic_dir",
}  # fmt: skip
#: what every command takes besides, and what Registration and the hosts also set
ALWAYS = {"bundle_root", "output_dir"} | COMPARED
REQUESTED = {"refine_steps", "moving_image", "fixed_image", "moving_label"}


def typed(name: str, value: Any) -> Any:
    """An option's or a setting's value in its own type.

    Raises:
        ValueError: naming the option, what it takes and what came.
    """
    return KINDS.get(name, kinds.text)(name, value)


def unknown(what: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that nothing reads, with the nearest one that something does."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ValueError(f"unknown {what} {name!r}: {hint}{what.capitalize()}s are: {', '.join(names)}")


def typed_settings(command: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a user gives to a command, each in its own type.

    Entries inside others, such as ``inferer#target``, pass as they are; they are MONAI's.

    Raises:
        ValueError: if one is unknown, or read by another command alone, or of the wrong kind.
    """
    result = {}
    for name, value in settings.items():
        if re.search("#|::", name):
            result[name] = kinds.literal(value)
            continue
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
        if name not in OF_COMMAND[command] | (ALWAYS if command == "train" else ALWAYS | REQUESTED):
            readers = [other for other, names in OF_COMMAND.items() if name in names]
            where = f"{' and '.join(readers)} reads it" if readers else "it is one of the bundle's configs"
            raise ValueError(f"{command} does not read the setting {name!r}: {where}; leave it out")
        result[name] = typed(name, value)
    return result


def command(settings_of: str | None = None) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """Decorator of a command: what is typed comes to it in the options' own types, or ends in one line.

    Args:
        settings_of: the command also takes the bundle's settings that this one reads; the help lists them.
    """

    def decorate(function: Callable[..., str]) -> Callable[..., str]:
        """Wraps a command."""
        own = inspect.signature(function)
        many = [name for name, parameter in own.parameters.items() if parameter.kind is parameter.VAR_POSITIONAL]

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> str:
            """The command, with typed arguments."""
            bound = own.bind(*args, **kwargs)
            settings = bound.arguments.pop("settings", {})
            listed = [typed(name, value) for name in many for value in bound.arguments.pop(name, ())]
            arguments = {name: typed(name, value) for name, value in bound.arguments.items()}
            return function(*listed, **arguments, **(typed_settings(settings_of, settings) if settings_of else {}))

        decorated = run if settings_of is None else with_settings(settings_of)(run)
        return SetParseFn(str)(decorated)  # Fire hands over what was typed, not what it looks like

    return decorate


def defaults(command: str) -> dict[str, Any]:
    """The defaults of a command's settings as they stand in the bundle's configs; expressions are left out."""
    content: dict[str, Any] = {}
    for name in CONFIGS[command]:
        content |= json.loads((bundle_folder() / "configs" / f"{name}.json").read_text(encoding="utf-8"))
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
