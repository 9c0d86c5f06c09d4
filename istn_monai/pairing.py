"""Drawing random pairs from a folder of subjects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from istn_monai.io.data_folders import data_set_subjects, is_data_set, named_subjects
from istn_monai.io.datalist import SPLITS, read_json
from istn_monai.io.paths import absolute, check_apart, new_file, replacing
from istn_monai.io.subject_files import EVERYTHING, Selection, Subjects
from istn_monai.pace import tell


def fewest_subjects(pairs: int) -> int:
    """The smallest n with ``n (n - 1)`` ordered pairs or more; 0 for no pair."""
    subjects = 0
    while subjects * (subjects - 1) < pairs:
        subjects += 1
    return subjects


def split_subjects(names: Sequence[str], counts: Mapping[str, int], rng: np.random.Generator) -> dict[str, list[str]]:
    """Distributes subjects among splits, none in two, each split enough of them for its number of pairs.

    What is left over after each split's fewest goes to training, or to the first split that has any pair.
    """
    needed = {split: fewest_subjects(number) for split, number in counts.items()}
    if sum(needed.values()) > len(names):
        raise ValueError(
            f"{len(names)} subjects are too few for {dict(counts)} pairs with no subject in two splits: "
            f"at least {needed} subjects are needed; ask for fewer pairs"
        )
    # a split gets more subjects than its fewest if there are many: 2 pairs of each subject are variety enough
    wanted = {split: max(needed[split], min(number, len(names) // 5)) for split, number in counts.items() if number}
    first = next(iter(wanted))
    rest = {split: number for split, number in wanted.items() if split != first}
    while sum(rest.values()) + needed[first] > len(names):
        widest = max(rest, key=lambda split: rest[split] - needed[split])
        rest[widest] -= 1
    order = [names[i] for i in rng.permutation(len(names))]
    subjects_of, start = {}, 0
    for split, number in rest.items():
        subjects_of[split] = order[start : start + number]
        start += number
    subjects_of[first] = order[start:]
    return subjects_of


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
    overwrite: bool = False,
    selection: Selection = EVERYTHING,
) -> Path:
    """Draws random pairs from a folder of subjects and writes them as a datalist.

    Args:
        images: folder with one image for each subject; or of a data set, whose label maps and landmarks are then known.
        output: JSON file to write; an equal one that is there is left as it is.
        labels: folder with the label maps, named as the images.
        train: number of training pairs.
        validation: number of validation pairs.
        test: number of test pairs. No subject is in two splits.
        seed: makes the draw repeatable.
        landmarks: folder with a landmark file, or a landmark map, for each image, named as it.
        overwrite: replace an existing datalist; never a file of another kind.
        selection: of images and label maps, where subjects have several.

    Returns:
        The file's absolute path.
    """
    folder = absolute(images)
    counts = checked_counts(train, validation, test)
    if labels is None and landmarks is None and is_data_set(folder):
        found, name = data_set_subjects(folder, selection), folder.name
    else:
        found, name = named_subjects(folder, labels, landmarks, selection), folder.parent.name
    return write_pairs(found, name, absolute(output), counts, seed, overwrite)


def checked_counts(train: int, validation: int, test: int) -> dict[str, int]:
    """Numbers of pairs by split; ValueError if they make no sense."""
    counts = dict(zip(SPLITS, (train, validation, test), strict=True))
    if not all(isinstance(n, int) and n >= 0 for n in counts.values()) or not sum(counts.values()):
        raise ValueError(f"train, validation and test must be whole numbers of at least 0, not all 0, got {counts}")
    return counts


def write_pairs(
    found: Subjects, name: str, path: Path, counts: Mapping[str, int], seed: int = 0, overwrite: bool = False
) -> Path:
    """Draws random pairs of subjects and writes them as a datalist, with the names of the structures.

    Args:
        found: the subjects; of several visits of one, each pair takes one at random.
        name: of the data set.
        path: JSON file to write.
        counts: of pairs, by split.
        seed: makes the draw repeatable.
        overwrite: replace an existing datalist.
    """
    for remark in found.remarks:
        tell(remark)
    rng = np.random.default_rng(seed)
    content: dict[str, Any] = {"name": name, "seed": seed}
    if found.names:
        content["labels"] = {str(value): structure for value, structure in found.names.items()}
    for split, subjects in split_subjects(sorted(found.visits), counts, rng).items():
        content[split] = []
        for pair in draw_pairs(subjects, counts[split], rng):
            visits = [found.visits[subject] for subject in pair]
            taken = [of_one[int(rng.integers(len(of_one)))] if len(of_one) > 1 else of_one[0] for of_one in visits]
            files = {f"{side}_{kind}": visit[kind] for kind in found.kinds
                     for side, visit in zip(("moving", "fixed"), taken, strict=True)}  # fmt: skip
            content[split].append({key: relative_to(file, path.parent) for key, file in files.items()})
    return write_datalist(content, path, found.files, overwrite)


def write_datalist(
    content: Mapping[str, Any], path: Path, inputs: Sequence[tuple[str, Path]], overwrite: bool = False
) -> Path:
    """Writes a datalist, whole or not at all; one that is there with the same content stays.

    Args:
        content: of the JSON.
        path: to write.
        inputs: the files that it names, with their kinds, none of which is replaced.
        overwrite: replaces another datalist; a file of another kind raises an error.
    """
    text = json.dumps(content, indent=1)
    if path.is_file() and path.read_bytes() == text.encode():
        return path
    check_apart([path], inputs, "choose another output")
    if overwrite and path.is_file() and not set(SPLITS) & set(read_json(path, "output", "a datalist")):
        raise FileExistsError(f"output {path} is no datalist and is left alone: choose another name")
    new_file(path, overwrite=overwrite)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def relative_to(file: Path, folder: Path) -> str:
    """Path of a file as seen from a folder, if need be upwards; past links, where ``..`` would lead elsewhere."""
    path = os.path.relpath(file, folder)
    if os.path.realpath(folder / path) != os.path.realpath(file):
        path = os.path.relpath(os.path.join(os.path.realpath(file.parent), file.name), os.path.realpath(folder))
    return Path(path).as_posix()
