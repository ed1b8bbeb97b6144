"""A restart: the agent ends, and another runs in the background where it ran."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flux_endpoint.endpoint.directory import DirectoryHolder, EndpointDirectory
from flux_endpoint.endpoint.lifecycle import (
    STOP_TIMEOUT,
    Started,
    start_detached,
    stop_endpoint,
)
from flux_endpoint.endpoint.multi_user.loading import load_any
from flux_endpoint.errors import ConfigurationError, FluxEndpointError

# Set where the agent's Flux instance is: the new agent must find the same one.
_INSTANCE = "FLUX_URI"


def check_restart(name: str) -> EndpointDirectory:
    """Return an endpoint's directory, once it is sure that another agent can be started.

    Raises:
        NotFoundError: there is no such endpoint.
        ConfigurationError: its configuration is invalid, or it is a user endpoint.
        FluxEndpointError: something else runs it, and would not know of the new agent.
    """
    directory = EndpointDirectory(name)
    directory.require()
    parent = directory.started_by()
    if parent is not None:
        raise ConfigurationError(
            f"endpoint {name} is a user endpoint: its multi-user endpoint {parent} starts it when "
            f"there are tasks for it; `flux-endpoint stop {name}` ends it until then"
        )
    load_any(directory)
    holder = directory.holder()
    if holder is not None and holder.is_here and not _is_in_background(holder):
        raise FluxEndpointError(
            f"endpoint {name!r} (pid {holder.pid}) runs in the foreground: of a terminal, of a "
            "systemd unit, or of a Flux instance that starts it. Restart it there (systemctl "
            f"--user restart flux-endpoint@{name}), or end it with `flux-endpoint stop {name}` and "
            "start it again"
        )
    return directory


def restart(
    directory: EndpointDirectory,
    *,
    timeout: float | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Started:
    """End an endpoint's agent if there is one, and start another in the background.

    Args:
        directory: the endpoint's, from `check_restart`.
        timeout: seconds to wait for the new one, as for `start_detached`.
        say: called with what is being waited for.

    Raises:
        FluxEndpointError: the old agent does not end, or the new one is not ready.
    """
    environment = dict(os.environ)
    holder = directory.holder()
    if holder is not None and holder.is_here:
        before = _environment_of(holder.pid)
        environment.pop(_INSTANCE, None)
        if _INSTANCE in before:
            environment[_INSTANCE] = before[_INSTANCE]
        stop_endpoint(directory.name, timeout=STOP_TIMEOUT)
    elif holder is not None:
        stop_endpoint(directory.name)  # says where it runs
    return start_detached(directory.name, timeout=timeout, say=say, environment=environment)


def _is_in_background(holder: DirectoryHolder) -> bool:
    """Return whether `start --detach`, or a restart, started a process."""
    return b"--report-fd" in _read(f"/proc/{holder.pid}/cmdline").split(b"\0")


def _environment_of(pid: int) -> dict[str, str]:
    entries = _read(f"/proc/{pid}/environ").split(b"\0")
    found = (os.fsdecode(each).partition("=") for each in entries if b"=" in each)
    return {name: value for name, _, value in found}


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FluxEndpointError(
            f"can't look at the running process: {error.strerror} ({path})"
        ) from error
