"""What a transform is, in words and numbers: its members, how far it moves points, whether it folds.

Convention:
    Numbers are those of the file's frame, LPS mm, and of its direction, fixed to moving points. Jacobian determinants
    are by central differences on the grid that is named, as in ``report.json``; 0 or less is a fold. A linear member is
    ``A = R K``, a rotation times an upper triangle of scales and shears.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from istn_monai.geometry.components import WorldAffine, WorldBSpline, WorldComponent, WorldDisplacement, WorldField
from istn_monai.geometry.frames import flipped, lps
from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.world_transform import WorldTransform
from istn_monai.io.any_transform import file_of, parts_of, read_any_transform
from istn_monai.io.images import load_image
from istn_monai.io.itk_transforms import IMAGES
from istn_monai.metrics import jacobian_determinant

SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat", ".xfm", ".lta", ".1d", ".x5", ".m3z", *IMAGES)
SAMPLES = 4  # of a B-spline's cell, along each axis
MOST_SAMPLES = 2**21  # of all its cells
BOX, BOX_SAMPLES = 200.0, 11  # mm; where a linear transform is measured
AT_ONCE = 2**20  # points
EXACT = 1e-6  # by which a matrix may miss being a rotation


def is_transform(name: str) -> bool:
    """Whether a name is that of a transform, not of a checkpoint or a folder.

    Examples:
        >>> is_transform("transform.h5"), is_transform("fsl:flirt"), is_transform("runs/mine/models/model.pt")
        (True, True, False)
    """
    prefix, file, inverse = parts_of(name)
    path = file_of(name)
    return bool(prefix) or inverse or (file.lower().endswith(SUFFIXES) and not path.is_dir())


@dataclass
class Figures:
    """How a transform moves the points of a grid.

    Args:
        largest: displacement, mm.
        mean: likewise.
        least: smallest Jacobian determinant.
        greatest: likewise, largest.
        folded: fraction of the points whose determinant is 0 or less.
        jumps: number of points whose determinant does not count, see :func:`beside_borders`.
    """

    largest: float
    mean: float
    least: float
    greatest: float
    folded: float
    jumps: int = 0

    def text(self) -> list[str]:
        """In words, a line each."""
        moved = f"displacement {self.mean:.3g} mm on average, {self.largest:.3g} mm at most"
        determinant = f"Jacobian determinant {self.least:.3g} to {self.greatest:.3g}, {self.folded:.2%} folded"
        means = "invertible" if self.folded == 0 else "it mirrors" if self.greatest < 0 else "not invertible"
        left_out = f"without {self.jumps} points beside a border beyond which a member moves nothing"
        return [moved, f"{determinant}: {means} there", *([left_out] if self.jumps else [])]


def figures_on(transform: WorldTransform, grid: Grid) -> Figures:
    """The figures of a transform on a grid of fixed points, two or more along each axis."""
    count, total, folded, jumps = 0, 0.0, 0, 0
    largest, least, greatest = 0.0, math.inf, -math.inf
    last = grid.spatial_size[0]
    for slab in grid.slabs(AT_ONCE):
        start, stop = max(slab.start - 1, 0), min(slab.stop + 1, last)  # differences need the neighbors
        points = grid.points(slab=slice(start, stop))
        moved = transform.on_grid(grid, slab=slice(start, stop))
        own = slice(slab.start - start, slab.stop - start)
        ddf = torch.tensordot(torch.linalg.inv(grid.affine[:-1, :-1]), moved - points, dims=1)
        beside = beside_borders(transform, points)[own]
        determinant = torch.where(beside, 1.0, jacobian_determinant(ddf[None])[0, own])
        lengths = (moved - points)[:, own].norm(dim=0)
        count, total = count + lengths.numel(), total + float(lengths.sum())
        folded, jumps = folded + int((determinant <= 0).sum()), jumps + int(beside.sum())
        largest = max(largest, float(lengths.max()))
        least, greatest = min(least, float(determinant.min())), max(greatest, float(determinant.max()))
    return Figures(largest, total / count, least, greatest, folded / max(count - jumps, 1), jumps)


def beside_borders(transform: WorldTransform, points: torch.Tensor) -> torch.Tensor:
    """``(*S)``: which of points ``(D, *S)`` of a grid have one beside them that is, when it comes to a member, on the
    other side of its domain's border: what moves nothing beyond it jumps there, which is no fold."""
    places, held = points.flatten(1), torch.zeros(points[0].numel(), dtype=torch.int64)
    for number, part in enumerate(transform.components[::-1]):
        if isinstance(part, WorldDisplacement):
            held += part.inside(places, part.index(places)).long() << number
        places = WorldTransform([part], transform.dims).transform_points(places)
    held = held.view(points.shape[1:])
    beside = torch.zeros(held.shape, dtype=torch.bool)
    for axis, n in enumerate(held.shape):
        differs = held.diff(dim=axis) != 0
        for start in (0, 1):
            beside.narrow(axis, start, n - 1).logical_or_(differs)
    return beside


def domain_grid(part: WorldDisplacement) -> Grid:
    """A grid over the domain of a lattice: the voxels of a field, ``SAMPLES`` for each cell of a B-spline."""
    first, last = (end[:, 0].tolist() for end in part.ends())
    if isinstance(part, WorldField):
        ends = [(0.0, n - 1.0, n) if n > 1 else (-0.25, 0.25, 2) for n in part.values.shape[1:]]
    else:
        cells = [round(b - a) for a, b in zip(first, last, strict=True)]
        fine = min(SAMPLES, max(1, int((MOST_SAMPLES / math.prod(cells)) ** (1 / len(cells)))))
        inside = 1e-6  # a place on the rim is in the domain or outside, by rounding
        ends = [(a + inside, b - inside, fine * n + 1) for a, b, n in zip(first, last, cells, strict=True)]
    to_index = torch.eye(len(ends) + 1, dtype=torch.float64)
    for axis, (low, high, n) in enumerate(ends):
        to_index[axis, axis], to_index[axis, -1] = (high - low) / (n - 1), low
    return Grid(tuple(n for _, _, n in ends), part.affine @ to_index)


def measured_grid(transform: WorldTransform) -> tuple[Grid, str]:
    """Where a whole transform is measured, and that in words: the domain of the lattice that acts first, or a box."""
    before = torch.eye(transform.dims + 1, dtype=torch.float64)
    for number, part in reversed(list(enumerate(transform.components, 1))):
        if isinstance(part, WorldAffine):
            before = part.matrix @ before
        elif isinstance(part, WorldDisplacement):
            return domain_grid(part).aligned(before), f"the domain of member {number}"
    step = BOX / (BOX_SAMPLES - 1)
    affine = torch.diag(torch.tensor([*[step] * transform.dims, 1.0], dtype=torch.float64))
    affine[:-1, -1] = -BOX / 2
    return Grid((BOX_SAMPLES,) * transform.dims, affine), f"a box of {BOX:g} mm around the origin of the world"


def transform_information(
    name: str, reference: str | None = None, moving: str | None = None, nifti_frame: str | None = None
) -> str:
    """What a transform is, in some ten lines.

    Args:
        name: see :mod:`istn_monai.io.any_transform`.
        reference: image on whose grid the whole is measured; by default see :func:`measured_grid`.
        moving: image that flirt moved, for ``fsl:``.
        nifti_frame: itk, sform or qform, where readers understand a NIfTI header in two ways.
    """
    images = {"fixed": ("reference", reference), "moving": ("moving", moving)}
    grids = {
        side: Grid.of(load_image(file, option, None, nifti_frame)) for side, (option, file) in images.items() if file
    }
    fixed = grids.get("fixed")
    transform = read_any_transform(name, None if fixed is None else fixed.spatial_dims, grids.get("moving"), fixed)
    inverse = parts_of(name)[2]
    sides = "moving to fixed points, as the inverse" if inverse else "fixed to moving points, unless it is an inverse's"
    count = len(transform.components)
    lines = [
        ("file", f"{file_of(name)}{', its inverse' if inverse else ''}"),
        ("transform", f"{transform.dims}-D, {count} member{'s, of which the last acts first' if count > 1 else ''}"),
        ("maps", f"{sides}, LPS mm, as ITK resamples"),
    ]
    for number, part in enumerate(transform.components, 1):
        first, *others = member_text(part, transform.dims, count > 1)
        lines += [(f"member {number}", first), *(("", other) for other in others)]
    grid, where = (fixed, f"the grid of {reference}") if fixed is not None else measured_grid(transform)
    lines += [("whole", f"on {where}, {'x'.join(map(str, grid.spatial_size))} points:")]
    lines += [("", line) for line in figures_on(transform, grid).text()]
    return "\n".join(f"{key:15} {value}".rstrip() for key, value in lines)


def member_text(part: WorldComponent, dims: int, of_several: bool) -> list[str]:
    """A member in words; one ``of_several`` also with how it moves points of its own domain, where it has one."""
    if isinstance(part, WorldAffine):
        return linear_text(flipped(part.matrix))
    if not isinstance(part, WorldDisplacement):
        raise TypeError(f"a member is linear, a B-spline or a displacement field, got {type(part).__name__}")
    size = "x".join(map(str, part.values.shape[1:]))
    steps = " x ".join(f"{step:.4g}" for step in part.affine[:-1, :-1].norm(dim=0).tolist())
    if isinstance(part, WorldBSpline):
        lines = [f"cubic B-spline, {size} control points, {steps} mm apart, {part.values.numel()} parameters"]
    else:
        lines = [f"displacement field, {size} voxels of {steps} mm"]
    first, last = (map_points(part.affine, end)[:, 0] for end in part.ends())
    corners = (numbers(flipped_point(corner)) for corner in (first, last))
    lines.append(
        f"domain from {' to '.join(corners)}; outside it moves nothing: at its border an inverse may lack points"
    )
    own = figures_on(WorldTransform([part], dims), domain_grid(part)).text() if of_several else []
    return [*lines, *(f"there: {line.removesuffix(' there')}" for line in own)]


def linear_text(matrix: np.ndarray) -> list[str]:
    """A matrix ``(D+1, D+1)`` of LPS points in words: translation of the origin, rotation, scales, shears."""
    linear, translation = matrix[:-1, :-1], matrix[:-1, -1]
    rotation, scales, shears = factors(linear)
    determinant = float(np.linalg.det(linear))
    lines = [f"{linear_kind(linear)}: moves the world's origin by {numbers(translation)} mm"]
    turned = f"rotation {rotation_angle(rotation):.4g} degrees, scales {numbers(scales)}, shears {numbers(shears)}"
    return [*lines, f"{turned}, determinant {determinant:.4g}"]


def factors(linear: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation ``(D, D)``, scales ``(D,)`` and shears ``(D (D-1) / 2,)`` of ``A = R diag(scales) (1 + shears)``.

    A mirroring matrix has a negative last scale.

    Examples:
        >>> _, scales, shears = factors(np.array([[2.0, 1.0], [0.0, 0.5]]))
        >>> scales.tolist(), shears.tolist()
        ([2.0, 0.5], [0.5])
    """
    rotation, upper = np.linalg.qr(linear)
    signs = np.where(np.diag(upper) < 0, -1.0, 1.0)
    rotation, upper = rotation * signs, signs[:, None] * upper
    if np.linalg.det(rotation) < 0:
        rotation[:, -1], upper[-1] = -rotation[:, -1], -upper[-1]
    scales = np.diag(upper).copy()
    return rotation, scales, (upper / scales[:, None])[np.triu_indices(len(upper), 1)]


def rotation_angle(rotation: np.ndarray) -> float:
    """Degrees by which a rotation turns, about whichever axis; signed in 2-D, counterclockwise in LPS."""
    if len(rotation) == 2:
        return math.degrees(math.atan2(rotation[1, 0], rotation[0, 0]))
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    return math.degrees(math.atan2(float(np.linalg.norm(axis)), float(np.trace(rotation)) - 1))


def linear_kind(linear: np.ndarray) -> str:
    """The smallest family that a matrix ``(D, D)`` belongs to."""
    dims = len(linear)
    scale = abs(np.linalg.det(linear)) ** (1 / dims)
    similar = np.allclose(linear.T @ linear, scale**2 * np.eye(dims), atol=EXACT * scale**2)
    if np.linalg.det(linear) < 0 or not similar:
        return "affine"
    if abs(scale - 1) > EXACT:
        return "similarity"
    if not np.allclose(linear, np.eye(dims), atol=EXACT):
        return "rigid"
    return "translation"


def flipped_point(point: torch.Tensor) -> np.ndarray:
    """A point ``(D,)`` of RAS in LPS, and back."""
    return lps(len(point)) @ point.numpy()


def numbers(values: np.ndarray) -> str:
    """Numbers in parentheses, four digits of each; what is 0 but for rounding is 0."""
    return f"({', '.join(f'{0.0 if abs(value) < 1e-9 else value:.4g}' for value in values)})"
