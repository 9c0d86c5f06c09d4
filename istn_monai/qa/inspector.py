"""From a registered pair to its verdict, its QA page and its viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import nn

from istn_monai.qa.measures import measure, registered_pair
from istn_monai.qa.rules import Verdict, traffic_light


class PairInspector:
    """Measures, judges and draws registered pairs.

    Args:
        network: a :class:`istn_monai.networks.DisplacementNetwork` (or ISTN), with which they were registered.
        soi_labels: groups of label values that it was trained on; None for real-valued maps.
    """

    def __init__(self, network: nn.Module, soi_labels: Sequence[Sequence[int]] | None) -> None:
        try:  # here, so that all else works without matplotlib
            from istn_monai.qa.page import page_picture
            from istn_monai.qa.sprites import pair_view
        except ImportError as error:
            raise ImportError(
                f"the QA page needs matplotlib ({error}): install it, or set qa to False (--qa False)"
            ) from None  # the cause alone, which the command line shows, would not say what to do
        self.network = network
        self.soi_labels = soi_labels
        self.draw, self.view = page_picture, pair_view

    def __call__(self, pair: Mapping[str, Any]) -> tuple[Verdict, Image.Image, bytes]:
        """Of a pair as inference leaves it, see :func:`istn_monai.qa.measures.registered_pair`: the verdict, the page,
        and what the viewer shows, see :func:`istn_monai.qa.viewer.viewer`."""
        registered = registered_pair(pair, self.network, self.soi_labels)
        verdict = traffic_light(measure(registered))
        return verdict, self.draw(registered, verdict), self.view(registered, verdict)
