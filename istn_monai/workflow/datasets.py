"""The bundle's datasets: cached pairs, their random order and changes, and where their datalist is.

What is random in an item depends on the seed, the epoch and the item's index alone: not on the number of workers, on
the order of items, or on how often a training was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import CacheDataset, Dataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, Randomizable, Transform
from torch.utils.data import DistributedSampler

from istn_monai import __version__
from istn_monai.io.datalist import Item, existing, read_datalist
from istn_monai.io.hashes import file_state
from istn_monai.network_settings import none_or
from istn_monai.transforms.keys import IMAGE_KEYS, MASK_KEYS
from istn_monai.transforms.map_files import with_channels
from istn_monai.workflow.console import bars, say
from istn_monai.workflow.distributed import first_process_first, rank, world_size
from istn_monai.workflow.item_cache import ItemCache
from istn_monai.workflow.pair_files import check_keys

PARTNERS, VALIDATION_PARTNERS = 7, 2  # so the shipped network's 140 images made 1000 pairs


def pair_item(
    moving_image: str | None, fixed_image: str | None, moving_label: str | None = None, **others: str | None
) -> Item:
    """The item of one pair: the files that are given, by their keys."""
    files = {"moving_image": moving_image, "fixed_image": fixed_image, "moving_label": moving_label} | others
    return {key: str(Path(file).expanduser()) for key, file in files.items() if file is not None}


class Pairs(list[Item]):
    """The pairs of one split of a datalist; a plain list of items is one that a host gave.

    Args:
        items: with absolute paths.
        file: the datalist.
    """

    def __init__(self, items: Sequence[Item], file: Path) -> None:
        super().__init__(items)
        self.file = file

    @property
    def name(self) -> str:
        """Name and short hash of the datalist, wherever it lies, which tell whether two are the same."""
        return f"{self.file.name} {hashlib.sha256(self.file.read_bytes()).hexdigest()[:8]}"


def read_pairs(dataset_dir: str | None, data_list_file: str, split: str, synthetic_dir: str = "synthetic") -> Pairs:
    """The pairs of one split of a bundle's datalist.

    Without a ``dataset_dir``, ``data_list_file`` is a whole path; or the embedded set is made first.
    """
    dataset_dir = none_or(dataset_dir)
    if dataset_dir is None and not is_whole(data_list_file):
        from istn_monai.synthetic.pairs import synthesize

        file = Path(first_process_first(lambda: synthesize(synthetic_dir)))
    else:
        file = existing(Path(dataset_dir or "").expanduser() / Path(data_list_file).expanduser())
    check_keys(file, [split])
    return Pairs(read_datalist(file, [split], IMAGE_KEYS)[split], file)


def is_whole(data_list_file: str) -> bool:
    """Whether a datalist's name says where it lies, without a ``dataset_dir``."""
    return Path(data_list_file).expanduser().is_absolute()


def validation_pairs(training: Sequence[Item]) -> list[Item]:
    """The validation pairs of the datalist that training pairs are from; none beside data that a host gave."""
    if not isinstance(training, Pairs):
        return []
    check_keys(training.file, ["validation"])
    return Pairs(read_datalist(training.file, ["validation"], IMAGE_KEYS)["validation"], training.file)


def have_masks(data: Sequence[Item]) -> bool:
    """Whether any pair has a mask."""
    return any(key in item for item in data for key in MASK_KEYS)


def datalist_name(data: Sequence[Item]) -> str | None:
    """The name of the datalist that pairs are from; None for data that a host gave."""
    return data.name if isinstance(data, Pairs) else None


def is_hosted(data: Sequence[Item]) -> bool:
    """Whether a host put its own items in the place of a datalist's."""
    return not isinstance(data, Pairs)


def hash_with_files(item: Mapping[str, Any]) -> bytes:
    """Hash of a datalist's item that changes with all files that it is read from."""
    return pickle_hashing({**item, "files": [file_state(file) for _, file in sorted(with_channels(item).items())]})


def hash_with_named_files(transforms: Sequence[Transform]) -> bytes:
    """Hash of transforms that changes with the files that they read besides a pair's, and with their code."""
    named = [str(file) for transform in transforms for file in getattr(transform, "files", ())]
    return pickle_hashing([*transforms, [(file, file_state(file)) for file in named], __version__])


def cached_dataset(
    data: Sequence[Item],
    transform: Compose,
    cache_dir: str | Path | None = None,
    cache_rate: float = 1.0,
    num_workers: int = 2,
    others: Sequence[Item] | None = None,
    seed: int = 0,
) -> SeededDataset:
    """A dataset whose deterministic transforms are done once: in memory, or on disk for later runs as well.

    Whole brains and the initial alignment "rigid" take seconds for each pair, in each run.

    Args:
        data: items of a datalist, or labeled images, see :func:`as_pairs`.
        transform: deterministic transforms first, random ones after.
        cache_dir: folder for the results on disk, which other runs with the same pairs and transforms share; a changed
            file or transform is done anew, and so is a damaged entry. No code in it runs. None keeps them in memory.
        cache_rate: fraction of the pairs kept in memory.
        num_workers: threads that fill the memory.
        others: see :func:`as_pairs`.
        seed: of the random transforms, see :class:`SeededDataset`.
    """
    data, cache_dir = as_pairs(data, others), none_or(cache_dir)
    if cache_dir is None:
        if not bars() and len(data) > 1:
            say(f"preparing {len(data)} pairs")
        cached = CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers, progress=bars())
        return SeededDataset(cached, seed)
    folder = Path(cache_dir).expanduser()
    return SeededDataset(
        ItemCache(data, transform, folder, hash_func=hash_with_files, hash_transform=hash_with_named_files), seed
    )


def seed_of(*numbers: int) -> int:
    """One seed below 2**32 from several whole numbers; others give others, in all likelihood."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1)[0])


class IndexInEpoch(int):
    """An index that tells the epoch that it is of, also to the process that loads the item."""

    epoch = 0


class EpochSampler(DistributedSampler):
    """All indices in a random order that depends on the seed and the epoch alone, each an :class:`IndexInEpoch`.

    Of several processes each has its own ones; MONAI's engines call ``set_epoch``.

    Args:
        dataset: whose indices they are.
        seed: of the order.
        shuffle: False for the order of the dataset.
    """

    def __init__(self, dataset: Dataset, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__(dataset, num_replicas=world_size(), rank=rank(), shuffle=shuffle, seed=seed_of(seed))

    def __iter__(self) -> Iterator[IndexInEpoch]:
        for number in super().__iter__():
            index = IndexInEpoch(number)
            index.epoch = self.epoch
            yield index


class SeededDataset(Dataset):
    """A dataset whose random transforms are seeded for each item from the seed, the epoch and the item's index.

    Args:
        dataset: a dataset of MONAI's with a ``Compose``.
        seed: any whole number.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        super().__init__(dataset.data, dataset.transform)
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, index: Any) -> Any:
        """An item; a plain index is one of epoch 0."""
        if isinstance(index, int) and isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed_of(self.seed, getattr(index, "epoch", 0), index))
        return self.dataset[index]


def as_pairs(items: Sequence[Item], others: Sequence[Item] | None = None) -> list[Item]:
    """Pairs of labeled images, which is what hosts give, in the place of a datalist; pairs stay as they are.

    Args:
        items: each ``{"image", "label"}`` is the fixed one of up to 7 pairs, the same for the same items.
        others: for validation the images of training, of which each item then gets 2 as its moving ones, and which take
            the items' place if there are none; None pairs the items with each other.
    """
    if items and "image" not in items[0]:
        return list(items)
    moving, partners = (items, PARTNERS) if others is None else (others, VALIDATION_PARTNERS)
    rng = np.random.default_rng(0)
    pairs = []
    for fixed in items or moving:
        candidates = [other for other in moving if other["image"] != fixed["image"]]
        for index in sorted(rng.permutation(len(candidates))[:partners]):
            pairs.append({f"{side}_{key}": item[key] for side, item in (("moving", candidates[index]), ("fixed", fixed))
                          for key in ("image", "label")})  # fmt: skip
    if not pairs:
        raise ValueError(f"pairs need two labeled images at least, got {len({item['image'] for item in moving})}")
    return pairs
