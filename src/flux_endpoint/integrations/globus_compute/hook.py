"""Adds one name to the module `globus_compute_endpoint.engines`, without changing its files.

The official endpoint looks up the `type` of its engine as an attribute of that module. The file
that `enable` writes calls `find_spec` here when the module is imported, and never for another
module.
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
#: Variable that disables the hook if its value is one of `OFF`.
VARIABLE: Final = "FLUX_ENDPOINT_GLOBUS_COMPUTE"
OFF: Final = frozenset({"0", "off", "no", "false"})

_searching = False


def find_spec(
    name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
) -> ModuleSpec | None:
    """Find the module as usual, and let the name be added once it is loaded."""
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
    for finder in sys.meta_path:  # includes this hook, which finds nothing now
        found = finder.find_spec(name, path, target)
        if found is not None:
            return found
    return None


class _AddName(Loader):
    """Loads the module with its original loader, which it restores, and then adds the name."""

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
    """Make the engine an attribute of `module`, imported on first use.

    If a later release has an engine of that name itself, it is not replaced.
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
    # The official error for a misspelled type lists these.
    vars(module)["__dir__"] = lambda: sorted({*vars(module), NAME})
