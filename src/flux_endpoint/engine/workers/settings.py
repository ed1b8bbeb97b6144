"""What a manager is told at its start, through one environment variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from flux_endpoint.engine.task import TaskSettings

VARIABLE = "FLUX_ENDPOINT_MANAGER"


@dataclass(frozen=True)
class ManagerSettings:
    """Everything that a manager needs; secrets included, so it never goes on a command line."""

    manager_id: str
    #: ZeroMQ address of the pool.
    connect: str
    #: Shared secret that the first message must carry.
    token: str
    #: CURVE public key of the pool, and this manager's pair; empty on a host-local connection.
    server_key: str
    public_key: str
    secret_key: str
    workers: int
    gpus_per_worker: int
    tasks: TaskSettings
    #: Seconds for which a manager outlives the loss of its agent.
    orphan_timeout: float

    def dump(self) -> str:
        """Return the settings as text for the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ManagerSettings:
        """Return the settings that `dump` wrote."""
        values = json.loads(text)
        values["tasks"] = TaskSettings(**values["tasks"])
        return cls(**values)
