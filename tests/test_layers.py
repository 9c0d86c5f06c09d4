"""Tests of `istn_monai.layers`, against PyTorch's own and by hand."""

from __future__ import annotations

import pytest
import torch
from helpers import rand
from torch.nn import functional as F

from istn_monai.layers import AdaptiveAveragePool, crop_to, pad_to_multiple


def test_padding_repeats_the_border_at_the_end_and_cropping_undoes_it():
    image = rand(2, 1, 5, 6, 7)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (2, 1, 8, 8, 8)
    assert torch.equal(padded[:, :, :5, :6, :7], image)
    assert torch.equal(padded[0, 0, 7, :6, :7], image[0, 0, 4])
    assert torch.equal(crop_to(padded, image.shape[2:]), image)
    assert pad_to_multiple(padded, 4) is padded


@pytest.mark.parametrize("size", [(12, 9), (7, 3), (6, 5, 13), (3, 2, 4), (1, 3, 8)])
def test_pooling_is_pytorchs(size):
    image = rand(2, 3, *size)
    expected = (F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d)(image, 3)
    assert (AdaptiveAveragePool(3)(image) - expected).abs().max() < 1e-6
