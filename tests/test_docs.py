"""What the documents say holds: examples run, commands and settings exist."""

from __future__ import annotations

import inspect
import json
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from istn_monai import __version__
from istn_monai.__main__ import COMMANDS
from istn_monai.options import SETTINGS
from istn_monai.registration import Registration

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TORCHRUN = ("standalone", "nproc_per_node")  # its own options


def block_after(marker: str) -> str:
    return re.search(rf"<!-- {marker} -->\n```bash\n(.*?)\n```", README, re.DOTALL).group(1)


def test_set_up_is_two_commands_of_one_line():
    run, test = block_after("run"), block_after("test")
    assert "\n" not in run + test
    assert "monai.bundle run training" in run and "pytest" in test
    assert "-c constraints.txt" in run and "-c constraints.txt" in test


def needed(name: str, extras: tuple[str, ...] = (), seen: set[str] | None = None) -> set[str]:
    """The installed packages that one needs, and those need, by their normal names."""
    seen = set() if seen is None else seen
    for text in requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        wanted = marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
        own = canonicalize_name(requirement.name)
        if wanted and own not in seen:
            try:
                version(own)
            except PackageNotFoundError:
                continue
            seen.add(own)
            needed(own, tuple(requirement.extras), seen)
    return seen


def test_constraints_pin_all_that_is_installed_with_the_package():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    missing = needed("istn-monai", ("test",)) - pinned
    assert not {name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))}  # of GPUs


EXAMPLES = [
    (document, number, example)
    for document in ("README.md", "docs/reuse.md")
    for number, example in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize("document, number, example", EXAMPLES, ids=[f"{e[0]}-{e[1]}" for e in EXAMPLES])
def test_python_example_runs(document, number, example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(example, f"{document}, example {number}", "exec"), {"__name__": "example"})


def test_settings_named_in_the_readme_exist():
    table = [line for line in README.splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert named and named <= set(SETTINGS)
    commands = [*COMMANDS.values(), Registration]  # which takes what `register` and `represent` pass on
    arguments = {name for command in commands for name in inspect.signature(command).parameters}
    for name in re.findall(r"--(\w+)", README):
        assert name in SETTINGS or name in arguments | {"config_file", "inferer", "help", "debug", *TORCHRUN}


def test_configs_named_in_the_documents_exist():
    for document in (ROOT / "README.md", ROOT / "bundle" / "docs" / "README.md"):
        for name in re.findall(r"configs/(\w+\.json)", document.read_text(encoding="utf-8")):
            json.loads((ROOT / "bundle" / "configs" / name).read_text(encoding="utf-8"))


OWN_DATA = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
OWN_COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", OWN_DATA + README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("istn-monai ")
]


def test_the_way_from_a_folder_to_a_registration_is_ten_lines_at_most():
    block = re.search(r"## Train on your images\n\n```bash\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert len(block) <= 10
    assert [line.split()[1] for line in block] == ["plan", "train", "evaluate", "register", "info"]
    assert not [line for line in block if "--" in line and "--model" not in line]


def test_commands_of_the_documents_exist():
    assert len(OWN_COMMANDS) >= 10
    for line in OWN_COMMANDS:
        known = set(inspect.signature(COMMANDS[line.split()[1]]).parameters)
        assert set(re.findall(r"--(\w+)", line)) <= known | set(SETTINGS), line


def test_settings_for_own_data_exist():
    settings = json.loads(re.search(r"```json\n(.*?)```", OWN_DATA, re.DOTALL).group(1))
    assert settings.keys() <= set(SETTINGS)
    folder = f"runs/{settings['run_name']}_{settings['loss']}_{settings['transformation']}"
    assert folder in OWN_DATA and f"--model {folder}" in OWN_DATA
    explained = set(re.findall(r"`(\w+)`", "".join(re.findall(r"\*\*(.*?)\*\*", OWN_DATA))))
    assert settings.keys() - {"dataset_dir", "data_list_file", "run_name", "control_spacing", "max_epochs"} <= explained


def test_citation_and_changelog_know_the_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased" and headings[1] == __version__
    kinds = set(re.findall(r"^### (\w+)$", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_links_of_the_guides_lead_somewhere():
    for guide in ("own-data.md", "figures.md"):
        text = (ROOT / "docs" / guide).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)", text):
            assert (ROOT / "docs" / target).exists(), f"{guide}: {target}"


def test_the_tests_that_the_table_of_formats_names_exist():
    rows = [
        line
        for line in (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    named = {name for row in rows for name in re.findall(r"`(test_\w+)`", row)}
    known = {
        name
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 15 and named <= known, named - known
    bare = [row for row in rows if "`test_" not in row and not row.startswith(("| ---", "| format"))]
    assert not bare, bare
