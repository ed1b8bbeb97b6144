"""The files of managers in the engine's directory, shared by agent and nodes."""

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
        directory: the engine's directory.
        manager_id: the manager's id.
    """

    directory: Path
    manager_id: str

    @property
    def log(self) -> Path:
        """Log of the manager, and of Flux about its job."""
        return self._path(".log")

    @property
    def record(self) -> Path:
        """The record by which the next agent finds the manager."""
        return self._path(_RECORD)

    @property
    def begun(self) -> Path:
        """The tasks that its workers have begun."""
        return self._path(".begun")

    @property
    def spool(self) -> Path:
        """Task ends that wait for an agent."""
        return self._path(_SPOOL)

    @property
    def lock(self) -> Path:
        """Locked (flock) as long as the manager or one of its workers lives."""
        return self._path(".lock")

    def _path(self, suffix: str) -> Path:
        return self.directory / f"workers-{self.manager_id}{suffix}"

    def remove(self, *, log: bool, spool: bool) -> None:
        """Remove the files; log and spool only if requested."""
        chosen = [self.log] * log + [self.spool] * spool
        for path in (self.record, self.begun, self.lock, *chosen):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def hold_lock(self) -> None:
        """Lock the file until this process and all processes that it forks have ended."""
        with suppress(OSError):  # the node may not mount the endpoint's directory
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def await_end(self, timeout: float) -> bool:
        """Wait until a manager on this host has ended; return whether it has.

        Args:
            timeout: the longest time to wait, in seconds.
        """
        try:
            file = self.lock.open("rb")
        except OSError:  # it has not started yet
            return True
        ended = threading.Event()

        def wait() -> None:
            with file, suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            ended.set()

        # `flock` has no timeout. If the manager lives on, this thread waits until it ends.
        threading.Thread(target=wait, name="manager's end", daemon=True).start()
        return ended.wait(timeout)

    @classmethod
    def all(cls, directory: Path) -> Iterator[ManagerFiles]:
        """Yield the files of each manager that has any."""
        names = {path.stem.removeprefix("workers-") for path in directory.glob("workers-*")}
        for name in sorted(names):
            yield cls(directory, name)


@dataclass(frozen=True)
class ManagerNote:
    """The record of a manager, written before its job is submitted.

    Attributes:
        instance: the Flux instance of its job.
        identity: its ZeroMQ identity; a secret.
        configuration: digest of everything it was started with; a manager with another digest
          gets no new tasks.
        workers: number of its workers.
        permanent: whether it stays when idle.
        cores: cores that it has on its node.
        gpus: gpus that it has on its node.
    """

    instance: str
    identity: str
    configuration: str
    workers: int
    permanent: bool
    cores: int
    gpus: int

    def write(self, files: ManagerFiles) -> None:
        """Write the record. Raises OSError if that fails."""
        # No fsync: if this host crashes, its managers are gone, too.
        write_private(files.record, json.dumps(asdict(self)), durable=False)

    @classmethod
    def read(cls, files: ManagerFiles) -> ManagerNote | None:
        """Return the record of a manager, or `None` if it can't be read."""
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
    """The address of the pool.

    Attributes:
        connect: its ZeroMQ address.
        server_key: its CURVE public key; empty on a host-local connection.
    """

    connect: str
    server_key: str

    def write(self, directory: Path) -> None:
        """Write the address for managers. Raises OSError if that fails."""
        write_private(_address(directory), json.dumps(asdict(self)))

    @staticmethod
    def remove(directory: Path) -> None:
        """Remove the address, so that managers do not find it any more."""
        with suppress(OSError):
            _address(directory).unlink(missing_ok=True)

    @classmethod
    def read(cls, directory: Path) -> PoolAddress:
        """Return the address of the latest pool, which may be gone.

        Raises:
            OSError, ValueError: it can't be read.
        """
        values: dict[str, Any] = json.loads(_address(directory).read_text(encoding="utf-8"))
        try:
            return cls(str(values["connect"]), str(values["server_key"]))
        except (LookupError, TypeError) as error:
            raise ValueError(f"{_address(directory)} is damaged") from error


def _address(directory: Path) -> Path:
    return directory / "pool.json"
