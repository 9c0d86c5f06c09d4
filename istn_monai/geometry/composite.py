"""Composition of transformations, and the transformation that a setting names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.names import GLOBAL, TRANSFORMATIONS, bounds_of, kinds_of  # noqa: F401 (it was here before)
from istn_monai.geometry.sampling import compose
from istn_monai.geometry.svf import SVFTransformation
from istn_monai.geometry.transformation import Transformation


class CompositeTransformation(Transformation):
    """Transformations one after the other, the first one coarsest: ``T = T_1 o T_2 o ... o T_n``.

    Convention:
        A fixed point is moved by the last (finest) transformation first, as in an ``itk.CompositeTransform`` to which
        they are added in this order. ``theta`` is their parameters, concatenated. Fold-free components make a
        fold-free whole, which can move further than its finest component alone.

    The field of a component is interpolated linearly at the points that the finer components moved; beyond the grid it
    is that of the border. Up to that the whole folds no more than its components: with all parameters driven to their
    bounds in the worst pattern, finite differences at the border can show it fold.

    Args:
        transformations: at least one, all on the same grid.

    Examples:
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
        self.components = nn.ModuleList(transformations)
        self.parameter_shapes = tuple(shape for t in transformations for shape in t.parameter_shapes)

    def on_size(self, spatial_size: Sequence[int]) -> CompositeTransformation:
        """See :meth:`Transformation.resized`."""
        return CompositeTransformation([component.resized(spatial_size) for component in self.components])

    def split(self, theta: Tensor) -> tuple[Tensor, ...]:
        """``theta`` ``(B, P)`` to one ``(B, P_i)`` for each component."""
        return self.checked(theta).split([part.num_parameters for part in self.components], dim=1)

    def near_bounds(self, theta: Tensor) -> Tensor:
        """See :meth:`Transformation.near_bounds`: of the components that move anything."""
        blocks = self.split(theta)
        numbers = torch.stack([block.any(1) * block.shape[1] for block in blocks])
        near = torch.stack([part.near_bounds(own) for part, own in zip(self.components, blocks, strict=True)])
        return (near * numbers).sum(0) / numbers.sum(0).clamp_min(1)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``; with a stride the fields of all components are known at those voxels alone,
        and are linear between them."""
        parameters = self.split(theta)
        total = self.components[-1](parameters[-1], stride)
        for part, block in zip(reversed(self.components[:-1]), reversed(parameters[:-1]), strict=True):
            total = compose(outer=part(block, stride), inner=total, stride=stride)
        return total

    @property
    def invertible(self) -> bool:  # type: ignore[override]
        """Whether all components are."""
        return all(part.invertible for part in self.components)

    def inverse_displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """See :meth:`Transformation.inverse`: of the components' inverses the first component's acts first."""
        inverses = [part.inverse(block, stride) for part, block in zip(self.components, self.split(theta), strict=True)]
        total = inverses[0]
        for ddf in inverses[1:]:
            total = compose(outer=ddf, inner=total, stride=stride)
        return total

    def whole(self, theta: Tensor, stride: int = 1) -> Tensor:
        """As :meth:`forward`, without a gradient; components that are the identity take no time."""
        with torch.no_grad():
            total = self.between(self.split(theta), 0, len(self.components), stride)
        return self.resting(theta, stride) if total is None else total

    def total(self, blocks: Sequence[Tensor], stride: int = 1) -> Tensor:
        """The sum of the components' fields, each where it is, without a gradient.

        Args:
            blocks: parameters ``(B, P_i)`` of all components; those that are the identity take no time.
            stride: see :meth:`forward`.
        """
        with torch.no_grad():
            moved = [part(block, stride) for part, block in zip(self.components, blocks, strict=True) if block.any()]
            return sum(moved, self.resting(blocks[0], stride))

    def resting(self, like: Tensor, stride: int) -> Tensor:
        """The ddf of the identity for parameters ``(B, ...)``."""
        return like.new_zeros(len(like), self.spatial_dims, *(math.ceil(n / stride) for n in self.spatial_size))

    def between(self, blocks: Sequence[Tensor], first: int, end: int, stride: int = 1) -> Tensor | None:
        """The ddf ``(B, D, *S)`` of some components alone; None for none, or if all of them are the identity.

        Args:
            blocks: parameters ``(B, P_i)`` of all components.
            first: number of the first one.
            end: number of the one after the last.
            stride: see :meth:`forward`.
        """
        total = None
        for number in reversed(range(first, end)):
            if bool(blocks[number].any()):
                ddf = self.components[number](blocks[number], stride)
                total = ddf if total is None else compose(outer=ddf, inner=total, stride=stride)
        return total


def spatial_transformation(
    name: str,
    spatial_size: Sequence[int],
    spacing: float | Sequence[float] = 1.0,
    control_spacing: float | Sequence[float] = (24.0, 12.0, 6.0),
    max_displacement: float | None = 0.4,
    affine_bounds: Mapping[str, float] | None = None,
) -> Transformation:
    """The transformation that a config names.

    Args:
        name: "rigid", "affine", "bspline": composed cubic B-splines, one for each number in ``control_spacing``, or
            "svf": a stationary velocity field, which has an inverse; or several, joined by ``+``, coarse to fine, such
            as "affine+bspline", see :func:`kinds_of`.
        spatial_size: registration grid ``*S``.
        spacing: its voxel size in mm.
        control_spacing: of "bspline" and "svf", in mm, coarse to fine; a single number is a single level.
        max_displacement: likewise, see :class:`BSplineTransformation` and :class:`SVFTransformation`.
        affine_bounds: of "rigid" and "affine", see :func:`bounds_of`; None for the defaults.

    Raises:
        ValueError: naming what is wrong, and what is expected.

    Examples:
        >>> spatial_transformation("affine", (24, 20)).num_parameters
        6
        >>> [type(part).__name__ for part in spatial_transformation("rigid+svf", (24, 20)).components]
        ['AffineTransformation', 'SVFTransformation']
    """
    parts: list[Transformation] = []
    kinds = kinds_of(name)
    if affine_bounds and not set(kinds) & set(GLOBAL):
        raise ValueError(f"affine_bounds are of rigid and affine transformations, and transformation is {name!r}")
    for kind in kinds:
        if kind in GLOBAL:
            parts.append(AffineTransformation(spatial_size, spacing, **bounds_of(kind, affine_bounds)))
        elif kind == "svf":
            parts.append(SVFTransformation(spatial_size, spacing, control_spacing, max_displacement))
        else:
            levels = control_spacing if isinstance(control_spacing, Sequence) else [control_spacing]
            parts += [BSplineTransformation(spatial_size, spacing, level, max_displacement) for level in levels]
    return parts[0] if len(parts) == 1 and kinds != ("bspline",) else CompositeTransformation(parts)
