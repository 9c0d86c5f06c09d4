"""What must hold before a training, an evaluation or an inference begins: one call for each, first in ``run``.

The checks come from the cheapest to the dearest, and each resolves the entries of the config that it needs. Under
``python -m monai.bundle`` a foreseen failure ends the program in one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from istn_monai.folders import write_run
from istn_monai.io.datalist import Item
from istn_monai.io.paths import check_apart, check_can_be_written, check_output_dir
from istn_monai.levels import USUAL_STEPS
from istn_monai.moved_points import check_points as check_moved_points
from istn_monai.network_definitions import own_networks
from istn_monai.network_settings import NetworkSettings, none_or
from istn_monai.processors import keep_memory
from istn_monai.transforms.checks import check_soi_labels, reads_labels
from istn_monai.transforms.keys import POINT_KEYS
from istn_monai.transforms.landmarks import check_soi_points
from istn_monai.weights import read_weights
from istn_monai.workflow.checkpoints import Checkpoints
from istn_monai.workflow.console import calm, device_in_words, note, say, way_of
from istn_monai.workflow.datalist_checks import check_datalist, check_points
from istn_monai.workflow.datasets import as_pairs, is_hosted, is_whole
from istn_monai.workflow.distributed import check_started, rank
from istn_monai.workflow.errors import one_line
from istn_monai.workflow.evaluation import Evaluation
from istn_monai.workflow.host_training import publish
from istn_monai.workflow.how_to import write_how_to
from istn_monai.workflow.pair_files import check_used
from istn_monai.workflow.recipe import check_epochs
from istn_monai.workflow.results import SavePairHandler, already, check_pair_files, pair_folder
from istn_monai.workflow.run_lock import hold, released_on_error
from istn_monai.workflow.settings import (
    check_guides_count,
    check_settings,
    given,
    guided_weights,
    registered_as,
    running,
)

SMALLEST = 4  # voxels of a grid that a network is trained on
IN_FORCE = ("loss", "transformation", "spatial_size", "spacing", "soi_labels", "soi_points", "initial_alignment")
#: what else counts in a training, and where it stands in the config
TRAINED_WITH = {
    **{name: name for name in ("max_epochs", "batch_size", "learning_rate", "training_dtype", "augment")},
    "contrast": "train#contrasts#name",
    "initial_weights": "train#initial_weights",
}
DEFAULT_DATALIST = "pairs.json"  # of train.json


def resolver() -> Callable[[str], Any]:
    """What gives the value of an entry of the config under evaluation."""
    parser = running(ConfigParser)
    if parser is None:
        raise RuntimeError("this is for the configs of the bundle: call it from an expression of one")
    return parser.get_parsed_content


def seed_run(seed: int) -> None:
    """Checks the settings, then seeds all generators: each of several processes in its own way."""
    with one_line():
        check_settings()
        set_determinism(seed=seed + rank())


def run_evaluation(evaluation: Evaluation) -> None:
    """Runs an evaluation."""
    with one_line():
        evaluation.run()


def begin() -> None:
    """Checks the settings; then what other libraries say, and memory, are as a command wants them."""
    check_settings()
    calm()
    keep_memory()


def check_training() -> None:
    """Raises an error, before any work, for a training that would go wrong; its folder is then this process's alone."""
    with one_line(), released_on_error():
        value = resolver()
        lines = checked_training(value)
        check_output_dir(value("ckpt_dir"), "ckpt_dir")
        if rank() == 0:  # of several processes the first one writes
            hold(value("output_dir"))
            hold(value("ckpt_dir"))
        there(value)
        value("checkpoints")
        training = value("train#dataset#data")
        if rank() == 0 and not is_hosted(training):
            write_run(value("output_dir"), training.file)
        for line in lines:
            note(line, value("output_dir"))
        value("train#trainer")


def dry_run() -> None:
    """Checks a training, and says what it would do; nothing is written."""
    with one_line():
        value = resolver()
        checked_training(value, writes=False)
        for name in ("output_dir", "ckpt_dir"):
            check_can_be_written(value(name), name)
        done = there(value).done
        epochs = value("max_epochs")
        if done >= epochs:
            say(f"istn-monai: would do nothing: {done} of {epochs} epochs are done; give more max_epochs")
            return
        steps = math.ceil(len(value("train#dataset#data")) / value("batch_size"))
        what = f"go on after epoch {done}, to" if done else "train"
        say(f"istn-monai: would {what} {epochs} epochs of {steps} steps")
        say(f"istn-monai: and write to {value('output_dir')}")


def there(value: Callable[[str], Any]) -> Checkpoints:
    """The training that is there, looked at before the optimizer of this one, which prepares all pairs."""
    value("train#loss")
    check_epochs(value("train#itn_epochs"), value("max_epochs"), value("settings"))
    network, training = value("network_def"), value("checkpoints#training")
    return Checkpoints(value("ckpt_dir"), network, value("settings"), training, None, None)


def checked_training(value: Callable[[str], Any], writes: bool = True) -> list[str]:
    """Checks settings and data of a training; the lines that say what these are, which are printed first."""
    begin()
    check_started("multi_gpu_train.json")
    check_data_is_read(value)
    settings = value("settings")
    if min(settings.spatial_size) < SMALLEST:
        raise ValueError(f"spatial_size must be at least {SMALLEST} along each axis, got {settings.spatial_size}")
    check_objects(value, ("similarity", "regularization"))
    check_soi_points(settings.soi_points, value("points_map"), value("points_width"))
    if writes:
        check_output_dir(value("output_dir"))
    training, validation = value("train#dataset#data"), value("validate#dataset#data")
    data = {"training": as_pairs(training), "validation": as_pairs(validation, training)}
    pairs = f"{len(data['training'])} pairs, {len(data['validation'])} for validation,"
    lines = announcement("training", training, pairs, settings, value("device"))
    known = {name: value(entry) for name, entry in TRAINED_WITH.items()}
    lines.append("istn-monai: " + ", ".join(f"{name} {own}" for name, own in known.items() if own is not None))
    for line in lines:
        say(line)
    check_datalist(
        data, settings.spatial_dims, settings.soi_labels, in_channels=settings.in_channels,
        read_labels=reads_labels(settings.soi_labels), nifti_frame=given("nifti_frame"),
    )  # fmt: skip
    points = {"training": training, "validation": validation}
    check_points(points, settings.spatial_dims, settings.soi_points, given("nifti_frame"))
    return lines


def check_objects(value: Callable[[str], Any], names: Sequence[str]) -> None:
    """ValueError naming the setting whose JSON makes nothing that can be called."""
    for name in names:
        try:
            made = none_or(value(name))
        except Exception as error:
            raise ValueError(f"{name} is not what MONAI can make: {error}") from error
        if made is not None and not callable(made):
            raise ValueError(f"{name} must be a loss, which is called with tensors, got {made!r}")


def check_evaluation() -> None:
    """Raises an error, before any work, for an evaluation that would go wrong."""
    with one_line():
        begin()
        check_started("multi_gpu_evaluate.json")
        value = resolver()
        check_data_is_read(value)
        check_output_dir(value("output_dir"))
        value("checkpoint")
        registered_as(value("representation"), guided_weights(value("refine_weights")))
        settings, labels, split = value("settings"), value("read_labels"), value("evaluated_split")
        data = value("evaluate#dataset#data")
        have_points = all(key in item for item in data for key in POINT_KEYS)
        check_soi_labels(labels, [["*"]] if have_points else settings.soi_points, compared())
        for line in announcement(f"evaluating {split}", data, f"{len(data)} pairs", settings, value("device")):
            say(line)
        say(f"istn-monai: {' and '.join(map(way_of, value('evaluate#inferers').values()))}")
        say(f"istn-monai: weights {value('checkpoint_file')}")
        check_datalist(
            {split: data}, settings.spatial_dims, labels, in_channels=settings.in_channels,
            read_labels=reads_labels(labels), nifti_frame=given("nifti_frame"),
        )  # fmt: skip
        value("evaluate#evaluation")


def compared() -> str:
    """The setting that says which labels an evaluation compares."""
    return "soi_labels" if given("evaluated_labels") is None else "evaluated_labels"


def check_inference() -> None:
    """Raises an error, before any work, for an inference that would go wrong."""
    with one_line():
        begin()
        value = resolver()
        settings = value("settings")
        if not isinstance(settings, NetworkSettings):
            raise ValueError(f"settings must be those of a network, as the config has them, got {settings!r}")
        files: Mapping[str, Any] = {"moving_image": None, "fixed_image": None} | value("pair")
        check_pair_files(value("output_dir"), **files)
        representation = registered_as(value("representation"), value("term_weights"))
        check_used(files, value("term_weights"), representation.source)
        check_moved_points({key: files[key] for key in POINT_KEYS if key in files}, settings.spatial_dims)
        refiner = getattr(value("inferer"), "refiner", None)
        steps = getattr(refiner, "steps", 0)
        check_guides_count(steps, value("term_weights"))
        if not (value("refine_steps") and steps):
            check_one_pass()
        check_apart(pair_folder(value("output_dir")).files, [("checkpoint_file", value("checkpoint_file"))])
        value("evaluator")


def check_one_pass() -> None:
    """ValueError if the config under evaluation, of no refinement, says more of one than the bundle's own defaults."""
    asked = {name: given(name) for name in ("refine_levels", "symmetric", "refine_steps", "refine_learning_rate")}
    defaults = (None, False, 0, USUAL_STEPS)
    if idle := [name for name, own in asked.items() if own not in defaults and not str(own).startswith("$")]:
        raise ValueError(
            f"{idle[0]} counts in a refinement alone, and inference is one pass: run refinement, refine.json after "
            "inference.json, or leave it out"
        )


def infer(evaluator: Engine, saver: SavePairHandler, pair: Mapping[str, str], checkpoint_file: str) -> None:
    """Registers the pair of an inference, unless its result is there already.

    Args:
        evaluator: with ``saver`` among its handlers.
        saver: writes the result.
        pair: the files.
        checkpoint_file: the weights.

    Raises:
        FileExistsError: if there is a result of other files, weights or options.
    """
    with one_line(), saver.results.locked():
        read_weights(checkpoint_file).load_into(saver.network)  # whose hash is compared
        if saver.finished(pair):
            print(already(saver))
        else:
            evaluator.run()


def check_data_is_read(value: Callable[[str], Any]) -> None:
    """ValueError if a datalist is named that is not read: without a dataset_dir the synthetic set is made."""
    name = value("data_list_file")
    if none_or(value("dataset_dir")) is None and name != DEFAULT_DATALIST and not is_whole(name):
        raise ValueError(
            f"data_list_file is {name!r} but dataset_dir is not set, so the synthetic set would be made: give "
            "dataset_dir, or the datalist's whole path, or the overlay that sets it after train.json"
        )


def in_force(settings: NetworkSettings) -> str:
    """The settings that count, in a line."""
    values = {name: getattr(settings, name) for name in IN_FORCE} | own_networks(settings)
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def announcement(what: str, data: Sequence[Item], pairs: str, settings: NetworkSettings, device: Any) -> list[str]:
    """Which data, device and settings are used, so that a forgotten one is seen at once."""
    source = "data that the host gives" if is_hosted(data) else f"{data.file}"  # type: ignore[attr-defined]
    return [
        f"istn-monai: {what}: {pairs} of {source}, on {device_in_words(torch.device(device))}",
        f"istn-monai: {in_force(settings)}",
    ]


def finish_training(checkpoints: Any, data: Sequence[Item], bundle_root: str) -> None:
    """Says where the best network is, and puts it into the served bundle if a host gave the data."""
    if rank() > 0:
        return
    lines = [checkpoints.report()]
    if is_hosted(data):
        lines.append(publish(checkpoints, bundle_root))
    else:
        lines.append(f"how to register with it: {write_how_to(checkpoints)}")
    for line in lines:
        print(line)
        note(line, resolver()("output_dir"))
