"""Folders of data, and of trainings, that cannot be used as they are."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from reliability_cases.checkpoints import Payload
from reliability_cases.files import (
    both,
    content,
    copied,
    flipped_bit,
    present,
    save,
    subjects,
    train,
    training_pairs,
    voxels,
)
from reliability_cases.judge import Expected
from reliability_cases.outputs import earlier
from reliability_cases.runner import Case

KIND = "folders"
PLAN = ("plan", "data", "--output", "made.json")
CASE = "data/images/case_1.nii.gz"
LABEL = "data/labels/case_1.nii.gz"


def bad(
    name: str, make: Callable[[], None], *words: str, commands: tuple[tuple[str, ...], ...] = (PLAN,)
) -> Iterator[Case]:
    """A folder that must be named, or a file in it."""
    for command in commands:
        yield Case(KIND, f"{name}, {command[0]}", command, Expected("fails", (*words, "data")), make)


def spoiled(change: Callable[[], None], number: int = 6) -> Callable[[], None]:
    """A good data set, and then one thing wrong."""
    return both(lambda: subjects(number), change)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from folders()
    yield from odd()
    yield from caches()
    yield from runs()


def folders() -> Iterator[Case]:
    """Data sets on which no network can be trained."""
    everywhere = (PLAN, train(data="data"))
    yield from bad("empty", lambda: os.mkdir("data"), commands=everywhere)
    yield from bad("no labels", lambda: subjects(6, labels=False), "labels", commands=everywhere)
    yield from bad("no images", spoiled(lambda: os.rename("data/images", "data/pictures")), "images")
    yield from bad("an empty folder of images", lambda: os.makedirs("data/images"), "images")
    yield from bad(
        "an empty folder of labels", lambda: (subjects(6, labels=False), os.mkdir("data/labels"))[0], "labels"
    )
    for number in (1, 2, 5):
        yield from bad(f"{number} subjects", lambda n=number: subjects(n), "subject")
    spoil = {
        "a label is missing": lambda: os.remove(LABEL),
        "a label on another grid": lambda: save(voxels(LABEL)[:-1], LABEL),
        "a 2-D image": lambda: save(voxels(CASE)[:, :, 9], CASE),
        "a 4-D image": lambda: save(np.stack([voxels(CASE)] * 2, -1), CASE),
        "an image of nan": lambda: save(voxels(CASE) * np.nan, CASE),
        "a constant image": lambda: save(voxels(CASE) * 0, CASE),
        "an image of 1e300": lambda: save(voxels(CASE).astype(float) * 1e300, CASE),
        "an empty label": lambda: save(voxels(LABEL) * 0, LABEL),
        "a label of fractions": lambda: save((voxels(LABEL) * 0.4).astype(np.float32), LABEL),
        "the image as label": copied(CASE, LABEL),
        "a text file as image": content(CASE, "text"),
        "an empty file as label": content(LABEL, b""),
        "a truncated image": content(CASE, lambda old: old[: len(old) // 2]),
        "an image without its checksum": content(CASE, lambda old: old[:-8]),
        "a broken link": lambda: (os.remove(CASE), os.symlink("none", CASE))[0],
        "a folder as image": lambda: (os.remove(CASE), os.mkdir(CASE))[0],
        "two images of one subject": lambda: save(voxels(CASE), "data/images/case_1.nii"),
        "images and imagesTr": lambda: os.mkdir("data/imagesTr"),
        "a pairs.json that is a list": content("data/pairs.json", "[]"),
        "a pairs.json of missing files": content(
            "data/pairs.json", json.dumps({"training": [{"moving_image": "x", "fixed_image": "y"}], "validation": []})
        ),
    }
    for name, change in spoil.items():
        yield from bad(name, spoiled(change), "case_1", "pairs.json", "imagesTr", "label")
    two = spoiled(lambda: save(voxels(CASE)[:, :, 9], CASE))
    yield from bad("2-D among 3-D", two, "case_1", commands=(train(data="data"),))


def odd() -> Iterator[Case]:
    """Data sets that are fine."""
    plan = Expected("works", ("data",))
    made = present("made.json")
    for name, change in {
        "as it is": lambda: None,
        "with hidden files": content("data/images/.DS_Store", "x"),
        "with hidden images": content("data/images/._case_1.nii.gz", "x"),
        "with notes": content("data/images/notes.txt", "x"),
        "a label more than images": lambda: save(voxels(LABEL), "data/labels/x.nii.gz"),
        "reached by a link": lambda: (os.rename("data", "real"), os.symlink("real", "data"))[0],
        "images by links": lambda: (os.rename("data/images", "data/real"), os.symlink("real", "data/images"))[0],
        "a folder among the images": lambda: os.mkdir("data/images/old"),
    }.items():
        yield Case(KIND, f"plan, {name}", PLAN, plan, spoiled(change), made)
    blanks = both(lambda: subjects(6, "my data"))
    yield Case(KIND, "plan, a name with a blank", ("plan", "my data", "--output", "made.json"), plan, blanks, made)
    sizes = spoiled(
        lambda: (save(np.pad(voxels(CASE), 3, mode="edge"), CASE), save(np.pad(voxels(LABEL), 3), LABEL))[0]
    )
    yield Case(KIND, "plan, sizes that differ", PLAN, plan, sizes, made)
    yield Case(KIND, "train, a folder", train(data="data"), plan, lambda: subjects(6), present("run/models/model.pt"))


def caches() -> Iterator[Case]:
    """A cache that is not as it was: it is made anew, and nothing in it is executed."""
    first, second = train("--cache_dir=cache"), train("--cache_dir=cache", "--output_dir=run2")

    def spoil(change: Callable[[bytes], bytes]) -> Callable[[], None]:
        def make() -> None:
            files = [file for file in Path("cache").rglob("*") if file.is_file()]
            if not files:
                raise RuntimeError("the cache is empty")
            for file in files:
                file.write_bytes(change(file.read_bytes()))

        return both(training_pairs(), earlier(first), make)

    for name, change in {
        "truncated": lambda old: old[: len(old) // 2],
        "empty": lambda old: b"",
        "text": lambda old: b"text",
        "flipped": flipped_bit(0.5),
        "that runs code": lambda old: pickle.dumps(Payload()),
    }.items():
        ending = Expected("either", ("cache",))
        yield Case(
            KIND,
            f"a cache {name}",
            second,
            ending,
            spoil(change),
            present("run2/models/model.pt"),
            replaces=("cache/*",),
        )
    yield Case(
        KIND,
        "a cache_dir that is a file",
        train("--cache_dir=m.nii.gz"),
        Expected("fails", ("cache_dir", "m.nii.gz")),
        training_pairs(),
    )
    yield Case(
        KIND,
        "a cache_dir in /proc",
        train("--cache_dir=/proc/x"),
        Expected("fails", ("cache_dir", "/proc/x")),
        training_pairs(),
    )


def runs() -> Iterator[Case]:
    """Folders of trainings."""
    trained = both(training_pairs(), earlier(train()))
    longer = train("--max_epochs=2")
    logs = ("run/tensorboard/*", "run/training.*", "*_plan.json")
    for name, change in {
        "truncated": lambda old: old[: len(old) // 2],
        "empty": lambda old: b"",
        "text": lambda old: b"text",
        "code": lambda old: pickle.dumps(Payload()),
    }.items():
        make = both(trained, content("run/models/last.pt", change))
        yield Case(KIND, f"going on, last.pt {name}", longer, Expected("fails", ("last.pt",)), make, replaces=logs)
    every = ("run/*", "*_plan.json")
    yield Case(
        KIND, "going on to 2 epochs", longer, Expected("works"), trained, present("run/models/model.pt"), replaces=every
    )
    lost = both(trained, lambda: os.remove("run/models/last.pt"))
    yield Case(
        KIND, "going on without last.pt", longer, Expected("fails", ("last.pt", "model.pt")), lost, replaces=logs
    )
    for name, option in {
        "batch_size": "2",
        "learning_rate": "0.01",
        "loss": "u",
        "spacing": "3",
        "seed": "7",
        "augment": "False",
        "spatial_size": "[16,16,16]",
    }.items():
        yield Case(
            KIND,
            f"going on with another {name}",
            train("--max_epochs=2", f"--{name}={option}"),
            Expected("fails", (name,)),
            trained,
            replaces=logs,
        )
    other = both(trained, training_pairs(moving_image="f.nii.gz", moving_label="fl.nii.gz"))
    yield Case(
        KIND, "going on with other data", longer, Expected("fails", ("datalist", "train.json")), other, replaces=logs
    )
    evaluate = ("evaluate", "--model", "run", "--refine_steps", "0", "--qa", "False", "--device", "cpu")
    for name, text in {
        "not JSON": "{",
        "empty": "",
        "a list": "[]",
        "without a datalist": "{}",
        "of a missing datalist": '{"datalist": "/none.json"}',
    }.items():
        make = both(trained, content("run/run.json", text))
        yield Case(
            KIND, f"evaluate, run.json {name}", evaluate, Expected("fails", ("run.json", "none.json", "datalist")), make
        )
    gone = both(trained, lambda: os.remove("run/run.json"))
    yield Case(KIND, "evaluate, no run.json", evaluate, Expected("fails", ("datalist", "run")), gone)
    yield Case(
        KIND,
        "a first step that fails leaves no last.pt",
        train("--learning_rate=1e30", "--max_epochs=3"),
        Expected("fails", ("learning_rate", "loss", "finite")),
        training_pairs(),
        no_last,
    )
    yield Case(
        KIND,
        "two classes of labels asked, one there",
        train("--soi_labels=[[1],[9]]"),
        Expected("fails", ("soi_labels",)),
        training_pairs(),
    )


def no_last() -> None:
    """AssertionError if there is a last.pt."""
    assert not Path("run/models/last.pt").exists(), "last.pt is there"
