"""The QA page of a registered pair: one picture of what was aligned, how, and how well.

Drawn by matplotlib without its global state, so it needs no screen and may run in any thread.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, MaxNLocator, NullLocator, ScalarFormatter
from PIL import Image

from istn_monai.qa.measures import RegisteredPair
from istn_monai.qa.panels import INK, LOG_RANGE, columns_of, planes_of
from istn_monai.qa.rules import AMBER, GREEN, RED, STATUS_COLORS, Finding, Verdict

FAINT, CURVE = "#6b7480", "#2f6fb5"
DPI = 120
# inches
WIDTH, MARGIN, GAP = 15.0, 0.3, 0.08
HEADER, TITLE, FOOTER, PLOT = 1.3, 0.3, 3.35, 4.2
LINE_HEIGHT = 0.185
BELOW = -0.24  # where the terms are written, in heights of the plot of the objective
NARROW = 0.11  # of all steps: a level of fewer has no room for its name
NOTE = (
    "Planes through the registration grid, right and front on the left. Magenta: outline of M′, green: of F′, at half "
    "of their full value. Fused: white where both have one structure, orange where they have different ones. The "
    "deformed grid shows where lines of the fixed grid are found in the moving image. Log Jacobian: how much more "
    "(red) or less (blue) volume a voxel takes from the moving image; yellow where it folds."
)
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOTE_IMAGE = " Without an ITN the representations are the images, and no rule knows the anatomy."


def draw_page(pair: RegisteredPair, verdict: Verdict) -> Figure:
    """The page: the status and its reasons, a row of pictures for each plane, the objective, all rules."""
    planes, columns = planes_of(pair), columns_of(pair)
    sides = [size * step for size, step in zip(pair.ddf.shape[1:], pair.spacing, strict=True)]
    width = (WIDTH - 2 * MARGIN - (len(columns) - 1) * GAP) / len(columns)
    inches = width / max(sides[plane.across] for plane in planes)  # for each mm
    heights = [sides[plane.up] * inches for plane in planes]
    figure = Figure(
        figsize=(WIDTH, HEADER + TITLE + sum(heights) + GAP * len(planes) + FOOTER), dpi=DPI, facecolor="white"
    )
    layout = Layout(figure)
    write_header(layout, pair, verdict)
    for number, column in enumerate(columns):
        left, top = MARGIN + number * (width + GAP), HEADER
        layout.text(left + width / 2, top + 0.14, column.title, ha="center", fontsize=10.5, weight="bold")
        top += TITLE
        for plane, height in zip(planes, heights, strict=True):
            column.draw(layout.axes(left, top, width, height), plane)
            top += height + GAP
    write_footer(layout, pair, verdict, layout.height - FOOTER)
    return figure


class Layout:
    """Places things on a figure in inches from its upper left corner."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.width, self.height = figure.get_size_inches()

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes of a size."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text whose middle is at ``top``."""
        look: dict[str, Any] = {"va": "center", "color": INK, "fontsize": 9.5} | style
        self.figure.text(left / self.width, 1 - top / self.height, text, **look)


def write_header(layout: Layout, pair: RegisteredPair, verdict: Verdict) -> None:
    """The status, which pair, and the worst reasons."""
    layout.text(MARGIN + 0.33, 0.6, "●", fontsize=54, color=STATUS_COLORS[verdict.status], ha="center")
    layout.text(
        MARGIN + 0.85, 0.32, verdict.status.upper(), fontsize=16, weight="bold", color=STATUS_COLORS[verdict.status]
    )
    layout.text(
        MARGIN + 1.85, 0.33, f"moving  {shortened(pair.names[0])}   →   fixed  {shortened(pair.names[1])}", fontsize=12
    )
    lines = verdict.reasons or ["All rules passed."]
    if len(lines) > 3:
        lines = [*lines[:2], f"and {len(verdict.reasons) - 2} more, see the table"]
    for number, line in enumerate(lines):
        layout.text(MARGIN + 0.85, 0.63 + 0.21 * number, textwrap.shorten(line, 190, placeholder=" …"))


def shortened(name: str, most: int = 48) -> str:
    """A file's name, its middle left out if it is long."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 + 1 :]}"


def write_footer(layout: Layout, pair: RegisteredPair, verdict: Verdict, top: float) -> None:
    """The objective, all rules, and how to read the page."""
    plot_objective(layout.axes(MARGIN + 0.65, top + 0.6, PLOT - 0.65, FOOTER - 1.5), pair)
    layout.text(MARGIN + 0.2, top + 0.22, "Objective over refinement", fontsize=10.5, weight="bold")
    left = MARGIN + PLOT + 0.5
    layout.text(left, top + 0.22, "Rules", fontsize=10.5, weight="bold")
    for number, finding in enumerate(verdict.findings):
        write_finding(layout, finding, left, top + 0.48 + number * LINE_HEIGHT)
    left = WIDTH - MARGIN - 3.2
    layout.text(left, top + 0.22, "How to read", fontsize=10.5, weight="bold")
    note = NOTE + (NOTE_IMAGE if pair.kind == "image" else "")
    layout.text(left, top + 0.38, textwrap.fill(note, 52), va="top", fontsize=8.5, color=FAINT, linespacing=1.35)
    draw_scale(layout.axes(left, top + 2.35, 2.6, 0.12))


def write_finding(layout: Layout, finding: Finding, left: float, top: float) -> None:
    """One line of the table of rules."""
    rule, known = finding.rule, finding.value is not None
    layout.text(left, top, "●", color=STATUS_COLORS[finding.status], fontsize=11)
    layout.text(left + 0.22, top, rule.title, color=INK if known else FAINT, fontsize=9)
    weight = "bold" if finding.status in (AMBER, RED) else "normal"
    layout.text(left + 3.05, top, f"{finding.value:.3f}" if known else "–", ha="right", fontsize=9, weight=weight)
    layout.text(left + 3.25, top, finding.status if known else rule.absent, color=FAINT, fontsize=8.5, weight=weight)
    layout.text(left + 3.8, top, rule.limits() if known else "", color=FAINT, fontsize=8.5)


def plot_objective(axes: Axes, pair: RegisteredPair) -> None:
    """The objective at each step of the refinement that was evaluated, and its terms before and after."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, colors=FAINT)
    if pair.refinement is None:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.text(-0.12, 1.05, "One pass: nothing was refined.", transform=axes.transAxes, fontsize=9, color=FAINT)
        return
    trace = np.array(pair.refinement.trace)
    if pair.refinement.levels:
        plot_levels(axes, trace, pair.refinement.levels)
    else:
        plot_descent(axes, trace, pair.refinement.steps)
    terms = [f"{name}\u00a0{start:.3g}\u00a0→\u00a0{end:.3g}" for name, (start, end) in pair.refinement.terms.items()]
    style: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 8, "color": FAINT, "ha": "right", "va": "top"}
    axes.text(1, BELOW, textwrap.fill(",  ".join(terms), 62), **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PowerFormatter())
    axes.yaxis.offsetText.set(fontsize=8, color=FAINT)
    axes.grid(axis="y", color="#e8ebee", linewidth=0.7)


def plot_descent(axes: Axes, trace: np.ndarray, best: int) -> None:
    """Steps that all move the same parameters, compared at one stride, and the one that was kept."""
    steps = np.flatnonzero(~np.isnan(trace))
    axes.plot(steps, trace[steps], ":", color=FAINT, linewidth=1)
    axes.plot(trace, ".-", color=CURVE, markersize=4, linewidth=1.3)
    axes.plot(best, trace[best], "o", color=STATUS_COLORS[GREEN], markersize=6)
    side = "right" if 2 * best > len(trace) else "left"
    axes.annotate(
        f"kept: step {best}", (best, trace[best]), (0, 9), textcoords="offset points", ha=side, fontsize=8, color=INK
    )
    axes.set_ylim(0, 1.08 * np.nanmax(trace))
    dotted = " (dotted: steps that looked at fewer voxels)" if len(steps) < len(trace) else ""
    axes.set_xlabel(f"step{dotted}", fontsize=8.5, color=FAINT)


def plot_levels(axes: Axes, trace: np.ndarray, levels: Sequence[tuple[int, int]]) -> None:
    """Levels one after the other: a line for each, as objectives at different strides are not comparable."""
    begin = 0
    for number, (stride, steps) in enumerate(levels, 1):
        own = np.arange(begin + 1, begin + steps + 1)
        own = own[~np.isnan(trace[own])]
        if begin:
            axes.axvline(begin + 0.5, color="#c3c9d0", linewidth=0.7)
        if len(own):  # else time was over
            best = own[trace[own].argmin()]
            axes.plot(own, trace[own], ".-", color=CURVE, markersize=4, linewidth=1.3)
            axes.plot(best, trace[best], "o", color=STATUS_COLORS[GREEN], markersize=6)
        if steps >= NARROW * sum(steps for _, steps in levels):
            label = f"level {number}\nstride {stride}"
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "top"}
            axes.text(begin + (steps + 1) / 2, 0.99, label, fontsize=7, color=FAINT, **place)
        begin += steps
    axes.set(xlim=(0, begin + 1), ylim=(0, 1.3 * np.nanmax(trace[1:])))
    axes.set_xlabel("step; green: kept of each level (strides do not compare)", fontsize=8.5, color=FAINT)


class PowerFormatter(ScalarFormatter):
    """Numbers with a common power of ten as plain text: to set seven formulas takes a tenth of the page's time."""

    def __init__(self) -> None:
        super().__init__(useOffset=False)
        self.set_powerlimits((-2, 3))

    def get_offset(self) -> str:
        """The power, at the end of the axis."""
        power = self.orderOfMagnitude
        return f"×10{str(power).translate(SUPERSCRIPTS)}" if power else ""


def draw_scale(axes: Axes) -> None:
    """The colors of the log Jacobian, as factors of volume."""
    factor = np.exp(LOG_RANGE)
    scale = ScalarMappable(LogNorm(1 / factor, factor), "RdBu_r")
    labels = {0.25: "¼", 0.5: "½", 1: "1", 2: "2", 4: "4"}
    bar = axes.figure.colorbar(
        scale, cax=axes, orientation="horizontal", ticks=list(labels), format=FixedFormatter(list(labels.values()))
    )
    bar.ax.tick_params(labelsize=8, labelcolor=FAINT)
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.outline.set_visible(False)
    bar.ax.text(1.03, 0.5, "volume", transform=bar.ax.transAxes, fontsize=8, color=FAINT, va="center")


def page_picture(pair: RegisteredPair, verdict: Verdict) -> Image.Image:
    """The page as a picture."""
    canvas = FigureCanvasAgg(draw_page(pair, verdict))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
