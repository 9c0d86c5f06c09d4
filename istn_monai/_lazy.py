"""Names of a package whose module is loaded when they are first used (PEP 562): ``--help`` need not load torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy(package: str, rooms: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` and ``__all__`` of a package.

    Args:
        package: its dotted name.
        rooms: the names that each of its modules gives to the package.
    """
    module_of = {name: module for module, names in rooms.items() for name in names}

    def __getattr__(name: str) -> Any:
        """The name, from the module that defines it; or a module of the package itself."""
        if name in module_of:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        if not name.startswith("_"):
            try:
                return importlib.import_module(f"{package}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{package}.{name}":
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return __getattr__, sorted(module_of)
