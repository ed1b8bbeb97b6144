"""Options and arguments that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import click
from click.shell_completion import CompletionItem

from flux_endpoint.errors import NotFoundError
from flux_endpoint.protocol.jobid import JobID, parse_jobid

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add `--json` to a command; it gets the argument `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
    return option(command)


def put_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document; `indent=None`: on one line, for programs that read several."""
    # In ASCII, which every locale can print.
    click.echo(json.dumps(document, indent=indent))


def task_or_job(text: str) -> UUID | JobID:
    """Return the task id or job id in `text`.

    Raises:
        click.BadParameter: it is neither; the text describes both.
    """
    try:
        return UUID(text)
    except ValueError:
        pass
    try:
        return JobID(parse_jobid(text))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is neither a task's id, as `flux-endpoint tasks` lists them, nor a job's, "
            "as `flux jobs` does (ƒ2WXGLe)"
        ) from None


def local_name(
    _context: click.Context | None, _parameter: click.Parameter | None, text: str | None
) -> str | None:
    """Return the name of an endpoint of this machine, which `text` names or is the id of.

    Raises:
        NotFoundError: it is the id of another endpoint.
    """
    try:
        wanted = str(UUID(text or ""))
    except ValueError:
        return text
    from flux_endpoint.endpoint.directory import all_endpoints  # noqa: PLC0415 - others need none

    directories = all_endpoints()
    for each in directories:
        if each.name == text or each.endpoint_id() == wanted:
            return each.name
    names = ", ".join(each.name for each in directories)
    there_are = f"there are: {names}" if names else "there are none yet"
    raise NotFoundError(f"no endpoint of this machine has the id {text}; {there_are}")


def complete_endpoint(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the endpoints of this machine whose names begin with `incomplete`."""
    from flux_endpoint.endpoint.directory import all_endpoints  # noqa: PLC0415 - a shell waits

    names = (each.name for each in all_endpoints())
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
