"""Landmarks as structures of interest (SoI): what landmark files say, as channels beside those of labels or alone.

Convention:
    - Landmarks are in RAS mm of their own image's world, see :mod:`istn_monai.io.landmarks`; the initial
      alignment takes the moving ones along, by ``inverse(T0)``.
    - They correspond by name. One that only one of a pair's files has, or that lies beyond the registration grid in one
      image, is left out of both images' channels, and a channel in which nothing is left is left out of the loss, see
      :class:`istn_monai.losses.ISTNLoss`.
    - A channel holds a group of names; the most that any of its landmarks gives to a voxel. Groups keep the number of
      channels the same for all pairs, whichever landmarks a pair has.
    - Maps are computed at each voxel of the registration grid: sub-voxel positions count, and nothing is resampled.
      MONAI's ``GenerateHeatmap`` rounds to whole voxels and takes widths in them, which is not mm on an anisotropic
      grid.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from monai.transforms import Transform
from torch import Tensor

from istn_monai.geometry.grids import Grid, map_points
from istn_monai.geometry.meta import with_affine
from istn_monai.geometry.sampling import column
from istn_monai.io.images import read_or_explain
from istn_monai.io.landmarks import Points, check_dims, is_points, matched, same_name
from istn_monai.transforms.checks import check_choice, scaled_to_one
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS, POINT_KEYS, Pair
from istn_monai.transforms.registration_grid import check_kept, kept, on_grid

MAPS = ("heatmap", "distance")
Groups = Sequence[Sequence[str]]


def landmark_map(positions: Tensor, grid: Grid, kind: str = "heatmap", width: float = 4.0) -> Tensor:
    """Landmarks as one image, 1 at each of them and 0 far from all (the paper's Sec. 2.2).

    With d the distance in mm from the nearest landmark: "heatmap" (the paper's smoothed centroid map) is the Gaussian
    ``2 ** -(d / width) ** 2``, "distance" the truncated distance map ``max(0, 1 - d / (2 width))``. Both are a half at
    ``width``; they lie in [0, 1] with an empty background, as representations do.

    Args:
        positions: ``(N, D)`` in mm, in the world of the grid; with N = 0 the map is empty.
        grid: of the map, any, also oblique.
        kind: "heatmap" or "distance".
        width: distance in mm at which a map falls to a half.

    Returns:
        ``(*S)`` float32.

    Examples:
        >>> landmark_map(torch.tensor([[1.0, 0.0]]), Grid((4, 1), torch.eye(3)), width=1.0)[:, 0]
        tensor([0.5000, 1.0000, 0.5000, 0.0625])
    """
    voxels = grid.points()
    squared = torch.full(grid.spatial_size, torch.inf, dtype=torch.float64)
    for position in positions.double():
        squared = torch.minimum(squared, (voxels - column(position, voxels.ndim)).square().sum(0))
    profile = 2.0 ** -(squared / width**2) if kind == "heatmap" else (1 - squared.sqrt() / (2 * width)).clamp(min=0)
    return profile.float()


def members(labels: Sequence[str], group: Sequence[str]) -> list[str]:
    """The names that a group means; its own may hold ``*`` and ``?``."""
    wanted = [same_name(name) for name in group]
    known = [(label, same_name(label)) for label in labels]
    return [label for label, own in known if any(own == name or fnmatchcase(own, name) for name in wanted)]


class AddLandmarkChannelsd(Transform):
    """Adds the landmarks of a pair to its SoI channels; comes after :class:`istn_monai.RegistrationGridd`.

    ``moving_points`` and ``fixed_points`` are paths: of landmark files, or of images, which are real-valued maps, one
    channel each, drawn by other means; these are scaled to a maximum of 1 and resampled as a label is. The channels go
    after those of ``moving_label`` and ``fixed_label``, or become these where a pair has none.

    Args:
        groups: K groups of landmark names, one channel each, e.g. ``[["AC", "PC"], ["tip*"]]``; ``[["*"]]`` is all
            landmarks in one channel. None does nothing.
        kind: "heatmap" or "distance", see :func:`landmark_map`.
        width: distance in mm at which a map falls to a half.
        nifti_frame: of images, as of :class:`istn_monai.LoadPaird`.

    Examples:
        >>> import tempfile
        >>> from monai.data import MetaTensor
        >>> from istn_monai.io.landmarks import write_points
        >>> file = str(write_points(Points(torch.tensor([[3.0, 2.0]]), ("AC",)), tempfile.mkdtemp() + "/p.csv"))
        >>> image = MetaTensor(torch.rand(1, 8, 8), affine=torch.eye(3))
        >>> pair = {"moving_image": image, "fixed_image": image, "moving_points": file, "fixed_points": file}
        >>> AddLandmarkChannelsd([["*"]])(pair)["fixed_label"][0].argmax()  # 3 * 8 + 2
        metatensor(26)
    """

    def __init__(
        self, groups: Groups | None, kind: str = "heatmap", width: float = 4.0, nifti_frame: str | None = None
    ) -> None:
        check_soi_points(groups, kind, width)
        self.nifti_frame = nifti_frame
        self.groups = groups
        self.kind = kind
        self.width = float(width)

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """Adds K channels ``(K, *S)`` in [0, 1] to either label."""
        result = dict(data)
        if self.groups is None:
            return result
        fixed = data[IMAGE_KEYS[1]]
        grid = Grid.of(fixed)
        start = torch.as_tensor(data.get("initial_alignment", torch.eye(fixed.ndim)), dtype=torch.float64)
        files = point_files(data)
        channels = self.from_points if is_points(files[0]) else self.from_maps
        for key, added in zip(LABEL_KEYS, channels(files, start, grid), strict=True):
            both = torch.cat([data[key].as_tensor(), added]) if key in data else added
            result[key] = with_affine(both, grid.affine, fixed)
        return result

    def from_points(self, files: Sequence[str], start: Tensor, grid: Grid) -> list[Tensor]:
        """``(K, *S)`` moving and fixed, of landmark files."""
        moving, fixed = matched_in(files, grid.spatial_dims)
        moving = moving.moved_to(map_points(torch.linalg.inv(start), moving.positions.T).T)
        used = used_names(fixed.labels, self.groups or (), files)
        seen = [grid.contains(points.chosen(used).positions.T) for points in (moving, fixed)]
        for mask, file in zip(seen, files, strict=True):
            check_kept(mask.double().mean().item(), file, grid)
        # one that lies beyond the grid is missing there: the faint tail of its map would count as the structure
        names = [name for name, both in zip(used, seen[0] & seen[1], strict=True) if both]
        return [self.channels(points.chosen(names), grid) for points in (moving, fixed)]

    def channels(self, points: Points, grid: Grid) -> Tensor:
        """``(K, *S)``: each group's map of the landmarks of one image, in the world of the grid."""
        positions = [points.chosen(members(points.labels, group)).positions for group in self.groups or ()]
        return torch.stack([landmark_map(own, grid, self.kind, self.width) for own in positions])

    def from_maps(self, files: Sequence[str], start: Tensor, grid: Grid) -> list[Tensor]:
        """``(1, *S)`` moving and fixed, of images."""
        maps = []
        for key, file in zip(POINT_KEYS, files, strict=True):
            loaded = read_or_explain(file, key, self.nifti_frame)
            own = Grid.of(loaded)
            placed = own.aligned(start) if key == POINT_KEYS[0] else own
            whole = with_affine(scaled_to_one(loaded.as_tensor(), file), placed.affine, loaded)
            resampled = on_grid(whole, grid)
            check_kept(kept(whole, resampled), file, grid)
            maps.append(resampled.as_tensor())
        return maps


def used_names(labels: Sequence[str], groups: Groups, files: Sequence[str]) -> list[str]:
    """The names that any group means, or a ValueError if there is none among those that two files share."""
    used = members(labels, [name for group in groups for name in group])
    if not used:
        raise ValueError(f"soi_points {groups} are none of the landmarks that {' and '.join(files)} share: {labels}")
    return used


def point_files(item: Mapping[Hashable, Any], place: str = "the pair") -> tuple[str, str]:
    """Both paths of a pair's landmarks, of one kind, or a ValueError."""
    for key in POINT_KEYS:
        if key not in item:
            raise ValueError(f"{place} has no {key!r}, which soi_points need; set soi_points to none for labels alone")
    moving, fixed = (str(item[key]) for key in POINT_KEYS)
    if is_points(moving) != is_points(fixed):
        raise ValueError(f"{place} must have two landmark files or two maps, got {moving} and {fixed}")
    return moving, fixed


def check_soi_points(soi_points: Any, points_map: Any = MAPS[0], points_width: Any = 1.0) -> None:
    """ValueError unless ``soi_points`` is None or groups of names, and the map is one that can be drawn."""
    check_choice("points_map", points_map, MAPS)
    if not isinstance(points_width, (int, float)) or not 0 < points_width < float("inf"):
        raise ValueError(f"points_width must be a number of mm above 0, got {points_width!r}")
    if soi_points is None:
        return
    groups_ok = isinstance(soi_points, (list, tuple)) and len(soi_points) > 0
    if not groups_ok or not all(
        isinstance(group, (list, tuple)) and group and all(isinstance(name, str) for name in group)
        for group in soi_points
    ):
        raise ValueError(
            "soi_points must be a list of groups of landmark names, one group for each SoI channel, such as "
            f"\"[['*']]\" (all in one) or \"[['AC','PC'],['tip*']]\" (two channels), or none; got {soi_points!r}"
        )


def matched_in(files: Sequence[str], spatial_dims: int) -> tuple[Points, Points]:
    """What :func:`istn_monai.io.landmarks.matched` gives, or a ValueError unless the configuration has as many axes."""
    both = matched(*files)
    for points, file in zip(both, files, strict=True):
        check_dims(points, file, spatial_dims, "the configuration")
    return both
