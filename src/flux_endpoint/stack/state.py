"""A home's stack on disk: its state file, its lock, and the processes that hold the lock.

$FLUX_ENDPOINT_HOME/stack/
  lock          held by `up`, which writes its pid there, and by all processes below it
  state.json    pid (null when nothing runs), ports and URLs, for people and for the next start;
                never a secret
  broker/  service.db  service.log  endpoint.log  up.log
  service.gate, endpoint.gate  locked while those programs wait for what they need
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from flux_endpoint import paths
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.processes import is_readable
from flux_endpoint.processes.holders import LockHolder, holders_of

#: In a stack's directory: held by `up` and all processes below it.
LOCK = "lock"


class AlreadyRunningError(FluxEndpointError):
    """Another `up` uses this home."""


@dataclass(frozen=True)
class StackState:
    """The content of `state.json`."""

    pid: int | None = None
    started: float | None = None
    service_url: str = ""
    service_port: int | None = None
    amqp_port: int | None = None
    endpoint_name: str = ""
    endpoint_id: str = ""


def start_command(endpoint: str) -> str:
    """Return the command that starts this endpoint here: `up` if `up` ran it last."""
    if (paths.home() / "stack").is_dir():
        with contextlib.suppress(OSError):
            if StackDirectory().load().endpoint_name == endpoint:
                return "flux-endpoint up"
    return f"flux-endpoint start {endpoint}"


class StackDirectory:
    """The directory `stack` of the present home.

    Args:
        home: the state directory; default: the present one.
    """

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or paths.home()
        self.path = self.home / "stack"
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.broker = self.path / "broker"
        self.database = self.path / "service.db"
        self.credentials = self.home / "credentials.json"
        self.log = self.path / "up.log"
        self._state_file = self.path / "state.json"

    def program_log(self, name: str) -> Path:
        """Return the log file of one of the stack's programs."""
        return self.path / f"{name}.log"

    def load(self) -> StackState:
        """Return the last saved state; unreadable parts are left out.

        Nothing depends on it: the lock shows what runs, and missing data is determined again.
        """
        try:
            content = json.loads(self._state_file.read_bytes())
        except (OSError, ValueError):
            return StackState()
        if not isinstance(content, dict):
            return StackState()
        kinds: dict[str, type] = {field.name: type(field.default) for field in fields(StackState)}
        kinds |= {"pid": int, "started": float, "service_port": int, "amqp_port": int}
        known: dict[str, Any] = {
            key: value
            for key, value in content.items()
            if key in kinds and isinstance(value, kinds[key]) and not isinstance(value, bool)
        }
        return StackState(**known)

    def holders(self, *, deleted: bool) -> list[LockHolder]:
        """Return the processes of a stack of this home.

        Args:
            deleted: whether to return those whose directory was deleted, or those of the present
            one.
        """
        lock = self.path.resolve() / LOCK  # the kernel's name for it
        return [each for each in holders_of(lock) if each.deleted == deleted]

    def supervisor(self, *, deleted: bool) -> int | None:
        """Return the pid of `up`, below which all others run, or `None`.

        If `up` was killed, the processes that it started are being ended, and still hold the lock.
        """
        holders = self.holders(deleted=deleted)
        signed = {_pid_in(each.file) for each in holders[:1]}
        if not deleted:
            signed.add(self.load().pid)  # earlier releases did not write the pid into the lock
        return next((each.pid for each in holders if each.pid in signed), None)

    def save(self, state: StackState) -> None:
        """Replace `state.json`."""
        paths.write_private(self._state_file, json.dumps(asdict(state), indent=1))


class StackLock:
    """The exclusive lock of a stack directory; processes that inherit `descriptor` share it.

    Args:
        directory: the stack's directory.
    """

    def __init__(self, directory: StackDirectory) -> None:
        self.descriptor = os.open(directory.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)

    def try_acquire(self) -> bool:
        """Acquire the lock if it is free; return whether it was."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, timeout: float) -> bool:
        """Acquire the lock, waiting at most `timeout` seconds; return whether it succeeded."""
        # flock(2) has no timeout, but flock(1) has; it locks our open file description.
        command = ["flock", "--timeout", str(timeout), str(self.descriptor)]
        done = subprocess.run(command, pass_fds=(self.descriptor,), check=False)
        return done.returncode == 0

    def sign(self) -> None:
        """Write this process's pid into the lock file, to identify the stack."""
        with contextlib.suppress(OSError):  # e.g. a full disk
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        """Release the lock, unless a process that inherited it is alive."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pid_in(lock: Path) -> int | None:
    try:
        return int(lock.read_bytes()[:20])
    except (OSError, ValueError):
        return None


def open_process(pid: int | None) -> int | None:
    """Return a pidfd of `pid`; `None` if there is no such process, or it has ended."""
    if not pid:
        return None
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        if not is_readable(pidfd, 0):
            return pidfd
        os.close(pidfd)  # dead, but not reaped yet
    return None
