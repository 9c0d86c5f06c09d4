"""Transforms that ``apply`` cannot use, and odd ones that it can."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from reliability_cases.files import F, M, T, apply, content, flipped_bit, moved_image
from reliability_cases.judge import Expected
from reliability_cases.runner import Case

KIND = "transforms"
TO_IMAGE = apply("--reference", F)
TO_POINTS = apply(input="p.csv", output="moved.csv")


def written(build: Callable[[Any], Any], file: str = T) -> Callable[[], None]:
    """Writes what is built of SimpleITK."""

    def make() -> None:
        import SimpleITK as sitk

        if os.path.exists(file):
            os.remove(file)
        sitk.WriteTransform(build(sitk), file)

    return make


def bad(name: str, make: Callable[[], None], *words: str, file: str = T) -> Iterator[Case]:
    """A transform that images and landmarks cannot take."""
    for what, command in {"image": TO_IMAGE, "points": TO_POINTS}.items():
        used = ("apply", file, *command[2:])
        yield Case(KIND, f"{name}, {what}", used, Expected("fails", (file, "transform", *words)), make)


def affine(matrix: np.ndarray, move: tuple[float, ...] = (1, -2, 3)) -> Callable[[Any], Any]:
    """An affine transform."""

    def build(sitk: Any) -> Any:
        made = sitk.AffineTransform(len(matrix))
        made.SetMatrix(np.asarray(matrix, float).ravel().tolist())
        made.SetTranslation(move[: len(matrix)])
        return made

    return build


def field(values: Callable[[np.ndarray], None]) -> Callable[[Any], Any]:
    """A displacement field on the fixed image's grid, changed in place: ``(z, y, x, 3)``."""

    def build(sitk: Any) -> Any:
        fixed = sitk.ReadImage(F)
        array = np.ones((*fixed.GetSize()[::-1], 3))
        values(array)
        made = sitk.GetImageFromArray(array, isVector=True)
        made.CopyInformation(fixed)
        return sitk.DisplacementFieldTransform(made)

    return build


def zero(sitk: Any) -> Any:
    """An affine whose matrix is 0: SimpleITK does not set it, so it goes through the file."""
    return affine(np.diag([1.0, 1, 1e-300]))(sitk)


def moved_by(check: Callable[[Any, np.ndarray, np.ndarray], None]) -> Callable[[], None]:
    """Checks landmarks against the transform itself: it maps what was written to what was read."""

    def run() -> None:
        import csv

        import SimpleITK as sitk

        transform = sitk.ReadTransform(T)
        rows = [
            [[float(row[axis]) for axis in "xyz"] for row in csv.DictReader(open(file, encoding="utf-8"))]
            for file in ("p.csv", "moved.csv")
        ]
        for before, after in zip(*map(np.array, rows), strict=True):
            check(transform, before, after)

    return run


def back(transform: Any, before: np.ndarray, after: np.ndarray) -> None:
    """AssertionError unless the transform brings a point back to where it was."""
    off = np.abs(np.array(transform.TransformPoint(after.tolist())) - before).max()
    assert np.isfinite(after).all() and off < 0.05, f"a landmark comes back {off:.3g} mm off"


def cases() -> Iterator[Case]:
    """All of them."""
    yield from files()
    yield from numbers()
    yield from odd()


def files() -> Iterator[Case]:
    """Files that hold no transform."""
    yield from bad("empty", content(T, b""))
    yield from bad("text", content(T, "a transform"))
    yield from bad("an image", lambda: None, M, file=M)
    yield from bad("weights", lambda: None, file="tiny.pt")
    yield from bad("landmarks", lambda: None, file="p.csv")
    yield from bad("missing", lambda: None, file="none.h5")
    yield from bad("a folder", lambda: os.mkdir("x.h5"), file="x.h5")
    for fraction in (0.1, 0.5, 0.9, 0.99):
        yield from bad(f".h5 truncated at {fraction:.0%}", content(T, lambda old, f=fraction: old[: int(f * len(old))]))
    yield from bad(".h5 with a bit flip in its head", content(T, lambda old: flipped_bit(0.0)(old)))
    yield from bad(
        ".tfm truncated", content("x.tfm", "#Insight Transform File V1.0\n#Transform 0\nTransform: Aff"), file="x.tfm"
    )
    head = "#Insight Transform File V1.0\n#Transform 0\nTransform: "
    short = head + "AffineTransform_double_3_3\nParameters: 1 0 0\nFixedParameters: 0 0 0\n"
    yield from bad(".tfm with too few numbers", content("x.tfm", short), file="x.tfm")
    nan = head + "AffineTransform_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 nan 0 0\nFixedParameters: 0 0 0\n"
    yield from bad(".tfm with nan", content("x.tfm", nan), file="x.tfm")
    unknown = head + "WobblyTransform_double_3_3\nParameters: 1\nFixedParameters: 0\n"
    yield from bad(".tfm of an unknown kind", content("x.tfm", unknown), file="x.tfm")
    yield from bad(".tfm without a transform", content("x.tfm", head[:29]), file="x.tfm")
    yield from bad("HDF5 of other data", hdf5, file="x.h5")
    yield from bad("2-D", written(affine(np.eye(2))))


def hdf5() -> None:
    """Writes an HDF5 file without a transform, or what looks like one."""
    try:
        import h5py

        with h5py.File("x.h5", "w") as file:
            file["data"] = np.ones(5)
    except ImportError:
        content("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(500))()


def numbers() -> Iterator[Case]:
    """Numbers that no transform can have."""
    for name, value in {"nan": np.nan, "inf": np.inf, "1e300": 1e300}.items():
        yield from bad(
            f"a translation of {name}", written(lambda sitk, v=value: sitk.TranslationTransform(3, (v, 0, 0)))
        )
        yield from bad(
            f"a field with {name}", written(field(lambda array, v=value: array.__setitem__((5, 5, 5, 0), v)))
        )
    flat = Case(KIND, "singular for landmarks", TO_POINTS, Expected("fails", (T, "invert", "inverse")), written(zero))
    yield flat
    folded = field(lambda array: array.__setitem__(..., 40 * np.sin(np.arange(array.shape[2]))[None, None, :, None]))
    yield Case(
        KIND,
        "a folding field for landmarks",
        TO_POINTS,
        Expected("either", (T, "invert", "inverse", "AC", "PC")),
        written(folded),
        moved_by(back),
    )
    yield Case(
        KIND,
        "a field of 1 m",
        TO_IMAGE,
        Expected("either", (T, "reference")),
        written(field(lambda array: array.__imul__(1000))),
    )


def odd() -> Iterator[Case]:
    """Transforms that are valid."""
    turned = np.array([[0.9, 0.2, 0], [-0.2, 0.95, 0.1], [0, 0, 1.05]])
    builds = {
        "affine": affine(turned),
        "identity": lambda sitk: sitk.Transform(3, sitk.sitkIdentity),
        "rigid": lambda sitk: sitk.Euler3DTransform((0, 0, 0), 0.1, 0.2, 0.1, (1, 2, 3)),
        "similarity": lambda sitk: sitk.Similarity3DTransform(1.1, (0, 0, 1), 0.2, (1, 2, 3)),
        "a composite": lambda sitk: sitk.CompositeTransform(
            [affine(turned)(sitk), sitk.TranslationTransform(3, (1, 2, 3))]
        ),
        "a field": field(lambda array: array.__imul__(0.5)),
        "a B-spline": spline,
    }
    for name, build in builds.items():
        make = written(build)
        yield Case(KIND, f"{name}, image", TO_IMAGE, Expected("works", (T,)), make, moved_image())
        yield Case(KIND, f"{name}, points", TO_POINTS, Expected("works", (T, "AC", "PC")), make, moved_by(back))
    text = written(affine(turned), "x.tfm")
    same = written(affine(turned))
    command = ("apply", "x.tfm", *TO_IMAGE[2:])
    yield Case(KIND, ".tfm", command, Expected("works", ("x.tfm",)), lambda: (text(), same())[0], moved_image())
    kind = "MatrixOffsetTransformBase_double_3_3\nParameters: 1 0 0 0 1 0 0 0 1 1.5 -2 .75\nFixedParameters: 0 0 0\n"
    base = f"#Insight Transform File V1.0\n#Transform 0\nTransform: {kind}"
    yield Case(
        KIND,
        "MatrixOffsetTransformBase",
        command,
        Expected("either", ("x.tfm",)),
        content("x.tfm", base),
        moved_image(),
    )
    two = "#Insight Transform File V1.0\n" + "".join(
        f"#Transform {n}\nTransform: TranslationTransform_double_3_3\nParameters: .75 -1 .375\nFixedParameters:\n"
        for n in (0, 1)
    )
    yield Case(
        KIND,
        "two transforms in one file",
        command,
        Expected("either", ("x.tfm",)),
        content("x.tfm", two),
        moved_image(),
    )


def spline(sitk: Any) -> Any:
    """A gentle B-spline around the fixed image."""
    made = sitk.BSplineTransformInitializer(sitk.ReadImage(F), [4, 4, 4])
    numbers_ = np.random.default_rng(0).normal(0, 0.7, len(made.GetParameters()))
    made.SetParameters(numbers_.tolist())
    return made
