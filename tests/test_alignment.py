"""Rigid initial alignment; the closed-form ones are tested in test_resampling.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import rand
from monai.data import MetaTensor

from istn_monai.alignment import in_unit_range, initial_alignment
from istn_monai.geometry.grids import map_points


def scene(points: np.ndarray) -> np.ndarray:
    """A smooth picture without symmetry, as a function of world points ``(..., D)`` in mm about its center."""
    dims = points.shape[-1]
    centers = np.array([[0.0, 0, 0], [14, 4, -6], [-8, 12, 5], [3, -15, 9]])[:, :dims]
    widths, heights = (12.0, 5.0, 6.0, 4.0), (1.0, 0.8, -0.5, 0.7)
    squared = [((points - center) ** 2).sum(-1) for center in centers]
    return sum(h * np.exp(-s / (2 * w**2)) for s, w, h in zip(squared, widths, heights, strict=True))


def rotation(degrees: float, dims: int) -> np.ndarray:
    """In the plane of the first two axes."""
    matrix, angle = np.eye(dims), math.radians(degrees)
    matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    return matrix


def picture(size, affine, to_scene) -> torch.Tensor:
    """``(1, *size)``: the scene at ``to_scene`` (homogeneous) of each voxel's world point."""
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).astype(float)
    matrix = to_scene @ affine
    return torch.as_tensor(scene(index @ matrix[:-1, :-1].T + matrix[:-1, -1]))[None].float()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("flip", [1, -1])
def test_rigid_finds_a_known_motion_across_oblique_grids(dims, flip):
    fixed_size, moving_size = (44, 50, 40)[:dims], (60, 40, 46)[:dims]
    spacings = {"fixed": np.array([1.6, 1.3, 1.7])[:dims], "moving": np.array([1.2, 1.9, 1.5])[:dims]}
    affines = {}
    for name, size, degrees in (("fixed", fixed_size, 12.0), ("moving", moving_size, -8.0)):
        affine = np.eye(dims + 1)
        affine[:dims, :dims] = rotation(degrees, dims) * spacings[name]
        affine[:dims, 0] *= flip if name == "moving" else 1
        affine[:dims, -1] = -affine[:dims, :dims] @ ((np.array(size) - 1) / 2)
        affines[name] = affine
    truth = np.eye(dims + 1)  # fixed world to moving world
    truth[:dims, :dims], truth[:dims, -1] = rotation(9.0, dims), np.array([6.0, -4.0, 3.0])[:dims]
    fixed = picture(fixed_size, affines["fixed"], np.eye(dims + 1))
    moving = picture(moving_size, affines["moving"], np.linalg.inv(truth))
    found = initial_alignment(
        "rigid", MetaTensor(moving, affine=affines["moving"]), MetaTensor(fixed, affine=affines["fixed"])
    )
    linear = found[:dims, :dims]
    assert (linear @ linear.T - torch.eye(dims)).abs().max() < 1e-5
    points = torch.tensor(np.random.default_rng(0).uniform(-15, 15, (dims, 50)))
    error = map_points(found, points) - map_points(torch.as_tensor(truth), points)
    assert error.norm(dim=0).max() < 0.5


def test_a_channel_of_larger_numbers_does_not_decide_alone():
    image = MetaTensor(torch.stack([rand(8, 9), 3000 * rand(8, 9, seed=1)]))
    assert [channel.max().item() for channel in in_unit_range(image).values] == [1.0, 1.0]
