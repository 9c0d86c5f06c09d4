"""Label maps that are none, or are another image's; and label values of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from reliability_cases.files import (
    AFFINES,
    FL,
    LABELED,
    ML,
    F,
    M,
    as_json,
    both,
    changed,
    content,
    copied,
    datalist,
    evaluate,
    orthogonal,
    register,
    registered,
    save,
    voxels,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import Case

KIND = "labels"
WORDS = (ML, "moving_label", "moving label")


def bad(name: str, make: Callable[[], None], file: str = ML) -> Case:
    """A label map that registration cannot take along."""
    return Case(KIND, name, register("--moving_label", file), Expected("fails", (*WORDS, file)), make)


def good(name: str, make: Callable[[], None], ending: str = "works") -> Case:
    """A label map whose values must arrive as they are."""
    return Case(KIND, name, register("--moving_label", ML), Expected(ending, WORDS), make, registered(label=ML))


def recoded(one: float, two: float, dtype: type | str) -> Callable[[], None]:
    """Other values for the labels 1 and 2."""
    return changed(lambda old: np.array([0, one, two], dtype=dtype)[old.astype(int)], ML)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from values()
    yield from grids()
    yield from evaluated()
    yield from applied()


def values() -> Iterator[Case]:
    """What label values may be, and may not."""
    for name, numbers in {
        "2^24 + 1": (2**24 + 1, 2**24),
        "2^31": (2**31, 1),
        "2^31 + 5": (2**31 + 5, 5),
        "2^32 - 1": (2**32 - 1, 7),
    }.items():
        yield good(f"uint32 {name}", recoded(*numbers, "uint32"), "either")
    for name, numbers in {"2^33 + 5": (2**33 + 5, 5), "2^40": (2**40, 2**40 + 1), "2^62": (2**62, 3)}.items():
        yield good(f"int64 {name}", recoded(*numbers, "int64"), "either")
    yield good("uint64 2^64 - 1", recoded(2**64 - 1, 2, "uint64"), "either")
    yield good("float64 2^40", recoded(2.0**40, 2.0, "float64"), "either")
    yield good("int32 2^24 + 1 beside 2^24 + 2", recoded(2**24 + 1, 2**24 + 2, "int32"), "either")
    for name in ("int8", "int16", "uint16", "int64", "uint64", "float32", "float64"):
        yield good(f"{name} 1 and 2", recoded(1, 2, name))
    yield good("uint8 254 and 255", recoded(254, 255, "uint8"))
    yield good("negative values", recoded(-3, 7, "int16"), "either")
    yield good("empty", changed(np.zeros_like, ML), "either")
    yield good("one value", recoded(1, 1, "uint8"))
    yield bad("fractions", recoded(0.5, 1.5, "float32"))
    yield bad("fractions near whole numbers", recoded(1.01, 2.02, "float32"))
    yield bad("probabilities", changed(lambda old: (old / 2 * 0.97).astype(np.float32), ML))
    yield bad("the image in its place", copied(M, ML))
    yield bad("the image's name", lambda: None, M)
    yield bad("an intensity image of whole numbers", changed(lambda old: voxels(M).astype(np.int16), ML))
    yield bad("nan", recoded(np.nan, 2, "float32"))
    yield bad("inf", recoded(np.inf, 2, "float32"))
    yield bad("1e300", recoded(1e300, 2, "float64"))
    yield bad("complex", recoded(1, 2, "complex64"))


def grids() -> Iterator[Case]:
    """Label maps on another grid, and files that are none."""
    yield bad("another size", lambda: save(voxels(ML)[:-1], ML))
    yield bad("the fixed image's", copied(FL, ML), ML)
    affine = orthogonal(AFFINES[M])
    for name, move in {"5 mm": 5.0, "1 m": 1000.0}.items():
        shifted = affine.copy()
        shifted[0, 3] += move
        yield bad(f"moved by {name}", lambda a=shifted: save(voxels(ML), ML, a))
    yield bad("mirrored", lambda: save(voxels(ML), ML, affine @ np.diag([-1, 1, 1, 1.0])))
    yield bad("other voxel sizes", lambda: save(voxels(ML), ML, affine @ np.diag([2, 2, 2, 1.0])))
    yield bad("two channels", lambda: save(np.stack([voxels(ML)] * 2, -1), ML))
    yield bad("one-hot, three channels", lambda: save((voxels(ML)[..., None] == np.arange(3)).astype(np.uint8), ML))
    yield bad("2-D", lambda: save(voxels(ML)[:, :, 9], ML))
    yield bad("truncated", content(ML, lambda old: old[: len(old) // 2]))
    yield bad("without its last 4 bytes", content(ML, lambda old: old[:-4]))
    yield bad("a text file", content(ML, "labels"))
    yield bad("missing", lambda: None, "nowhere.nii.gz")
    yield bad("a folder", lambda: None, ".")


def evaluated() -> Iterator[Case]:
    """Labels that an evaluation compares."""
    pairs = datalist(LABELED)
    shifted = orthogonal(AFFINES[F])
    shifted[1, 3] += 4
    for name, make in {
        "fractions": changed(lambda old: (0.6 * old).astype(np.float32), FL),
        "empty": changed(np.zeros_like, FL),
        "other values": changed(lambda old: old * 10, FL),
        "another size": lambda: save(voxels(FL)[:, :-2], FL),
        "moved by 4 mm": lambda: save(voxels(FL), FL, shifted),
        "nan": changed(lambda old: np.where(old, np.nan, 0).astype(np.float32), FL),
        "the image": copied(F, FL),
        "truncated": content(FL, lambda old: old[:-30]),
    }.items():
        words = Expected("fails", (FL, "fixed_label", "testing[0]", "soi_labels"))
        yield Case(KIND, f"evaluation, {name}", evaluate(), words, both(pairs, make))
    large = both(
        pairs, *(changed(lambda old: np.array([0, 614454277, 2**24 + 1])[old].astype(np.uint32), f) for f in (ML, FL))
    )
    command = evaluate("--evaluated_labels", "[[614454277],[16777217]]")
    yield Case(
        KIND,
        "evaluation, values of an atlas",
        command,
        Expected("either", (ML, FL, "evaluated_labels")),
        large,
        dice_above(0.0),
    )
    lacking = as_json({"testing": [{k: v for k, v in LABELED.items() if k != "fixed_label"}]}, "pairs.json")
    yield Case(KIND, "evaluation without fixed_label", evaluate(), Expected("fails", ("fixed_label",)), lacking)


def dice_above(limit: float) -> Callable[[], None]:
    """Checks that an evaluation found the structures before registration."""

    def check() -> None:
        import json
        from pathlib import Path

        text = Path("ev/evaluation.json").read_text(encoding="utf-8")
        found = [value for value in numbers_of(json.loads(text), "dice") if value is not None]
        assert found and max(found) > limit, f"no Dice above {limit} in evaluation.json: {found[:5]}"

    return check


def numbers_of(content: object, word: str) -> list[float]:
    """All numbers below keys that hold a word."""
    found: list[float] = []
    if isinstance(content, dict):
        for key, value in content.items():
            found += numbers_of(value, "" if word in str(key).lower() else word)
    elif isinstance(content, list):
        for value in content:
            found += numbers_of(value, word)
    elif isinstance(content, (int, float)) and not word:
        found.append(content)
    return found


def applied() -> Iterator[Case]:
    """Label maps through ``apply``."""
    from reliability_cases.files import apply, moved_image

    check = moved_image(input=ML, label=True)
    for name, options in {"as label": ("label",), "as nearest": ("nearest",), "unsaid": ()}.items():
        command = apply("--reference", F, *(("--interpolation", *options) if options else ()), input=ML)
        yield Case(KIND, f"apply, {name}", command, Expected("either", (ML, "interpolation")), check=check)
        large = recoded(2**33 + 5, 2**24 + 1, "int64")
        yield Case(KIND, f"apply, {name}, 2^33 + 5", command, Expected("either", (ML, "interpolation")), large, check)
    for name, make in {"fractions": recoded(0.5, 1.5, "float32"), "an image": copied(M, ML)}.items():
        command = apply("--reference", F, "--interpolation", "label", input=ML)
        yield Case(KIND, f"apply as label, {name}", command, Expected("fails", (ML, "interpolation", "input")), make)
