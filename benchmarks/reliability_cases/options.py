"""Options of every command that cannot be meant, and switches in all words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from reliability_cases.datalists import COMMAND as COHORT
from reliability_cases.files import (
    LABELED,
    ML,
    TINY,
    F,
    M,
    T,
    absent,
    apply,
    both,
    datalist,
    evaluate,
    moved_image,
    moved_points,
    present,
    register,
    registered,
    subjects,
    train,
    training_pairs,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import Case

KIND = "options"
OFF, ON = ("false", "False", "no", "off", "0", "FALSE", "none"), ("true", "True", "yes", "on", "1")
NO_SWITCH = ("maybe", "2", "-1", "0.5", "falsch", "[]", "")


def bad(name: str, command: tuple[str, ...], *words: str, make: Callable[[], None] = lambda: None) -> Case:
    """An option that must be named."""
    return Case(KIND, name, command, Expected("fails", words), make)


def given(
    command: Callable[..., tuple[str, ...]], option: str, *values: str, make: Callable[[], None] = lambda: None
) -> Iterator[Case]:
    """Values that one option cannot have."""
    for value in values:
        words = command(f"--{option}={value}")
        yield bad(f"{words[0]} --{option} {value!r}", words, option, make=make)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from switches()
    yield from of_register()
    yield from of_apply()
    yield from of_small_commands()
    yield from of_synthesize()
    yield from of_train()
    yield from of_evaluate()
    yield from mistyped()
    yield from usage()


def switches() -> Iterator[Case]:
    """Each word for no must mean no; what is no such word is an error."""
    for word in (*OFF, *ON):
        on = word in ON
        reference = M if on else F
        ending = "either" if word == "none" else "works"
        command = apply("--inverse", word, "--reference", reference)
        yield Case(
            KIND,
            f"apply --inverse {word}",
            command,
            Expected(ending, ("inverse",)),
            check=moved_image(reference=reference, inverse=on),
        )
    for word in OFF:
        command = register("--qa", word, "--inverse", word)
        check = both(registered(), absent("out/qa.png", "out/view.html", "out/inverse_transform.h5"))
        yield Case(
            KIND,
            f"register --qa {word} --inverse {word}",
            command,
            Expected("either" if word == "none" else "works", ("qa", "inverse")),
            check=check,
        )
    yield Case(
        KIND,
        "register --noinverse",
        register("--noinverse"),
        Expected("either", ("noinverse",)),
        check=absent("out/inverse_transform.h5"),
    )
    yield Case(
        KIND,
        "register --inverse",
        register("--inverse"),
        Expected("works"),
        check=both(registered(), present("out/inverse_transform.h5")),
    )
    for word in NO_SWITCH:
        option = f"--inverse={word}"
        yield bad(f"apply --inverse {word!r}", apply(option, "--reference", F), "inverse")
        yield bad(
            f"register --qa {word!r}", ("register", M, F, f"--qa={word}", "--model", TINY, "--refine_steps", "0"), "qa"
        )
    for word in ("no", "False", "0"):
        command = ("plan", "train.json", "--output", "made.json", "--overwrite", word)
        make = both(training_pairs(), lambda: Path("made.json").write_text("{}", encoding="utf-8"))
        yield Case(KIND, f"plan --overwrite {word}", command, Expected("fails", ("made.json", "overwrite")), make)
        command = train(f"--augment={word}")
        yield Case(
            KIND,
            f"train --augment {word}",
            command,
            Expected("works", ("augment",)),
            training_pairs(),
            trained_with("augment", False),
        )
    yield from given(train, "augment", "maybe", "2", make=training_pairs())


def trained_with(name: str, value: object) -> Callable[[], None]:
    """Checks what the last checkpoint says of its training."""

    def check() -> None:
        from istn_monai.weights import read_weights

        found = read_weights("run/models/last.pt").description["training"][name]
        assert found == value and isinstance(found, type(value)), f"{name} is {found!r}, must be {value!r}"

    return check


def of_register() -> Iterator[Case]:
    """Numbers, names and files of ``register``."""

    def steps(*options):
        return ("register", M, F, "--model", TINY, "--qa", "False", *options)

    yield from given(steps, "refine_steps", "-1", "1.5", "ten", "nan", "inf", "1e400", "[1]", "True", "", "1,2", "None")

    def rate(*options):
        return steps("--refine_steps", "1", *options)

    yield from given(rate, "refine_learning_rate", "-1", "0", "nan", "inf", "fast", "[0.1]", "1e300")
    weights = ("smoth", "{}", "{'structure':1}", "{'image':-1}", "{'bending':1}", "{'image':'much'}", "[1,2]", "1")
    yield from given(rate, "refine_weights", *weights)
    sizes = (
        "0",
        "-1",
        "[0,0,0]",
        "[16,16]",
        "[16,16,16,16]",
        "[16,16,16.5]",
        "large",
        "[a,b,c]",
        "[16,16,-16]",
        "[]",
        "nan",
        "[100000,100000,100000]",
    )
    yield from given(register, "spatial_size", *sizes)
    yield from given(register, "initial_alignment", "middle", "0", "[center]", "Center", "")
    yield from given(register, "device", "gpu", "cuda:x", "cpu:-1", "7", "", "cuda:99", "meta")
    import torch

    if not torch.cuda.is_available():
        yield from given(register, "device", "cuda", "cuda:0")
    yield from given(
        register,
        "config",
        "none.json",
        M,
        ".",
        "pairs.json",
        make=lambda: Path("pairs.json").write_text("[1]", encoding="utf-8"),
    )

    def mistake():
        return Path("c.json").write_text('{"refine_step": 3}', encoding="utf-8")

    yield bad("register --config with a mistyped key", register("--config", "c.json"), "refine_step", make=mistake)

    def wrong():
        return Path("c.json").write_text('{"refine_learning_rate": "fast"}', encoding="utf-8")

    yield bad(
        "register --config with a wrong value",
        register("--config", "c.json", "--refine_steps", "1"),
        "refine_learning_rate",
        make=wrong,
    )
    yield from given(register, "bundle_root", ".", "none", M)
    yield from given(lambda *options: (*COHORT, *options), "split", "test", "", "Testing", "1", make=datalist(LABELED))
    for option in (
        "similarity",
        "loss",
        "max_epochs",
        "regularization",
        "regularisation",
        "batch_size",
        "augment",
        "cache_dir",
        "evaluated_labels",
        "interpolation",
        "frame",
        "reference",
    ):
        value = {
            "loss": "e",
            "max_epochs": "3",
            "batch_size": "2",
            "augment": "True",
            "reference": F,
            "cache_dir": "cache",
        }.get(option, "linear")
        yield bad(f"register --{option}, of another command", register(f"--{option}", value), option)


def of_apply() -> Iterator[Case]:
    """Options of ``apply``."""

    def with_reference(*options):
        return apply("--reference", F, *options)

    yield from given(with_reference, "interpolation", "bilinear", "cubic", "", "0", "Linear", "[linear]")
    yield from given(
        lambda *options: apply(*options, input="p.csv", output="moved.csv"), "frame", "XYZ", "", "0", "ras+"
    )
    yield from given(apply, "reference", "none.nii.gz", T, ".", "p.csv", "")
    yield bad("apply an image without reference", apply(), "reference")
    unused = {"reference": F, "interpolation": "label"}
    for option, value in unused.items():
        command = apply(f"--{option}", value, input="p.csv", output="moved.csv")
        check = moved_points({"AC": (1, 2, 3), "PC": (-4, 5.5, 6)})
        yield Case(KIND, f"apply landmarks with {option}", command, Expected("either", (option,)), check=check)
    yield Case(
        KIND,
        "apply an image with frame",
        apply("--reference", F, "--frame", "RAS"),
        Expected("either", ("frame",)),
        check=moved_image(),
    )
    for output in ("moved.png", "moved.mha", "moved", "moved.csv", "moved.nii.gz.txt", ""):
        yield bad(f"apply, written to {output!r}", apply("--reference", F, output=output), output or "output", "output")
    for option in ("refine_steps", "qa", "model", "device"):
        yield bad(f"apply --{option}, of another command", apply("--reference", F, f"--{option}", "1"), option)


def of_small_commands() -> Iterator[Case]:
    """``pairs``, ``represent``, ``info``, ``plan``."""

    def data():
        return subjects(6)

    def pairs(*options):
        return ("pairs", "data/images", "out.json", "--train", "2", "--val", "2", "--test", "2", *options)

    for option in ("train", "val", "test"):
        for value in ("-1", "1.5", "many", "True", "[2]", "1000"):
            command = tuple(word for word in ("pairs", "data/images", "out.json", f"--{option}={value}"))
            others = tuple(f"--{name}=2" for name in ("train", "val", "test") if name != option)
            yield bad(f"pairs --{option} {value!r}", (*command, *others), option, "pairs", make=data)
    yield bad(
        "pairs of nothing",
        ("pairs", "data/images", "out.json", "--train", "0", "--val", "0", "--test", "0"),
        "train",
        make=data,
    )
    yield from given(pairs, "seed", "-1", "1.5", "x", "None", make=data)
    yield from given(pairs, "labels", "none", "data", M, make=data)
    yield from given(pairs, "landmarks", "none", "data/images/x", make=data)
    yield bad("pairs of a missing folder", ("pairs", "none", "out.json"), "none", "images")
    yield bad("pairs of a file", ("pairs", M, "out.json"), M, "images")
    yield bad("pairs of an empty folder", ("pairs", "empty", "out.json"), "empty", make=lambda: os.mkdir("empty"))
    yield bad(
        "pairs, output is there",
        ("pairs", "data/images", "p.csv", "--train", "2", "--val", "2", "--test", "2"),
        "p.csv",
        make=data,
    )
    yield bad("pairs --extra", pairs("--extra", "1"), "extra", make=data)
    yield bad("pairs --tain", pairs("--tain", "1"), "tain", make=data)

    def represent(*options):
        return ("represent", M, "r.nii.gz", "--model", TINY, "--device", "cpu", *options)

    yield from given(represent, "spatial_size", "0", "[16,16]", "large")
    yield from given(represent, "refine_steps", "5")
    yield bad("represent, output is there", ("represent", M, F, "--model", TINY), F, "output")
    yield bad("represent, output .png", ("represent", M, "r.png", "--model", TINY), "r.png", "output")
    yield bad("represent of nothing", ("represent", "none.nii.gz", "r.nii.gz", "--model", TINY), "none.nii.gz")
    yield bad("info of two", ("info", TINY, TINY), TINY, "model")
    yield bad("info --modle", ("info", "--modle", TINY), "modle")
    yield bad("plan of nothing", ("plan",), "data")
    yield bad("plan of a missing folder", ("plan", "none"), "none", "data")
    yield bad("plan of an image", ("plan", M), M, "data")
    yield bad(
        "plan, output is the datalist",
        ("plan", "train.json", "--output", "train.json"),
        "train.json",
        make=training_pairs(),
    )
    yield bad("plan --output a folder", ("plan", "train.json", "--output", "."), "output", make=training_pairs())
    yield bad("plan --seed", ("plan", "train.json", "--seed", "1"), "seed", make=training_pairs())


def of_synthesize() -> Iterator[Case]:
    """Options of ``synthesize``."""

    def made(*options):
        return ("synthesize", "toy", "--train", "1", "--val", "1", "--test", "1", *options)

    sizes = (
        "0",
        "[0,0]",
        "[4,4]",
        "[32]",
        "[32,32,32,32]",
        "big",
        "[32.5,32]",
        "[-32,32]",
        "nan",
        "[]",
        "[100000,100000,100000]",
    )
    yield from given(made, "spatial_size", *sizes)

    def small(*options):
        return made("--spatial_size", "[32,32]", *options)

    yield from given(small, "spacing", "0", "-1", "nan", "inf", "wide", "[1,1,1]", "[]", "[1,0]")
    yield from given(small, "seed", "-1", "1.5", "x", "nan")
    yield from given(small, "image_format", "jpg", "", "7", "nii.bz2")
    yield from given(lambda *options: made("--spatial_size", "[32,32,32]", *options), "image_format", "png")
    for option in ("train", "val", "test"):
        for value in ("-1", "1.5", "x"):
            yield bad(
                f"synthesize --{option} {value!r}",
                ("synthesize", "toy", "--spatial_size", "[32,32]", f"--{option}={value}"),
                option,
            )
    yield bad("synthesize into a file", ("synthesize", M), M)
    yield bad("synthesize --sise", small("--sise", "3"), "sise")
    yield Case(
        KIND,
        "synthesize into a foreign folder",
        ("synthesize", "data"),
        Expected("fails", ("data",)),
        lambda: subjects(2),
    )


def of_train() -> Iterator[Case]:
    """Settings of a training; none may begin one."""
    values = {
        "max_epochs": ("0", "-1", "1.5", "many", "nan", "[1]"),
        "batch_size": ("0", "-1", "1.5", "x"),
        "learning_rate": ("-1", "0", "nan", "inf", "fast"),
        "val_interval": ("0", "-1", "2.5"),
        "num_workers": ("-1", "two", "1.5"),
        "loss": ("x", "0", "istn"),
        "transformation": ("rigid", "7"),
        "control_spacing": ("[]", "0", "-1", "wide"),
        "max_displacement": ("-1", "0", "far"),
        "soi_labels": ("[[0]]", "[[1.5]]", "x", "[1,2]", "[[99]]", "[[]]"),
        "soi_points": ("x", "[[1]]", "[[]]"),
        "seed": ("x", "1.5", "-1"),
        "training_dtype": ("float8", "16", ""),
        "spacing": ("0", "-1", "nan", "wide", "[1,2]"),
        "in_channels": ("0", "2", "-1", "one"),
        "points_width": ("0", "-1", "wide"),
        "points_map": ("dots", "0"),
        "spatial_size": ("[2,2,2]", "[16,16]", "0", "[12,12,12.5]"),
        "initial_alignment": ("guess",),
        "similarity": ("x", "{'_target_':'NoSuchLoss'}", "{}"),
        "regularization": ("x", "{'_target_':'os.getcwd'}"),
        "regularization_weight": ("heavy", "nan", "-1"),
        "run_name": ("../../elsewhere", ""),
        "device": ("gpu",),
        "data_list_file": ("none.json",),
        "dataset_dir": ("none",),
    }
    for option, wrong in values.items():
        extra = ["--transformation=bspline"] * (option in ("control_spacing", "max_displacement"))
        extra += ["--soi_labels=[]"] * (option == "soi_points")
        yield from given(lambda *options, e=tuple(extra): train(*e, *options), option, *wrong, make=training_pairs())
    yield bad("train --max_epoch", train("--max_epoch=1"), "max_epoch", make=training_pairs())
    yield bad("train of nothing", ("train",), "data")
    yield bad(
        "train --refine_steps, of another command", train("--refine_steps=3"), "refine_steps", make=training_pairs()
    )


def of_evaluate() -> Iterator[Case]:
    """Options of ``evaluate``."""

    make = datalist(LABELED)
    yield from given(evaluate, "refine_steps", "-1", "1.5", "x", "None", make=make)
    yield from given(evaluate, "evaluated_split", "test", "", "0", make=make)
    yield from given(evaluate, "evaluated_labels", "[[0]]", "[[77]]", "x", "7", make=make)
    yield from given(evaluate, "spatial_size", "0", "[16,16]", make=make)
    yield from given(evaluate, "seed", "x", "-1", make=make)
    yield from given(evaluate, "model", "none", make=make)
    yield bad("evaluate --split", evaluate("--split", "testing"), "split", make=make)
    yield bad("evaluate of an image", ("evaluate", M, "--model", TINY, "--output_dir", "ev"), M, "data")


def mistyped() -> Iterator[Case]:
    """Options that there are not, the nearest of which is meant."""
    for name in (
        "refine_step",
        "moving_lable",
        "outputdir",
        "modle",
        "initial_aligment",
        "spatial_sise",
        "devise",
        "splt",
        "inverses",
    ):
        yield bad(f"register --{name}", register(f"--{name}", "1"), name)
    for name in ("referense", "interpolate", "inversed", "Frame"):
        yield bad(f"apply --{name}", apply(f"--{name}", "x", "--reference", F), name)


def usage() -> Iterator[Case]:
    """Too few words, or too many."""
    yield bad("an unknown command", ("regsiter", M, F), "regsiter")
    yield bad("register of nothing", ("register",), "moving", "usage")
    yield bad("register of one image", ("register", M), "fixed")
    yield bad("register of nine", ("register", M, F, *"abcdefghijklm"), "m", "argument")
    yield bad("apply of a transform alone", ("apply", T), "input", "output", "usage")
    yield bad("an option without a value", ("register", M, F, "--model", TINY, "--refine_steps"), "refine_steps")
    yield bad(
        "an output_dir without a value",
        ("register", M, F, "--model", TINY, "--refine_steps", "0", "--qa", "False", "--output_dir"),
        "output_dir",
    )
    yield bad("a Python attribute of the command", ("register", "__class__"), "__class__", "fixed", "moving")
    yield bad("fire's separator", ("register", M, F, "-", "upper", "--model", TINY), "upper", "-")
    yield bad("a positional word too many", (*register(), "upper"), "upper", "output_dir")
    yield bad("an option twice", register("--model", TINY, "--split", "a", "--split", "b"), "split")
    yield Case(
        KIND,
        "a short option of the help",
        ("register", M, "-f", F, "--model", TINY, "--refine_steps", "0", "--qa", "False", "-o", "out", "-d", "cpu"),
        Expected("works", ("-f", "-o", "-d")),
        check=registered(),
    )
    yield Case(
        KIND,
        "an option with =",
        (
            "register",
            f"--moving={M}",
            f"--fixed={F}",
            f"--model={TINY}",
            "--output_dir=out",
            "--refine_steps=0",
            "--qa=False",
            "--device=cpu",
        ),
        Expected("works"),
        check=registered(),
    )
    yield Case(
        KIND,
        "an option with dashes",
        register("--moving-label", ML),
        Expected("either", ("moving",)),
        check=registered(label=ML),
    )
