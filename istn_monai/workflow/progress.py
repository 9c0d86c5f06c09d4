"""What an evaluation has done so far, pair by pair: an interrupted one goes on when it is repeated.

Convention:
    Each process keeps one file, which is replaced after each pair: its rows, what its page shows, and the sums over its
    fields belong together, or a pair would count twice. Pictures of pages, and what viewers show, lie beside
    it.
"""

from __future__ import annotations

import json
import pickle
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from istn_monai.io.paths import replacing
from istn_monai.qa.cohort import Entry

MADE_OF = "made_of.json"
BESIDE = {"picture": ".jpg", "view": ".json"}  # what is long of an entry, and what its file ends with


class FieldSpread:
    """How much fields differ over pairs: near 0, the network has collapsed to one warp for all."""

    def __init__(self) -> None:
        self.number = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, ddf: Tensor) -> None:
        """Takes in a field ``(1, D, *S)``."""
        self.take(1, ddf.double(), ddf.double() ** 2)

    def merge(self, other: FieldSpread) -> None:
        """Takes in the fields of another."""
        self.take(other.number, other.total, other.squares)

    def take(self, number: int, total: Tensor | float, squares: Tensor | float) -> None:
        """Takes in the sums of some fields; of fields on grids of different sizes there is no spread."""
        shapes = {sums.shape for sums in (self.total, total) if isinstance(sums, Tensor)}
        self.number += number
        self.total = self.total + total if len(shapes) < 2 else float("nan")
        self.squares = self.squares + squares if len(shapes) < 2 else float("nan")

    def state(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {"number": self.number, "total": self.total, "squares": self.squares}

    def std(self) -> float:
        """Standard deviation over pairs in voxels, mean over voxels and components."""
        mean = self.total / self.number
        return float(torch.as_tensor(self.squares / self.number - mean**2).clamp(min=0).sqrt().mean())


def merged_spreads(spreads: Sequence[Mapping[str, FieldSpread]]) -> dict[str, FieldSpread]:
    """The spreads of several processes' fields, by method, as one."""
    merged: dict[str, FieldSpread] = {}
    for method, spread in (item for own in spreads for item in own.items()):
        merged.setdefault(method, FieldSpread()).merge(spread)
    return merged


@dataclass
class Done:
    """Pairs that were evaluated.

    Attributes:
        rows: of the table, by pair.
        entries: of the QA page, by pair.
        spread: of their fields, by method.
    """

    rows: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    entries: dict[int, Entry] = field(default_factory=dict)
    spread: dict[str, FieldSpread] = field(default_factory=dict)


def merged(chunks: Sequence[Done]) -> Done:
    """Several processes' pairs as one."""
    whole = Done(spread=merged_spreads([chunk.spread for chunk in chunks]))
    for chunk in chunks:
        whole.rows |= chunk.rows
        whole.entries |= chunk.entries
    return whole


class Progress:
    """Keeps in a hidden folder what is done, until all is.

    Args:
        folder: hidden, of this evaluation alone.
        made_of: inputs, weights and options: what was done for others is removed. None keeps nothing.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.made_of = None if made_of is None else json.dumps(made_of, sort_keys=True, default=str)
        self.file = folder / f"{uuid.uuid4().hex}.pt"

    def earlier(self) -> Done:
        """What an interrupted run of this very evaluation has done; that of another one is removed."""
        note = self.folder / MADE_OF
        if self.made_of is None or not note.is_file() or note.read_text(encoding="utf-8") != self.made_of:
            self.remove()
        if self.made_of is None:
            return Done()
        self.folder.mkdir(exist_ok=True)
        whole = merged([self.read(file) for file in sorted(self.folder.glob("*.pt"))])
        with replacing(note, durable=False) as part:
            part.write_text(self.made_of, encoding="utf-8")
        return whole

    def read(self, file: Path) -> Done:
        """What one process kept; nothing, where the file or a picture is not whole."""
        try:
            content = torch.load(file, weights_only=True)
            entries = {number: self.entry(number, values) for number, values in content["entries"].items()}
            spread = {name: FieldSpread() for name in content["spread"]}
            for name, sums in content["spread"].items():
                spread[name].take(**sums)
            return Done(content["rows"], entries, spread)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError):
            return Done()

    def entry(self, number: int, values: Mapping[str, Any]) -> Entry:
        """An entry, of what its file keeps and what lies beside."""
        whole: dict[str, Any] = {**values, **{name: self.beside(number, name).read_bytes() for name in BESIDE}}
        return Entry(**whole)

    def beside(self, number: int, name: str) -> Path:
        """The file of a pair's picture, or of what its viewer shows."""
        return self.folder / f"{number}{BESIDE[name]}"

    def keep(self, own: Done, number: int) -> None:
        """Writes what this process has done, of which a pair is new."""
        if self.made_of is None:
            return
        kept = [item.name for item in fields(Entry) if item.name not in BESIDE]
        entries = {key: {name: getattr(entry, name) for name in kept} for key, entry in own.entries.items()}
        spread = {name: sums.state() for name, sums in own.spread.items()}
        for name in BESIDE if number in own.entries else ():
            with replacing(self.beside(number, name), durable=False) as part:
                part.write_bytes(getattr(own.entries[number], name))
        with replacing(self.file, durable=False) as part:
            torch.save({"rows": own.rows, "entries": entries, "spread": spread}, part)

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
