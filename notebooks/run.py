"""Runs the notebooks anew, each in a folder of its own, and keeps what they show.

python notebooks/run.py [NAME ...]
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
BAR, ESCAPE = re.compile(r"\d+%\|"), re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def run(name: str, seconds: int = 3600, instead: Mapping[str, str] | None = None) -> nbformat.NotebookNode:
    """A notebook as it is after it has run in an empty folder; an error of a cell is an error here.

    ``instead``: what is run in the place of pieces of its code.
    """
    notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for piece, other in (instead or {}).items():
            cell.source = cell.source.replace(piece, other)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            clean(cell, folder)
    return notebook


def clean(cell: nbformat.NotebookNode, folder: str) -> None:
    """Takes progress bars, warnings and times out of a cell, which differ each time, and the place of its folder."""
    cell.metadata.pop("execution", None)
    if cell.cell_type != "code":
        return
    text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    lines = [line for line in re.split(r"[\r\n]+", ESCAPE.sub("", text)) if line.strip() and not BAR.search(line)]
    shown = [output for output in cell.outputs if output.output_type != "stream"]
    if lines:
        said = "\n".join(lines).replace(folder + "/", "").replace(folder, ".") + "\n"
        shown.insert(0, nbformat.v4.new_output("stream", name="stdout", text=said))
    cell.outputs = shown


def main() -> None:
    """Renews the notebooks that are named, or all."""
    for name in sys.argv[1:] or sorted(file.stem for file in HERE.glob("*.ipynb")):
        begin = time.time()
        nbformat.write(run(name), HERE / f"{name}.ipynb")
        print(f"{name}: {time.time() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
