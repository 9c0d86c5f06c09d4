"""Test-time refinement: registers the one pair in hand on its representations, without any annotation (paper, 2.3)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from istn_monai.adam import Adam, cosine_to_zero
from istn_monai.geometry.transformation import Transformation
from istn_monai.guidance import Guidance, check_both_labels
from istn_monai.levels import checked_levels, default_levels, strides_of
from istn_monai.networks import ISTN
from istn_monai.objective import LossObjective, Objective, PairObjective
from istn_monai.refine_weights import term_weights

TARGETS = ("theta", "stn")
LEARNING_RATES = {"theta": 0.05, "stn": 1e-3}
#: of Adam; of an objective with weights, larger: what hardly matters to it then stays where it is, not at its bound
EPSILON, WEIGHTED_EPSILON = 1e-8, 1e-6
AT_BOUND = 2.65  # tanh(2.65) = 0.99: nearer to a parameter's bound than this, it wants to go further


@dataclass(frozen=True)
class RefinementReport:
    """What a refinement did, for one pair.

    Attributes:
        steps: iterations until the best one was found; 0 keeps the start.
        seconds: time of all steps, for all pairs of the batch.
        objective_start: similarity (and regularization) before.
        objective_end: and after; never above it.
        at_bound: fraction of the parameters within 1 % of their bound.
        trace: the objective at each step from 0 on; nan where it was not evaluated on all voxels.
        terms: of an objective with weights, its terms by name, each weighted, before and after.
    """

    steps: int
    seconds: float
    objective_start: float
    objective_end: float
    at_bound: float
    trace: tuple[float, ...]
    terms: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def refined(self) -> bool:
        """Whether anything was tried: a refinement of 0 steps keeps its start."""
        return len(self.trace) > 1

    def numbers(self) -> dict[str, float]:
        """All but trace and terms, by name."""
        return {name: value for name, value in asdict(self).items() if name not in ("trace", "terms")}


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
        steps: number of steps of Adam; 0 returns the start.
        target: what is optimized. "theta": the parameters of the transformation, from their one-pass prediction.
            "stn": the weights of a private copy of the STN (the paper).
        learning_rate: rate of Adam at the start, which falls to 0 along a cosine; None is 0.05 for theta and 0.001 for
            the STN.
        weights: of terms, by name, or a preset, see :mod:`istn_monai.objective`; None is the paper's objective, or
            that of the next three.
        similarity: without weights, loss of two images ``(1, K, *S)``; None is the paper's mean squared error.
        regularization: without weights, loss of the ddf ``(1, D, *S)``; None for none.
        regularization_weight: its factor.
        coarse_steps: so many steps compare every second voxel along each axis alone: an eighth of the work in 3-D. The
            start and the best iterate are chosen on all voxels. At most 70 % of all with weights, none where labels
            guide, whose edges are sharp, else half of them, and none with a regularization, whose scale depends on the
            grid. None is the most, of theta up to 25 without
            weights, and 0 for the STN.
        patience: a pair stops after as many full steps without an improvement of at least ``tolerance``, relative.
        tolerance: see ``patience``.
        max_seconds: stop after so long; None for no limit.
        levels: from coarse to fine the stride and the steps of each level, ``[[4, 10], [2, 25], [1, 15]]``: steps that
            compare every fourth, every second and every voxel. Takes the place of ``steps`` and ``coarse_steps``.

    Example:
        >>> from istn_monai import AffineTransformation
        >>> fixed = torch.zeros(1, 1, 24, 20)
        >>> fixed[..., 8:14, 6:12] = 1.0
        >>> moving = fixed.roll(2, dims=2)
        >>> result = Refiner(steps=60).register(AffineTransformation((24, 20)), moving, fixed)
        >>> result.reports[0].objective_end < result.reports[0].objective_start / 10
        True
    """

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
    ) -> None:
        if target not in TARGETS:
            raise ValueError(f"target must be one of {TARGETS}, got {target!r}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps must be a whole number of at least 0, got {steps!r}")
        if coarse_steps is not None and (not isinstance(coarse_steps, int) or coarse_steps < 0):
            raise ValueError(f"coarse_steps must be a whole number of at least 0, or None, got {coarse_steps!r}")
        if learning_rate is not None and not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a finite number above 0, or None, got {learning_rate!r}")
        if weights is not None and (similarity is not None or regularization is not None):
            raise ValueError("give weights, or similarity and regularization, not both")
        self.weights = None if weights is None else term_weights(weights)
        self.levels = None if levels is None else checked_levels(levels)
        if levels is not None and not (coarse_steps is None and regularization is None):
            raise ValueError("levels go with neither coarse_steps nor a regularization, which depends on the stride")
        #: stride of the voxels that each step compares
        coarse_steps = 0 if regularization is not None else coarse_steps
        self.strides = strides_of(self.levels or default_levels(steps, coarse_steps, target, self.weights))
        self.steps = len(self.strides)
        self.target = target
        self.learning_rate = LEARNING_RATES[target] if learning_rate is None else learning_rate
        self.similarity = nn.MSELoss() if similarity is None else similarity
        self.regularization, self.regularization_weight = regularization, regularization_weight
        self.patience = patience
        self.tolerance = tolerance
        self.max_seconds = max_seconds

    def __call__(self, network: ISTN, image: Tensor, guidance: Guidance | None = None) -> Refinement:
        """Refines a network's prediction for ``image`` ``(B, 2C, *S)``; the ITN runs once.

        Labels, landmarks and masks of the pairs come as ``guidance``, see :mod:`istn_monai.guidance`.
        """
        if "labels" in (self.weights or {}) and not network.has_itn:
            check_both_labels(guidance or {})
        with torch.no_grad():
            moving, fixed = network.represent(image)
        if self.target == "theta":
            with torch.no_grad():
                theta = network.stn(torch.cat([moving, fixed], dim=1))
            transformation = network.transformation.resized(image.shape[2:])
            return self.register(transformation, moving, fixed, theta, image.chunk(2, 1), guidance)
        singles = [
            self.refine_stn(
                network,
                moving[one],
                fixed[one],
                image[one].chunk(2, 1),
                {name: guide[one] for name, guide in (guidance or {}).items()},
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
            parameter = start.detach().clone().float().requires_grad_()
            pair = moving.clone(), fixed.clone()
            objective = self.objective_of(pair, transformation.spacing, images, guidance)
            return self.minimize(transformation, lambda: parameter, [parameter], pair, objective)

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
            return self.minimize(transformation, lambda: stn(both), list(stn.parameters()), pair, objective)

    def minimize(
        self,
        transformation: Transformation,
        theta_of: Callable[[], Tensor],
        parameters: list[Tensor],
        pair: tuple[Tensor, Tensor],
        objective: Objective,
    ) -> Refinement:
        """Adam on ``parameters``, which ``theta_of`` turns into theta ``(B, P)``."""
        begin = time.perf_counter()
        optimizer = Adam(parameters, EPSILON if self.weights is None else WEIGHTED_EPSILON)
        track = BestIterates(self.patience, self.tolerance, self.steps)
        for step in range(self.steps + 1):
            late = self.max_seconds is not None and time.perf_counter() - begin > self.max_seconds
            stride = self.strides[step] if 0 < step < self.steps and not late else 1
            theta = theta_of()
            ddf = transformation(theta, stride)
            values = objective(ddf, stride)
            check_finite_step(step, values.detach(), ddf.detach())
            if step == 0:
                ddf_start = ddf.detach()
            if stride == 1:
                track.update(step, theta.detach(), values.detach())
            if step == self.steps or late or not track.active.any():
                break
            gradients = torch.autograd.grad(values.sum(), parameters)
            optimizer.step(gradients, self.learning_rate * cosine_to_zero(step, self.steps))
        with torch.no_grad():
            ddf = transformation(track.theta)
            terms = terms_of(objective, ddf_start, ddf)
        seconds = time.perf_counter() - begin
        reports = [replace(report, terms=own) for report, own in zip(track.reports(seconds), terms, strict=True)]
        return Refinement(track.theta, ddf, reports, track.theta_start, *pair)

    def objective_of(
        self,
        pair: tuple[Tensor, Tensor],
        spacing: Sequence[float],
        images: tuple[Tensor, ...] | None,
        guidance: Guidance | None,
    ) -> Objective:
        """What is minimized for pairs."""
        if self.weights is None:
            if guidance and self.steps:
                raise ValueError(
                    f"the refinement has an objective without weights, which knows of no {', '.join(guidance)}: give "
                    "refine_weights other than none"
                )
            return LossObjective(*pair, self.similarity, self.regularization, self.regularization_weight)
        return PairObjective(self.weights, *pair, spacing, images, guidance)


def terms_of(objective: Objective, start: Tensor, end: Tensor) -> list[dict[str, Any]]:
    """Of each pair the terms of its objective by name, at two ddfs."""
    both = zip(objective.terms(start).items(), objective.terms(end).values(), strict=True)
    values = {name: list(zip(one.tolist(), other.tolist(), strict=True)) for (name, one), other in both}
    return [{name: pairs[number] for name, pairs in values.items()} for number in range(len(start))]


def check_finite_step(step: int, values: Tensor, ddf: Tensor) -> None:
    """ValueError before gradients are taken of what is not finite, which ends the whole process in 2-D."""
    what = "objective" if not torch.isfinite(values).all() else "displacement field"
    if what == "displacement field" and torch.isfinite(ddf.sum()):
        return
    raise ValueError(
        f"refinement: the {what} is NaN or infinite at step {step}: check that images and weights are finite, or "
        "choose a lower refine_learning_rate or another similarity"
    )


class BestIterates:
    """The best theta of each pair so far, whether the pair still improves, and the objectives up to ``last_step``."""

    def __init__(self, patience: int, tolerance: float, last_step: int) -> None:
        self.patience = patience
        self.tolerance = tolerance
        self.last_step = last_step

    def update(self, step: int, theta: Tensor, values: Tensor) -> None:
        """Takes in an iterate, theta ``(B, P)`` and objectives ``(B,)``."""
        if step == 0:
            self.theta, self.start, self.best = theta.clone(), values.clone(), values.clone()
            self.theta_start = theta.clone()
            self.trace = values.new_full((len(values), self.last_step + 1), torch.nan)
            self.trace[:, 0] = values
            self.steps, self.marked, self.seen = torch.zeros(len(values)), torch.zeros(len(values)), 0
            self.mark, self.active = values.clone(), torch.ones(len(values), dtype=torch.bool)
            return
        self.seen += 1
        self.trace[self.active, step] = values[self.active]
        better = (values < self.best).cpu() & self.active
        self.theta[better] = theta[better]
        self.best[better] = values[better]
        self.steps[better] = step
        # update the reference only on a relative improvement of `tolerance`, so slow drift still stops
        moved = (values < self.mark - self.tolerance * self.mark.abs()).cpu()
        self.mark[moved] = values[moved]
        self.marked[moved] = self.seen
        self.active &= self.seen - self.marked < self.patience

    def reports(self, seconds: float) -> list[RefinementReport]:
        """One for each pair."""
        at_bound = (self.theta.abs() > AT_BOUND).float().mean(1)
        columns = (self.steps, self.start, self.best, at_bound, self.trace)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [RefinementReport(int(s), seconds, start, end, bound, tuple(t)) for s, start, end, bound, t in rows]
