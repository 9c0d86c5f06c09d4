"""The bundle's training and evaluation, with the settings of a data set over its own configs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import run

from istn_monai.folders import BEST, bundle_folder, find_weights
from istn_monai.io.datalist import existing, read_json
from istn_monai.io.paths import absolute
from istn_monai.pace import OUTPUT
from istn_monai.weights import own_settings
from istn_monai.workflow.distributed import world_size
from istn_monai.workflow.learn2reg import evaluated_labels
from istn_monai.workflow.settings import steps_of

MONAI_LOGGERS = ("monai.bundle.scripts", "monai.bundle.workflows")
#: what MONAI warns of in each run of any bundle
KNOWN = "parsing config_file|Detected deprecated name 'optional_packages_version'"


def overlay(config: str | Path | None) -> list[str]:
    """Config files that come after the bundle's own: one, or none."""
    settings_in(config)
    return [] if config is None else [str(absolute(config))]


def settings_in(config: str | Path | None) -> dict[str, Any]:
    """What a JSON config says; nothing without a config, or of one in another format of MONAI's."""
    if config is None:
        return {}
    path = absolute(config)
    if not path.is_file():
        raise FileNotFoundError(f"config: no such file: {path}")
    return read_json(path, "config", "a JSON object of settings") if path.suffix == ".json" else {}


def checkpoint_of(
    model: str | Path | None, config: str | Path | None, bundle_root: str | Path | None, settings: Mapping[str, Any]
) -> Path | None:
    """The checkpoint that a registration takes, where this is known before the bundle's configs are; else None."""
    given = settings_in(config) | dict(settings)
    if model is not None and "checkpoint_file" not in settings:
        return find_weights(model)
    folder = given.get("ckpt_dir") or bundle_folder(bundle_root) / "models"
    file = str(given.get("checkpoint_file") or Path(folder) / BEST)
    known = not file.startswith(("$", "@")) and Path(file).expanduser().is_file()
    return Path(file).expanduser() if known else None


def settings_of_weights(
    file: str | Path | None, refine_steps: int | None, config: str | Path | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The checkpoint's file, and how its weights say that they are used where neither a config nor a user says.

    Args:
        file: the checkpoint; None for nothing.
        refine_steps: of the refinement; a number takes the place of the weights' own levels.
        config: JSON file with further settings; of one in another format nothing is known here.
        settings: of the user.
    """
    if file is None:
        return {}
    given = settings_in(config) | dict(settings)
    known = {name: value for name, value in given.items() if not str(value).startswith(("$", "@"))}
    others = given if refine_steps is None else {*given, "refine_levels"}
    own = own_settings(file, refine_steps != 0, known)
    return {"checkpoint_file": str(file)} | {name: value for name, value in own.items() if name not in others}


def run_bundle(bundle: Path, run_id: str, config_file: list[str], **settings: Any) -> None:
    """Runs a bundle as ``python -m monai.bundle run`` does; what MONAI says of each bundle is shown with --verbose."""
    configs = bundle / "configs"
    files = {"meta_file": str(configs / "metadata.json"), "logging_file": str(configs / "logging.conf")}
    with warnings.catch_warnings():
        if os.environ.get(OUTPUT) != "verbose":
            warnings.filterwarnings("ignore", message=KNOWN)
            for name in MONAI_LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
        run(run_id=run_id, config_file=config_file, **files, **settings)


def train_network(bundle: Path, config: str | Path | None, dry_run: bool = False, **settings: Any) -> None:
    """Runs the bundle's training.

    Args:
        bundle: the bundle's folder.
        config: JSON file with the settings of a data set, such as a plan.
        dry_run: only check, and say what it would do.
        settings: overrides.
    """
    names = ["train"] + ["multi_gpu_train"] * (world_size() > 1)
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    settings |= {"run": ["$workflow.dry_run()"]} if dry_run else {}
    run_bundle(bundle, "training", files[:1] + overlay(config) + files[1:], **settings)


def evaluate_datalist(
    bundle: Path,
    datalist: str | Path,
    output_dir: str | Path,
    checkpoint_file: str | Path,
    refine_steps: int | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> None:
    """Runs the bundle's evaluation on annotated pairs.

    Args:
        bundle: the bundle's folder.
        datalist: JSON file of pairs.
        output_dir: folder for the results.
        checkpoint_file: weights.
        refine_steps: number of steps of test-time refinement; 0 for none; None as many as the weights say, or 25.
        config: JSON file with further settings.
        settings: overrides.
    """
    steps = steps_of(refine_steps, settings)
    names = ["train", "evaluate", *(["multi_gpu_evaluate"] if world_size() > 1 else [])]
    files = [str(bundle / "configs" / f"{name}.json") for name in names] + overlay(config)
    path = existing(datalist)
    if settings.get("learn2reg") and config is None:
        split = settings.get("evaluated_split") or "testing"
        settings.setdefault("evaluated_labels", evaluated_labels(path, split))
    given = {"dataset_dir": str(path.parent), "data_list_file": path.name}
    given |= settings_of_weights(checkpoint_file, refine_steps, config, settings)
    results = {"output_dir": str(output_dir), "refine_steps": steps}
    run_bundle(bundle, "evaluation", files, **given | settings | results)
