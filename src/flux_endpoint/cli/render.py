"""`flux-endpoint render`: what a multi-user endpoint's template makes of a user's values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from flux_endpoint.cli.options import complete_endpoint, local_name
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.errors import ConfigurationError


@click.command()
@click.argument("name", callback=local_name, shell_complete=complete_endpoint)
@click.argument("values", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--config",
    "given",
    metavar="JSON",
    help="A whole user_endpoint_config as JSON; or @FILE, with JSON or YAML.",
)
@click.option(
    "--user", metavar="NAME", help="Name of a user of the service, who is mapped to an account."
)
def render(name: str, values: Sequence[str], given: str | None, user: str | None) -> None:
    """Show what a multi-user endpoint's template makes of a user's values.

    The VALUEs are YAML: nodes=2, walltime=1h. A value that a submission would be refused for, e.g.
    by the schema, is an error here, too. With --user, the identity mapping decides which account
    the template sees; otherwise it is your own.
    """
    from flux_endpoint.endpoint.multi_user.loading import read  # noqa: PLC0415 - slow
    from flux_endpoint.endpoint.multi_user.user_endpoint import (  # noqa: PLC0415 - slow
        UserEndpointTask,
    )

    directory = EndpointDirectory(name)
    directory.require()
    try:
        text = directory.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"can't read {directory.config}: {error}") from None
    config, files = read(directory, text)
    account = _account(user, config.min_uid, files.mapping(), str(files.mapping_path))
    task = UserEndpointTask(
        uid=account.uid,
        queues={},
        parent_id="",
        template=files.template(),
        template_source=str(files.template_path),
        schema=files.schema(),
        schema_source=str(files.schema_path),
        values=_values(values, given),
        user_runtime=_runtime(),
        mapped_identity={"local": account.shown(), "globus": {"id": None}},
    )
    rendered = task.config_text()
    click.echo(rendered, nl=not rendered.endswith("\n"))
    task.config(rendered)
    if user is not None:
        groups = ", ".join(map(str, account.groups))
        said = f"{user} runs tasks as {account.name} (uid {account.uid}, groups {groups})"
        click.echo(f"{said}, in {account.home}.", err=True)


def _account(user: str | None, min_uid: int, mapping: str | None, source: str) -> Any:
    from flux_endpoint.endpoint.multi_user.accounts import (  # noqa: PLC0415 - slow
        Accounts,
        LocalAccount,
    )
    from flux_endpoint.endpoint.multi_user.mapping import IdentityMapping  # noqa: PLC0415 - slow

    if user is None:
        return LocalAccount.own()
    identity = {"username": user, "name": user, "email": user if "@" in user else None}
    known = None if mapping is None else IdentityMapping(mapping, source=source)
    return Accounts(user, [], min_uid).account(user, [identity], known)


def _values(pairs: Sequence[str], given: str | None) -> dict[str, Any]:
    values = {} if given is None else _whole(given)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{pair!r} must be of the form KEY=VALUE")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise click.UsageError(f"{pair!r}: the value is not valid YAML: {error}") from None
    try:
        # As it arrives from the service: a date, for example, is no value there.
        plain: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"the values can't be expressed in JSON: {error}") from None
    return plain


def _whole(given: str) -> dict[str, Any]:
    try:
        text = Path(given[1:]).read_text(encoding="utf-8") if given.startswith("@") else given
        values = yaml.safe_load(text) if given.startswith("@") else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise click.UsageError(f"--config {given[:100]}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise click.UsageError(f"--config {given[:100]}: must be an object with text as keys")
    return values


def _runtime() -> dict[str, Any]:
    from flux_endpoint.client.api import user_runtime  # noqa: PLC0415 - slow

    return user_runtime()
