"""What is known of a home's stack on disk, and who holds it.

$FLUX_ENDPOINT_HOME/stack/
  lock          held by `up` and every process below it
  state.json    pid (null when nothing runs), ports and URLs; never a secret
  broker/  service.db  service.log  endpoint.log  up.log
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from flux_endpoint import paths
from flux_endpoint.errors import ConfigurationError, FluxEndpointError
from flux_endpoint.processes import is_readable


class AlreadyRunningError(FluxEndpointError):
    """Another `up` has this home."""


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
    """Return the command that starts the endpoint of that name here: `up` if it was up's last."""
    if (paths.home() / "stack").is_dir():
        with contextlib.suppress(ConfigurationError, OSError):
            if StackDirectory().load().endpoint_name == endpoint:
                return "flux-endpoint up"
    return f"flux-endpoint start {endpoint}"


class StackDirectory:
    """The directory `stack` of the present home."""

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
        """Return the last state that was saved; unknown keys are left out."""
        if not self._state_file.exists():
            return StackState()
        try:
            content = json.loads(self._state_file.read_text())
            known = {field.name for field in fields(StackState)}
            return StackState(**{key: value for key, value in content.items() if key in known})
        except (ValueError, AttributeError) as error:
            raise ConfigurationError(
                f"{self._state_file} is not a state file ({error}); remove it"
            ) from None

    def save(self, state: StackState) -> None:
        """Replace `state.json`."""
        paths.write_private(self._state_file, json.dumps(asdict(state), indent=1))


class StackLock:
    """The exclusive lock of a stack directory; `descriptor` may be inherited to share it."""

    def __init__(self, directory: StackDirectory) -> None:
        self.descriptor = os.open(directory.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)

    def try_acquire(self) -> bool:
        """Take the lock if it's free."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, timeout: float) -> bool:
        """Take the lock, waiting for at most `timeout` seconds."""
        # flock(2) can't be told a limit; the program can, and its lock is ours: same description.
        command = ["flock", "--timeout", str(timeout), str(self.descriptor)]
        done = subprocess.run(command, pass_fds=(self.descriptor,), check=False)
        return done.returncode == 0

    def close(self) -> None:
        """Give the lock back, unless a process that inherited it is alive."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_process(pid: int | None) -> int | None:
    """Return a pidfd of `pid`, or `None` if there is no such process, or it has ended."""
    if not pid:
        return None
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        if not is_readable(pidfd, 0):
            return pidfd
        os.close(pidfd)  # dead, and its parent has not taken notice yet
    return None
