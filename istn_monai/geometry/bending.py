"""Bending energy of a displacement (Rueckert et al. 1999), of a dense field or of a lattice of control points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


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


def bending_gradient(ddf: Tensor, spacing: Sequence[float], stride: int = 1) -> Tensor:
    """The gradient of :func:`bending_energy` by the ddf ``(B, D, *S)``: second differences of second differences.

    The energy is quadratic, so it is half of the product of both.

    Args:
        ddf: see :func:`bending_energy`.
        spacing: likewise.
        stride: likewise.
    """
    dims = len(spacing)
    mm = ddf.new_tensor(spacing).view(-1, *[1] * dims)
    result = torch.zeros_like(ddf)
    for i, j in combinations_with_replacement(range(dims), 2):
        second = ddf.diff(dim=2 + i).diff(dim=2 + j)
        if second.numel():
            factor = (mm / (stride * stride * spacing[i] * spacing[j])).square() * (1.0 if i == j else 2.0)
            ends = [int(axis == i) + int(axis == j) for axis in reversed(range(dims)) for _ in range(2)]
            weighted = second * (2 * factor / second[0, 0].numel())
            result += functional.pad(weighted, ends).diff(dim=2 + i).diff(dim=2 + j)
    return result


def lattice_bending_energy(lattice: Tensor, rules: Sequence[Tensor]) -> Tensor:
    """As :func:`bending_energy`, of a displacement that is linear in its control points, without the dense field.

    The sum over all voxels of the square of ``W c`` is ``c' (W' W) c``, ``W`` a product of one matrix for each axis.

    Args:
        lattice: control points' displacements ``(B, D, *control_shape)`` in mm.
        rules: for each axis :func:`leibniz` of the products ``W' W / S_i``, of the weights ``W`` ``(S_i,
            control_shape_i)`` of control points at voxels and of their first and second derivatives in mm.

    Returns:
        ``(B,)``, in 1/mm^2.
    """
    return LatticeBending.apply(lattice, rules)[0]


class LatticeBending(torch.autograd.Function):
    """The energy ``c' K c`` and ``K c``, which is half of its gradient, so that going backward costs nothing."""

    @staticmethod
    def forward(ctx: Any, lattice: Tensor, rules: Sequence[Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """``(B,)`` and ``(B, D, *control_shape)``."""
        product = bent(lattice, rules)
        ctx.mark_non_differentiable(product)  # here, since setup_context would cost 50 us a call
        ctx.save_for_backward(lattice, product)
        ctx.rules = rules
        return (lattice * product).flatten(1).sum(1), product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """Of the lattice; K is symmetric."""
        lattice, product = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, for which it must be recorded
            product = bent(lattice, ctx.rules)
        return product * (2 * gradient).view(-1, *[1] * (product.ndim - 1)), None


def leibniz(derivatives: Sequence[Tensor]) -> Tensor:
    """``(3, n, 3, n)``: derivatives of order k along some axes and one more, from those of order j along the others.

    The latter give those of order j, and the one more axis, k choose j times, the other k - j.

    Args:
        derivatives: of orders 0, 1 and 2 along the one more axis, matrices ``(n, n)``.
    """
    rows = [
        [math.comb(k, j) * derivatives[k - j] if j <= k else torch.zeros_like(derivatives[0]) for j in range(3)]
        for k in range(3)
    ]
    return torch.stack([torch.stack(row, 1) for row in rows])


def bent(lattice: Tensor, rules: Sequence[Tensor]) -> Tensor:
    """``K c`` ``(B, D, *control_shape)``: all derivatives of order 2 together, by one product for each axis."""
    size, last = lattice.shape[2:], len(rules) - 1
    terms = lattice.reshape(-1, 1, *size[:1], math.prod(size[1:]))  # of each order along the axes before
    for axis, rule in enumerate(rules):
        rule = (rule if axis < last else rule[2:])[:, :, : terms.shape[1]]
        terms = rule.flatten(2).flatten(0, 1) @ terms.flatten(1, 2)
        terms = terms.view(len(terms), len(rule), size[axis], -1)
        if axis < last:
            terms = terms.view(*terms.shape[:3], size[axis + 1], -1).transpose(1, 2).flatten(0, 1)
    return terms.reshape(lattice.shape)
