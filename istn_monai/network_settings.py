"""The settings of a network: what it takes to build it, and what goes with its weights into a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from istn_monai.alignment import check_start
from istn_monai.geometry.affine import MAX_TRANSLATION
from istn_monai.geometry.composite import spatial_transformation
from istn_monai.geometry.names import GLOBAL, kinds_of
from istn_monai.geometry.transformation import Transformation, checked_size, per_axis
from istn_monai.kinds import says_none
from istn_monai.layers import SoftClamp, steady_convolutions, with_central_statistics
from istn_monai.levels import Parts
from istn_monai.linear_registration import SIMILARITIES
from istn_monai.losses import VARIANTS
from istn_monai.network_definitions import (
    FROZEN,
    IDENTITY,
    ITNS,
    TRANSFORMATION_ID,
    check_definition,
    check_disjoint,
    check_frozen,
    named,
    with_hash,
)
from istn_monai.networks import ISTN, UNET_DIVISOR, BackboneITN, DisplacementNetwork, unet
from istn_monai.stn import PyramidSTN
from istn_monai.transforms.checks import check_choice, check_soi_labels
from istn_monai.transforms.landmarks import check_soi_points

#: what may differ at inference: the weights do not depend on it
SAME_PARAMETERS = {"bspline", "svf"}  # either may be refined from what the other's network predicts
FREE = ("initial_alignment", "initial_similarity")
#: likewise where no network has learned anything
FREE_OF_NETWORK = (
    "transformation", "spacing", "control_spacing", "max_displacement", "affine_bounds", "soi_labels",
)  # fmt: skip
UNET_CHANNELS = (8, 16, 32, 64, 128, 8)


def none_or(value: Any) -> Any:
    """None for the words "none" and "null"; any other value as it is."""
    return None if says_none(value) else value


@dataclass(frozen=True)
class NetworkSettings:
    """Settings that check themselves, build the network, and describe it in its checkpoint.

    The words "none" and "null" become None, tuples become lists, so that settings compare equal however they were
    typed.

    Attributes:
        loss: "u", "s", "e" or "i". With "u" and "s" there is no ITN; the STN sees the images.
        transformation: "rigid", "affine", "bspline", "svf", or several joined by ``+``, see
            :func:`istn_monai.geometry.composite.spatial_transformation`.
        control_spacing: of "bspline" and "svf", in mm, one for each level, coarse to fine.
        max_displacement: likewise: bound of a level as a fraction of its control spacing; None for no bound.
        affine_bounds: of "rigid" and "affine" by name, see :func:`istn_monai.geometry.names.bounds_of`; None for the
            defaults.
        spatial_size: voxels of the registration grid in training. Other sizes work at inference.
        spacing: voxel size of the registration grid in mm.
        soi_labels: groups of label values, one for each SoI channel; None for real-valued maps; [] for landmarks alone.
        soi_points: groups of landmark names, one for each further SoI channel; None for none.
        in_channels: channels of an image.
        initial_alignment: how moving images are brought to fixed ones before the network, see
            :func:`istn_monai.alignment.initial_alignment`; or the name of a transform's file.
        initial_similarity: of images, where they are registered for it: a name of
            :data:`istn_monai.linear_registration.SIMILARITIES`.
        itn_def: MONAI's JSON of another ITN, ``{"_target_": ..., ...}``; None for the default, a BasicUNet; or
            "segmentation", :class:`istn_monai.SegmentationITN`, for label groups that do not overlap; or, for losses
            "u" and "s", what does not learn, see :class:`istn_monai.frozen.FrozenITN`: "image", "mind",
            "torchscript:PATH", "export:PATH". It may
            refer to ``@spatial_dims``, ``@in_channels`` and ``@soi_channels``.
        stn_def: likewise of another STN than :class:`istn_monai.PyramidSTN`; may refer to ``@spatial_dims``,
            ``@stn_channels``, ``@transformation`` and ``@transformation_def``; or "identity", no network: the ITN
            learns by itself, and a refinement finds the transformation.

    Raises:
        ValueError: naming the setting, what was expected and what came.

    Examples:
        >>> settings = NetworkSettings(spatial_size=(16, 24, 16), control_spacing=8, soi_labels=[[1, 2]])
        >>> settings.soi_channels, settings.network().istn.transformation.spatial_size
        (1, (16, 24, 16))
    """

    loss: str = "i"
    transformation: str = "bspline"
    control_spacing: float | Sequence[float] = (24, 12, 6)
    max_displacement: float | None = 0.4
    affine_bounds: Mapping[str, float] | None = None
    spatial_size: Sequence[int] = (48, 64, 48)
    spacing: float | Sequence[float] = 1
    soi_labels: Sequence[Sequence[int]] | None = ((1,), (2,))
    soi_points: Sequence[Sequence[str]] | None = None
    in_channels: int = 1
    initial_alignment: str = "center"
    initial_similarity: str = "mse"
    itn_def: Mapping[str, Any] | None = None
    stn_def: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain_json(none_or(getattr(self, field.name))))
        check_choice("loss", self.loss, VARIANTS)
        object.__setattr__(self, "transformation", "+".join(kinds_of(self.transformation)))
        check_start(self.initial_alignment)
        check_choice("initial_similarity", self.initial_similarity, tuple(SIMILARITIES))
        if self.max_displacement is not None and not isinstance(self.max_displacement, (int, float)):
            raise ValueError(f"max_displacement must be a number above 0 or None, got {self.max_displacement!r}")
        check_soi_labels(self.soi_labels, self.soi_points)
        check_soi_points(self.soi_points)
        checked_size(self.spatial_size)
        per_axis("spacing", self.spacing, self.spatial_dims)
        if not isinstance(self.in_channels, int) or isinstance(self.in_channels, bool) or self.in_channels < 1:
            raise ValueError(f"in_channels must be a whole number of at least 1, got {self.in_channels!r}")
        self.spatial_transformation()  # checks what is its own
        if self.itn_def == "segmentation":
            check_disjoint(self.soi_labels, self.soi_points)
        object.__setattr__(self, "itn_def", self.resolved("itn_def", self.itn_def))
        if self.frozen:
            check_frozen(self.loss)
        object.__setattr__(self, "stn_def", self.resolved("stn_def", self.stn_def))

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.spatial_size)

    @property
    def segments(self) -> bool:
        """Whether the ITN's output are probabilities of structures that do not overlap."""
        return self.has_itn and (self.itn_def or {}).get("_target_") == ITNS["segmentation"]["_target_"]

    @property
    def starts_at_identity(self) -> bool:
        """Whether there is no spatial transformer network, only where a refinement begins."""
        return (self.stn_def or {}).get("_target_") == IDENTITY

    @property
    def network_free(self) -> bool:
        """Whether nothing has learned: images are registered by a refinement alone, on a grid of any spacing."""
        return self.starts_at_identity and not self.has_itn

    @property
    def has_itn(self) -> bool:
        """Whether there is an ITN: STN-u and STN-s are trained without one, or with a frozen one."""
        return self.loss not in ("u", "s") or self.frozen

    @property
    def frozen(self) -> bool:
        """Whether the representation is not learned, see :class:`istn_monai.frozen.FrozenITN`."""
        return (self.itn_def or {}).get("_target_") == FROZEN

    @property
    def soi_channels(self) -> int:
        """K: how many SoI channels labels and landmarks make, in this order."""
        return (1 if self.soi_labels is None else len(self.soi_labels)) + len(self.soi_points or ())

    @property
    def stn_channels(self) -> int:
        """Channels that the STN sees, moving and fixed together."""
        if self.frozen:
            itn = self.built(self.itn_def or {}, self.spatial_transformation())
            return 2 * itn.out_channels(self.in_channels, self.spatial_size)
        return 2 * (self.soi_channels if self.has_itn else self.in_channels)

    @property
    def mask_labels(self) -> Sequence[Sequence[int]] | None:
        """The label groups if the representations are masks of them; None if they are real-valued maps."""
        return None if self.soi_points else self.soi_labels

    @property
    def parts(self) -> Parts:
        """How many components the transformation has, linear and local ones."""
        kinds = kinds_of(self.transformation)
        lattices = len(self.control_spacing) if isinstance(self.control_spacing, list) else 1
        local = {"bspline": lattices, "svf": 1}
        return Parts(sum(kind in GLOBAL for kind in kinds), sum(local.get(kind, 0) for kind in kinds))

    def spatial_transformation(self) -> Transformation:
        """The transformation on the grid of training."""
        return spatial_transformation(
            self.transformation, self.spatial_size, self.spacing, self.control_spacing, self.max_displacement,
            self.affine_bounds,
        )  # fmt: skip

    def network(self, itn_dtype: torch.dtype | None = None) -> DisplacementNetwork:
        """The network with random weights, which depend on nothing else than these settings.

        ``itn_dtype``: see :class:`ISTN`.
        """
        transformation = self.spatial_transformation()
        dims = self.spatial_dims
        itn = self.built(self.itn_def, transformation) if self.has_itn and self.itn_def else None
        if self.has_itn and itn is None:
            backbone = unet(dims, self.in_channels, self.soi_channels, UNET_CHANNELS)
            itn = BackboneITN(backbone, UNET_DIVISOR, SoftClamp())
        if itn is not None:
            itn = with_central_statistics(itn, self.in_channels, self.spatial_size)
        stn = self.built(self.stn_def, transformation) if self.stn_def else None
        stn = PyramidSTN(dims, self.stn_channels, transformation) if stn is None else stn
        stn = with_central_statistics(stn, self.stn_channels, self.spatial_size)
        return DisplacementNetwork(ISTN(itn, stn, transformation, itn_dtype), self.in_channels, self)

    def built(self, definition: Mapping[str, Any], transformation: Transformation) -> nn.Module:
        """The network that a resolved definition describes."""
        config = {"definition": definition, TRANSFORMATION_ID[1:]: transformation}
        try:
            network = ConfigParser(config).get_parsed_content("definition")
        except Exception as error:
            cause = error.__cause__ or error
            raise ValueError(f"itn_def or stn_def {definition!r} cannot be built: {cause}") from error
        if not isinstance(network, nn.Module):
            raise ValueError(f"itn_def and stn_def must describe a torch.nn.Module, got {definition!r}")
        steady_convolutions(network)
        return network

    def resolved(self, name: str, definition: Any) -> Any:
        """A definition in which references and expressions have become numbers and words."""
        if definition is None:
            return None
        if isinstance(definition, str):
            definition = named(name, definition)
        if not isinstance(definition, Mapping) or "_target_" not in definition:
            raise ValueError(f'{name} must be JSON as in MONAI\'s configs, {{"_target_": ...}}, got {definition!r}')
        known = ("spatial_dims", "in_channels", "soi_channels", *(["stn_channels"] if name == "stn_def" else []))
        ids = {key: getattr(self, key) for key in known}
        ids |= {"transformation": self.transformation, "spatial_size": self.spatial_size, "spacing": self.spacing}
        text = json.dumps(definition).replace('"_target_"', '"target"').replace(TRANSFORMATION_ID, "<transformation>")
        content = ConfigParser({**ids, "definition": json.loads(text)}).get_parsed_content("definition")
        text = json.dumps(content).replace('"target"', '"_target_"').replace("<transformation>", TRANSFORMATION_ID)
        return with_hash(json.loads(text))

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    @classmethod
    def of_state_dict(cls, state: Mapping[str, Any]) -> NetworkSettings:
        """What :meth:`state_dict` gave, from a file: names are checked, no definition may run code, and
        a frozen ITN's file counts with the hash that it had in training alone.

        Raises:
            ValueError: for an unknown setting, or a definition that is not a network of MONAI, torch or this package.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(state) - known)
        if unknown:
            raise ValueError(
                f"unknown settings {unknown}: was it written by a newer version? This one knows {sorted(known)}"
            )
        for name in ("itn_def", "stn_def"):
            check_definition(state.get(name), name)
        return cls(**state)

    def overridden(self, given: Mapping[str, Any], file: str) -> NetworkSettings:
        """These settings with those that a user gave at inference.

        Without a network, the transformation, lengths and bounds are free, and control spacings and the bound of
        translations follow the spacing: what is registered depends on voxels, not on millimeters.

        Args:
            given: settings by name; what is None was not given.
            file: whose settings these are, for the error.

        Raises:
            ValueError: if one contradicts the weights, naming both values.
        """
        wanted = {name: value for name, value in given.items() if value is not None}
        if self.network_free and "spacing" in wanted:
            wanted = self.lengths(wanted["spacing"], wanted.get("transformation", self.transformation)) | wanted
        other = replace(self, **wanted)
        same = {self.transformation, other.transformation} == SAME_PARAMETERS
        free = [*FREE, *(["transformation"] if same else []), *(FREE_OF_NETWORK if self.network_free else [])]
        wrong = [name for name in wanted if name not in free and not self.agrees(other, name)]
        if wrong:
            what = "; ".join(f"{name} {getattr(self, name)!r} in training, {wanted[name]!r} now" for name in wrong)
            other_way = ", or take --model intensities" if set(wrong) <= set(FREE_OF_NETWORK) else ""
            raise ValueError(f"{file} was trained with other settings ({what}): leave them out{other_way}")
        if self.network_free:
            check_counts(given, other.transformation)
        return replace(self, **{name: value for name, value in wanted.items() if name in free})

    def coarser(self, spacing: float | Sequence[float]) -> float:
        """By what factor another spacing of the grid is larger, by the smallest voxel size of both."""
        return finest(spacing) / finest(self.spacing)

    def lengths(self, spacing: float | Sequence[float], transformation: str) -> dict[str, Any]:
        """What else is a length, for another spacing of the grid."""
        factor = self.coarser(spacing)
        found: dict[str, Any] = {"control_spacing": scaled(self.control_spacing, factor)}
        if set(kinds_of(transformation)) & set(GLOBAL):
            bounds = self.affine_bounds or {}
            found["affine_bounds"] = {**bounds, "translation": factor * bounds.get("translation", MAX_TRANSLATION)}
        return found

    def agrees(self, other: NetworkSettings, name: str) -> bool:
        """Whether a setting means the same in both."""
        mine, theirs = getattr(self, name), getattr(other, name)
        if name == "loss":  # u and s, e and i, have one architecture each
            return self.has_itn == other.has_itn
        if name in ("control_spacing", "max_displacement") and self.transformation in GLOBAL:
            return True
        if name == "itn_def" and not self.has_itn and not self.network_free:
            return True
        if name in ("spacing", "control_spacing"):
            return numbers(mine) == numbers(theirs)
        return mine == theirs


def check_counts(given: Mapping[str, Any], transformation: str) -> None:
    """ValueError if lengths of lattices are given, and a transformation has none."""
    for name in ("control_spacing", "max_displacement"):
        if given.get(name) is not None and all(kind in GLOBAL for kind in kinds_of(transformation)):
            raise ValueError(f"{name} {given[name]!r} does not count in transformation {transformation}: leave it out")


def finest(spacing: float | Sequence[float]) -> float:
    """The smallest voxel size of a grid."""
    return float(min(spacing)) if isinstance(spacing, Sequence) else float(spacing)


def scaled(lengths: Any, factor: float) -> Any:
    """A number, or numbers in lists, times a factor."""
    return [scaled(each, factor) for each in lengths] if isinstance(lengths, list) else factor * lengths


def numbers(value: Any) -> Any:
    """A number, or a list of one number several times, as the number."""
    values = [numbers(item) for item in value] if isinstance(value, list) else [float(value)]
    return values[0] if all(item == values[0] for item in values) else values


def plain_json(value: Any) -> Any:
    """Through JSON, so that tuples, lists and MONAI's own containers compare equal."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a network's settings must be JSON (numbers, words, lists), got {value!r}") from error
