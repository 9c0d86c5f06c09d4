"""Tests of `istn_monai.workflow.training`; the handlers of checkpoints are tested in test_checkpoints.py."""

from __future__ import annotations

import pytest
import torch
from helpers import perturb, rand, random_output, small_istn

from istn_monai.workflow.training import channels_last, warped_and_fixed_soi

SIZE = (12, 10)


def test_warped_and_fixed_soi_are_binary_and_pulled_back():
    output = random_output(SIZE, channels=2)
    ddf = torch.zeros_like(output.ddf)
    ddf[:, 1] = 2.0
    label = rand(2, 4, *SIZE, seed=7)
    warped, fixed = warped_and_fixed_soi({"pred": output._replace(ddf=ddf), "label": label})
    assert warped.shape == fixed.shape == (2, 2, *SIZE)
    assert torch.equal(fixed, (label[:, 2:] > 0.5).float())
    assert torch.equal(warped[..., :-2], (label[:, :2, :, 2:] > 0.5).float())


@pytest.mark.parametrize("size", [(12, 10), (9, 8, 10)])
def test_channels_last_changes_the_order_of_weights_alone(size):
    network = perturb(small_istn(size))
    image = rand(2, 2, *size)
    before = network(image)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    assert channels_last(network) is network
    kernel = next(value for value in network.parameters() if value.ndim == len(size) + 2 and value.shape[1] > 1)
    assert kernel.stride(1) == 1
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    for one, other in zip(network(image), before, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
