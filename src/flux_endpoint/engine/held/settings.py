"""The settings of a host, passed in one environment variable."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

VARIABLE = "FLUX_ENDPOINT_HOST"


@dataclass(frozen=True)
class HostSettings:
    """Everything that a host needs. It has secrets, so it never goes on a command line."""

    #: Its ZeroMQ identity, a secret by which the agent recognizes it.
    identity: str
    #: Directory of the socket's address.
    directory: str
    #: ZeroMQ address of the agent.
    connect: str
    #: CURVE public key of the agent, and this host's key pair; empty on a host-local connection.
    server_key: str
    public_key: str
    secret_key: str
    #: Cores of the allocation.
    cores: int
    #: Names of the variables that its job was submitted with: others are from Flux's job shell.
    given: list[str]
    #: Seconds in which it must reach the agent.
    start_timeout: float

    def dump(self) -> str:
        """Return the settings as text for the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> HostSettings:
        """Return the settings from a text that `dump` wrote."""
        return cls(**json.loads(text))
