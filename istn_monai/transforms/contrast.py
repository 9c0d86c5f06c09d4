"""Random contrasts of training images: dictionary transforms for MONAI's ``Compose``.

A network that has seen one contrast knows structures by their brightness. These two take that away, and leave shape:
one maps the intensities of an image by a random curve, the other draws an image from a label map.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor, nn

from istn_monai.geometry.meta import in_place_of, values_of
from istn_monai.geometry.resampling import unit_range
from istn_monai.geometry.sampling import at_least_float32
from istn_monai.transforms.keys import Pair

LLOYD_STEPS = 10


class RandContrastMapd(RandomizableTransform, MapTransform):
    """Random piecewise-linear intensities, which need not rise: bright may become dark, and dark and bright alike.

    The knots lie evenly from 0 to 1 and get random heights; with two knots the map is the identity or its inversion.
    The result is scaled from its 0.5 and 99.5 percentiles to [0, 1], as :class:`istn_monai.NormalizeIntensityRanged`
    scales images before they come to a network. Each channel has a map of its own, keys of one call have the same: for
    a pair whose contrasts shall differ, use it once for each image.

    Args:
        keys: images ``(C, *S)`` in [0, 1].
        prob: probability of a map.
        knots: smallest and largest number of knots.
        keep_zeros: whether regions of 0 stay 0. On a registration grid, that is what lies beyond an image, in any
            contrast; single voxels of 0 are part of it.
        allow_missing_keys: whether a pair may lack some of the keys.

    Raises:
        ValueError: if ``knots`` are not two whole numbers from 2 on.

    Examples:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.linspace(0, 1, 101).view(1, 101, 1))
        >>> mapped = RandContrastMapd("image", prob=1.0, knots=(2, 2)).set_random_state(0)({"image": image})["image"]
        >>> [round(value, 2) for value in mapped[0, [0, 20, 50, 80, 100], 0].tolist()]
        [1.0, 0.8, 0.5, 0.2, 0.0]
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        prob: float = 0.5,
        knots: Sequence[int] = (2, 8),
        keep_zeros: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.knots = checked_range("knots", knots, 2)
        self.keep_zeros = keep_zeros

    def randomize(self, channels: int) -> list[Tensor]:
        """Draws the heights of the knots for each channel, which reach from 0 to 1."""
        super().randomize(None)
        heights = (self.R.uniform(size=self.R.randint(self.knots[0], self.knots[1] + 1)) for _ in range(channels))
        return [(each - each.min()) / (each.max() - each.min()) for each in map(torch.as_tensor, heights)]

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """Each key ``(C, *S)`` to the same in [0, 1]."""
        result = dict(data)
        keys = list(self.key_iterator(data))
        curves = self.randomize(max((len(data[key]) for key in keys), default=0))
        if self._do_transform:
            for key in keys:
                image = at_least_float32(values_of(data[key]))
                mapped = torch.stack([self.mapped(*one) for one in zip(image, curves, strict=False)])
                result[key] = in_place_of(mapped, data[key])
        return result

    def mapped(self, channel: Tensor, heights: Tensor) -> Tensor:
        """A channel by its curve."""
        counted = ~beyond(channel) if self.keep_zeros else torch.ones_like(channel, dtype=torch.bool)
        result = torch.zeros_like(channel)
        if counted.any():
            result[counted] = unit_range(piecewise_linear(channel[counted], heights.to(channel)), 0.5, 99.5)
        return result


class RandImageFromLabelsd(RandomizableTransform, MapTransform):
    """An image drawn from a label map, as SynthSeg does it (Billot et al., 2023): each structure has a random mean and
    noise of its own. What no label covers is filled from the image itself: its intensities fall into a few classes
    (k-means), each of which counts as a structure.

    Shapes stay those of a real image, and nothing else does. Maps between 0 and 1, as labels have them after linear
    resampling, give partial volumes. Regions that are 0 in the image stay 0: they lie beyond it. The drawn image has a
    bias field or blur only if transforms of MONAI follow.

    Args:
        keys: images ``(C, *S)`` to replace; each channel is drawn by itself.
        label_keys: for each image its label map, ``(K, *S)`` in [0, 1], or ``(1, *S)`` of whole numbers, one for each
            structure.
        prob: probability of a drawn image.
        classes: smallest and largest number of classes of what no label covers.
        noise: largest standard deviation within a structure; means lie from 0 to 1.
        allow_missing_keys: whether a pair may lack some of the keys; an image without its label stays as it is.
        channels: how many channels of a label map are structures, the first ones; None for all. Maps of landmarks
            behind them are nothing that an image shows.

    Raises:
        ValueError: if the numbers of keys differ, or ``classes`` are not two whole numbers from 1 on.

    Examples:
        >>> from monai.data import MetaTensor
        >>> image, label = MetaTensor(torch.rand(1, 20, 24) + 0.1), MetaTensor(torch.zeros(1, 20, 24))
        >>> label[0, 5:9, 5:9] = 1
        >>> draw = RandImageFromLabelsd("image", "label", prob=1.0, noise=0.0).set_random_state(0)
        >>> drawn = draw({"image": image, "label": label})["image"]
        >>> drawn.shape, len(drawn[0, 5:9, 5:9].unique())
        (torch.Size([1, 20, 24]), 1)
    """

    def __init__(
        self,
        keys: Sequence[str] | str,
        label_keys: Sequence[str] | str,
        prob: float = 0.5,
        classes: Sequence[int] = (3, 8),
        noise: float = 0.1,
        allow_missing_keys: bool = False,
        channels: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.channels = channels
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)
        if len(self.label_keys) != len(self.keys):
            raise ValueError(f"label_keys must name one label for each of keys {self.keys}, got {self.label_keys}")
        self.classes = checked_range("classes", classes, 1)
        self.noise = noise

    def __call__(self, data: Mapping[Hashable, Any]) -> Pair:
        """Each image ``(C, *S)`` to the same shape, in [0, 1]."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key, label_key in self.key_iterator(data, self.label_keys):
                if label_key in data or not self.allow_missing_keys:
                    image = at_least_float32(values_of(data[key]))
                    label = structures(values_of(data[label_key])[: self.channels]).to(image)
                    drawn = torch.stack([self.drawn(channel, label) for channel in image])
                    result[key] = in_place_of(drawn, data[key])
        return result

    def drawn(self, channel: Tensor, label: Tensor) -> Tensor:
        """An image ``S`` drawn from structures ``(K, *S)``, and from the classes of a channel where there are none."""
        inside = ~beyond(channel)
        rest = (1 - label.sum(0)).clamp(min=0)
        number = self.R.randint(self.classes[0], self.classes[1] + 1)
        free = inside & (rest > 0.5)
        centers = class_centers(channel[free] if free.any() else channel.flatten(), number)
        classes = nearest(channel, centers)
        means, deviations = self.R.uniform(size=(2, len(label) + number))
        fields = [torch.as_tensor(values).to(channel) for values in (means, self.noise * deviations)]
        mean, deviation = (torch.einsum("k,k...->...", own[: len(label)], label) + rest * own[len(label) :][classes]
                           for own in fields)  # fmt: skip
        noise = torch.as_tensor(self.R.normal(size=channel.shape)).to(channel)
        return torch.where(inside, (mean + deviation * noise).clamp(0, 1), 0)


def checked_range(name: str, numbers: Sequence[int], least: int) -> tuple[int, int]:
    """Two whole numbers, the smaller one first, or a ValueError that names them."""
    whole = [number for number in numbers if isinstance(number, int) and number >= least]
    if len(numbers) != 2 or len(whole) != 2 or whole[0] > whole[1]:
        raise ValueError(f"{name} must be two whole numbers from {least} on, the smaller one first, got {numbers!r}")
    return whole[0], whole[1]


def beyond(channel: Tensor) -> Tensor:
    """Where a channel is 0 in a whole neighborhood, of 5 x 5 or 3 x 3 x 3 voxels: what is smaller is dark, not empty.

    Examples:
        >>> beyond(torch.tensor([[0, 0, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1]])).int()
        tensor([[1, 1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0, 0]], dtype=torch.int32)
    """
    pool, size = {2: (nn.functional.max_pool2d, 5), 3: (nn.functional.max_pool3d, 3)}[channel.ndim]
    content = (channel != 0).float()[None, None]
    return pool(1 - pool(content, size, 1, size // 2), size, 1, size // 2)[0, 0] > 0


def piecewise_linear(values: Tensor, heights: Tensor) -> Tensor:
    """Values in [0, 1] by a curve that is linear between knots, which lie evenly from 0 to 1.

    Examples:
        >>> piecewise_linear(torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.tensor([0.0, 1.0, 0.2]))
        tensor([0.0000, 0.5000, 1.0000, 0.2000])
    """
    place = values.clamp(0, 1) * (len(heights) - 1)
    left = place.long().clamp(max=len(heights) - 2)
    return torch.lerp(heights[left], heights[left + 1], place - left)


def structures(label: Tensor) -> Tensor:
    """Maps ``(K, *S)`` in [0, 1] as they are; one map of whole numbers as a map for each of them, without 0."""
    if len(label) > 1 or label.max() <= 1:
        return label.float()
    values = label.unique()
    return torch.cat([label == value for value in values[values != 0]]).float()


def class_centers(values: Tensor, number: int) -> Tensor:
    """The centers of the classes of intensities, rising (k-means: Lloyd's steps from evenly filled classes)."""
    ranks = (torch.arange(number).to(values) + 0.5) / number
    centers = torch.quantile(values[:: max(1, len(values) // 10_000)], ranks)
    for _ in range(LLOYD_STEPS):
        classes = nearest(values, centers)
        counts = torch.bincount(classes, minlength=number)
        sums = torch.bincount(classes, values, minlength=number)
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers).to(values)
    return centers


def nearest(values: Tensor, centers: Tensor) -> Tensor:
    """The index of the nearest of rising centers."""
    return torch.bucketize(values, (centers[1:] + centers[:-1]) / 2)
