"""How the paper's figures are laid out and drawn, from the panels of QA pages: moving is magenta, fixed is green."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from istn_monai.qa.measures import RegisteredPair
from istn_monai.qa.page import FAINT, Layout
from istn_monai.qa.panels import FIXED, FUSION, INK, MOVING, Painter, Plane, planes_of

DPI = 90
Row = Mapping[str, tuple[str, RegisteredPair]]  # by column: a caption and what is shown
# inches
MARGIN, GAP, TITLE, HEADER, FOOTER = 0.12, 0.08, 0.5, 0.32, 0.28
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffd000", "#ff7b00", "#d7002b"])


def sheet(width: float, height: float) -> Layout:
    """An empty sheet of so many inches."""
    return Layout(Figure(figsize=(width, height), dpi=DPI, facecolor="white"))


def toy_sheet(stages: Row) -> Figure:
    """Moving, fixed, and both on each other at each stage, their trees in colors."""
    side, first = 2.5, next(iter(stages.values()))[1]
    plane, images = planes_of(first)[0], {"moving M": first.moving, "fixed F": first.fixed}
    names = [*images, *stages]
    layout = sheet(2 * MARGIN + len(names) * (side + GAP) - GAP, HEADER + side + FOOTER)
    for number, name in enumerate(names):
        left = MARGIN + number * (side + GAP)
        layout.text(left + side / 2, HEADER / 2, name, ha="center", fontsize=11, weight="bold")
        caption, pair = stages.get(name, ("", first))
        picture = plane.of(images[name][0]) if name in images else on_each_other(pair, plane)
        Painter(pair).picture(layout.axes(left, HEADER, side, side), plane, picture, cmap="gray", vmin=0, vmax=1)
        layout.text(left + side / 2, HEADER + side + FOOTER / 2, caption, ha="center", color=FAINT)
    return layout.figure


def on_each_other(pair: RegisteredPair, plane: Plane) -> np.ndarray:
    """Both images, transparent and dim, and the structures: moving magenta, fixed green, white where both are."""
    image, soi = (pair.warped(moving, pair.ddf) for moving in (pair.moving, pair.moving_representation))
    gray = plane.of(0.08 + 0.24 * (image + pair.fixed).amax(0))
    moving, fixed = (plane.of(one.amax(0)) for one in (soi, pair.fixed_representation))
    both = np.minimum(moving, fixed)
    weights = np.stack([moving - both, fixed - both, both], axis=-1)
    colored = weights @ np.array(FUSION[:3]) + ((1 - np.maximum(moving, fixed)) * gray)[..., None]
    return colored.clip(0, 1)


def course_sheet(rows: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """A row of pictures for each training: image, representation at each epoch, structure; all between 0 and 1."""
    side, left = 1.5, 1.15
    number = len(next(iter(rows.values())))
    layout = sheet(left + number * (side + GAP) + MARGIN, TITLE + len(rows) * (side + GAP) + MARGIN)
    for row, (name, pictures) in enumerate(rows.items()):
        top = TITLE + row * (side + GAP)
        layout.text(
            left / 2, top + side / 2, name.replace(", ", "\n"), ha="center", fontsize=11, linespacing=1.3, weight="bold"
        )
        for column, (title, picture) in enumerate(pictures.items()):
            x = left + column * (side + GAP)
            if row == 0:
                layout.text(x + side / 2, TITLE / 2, title, ha="center", fontsize=11, weight="bold")
            axes = layout.axes(x, top, side, side)
            axes.imshow(picture.amax(0).T.numpy(), cmap="gray", vmin=0, vmax=1, origin="lower")
            axes.set(xlim=axes.get_xlim()[::-1], xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return layout.figure


def structures_sheet(rows: Sequence[Row], view: int) -> Figure:
    """A row for each pair: its two images, then close-ups of its structures' contours at each stage."""
    first = next(iter(rows[0].values()))[1]
    plane = planes_of(first)[view]
    half = box(rows, plane)
    height = 1.45
    sides = [size * step for size, step in zip(first.ddf.shape[1:], first.spacing, strict=True)]
    wide, close = (height * a / b for a, b in ((sides[plane.across], sides[plane.up]), half))
    names = ["moving M", "fixed F", *rows[0]]
    widths = [wide, wide] + [close] * (len(names) - 2)
    lefts = [MARGIN + sum(widths[:n]) + n * GAP + (GAP * 2) * (n > 1) for n in range(len(names))]
    layout = sheet(lefts[-1] + widths[-1] + MARGIN, HEADER + len(rows) * (height + FOOTER) + 0.04)
    for left, width, name in zip(lefts, widths, names, strict=True):
        layout.text(left + width / 2, HEADER / 2, name, ha="center", fontsize=11, weight="bold")
    for number, row in enumerate(rows):
        top = HEADER + number * (height + FOOTER)
        start = next(iter(row.values()))[1]
        for column, (left, width, name) in enumerate(zip(lefts, widths, names, strict=True)):
            caption, pair = row.get(name, ("", start))
            axes = layout.axes(left, top, width, height)
            draw_structures(axes, pair, view, column, half)
            layout.text(left + width / 2, top + height + FOOTER / 2, caption, ha="center", color=FAINT)
    return layout.figure


def draw_structures(axes: Axes, pair: RegisteredPair, view: int, column: int, half: tuple[float, float]) -> None:
    """Columns 0 and 1: a whole image with its own contour; further ones: a close-up of the warped image, with both."""
    painter, plane = Painter(pair), planes_of(pair)[view]
    image = pair.fixed if column == 1 else pair.warped(pair.moving, pair.ddf)
    painter.picture(axes, plane, plane.of(image[0]), cmap="gray", vmin=0, vmax=1)
    if column != 0:
        painter.outlines(axes, plane, pair.fixed_representation, FIXED)
    if column != 1:
        painter.outlines(axes, plane, pair.warped(pair.moving_representation, pair.ddf), MOVING)
    if column < 2:
        painter.letters(axes, plane)
        return
    middle = center(pair, plane)
    axes.set(
        xlim=(middle[0] + half[0], middle[0] - half[0]),
        ylim=(middle[1] - half[1], middle[1] + half[1]),
    )


def occupied(pair: RegisteredPair, plane: Plane) -> list[tuple[float, float]]:
    """Where the moving and the fixed structures begin and end in mm, across and up."""
    both = torch.maximum(pair.moving_representation, pair.fixed_representation).amax(0) > 0.5
    ends = []
    for axis in (plane.across, plane.up):
        found = both.amax([a for a in range(both.ndim) if a != axis]).nonzero()
        ends.append((found.min().item() * pair.spacing[axis], found.max().item() * pair.spacing[axis]))
    return ends


def center(pair: RegisteredPair, plane: Plane) -> list[float]:
    """Of both structures, in mm."""
    return [(low + high) / 2 for low, high in occupied(pair, plane)]


def box(rows: Sequence[Row], plane: Plane, margin: float = 3.0) -> tuple[float, float]:
    """Half of the sides in mm of a close-up that shows the structures of all pairs."""
    ends = [occupied(next(iter(row.values()))[1], plane) for row in rows]
    across, up = (max(one[axis][1] - one[axis][0] for one in ends) / 2 + margin for axis in (0, 1))
    return across, up


def heat_sheet(rows: Mapping[str, tuple[RegisteredPair, Tensor]]) -> Figure:
    """A row for each ISTN, a column for each plane: an image, its representation over it, the annotated contour."""
    pair = next(iter(rows.values()))[0]
    planes = planes_of(pair)
    sides = [size * step for size, step in zip(pair.ddf.shape[1:], pair.spacing, strict=True)]
    scale = 3.0 / max(sides)
    height = scale * max(sides[plane.up] for plane in planes)
    left = 0.95
    width = left + sum(scale * sides[plane.across] + GAP for plane in planes) + 0.75
    layout = sheet(width, MARGIN + len(rows) * (height + GAP) + MARGIN)
    for row, (name, (pair, heat)) in enumerate(rows.items()):
        top, x = MARGIN + row * (height + GAP), left
        layout.text(left / 2, top + height / 2, name, ha="center", fontsize=12, weight="bold")
        for plane in planes:
            w, h = (scale * sides[axis] for axis in (plane.across, plane.up))
            axes = layout.axes(x, top + (height - h) / 2, w, h)
            draw_heat(axes, pair, heat, plane)
            x += w + GAP
    bar = layout.axes(x + 0.12, MARGIN + 0.3, 0.14, layout.height - 2 * MARGIN - 0.6)
    draw_scale(bar)
    return layout.figure


def draw_heat(axes: Axes, pair: RegisteredPair, heat: Tensor, plane: Plane) -> None:
    """One plane of the moving image under its representation."""
    painter = Painter(pair)
    values = plane.of(heat.clamp(0, 1).amax(0))
    painter.picture(axes, plane, plane.of(pair.moving[0]), cmap="gray", vmin=0, vmax=1)
    painter.picture(axes, plane, values, cmap=HEAT, vmin=0, vmax=1, alpha=0.75 * np.minimum(1, 2 * values))
    painter.outlines(axes, plane, pair.moving_representation, "black")
    painter.letters(axes, plane)


def draw_scale(axes: Axes) -> None:
    """The heat map's colors, as they lie over gray."""
    values = np.linspace(0, 1, 128)[:, None]
    axes.imshow(np.full((1, 1), 0.35), cmap="gray", vmin=0, vmax=1, extent=(0, 1, 0, 1), aspect="auto")
    axes.imshow(
        values, cmap=HEAT, alpha=0.75 * np.minimum(1, 2 * values), origin="lower", extent=(0, 1, 0, 1), aspect="auto"
    )
    axes.set(xticks=[], yticks=[0, 0.5, 1])
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=9, colors=INK, length=2)
    axes.set_title("M′", fontsize=10, color=INK)
    axes.spines[:].set_visible(False)
