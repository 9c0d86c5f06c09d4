"""The interactive viewer of a registered pair: HTML that needs no other file, no server and no network.

It shows what :func:`istn_monai.qa.sprites.pair_view` made of the pair. A browser decodes it when it is opened.
"""

from __future__ import annotations

import html
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from istn_monai.io.paths import absolute

VIEW_PAGE = "view.html"
HEIGHT = 760  # pixels of a viewer in a notebook
#: nothing is loaded from anywhere, whatever a page holds
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)
CONTENT = re.compile(r'<script type="application/json" class="istn-pair">(.*?)</script>', re.DOTALL)


@cache
def part(name: str) -> str:
    """One of the files that all viewers share."""
    return files("istn_monai.qa").joinpath(name).read_text(encoding="utf-8")


def style() -> str:
    """The style of all viewers of a page."""
    return f"<style>{part('viewer.css')}</style>"


def script() -> str:
    """The script of all viewers of a page, which comes behind them."""
    return f"<script>{part('viewer.js')}</script>"


def viewer(content: bytes) -> str:
    """The viewer of one pair; :func:`style` and :func:`script` belong to its page.

    Args:
        content: what :func:`istn_monai.qa.sprites.pair_view` gave.
    """
    inside = content.decode().replace("<", "\\u003c")  # no name of a file ends the element
    return f'<div class="istn-view"><script type="application/json" class="istn-pair">{inside}</script></div>'


def content_of(page: str) -> bytes:
    """What :func:`viewer` was given, from the page; empty if it has none."""
    found = CONTENT.search(page)
    return found.group(1).encode() if found else b""


def view_page(content: bytes) -> str:
    """A page with the viewer of one pair."""
    pair = json.loads(content)
    title = html.escape(" → ".join(pair["names"]))
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in pair["reasons"])
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">{POLICY}<title>{title}</title>',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f'{style()}</head><body class="istn-page"><main><h1>{title}</h1>',
            f'<p class="istn-status istn-{html.escape(pair["status"])}">QA: {html.escape(pair["status"])}</p>',
            f"<ul>{reasons}</ul>{viewer(content)}",
            "<noscript>The viewer needs JavaScript; qa.png beside it does not.</noscript>",
            f"</main>{script()}</body></html>\n",
        ]
    )


@dataclass(frozen=True)
class View:
    """The viewer of a pair, which a notebook shows.

    Attributes:
        page: HTML that needs no other file.
    """

    page: str

    def _repr_html_(self) -> str:
        """A frame of its own: neither the notebook's styles nor its keys reach the viewer."""
        style = f"width:100%;height:{HEIGHT}px;border:0;background:#14171c"
        return f'<iframe title="Registered pair" style="{style}" srcdoc="{html.escape(self.page)}"></iframe>'


def show(folder: str | os.PathLike) -> View:
    """The viewer of a registered pair, as the last line of a notebook's cell.

    Args:
        folder: of the pair's results.

    Raises:
        FileNotFoundError: if there is no ``view.html``.
    """
    file = absolute(Path(folder)) / VIEW_PAGE
    if not file.is_file():
        raise FileNotFoundError(
            f"folder: there is no {file}: give the folder of one registered pair, registered with qa (--qa True); "
            "results of earlier versions have none until --overwrite"
        )
    return View(file.read_text(encoding="utf-8"))
