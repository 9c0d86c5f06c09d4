"""elastix's parameter files (``TransformParameters.0.txt``) as the transforms of ITK that they stand for.

Convention:
    Points are LPS mm, from fixed to moving, as in ITK. A file whose initial transform is another file stands for
    ``T o T_initial``: the initial one acts first. Directions of lattices are written column after column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from istn_monai.io.simple_itk import last_line, sitk

BEGIN = re.compile(rb"\A(//[^\n]*\n|\s)*\([A-Za-z]\w* ")
ENTRY = re.compile(r'^\s*\((\w+)((?:\s+(?:"[^"\n]*"|[^\s()"]+))+)\s*\)\s*(?://.*)?$')
VALUE = re.compile(r'"([^"\n]*)"|([^\s"]+)')
NONE = "NoInitialTransform"
INITIAL = ("InitialTransformParametersFileName", "InitialTransformParameterFileName")  # until elastix 5.1, and since
MOST_FILES = 32  # of a chain
#: of the linear kinds: how many parameters they have in 2-D and in 3-D
NUMBERS = {
    "TranslationTransform": {2: 2, 3: 3},
    "EulerTransform": {2: 3, 3: 6},
    "SimilarityTransform": {2: 4, 3: 7},
    "AffineTransform": {2: 6, 3: 12},
}
BSPLINES = ("BSplineTransform", "RecursiveBSplineTransform")  # the same map, computed in two ways
Entries = dict[str, list[str]]


def is_elastix(file: Path) -> bool:
    """Whether a file begins as elastix's parameter files do."""
    with file.open("rb") as stream:
        return BEGIN.match(stream.read(2**12)) is not None


def elastix_transforms(file: Path) -> list[sitk.Transform]:
    """The transforms of a parameter file and of its initial ones, in the order of ``T o T_initial o ...``.

    Raises:
        ValueError: naming the file in which something is missing, truncated or of a kind that is not read.
    """
    return [transform for _, transform in elastix_chain(file)]


def elastix_files(file: Path) -> list[Path]:
    """A parameter file and its initial ones, absolute; the file alone where they cannot be read, or it is none."""
    try:
        return [each for each, _ in elastix_chain(file)] if is_elastix(file) else [file]
    except (ValueError, OSError):
        return [file]


def elastix_chain(file: Path) -> list[tuple[Path, sitk.Transform]]:
    """See :func:`elastix_transforms`; each with its file."""
    chain: list[Path] = []
    result = []
    following: Path | None = file
    while following is not None:
        if following.resolve() in chain or len(chain) == MOST_FILES:
            raise ValueError(f"{file}: its chain of initial transforms comes back to {following}: write it again")
        chain.append(following.resolve())
        try:
            entries = entries_of(following)
            check_world(entries)
            result.append((chain[-1], transform_of(entries)))
            following = initial_of(entries, following)
        except (ValueError, OverflowError, RuntimeError) as error:
            said = last_line(error)
            raise ValueError(said if str(following) in said else f"{following}: {said}") from error
    return result


def entries_of(file: Path) -> Entries:
    """The values of each name in a parameter file, without quotes.

    Raises:
        ValueError: a line is none of ``(Name value ...)``, as where the file was truncated.
    """
    entries: Entries = {}
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("//"):
            continue
        match = ENTRY.match(line)
        if match is None:
            short = line.strip()[:40]
            raise ValueError(
                f"line {number} is no (Name value ...) of elastix's, or truncated ({short!r}): copy or write it again"
            )
        entries[match[1]] = [quoted or bare for quoted, bare in VALUE.findall(match[2])]
    return entries


def word(entries: Entries, name: str, default: str | None = None) -> str:
    """The one value of a name.

    Raises:
        ValueError: it has none, and there is no default.
    """
    values = entries.get(name) or ([] if default is None else [default])
    if not values:
        raise ValueError(f"it has no ({name} ...), is it truncated? Copy or write it again")
    return values[0]


def numbers(entries: Entries, name: str, count: int) -> list[float]:
    """So many finite numbers of a name."""
    word(entries, name)
    try:
        values = list(map(float, entries[name]))
    except ValueError as error:
        raise ValueError(f"its ({name} ...) must be {count} numbers ({error}): write it as text") from error
    if len(values) != count:
        raise ValueError(f"its ({name} ...) must be {count} numbers, it has {len(values)}: copy or write it again")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"its ({name} ...) has numbers that are NaN or infinite: write it again")
    return values


def dimension(entries: Entries) -> int:
    """2 or 3."""
    dims = [word(entries, f"{name}ImageDimension") for name in ("Fixed", "Moving")]
    if dims[0] != dims[1] or dims[0] not in ("2", "3"):
        raise ValueError(f"it maps {dims[0]} to {dims[1]} dimensions: 2 to 2 and 3 to 3 are read")
    return int(dims[0])


def check_world(entries: Entries) -> None:
    """ValueError where positions are not those of the world, or the initial transform is not the first of two."""
    if word(entries, "UseDirectionCosines", "true") != "true":
        raise ValueError(
            'it was made with (UseDirectionCosines "false"), without the images\' directions: register with them'
        )
    how = word(entries, "HowToCombineTransforms", "Compose")
    if how != "Compose" and initial_name(entries) != NONE:
        raise ValueError(
            f'it combines transforms by "{how}", of which there is no composite of ITK\'s: register with '
            '(HowToCombineTransforms "Compose")'
        )


def initial_name(entries: Entries) -> str:
    """What a file says of its initial transform."""
    found = [name for name in INITIAL if name in entries]
    return word(entries, found[0] if found else INITIAL[0])


def initial_of(entries: Entries, file: Path) -> Path | None:
    """The file of the initial transform: where the entry says, seen from the file's folder, or beside the file.

    Raises:
        ValueError: it is at neither place.
    """
    name = initial_name(entries)
    if name == NONE:
        return None
    places = [file.parent / name, file.parent / re.split(r"[/\\]", name)[-1]]
    for place in places:
        if place.is_file():
            if not is_elastix(place):
                raise ValueError(f"its initial transform {place} is no parameter file of elastix's: give one that is")
            return place
    raise ValueError(f"its initial transform {name} is not there, nor is it beside the file: copy it there")


def transform_of(entries: Entries) -> sitk.Transform:
    """The transform of one file, without its initial one."""
    kind, dims = word(entries, "Transform"), dimension(entries)
    if kind in BSPLINES:
        return bspline(entries, dims)
    if kind not in NUMBERS:
        raise ValueError(
            f"{kind} of elastix is not read: {', '.join([*NUMBERS, *BSPLINES])} are; make a field of it by "
            "transformix -def all"
        )
    values = numbers(entries, "TransformParameters", NUMBERS[kind][dims])
    if kind == "TranslationTransform":
        return sitk.TranslationTransform(dims, values)
    made: dict[tuple[str, int], Callable[[], sitk.Transform]] = {
        ("EulerTransform", 2): sitk.Euler2DTransform, ("EulerTransform", 3): sitk.Euler3DTransform,
        ("SimilarityTransform", 2): sitk.Similarity2DTransform,
        ("SimilarityTransform", 3): sitk.Similarity3DTransform,
        ("AffineTransform", 2): lambda: sitk.AffineTransform(2),
        ("AffineTransform", 3): lambda: sitk.AffineTransform(3),
    }  # fmt: skip
    transform = made[kind, dims]()
    transform.SetCenter(numbers(entries, "CenterOfRotationPoint", dims))
    if (kind, dims) == ("EulerTransform", 3):
        transform.SetComputeZYX(truth(entries, "ComputeZYX"))
    transform.SetParameters(values)
    return transform


def truth(entries: Entries, name: str) -> bool:
    """Whether a name is "true"; it is "false" where it is not there."""
    value = word(entries, name, "false")
    if value not in ("true", "false"):
        raise ValueError(f'its ({name} ...) must be "true" or "false", it is {value!r}')
    return value == "true"


def bspline(entries: Entries, dims: int) -> sitk.Transform:
    """A cubic B-spline; its first control point is that of GridIndex."""
    order = word(entries, "BSplineTransformSplineOrder", "3")
    if order != "3":
        raise ValueError(f"a B-spline of order {order} is not read, of order 3 it is: register with that order")
    if truth(entries, "UseCyclicTransform"):
        raise ValueError('a cyclic B-spline is not read: register with (UseCyclicTransform "false")')
    size, spacing, origin = (numbers(entries, f"Grid{name}", dims) for name in ("Size", "Spacing", "Origin"))
    if any(n != int(n) or n < 4 for n in size) or min(spacing) <= 0:
        raise ValueError(f"its grid must have 4 control points or more along each axis, got {size}, {spacing} mm apart")
    axes = np.eye(dims)
    if "GridDirection" in entries:
        axes = np.array(numbers(entries, "GridDirection", dims**2)).reshape(dims, dims).T
    index = np.array(numbers(entries, "GridIndex", dims) if "GridIndex" in entries else [0.0] * dims)
    first = np.array(origin) + axes @ (np.array(spacing) * index)
    values = numbers(entries, "TransformParameters", dims * math.prod(map(int, size)))
    return itk_bspline(size, first, spacing, axes, values)


def itk_bspline(
    size: Sequence[float], origin: np.ndarray, spacing: Sequence[float], axes: np.ndarray, values: Sequence[float]
) -> sitk.Transform:
    """ITK's B-spline of a lattice of control points, in LPS."""
    transform = sitk.BSplineTransform(len(size), 3)
    transform.SetFixedParameters([*map(float, size), *origin.tolist(), *spacing, *axes.ravel().tolist()])
    transform.SetParameters(values)
    return transform
