"""Gives the module `globus_compute_endpoint.engines` one name more, without touching its files.

The official endpoint looks up the `type` of its engine as an attribute of that module. What
`enable` writes into the environment calls `find_spec` here when the module is imported, and never
for any other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

MODULE: Final = "globus_compute_endpoint.engines"
NAME: Final = "FluxEngine"
#: In the environment, with one of `OFF` as its value: do nothing.
VARIABLE: Final = "FLUX_ENDPOINT_GLOBUS_COMPUTE"
OFF: Final = frozenset({"0", "off", "no", "false"})

_searching = False


def find_spec(
    name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """Find the module as everybody would, and have the name added once it is loaded."""
    global _searching  # noqa: PLW0603 - imports hold their own lock, module by module
    if name != MODULE or _searching or os.environ.get(VARIABLE, "").lower() in OFF:
        return None
    _searching = True
    try:
        spec = _find_elsewhere(name, path, target)
    finally:
        _searching = False
    if spec is not None and spec.loader is not None:
        spec.loader = _AddName(spec.loader)
    return spec


def _find_elsewhere(
    name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    for finder in sys.meta_path:  # we are one of these, and find nothing now
        found = finder.find_spec(name, path, target)
        if found is not None:
            return found
    return None


class _AddName(Loader):
    """Loads the module with its own loader, which it gives back; then adds the name."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        add_name(module)


def add_name(module: ModuleType) -> None:
    """Let `module` have the engine as an attribute, imported when it is first used.

    A later release that brings an engine of that name itself is left alone.
    """
    if NAME in vars(module):
        return
    theirs: Callable[[str], Any] | None = vars(module).get("__getattr__")

    def get(name: str) -> Any:
        if name == NAME:
            from flux_endpoint.integrations.globus_compute import FluxEngine  # noqa: PLC0415 - lazy

            return FluxEngine
        if theirs is not None:
            return theirs(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    vars(module)["__getattr__"] = get
    # What the official error of a misspelt type lists.
    vars(module)["__dir__"] = lambda: sorted({*vars(module), NAME})
