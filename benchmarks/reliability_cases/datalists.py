"""Datalists that are none, or name what is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from reliability_cases.files import (
    FL,
    LABELED,
    ML,
    PAIR,
    F,
    M,
    as_json,
    both,
    content,
    copied,
    datalist,
    evaluate,
    present,
    register,
    registered,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import Case

KIND = "datalists"
FILE = "pairs.json"
COMMAND = register(moving=FILE, fixed=None)


def bad(name: str, make: Callable[[], None], *words: str, command: tuple[str, ...] = COMMAND) -> Case:
    """A datalist that must end with a line that names it, or the place in it."""
    return Case(KIND, name, command, Expected("fails", (FILE, "testing", *words)), make)


def cases() -> Iterator[Case]:
    """All of them."""
    for name, text in {
        "empty": "",
        "not JSON": "{",
        "text": "pairs",
        "a list": "[]",
        "a number": "7",
        "null": "null",
        "a string": '"a"',
        "an empty object": "{}",
        "another split alone": json.dumps({"training": [PAIR]}),
        "an empty split": '{"testing": []}',
        "a split that is an object": json.dumps({"testing": PAIR}),
        "a split that is a string": '{"testing": "m.nii.gz"}',
        "a split that is null": '{"testing": null}',
        "a comma too many": '{"testing": [{"moving_image": "m.nii.gz",}]}',
        "UTF-16": "\ufffe",
        "deeply nested": "[" * 5000,
        "Testing with a capital": json.dumps({"Testing": [PAIR]}),
        "two objects": "{}{}",
        "NaN for a path": '{"testing": [{"moving_image": NaN, "fixed_image": "f.nii.gz"}]}',
    }.items():
        yield bad(name, content(FILE, text.encode("utf-16") if name == "UTF-16" else text))
    for name, item in {
        "an item that is a list": [M, F],
        "an item that is a path": M,
        "an item that is null": None,
        "an empty item": {},
        "an item without fixed_image": {"moving_image": M},
        "a path that is null": PAIR | {"fixed_image": None},
        "a path that is a number": PAIR | {"moving_image": 7},
        "a path that is a list": PAIR | {"moving_image": [M]},
        "an empty path": PAIR | {"moving_image": ""},
        "a path that is a folder": PAIR | {"moving_image": "."},
        "a mistyped key": PAIR | {"moving_lable": ML},
        "moving_image twice under other names": {"image": M, "fixed_image": F},
    }.items():
        yield bad(name, datalist(item), "pair_0000", "moving", "none.nii.gz", "fixed")
    for name, item in {
        "a missing file": PAIR | {"moving_image": "none.nii.gz"},
        "a missing label": PAIR | {"moving_label": "none.nii.gz"},
        "a URL": PAIR | {"moving_image": "https://x/m.nii.gz"},
    }.items():  # a pair that fails is noted, and the others go on
        yield Case(KIND, name, COMMAND, Expected("fails", ("pair_0000",), partial=True), datalist(item))
    yield Case(
        KIND, "an unknown key", COMMAND, Expected("either", ("moving_mask",)), datalist(PAIR | {"moving_mask": ML})
    )
    yield bad("a missing datalist", lambda: None)
    yield bad("a folder in its place", lambda: os.mkdir(FILE))
    yield bad("a split that is not there", datalist(PAIR), "split", command=(*COMMAND, "--split", "validation"))
    yield bad("a mistyped split", datalist(PAIR), "split", command=(*COMMAND, "--split", "tests"))
    yield bad("a split that is a number", datalist(PAIR), "split", command=(*COMMAND, "--split", "0"))
    yield bad("fixed beside a datalist", datalist(PAIR), "fixed", command=register(moving=FILE))
    yield bad(
        "moving_label beside a datalist", datalist(PAIR), "moving_label", command=(*COMMAND, "--moving_label", ML)
    )
    yield bad("a datalist as fixed", datalist(PAIR), "fixed", command=register(moving=M, fixed=FILE))
    yield from cohorts()
    yield from odd()
    yield from evaluations()


def cohorts() -> Iterator[Case]:
    """One pair of three cannot be registered: the others must be, and exit code 1 and the last line say so."""

    def pairs(second):
        return datalist(PAIR, PAIR | second, PAIR)

    check = both(registered("out/pair_0000"), registered("out/pair_0002"))
    for name, second, make in (
        ("missing", {"moving_image": "none.nii.gz"}, lambda: None),
        (
            "truncated",
            {"moving_image": "x.nii.gz"},
            both(copied(M, "x.nii.gz"), content("x.nii.gz", lambda old: old[:900])),
        ),
        ("complex", {"moving_image": "x.nii"}, lambda: complex_file("x.nii")),
        ("a text file", {"fixed_image": "x.nii.gz"}, content("x.nii.gz", "text")),
        ("of a wrong header", {"fixed_image": "x.nii"}, content("x.nii", bytes(9000))),
        ("with a label elsewhere", {"moving_label": "x.nii.gz"}, copied(FL, "x.nii.gz")),
    ):
        words = Expected("fails", ("pair_0001", "testing[1]", "x.nii", "none.nii.gz"), partial=True)
        yield Case(KIND, f"cohort, one image {name}", COMMAND, words, both(pairs(second), make), check)


def complex_file(file: str) -> None:
    """Writes an image of complex numbers."""
    import numpy as np

    from reliability_cases.files import save, voxels

    save(voxels().astype(np.complex64), file)


def odd() -> Iterator[Case]:
    """Datalists that are valid."""

    def works(name, make, *more, ending="works"):
        return Case(
            KIND,
            name,
            (*COMMAND, *more),
            Expected(ending, (FILE, "testing", "moving_image")),
            make,
            registered("out/pair_0000"),
        )

    yield works(
        "relative paths through ..",
        both(lambda: os.mkdir("sub"), datalist({key: f"sub/../{file}" for key, file in PAIR.items()})),
    )
    yield works("absolute paths", lambda: datalist({key: str(Path(file).absolute()) for key, file in PAIR.items()})())
    yield works("the same pair twice", datalist(PAIR, PAIR))
    itself, check = datalist({"moving_image": M, "fixed_image": M}), registered("out/pair_0000", fixed=M)
    yield Case(KIND, "an image with itself", COMMAND, Expected("either", (FILE, "pair_0000")), itself, check)
    yield works("further keys beside the splits", datalist(PAIR, name="x", seed=0, numTest=3))
    yield works("validation by --split", datalist(PAIR, split="validation"), "--split", "validation")
    yield works("a byte-order mark", content(FILE, "\ufeff" + json.dumps({"testing": [PAIR]})), ending="either")
    yield works("labels of both images", datalist(LABELED))
    yield Case(
        KIND,
        "30 pairs",
        COMMAND,
        Expected("works"),
        datalist(*[PAIR] * 30),
        present(*(f"out/pair_{n:04d}/report.json" for n in range(30))),
    )


def evaluations() -> Iterator[Case]:
    """Evaluations of datalists."""
    command = evaluate(datalist=FILE)
    words = ("fixed", "ev")
    yield Case(
        KIND,
        "evaluation",
        command,
        Expected("works"),
        datalist(LABELED),
        present("ev/evaluation.json", "ev/evaluation.csv"),
    )
    for name, make in {
        "evaluation, not JSON": content(FILE, "{"),
        "evaluation, no testing": datalist(LABELED, split="training"),
        "evaluation, no labels": datalist(PAIR),
        "evaluation, a missing file": datalist(LABELED | {"fixed_image": "none.nii.gz"}),
        "evaluation, an image of text": both(datalist(LABELED), content(F, "text")),
        "evaluation, empty": content(FILE, ""),
        "evaluation, a label in the image's place": datalist(LABELED | {"fixed_label": F}),
    }.items():
        yield bad(name, make, *words, "none.nii.gz", F, command=command)
    one_bad = datalist(LABELED, LABELED | {"moving_image": "x.nii.gz"})
    make = both(one_bad, copied(M, "x.nii.gz"), content("x.nii.gz", lambda old: old[:900]))
    yield Case(
        KIND,
        "evaluation, one image truncated",
        command,
        Expected("fails", ("testing[1]", "x.nii.gz"), partial=True),
        make,
    )
    for name in ("plan", "train"):
        for what, value in {"a list": [], "settings of another program": {"lr": 1}}.items():
            more = ("--output", "made.json") if name == "plan" else ("--output_dir", "run", "--max_epochs", "1")
            yield Case(
                KIND, f"{name}, {what}", (name, FILE, *more), Expected("fails", (FILE, "lr")), as_json(value, FILE)
            )
