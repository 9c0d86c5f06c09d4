"""What the tests share; small images, files and networks are in helpers.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import DATA_DIR
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)  # no test may fail by chance or by load
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets; a test that needs it is skipped where there is none."""
    if not DATA_DIR.is_dir():
        pytest.skip(f"no real data in {DATA_DIR} (set ISTN_DATA_DIR)")
    return DATA_DIR


@pytest.fixture(scope="session")
def hippocampus(data_dir: Path) -> Path:
    """The hippocampus data among them."""
    folder = data_dir / "hippocampus"
    if not (folder / "pairs_100.json").is_file():
        pytest.skip(f"no hippocampus data in {folder} (set ISTN_DATA_DIR)")
    return folder
