"""Images and label maps of one grid on another."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from istn_monai.geometry.exact import interpolated
from istn_monai.geometry.grids import Grid, map_points, within
from istn_monai.geometry.sampling import WHOLE, affine_points, lifted, resample, sample

VOTES_AT_ONCE = 2**18  # in the vote of labels, which needs some 300 bytes for each
SLAB = 2**20  # voxels that are resampled at once: points and what is made of them need some 200 bytes for each
SMALL_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32)
Sampler = Callable[[Tensor], Tensor]


def area_averaged(image: Tensor, own: Grid, target: Grid) -> Tensor:
    """An image on another grid, the mean of several samples for each voxel where that grid is coarser.

    Args:
        image: ``(B, C, *S)``; beyond its border its border goes on.
        own: grid of the image.
        target: grid of the result, in the same world.

    Returns:
        ``(B, C, *target.spatial_size)``.
    """
    samples = samples_along(own, target)
    return resample(image, target.to(own), target.spatial_size, padding_mode="border", samples=samples)


def samples_along(own: Grid, target: Grid) -> list[int]:
    """Along each axis of a grid, as many samples of an image as one of its steps covers voxels of that, up to a few:
    more take memory and hardly change the mean."""
    return [max(1, min(int(step + 1e-6), 4)) for step in target.to(own)[:-1, :-1].abs().amax(dim=0).tolist()]


def alone_on(image: Tensor, own: Grid, target: Grid) -> Tensor:
    """As :func:`area_averaged`, with zeros beyond the image, as networks are trained."""
    if max(samples_along(own, target)) == 1:
        return resample(image, target.to(own), target.spatial_size)
    inside = resample(image.new_ones(1, 1, *own.spatial_size), target.to(own), target.spatial_size)
    return area_averaged(image, own, target) * inside


def pull_back_points(ddf: Tensor, grid: Grid, fixed: Grid, moving: Grid, slab: slice = WHOLE) -> Tensor:
    """Where each voxel of the fixed image, or of a slab of it, is found in the moving image.

    Args:
        ddf: ``(1, D, *S)`` on the registration grid, in its voxels.
        grid: the registration grid, of size ``*S``.
        fixed: grid of the fixed image.
        moving: grid of the moving image after the initial alignment, see :meth:`Grid.aligned`.
        slab: indices of the fixed image's first axis.

    Returns:
        ``(1, D, *fixed.spatial_size)`` in voxels of the moving image, for
        :func:`istn_monai.geometry.sampling.sample`. Outside the registration grid the displacement is that of the
        grid's border.
    """
    in_grid = affine_points(fixed.to(grid), fixed.spatial_size, slab=slab)[None].to(ddf.device)
    in_grid = in_grid + sample(ddf, in_grid)
    return map_points(grid.to(moving).to(in_grid), in_grid[0])[None]


def pull_back_landmarks(ddf: Tensor, grid: Grid, points: Tensor) -> Tensor:
    """Where landmarks ``(D, N)`` of the fixed image's world are found, before the initial alignment takes them on.

    Args:
        ddf: ``(1, D, *S)`` on the registration grid, in its voxels.
        grid: the registration grid.
        points: in mm, RAS.
    """
    in_grid = grid.voxels(points.double())
    moved = in_grid + sample(ddf, lifted(in_grid).to(ddf)).view(in_grid.shape).double()
    return map_points(grid.affine, moved)


def warp_intensities(image: Tensor, points: Tensor, mode: str = "bilinear") -> Tensor:
    """An image sampled at points, as ITK does it, in its own dtype; what lies outside becomes its darkest value.

    Args:
        image: ``(C, *S)``; whole numbers are rounded to.
        points: ``(1, D, *T)`` in voxels of the image.
        mode: "bilinear" (linear) or "nearest".

    Returns:
        ``(C, *T)``.
    """
    return intensities(image.to(points.device), mode)(points)


def intensities(image: Tensor, mode: str = "bilinear", outside: float | None = None) -> Sampler:
    """An image as :func:`warp_intensities` samples it, prepared once for points that come slab by slab.

    What lies outside becomes ``outside``, by default the darkest value of each channel: dark is not 0 in CT.
    """
    values = interpolated(image[None])
    if outside is None:
        fill = torch.stack([darkest(channel) for channel in values[0]]).view(-1, *[1] * (values.ndim - 2))
    else:
        fill = values.new_tensor(outside)

    def at(points: Tensor) -> Tensor:
        """``(1, D, *T)`` to ``(C, *T)``."""
        # of two voxels as near ITK takes the later one, grid_sample the even one
        places = (points + 0.5).floor() if mode == "nearest" else points
        sampled = sample(values, places.to(values.dtype), mode)
        sampled = torch.where(within(points, image.shape[1:]), sampled, fill)[0]
        return (sampled if image.is_floating_point() else sampled.round()).to(image.dtype)

    return at


def darkest(values: Tensor) -> Tensor:
    """The smallest value that is finite: what a mask leaves out may be NaN."""
    least = values.min()
    return least if torch.isfinite(least) else values[torch.isfinite(values)].min()


def warp_label_map(label: Tensor, points: Tensor) -> Tensor:
    """All labels of a map ``(1, *S)`` at points, ``(1, *T)``, in whole numbers; see :func:`warp_labels`."""
    return whole_labels(label.to(points.device))(points)


def whole_labels(label: Tensor) -> Sampler:
    """A label map as :func:`warp_label_map` samples it, prepared once for points that come slab by slab."""
    whole = label[None].to(torch.uint8) if label.dtype == torch.bool else label[None]
    if whole.dtype not in SMALL_WHOLE:
        whole = whole.round().long()
        whole = whole.int() if whole.abs().amax() < 2**31 else whole
    mixed = mixed_cells(whole[0, 0])

    def at(points: Tensor) -> Tensor:
        """``(1, D, *T)`` to ``(1, *T)``."""
        warped = warp_labels(whole, points, mixed=mixed)[0]
        return warped if label.is_floating_point() else warped.to(label.dtype)

    return at


def on_grid_in_slabs(
    grid: Grid,
    found: Callable[[slice], Tensor],
    samplers: Mapping[str, Sampler],
    sampled_size: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Images on a grid, a slab of ``SLAB`` voxels at a time: memory then holds little more than the results.

    Args:
        grid: of the results.
        found: where the voxels of a slab are found, ``(1, D, *slab)`` in voxels of what is sampled.
        samplers: by the names of the results.
        sampled_size: of what is sampled, to warn if no voxel at all is found in it; None for no warning.

    Returns:
        ``(C, *grid.spatial_size)`` each.
    """
    results: dict[str, Tensor] = {}
    met = sampled_size is None
    for slab in grid.slabs(SLAB):
        points = found(slab)
        met = met or bool(within(points, sampled_size or ()).any())
        for name, sampler in samplers.items():
            values = sampler(points)
            if name not in results:
                results[name] = values.new_empty(len(values), *grid.spatial_size)
            results[name][:, slab] = values
    if not met:
        warnings.warn(
            "the transform takes no voxel of the grid into the image, the result is empty: is it of another pair, of "
            "the other direction, or in other units?",
            stacklevel=3,
        )
    return results


def warp_labels(
    label: Tensor, points: Tensor, values: Sequence[int] | None = None, mixed: Tensor | None = None
) -> Tensor:
    """A label map sampled at points: linear one-hot, then the largest; no interpolation between label values.

    The time does not grow with the number of labels. Up to half a voxel beyond the outermost centers they go on, as in
    :func:`within`; farther out is background.

    Args:
        label: ``(1, 1, *S)`` whole numbers.
        points: ``(1, D, *T)`` in voxels of the label map.
        values: labels to warp, all else counts as background 0; None for all.
        mixed: the label map's :func:`mixed_cells`, where they are known already, for ``values`` None.

    Returns:
        ``(1, 1, *T)`` in the label's dtype.
    """
    if values is not None:
        label = torch.where(torch.isin(label, label.new_tensor(list(values))), label, 0)
    mixed = mixed_cells(label[0, 0]) if mixed is None else mixed
    places = points[0].nan_to_num().flatten(1)
    last = places.new_tensor(mixed.shape)[:, None] - 1
    cells = tuple(places.floor().clamp(min=torch.zeros_like(last), max=last).long())
    largest = label[0, 0][cells]  # in most cells there is one label
    voted = mixed[cells].nonzero()[:, 0]
    for chunk in voted.split(VOTES_AT_ONCE):
        largest[chunk] = largest_label(label[0, 0], places[:, chunk])
    return torch.where(within(points, label.shape[2:]), largest.view(1, 1, *points.shape[2:]), 0)


def mixed_cells(label: Tensor) -> Tensor:
    """``(*S)``: whether the voxels from each one of a label map ``(*S)`` to the next along each axis differ."""
    mixed = torch.zeros(label.shape, dtype=torch.bool, device=label.device)
    for axis, size in enumerate(label.shape):
        edges = torch.zeros_like(mixed)
        edges.narrow(axis, 0, size - 1).copy_(label.narrow(axis, 0, size - 1) != label.narrow(axis, 1, size - 1))
        for other in range(label.ndim):
            if other != axis:
                last = label.shape[other] - 1
                edges = edges | torch.cat([edges.narrow(other, 1, last), edges.narrow(other, last, 1)], other)
        mixed |= edges
    return mixed


def largest_label(label: Tensor, points: Tensor) -> Tensor:
    """The label with the largest linear weight among the voxels around each point; of equal ones the smallest value.

    Args:
        label: ``(*S)``.
        points: ``(D, N)`` in its voxels.

    Returns:
        ``(N,)``
    """
    last = points.new_tensor(label.shape)[:, None] - 1
    corners, weights = [], []
    for offset in itertools.product((0.0, 1.0), repeat=len(points)):
        corner = points.floor() + points.new_tensor(offset)[:, None]
        corners.append(label[tuple(corner.clamp(min=torch.zeros_like(last), max=last).long())])
        weights.append((1 - (points - corner).abs()).prod(dim=0))
    found, weight = torch.stack(corners), torch.stack(weights)
    votes = torch.stack([torch.where(found == candidate, weight, 0).sum(dim=0) for candidate in found])
    return torch.where(votes < votes.amax(dim=0), found.amax(dim=0), found).amin(dim=0)


def unit_ranges(image: Tensor) -> Tensor:
    """Each channel of ``(C, *S)`` by itself in :func:`unit_range`, float32."""
    return torch.stack([unit_range(channel.float()) for channel in image])


def unit_range(image: Tensor, lower: float = 0.5, upper: float = 99.5) -> Tensor:
    """Intensities between two percentiles, scaled to [0, 1] and clipped; between the extremes if those coincide."""
    low, high = (float(value) for value in np.percentile(image.numpy(force=True), [lower, upper]))  # no sort
    if low == high:
        low, high = float(image.min()), float(image.max())
    return ((image - low) / max(high - low, 1e-12)).clamp(0, 1)
