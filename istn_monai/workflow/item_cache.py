"""Prepared items on disk, for later runs: read without running any code in them, and prepared anew if damaged.

An entry is the SHA-256 of what follows, then a file of PyTorch's that ``torch.load(weights_only=True)`` reads: tensors,
numbers and words. MONAI's own entries are pickles of MetaTensors, whose metadata may hold any object.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from copy import deepcopy
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from torch import Tensor

from istn_monai.io.paths import replacing

logger = logging.getLogger(__name__)
SUFFIX = ".item"  # not MONAI's .pt
META, ARRAY, TUPLE = "__meta_tensor__", "__array__", "__tuple__"


class ItemCache(PersistentDataset):
    """MONAI's dataset with entries that are safe to read, told apart by content, and written whole.

    What cannot be kept as tensors, numbers and words is prepared each time; of metadata it is left out. Where nothing
    can be written, a training goes on without its cache.
    """

    def _cachecheck(self, item_transformed: Any) -> Any:
        """The item up to its first random transform, from the disk if it is there and whole."""
        name = self.hash_func(item_transformed).decode() + self.transform_hash
        file = Path(self.cache_dir) / f"{name}{SUFFIX}"
        found = read_entry(file)
        if found is not None:
            return found
        prepared = self._pre_transform(deepcopy(item_transformed))
        try:
            content = packed(prepared)
        except TypeError as error:
            logger.warning(f"not kept in cache_dir {self.cache_dir}: {error}; such pairs are prepared each time")
            return prepared
        try:
            write_entry(content, file)
        except (OSError, RuntimeError) as error:
            logger.warning(f"not kept in cache_dir {self.cache_dir}: {error}; such pairs are prepared each time")
        return unpacked(content)  # the same as in later runs


def write_entry(content: Any, file: Path) -> None:
    """Writes what :func:`packed` gave."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    with replacing(file) as part:
        part.write_bytes(hashlib.sha256(data).digest() + data)


def read_entry(file: Path) -> Any:
    """What an entry holds; None if there is none, or, with a warning, if it is damaged or not one of ours."""
    try:
        content = file.read_bytes()
        data = content[32:]
        if hashlib.sha256(data).digest() != content[:32]:
            raise ValueError("it is damaged")
        return unpacked(torch.load(io.BytesIO(data), weights_only=True))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a foreign file makes torch.load say
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning(f"cannot use {file} ({why[:100]}): the pair is prepared anew")
        return None


def packed(value: Any) -> Any:
    """An item as tensors, numbers, words, lists and dictionaries.

    Raises:
        TypeError: naming the type, if it holds anything else.
    """
    if isinstance(value, MetaTensor):
        operations = packed_metadata({"operations": value.applied_operations}).get("operations", [])
        return {META: value.as_tensor(), "metadata": packed_metadata(value.meta), "operations": operations}
    if isinstance(value, Enum):
        return packed(value.value)
    if value is None or isinstance(value, (Tensor, bool, int, float, str)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.generic):
        return packed(value.item())
    if isinstance(value, np.ndarray):
        return {ARRAY: torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))}
    if isinstance(value, Mapping):
        return {packed(key): packed(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return {TUPLE: [packed(entry) for entry in value]}
    if isinstance(value, list):
        return [packed(entry) for entry in value]
    raise TypeError(f"a pair holds a {type(value).__name__}")


def packed_metadata(meta: Mapping[Any, Any]) -> dict[Any, Any]:
    """What of metadata can be packed."""
    result = {}
    for key, value in meta.items():
        try:
            result[packed(key)] = packed(value)
        except TypeError:  # such as the text fields of a NIfTI header
            continue
    return result


def unpacked(value: Any) -> Any:
    """What :func:`packed` was given."""
    if isinstance(value, list):
        return [unpacked(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if META in value:
        meta, operations = unpacked(value["metadata"]), unpacked(value["operations"])
        return MetaTensor(value[META], meta=meta, applied_operations=operations)
    if ARRAY in value:
        return value[ARRAY].numpy()
    if TUPLE in value:
        return tuple(unpacked(value[TUPLE]))
    return {key: unpacked(entry) for key, entry in value.items()}
