"""Bending energy of a displacement (Rueckert et al. 1999), of a dense field or of a lattice of control points."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from istn_monai.geometry.separable import along_axes


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
    dims = lattice.ndim - 2
    total = lattice.new_zeros(len(lattice))
    for i in range(dims):
        for j in range(i, dims):
            orders = [(axis == i) + (axis == j) for axis in range(dims)]
            product = along_axes(lattice, [own[order] for own, order in zip(derivatives, orders, strict=True)])
            total = total + (1.0 if i == j else 2.0) * (lattice * product).flatten(1).sum(1)
    return total
