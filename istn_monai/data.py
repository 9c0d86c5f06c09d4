"""Datalists of pairs: MONAI's JSON (``training`` / ``validation`` / ``testing``, paths relative to the file)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose

from istn_monai.checks import new_file
from istn_monai.distributed import first_process_first
from istn_monai.points import SUFFIXES as POINT_FILES

PARTS = ("training", "validation", "testing")
PATH_KEYS = tuple(f"{side}_{kind}" for kind in ("image", "label", "points") for side in ("moving", "fixed"))
PARTNERS, VALIDATION_PARTNERS = 7, 2  # so the shipped network's 140 images made 1000 pairs
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png")

Item = dict[str, str]


def existing(file: str | Path) -> Path:
    """Absolute path of a datalist, or FileNotFoundError."""
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"datalist not found: {path}; give dataset_dir and data_list_file")
    return path


def read_datalist(file: str | Path, parts: Sequence[str] = PARTS) -> dict[str, list[Item]]:
    """The pairs of a datalist, with absolute paths.

    Args:
        file: the JSON file.
        parts: which lists it must have.
    """
    path = existing(file)
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"datalist {path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"datalist {path} must be a JSON object with lists {PARTS}, got {type(content).__name__}")
    return {part: part_items(content, part, path) for part in parts}


def part_items(content: Mapping[str, Any], part: str, path: Path) -> list[Item]:
    """One part of a datalist, checked, with absolute paths."""
    pairs = content.get(part)
    if not isinstance(pairs, list) or not pairs:
        lists = sorted(key for key, value in content.items() if isinstance(value, list) and value)
        raise ValueError(f"datalist {path} needs a list {part!r} with at least one pair; its lists are {lists}")
    items = []
    for index, pair in enumerate(pairs):
        missing = [k for k in ("moving_image", "fixed_image") if not isinstance(pair, dict) or k not in pair]
        if missing:
            found = sorted(pair) if isinstance(pair, dict) else type(pair).__name__
            raise ValueError(f"datalist {path}: {part}[{index}] has no key {missing[0]!r}, only {found}")
        wrong = [k for k in PATH_KEYS if k in pair and not isinstance(pair[k], str)]
        if wrong:
            key = wrong[0]
            raise ValueError(f"datalist {path}: {part}[{index}] needs one path for {key!r}, got {pair[key]!r}")
        items.append({k: str(path.parent / v) for k, v in pair.items() if k in PATH_KEYS})
    return items


def pair_item(**files: str | None) -> Item:
    """The item of one pair: the files that are given, by their keys."""
    return {key: str(Path(file).expanduser()) for key, file in files.items() if file is not None}


def datalist_file(dataset_dir: str | None, data_list_file: str, synthetic_dir: str = "synthetic") -> str:
    """Path of a bundle's datalist; without a ``dataset_dir`` the embedded synthetic set is made first."""
    if dataset_dir is None:
        from istn_monai.synthetic import synthesize

        return str(first_process_first(lambda: synthesize(synthetic_dir)))
    return str(Path(dataset_dir).expanduser() / data_list_file)


def datalist_name(file: str | Path | None) -> str | None:
    """Name and content of a datalist in a few letters, wherever it lies: to tell whether two are the same."""
    if file is None:  # a host gives the data
        return None
    path = existing(file)
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


def hash_with_files(item: Mapping[str, Any]) -> bytes:
    """Hash of a datalist's item that changes with its files."""
    states = [os.stat(file) for _, file in sorted(item.items())]
    return pickle_hashing({**item, "files": [(state.st_mtime_ns, state.st_size) for state in states]})


def cached_dataset(
    data: Sequence[Item],
    transform: Compose,
    cache_dir: str | Path | None = None,
    cache_rate: float = 1.0,
    num_workers: int = 2,
    others: Sequence[Item] | None = None,
) -> Dataset:
    """A dataset whose deterministic transforms are done once: in memory, or on disk for later runs as well.

    Whole brains and the initial alignment "rigid" take seconds for each pair, in each run.

    Args:
        data: items of a datalist, or labelled images, see :func:`as_pairs`.
        transform: deterministic transforms first, random ones after.
        cache_dir: folder for the results on disk, which other runs with the same pairs and transforms share; a changed
            file or transform is done anew. It holds pickles: use no folder that others may write to. None keeps them
            in memory.
        cache_rate: fraction of the pairs kept in memory.
        num_workers: threads that fill the memory.
        others: see :func:`as_pairs`.
    """
    data = as_pairs(data, others)
    if cache_dir is None:
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=num_workers)
    return PersistentDataset(
        data,
        transform,
        Path(cache_dir).expanduser(),
        hash_func=hash_with_files,
        hash_transform=pickle_hashing,
        track_meta=True,
        weights_only=False,
    )


def as_pairs(items: Sequence[Item], others: Sequence[Item] | None = None) -> list[Item]:
    """Pairs of labelled images, which is what hosts give, in the place of a datalist; pairs stay as they are.

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
        raise ValueError(f"pairs need two labelled images at least, got {len({item['image'] for item in moving})}")
    return pairs


def image_files(folder: str | Path, name: str, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """Image files of a folder, or those of other suffixes, by their names without suffix."""
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: no such folder: {path}")
    what = "image" if suffixes == SUFFIXES else "landmark file"
    files: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        suffix = next((s for s in suffixes if file.name.endswith(s)), None)
        if suffix and not file.name.startswith("."):
            stem = file.name.removesuffix(suffix)
            if stem in files:
                raise ValueError(f"{name}: two {what}s of one subject, {files[stem].name} and {file.name}, in {path}")
            files[stem] = file
    if not files:
        raise ValueError(f"{name}: no {what} ({', '.join(suffixes)}) in {path}")
    return files


def fewest_subjects(pairs: int) -> int:
    """The smallest n with ``n (n - 1)`` ordered pairs or more; 0 for no pair."""
    subjects = 0
    while subjects * (subjects - 1) < pairs:
        subjects += 1
    return subjects


def split_subjects(names: Sequence[str], counts: Mapping[str, int], rng: np.random.Generator) -> dict[str, list[str]]:
    """Shares subjects among parts, none in two, each part enough of them for its number of pairs.

    What is left over after each part's fewest goes to training, or to the first part that has any pair.
    """
    needed = {part: fewest_subjects(number) for part, number in counts.items()}
    if sum(needed.values()) > len(names):
        raise ValueError(
            f"{len(names)} subjects are too few for {dict(counts)} pairs with no subject in two parts: "
            f"at least {needed} subjects are needed; ask for fewer pairs"
        )
    # a part gets more subjects than its fewest if there are many: 2 pairs of each subject are variety enough
    wanted = {part: max(needed[part], min(number, len(names) // 5)) for part, number in counts.items() if number}
    largest = next(iter(wanted))
    rest = {part: number for part, number in wanted.items() if part != largest}
    while sum(rest.values()) + needed[largest] > len(names):
        widest = max(rest, key=lambda part: rest[part] - needed[part])
        rest[widest] -= 1
    order = [names[i] for i in rng.permutation(len(names))]
    split, start = {}, 0
    for part, number in rest.items():
        split[part] = order[start : start + number]
        start += number
    split[largest] = order[start:]
    return split


def draw_pairs(subjects: Sequence[str], number: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Different ordered pairs (moving, fixed) of different subjects."""
    possible = len(subjects) * (len(subjects) - 1)
    pairs = []
    for code in rng.choice(possible, size=number, replace=False):
        moving, fixed = divmod(int(code), len(subjects) - 1)
        pairs.append((subjects[moving], subjects[fixed + (fixed >= moving)]))
    return pairs


def make_datalist(
    images: str | Path,
    output: str | Path,
    labels: str | Path | None = None,
    train: int = 100,
    validation: int = 10,
    test: int = 100,
    seed: int = 0,
    landmarks: str | Path | None = None,
) -> Path:
    """Draws random pairs from a folder of subjects and writes them as a datalist.

    Args:
        images: folder with one image for each subject.
        output: JSON file to write; must not exist.
        labels: folder with the label maps, named as the images.
        train: number of training pairs.
        validation: number of validation pairs.
        test: number of test pairs. No subject is in two parts.
        seed: of the draw.
        landmarks: folder with a landmark file, or a landmark map, for each image, named as it.

    Returns:
        The file's absolute path.
    """
    path = new_file(output)
    counts = dict(zip(PARTS, (train, validation, test), strict=True))
    if not all(isinstance(n, int) and n >= 0 for n in counts.values()) or not sum(counts.values()):
        raise ValueError(f"train, validation and test must be whole numbers of at least 0, not all 0, got {counts}")
    image_of = image_files(images, "images")
    files_of = {"image": image_of}
    others = (("label", "labels", labels, SUFFIXES), ("points", "landmarks", landmarks, (*POINT_FILES, *SUFFIXES)))
    for kind, name, folder, suffixes in others:
        if folder is not None:
            files_of[kind] = image_files(folder, name, suffixes)
            unmatched = sorted(set(image_of) - set(files_of[kind]))
            if unmatched:
                raise ValueError(
                    f"{len(unmatched)} images have no {kind} of the same name in {folder}, for example {unmatched[:3]}"
                )
    rng = np.random.default_rng(seed)
    split = split_subjects(sorted(image_of), counts, rng)
    content: dict[str, Any] = {"name": Path(images).absolute().parent.name, "seed": seed}
    for part, subjects in split.items():
        content[part] = []
        for moving, fixed in draw_pairs(subjects, counts[part], rng):
            files = {f"{side}_{kind}": known[subject] for kind, known in files_of.items()
                     for side, subject in (("moving", moving), ("fixed", fixed))}  # fmt: skip
            content[part].append({key: relative_to(file, path.parent) for key, file in files.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
    return path


def relative_to(file: Path, folder: Path) -> str:
    """Path of a file as seen from a folder, if need be upwards."""
    return Path(os.path.relpath(file, folder)).as_posix()
