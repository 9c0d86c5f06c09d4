"""Where a displacement takes its points from: ``x`` with ``x + u(x) = y``, or that there is no such place.

Convention:
    Points are ``(D, N)`` float64 in mm. A displacement ``u`` is continuous here: what it is beyond its domain is for
    the caller to say. Most points are found by fixed-point iteration, which costs one evaluation a step; the
    others, where the map turns by 60 degrees or doubles lengths, by damped Newton steps (Levenberg and Marquardt).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ACCURACY = 1e-4  # mm, at which iteration ends
STEPS, NEWTON_STEPS = 25, 12
DAMPING, MOST_DAMPING = 1e-6, 1e2
DELTA = 1e-3  # mm, of the differences that make the Jacobian
COMPARED = 2**10  # points whose start is searched at once
Map = Callable[[Tensor], Tensor]


def by_fixed_point(displacement: Map, points: Tensor) -> Tensor:
    """``x = y - u(x)`` (Chen et al., 2008), for each point until it is found or ``STEPS`` are done."""
    found = points - displacement(points)
    left = torch.arange(points.shape[1])
    for _ in range(STEPS):
        whole = len(left) == points.shape[1]
        places, aims = (found, points) if whole else (found[:, left], points[:, left])
        error = places + displacement(places) - aims
        far = error.abs().amax(dim=0) >= ACCURACY
        left = left[far]
        if not len(left):
            break
        found[:, left] = (places - error)[:, far]
    return found


def by_search(displacement: Map, points: Tensor, starts: Tensor, bounds: Sequence[Map]) -> tuple[Tensor, Tensor]:
    """Newton's steps from the start that is taken nearest to each point: which were tried, and their places ``(D, M)``.

    Args:
        displacement: ``u``.
        points: ``y``.
        bounds: how places are kept where they may be, one after the other.
        starts: ``(D, *M)``, a lattice that fills the domain; points farther from all of its image than its neighbors
            are from each other are taken to by nothing, and are not tried.
    """
    images = starts + displacement(starts.flatten(1)).view(starts.shape)
    long = [axis for axis in range(1, images.ndim) if images.shape[axis] > 1]
    apart = sum(float(images.diff(dim=axis).norm(dim=0).max()) for axis in long) + ACCURACY
    images, starts = images.flatten(1), starts.flatten(1)
    low, high = (images.amin(dim=1)[:, None] - apart, images.amax(dim=1)[:, None] + apart)
    near = ((points >= low) & (points <= high)).all(dim=0).nonzero()[:, 0]
    distance, start = nearest(images, points[:, near])
    near, start = near[distance <= apart], start[distance <= apart]
    places = starts[:, start]
    for bounded in bounds:
        places = by_newton(displacement, points[:, near], places, bounded)
    return near, places


def by_newton(displacement: Map, points: Tensor, start: Tensor, bounded: Map) -> Tensor:
    """Levenberg and Marquardt's steps from a start, each ``bounded``; none makes the distance larger."""
    found = start.clone()
    error = found + displacement(found) - points
    damping = torch.full_like(error[0], DAMPING)
    for _ in range(NEWTON_STEPS):
        left = ((error.abs().amax(dim=0) >= ACCURACY) & (damping < MOST_DAMPING)).nonzero()[:, 0]
        if not len(left):
            break
        step = damped_step(displacement, found[:, left], error[:, left], damping[left])
        tried = bounded(found[:, left] - step)
        new = tried + displacement(tried) - points[:, left]
        better = new.norm(dim=0) < error[:, left].norm(dim=0)
        found[:, left[better]], error[:, left[better]] = tried[:, better], new[:, better]
        damping[left] = torch.where(better, (damping[left] / 10).clamp(min=DAMPING), damping[left] * 10)
    return found


def damped_step(displacement: Map, places: Tensor, error: Tensor, damping: Tensor) -> Tensor:
    """What ``x + u(x)``, linear around places ``(D, N)``, says of the way to where the error ``(D, N)`` is 0."""
    steps = DELTA * torch.eye(len(places), dtype=places.dtype)
    ends = (displacement(places + sign * step[:, None]) for step in steps for sign in (1, -1))
    columns = [(after - before) / (2 * DELTA) for after, before in zip(ends, ends, strict=False)]
    jacobian = torch.stack(columns, dim=-1).movedim(1, 0) + torch.eye(len(places), dtype=places.dtype)  # (N, D, D)
    normal = jacobian.mT @ jacobian + damping[:, None, None] * torch.eye(len(places), dtype=places.dtype)
    return torch.linalg.solve(normal, jacobian.mT @ error.T[..., None])[..., 0].T


def nearest(places: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Distance ``(N,)`` of points ``(D, N)`` to the nearest of places ``(D, M)``, and which that is."""
    found = [torch.cdist(some.T, places.T).min(dim=1) for some in points.split(COMPARED, dim=1)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])
