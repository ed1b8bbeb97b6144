"""The settings of a manager, passed in one environment variable."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from flux_endpoint.engine.task import TaskSettings
from flux_endpoint.engine.workers.files import ManagerFiles
from flux_endpoint.engine.workers.link import LinkSettings

VARIABLE = "FLUX_ENDPOINT_MANAGER"


@dataclass(frozen=True)
class ManagerSettings(LinkSettings):
    """Everything that a manager needs; its files are in `directory`, too."""

    manager_id: str
    workers: int
    gpus_per_worker: int
    tasks: TaskSettings
    #: Seconds for which it outlives its agent if it runs nothing.
    orphan_timeout: float

    @property
    def files(self) -> ManagerFiles:
        """The manager's files."""
        return ManagerFiles(Path(self.directory), self.manager_id)

    @classmethod
    def load(cls, text: str) -> ManagerSettings:
        """Return the settings from a text that `dump` wrote."""
        values = json.loads(text)
        values["tasks"] = TaskSettings(**values["tasks"])
        return cls(**values)
