"""The settings of a host, passed in one environment variable."""

from __future__ import annotations

import json
from dataclasses import dataclass

from flux_endpoint.engine.workers.link import LinkSettings

VARIABLE = "FLUX_ENDPOINT_HOST"


@dataclass(frozen=True)
class HostSettings(LinkSettings):
    """Everything that a host needs."""

    #: Cores of the allocation.
    cores: int
    #: Names of the variables that its job was submitted with: others are from Flux's job shell.
    given: list[str]

    @classmethod
    def load(cls, text: str) -> HostSettings:
        """Return the settings from a text that `dump` wrote."""
        return cls(**json.loads(text))
