"""What is handed over: the files and DICOM series of a pair in an input folder, and the model.

All is found and checked before anything is read or computed. Nothing here needs the App SDK or pydicom.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from istn_monai.io.dicom import is_dicom

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")
#: how the entries of the input folder begin; a label's name also begins with that of its image
NAMES = {
    "fixed_image": re.compile(r"fixed(?!_label)"),
    "moving_image": re.compile(r"moving(?!_label)"),
    "moving_label": re.compile(r"moving_label"),
}
LAYOUT = (
    "the input folder holds fixed*, moving* and, if there is one, moving_label*, each an image file "
    f"({', '.join(IMAGE_SUFFIXES)}) or a folder with one image file or one DICOM series"
)


@dataclass(frozen=True)
class Source:
    """Where an image comes from.

    Attributes:
        path: of the image file, or of the folder that holds the DICOM series.
        is_dicom: whether it is the latter.
    """

    path: Path
    is_dicom: bool


def is_image(path: Path) -> bool:
    """Whether a file is named as an image."""
    return path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES)


def one_of(paths: Sequence[Path], what: str) -> Path:
    """The only one of several paths, or a ValueError that lists them."""
    if len(paths) > 1:
        raise ValueError(f"{what}: one is expected, there are {', '.join(map(str, sorted(paths)))}; {LAYOUT}")
    return paths[0]


def source_of(path: Path, key: str) -> Source:
    """An image file, or what is in a folder: either one image file or DICOM files, but not both."""
    if not path.exists():
        raise FileNotFoundError(f"{key}: no such file or folder: {path}")
    if is_image(path):
        return Source(path, False)
    if not path.is_dir():
        raise ValueError(f"{key}: {path} is neither an image file ({', '.join(IMAGE_SUFFIXES)}) nor a folder")
    images = [file for file in path.rglob("*") if is_image(file)]
    dicom = is_dicom(path)
    if images and dicom:
        raise ValueError(f"{key}: {path} holds both DICOM files and {images[0].name}; leave one of them")
    if images:
        return Source(one_of(images, key), False)
    if not dicom:
        raise FileNotFoundError(f"{key}: neither an image file nor DICOM files in {path}; {LAYOUT}")
    return Source(path, True)


def find_pair(
    folder: Path, atlas: Path | None = None, atlas_label: Path | None = None, from_study: Sequence[str] = ()
) -> dict[str, Source]:
    """The sources of a pair.

    Args:
        folder: see ``LAYOUT``. If nothing in it is named ``fixed*``, its DICOM files are the fixed series: so a study
            can be handed over as it is, and goes with the atlas.
        atlas: moving image, if there is none in the folder.
        atlas_label: its label.
        from_study: keys that are series of one study, chosen by rules among all DICOM files of the folder.

    Returns:
        ``fixed_image``, ``moving_image`` and, if there is one, ``moving_label``.

    Raises:
        FileNotFoundError, ValueError: what is missing or ambiguous, by key and path, and what to do.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"input: {folder} is not a folder; {LAYOUT}")
    named = {key: named_in(folder, key) for key in NAMES}
    pair = {key: source_of(path, key) for key, path in named.items() if path is not None}
    for key in ("fixed_image", *from_study):
        if key not in pair and is_dicom(folder):
            pair[key] = Source(folder, True)
    if "fixed_image" not in pair:
        raise FileNotFoundError(f"fixed_image: nothing is named fixed* in {folder}, and no DICOM file; {LAYOUT}")
    if "moving_image" in pair:
        return pair
    if "moving_label" in pair:
        raise FileNotFoundError(f"moving_image: there is {pair['moving_label'].path} but no image moving*; {LAYOUT}")
    if atlas is None:
        raise FileNotFoundError(
            f"moving_image: nothing is named moving* in {folder}; add it, or set an atlas (--atlas FILE or ISTN_ATLAS)"
        )
    configured = {"moving_image": atlas, "moving_label": atlas_label}
    return pair | {key: source_of(path, key) for key, path in configured.items() if path is not None}


def named_in(folder: Path, key: str) -> Path | None:
    """The only entry of a folder that is named as ``key`` demands, or None."""
    entries = [path for path in folder.iterdir() if path.is_dir() or is_image(path)]
    matching = [path for path in entries if NAMES[key].match(path.name)]
    return one_of(matching, key) if matching else None


def model_settings(path: Path | None) -> dict[str, str]:
    """The arguments of ``istn_monai.registration.Registration`` for a model path of the SDK.

    Args:
        path: a bundle's folder or a folder with one; a folder with ``model.pt``; a checkpoint. None and an empty
            folder, as a packaged application without a model has, stand for the bundle that comes with istn_monai.
    """
    if path is None or (path.is_dir() and not any(path.iterdir())):
        return {}
    if not path.exists():
        raise FileNotFoundError(f"model: no such file or folder: {path}")
    if path.is_file():
        return {"checkpoint_file": str(path)} | bundle_setting(path.parent.parent)
    folders = [path] if bundle_setting(path) else [entry for entry in path.iterdir() if bundle_setting(entry)]
    if folders:
        return bundle_setting(one_of(folders, "model"))
    if (path / "model.pt").is_file():
        return {"ckpt_dir": str(path)} | bundle_setting(path.parent)
    raise FileNotFoundError(
        f"model: {path} is neither a bundle (configs/inference.json, models/model.pt), nor does it hold one, or a "
        "model.pt; leave -m out for the one installed with istn_monai"
    )


def bundle_setting(folder: Path) -> Mapping[str, str]:
    """``bundle_root``, if a folder is a bundle."""
    return {"bundle_root": str(folder)} if (folder / "configs" / "inference.json").is_file() else {}
