"""Spatial transformations: parameters ``theta`` to a dense displacement field (ddf).

Convention:
    ``theta`` is ``(B, P)``, free of units; each class states its order and its bounds. The ddf is ``(B, D, *S)`` in
    voxels of the registration grid, component c along tensor axis c+2, and pulls back, ``warped(x) = moving(x +
    ddf(x))``.
    What users type is in millimetres, radians and log-scale; millimetres become voxels here and nowhere else.
    ``theta = 0`` is exactly the identity. Transformations hold constants only: no weights, nothing written in forward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from istn_monai.warp import at_least_float32, compose, voxel_grid

TRANSFORMATIONS = ("affine", "bspline")


def per_axis(name: str, value: float | Sequence[float], spatial_dims: int) -> tuple[float, ...]:
    """One positive number for each axis from a number or a sequence; errors name the argument."""
    try:
        values = tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),) * spatial_dims  # type: ignore[arg-type]
    except (TypeError, ValueError):
        values = ()
    if len(values) != spatial_dims or not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"{name} must be a positive number or {spatial_dims} of them (mm), got {value!r}")
    return values


def checked_size(spatial_size: Sequence[int]) -> tuple[int, ...]:
    """A registration grid's size: 2 or 3 whole numbers, at least 2 each."""
    if not isinstance(spatial_size, Sequence) or not all(isinstance(s, (int, float)) for s in spatial_size):
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

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``; what a subclass computes."""
        raise TypeError(f"{type(self).__name__} does not define displacement(theta, stride)")


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


def cubic_bspline(t: Tensor) -> Tensor:
    """The centred cubic B-spline at distances ``t`` (in control spacings); zero beyond 2."""
    t = t.abs()
    near = 2.0 / 3.0 - t**2 + t**3 / 2
    far = (2 - t).clamp(min=0) ** 3 / 6
    return torch.where(t < 1, near, far)


class BSplineTransformation(Transformation):
    """Cubic B-spline free-form deformation (Rueckert et al., 1999) with one lattice of control points.

    Convention:
        The lattice is aligned with the grid's axes and centred on the grid. Along an axis of extent
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

    Example:
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
        self.constant("voxels_per_cell", [c / h for c, h in zip(self.control_spacing, self.spacing, strict=True)])

    def axis_weights(self, axis: int) -> Tensor:
        """``(S[axis], control_shape[axis])``: the weight of each control point at each voxel of an axis."""
        voxels = torch.arange(self.spatial_size[axis], dtype=torch.float64) * self.spacing[axis]
        cells = (voxels - self.domain_origin[axis]) / self.control_spacing[axis]
        control_points = torch.arange(self.control_shape[axis], dtype=torch.float64) - 1
        return cubic_bspline(cells[:, None] - control_points)

    def control_displacements(self, theta: Tensor) -> Tensor:
        """``theta`` ``(B, P)`` to the control points' displacements ``(B, D, *control_shape)`` in mm."""
        cells = self.in_cells(self.checked(theta))
        mm = torch.tensor(self.control_spacing, dtype=cells.dtype, device=cells.device)
        return cells * mm.view(-1, *[1] * self.spatial_dims)

    def in_cells(self, theta: Tensor) -> Tensor:
        """Control points' displacements in control spacings, bounded."""
        lattice = theta.unflatten(1, self.parameter_shapes[0])
        return lattice if self.max_displacement is None else self.max_displacement * torch.tanh(lattice)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``."""
        voxels_per_cell = self.voxels_per_cell.to(theta.dtype).view(-1, *[1] * self.spatial_dims)
        field = self.in_cells(theta) * voxels_per_cell
        for axis in reversed(range(self.spatial_dims)):
            weights = getattr(self, f"weights_{axis}")[::stride].to(theta.dtype)
            before, after = field.shape[: axis + 2], field.shape[axis + 3 :]
            product = weights @ field.reshape(math.prod(before), weights.shape[1], math.prod(after))
            field = product.reshape(*before, weights.shape[0], *after)
        return field


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
    """
    if name == "affine":
        return AffineTransformation(spatial_size, spacing)
    if name == "bspline":
        levels = control_spacing if isinstance(control_spacing, Sequence) else [control_spacing]
        return CompositeTransformation(
            [BSplineTransformation(spatial_size, spacing, level, max_displacement) for level in levels]
        )
    raise ValueError(f"transformation must be one of {TRANSFORMATIONS}, got {name!r}")
