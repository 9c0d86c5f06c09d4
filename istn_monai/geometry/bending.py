"""Bending energy of a displacement (Rueckert et al. 1999), of a dense field or of a lattice of control points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from istn_monai.geometry.separable import along_axis


def bending_energy(ddf: Tensor, spacing: Sequence[float], stride: int = 1) -> Tensor:
    """Mean squared second derivatives of a displacement in mm, in 1/mm^2, ``(B,)`` (Rueckert et al. 1999).

    Args:
        ddf: ``(B, D, *S)`` in voxels, at each ``stride``-th voxel.
        spacing: of a voxel in mm, along each axis.
        stride: see ``ddf``.
    """
    dims = len(spacing)
    total = ddf.new_zeros(len(ddf))
    for component, voxel in zip(ddf.unbind(1), spacing, strict=True):  # by itself each needs little memory
        for i in range(dims):
            first = component.diff(dim=1 + i)
            for j in range(i, dims):
                second = first.diff(dim=1 + j)
                if second.numel():
                    factor = voxel / (stride * stride * spacing[i] * spacing[j])
                    factor = factor * factor * (1.0 if i == j else 2.0)
                    total = total + factor * second.square().flatten(1).mean(1)
    return total


def lattice_bending_energy(lattice: Tensor, derivatives: Sequence[Sequence[Tensor]]) -> Tensor:
    """As :func:`bending_energy`, of a displacement that is linear in its control points, without the dense field.

    The sum over all voxels of the square of ``W c`` is ``c' (W' W) c``, ``W`` a product of one matrix for each axis.

    Args:
        lattice: control points' displacements ``(B, D, *control_shape)`` in mm.
        derivatives: for each axis, of the weights ``(S_i, control_shape_i)`` of control points at voxels and of their
            first and second derivatives in mm, the products ``W' W / S_i``.

    Returns:
        ``(B,)``, in 1/mm^2.
    """
    return LatticeBending.apply(lattice, derivatives)[0]


class LatticeBending(torch.autograd.Function):
    """The energy ``c' K c`` and ``K c``, which is half of its gradient, so that going backward costs nothing."""

    @staticmethod
    def forward(lattice: Tensor, derivatives: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """``(B,)`` and ``(B, D, *control_shape)``."""
        product = bent(lattice, derivatives)
        return (lattice * product).flatten(1).sum(1), product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """What the gradient needs."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """Of the lattice; K is symmetric."""
        (product,) = ctx.saved_tensors
        return product * (2 * gradient).view(-1, *[1] * (product.ndim - 1)), None


def bent(lattice: Tensor, derivatives: Sequence[Sequence[Tensor]]) -> Tensor:
    """``K c``, all derivatives of order 2 together, one axis after the other.

    Of order k along some axes they are those of order j along all of these but the last one, which adds the other k -
    j, k choose j times (Leibniz).
    """
    orders = {0: lattice}
    for axis, own in enumerate(derivatives):
        wanted = (2,) if axis == len(derivatives) - 1 else (0, 1, 2)
        orders = {
            k: sum(math.comb(k, j) * along_axis(term, own[k - j], axis) for j, term in orders.items() if j <= k)
            for k in wanted
        }
    return orders[2]
