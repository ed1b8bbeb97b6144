"""The settings of a manager, passed in one environment variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.files import ManagerFiles

VARIABLE = "FLUX_ENDPOINT_MANAGER"


@dataclass(frozen=True)
class ManagerSettings:
    """Everything that a manager needs. It has secrets, so it never goes on a command line."""

    manager_id: str
    #: Its ZeroMQ identity, a secret by which the pool recognizes it.
    identity: str
    #: Directory of its files, and of `pool.json`, which has the address of a later pool.
    directory: str
    #: ZeroMQ address of the pool that starts it.
    connect: str
    #: CURVE public key of the pool, and this manager's key pair; empty on a host-local connection.
    server_key: str
    public_key: str
    secret_key: str
    workers: int
    gpus_per_worker: int
    tasks: TaskSettings
    #: Seconds in which it must first reach the agent.
    start_timeout: float
    #: Seconds for which it outlives its agent if it runs nothing.
    orphan_timeout: float

    @property
    def files(self) -> ManagerFiles:
        """The manager's files."""
        return ManagerFiles(Path(self.directory), self.manager_id)

    def dump(self) -> str:
        """Return the settings as text for the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ManagerSettings:
        """Return the settings from a text that `dump` wrote."""
        values = json.loads(text)
        values["tasks"] = TaskSettings(**values["tasks"])
        return cls(**values)
