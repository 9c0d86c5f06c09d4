"""The pair on its registration grid: which grid, and what is resampled onto it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple

from istn_monai.geometry.grids import Grid, map_points, registration_grid
from istn_monai.geometry.meta import affine_of, with_affine
from istn_monai.geometry.resampling import alone_on
from istn_monai.geometry.transformation import checked_size, per_axis
from istn_monai.transforms.checks import counting, source
from istn_monai.transforms.inverses import NotInvertible
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS, MASK_KEYS, PAIR_KEYS, Pair

AUTO, IMAGE = "auto", "image"
STEP = 16  # the default ITN halves an image four times
SAME = 1e-4  # voxels
MOST_VOXELS, MEMORY = 2**23, 8
LIMIT = 2**26  # voxels of a grid that is given in numbers, some 60 GB


class RegistrationGridd(NotInvertible):
    """Resamples a pair once, linearly, onto one registration grid built from the fixed image.

    On a grid that is coarser by a factor of 2 or more, a voxel is the mean of several samples: with one alone, fine
    structures would alias. Beyond an image's border the grid holds 0. A label of which the grid truncates more than
    half is an error: nothing could be learned from it.

    Args:
        spatial_size: number of voxels of the grid along each axis; "auto" covers what the fixed image shows, see
            :func:`covering_grid`; "image" all of it, also what is empty around that.
        spacing: voxel size of the grid in mm.
        keys: what to resample in place; those that are absent are skipped.
        at_least: smallest size of "auto", that of the grid in training.

    Examples:
        >>> pair = {"moving_image": MetaTensor(torch.rand(1, 30, 41)), "fixed_image": MetaTensor(torch.rand(1, 50, 39))}
        >>> [image.shape for image in RegistrationGridd((16, 16), spacing=2.0)(pair).values()]
        [torch.Size([1, 16, 16]), torch.Size([1, 16, 16])]
    """

    def __init__(
        self,
        spatial_size: Sequence[int] | str,
        spacing: float | Sequence[float] = 1.0,
        keys: Sequence[str] = (*PAIR_KEYS, *MASK_KEYS),
        at_least: Sequence[int] | None = None,
    ) -> None:
        spatial_size = spatial_size.lower() if isinstance(spatial_size, str) else spatial_size
        word = spatial_size if isinstance(spatial_size, str) else None
        if not isinstance(spatial_size, Sequence) or word not in (None, AUTO, IMAGE):
            raise ValueError(f'spatial_size must be numbers of voxels, "{AUTO}" or "{IMAGE}", got {spatial_size!r}')
        if word and at_least is None:
            raise ValueError(f'spatial_size "{word}" needs at_least, the size of the grid in training')
        self.whole = word == IMAGE
        self.spatial_size = None if isinstance(spatial_size, str) else checked_size(spatial_size)
        self.at_least = checked_size(self.spatial_size or at_least or ())
        if at_least is not None and len(self.at_least) != len(at_least):
            raise ValueError(f"spatial_size must have {len(at_least)} numbers, as the weights do, got {spatial_size!r}")
        if math.prod(self.at_least) > LIMIT:
            raise ValueError(f"spatial_size {list(self.at_least)} has more than {LIMIT:,} voxels: memory would not do")
        self.spacing = per_axis("spacing", spacing, len(self.at_least))
        self.keys = ensure_tuple(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        result = dict(data)
        fixed = data[IMAGE_KEYS[1]]
        check_resolved(fixed, self.spacing)
        if self.spatial_size is None:
            grid = covering_grid(fixed, self.spacing, self.at_least, self.whole)
        else:
            grid = registration_grid(Grid.of(fixed), self.spatial_size, self.spacing)
        for key in self.keys:
            if key in data:
                image = data[key]
                if key in MASK_KEYS:
                    image = with_affine(counting(image).float(), affine_of(image), image)
                result[key] = on_grid(image, grid)
                if key in LABEL_KEYS:
                    check_kept(kept(data[key], result[key]), source(data[key], key), grid)
        return result


def covering_grid(fixed: MetaTensor, spacing: Sequence[float], at_least: Sequence[int], whole: bool = False) -> Grid:
    """The registration grid that covers a fixed image.

    A grid of the size ``at_least`` about the image's center if it covers the image; else one that covers the image's
    content, in steps of 16 voxels. Outside the box of its content an image is constant: padding needs no voxels.

    Args:
        fixed: ``(C, *S)``.
        spacing: voxel size of the grid in mm.
        at_least: smallest size of the grid.
        whole: covers the image, not its content alone. Along axes that need more than ``at_least``, also a voxel around
            it, as beyond the grid a B-spline moves nothing.

    Raises:
        ValueError: if the grid would have more than ``MOST_VOXELS``.
    """
    least = registration_grid(Grid.of(fixed), at_least, spacing)
    if covers(least, Grid.of(fixed)):
        return least
    content, multiple, around = (Grid.of(fixed), 1, 2) if whole else (content_grid(fixed), STEP, 0)
    corners = registration_grid(content, at_least, spacing).voxels(content.corners())
    steps = (corners.amax(1) - corners.amin(1)).tolist()  # from the first voxel's center to the last one's
    size = [
        n if step <= n - 1 else math.ceil((step + 1 - 1e-6) / multiple) * multiple + around
        for step, n in zip(steps, at_least, strict=True)
    ]
    if math.prod(size) > MOST_VOXELS:
        raise ValueError(
            f"{source(fixed, IMAGE_KEYS[1])} needs a registration grid of {tuple(size)} voxels, more than "
            f"{MOST_VOXELS:,}, which need some {MEMORY} GB: give spatial_size to cover its middle alone, such as "
            f"{list(at_least)}, or crop it; a larger spacing, or weights that were trained at one, need fewer voxels"
        )
    return registration_grid(content, size, spacing)


def check_resolved(fixed: MetaTensor, spacing: Sequence[float]) -> None:
    """ValueError if a voxel of the registration grid would hold all of the fixed image: its units are mistaken."""
    grid = Grid.of(fixed)
    extent = max(n * step for n, step in zip(grid.spatial_size, grid.spacing, strict=True))
    if extent < 2 * max(spacing):
        raise ValueError(
            f"{source(fixed, IMAGE_KEYS[1])} is {extent:.3g} mm large, voxels of the registration grid "
            f"{max(spacing):.3g} mm: check the voxel sizes and units in its header, or the spacing, if that was given"
        )


def covers(grid: Grid, other: Grid) -> bool:
    """Whether a grid reaches over all voxel centers of another one."""
    corners = grid.voxels(other.corners())
    last = torch.tensor(grid.spatial_size, dtype=torch.float64)[:, None] - 1
    return bool(((corners >= -0.5) & (corners <= last + 0.5)).all())


def content_grid(image: MetaTensor) -> Grid:
    """The voxels of the smallest box outside which an image ``(C, *S)`` has the values of its first voxel."""
    values = image.as_tensor()
    first = values[(slice(None), *[slice(1)] * (values.ndim - 1))]
    found = (values != first).any(0).nonzero()
    if not len(found):
        return Grid.of(image)
    low, high = found.amin(0), found.amax(0)
    affine = affine_of(image).clone()
    affine[:-1, -1] = map_points(affine, low.double())
    return Grid(tuple((high - low + 1).tolist()), affine)


def on_grid(image: MetaTensor, grid: Grid) -> MetaTensor:
    """An image ``(C, *S)`` on another grid, ``(C, *grid.spatial_size)``, as :class:`RegistrationGridd` has it.

    An image that lies on this very grid, up to what a header's numbers are rounded by, stays as it is.
    """
    own = Grid.of(image)
    aside = (own.voxels(grid.corners()) - grid.voxels(grid.corners())).abs().max()
    if own.spatial_size == grid.spatial_size and aside < SAME:
        return with_affine(image.as_tensor().float(), grid.affine, image)
    return with_affine(alone_on(image.as_tensor().float()[None], own, grid)[0], grid.affine, image)


def kept(image: MetaTensor, resampled: MetaTensor) -> float:
    """Fraction of an image's integral that is on another grid; nan for an empty image."""
    before, after = (x.as_tensor().sum() * affine_of(x)[:-1, :-1].det().abs() for x in (image, resampled))
    return float(after / before)


def check_kept(fraction: float, name: str, grid: Grid) -> None:
    """ValueError if less than half of what ``name`` marks is on the registration grid."""
    if fraction < 0.5:
        spacing = tuple(round(step, 6) for step in grid.spacing)
        raise ValueError(
            f"{name}: only {100 * fraction:.0f} % of its SoI is on the registration grid of {grid.spatial_size} "
            f"voxels of {spacing} mm about the middle of the fixed image; choose a larger spatial_size or spacing, or "
            "another initial_alignment"
        )
