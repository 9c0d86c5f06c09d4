"""Tests of `istn_monai.mutual_information`: by NumPy and SciPy's B-spline, and where it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import rand
from scipy.interpolate import BSpline
from torch.autograd import gradcheck

from istn_monai.mutual_information import BINS, MOST, bin_weights, every, normalized_mutual_information

SIZES = [(14, 12), (9, 8, 7)]
WINDOW = BSpline.basis_element([-2, -1, 0, 1, 2], extrapolate=False)


def by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """Of lists of intensities."""

    def shares(values):
        place = (values - values.min()) / np.ptp(values) * (BINS - 3) + 1
        return np.nan_to_num(WINDOW(place[:, None] - np.arange(BINS)))

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    joint = shares(one).T @ shares(other) / one.size
    return (entropy(joint.sum(1)) + entropy(joint.sum(0))) / entropy(joint.ravel()) - 1


@pytest.mark.parametrize("size", SIZES)
def test_it_is_that_of_the_joint_histogram(size):
    moving, fixed = rand(2, 2, *size, seed=1).double(), rand(2, 2, *size, seed=2).double() * 30 - 7
    moving = torch.where(rand(2, 2, *size, seed=3) < 0.5, fixed.sqrt().nan_to_num(), moving)  # partly alike
    counts = (rand(2, 1, *size, seed=4) < 0.7).double()
    for mask in (None, counts):
        found = normalized_mutual_information(moving, fixed, mask)
        for pair in range(2):
            inside = np.ones(size, bool) if mask is None else mask[pair, 0].numpy() > 0
            channels = zip(moving[pair].numpy(), fixed[pair].numpy(), strict=True)
            expected = np.mean([by_hand(one[inside], other[inside]) for one, other in channels])
            assert found[pair].item() == pytest.approx(expected, abs=1e-6)


def test_shares_sum_to_1():
    shares = bin_weights(torch.linspace(0, 1, 101, dtype=torch.float64)[None])[0]
    assert (shares.sum(1) - 1).abs().max() < 1e-12 and shares.min() >= 0
    assert shares[0, :3].tolist() == pytest.approx([1 / 6, 2 / 3, 1 / 6])


def test_contrast_and_range_do_not_matter_and_independent_images_tell_nothing():
    image = rand(1, 1, 64, 64, seed=5)
    same = normalized_mutual_information(image, image)
    assert same > 0.3
    for other in (1 - image, 1000 * image - 300):
        assert normalized_mutual_information(other, image).item() == pytest.approx(same.item(), abs=1e-3)
    assert normalized_mutual_information(rand(1, 1, 64, 64, seed=6), image) < 0.1
    flat = torch.zeros_like(image)
    assert normalized_mutual_information(flat, flat).isfinite()


def test_what_does_not_count_changes_nothing():
    moving, fixed = rand(1, 1, 20, 18, seed=1), rand(1, 1, 20, 18, seed=2)
    mask = torch.ones_like(fixed)
    mask[..., :6] = 0
    changed = torch.where(mask > 0, fixed, 1e4)
    assert torch.equal(*(normalized_mutual_information(moving, image, mask) for image in (fixed, changed)))


def test_of_many_voxels_some_are_looked_at():
    image = rand(1, 1, MOST // 64, 200, seed=7)
    some = image.flatten(2)[..., ::3].unsqueeze(-1)
    expected = normalized_mutual_information(some, some)
    assert torch.allclose(normalized_mutual_information(image, image), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1024, 1024), (128, 128, 128), (256, 256, 128), (160, 192, 224)])
def test_no_plane_is_left_out(size):
    image = torch.zeros(size)
    image.view(-1)[:: every(size)] = 1
    assert MOST / 2 < image.sum() < 2 * MOST
    for axis in range(len(size)):
        others = [other for other in range(len(size)) if other != axis]
        looked = image.sum(others)
        assert looked.min() > 0.9 * looked.mean()


def test_half_precision_of_others_changes_nothing():
    moving, fixed = rand(1, 1, 20, 18, seed=1), rand(1, 1, 20, 18, seed=2)
    expected = normalized_mutual_information(moving, fixed)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normalized_mutual_information(moving, fixed), expected)
    assert (normalized_mutual_information(moving.bfloat16(), fixed.bfloat16()) - expected).abs() < 0.02


def test_it_has_gradients():
    moving, fixed = (rand(1, 1, 4, 5, seed=seed).double() for seed in (8, 9))
    ends = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    ends[..., 1] = 1  # the least and the largest, by which the others are scaled, are not moved

    def between(one, other):
        return normalized_mutual_information(torch.cat([one, ends], 2), torch.cat([other, ends], 2))

    inside = [(0.1 + 0.8 * image).requires_grad_() for image in (moving, fixed)]
    assert gradcheck(between, inside)
