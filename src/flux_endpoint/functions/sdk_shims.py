"""Stand-ins for the official package's command functions, where that package is not installed.

What the official client sends may refer to `globus_compute_sdk.sdk.shell_function` by name: a
function that makes `ShellFunction`s or takes a `ShellResult`, say. In the processes that run tasks
those names are found without the package; it is never hidden where it is installed.
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
#: Module by module, what is in it.
_MODULES: dict[str, dict[str, Any]] = {
    PACKAGE: _ALL,
    f"{PACKAGE}.sdk": {},
    SHELL_MODULE: _SHELL,
    MPI_MODULE: _ALL,
    # What `get_worker_hardware_details` of the official client runs.
    f"{PACKAGE}.sdk.hardware_report": {"run_hardware_report": hardware_report},
}


class _StandInLoader(Loader):
    """Makes the modules."""

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(_MODULES[module.__name__])
        module.__doc__ = f"{__name__} stands in for this module of the official package."
        module.__file__ = __file__  # where the error of a name that is missing points to


class _StandInFinder(MetaPathFinder):
    """Finds the modules that nobody else has found."""

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
            return None  # with a package of its own that lacks a module we have nothing to do
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
    """Let this process find the stand-ins, after everything that is installed."""
    if not any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StandInFinder())
