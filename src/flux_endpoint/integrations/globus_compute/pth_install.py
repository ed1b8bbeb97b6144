"""Installs and removes one file in the environment's site-packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flux_endpoint.errors import ConfigurationError
from flux_endpoint.extras import install_command
from flux_endpoint.integrations.globus_compute.hook import MODULE, NAME, OFF, VARIABLE

FILE_NAME: Final = "flux_endpoint_globus_compute.pth"
OFFICIAL: Final = "globus-compute-endpoint"
#: The tested releases.
TESTED: Final = "4.19"

_HOOK = "flux_endpoint.integrations.globus_compute.hook"
# The lines of a .pth file run whenever the environment's Python starts, so this one imports
# nothing. It must not break the official endpoint after this package has been removed.
_LINE = (
    "import sys; sys.meta_path.insert(0, type('FluxEndpointGlobusCompute', (), {'find_spec': "
    "staticmethod(lambda name, path=None, target=None: "
    f"__import__({_HOOK!r}, fromlist=['find_spec']).find_spec(name, path, target) "
    f"if name == {MODULE!r} and __import__('importlib.util').util.find_spec('flux_endpoint') "
    "else None)}))\n"
)

_PROBE = f"""
import json, sys
try:
    import {MODULE} as engines
    found = getattr(engines, {NAME!r}, None)
    print(json.dumps({{"engine": found and f"{{found.__module__}}.{{found.__qualname__}}"}}))
except Exception as error:
    print(json.dumps({{"error": f"{{type(error).__name__}}: {{error}}"}}))
"""


@dataclass(frozen=True)
class InstallStatus:
    """The state of this environment.

    Attributes:
        file: the path of the file.
        enabled: whether the file exists with this release's content.
        official: the release of the official endpoint; `None` if it is not installed.
        engine: the object that a new process finds under the engine's name.
        problem: why there is none, although there should be one.
    """

    file: Path
    enabled: bool
    official: str | None
    engine: str | None
    problem: str | None


def path_of_file() -> Path:
    """Return the path of the file: among the installed packages of this Python."""
    return Path(sysconfig.get_path("purelib")) / FILE_NAME


def enable() -> Path:
    """Write the file; return its path.

    Raises:
        ConfigurationError: the official endpoint is not installed in this environment, or the
            file can't be written.
    """
    if official_release() is None:
        raise ConfigurationError(
            f"{OFFICIAL} is not installed in the environment of {sys.executable}: in that "
            f"of {OFFICIAL} use {install_command('flux')}, and run this with its Python"
        )
    path = path_of_file()
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        partial.write_text(_LINE, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(
            f"can't write {path}: {error.strerror}; the environment must be yours to change"
        ) from error
    return path


def disable() -> bool:
    """Remove the file; return whether it existed.

    Raises:
        ConfigurationError: it can't be removed.
    """
    path = path_of_file()
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigurationError(f"can't remove {path}: {error.strerror}") from error
    return True


def official_release() -> str | None:
    """Return the installed release of the official endpoint."""
    try:
        return importlib.metadata.version(OFFICIAL)
    except importlib.metadata.PackageNotFoundError:
        return None


def status() -> InstallStatus:
    """Return the state of the environment, as a new process in it finds it."""
    path = path_of_file()
    try:
        enabled = path.read_text(encoding="utf-8") == _LINE
    except OSError:
        enabled = False
    engine = problem = None
    release = official_release()
    if release is not None:
        run = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False
        )
        try:
            answer = json.loads(run.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            answer = {"error": run.stderr.strip() or f"exit status {run.returncode}"}
        engine, problem = answer.get("engine"), answer.get("error")
    if enabled and engine is None and problem is None:
        turned_off = os.environ.get(VARIABLE, "").lower() in OFF
        problem = f"{VARIABLE} turns it off" if turned_off else "site-packages' files are not read"
    return InstallStatus(path, enabled, release, engine, problem)
