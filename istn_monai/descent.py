"""Gradient descent of a refinement: steps of Adam, of which each pair keeps the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from istn_monai.adam import Adam, cosine_to_zero

SMALL = 2**16  # voxels below which threads wait for each other for longer than they work
#: theta ``(B, P)`` and a stride to the ddf ``(B, D, *S)`` at each ``stride``-th voxel, and its objective ``(B,)``
Evaluate = Callable[[Tensor, int], tuple[Tensor, Tensor]]


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
        levels: of components that move one after the other, stride and steps of each level: of each one the best
            iterate is kept, and ``trace`` has its objectives at its own stride. Empty if all move at once.
    """

    steps: int
    seconds: float
    objective_start: float
    objective_end: float
    at_bound: float
    trace: tuple[float, ...]
    terms: dict[str, tuple[float, float]] = field(default_factory=dict)
    levels: tuple[tuple[int, int], ...] = ()

    @property
    def refined(self) -> bool:
        """Whether anything was tried: a refinement of 0 steps keeps its start."""
        return len(self.trace) > 1

    def numbers(self) -> dict[str, float]:
        """All but trace, terms and levels, by name."""
        return {name: value for name, value in asdict(self).items() if name not in ("trace", "terms", "levels")}


@dataclass(frozen=True)
class Descent:
    """How to descend.

    Attributes:
        learning_rate: of Adam at the start; it falls to 0 along a cosine.
        epsilon: of Adam. The larger it is, the less moves what hardly matters to the objective.
        patience: a pair stops after as many full steps without an improvement of at least ``tolerance``, relative.
        tolerance: see ``patience``.
        deadline: on the clock ``time.perf_counter``; None for none.
        on_step: is called after each step, for a progress bar.
        relative: epsilon is a fraction of the root of the mean square of each pair's first gradient, so that it serves
            any grid and objective; for ``theta`` ``(B, P)`` alone.
        betas: of Adam. The smaller they are, the sooner it forgets earlier steps, which helps where there are few.
    """

    learning_rate: float
    epsilon: float
    patience: int
    tolerance: float
    deadline: float | None = None
    on_step: Callable[[], object] | None = None
    relative: bool = False
    betas: tuple[float, float] = (0.9, 0.999)

    def __call__(
        self,
        evaluate: Evaluate,
        theta_of: Callable[[], Tensor],
        parameters: list[Tensor],
        strides: Sequence[int],
        finest: int = 1,
        factor: float = 1.0,
    ) -> BestIterates:
        """Steps on ``parameters``, which ``theta_of`` turns into theta ``(B, P)``.

        Args:
            evaluate: what is minimized.
            theta_of: the transformation's parameters.
            parameters: what is optimized, in place.
            strides: of the voxels that each step compares.
            finest: stride at which the start, the best iterate and the last one are compared.
            factor: of the learning rate.
        """
        optimizer = Adam(parameters, self.epsilon, self.betas)
        steps = len(strides)
        track = BestIterates(self.patience, self.tolerance, steps)
        scales: list[Tensor | float] = [1.0] * len(parameters)
        for step in range(steps + 1):
            late = self.deadline is not None and time.perf_counter() > self.deadline
            stride = strides[step] if 0 < step < steps and not late else finest
            theta = theta_of()
            ddf, values = evaluate(theta, stride)
            check_finite_step(step, values.detach(), ddf.detach())
            if step == 0:
                track.ddf_start = ddf.detach()
            if stride == finest:
                track.update(step, theta.detach(), values.detach())
            if step == steps or late or not track.active.any():
                break
            gradients: Sequence[Tensor] = torch.autograd.grad(values.sum(), parameters)
            if self.relative and step == 0:
                scales = [gradient_scale(gradient) for gradient in gradients]
            gradients = [gradient * scale for gradient, scale in zip(gradients, scales, strict=True)]
            optimizer.step(gradients, factor * self.learning_rate * cosine_to_zero(step, steps))
            if self.on_step is not None:
                self.on_step()
        return track

    def at_stride(self, start: Tensor, evaluate: Evaluate, stride: int, steps: int, factor: float) -> BestIterates:
        """Steps on theta ``(B, P)`` itself, all at one stride, from a start."""
        theta = start.detach().clone().requires_grad_()
        return self(evaluate, lambda: theta, [theta], [stride] * steps, stride, factor)


def check_stopping(patience: int, tolerance: float, max_seconds: float | None) -> None:
    """ValueError, naming it, for what no descent could stop by."""
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        raise ValueError(f"patience must be a whole number of steps, at least 1, got {patience!r}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be a fraction of the objective, at least 0 and below 1, got {tolerance!r}")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be above 0, or None for no limit, got {max_seconds!r}")


@contextmanager
def no_idle_threads(voxels: int) -> Iterator[None]:
    """One thread for steps that compare so few voxels that several take longer, on a busy machine much longer."""
    threads = torch.get_num_threads()
    if voxels >= SMALL or threads == 1:  # a thread of Python that began meanwhile has one, and must not give it to all
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def gradient_scale(gradient: Tensor) -> Tensor:
    """``(B, 1)``: what makes the root of the mean square of each pair's gradient ``(B, P)`` 1; 1 where it is 0."""
    size = gradient.square().mean(1, keepdim=True).sqrt()
    return torch.where(size > 0, 1 / size.clamp_min(torch.finfo(size.dtype).tiny), 1.0)


def check_finite_step(step: int, values: Tensor, ddf: Tensor) -> None:
    """ValueError before gradients are taken of what is not finite, which ends the whole process in 2-D."""
    if math.isfinite(float(values.sum() + ddf.sum())):
        return
    finite = [bool(torch.isfinite(own).all()) for own in (values, ddf)]
    if all(finite):  # only their sum is not
        return
    what = "displacement field" if finite[0] else "objective"
    raise ValueError(
        f"refinement: the {what} is NaN or infinite at step {step}: check that images and weights are finite, or "
        "choose a lower refine_learning_rate or another similarity"
    )


class BestIterates:
    """The best theta of each pair so far, whether the pair still improves, and the objectives up to ``last_step``."""

    ddf_start: Tensor

    def __init__(self, patience: int, tolerance: float, last_step: int) -> None:
        self.patience = patience
        self.tolerance = tolerance
        self.last_step = last_step

    def update(self, step: int, theta: Tensor, values: Tensor) -> None:
        """Takes in an iterate, theta ``(B, P)`` and objectives ``(B,)``, one number of each pair: these on the CPU."""
        values = values.cpu()
        if step == 0:
            self.theta, self.theta_start = theta.clone(), theta.clone()
            self.start = self.best = self.mark = values.clone()
            self.trace = values.new_full((len(values), self.last_step + 1), torch.nan)
            self.trace[:, 0] = values
            self.steps, self.marked, self.seen = torch.zeros(len(values)), torch.zeros(len(values)), 0
            self.active = torch.ones(len(values), dtype=torch.bool)
            return
        self.seen += 1
        self.trace[:, step] = torch.where(self.active, values, torch.nan)
        better = (values < self.best) & self.active
        if better.any():
            self.theta = torch.where(better.to(theta.device)[:, None], theta, self.theta)
        self.best, self.steps = torch.where(better, values, self.best), torch.where(better, step, self.steps)
        # update the reference only on a relative improvement of `tolerance`, so slow drift still stops
        moved = values < self.mark - self.tolerance * self.mark.abs()
        self.mark, self.marked = torch.where(moved, values, self.mark), torch.where(moved, self.seen, self.marked)
        self.active &= self.seen - self.marked < self.patience

    def reports(self, at_bound: Tensor, seconds: float) -> list[RefinementReport]:
        """One for each pair, of whose parameters fractions ``(B,)`` are near their bounds."""
        columns = (self.steps, self.start, self.best, at_bound, self.trace)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [RefinementReport(int(s), seconds, start, end, bound, tuple(t)) for s, start, end, bound, t in rows]


def joined_reports(
    tracks: Sequence[BestIterates], start: Tensor, end: Tensor, at_bound: Tensor, seconds: float
) -> list[RefinementReport]:
    """One for each pair, of several descents one after the other, with the objective ``(B,)`` before and after all; a
    start that nothing was better than is kept. ``at_bound`` as for :meth:`BestIterates.reports`."""
    reports = []
    for number, (before, after, bound) in enumerate(
        zip(*(own.tolist() for own in (start, end, at_bound)), strict=True)
    ):
        traces = [track.trace[number].tolist() for track in tracks]
        trace = (before, *(value for own in traces for value in own[1:]))
        steps = int(sum(track.steps[number] for track in tracks)) if after < before else 0
        reports.append(RefinementReport(steps, seconds, before, after, bound, trace))
    return reports


def by_pair(terms: Mapping[str, tuple[Tensor, Tensor]], count: int) -> list[dict[str, Any]]:
    """Of each of so many pairs the terms by name, before and after, of ``(B,)`` each."""
    values = {name: list(zip(*(own.tolist() for own in both), strict=True)) for name, both in terms.items()}
    return [{name: pairs[number] for name, pairs in values.items()} for number in range(count)]
