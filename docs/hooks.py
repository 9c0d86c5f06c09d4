"""Builds the site from documents where they lie: pages from outside of docs, links that lead there, Sphinx's roles."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
#: documents that read as well where they lie, and the site's names of them
PAGES = {
    "bundle/docs/README.md": "model-card.md",
    "hosts/monai_label/README.md": "hosts/monai_label.md",
    "hosts/monai_deploy/README.md": "hosts/monai_deploy.md",
    "hosts/slicer/README.md": "hosts/slicer.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",  # which the site has its own page for
}
GENERATED = {page: source for source, page in PAGES.items() if source != "README.md"}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages from outside, and each file of the repository that a page links to."""
    for page, source in GENERATED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for page in list(files.documentation_pages()):
        for target in outside(page):
            name = f"files/{target}"
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Leads links of the repository's files to the site's."""
    here = source_of(page.file)
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(lambda link: led(link[1], here, page.file.src_uri), text) for text in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **others: Any) -> str:
    """Shows Sphinx's roles, which docstrings have for cross-references, as code, with a link where there is one."""
    return ROLE.sub(reference, html)


def reference(role: re.Match[str]) -> str:
    """A name in code, whose link the plugin autorefs fills in."""
    name = role[1].removeprefix("istn_monai.") if role[1].count(".") == 1 else role[1].rpartition(".")[2]
    return f'<autoref identifier="{role[1]}" optional><code>{name}</code></autoref>'


def source_of(file: File) -> str:
    """Where a page lies in the repository."""
    return GENERATED.get(file.src_uri, f"docs/{file.src_uri}")


def outside(file: File) -> Iterator[str]:
    """Files of the repository, neither documents of the site nor pages of it, that a page links to."""
    here = source_of(file)
    for text in FENCE.split((ROOT / here).read_text(encoding="utf-8"))[::2]:
        for link in LINK.findall(text):
            target = in_repository(link, here)
            if not target.startswith("docs/") and target not in PAGES and (ROOT / target).is_file():
                yield target


def in_repository(link: str, here: str) -> str:
    """The repository's file that a link of a document means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def led(link: str, here: str, page: str) -> str:
    """A link of a document as one of its page."""
    target = in_repository(link, here)
    name = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else f"files/{target}")
    return posixpath.relpath(name, posixpath.dirname(page) or ".")
