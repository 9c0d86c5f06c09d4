"""Weights that are none, are another network's, or would run code."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reliability_cases.files import (
    FLAT,
    LABELED,
    TINY,
    both,
    content,
    datalist,
    evaluate,
    flipped_bit,
    network,
    register,
    registered,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import CANARY, Case

KIND = "checkpoints"
FILE = "w.pt"
SIZE = (16, 16, 16)


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def commands() -> dict[str, tuple[str, ...]]:
    """What reads weights."""
    return {
        "register": register("--model", FILE),
        "info": ("info", FILE),
        "represent": ("represent", "m.nii.gz", "r.nii.gz", "--model", FILE, "--device", "cpu"),
        "evaluate": evaluate(model=FILE),
    }


def bad(name: str, make: Callable[[], None], *readers: str, ending: str = "fails") -> Iterator[Case]:
    """Weights that each reader must name."""
    for reader in readers or ("register", "info"):
        both_made = both(datalist(LABELED), make)
        yield Case(KIND, f"{name}, {reader}", commands()[reader], Expected(ending, (FILE, "model")), both_made)


def saved(value: Any) -> Callable[[], None]:
    """Writes a value with torch."""

    def make() -> None:
        import torch

        torch.save(value() if callable(value) else value, FILE)

    return make


def altered(change: Callable[[Any], None], **settings: Any) -> Callable[[], None]:
    """Writes a small network's weights, changed."""
    return lambda: network(FILE, SIZE, change, **settings)


def filled(value: float) -> Callable[[Any], None]:
    """Sets one weight."""

    def change(state: Any) -> None:
        name = next(key for key, tensor in state.items() if tensor.is_floating_point() and tensor.ndim > 1)
        state[name].view(-1)[0] = value

    return change


def described_as(text: str) -> Callable[[Any], None]:
    """Sets the description."""

    def change(state: Any) -> None:
        state._metadata["istn_monai"] = text

    return change


def with_settings(**changes: Any) -> Callable[[Any], None]:
    """Changes settings of the description."""

    def change(state: Any) -> None:
        description = json.loads(state._metadata["istn_monai"])
        description["settings"] |= changes
        state._metadata["istn_monai"] = json.dumps(description)

    return change


def cases() -> Iterator[Case]:
    """All of them."""
    yield from files()
    yield from code()
    yield from weights()
    yield from settings()
    yield from places()


def files() -> Iterator[Case]:
    """Files that hold no weights."""
    yield from bad("empty", content(FILE, b""))
    yield from bad("text", content(FILE, "weights\n"))
    yield from bad("a NIfTI file", lambda: content(FILE, Path("m.nii.gz").read_bytes())())
    yield from bad("an empty zip", content(FILE, b"PK\x05\x06" + bytes(18)))
    for fraction in (0.1, 0.5, 0.99):
        yield from bad(
            f"truncated at {fraction:.0%}", whole(lambda old, f=fraction: old[: int(f * len(old))]), "register"
        )
    for place in (0.05, 0.5, 0.97):
        flipped = whole(flipped_bit(place))
        yield Case(
            KIND,
            f"bit flip at {place:.0%}",
            register("--model", FILE),
            Expected("either", (FILE, "model")),
            flipped,
            registered(),
        )
    yield from bad("a list", saved([1, 2]))
    yield from bad("a number", saved(7))
    yield from bad("None", saved(None))
    yield from bad("an empty dictionary", saved({}))
    yield from bad("texts", saved({"a": "b"}))
    yield from bad("one tensor", saved(lambda: __import__("torch").ones(3)))
    yield from bad(
        "another network's", saved(lambda: __import__("torch").nn.Linear(2, 3).state_dict()), "register", "evaluate"
    )
    yield from bad("NumPy's", lambda: np.savez(FILE + ".npz", a=np.ones(3)) or os.replace(FILE + ".npz", FILE))
    yield from bad("a whole module", saved(lambda: __import__("torch").nn.Linear(2, 3)))
    yield from bad("TorchScript", script)


def script() -> None:
    """Writes a scripted module."""
    import torch

    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), FILE)


def whole(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    """The small network's file, changed."""
    return both(lambda: Path(FILE).write_bytes(Path(TINY).read_bytes()), content(FILE, change))


def code() -> Iterator[Case]:
    """Files that would run something."""
    readers = ("register", "info", "represent", "evaluate")
    yield from bad("a pickle that runs code", lambda: Path(FILE).write_bytes(pickle.dumps(Payload())), *readers)
    yield from bad("a checkpoint that runs code", saved(lambda: {"model": Payload()}), *readers)
    yield from bad("code beside weights", altered(lambda state: state.__setitem__("x", Payload())), *readers)
    for name, target in {
        "os.system": {"_target_": "os.system", "command": f"touch {CANARY}"},
        "subprocess": {"_target_": "subprocess.check_call", "args": ["touch", CANARY]},
        "an expression": {"_target_": "istn_monai.ITN", "spatial_dims": f"$__import__('os').system('touch {CANARY}')"},
        "an expression alone": f"$__import__('os').system('touch {CANARY}')",
        "a trusted name's eval": {
            "_target_": "torch.nn.modules.module.warnings.os.system",
            "command": f"touch {CANARY}",
        },
        "MONAI's config": {"_target_": "monai.networks.utils.os.system", "command": f"touch {CANARY}"},
        "a nested target": {
            "_target_": "torch.nn.Sequential",
            "x": {"_target_": "os.system", "command": f"touch {CANARY}"},
        },
        "a macro": {"_target_": "istn_monai.ITN", "x": "%/etc/passwd"},
    }.items():
        yield from bad(f"itn_def with {name}", altered(with_settings(loss="e", itn_def=target)), "register", "info")
        yield from bad(f"stn_def with {name}", altered(with_settings(stn_def=target)), "register")
    yield from bad(
        "an expression as spacing", altered(with_settings(spacing=f"$__import__('os').system('touch {CANARY}')"))
    )


def weights() -> Iterator[Case]:
    """Weights that are no use."""
    readers = ("register", "evaluate", "represent", "info")
    for name, value in {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}.items():
        yield from bad(f"a weight of {name}", altered(filled(value)), *readers)
    yield from bad("a weight of 1e38", altered(filled(1e38)), "register", ending="either")
    yield from bad(
        "all weights times 1e30",
        altered(lambda state: [tensor.mul_(1e30) for tensor in state.values() if tensor.is_floating_point()]),
        "register",
        ending="either",
    )
    yield from bad("a weight too few", altered(lambda state: state.pop(next(iter(state)))), "register", "evaluate")
    yield from bad(
        "a weight too many", altered(lambda state: state.__setitem__("x", next(iter(state.values())))), "register"
    )
    yield from bad(
        "a weight of another shape",
        altered(lambda state: state.__setitem__(next(iter(state)), next(iter(state.values()))[:1])),
        "register",
    )
    yield from bad(
        "complex weights",
        altered(
            lambda state: state.update({k: v.to(dtype=__import__("torch").complex64) for k, v in list(state.items())})
        ),
        "register",
    )
    half = altered(
        lambda state: state.update(
            {key: value.half() for key, value in list(state.items()) if value.is_floating_point()}
        )
    )
    yield Case(KIND, "weights in float16", register("--model", FILE), Expected("either", (FILE,)), half, registered())
    yield Case(
        KIND,
        "weights of epoch 0 say so",
        register("--model", FILE),
        Expected("either", (FILE,)),
        epoch_zero,
        says("epoch 0", "untrained", "before training"),
    )


def epoch_zero() -> None:
    """Weights of epoch 0, the network before training."""

    def change(state: Any) -> None:
        description = json.loads(state._metadata["istn_monai"])
        description["result"] = {"validation_dice": 0.5, "epoch": 0}
        state._metadata["istn_monai"] = json.dumps(description)

    network(FILE, SIZE, change)


def says(*words: str) -> Callable[[], None]:
    """Checks that what was printed, or the report, has one of some words."""

    def check() -> None:
        text = Path(str(Path.cwd()) + ".txt").read_text(encoding="utf-8") + Path("out/report.json").read_text(
            encoding="utf-8"
        )
        assert any(word in text.lower() for word in words), f"nothing says {' or '.join(words)}"

    return check


def settings() -> Iterator[Case]:
    """Descriptions that cannot be used, or contradict the command."""
    yield from bad("a description that is not JSON", altered(described_as("{")))
    yield from bad("a description that is a list", altered(described_as("[]")))
    yield from bad("a description of another form", altered(described_as('{"settings": 7}')))
    for name, value in {
        "loss": "x",
        "transformation": "rotation",
        "spatial_size": [0, 16, 16],
        "spacing": -1,
        "soi_labels": "all",
        "in_channels": 0,
        "initial_alignment": "guess",
        "unknown": 1,
        "max_displacement": "far",
    }.items():
        yield from bad(f"settings with {name} {value}", altered(with_settings(**{name: value})), "register")
    yield from bad("settings of a size bomb", altered(with_settings(spatial_size=[30000] * 3)), "register")
    yield Case(
        KIND, "2-D weights for a 3-D pair", register("--model", FLAT), Expected("fails", ("m.nii.gz", "moving_image"))
    )
    for name, value in {
        "loss": "e",
        "transformation": "bspline",
        "spacing": "1",
        "soi_labels": "[[7]]",
        "in_channels": "2",
    }.items():
        yield Case(KIND, f"--{name} {value} contradicts", register(f"--{name}", value), Expected("fails", (name,)))
    moments = altered(lambda state: None, initial_alignment="moments")
    yield Case(
        KIND,
        "weights trained under moments",
        register("--model", FILE),
        Expected("works", (FILE,)),
        moments,
        aligned_by("moments"),
    )


def aligned_by(name: str) -> Callable[[], None]:
    """Checks the initial alignment that the report names."""

    def check() -> None:
        found = json.loads(Path("out/report.json").read_text(encoding="utf-8"))["options"]["initial_alignment"]
        assert found == name, f"aligned by {found}, trained under {name}"

    return check


def places() -> Iterator[Case]:
    """Where weights are looked for."""
    for name, model in {
        "a missing file": "none.pt",
        "an empty folder": "empty",
        "an image": "m.nii.gz",
        "an empty name": "",
    }.items():

        def make():
            return os.makedirs("empty/models")

        yield Case(
            KIND, f"model is {name}", register("--model", model), Expected("fails", ("model", model or "model")), make
        )
        yield Case(
            KIND, f"model is {name}, info", ("info", model), Expected("fails", ("model", model or "model")), make
        )
    yield Case(KIND, "no training run", ("evaluate",), Expected("fails", ("run", "model")))
