"""Test-time refinement: registers the one pair in hand on its representations, without any annotation (paper, 2.3)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from istn_monai.descent import Descent, RefinementReport, by_pair, check_stopping, joined_reports
from istn_monai.directions import BothWays, OneWay, one_of_both
from istn_monai.geometry.composite import CompositeTransformation
from istn_monai.geometry.svf import SVFTransformation
from istn_monai.geometry.transformation import Transformation
from istn_monai.guidance import Guidance, check_both_labels, other_guidance, representations_of
from istn_monai.levels import (
    Levels,
    check_components,
    check_steps,
    check_target,
    checked_levels,
    default_levels,
    in_turn,
    levels_at_once,
    levels_in_turn,
    strides_of,
    weighted_rate,
)
from istn_monai.networks import ISTN
from istn_monai.objective import LossObjective, Objective, PairObjective
from istn_monai.refine_weights import check_objective, damping_of, term_weights
from istn_monai.turns import is_global, refine_in_turn

LEARNING_RATES = {"theta": 0.05, "stn": 1e-3}
#: of Adam; of an objective with weights, larger: what hardly matters to it then stays where it is, not at its bound
EPSILON, WEIGHTED_EPSILON = 1e-8, 1e-6
WEIGHTED_BETAS = (0.7, 0.95)  # of Adam, of theta and an objective with weights


class Refinement(NamedTuple):
    """Result of :class:`Refiner`.

    Attributes:
        theta: ``(B, P)``.
        ddf: ``(B, D, *S)`` in voxels.
        reports: one for each pair.
        theta_start: ``(B, P)``, where it began.
        moving: the images or representations ``(B, K, *S)`` that were registered, not warped.
        fixed: likewise.
    """

    theta: Tensor
    ddf: Tensor
    reports: list[RefinementReport]
    theta_start: Tensor
    moving: Tensor
    fixed: Tensor


class Refiner:
    """Minimizes ``similarity(warp(M'), F')`` over the transformation of the pairs in hand, keeping the best iterate.

    Each pair is refined by itself: a batch gives what its pairs give one by one. Nothing that is passed in is changed,
    and it works under ``no_grad`` and ``inference_mode``.

    Args:
        steps: number of steps of Adam; 0 returns the start. With weights the components of a composite transformation
            move one after the other, coarse to fine, on every second voxel of all but a small grid, see
            :func:`istn_monai.levels.levels_in_turn`.
        target: what is optimized. "theta": the parameters of the transformation, from their one-pass prediction.
            "stn": the weights of a private copy of the STN (the paper).
        learning_rate: rate of Adam at the start, which falls to 0 along a cosine; None is 0.001 for the STN, for theta
            0.05 without weights, and with them what suits the transformation, see :func:`weighted_rate`.
        weights: of terms, by name, or a preset, see :mod:`istn_monai.objective`; None is the paper's objective, or
            that of the next three.
        similarity: without weights, loss of two images ``(1, K, *S)``; None is the paper's mean squared error.
        regularization: without weights, loss of the ddf ``(1, D, *S)``; None for none.
        regularization_weight: its factor.
        coarse_steps: where all components move at once, so many steps compare every second voxel along each axis
            alone: an eighth of the work in 3-D. The start and the best iterate are chosen on all voxels. At most 70 %
            of all with weights, none where labels guide, whose edges are sharp, else half of them, and none with a
            regularization, whose scale depends on the grid. A number makes all components move at once; None is the
            most, of theta up to 25 without weights, and 0 for the STN.
        patience: a pair stops after as many full steps without an improvement of at least ``tolerance``, relative.
        tolerance: see ``patience``.
        max_seconds: stop after so long, of the STN for each pair; None for no limit.
        levels: from coarse to fine the stride and the steps of each level, ``[[4, 10], [2, 25], [1, 15]]``: steps that
            compare every fourth, every second and every voxel. With a third number a level is of that component of a
            composite transformation alone, see :mod:`istn_monai.turns`; start and best iterate are then compared at the
            finest of the strides. Takes the place of ``steps`` and ``coarse_steps``.
        symmetric: minimizes the mean of the objectives of both ways, for transformations with an inverse, see
            :mod:`istn_monai.directions`: registering the other way round then finds the inverse. It takes twice the
            time.

    Examples:
        >>> from istn_monai import AffineTransformation
        >>> fixed = torch.zeros(1, 1, 24, 20)
        >>> fixed[..., 8:14, 6:12] = 1.0
        >>> moving = fixed.roll(2, dims=2)
        >>> result = Refiner(steps=60).register(AffineTransformation((24, 20)), moving, fixed)
        >>> result.reports[0].objective_end < result.reports[0].objective_start / 10
        True
    """

    #: is called after each step, for a progress bar
    on_step: Callable[[], object] | None = None

    def __init__(
        self,
        steps: int = 50,
        target: str = "theta",
        learning_rate: float | None = None,
        similarity: Callable[[Tensor, Tensor], Tensor] | None = None,
        regularization: Callable[[Tensor], Tensor] | None = None,
        regularization_weight: float = 0.1,
        coarse_steps: int | None = None,
        patience: int = 20,
        tolerance: float = 1e-4,
        max_seconds: float | None = None,
        weights: str | Mapping[str, float] | None = None,
        levels: Sequence[Sequence[int]] | None = None,
        symmetric: bool = False,
    ) -> None:
        check_steps(steps, coarse_steps)
        if learning_rate is not None and not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a finite number above 0, or None, got {learning_rate!r}")
        check_objective(weights, similarity, regularization, regularization_weight)
        check_stopping(patience, tolerance, max_seconds)
        self.symmetric = symmetric
        self.weights = None if weights is None else term_weights(weights)
        self.levels = None if levels is None else checked_levels(levels)
        check_target(target, symmetric, self.levels)
        if levels is not None and not (coarse_steps is None and regularization is None):
            raise ValueError("levels go with neither coarse_steps nor a regularization, which depends on the stride")
        coarse_steps = 0 if regularization is not None else coarse_steps
        #: whether the components of a composite transformation move one after the other
        self.by_components = target == "theta" and coarse_steps is None and "labels" not in (self.weights or {"labels"})
        #: stride of the voxels that each step compares
        self.strides = strides_of(self.levels or default_levels(steps, coarse_steps, target, self.weights))
        self.steps = len(self.strides)
        self.target = target
        #: None is that of the transformation
        self.learning_rate = learning_rate
        self.similarity = nn.MSELoss() if similarity is None else similarity
        self.regularization, self.regularization_weight = regularization, regularization_weight
        self.patience, self.tolerance, self.max_seconds = patience, tolerance, max_seconds

    def __call__(self, network: ISTN, image: Tensor, guidance: Guidance | None = None) -> Refinement:
        """Refines a network's prediction for ``image`` ``(B, 2C, *S)``; the ITN runs once.

        Labels, landmarks and masks of the pairs, and maps in the place of the ITN's, come as ``guidance``, see
        :mod:`istn_monai.guidance`.
        """
        maps, guidance = representations_of(guidance or {})
        if "labels" in (self.weights or {}) and not network.has_itn and maps is None:
            check_both_labels(guidance)
        with torch.no_grad():
            moving, fixed = network.represent(image) if maps is None else (one.to(image) for one in maps)
        if self.target == "theta":
            with torch.no_grad():
                theta = network.stn(torch.cat([moving, fixed], dim=1))
                if self.symmetric:
                    theta = one_of_both(theta, network.stn(torch.cat([fixed, moving], dim=1)))
            with torch.inference_mode(False):  # its gradients are taken
                transformation = network.transformation.resized(image.shape[2:])
            return self.register(transformation, moving, fixed, theta, image.chunk(2, 1), guidance)
        singles = [
            self.refine_stn(
                network,
                moving[one],
                fixed[one],
                image[one].chunk(2, 1),
                {name: guide[one] for name, guide in guidance.items()},
            )
            for one in (slice(number, number + 1) for number in range(len(image)))
        ]  # weights are shared by a batch, so each pair needs a copy of its own
        thetas, ddfs, reports, starts, *_ = zip(*singles, strict=True)
        every = [report for one in reports for report in one]
        return Refinement(torch.cat(thetas), torch.cat(ddfs), every, torch.cat(starts), moving, fixed)

    def register(
        self,
        transformation: Transformation,
        moving: Tensor,
        fixed: Tensor,
        theta: Tensor | None = None,
        images: tuple[Tensor, ...] | None = None,
        guidance: Guidance | None = None,
    ) -> Refinement:
        """Registers two images, or representations, without any network.

        Args:
            transformation: on the grid of the images.
            moving: ``(B, K, *S)``.
            fixed: likewise.
            theta: start ``(B, P)``; None is the identity.
            images: of representations, the two images ``(B, C, *S)``, for the term "image"; None takes the first two.
            guidance: labels, landmarks and masks of the pairs, see :mod:`istn_monai.guidance`.
        """
        if moving.shape != fixed.shape or tuple(moving.shape[2:]) != transformation.spatial_size:
            raise ValueError(
                f"moving and fixed must both be (B, K, {', '.join(map(str, transformation.spatial_size))}), the grid "
                f"of the transformation, got {tuple(moving.shape)} and {tuple(fixed.shape)}"
            )
        with torch.inference_mode(False), torch.enable_grad():
            start = moving.new_zeros(len(moving), transformation.num_parameters) if theta is None else theta
            if len(transformation.checked(start)) != len(moving):
                raise ValueError(f"theta must be of {len(moving)} pairs, as the images are, got {tuple(start.shape)}")
            parameter = start.detach().clone().float().requires_grad_()
            pair = moving.clone(), fixed.clone()
            evaluate = self.evaluate_of(transformation, pair, images, guidance)
            if levels := self.levels_in_turn(transformation):
                return self.refine_in_turn(evaluate, parameter.detach(), pair, levels)
            return self.minimize(evaluate, lambda: parameter, [parameter], pair, self.strides_of(transformation))

    def refine_stn(
        self, network: ISTN, moving: Tensor, fixed: Tensor, images: tuple[Tensor, ...], guidance: Guidance
    ) -> Refinement:
        """Refines a copy of the network's STN for one pair of representations ``(1, K, *S)``."""
        with torch.inference_mode(False), torch.enable_grad():
            pair = moving.clone(), fixed.clone()
            stn = copy.deepcopy(network.stn).eval().requires_grad_()
            both = torch.cat(pair, dim=1)
            transformation = network.transformation.resized(moving.shape[2:])
            objective = self.objective_of(pair, transformation.spacing, images, guidance)
            return self.minimize(OneWay(transformation, objective), lambda: stn(both), list(stn.parameters()), pair)

    def minimize(
        self,
        evaluate: OneWay,
        theta_of: Callable[[], Tensor],
        parameters: list[Tensor],
        pair: tuple[Tensor, Tensor],
        strides: Sequence[int] | None = None,
    ) -> Refinement:
        """Adam on ``parameters``, which ``theta_of`` turns into theta ``(B, P)``; ``strides`` of the steps."""
        begin = time.perf_counter()
        strides = self.strides if strides is None else strides
        finest = min(strides, default=1)
        track = self.descent(begin, evaluate.transformation)(evaluate, theta_of, parameters, strides, finest)
        with torch.no_grad():
            ddf_start = track.ddf_start if finest == 1 else evaluate.transformation(track.theta_start)
            ddf = evaluate.transformation(track.theta) if strides else ddf_start
            starts = evaluate.terms(track.theta_start, ddf_start)
            ends = evaluate.terms(track.theta, ddf) if strides else starts
            terms = {name: (own, ends[name]) for name, own in starts.items()}
        at_bound = evaluate.transformation.near_bounds(track.theta)
        reports = track.reports(at_bound, time.perf_counter() - begin)
        reports = [replace(report, terms=own) for report, own in zip(reports, by_pair(terms, len(ddf)), strict=True)]
        return Refinement(track.theta, ddf, reports, track.theta_start, *pair)

    def refine_in_turn(
        self, evaluate: OneWay, start: Tensor, pair: tuple[Tensor, Tensor], levels: Levels
    ) -> Refinement:
        """One component after the other, see :mod:`istn_monai.turns`; the start is kept if nothing is better."""
        transformation = evaluate.transformation
        if not isinstance(transformation, CompositeTransformation) or self.weights is None:
            raise ValueError(
                "refine_levels of components need a transformation that has some, and refine_weights, got "
                f"{type(transformation).__name__} and weights {self.weights}"
            )
        check_components(levels, len(transformation.components))
        begin = time.perf_counter()
        theta, tracks = refine_in_turn(transformation, start, evaluate, levels, self.descent(begin, transformation))
        with torch.no_grad():
            finest = min(level.stride for level in levels)
            ddfs = [transformation.whole(parameters, finest) for parameters in (start, theta)]
            terms = [evaluate.terms(each, ddf, finest) for each, ddf in zip((start, theta), ddfs, strict=True)]
            before, after = (torch.stack(list(own.values())).sum(0) for own in terms)
            better = after < before
            theta = torch.where(better[:, None], theta, start)
            ends = {name: (own, torch.where(better, terms[1][name], own)) for name, own in terms[0].items()}
            chosen = torch.where(better.view(-1, *[1] * (ddfs[0].ndim - 1)), *ddfs[::-1])
            ddf = chosen if finest == 1 else transformation(theta)
        at_bound, ends_at = transformation.near_bounds(theta), torch.minimum(before, after)
        reports = joined_reports(tracks, before, ends_at, at_bound, time.perf_counter() - begin)
        turns = tuple((level.stride, level.steps) for level in levels)
        each = zip(reports, by_pair(ends, len(ddf)), strict=True)
        reports = [replace(report, terms=own, levels=turns) for report, own in each]
        return Refinement(theta, ddf, reports, start, *pair)

    def strides_of(self, transformation: Transformation) -> list[int]:
        """The stride of each step where all parameters move at once: larger ones where a field costs much."""
        costly = self.symmetric or isinstance(transformation, SVFTransformation)
        if self.levels is None and self.by_components and costly:
            return strides_of(levels_at_once(self.steps, transformation.spatial_size))
        return self.strides

    def levels_in_turn(self, transformation: Transformation) -> Levels:
        """Levels of one component after the other: those that were given, or the default; none if all move at once."""
        if self.levels is not None:
            return self.levels if in_turn(self.levels) else ()
        if not self.by_components or not isinstance(transformation, CompositeTransformation) or not self.steps:
            return ()
        return levels_in_turn(self.steps, len(transformation.components), transformation.spatial_size)

    def descent(self, begin: float, transformation: Transformation) -> Descent:
        """How to descend, from a time on."""
        deadline = None if self.max_seconds is None else begin + self.max_seconds
        if self.weights is None or self.target != "theta":
            rate, epsilon = LEARNING_RATES[self.target], EPSILON if self.weights is None else WEIGHTED_EPSILON
            further: dict[str, Any] = {}
        else:
            one_by_one = bool(self.levels_in_turn(transformation))
            rate = weighted_rate(is_global(transformation, not one_by_one), one_by_one, self.steps)
            epsilon = damping_of(self.weights)
            further = {"relative": True, "betas": WEIGHTED_BETAS}
        rate = rate if self.learning_rate is None else self.learning_rate
        return Descent(rate, epsilon, self.patience, self.tolerance, deadline, self.on_step, **further)

    def evaluate_of(
        self,
        transformation: Transformation,
        pair: tuple[Tensor, Tensor],
        images: tuple[Tensor, ...] | None,
        guidance: Guidance | None,
    ) -> OneWay:
        """What is minimized of a transformation of pairs."""
        objective = self.objective_of(pair, transformation.spacing, images, guidance)
        if not self.symmetric:
            return OneWay(transformation, objective)
        swapped = None if images is None else images[1::-1]
        back = self.objective_of(pair[::-1], transformation.spacing, swapped, other_guidance(guidance or {}))
        return BothWays(transformation, objective, back)

    def objective_of(
        self,
        pair: tuple[Tensor, Tensor],
        spacing: Sequence[float],
        images: tuple[Tensor, ...] | None,
        guidance: Guidance | None,
    ) -> Objective:
        """What is minimized for pairs, in float32."""
        pair = pair[0].float(), pair[1].float()
        images = None if images is None else tuple(image.float() for image in images)
        if self.weights is None:
            if guidance and self.steps:
                raise ValueError(
                    f"the refinement has an objective without weights, which knows of no {', '.join(guidance)}: give "
                    "refine_weights other than none"
                )
            return LossObjective(*pair, self.similarity, self.regularization, self.regularization_weight)
        return PairObjective(self.weights, *pair, spacing, images, guidance)
