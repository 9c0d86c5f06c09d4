"""The bundle through MONAI's own runner: overrides that cannot be meant."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common import configs

from reliability_cases.files import (
    LABELED,
    ML,
    TINY,
    F,
    M,
    absent,
    both,
    changed,
    content,
    datalist,
    flipped_bit,
    network,
    present,
    registered,
    training_pairs,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import CANARY, Case

KIND = "bundle"


def run(what: str, names: tuple[str, ...], given: dict[str, str], *options: str) -> tuple[str, ...]:
    """The command, without ``python -m monai.bundle``."""
    files = str(configs(*names)).replace(" ", "")
    return ("run", what, "--config_file", files, *(f"--{key}={value}" for key, value in given.items()), *options)


def inference(*options: str, steps: bool = False, **changes: str | None) -> tuple[str, ...]:
    """A small inference, or refinement."""
    given = {
        "moving_image": M,
        "fixed_image": F,
        "output_dir": "out",
        "checkpoint_file": TINY,
        "qa": "False",
        "device": "cpu",
    }
    kept = {key: value for key, value in (given | changes).items() if value is not None}
    names = ("inference", "refine") if steps else ("inference",)
    return run("refinement" if steps else "inference", names, ({"refine_steps": "1"} if steps else {}) | kept, *options)


def evaluation(*options: str, **changes: str) -> tuple[str, ...]:
    """A small evaluation."""
    given = {
        "dataset_dir": ".",
        "data_list_file": "pairs.json",
        "checkpoint_file": TINY,
        "output_dir": "ev",
        "qa": "False",
        "device": "cpu",
    }
    return run("evaluation", ("train", "evaluate"), given | changes, *options)


def training(*options: str, **changes: str) -> tuple[str, ...]:
    """A small training."""
    given = {
        "dataset_dir": ".",
        "data_list_file": "train.json",
        "spatial_size": "[12,12,12]",
        "spacing": "2",
        "transformation": "affine",
        "max_epochs": "1",
        "output_dir": "run",
        "device": "cpu",
    }
    return run("training", ("train",), given | changes, *options)


def bad(name: str, command: tuple[str, ...], *words: str, make: Callable[[], None] = lambda: None) -> Case:
    """Must end with a line that has one of the words."""
    return Case(KIND, name, command, Expected("fails", words), make, way="bundle")


def cases() -> Iterator[Case]:
    """All of them."""
    yield from good()
    yield from files()
    yield from overrides()
    yield from trainings()


def good() -> Iterator[Case]:
    """What must work."""
    works = Expected("works", ("output_dir", "refine_steps", "qa"))
    yield Case(KIND, "inference", inference(), works, check=registered(), way="bundle")
    yield Case(KIND, "refinement", inference(steps=True), works, check=registered(), way="bundle")
    yield Case(
        KIND, "inference with a label", inference(moving_label=ML), works, check=registered(label=ML), way="bundle"
    )
    yield Case(KIND, "evaluation", evaluation(), works, datalist(LABELED), present("ev/evaluation.json"), way="bundle")
    yield Case(KIND, "training", training(), works, training_pairs(), present("run/models/model.pt"), way="bundle")
    for word in ("false", "no", "0", "off"):
        check = both(registered(), absent("out/qa.png", "out/view.html"))
        yield Case(KIND, f"inference --qa {word}", inference(qa=word), works, check=check, way="bundle")
    for name in ("2024", "1e3", "True", "a b", "Ü 海", "[1,2]"):
        yield Case(
            KIND,
            f"inference --output_dir {name}",
            inference(output_dir=name),
            Expected("either", ("output_dir",)),
            check=registered(name),
            way="bundle",
        )


def files() -> Iterator[Case]:
    """Files that cannot be used."""
    nan = changed(lambda old: np.where(old > 500, np.nan, old).astype(np.float32))
    for name, make in {
        "nan": nan,
        "constant": changed(np.zeros_like),
        "1e300": changed(lambda old: old.astype(float) * 1e300),
        "truncated": content(M, lambda old: old[:2000]),
        "without its checksum": content(M, lambda old: old[:-8]),
        "a bit flip in the checksum": content(M, flipped_bit(-6)),
        "text": content(M, "text"),
        "missing": lambda: os.remove(M),
        "4-D": changed(lambda old: np.stack([old, old], -1)),
        "complex": changed(lambda old: old.astype(np.complex64)),
        "2-D": changed(lambda old: old[:, :, 9]),
    }.items():
        yield bad(f"inference, image {name}", inference(), M, "moving_image", make=make)
    for name, make in {
        "another size": changed(lambda old: old[:-1], ML),
        "fractions": changed(lambda old: (0.5 * old).astype(np.float32), ML),
        "the image": lambda: Path(ML).write_bytes(Path(M).read_bytes()),
        "text": content(ML, "text"),
        "missing": lambda: os.remove(ML),
    }.items():
        yield bad(f"inference, label {name}", inference(moving_label=ML), ML, "moving_label", make=make)
    for name, make in {
        "empty": content(TINY, b""),
        "truncated": content(TINY, lambda old: old[:5000]),
        "text": content(TINY, "text"),
        "missing": lambda: os.remove(TINY),
        "of nan": lambda: network(TINY, (16, 16, 16), lambda state: [value.fill_(np.nan) for value in state.values()]),
    }.items():
        for command in (inference(), inference(steps=True), evaluation()):
            yield bad(
                f"{command[1]}, weights {name}", command, TINY, "checkpoint_file", make=both(datalist(LABELED), make)
            )
    for name, make in {
        "not JSON": content("pairs.json", "{"),
        "a list": content("pairs.json", "[]"),
        "without the split": datalist(LABELED, split="training"),
        "missing": lambda: None,
        "with a missing file": datalist(LABELED | {"fixed_label": "none.nii.gz"}),
    }.items():
        yield bad(
            f"evaluation, datalist {name}", evaluation(), "pairs.json", "datalist", "none.nii.gz", "testing", make=make
        )


def overrides() -> Iterator[Case]:
    """Settings of inference and evaluation."""
    for name, wrong in {
        "device": ("gpu", "cuda:99", "7"),
        "spatial_size": ("0", "[16,16]", "large", "[16,16,-1]"),
        "initial_alignment": ("guess", "0"),
        "qa": ("maybe", "2", "[]"),
        "loss": ("e",),
        "transformation": ("bspline",),
        "spacing": ("1",),
        "moving_image": ("", "7", "[m.nii.gz]"),
        "fixed_image": ("none.nii.gz",),
        "output_dir": (M, "/proc/nothing"),
        "settings": ("7",),
    }.items():
        for value in wrong:
            yield bad(f"inference --{name} {value!r}", inference(**{name: value}), name)
    for name in ("moving_image", "fixed_image"):
        yield bad(f"inference without {name}", inference(**{name: None}), name)
    for value in ("-1", "1.5", "many", "nan"):
        yield bad(f"refinement --refine_steps {value!r}", inference(steps=True, refine_steps=value), "refine_steps")
    for value in ("-1", "nan", "fast", "0"):
        yield bad(
            f"refinement --refine_learning_rate {value!r}",
            inference(steps=True, refine_learning_rate=value),
            "refine_learning_rate",
        )
    for target in ("itn", "0"):
        yield bad(f"refinement --inferer#target {target}", inference("--inferer#target", target, steps=True), "target")
    for name in ("refine_step", "outputdir", "moving_lable", "max_epochsss", "checkpoint"):
        yield bad(f"inference --{name}", inference(f"--{name}", "1"), name)
    for name, wrong in {
        "evaluated_split": ("test", "0"),
        "evaluated_labels": ("[[0]]", "x", "[[77]]"),
        "refine_steps": ("-1", "x"),
        "seed": ("x",),
    }.items():
        for value in wrong:
            yield bad(f"evaluation --{name} {value!r}", evaluation(**{name: value}), name, make=datalist(LABELED))
    yield bad(
        "inference, output_dir is the inputs' folder",
        inference(output_dir=".", moving_image="warped.nii.gz"),
        "warped.nii.gz",
        make=lambda: os.rename(M, "warped.nii.gz"),
    )


def trainings() -> Iterator[Case]:
    """Settings of a training; none may begin one."""
    make = training_pairs()
    for name, wrong in {
        "max_epochs": ("0", "-1", "1.5", "many"),
        "batch_size": ("0", "-1", "1.5"),
        "learning_rate": ("-1", "nan", "fast"),
        "val_interval": ("0", "-1"),
        "num_workers": ("-1", "two"),
        "loss": ("x",),
        "transformation": ("rigid",),
        "soi_labels": ("[[0]]", "x", "[[99]]"),
        "spacing": ("0", "nan"),
        "spatial_size": ("[2,2,2]", "[16,16]"),
        "augment": ("maybe", "2"),
        "training_dtype": ("float8",),
        "similarity": ("x",),
        "seed": ("x",),
        "in_channels": ("2", "0"),
        "device": ("gpu",),
    }.items():
        for value in wrong:
            yield bad(f"training --{name} {value!r}", training(**{name: value}), name, make=make)
    yield bad("training --max_epoch", training("--max_epoch", "3"), "max_epoch", make=make)
    yield bad("training, a missing datalist", training(data_list_file="none.json"), "none.json", "data_list_file")
    yield bad("training, a missing folder", training(dataset_dir="none"), "none", "dataset_dir")
    expression = f"$__import__('os').system('touch {CANARY}')"

    def infected():
        return Path("train.json").write_text(
            json.dumps({"training": [LABELED | {"moving_image": expression}], "validation": [LABELED]}),
            encoding="utf-8",
        )

    yield bad("training, a path that is an expression", training(), "train.json", "training[0]", CANARY, make=infected)
    huge = both(make, changed(lambda old: old.astype(np.float64) * 1e300))
    yield bad("training, 1e300", training(), M, "training[0]", make=huge)
    yield bad(
        "training, a nan loss by the rate",
        training(learning_rate="1e30", batch_size="2", max_epochs="3"),
        "learning_rate",
        "loss",
        "finite",
        make=make,
    )
