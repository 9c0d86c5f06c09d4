"""Composition of transformations, and the transformation that a setting names."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.bspline import BSplineTransformation
from istn_monai.geometry.sampling import compose
from istn_monai.geometry.transformation import Transformation

TRANSFORMATIONS = ("affine", "bspline", "affine_bspline")


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

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``; with a stride the fields of all components are known at those voxels alone,
        and are linear between them."""
        parameters = self.split(theta)
        total = self.components[-1](parameters[-1], stride)
        for part, block in zip(reversed(self.components[:-1]), reversed(parameters[:-1]), strict=True):
            total = compose(outer=part(block, stride), inner=total, stride=stride)
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
) -> Transformation:
    """The transformation that a config names.

    Args:
        name: "affine"; "bspline": composed cubic B-splines, one for each number in ``control_spacing``; or
            "affine_bspline": an affine transformation before these.
        spatial_size: registration grid ``*S``.
        spacing: its voxel size in mm.
        control_spacing: of "bspline", in mm, coarse to fine; a single number is a single level.
        max_displacement: of "bspline", see :class:`BSplineTransformation`.

    Examples:
        >>> spatial_transformation("affine", (24, 20)).num_parameters
        6
    """
    if name == "affine":
        return AffineTransformation(spatial_size, spacing)
    if name in TRANSFORMATIONS:
        spacings = control_spacing if isinstance(control_spacing, Sequence) else [control_spacing]
        levels = [BSplineTransformation(spatial_size, spacing, level, max_displacement) for level in spacings]
        first = [AffineTransformation(spatial_size, spacing)] if name == "affine_bspline" else []
        return CompositeTransformation([*first, *levels])
    raise ValueError(f"transformation must be one of {TRANSFORMATIONS}, got {name!r}")
