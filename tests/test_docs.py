"""What the documents say holds: examples run, commands and settings exist."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from istn_monai.__main__ import COMMANDS
from istn_monai.settings import SETTINGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TORCHRUN = ("standalone", "nproc_per_node")  # its own options


def block_after(marker: str) -> str:
    return re.search(rf"<!-- {marker} -->\n```bash\n(.*?)\n```", README, re.DOTALL).group(1)


def test_set_up_is_two_commands_of_one_line():
    run, test = block_after("run"), block_after("test")
    assert "\n" not in run + test
    assert "monai.bundle run training" in run and "pytest" in test
    assert "-c constraints.txt" in run and "-c constraints.txt" in test


EXAMPLES = [
    (document, number, example)
    for document in ("README.md", "docs/reuse.md")
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL))
]


@pytest.mark.parametrize("document, number, example", EXAMPLES, ids=[f"{e[0]}-{e[1]}" for e in EXAMPLES])
def test_python_example_runs(document, number, example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(example, f"{document}, example {number}", "exec"), {"__name__": "example"})


def test_settings_named_in_the_readme_exist():
    table = [line for line in README.splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named and named <= set(SETTINGS)
    arguments = {name for command in COMMANDS.values() for name in inspect.signature(command).parameters}
    for name in re.findall(r"--(\w+)", README):
        assert name in SETTINGS or name in arguments | {"config_file", "inferer", "help", *TORCHRUN}


def test_configs_named_in_the_documents_exist():
    for document in (ROOT / "README.md", ROOT / "bundle" / "docs" / "README.md"):
        for name in re.findall(r"configs/(\w+\.json)", document.read_text()):
            json.loads((ROOT / "bundle" / "configs" / name).read_text())
