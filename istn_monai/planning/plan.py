"""Settings for a data set from its fingerprint, each with its reason: the plan that a training begins with.

As in nnU-Net, rules take the place of trying; they are in :mod:`istn_monai.planning.grid` and
:mod:`istn_monai.planning.rules`.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from istn_monai.io.paths import absolute, check_output_dir, identities, new_file, replacing
from istn_monai.io.subject_files import EVERYTHING, Selection
from istn_monai.network_settings import none_or
from istn_monai.planning.dataset import DataSet, data_set, is_datalist, name_of, read_settings, source_of
from istn_monai.planning.fingerprint import Fingerprint, fingerprint
from istn_monai.planning.grid import Choice
from istn_monai.planning.rules import Estimate, choices, estimate

NOTES = "_plan_"  # the key of what a plan says of itself; all others are settings
WIDTHS = (18, 34, 64)  # columns of the table


@dataclass(frozen=True)
class Plan:
    """Settings of a training with their reasons.

    Attributes:
        choices: the settings.
        estimate: of memory and time.
        fingerprint: what was measured, as JSON.
        origin: of what data, see :attr:`istn_monai.planning.dataset.DataSet.origin`.
    """

    choices: tuple[Choice, ...]
    estimate: Estimate
    fingerprint: Mapping[str, Any]
    origin: Mapping[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        """By name, an overlay of the bundle's train.json."""
        return {choice.name: choice.value for choice in self.choices}

    def content(self) -> dict[str, Any]:
        """The plan file's JSON: settings at the top, and under ``_plan_`` what explains them."""
        notes = {
            "made_from": dict(self.origin),
            "reasons": {choice.name: choice.reason for choice in self.choices},
            "estimate": asdict(self.estimate),
            "fingerprint": dict(self.fingerprint),
        }
        return {**self.settings, NOTES: notes}

    def table(self) -> str:
        """Setting, value and reason, at most 120 columns."""
        rows = [("setting", "value", "reason"), tuple("-" * width for width in WIDTHS)]
        rows += [(choice.name, json.dumps(choice.value), choice.reason) for choice in self.choices]
        return "\n".join([*map(row_text, rows), "", *textwrap.wrap(self.estimate.text(), sum(WIDTHS))])


def row_text(row: Sequence[str]) -> str:
    """A row of the table; long cells go on in the next line."""
    cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, WIDTHS, strict=True)]
    lines = []
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        lines.append("  ".join(part.ljust(width) for part, width in zip(parts, WIDTHS, strict=True)).rstrip())
    return "\n".join(lines)


def make_plan(data: DataSet, nifti_frame: str | None = None) -> Plan:
    """Reads a data set and decides its settings."""
    found = fingerprint(data, nifti_frame)
    decided = choices(found)
    where = (
        Choice("dataset_dir", str(data.datalist.parent), "where the datalist is; its paths are relative to it"),
        Choice("data_list_file", data.datalist.name, pairs_text(data, found)),
        Choice("run_name", data.name, "the data's name; results go to runs/NAME_LOSS_TRANSFORMATION"),
    )
    asked = () if nifti_frame is None else (Choice("nifti_frame", nifti_frame, "as asked for"),)
    return Plan((*where, *decided, *asked), estimate(decided, found), found.summary(), data.origin)


def pairs_text(data: DataSet, found: Fingerprint) -> str:
    """How many pairs there are, and where from."""
    counts = ", ".join(f"{number} {split}" for split, number in found.pairs.items())
    drawn = data.source.is_dir() and data.datalist.parent != data.source
    how = "drawn at random, no subject in two splits" if drawn else "as given"
    return f"pairs of {found.number} images ({counts}), {how}"


def default_output(source: Path) -> Path:
    """NAME_plan.json in the current folder."""
    return absolute(f"{name_of(source)}_plan.json")


def write_plan(
    data: str | os.PathLike,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    nifti_frame: str | None = None,
    selection: Selection = EVERYTHING,
) -> tuple[Plan, Path]:
    """Plans the training of a data set and writes the plan.

    Of a folder without pairs.json the pairs are drawn, and written beside the plan as NAME_pairs.json. The folder
    itself is only read.

    Args:
        data: a folder with images and labels or landmarks, of nnU-Net or of BIDS; or a datalist (.json).
        output: JSON file to write; None is NAME_plan.json in the current folder.
        overwrite: replace an existing plan.
        nifti_frame: itk, sform or qform, where readers understand a NIfTI header in two ways.
        selection: of images and label maps, where subjects have several.

    Returns:
        The plan and its file.

    Raises:
        FileExistsError: if the output is there already.
        FileNotFoundError: for a missing folder or file.
        ValueError: for data that no network can be trained on; for an output that is no .json.
    """
    source = source_of(data)
    file = default_output(source) if output is None else absolute(output)
    if identities(file) & identities(source):
        raise ValueError(f"output {file} is the data set itself; choose another name")
    if file.suffix != ".json":
        raise ValueError(f"output must be a .json, which train reads, got {file}")
    new_file(file, overwrite=overwrite)
    if file.exists() and not is_plan(file):
        raise FileExistsError(f"output {file} is no plan and is left alone: choose another name")
    check_output_dir(file.parent, "the plan's folder")
    drawn = drawn_pairs(source, file)
    new = not drawn.exists()
    try:
        plan = make_plan(data_set(source, drawn, selection), none_or(nifti_frame))
    except Exception:
        if new:  # pairs of data that cannot be used would be in the way of others
            drawn.unlink(missing_ok=True)
        raise
    with replacing(file) as part:
        part.write_text(json.dumps(plan.content(), indent=1) + "\n", encoding="utf-8")
    return plan, file


def is_plan(file: Path) -> bool:
    """Whether a file is a plan, which may be replaced where that is asked for."""
    try:
        return NOTES in read_settings(file)
    except ValueError:
        return False


def drawn_pairs(source: Path, plan: Path) -> Path:
    """Where the pairs of a folder are written, beside its plan."""
    return plan.with_name(f"{name_of(source)}_pairs.json")


def plan_of(
    data: str | os.PathLike,
    nifti_frame: str | None = None,
    folder: str | os.PathLike | None = None,
    selection: Selection = EVERYTHING,
) -> Path:
    """The plan for what a user gives to a training.

    Args:
        data: settings (.json), taken as they are; or a datalist or a folder, for which a plan is made in the current
            folder, or taken from there if it was made from the same data: a repeated training goes on.
        nifti_frame: of a new plan, see :func:`write_plan`.
        folder: for a new plan, in the place of the current folder.
        selection: see :func:`write_plan`.

    Raises:
        FileExistsError: if a plan of other data is in the way.
        ValueError: for a selection from settings, which have their pairs.
    """
    source = source_of(data)
    if source.is_file() and not is_datalist(source):
        if selection != EVERYTHING:
            raise ValueError(
                f"modality and label_map are for a folder, and {source} is a plan with its pairs: leave "
                "them out, or plan anew"
            )
        return source
    file = default_output(source)
    if not file.exists():
        file = file if folder is None else Path(folder) / file.name
        plan, file = write_plan(source, file, True, nifti_frame, selection)  # processes of one training write the same
        print(plan.table() if folder else f"{plan.table()}\nwritten: {file}")
        return file
    known = read_settings(file).get(NOTES, {}).get("made_from")
    if known != data_set(source, drawn_pairs(source, file), selection).origin:
        raise FileExistsError(
            f"{file} was made from other data than {source} has now: to train with it, give it in the place of the "
            f"data; for a new one, istn-monai plan {source} --overwrite"
        )
    print(f"using {file}, made from the same data; for a new one: istn-monai plan {source} --overwrite")
    return file
