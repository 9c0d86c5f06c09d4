"""Definitions of networks as MONAI's JSON: by name, and what of them may stand in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pydoc import locate
from typing import Any

from monai.networks import blocks, nets
from torch import nn

from istn_monai.io.hashes import file_hash
from istn_monai.io.paths import absolute
from istn_monai.representations import FROZEN as FROZEN_SOURCES
from istn_monai.representations import Representation

IDENTITY, FROZEN = "istn_monai.stn.IdentitySTN", "istn_monai.FrozenITN"
TRANSFORMATION_ID = "@transformation_def"
#: packages whose networks a checkpoint may name
TRUSTED = ("istn_monai.", "monai.networks.", "torch.nn.")
#: definitions of STNs by name
STNS = {"identity": {"_target_": IDENTITY, "transformation": TRANSFORMATION_ID}}
#: likewise of ITNs
ITNS = {
    "segmentation": {
        "_target_": "istn_monai.SegmentationITN",
        "spatial_dims": "@spatial_dims",
        "in_channels": "@in_channels",
        "out_channels": "@soi_channels",
    }
}


def named(setting: str, name: str) -> Any:
    """The definition of a network by its name, of an ITN that does not learn by what it represents; else the name.

    Args:
        setting: "itn_def" or "stn_def".
        name: of the network.
    """
    if setting == "stn_def":
        return STNS.get(name, name)
    if name.partition(":")[0] in FROZEN_SOURCES:
        return {"_target_": FROZEN, "representation": name}
    return ITNS.get(name, name)


def name_of(definition: Mapping[str, Any]) -> str:
    """The name of a resolved definition: a word that :func:`named` knows, what a frozen ITN represents, or the target.

    Examples:
        >>> name_of({"_target_": "istn_monai.stn.IdentitySTN"}), name_of({"_target_": "AttentionUnet", "channels": [8]})
        ('identity', 'AttentionUnet')
    """
    target = definition["_target_"]
    if target == FROZEN:
        return str(definition.get("representation"))
    words = {known["_target_"]: word for word, known in (STNS | ITNS).items()}
    return words.get(target, str(target))


def own_networks(settings: Any) -> dict[str, str]:
    """The names of an ITN and an STN that are not the defaults, by their settings.

    Args:
        settings: with resolved ``itn_def`` and ``stn_def``.
    """
    definitions = {name: getattr(settings, name) for name in ("itn_def", "stn_def")}
    return {name: name_of(definition) for name, definition in definitions.items() if definition}


def check_disjoint(soi_labels: Sequence[Sequence[int]] | None, soi_points: Any) -> None:
    """ValueError unless structures exclude each other, as probabilities that sum to 1 say."""
    labels = [label for group in soi_labels or [] for label in group]
    if not labels or soi_points or len(set(labels)) < len(labels):
        raise ValueError(
            f"itn_def segmentation is for label groups that do not overlap, got soi_labels {soi_labels} and soi_points "
            f"{soi_points}: leave itn_def out, or give soi_labels that share no value"
        )


def check_frozen(loss: str) -> None:
    """ValueError for a loss that would teach an ITN which does not learn."""
    if loss not in ("u", "s"):
        raise ValueError(
            f"loss {loss!r} teaches the ITN, and itn_def is {FROZEN}, which does not learn: choose loss s, by "
            "structures, or u, by the representation itself"
        )


def with_hash(definition: Any) -> Any:
    """The definition of a frozen ITN with the hash of the network's file, so that no other takes its place."""
    if not isinstance(definition, Mapping) or definition.get("_target_") != FROZEN or definition.get("sha256"):
        return definition
    given = definition.get("representation")
    representation = Representation.of(given)
    if not representation.is_network:
        return definition
    source = f"{representation.kind}:{absolute(representation.path)}"  # wherever the checkpoint is used
    given = {**given, "source": source} if isinstance(given, Mapping) else source
    return {**definition, "representation": given, "sha256": file_hash(representation.path)}


def check_definition(definition: Any, name: str) -> None:
    """ValueError if JSON from a file could run code: an expression, or anything but a network of a known package."""
    if isinstance(definition, Mapping):
        if "_target_" in definition:
            check_target(definition["_target_"], name)
            check_hashed(definition, name)
        others = [key for key in definition if str(key).startswith("_") and key != "_target_"]
        if others:
            raise ValueError(f"{name} of the checkpoint has keys that are not used there: {others}")
        definition = list(definition.values())
    if isinstance(definition, list):
        for item in definition:
            check_definition(item, name)
    elif isinstance(definition, str) and definition[:1] in ("$", "%", "@") and definition != TRANSFORMATION_ID:
        raise ValueError(f"{name} of the checkpoint has an expression, {definition!r}, which is not run")


def check_hashed(definition: Mapping[str, Any], name: str) -> None:
    """ValueError if a file's frozen ITN names a network of somebody else, whose code would run, without its hash."""
    frozen = str(definition["_target_"]).rpartition(".")[2] == FROZEN.rpartition(".")[2]
    if frozen and Representation.of(definition.get("representation")).is_network and not definition.get("sha256"):
        raise ValueError(
            f"{name} of the checkpoint names a network's file, {definition['representation']!r}, without its sha256: "
            f"give {name} yourself if you trust it"
        )


def check_target(target: Any, name: str) -> None:
    """ValueError unless a name is that of a ``torch.nn.Module`` that MONAI, torch or this package defines.

    What is found counts, not how it is spelled: ``torch.nn.functional.torch.os.system`` begins well.
    """
    found = None
    if isinstance(target, str):
        known = target.startswith(TRUSTED)
        found = locate(target) if known else getattr(nets, target, None) or getattr(blocks, target, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(TRUSTED)):
        raise ValueError(
            f"{name} of the checkpoint names {target!r}, which is not a network of MONAI, torch.nn or istn_monai: give "
            f"{name} yourself if you trust it"
        )
