"""Tests of `istn_monai.optical_flow`: by NumPy, voxel by voxel, and where a displacement is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import rand
from torch.autograd import gradcheck

from istn_monai.optical_flow import FLAT, REACH, SCALES, TINY, optical_flow

SIZES = [(9, 12), (7, 9, 10)]


def smoothed(image: np.ndarray) -> np.ndarray:
    """Binomial weights 1, 2, 1 of each channel, the border going on."""
    result = np.zeros_like(image)
    axes = range(1, image.ndim)
    for place in np.ndindex(*image.shape[1:]):
        for step in itertools.product((-1, 0, 1), repeat=len(axes)):
            near = [min(max(p + s, 0), n - 1) for p, s, n in zip(place, step, image.shape[1:], strict=True)]
            weight = np.prod([2 - abs(s) for s in step]) / 4 ** len(axes)
            result[(slice(None), *place)] += weight * image[(slice(None), *near)]
    return result


def halved(image: np.ndarray) -> np.ndarray:
    return smoothed(image)[(slice(None), *[slice(None, None, 2)] * (image.ndim - 1))]


def products(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Force along each axis, and squared gradient, summed over channels, `(D + 1, *S)`."""
    middle = np.pad((moving + fixed) / 2, [(0, 0)] + [(1, 1)] * (moving.ndim - 1), mode="edge")
    inner = [slice(1, -1)] * (moving.ndim - 1)
    slopes = []
    for axis in range(moving.ndim - 1):
        after, before = list(inner), list(inner)
        after[axis], before[axis] = slice(2, None), slice(None, -2)
        slopes.append((middle[(slice(None), *after)] - middle[(slice(None), *before)]) / 2)
    forces = [((fixed - moving) * slope).sum(0) for slope in slopes]
    return np.stack([*forces, sum((slope**2).sum(0) for slope in slopes)])


def by_hand(moving: np.ndarray, fixed: np.ndarray, levels: int) -> list[np.ndarray]:
    flows, sums = [], []
    for level in range(1, levels + 1):
        moving, fixed = halved(moving), halved(fixed)
        sums = ([(scale, halved(own)) for scale, own in sums] + [(2**level, products(moving, fixed))])[-SCALES:]
        estimates = []
        for scale, own in sums:
            window = smoothed(own)
            ratio = window[:-1] / (window[-1] + FLAT * window[-1].max() + TINY)
            estimates.append(scale * np.clip(ratio, -REACH, REACH))
        flows.append(np.concatenate(estimates))
    return flows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_ratio_of_sums_over_windows(size, channels):
    moving, fixed = rand(2, channels, *size, seed=1).double(), rand(2, channels, *size, seed=2).double()
    flows = optical_flow(moving, fixed, levels=4)
    assert [tuple(flow.shape[2:]) for flow in flows] == [tuple(-(-n // 2**k) for n in size) for k in (1, 2, 3, 4)]
    for pair in range(2):
        expected = by_hand(moving[pair].numpy(), fixed[pair].numpy(), levels=4)
        for flow, own in zip(flows, expected, strict=True):
            assert np.abs(flow[pair].numpy() - own).max() < 1e-12


@pytest.mark.parametrize("size", [(40, 48), (24, 28, 32)])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_known_displacement_is_found_in_size_and_direction(size, axis):
    """A wave along an axis, moved by 0.7 voxels: moving(x + 0.7) = fixed(x)."""
    place = torch.arange(size[axis], dtype=torch.float64).view([-1 if a == axis else 1 for a in range(len(size))])
    moving, fixed = (torch.sin((place + shift) * 0.15).expand(size)[None, None] for shift in (-0.7, 0.0))
    flow = optical_flow(moving, fixed, levels=2)[1]
    inside = flow[(0, slice(None), *[slice(2, -2)] * len(size))]
    for scale in range(2):
        estimates = inside[scale * len(size) : (scale + 1) * len(size)]
        assert (estimates[axis].median() - 0.7).abs() < 0.06
        assert all(estimates[other].abs().max() < 1e-9 for other in range(len(size)) if other != axis)


@pytest.mark.parametrize("size", SIZES)
def test_where_there_is_nothing_to_see_it_is_0(size):
    same, flat = rand(1, 2, *size, seed=3), torch.full((1, 2, *size), 0.4)
    for moving, fixed in [(same, same), (flat, flat + 0.3), (flat * 0, flat * 0)]:
        assert all(flow.abs().max() < 1e-6 for flow in optical_flow(moving, fixed, 3))


def test_a_factor_of_the_intensities_changes_nothing_and_the_other_way_round_it_is_the_opposite():
    moving, fixed = rand(1, 1, 16, 18, seed=4), rand(1, 1, 16, 18, seed=5)
    for one, scaled, back in zip(
        optical_flow(moving, fixed, 3),
        optical_flow(moving * 7, fixed * 7, 3),
        optical_flow(fixed, moving, 3),
        strict=True,
    ):
        torch.testing.assert_close(scaled, one, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(back, -one)


def test_it_has_gradients():
    moving, fixed = (rand(1, 1, 5, 6, seed=seed).double().requires_grad_() for seed in (6, 7))
    assert gradcheck(
        lambda one, other: torch.cat([flow.flatten() for flow in optical_flow(one, other, 2)]), (moving, fixed)
    )


def test_it_is_as_exact_where_networks_compute_in_bfloat16():
    moving, fixed = rand(1, 2, 7, 9, 10), rand(1, 2, 7, 9, 10, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = optical_flow(moving, fixed, levels=2)
    for one, other in zip(found, optical_flow(moving, fixed, levels=2), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_whole_numbers_are_numbers():
    moving, fixed = torch.arange(400).view(1, 1, 20, 20), torch.arange(400).flip(0).view(1, 1, 20, 20)
    for one, other in zip(optical_flow(moving, fixed, 2), optical_flow(moving.float(), fixed.float(), 2), strict=True):
        assert torch.equal(one, other)
