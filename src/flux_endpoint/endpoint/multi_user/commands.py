"""The command to start a user endpoint, as the service sends it to multi-user endpoints."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from flux_endpoint.amqp import Delivery
from flux_endpoint.protocol.queues import EndpointQueues

#: Seconds after which a command is out of date: the service sends another if it is still needed.
MAX_AGE = 180.0


class StartArguments(BaseModel):
    """The user endpoint to start.

    Attributes:
        name: name of the user endpoint, and of its directory.
        amqp_creds: how it reaches the broker.
        user_opts: the user's values for the template.
        user_runtime: description of the submitting program.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    amqp_creds: EndpointQueues
    user_opts: dict[str, Any] = Field(default_factory=dict)
    user_runtime: dict[str, Any] = Field(default_factory=dict)


class StartCommand(BaseModel):
    """A command, and the user for whom it is.

    Attributes:
        command: its kind.
        globus_effective_identity: id of the user.
        globus_username: name of the user.
        globus_identity_set: identities of the user, which the identity mapping reads.
        arguments: what is started.
    """

    command: Literal["cmd_start_endpoint"]
    globus_effective_identity: str
    globus_username: str
    globus_identity_set: list[dict[str, Any]]
    arguments: StartArguments

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "kwargs" not in content:
            return content
        return {**content, "arguments": content["kwargs"]}


class InvalidCommandError(ValueError):
    """A message from the command queue is no command that can be obeyed."""


def read_start(delivery: Delivery) -> StartCommand:
    """Return the command in a delivery.

    Raises:
        InvalidCommandError: it is something else, or too old.
    """
    try:
        command = StartCommand.model_validate_json(delivery.body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidCommandError(f"no start command: {where}: {first['msg']}") from None
    if delivery.timestamp is None or abs(time.time() - delivery.timestamp) > MAX_AGE:
        raise InvalidCommandError(
            f"it is older than {MAX_AGE:g} s by this machine's clock, or has no time"
        )
    return command
