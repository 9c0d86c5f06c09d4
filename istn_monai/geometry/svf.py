"""Stationary velocity field; see :mod:`istn_monai.geometry.transformation` for the conventions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.sampling import compose, sample_moved
from istn_monai.geometry.transformation import Transformation

SHARPENED = 2  # of the squarings the last ones, which move points by more than a voxel
FEWEST, MOST = 2, 12  # squarings


class SVFTransformation(Transformation):
    """Diffeomorphism of a stationary velocity field (SVF): ``T = exp(v)``, with ``exp(-v)`` as its inverse.

    Convention:
        The velocity is the sum of cubic B-splines, one for each number in ``control_spacing``, with the parameters,
        lattices and bounds of :class:`BSplineTransformation`: ``theta`` of composed B-splines of the same levels has as
        many numbers, and small ones mean the same, within 2 %. ``-theta`` is the inverse.

    Integrated by scaling and squaring (Arsigny et al., "A log-Euclidean framework for statistics on diffeomorphisms",
    2006) on the voxels of the grid: a midpoint step of ``v / 2^n``, then n compositions of the field with itself. A
    field is linear between voxels, which cuts its peaks: the last compositions correct that in the mean, and halve the
    error. Beyond the grid a field is that of the border.

    Args:
        spatial_size: registration grid ``*S``, 2-D or 3-D.
        spacing: its voxel size in mm.
        control_spacing: distances of control points in mm, one for each level; a number is one level.
        max_displacement: bound of each level's velocity as a fraction of its control spacing.
        steps: n; None takes what brings the largest velocity below a voxel.

    Raises:
        ValueError: naming the argument; also if ``steps`` are too few for such a field.

    Examples:
        >>> svf = SVFTransformation((33, 17), spacing=1.0, control_spacing=8.0)
        >>> theta = torch.randn(1, svf.num_parameters)
        >>> there_and_back = compose(svf(theta), svf.inverse(theta))
        >>> bool(there_and_back[..., 4:-4, 4:-4].abs().mean() < 0.02)
        True
    """

    invertible = True

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        control_spacing: float | Sequence[float] = 8.0,
        max_displacement: float | None = 0.4,
        steps: int | None = None,
    ) -> None:
        super().__init__(spatial_size, spacing)
        if max_displacement is None:
            raise ValueError("max_displacement of svf must be a positive fraction of the control spacing, got None")
        self.control_spacing = tuple(control_spacing) if isinstance(control_spacing, Sequence) else (control_spacing,)
        self.max_displacement = max_displacement
        self.levels = nn.ModuleList(
            BSplineTransformation(spatial_size, spacing, level, max_displacement) for level in self.control_spacing
        )
        if not self.levels:
            raise ValueError("control_spacing must be a positive number of mm, or some of them, got none")
        self.parameter_shapes = tuple(shape for level in self.levels for shape in level.parameter_shapes)
        self.steps = checked_steps(steps, self.largest_velocity())

    def on_size(self, spatial_size: Sequence[int]) -> SVFTransformation:
        """See :meth:`Transformation.resized`."""
        return SVFTransformation(spatial_size, self.spacing, self.control_spacing, self.max_displacement, self.steps)

    def largest_velocity(self) -> float:
        """In voxels, along an axis, at the bounds."""
        each = [level.voxels_per_cell * self.max_displacement for level in self.levels]
        return float(torch.stack(each).sum(0).max())

    def velocity(self, theta: Tensor, stride: int = 1) -> Tensor:
        """``theta`` ``(B, P)`` to ``v`` ``(B, D, *S)`` in voxels, or its every ``stride``-th voxel alone."""
        blocks = theta.split([level.num_parameters for level in self.levels], dim=1)
        return sum(level(block, stride) for level, block in zip(self.levels, blocks, strict=True))  # type: ignore[return-value]

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``."""
        part = self.velocity(theta, stride) / 2**self.steps
        ddf = sample_moved(part, part / (2 * stride))  # where the point is halfway: of second order
        for step in range(self.steps):
            late = step >= self.steps - SHARPENED
            ddf = compose(outer=sharpened(ddf) if late else ddf, inner=ddf, stride=stride)
        return ddf

    def inverse_displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """See :meth:`Transformation.inverse`."""
        return self.displacement(-theta, stride)


def sharpened(field: Tensor) -> Tensor:
    """A field ``(B, D, *S)`` whose linear interpolation is right in the mean over a voxel, to third order.

    Interpolation adds ``t (1 - t) / 2`` of the second difference along each axis, t the place between two voxels: 1/12
    of it in the mean.
    """
    total = field
    for axis in range(2, field.ndim):
        if field.shape[axis] > 2:
            second = field.diff(n=2, dim=axis)
            ends = [0, 0] * (field.ndim - 1 - axis) + [1, 1]
            total = total - functional.pad(second, ends) / 12
    return total


def checked_steps(steps: int | None, velocity: float) -> int:
    """How many squarings, so that a velocity of so many voxels becomes less than one.

    Raises:
        ValueError: if those that are given are too few, or no number of them.
    """
    enough = min(max(math.ceil(math.log2(max(velocity, 1.0))), FEWEST), MOST)
    if steps is None:
        return enough
    if isinstance(steps, bool) or not isinstance(steps, int) or not enough <= steps <= MOST:
        raise ValueError(
            f"steps of svf must be a whole number from {enough} to {MOST} for velocities up to {velocity:.3g} voxels "
            f"(max_displacement times control_spacing, of all levels), got {steps!r}"
        )
    return steps
