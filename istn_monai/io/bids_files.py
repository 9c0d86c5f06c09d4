"""Files of a BIDS data set by the entities of their names, such as ``sub-01_ses-2_space-T1w_desc-aseg_dseg.nii.gz``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from istn_monai.io.named_files import stem_of

MARK = "dataset_description.json"
LABEL = "dseg"  # suffix of label maps; probseg is of probabilities, mask of one structure's
RAW = (".", "rawdata")  # trees that are no derivatives, unless the data set is one itself
#: entities that say what a file shows, not where it lies or of which images it is
KINDS = ("hemi", "label", "seg", "atlas", "desc")
INDEXES = ("run", "echo")  # whose zeros on the left mean nothing
DEPTHS = ("*", "*/*", "*/*/*")  # below a subject: a file, of a datatype, of a session's datatype


@dataclass(frozen=True)
class BidsFile:
    """A file and what its name says.

    Attributes:
        path: absolute.
        tree: the folder with the subjects that it lies below, as seen from the data set.
        entities: by key.
        suffix: such as T1w or dseg.
    """

    path: Path
    tree: str
    entities: dict[str, str]
    suffix: str

    @property
    def visit(self) -> tuple[str, str]:
        """Subject and session."""
        return self.entities["sub"], self.entities.get("ses", "")

    @property
    def pipeline(self) -> str:
        """The name of the folder of the derivatives; empty for raw data."""
        return "" if self.tree in RAW else Path(self.tree).name

    @property
    def words(self) -> set[str]:
        """The entities, as they are written, and the suffix."""
        return {*(f"{key}-{value}" for key, value in self.entities.items()), self.suffix}

    @property
    def meanings(self) -> set[str]:
        """What the file shows, without the keys: aseg of desc-aseg."""
        return {self.entities[key] for key in KINDS if key in self.entities}

    @property
    def kind(self) -> str:
        """What the file shows, such as desc-aseg_dseg."""
        return "_".join([*(f"{key}-{self.entities[key]}" for key in KINDS if key in self.entities), self.suffix])

    @property
    def whole_kind(self) -> str:
        """The same with the pipeline, such as fmriprep/desc-aseg_dseg."""
        return f"{self.pipeline}/{self.kind}" if self.pipeline else self.kind


def entities_of(stem: str) -> tuple[dict[str, str], str] | None:
    """Entities and suffix of a name; None if it is no name of BIDS.

    Examples:
        >>> entities_of("sub-01_run-02_T1w"), entities_of("sub-01_T1w_dseg")
        (({'sub': '01', 'run': '2'}, 'T1w'), None)
    """
    *pairs, suffix = stem.split("_")
    if "-" in suffix or not pairs or not all(re.fullmatch("[a-zA-Z0-9]+-[a-zA-Z0-9+]+", pair) for pair in pairs):
        return None
    entities = dict(pair.split("-") for pair in pairs)
    for key in INDEXES:
        if key in entities:
            entities[key] = entities[key].lstrip("0") or "0"
    return (entities, suffix) if "sub" in entities and len(entities) == len(pairs) else None


def trees_of(root: Path) -> dict[str, Path]:
    """The folders of a data set that have subjects: its own, and those of its derivatives."""
    folders = [root, root / "rawdata", root / "derivatives", *sorted((root / "derivatives").glob("*"))]
    with_subjects = [folder for folder in folders if any(entry.is_dir() for entry in folder.glob("sub-*"))]
    return {folder.relative_to(root).as_posix(): folder for folder in with_subjects}


def is_bids(folder: Path) -> bool:
    """Whether a folder is a data set of BIDS: by its description, or by its subjects."""
    return (folder / MARK).is_file() or bool(trees_of(folder))


def files_of(root: Path) -> tuple[list[BidsFile], list[Path]]:
    """Images and label maps of a data set, and those files whose names BIDS does not know.

    Raises:
        ValueError: for a file that lies in the folder of another subject or session than its name says.
    """
    known: list[BidsFile] = []
    others: list[Path] = []
    for tree, folder in trees_of(root).items():
        for path in images_below(folder):
            named = entities_of(stem_of(path) or "")
            if named is None:
                others.append(path)
                continue
            file = BidsFile(path, tree, *named)
            check_place(file, folder)
            known.append(file)
    return known, others


def images_below(folder: Path) -> Iterator[Path]:
    """All files of a tree's subjects that may be images, also links that lead nowhere yet."""
    for subject in sorted(folder.glob("sub-*")):
        for depth in DEPTHS:
            yield from (path for path in sorted(subject.glob(depth)) if stem_of(path) and not path.is_dir())


def check_place(file: BidsFile, folder: Path) -> None:
    """ValueError if a file lies in the folder of another subject or session: which one is right, nobody knows."""
    for part in file.path.relative_to(folder).parts[:-1]:
        key, _, value = part.partition("-")
        if key in ("sub", "ses") and value and file.entities.get(key) != value:
            raise ValueError(f"{file.path} lies in {part}, but its name says otherwise: rename or move it")


def names_of(label: BidsFile, root: Path) -> tuple[dict[int, str], list[str]]:
    """Names of structures by label value, from the table that belongs to a label map, and what is wrong with it.

    By BIDS's principle of inheritance that is the nearest ``dseg.tsv``, with the most entities of the label map.
    """
    folder = label.path.parent
    while folder.is_relative_to(root):
        fitting = []
        for table in sorted(folder.glob(f"*{LABEL}.tsv")):
            words = set(table.name.removesuffix(".tsv").split("_"))
            if words <= {*label.words, *label.path.name.split("_")}:
                fitting.append((len(words), table))
        if fitting:
            return read_names(max(fitting)[1])
        folder = folder.parent
    return {}, []


def read_names(table: Path) -> tuple[dict[int, str], list[str]]:
    """The columns ``index`` and ``name`` of a table, or a remark on why they are not read."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        names = {int(row["index"]): row["name"] for row in rows if row["name"]}
    except (KeyError, TypeError, ValueError, csv.Error):
        return {}, [f"names of structures are not read: {table} needs columns 'index' (whole numbers) and 'name'"]
    return {number: name for number, name in sorted(names.items()) if number != 0}, []
