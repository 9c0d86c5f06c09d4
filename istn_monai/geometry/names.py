"""Transformations and initial alignments by name, and bounds: what a setting means, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

GLOBAL = ("rigid", "affine")  # of few parameters, which all voxels share
TRANSFORMATIONS = (*GLOBAL, "bspline", "svf")  # of transformations, coarse to fine
ALIASES = {"affine_bspline": "affine+bspline"}  # as older checkpoints have it
INITIAL_ALIGNMENTS = ("world", "center", "moments", "principal_axes", "rigid", "affine", "structures")
#: of an affine transformation by name: argument, how it is converted, least, unit, and most
BOUNDS: dict[str, tuple[str, Callable[[float], float], float, str, float]] = {
    "translation": ("max_translation", float, 0.0, "mm", 1e4),
    "rotation": ("max_rotation", math.radians, 0.0, "degrees", 180.0),
    "scale": ("max_log_scale", math.log, 1.0, "factor", 10.0),
    "shear": ("max_shear", math.radians, 0.0, "degrees", 90.0),
}


def is_file_name(name: str) -> bool:
    """Whether a text may name a file rather than a choice: it has a suffix, a folder, or a prefix.

    Examples:
        >>> [is_file_name(name) for name in ("start.tfm", "greedy:affine.mat", "[t.h5,1]", "middle")]
        [True, True, True, False]
    """
    return any(mark in name for mark in "./:[\\")


def kinds_of(name: str) -> tuple[str, ...]:
    """The kinds of transformation that a name joins by ``+``, coarse to fine.

    Raises:
        ValueError: if there is no such kind, one comes twice, or a global one after a local one.

    Examples:
        >>> kinds_of("rigid+bspline")
        ('rigid', 'bspline')
    """
    kinds = tuple(ALIASES.get(name, name).split("+")) if isinstance(name, str) else ()
    order = [TRANSFORMATIONS.index(kind) if kind in TRANSFORMATIONS else -1 for kind in kinds]
    if not kinds or -1 in order or order != sorted(set(order)):
        raise ValueError(
            f"transformation must be one of {', '.join(TRANSFORMATIONS)}, or several in this order, joined by +, such "
            f"as affine+bspline, got {name!r}"
        )
    return kinds


def bounds_of(kind: str, given: Mapping[str, float] | None = None) -> dict[str, float]:
    """Arguments of :class:`istn_monai.geometry.affine.AffineTransformation` for "rigid" or "affine".

    Args:
        kind: "rigid" has neither scale nor shear.
        given: any of ``translation`` (mm), ``rotation`` (degrees), ``scale`` (a factor; its inverse is the other bound)
            and ``shear`` (degrees); the others have the defaults, 30 mm, 45 degrees, e^0.5 = 1.65, and 45 degrees.

    Raises:
        ValueError: naming what is wrong.

    Examples:
        >>> bounds_of("rigid", {"translation": 60})
        {'max_translation': 60.0, 'max_log_scale': 0.0, 'max_shear': 0.0}
    """
    given = {} if given is None else given
    known = BOUNDS if kind == "affine" else {name: BOUNDS[name] for name in ("translation", "rotation")}
    wrong = [name for name in given if name not in known] if isinstance(given, Mapping) else [given]
    if wrong:
        raise ValueError(
            f"affine_bounds of {kind} must be numbers by name, of {', '.join(known)}, such as "
            f'{{"translation": 60, "rotation": 90}}, got {given!r}'
        )
    result = {} if kind == "affine" else {"max_log_scale": 0.0, "max_shear": 0.0}
    found = {}
    for name, value in given.items():
        argument, convert, least, unit, most = known[name]
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
        if not fits:
            raise ValueError(
                f"affine_bounds: {name} must be a number from {least:g} to {most:g} ({unit}), got {value!r}"
            )
        found[argument] = convert(float(value))
    return found | result
