"""Flux's own Python bindings, imported from the Flux installation of this host.

They are built for the stable ABI, so any CPython can import them from the directory that
`flux config builtin python_path` prints. They match the running Flux. Where Flux was built without
them, those of the distribution flux-python serve, if they are installed; their release may differ.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from flux_endpoint.errors import EngineError
from flux_endpoint.extras import install_command

#: Modules that Flux's bindings import but do not include.
_NEEDED = frozenset({"_cffi_backend", "cffi", "ply", "yaml"})
#: The distribution that has bindings only, and uses the libraries of the Flux of the host.
_DISTRIBUTION = "flux-python"
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
            raise unusable(error) from error
    for path in _bindings_path():
        if path not in sys.path:
            sys.path.append(path)
    try:
        return _import()
    except ImportError as error:
        raise unusable(error) from error


def flux_python_release(flux: ModuleType) -> str | None:
    """Return the release of flux-python if the imported bindings are its; else `None`.

    Args:
        flux: the package `flux`.
    """
    try:
        found = importlib.metadata.distribution(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    provided = Path(str(found.locate_file("flux"))).resolve()
    return found.version if Path(flux.__path__[0]).resolve() == provided else None


def release_of(version: str) -> str:
    """Return a version's leading numbers, without suffixes such as a commit."""
    match = re.match(r"\d+(\.\d+)*", version)
    return match[0] if match else version


def mismatch(bindings: str | None, running: str) -> tuple[str, str] | None:
    """Return how flux-python differs from the running Flux, and what to do; `None`: it does not.

    Args:
        bindings: the release of flux-python; `None`: Flux's own bindings are in use.
        running: the version of the running Flux.
    """
    if bindings is None or release_of(bindings) == release_of(running):
        return None
    minor = ".".join(release_of(running).split(".")[:2])
    said = f"the Python bindings are those of {_DISTRIBUTION} {bindings}, "
    mend = (
        f"pip install '{_DISTRIBUTION}=={minor}.*' (or the nearest release that there is); where "
        f"Flux's own bindings suit this Python, pip uninstall {_DISTRIBUTION}"
    )
    return f"{said}the running Flux is {running}", mend


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


def unusable(error: ImportError) -> EngineError:
    """Return the error that says why Flux's bindings can't be imported, and what to do.

    Args:
        error: raised by the import of one of their modules.
    """
    if error.name in _NEEDED:
        mend = f"They need cffi, ply and pyyaml: {install_command('flux')}"
    elif error.name == "flux":
        mend = (
            "They are not where `flux config builtin python_path` says: is Flux fully installed? "
            f"If it was built without them: {install_command('flux-python')}"
        )
    elif "libflux" in str(error):
        mend = (
            f"{_DISTRIBUTION} uses the libraries of Flux: name the directory of libflux-core.so in "
            "LD_LIBRARY_PATH"
        )
    else:
        found = importlib.util.find_spec("flux")
        where = found.origin if found is not None else "unknown"
        mend = f"Python imports {where} instead: check PYTHONPATH; it must match the Flux on PATH"
    return EngineError(f"Flux's Python bindings can't be imported: {error}. {mend}")
