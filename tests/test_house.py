"""The house: walls between the rooms of the package, read from the imports, and what its documents say of it.

Each room's wall is a sentence in its docstring; here it is a rule. Imports inside functions count for the walls, too;
cycles and the reading order are those of imports at module level, which Python follows when it loads the package.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, reduce
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import istn_monai

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "istn_monai"
ROOMS = ("geometry", "io", "transforms", "qa", "workflow", "synthetic", "planning")
CONFIG = ROOT / "bundle" / "configs"
CONFIGS = sorted(CONFIG.glob("*.json"))
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "bundle" / "docs").rglob("*.md")),
    *sorted(file for file in (ROOT / "hosts").rglob("*") if file.suffix in (".md", ".py", ".json", ".txt")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted(file for file in (ROOT / "tests").rglob("*.py") if file.name != Path(__file__).name),
]


def dotted(file: Path) -> str:
    """``istn_monai.geometry.affine`` of a file; a package has the name of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    dotted(file): file for file in sorted(PACKAGE.rglob("*.py")) if "bundle" not in file.relative_to(PACKAGE).parts
}
PACKAGES = {name for name, file in FILES.items() if file.name == "__init__.py"}
MODULES = set(FILES) - PACKAGES - {"istn_monai._lazy"}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def room_of(module: str) -> str:
    """The room that a module is in, or the module itself where it is in none."""
    return module.split(".")[1] if "." in module else ""


def at_module_level(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes outside functions, also those in ``if`` and ``try``; not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_module_level(node)


def imported_names(node: ast.AST, module: str) -> Iterator[str]:
    """Absolute dotted names that one statement imports, ``a.b`` and ``a.b.c`` for ``from a.b import c``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = module if module in PACKAGES else module.rpartition(".")[0]
        up = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*up, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "optional_import"):
        yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def module_of(name: str) -> str | None:
    """The module of this package that a dotted name is or lies in; of a public name, the one that defines it."""
    if name.split(".")[0] != "istn_monai":
        return None
    if name.startswith("istn_monai.") and name.split(".")[1] in istn_monai.__all__:
        return getattr(istn_monai, name.split(".")[1]).__module__
    while name not in FILES:
        name = name.rpartition(".")[0]
    return name


def imports_of(module: str, everywhere: bool = True) -> set[str]:
    """Modules of this package that one imports: anywhere in it, or at module level alone."""
    tree = tree_of(FILES[module])
    nodes = ast.walk(tree) if everywhere else at_module_level(tree)
    found = {module_of(name) for node in nodes for name in imported_names(node, module)}
    return {name for name in found if name not in (None, module, "istn_monai", "istn_monai._lazy")}


def rooms_imported_by(room: str) -> dict[str, set[str]]:
    """For each module of a room, the other rooms (or modules outside of rooms) that it imports."""
    return {
        module: {room_of(name) for name in imports_of(module)} - {room} for module in FILES if room_of(module) == room
    }


# --- walls -----------------------------------------------------------------------------------------------------------


def test_imports_are_read_wherever_they_stand():
    code = """
import istn_monai.geometry.affine
from istn_monai import ITN
def inside():
    from istn_monai.qa import rules
    from . import images
    from ..workflow.settings import SETTINGS
    importlib.import_module("istn_monai.apply")
"""
    tree, here = ast.parse(code), "istn_monai.io.paths"
    names = [name for node in ast.walk(tree) for name in imported_names(node, here)]
    assert {module_of(name) for name in names} == {
        f"istn_monai.{name}"
        for name in ("geometry.affine", "networks", "qa.rules", "io.images", "workflow.settings", "apply")
    }
    outside = [
        name for node in at_module_level(ast.parse(code)) for name in imported_names(node, "istn_monai.io.paths")
    ]
    assert outside == ["istn_monai.geometry.affine", "istn_monai.ITN"]


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_states_its_wall_in_one_sentence(room):
    docstring = importlib.import_module(f"istn_monai.{room}").__doc__
    sentences = [line for line in docstring.splitlines() if line.startswith("Wall: ")]
    assert len(sentences) == 1 and sentences[0].endswith(".")


@pytest.mark.parametrize(
    "room, allowed", [("geometry", set()), ("io", {"geometry"}), ("synthetic", {"io", "geometry"})]
)
def test_rooms_that_import_little(room, allowed):
    modules = rooms_imported_by(room)
    assert modules
    broken = {module: others - allowed for module, others in modules.items() if others - allowed}
    assert not broken, f"{room} may import {sorted(allowed) or 'nothing'} besides itself"


@pytest.mark.parametrize(
    "room, forbidden",
    [
        ("transforms", {"workflow", "qa", "registration"}),
        ("qa", {"workflow", "registration"}),
        ("planning", {"workflow", "qa", "registration"}),
    ],
)
def test_rooms_that_do_not_import_those_above(room, forbidden):
    modules = rooms_imported_by(room)
    assert modules
    broken = {module: others & forbidden for module, others in modules.items() if others & forbidden}
    assert not broken, f"{room} must not import {sorted(forbidden)}"


def test_only_registration_runs_and_the_commands_import_workflow():
    users = {room_of(module) for module in FILES if "workflow" in {room_of(name) for name in imports_of(module)}}
    assert users <= {"workflow", "registration", "engines", "runs", "__main__"}


def docstrings_of(tree: ast.AST) -> set[int]:
    """The ids of the nodes that are docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = [node for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node) is not None]
    return {id(owner.body[0].value) for owner in owners}


def words_of(tree: ast.AST) -> Iterator[str]:
    """Identifiers, and the words of strings that are no docstrings."""
    docstrings = docstrings_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from re.findall(r"\w+", node.value)
        for field in ("id", "attr", "arg", "name"):
            if isinstance(getattr(node, field, None), str):
                yield getattr(node, field)


#: a matrix of FSL's is of two images, whose grids are called so, and Learn2Reg calls them so; neither is a key
OF_TWO_GRIDS = ("istn_monai.io.any_transform", "istn_monai.io.matrix_files", "istn_monai.io.learn2reg")


def test_io_names_no_key_of_a_pair():
    for module in (name for name in FILES if room_of(name) == "io"):
        keys = "(moving|fixed)_" if module in OF_TWO_GRIDS else "(moving|fixed)_|moving$"
        named = {word for word in words_of(tree_of(FILES[module])) if re.match(keys, word)}
        assert not named, f"{module} knows pairs: {sorted(named)}"


def test_only_sampling_calls_grid_sample():
    users = {module for module, file in FILES.items() if "grid_sample" in set(words_of(tree_of(file)))}
    assert users == {"istn_monai.geometry.sampling"}


def test_itk_is_imported_in_one_place_and_where_simpleitk_cannot_read():
    users = {
        (module, name)
        for module, file in FILES.items()
        for node in ast.walk(tree_of(file))
        for name in imported_names(node, module)
        if name in ("itk", "SimpleITK")
    }
    assert users == {("istn_monai.io.simple_itk", "SimpleITK"), ("istn_monai.io.itk_transforms", "itk")}


def test_all_of_the_package_is_imported_without_itk():
    """On a machine that trains there is perhaps none."""
    absent = "import sys; sys.modules.update(itk=None, SimpleITK=None)"
    modules = [module for module in FILES if not module.endswith("__main__")]
    subprocess.run([sys.executable, "-c", f"{absent}; import {', '.join(modules)}"], check=True)


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: imports_of(module, everywhere=False) for module in FILES}
    assert list(TopologicalSorter(graph).static_order())  # or CycleError, which names the circle


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_no_module_is_longer_than_350_lines():
    lines = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in FILES.items()}
    assert {module: count for module, count in lines.items() if count > 350} == {}


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring, whose length no reader minds."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def test_no_function_is_longer_than_40_lines():
    files = {**FILES, **{str(file.relative_to(ROOT)): file for file in (ROOT / "hosts").rglob("*.py")}}
    functions = [
        (length_of(node), f"{module}.{node.name}")
        for module, file in files.items()
        for node in ast.walk(tree_of(file))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert len(functions) > 300
    assert [(lines, name) for lines, name in functions if lines > 40] == []


# --- the map and the public names ------------------------------------------------------------------------------------


def mapped() -> list[str]:
    """What the package's docstring names by ``:mod:``, in its order."""
    return re.findall(r":mod:`~?([\w.]+)`", istn_monai.__doc__)


def test_the_map_names_each_module_and_each_room_exactly_once():
    expected = MODULES | {f"istn_monai.{room}" for room in ROOMS}
    assert sorted(mapped()) == sorted(expected)


def test_the_map_is_in_reading_order():
    place = {name: index for index, name in enumerate(mapped())}
    early = [
        f"{module} comes before {other}, which it imports"
        for module in MODULES
        for other in imports_of(module, everywhere=False) - PACKAGES
        if place[module] < place[other]
    ]
    assert not early


def test_rooms_hold_what_the_map_says():
    names = mapped()
    for room in ROOMS:
        start = names.index(f"istn_monai.{room}") + 1
        inside = {name for name in MODULES if room_of(name) == room} - set(names[:start])  # read before, where needed
        assert set(names[start : start + len(inside)]) == inside


def test_public_names_resolve():
    assert len(istn_monai.__all__) == len(set(istn_monai.__all__)) > 20
    for name in istn_monai.__all__:
        assert not name.startswith("_") and getattr(istn_monai, name).__doc__, name


def test_public_names_are_those_that_the_documents_list():
    section = (
        (ROOT / "docs" / "reuse.md").read_text(encoding="utf-8").partition("## Public names\n")[2].partition("\n## ")[0]
    )
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])) == istn_monai.__all__


def test_the_stub_has_the_same_names_from_the_same_modules():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    names = {}
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            assert all(alias.asname == alias.name for alias in node.names)  # else type checkers take it for private
            names |= {alias.name: node.module for alias in node.names}
    assert sorted(names) == istn_monai.__all__
    for name, module in names.items():
        assert getattr(importlib.import_module(module), name) is getattr(istn_monai, name)


# --- names in documents and configs ----------------------------------------------------------------------------------


def resolve(name: str) -> Any:
    """What a dotted name means, or ImportError or AttributeError."""
    module, rest = name, []
    while module not in FILES:
        module, _, last = module.rpartition(".")
        if not module:
            raise ImportError(f"{name}: no such module")
        rest.insert(0, last)
    return reduce(getattr, rest, importlib.import_module(module))


def unresolved(names: set[str]) -> set[str]:
    wrong = set()
    for name in names:
        try:
            resolve(name)
        except (AttributeError, ImportError):
            wrong.add(name)
    return wrong


def names_in(text: str) -> set[str]:
    """Dotted names of this package in a text, and those that its ``from ... import`` lines make."""
    names = set(re.findall(r"(?<![\w./-])istn_monai(?:\.[A-Za-z_]\w*)+", text))
    for module, imported in re.findall(r"from (istn_monai[\w.]*) import ([\w, ]+)", text):
        names |= {f"{module}.{name.split(' as ')[0].strip()}" for name in imported.split(",")}
    return names


@pytest.mark.parametrize("file", CONFIGS + DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_in_configs_documents_hosts_benchmarks_and_tests_resolve(file):
    text = file.read_text(encoding="utf-8")
    assert not unresolved(names_in(text))
    for path in re.findall(r"(?<![\w/.-])(?:istn_monai|tests|benchmarks|hosts|docs)/[\w/]+\.(?:py|md)\b", text):
        assert (ROOT / path).is_file(), path


def test_names_are_found_and_wrong_ones_are_seen():
    text = "`istn_monai.registration.bundle_folder`, `istn_monai.register`\nfrom istn_monai.io import images, nothing\n"
    assert unresolved(names_in(text)) == {"istn_monai.register", "istn_monai.io.nothing"}


def resolves_in(module: Any, target: str) -> bool:
    """Whether a role's target is known in a module: an attribute, a member of one of its classes, a built-in."""
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    for owner in (module, *classes, builtins):
        try:
            reduce(getattr, target.split("."), owner)
            return True
        except AttributeError:
            continue
    return False


@pytest.mark.parametrize("name", sorted(set(FILES) - {"istn_monai.__main__"}))
def test_roles_in_docstrings_resolve(name):
    module = importlib.import_module(name)
    for target in re.findall(
        r":(?:mod|class|func|meth|attr|data):`[~.]*([\w.]+)`", FILES[name].read_text(encoding="utf-8")
    ):
        if target.startswith("istn_monai"):
            assert not unresolved({target}), target
        elif "." in target and target.split(".")[0] in ("monai", "torch", "numpy"):
            parent, _, attribute = target.rpartition(".")
            assert hasattr(importlib.import_module(parent), attribute), target
        else:
            assert resolves_in(module, target), target


# --- the bundle ------------------------------------------------------------------------------------------------------


def strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings_in(item)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configs_name_workflow_and_public_names_alone(file):
    text = "\n".join(strings_in(json.loads(file.read_text(encoding="utf-8"))))
    for name in names_in(text):
        first = name.split(".")[1]
        assert first == "workflow" or (first in istn_monai.__all__ and name.count(".") == 1), name
    short = {f"istn_monai.{name}" for name in re.findall(r"(?<![\w.@#])workflow(?:\.[A-Za-z_]\w*)+", text)}
    assert not unresolved(short)
    if short:  # an overlay leaves the imports to the configs that it comes after
        configs = (
            [file]
            if "imports" in json.loads(file.read_text(encoding="utf-8"))
            else [CONFIG / "train.json", CONFIG / "inference.json"]
        )
        for config in configs:
            assert (
                "$import istn_monai.workflow as workflow" in json.loads(config.read_text(encoding="utf-8"))["imports"]
            )


def test_the_training_config_is_no_larger_than_agreed():
    config = json.loads((CONFIG / "train.json").read_text(encoding="utf-8"))
    expressions = [text for text in strings_in(config) if text.startswith("$")]
    assert len(config) <= 45
    assert len(expressions) <= 45
    assert max(map(len, expressions)) <= 100


def test_at_most_one_function_looks_into_the_interpreter():
    pattern = re.compile("|".join(("current" + "frame", "f_" + "back", "except" + "hook")))
    places = set()
    for folder in ("istn_monai", "hosts", "bundle"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix not in (".py", ".json", ".md", ".conf") or "__pycache__" in file.parts:
                continue
            functions = (
                [node for node in ast.walk(tree_of(file)) if isinstance(node, ast.FunctionDef)]
                if file.suffix == ".py"
                else []
            )
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if pattern.search(line):
                    around = [node.name for node in functions if node.lineno <= number <= node.end_lineno]
                    places.add((file.name, around[0] if around else f"line {number}"))
    assert len(places) <= 1
