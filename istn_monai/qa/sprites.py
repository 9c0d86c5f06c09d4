"""A registered pair as its viewer reads it: gray pictures, outlines and geometry as one JSON, within 2 MB.

A volume is one picture, a mosaic of its slices along the last axis; the viewer cuts all three planes out of it.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from istn_monai.qa.measures import RegisteredPair
from istn_monai.qa.panels import ENDS, planes_of
from istn_monai.qa.rules import Verdict

LIMIT = 1_950_000  # bytes of a pair; the rest of 2 MB is left for the page around it
VOXELS = 1_500_000  # of a volume, at most: a canvas of this size is allowed everywhere
SHRINK = 0.7  # of the voxels, while a pair is beyond the limit
QUALITY = 85  # of JPEG: its errors are a few of 256 grays
BITS = 8  # channels whose outlines are told apart; the ninth has the bit of the first
BEFORE, ONE_PASS, REFINED = "before", "one pass", "refined"


def pair_view(pair: RegisteredPair, verdict: Verdict) -> bytes:
    """What the viewer shows of a pair, as JSON in UTF-8.

    Args:
        pair: on its registration grid; one with more than ``VOXELS`` is area-averaged.
        verdict: on it.
    """
    images, representations = volumes_of(pair)
    shared = {"names": list(pair.names), "status": verdict.status, "reasons": verdict.reasons}
    full = pair.ddf.shape[1:]
    voxels = float(min(VOXELS, math.prod(full)))
    while True:
        size = shown_size(full, voxels)
        content = shared | geometry(pair, size)
        content["images"] = {name: image_uri(coarser(volume, size)) for name, volume in images.items()}
        content["outlines"] = {name: outline_uri(coarser(volume, size)) for name, volume in representations.items()}
        written = json.dumps(content).encode()
        if len(written) <= LIMIT or max(size) == 1:
            return written
        voxels *= SHRINK


def geometry(pair: RegisteredPair, size: Sequence[int]) -> dict[str, Any]:
    """Where the voxels of ``size`` lie, on the grid of the pair, and the planes that are shown first."""
    planes, full = planes_of(pair), pair.ddf.shape[1:]
    first = [next((i for plane in planes if isinstance(i := plane.index[axis], int)), 0) for axis in range(len(full))]
    return {
        "size": list(size),
        "full": list(full),
        "spacing": [step * n / m for step, n, m in zip(pair.spacing, full, size, strict=True)],
        "at": [min(m - 1, int((i + 0.5) * m / n)) for i, n, m in zip(first, full, size, strict=True)],
        "ends": ENDS[: len(size)],
        "planes": [[plane.across, plane.up] for plane in planes],
        "columns": columns_of(size),
    }


def volumes_of(pair: RegisteredPair) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Images and representations ``(C, *S)``: ``fixed``, and the moving side at each stage; the last one is the
    result."""
    fields = {ONE_PASS: pair.one_pass} if pair.guessed else {}
    fields |= {REFINED: pair.ddf} if pair.refinement else {}
    images = {"fixed": pair.fixed, BEFORE: pair.moving}
    representations = {"fixed": pair.fixed_representation, BEFORE: pair.moving_representation}
    for stage, ddf in fields.items():
        images[stage] = pair.warped(pair.moving, ddf)
        representations[stage] = pair.warped(pair.moving_representation, ddf)
    return images, representations


def shown_size(size: Sequence[int], voxels: float) -> tuple[int, ...]:
    """The size of a grid that covers another one with so many voxels at most."""
    factor = min(1.0, (voxels / math.prod(size)) ** (1 / len(size)))
    return tuple(max(1, math.floor(n * factor + 1e-9)) for n in size)


def coarser(volume: Tensor, size: Sequence[int]) -> Tensor:
    """``(C, *S)`` area-averaged onto a coarser grid of the same extent."""
    if tuple(volume.shape[1:]) == tuple(size):
        return volume
    return interpolate(volume[None].float(), tuple(size), mode="area")[0]


def gray(volume: Tensor) -> np.ndarray:
    """``(*S)`` in [0, 1] as bytes."""
    return (volume.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def channel_bits(representation: Tensor) -> np.ndarray:
    """``(K, *S)`` as bytes ``(*S)``: bit k is set where channel k is above half of its full value."""
    bits = torch.zeros(representation.shape[1:], dtype=torch.uint8)
    for number, channel in enumerate(representation):
        bits |= (channel > 0.5).to(torch.uint8) << (number % BITS)
    return bits.numpy()


def columns_of(size: Sequence[int]) -> int:
    """How many slices stand beside each other, so that the mosaic is about square."""
    slices = size[2] if len(size) > 2 else 1
    return min(slices, math.ceil(math.sqrt(slices * size[1] / size[0])))


def mosaic(volume: np.ndarray) -> np.ndarray:
    """``(X, Y, Z)`` or ``(X, Y)`` as a picture of its slices along Z, in rows; X goes to the right and Y down."""
    volume = volume.reshape(*volume.shape[:2], -1)
    width, height, slices = volume.shape
    columns = columns_of(volume.shape)
    rows = math.ceil(slices / columns)
    padded = np.pad(volume, ((0, 0), (0, 0), (0, rows * columns - slices)))
    return padded.reshape(width, height, rows, columns).transpose(2, 1, 3, 0).reshape(rows * height, columns * width)


def uri(picture: np.ndarray, kind: str, **options: Any) -> str:
    """A gray picture as a data URI."""
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, format=kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def image_uri(volume: Tensor) -> str:
    """The first channel of an image ``(C, *S)``."""
    return uri(mosaic(gray(volume[0])), "jpeg", quality=QUALITY, optimize=True)


def outline_uri(representation: Tensor) -> str:
    """A representation ``(K, *S)``, without loss."""
    return uri(mosaic(channel_bits(representation)), "png", optimize=True)
