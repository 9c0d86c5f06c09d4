"""A displacement for each voxel as a transformation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from istn_monai.geometry.transformation import Transformation


class DenseTransformation(Transformation):
    """A displacement of its own for each voxel: ``theta`` is the ddf, flattened.

    With it networks that predict a field (MONAI's LocalNet, VoxelMorph) take part in all that this package does with
    parameters: losses, refinement, export. Nothing bounds it, and it can fold: add a regularization.

    Args:
        spatial_size: registration grid ``*S``.
        spacing: its voxel size in mm.

    Examples:
        >>> import torch
        >>> dense = DenseTransformation((4, 5))
        >>> ddf = torch.rand(1, 2, 4, 5)
        >>> torch.equal(dense(ddf.flatten(1)), ddf)
        True
    """

    def __init__(self, spatial_size: Sequence[int], spacing: float | Sequence[float] = 1.0) -> None:
        super().__init__(spatial_size, spacing)
        self.parameter_shapes = ((self.spatial_dims, *self.spatial_size),)

    def on_size(self, spatial_size: Sequence[int]) -> DenseTransformation:
        """See :meth:`Transformation.resized`."""
        return DenseTransformation(spatial_size, self.spacing)

    def displacement(self, theta: Tensor, stride: int = 1) -> Tensor:
        """The ddf of a checked ``theta``."""
        ddf = theta.unflatten(1, self.parameter_shapes[0])
        return ddf[(..., *[slice(None, None, stride)] * self.spatial_dims)]
