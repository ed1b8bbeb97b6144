"""Replacements for the official package's command functions where it is not installed.

Functions from the official client may refer to `globus_compute_sdk.sdk.shell_function` by name, for
example to make `ShellFunction`s. Processes that run tasks find these names without the package; an
installed package always takes precedence.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from flux_endpoint.functions.hardware import hardware_report
from flux_endpoint.functions.official import (
    MPI_MODULE,
    SHELL_MODULE,
    OfficialMPIFunction,
    OfficialShellFunction,
    OfficialShellResult,
)

PACKAGE: Final = "globus_compute_sdk"
_SHELL: dict[str, Any] = {
    "ShellFunction": OfficialShellFunction,
    "ShellResult": OfficialShellResult,
}
_ALL: dict[str, Any] = {**_SHELL, "MPIFunction": OfficialMPIFunction}
#: The contents of each module.
_MODULES: dict[str, dict[str, Any]] = {
    PACKAGE: _ALL,
    f"{PACKAGE}.sdk": {},
    SHELL_MODULE: _SHELL,
    MPI_MODULE: _ALL,
    # Used by `get_worker_hardware_details` of the official client.
    f"{PACKAGE}.sdk.hardware_report": {"run_hardware_report": hardware_report},
}


class _StandInLoader(Loader):
    """Creates the modules."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_MODULES[module.__name__])
        module.__doc__ = f"{__name__} stands in for this module of the official package."
        module.__file__ = __file__  # errors about missing names refer to it


class _StandInFinder(MetaPathFinder):
    """Finds the modules that no other finder has found."""

    def __init__(self) -> None:
        self._loader = _StandInLoader()

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the interface
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package != PACKAGE or (name != PACKAGE and not _is_stand_in(package)):
            return None  # an installed package that lacks this module
        if name not in _MODULES:
            raise ModuleNotFoundError(
                f"No module named {name!r}: {PACKAGE} is not installed where tasks run here, "
                "and only its command functions have a stand-in; install it there to use more",
                name=name,
            )
        has_parts = any(other.startswith(f"{name}.") for other in _MODULES)
        return ModuleSpec(name, self._loader, origin=__file__, is_package=has_parts)


def _is_stand_in(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return isinstance(getattr(spec, "loader", None), _StandInLoader)


def install_stand_ins() -> None:
    """Make the replacements importable in this process, after all installed packages."""
    if not any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StandInFinder())
