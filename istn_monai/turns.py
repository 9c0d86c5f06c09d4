"""Coarse to fine: the components of a composite transformation refined one after the other, on an image pyramid.

While one component moves, those before it, coarser ones, have moved the image already, and those after it are where
they are: a step then samples the images once, instead of once for each component.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from istn_monai.descent import BestIterates, Descent, Evaluate, no_idle_threads
from istn_monai.directions import BothWays, OneWay
from istn_monai.geometry.bending import bending_gradient
from istn_monai.geometry.composite import CompositeTransformation
from istn_monai.geometry.sampling import compose
from istn_monai.geometry.transformation import Transformation
from istn_monai.levels import Level
from istn_monai.objective import PairObjective

#: of the learning rate, for components of few parameters, which all voxels share: an affine transformation
GLOBAL_FACTOR = 0.4


def refine_in_turn(
    composite: CompositeTransformation,
    theta: Tensor,
    whole: OneWay,
    levels: Sequence[Level],
    descent: Descent,
) -> tuple[Tensor, list[BestIterates]]:
    """Refined parameters ``(B, P)``, and what each level did.

    Args:
        composite: on the grid of the pair.
        theta: start ``(B, P)``.
        whole: what is minimized, of all components, with the objective of terms with weights.
        levels: see :class:`istn_monai.levels.Level`.
        descent: of each level.
    """
    tracks = []
    for level in levels:
        with no_idle_threads(len(theta) * math.prod(n // level.stride for n in composite.spatial_size)):
            turn = Turn(composite, theta, level, whole)
            track = descent.at_stride(turn.start, turn.evaluate, level.stride, level.steps, turn.rate)
        theta = turn.whole(track.theta)
        tracks.append(track)
    return theta, tracks


class Turn:
    """What moves at a level, one component or all.

    Attributes:
        start: its parameters.
        evaluate: what is minimized. Of one component alone it has its own bending energy, which needs no dense field.
        rate: factor of the learning rate.
    """

    def __init__(self, composite: CompositeTransformation, theta: Tensor, level: Level, whole: OneWay) -> None:
        self.blocks, self.number = list(composite.split(theta)), level.component
        self.start, self.rate = theta, 1.0
        self.evaluate: Evaluate = whole
        if level.component is not None:
            component, self.start = composite.components[level.component], self.blocks[level.component]
            self.rate = GLOBAL_FACTOR if is_global(component) else 1.0
            if isinstance(whole, BothWays):  # an inverse ends with the components that begin: nothing rests on one side
                self.evaluate = lambda own, stride: whole(self.whole(own), stride)
            else:
                self.evaluate = self.alone(
                    composite, level.component, level.stride, cast(PairObjective, whole.objective)
                )

    def alone(self, composite: CompositeTransformation, number: int, stride: int, objective: PairObjective) -> Evaluate:
        """One component moves; those before it have moved the image, those behind it move its points.

        Behind, its change is taken where it is, not where these points are: exact at the start, and a step needs no
        sample of the component's own field.
        """
        component = composite.components[number]
        with torch.no_grad():
            before = composite.between(self.blocks, 0, number, stride)
            behind = composite.between(self.blocks, number + 1, len(self.blocks), stride)
            fixed = None
            if behind is not None:
                own = component(self.start, stride)
                fixed = compose(own, behind, stride) - own
        objective = objective if before is None else objective.after(before, stride)
        resting, pull = self.others(composite, number, stride)

        def evaluate(theta: Tensor, stride: int) -> tuple[Tensor, Tensor]:
            """See :data:`istn_monai.descent.Evaluate`."""
            ddf = component(theta, stride)
            bending = component.bending_energy(theta, stride) + resting + (pull * ddf).flatten(1).sum(1)
            ddf = ddf if fixed is None else ddf + fixed
            return ddf, objective(ddf, stride, bending)

        return evaluate

    def others(self, composite: CompositeTransformation, number: int, stride: int) -> tuple[Tensor, Tensor]:
        """Of the components that rest the bending energy ``(B,)``, and its gradient by their ddf ``(B, D, *S)``.

        Displacements one after the other bend about as much as their sum, and bending energy E is quadratic: ``E(u + c)
        = E(u) + <E'(c), u> + E(c)``. By itself alone each component would bend the same way as the others for less.
        """
        blocks = [block if n != number else torch.zeros_like(block) for n, block in enumerate(self.blocks)]
        ddf = composite.total(blocks, stride)
        pull = bending_gradient(ddf, composite.spacing, stride)
        return (pull * ddf).flatten(1).sum(1) / 2, pull

    def whole(self, theta: Tensor) -> Tensor:
        """The parameters of all, with those that moved."""
        if self.number is None:
            return theta
        return torch.cat([*self.blocks[: self.number], theta, *self.blocks[self.number + 1 :]], dim=1)


def is_global(transformation: Transformation, any_part: bool = False) -> bool:
    """Whether all parameters move all voxels, or, for ``any_part``, some do."""
    return (any if any_part else all)(len(shape) == 1 for shape in transformation.parameter_shapes)
