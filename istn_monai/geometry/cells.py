"""Which cells of a lattice hold a point, where each cell is bent as its corners say: none that does is missed.

Convention:
    A lattice is ``(D, *n)``: where each corner lies, in mm. Between corners places are multilinear, as a displacement
    field's are, so a cell lies within the box of its corners. Places are ``(D, N)`` in cells, 0 at the first corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

AT_ONCE = 2**11  # points
MOST = 2**5  # boxes that may hold a point; in more the field is torn too far for a search that ends soon
STEPS = 12  # of Newton
ACCURACY = 1e-6  # mm, at which they end
HELD = 5e-4  # mm, by which a place in a cell may miss its point
BEYOND = 0.5  # cells by which steps may leave their cell underway
CORNER = 0.1  # cells from the corners, for starts in a cell that is folded
Box = tuple[Tensor, Sequence[int], Sequence[int]]


class Cells:
    """The cells of a lattice, in boxes of boxes.

    Args:
        corners: ``(D, *n)``, n of 2 and more.
    """

    def __init__(self, corners: Tensor) -> None:
        self.corners = corners
        self.boxes = boxes_of(corners)
        self.offsets = torch.tensor(list(product(range(2), repeat=len(corners))))  # (2^D, D)
        middle = torch.full((1, len(corners)), 0.5, dtype=torch.float64)
        self.starts = torch.cat([middle, CORNER + (1 - 2 * CORNER) * self.offsets.double()])

    def places_of(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the points ``(D, N)`` lie in a cell, ``(M,)``, and a place of each, ``(D, M)`` in cells."""
        found = [self.places_at_once(some) for some in points.split(AT_ONCE, dim=1)]
        first = range(0, points.shape[1], AT_ONCE)
        which = torch.cat([start + one for start, (one, _) in zip(first, found, strict=True)])
        return which, torch.cat([places for _, places in found], dim=1)

    def places_at_once(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`places_of`."""
        point, cell, corners = self.candidates(points)
        places = torch.full_like(points, torch.nan)
        for start in self.starts:
            inner, error = solved(corners, points[:, point], start, self.offsets)
            held = error < HELD
            which, first = np.unique(point[held].numpy(), return_index=True)
            places[:, which] = (cell[held].T + inner[:, held])[:, first]
            left = (places[0, point].isnan() & folded(corners, self.offsets)).nonzero()[:, 0]
            if not len(left):
                break
            point, cell, corners = point[left], cell[left], corners[:, left]
        which = places[0].isfinite().nonzero()[:, 0]
        return which, places[:, which]

    def candidates(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each point ``(P,)`` with each cell ``(P, D)`` whose box holds it, and its corners ``(D, P, 2^D)``."""
        aims = torch.cat([-points, points]).T
        point = torch.arange(len(aims))
        block = torch.zeros(len(aims), len(points), dtype=torch.long)
        for box, size, finer in self.boxes:
            held = (aims[point] <= box[numbers(block, size)]).all(dim=1).nonzero()[:, 0]
            few = point[held].bincount(minlength=len(aims))[point[held]] <= MOST
            point, block = point[held][few], block[held][few]
            point = point.repeat_interleave(len(self.offsets))
            block = (2 * block[:, None] + self.offsets).flatten(0, 1)
            there = (block < torch.tensor(finer)).all(dim=1)
            point, block = point[there], block[there]
        corners = self.corners.flatten(1)[:, numbers(block[:, None] + self.offsets, self.corners.shape[1:])]
        aims = points[:, point]
        held = ((aims >= corners.amin(dim=-1) - HELD) & (aims <= corners.amax(dim=-1) + HELD)).all(dim=0)
        return point[held], block[held], corners[:, held]


def boxes_of(corners: Tensor) -> list[Box]:
    """Boxes of blocks of .. 8, 4, 2 cells along each axis, from one that holds all.

    Each is ``(M, 2 D)``, lowest coordinates with the sign turned and highest; with the number of blocks along each
    axis, and that of what they consist of.
    """
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[len(corners)]
    size = [n - 1 for n in corners.shape[1:]]
    # a block of two cells has three corners along an axis, and shares the outer ones with its neighbors
    ends = pool(torch.cat([-corners, corners])[None], 3, 2, ceil_mode=True)[0] + HELD
    boxes: list[Box] = []
    while True:
        boxes.append((ends.flatten(1).T.contiguous(), ends.shape[1:], size))
        if max(ends.shape[1:]) == 1:
            return boxes[::-1]
        size = ends.shape[1:]
        ends = pool(ends[None], 2, 2, ceil_mode=True)[0]


def numbers(index: Tensor, shape: Sequence[int]) -> Tensor:
    """The number of each index ``(.., D)`` in an array of a shape."""
    number = index[..., 0]
    for axis, size in enumerate(shape[1:], 1):
        number = number * size + index[..., axis]
    return number


def solved(corners: Tensor, points: Tensor, start: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Where in its cell each point is, by Newton's steps: ``(D, P)`` from 0 to 1, and the distance in mm that is left.

    Args:
        corners: of each point's cell, ``(D, P, 2^D)``.
        points: ``(D, P)``.
        start: ``(D,)``, from 0 to 1.
        offsets: of the corners, ``(2^D, D)``, 0 or 1.
    """
    inner = start[:, None].expand_as(points).clone()
    left = torch.arange(points.shape[1])
    for _ in range(STEPS):
        place, jacobian = bent(corners[:, left], inner[:, left], offsets)
        error = place - points[:, left]
        far = error.norm(dim=0) >= ACCURACY
        left = left[far]
        if not len(left):
            break
        step, _ = torch.linalg.solve_ex(jacobian[far], error[:, far].T)  # not a number where it is singular
        inner[:, left] = (inner[:, left] - step.T.nan_to_num(0.0, 0.0, 0.0)).clamp(-BEYOND, 1 + BEYOND)
    inner = inner.clamp(0.0, 1.0)
    return inner, (bent(corners, inner, offsets)[0] - points).norm(dim=0)


def folded(corners: Tensor, offsets: Tensor) -> Tensor:
    """In which cells some corners are turned inside out, and others are not, ``(P,)``: there Newton's steps may err."""
    places = (offset[:, None].expand(corners.shape[:2]).double() for offset in offsets)
    signs = torch.stack([torch.linalg.det(bent(corners, place, offsets)[1]).sign() for place in places])
    return signs.amin(dim=0) < signs.amax(dim=0)


def bent(corners: Tensor, inner: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Where cells take places ``(D, P)`` in them to, ``(D, P)``, and the Jacobian ``(P, D, D)``."""
    slopes = 2.0 * offsets.T - 1  # (D, 2^D)
    sides = (
        1 - offsets.T[:, None] + slopes[:, None] * inner[..., None]
    )  # (D, P, 2^D): what each axis weighs a corner by
    others = [[other for other in range(len(sides)) if other != axis] for axis in range(len(sides))]
    columns = [(corners * slopes[axis] * sides[rest].prod(dim=0)).sum(dim=-1) for axis, rest in enumerate(others)]
    return (corners * sides.prod(dim=0)).sum(dim=-1), torch.stack(columns, dim=-1).movedim(1, 0)
