"""Files of Learn2Reg (https://learn2reg.grand-challenge.org): its ``*_dataset.json`` as a datalist, its displacements.

Convention:
    The folder of the JSON holds ``imagesTr`` and, with files of the same names, ``labelsTr``, ``masksTr``,
    ``landmarksTr`` and ``keypointsTr``; ``Ts`` of the test images. A name ends with the numbers of case and modality,
    ``_0001_0000.nii.gz``. A displacement is ``(H, W, D, 3)`` in voxels, in the order of the array's axes: voxel x of
    the fixed image is found at ``x + u(x)`` of the moving one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from torch import Tensor

from istn_monai.geometry.grids import Grid
from istn_monai.geometry.sampling import voxel_grid
from istn_monai.io.images import write_image

SIDES = ("moving", "fixed")
VALIDATION, TEST, PAIRED = "registration_val", "registration_test", "training_paired_images"
#: lists of pairs, of which the first one that is not empty is what a registration is judged by
JUDGED = (VALIDATION, "pairs", "test_paired_images", TEST)
LANDMARKS = ("landmarks", "keypoints")  #: folders, those set by hand first
MOST_DRAWN = 100  # pairs of a set whose training images are not paired
NAME = re.compile(r"(\d{4})_(\d{4})\.nii\.gz")
SHORT = ("0000", "0001")  # modalities of fixed and moving, with which a displacement's name need not say them
Files = dict[str, str]


def is_pair(value: Any) -> bool:
    """Whether a value of a JSON is a pair as Learn2Reg writes it."""
    return isinstance(value, Mapping) and all(isinstance(value.get(side), str) for side in SIDES)


def is_learn2reg(content: Mapping[str, Any]) -> bool:
    """Whether a JSON's content is that of a ``*_dataset.json`` of Learn2Reg: it lists pairs in its way."""
    return any(isinstance(value, list) and value and all(map(is_pair, value)) for value in content.values())


def modality(image: str) -> str:
    """The number of an image's modality; none for a name without numbers."""
    found = NAME.search(image)
    return found[2] if found else ""


def numbers_of(image: str) -> tuple[str, str]:
    """The numbers of case and modality that an image's name ends with, or a ValueError."""
    found = NAME.search(image)
    if found is None or found.end() != len(image):
        raise ValueError(
            f"{image}: Learn2Reg names an image by case and modality, such as OASIS_0395_0000.nii.gz, and its "
            "displacement by these numbers: rename it"
        )
    return found[1], found[2]


def displacement_name(fixed: str, moving: str) -> str:
    """The name under which the challenge's evaluation looks for a pair's displacement.

    Examples:
        >>> displacement_name("imagesTr/LungCT_0001_0000.nii.gz", "imagesTr/LungCT_0001_0001.nii.gz")
        'disp_0001_0001.nii.gz'
        >>> displacement_name("imagesTr/OASIS_0395_0000.nii.gz", "imagesTr/OASIS_0396_0000.nii.gz")
        'disp_0395_0000_0396_0000.nii.gz'
    """
    first, second = numbers_of(fixed), numbers_of(moving)
    parts = (first[0], second[0]) if (first[1], second[1]) == SHORT else (*first, *second)
    return f"disp_{'_'.join(parts)}.nii.gz"


def beside(image: str | Path, room: str, suffix: str | None = None) -> Path | None:
    """The file of an image's name in another folder of the set, ``imagesTr`` becoming ``labelsTr``; None for none."""
    path = Path(image)
    if not path.parent.name.startswith("images"):
        return None
    file = path.parents[1] / f"{room}{path.parent.name.removeprefix('images')}" / path.name
    file = file if suffix is None else file.with_name(path.name.removesuffix(".nii.gz") + suffix)
    return file if file.is_file() else None


def landmark_files(room: str, fixed: str | Path, moving: str | Path) -> tuple[Path, Path] | None:
    """Landmarks of the moving and the fixed image of a pair; None unless both are there.

    Args:
        room: one of ``LANDMARKS``. Where each pair of modalities has landmarks of its own, their folder says which.
        fixed: image.
        moving: image.
    """
    kinds = modality(str(fixed)), modality(str(moving))
    low, high = sorted(kinds)
    own = [] if low == high or kinds == SHORT else [low + high, high[-2:]]
    for name in (*own, ""):
        files = [beside(image, room + name, ".csv") for image in (moving, fixed)]
        if files[0] is not None and files[1] is not None:
            return files[0], files[1]
    return None


def as_datalist(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A ``*_dataset.json`` as MONAI's datalist; its own lists of pairs stay under their names, as further splits.

    ``validation`` and ``testing`` are its pairs for validation, whose labels and landmarks are known. ``training`` are
    its pairs for training, or else random ones of its training images; none has an image of another split.

    Args:
        content: of the JSON.
        folder: that its paths are relative to.
    """
    lists = {name: value for name, value in content.items() if isinstance(value, list) and all(map(is_pair, value))}
    listed = listed_files(content)
    own = {name: [files_of(pair, folder, listed) for pair in pairs] for name, pairs in lists.items() if pairs}
    judged = next((own[name] for name in JUDGED if name in own), [])
    held_out = {image_of(pair[side]) for name in JUDGED for pair in lists.get(name, []) for side in SIDES}
    paired = [pair for pair in lists.get(PAIRED, []) if not held_out & {image_of(pair[side]) for side in SIDES}]
    drawn = paired or list(drawn_pairs([image for image in images_of(content) if image not in held_out], lists))
    training = [files_of(pair, folder, listed) for pair in drawn]
    splits = {"training": training, "validation": judged, "testing": judged}
    return {"name": content.get("name")} | own | {name: pairs for name, pairs in splits.items() if pairs}


def image_of(path: str) -> str:
    """An image's path as it is compared: sets write it with ``./`` and without."""
    return posixpath.normpath(path)


def entries_of(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The single images that a JSON lists, each with the files that belong to it."""
    for entry in chain.from_iterable(content[name] for name in ("training", "test") if name in content):
        if isinstance(entry, Mapping) and isinstance(entry.get("image"), str):
            yield entry


def listed_files(content: Mapping[str, Any]) -> dict[str, Files]:
    """Labels and masks that a JSON lists, by their image."""
    return {
        image_of(entry["image"]): {kind: entry[kind] for kind in ("label", "mask") if isinstance(entry.get(kind), str)}
        for entry in entries_of(content)
    }


def images_of(content: Mapping[str, Any]) -> list[str]:
    """The training images that a JSON lists, sorted."""
    return sorted({image_of(entry["image"]) for entry in entries_of({"training": content.get("training", [])})})


def drawn_pairs(images: Sequence[str], lists: Mapping[str, Sequence[Files]]) -> Iterator[Files]:
    """Random pairs of training images, the same ones each time, of the modalities that are registered."""
    example = next((lists[name][0] for name in JUDGED if lists.get(name)), None)
    if example is None:
        return
    moving, fixed = ([image for image in images if modality(image) == modality(example[side])] for side in SIDES)
    pairs = [(one, other) for one in moving for other in fixed if one != other]
    chosen = np.random.default_rng(0).permutation(len(pairs))[:MOST_DRAWN]
    for number in chosen:
        yield dict(zip(SIDES, pairs[number], strict=True))


def files_of(pair: Files, folder: Path, listed: Mapping[str, Files]) -> Files:
    """One pair as an item of a datalist: images, and the labels, masks and landmarks that there are."""
    images = {side: image_of(pair[side]) for side in SIDES}
    item = {f"{side}_image": image for side, image in images.items()}
    for kind in ("label", "mask"):
        known = {side: listed.get(image, {}).get(kind) for side, image in images.items()}
        item |= {
            f"{side}_{kind}": str(file)
            for side, image in images.items()
            if (file := known[side] or beside(folder / image, f"{kind}s"))
        }
    paths = {side: folder / image for side, image in images.items()}
    points = next((files for room in LANDMARKS if (files := landmark_files(room, **paths))), None)
    return item | ({f"{side}_points": str(file) for side, file in zip(SIDES, points, strict=True)} if points else {})


def label_values(content: Mapping[str, Any]) -> list[int]:
    """The label values that a ``*_dataset.json`` names, without the background; none if it names none."""
    names = content.get("labels")
    tables = [names, *names.values()] if isinstance(names, Mapping) else []  # of all images, or of each modality
    keys = {str(key) for table in tables if isinstance(table, Mapping) for key, value in table.items()
            if not isinstance(value, Mapping)}  # fmt: skip
    return sorted(int(key) for key in keys if key.isdecimal() and int(key))


def check_one_grid(fixed: Grid, moving: Grid, name: str) -> None:
    """ValueError, naming the pair, unless its images are 3-D and have as many voxels, of the same size."""
    if fixed.spatial_dims != 3:
        raise ValueError(f"{name}: Learn2Reg's displacements are of 3-D images, these are {fixed.spatial_dims}-D")
    if fixed.spatial_size != moving.spatial_size or not np.allclose(fixed.spacing, moving.spacing, rtol=1e-3):
        sizes = [f"{grid.spatial_size} voxels of {np.round(grid.spacing, 3).tolist()} mm" for grid in (fixed, moving)]
        raise ValueError(
            f"{name}: Learn2Reg compares images of one grid, in voxels, but the fixed image has {sizes[0]}, the "
            f"moving one {sizes[1]}: resample or pad both to one grid first"
        )


def write_displacement(points: Tensor, fixed: Grid, file: Path) -> None:
    """Writes a displacement in the challenge's form, ``(H, W, D, 3)`` float32.

    Args:
        points: ``(3, H, W, D)``, where each voxel of the fixed image is found, in voxels of the moving one.
        fixed: grid of the fixed image.
        file: ``.nii.gz``, which is replaced.
    """
    field = points - voxel_grid(points.shape[1:], points)
    write_image(MetaTensor(field.float(), affine=fixed.affine), file)
