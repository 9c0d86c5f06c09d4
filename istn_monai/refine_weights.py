"""What a refinement or a training minimizes, by name: terms, their weights, and presets of these."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from istn_monai.transforms.keys import LABEL_KEYS, POINT_KEYS

#: presets, found on validation pairs of the hippocampus data: what it costs the structures to keep the rest; the last
#: one is without any network, of whole brains
PRESETS: dict[str, dict[str, float]] = {
    "structures": {"structures": 1.0},
    "accurate": {"structures": 1.0, "image": 0.05, "bending": 1.5},
    "smooth": {"structures": 1.0, "image": 0.02, "bending": 5.0},
    "intensities": {"image": 1.0, "bending": 0.3},
    "maps": {"structures": 1.0, "bending": 0.3},
}
#: see :func:`damping_of`; of structures, and of images alone
DAMPING, IMAGE_DAMPING = 0.01, 4.0
IMAGE_TERMS = ("image", "mse", "nmi", "mind")  #: that compare the images
TERMS = ("structures", *IMAGE_TERMS, "bending", "labels", "landmarks")
LOSS_TERMS = TERMS[:-2]  #: of training, whose labels and landmarks are the structures
#: weights of what a pair brings along, where it shall count
GUIDE_WEIGHTS = {"labels": 4.0, "landmarks": 0.01}


def term_weights(weights: Any, name: str = "refine_weights", terms: Sequence[str] = TERMS) -> dict[str, float]:
    """Weights by the names of terms, of a preset or as they are.

    Args:
        weights: a preset or a mapping.
        name: of the setting, for errors.
        terms: that there are.

    Raises:
        ValueError: naming the preset or the term, if it is unknown, or if a weight is no number of at least 0.

    Examples:
        >>> term_weights("smooth") == term_weights({"structures": 1, "image": 0.02, "bending": 5})
        True
    """
    if isinstance(weights, str) and weights in PRESETS:
        return dict(PRESETS[weights])
    if not isinstance(weights, Mapping) or set(weights) - set(terms):
        raise ValueError(
            f"{name} must be one of {', '.join(PRESETS)}, weights such as "
            f"\"{{'structures':1,'image':0.1,'bending':2}}\", of {', '.join(terms)}, or none, got {weights!r}"
        )
    for term, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name}: the weight of {term} must be a number of at least 0, got {value!r}")
    if not any(weights.get(term) for term in terms if term != "bending"):
        raise ValueError(f"{name} must have another weight than bending above 0, got {dict(weights)!r}")
    return {term: float(value) for term, value in weights.items() if value}


def in_voxels(weights: Any, factor: float) -> dict[str, float]:
    """Weights that do the same on a grid whose voxels are larger by a factor: bending energy has the unit 1/mm^2.

    Raises:
        ValueError: see :func:`term_weights`.

    Examples:
        >>> in_voxels("maps", 2)
        {'structures': 1.0, 'bending': 1.2}
    """
    terms = term_weights(weights)
    return terms | ({"bending": terms["bending"] * factor**2} if "bending" in terms else {})


def damping_of(weights: Container[str]) -> float:
    """How much slower moves what hardly matters to an objective: as a fraction of the mean gradient.

    Of images alone more, which have even regions all over; a structure is even everywhere but at its edge.
    """
    return DAMPING if "structures" in weights or "labels" in weights else IMAGE_DAMPING


def guided_weights(weights: Any, use_labels: bool = False, use_points: bool = False) -> dict[str, float] | None:
    """Weights by the names of terms, with those of ``GUIDE_WEIGHTS`` for what shall count of a pair; None for none.

    Labels take the place of the structures that a network found, unless the weights are given by name.

    Raises:
        ValueError: see :func:`term_weights`; or if something shall count and there are no weights.

    Examples:
        >>> guided_weights("smooth", use_labels=True)
        {'image': 0.02, 'bending': 5.0, 'labels': 4.0}
    """
    used = [term for term, use in zip(GUIDE_WEIGHTS, (use_labels, use_points), strict=True) if use]
    if weights is None or weights == "none":
        if used:
            raise ValueError(f"refine_weights is none, the paper's objective, which has no {' and '.join(used)}")
        return None
    if isinstance(weights, Mapping):
        return term_weights({term: GUIDE_WEIGHTS[term] for term in used} | dict(weights))
    replaced = {"structures"} if use_labels else set()
    terms = {term: value for term, value in term_weights(weights).items() if term not in replaced}
    return terms | {term: GUIDE_WEIGHTS[term] for term in used}


def check_guided(given: Container[Any], weights: Container[str]) -> None:
    """ValueError if labels or landmarks have a weight and the pair lacks them.

    Args:
        given: the keys that a pair has.
        weights: by the names of terms.
    """
    if "labels" in weights and not any(key in given for key in LABEL_KEYS):
        raise ValueError(f"labels shall guide the refinement: give {', '.join(LABEL_KEYS)}, or both")
    if "landmarks" in weights and (missing := [key for key in POINT_KEYS if key not in given]):
        raise ValueError(f"landmarks shall guide the refinement: give {' and '.join(missing)}")


def check_objective(weights: Any, similarity: Any, regularization: Any, regularization_weight: float = 0) -> None:
    """ValueError if an objective is given in both of its forms, or weighs something by what is no weight."""
    if not 0 <= regularization_weight < math.inf:
        raise ValueError(f"regularization_weight must be a finite number of at least 0, got {regularization_weight!r}")
    if weights is not None and (similarity is not None or regularization is not None):
        raise ValueError("give weights, or similarity and regularization, not both")
