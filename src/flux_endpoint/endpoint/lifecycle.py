"""Endpoints from outside: configured, started in the background, stopped, listed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flux_endpoint import paths
from flux_endpoint.endpoint.directory import (
    GONE,
    EndpointDirectory,
    all_endpoints,
    already_running,
)
from flux_endpoint.errors import (
    BackgroundError,
    ConfigurationError,
    FluxEndpointError,
    StillTryingError,
)
from flux_endpoint.logs import put_aside, tail
from flux_endpoint.processes import is_readable

#: Seconds for which a background start is watched; after that, the agent goes on trying.
START_TIMEOUT = 60.0
#: Seconds of these for which service or broker may be unreachable.
AWAY_TIMEOUT = 10.0
#: Seconds between SIGTERM and SIGKILL. More than the agent's own grace and its last confirms.
STOP_TIMEOUT = 30.0
#: Seconds that a killed process has to disappear.
KILL_TIMEOUT = 10.0
#: Lines and bytes of a log that are shown with a failure.


@dataclass(frozen=True)
class Started:
    """An agent in the background that is ready for tasks."""

    pid: int
    endpoint_id: str
    executor: str | None


@dataclass(frozen=True)
class Listed:
    """An entry of `list`; `status` is "running", "disconnected" (but running) or "stopped"."""

    name: str
    endpoint_id: str | None
    status: str
    reason: str
    executor: str | None
    flux_uri: str | None
    pid: int | None
    hostname: str | None


def configure_endpoint(
    name: str, display_name: str | None = None, *, multi_user: bool = False
) -> Path:
    """Create an endpoint's directory with a commented configuration; return the file's path.

    Args:
        name: the endpoint's name.
        display_name: its name in lists; default: `name`.
        multi_user: whether it is a multi-user endpoint, with more files.

    Raises:
        ConfigurationError: the name is invalid, or in use.
    """
    directory = EndpointDirectory(name)
    text, more = _initial(name, display_name, multi_user=multi_user)
    try:
        directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.path.chmod(0o700)
        descriptor = os.open(directory.config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigurationError(
            f"endpoint {name!r} exists already: edit {directory.config}, or choose another name"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"can't create {directory.config}: {error}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        for file_name, content in more.items():
            paths.write_private(directory.path / file_name, content)
    except OSError as error:
        directory.config.unlink(missing_ok=True)
        raise FluxEndpointError(f"can't write {directory.config}: {error.strerror}") from error
    return directory.config


def _initial(
    name: str, display_name: str | None, *, multi_user: bool
) -> tuple[str, dict[str, str]]:
    """Return the text of a new `config.yaml`, and the texts of further files by name."""
    from flux_endpoint.endpoint.config import (  # noqa: PLC0415 - slow
        initial_config,
        parse_as,
        parse_config,
    )

    if not multi_user:
        text = initial_config(name, display_name)
        parse_config(text, source="--display-name")
        return text, {}
    from flux_endpoint.endpoint.multi_user.config import MultiUserConfig  # noqa: PLC0415 - slow
    from flux_endpoint.endpoint.multi_user.initial import initial_files  # noqa: PLC0415 - slow

    more = initial_files(name, display_name, is_root=os.geteuid() == 0)
    text = more.pop("config.yaml")
    parse_as(MultiUserConfig, text, source="--display-name")
    return text, more


def start_detached(
    name: str,
    *,
    timeout: float | None = None,
    say: Callable[[str], None] = lambda _line: None,
    environment: Mapping[str, str] | None = None,
) -> Started:
    """Start an agent in a session of its own; return when it can take tasks.

    Args:
        name: the endpoint's name.
        timeout: seconds to wait; by default `START_TIMEOUT`, but only `AWAY_TIMEOUT` once the agent
            reports that service or broker are unreachable, which may take seconds or days.
        say: called with what is being waited for.
        environment: the agent's; default: that of this process.

    Raises:
        StillTryingError: service or broker are still unreachable; the agent goes on trying.
        FluxEndpointError: the agent ended, with the reason, or is not ready for another reason.
    """
    directory = EndpointDirectory(name)
    directory.require()
    if directory.holder() is not None:
        raise already_running(directory)
    readable, writable = os.pipe()
    with os.fdopen(readable, "rb", buffering=0) as reports:
        try:
            put_aside(directory.log)
            log = os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                command = [sys.executable, "-P", "-m", "flux_endpoint", "start", name]
                process = subprocess.Popen(
                    [*command, "--report-fd", str(writable)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writable,),
                    start_new_session=True,
                    env=environment,
                )
            finally:
                os.close(log)
        finally:
            os.close(writable)
        try:
            return _await_ready(directory, process, reports, timeout, say)
        except KeyboardInterrupt:  # nobody waits any more: undo the start
            process.terminate()
            process.wait()
            raise


def _await_ready(
    directory: EndpointDirectory,
    process: subprocess.Popen[bytes],
    reports: IO[bytes],
    timeout: float | None,
    say: Callable[[str], None],
) -> Started:
    deadline = time.monotonic() + (START_TIMEOUT if timeout is None else timeout)
    away, unread = "", b""
    while is_readable(reports, deadline - time.monotonic()):
        chunk = reports.read(65_536)
        if not chunk:
            code = process.wait()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise BackgroundError(
                f"endpoint {directory.name!r} ended before it was ready ({how}); the end of "
                f"{directory.log}:\n{tail(directory.log) or '(nothing)'}",
                exit_status=code,
            )
        *lines, unread = (unread + chunk).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"ready": {"endpoint_id": endpoint_id, "executor": executor}}:
                    process.returncode = 0  # the process lives on, and is no longer ours
                    return Started(process.pid, endpoint_id, executor)
                case {"failed": reason}:
                    status = process.wait()
                    text = f"{reason}\n(the log is {directory.log})"
                    raise BackgroundError(text, exit_status=status)
                case {"say": text, "gives_up_in": seconds}:
                    if timeout is None:
                        deadline = time.monotonic() + seconds + START_TIMEOUT
                    away = text
                    say(text)
                case {"say": text}:
                    if timeout is None and not away:
                        deadline = min(deadline, time.monotonic() + AWAY_TIMEOUT)
                    away = text
                    say(text)
    process.returncode = 0  # the process lives on
    name = directory.name
    runs = f"endpoint {name!r} runs in the background (pid {process.pid}) but is not ready"
    if not away:
        raise FluxEndpointError(
            f"{runs}, and does not say why; see {directory.log}, or end it with: "
            f"flux-endpoint stop {name}"
        )
    raise StillTryingError(
        f"{runs}: {away}. It goes on trying, and takes tasks as soon as it can: flux-endpoint "
        f"status {name} tells; flux-endpoint stop {name} ends it"
    )


class StartReporter:
    """The background process's side of `start_detached`: one JSON object per line.

    Args:
        descriptor: where messages go; `None` if nobody waits.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def keep_for_restart(self) -> None:
        """Keep the descriptor open when this process executes the program again."""
        if self._descriptor is not None:
            os.set_inheritable(self._descriptor, True)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message; after the last one the other side closes."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        if "ready" in message or "failed" in message:
            os.close(self._descriptor)
            self._descriptor = None


def stop_endpoint(
    name: str, *, timeout: float = STOP_TIMEOUT, pid: int | None = None
) -> str | None:
    """End an endpoint's agent and wait until it is gone.

    Args:
        name: the endpoint's name.
        timeout: seconds until it is killed.
        pid: only stop this process; leave any other alone.

    Returns:
        "stopped" or "killed"; `None` if it was not running.

    Raises:
        FluxEndpointError: it runs on another host, or can't be ended.
    """
    directory = EndpointDirectory(name)
    directory.require()
    holder = directory.holder()
    if holder is None or pid not in {None, holder.pid}:
        return None
    if not holder.is_here:
        raise FluxEndpointError(
            f"endpoint {name!r} runs on {holder.hostname} (pid {holder.pid}): "
            f"use `flux-endpoint stop {name}` there"
        )
    try:
        pidfd = os.pidfd_open(holder.pid)
    except ProcessLookupError:
        return None
    try:
        # The process that holds the lock now is the process behind the descriptor.
        if directory.holder() != holder:
            return None
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if is_readable(pidfd, timeout):
            return "stopped"
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if is_readable(pidfd, KILL_TIMEOUT):
            return "killed"
    except PermissionError:
        raise FluxEndpointError(
            f"endpoint {name!r} is another user's process (pid {holder.pid})"
        ) from None
    except ProcessLookupError:
        return "stopped"
    finally:
        os.close(pidfd)
    raise FluxEndpointError(f"endpoint {name!r} (pid {holder.pid}) does not end, even killed")


def list_endpoints() -> list[Listed]:
    """Return every configured endpoint and its status."""
    return [_listed(directory) for directory in all_endpoints()]


def _listed(directory: EndpointDirectory) -> Listed:
    holder = directory.holder()
    status = directory.status()
    if holder is None:
        gone = status is not None and status.state == GONE
        state, reason, status = "stopped", status.reason if status and gone else "", None
    elif status is None or status.pid != holder.pid:
        state, reason = "disconnected", "starting"
    else:
        state, reason = "running", status.reason
        if status.state == "disconnected":
            state, reason = "disconnected", status.reason or "starting"
    return Listed(
        directory.name,
        _endpoint_id(directory.identity),
        state,
        reason,
        status.executor if status else None,
        status.flux_uri if status else None,
        holder.pid if holder else None,
        holder.hostname if holder else None,
    )


def _endpoint_id(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["endpoint_id"])
    except (OSError, ValueError, KeyError, TypeError):  # a start reports what is wrong with it
        return None
