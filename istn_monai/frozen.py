"""A representation that is not learned, in the place of an ITN: a spatial transformer network is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from istn_monai.foreign_networks import ACTIVATIONS, check_there, checked_maps, network_of
from istn_monai.io.hashes import file_hash
from istn_monai.mind import REGISTERED, mind_ssc
from istn_monai.representations import FROZEN, Representation


class FrozenITN(nn.Module):
    """Images to a representation that has no weights of this package, and no gradient.

    With loss "s" a spatial transformer network learns from it by structures, with "u" by the representation itself.

    Args:
        representation: "image", "mind", "torchscript:PATH" or "export:PATH", or a mapping with channels and activation,
            see :class:`istn_monai.representations.Representation`. A network of somebody else sees the registration
            grid, intensities in [0, 1].
        sha256: of the network's file, with which a spatial transformer network was trained; None is not compared.

    Raises:
        ValueError: if the representation does not come from the registration grid alone, or the file is another one.

    Examples:
        >>> FrozenITN("mind")(torch.rand(2, 1, 24, 20)).shape
        torch.Size([2, 4, 24, 20])
    """

    def __init__(self, representation: Any, sha256: str | None = None) -> None:
        super().__init__()
        found = Representation.of(representation)
        alone = Representation(found.source, channels=found.channels, activation=found.activation)
        if found.kind not in FROZEN or found != alone:
            raise ValueError(
                f"FrozenITN represents images on the registration grid by one of {', '.join(FROZEN)}, with channels "
                f"and activation, got {representation!r}"
            )
        check_there(found)
        if sha256 is not None and file_hash(found.path) != sha256:
            raise ValueError(
                f"representation {found.source} is another file than the one in training, of SHA-256 {sha256}: put "
                "that one in its place, or train again"
            )
        self.representation = found

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, *S)`` to ``(B, K, *S)``."""
        with torch.no_grad():
            maps = self.maps(images)
        return maps if self.representation.channels is None else maps[:, list(self.representation.channels)]

    def maps(self, images: Tensor) -> Tensor:
        """All channels."""
        if self.representation.kind == "image":
            return images
        if self.representation.kind == "mind":
            return mind_ssc(images, *REGISTERED)
        network = network_of(self.representation, images.device)
        found = checked_maps(network(images), images, f"representation {self.representation.source}")
        return ACTIVATIONS[self.representation.activation](found)

    def out_channels(self, in_channels: int, spatial_size: Sequence[int]) -> int:
        """How many channels it makes of images on this grid."""
        return int(self(torch.zeros(1, in_channels, *spatial_size)).shape[1])
