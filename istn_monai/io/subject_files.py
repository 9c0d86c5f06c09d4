"""The subjects of a data set: which files are of one image, and which images are of one subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Visit = dict[str, Path]  #: files by kind: "image", "label", "points"
#: nnU-Net's name for voxels that nobody has labeled
UNLABELED = "ignore"


class Selection(NamedTuple):
    """What a user takes of the files of a subject, where there are several.

    Attributes:
        modality: which image: of nnU-Net a channel's number or name, of BIDS a suffix or entities.
        label_map: which label map, of BIDS: entities, or the name of a pipeline.
    """

    modality: str | None = None
    label_map: str | None = None


EVERYTHING = Selection()


@dataclass(frozen=True)
class Subjects:
    """The subjects of a data set.

    Attributes:
        visits: of each subject, one or more.
        names: of structures, by label value.
        remarks: what a user should know of how files were joined, a line each.
    """

    visits: dict[str, list[Visit]]
    names: dict[int, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def kinds(self) -> list[str]:
        """Of the files that each visit has."""
        return list(next(iter(self.visits.values()))[0])

    @property
    def files(self) -> list[tuple[str, Path]]:
        """All files with their kinds."""
        return [item for visits in self.visits.values() for visit in visits for item in visit.items()]


def examples(names: Sequence[Any]) -> str:
    """The first three of some names."""
    shown = ", ".join(map(str, names[:3]))
    return shown if len(names) <= 3 else f"{shown} ..."


def structure_names(labels: Any) -> dict[int, str]:
    """Names by label value, from what nnU-Net, the Decathlon and MONAI call ``labels``; background has none.

    Regions, which are lists of several values, name no value.

    Examples:
        >>> structure_names({"0": "background", "1": "Anterior"})
        {1: 'Anterior'}
        >>> structure_names({"background": 0, "whole": [1, 2], "core": [2], "ignore": 3})
        {2: 'core', 3: 'ignore'}
    """
    names: dict[int, str] = {}
    for key, value in labels.items() if isinstance(labels, Mapping) else ():
        number = value[0] if isinstance(value, list) and len(value) == 1 else value
        if isinstance(number, int) and not isinstance(number, bool):
            names[number] = str(key)
        elif isinstance(value, str) and str(key).isdecimal():
            names[int(key)] = value
    return {number: name for number, name in sorted(names.items()) if number != 0}
