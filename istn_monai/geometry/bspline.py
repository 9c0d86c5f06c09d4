"""Cubic B-spline transformation; see :mod:`istn_monai.geometry.transformation` for the conventions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from istn_monai.geometry.bending import lattice_bending_energy, leibniz
from istn_monai.geometry.sampling import column, sample_normalized
from istn_monai.geometry.separable import along_axes
from istn_monai.geometry.transformation import Transformation, per_axis


def cubic_bspline(t: Tensor) -> Tensor:
    """The centered cubic B-spline at distances ``t`` (in control spacings); zero beyond 2."""
    t = t.abs()
    near = 2.0 / 3.0 - t**2 + t**3 / 2
    far = (2 - t).clamp(min=0) ** 3 / 6
    return torch.where(t < 1, near, far)


def first_derivative(t: Tensor) -> Tensor:
    """Of :func:`cubic_bspline`."""
    away = t.abs()
    near = 1.5 * away**2 - 2 * away
    far = -((2 - away).clamp(min=0) ** 2) / 2
    return t.sign() * torch.where(away < 1, near, far)


def second_derivative(t: Tensor) -> Tensor:
    """Of :func:`cubic_bspline`."""
    t = t.abs()
    return torch.where(t < 1, 3 * t - 2, (2 - t).clamp(min=0))


def sample_cubic_bspline(lattice: Tensor, index: Tensor) -> Tensor:
    """The cubic B-spline of a lattice of coefficients at any place, by linear samples alone.

    Two neighboring weights of the four along an axis are one linear sample between them, so that 2^D samples do the
    work of 4^D coefficients (Ruijters, ter Haar Romeny, Suetens, "Efficient GPU-based texture interpolation using
    uniform B-splines", 2008).

    Args:
        lattice: ``(B, C, *control_shape)``.
        index: ``(B, D, *T)`` in cells, 0 at the first coefficient; 1 and more from either end.

    Returns:
        ``(B, C, *T)``.
    """
    dims = index.shape[1]
    whole = index.floor()
    t = index - whole
    second = 4 + t * t * (3 * t - 6)  # weight of the coefficient at ``whole``; here all weights are six times as large
    left = (1 - t) ** 3 + second
    right = 6 - left  # neither is 0: both are 1 at least
    step = column(index.new_tensor([2 / (n - 1) for n in lattice.shape[2:]]), index.ndim - 1)
    start = whole * step - 1
    sides = (left, start + (second / left - 1) * step), (right, start + (t**3 / right + 1) * step)
    grid = index.new_empty(len(index), *index.shape[2:], dims)
    result: Tensor | float = 0.0
    for corner in product(range(2), repeat=dims):
        for axis, side in enumerate(corner):
            grid[..., dims - 1 - axis] = sides[side][1][:, axis]
        weight = math.prod(sides[side][0][:, axis] for axis, side in enumerate(corner))
        result = result + weight[:, None] * sample_normalized(lattice, grid)
    return result / 6**dims


class BSplineTransformation(Transformation):
    """Cubic B-spline free-form deformation (Rueckert et al., 1999) with one lattice of control points.

    Convention:
        The lattice is aligned with the grid's axes and centered on the grid. Along an axis of extent
        ``L = (S - 1) * spacing`` mm it has ``ceil(L / control_spacing)`` cells and 3 control points more than cells,
        the first one cell outside (the layout of ``itk.BSplineTransform`` of order 3). ``theta`` is the flattened
        ``(D, *control_shape)``; control point displacement along axis c is ``max_displacement * control_spacing[c] *
        tanh(theta)`` in mm.

    Evaluated as one small matrix product for each axis, never as a transposed convolution.

    Args:
        spatial_size: registration grid ``*S``, 2-D or 3-D.
        spacing: its voxel size in mm.
        control_spacing: distance of control points in mm; need not be a whole number of voxels.
        max_displacement: bound as a fraction of the control spacing. 0.4 cannot fold: Choi & Lee, "Injectivity
            conditions of 2D and 3D uniform cubic B-spline functions" (2000), bound 1/2.48 in 3-D and 1/2.05 in 2-D.
            None leaves the displacement free, ``control_spacing * theta`` (the paper's own case is bounded loosely).

    Examples:
        >>> bspline = BSplineTransformation((33, 17), spacing=1.0, control_spacing=8.0)
        >>> bspline.control_shape
        (7, 5)
        >>> bspline(torch.zeros(1, bspline.num_parameters)).shape
        torch.Size([1, 2, 33, 17])
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        control_spacing: float | Sequence[float] = 8.0,
        max_displacement: float | None = 0.4,
    ) -> None:
        super().__init__(spatial_size, spacing)
        self.control_spacing = per_axis("control_spacing", control_spacing, self.spatial_dims)
        if max_displacement is not None and not (math.isfinite(max_displacement) and max_displacement > 0):
            raise ValueError(
                "max_displacement must be a positive fraction of the control spacing, or None for no bound, got "
                f"{max_displacement!r}"
            )
        self.max_displacement = max_displacement
        extents = [(n - 1) * h for n, h in zip(self.spatial_size, self.spacing, strict=True)]
        # 1e-9: an extent of whole cells must not gain one from rounding
        self.cells = tuple(math.ceil(e / c - 1e-9) for e, c in zip(extents, self.control_spacing, strict=True))
        self.control_shape = tuple(cells + 3 for cells in self.cells)
        self.parameter_shapes = ((self.spatial_dims, *self.control_shape),)
        #: position in mm of the lattice's domain (its second control point) relative to the grid's first voxel
        self.domain_origin = tuple(
            (e - n * c) / 2 for e, n, c in zip(extents, self.cells, self.control_spacing, strict=True)
        )
        for axis in range(self.spatial_dims):
            self.constant(f"weights_{axis}", self.axis_weights(axis))
            # as a matrix: Module.to(memory_format=...) would take four axes for an image
            self.constant(f"bending_{axis}", self.bending_rule(axis).flatten(2).flatten(0, 1))
        self.constant("voxels_per_cell", [c / h for c, h in zip(self.control_spacing, self.spacing, strict=True)])

    def on_size(self, spatial_size: Sequence[int]) -> BSplineTransformation:
        """See :meth:`Transformation.resized`."""
        return BSplineTransformation(spatial_size, self.spacing, self.control_spacing, self.max_displacement)

    def offsets(self, axis: int) -> Tensor:
        """``(S[axis], control_shape[axis])``: distances of voxels from control points, in control spacings, float64."""
        voxels = torch.arange(self.spatial_size[axis], dtype=torch.float64) * self.spacing[axis]
        cells = (voxels - self.domain_origin[axis]) / self.control_spacing[axis]
        control_points = torch.arange(self.control_shape[axis], dtype=torch.float64) - 1
        return cells[:, None] - control_points

    def axis_weights(self, axis: int) -> Tensor:
        """``(S[axis], control_shape[axis])``: the weight of each control point at each voxel of an axis."""
        return cubic_bspline(self.offsets(axis))

    def bending_rule(self, axis: int) -> Tensor:
        """What :func:`lattice_bending_energy` wants to know of an axis."""
        offsets, step = self.offsets(axis), self.control_spacing[axis]
        orders = cubic_bspline(offsets), first_derivative(offsets) / step, second_derivative(offsets) / step**2
        return leibniz([weights.T @ weights / len(weights) for weights in orders])

    def bending_energy(self, theta: Tensor, stride: int = 1) -> Tensor:
        """See :meth:`Transformation.bending_energy`; of the exact derivatives at all voxels, whatever the stride."""
        rules = [
            getattr(self, f"bending_{axis}").to(theta.dtype).view(3, n, 3, n)
            for axis, n in enumerate(self.control_shape)
        ]
        return lattice_bending_energy(self.control_displacements(theta), rules)

    def control_displacements(self, theta: Tensor) -> Tensor:
        """``theta`` ``(B, P)`` to the control points' displacements ``(B, D, *control_shape)`` in mm."""
        cells = self.in_cells(self.checked(theta))
        mm = torch.tensor(self.control_spacing, dtype=cells.dtype, device=cells.device)
        return cells * mm.view(-1, *[1] * self.spatial_dims)

    def in_cells(self, theta: Tensor) -> Tensor:
        """Control points' displacements in control spacings, bounded."""
        lattice = theta.unflatten(1, self.parameter_shapes[0])
        return lattice if self.max_displacement is None else self.max_displacement * torch.tanh(lattice)

    def near_bounds(self, theta: Tensor) -> Tensor:
        """See :meth:`Transformation.near_bounds`; none are without ``max_displacement``."""
        return super().near_bounds(theta) * (self.max_displacement is not None)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``."""
        voxels_per_cell = self.voxels_per_cell.to(theta.dtype).view(-1, *[1] * self.spatial_dims)
        weights = [getattr(self, f"weights_{axis}")[::stride].to(theta.dtype) for axis in range(self.spatial_dims)]
        return along_axes(self.in_cells(theta) * voxels_per_cell, weights)
