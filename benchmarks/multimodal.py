"""Brains of other contrasts: T1 brains to averages in T1, T2, PD and EPI, by ours and by other tools, in turns.

    python benchmarks/multimodal.py --data DIR [--subjects 6] [--seeds 3] [--contrasts t1,t2,pd,epi] [--threads 1]
        [--methods SyN,greedy_nmi,...] [--peer_python /path/to/other/venv/bin/python] [--checkpoint FILE]
        [--tables subjects,motions] [--work DIR] [--output FILE] [--again]

DIR holds the data sets' folders. All is in voxels of 2 mm, those of the averages. Three tables:

``subjects``: the T1 brains of the brain data's test subjects are moved to the average of each contrast. As the brains
have no skull, the averages are masked by the brain that their labels cover. Labels are those that both have, the fixed
ones are the same for all contrasts, so what another contrast costs is seen beside ``t1``.

``motions``: the averages lie in one space, so the T1 average, moved in a known way (10 degrees about a random axis,
10 mm, up to 10 % along three axes, and B-splines of 40 mm that move by up to 4 to 6 mm), has a registration to each of
them that is known. Whole heads; errors in mm are those of the fixed points inside the skull.

``stripped``: the same motions, of what is inside the skull alone.

As in ``peers.py``, all methods begin with the centers of mass joined, each runs in a process of its own, the methods of
a pair one after the other, and one evaluator judges their displacement fields. A row is written as soon as it is there
and not measured again, unless code changed or ``--again`` says so. ``--checkpoint`` adds a row of a trained ISTN,
``ours_checkpoint``, which is registered with what its weights say.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fire
import torch
from common import RESULTS, Row, listed
from multimodal_pairs import CONTRASTS, motion_error, subjects_of, write_motion, write_subject
from peer_methods import CHECKPOINT, METHODS
from peers import START, Run, evaluate, interpreters, measured

from istn_monai.workflow import weights_name

DEFAULT = ("SyN", "greedy_nmi", "convexAdam", "ours_intensities", "ours_smooth", "ours_smooth_2mm", "ours_mind")
Judge = Callable[[Path | None, Path], Row]
#: by table: what judges a field, and what a summary tells of its numbers
TABLES: dict[str, tuple[Judge, tuple[str, ...]]] = {
    "subjects": (evaluate, ("dice", "dice_merged", "sdlogj", "folding")),
    "motions": (motion_error, ("error_mm", "error_95_mm", "sdlogj", "folding")),
}
TABLES["stripped"] = TABLES["motions"]


class Pair(NamedTuple):
    """One registration: of a table, from what, to which contrast."""

    table: str
    moving: str
    contrast: str

    @property
    def name(self) -> str:
        return f"{self.table}_{self.moving}_to_{self.contrast}"


def prepare(pair: Pair, data: Path, folder: Path) -> None:
    """Writes the images of a pair."""
    if pair.table == "subjects":
        write_subject(folder, data, pair.moving, pair.contrast)
    else:
        write_motion(folder, data, int(pair.moving), pair.contrast, pair.table == "stripped")


class Tables(Run):
    """Rows of both tables, see :class:`peers.Run`."""

    def summary(self) -> dict[str, Any]:
        """By table, contrast and method: means, and the medians of seconds."""
        found: dict[str, Any] = {}
        for table, (_, keys) in TABLES.items():
            for contrast in CONTRASTS:
                for method in (START, *METHODS):
                    wanted = {"table": table, "contrast": contrast, "method": method}
                    rows = [row for row in self.current() if wanted.items() <= row.items() and "error" not in row]
                    if rows:
                        here = found.setdefault(table, {}).setdefault(contrast, {})
                        here[method] = {"n": len(rows)} | numbers(rows, keys)
        return found


def numbers(rows: Sequence[Row], keys: Sequence[str]) -> Row:
    """Means by name, and medians of seconds, which a start has none of."""
    means = {key: statistics.mean(row[key] for row in rows) for key in keys}
    times = [key for key in ("seconds", "cpu_seconds") if key in rows[0]]
    return means | {key: statistics.median(row[key] for row in rows) for key in times}


def markdown(found: dict[str, Any], table: str) -> str:
    """One table of a summary: methods below each other, the contrasts beside each other."""
    _, keys = TABLES[table]
    by_contrast = found.get(table, {})
    heads = ["method", *(f"{contrast} {key}" for contrast in by_contrast for key in (*keys[:2], "sdlogj")), "s"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for method in (START, *METHODS):
        rows = [here[method] for here in by_contrast.values() if method in here]
        if not rows:
            continue
        cells = [f"{method}, n = {min(row['n'] for row in rows)}"]
        for here in by_contrast.values():
            cells += [f"{here[method][key]:.3f}" if method in here else "" for key in (*keys[:2], "sdlogj")]
        times = [row["seconds"] for row in rows if "seconds" in row]
        lines.append("| " + " | ".join([*cells, f"{statistics.median(times):.0f}" if times else ""]) + " |")
    return "\n".join(lines)


def pairs_of(data: Path, subjects: int, seeds: int, contrasts: Sequence[str], tables: Sequence[str]) -> list[Pair]:
    """All pairs, the first subject and the first motion at all contrasts before the second ones.

    Raises:
        ValueError: a contrast or a table is not there.
    """
    if unknown := sorted(set(tables) - set(TABLES)):
        raise ValueError(f"tables must be of {', '.join(TABLES)}, got {', '.join(unknown)}")
    if unknown := sorted(set(contrasts) - set(CONTRASTS)):
        raise ValueError(f"contrasts must be of {', '.join(CONTRASTS)}, got {', '.join(unknown)}")
    motions = [str(seed) for seed in range(seeds)]
    names = {table: subjects_of(data)[:subjects] if table == "subjects" else motions for table in tables}
    rounds = range(max(map(len, names.values())))
    turns = [(table, moving[turn]) for turn in rounds for table, moving in names.items() if turn < len(moving)]
    return [Pair(table, moving, contrast) for table, moving in turns for contrast in contrasts]


def main(
    data: str,
    subjects: int = 6,
    seeds: int = 3,
    contrasts: str | Sequence[str] = CONTRASTS,
    tables: str | Sequence[str] = ("subjects", "motions"),
    threads: int = 1,
    methods: str | Sequence[str] = DEFAULT,
    peer_python: str = sys.executable,
    checkpoint: str | None = None,
    work: str | None = None,
    output: str | None = None,
    again: bool = False,
) -> None:
    names = listed(methods)
    if checkpoint is not None:
        os.environ[CHECKPOINT] = str(Path(checkpoint).resolve(strict=True))  # the methods' processes read it
        names.append("ours_checkpoint")
    source = Path(data).absolute()
    pairs = pairs_of(source, subjects, seeds, listed(contrasts), listed(tables))
    pythons, versions = interpreters(names, peer_python)
    torch.set_num_threads(threads)
    used = weights_name(checkpoint)
    settings = {"subjects": subjects, "seeds": seeds, "checkpoint": used, "initial_alignment": "moments"}
    run = Tables(Path(output or RESULTS / "multimodal.json"), threads, check=False, installed=versions, **settings)
    with tempfile.TemporaryDirectory() as temporary:
        for pair in pairs:
            folder = Path(work or temporary).absolute() / pair.name
            todo = [name for name in pythons if again or not run.done(name, pair.name)]
            judge, _ = TABLES[pair.table]
            known = pair._asdict() | {"pair": pair.name}
            if todo:
                prepare(pair, source, folder)
                run.add(known | {"method": START} | judge(None, folder))
            for name in todo:
                run.add(known | measured(pythons[name], name, "brain", folder, threads, False, judge))
    for table in TABLES:
        print(table, markdown(run.summary(), table), sep="\n")
    print(f"written: {run.output}")


if __name__ == "__main__":
    fire.Fire(main)
