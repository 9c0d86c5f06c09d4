"""Sampling of images on moved grids: the only file that calls ``grid_sample``.

Convention:
    Points are in voxels of the sampled image, component c along tensor axis c+2, voxel centers on whole numbers
    (``align_corners=True``). A displacement field (ddf) pulls back: ``warped(x) = image(x + ddf(x))``, x on the
    fixed grid. Geometry is never computed below float32: bfloat16 is 0.3 voxel off on a 20-voxel volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import Pool
from torch import Tensor, nn

from istn_monai.geometry.separable import axes_of, resampled_along_axes

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("border", "zeros", "reflection")
MAX_CPU_CHUNKS = 8
FEW = 2**15  # numbers below which torch's own operations take one thread, too
WHOLE = slice(None)


def voxel_grid(spatial_size: Sequence[int], like: Tensor, stride: int = 1) -> Tensor:
    """Coordinates ``(D, *S)`` of each ``stride``-th voxel of a grid, on the device and in the dtype of ``like``."""
    axes = [torch.arange(0, size, stride, device=like.device, dtype=like.dtype) for size in spatial_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def column(values: Tensor, ndim: int) -> Tensor:
    """``(D,)`` as ``(D, 1, ...)`` of so many dimensions: one number for each component of a field or of points."""
    return values.view(-1, *[1] * (ndim - 1))


def lifted(points: Tensor) -> Tensor:
    """A list of points ``(D, N)`` as ``(1, D, N, 1, ...)``, of D + 2 dimensions, which is what :func:`sample` takes."""
    return points.reshape(1, *points.shape, *[1] * (len(points) - 1))


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precision and integers become float32; float32 and float64 stay what they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def sample(image: Tensor, points: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Values of ``image`` at ``points``.

    Args:
        image: ``(B, C, *S)``.
        points: ``(B, D, *T)`` in voxels of ``image``; T is any shape of D dimensions.
        mode: "bilinear" (linear, also in 3-D), "nearest" or "bicubic" (2-D alone).
        padding_mode: what lies outside the image: "border", "zeros" or "reflection".

    Returns:
        ``(B, C, *T)``, float32, or float64 if the points are.
    """
    points = at_least_float32(points)
    with torch.autocast(image.device.type, enabled=False):
        last_voxel = last_voxels(image).to(points)
        # in this order of operations the result is MONAI's to the last bit
        grid = (points * 2 / column(last_voxel, points.ndim - 1) - 1).flip(1).movedim(1, -1)
    return sample_normalized(image, grid, mode, padding_mode)


def last_voxels(image: Tensor) -> Tensor:
    """``(D,)``: the last voxel along each axis of an image; 1 where there is a single one. A trace keeps no size."""
    if torch.jit.is_tracing():
        return (torch._shape_as_tensor(image)[2:] - 1).clamp(min=1)
    return torch.tensor([max(size - 1, 1) for size in image.shape[2:]])


def sample_normalized(image: Tensor, grid: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """As :func:`sample`, at places ``(B, *T, D)`` in ``grid_sample``'s own frame: -1 to 1 over the size - 1 steps from
    the first to the last voxel, last tensor axis first."""
    image = image.to(grid.dtype)
    if not is_recorded() and len(image) != len(grid):
        raise ValueError(f"an image and the points in it must be of one batch, got {len(image)} and {len(grid)}")
    with torch.autocast(image.device.type, enabled=False):
        chunks = cpu_chunks(grid)
        if chunks > 1:
            image, grid = image.expand(chunks, *image.shape[1:]), grid.unflatten(1, (chunks, -1))[0]
        values = nn.functional.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=True)
        return values if chunks == 1 else values.movedim(0, 1).flatten(1, 2)[None]


class MovedGrid(torch.autograd.Function):
    """A ddf ``(B, D, *T)``, at each ``stride``-th voxel of a grid from ``start`` on, to the moved voxels ``(B, *T, D)``
    in ``grid_sample``'s own frame.

    Written by hand since of whole brains the many small operations would take longer than the sampling.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ddf: Tensor, spatial_size: tuple[int, ...], stride: int, start: Sequence[int]
    ) -> Tensor:
        """Each component in place, in the order of operations that is MONAI's to the last bit."""
        ctx.spatial_size, dims = spatial_size, len(spatial_size)  # setup_context would cost 50 us a call
        moved = torch.empty_like(ddf, memory_format=torch.contiguous_format)
        for axis, (size, first, n) in enumerate(zip(spatial_size, start, ddf.shape[2:], strict=True)):
            voxel = torch.arange(first, first + n * stride, stride, device=ddf.device, dtype=ddf.dtype)
            own = moved[:, dims - 1 - axis]
            torch.add(ddf[:, axis], voxel.view(-1, *[1] * (dims - 1 - axis)), out=own)
            own.div_(half_extent(size)).sub_(1)
        return moved.movedim(1, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        """Of the ddf."""
        dims = len(ctx.spatial_size)
        if torch.is_grad_enabled():  # a second derivative is wanted, for which it must be recorded
            parts = [gradient[..., dims - 1 - axis] / half_extent(size) for axis, size in enumerate(ctx.spatial_size)]
            return torch.stack(parts, 1), None, None, None
        result = gradient.new_empty(len(gradient), dims, *gradient.shape[1:-1])
        for axis, size in enumerate(ctx.spatial_size):
            torch.div(gradient[..., dims - 1 - axis], half_extent(size), out=result[:, axis])
        return result, None, None, None


def half_extent(size: int) -> float:
    """Half of the steps between the first and the last of so many voxels; of a single one there are none."""
    return max(size - 1, 1) / 2


def is_recorded() -> bool:
    """Whether PyTorch records operations, to compile or to export them: what depends on a batch's size must not be."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.compiler.is_exporting()


def values_alone() -> bool:
    """Whether nothing but values is wanted, no gradient and no record of operations: others may give the same."""
    return not (torch.is_grad_enabled() or is_recorded())


def cpu_chunks(grid: Tensor) -> int:
    """Into how many equal chunks to split the points ``(1, *T, D)`` of one image: threads on the CPU, 1 elsewhere.

    On the CPU ``grid_sample`` in 3-D uses one thread for each item of the batch, so one image would keep one core busy.
    A few points are not worth it, and may be in a thread of their own already.
    The image's gradient needs memory for each chunk, hence at most ``MAX_CPU_CHUNKS``.
    """
    if is_recorded() or grid.device.type != "cpu" or grid.shape[0] != 1 or grid.numel() < FEW:
        return 1
    most = min(torch.get_num_threads(), MAX_CPU_CHUNKS)
    return max(n for n in range(1, most + 1) if grid.shape[1] % n == 0)


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """``warped(x) = image(x + ddf(x))``; the function behind :class:`Warp`, which see."""
    expected = (image.shape[0], image.ndim - 2, *image.shape[2:])
    if tuple(ddf.shape) != expected:
        raise ValueError(
            f"image and ddf must share one grid and batch: image (B, C, *S) is {tuple(image.shape)}, so ddf (B, D, *S) "
            f"must be {expected}, got {tuple(ddf.shape)}; resample the image onto the registration grid first"
        )
    return sample_moved(image, ddf, 1, mode, padding_mode)


def compose(outer: Tensor, inner: Tensor, stride: int = 1) -> Tensor:
    """Displacement field of ``(id + outer) o (id + inner)``: ``inner`` moves the point first.

    Both are ``(B, D, *S)`` in voxels of one grid, known at each ``stride``-th voxel; ``outer`` is linear between them.
    """
    return inner + sample_moved(outer, inner if stride == 1 else inner / stride)


def sample_moved(
    image: Tensor, ddf: Tensor, stride: int = 1, mode: str = "bilinear", padding_mode: str = "border"
) -> Tensor:
    """``image(x + ddf(x))`` at each ``stride``-th voxel x, where the ddf is known: :func:`warp` for a stride of 1."""
    ddf, size = at_least_float32(ddf), tuple(image.shape[2:])
    if is_recorded():
        return sample(image, voxel_grid(size, ddf, stride) + ddf, mode, padding_mode)
    return sample_normalized(image, MovedGrid.apply(ddf, size, stride, [0] * len(size)), mode, padding_mode)


def warp_part(image: Tensor, ddf: Tensor, start: Sequence[int]) -> Tensor:
    """``image(x + ddf(x))`` ``(B, C, *T)`` of the voxels x of a part of the grid alone, where the ddf ``(B, D, *T)`` is
    known; it begins at the voxel ``start``."""
    return sample_normalized(image, MovedGrid.apply(at_least_float32(ddf), tuple(image.shape[2:]), 1, start))


def resample(
    image: Tensor,
    matrix: Tensor,
    spatial_size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    samples: Sequence[int] | None = None,
) -> Tensor:
    """``image`` on another grid.

    Args:
        image: ``(B, C, *S)``.
        matrix: ``(D+1, D+1)``, voxel of the new grid to voxel of ``image``, for example
            ``inverse(image_affine) @ grid_affine``.
        spatial_size: size of the new grid.
        mode: as in :func:`sample`.
        padding_mode: likewise.
        samples: along each axis, the mean of how many in a voxel of the new grid; None is 1.
    """
    samples = samples or [1] * len(spatial_size)
    linear = mode == "bilinear" and padding_mode != "reflection" and not is_recorded()
    axes = axes_of(matrix, spatial_size) if linear and image.device.type == "cpu" else None
    if axes is not None and bool(torch.isfinite(image).all()):
        return resampled_along_axes(image.float(), matrix, axes, spatial_size, padding_mode == "border", samples)
    fine = [size * number for size, number in zip(spatial_size, samples, strict=True)]
    points = affine_points(matrix.double().cpu() @ centers_of(samples), fine).to(image.device)
    values = sample(image, points.expand(len(image), *points.shape), mode, padding_mode)
    return values if max(samples) == 1 else Pool[Pool.AVG, len(samples)](tuple(samples))(values)


def centers_of(samples: Sequence[int]) -> Tensor:
    """``(D+1, D+1)``: voxels of a grid that is so many times as fine to those of the grid, over the same places."""
    matrix = torch.diag(torch.tensor([*(1.0 / number for number in samples), 1.0], dtype=torch.float64))
    matrix[:-1, -1] = torch.tensor([(1.0 / number - 1.0) / 2.0 for number in samples], dtype=torch.float64)
    return matrix


def affine_points(
    matrix: Tensor, spatial_size: Sequence[int], dtype: torch.dtype = torch.float32, slab: slice = WHOLE
) -> Tensor:
    """``(D, *spatial_size)``: each voxel of a grid mapped by ``matrix`` ``(D+1, D+1)``, in float64, then ``dtype``.

    Of a ``slab`` of the grid, some indices of its first axis, the points are the same to the last bit.
    """
    matrix = torch.as_tensor(matrix, dtype=torch.float64)
    dims = len(spatial_size)
    points = column(matrix[:-1, -1], dims + 1)
    for axis, size in enumerate(spatial_size):  # a sum of one term for each axis needs no grid of coordinates
        index = torch.arange(size, dtype=torch.float64, device=matrix.device)[slab if axis == 0 else WHOLE]
        term = matrix[:-1, axis, None] * index
        points = points + term.view(dims, *(len(index) if other == axis else 1 for other in range(dims)))
    return points.to(dtype)


class Warp(nn.Module):
    """Warps an image with a dense displacement field, without state.

    Equal to ``monai.networks.blocks.Warp`` to the last bit in float32, but without a cached reference grid, scriptable
    by tracing, and never in half precision.

    Convention:
        Pull-back on the fixed grid, ``warped(x) = image(x + ddf(x))``; ddf in voxels, component c along tensor
        axis c+2.

    Args:
        mode: "bilinear" (linear in 3-D), "nearest" or "bicubic" (2-D).
        padding_mode: "border", "zeros" or "reflection".

    Examples:
        >>> image = torch.arange(12.0).view(1, 1, 3, 4)
        >>> ddf = torch.zeros(1, 2, 3, 4)
        >>> ddf[:, 1] = 1.0  # look one voxel further along the last axis
        >>> Warp()(image, ddf)[0, 0, 0]
        tensor([1., 2., 3., 3.])
    """

    def __init__(self, mode: str = "bilinear", padding_mode: str = "border") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
        self.mode = mode
        self.padding_mode = padding_mode

    def forward(self, image: Tensor, ddf: Tensor) -> Tensor:
        """``(B, C, *S)`` and ``(B, D, *S)`` to ``(B, C, *S)``."""
        return warp(image, ddf, self.mode, self.padding_mode)
