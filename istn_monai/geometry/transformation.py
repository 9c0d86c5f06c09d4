"""What spatial transformations share: parameters ``theta`` to a dense displacement field (ddf).

Convention:
    ``theta`` is ``(B, P)``, free of units; each class states its order and its bounds. The ddf is ``(B, D, *S)`` in
    voxels of the registration grid, component c along tensor axis c+2, and pulls back, ``warped(x) = moving(x +
    ddf(x))``.
    What users type is in millimeters, radians and log-scale; millimeters become voxels here and nowhere else.
    ``theta = 0`` is exactly the identity. Transformations hold constants only: no weights, nothing written in forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor, nn

from istn_monai.geometry.bending import bending_energy
from istn_monai.geometry.sampling import at_least_float32

NEAR_BOUND = 2.65  # tanh(2.65) = 0.99, of a bound


def per_axis(name: str, value: float | Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    """One positive number for each axis from a number or a sequence; errors name the argument."""
    try:
        values = tuple(map(float, value)) if np.ndim(value) else (float(value),) * spatial_dims  # type: ignore[arg-type]
    except (TypeError, ValueError):
        values = ()
    if len(values) != spatial_dims or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"{name} must be a positive number or {spatial_dims} of them (mm), got {value!r}")
    return values


def checked_size(spatial_size: Sequence[int]) -> tuple[int, ...]:
    """A registration grid's size: 2 or 3 whole numbers, at least 2 each."""
    numbers = isinstance(spatial_size, (Sequence, np.ndarray)) and all(isinstance(s, Real) for s in spatial_size)
    if not numbers:
        raise ValueError(f"spatial_size must be 2 or 3 whole numbers of at least 2, got {spatial_size!r}")
    size = tuple(int(s) for s in spatial_size)
    if len(size) not in (2, 3) or min(size) < 2 or any(n != s for n, s in zip(size, spatial_size, strict=True)):
        raise ValueError(f"spatial_size must be 2 or 3 whole numbers of at least 2, got {spatial_size!r}")
    return size


class Transformation(nn.Module):
    """What all transformations share: sizes, and the shapes of their blocks of parameters.

    Attributes:
        spatial_size: registration grid ``*S``.
        spacing: its voxel size in mm, one for each axis.
        parameter_shapes: shapes of the blocks that make up ``theta``, in order; ``(n,)`` for global parameters,
            ``(D, *control_shape)`` for a lattice of control points.
    """

    def __init__(self, spatial_size: Sequence[int], spacing: float | Sequence[float] = 1.0) -> None:
        super().__init__()
        self.spatial_size = checked_size(spatial_size)
        self.spatial_dims = len(self.spatial_size)
        self.spacing = per_axis("spacing", spacing, self.spatial_dims)
        self.parameter_shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def num_parameters(self) -> int:
        """P, the length of ``theta``."""
        return sum(math.prod(shape) for shape in self.parameter_shapes)

    def resized(self, spatial_size: Sequence[int]) -> Transformation:
        """The same transformation on a grid of another size and the same spacing, on the same device.

        Bounds and control spacings are in mm, so they stay what they are; a lattice of control points follows the grid.
        """
        if tuple(spatial_size) == self.spatial_size:
            return self
        device = next((buffer.device for buffer in self.buffers()), torch.device("cpu"))
        return self.on_size(spatial_size).to(device)

    def on_size(self, spatial_size: Sequence[int]) -> Transformation:
        """A new transformation of the same kind; what a subclass makes."""
        raise TypeError(f"{type(self).__name__} does not define on_size(spatial_size)")

    def constant(self, name: str, value: Sequence) -> None:
        """Keeps a constant tensor that follows ``.to()`` and stays out of checkpoints."""
        self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64).float(), persistent=False)

    def checked(self, theta: Tensor) -> Tensor:
        """``theta`` in at least float32, or a ValueError that states the shape it must have."""
        if theta.ndim != 2 or theta.shape[1] != self.num_parameters:
            raise ValueError(
                f"theta of {type(self).__name__} must be (B, {self.num_parameters}), got {tuple(theta.shape)}"
            )
        return at_least_float32(theta)

    def forward(self, theta: Tensor, stride: int = 1) -> Tensor:
        """``theta`` ``(B, P)`` to the ddf ``(B, D, *S)``, or its every ``stride``-th voxel alone; outside autocast."""
        theta = self.checked(theta)
        with torch.autocast(theta.device.type, enabled=False):
            return self.displacement(theta, stride)

    #: whether :meth:`inverse` is known in closed form
    invertible = False

    def inverse(self, theta: Tensor, stride: int = 1) -> Tensor:
        """``theta`` ``(B, P)`` to the ddf ``(B, D, *S)`` of the inverse, from moving to fixed points on the same grid.

        Raises:
            TypeError: if the inverse of this kind is not known in closed form, see ``invertible``.
        """
        if not self.invertible:
            raise TypeError(f"{type(self).__name__} has no inverse in closed form: affine transformations and svf have")
        theta = self.checked(theta)
        with torch.autocast(theta.device.type, enabled=False):
            return self.inverse_displacement(theta, stride)

    def inverse_displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of the inverse for a checked ``theta``; what a subclass that is ``invertible`` computes."""
        raise TypeError(f"{type(self).__name__} does not define inverse_displacement(theta, stride)")

    def bending_energy(self, theta: Tensor, stride: int = 1) -> Tensor:
        """Of ``theta`` ``(B, P)`` in 1/mm^2, ``(B,)``; by finite differences at each ``stride``-th voxel, unless a
        subclass knows it without its field."""
        return bending_energy(self(theta, stride), self.spacing, stride)

    def near_bounds(self, theta: Tensor) -> Tensor:
        """Fraction ``(B,)`` of the parameters ``(B, P)`` within 1 % of their bound: they want to go further."""
        return (self.checked(theta).abs() > NEAR_BOUND).float().mean(1)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``; what a subclass computes."""
        raise TypeError(f"{type(self).__name__} does not define displacement(theta, stride)")
