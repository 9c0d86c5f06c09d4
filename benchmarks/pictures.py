"""The small pictures of the documents, each drawn anew by one command.

    python benchmarks/pictures.py gallery     docs/pictures/gallery/*.png, by the blocks of docs/gallery.md
    python benchmarks/pictures.py concepts    docs/pictures/figure2.png, frames.png and directions.png
    python benchmarks/pictures.py notebooks   docs/pictures/notebooks/*.png, out of the notebooks

Pictures of real images have scripts of their own: ``figures.py`` and ``contrast_gallery.py``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fire
import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image
from torch import Tensor

matplotlib.use("Agg")
DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "gallery.md"
BLOCK_OR_PICTURE = re.compile(r"```python\n(.*?)```|!\[[^\]]*\]\((pictures/gallery/[^)]+)\)", re.DOTALL)
PALETTE = 128  # colors of a picture: a quarter of the bytes, and nothing is seen of it
#: of each notebook the number of the picture that the documents show
PICTURED = {"register_two_images": 0, "train_on_your_folder": 2, "components_in_your_pipeline": 2}
INK, FAINT, MOVING, FIXED = "#1f2430", "#6b7480", "#c2188b", "#0a8a3a"


def save_small(figure: Figure, file: Path) -> None:
    """A figure as a PNG file with a palette."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, facecolor="white")
    plt.close(figure)
    smaller(Image.open(file), file)


def smaller(picture: Image.Image, file: Path) -> None:
    """A picture as a PNG file with a palette."""
    picture.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(file, optimize=True)


def gallery() -> dict[str, Any]:
    """Runs the page's blocks in turn, and saves what each one draws as the picture that follows it."""
    names: dict[str, Any] = {"__name__": "gallery"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block, picture in BLOCK_OR_PICTURE.findall(PAGE.read_text(encoding="utf-8")):
            if block:
                exec(compile(block, str(PAGE), "exec"), names)
            else:
                save_small(plt.gcf(), DOCS / picture)
    return names


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many inches whose axes count in inches, without a frame."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, **style: Any) -> None:
    """An arrow between two points."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, lw=1.6, **style))


def box(axes: Axes, center: tuple[float, float], size: tuple[float, float], text: str, color: str) -> None:
    """A rounded box with a text."""
    corner = (center[0] - size[0] / 2, center[1] - size[1] / 2)
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0.04", fc=color, ec=INK, lw=1.2))
    axes.text(*center, text, ha="center", va="center", fontsize=11, color=INK)


def picture(axes: Axes, image: Tensor, center: tuple[float, float], title: str, side: float = 1.1) -> None:
    """A plane ``(H, W)`` or ``(2, H, W)``, moving and fixed, about a point, with a title below."""
    planes = image.detach().float().clamp(0, 1).numpy()
    planes = planes[[0, 1, 0]] if planes.ndim == 3 else np.stack([planes] * 3)
    left, bottom = center[0] - side / 2, center[1] - side / 2
    axes.imshow(planes.transpose(2, 1, 0), origin="lower", extent=(left, left + side, bottom, bottom + side))
    axes.text(center[0], bottom - 0.06, title, ha="center", va="top", fontsize=11, color=INK)


def network(names: Mapping[str, Any]) -> Figure:
    """The paper's Figure 2: ITN, STN, theta, warp, and the refinement's way back."""
    figure, axes = blank(10.6, 3.9)
    image, done, warp = names["image"], names["done"], names["warp"]
    shown = names["representations"]
    lines = warp(names["lines"][None], done["pred"][None])[0, 0]
    warped = warp(shown[0][None, None], done["pred"][None])[0, 0]
    up, down, middle = 2.9, 1.1, 2.0
    for height, plane, code, title, short in (
        (up, image[0], shown[0], "moving $M$", "$M'$"),
        (down, image[1], shown[1], "fixed $F$", "$F'$"),
    ):
        picture(axes, plane, (0.75, height), title)
        picture(axes, code, (3.95, height), short)
        arrow(axes, (1.33, height), (1.9, height))
        box(axes, (2.35, height), (0.8, 0.5), "ITN", "#dbe9f6")
        arrow(axes, (2.8, height), (3.37, height))
        arrow(axes, (4.53, height), (5.25, middle + (height - middle) * 0.15))
    axes.plot([2.35, 2.35], [down + 0.3, up - 0.3], ":", color=FAINT)
    axes.text(2.42, middle, "same\nweights", fontsize=9, color=FAINT, va="center")
    box(axes, (5.7, middle), (0.8, 0.5), "STN", "#dbe9f6")
    arrow(axes, (6.15, middle), (6.5, middle))
    axes.text(6.66, middle, r"$\theta$", fontsize=15, ha="center", va="center", color=INK)
    arrow(axes, (6.82, middle), (7.17, middle))
    picture(axes, lines, (7.75, middle), "transformation $T$")
    arrow(axes, (8.33, middle), (8.97, middle))
    picture(axes, np_pair(warped, shown[1]), (9.7, middle), "$M' \\circ T$ on $F'$", 1.3)
    arrow(axes, (9.7, middle + 0.75), (6.66, middle + 0.25), "#b35900", connectionstyle="arc3,rad=0.42")
    axes.text(8.1, 3.55, "refinement: the pair's own $\\theta$", fontsize=10, ha="center", color="#b35900")
    return figure


def np_pair(moving: Tensor, fixed: Tensor) -> Tensor:
    """Two planes as one picture's channels."""
    return fixed.new_tensor(np.stack([moving.detach().numpy(), fixed.detach().numpy()]))


def frames() -> Figure:
    """RAS and LPS about one head, and an oblique image's voxels in the world."""
    figure, axes = blank(9.4, 3.9)
    axes.add_patch(Ellipse((2.2, 1.95), 1.9, 2.5, fc="#f2efe9", ec=FAINT, lw=1.5))
    axes.plot([2.06, 2.2, 2.34], [3.18, 3.42, 3.18], color=FAINT, lw=1.5)
    axes.text(2.2, 3.62, "front", ha="center", fontsize=9, color=FAINT)
    for text, place, turn in (("patient's right", (0.95, 1.95), 90), ("left", (3.45, 1.95), 90)):
        axes.text(*place, text, ha="center", va="center", rotation=turn, fontsize=9, color=FAINT)
    arrow(axes, (2.2, 1.95), (1.35, 1.95), MOVING)
    arrow(axes, (2.2, 1.95), (2.2, 2.95), MOVING)
    axes.text(1.6, 2.05, "R", color=MOVING, fontsize=12, weight="bold")
    axes.text(2.03, 2.55, "A", color=MOVING, fontsize=12, weight="bold")
    arrow(axes, (2.2, 1.95), (3.05, 1.95), "#0b5cad")
    arrow(axes, (2.2, 1.95), (2.2, 0.95), "#0b5cad")
    axes.text(2.75, 2.05, "L", color="#0b5cad", fontsize=12, weight="bold")
    axes.text(2.27, 1.2, "P", color="#0b5cad", fontsize=12, weight="bold")
    axes.text(0.55, 0.4, "RAS: in memory (MONAI, NIfTI)", color=MOVING, fontsize=10)
    axes.text(0.55, 0.15, "LPS: in files of transforms (ITK, DICOM)", color="#0b5cad", fontsize=10)
    turn = np.deg2rad(18)
    first = np.array([5.2, 0.95])
    steps = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * np.array([[0.36], [0.27]])
    centers = [first + i * steps[0] + j * steps[1] for i in range(7) for j in range(7)]
    axes.plot(*np.array(centers).T, "o", color=INK, ms=3)
    arrow(axes, tuple(first), tuple(first + 3 * steps[0]), INK)
    arrow(axes, tuple(first), tuple(first + 3 * steps[1]), INK)
    axes.text(*(first + 3.2 * steps[0] + (0, -0.22)), "i", fontsize=12, color=INK, style="italic")
    axes.text(*(first + 3.2 * steps[1] + (-0.2, 0)), "j", fontsize=12, color=INK, style="italic")
    axes.text(*(first + (-0.42, -0.12)), "voxel (0, 0)", fontsize=9, color=INK, ha="right")
    middle = first + 3 * steps[0] + 3 * steps[1]
    axes.add_patch(Rectangle(middle - 1.25, 2.5, 2.5, angle=18, rotation_point="center", fc="none", ec=FIXED, lw=1.6))
    axes.plot(*middle, "+", color=FIXED, ms=12, mew=2)
    about = "the registration grid:\nits own spacing and size,\nabout the fixed image's\nmiddle, along its axes"
    axes.text(7.6, 2.7, about, color=FIXED, fontsize=10, va="center")
    axes.text(7.6, 1.2, "an image's voxels lie\nin the world as its\naffine says", color=INK, fontsize=10, va="center")
    return figure


def directions(names: Mapping[str, Any]) -> Figure:
    """Images pull back, points push forward."""
    figure, axes = blank(9.4, 3.7)
    image = names["image"]
    picture(axes, image[1], (2.2, 2.0), "fixed: the grid of the result", 2.6)
    picture(axes, image[0], (7.2, 2.0), "moving", 2.6)
    at, found = (2.35, 2.55), (7.3, 2.7)
    axes.plot(*at, "o", color=FIXED, ms=8, mec="white")
    axes.plot(*found, "o", color=FIXED, ms=8, mec="white")
    arrow(axes, at, found, FIXED, connectionstyle="arc3,rad=-0.14", shrinkA=6, shrinkB=6)
    axes.text(4.72, 3.2, "image: where is voxel $x$ found?\n$T(x)$, fixed to moving", color=FIXED, ha="center",
              va="center", fontsize=10.5)  # fmt: skip
    mark, goes = (6.75, 1.35), (1.9, 1.2)
    for place in (mark, goes):
        axes.plot(*place, "D", color=MOVING, ms=7, mec="white")
    arrow(axes, mark, goes, MOVING, connectionstyle="arc3,rad=-0.14", shrinkA=6, shrinkB=6)
    axes.text(4.72, 0.55, "landmark: where does $q$ go?\n$T^{-1}(q)$, moving to fixed", color=MOVING, ha="center",
              va="center", fontsize=10.5)  # fmt: skip
    return figure


def concepts() -> None:
    """The pictures of docs/concepts.md and docs/conventions.md; the images in them are the gallery's."""
    names = gallery()
    for name, figure in (("figure2", network(names)), ("frames", frames()), ("directions", directions(names))):
        save_small(figure, DOCS / "pictures" / f"{name}.png")


def notebooks() -> None:
    """One picture of each notebook, as it is kept in it."""
    for name, number in PICTURED.items():
        cells = json.loads((DOCS.parent / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        shown = [output.get("data", {}).get("image/png") for cell in cells for output in cell.get("outputs", [])]
        data = [base64.b64decode("".join(picture)) for picture in shown if picture][number]
        file = DOCS / "pictures" / "notebooks" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        smaller(Image.open(io.BytesIO(data)), file)


if __name__ == "__main__":
    fire.Fire({"gallery": lambda: str(len(gallery())) + " names", "concepts": concepts, "notebooks": notebooks})
