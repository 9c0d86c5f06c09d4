"""The notebooks run from the first cell to the last, and show in the repository what they show when they run."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
MEGABYTE = 2**20
FULL, SMALL = "spatial_size=(32, 40, 32), train=6", "spatial_size=(32, 32, 32), train=4"  # data of the training


def runner():
    """The script that renews the notebooks."""
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(name: str) -> list:
    """The code cells of a notebook, as it is in the repository."""
    return [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells if cell.cell_type == "code"]


def test_there_are_the_three_notebooks():
    assert NAMES == ["components_in_your_pipeline", "register_two_images", "train_on_your_folder"]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("EPOCHS", "1")
    assert FULL in "".join(cell.source for cell in code_of("train_on_your_folder"))
    cells = [cell for cell in runner().run(name, instead={FULL: SMALL}).cells if cell.cell_type == "code"]
    pictures = [cell for cell in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    kept = [cell for cell in code_of(name) if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert len(pictures) == len(kept) >= 2
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_kept_with_its_outputs_and_without_a_trace_of_a_machine(name):
    file = FOLDER / f"{name}.ipynb"
    assert file.stat().st_size < 2 * MEGABYTE
    counts = [cell.execution_count for cell in code_of(name)]
    assert counts == list(range(1, len(counts) + 1))
    text = re.sub(r'"image/png": "[^"]*"', "", file.read_text(encoding="utf-8"))
    assert not re.search(r"/tmp/|/root/|/home/|/work/|site-packages", text)
    nbformat.validate(nbformat.read(file, as_version=4))
