"""What MONAI's ``Invertd`` finds in a pipeline of ours: an error where leaving a step out would misplace things."""

from __future__ import annotations

from typing import Any

from monai.transforms import InvertibleTransform


class NotInvertible(InvertibleTransform):
    """A transform that changes where things lie, and whose inverse needs more than the image that it gave.

    Without this, ``Invertd`` leaves it out without a word, and the result lies in the wrong place.
    """

    def inverse(self, data: Any) -> Any:
        """Raises NotImplementedError, which says what brings results back."""
        raise NotImplementedError(
            f"{type(self).__name__} has no inverse for Invertd: WarpPaird and RegisterISTNd give results on the fixed "
            "image's own grid, and the transform from moving to fixed points is register --inverse or "
            "WorldTransform.inverse"
        )
