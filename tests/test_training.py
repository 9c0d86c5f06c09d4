"""Tests of `istn_monai.workflow.training`; the handlers of checkpoints are tested in test_checkpoints.py."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import perturb, rand, random_output, small_istn
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.handlers import from_engine
from monai.losses import DiceLoss

from istn_monai.workflow.training import (
    OutputListHandler,
    SeedHandler,
    TermsHandler,
    TrainingLoss,
    channels_last,
    loss_of,
    warped_and_fixed_soi,
)

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


def test_the_loss_is_where_monai_looks_for_it():
    engine = Engine(lambda engine, batch: None)
    engine.register_events(*IterationEvents)
    OutputListHandler().attach(engine)
    engine.state.output = {"loss": torch.tensor(0.25)}
    assert loss_of(engine.state.output) == 0.25
    engine.fire_event(IterationEvents.MODEL_COMPLETED)
    # what `--tracking mlflow` takes it with
    assert float(from_engine(["loss"], first=True)(engine.state.output)) == 0.25 == loss_of(engine.state.output)


def test_each_epoch_has_its_own_chance_whatever_was_before():
    def drawn(seed: int, epoch: int) -> tuple[float, float, float]:
        SeedHandler(seed)(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    assert drawn(0, 1) == drawn(0, 1)
    assert len({drawn(*numbers) for numbers in [(0, 1), (0, 2), (1, 0), (1, 1)]}) == 4


def test_terms_of_the_loss_are_means_over_an_epoch_among_the_metrics():
    loss = TrainingLoss("e", similarity="none", regularization=None, weights={"structures": 2, "bending": 1})
    outputs = [(random_output(SIZE), rand(2, 2, *SIZE, seed=seed)) for seed in (3, 4, 5)]
    engine = Engine(lambda engine, batch: loss(batch[0], {"label": batch[1]}).item())
    TermsHandler(loss).attach(engine)
    for _ in range(2):  # the means are of an epoch, not of all
        engine.run(outputs, max_epochs=1)
    terms = [loss.terms(*batch) for batch in outputs]
    assert set(engine.state.metrics) == {f"train_{name}" for name in ("stn_s", "itn_moving", "itn_fixed", "bending")}
    for name in terms[0]:
        expected = sum(one[name].item() for one in terms) / 3
        assert engine.state.metrics[f"train_{name}"] == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_one_term_or_of_others_adds_no_terms():
    for loss in (TrainingLoss("s"), DiceLoss()):
        engine = Engine(lambda engine, batch: None)
        TermsHandler(loss).attach(engine)
        if isinstance(loss, TrainingLoss):
            loss(random_output(SIZE), rand(2, 2, *SIZE))
        engine.run([0], max_epochs=1)
        assert not engine.state.metrics
