"""A stack in the background: start it and read its messages, stop it and wait for its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flux_endpoint.errors import BackgroundError, FluxEndpointError
from flux_endpoint.logs import tail
from flux_endpoint.paths import HOME_VARIABLE
from flux_endpoint.processes import is_readable
from flux_endpoint.processes.holders import LockHolder
from flux_endpoint.stack.state import (
    StackDirectory,
    StackLock,
    StackState,
    open_process,
)
from flux_endpoint.stack.supervisor import Ready, StackOptions

#: Seconds for a graceful end of everything, after which it is killed.
STOP_TIMEOUT = 60.0
#: Seconds until the processes below a killed stack are gone.
REMAINS_TIMEOUT = 15.0
#: Seconds for which a client that tests the lock may hold it.
_LOOK = 1.0


@dataclass(frozen=True)
class Stopped:
    """A stack that `stop_stack` has ended.

    Attributes:
        pid: of the process below which all others ran; `None` if it had been killed before.
        service_url: the service's URL, if known.
    """

    pid: int | None
    service_url: str


class ProgressReporter:
    """The background process's side: sends progress as one JSON object per line.

    Args:
        descriptor: a pipe's end, open for writing.
    """

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)

    def say(self, line: str) -> None:
        """Send a line of progress."""
        self._send({"say": line})

    def ready(self, ready: Ready) -> None:
        """Report that everything is up; the other side then closes."""
        self._send({"ready": {**vars(ready), "state": vars(ready.state)}})
        self.close()

    def failed(self, reason: str) -> None:
        """Report why the stack could not start."""
        self._send({"failed": reason})

    def close(self) -> None:
        """Close: there is nothing more to report."""
        with contextlib.suppress(OSError):
            self._stream.close()

    def _send(self, message: dict[str, Any]) -> None:
        if not self._stream.closed:
            with contextlib.suppress(OSError):  # nobody waits any more
                self._stream.write(json.dumps(message) + "\n")


def start_detached(options: StackOptions, say: Callable[[str], None]) -> Ready:
    """Start a stack in a session of its own; return when it is up.

    Raises:
        FluxEndpointError: it could not be started; nothing is left running.
    """
    directory = StackDirectory()
    readable, writable = os.pipe()
    arguments = ["up", "--report-fd", str(writable)]
    arguments += ["--port", str(options.port)] if options.port is not None else []
    arguments += ["--endpoint", options.endpoint] if options.endpoint else ["--no-endpoint"]
    with (
        os.fdopen(readable, encoding="utf-8") as reports,
        os.fdopen(os.open(directory.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)) as log,
    ):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flux_endpoint", *arguments],
            env={**os.environ, HOME_VARIABLE: str(directory.home)},
            cwd=directory.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writable,),
            start_new_session=True,
        )
        os.close(writable)
        try:
            for line in reports:
                match json.loads(line):
                    case {"say": text}:
                        say(text)
                    case {"ready": {"state": state, "executor": executor, "seconds": seconds}}:
                        return Ready(StackState(**state), str(executor), float(seconds))
                    case {"failed": reason}:
                        raise BackgroundError(reason, exit_status=process.wait())
        except BaseException:
            if process.poll() is None:
                process.terminate()
                process.wait()
            raise
        status = process.wait()
    raise BackgroundError(
        f"the stack ended with status {status} before it was ready; the end of "
        f"{directory.log}:\n{tail(directory.log, 12)}",
        exit_status=status,
    )


def stop_stack() -> Stopped | None:
    """End this home's stack and wait until it is gone; return it, or `None` if none was running.

    Also ends a stack whose directory was deleted.

    Raises:
        FluxEndpointError: some process does not end.
    """
    directory = StackDirectory()
    with StackLock(directory) as lock:
        deleted = lock.try_acquire()
        holders = directory.holders(deleted=deleted)
        if not holders and not deleted and not lock.acquire(_LOOK):
            raise FluxEndpointError(
                f"a stack has {directory.path}/lock, and none of its processes can be seen: it "
                "runs on another host, or as another user; end it there"
            )
        if not holders:
            return None
        supervisor = directory.supervisor(deleted=deleted)
        state = StackState() if deleted else directory.load()
        if supervisor is not None:
            _end(supervisor)
        # Every process of the stack holds the lock: without holders all are gone. The rest end
        # themselves.
        if not _wait_until_gone(holders, REMAINS_TIMEOUT):
            for each in directory.holders(deleted=deleted):
                _end(each.pid)
        left = [str(each.pid) for each in directory.holders(deleted=deleted)]
        if left:
            raise FluxEndpointError(
                f"processes of the stack (pid {', '.join(left)}) still hold {directory.path}/lock"
            )
        return Stopped(supervisor, state.service_url)


def _wait_until_gone(holders: list[LockHolder], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    for each in holders:
        pidfd = open_process(each.pid)
        if pidfd is not None:
            try:
                if not is_readable(pidfd, max(0.0, deadline - time.monotonic())):
                    return False
            finally:
                os.close(pidfd)
    return True


def _end(pid: int) -> None:
    pidfd = open_process(pid)
    if pidfd is None:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not is_readable(pidfd, STOP_TIMEOUT):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            is_readable(pidfd, REMAINS_TIMEOUT)
    finally:
        os.close(pidfd)
