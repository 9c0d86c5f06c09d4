"""Tests of `istn_monai.weights`: flat state dictionaries that say what they are; bad files; old ones."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import BUNDLE, rand

from istn_monai import NetworkSettings, Registration
from istn_monai.weights import described, information, own_settings, read_weights, save_atomically
from istn_monai.workflow.checkpoints import load_checkpoint

SETTINGS = NetworkSettings(spatial_size=(16, 24), control_spacing=8, soi_labels=[[1]], initial_alignment="moments")
TRAINING = {"datalist": "pairs.json 12345678", "batch_size": 2}
SHIPPED = BUNDLE / "models" / "model.pt"


@pytest.fixture
def file(tmp_path) -> Path:
    torch.manual_seed(0)
    description = {"settings": SETTINGS.state_dict(), "training": TRAINING, "result": {"validation_dice": 0.75}}
    save_atomically(described(SETTINGS.network().state_dict(), description), tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_a_checkpoint_is_a_plain_state_dictionary_to_other_tools(file):
    content = torch.load(file, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in content.values())
    network = SETTINGS.network()
    network.load_state_dict(content)
    assert set(content) == set(network.state_dict())


def test_a_checkpoint_says_all_that_it_takes_to_use_it(file):
    weights = read_weights(file)
    assert weights.settings == SETTINGS and weights.validation == 0.75
    assert weights.description["training"] == TRAINING and weights.description["versions"]["torch"] == torch.__version__
    network = weights.settings.network().eval()
    weights.load_into(network)
    same = SETTINGS.network().eval()
    same.load_state_dict(torch.load(file, weights_only=True))
    image = rand(1, 2, 16, 24)
    assert torch.equal(network(image), same(image))


def test_the_description_stays_when_tools_save_what_they_loaded(file, tmp_path):
    torch.save(torch.load(file, weights_only=True), tmp_path / "copy.pt")
    assert read_weights(tmp_path / "copy.pt").settings == SETTINGS


def test_a_plain_state_dictionary_has_no_description(tmp_path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "plain.pt")
    assert read_weights(tmp_path / "plain.pt").settings is None
    assert "plain state dictionary" in information(read_weights(tmp_path / "plain.pt"))


def test_checkpoints_of_the_first_format_say_the_same(tmp_path):
    old = {
        "model": SETTINGS.network().state_dict(),
        "settings": {
            "network": {
                "representation": "itn", "transformation": "bspline", "control_spacing": 8, "max_displacement": 0.4,
                "spatial_size": [16, 24], "spacing": 1, "soi_labels": [[1]], "soi_points": None, "in_channels": 1,
                "architecture": "78b99c9ddef2",
            },
            "training": {"loss": "e", "initial_alignment": "moments", "batch_size": 2},
        },
        "validation": 0.6,
        "epoch": 3,
    }  # fmt: skip
    torch.save(old, tmp_path / "old.pt")
    weights = read_weights(tmp_path / "old.pt")
    assert weights.settings.loss == "e" and weights.settings.initial_alignment == "moments"
    assert weights.settings.spatial_size == [16, 24] and weights.validation == 0.6
    assert weights.description["training"] == {"initial_alignment": "moments", "batch_size": 2}
    weights.load_into(weights.settings.network())
    old["settings"]["network"]["representation"] = "image"
    del old["settings"]["training"]
    torch.save(old, tmp_path / "older.pt")
    assert read_weights(tmp_path / "older.pt").settings.loss == "u"


def test_the_shipped_weights_are_told_in_ten_lines():
    lines = information(read_weights(SHIPPED)).splitlines()
    assert 8 <= len(lines) <= 12
    text = "\n".join(lines)
    for said in ("48x64x48", "[[1], [2]]", "bspline", "center", "BasicUNet"):
        assert said in text


# --- bad files -------------------------------------------------------------------------------------------------------


class Payload:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (Path("ran").touch, ())


def one_line(call, file) -> str:
    with pytest.raises(ValueError) as error:
        call()
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [Payload(), {"model": {"weight": torch.ones(1)}, "extra": Payload()}])
def test_a_pickle_payload_is_refused_and_does_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "evil.pt")
    assert "not a checkpoint that can be read safely" in one_line(lambda: read_weights("evil.pt"), tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(content))
    one_line(lambda: read_weights("evil2.pt"), tmp_path / "evil2.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = SETTINGS.network().state_dict()
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_atomically(described(state, {"settings": SETTINGS.state_dict()}), tmp_path / "nan.pt")
    assert "NaN or infinite" in one_line(lambda: read_weights(tmp_path / "nan.pt"), tmp_path / "nan.pt")


@pytest.mark.parametrize("description", ["[1, 2]", "3", '{"settings": {}, "result": 3}'])
def test_a_description_of_another_form_names_the_file(tmp_path, description):
    state = torch.nn.Linear(2, 3).state_dict()
    state._metadata["istn_monai"] = description
    torch.save(state, tmp_path / "x.pt")
    assert "another form" in one_line(lambda: read_weights(tmp_path / "x.pt"), tmp_path / "x.pt")


def test_a_truncated_checkpoint_is_named(file):
    content = file.read_bytes()
    for length in (10, 1000, len(content) // 2, len(content) - 10):
        file.write_bytes(content[:length])
        one_line(lambda: read_weights(file), file)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": 3}, {"a": 1}, {}, {"model": {}}])
def test_something_else_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    one_line(lambda: read_weights(tmp_path / "x.pt"), tmp_path / "x.pt")


def test_weights_of_a_foreign_network_do_not_fit(file, tmp_path):
    foreign = described(torch.nn.Linear(2, 3).state_dict(), {"settings": SETTINGS.state_dict()})
    torch.save(foreign, tmp_path / "foreign.pt")
    weights = read_weights(tmp_path / "foreign.pt")
    text = one_line(lambda: weights.load_into(weights.settings.network()), tmp_path / "foreign.pt")
    assert "does not fit the network that its settings describe" in text


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"loss": "x"}, "loss must be one of"),
        ({"spatial_size": "auto"}, "spatial_size must be"),
        ({"unheard": 1}, "unknown settings"),
        ({"itn_def": {"_target_": "os.system", "command": "touch ran"}}, "itn_def of the checkpoint"),
    ],
)
def test_a_description_that_cannot_be_used_names_the_file(tmp_path, monkeypatch, settings, said):
    monkeypatch.chdir(tmp_path)
    state = described(torch.nn.Linear(2, 3).state_dict(), {"settings": SETTINGS.state_dict() | settings})
    torch.save(state, tmp_path / "x.pt")
    assert said in one_line(lambda: read_weights(tmp_path / "x.pt").settings, tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


def test_a_description_that_is_no_json_names_the_file(tmp_path):
    state = torch.nn.Linear(2, 3).state_dict()
    state._metadata["istn_monai"] = "{"
    torch.save(state, tmp_path / "x.pt")
    one_line(lambda: read_weights(tmp_path / "x.pt"), tmp_path / "x.pt")


@pytest.mark.parametrize("epoch, said", [(0, True), (3, False)])
def test_untrained_weights_say_so_where_they_are_looked_at_and_used(tmp_path, caplog, epoch, said):
    file, network = tmp_path / "model.pt", SETTINGS.network()
    result = {"validation_dice": 0.7, "epoch": epoch}
    save_atomically(described(network.state_dict(), {"settings": SETTINGS.state_dict(), "result": result}), file)
    assert ("nothing is learned yet" in information(read_weights(file))) == said
    with caplog.at_level(logging.WARNING):
        load_checkpoint(file, network)
    assert [record.message for record in caplog.records] == said * [
        f"{file} is of epoch 0, the network before training: nothing is learned yet"
    ]


# --- how they are used -----------------------------------------------------------------------------------------------


def weights_that_say(tmp_path, inference, **settings) -> Path:
    """A checkpoint of a small network with what it says of its use."""
    made = NetworkSettings(loss="e", spatial_size=(16, 16, 16), control_spacing=8, **settings)
    description = {"settings": made.state_dict(), "inference": inference}
    torch.save({"model": described(made.network().state_dict(), description)}, tmp_path / "said.pt")
    return tmp_path / "said.pt"


def test_what_weights_say_of_their_use_counts(tmp_path):
    said = {"refine_weights": {"structures": 1.0, "image": 0.5}, "refine_levels": [[2, 20], [1, 20]]}
    file = weights_that_say(tmp_path, said | {"refine_learning_rate": 0.1, "spatial_size": "image"})
    assert own_settings(file, True) == said | {"refine_learning_rate": 0.1, "spatial_size": "image"}
    assert own_settings(file, False) == {"spatial_size": "image"}


CODE = "$__import__('pathlib').Path('ran').touch()"


@pytest.mark.parametrize(
    ("inference", "said"),
    [
        ({"refine_levels": CODE}, "refine_levels must be"),
        ({"refine_weights": CODE}, "refine_weights must be"),
        ({"refine_weights": {"image": CODE}}, "the weight of image must be a number"),
        ({"refine_learning_rate": CODE}, "refine_learning_rate must be"),
        ({"spatial_size": CODE}, "spatial_size must be"),
        ({"spatial_size": [CODE, 16, 16]}, "spatial_size must be"),
        ({"displayable_configs": CODE}, "inference must be of .*, got displayable_configs"),
        ({"inferer#steps": CODE}, "inference must be of .*, got inferer#steps"),
        ([CODE], "description of another form"),
    ],
)
def test_what_weights_say_of_their_use_runs_no_code(tmp_path, monkeypatch, inference, said):
    file = weights_that_say(tmp_path, inference)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"said\.pt.*{said}"):
        Registration(file, device="cpu").content("inferer")
    assert not (tmp_path / "ran").exists()


def test_an_itn_alone_is_registered_from_the_identity(tmp_path):
    alone = {"stn_def": "identity", "transformation": "affine+bspline"}
    found = own_settings(weights_that_say(tmp_path, {}, **alone), True)
    assert found == {
        "refine_learning_rate": 0.3,
        "refine_levels": [[4, 60, 0], [2, 40, 0], [2, 100, 1], [1, 40, 1]],
    }
    levels = [[2, 5, 0], [1, 5, 1]]
    said = own_settings(weights_that_say(tmp_path, {"refine_levels": levels}, **alone), True)
    assert said == {"refine_learning_rate": 0.3, "refine_levels": levels}
    assert own_settings(weights_that_say(tmp_path, {}), True) == {}


def test_the_identity_is_one_whatever_a_checkpoint_says(tmp_path):
    weights = read_weights(weights_that_say(tmp_path, {}, stn_def="identity"))
    network = weights.settings.network()
    network.load_state_dict(
        {name: torch.full_like(v, 5.0) if "theta" in name else v for name, v in weights.state.items()}
    )
    image = torch.rand(1, 2, *weights.settings.spatial_size)
    assert not network.istn.stn(image).any() and not network(image).any()


def test_weights_of_other_settings_are_not_loaded_even_where_they_fit(file):
    """As MONAI's ckpt_export does with --ckpt_file alone: the field would be another without a word."""
    content = torch.load(file, weights_only=True)
    for setting in ({"max_displacement": 0.2}, {"spacing": 2.0, "control_spacing": 16}):
        other = replace(SETTINGS, **setting).network()
        with pytest.raises(ValueError, match=f"checkpoint_file.*trained with other settings.*{next(iter(setting))}"):
            other.load_state_dict(content)
    replace(SETTINGS, max_displacement=0.2).network().load_state_dict(dict(content))  # which says nothing of itself
    replace(SETTINGS, spatial_size=(18, 24)).network().load_state_dict(content)


def test_weights_are_used_as_they_say_however_they_are_named():
    """Those without a network have steps of their own."""
    models = SHIPPED.parent
    expected = repr(Registration("intensities", device="cpu").content("inferer"))
    assert "steps=170" in expected
    assert (
        repr(Registration(checkpoint_file=str(models / "intensities.pt"), device="cpu").content("inferer")) == expected
    )
