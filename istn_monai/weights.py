"""Weights that say what they are: a checkpoint is a flat state dictionary with a description of its network inside.

The description is JSON under the key ``istn_monai`` of the state dictionary's ``_metadata``, where PyTorch keeps the
versions of modules. So ``torch.load(file, weights_only=True)`` gives what any tool takes for a plain state dictionary
(``load_state_dict``, MONAI's ``monai.bundle.load`` and ``ckpt_export``), and the description travels with the weights.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.utils import get_package_version
from torch import Tensor, nn

from istn_monai.folders import BEST
from istn_monai.geometry.names import GLOBAL
from istn_monai.io.paths import replacing
from istn_monai.levels import Parts, levels_of_parts
from istn_monai.network_settings import FREE_OF_NETWORK, NetworkSettings
from istn_monai.networks import KEY
from istn_monai.options import typed
from istn_monai.refine_weights import in_voxels
from istn_monai.representations import Representation

logger = logging.getLogger(__name__)
#: how maps are registered without a network: their channels are sharp, so the last steps see every voxel
OF_MAPS = {"refine_weights": "maps", "refine_levels": [[8, 60, 0], [4, 40, 0], [4, 60, 1], [2, 30, 2], [1, 30, 2]]}
#: how an ITN alone is used, whose pairs start at the identity: an affine part, three lattices, and the learning rate
FROM_IDENTITY = ([[4, 60, 0], [2, 40, 0], [2, 60, 1], [2, 40, 2], [1, 40, 3]], Parts(1, 3), 0.3)
#: settings of a refinement that weights remember from their training
HOW_TO_REFINE = ("refine_weights", "refine_levels", "refine_learning_rate")
#: what a checkpoint may say of its use, by the settings' kinds: an expression of MONAI's there would be run
INFERENCE = ("spatial_size", *HOW_TO_REFINE)
FORMAT = 2  # 1 was a dictionary with "model" and "settings"


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    Attributes:
        file: where it lies.
        state: the state dictionary.
        description: "settings" of the network, "training", "result", "versions"; empty for a plain state dictionary.
        progress: what is needed to go on with a training; empty in ``model.pt``.
    """

    file: Path
    state: Mapping[str, Tensor]
    description: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> NetworkSettings | None:
        """The network's settings; None if the file does not say.

        Raises:
            ValueError: naming the file, if they cannot be used.
        """
        if "settings" not in self.description:
            return None
        try:
            return NetworkSettings.of_state_dict(self.description["settings"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.file}: {error}") from error

    @property
    def inference(self) -> dict[str, Any]:
        """How the weights say that they are used.

        Raises:
            ValueError: naming the file, if they say anything else than settings of their kinds.
        """
        found = self.description.get("inference", {})
        try:
            if unknown := sorted(set(found) - set(INFERENCE)):
                raise ValueError(f"inference must be of {', '.join(INFERENCE)}, got {', '.join(unknown)}")
            return {name: typed(name, value) for name, value in found.items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{self.file}: {error}") from error

    @property
    def validation(self) -> float | None:
        """Best validation Dice, if the file says."""
        return self.description.get("result", {}).get("validation_dice")

    @property
    def untrained(self) -> bool:
        """Whether the file says that it is of epoch 0: no validation was better than that before training."""
        return self.description.get("result", {}).get("epoch") == 0

    def load_into(self, network: nn.Module) -> None:
        """Loads the weights.

        Raises:
            ValueError: naming the file, if they are those of another network.
        """
        try:
            network.load_state_dict(self.state)
        except (RuntimeError, TypeError, AttributeError) as error:
            hints = {
                FORMAT: "its settings describe",
                1: "its settings describe (itn_def and stn_def are not among them)",
            }
            number = int(self.description.get("format", 0))
            hint = hints.get(number, "the settings describe; it does not say any itself")
            lines = " ".join(str(error).split())
            raise ValueError(f"{self.file} does not fit the network that {hint}: {lines[:300]}") from error


def read_weights(file: str | os.PathLike, device: Any = "cpu") -> Weights:
    """Reads a checkpoint without running any code in it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file, if it is not a checkpoint.
    """
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train first, or set ckpt_dir to the folder with {BEST}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        why = "it holds other objects than tensors, numbers and words, which might run code, or is no PyTorch file"
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {why}") from error
    except Exception as error:
        raise ValueError(f"{path} is not a checkpoint that can be read: is it whole, and a PyTorch file?") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is not a checkpoint, a state dictionary, but a {type(content).__name__}")
    state = content.get("model", content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} is not a checkpoint: it must hold tensors by name, got {sorted(content)[:5]}")
    odd = [name for name, value in state.items() if value.is_complex()]
    if odd:
        raise ValueError(f"{path} has complex weights, in {odd[0]}, which no network of this package has")
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"{path} has weights that are NaN or infinite, in {broken[0]}: train again, with a lower rate")
    progress = {key: content[key] for key in ("optimizer", "lr_scheduler", "trainer", "average") if key in content}
    return Weights(path, state, description_of(content, state, path), progress if state is not content else {})


def own_settings(file: str | os.PathLike, refined: bool, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How weights say that they are used unless a user says otherwise, by the names of settings; nothing as a rule.

    Without a network they follow what is registered, and how: by its representation, spacing and transformation. Where
    an ITN alone has learned, there are more steps than after a network's prediction.

    Args:
        file: the checkpoint.
        refined: whether there is a refinement.
        given: settings of the user.

    Raises:
        ValueError: naming the setting, if one cannot be.
    """
    weights, given = read_weights(file), given or {}
    found = weights.inference
    if found.get("refine_weights") == "intensities" and not Representation.of(given.get("representation")).is_itn:
        found |= OF_MAPS
    own = weights.settings
    if own is not None and own.starts_at_identity:
        wanted = own
        if own.network_free:
            wanted = own.overridden({name: given.get(name) for name in FREE_OF_NETWORK}, str(weights.file))
        else:
            schedule, parts, rate = FROM_IDENTITY
            found = {"refine_learning_rate": rate, "refine_levels": levels_of_parts(schedule, parts, own.parts)} | found
        if wanted.spacing != own.spacing and "refine_weights" in found:
            found["refine_weights"] = in_voxels(found["refine_weights"], own.coarser(wanted.spacing))
        if wanted.parts != own.parts and "refine_levels" in found:
            found["refine_levels"] = levels_of_parts(found["refine_levels"], own.parts, wanted.parts)
        if sum(wanted.parts) > 1 and any(len(level) == 2 for level in given.get("refine_levels") or ()):
            found.pop("refine_learning_rate", None)  # it is that of components in turn: all at once they go astray
    return {name: value for name, value in found.items() if refined or not name.startswith("refine_")}


def warn_if_untrained(weights: Weights) -> None:
    """Says in one line that weights are those of a network that has learned nothing."""
    if weights.untrained:
        logger.warning(f"{weights.file} is of epoch 0, the network before training: nothing is learned yet")


def description_of(content: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, in today's form whatever its format."""
    text = getattr(state, "_metadata", {}).get(KEY)
    if text is not None:
        try:
            found = json.loads(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} has a description that is not JSON: {error}") from error
        parts = ("settings", "training", "result", "versions", "inference")
        if not isinstance(found, dict) or not all(isinstance(found.get(part, {}), dict) for part in parts):
            raise ValueError(f"{path} has a description of another form than {parts}, each by name")
        return found
    if isinstance(content.get("settings"), Mapping):
        return first_format(content)
    return {}


def first_format(content: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a checkpoint of format 1, which told ISTNs from STNs by what they represent."""
    network = dict(content["settings"].get("network", {}))
    training = dict(content["settings"].get("training", {}))
    representation, _ = network.pop("representation", "itn"), network.pop("architecture", None)
    network["loss"] = training.pop("loss", "i" if representation == "itn" else "u")
    if "initial_alignment" in training:
        network["initial_alignment"] = training["initial_alignment"]
    result = {"validation_dice": content.get("validation"), "epoch": content.get("epoch")}
    known = {key: value for key, value in result.items() if value is not None}
    return {"format": 1, "settings": network, "training": training, "result": known}


def described(state: Mapping[str, Tensor], description: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """A module's state dictionary with a description inside."""
    versions = {"istn-monai": get_package_version("istn_monai"), "monai": get_package_version("monai")}
    versions["torch"] = torch.__version__
    metadata = state._metadata  # type: ignore[attr-defined]
    metadata[KEY] = json.dumps({"format": FORMAT, "versions": versions, **description}, default=str)
    return state


def save_atomically(content: Mapping[str, Any], file: Path) -> None:
    """Writes a checkpoint beside its place, then moves it there: an interruption leaves the old one whole."""
    with replacing(file) as part:
        torch.save(content, part)


def information(weights: Weights) -> str:
    """What a checkpoint is, in some ten lines."""
    lines = {"file": str(weights.file), "weights": f"{sum(v.numel() for v in weights.state.values()):,} numbers"}
    settings = weights.settings
    if settings is None:
        return table(lines | {"description": "none: a plain state dictionary"})
    itn = "none" if not settings.has_itn else (settings.itn_def or {}).get("_target_", "BasicUNet")
    levels = f", control spacing {settings.control_spacing} mm" if settings.transformation not in GLOBAL else ""
    training, result = weights.description.get("training", {}), weights.description.get("result", {})
    lines["network"] = f"loss {settings.loss}, ITN {itn}, STN {(settings.stn_def or {}).get('_target_', 'PyramidSTN')}"
    lines["transformation"] = f"{settings.transformation}{levels}"
    lines["grid"] = f"{settings.spacing} mm; trained on {'x'.join(map(str, settings.spatial_size))} voxels"
    points = "" if settings.soi_points is None else f", landmarks {settings.soi_points}"
    lines["structures"] = f"labels {'real-valued maps' if settings.soi_labels is None else settings.soi_labels}{points}"
    lines["alignment"] = settings.initial_alignment
    lines["images"] = f"{settings.in_channels} channel(s), {training.get('normalization', '0.5 to 99.5 % to [0, 1]')}"
    lines["trained on"] = str(training.get("datalist", "not said"))
    lines["result"] = ", ".join(f"{key} {shown(value)}" for key, value in result.items()) or "not said"
    lines["result"] += " (the network before training: nothing is learned yet)" if weights.untrained else ""
    lines["versions"] = ", ".join(f"{k} {v}" for k, v in weights.description.get("versions", {}).items()) or "not said"
    return table(lines)


def shown(value: Any) -> str:
    """A number with four digits, anything else as it is."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def table(lines: Mapping[str, str]) -> str:
    """Names and values, one line each."""
    return "\n".join(f"{name:15} {value}" for name, value in lines.items())
