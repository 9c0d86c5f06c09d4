"""Which files of a pair a registration takes."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from istn_monai.io.datalist import Item, content_of, existing, read_datalist
from istn_monai.refine_weights import check_guided
from istn_monai.transforms.keys import IMAGE_KEYS, LABEL_KEYS, MAP_KEYS, MASK_KEYS, PAIR_KEYS, POINT_KEYS

KNOWN = (*PAIR_KEYS, *POINT_KEYS, *MASK_KEYS, *MAP_KEYS)  #: keys of a pair in a datalist
#: what synthesize writes besides, always all of it: the true transformation, and landmarks drawn into images
SYNTHETIC = {"transform", "moving_landmarks", "fixed_landmarks"}


def guides_of(weights: Mapping[str, float] | None, representation: str = "itn") -> tuple[str, ...]:
    """Keys of a pair that count besides the images and the moving label, by the weights of the refinement's terms and
    the source of what is registered."""
    terms = weights or {}
    labels = LABEL_KEYS[1:] if "labels" in terms or representation == "labels" else ()
    maps = MAP_KEYS if representation == "file" else ()
    return (*MASK_KEYS, *labels, *(POINT_KEYS if "landmarks" in terms else ()), *maps)


def check_used(
    files: Mapping[str, str | None], weights: Mapping[str, float] | None, representation: str = "itn"
) -> None:
    """ValueError if a file is given and does not count, or what shall count is missing.

    Args:
        files: of one pair, by key.
        weights: of the refinement's terms; None for none.
        representation: source of what is registered.
    """
    wanted = {"labels": LABEL_KEYS, "file": MAP_KEYS}.get(representation, ())
    if missing := [key for key in wanted if not files.get(key)]:
        raise ValueError(f"representation {representation} registers {' and '.join(wanted)}: give {missing[0]}")
    if len(wanted) == 2 and files.get(wanted[0]) == files.get(wanted[1]):
        raise ValueError(f"{wanted[0]} and {wanted[1]} are one file, {files[wanted[0]]}: give that of each image")
    if files.get(LABEL_KEYS[1]) and "labels" not in (weights or {}) and representation != "labels":
        raise ValueError(f"{LABEL_KEYS[1]} counts with use_labels alone: add --use_labels, or leave it out")
    if representation != "file" and (idle := [key for key in MAP_KEYS if files.get(key)]):
        raise ValueError(f"{idle[0]} counts with representation file alone: add --representation file, or leave it out")
    check_guided({key for key, file in files.items() if file}, weights or {})


def check_keys(datalist: str | Path, splits: Sequence[str]) -> None:
    """A warning that names the keys of splits' pairs that nothing reads; one that is nearly one of ours is an error."""
    content = content_of(existing(datalist))
    lists = [content.get(split) for split in splits]
    items = [item for items in lists if isinstance(items, list) for item in items if isinstance(item, Mapping)]
    unread = [set(item) - SYNTHETIC if item.keys() >= SYNTHETIC else set(item) for item in items]
    unknown = sorted(str(key) for key in set().union(*unread) - set(KNOWN))
    for key in unknown:
        if meant := difflib.get_close_matches(key, KNOWN, n=1, cutoff=0.9):
            raise ValueError(f"datalist {datalist}: unknown key {key!r}: did you mean {meant[0]!r}?")
    if unknown:
        warnings.warn(f"datalist {datalist}: the keys {unknown} are not read, only {KNOWN}: mistyped?", stacklevel=3)


def pairs_of(datalist: str | Path, split: str, guides: Sequence[str] = MASK_KEYS) -> Sequence[Item]:
    """The pairs of a split, with the files that registration takes: ``guides`` among them; see :func:`check_keys`."""
    check_keys(datalist, [split])
    taken = {*PAIR_KEYS[:3], *POINT_KEYS, *guides}
    pairs = read_datalist(datalist, [split], IMAGE_KEYS)[split]
    return [{key: pair[key] for key in KNOWN if key in pair and key in taken} for pair in pairs]
