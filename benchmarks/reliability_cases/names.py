"""Odd names of files and folders: all of them must work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from reliability_cases.files import (
    ML,
    F,
    M,
    T,
    apply,
    both,
    copied,
    datalist,
    moved_image,
    moved_points,
    register,
    registered,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import Case

KIND = "names"
FOLDERS = (
    "Ünï côdé 海馬",
    "two words",
    " begins with a blank",
    "a\nline",
    "quo\"te's",
    "$HOME",
    "a;b&c|d",
    "scan#1",
    "a*b?[c]",
    "percent%20",
    "2024",
    "1e3",
    "1_0",
    "0x10",
    "007",
    "1.50",
    "-1",
    "None",
    "True",
    "false",
    "null",
    "nan",
    "[1,2]",
    "(1)",
    "a,b",
    "{a}",
    "'x'",
    "a=b",
    "a::b",
    "@moving",
    "%file",
    "back\\slash",
    "x" * 200,
)
WORKS = Expected("works", ("output_dir", "moving", "fixed", "output", "model", "datalist", "transform"))


def shown(name: str) -> str:
    """A name for people."""
    return repr(name if len(name) < 40 else f"{name[:3]}... of {len(name)} letters")


def cases() -> Iterator[Case]:
    """All of them."""
    for name in FOLDERS:
        options = (f"--output_dir={name}",) if name.startswith("-") else ("--output_dir", name)
        plain = ("register", M, F, "--model", "tiny.pt", "--refine_steps", "0", "--qa", "False", "--device", "cpu")
        yield Case(KIND, f"output_dir {shown(name)}", (*plain, *options), WORKS, check=registered(name))
    for name in FOLDERS:
        if name.startswith("-"):
            name = f"./{name}"
        moving, fixed = f"{name}/{M}", f"{name}/{F}"
        make = both(copied(M, moving), copied(F, fixed), copied(ML, f"{name}/{ML}"))
        command = register(f"--moving_label={name}/{ML}", moving=moving, fixed=fixed)
        yield Case(KIND, f"images in {shown(name)}", command, WORKS, make, registered(label=ML))
    yield from single()


def single() -> Iterator[Case]:
    """Other places where a name is given."""
    for name in ("2024", "1e3", "None", "True", "[1,2]", "scan#1", "two words"):
        model = both(copied("tiny.pt", f"{name}/model.pt"))
        yield Case(KIND, f"model {shown(name)}", register("--model", name), WORKS, model, registered())
        points = moved_points({"AC": (1, 2, 3), "PC": (-4, 5.5, 6)}, f"{name}.csv")
        yield Case(KIND, f"apply to {shown(name)}.csv", apply(input="p.csv", output=f"{name}.csv"), WORKS, check=points)
        listed = both(
            copied(M, f"{name}/{M}"),
            copied(F, f"{name}/{F}"),
            datalist({"moving_image": M, "fixed_image": F}, file=f"{name}/pairs.json"),
        )
        command = register(moving=f"{name}/pairs.json", fixed=None)
        yield Case(KIND, f"datalist in {shown(name)}", command, WORKS, listed, registered("out/pair_0000"))
    for name in ("2024.nii.gz", "1e3.nii.gz", "None.nii.gz", "True.nii.gz", "1_0.nii.gz", "a b.nii.gz", "#.nii.gz"):
        yield Case(KIND, f"image {shown(name)}", register(moving=name), WORKS, copied(M, name), registered(moving=name))
    yield Case(
        KIND,
        "image '-m.nii.gz' as ./-m.nii.gz",
        register(moving="./-m.nii.gz"),
        WORKS,
        copied(M, "./-m.nii.gz"),
        registered(moving="./-m.nii.gz"),
    )
    command = apply("--reference", F, transform="2024.h5")
    yield Case(KIND, "transform '2024.h5'", command, WORKS, copied(T, "2024.h5"), moved_image())
    yield Case(KIND, "files through ..", register(moving=f"sub/../{M}"), WORKS, lambda: os.mkdir("sub"), registered())
    yield Case(
        KIND,
        "image in the home of nobody",
        register(moving="~nobody-here/m.nii.gz"),
        Expected("fails", ("nobody-here",)),
    )
    yield Case(
        KIND, "output_dir in the home of nobody", register(out="~nobody-here/x"), Expected("either", ("nobody-here",))
    )
    yield Case(KIND, "output_dir through a link", register(out="link/x"), WORKS, linked, registered("real/x"))
    yield Case(
        KIND,
        "datalist of odd names",
        register(moving="pairs.json", fixed=None),
        WORKS,
        odd_datalist,
        registered("out/pair_0000"),
    )
    yield Case(
        KIND,
        "synthesize 2024",
        ("synthesize", "2024", "--spatial_size", "[32,32]", "--train", "2", "--val", "1", "--test", "1"),
        WORKS,
        check=lambda: ok(Path("2024")),
    )


def ok(folder: Path) -> None:
    """AssertionError without a datalist in a folder."""
    assert list(folder.glob("*.json")), f"no datalist in {folder}"


def linked() -> None:
    """A folder and a link to it."""
    os.mkdir("real")
    os.symlink("real", "link")


def odd_datalist() -> None:
    """A datalist whose files have odd names."""
    names = ["Ü 海#1;&$HOME'.nii.gz", 'new\nline "2".nii.gz']
    copied(M, names[0])()
    copied(F, names[1])()
    datalist({"moving_image": names[0], "fixed_image": names[1]})()
