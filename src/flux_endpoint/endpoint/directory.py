"""An endpoint's directory: its files, its agent's lock, and the agent's published state."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from flux_endpoint import paths
from flux_endpoint.errors import ConfigurationError, FluxEndpointError, NotFoundError

#: The agent's journal in an endpoint's directory.
JOURNAL = "journal.db"
#: State of an agent that ended because the service did not know the endpoint any more.
GONE = "gone"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: `struct flock` of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


def this_machine() -> str:
    """Return an id that two processes share only if they can signal each other.

    A host's name may change while an endpoint runs, and two containers may have the same name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # a sandbox that hides these files
        return socket.gethostname()


@dataclass(frozen=True)
class DirectoryHolder:
    """The process that runs an endpoint's agent.

    Attributes:
        pid: its process id, on its machine.
        hostname: that machine's name when the agent started.
        machine: see `this_machine`; `None` if unknown.
    """

    pid: int
    hostname: str
    machine: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, so that it can be signalled."""
        if self.machine is None:  # written by an earlier release
            return self.hostname == socket.gethostname()
        return self.machine == this_machine()


@dataclass(frozen=True)
class DirectoryStatus:
    """The running agent's state in `status.json`."""

    pid: int
    state: str
    reason: str
    endpoint_id: str
    executor: str | None
    flux_uri: str | None
    since: float
    machine: str | None = None  # see `this_machine`


class EndpointDirectory:
    """The directory `$FLUX_ENDPOINT_HOME/endpoints/NAME`.

    Args:
        name: the endpoint's name.

    Raises:
        ConfigurationError: `name` is not a valid endpoint name.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} can't be an endpoint's name: use 1 to 128 letters, digits, '.', '_' and "
                "'-', with a letter or digit first"
            )
        self.name = name
        self.path = paths.endpoint_dir(name)
        self.config = self.path / "config.yaml"
        self.identity = self.path / "endpoint.json"
        self.token = self.path / "token.json"
        self.journal = self.path / JOURNAL
        self.log = self.path / "endpoint.log"
        self.output_log = self.path / paths.OUTPUT_LOG
        self.lock = self.path / "agent.lock"
        self._status = self.path / "status.json"

    def require(self) -> None:
        """Raise `NotFoundError`, with a list of the endpoints, if this one is not configured."""
        if self.config.exists():
            return
        names = [each.name for each in all_endpoints()]
        there_are = f"there are: {', '.join(names)}" if names else "there are none yet"
        raise NotFoundError(
            f"no endpoint is called {self.name!r}; {there_are}. "
            f"Make it with: flux-endpoint configure {self.name}"
        )

    def started_by(self) -> str | None:
        """Return the id of the multi-user endpoint that starts this one; `None`: there is none."""
        return self._identity_field("started_by")

    def endpoint_id(self) -> str | None:
        """Return the endpoint's id; `None`: it was never started."""
        return self._identity_field("endpoint_id")

    def _identity_field(self, name: str) -> str | None:
        try:
            content = json.loads(self.identity.read_text(encoding="utf-8"))
            found = content.get(name)
        except (OSError, ValueError, AttributeError):
            return None
        return found if isinstance(found, str) else None

    def holder(self) -> DirectoryHolder | None:
        """Return the process that runs the agent, or `None`."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "r+b") as file:
            # Only test the lock: acquiring it could get in the way of a start.
            question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
            kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
            if kind == fcntl.F_UNLCK:
                return None
            text = file.read()
        locking = DirectoryHolder(pid, socket.gethostname(), this_machine())
        try:
            content = json.loads(text)
            machine = content.get("machine")
            named = DirectoryHolder(int(content["pid"]), str(content["hostname"]), machine)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
        ):  # it has the lock but has not written yet
            return locking
        # Until then the file has the data of an earlier agent.
        return locking if named.is_here and pid > 0 else named

    def write_status(self, status: DirectoryStatus) -> None:
        """Publish the agent's state; only the lock's holder may call this."""
        paths.write_private(self._status, json.dumps(asdict(status)) + "\n")

    def status(self) -> DirectoryStatus | None:
        """Return the published state of the last agent.

        It is valid only while there is a holder, or if it is `GONE`.
        """
        try:
            return DirectoryStatus(**json.loads(self._status.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class AgentLock:
    """Allows at most one agent per endpoint.

    It is a POSIX record lock, which belongs to one process: it is released when the process ends,
    however that happens, and is not inherited by the processes that an engine forks.

    Args:
        directory: the endpoint's directory.
    """

    def __init__(self, directory: EndpointDirectory) -> None:
        self._directory = directory
        self._descriptor = -1

    def __enter__(self) -> AgentLock:
        lock = self._directory.lock
        self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if not isinstance(error, BlockingIOError | PermissionError):
                raise FluxEndpointError(f"can't lock {lock}: {error}") from error
            raise already_running(self._directory) from None
        try:
            self._write_holder()
        except OSError as error:
            os.close(self._descriptor)
            raise OSError(error.errno, error.strerror, str(lock)) from error
        return self

    def _write_holder(self) -> None:
        content = {
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "machine": this_machine(),
            "since": time.time(),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(content).encode(), 0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)


def already_running(directory: EndpointDirectory) -> FluxEndpointError:
    """Return the error that names the process that already runs the endpoint."""
    holder = directory.holder()
    who = f"pid {holder.pid} on {holder.hostname}" if holder else "another process"
    return FluxEndpointError(
        f"endpoint {directory.name!r} is running already ({who}); "
        f"end it with: flux-endpoint stop {directory.name}"
    )


def all_endpoints() -> list[EndpointDirectory]:
    """Return all configured endpoints, sorted by name."""
    try:
        found = sorted(each.name for each in (paths.home() / "endpoints").iterdir())
    except FileNotFoundError:
        return []
    directories = (EndpointDirectory(name) for name in found if _NAME.fullmatch(name))
    return [each for each in directories if each.config.exists()]
