"""What a service needs to know before it starts."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from flux_endpoint.amqp.url import parse_url
from flux_endpoint.errors import AmqpError
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.protocol.size import parse_size

#: Seconds; a number, or text with a unit as Flux has it.
Duration = Annotated[float, BeforeValidator(parse_duration)]
#: Bytes; a number, or text with a unit.
Size = Annotated[float, BeforeValidator(parse_size)]


class ServiceSettings(BaseModel):
    """Settings of one service; URLs may hold passwords and are kept out of `repr`.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        plain_http: whether to listen on other than the loopback interface, though the service
            speaks HTTP without TLS.
        database_url: `sqlite:////path/service.db` or `postgresql://user:password@host/name`; a
            path, of an SQLite file.
        amqp_url: the service's own way to the broker; it declares exchanges and queues.
        endpoint_amqp_url: what registered endpoints are told to use, by default `amqp_url`.
        client_amqp_url: what clients are told to use for results, by default `amqp_url`.
        audit_log: the file that says who did what (see `service.audit`); default: `audit.jsonl`
            beside an SQLite database, none with another one.
        publish_timeout: seconds that a submission waits for the broker before it answers. The tasks
            are stored by then, and published when the broker is back.
        official_window: most tasks that an endpoint of another make is given before they end,
            unless it can run more at a time; so many are lost with it at most.
        max_connections: most HTTP connections.
        max_connections_per_address: most of them from one address that is not the loopback
            interface; 0: no limit, as behind a proxy, which has one address.
        keep_tasks: seconds after its end for which a task is known, with its result and events.
        keep_functions: seconds after their last use for which functions are known.
        keep_user_results: bytes of results of each user; the oldest go first.
        max_user_requests: requests of each user a second; for ten seconds' worth more at once.
        max_user_tasks: tasks of each user that have not ended.
        max_user_queued: bytes of the arguments of these.
        max_user_functions: functions of each user.
        max_user_endpoints: endpoints of each user.
        max_user_groups: task groups of each user.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    plain_http: bool = False
    database_url: str | Path = Field(repr=False)
    amqp_url: str = Field(repr=False)
    endpoint_amqp_url: str = Field(default="", repr=False)
    client_amqp_url: str = Field(default="", repr=False)
    audit_log: Path | None = None
    publish_timeout: float = Field(default=5.0, gt=0)
    official_window: int = Field(default=2000, ge=1)
    max_connections: int = Field(default=1024, ge=16)
    max_connections_per_address: int = Field(default=256, ge=0)
    keep_tasks: Duration = Field(default="14d", validate_default=True, gt=0)
    keep_functions: Duration = Field(default="90d", validate_default=True, gt=0)
    keep_user_results: Size = Field(default="10G", validate_default=True, gt=0)
    max_user_requests: float = Field(default=200, ge=1)
    max_user_tasks: int = Field(default=200_000, ge=1)
    max_user_queued: Size = Field(default="10G", validate_default=True, gt=0)
    max_user_functions: int = Field(default=20_000, ge=1)
    max_user_endpoints: int = Field(default=200, ge=1)
    max_user_groups: int = Field(default=20_000, ge=1)

    @field_validator("amqp_url", "endpoint_amqp_url", "client_amqp_url")
    @classmethod
    def _is_amqp(cls, url: str) -> str:
        if url and not url.startswith(("amqp://", "amqps://")):
            raise ValueError("must start with amqp:// or amqps://")
        if url:
            try:
                parse_url(url)
            except AmqpError as error:
                raise ValueError(str(error)) from None
        return url

    @model_validator(mode="after")
    def _default_urls(self) -> Self:
        # A half-dead endpoint keeps its queue's only consumer; a short heartbeat frees it soon.
        endpoint = self.endpoint_amqp_url or self.amqp_url
        if "heartbeat=" not in endpoint:
            endpoint += ("&" if "?" in endpoint else "?") + "heartbeat=10"
        object.__setattr__(self, "endpoint_amqp_url", endpoint)
        object.__setattr__(self, "client_amqp_url", self.client_amqp_url or self.amqp_url)
        return self
