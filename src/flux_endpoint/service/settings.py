"""The settings of a service."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from flux_endpoint.amqp.url import parse_url, without_credentials
from flux_endpoint.errors import AmqpError
from flux_endpoint.protocol.duration import parse_duration
from flux_endpoint.protocol.size import parse_size

#: Seconds; a number, or text with a unit in Flux's format.
Duration = Annotated[float, BeforeValidator(parse_duration)]
#: Bytes; a number, or text with a unit.
Size = Annotated[float, BeforeValidator(parse_size)]


def _split(given: object) -> object:
    return re.findall(r"[^\s,]+", given) if isinstance(given, str) else given


#: Names; text has commas or blanks between them.
Names = Annotated[frozenset[str], BeforeValidator(_split)]

#: Minimum length of the secret in `authorization_url`.
MIN_SECRET = 16
_PATH = re.compile(r"[\w/-]+", re.ASCII)


class BrokerSettings(BaseModel):
    """How the service, endpoints and clients reach the broker.

    Attributes:
        amqp_url: the broker's URL for the service itself, which declares exchanges and queues.
        authorization_url: the URL that the service listens on for the broker's authorization
            requests: `http://HOST:PORT/SECRET`.
        management_url: URL of the broker's management API, with which the service closes and
            limits connections; empty: it does neither.
        shared_broker_accounts: whether all clients share one account at the broker, and all
            endpoints another (those in the two URLs below). The broker then sends no authorization
            requests.
        endpoint_amqp_url: the broker's URL for registered endpoints; default: `amqp_url` without
            the account. It has an account only with `shared_broker_accounts`.
        client_amqp_url: the same for clients.
        max_account_connections: maximum number of connections to the broker with each user's token;
            needs `management_url`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    amqp_url: str = Field(repr=False)
    authorization_url: str = Field(default="", repr=False)
    management_url: str = Field(default="", repr=False)
    shared_broker_accounts: bool = False
    endpoint_amqp_url: str = Field(default="", repr=False)
    client_amqp_url: str = Field(default="", repr=False)
    max_account_connections: int = Field(default=256, ge=1)

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

    @field_validator("authorization_url")
    @classmethod
    def _is_authorization_url(cls, url: str) -> str:
        if url:
            parts = _http_parts(url)
            if parts.scheme != "http" or parts.username or parts.query:
                raise ValueError("must look like http://HOST:PORT/SECRET")
            if len(parts.path.rpartition("/")[2]) < MIN_SECRET:
                raise ValueError(
                    f"must end in a secret of {MIN_SECRET} characters or more, which RabbitMQ and "
                    "this service alone know: http://HOST:PORT/SECRET"
                )
            if not _PATH.fullmatch(parts.path):
                raise ValueError("its path may have letters, digits, '-', '_' and '/' only")
        return url

    @field_validator("management_url")
    @classmethod
    def _is_management_url(cls, url: str) -> str:
        if url:
            _http_parts(url)
        return url

    @model_validator(mode="after")
    def _check_account_separation(self) -> Self:
        if self.shared_broker_accounts:
            self._check_shared()
        elif not self.authorization_url:
            raise ValueError(
                "users would not be separated at the broker. Give --authorization-url, where "
                "RabbitMQ asks this service for authorization; or let all users share accounts, "
                "with --shared-broker-accounts. docs/deployment.md describes both under 'Accounts "
                "at the broker'"
            )
        else:
            for name in ("endpoint_amqp_url", "client_amqp_url"):
                if urlsplit(getattr(self, name)).username is not None:
                    option = "--" + name.replace("_", "-")
                    raise ValueError(
                        f"{option} holds an account: leave user and password out, each token has "
                        "an account of its own (unless --shared-broker-accounts is given)"
                    )
        return self

    def _check_shared(self) -> None:
        own = urlsplit(self.amqp_url).username
        for name in ("endpoint_amqp_url", "client_amqp_url"):
            user = urlsplit(getattr(self, name)).username
            option = "--" + name.replace("_", "-")
            if user is None:
                raise ValueError(
                    f"--shared-broker-accounts needs {option} with the account that is handed out"
                )
            if user == own:
                raise ValueError(
                    f"{option} holds the service's own account, which may do everything at the "
                    "broker: make another, docs/deployment.md says with which rights"
                )

    @model_validator(mode="after")
    def _default_urls(self) -> Self:
        own = without_credentials(self.amqp_url)
        # A hung endpoint remains its queue's only consumer until its heartbeats have been missed.
        endpoint = self.endpoint_amqp_url or own
        if "heartbeat=" not in endpoint:
            endpoint += ("&" if "?" in endpoint else "?") + "heartbeat=10"
        object.__setattr__(self, "endpoint_amqp_url", endpoint)
        object.__setattr__(self, "client_amqp_url", self.client_amqp_url or own)
        return self


class UserLimits(BaseModel):
    """Limits for each user.

    Attributes:
        keep_user_results: maximum bytes of results of each user; the oldest are removed first.
        max_user_requests: requests per second of each user; bursts of ten seconds' worth pass.
        max_user_tasks: maximum number of open tasks of each user.
        max_user_queued: maximum bytes of the arguments of these tasks.
        max_user_task_rate: tasks per second that each user may submit in the long run; bursts of
            ten seconds' worth pass, and so does a larger submission after a pause of that length.
        max_user_functions: maximum number of functions of each user.
        max_user_code: maximum bytes of these functions, and of deleted ones that are still kept.
        max_user_endpoints: maximum number of endpoints of each user.
        max_user_groups: maximum number of task groups of each user.
        max_user_queues: maximum number of queues that clients of each user open in ten minutes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_user_results: Size = Field(default="10G", validate_default=True, gt=0)
    max_user_requests: float = Field(default=200, ge=1)
    max_user_tasks: int = Field(default=200_000, ge=1)
    max_user_queued: Size = Field(default="10G", validate_default=True, gt=0)
    max_user_task_rate: float = Field(default=math.inf, gt=0)
    max_user_functions: int = Field(default=20_000, ge=1)
    max_user_code: Size = Field(default="1G", validate_default=True, gt=0)
    max_user_endpoints: int = Field(default=200, ge=1)
    max_user_groups: int = Field(default=20_000, ge=1)
    max_user_queues: int = Field(default=2000, ge=1)

    def with_own(self, own: Mapping[str, Any]) -> UserLimits:
        """Return the limits of a user who has some of their own.

        Args:
            own: values by field; those that no field is called after are ignored.

        Raises:
            ValidationError: a value is invalid.
        """
        fields = UserLimits.model_fields
        limits = {name: getattr(self, name) for name in fields}
        return UserLimits(**limits | {name: value for name, value in own.items() if name in fields})


class ServiceSettings(BrokerSettings, UserLimits):
    """Settings of one service. URLs may contain passwords and are left out of `repr`.

    Attributes:
        host: address to listen on.
        port: port to listen on; 0: a free one.
        plain_http: whether the service may listen on an address other than the loopback interface,
            although it speaks HTTP without TLS.
        database_url: `sqlite:////path/service.db`, `postgresql://user:password@host/name`, or the
            path of an SQLite file.
        audit_log: path of the audit log (see `service.audit`); default: `audit.jsonl` beside an
            SQLite database, no log with another database.
        metrics_users: names of the users whose tokens may read `GET /metrics`; "*": all users.
        publish_timeout: seconds that a submission waits for the broker before it is answered. Its
            tasks are stored by then, and published when the broker is back.
        official_window: maximum number of open tasks that an official endpoint is given, unless it
            can run more at a time. At most this many are lost with it.
        max_connections: maximum number of HTTP connections.
        max_connections_per_address: maximum number of HTTP connections from one address, the
            loopback interface excepted; 0: no limit, for a service behind a proxy.
        keep_tasks: seconds for which a task is kept after its end, with its result and events.
        keep_functions: seconds for which a function is kept after its last use.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    plain_http: bool = False
    database_url: str | Path = Field(repr=False)
    audit_log: Path | None = None
    metrics_users: Names = frozenset()
    publish_timeout: float = Field(default=5.0, gt=0)
    official_window: int = Field(default=2000, ge=1)
    max_connections: int = Field(default=1024, ge=16)
    max_connections_per_address: int = Field(default=256, ge=0)
    keep_tasks: Duration = Field(default="14d", validate_default=True, gt=0)
    keep_functions: Duration = Field(default="90d", validate_default=True, gt=0)


def _http_parts(url: str) -> SplitResult:
    """Return the parts of an HTTP URL.

    Raises:
        ValueError: it is not an HTTP URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must start with http:// and name a host")
    _ = parts.port  # raises ValueError if it is not a number
    return parts
