"""Flux's own Python bindings, imported from the Flux installation of this host.

They are built for the stable ABI, so any CPython can import them from the directory that
`flux config builtin python_path` prints. They match the running Flux, which a wheel might not.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from types import ModuleType

from flux_endpoint.errors import EngineError
from flux_endpoint.extras import install_command

#: Modules that Flux's bindings import but do not include.
_NEEDED = frozenset({"_cffi_backend", "cffi", "ply", "yaml"})
_TIMEOUT = 20.0  # seconds, for a command that prints one line


def import_flux() -> ModuleType:
    """Import and return the package `flux` of the Flux on `PATH`.

    Raises:
        EngineError: there is no Flux, or its bindings can't be imported; says what to install.
    """
    try:
        return _import()
    except ImportError as error:
        if error.name != "flux":
            raise _incomplete(error) from error
    for path in _bindings_path():
        if path not in sys.path:
            sys.path.append(path)
    try:
        return _import()
    except ImportError as error:
        raise _incomplete(error) from error


def _import() -> ModuleType:
    importlib.import_module("flux.job")
    return importlib.import_module("flux")


def _bindings_path() -> list[str]:
    command = shutil.which("flux")
    if command is None:
        raise EngineError(
            "there is no 'flux' on PATH; install flux-core (https://flux-framework.readthedocs.io) "
            "or set engine.executor: local"
        )
    try:
        answer = subprocess.run(
            [command, "config", "builtin", "python_path"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"'{command} config builtin python_path' failed: {error}") from error
    return [part for part in answer.stdout.strip().split(":") if part]


def _incomplete(error: ImportError) -> EngineError:
    if error.name in _NEEDED:
        mend = f"They need cffi, ply and pyyaml: {install_command('flux')}"
    elif error.name == "flux":
        mend = "They are not where `flux config builtin python_path` says: is Flux fully installed?"
    else:
        found = importlib.util.find_spec("flux")
        where = found.origin if found is not None else "unknown"
        mend = f"Python imports {where} instead: check PYTHONPATH; it must match the Flux on PATH"
    return EngineError(f"Flux's Python bindings can't be imported: {error}. {mend}")
