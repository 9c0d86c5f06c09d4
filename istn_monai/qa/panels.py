"""The panels of a QA page: planes of a registered pair, drawn into matplotlib's axes.

Planes lie along the registration grid and are seen as radiologists do: right and front are on the left. Moving is
magenta, fixed is green: colors that are told apart without seeing red or green.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from torch import Tensor

from istn_monai.geometry.sampling import voxel_grid
from istn_monai.qa.measures import RegisteredPair, largest_slices

MOVING, FIXED, FIXED_ON_WHITE = "#ff44ee", "#2fd07f", "#159a57"
INK, LINE, FOLD = "#20262e", "#3d4a5c", "#f0e442"
#: of M' alone, F' alone, one structure in both, different ones in both
FUSION = ((1.0, 0.27, 0.93), (0.18, 0.82, 0.5), (1.0, 1.0, 1.0), (0.9, 0.62, 0.0))
ENDS = (("L", "R"), ("P", "A"), ("I", "S"))  # of the grid's axes, which are the nearest to R, A, S
LOG_RANGE = math.log(4.0)  # colors of the log Jacobian end at a quarter and four times the volume
GRID_LINES = 20  # of the deformed grid, along its longest side


@dataclass(frozen=True)
class Plane:
    """A plane through the registration grid: two axes that are shown, across and up, and the slice of all others."""

    across: int
    up: int
    index: tuple[int | slice, ...]

    def of(self, volume: Tensor) -> np.ndarray:
        """``(*S)`` to a picture, rows upwards."""
        return volume[self.index].T.numpy()


def planes_of(pair: RegisteredPair) -> list[Plane]:
    """The planes of each two axes, through the slices that hold most of F' (the middle, where it is no structure)."""
    size = pair.ddf.shape[1:]
    structures = pair.fixed_representation.clamp(0, 1)
    at = [s // 2 for s in size]
    if pair.kind != "image" and structures.sum() > 0:
        at = largest_slices(structures)
    return [
        Plane(across, up, tuple(slice(None) if axis in (across, up) else at[axis] for axis in range(len(size))))
        for across, up in combinations(range(len(size)), 2)
    ]


Draw = Callable[[Axes, Plane], None]


@dataclass(frozen=True)
class Column:
    """A column of pictures, one for each plane; ``draw`` puts a plane into axes."""

    title: str
    draw: Draw


class Painter:
    """Draws planes of one pair into axes."""

    def __init__(self, pair: RegisteredPair) -> None:
        self.pair = pair
        self.reach = [
            ((0 - 0.5) * step, (n - 0.5) * step) for n, step in zip(pair.ddf.shape[1:], pair.spacing, strict=True)
        ]
        moving = pair.moving_representation
        self.moving_representations = {
            "before": moving,
            "one pass": pair.warped(moving, pair.one_pass),
            "refined": pair.warped(moving, pair.ddf),
        }

    def picture(self, axes: Axes, plane: Plane, image: np.ndarray, **style: Any) -> None:
        """A picture (rows upwards) in mm, with the ends of the grid's axes."""
        style = {"interpolation": "bilinear"} | style
        extent = (*self.reach[plane.across], *self.reach[plane.up])
        axes.imshow(image, origin="lower", extent=extent, **style)
        axes.set(xlim=extent[1::-1], ylim=extent[2:])  # right and front on the left
        axes.set_axis_off()  # ticks that are merely empty are laid out, which takes longer than the picture

    def letters(self, axes: Axes, plane: Plane, color: str = "white", ground: str = "black") -> None:
        """Where the plane's sides lie in the patient."""
        box = {"facecolor": ground, "edgecolor": "none", "alpha": 0.55, "pad": 0.8}
        style: dict[str, Any] = {"transform": axes.transAxes, "color": color, "fontsize": 7.5, "bbox": box}
        (right, left), (low, high) = ENDS[plane.across], ENDS[plane.up]
        axes.text(0.025, 0.5, left, ha="left", va="center", **style)
        axes.text(0.975, 0.5, right, ha="right", va="center", **style)
        axes.text(0.5, 0.975, high, ha="center", va="top", **style)
        axes.text(0.5, 0.025, low, ha="center", va="bottom", **style)

    def outlines(self, axes: Axes, plane: Plane, representation: Tensor, color: str) -> None:
        """Where each channel of a representation is half of its full value."""
        across, up = (np.arange(self.pair.ddf.shape[1 + a]) * self.pair.spacing[a] for a in (plane.across, plane.up))
        for channel in representation:
            values = plane.of(channel)
            if values.min() < 0.5 < values.max():
                axes.contour(across, up, values, levels=[0.5], colors=[color], linewidths=1.1)

    def gray(self, image: Tensor, *outlines: tuple[Tensor, str]) -> Draw:
        """An image with outlines of representations."""

        def draw(axes: Axes, plane: Plane) -> None:
            """One plane."""
            self.picture(axes, plane, plane.of(image[0]), cmap="gray", vmin=0, vmax=1)
            for representation, color in outlines:
                self.outlines(axes, plane, representation, color)
            self.letters(axes, plane)

        return draw

    def fusion(self, moving: Tensor, fixed: Tensor) -> Draw:
        """Two representations ``(K, *S)``: magenta and green alone, white where one channel is in both, orange where
        different ones are."""
        moving, fixed = moving.clamp(0, 1), fixed.clamp(0, 1)
        same = torch.minimum(moving, fixed).amax(0)
        alone = [(r.amax(0) - same).clamp(min=0) for r in (moving, fixed)]
        other = torch.minimum(*alone)
        layers = (alone[0] - other, alone[1] - other, same, other)

        def draw(axes: Axes, plane: Plane) -> None:
            """One plane."""
            weights = np.stack([plane.of(layer) for layer in layers], axis=-1)
            self.picture(axes, plane, np.clip(weights @ np.array(FUSION), 0, 1))
            self.letters(axes, plane)

        return draw

    def grid(self, axes: Axes, plane: Plane) -> None:
        """Where lines of the fixed grid are found in the moving image."""
        size = self.pair.ddf.shape[1:]
        step = max(1, round(max(size) / GRID_LINES))
        moved = voxel_grid(size, self.pair.ddf) + self.pair.ddf
        across, up = (plane.of(moved[a]) * self.pair.spacing[a] for a in (plane.across, plane.up))
        self.picture(axes, plane, plane.of(torch.ones(size)), cmap="gray", vmin=0, vmax=1)
        for x, y in ((across, up), (across.T, up.T)):
            axes.plot(x[::step].T, y[::step].T, color=LINE, linewidth=0.6)
        self.outlines(axes, plane, self.pair.fixed_representation, FIXED_ON_WHITE)
        self.letters(axes, plane, INK, "white")

    def jacobian(self, axes: Axes, plane: Plane) -> None:
        """The log of the Jacobian determinant; folding stands out."""
        determinant = plane.of(self.pair.determinant)
        values = np.log(np.maximum(determinant, 1e-6))
        self.picture(axes, plane, values, cmap="RdBu_r", vmin=-LOG_RANGE, vmax=LOG_RANGE)
        folds = np.ma.masked_less(np.where(determinant <= 0, 1.0, 0.0), 0.5)
        self.picture(axes, plane, folds, cmap=ListedColormap([FOLD]), interpolation="nearest")
        self.letters(axes, plane, INK, "white")


def columns_of(pair: RegisteredPair) -> list[Column]:
    """The page's columns; the refined ones only where there was a refinement, and one pass where it is one."""
    painter = Painter(pair)
    moved = painter.moving_representations
    fixed = (pair.fixed_representation, FIXED)
    last = "refined" if pair.refinement else "one pass"
    columns = [
        Column("Fixed F", painter.gray(pair.fixed, fixed)),
        Column("Moving M, before", painter.gray(pair.moving, fixed, (moved["before"], MOVING))),
        Column(
            "M, one pass", painter.gray(pair.warped(pair.moving, pair.one_pass), fixed, (moved["one pass"], MOVING))
        ),
        Column("M, refined", painter.gray(pair.warped(pair.moving, pair.ddf), fixed, (moved["refined"], MOVING))),
        Column("M′ on F′, before", painter.fusion(moved["before"], pair.fixed_representation)),
        Column(f"M′ on F′, {last}", painter.fusion(moved[last], pair.fixed_representation)),
        Column("Deformed grid", painter.grid),
        Column("log Jacobian", painter.jacobian),
    ]
    absent = [title for title, there in (("M, one pass", pair.guessed), ("M, refined", pair.refinement)) if not there]
    return [column for column in columns if column.title not in absent]
