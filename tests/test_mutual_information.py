"""Tests of `istn_monai.mutual_information`: by NumPy's histogram, and where it is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import rand
from torch.autograd import gradcheck

from istn_monai.mutual_information import BINS, MOST, bin_weights, normalized_mutual_information

SIZES = [(14, 12), (9, 8, 7)]


def by_histogram(one: np.ndarray, other: np.ndarray) -> float:
    """Of intensities that lie on the bins' centers, where shares are 0 or 1."""
    joint = np.histogram2d(one, other, BINS, [[-0.5, BINS - 0.5]] * 2)[0] / one.size

    def entropy(p):
        return -(p[p > 0] * np.log(p[p > 0])).sum()

    return (entropy(joint.sum(1)) + entropy(joint.sum(0))) / entropy(joint.ravel()) - 1


@pytest.mark.parametrize("size", SIZES)
def test_it_is_that_of_the_joint_histogram(size):
    places = [(rand(2, 2, *size, seed=seed) * (BINS - 1)).round() for seed in (1, 2)]
    places[1] = torch.where(rand(2, 2, *size, seed=3) < 0.5, places[0], places[1])  # partly alike
    counts = (rand(2, 1, *size, seed=4) < 0.7).float()
    moving, fixed = (place / (BINS - 1) for place in places)
    for mask in (None, counts):
        found = normalized_mutual_information(moving, fixed, mask)
        for pair in range(2):
            inside = np.ones(size, bool) if mask is None else mask[pair, 0].numpy() > 0
            expected = np.mean([by_histogram(*(p[pair, c].numpy()[inside] for p in places)) for c in range(2)])
            assert found[pair].item() == pytest.approx(expected, abs=1e-5)


def test_shares_sum_to_1_and_are_linear_between_two_bins():
    values = torch.tensor([[0.0, 1.0, 2.0, -1.0, 10.25 / (BINS - 1)]])
    shares = bin_weights(values)[0]
    assert shares.sum(1).sub(1).abs().max() < 1e-6
    assert shares[0, 0] == shares[1, -1] == shares[2, -1] == shares[3, 0] == 1
    assert shares[4, 10].item() == pytest.approx(0.75, abs=1e-5) and shares[4, 11].item() == pytest.approx(
        0.25, abs=1e-5
    )


def test_contrast_does_not_matter_and_independent_images_tell_nothing():
    image = rand(1, 1, 64, 64, seed=5)
    assert normalized_mutual_information(image, image) > 0.6
    assert normalized_mutual_information(1 - image, image).item() == pytest.approx(
        normalized_mutual_information(image, image).item(), abs=1e-4
    )
    assert normalized_mutual_information(rand(1, 1, 64, 64, seed=6), image) < 0.1
    assert normalized_mutual_information(torch.zeros_like(image), torch.zeros_like(image)).abs() < 1e-5


def test_of_many_voxels_some_are_looked_at():
    size = (MOST // 64, 200)
    image = rand(1, 1, *size, seed=7)
    some = normalized_mutual_information(
        image.flatten(2)[..., ::4].unsqueeze(-1), image.flatten(2)[..., ::4].unsqueeze(-1)
    )
    assert torch.allclose(normalized_mutual_information(image, image), some, atol=1e-6)


def test_it_has_gradients():
    moving, fixed = (rand(1, 1, 4, 5, seed=seed).double().requires_grad_() for seed in (8, 9))
    assert gradcheck(normalized_mutual_information, (moving, fixed))
