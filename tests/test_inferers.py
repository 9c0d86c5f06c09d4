"""Tests of `istn_monai.workflow.inferers`."""

from __future__ import annotations

import pytest
import torch
from helpers import perturb, rand, small_istn

from istn_monai.workflow.inferers import AutocastInferer

SIZE = (12, 10)


def test_autocast_computes_in_bfloat16_and_gives_float32_near_it():
    network = perturb(small_istn(SIZE))
    image = rand(2, 2, *SIZE)
    exact = network(image)
    seen = []
    network.stn.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    short = AutocastInferer("bfloat16")(image, network)
    assert seen == [torch.bfloat16]
    for one, other in zip(short, exact, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other, atol=0.05 * max(1.0, other.abs().max().item()))
    for one, other in zip(AutocastInferer()(image, network), exact, strict=True):
        assert torch.equal(one, other)


def test_autocast_refuses_other_types():
    with pytest.raises(ValueError, match="training_dtype must be 'float32' or 'bfloat16', got 'float16'"):
        AutocastInferer("float16")
