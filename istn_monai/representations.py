"""What is registered in the place of an ITN's representation, as settings say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

ITN = "itn"
SOURCES = (ITN, "image", "labels", "file", "mind")
NETWORKS = ("torchscript", "export", "bundle")  #: of other people, ``kind:PATH``
FROZEN = ("image", "mind", "torchscript", "export")  #: that a network can be trained on, see FrozenITN
ACTIVATIONS = ("none", "softmax", "sigmoid")
NORMALIZATIONS = ("range", "zscore", "none")
#: what is said of a network's input; a bundle says it itself
OF_NETWORKS = ("spacing", "normalization", "roi_size")
EXAMPLE = "\"{'source':'torchscript:net.ts','channels':[1,2]}\""


@dataclass(frozen=True)
class Representation:
    """Which maps are registered, and how they are made.

    Attributes:
        source: "itn", the network's own; "image", intensities; "labels", the label maps of both images; "file", maps
            that are given for both (``moving_maps``, ``fixed_maps``); "mind", :func:`istn_monai.mind.mind_ssc` of
            radius 1 and dilation 2; or a network of somebody else: "torchscript:PATH", "export:PATH"
            (``torch.export``), "bundle:FOLDER" (a MONAI bundle).
        channels: of the maps, those that are taken, from 0 on; None for all.
        weights: one for each channel that is taken, by which its squared difference counts; None for equal ones.
        spacing: voxel size in mm on which a network sees each image, on a grid along the image's own axes; None is the
            registration grid.
        normalization: of the images that a network sees: "range" (0.5 to 99.5 % to [0, 1]), "zscore" or "none".
        roi_size: of the windows in which a network sees an image, see MONAI's ``SlidingWindowInferer``; None for all
            at once.
        activation: of a network's output: "softmax", "sigmoid" or "none".

    Raises:
        ValueError: naming the entry, what it takes and what came.

    Examples:
        >>> Representation.of("mind").source
        'mind'
        >>> Representation.of({"source": "file", "channels": [1, 2]}).channels
        (1, 2)
    """

    source: str = ITN
    channels: Sequence[int] | None = None
    weights: Sequence[float] | None = None
    spacing: float | Sequence[float] | None = None
    normalization: str = "range"
    roi_size: Sequence[int] | None = None
    activation: str = "none"

    def __post_init__(self) -> None:
        check_source(self.source)
        check_one_of("activation", self.activation, ACTIVATIONS)
        check_one_of("normalization", self.normalization, NORMALIZATIONS)
        for name, least in (("channels", 0), ("roi_size", 1)):
            object.__setattr__(self, name, whole_numbers(name, getattr(self, name), least))
        object.__setattr__(self, "weights", above_0("weights", self.weights))
        if isinstance(self.spacing, (int, float)) and not isinstance(self.spacing, bool):
            object.__setattr__(self, "spacing", above_0("spacing", [self.spacing])[0])  # type: ignore[index]
        else:
            object.__setattr__(self, "spacing", above_0("spacing", self.spacing))
        self.check_together()

    def check_together(self) -> None:
        """ValueError for entries that contradict each other, or that nothing reads."""
        read = {"source"}
        if not self.is_itn:
            read |= {"channels", "weights"}
        if self.is_network:
            read |= {"activation"} if self.kind == "bundle" else {"activation", *OF_NETWORKS}
        idle = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if idle := [name for name in idle if name not in read]:
            raise ValueError(f"representation: {idle[0]} counts for nothing with source {self.source}: leave it out")
        if self.channels is not None and self.weights is not None and len(self.channels) != len(self.weights):
            raise ValueError(
                f"representation: weights must have one number for each of the channels {self.channels}, got "
                f"{len(self.weights)}"
            )

    @property
    def is_itn(self) -> bool:
        """Whether the network's own ITN makes it."""
        return self.source == ITN

    @property
    def kind(self) -> str:
        """The source, without a path."""
        return self.source.partition(":")[0]

    @property
    def path(self) -> str:
        """Of a network; empty for none."""
        return self.source.partition(":")[2]

    @property
    def is_network(self) -> bool:
        """Whether a network of somebody else makes it."""
        return self.kind in NETWORKS

    @classmethod
    def of(cls, value: Any) -> Representation:
        """A source by its name, a mapping of the attributes, or what is one already.

        Raises:
            ValueError: see the class.
        """
        if isinstance(value, cls):
            return value
        if value is None or isinstance(value, str):
            return cls(ITN if value is None else value)
        known = [field.name for field in fields(cls)]
        if not isinstance(value, Mapping) or "source" not in value or set(value) - set(known):
            raise ValueError(
                f"representation must be one of {names()}, or a mapping of {', '.join(known)}, such as {EXAMPLE}, got "
                f"{value!r}"
            )
        return cls(**value)


def names() -> str:
    """The sources that there are, in words."""
    return ", ".join([*SOURCES, *(f"{kind}:PATH" for kind in NETWORKS)])


def check_source(source: Any) -> None:
    """ValueError unless it is the name of a source, a network with its path."""
    kind, colon, path = source.partition(":") if isinstance(source, str) else ("", "", "")
    if not (path.strip() if kind in NETWORKS else kind in SOURCES and not colon):
        raise ValueError(f"representation must be one of {names()}, got {source!r}")


def check_one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless a value is one of these words."""
    if value not in choices:
        raise ValueError(f"representation: {name} must be one of {', '.join(choices)}, got {value!r}")


def whole_numbers(name: str, values: Any, least: int) -> tuple[int, ...] | None:
    """A list of whole numbers, or None."""
    if values is None:
        return None
    fits = isinstance(values, (list, tuple)) and values and all(type(n) is int and n >= least for n in values)
    if not fits or (name == "channels" and len(set(values)) < len(values)):
        raise ValueError(f"representation: {name} must be a list of whole numbers of at least {least}, got {values!r}")
    return tuple(values)


def above_0(name: str, values: Any) -> tuple[float, ...] | None:
    """A list of numbers above 0, or None."""
    if values is None:
        return None
    listed = isinstance(values, (list, tuple)) and len(values) > 0
    if not listed or not all(type(n) in (int, float) and 0 < n < math.inf for n in values):
        raise ValueError(f"representation: {name} must be numbers above 0, got {values!r}")
    return tuple(float(n) for n in values)
