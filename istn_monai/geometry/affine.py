"""Affine transformation; see :mod:`istn_monai.geometry.transformation` for the conventions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from istn_monai.geometry.transformation import Transformation

MAX_TRANSLATION = 30.0  # mm


class AffineTransformation(Transformation):
    """Affine transformation about the grid's center, ``T = M_t R_phi S_psi^-1 D_s S_psi`` (paper, Eq. 3).

    Convention:
        Acts in millimeters along the grid's own axes, origin in the grid's center ``(S - 1) / 2 * spacing``.
        ``theta`` is ``[t (D), phi (D(D-1)/2), s (D), psi (D(D-1)/2)]``, each block ``bound * tanh(theta)``:
        translation in mm; one rotation in radians for each coordinate plane ``(0,1), (0,2), (1,2)``, multiplied in
        this order (ZXZ Euler angles are singular at the identity); log-scales; and the angles of ``S_psi``, in the
        same planes. As in the authors' code ``S_psi`` is orthogonal: it turns the axes along which ``D_s`` scales, so
        that ``S^-1 D S`` is every symmetric stretch, and ``det T = exp(sum s) > 0``: it never folds.

    Args:
        spatial_size: registration grid ``*S``, 2-D or 3-D.
        spacing: its voxel size in mm.
        max_translation: bound in mm.
        max_rotation: bound in radians.
        max_log_scale: bound on the log of a scale; 0 with ``max_shear=0`` makes the transformation rigid.
        max_shear: bound on the angles of ``S_psi`` in radians.

    Examples:
        >>> affine = AffineTransformation((20, 16), spacing=(1.0, 2.0))
        >>> affine.num_parameters
        6
        >>> affine(torch.zeros(1, 6)).abs().max().item()
        0.0
    """

    invertible = True

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        max_translation: float = MAX_TRANSLATION,
        max_rotation: float = math.pi / 4,
        max_log_scale: float = 0.5,
        max_shear: float = math.pi / 4,
    ) -> None:
        super().__init__(spatial_size, spacing)
        dims = self.spatial_dims
        self.planes = tuple(combinations(range(dims), 2))
        self.parameter_shapes = ((2 * dims + 2 * len(self.planes),),)
        self.block_sizes = (dims, len(self.planes), dims, len(self.planes))
        bounds = (max_translation, max_rotation, max_log_scale, max_shear)
        names = ("max_translation", "max_rotation", "max_log_scale", "max_shear")
        for name, bound in zip(names, bounds, strict=True):
            if not (math.isfinite(bound) and bound >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {bound!r}")
        self.limits = bounds
        self.constant("bounds", [b for b, n in zip(bounds, self.block_sizes, strict=True) for _ in range(n)])
        self.constant("voxel_size", self.spacing)
        # the rotation by phi in a plane is 1 + (cos phi - 1) projector + sin phi generator
        projector = torch.zeros(len(self.planes), dims, dims)
        generator = torch.zeros(len(self.planes), dims, dims)
        for number, (i, j) in enumerate(self.planes):
            projector[number, i, i] = projector[number, j, j] = 1.0
            generator[number, j, i], generator[number, i, j] = 1.0, -1.0
        self.constant("projector", projector)
        self.constant("generator", generator)

    def on_size(self, spatial_size: Sequence[int]) -> AffineTransformation:
        """See :meth:`Transformation.resized`; the center is that of the new grid."""
        return AffineTransformation(spatial_size, self.spacing, *self.limits)

    def decompose(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``theta`` ``(B, P)`` to bounded translations (mm), rotations (rad), log-scales and shear angles (rad)."""
        bounded = self.bounds.to(theta.dtype) * torch.tanh(theta)
        translation, rotation, log_scale, shear = bounded.split(self.block_sizes, dim=1)
        return translation, rotation, log_scale, shear

    def rotation_matrix(self, angles: Tensor) -> Tensor:
        """Angles ``(B, planes)`` in radians to the product of the plane rotations ``(B, D, D)``."""
        projector, generator = self.projector.to(angles.dtype), self.generator.to(angles.dtype)
        matrix = identity = torch.eye(self.spatial_dims, dtype=angles.dtype, device=angles.device)
        for plane in range(len(self.planes)):
            angle = angles[:, plane, None, None]
            matrix = matrix @ (identity + (angle.cos() - 1) * projector[plane] + angle.sin() * generator[plane])
        return matrix

    def matrix(self, theta: Tensor) -> Tensor:
        """``theta`` ``(B, P)`` to ``(B, D+1, D+1)``, fixed to moving point in mm about the grid's center."""
        translation, rotation, log_scale, shear = self.decompose(self.checked(theta))
        with torch.autocast(theta.device.type, enabled=False):
            stretch_axes = self.rotation_matrix(shear)
            stretch = stretch_axes.mT @ torch.diag_embed(log_scale.exp()) @ stretch_axes
            top = torch.cat([self.rotation_matrix(rotation) @ stretch, translation[..., None]], dim=2)
        last_row = torch.zeros_like(top[:, :1])
        last_row[..., -1] = 1.0
        return torch.cat([top, last_row], dim=1)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``."""
        return self.of_matrix(self.matrix(theta), stride)

    def inverse_displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """See :meth:`Transformation.inverse`."""
        return self.of_matrix(torch.linalg.inv(self.matrix(theta)), stride)

    def of_matrix(self, matrix: Tensor, stride: int) -> Tensor:
        """The ddf of matrices ``(B, D+1, D+1)`` in mm about the grid's center."""
        voxel_size = self.voxel_size.to(matrix.dtype)
        identity = torch.eye(self.spatial_dims, dtype=matrix.dtype, device=matrix.device)
        # A - 1 rather than A x - x, so that theta = 0 gives 0 to the last bit
        per_voxel = (matrix[:, :-1, :-1] - identity) * voxel_size / voxel_size[:, None]
        shift = matrix[:, :-1, -1:] / voxel_size[:, None]
        total = shift.view(*shift.shape[:2], *[1] * self.spatial_dims)
        for axis, size in enumerate(self.spatial_size):  # a sum of one term for each axis needs no grid of coordinates
            about_center = torch.arange(0, size, stride, dtype=matrix.dtype, device=matrix.device) - (size - 1) / 2
            term = per_voxel[:, :, axis, None] * about_center
            total = total + term.view(
                *shift.shape[:2], *(-1 if other == axis else 1 for other in range(self.spatial_dims))
            )
        return total

    def bending_energy(self, theta: Tensor, stride: int = 1) -> Tensor:
        """None: it is linear."""
        return theta.new_zeros(len(theta))
