"""Kinds of settings and options: each reads one value, as it was typed or as it stands in a JSON file.

A kind is a function of the option's name and its value. It gives the value in its own type, or raises ValueError with
one line that names the option, what it takes and what came. None passes: it is "not given".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from istn_monai import refine_weights
from istn_monai.geometry.names import INITIAL_ALIGNMENTS, bounds_of, is_file_name, kinds_of
from istn_monai.levels import checked_levels
from istn_monai.representations import FROZEN, SOURCES, Representation

Kind = Callable[[str, Any], Any]

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none")
DEVICE = re.compile(r"cpu|mps|(cuda|xpu)(:\d+)?")


def wrong(name: str, value: Any, expected: str) -> ValueError:
    """The error for a value that is not of its kind."""
    return ValueError(f"{name} must be {expected}, got {value!r}")


def literal(value: Any) -> Any:
    """What a text stands for in Python or JSON, as Fire reads it; any other value as it is."""
    if not isinstance(value, str):
        return value
    from fire.parser import DefaultParseValue

    return DefaultParseValue(value)


def says_none(value: Any) -> bool:
    """Whether a value is a word for None: on MONAI's command line ``--key None`` is as if it were not there."""
    return isinstance(value, str) and value.lower() in ("none", "null")


def none_or(kind: Kind) -> Kind:
    """A kind whose values may also be none: None, which a JSON file calls null, or one of these words."""

    def read(name: str, value: Any) -> Any:
        """The word as it is, or what the other kind reads."""
        return value if says_none(value) else kind(name, value)

    return read


def switch(name: str, value: Any) -> Any:
    """True or False."""
    if value is None or isinstance(value, bool):
        return value
    word = str(value).lower()
    if isinstance(value, (str, int)) and word in TRUE + FALSE:
        return word in TRUE
    raise wrong(name, value, "True or False")


def whole(least: int = 0, most: int | None = None) -> Kind:
    """A whole number in a range."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(name: str, value: Any) -> Any:
        """The number."""
        found = literal(value)
        if value is None:
            return None
        fits = isinstance(found, int) and not isinstance(found, bool)
        if not fits or found < least or (most is not None and found > most):
            raise wrong(name, value, f"a whole number {bounds}")
        return found

    return read


def number(above: float | None = None, least: float | None = None, most: float = math.inf) -> Kind:
    """A finite number in a range: above a bound, or of at least one; and of at most another."""
    bounds = f" above {above:g}" if above is not None else f" of at least {least:g}" if least is not None else ""
    bounds += f", of at most {most:g}" if most < math.inf else ""
    low = max((bound for bound in (above, least) if bound is not None), default=-math.inf)

    def read(name: str, value: Any) -> Any:
        """The number."""
        found = literal(value)
        if value is None:
            return None
        fits = isinstance(found, (int, float)) and not isinstance(found, bool) and math.isfinite(found)
        if not fits or not low <= found <= most or found == above:
            raise wrong(name, value, f"a number{bounds}")
        return found

    return read


def numbers(kind: Kind, counts: tuple[int, ...] = ()) -> Kind:
    """One number, or a list of them; ``counts`` are the lengths that a list may have, () for any."""
    how_many = f"{' or '.join(map(str, counts))} numbers" if counts else "at least one number"

    def read(name: str, value: Any) -> Any:
        """The number, or the list."""
        found = literal(value)
        if not isinstance(found, (list, tuple)):
            return kind(name, found)
        if not found or (counts and len(found) not in counts):
            raise wrong(name, value, f"a number, or a list of {how_many}")
        return [kind(name, single) for single in found]

    return read


def transformation(name: str, value: Any) -> Any:
    """The name of a transformation, see :func:`istn_monai.geometry.names.kinds_of`."""
    return None if value is None else "+".join(kinds_of(value))


def start(name: str, value: Any) -> Any:
    """An initial alignment by its name, or a transform's file."""
    if value is None or (isinstance(value, str) and value in INITIAL_ALIGNMENTS):
        return value
    if not isinstance(value, str) or not is_file_name(value):
        raise wrong(name, value, f"one of {', '.join(INITIAL_ALIGNMENTS)}, or a transform's file")
    return value


def affine_bounds(name: str, value: Any) -> Any:
    """Bounds of an affine transformation by name, see :func:`istn_monai.geometry.names.bounds_of`."""
    found = literal(value)
    if found is not None:
        bounds_of("affine", found)
    return found


def representation(name: str, value: Any) -> Any:
    """What is registered, see :class:`istn_monai.representations.Representation`."""
    found = literal(value)
    if found is not None:
        Representation.of(found if isinstance(found, dict) else value)
    return found if isinstance(found, dict) else value


def size(name: str, value: Any) -> Any:
    """Voxels: two or three whole numbers, auto or image."""
    found = literal(value)
    if found is None or found in ("auto", "image"):
        return found
    fits = isinstance(found, (list, tuple)) and len(found) in (2, 3)
    if not fits or not all(type(single) is int and single > 0 for single in found):
        raise wrong(name, value, 'two or three whole numbers of at least 1, such as "[48,64,48]", auto or image')
    return list(found)


def choice(*words: str) -> Kind:
    """One of these words."""

    def read(name: str, value: Any) -> Any:
        """The word."""
        if value is not None and value not in words:
            raise wrong(name, value, f"one of {', '.join(words)}")
        return value

    return read


def text(name: str, value: Any) -> Any:
    """A text that is not empty, exactly as it was typed."""
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise wrong(name, value, f"text: quote it twice (--{name} \"'{value}'\")")
    if not str(value) or "\0" in str(value):
        raise wrong(name, value, "a text that is not empty")
    return value


def path(name: str, value: Any) -> Any:
    """A file or a folder; ``~`` is the home folder."""
    given = text(name, value)
    if given is None or not str(given).startswith("~"):
        return given
    expanded = os.path.expanduser(given)
    return os.path.abspath(expanded)  # "~name" of nobody is a name, which must not be expanded again


def folder_name(name: str, value: Any) -> Any:
    """The name of a folder, which leads nowhere else."""
    given = text(name, value)
    if given is not None and (os.path.basename(str(given)) != str(given) or str(given) in (os.curdir, os.pardir)):
        raise wrong(name, value, "a name without a path")
    return given


def device(name: str, value: Any) -> Any:
    """A device as torch names it."""
    if value is not None and not DEVICE.fullmatch(str(value)):
        raise wrong(name, value, "a device, such as cpu, cuda or cuda:0")
    return value if value is None else str(value)


def definition(name: str, value: Any) -> Any:
    """An object of MONAI's JSON, ``{"_target_": ...}``."""
    found = literal(value)
    if found is not None and not (isinstance(found, dict) and "_target_" in found):
        raise wrong(name, value, """JSON as in MONAI's configs, such as "{'_target_':'BendingEnergyLoss'}", or none""")
    return found


def itn_definition(name: str, value: Any) -> Any:
    """As :func:`definition`, an ITN by its name, or a representation that does not learn."""
    if value == "segmentation" or (isinstance(value, str) and value.partition(":")[0] in FROZEN):
        return value
    if isinstance(value, str) and value.partition(":")[0] in (*SOURCES, "bundle"):
        raise wrong(name, value, f"of the representations {', '.join(FROZEN)}, which come from the image on its grid")
    return definition(name, value)


def stn_definition(name: str, value: Any) -> Any:
    """As :func:`definition`, or none but where a refinement begins."""
    return value if value == "identity" else definition(name, value)


def term_weights(name: str, value: Any, terms: Sequence[str] = refine_weights.TERMS) -> Any:
    """A preset of weights by its name, or weights by the names of terms."""
    found = literal(value)
    if found is None or (isinstance(found, str) and found in refine_weights.PRESETS):
        return found
    refine_weights.term_weights(found, name, terms)
    return found  # with weights of 0, which say that a term shall not count


def loss_weights(name: str, value: Any) -> Any:
    """As :func:`term_weights`, of the terms of training."""
    return term_weights(name, value, refine_weights.LOSS_TERMS)


def levels(name: str, value: Any) -> Any:
    """Stride and steps of the levels of a refinement."""
    found = literal(value)
    if found is not None:
        checked_levels(found)
    return found


def structure(name: str, value: Any) -> Any:
    """Lists in lists, which are checked where they are used."""
    return literal(value)
