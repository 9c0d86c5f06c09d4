"""What a result was made of, and whether another would be the same: files and weights by hash, options by value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import Tensor

from istn_monai.alignment import INITIAL_ALIGNMENTS
from istn_monai.foreign_networks import described_representation  # noqa: F401 (what the configs call)
from istn_monai.io.any_transform import files_of
from istn_monai.io.hashes import file_hash, file_state
from istn_monai.workflow.settings import running

PLACES = ("checkpoint",)  # options that say where something lies, whose content is compared
MOST = 4  # differences that an error names


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights, by its state dictionary."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def described_start(name: str) -> str:
    """The name of an initial alignment; of a file with the hash of what is in it."""
    files = [] if name in INITIAL_ALIGNMENTS else files_of(name)
    return " ".join([name, *(str(file_hash(file))[:16] for file in files if file.is_file())])


def config_hash(*ids: str) -> str:
    """SHA-256 of entries of the config under evaluation as they stand there: of what has no setting of its own."""
    parser = running(ConfigParser)
    config = {} if parser is None else parser.get()
    text = json.dumps({name: config.get(name) for name in ids}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def described(value: Any) -> str:
    """``repr`` of an object; the name of its class, where that would be its place in memory."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}" if kind.__repr__ is object.__repr__ else repr(value)


def input_record(file: str) -> dict[str, Any]:
    """What is kept of an input: where it was, its hash, and the state of its files in which it has that hash."""
    return {"file": str(file), "place": place_of(file), "sha256": file_hash(file), "state": file_state(file)}


def place_of(file: str) -> str:
    """Where a file is, whatever link or relative name led there."""
    return str(Path(file).expanduser().resolve())


def is_same_input(record: Mapping[str, Any], file: str) -> bool:
    """Whether a file is the input of a record; one that was not touched is not read again."""
    if record.get("place") == place_of(file) and record.get("state") == file_state(file):
        return True
    return record.get("sha256") is not None and record["sha256"] == file_hash(file)


def differing_inputs(records: Mapping[str, Any], files: Mapping[str, str]) -> Iterator[str]:
    """What differs between the inputs of a result and those of now, in words."""
    for key in dict.fromkeys([*records, *files]):
        if key not in files:
            yield f"{key}: {records[key].get('file')} then, none now"
        elif key not in records:
            yield f"{key}: none then, {files[key]} now"
        elif not is_same_input(records[key], files[key]):
            yield f"{key}: other content than {records[key].get('file')} had then, in {files[key]} now"


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name, those of inner mappings as ``outer.inner``, as JSON has them."""
    values: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(options, default=str)).items():
        inner = flat(value) if isinstance(value, dict) else None
        values |= {name: value} if inner is None else {f"{name}.{key}": item for key, item in inner.items()}
    return values


def differing_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the options of a result and those of now, in words; not where things lie."""
    old, new = flat(then), flat(now)
    for name in dict.fromkeys([*old, *new]):
        if name not in PLACES and old.get(name) != new.get(name):
            if name.endswith("_sha256"):
                yield f"{name.removesuffix('_sha256')}: another one then"
            else:
                yield f"{name}: {old.get(name)!r} then, {new.get(name)!r} now"


def listed(differences: Iterator[str]) -> str:
    """The first differences in one line, and how many more there are; nothing for none."""
    found = list(differences)
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return "; ".join(found[:MOST]) + more
