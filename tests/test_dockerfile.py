"""The Dockerfile: what it copies is there and enough, versions are pinned, nothing runs as root. It is not built."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
PAGE = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")
STAGES = re.findall(r"^FROM (\S+) AS (\w+)$", TEXT, re.MULTILINE)


def stage(name: str) -> list[str]:
    """The lines of a stage."""
    start = next(number for number, line in enumerate(LINES) if line.endswith(f" AS {name}"))
    rest = [number for number, line in enumerate(LINES) if line.startswith("FROM ") and number > start]
    return LINES[start : rest[0] if rest else None]


def copied(name: str) -> list[str]:
    """What a stage copies."""
    return [word for line in stage(name) if line.startswith("COPY ") for word in line.split()[1:-1]]


def test_what_is_copied_is_there_and_not_ignored():
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    sources = [source for _, name in STAGES for source in copied(name)]
    assert len(sources) >= 8 and sorted(sources) == sorted(allowed)
    assert all((ROOT / source).exists() for source in sources)


def test_the_package_is_built_of_what_is_copied(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in copied("user"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    for name in ("istn_monai/__main__.py", "istn_monai/bundle/models/model.pt", "istn_monai/bundle/configs/train.json"):
        assert name in names


@pytest.mark.parametrize("name, tied", [("istn", "-c constraints.txt"), ("label", "--no-deps")])
def test_all_that_is_installed_has_its_version(name, tied):
    installs = re.findall(r"pip install [^&]*", " ".join(stage(name)))
    assert installs and all(tied in install for install in installs)
    pins = (ROOT / "hosts" / "monai_label" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins if not line.startswith("#"))


def test_nothing_runs_as_root_and_the_command_line_is_the_default():
    assert [name for _, name in STAGES] == ["user", "label", "istn"]
    for name in ("label", "istn"):
        users = [line for line in stage(name) if line.startswith("USER ")]
        last = max(number for number, line in enumerate(stage(name)) if line.startswith("RUN "))
        assert users == ["USER 10001"] and stage(name).index("USER 10001") > last
    assert "useradd --uid 10001" in " ".join(stage("user"))
    entry = json.loads(next(line for line in stage("istn") if line.startswith("ENTRYPOINT ")).partition(" ")[2])
    assert entry == ["istn-monai"] and "istn-monai = " in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_the_page_names_the_targets_and_arguments_that_there_are():
    assert set(re.findall(r"--target (\w+)", PAGE)) == {"label"}
    arguments = set(re.findall(r"^ARG (\w+)", TEXT, re.MULTILINE))
    assert set(re.findall(r"^\| `(\w+)=", PAGE, re.MULTILINE)) == arguments
