"""Known motions are found with their sign, in world millimeters, whatever the two images' grids.

The content of an analytic scene is moved by (+6, -4, +3) mm, or turned, and sampled on two grids. What must come back
is the world transform from fixed to moving points.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import DIMS, apply, grid_points, meta, oblique_affine

from istn_monai.geometry.affine import AffineTransformation
from istn_monai.geometry.composite import spatial_transformation
from istn_monai.geometry.grids import Grid
from istn_monai.geometry.world_transform import world_transform
from istn_monai.refinement import Refiner
from istn_monai.transforms.preprocessing import InitialAlignmentd
from istn_monai.transforms.registration_grid import RegistrationGridd

SHIFT = np.array([6.0, -4.0, 3.0])
BLOBS = np.array([[0, 0, 0, 9.0], [14, -9, 8, 6.0], [-12, 10, -9, 7.0], [9, 13, -7, 5.0], [-11, -12, 9, 6.0]])


def scene(points):
    """Blobs of different size about the world's origin; nothing about it is symmetric."""
    dims = len(points)
    centers = BLOBS[:, :dims].T.reshape(dims, -1, *[1] * (points.ndim - 1))
    squared = ((points[:, None] - centers) ** 2).sum(0)
    widths = BLOBS[:, 3].reshape(-1, *[1] * (points.ndim - 1))
    return np.exp(-squared / (2 * widths**2)).sum(0)


def grids(kind, dims):
    """Size and affine of moving and fixed image."""
    size, other = (40, 36, 38)[:dims], (35, 42, 31)[:dims]
    plain = np.eye(dims + 1) * [*[1.5] * dims, 1.0]
    plain[:dims, dims] = -0.75 * (np.array(size) - 1)
    if kind == "identity":
        return (size, plain), (size, plain)
    if kind == "flipped":
        flip = oblique_affine(size, (1.5,) * dims, 0, [0.0] * dims, signs=(-1.0, 1.0, -1.0)[:dims], angle=0.0)
        return (size, flip), (size, flip)
    oblique = oblique_affine(size, (1.4, 1.7, 1.6)[:dims], 1, [1.0, -2.0, 0.5][:dims], angle=0.5)
    if kind == "oblique":
        return (size, oblique), (size, oblique)
    order = (1, 0, 2)[:dims]
    different = oblique_affine(other, (1.8, 1.4, 2.0)[:dims], 2, [-1.5, 1.0, 2.0][:dims], order=order, angle=0.3)
    return (other, different), (size, oblique)


def registered(kind, dims, motion, name):
    """The world transform found for a scene that ``motion`` ``(D+1, D+1)`` moves: fixed points to moving points."""
    (moving_size, moving_affine), (fixed_size, fixed_affine) = grids(kind, dims)
    fixed = scene(apply(fixed_affine, grid_points(fixed_size)))
    back = np.linalg.inv(motion)  # what is seen at q in the moving image is the scene at the point that went there
    moving = scene(apply(back, apply(moving_affine, grid_points(moving_size))))
    pair = {"moving_image": meta(moving, moving_affine), "fixed_image": meta(fixed, fixed_affine)}
    pair = RegistrationGridd((40,) * dims, 1.6)(InitialAlignmentd("world")(pair))
    size = (40,) * dims
    transformation = (
        AffineTransformation(size, 1.6, max_log_scale=0.0, max_shear=0.0)
        if name == "rigid"
        else spatial_transformation(name, size, 1.6, control_spacing=(40.0, 20.0))
    )
    images = (pair[key].as_tensor()[None] for key in ("moving_image", "fixed_image"))
    rate = 0.02 if name == "rigid" else 0.05
    theta = Refiner(steps=150, learning_rate=rate, patience=150).register(transformation, *images).theta
    return world_transform(transformation, theta, Grid.of(pair["fixed_image"]), pair["initial_alignment"])


def turned(dims):
    """A rotation by +0.2 rad in the plane of the first two axes, about a point off the origin."""
    motion = np.eye(dims + 1)
    motion[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    center = np.array([5.0, 3.0, -2.0])[:dims]
    motion[:dims, dims] = center - motion[:dims, :dims] @ center
    return motion


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", ["identity", "flipped", "oblique", "different"])
@pytest.mark.parametrize("what", ["shift", "turn"])
def test_a_rigid_motion_comes_back(dims, kind, what):
    motion = turned(dims)
    if what == "shift":
        motion = np.eye(dims + 1)
        motion[:dims, dims] = SHIFT[:dims]
    transform = registered(kind, dims, motion, "rigid")
    places = torch.as_tensor(BLOBS[:, :dims].T)
    found, expected = transform.transform_points(places).numpy(), apply(motion, BLOBS[:, :dims].T)
    assert np.abs(expected - BLOBS[:, :dims].T).max() > 2.5
    assert np.abs(found - expected).max() < 0.5  # a third of a voxel; on different grids some blobs are cut off


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("kind", ["oblique", "different"])
def test_a_shift_comes_back_from_bsplines(dims, kind):
    """Where there is something to see, at the blobs' centers."""
    motion = np.eye(dims + 1)
    motion[:dims, dims] = SHIFT[:dims]
    transform = registered(kind, dims, motion, "bspline")
    found = (transform.transform_points(torch.as_tensor(BLOBS[:, :dims].T)).numpy() - BLOBS[:, :dims].T).mean(1)
    assert np.abs(found - SHIFT[:dims]).max() < 0.8
