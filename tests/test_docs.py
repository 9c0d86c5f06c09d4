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

import istn_monai
from istn_monai import __version__
from istn_monai.__main__ import COMMANDS
from istn_monai.options import SETTINGS
from istn_monai.registration import Registration

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {file.name: file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs").glob("*.md"))}
EVERYTHING = "\n".join([README, *DOCS.values()])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
TORCHRUN = ("standalone", "nproc_per_node")  # its own options


def block_after(marker: str) -> str:
    return re.search(rf"<!-- {marker} -->\n```bash\n(.*?)\n```", README, re.DOTALL).group(1)


def commands_of(text: str) -> list[str]:
    """The command lines of a document, those that go on in a further line joined."""
    blocks = [block.replace("\\\n", " ") for language, block in FENCE.findall(text) if language == "bash"]
    return [re.sub(r"\s+", " ", line).strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_set_up_is_two_commands():
    run, test = block_after("run"), block_after("test")
    assert "\n" not in run.replace("\\\n", "") + test
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
    for document, text in {"README.md": README, **DOCS}.items()
    if document not in ("gallery.md", "slicer-ants-simpleitk.md", "engines.md")  # one after the other; on user's files
    for number, example in enumerate(block for language, block in FENCE.findall(text) if language == "python")
]


@pytest.mark.parametrize("document, number, example", EXAMPLES, ids=[f"{e[0]}-{e[1]}" for e in EXAMPLES])
def test_python_example_runs(document, number, example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(example, f"{document}, example {number}", "exec"), {"__name__": "example"})


def test_the_blocks_of_the_gallery_run_one_after_the_other(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "gallery"}
    for language, block in FENCE.findall(DOCS["gallery.md"]):
        if language == "python":
            exec(compile(block, "gallery.md", "exec"), names)
    pictures = set(re.findall(r"\((pictures/gallery/\S+)\)", DOCS["gallery.md"]))
    assert len(plt.get_fignums()) == len(pictures) == DOCS["gallery.md"].count("\nshow(")
    assert pictures == {f"pictures/gallery/{file.name}" for file in (ROOT / "docs/pictures/gallery").iterdir()}
    plt.close("all")


def test_the_gallery_shows_every_transformation_and_transform():
    named = set(re.findall(r"\b\w+\b", "\n".join(re.findall(r"^### .*$", DOCS["gallery.md"], re.MULTILINE))))
    rows = [line.split("|")[1] for line in DOCS["reuse.md"].splitlines() if line.startswith("| `")]
    wanted = {name for row in rows for name in re.findall(r"`(\w+(?:d|Transformation))`", row)}
    assert len(wanted) > 15 and wanted - named == {"Grid"}


def test_settings_named_in_the_documents_exist():
    table = [line for line in DOCS["settings.md"].splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert len(named) > 15 and named <= set(SETTINGS)
    commands = [*COMMANDS.values(), Registration]  # which takes what `register` and `represent` pass on
    arguments = {name for command in commands for name in inspect.signature(command).parameters}
    for name in re.findall(r"`?--(\w+)", README + DOCS["settings.md"] + DOCS["register.md"] + DOCS["landmarks.md"]):
        assert name in SETTINGS or name in arguments | {"config_file", "inferer", "help", "debug", *TORCHRUN}


def test_configs_named_in_the_documents_exist():
    for document in (ROOT / "README.md", ROOT / "bundle" / "docs" / "README.md"):
        for name in re.findall(r"configs/(\w+\.json)", document.read_text(encoding="utf-8")):
            json.loads((ROOT / "bundle" / "configs" / name).read_text(encoding="utf-8"))


OWN_DATA = DOCS["own-data.md"]
OWN_COMMANDS = [line for line in commands_of(EVERYTHING) if line.startswith("istn-monai ")]


def test_the_readme_is_one_screen():
    assert len(README.splitlines()) <= 80
    lines = [line for language, block in FENCE.findall(README) if language == "bash" for line in block.splitlines()]
    assert max(map(len, lines)) <= 100


def test_the_way_from_a_folder_to_a_registration_is_ten_lines_at_most():
    block = re.search(r"## Train on your folder\n\n```bash\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert len(block) <= 10
    assert [line.split()[1] for line in block] == ["plan", "train", "evaluate", "register", "info"]
    assert not [line for line in block if "--" in line and "--model" not in line]


def test_commands_of_the_documents_exist():
    assert len(OWN_COMMANDS) >= 10
    for line in OWN_COMMANDS:
        line = line.partition(" # ")[0]
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


@pytest.mark.parametrize("guide", DOCS)
def test_links_of_the_documents_lead_somewhere(guide):
    """So they do in the repository; `mkdocs build --strict` checks those of the site."""
    site = {"model-card.md", "changelog.md", "contributing.md"}
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", FENCE.sub("", DOCS[guide])):
        assert target in site or (ROOT / "docs" / target).exists(), f"{guide}: {target}"


def test_each_page_is_in_the_site_and_each_how_to_shows_something():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    pages = re.findall(r": (\S+\.md)$", nav, re.MULTILINE)
    assert set(DOCS) <= set(pages) and len(pages) == len(set(pages))
    for page in re.findall(r": (\S+\.md)$", nav.partition("How to:")[2].partition("Concepts:")[0], re.MULTILINE):
        assert "![" in DOCS[page] or FENCE.search(DOCS[page]), page


def test_the_reference_has_each_public_name_once():
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "docs" / "api").glob("*.md"))
    listed = [name.rpartition(".")[2] for name in re.findall(r"^::: (istn_monai\.\S+)$", text, re.MULTILINE)]
    assert sorted(listed) == sorted(set(istn_monai.__all__) - {"__version__"})


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


#: what CONTRIBUTING.md's table of words has in its last column, as far as it can be told from other meanings
NOT_OURS = (
    r"\brefus(e|es|ed|ing)\b|\bdoubts?\b|\bmend(s|ed|ing)?\b|\bcentr(e|es|ed)\b"
    r"|[Rr]egularis|[Nn]eighbour|\bgrey\b|[Cc]olour"
)
#: sentences that a reader of the field had to read twice
READ_TWICE = (
    "intensities align the box, an ISTN the vessels", "no subject in two parts", "where the hardware knows it",
    "input of another kind than the network", "share the pairs", "in all images only disturbs", "by heart",
    "Amber: look.", "The best of all.", "No rule fires", "in a few letters", "two such agree", "creeping",
    "Calls a method of all parts",
)  # fmt: skip


def written() -> dict[str, str]:
    """What users and developers read: documents, docstrings, messages and names, without the table of words itself."""
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Dockerfile"]
    for folder, ends in (("docs", "md"), ("istn_monai", "py"), ("hosts", "py"), ("hosts", "md"), ("bundle", "md")):
        files += [file for file in (ROOT / folder).rglob(f"*.{ends}") if "model" not in file.parts]
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    texts["CONTRIBUTING.md"] = re.sub(r"^\|.*$", "", texts["CONTRIBUTING.md"], flags=re.MULTILINE)
    return texts


def test_words_are_those_of_the_table():
    found = [f"{file}: {match.group()}" for file, text in written().items() for match in re.finditer(NOT_OURS, text)]
    assert not found


def test_no_sentence_that_had_to_be_read_twice_is_left():
    texts = written()
    assert not [f"{file}: {words}" for file, text in texts.items() for words in READ_TWICE if words in text]
