"""The keys of a pair."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

IMAGE_KEYS = ("moving_image", "fixed_image")
LABEL_KEYS = ("moving_label", "fixed_label")
POINT_KEYS = ("moving_points", "fixed_points")
MASK_KEYS = ("moving_mask", "fixed_mask")
PAIR_KEYS = IMAGE_KEYS + LABEL_KEYS
#: what is registered in the place of an ITN's representation
MAP_KEYS = ("moving_maps", "fixed_maps")
MAPS = "maps"  #: where a pair says what these maps are
#: where a pair's images and labels are kept as they came from their files (the moving ones with the affine that the
#: initial alignment gave them), while the keys themselves go onto the registration grid
ORIGINAL_KEYS = tuple(f"{key}_original" for key in PAIR_KEYS)
Pair = dict[Hashable, Any]
#: where what guides a refinement besides the images is kept, by these keys, on the registration grid
GUIDANCE = "guidance"
SIDES = ("moving", "fixed")
