"""One self-contained HTML file with the QA pages and viewers of many pairs, the worst first: no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from istn_monai.io.paths import absolute, replacing
from istn_monai.qa.rules import AMBER, GREEN, RED, RULES, STATUS_COLORS, STATUSES
from istn_monai.qa.viewer import POLICY, VIEW_PAGE, content_of, script, style, viewer

QA_COHORT = "qa.html"
FAILED = "failed"
GENERATOR = '<meta name="generator" content="istn-monai">'  # by it a page is ours
TITLE = "Registration QA"
#: a page's picture in the file, with the hash of the pair's own page
PICTURE = re.compile(r'data-page="([0-9a-f]{64})" src="data:image/jpeg;base64,([^"]*)"')
COLORS = STATUS_COLORS | {FAILED: "#4a5462"}
ON_COLORS = {GREEN: "#06120e", AMBER: "#1a1200"}  # text, elsewhere white
#: columns of the table: what tells most in a cohort, with an ITN and without; those that some pair has
COHORT_METRICS = (
    "overlap_one_pass",
    "overlap",
    "ambiguity",
    "coverage",
    "correlation",
    "objective",
    "objective_images",
    "lncc_change",
    "at_bound",
    "displacement_mm",
    "sdlogj",
    "folding",
)
TITLES = {rule.metric: rule.title for rule in RULES} | {"displacement_mm": "displacement, 99 %, mm"}
VIEWS = 100_000_000  # bytes of all viewers in a file, which browsers still open at once
WIDTH, QUALITY = 1280, 72  # pixels and JPEG quality of an embedded page: readable, and some 100 kB
STYLE = """
:root{color-scheme:light}
body{font:15px/1.45 system-ui,sans-serif;color:#20262e;background:#f5f6f8;max-width:1320px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .3rem} p{color:#5a6470;margin:.3rem 0 1rem;max-width:75ch}
.status{display:inline-block;padding:.1rem .6rem;border-radius:1rem;font-weight:600;font-size:.85rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;background:#fff;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid #e4e7eb;text-align:right;vertical-align:bottom}
th:nth-child(-n+3),td:nth-child(-n+3){text-align:left} th{font-weight:600;color:#5a6470}
details{background:#fff;margin:1rem 0;border:1px solid #e0e3e8;border-radius:.5rem;padding:.7rem 1rem}
summary{cursor:pointer;font-weight:600} summary small{color:#5a6470;font-weight:400}
li{font-size:.9rem} img{width:100%;height:auto;display:block} a{color:inherit}
"""


@dataclass(frozen=True)
class Entry:
    """A pair of a cohort.

    Attributes:
        name: such as ``pair_0007``.
        files: moving and fixed.
        report: what :meth:`istn_monai.qa.rules.Verdict.report` gives; None for a pair that failed.
        picture: its page as JPEG; empty without one.
        error: why it failed.
        page: hash of the pair's own page, of which the picture was made.
        view: what its viewer shows, see :func:`istn_monai.qa.sprites.pair_view`; empty without one.
    """

    name: str
    files: str
    report: Mapping[str, Any] | None
    picture: bytes = b""
    error: str = ""
    page: str = ""
    view: bytes = b""

    @property
    def status(self) -> str:
        """One of ``STATUSES``, or ``FAILED``."""
        return FAILED if self.report is None else self.report["status"]

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the rules judge; nothing of a pair that failed."""
        return {} if self.report is None else self.report["metrics"]

    @property
    def reasons(self) -> list[str]:
        """Why the status is not green."""
        return [self.error] if self.report is None else self.report["reasons"]

    @property
    def badness(self) -> tuple[int, int, int]:
        """Sorts entries: failed, then by status and the number of red and of all reasons."""
        place = len(STATUSES) if self.report is None else STATUSES.index(self.status)
        return place, sum(reason.startswith(RED) for reason in self.reasons), len(self.reasons)


def jpeg(page: Image.Image) -> bytes:
    """A page small enough to be one of many in a file."""
    small = page.convert("RGB").resize((WIDTH, round(page.height * WIDTH / page.width)), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=QUALITY, optimize=True)
    return content.getvalue()


def entry_of(folder: Path, known: Mapping[str, bytes] | None = None) -> Entry | None:
    """The entry of a folder that registration wrote; None if it holds no QA page.

    Args:
        folder: of the pair.
        known: what :func:`pictures_of` found: to make a picture takes as long as to look at 50 of them.
    """
    report, page = folder / "report.json", folder / "qa.png"
    if not (report.exists() and page.exists()):
        return None
    content = json.loads(report.read_text(encoding="utf-8"))
    files = " → ".join(Path(content["inputs"][f"{side}_image"]["file"] or side).name for side in ("moving", "fixed"))
    written = page.read_bytes()
    name = hashlib.sha256(written).hexdigest()
    picture = (known or {}).get(name)
    if picture is None:
        with Image.open(io.BytesIO(written)) as image:
            picture = jpeg(image)
    view = content_of((folder / VIEW_PAGE).read_text(encoding="utf-8")) if (folder / VIEW_PAGE).is_file() else b""
    return Entry(folder.name, files, content["qa"], picture, page=name, view=view)


def pictures_of(file: Path) -> dict[str, bytes]:
    """The pictures in a page that :func:`write_cohort` wrote, by the hashes of what they were made of."""
    if not file.is_file():
        return {}
    found = PICTURE.findall(file.read_text(encoding="utf-8", errors="replace"))
    return {name: base64.b64decode(code) for name, code in found}


def check_page(file: Path) -> None:
    """FileExistsError if a file is there that :func:`write_cohort` did not write."""
    if not os.path.lexists(file):
        return
    head = file.read_bytes()[:4096].decode(errors="replace") if file.is_file() else ""
    if GENERATOR not in head and f"<title>{TITLE}" not in head:  # the first versions had no generator
        raise FileExistsError(f"{file} is no page of this command and is left alone: choose another output_dir")


def write_cohort(entries: Iterable[Entry], file: str | Path, title: str = TITLE) -> Path:
    """Writes the file; pairs by badness, the worst first and open.

    Args:
        entries: of the pairs.
        file: to write; a page of this function is replaced.
        title: of the page.
    """
    ordered = sorted(entries, key=lambda entry: entry.badness, reverse=True)
    shown = with_viewers(ordered)
    counts = " ".join(
        f"{badge(status, f'{number} {status}')}"
        for status in (FAILED, *reversed(STATUSES))
        if (number := sum(entry.status == status for entry in ordered))
    )
    columns = [name for name in COHORT_METRICS if any(name in entry.metrics for entry in ordered)]
    titles = ("pair", "status", "files", *(TITLES[name] for name in columns))
    head = "".join(f"<th>{html.escape(text)}</th>" for text in titles)
    rows = "".join(row(entry, columns) for entry in ordered)
    page = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{GENERATOR}<title>{html.escape(title)}</title>',
        POLICY,
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<style>{STYLE}</style>{style() if shown else ''}</head><body>",
        f"<h1>{html.escape(title)}</h1><p>{len(ordered)} pairs: {counts}</p>",
        "<p>The worst first. The status is that of the worst rule; each page states its rules and their limits. It "
        "warns of what looks unlike a good registration and proves nothing: look at the pictures.</p>",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>',
        f"<tbody>{rows}</tbody></table></div>",
        *(section(entry, entry.name in shown) for entry in ordered),
        f"{script() if shown else ''}</body></html>\n",
    ]
    path = absolute(file)
    with replacing(path) as part:
        part.write_text("\n".join(page), encoding="utf-8")
    return path


def with_viewers(entries: Iterable[Entry]) -> set[str]:
    """Names of the entries whose viewers the file has room for, by their order."""
    entries = list(entries)
    ends = accumulate(len(entry.view) for entry in entries)
    return {entry.name for entry, end in zip(entries, ends, strict=True) if entry.view and end <= VIEWS}


def badge(status: str, text: str | None = None) -> str:
    """A status as text on its color."""
    colors = f"background:{COLORS[status]};color:{ON_COLORS.get(status, '#fff')}"
    return f'<span class="status" style="{colors}">{html.escape(text or status)}</span>'


def row(entry: Entry, columns: Iterable[str]) -> str:
    """One pair's line of the table."""
    own = entry.metrics
    cells = "".join(f"<td>{own[name]:.3f}</td>" if name in own else "<td>–</td>" for name in columns)
    name = html.escape(entry.name)
    link = f'<a href="#{name}">{name}</a>'
    return f"<tr><td>{link}</td><td>{badge(entry.status)}</td><td>{html.escape(entry.files)}</td>{cells}</tr>"


def section(entry: Entry, viewed: bool) -> str:
    """One pair's reasons, viewer and page; open unless it is green."""
    name, files = html.escape(entry.name), html.escape(entry.files)
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in entry.reasons)
    code = base64.b64encode(entry.picture).decode()
    made_of = f'data-page="{entry.page}" ' if entry.page else ""
    picture = f'<img alt="QA page of {name}" {made_of}src="data:image/jpeg;base64,{code}">' if code else ""
    opened = "" if entry.status == STATUSES[0] else " open"
    return (
        f'<details id="{name}"{opened}><summary>{badge(entry.status)} {name} <small>{files}</small></summary>'
        f"<ul>{reasons}</ul>{viewer_box(entry, viewed)}{picture}</details>"
    )


def viewer_box(entry: Entry, viewed: bool) -> str:
    """The viewer, which is decoded when it is opened; where it is, if the file has no room for it."""
    if not entry.view:
        return ""
    if not viewed:
        return f"<p>{VIEW_PAGE} in the folder of this pair is its viewer: there is no room for it here.</p>"
    return f'<details class="istn-open"><summary>Interactive viewer</summary>{viewer(entry.view)}</details>'
