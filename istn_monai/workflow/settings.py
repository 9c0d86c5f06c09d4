"""The bundle's settings: which there are, whether an override is one of them, and what a checkpoint says of them.

MONAI takes any override, also a mistyped one, without a word, and an expression in a config cannot reach the parser
that evaluates it. :func:`running` finds the parser in the call stack, here alone; ``tests/test_settings.py`` fails if
a version of MONAI hides it.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from torch import nn

from istn_monai.folders import BEST
from istn_monai.foreign_networks import check_there
from istn_monai.kinds import path
from istn_monai.levels import USUAL_STEPS
from istn_monai.network_settings import NetworkSettings, none_or
from istn_monai.options import KINDS, SETTINGS, typed, unknown
from istn_monai.refine_weights import guided_weights  # noqa: F401 - for the configs
from istn_monai.representations import Representation
from istn_monai.transforms.registration_grid import AUTO, IMAGE
from istn_monai.transforms.starts import STRUCTURES
from istn_monai.weights import HOW_TO_REFINE, read_weights
from istn_monai.workflow.errors import runs_monai_bundle

#: top-level ids that MONAI itself reads, those that only make sense to a host, and what a plan says of itself
MONAI_IDS = {
    "imports", "initialize", "run", "finalize", "training", "evaluation", "inference", "refinement",
    "train", "validate", "evaluate", "dataset", "dataloader", "evaluator", "inferer", "preprocessing",
    "postprocessing", "handlers", "network_def", "network", "settings", "displayable_configs", "_meta_", "_mode_",
    "save_execute_config", "tracking_uri", "experiment_name", "_plan_",
}  # fmt: skip
#: of the network's settings, what the bundle's training config does not list
FURTHER = ("affine_bounds", "itn_def", "stn_def", "initial_similarity")
NETWORK_SETTINGS = tuple(field.name for field in fields(NetworkSettings))
COMPARING = ("principal_axes", "rigid", "affine")  # initial alignments that register the images
REFINING = (*HOW_TO_REFINE, "symmetric")  # what a refinement alone reads
#: what no config can do without: here null is no value
NEEDED = (
    "seed", "device", "output_dir", "ckpt_dir", "data_list_file", "max_epochs", "batch_size", "val_interval",
    "learning_rate", "num_workers", "training_dtype",
)  # fmt: skip
RUN_SUFFIX = re.compile(r"_[usei]_[a-z+]+")  # of a run's folder: its loss and its transformation


def running(kind: type) -> Any:
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
    workflow = running(ConfigWorkflow)
    folder = Path.cwd() if workflow is None else Path(workflow.config_root_path).absolute()
    return str(folder.parent if folder.name == "configs" else folder)


def check_settings(parser: ConfigParser | None = None) -> None:
    """ValueError if a config has a top-level key that nothing reads, a mistyped override, or a value of a wrong kind.

    A key counts as read if it is one of ``SETTINGS``, one that MONAI reads, or if another entry refers to it with @.

    Args:
        parser: of the config; None is the one under evaluation.
    """
    parser = running(ConfigParser) if parser is None else parser
    if parser is None:
        return
    config = parser.get()
    read = set(re.findall(r"@(\w+)", json.dumps(config, default=str)))
    for key in config:
        if key not in read and key not in SETTINGS and key not in MONAI_IDS:
            raise unknown("setting", key, SETTINGS)
    check_values(config)


def check_values(config: Mapping[str, Any]) -> None:
    """ValueError if a setting is not of its kind; expressions are left to their evaluation.

    MONAI's runner takes what is typed for a Python literal where it can: a switch that came as a word would count as
    true whatever it says, and a file ``scan#1`` would be ``scan``.
    """
    for name in SETTINGS:
        value = config.get(name)
        if value is None and name in NEEDED and name in config:
            raise ValueError(f"{name} is null, but has to have a value: give one, or leave {name} out")
        if value is None or (isinstance(value, str) and value.startswith(("$", "@", "%"))):
            continue
        meant = typed(name, value)
        if type(meant) is not type(value) and not isinstance(value, os.PathLike):
            raise ValueError(f"{name} must be {meant!r}, not the text {value!r}: write --{name} {meant!r}")
        if runs_monai_bundle() and is_path(name):
            check_as_typed(name, str(value), sys.argv)
    device = config.get("device")
    if device is not None and not str(device).startswith("$"):
        check_device(str(device))


def check_guides_count(refine_steps: int, weights: Mapping[str, float] | None) -> None:
    """ValueError if labels or landmarks shall guide a refinement of no steps."""
    for term, name in (("labels", "use_labels"), ("landmarks", "use_points")):
        if term in (weights or {}) and not refine_steps:
            raise ValueError(
                f"{name}: {term} count in a refinement alone: give refine_steps above 0, or leave {name}, or their "
                "weight, out"
            )


def check_refining(refine_steps: int, settings: Mapping[str, Any]) -> None:
    """ValueError if a setting is given that a refinement alone reads, and there is none."""
    idle = [name for name in REFINING if not refine_steps and settings.get(name) not in (None, False)]
    if idle:
        raise ValueError(f"{idle[0]} counts in a refinement alone: give refine_steps above 0, or leave it out")


def steps_of(refine_steps: int | None, settings: Mapping[str, Any]) -> int:
    """The steps of a refinement, as many as usual if nobody says how many.

    Raises:
        ValueError: settings say it as well, or settings are given that a refinement alone reads, and there is none.
    """
    if refine_steps and none_or(settings.get("refine_levels")) is not None:
        raise ValueError(
            f"refine_steps {refine_steps} and refine_levels both say how many steps there are: give one of them"
        )
    usual = USUAL_STEPS * (2 if settings.get("use_labels") else 1)  # labels have all components move at once
    steps = usual if refine_steps is None else refine_steps
    check_refining(steps, settings)
    return steps


def registered_as(representation: Any, weights: Mapping[str, float] | None) -> Representation:
    """What is registered, checked before any work.

    Args:
        representation: the setting.
        weights: of the refinement's terms; None for the paper's objective.

    Raises:
        FileNotFoundError: if a network of somebody else is not there.
        ValueError: if the refinement would not look at what is given in the place of an ITN's output.
    """
    found = Representation.of(representation)
    check_there(found)
    if not found.is_itn and weights is not None and not set(weights) & {"structures", "labels"}:
        raise ValueError(
            f"refine_weights {dict(weights)} compare no representation, and {found.source} is given: add structures, "
            "or leave representation out"
        )
    return found


def check_similarity(given: Any, initial_alignment: str) -> None:
    """ValueError if a similarity is given for an initial alignment that compares no images."""
    if given is not None and initial_alignment not in COMPARING:
        raise ValueError(
            f"initial_similarity counts in {', '.join(COMPARING)} alone, and initial_alignment is "
            f"{initial_alignment!r}: leave it out"
        )


def is_path(name: str) -> bool:
    """Whether a setting is a file or a folder."""
    return KINDS.get(name) in (path, KINDS["dataset_dir"])


def check_as_typed(name: str, value: str, words: Sequence[str]) -> None:
    """ValueError if MONAI's command line has made another path of what was typed."""
    for index, word in enumerate(words):
        given = word.partition("=")[2] if word.startswith(f"--{name}=") else None
        given = words[index + 1] if word == f"--{name}" and index + 1 < len(words) else given
        if given is not None and given != value and given.strip("'\"") != value and not given.startswith("~"):
            raise ValueError(f"{name}: MONAI's command line takes {given!r} for {value!r}: quote it, \"'{given}'\"")


def check_device(name: str) -> None:
    """ValueError if this machine has no such device."""
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    elif kind == "mps":
        count = int(torch.backends.mps.is_available())
    else:
        count = torch.xpu.device_count() if kind == "xpu" else 1
    if int(index or 0) >= count:
        has = f"{count} {kind} device{'s' if count != 1 else ''}"
        raise ValueError(f"device {name!r} is not there: torch sees {has} on this machine; use --device cpu")


def given_settings() -> dict[str, Any]:
    """The network's settings in the config under evaluation, as they stand there; null is not given, "none" is."""
    parser = running(ConfigParser)
    config = {} if parser is None else parser.get()
    return {name: config[name] for name in NETWORK_SETTINGS if config.get(name) is not None}


def given(name: str, default: Any = None) -> Any:
    """An entry of the config under evaluation as it stands there, or a default where it is missing or null.

    ``@itn_def`` would be the network, where its JSON is wanted; and an entry that an overlay may bring, or not, cannot
    be referred to.
    """
    parser = running(ConfigParser)
    value = None if parser is None else parser.get().get(name)
    return default if value is None else none_or(value)


def inference_settings() -> dict[str, Any]:
    """What a training's config says of refinements, and its weights shall remember."""
    return {name: value for name in HOW_TO_REFINE if (value := given(name)) is not None}


def network_settings(**settings: Any) -> NetworkSettings:
    """The network's settings of a training, with those that a config may lack."""
    return NetworkSettings(**settings, **{name: value for name in FURTHER if (value := given(name)) is not None})


def trained_settings(file: str) -> NetworkSettings:
    """The network's settings that a checkpoint was trained with, and those of the config that do not contradict them.

    Without a checkpoint, as in a bundle that is still to be trained, those of the config alone.

    Args:
        file: checkpoint.

    Raises:
        ValueError: if the config contradicts the weights, naming both.
    """
    given = given_settings()
    size = given.pop("spatial_size", AUTO)  # of the grid at inference, which the weights do not depend on
    weights = read_weights(file) if Path(file).expanduser().is_file() else None
    settings = None if weights is None else weights.settings
    if weights is None or settings is None:
        return NetworkSettings(**given | ({} if size in (AUTO, IMAGE) else {"spatial_size": size}))
    if weights.description.get("format") == 1:  # which did not say the networks' definitions
        definitions = {name: given.pop(name) for name in ("itn_def", "stn_def") if name in given}
        settings = replace(settings, **definitions)
    return settings.overridden(given, str(weights.file))


def aligning(settings: NetworkSettings, network: nn.Module, checkpoint: Any = None) -> nn.Module | None:
    """The network where the initial alignment needs it; ``checkpoint`` is what was loaded into it before."""
    return network if settings.initial_alignment == STRUCTURES else None


def run_folder(run_name: str, loss: str | None, transformation: str | None) -> str:
    """The folder of a training run, ``runs/NAME_LOSS_TRANSFORMATION``.

    To evaluate a run its name is enough, as long as there is one of that name.

    Raises:
        ValueError: if there are several and loss or transformation are not given.
    """
    if loss is not None and transformation is not None:
        return f"runs/{run_name}_{loss}_{transformation}"
    folders = sorted(Path("runs").glob(f"{run_name}_{loss or '*'}_{transformation or '*'}/models/{BEST}"))
    names = [file.parts[1] for file in folders if RUN_SUFFIX.fullmatch(file.parts[1].removeprefix(run_name))]
    if len(names) > 1:
        raise ValueError(f"run_name {run_name!r} is that of several runs, {names}: give loss and transformation")
    return f"runs/{names[0]}" if names else f"runs/{run_name}"
