"""The files of managers in the engine's directory, which agent and nodes share."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flux_endpoint.paths import write_private

_RECORD = ".json"
_SPOOL = ".results"


@dataclass(frozen=True)
class ManagerFiles:
    """The files of one manager.

    Attributes:
        directory: the engine's.
        manager_id: whose they are.
    """

    directory: Path
    manager_id: str

    @property
    def log(self) -> Path:
        """What it says itself, and Flux of its job."""
        return self._path(".log")

    @property
    def record(self) -> Path:
        """What an agent to come has to know of it."""
        return self._path(_RECORD)

    @property
    def begun(self) -> Path:
        """Which tasks its workers have begun."""
        return self._path(".begun")

    @property
    def spool(self) -> Path:
        """Ends that wait for an agent."""
        return self._path(_SPOOL)

    @property
    def lock(self) -> Path:
        """Locked (flock) as long as it, or a worker of its, lives."""
        return self._path(".lock")

    def _path(self, suffix: str) -> Path:
        return self.directory / f"workers-{self.manager_id}{suffix}"

    def remove(self, *, log: bool, spool: bool) -> None:
        """Remove the files, these two only if that is wanted."""
        chosen = [self.log] * log + [self.spool] * spool
        for path in (self.record, self.begun, self.lock, *chosen):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def hold_lock(self) -> None:
        """Lock the file for good, for this process and all that it forks."""
        with suppress(OSError):  # the node may not see the endpoint's directory
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def await_end(self, patience: float) -> bool:
        """Wait for the end of a manager of this host; return whether it has come.

        Args:
            patience: seconds to wait at most.
        """
        try:
            file = self.lock.open("rb")
        except OSError:  # it has not begun
            return True
        ended = threading.Event()

        def wait() -> None:
            with file, suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            ended.set()

        # `flock` has no timeout. The thread of one that lives on waits for as long as that does.
        threading.Thread(target=wait, name="manager's end", daemon=True).start()
        return ended.wait(patience)

    @classmethod
    def all(cls, directory: Path) -> Iterator[ManagerFiles]:
        """Yield the files of each manager that has any."""
        names = {path.stem.removeprefix("workers-") for path in directory.glob("workers-*")}
        for name in sorted(names):
            yield cls(directory, name)


@dataclass(frozen=True)
class ManagerNote:
    """What is noted of a manager before its job is submitted.

    Attributes:
        instance: where its job runs.
        identity: what it is known by on ZeroMQ; a secret.
        configuration: a digest of all that it was started with; a manager that was started with
            something else gets no new tasks.
        workers: how many it has.
        permanent: whether it stays when it has nothing to do.
        cores: that it has of its node.
        gpus: that it has of its node.
    """

    instance: str
    identity: str
    configuration: str
    workers: int
    permanent: bool
    cores: int
    gpus: int

    def write(self, files: ManagerFiles) -> None:
        """Write it. Raises OSError where that can't be done."""
        # It is for when the agent is killed: with the host, its managers are gone, too.
        write_private(files.record, json.dumps(asdict(self)), durable=False)

    @classmethod
    def read(cls, files: ManagerFiles) -> ManagerNote | None:
        """Return what was noted of a manager, if that can be read."""
        try:
            values = json.loads(files.record.read_text(encoding="utf-8"))
            return cls(
                instance=str(values["instance"]),
                identity=str(values["identity"]),
                configuration=str(values["configuration"]),
                workers=int(values["workers"]),
                permanent=bool(values["permanent"]),
                cores=int(values["cores"]),
                gpus=int(values["gpus"]),
            )
        except (OSError, ValueError, LookupError, TypeError):
            return None


@dataclass(frozen=True)
class PoolAddress:
    """Where the pool is reached.

    Attributes:
        connect: its ZeroMQ address.
        server_key: its CURVE public key; empty on a host-local connection.
    """

    connect: str
    server_key: str

    def write(self, directory: Path) -> None:
        """Have managers find it. Raises OSError where that can't be done."""
        write_private(_address(directory), json.dumps(asdict(self)))

    @staticmethod
    def remove(directory: Path) -> None:
        """Have nobody find it any more."""
        with suppress(OSError):
            _address(directory).unlink(missing_ok=True)

    @classmethod
    def read(cls, directory: Path) -> PoolAddress:
        """Return where the latest pool is, or was.

        Raises:
            OSError, ValueError: it isn't known.
        """
        values: dict[str, Any] = json.loads(_address(directory).read_text(encoding="utf-8"))
        try:
            return cls(str(values["connect"]), str(values["server_key"]))
        except (LookupError, TypeError) as error:
            raise ValueError(f"{_address(directory)} is damaged") from error


def _address(directory: Path) -> Path:
    return directory / "pool.json"
