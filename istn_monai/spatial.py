"""Affine transformation, composition, and the transformation that a config names.

See :mod:`istn_monai.transformation` for the conventions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from istn_monai.bspline import BSplineTransformation
from istn_monai.transformation import Transformation
from istn_monai.warp import compose, voxel_grid

TRANSFORMATIONS = ("affine", "bspline")


class AffineTransformation(Transformation):
    """Affine transformation about the grid's centre, ``T = M_t R_phi S_psi^-1 D_s S_psi`` (paper, Eq. 3).

    Convention:
        Acts in millimetres along the grid's own axes, origin in the grid's centre ``(S - 1) / 2 * spacing``.
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

    Example:
        >>> affine = AffineTransformation((20, 16), spacing=(1.0, 2.0))
        >>> affine.num_parameters
        6
        >>> affine(torch.zeros(1, 6)).abs().max().item()
        0.0
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        spacing: float | Sequence[float] = 1.0,
        max_translation: float = 30.0,
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
        """``theta`` ``(B, P)`` to ``(B, D+1, D+1)``, fixed to moving point in mm about the grid's centre."""
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
        matrix = self.matrix(theta)
        voxel_size = self.voxel_size.to(theta.dtype)
        identity = torch.eye(self.spatial_dims, dtype=theta.dtype, device=theta.device)
        centre = torch.tensor([(size - 1) / 2 for size in self.spatial_size], dtype=theta.dtype, device=theta.device)
        grid = voxel_grid(self.spatial_size, theta, stride)
        points = grid.flatten(1) - centre[:, None]  # (D, N) voxels about the centre
        # A - 1 rather than A x - x, so that theta = 0 gives 0 to the last bit
        per_voxel = (matrix[:, :-1, :-1] - identity) * voxel_size / voxel_size[:, None]
        shift = matrix[:, :-1, -1:] / voxel_size[:, None]
        return (per_voxel @ points + shift).unflatten(2, grid.shape[1:])


class DenseTransformation(Transformation):
    """A displacement of its own for each voxel: ``theta`` is the ddf, flattened.

    With it networks that predict a field (MONAI's LocalNet, VoxelMorph) take part in all that this package does with
    parameters: losses, refinement, export. Nothing bounds it, and it can fold: regularise.

    Args:
        spatial_size: registration grid ``*S``.
        spacing: its voxel size in mm.

    Example:
        >>> dense = DenseTransformation((4, 5))
        >>> ddf = torch.rand(1, 2, 4, 5)
        >>> torch.equal(dense(ddf.flatten(1)), ddf)
        True
    """

    def __init__(self, spatial_size: Sequence[int], spacing: float | Sequence[float] = 1.0) -> None:
        super().__init__(spatial_size, spacing)
        self.parameter_shapes = ((self.spatial_dims, *self.spatial_size),)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``."""
        ddf = theta.unflatten(1, self.parameter_shapes[0])
        return ddf[(..., *[slice(None, None, stride)] * self.spatial_dims)]


class CompositeTransformation(Transformation):
    """Transformations one after the other, the first one coarsest: ``T = T_1 o T_2 o ... o T_n``.

    Convention:
        A fixed point is moved by the last (finest) transformation first, as in an ``itk.CompositeTransform`` to which
        they are added in this order. ``theta`` is their parameters, concatenated. Fold-free parts make a fold-free
        whole, which can move further than its finest part alone.

    The field of a part is interpolated linearly at the points that the finer parts moved, and is that of the border
    beyond the grid. Up to that the whole folds no more than its parts: with all parameters driven to their bounds in
    the worst pattern, finite differences at the border can show it fold.

    Args:
        transformations: at least one, all on the same grid.

    Example:
        >>> levels = [BSplineTransformation((32, 32), 1.0, c) for c in (16.0, 8.0)]
        >>> composite = CompositeTransformation(levels)
        >>> composite.num_parameters == sum(level.num_parameters for level in levels)
        True
    """

    def __init__(self, transformations: Sequence[Transformation]) -> None:
        grids = {(t.spatial_size, t.spacing) for t in transformations}
        if len(grids) != 1:
            raise ValueError(f"transformations must be at least one, all on one grid (size, spacing), got {grids}")
        super().__init__(*grids.pop())
        self.parts = nn.ModuleList(transformations)
        self.parameter_shapes = tuple(shape for t in transformations for shape in t.parameter_shapes)

    def split(self, theta: Tensor) -> tuple[Tensor, ...]:
        """``theta`` ``(B, P)`` to one ``(B, P_i)`` for each part."""
        return self.checked(theta).split([part.num_parameters for part in self.parts], dim=1)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``."""
        parameters = self.split(theta)
        total = self.parts[-1](parameters[-1], stride)
        for part, block in zip(reversed(self.parts[:-1]), reversed(parameters[:-1]), strict=True):
            total = compose(outer=part(block), inner=total, stride=stride)
        return total


def spatial_transformation(
    name: str,
    spatial_size: Sequence[int],
    spacing: float | Sequence[float] = 1.0,
    control_spacing: float | Sequence[float] = (24.0, 12.0, 6.0),
    max_displacement: float | None = 0.4,
) -> Transformation:
    """The transformation that a config names.

    Args:
        name: "affine", or "bspline": composed cubic B-splines, one for each number in ``control_spacing``.
        spatial_size: registration grid ``*S``.
        spacing: its voxel size in mm.
        control_spacing: of "bspline", in mm, coarse to fine; a single number is a single level.
        max_displacement: of "bspline", see :class:`BSplineTransformation`.

    Example:
        >>> spatial_transformation("affine", (24, 20)).num_parameters
        6
    """
    if name == "affine":
        return AffineTransformation(spatial_size, spacing)
    if name == "bspline":
        levels = control_spacing if isinstance(control_spacing, Sequence) else [control_spacing]
        return CompositeTransformation(
            [BSplineTransformation(spatial_size, spacing, level, max_displacement) for level in levels]
        )
    raise ValueError(f"transformation must be one of {TRANSFORMATIONS}, got {name!r}")
