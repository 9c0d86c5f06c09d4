"""The paper's toy as geometry: a random vessel tree in a bright box, transformed and rendered without resampling.

The world of :mod:`istn_monai.synthetic`, which writes it to disk; conventions are stated there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TEMPLATE_SEED = 10
RADII = (3.4, 2.7, 2.1, 1.5)  # mm where a trunk, a branch and a twig begin; the last one is the twigs' tips
LANDMARK_SIGMA = 2.0  # mm


@dataclass(frozen=True)
class Vessel:
    """One unbranched piece of a tree: `points` (N, D) along its center line in mm, `radii` (N,) in mm, its label."""

    points: np.ndarray
    radii: np.ndarray
    label: int


@dataclass(frozen=True)
class Grid:
    """Voxel grid with axes along world's: `shape` (D,), `spacing` (D,) in mm, `origin` (D,), voxel 0 in world mm."""

    shape: np.ndarray
    spacing: np.ndarray
    origin: np.ndarray

    @property
    def center(self) -> np.ndarray:
        """World position (D,) of the middle."""
        return self.origin + (self.shape - 1) / 2 * self.spacing

    def around(self, points: np.ndarray, margin: float) -> tuple[tuple[slice, ...], np.ndarray]:
        """The part of the grid within `margin` mm of the bounding box of `points`: slices, positions (*S, D) in mm."""
        low = np.floor((points.min(0) - margin - self.origin) / self.spacing).astype(int).clip(0, self.shape)
        high = np.ceil((points.max(0) + margin - self.origin) / self.spacing + 1).astype(int).clip(0, self.shape)
        axes = [np.arange(*ends) * s + o for *ends, s, o in zip(low, high, self.spacing, self.origin, strict=True)]
        return tuple(map(slice, low, high)), np.stack(np.meshgrid(*axes, indexing="ij"), -1)

    def positions(self) -> np.ndarray:
        """Every voxel's position (*S, D) in world mm."""
        return self.around(np.stack([self.origin, 2 * self.center - self.origin]), 0.0)[1]


def true_displacement(transform: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    """Displacement of `points` (..., D), fixed world mm, to where they are in the moving image, in mm, (..., D).

    Args:
        transform: content of a pair's ``*_transform.json``: ``matrix`` (D+1, D+1) and the waves of ``nonlinear``,
            ``moving = matrix @ fixed + sum_k amplitude[k] * sin(frequency[k] . (fixed - center) + phase[k])``.
        points: positions in the fixed image's world, mm.
    """
    matrix = np.asarray(transform["matrix"])
    points = np.asarray(points, dtype=np.float64)
    return points @ (matrix[:-1, :-1].T - np.eye(len(matrix) - 1)) + matrix[:-1, -1] + _waves(transform, points)


def _waves(transform: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    amplitude, frequency, phase, center = (
        np.asarray(transform["nonlinear"][key]) for key in ("amplitude", "frequency", "phase", "center")
    )
    return np.sin((points - center) @ frequency.T + phase) @ amplitude


def apply_transform(transform: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    """Fixed world points (..., D) to where they are in the moving image."""
    return points + true_displacement(transform, points)


def _invert(transform: Mapping[str, Any], points: np.ndarray) -> np.ndarray:
    """Moving world -> fixed world, (..., D): fixed-point iteration, which `_check_nonlinear` makes a contraction."""
    matrix = np.asarray(transform["matrix"])
    inverse, fixed = np.linalg.inv(matrix[:-1, :-1]).T, points
    for _ in range(100):
        previous, fixed = fixed, (points - matrix[:-1, -1] - _waves(transform, fixed)) @ inverse
        if not fixed.size or np.abs(fixed - previous).max() < 1e-6:
            break
    return fixed


def _rotation(rng: np.random.Generator, ndim: int, degrees: float) -> np.ndarray:
    """Product of one rotation per coordinate plane, each by up to `degrees`."""
    matrix = np.eye(ndim)
    for i, j in itertools.combinations(range(ndim), 2):
        angle, plane = np.deg2rad(rng.uniform(-degrees, degrees)), np.eye(ndim)
        plane[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ plane
    return matrix


def _random_transform(
    rng: np.random.Generator,
    source: np.ndarray,
    target: np.ndarray,
    extent: np.ndarray,
    nonlinear_mm: float,
    wavelengths: tuple[float, float] = (1.0, 2.0),
    strength: float = 1.0,
    waves: int = 3,
) -> dict[str, Any]:
    """Affine about the centers `source` -> `target` (D,) plus waves, whose amplitudes add up to `nonlinear_mm`.

    `wavelengths` is the range of the waves' lengths as a fraction of the smallest `extent`; `strength` scales all.
    """
    ndim = len(source)
    shear = rng.uniform(-0.1, 0.1, (ndim, ndim)) * strength
    np.fill_diagonal(shear, 1)
    scale = np.exp(rng.uniform(-0.1, 0.1, ndim) * strength)
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1] = _rotation(rng, ndim, 15 * strength) @ np.triu(shear) * scale
    matrix[:-1, -1] = target - matrix[:-1, :-1] @ source + rng.uniform(-4, 4, ndim) * strength
    amplitude, frequency = (_unit(rng.normal(size=(waves, ndim))) for _ in range(2))
    frequency *= 2 * np.pi / (rng.uniform(*wavelengths, (waves, 1)) * extent.min())
    nonlinear = {
        "amplitude": amplitude * nonlinear_mm * strength / waves,
        "frequency": frequency,
        "phase": rng.uniform(0, 2 * np.pi, waves),
        "center": source,
    }
    return {"matrix": matrix, "nonlinear": nonlinear}


def fitting_transform(
    tree: list[Vessel],
    rng: np.random.Generator,
    source: np.ndarray,
    target: np.ndarray,
    extent: np.ndarray,
    **kwargs: Any,
) -> dict[str, Any]:
    """Random transformation that keeps the tree in view. It weakens at each try, so it ends: the identity fits."""
    strength, points = kwargs.pop("strength", 1.0), np.concatenate([v.points for v in tree])
    while True:
        transform = _random_transform(rng, source, target, extent, strength=strength, **kwargs)
        if (np.abs(apply_transform(transform, points) - target) < extent / 2 - 1.5 * RADII[-1]).all():
            return transform
        strength *= 0.95


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _grow(
    rng: np.random.Generator, start: np.ndarray, direction: np.ndarray, length: float = 1.0, generation: int = 0
) -> list[Vessel]:
    """A vessel and all that springs from it, over three generations: D - 1 side branches, and a fork at its end."""

    def sideways() -> np.ndarray:
        """A random direction across the vessel."""
        vector = rng.normal(size=len(start))
        return _unit(vector - vector @ direction * direction)

    t = np.linspace(0, 1, 9)
    bow = 4 * (t * (1 - t))[:, None] * sideways() * rng.uniform(0.05, 0.15)
    points = start + length * (t[:, None] * direction + bow)
    tree = [Vessel(points, np.interp(t, (0, 1), RADII[generation : generation + 2]), 2 if generation else 1)]
    if generation < len(RADII) - 2:
        fork = sideways()
        branches = [(round(8 * i / len(start)), sideways()) for i in range(1, len(start))]
        for node, side in [*branches, (8, fork), (8, -fork)]:
            angle = np.deg2rad(rng.uniform(35, 60))
            child = np.cos(angle) * direction + np.sin(angle) * side
            tree += _grow(rng, points[node], child, length * rng.uniform(0.6, 0.85), generation + 1)
    return tree


def template_tree(extent: np.ndarray, spacing: np.ndarray) -> list[Vessel]:
    """The one anatomy: a tree about 0 that spans the middle 70 % of `extent` (D,) mm, wherever it is drawn."""
    tree = _grow(np.random.default_rng(TEMPLATE_SEED), np.zeros(len(extent)), np.eye(len(extent))[1])
    points = np.concatenate([v.points for v in tree])
    low, high = points.min(0), points.max(0)
    # A line fills less of a volume than of a plane: thicker there. Vessels thinner than a voxel would vanish.
    thickness = len(extent) / 2.5 * max(1.0, spacing.max())
    return [Vessel(((v.points - low) / (high - low) - 0.5) * 0.7 * extent, v.radii * thickness, v.label) for v in tree]


def landmarks_of(tree: list[Vessel]) -> tuple[list[str], np.ndarray]:
    """Names and positions (N, D) of the root, the branching points and the tips."""
    kinds = {tuple(tree[0].points[0]): "root"} | {tuple(v.points[-1]): "tip" for v in tree}
    kinds |= {tuple(v.points[0]): "branching" for v in tree[1:]}
    return [f"{kind}_{i}" for i, kind in enumerate(kinds.values())], np.array(list(kinds))


def _depth(points: np.ndarray, vessel: Vessel) -> np.ndarray:
    """Depth of `points` (..., D) below the vessel's surface in mm (negative outside): a chain of tapered capsules."""
    depth = np.full(points.shape[:-1], -np.inf)
    for i, (a, b) in enumerate(itertools.pairwise(vessel.points)):
        along = ((points - a) @ (b - a) / ((b - a) @ (b - a))).clip(0, 1)
        distance = np.linalg.norm(points - a - along[..., None] * (b - a), axis=-1)
        np.maximum(depth, vessel.radii[i] + along * (vessel.radii[i + 1] - vessel.radii[i]) - distance, out=depth)
    return depth


def render_tree(grid: Grid, tree: list[Vessel], transform: Mapping[str, Any] | None) -> np.ndarray:
    """Depth (2, *S) in mm below the surfaces of trunk and branches; with a `transform`, as the moving image sees it.

    The moving tree is the set of points whose preimage lies in the fixed tree, so it is exact, thickness included.
    """
    depth = np.full((2, *grid.shape), -np.inf)
    for vessel in tree:
        points = vessel.points if transform is None else apply_transform(transform, vessel.points)
        where, positions = grid.around(points, 1.5 * vessel.radii.max() + 2 * grid.spacing.max())
        positions = positions if transform is None else _invert(transform, positions)
        part = depth[(vessel.label - 1, *where)]
        np.maximum(part, _depth(positions, vessel), out=part)
    return depth


def _render_box(rng: np.random.Generator, offsets: np.ndarray, extent: np.ndarray, voxel: float) -> np.ndarray:
    """Occupancy (*S) in [0, 1] at `offsets` (*S, D) mm from the center, of a box with a random pose: it misleads."""
    axes = _rotation(rng, len(extent), 15)
    half = 0.4 * extent * rng.uniform(0.85, 1.05, len(extent))
    inside = half - np.abs((offsets - rng.uniform(-4, 4, len(extent))) @ axes)
    return (inside / voxel + 0.5).clip(0, 1).prod(-1)


def render_image(rng: np.random.Generator, grid: Grid, depth: np.ndarray, extent: np.ndarray) -> np.ndarray:
    """Intensities (*S), uint16 below 2**15: gray tree, bright box, dark background; bias, noise, arbitrary scale."""
    voxel, offsets = grid.spacing.mean(), grid.positions() - grid.center
    tree = (depth.max(0) / voxel + 0.5).clip(0, 1)  # partial volume: linear over the one edge voxel
    image = (1 - tree) * _render_box(rng, offsets, extent, voxel) + 0.5 * tree
    direction = _unit(rng.normal(size=len(extent))) / extent.min()
    bias = 1 + 0.15 * np.sin(np.pi * offsets @ direction + rng.uniform(0, 2 * np.pi))
    noisy = image * bias + rng.normal(0, 0.02, image.shape)
    return (noisy * 10 ** rng.uniform(2, 4)).clip(0, 2**15 - 1).round().astype(np.uint16)


def render_landmarks(grid: Grid, points: np.ndarray) -> np.ndarray:
    """Maximum (*S) in [0, 1] of one Gaussian blob per landmark."""
    blobs = np.zeros(grid.shape)
    for point in points:
        where, positions = grid.around(point[None], 5 * LANDMARK_SIGMA)
        blob = np.exp(-((positions - point) ** 2).sum(-1) / (2 * LANDMARK_SIGMA**2))
        np.maximum(blobs[where], blob, out=blobs[where])
    return blobs
