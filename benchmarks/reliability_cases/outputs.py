"""Results in the way of inputs, of other results, and of files that are not ours; disks that are full."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from reliability_cases.files import (
    LABELED,
    ML,
    PAIR,
    TINY,
    F,
    M,
    T,
    absent,
    apply,
    both,
    content,
    copied,
    datalist,
    evaluate,
    image,
    moved_image,
    moved_points,
    network,
    present,
    register,
    registered,
    save,
    subjects,
    train,
    training_pairs,
    voxels,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import Case, run_command

KIND = "outputs"
COHORT = register(moving="pairs.json", fixed=None)
EVALUATE = evaluate()


def earlier(*commands: tuple[str, ...]) -> Callable[[], None]:
    """Runs commands before the one that is tried."""

    def make() -> None:
        for command in commands:
            run_command(command)

    return make


def bad(
    name: str, command: tuple[str, ...], *words: str, make: Callable[[], None] = lambda: None, **more: object
) -> Case:
    """Must end with a line, and leave all files as they are."""
    return Case(KIND, name, command, Expected("fails", words), make, **more)  # type: ignore[arg-type]


def cases() -> Iterator[Case]:
    """All of them."""
    yield from inputs()
    yield from foreign()
    yield from no_folder()
    yield from repeated()
    yield from of_apply()
    yield from full()


def inputs() -> Iterator[Case]:
    """A result would replace an input."""
    results = {
        "warped.nii.gz": "moving",
        "warped_label.nii.gz": "moving_label",
        "displacement.nii.gz": "fixed",
        "moving_representation.nii.gz": "moving",
        "fixed_representation.nii.gz": "fixed",
    }
    for file, role in results.items():
        source = {"moving": M, "fixed": F, "moving_label": ML}[role]
        place = f"out/{file}"
        command = {
            "moving": register(moving=place),
            "fixed": register(fixed=place),
            "moving_label": register("--moving_label", place),
        }[role]
        for option in ((), ("--overwrite",)):
            name = f"{role} is {place}{' with --overwrite' if option else ''}"
            yield bad(name, (*command, *option), file, make=copied(source, place))
    ways = {
        "through ..": (
            register(moving="sub/../out/warped.nii.gz"),
            both(copied(M, "out/warped.nii.gz"), lambda: os.mkdir("sub")),
        ),
        "through a linked folder": (
            register(moving="link/warped.nii.gz"),
            both(copied(M, "out/warped.nii.gz"), lambda: os.symlink("out", "link")),
        ),
        "through a linked output_dir": (
            register(moving="real/warped.nii.gz"),
            both(copied(M, "real/warped.nii.gz"), lambda: os.symlink("real", "out")),
        ),
        "by a link to the result": (
            register(moving="x.nii.gz"),
            both(copied(M, "out/warped.nii.gz"), lambda: os.symlink("out/warped.nii.gz", "x.nii.gz")),
        ),
        "by a link in the result's place": (
            register(),
            both(lambda: os.mkdir("out"), lambda: os.symlink(f"../{M}", "out/warped.nii.gz")),
        ),
        "by a hard link": (register(), both(lambda: os.mkdir("out"), lambda: os.link(M, "out/warped.nii.gz"))),
        "by a hard link of the fixed image": (
            register(),
            both(lambda: os.mkdir("out"), lambda: os.link(F, "out/displacement.nii.gz")),
        ),
        "by a hard link of the label": (
            register("--moving_label", ML),
            both(lambda: os.mkdir("out"), lambda: os.link(ML, "out/warped_label.nii.gz")),
        ),
    }
    for name, (command, make) in ways.items():
        for option in ((), ("--overwrite",)):
            yield bad(
                f"an input {name}{' with --overwrite' if option else ''}",
                (*command, *option),
                "warped",
                "displacement",
                make=make,
            )
    later = both(
        copied(M, "out/pair_0000/warped.nii.gz"), datalist(PAIR, PAIR | {"moving_image": "out/pair_0000/warped.nii.gz"})
    )
    for option in ((), ("--overwrite",)):
        suffix = " with --overwrite" if option else ""
        yield bad(f"a later pair's input{suffix}", (*COHORT, *option), "warped.nii.gz", make=later)
        itself = datalist(LABELED, file="evaluation.json")
        command = evaluate(*option, datalist="evaluation.json", out=".")
        yield bad(f"evaluate, its datalist{suffix}", command, "evaluation.json", make=itself)
        linked = both(datalist(LABELED), lambda: os.mkdir("ev"), lambda: os.link("pairs.json", "ev/evaluation.json"))
        yield bad(
            f"evaluate, a hard link of its datalist{suffix}", (*EVALUATE, *option), "evaluation.json", make=linked
        )
    weights = both(lambda: os.mkdir("out"), lambda: os.link(TINY, "out/transform.h5"))
    yield bad("the weights by a hard link", register("--overwrite"), "transform.h5", TINY, make=weights)


def foreign() -> Iterator[Case]:
    """Files of the user have the names of results."""
    for file in ("report.json", "qa.png", "warped.nii.gz", "transform.h5", "displacement.nii.gz"):
        text = '{"mine": 1}' if file.endswith("json") else "mine"
        command = ("register", M, F, "--output_dir", "out", "--model", TINY, "--refine_steps", "0", "--device", "cpu")
        for option in ((), ("--overwrite",)):
            suffix = " with --overwrite" if option else ""
            yield bad(f"a foreign {file}{suffix}", (*command, *option), file, make=content(f"out/{file}", text))
    for file in ("qa.html",):
        command = (
            "register",
            "pairs.json",
            "--output_dir",
            "out",
            "--model",
            TINY,
            "--refine_steps",
            "0",
            "--device",
            "cpu",
        )
        yield bad(f"cohort, a foreign {file}", command, file, make=both(datalist(PAIR), content(f"out/{file}", "mine")))
    yield bad(
        "cohort, a foreign report.json of a pair",
        COHORT,
        "report.json",
        make=both(datalist(PAIR), content("out/pair_0000/report.json", "{}")),
    )
    for file in ("evaluation.json", "evaluation.csv"):
        yield bad(
            f"evaluate, a foreign {file}", EVALUATE, file, make=both(datalist(LABELED), content(f"ev/{file}", "{}"))
        )
    notes = content("out/notes.txt", "mine")
    yield Case(
        KIND,
        "foreign files of other names",
        register(),
        Expected("works"),
        notes,
        both(registered(), present("out/notes.txt")),
    )
    old = content("out/inverse_transform.h5", "mine")
    yield Case(
        KIND,
        "a foreign inverse_transform.h5 that is not written",
        register(),
        Expected("either", ("inverse_transform.h5",)),
        old,
        registered(),
    )
    yield bad(
        "train, a foreign model.pt",
        train(),
        "model.pt",
        make=both(training_pairs(), content("run/models/model.pt", "mine")),
    )
    yield bad(
        "train, a foreign last.pt",
        train(),
        "last.pt",
        make=both(training_pairs(), content("run/models/last.pt", "mine")),
    )
    yield bad(
        "plan, a foreign file",
        ("plan", "train.json", "--output", "x.json"),
        "x.json",
        make=both(training_pairs(), content("x.json", "{}")),
    )
    yield bad("synthesize, a foreign pairs.json", ("synthesize", "toy"), "toy", make=content("toy/pairs.json", "{}"))


def no_folder() -> Iterator[Case]:
    """There can be no result."""
    for name, out in {
        "a file": F,
        "below a file": f"{M}/x",
        "in /proc": "/proc/x",
        "in /sys": "/sys/x",
        "/dev/null": "/dev/null",
        "empty": "",
        "of 300 letters": "x" * 300,
        "with a NUL": "a\0b",
        "a link to nowhere": "nowhere",
    }.items():

        def make():
            return os.symlink("/proc/none/x", "nowhere")

        words = (out or "output_dir", "output_dir") if "\0" not in out else ("output_dir",)
        yield bad(f"register, output_dir {name}", register(out=out), *words, make=make)
        if name in ("a file", "in /proc", "empty"):
            yield bad(f"evaluate, output_dir {name}", evaluate(out=out), *words, make=datalist(LABELED))
            yield bad(f"train, output_dir {name}", train(f"--output_dir={out}"), *words, make=training_pairs())
            yield bad(
                f"cohort, output_dir {name}",
                register(moving="pairs.json", fixed=None, out=out),
                *words,
                make=datalist(PAIR),
            )
    yield bad(
        "plan, output in /proc", ("plan", "train.json", "--output", "/proc/x.json"), "/proc", make=training_pairs()
    )
    yield bad("represent, output in /proc", ("represent", M, "/proc/r.nii.gz", "--model", TINY), "/proc")
    yield bad(
        "pairs, output in /proc",
        ("pairs", "data/images", "/proc/x.json", "--train", "2", "--val", "2", "--test", "2"),
        "/proc",
        make=lambda: subjects(6),
    )


def repeated() -> Iterator[Case]:
    """A folder has the results of an earlier run."""
    rich = register("--moving_label", ML, "--inverse", "True")
    leftover = ("out/warped_label.nii.gz", "out/inverse_transform.h5")
    other = {
        "a label less": register(),
        "other weights": register("--model", "x.pt"),
        "other steps": register("--refine_steps", "1"),
        "the images exchanged": register(moving=F, fixed=M),
        "another alignment": register("--initial_alignment", "world"),
    }

    def weights():
        return network(
            "x.pt",
            (16, 16, 16),
            lambda state: [value.mul_(0.5) for value in state.values() if value.is_floating_point()],
            spacing=2.0,
        )

    for name, command in other.items():
        first = rich if name == "a label less" else register()
        yield bad(f"register again, {name}", command, "overwrite", "out", make=both(weights, earlier(first)))
    over = both(registered(), absent(*leftover))
    yield Case(
        KIND,
        "register again, --overwrite",
        register("--overwrite"),
        Expected("works"),
        earlier(rich),
        over,
        replaces=("out/*",),
    )
    yield Case(KIND, "register again, the same", register(), Expected("works"), earlier(register()), registered())
    yield Case(
        KIND,
        "register again, the same, --overwrite",
        register("--overwrite"),
        Expected("works"),
        earlier(register()),
        registered(),
        replaces=("out/*",),
    )
    new_image = both(earlier(register()), lambda: save(image(7)[0], M))
    yield bad("register again, the image has changed", register(), "overwrite", M, make=new_image)
    cut = both(earlier(register()), lambda: os.remove("out/report.json"))
    yield Case(
        KIND,
        "register again, no report.json",
        register(),
        Expected("either", ("out", "overwrite")),
        cut,
        registered(),
        replaces=("out/*",),
    )
    broken = both(earlier(register()), content("out/warped.nii.gz", lambda old: old[:500]))
    yield Case(
        KIND,
        "register again, --overwrite, a result is damaged",
        register("--overwrite"),
        Expected("either", ("out", "warped")),
        broken,
        registered(),
        replaces=("out/*",),
    )

    def pair(number):
        return registered(f"out/pair_{number:04d}")

    yield Case(
        KIND,
        "cohort again, the same",
        COHORT,
        Expected("works"),
        both(datalist(PAIR, PAIR), earlier(COHORT)),
        both(pair(0), pair(1)),
    )
    longer = both(datalist(PAIR), earlier(COHORT), datalist(PAIR, PAIR))
    yield Case(KIND, "cohort again, a pair more", COHORT, Expected("works"), longer, both(pair(0), pair(1)))
    swapped = both(datalist(PAIR), earlier(COHORT), datalist({"moving_image": F, "fixed_image": M}))
    yield Case(
        KIND, "cohort again, other images", COHORT, Expected("fails", ("overwrite", "pair_0000"), partial=True), swapped
    )
    deleted = both(datalist(PAIR, PAIR), earlier(COHORT), lambda: os.remove("out/pair_0001/report.json"))
    yield Case(
        KIND,
        "cohort again, one is not finished",
        COHORT,
        Expected("either", ("pair_0001",), partial=True),
        deleted,
        pair(0),
        replaces=("out/pair_0001/*",),
    )
    evaluated = both(datalist(LABELED), earlier(EVALUATE))
    yield Case(KIND, "evaluate again, the same", EVALUATE, Expected("works"), evaluated, present("ev/evaluation.json"))
    steps = evaluate("--refine_steps", "1")
    yield bad("evaluate again, other steps", steps, "overwrite", "ev", make=evaluated)
    over_again = (*steps, "--overwrite")
    yield Case(
        KIND,
        "evaluate again, --overwrite",
        over_again,
        Expected("works"),
        evaluated,
        present("ev/evaluation.json"),
        replaces=("ev/*",),
    )
    trained = both(training_pairs(), earlier(train()))
    done = Case(
        KIND,
        "train again, the same",
        train(),
        Expected("works"),
        trained,
        present("run/models/model.pt"),
        replaces=("run/*", "*_plan.json"),
    )
    yield done
    yield bad(
        "train again, another rate",
        train("--learning_rate=0.01"),
        "learning_rate",
        make=trained,
        replaces=("run/events*", "run/tensorboard/*"),
    )
    yield bad(
        "train again, another transformation",
        train("--transformation=bspline"),
        "transformation",
        make=trained,
        replaces=("run/tensorboard/*",),
    )
    planned = both(training_pairs(), earlier(("plan", "train.json", "--output", "x.json")))
    yield Case(
        KIND,
        "plan again",
        ("plan", "train.json", "--output", "x.json"),
        Expected("either", ("x.json", "overwrite")),
        planned,
    )
    toy = ("synthesize", "toy", "--spatial_size", "[32,32]", "--train", "1", "--val", "1", "--test", "1")
    yield Case(KIND, "synthesize again, the same", toy, Expected("works"), earlier(toy), present("toy"))
    yield bad("synthesize again, another seed", (*toy, "--seed", "5"), "overwrite", "toy", make=earlier(toy))
    drawn = ("pairs", "data/images", "x.json", "--train", "2", "--val", "2", "--test", "2")
    yield Case(KIND, "pairs again", drawn, Expected("either", ("x.json",)), both(lambda: subjects(6), earlier(drawn)))


def of_apply() -> Iterator[Case]:
    """``apply`` and ``represent`` and their one file."""
    for name, output, make in (
        ("its input", M, lambda: None),
        ("its reference", F, lambda: None),
        ("its transform", T, lambda: None),
        ("its input through ..", f"sub/../{M}", lambda: os.mkdir("sub")),
        ("a link to its input", "x.nii.gz", lambda: os.symlink(M, "x.nii.gz")),
        ("a hard link of its input", "x.nii.gz", lambda: os.link(M, "x.nii.gz")),
        ("a foreign file", "x.nii.gz", content("x.nii.gz", "mine")),
        ("a folder", "x.nii.gz", lambda: os.mkdir("x.nii.gz")),
        ("a pipe", "x.nii.gz", lambda: os.mkfifo("x.nii.gz")),
        ("below a file", f"{M}/x.nii.gz", lambda: None),
    ):
        for option in ((), ("--overwrite",)):
            if option and name == "a foreign file":  # the one file that the user names, and asks to replace
                continue
            suffix = " with --overwrite" if option else ""
            yield bad(
                f"apply, output is {name}{suffix}",
                apply("--reference", F, *option, output=output),
                Path(output).name,
                "output",
                make=make,
            )
    yield bad(
        "apply, output is a broken link",
        apply("--reference", F, output="x.nii.gz"),
        "x.nii.gz",
        make=lambda: os.symlink("/proc/none/x.nii.gz", "x.nii.gz"),
    )
    yield bad("apply landmarks, output is the input", apply(input="p.csv", output="p.csv"), "p.csv")
    yield Case(
        KIND,
        "apply into a new folder",
        apply("--reference", F, output="new/x.nii.gz"),
        Expected("works"),
        check=moved_image("new/x.nii.gz"),
    )
    again = both(earlier(apply(input="p.csv", output="moved.csv")))
    check = moved_points({"AC": (1, 2, 3), "PC": (-4, 5.5, 6)})
    yield Case(
        KIND,
        "apply again, the same",
        apply(input="p.csv", output="moved.csv"),
        Expected("either", ("moved.csv",)),
        again,
        check,
    )

    def represent(output):
        return ("represent", M, output, "--model", TINY, "--device", "cpu")

    for output in ("rep", "rep.", "rep.txt"):
        yield bad(
            f"represent, output {output!r} beside rep.nii",
            represent(output),
            "rep",
            make=copied("m.nii.gz", "rep.nii", "rep.nii.gz"),
        )
    yield bad("represent, output is its input", represent(M), M)
    yield bad(
        "represent, output is a hard link of its input",
        represent("x.nii.gz"),
        "x.nii.gz",
        make=lambda: os.link(M, "x.nii.gz"),
    )


def full() -> Iterator[Case]:
    """No file may grow beyond some bytes, as on a full disk: no half file has a final name, and the old ones stay."""
    words = ("large", "space", "full", "written", "out", "ev", "moved", "write")
    for limit in (2000, 12000, 40000):
        yield bad(f"register, full at {limit} bytes", register(), *words, file_limit=limit)
    for limit in (2000, 12000):
        command = apply("--reference", F)
        yield bad(f"apply, full at {limit} bytes", command, *words, file_limit=limit)

        def whole():
            return save(voxels().repeat(2, 0), M)

        yield bad(
            f"represent, full at {limit} bytes",
            ("represent", M, "r.nii.gz", "--model", TINY, "--spatial_size", "[48,48,48]"),
            *words,
            "r.nii.gz",
            file_limit=limit,
            make=whole,
        )
        replaced = Case(
            KIND,
            f"register --overwrite, full at {limit} bytes",
            register("--overwrite"),
            Expected("fails", words),
            earlier(register()),
            file_limit=limit,
        )
        yield replaced
    over = earlier(register("--qa", "True"))
    yield Case(
        KIND,
        "register --overwrite, full at the page",
        register("--overwrite", "--qa", "True"),
        Expected("fails", words),
        over,
        file_limit=45000,
    )
    yield Case(
        KIND,
        "cohort, full",
        COHORT,
        Expected("fails", (*words, "pair_0001"), partial=True),
        datalist(PAIR, PAIR),
        file_limit=12000,
    )
    yield bad("evaluate, full", EVALUATE, *words, make=datalist(LABELED), file_limit=700)
    yield bad(
        "synthesize, full",
        ("synthesize", "toy", "--spatial_size", "[48,48]", "--train", "1", "--val", "1", "--test", "1"),
        *words,
        "toy",
        file_limit=1000,
    )
    yield Case(
        KIND,
        "train, full",
        train(),
        Expected("fails", (*words, "run", "last.pt"), partial=True),  # its logs stay
        training_pairs(),
        file_limit=20000,
    )
    yield bad(
        "plan, full",
        ("plan", "train.json", "--output", "x.json"),
        *words,
        "x.json",
        make=training_pairs(),
        file_limit=500,
    )
    yield bad(
        "pairs, full",
        ("pairs", "data/images", "x.json", "--train", "2", "--val", "2", "--test", "2"),
        *words,
        "x.json",
        make=lambda: subjects(6),
        file_limit=300,
    )
    points = content("q.csv", "label,x,y,z,frame\n" + "".join(f"point {n},1,2,3,LPS\n" for n in range(300)))
    yield bad("apply landmarks, full", apply(input="q.csv", output="moved.csv"), *words, make=points, file_limit=2000)
