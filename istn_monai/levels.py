"""From coarse to fine: which voxels the steps of a refinement compare."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

TARGETS = ("theta", "stn")  # what a refinement optimizes
USUAL_STEPS = 25  # of a refinement whose number of steps nobody gave
COARSE_STRIDE, MAX_STRIDE = 2, 8
SMALL, MOST_COMPARED = 2**15, 2**21  # voxels of a grid of which all are compared; in a step of a large one
COARSE_STEPS = {"theta": 25, "stn": 0}  # by what is optimized, without weights
COARSE_FRACTION = 0.7  # of the steps of an objective with weights, whose terms do not depend on the stride
LOCAL_RATE, AT_ONCE_RATE, GLOBAL_RATE = 0.4, 0.3, 0.1  # see :func:`weighted_rate`
EARLY_FRACTION = 0.3  # of the steps, for all components but the finest


class Level(NamedTuple):
    """Some steps of a refinement.

    Attributes:
        stride: of the voxels that are compared, along each axis.
        steps: their number.
        component: of a composite transformation, the number of the one that moves; None for all at once.
    """

    stride: int
    steps: int
    component: int | None = None


Levels = Sequence[Level]


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
    return [Level(COARSE_STRIDE, coarse), Level(1, steps - coarse)]


def levels_in_turn(steps: int, components: int, spatial_size: Sequence[int]) -> Levels:
    """Levels of components that move one after the other, coarse to fine: seven in ten steps are the finest one's.

    The last two compare every second voxel along each axis, all of a small grid and fewer of a large one, so that a
    step takes some 0.2 s, however large it is; those before them every second of these.

    Examples:
        >>> [tuple(level) for level in levels_in_turn(25, 3, (48, 64, 48))]
        [(4, 3, 0), (2, 4, 1), (2, 18, 2)]
    """
    stride = finest_stride(spatial_size)
    others = components - 1
    coarse = int(steps * EARLY_FRACTION) if others else 0
    ends = [coarse * number // max(others, 1) for number in range(components)]
    steps_of = [*(after - before for before, after in pairwise(ends)), steps - coarse]
    strides = [min(2 * stride, MAX_STRIDE)] * (components - 2) + [stride] * min(components, 2)
    return [Level(*level, number) for number, level in enumerate(zip(strides, steps_of, strict=True)) if level[1]]


def levels_at_once(steps: int, spatial_size: Sequence[int]) -> Levels:
    """Levels of a transformation that moves as a whole and costs much: as the last two of :func:`levels_in_turn`.

    Examples:
        >>> [tuple(level) for level in levels_at_once(50, (48, 64, 48))]
        [(4, 12, None), (2, 38, None)]
    """
    stride = finest_stride(spatial_size)
    coarse = steps // 4
    levels = (Level(min(2 * stride, MAX_STRIDE), coarse), Level(stride, steps - coarse))
    return [level for level in levels if level.steps]


class Parts(NamedTuple):
    """How many components a transformation has, coarse to fine.

    Attributes:
        linear: rigid and affine ones.
        local: lattices of B-splines and velocity fields.
    """

    linear: int
    local: int


def levels_of_parts(levels: Sequence[Sequence[int]], own: Parts, other: Parts) -> list[list[int]]:
    """Levels of one transformation's components for those of another one.

    A linear component moves as the linear ones did. The coarsest local component moves as the coarsest one did, and the
    finest as the finest; if there are fewer, the last one takes the steps of those that are missing.

    Args:
        levels: stride, steps and number of a component, in its order.
        own: what they were made for.
        other: what they shall be for.

    Returns:
        Without numbers, down to all voxels, where there is one component alone; several linear ones end there, too.

    Examples:
        >>> levels = [[8, 60, 0], [4, 40, 1], [2, 50, 2], [2, 30, 3], [1, 20, 3]]
        >>> levels_of_parts(levels, Parts(1, 3), Parts(0, 2))
        [[4, 40, 0], [2, 80, 1], [1, 20, 1]]
        >>> levels_of_parts(levels, Parts(1, 3), Parts(1, 0))
        [[8, 60], [4, 30], [2, 15], [1, 7]]
    """
    steps_of = [[level[:2] for level in levels if level[2] == number] for number in range(sum(own))]
    linear, local = sum(steps_of[: own.linear], []), steps_of[own.linear :]
    if other.local > own.local:
        local = local[:-1] + (local[-2:-1] or local) * (other.local - own.local) + local[-1:]
    elif other.local:
        local = [*local[: other.local - 1], sum(local[other.local - 1 :], [])]
    else:
        local = []
    parts = [joined_strides(rows) for rows in [linear] * other.linear + local]
    if len(parts) == 1 or not other.local:
        parts[-1] = to_all_voxels(parts[-1])
    if len(parts) == 1:
        return parts[0]
    return [[*row, number] for number, rows in enumerate(parts) for row in rows]


def joined_strides(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows of stride and steps, with one row for each stride."""
    strides = dict.fromkeys(stride for stride, _ in rows)
    return [[stride, sum(steps for own, steps in rows if own == stride)] for stride in strides]


def to_all_voxels(rows: list[list[int]]) -> list[list[int]]:
    """With further rows of half the stride and half the steps, to a stride of 1."""
    while rows and rows[-1][0] > 1:
        stride, steps = rows[-1]
        rows = [*rows, [stride // 2, max(1, steps // 2)]]
    return rows


def weighted_rate(is_global: bool, one_by_one: bool, steps: int) -> float:
    """Learning rate of theta for an objective with weights (hippocampus data).

    In fewer steps than usual control points take smaller ones: 5 at the full rate end where they began.

    Args:
        is_global: whether there are parameters that move all voxels, among those that move at once.
        one_by_one: whether the components of a transformation move one after the other.
        steps: of the refinement; none is as one.
    """
    local = LOCAL_RATE if one_by_one else AT_ONCE_RATE
    return GLOBAL_RATE if is_global else local * min(1.0, max(1, steps) / USUAL_STEPS)


def finest_stride(spatial_size: Sequence[int]) -> int:
    """1 for a small grid, else 2 or, for a large one, what leaves ``MOST_COMPARED`` voxels."""
    stride = 1 if math.prod(spatial_size) <= SMALL else COARSE_STRIDE
    while stride < MAX_STRIDE and math.prod(math.ceil(n / stride) for n in spatial_size) > MOST_COMPARED:
        stride *= 2
    return stride


def checked_levels(levels: Any) -> Levels:
    """Levels as a user gave them: stride, steps and, of a level that is of one component alone, its number.

    Raises:
        ValueError: if they are of another form, become coarser again for the same component, or, without components, do
            not end with all voxels.

    Examples:
        >>> checked_levels([[4, 10], [2, 25], [1, 15]])[1]
        Level(stride=2, steps=25, component=None)
        >>> checked_levels([[4, 40, 0], [4, 40, 1], [2, 40, 2]])[1]
        Level(stride=4, steps=40, component=1)
    """
    rows = list(levels) if isinstance(levels, (list, tuple)) else []
    whole = all(isinstance(row, (list, tuple)) and [type(n) for n in row] in ([int] * 2, [int] * 3) for row in rows)
    found = [Level(*row) for row in rows] if whole else []
    counted = all(1 <= level.stride <= MAX_STRIDE and level.steps >= 1 for level in found)
    if not found or not counted or not ordered(found):
        raise ValueError(
            "refine_levels must be stride and steps of each level, coarse to fine, the last of stride 1 and none above "
            f"{MAX_STRIDE}, such as [[4,10],[2,25],[1,15]], or of one component of the transformation each, by its "
            f"number from 0, such as [[4,40,0],[4,40,1],[2,40,2]], got {levels!r}"
        )
    return found


def ordered(levels: Levels) -> bool:
    """Whether levels become finer: to all voxels where no component has its own."""
    strides = [level.stride for level in levels]
    if any(level.component is not None for level in levels):
        numbers = {level.component for level in levels}
        each = [[level.stride for level in levels if level.component == number] for number in numbers]
        return all(own == sorted(own, reverse=True) for own in each) and min(n for n in numbers if n is not None) >= 0
    return strides == sorted(set(strides), reverse=True) and strides[-1] == 1


def check_components(levels: Levels, components: int) -> None:
    """ValueError if a level is of a component that there is not."""
    odd = [level.component for level in levels if level.component is not None and level.component >= components]
    if odd:
        raise ValueError(
            f"refine_levels: there is no component {odd[0]}, the transformation has {components}, numbered from 0"
        )


def in_turn(levels: Levels) -> bool:
    """Whether components move one after the other."""
    return any(level.component is not None for level in levels)


def strides_of(levels: Levels) -> list[int]:
    """The stride of each step.

    Examples:
        >>> strides_of([Level(2, 3), Level(1, 1)])
        [2, 2, 2, 1]
    """
    return [level.stride for level in levels for _ in range(level.steps)]


def check_target(target: str, symmetric: bool, levels: Levels | None) -> None:
    """ValueError unless there is such a target, and theta is what is refined both ways, or in turn."""
    if target not in TARGETS:
        raise ValueError(f"target must be one of {TARGETS}, got {target!r}")
    if symmetric and target != "theta":
        raise ValueError("symmetric refines theta, got target 'stn': leave one of them out")
    if target != "theta" and in_turn(levels or ()):
        raise ValueError("levels of components are of theta, got target 'stn': leave out their third number")


def check_steps(steps: Any, coarse_steps: Any) -> None:
    """ValueError unless both are numbers of steps."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps must be a whole number of at least 0, got {steps!r}")
    if coarse_steps is not None and (not isinstance(coarse_steps, int) or coarse_steps < 0):
        raise ValueError(f"coarse_steps must be a whole number of at least 0, or None, got {coarse_steps!r}")
