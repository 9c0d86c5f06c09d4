"""What a refinement minimizes of a transformation: its objective one way, or, symmetric, the mean of both ways."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from istn_monai.geometry.transformation import Transformation
from istn_monai.objective import Objective


class OneWay:
    """The objective of theta ``(B, P)``, moving registered to fixed; see :data:`istn_monai.descent.Evaluate`.

    Args:
        transformation: theta to ddf.
        objective: of a ddf.
    """

    def __init__(self, transformation: Transformation, objective: Objective) -> None:
        self.transformation, self.objective = transformation, objective

    def __call__(self, theta: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """The ddf ``(B, D, *S)`` at each ``stride``-th voxel, and its objective ``(B,)``."""
        ddf = self.transformation(theta, stride)
        return ddf, self.objective(ddf, stride)

    def terms(self, theta: Tensor, ddf: Tensor, stride: int = 1) -> Mapping[str, Tensor]:
        """The objective's terms by name, ``(B,)`` each, of theta and its ddf at each ``stride``-th voxel."""
        return self.objective.terms(ddf, stride)


class BothWays(OneWay):
    """The mean of the objectives of both ways, of which the second is that of the inverse: neither image is preferred.

    Registering the other way round has the same minimum, at the inverse (Christensen and Johnson 2001; Avants et al.
    2008).

    Args:
        transformation: one with an inverse in closed form.
        objective: moving to fixed.
        back: fixed to moving, of the same pairs.

    Raises:
        ValueError: if the transformation's inverse is not known.
    """

    def __init__(self, transformation: Transformation, objective: Objective, back: Objective) -> None:
        super().__init__(transformation, objective)
        check_invertible(transformation)
        self.back = back

    def __call__(self, theta: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """See :class:`OneWay`."""
        ddf, value = super().__call__(theta, stride)
        return ddf, (value + self.back(self.transformation.inverse(theta, stride), stride)) / 2

    def terms(self, theta: Tensor, ddf: Tensor, stride: int = 1) -> Mapping[str, Tensor]:
        """See :class:`OneWay`."""
        others = self.back.terms(self.transformation.inverse(theta, stride), stride)
        return {name: (value + others[name]) / 2 for name, value in super().terms(theta, ddf, stride).items()}


def check_invertible(transformation: Transformation, symmetric: bool = True) -> None:
    """ValueError if both ways are wanted, and a transformation's inverse is not known in closed form."""
    if symmetric and not transformation.invertible:
        raise ValueError(
            "symmetric needs a transformation whose inverse is known: svf, rigid, affine, affine+svf or rigid+svf; "
            "B-splines have none: give svf in their place, which has the same parameters, or leave symmetric out"
        )


def one_of_both(forth: Tensor, back: Tensor) -> Tensor:
    """Of parameters ``(B, P)`` of both ways those that are each other's inverse, for a velocity field exactly."""
    return torch.sub(forth, back) / 2
