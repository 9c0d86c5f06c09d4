"""What a long training has beyond the paper's: by hand, and in the bundle's own training."""

import copy
import math
import warnings

import pytest
import torch
from helpers import config, messages, rand
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import nn

from istn_monai import (
    ISTN,
    DiceCrossEntropyLoss,
    DisplacementNetwork,
    NetworkSettings,
    RandContrastMapd,
    RandImageFromLabelsd,
    Refiner,
    SegmentationITN,
)
from istn_monai.network_settings import none_or
from istn_monai.synthetic.pairs import synthesize
from istn_monai.weights import read_weights
from istn_monai.workflow import recipe
from istn_monai.workflow.inferers import AutocastInferer
from istn_monai.workflow.recipe import (
    ITNFirstHandler,
    ValidationInferer,
    WeightAverage,
    contrasts,
    default_itn_similarity,
    network_from,
    validation_steps,
)
from istn_monai.workflow.training import TrainingLoss

SIZE = (16, 24, 16)
SETTINGS = {"loss": "e", "spatial_size": SIZE, "control_spacing": 8, "soi_labels": [[1], [2]]}


def settings(**changes) -> NetworkSettings:
    return NetworkSettings(**SETTINGS | changes)


def blocks(batch: int = 1) -> torch.Tensor:
    """SoI ``(B, 4, *SIZE)`` that do not overlap: two structures moving, two fixed."""
    label = torch.zeros(batch, 4, *SIZE)
    label[:, 0, 2:7, 4:12, 3:9], label[:, 1, 8:13, 4:12, 3:9] = 1, 1
    label[:, 2, 3:8, 5:13, 4:10], label[:, 3, 9:14, 5:13, 4:10] = 1, 1
    return label


# --- the ITN and its loss --------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    prediction = torch.tensor([[[0.5, 0.1], [0.25, 0.2]]])  # two structures, two voxels
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # the first structure, then the background
    entropy = -(math.log(0.5) + math.log(0.7)) / 2
    loss = DiceCrossEntropyLoss(dice_weight=0.0, entropy_weight=2.0)(prediction, target)
    assert loss.item() == pytest.approx(2 * entropy, abs=1e-6)
    both = DiceCrossEntropyLoss()(prediction, target).item()
    dice = 1 - torch.tensor([2 * 0.5 / (0.6 + 1), 0.0]).mean().item()
    assert both == pytest.approx(dice + entropy, abs=1e-4)


def test_parts_of_a_voxel_count_by_their_parts():
    prediction, target = torch.tensor([[[0.3]]]), torch.tensor([[[0.4]]])
    loss = DiceCrossEntropyLoss(dice_weight=0.0)(prediction, target).item()
    assert loss == pytest.approx(-0.4 * math.log(0.3) - 0.6 * math.log(0.7), abs=1e-6)


def test_a_certain_error_stays_finite_with_its_gradient():
    prediction = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    loss = DiceCrossEntropyLoss()(prediction, torch.tensor([[[0.0, 1.0]]]))
    loss.backward()
    assert loss.isfinite() and prediction.grad.isfinite().all()


def test_the_segmentation_itn_gives_probabilities_in_any_size():
    itn = SegmentationITN(3, in_channels=2, out_channels=2, features=(4, 4, 8, 8, 8, 4)).eval()
    output = itn(rand(1, 2, 17, 21, 33))
    assert output.shape == (1, 2, 17, 21, 33) and output.min() >= 0 and output.sum(1).max() <= 1 + 1e-6
    logits = itn.backbone(nn.functional.pad(rand(1, 2, 17, 21, 33), (0, 15, 0, 11, 0, 15), mode="replicate"))
    expected = logits.softmax(1)[:, 1:, :17, :21, :33]
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)


def test_the_settings_build_it_by_its_name_and_say_so():
    made = settings(itn_def="segmentation")
    assert made.itn_def["_target_"] == "istn_monai.SegmentationITN" and made.itn_def["out_channels"] == 2
    assert made.segments and not settings().segments and not settings(itn_def="segmentation", loss="s").segments
    assert isinstance(made.network().istn.itn, SegmentationITN)
    assert NetworkSettings.of_state_dict(made.state_dict()) == made
    assert isinstance(default_itn_similarity(made), DiceCrossEntropyLoss) and default_itn_similarity(settings()) is None
    for wrong in ([[1], [1, 2]], None):
        with pytest.raises(ValueError, match="groups that do not overlap"):
            settings(itn_def="segmentation", soi_labels=wrong)
    with pytest.raises(ValueError, match="itn_def must be JSON"):
        settings(itn_def="segmentatoin")


# --- the ITN first ---------------------------------------------------------------------------------------------------


def test_in_the_first_epochs_the_itn_alone_learns():
    made = settings()
    network, loss, inferer = made.network().istn.train(), TrainingLoss("e"), AutocastInferer()
    handler, engine = ITNFirstHandler(2, loss, inferer, made, 3), Engine(lambda *_: None)
    image, label = rand(1, 2, *SIZE), {"label": blocks()}
    for epoch, alone in ((1, True), (2, True), (3, False)):
        engine.state.epoch = epoch
        handler(engine)
        network.zero_grad()
        output = inferer(image, network)
        loss(output, label).backward()
        assert loss.itn_alone is alone and (set(loss.latest) == {"itn_moving", "itn_fixed"}) is alone
        assert all((w.grad is None or not w.grad.any()) is alone for w in network.stn.heads[0].parameters())
        assert any(w.grad.any() for w in network.itn.parameters())
    whole = network(image)
    engine.state.epoch = 1
    handler(engine)
    output = inferer(image, network)
    assert torch.equal(output.moving_representation, whole.moving_representation) and not output.ddf.any()
    assert output.theta.shape == whole.theta.shape and output.ddf.shape == whole.ddf.shape


def test_a_wrapped_network_gets_a_gradient_of_all_weights():
    """DistributedDataParallel waits for one of each weight."""
    network, loss = settings().network().istn, TrainingLoss("e")
    loss.itn_alone = True
    loss(network(rand(1, 2, *SIZE)), {"label": blocks()}).backward()
    heads = [weight.grad for weight in network.stn.heads[0].parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in heads)


def test_the_itn_first_needs_an_itn():
    with pytest.raises(ValueError, match="itn_epochs is for loss e or i"):
        ITNFirstHandler(1, TrainingLoss("s"), AutocastInferer(), settings(loss="s"), 2)
    ITNFirstHandler(0, TrainingLoss("s"), AutocastInferer(), settings(loss="s"), 2)
    with pytest.raises(ValueError, match="itn_epochs are the first of max_epochs 2, got 3"):
        ITNFirstHandler(3, TrainingLoss("e"), AutocastInferer(), settings(), 2)


def test_without_an_stn_the_itn_learns_by_itself_to_the_end():
    made = settings(stn_def="identity", transformation="affine+bspline")
    network, loss, inferer = made.network().istn.train(), TrainingLoss("e"), AutocastInferer()
    handler, engine = ITNFirstHandler(0, loss, inferer, made, 3), Engine(lambda *_: None)
    for epoch in (1, 3):
        engine.state.epoch = epoch
        handler(engine)
        assert loss.itn_alone
    output = inferer(rand(1, 2, *SIZE), network)
    loss(output, {"label": blocks()}).backward()
    assert any(weight.grad.any() for weight in network.itn.parameters())
    assert not output.theta.any() and not output.ddf.any()


def test_without_an_stn_validation_is_after_a_refinement():
    assert validation_steps(settings()) == 0 and validation_steps(settings(), 7) == 7
    assert validation_steps(settings(stn_def="identity")) == 25
    assert validation_steps(settings(stn_def="identity"), 7) == 7
    with pytest.raises(ValueError, match="val_refine_steps must be at least 1 with stn_def identity"):
        validation_steps(settings(stn_def="identity"), 0)


def test_without_an_stn_and_an_itn_nothing_learns():
    for loss in ("u", "s"):
        with pytest.raises(ValueError, match=f"stn_def identity leaves nothing to train with loss '{loss}'"):
            ITNFirstHandler(0, TrainingLoss(loss), AutocastInferer(), settings(loss=loss, stn_def="identity"), 2)


def test_what_has_no_effect_on_an_itn_that_learns_alone_is_told(monkeypatch):
    given = {"regularization": {"_target_": "BendingEnergyLoss"}, "itn_epochs": 0, "loss_weights": "none"}
    monkeypatch.setattr(recipe, "given", lambda name: none_or(given.get(name)))
    arguments = (0, TrainingLoss("e"), AutocastInferer())
    with pytest.warns(UserWarning, match="where the ITN learns alone: regularization$"):
        ITNFirstHandler(*arguments, settings(stn_def="identity"), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ITNFirstHandler(*arguments, settings(), 2)


# --- the average of the weights --------------------------------------------------------------------------------------


def test_the_average_by_hand():
    trained = nn.Linear(1, 1, bias=False)
    nn.init.constant_(trained.weight, 1.0)
    average, engine = WeightAverage(trained, decay=0.5), Engine(lambda *_: None)
    values = []
    for iteration in (1, 2, 100, 101):
        nn.init.constant_(trained.weight, 3.0)
        engine.state.iteration = iteration
        average.update(engine)
        values.append(average.network.weight.item())
    first = 1 / 11 + 3 * 10 / 11
    second = first * 2 / 12 + 3 * 10 / 12
    third = (second + 3) / 2
    assert values == pytest.approx([first, second, third, (third + 3) / 2])
    assert trained.weight.item() == 3 and not average.network.weight.requires_grad


def test_statistics_of_batch_norm_are_those_of_the_trained_network():
    trained = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average, engine = WeightAverage(trained, decay=0.5), Engine(lambda *_: None)
    trained(torch.rand(4, 1, 5, 5) + 3)
    engine.state.iteration = 1
    average.update(engine)
    own, other = (network[1].state_dict() for network in (trained, average.network))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(own[name], other[name]) and other[name].abs().sum() > 0


def test_no_average_is_the_network_itself():
    network = nn.Linear(1, 1)
    average = WeightAverage(network)
    assert average.network is network and average.state_dict() == {}


# --- validation and the beginning ------------------------------------------------------------------------------------


def test_validation_after_a_refinement_is_the_refiner_s():
    network, image = settings().network().istn.eval(), rand(1, 2, *SIZE)
    with torch.no_grad():
        plain = ValidationInferer(0)(image, network)
        expected = network(image)
        refined = ValidationInferer(3)(image, network)
    assert torch.equal(plain.ddf, expected.ddf)
    own = Refiner(3, learning_rate=0.4 * 3 / 25, weights="accurate")(network, image)
    assert torch.equal(refined.ddf, own.ddf) and torch.equal(refined.moving_representation, own.moving)
    with pytest.raises(ValueError, match="val_refine_steps needs an ISTN"):
        ValidationInferer(1)(image, nn.Identity())


def test_a_training_begins_with_the_weights_of_a_checkpoint(tmp_path):
    torch.manual_seed(3)
    first = settings().network()
    torch.save({"model": first.state_dict()}, tmp_path / "a.pt")
    begun = network_from(settings(), str(tmp_path / "a.pt"))
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in begun.state_dict().items())
    assert isinstance(begun, DisplacementNetwork) and isinstance(begun.istn, ISTN)
    with pytest.raises(ValueError, match=r"initial_weights .*a\.pt do not fit the network of these settings"):
        network_from(settings(itn_def="segmentation"), str(tmp_path / "a.pt"))
    with pytest.raises(FileNotFoundError):
        network_from(settings(), str(tmp_path / "b.pt"))


def test_contrasts_change_each_image_by_itself():
    assert contrasts("own", settings()) == []
    kinds = {"random": [RandContrastMapd], "synthetic": [RandImageFromLabelsd]}
    kinds["any"] = kinds["random"] + kinds["synthetic"]  # what is drawn shall stay so
    both = kinds["any"]
    for name, expected in kinds.items():
        found = [transform for transform in contrasts(name, settings(), prob=0.7) if type(transform) in both]
        assert [(type(transform), transform.keys) for transform in found] == [
            (kind, (image,)) for image in ("moving_image", "fixed_image") for kind in expected
        ]
        assert all(transform.prob == 0.7 for transform in found)
    for name in ("synthetic", "any"):
        with pytest.raises(ValueError, match=f"contrast {name} draws images from label maps"):
            contrasts(name, settings(soi_labels=None))


# --- all of it in the bundle -----------------------------------------------------------------------------------------

SMALL = {
    "spatial_size": [32, 32, 32], "spacing": 1, "control_spacing": 16, "loss": "e", "batch_size": 4, "augment": True,
    "itn_def": {"_target_": "istn_monai.SegmentationITN", "spatial_dims": 3, "out_channels": 2,
                "features": [2, 2, 2, 2, 2, 2]},
    "itn_epochs": 1, "ema_decay": 0.9, "contrast": "random", "val_refine_steps": 2, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A small synthetic set."""
    folder = tmp_path_factory.mktemp("data")
    synthesize(folder, (32, 32, 32), train=4, validation=2, test=2)
    return folder


def training(folder, data, epochs: int, **changes) -> ConfigWorkflow:
    options = SMALL | {"output_dir": str(folder), "dataset_dir": str(data), "max_epochs": epochs} | changes
    return ConfigWorkflow(config("train"), logging_file=False, workflow_type="train", **options)


def run(workflow: ConfigWorkflow) -> None:
    workflow.initialize()
    workflow.run()


def interrupted(workflow: ConfigWorkflow, epoch: int) -> None:
    """A training that is killed when an epoch would begin."""

    def kill(engine):
        raise KeyboardInterrupt

    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_STARTED(once=epoch), kill)
    with pytest.raises(KeyboardInterrupt):
        workflow.run()


ITN_ALONE = {
    "contrast": "any", "stn_def": "identity", "transformation": "affine+bspline", "itn_epochs": 0,
    "refine_levels": [[2, 3, 0], [1, 3, 1]],
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, ITN_ALONE])
def test_a_training_with_all_of_it_goes_on_after_an_interruption_to_the_last_bit(tmp_path, data, changes):
    run(training(tmp_path / "whole", data, 3, **changes))
    interrupted(training(tmp_path / "parts", data, 3, **changes), epoch=3)
    run(training(tmp_path / "parts", data, 3, **changes))
    whole, parts = (
        torch.load(tmp_path / name / "models" / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    for part in ("model", "average"):
        assert all(torch.equal(value, parts[part][name]) for name, value in whole[part].items())
    assert any(not torch.equal(value, whole["average"][name]) for name, value in whole["model"].items())
    best = read_weights(tmp_path / "whole" / "models" / "model.pt")
    told = {name: (SMALL | changes)[name] for name in ("itn_epochs", "ema_decay", "contrast", "val_refine_steps")}
    assert best.description["training"].items() >= told.items()
    assert best.inference == {name: value for name, value in changes.items() if name == "refine_levels"}


def test_wrong_settings_are_refused_before_any_work(tmp_path, data):
    for changes, words in (
        ({"itn_epochs": 1, "loss": "s", "itn_def": None}, "itn_epochs is for loss e or i"),
        ({"itn_epochs": 2}, "itn_epochs are the first of max_epochs 1"),
        ({"stn_def": "identity", "loss": "u", "itn_def": None, "itn_epochs": 0}, "leaves nothing to train"),
        ({"stn_def": "identity", "val_refine_steps": 0}, "val_refine_steps must be at least 1"),
        ({"stn_def": "identify"}, "stn_def must be"),
        ({"contrast": "inverted"}, "contrast"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"initial_weights": str(tmp_path / "none.pt")}, "none.pt"),
    ):
        with pytest.raises(BaseException) as failure:
            run(training(tmp_path / "run", data, 1, **changes))
        assert words in messages(failure.value), words
        assert not (tmp_path / "run" / "models" / "model.pt").exists()


def test_an_average_is_a_copy_that_shares_nothing():
    network = settings().network()
    average = WeightAverage(network, 0.9)
    before = copy.deepcopy(average.network.state_dict())
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in average.network.state_dict().items())
