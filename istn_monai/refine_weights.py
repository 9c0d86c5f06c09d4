"""What a refinement minimizes, by name: terms of :mod:`istn_monai.objective`, their weights, and presets of these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: presets, found on validation pairs of the hippocampus data: what it costs the structures to keep the rest
PRESETS: dict[str, dict[str, float]] = {
    "structures": {"structures": 1.0},
    "accurate": {"structures": 1.0, "image": 0.05, "bending": 2.0},
    "smooth": {"structures": 1.0, "image": 0.02, "bending": 7.0},
}
TERMS = ("structures", "image", "bending")


def term_weights(weights: Any, name: str = "refine_weights") -> dict[str, float]:
    """Weights by the names of terms, of a preset or as they are.

    Raises:
        ValueError: naming the preset or the term, if it is unknown, or if a weight is no number of at least 0.

    Example:
        >>> term_weights("smooth") == term_weights({"structures": 1, "image": 0.02, "bending": 7})
        True
    """
    if isinstance(weights, str) and weights in PRESETS:
        return dict(PRESETS[weights])
    if not isinstance(weights, Mapping) or set(weights) - set(TERMS):
        raise ValueError(
            f"{name} must be one of {', '.join(PRESETS)}, weights such as "
            f"\"{{'structures':1,'image':0.1,'bending':2}}\", or none, got {weights!r}"
        )
    for term, value in weights.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"{name}: the weight of {term} must be a number of at least 0, got {value!r}")
    if not any(weights.get(term) for term in ("structures", "image")):
        raise ValueError(f"{name} must have structures or image above 0, got {dict(weights)!r}")
    return {term: float(value) for term, value in weights.items() if value}
