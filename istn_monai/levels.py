"""From coarse to fine: which voxels the steps of a refinement compare."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

COARSE_STRIDE, MAX_STRIDE = 2, 4
COARSE_STEPS = {"theta": 25, "stn": 0}  # by what is optimized, without weights
COARSE_FRACTION = 0.7  # of the steps of an objective with weights, whose terms do not depend on the stride
Levels = Sequence[tuple[int, int]]


def default_levels(steps: int, wanted: int | None, target: str, weights: Container[str] | None) -> Levels:
    """Stride and steps of each level, see :class:`istn_monai.Refiner`.

    Args:
        steps: in all.
        wanted: how many compare every second voxel, at most; None for what is best.
        target: "theta" or "stn".
        weights: names of the objective's terms; None for the paper's.
    """
    if weights is not None and "labels" in weights:
        most = 0  # their edges are sharp
    else:
        most = steps // 2 if weights is None else int(steps * COARSE_FRACTION)
    if wanted is None:
        wanted = most if weights is not None and target == "theta" else COARSE_STEPS[target]
    coarse = min(wanted, most)
    return [(COARSE_STRIDE, coarse), (1, steps - coarse)]


def checked_levels(levels: Any) -> Levels:
    """Levels as a user gave them, as pairs of stride and steps.

    Raises:
        ValueError: if they are of another form, or do not end with all voxels.

    Example:
        >>> checked_levels([[4, 10], [2, 25], [1, 15]])
        [(4, 10), (2, 25), (1, 15)]
    """
    pairs = list(levels) if isinstance(levels, (list, tuple)) else []
    whole = all(isinstance(pair, (list, tuple)) and [type(number) for number in pair] == [int, int] for pair in pairs)
    strides = [pair[0] for pair in pairs] if whole else []
    falling = strides == sorted(set(strides), reverse=True) and strides[-1:] == [1] and strides[0] <= MAX_STRIDE
    if not falling or any(number < 1 for _, number in pairs):
        raise ValueError(
            "refine_levels must be stride and steps of each level, coarse to fine, the last of stride 1 and none above "
            f"{MAX_STRIDE}, such as [[4,10],[2,25],[1,15]], got {levels!r}"
        )
    return [(stride, number) for stride, number in pairs]


def strides_of(levels: Levels) -> list[int]:
    """The stride of each step.

    Example:
        >>> strides_of([(2, 3), (1, 1)])
        [2, 2, 2, 1]
    """
    return [stride for stride, number in levels for _ in range(number)]
