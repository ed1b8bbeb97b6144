"""What a manager is told at its start, through one environment variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.files import ManagerFiles

VARIABLE = "FLUX_ENDPOINT_MANAGER"


@dataclass(frozen=True)
class ManagerSettings:
    """Everything that a manager needs; secrets included, so it never goes on a command line."""

    manager_id: str
    #: What the pool knows it by, and nobody else knows: its identity on ZeroMQ.
    identity: str
    #: Where its files are, and `pool.json`, by which a later pool says where it is.
    directory: str
    #: ZeroMQ address of the pool that starts it.
    connect: str
    #: CURVE public key of the pool, and this manager's pair; empty on a host-local connection.
    server_key: str
    public_key: str
    secret_key: str
    workers: int
    gpus_per_worker: int
    tasks: TaskSettings
    #: Seconds that it has to reach the agent for the first time.
    start_timeout: float
    #: Seconds for which it outlives the loss of its agent, if it runs nothing.
    orphan_timeout: float

    @property
    def files(self) -> ManagerFiles:
        """The names of its files."""
        return ManagerFiles(Path(self.directory), self.manager_id)

    def dump(self) -> str:
        """Return the settings as text for the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ManagerSettings:
        """Return the settings that `dump` wrote."""
        values = json.loads(text)
        values["tasks"] = TaskSettings(**values["tasks"])
        return cls(**values)
