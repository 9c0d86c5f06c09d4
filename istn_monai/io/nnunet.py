"""What ``dataset.json`` says of a folder: the one of nnU-Net, in both versions, and of the Decathlon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from istn_monai.io.datalist import IMAGE_SUFFIXES, read_json
from istn_monai.io.named_files import Channels
from istn_monai.io.subject_files import structure_names

FILE = "dataset.json"


@dataclass(frozen=True)
class Description:
    """What a ``dataset.json`` says.

    Attributes:
        names: of structures, by label value.
        channels: names of channels by their number.
        suffixes: of images and label maps.
        number: of training cases, if it says so.
        listed: files of each case, of a data set whose files lie anywhere: images by channel, and the label map.
    """

    names: dict[int, str] = field(default_factory=dict)
    channels: dict[int, str] = field(default_factory=dict)
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    number: int | None = None
    listed: dict[str, tuple[Channels, Path]] = field(default_factory=dict)


def described(folder: Path) -> Description:
    """What the ``dataset.json`` of a folder says; nothing if there is none.

    Raises:
        ValueError: if it is no JSON object.
    """
    file = folder / FILE
    if not file.is_file():
        return Description()
    content = read_json(file, "data set's description", "a JSON object, as nnU-Net writes it")
    number, ending = content.get("numTraining"), content.get("file_ending")
    return Description(
        names=structure_names(content.get("labels")),
        channels=channel_names(content.get("channel_names", content.get("modality"))),
        suffixes=(ending,) if isinstance(ending, str) and ending else IMAGE_SUFFIXES,
        number=number if isinstance(number, int) else None,
        listed=listed_cases(content.get("dataset"), file),
    )


def channel_names(names: Any) -> dict[int, str]:
    """Names of channels by number, from what a description calls so."""
    items = names.items() if isinstance(names, Mapping) else ()
    return {int(number): str(name) for number, name in items if str(number).isdecimal()}


def listed_cases(cases: Any, file: Path) -> dict[str, tuple[Channels, Path]]:
    """The files that nnU-Net's ``dataset`` lists, relative to the description."""
    found: dict[str, tuple[Channels, Path]] = {}
    for case, entry in cases.items() if isinstance(cases, Mapping) else ():
        images = entry.get("images") if isinstance(entry, Mapping) else None
        if not isinstance(images, list) or not all(isinstance(path, str) for path in [*images, entry.get("label")]):
            raise ValueError(f"{file}: dataset {case!r} must have a list 'images' of files and a file 'label'")
        found[case] = {number: file.parent / path for number, path in enumerate(images)}, file.parent / entry["label"]
    return found
