"""Flux: the command, the Python bindings, the enclosing instance, and whether they match."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from flux_endpoint.cli.checks.finding import Finding, failed, ok, skipped, warning
from flux_endpoint.engine.flux_bindings import mismatch, release_of
from flux_endpoint.extras import install_command

_TIMEOUT = 30.0  # seconds
#: Examines bindings and instance in a separate process, because they are native code.
_PROBE = """
import json
from flux_endpoint.engine.flux_bindings import flux_python_release, import_flux
from flux_endpoint.errors import EngineError
found = {}
try:
    flux = import_flux()
    found["path"] = flux.__path__[0]
    found["flux-python"] = flux_python_release(flux)
    from _flux._core import ffi, lib
    found["library"] = ffi.string(lib.flux_core_version_string()).decode()
    import flux.resource
    handle = flux.Flux()
    found["broker"] = handle.attr_get("version")
    listing = flux.resource.resource_list(handle).wait_for(10.0).get()
    found["nodes"], found["cores"] = listing.all.nnodes, listing.all.ncores
    found["down"] = str(listing.down.ranks) if listing.down.nnodes else ""
except EngineError as error:
    found["bindings_error"] = str(error)
except OSError as error:
    found["instance_error"] = str(error)
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
_GET_FLUX = "https://flux-framework.readthedocs.io"


class FluxChecks:
    """Checks Flux.

    Args:
        needed: whether there are endpoints here, which may need it.

    Attributes:
        reachable: whether an endpoint started here would find a Flux instance.
    """

    def __init__(self, *, needed: bool) -> None:
        self._needed = needed or bool(os.environ.get("FLUX_URI"))
        self.reachable = False

    def run(self) -> Iterator[Finding]:
        """Yield the findings on Flux on this machine."""
        command = shutil.which("flux")
        if command is None:
            yield skipped(
                "flux.command",
                "there is no 'flux' on PATH: endpoints started here use the embedded executor "
                f"(flux-core: {_GET_FLUX})",
            )
            return
        version = _command_version(command)
        if version is None:
            yield failed(
                "flux.command",
                f"{command} does not report its version",
                "run `flux version`, and fix what it reports",
            )
            return
        yield ok("flux.command", f"{command} is Flux {version}")
        found = _probe()
        yield _bindings(found, needed=self._needed)
        if "path" in found:
            yield from self._instance(found, version)

    def _instance(self, found: dict[str, Any], version: str) -> Iterator[Finding]:
        uri = os.environ.get("FLUX_URI")
        self.reachable = "broker" in found
        yield from _versions(found, version)
        if not self.reachable:
            yield _no_instance(uri, found)
            return
        where = uri or "the system's"
        yield ok(
            "flux.instance",
            f"the instance at {where} has {found['nodes']} nodes and {found['cores']} cores",
        )
        if found.get("down"):
            yield warning(
                "flux.nodes",
                f"the nodes of ranks {found['down']} are down or drained",
                "flux resource status says why; flux resource undrain takes one back",
            )


def _command_version(command: str) -> str | None:
    try:
        done = subprocess.run(
            [command, "version"], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"^commands:\s*(\S+)", done.stdout, re.MULTILINE)
    return match[1] if match else None


def _probe() -> dict[str, Any]:
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.SubprocessError as error:
        return {"error": str(error)}
    except ValueError:
        return {"error": f"it ended with status {done.returncode}: {done.stderr.strip()[-300:]}"}
    return found


def _bindings(found: dict[str, Any], *, needed: bool) -> Finding:
    if "path" in found:
        library = f", of Flux {found['library']}" if "library" in found else ""
        if found.get("flux-python"):
            library = f", of flux-python {found['flux-python']}"
        return ok("flux.bindings", f"its Python bindings are in {found['path']}{library}")
    said = str(found.get("bindings_error") or found.get("error"))
    mend = (
        "the flux on PATH, `flux config builtin python_path` and PYTHONPATH should be of one Flux; "
        f"what else it needs: {install_command('flux')}"
    )
    if not needed:
        return skipped("flux.bindings", f"{said}; only an endpoint here would need them")
    return failed("flux.bindings", said, mend)


def _versions(found: dict[str, Any], version: str) -> Iterator[Finding]:
    if differs := mismatch(found.get("flux-python"), found.get("broker", version)):
        yield warning("flux.versions", *differs)
        return
    if "broker" not in found:
        return
    versions = {found["broker"], found.get("library", version), version}
    if len({release_of(each) for each in versions}) > 1:
        yield warning(
            "flux.versions",
            f"the command is {version}, the bindings are {found.get('library')}, the instance "
            f"is {found['broker']}",
            "use the Flux that the instance runs: put its bin directory first on PATH",
        )
    else:
        yield ok("flux.versions", f"command, bindings and instance are all {version}")


def _no_instance(uri: str | None, found: dict[str, Any]) -> Finding:
    reason = found.get("instance_error") or found.get("error") or "unknown"
    if uri is None:
        return skipped(
            "flux.instance",
            "this is not inside a Flux instance (flux alloc, flux batch, flux start): endpoints "
            "started here use the embedded executor",
        )
    if "error" in found:
        return failed(
            "flux.instance",
            f"the Python bindings fail with the instance at {uri}: {reason}",
            "use bindings of the instance's release",
        )
    return failed(
        "flux.instance",
        f"can't reach the Flux instance at {uri} (FLUX_URI): {reason}",
        "it may have ended: unset FLUX_URI, or start a new one",
    )
