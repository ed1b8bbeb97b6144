"""`flux-endpoint service …`: run the REST service, and administer it."""

from __future__ import annotations

import importlib
from typing import Any

import click
from pydantic import ValidationError

from flux_endpoint import extras, logs
from flux_endpoint.cli.administration.options import (
    authorization_url_option,
    database_at,
    database_url_option,
    keep_options,
    open_database,
    setting,
)
from flux_endpoint.cli.process import quick_imports
from flux_endpoint.errors import ConfigurationError

#: The other commands, and their modules in `cli.administration`. Each is imported when it is used:
#: `service run` needs none of them.
_COMMANDS = {
    "user": "users",
    "token": "tokens",
    "group": "groups",
    "task": "tasks",
    "endpoint": "endpoints",
    "audit": "audit",
    "prune": "prune",
    "backup": "backup",
}


class _Service(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS and cmd_name not in self.commands:
            with quick_imports():
                name = f"flux_endpoint.cli.administration.{_COMMANDS[cmd_name]}"
                module = importlib.import_module(name)
            self.add_command(getattr(module, cmd_name))
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Service)
def service() -> None:
    """Run the REST service, and administer it: users, tokens, limits.

    Every option can be given in the environment. URLs with passwords should be, since everybody on
    the machine can read command lines.
    """


@service.command()
@setting("host", "Address to listen on.", default="127.0.0.1")
@setting("port", "Port to listen on; 0: a free one.", default=8080, type=int)
@setting(
    "plain-http",
    "Listen on other than the loopback interface although tokens and tasks are not encrypted.",
    is_flag=True,
    default=False,
)
@database_url_option
@setting(
    "amqp-url",
    "URL of RabbitMQ for the service itself.",
    default="amqp://guest:guest@127.0.0.1:5672/%2F",
)
@authorization_url_option
@setting(
    "management-url",
    "RabbitMQ's management API, http://HOST:PORT, to close connections of revoked tokens.",
)
@setting(
    "shared-broker-accounts",
    "Let all users share the accounts in the two URLs below: RabbitMQ does not separate them.",
    is_flag=True,
)
@setting(
    "endpoint-amqp-url",
    "URL of RabbitMQ for endpoints.  [default: --amqp-url without its account]",
)
@setting(
    "client-amqp-url",
    "URL of RabbitMQ for clients.  [default: --amqp-url without its account]",
)
@setting(
    "audit-log",
    "Audit log, one JSON object per line.  [default: audit.jsonl next to an SQLite "
    "database, none for another database]",
)
@setting(
    "metrics-users",
    "Users whose tokens may read GET /metrics, which tells of all users: names with commas "
    "between them, or * for all.  [default: none]",
)
@setting(
    "official-window",
    "The most unfinished tasks that an official endpoint is given; as many are lost with it.",
    default=2000,
    type=int,
)
@setting("max-connections", "The most concurrent HTTP connections.", default=1024, type=int)
@setting(
    "max-connections-per-address",
    "The same for each address other than the loopback interface; 0: no limit (behind a proxy).",
    default=256,
    type=int,
)
@setting(
    "max-account-connections",
    "The most RabbitMQ connections of each user's token, by the management API.",
    default=256,
    type=int,
)
@keep_options
@setting("max-user-requests", "The most requests of a user per second.", default=200, type=float)
@setting("max-user-tasks", "The most unfinished tasks of each user.", default=200_000, type=int)
@setting("max-user-queued", "The most bytes of their arguments (K, M, G, T).", default="10G")
@setting(
    "max-user-task-rate",
    "The most tasks that a user submits per second in the long run.  [default: no limit]",
    type=float,
)
@setting("max-user-functions", "The most functions of each user.", default=20_000, type=int)
@setting("max-user-code", "The most bytes of these functions (K, M, G, T).", default="1G")
@setting("max-user-endpoints", "The most endpoints of each user.", default=200, type=int)
@setting("max-user-groups", "The most task groups of each user.", default=20_000, type=int)
@setting(
    "max-user-queues",
    "The most queues that clients of each user open in ten minutes.",
    default=2000,
    type=int,
)
@setting("log-format", "Format of the log.", type=click.Choice(["text", "json"]), default="text")
def run(log_format: logs.LogFormat, database_url: str | None, **options: Any) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    logs.configure(log_format=log_format)
    extras.require("service", "the service")
    with quick_imports():
        from flux_endpoint.service import server, settings  # noqa: PLC0415 - only with the extra

    given = {name: value for name, value in options.items() if value is not None}
    try:
        checked = settings.ServiceSettings(database_url=database_at(database_url), **given)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        text = problem["msg"].removeprefix("Value error, ")
        # Errors of several options name them themselves.
        where = [f"--{str(name).replace('_', '-')}: " for name in problem["loc"][:1]]
        raise ConfigurationError("".join(where) + text) from error
    server.run(checked)


@service.command()
@database_url_option
def migrate(database_url: str | None) -> None:
    """Bring the database's schema up to date (`run` does this, too)."""
    open_database(database_url).close()
