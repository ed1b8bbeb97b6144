"""`flux-endpoint delete`: removes an endpoint from this machine and from the service."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from flux_endpoint.cli.confirm import confirm, yes_option
from flux_endpoint.cli.options import complete_endpoint
from flux_endpoint.cli.progress import WaitingLine
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import shown_bytes
from flux_endpoint.cli.targets import canonical_id, local_endpoint
from flux_endpoint.endpoint import lifecycle
from flux_endpoint.endpoint.deletion import Deletion, delete, plan_deletion
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.errors import (
    ConfigurationError,
    FluxEndpointError,
    ServiceError,
    ServiceUnreachableError,
)

# So many paths of others are shown.
_SHOWN = 10


@click.command(name="delete")
@click.argument("name", metavar="NAME|ID", shell_complete=complete_endpoint)
@click.option("--stop", is_flag=True, help="Stop it first if it runs.")
@click.option("--local", is_flag=True, help="Only here: the service keeps its registration.")
@yes_option
def delete_endpoint(name: str, *, stop: bool, local: bool, yes: bool) -> None:
    """Delete an endpoint, here and at the service.

    Its configuration, token, journal and logs are removed, and directories and output files that
    are named after its tasks, if they are in its own directory. Files that people or tasks named
    otherwise stay, and so does a working directory elsewhere.

    At the service, its unfinished tasks fail, and it takes no more. Results that the service has
    stay. If the service can't be reached or refuses, the endpoint is deleted here alone, and the
    command says how to do the rest. The ID of an endpoint that is not here deletes it there alone.
    """
    endpoint_id = canonical_id(name)
    if endpoint_id is not None:
        here = local_endpoint(name, lifecycle.list_endpoints())
        if here is None:
            _delete_elsewhere(endpoint_id, yes=yes)
            return
        name = here.name
    directory = EndpointDirectory(name)
    plan = plan_deletion(directory)
    holder = directory.holder()
    if holder is not None and not stop:
        raise FluxEndpointError(
            f"endpoint {name!r} is running (pid {holder.pid} on {holder.hostname}), and was not "
            f"deleted: end it with `flux-endpoint stop {name}`, or add --stop"
        )
    api = None if local else _service_of(plan)
    for line in _announced(plan, api):
        click.echo(line, err=True)
    if not confirm(f"Delete endpoint {name}", yes=yes):
        return
    if holder is not None:
        with WaitingLine(f"Stopping {name}", lifecycle.STOP_TIMEOUT):
            lifecycle.stop_endpoint(name)
    left = "" if api is None else _delete_at_service(api, plan)
    done = delete(directory)
    click.echo(f"Deleted endpoint {name}.")
    if done.kept:
        click.echo(f"Kept {len(done.kept)} paths that are not the endpoint's own.")
    if left:
        raise FluxEndpointError(left)


def _delete_elsewhere(endpoint_id: str, *, yes: bool) -> None:
    """Delete an endpoint at the service; its agent may run on until the service refuses it."""
    api = OperatorApi()
    click.echo(
        f"To be removed:\n  endpoint {endpoint_id} at {api.url}: its unfinished tasks fail, and it "
        "ends where it runs",
        err=True,
    )
    if confirm(f"Delete endpoint {endpoint_id}", yes=yes):
        api.delete_endpoint(endpoint_id)
        click.echo(f"Deleted endpoint {endpoint_id}.")


def _service_of(plan: Deletion) -> OperatorApi | None:
    """Return the service where the endpoint is registered; `None`: there is none to ask."""
    if plan.endpoint_id is None or plan.started_by is not None:
        return None
    try:
        api = OperatorApi()
    except ConfigurationError as error:
        plan.problems.append(f"the service is not asked: {error}")
        return None
    registered_at = _registered_at(plan.directory)
    if registered_at not in {None, api.url}:
        plan.problems.append(
            f"the service is not asked: the endpoint is registered at {registered_at}, and your "
            f"credentials (from {api.credentials.source}) are for {api.url}"
        )
        return None
    return api


def _registered_at(directory: EndpointDirectory) -> str | None:
    try:
        url = json.loads(directory.identity.read_text(encoding="utf-8"))["service_url"]
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier release
        return None
    return url if isinstance(url, str) else None


def _announced(plan: Deletion, api: OperatorApi | None) -> Iterator[str]:
    """Yield the lines that say what will be removed, and what stays."""
    yield "To be removed:"
    yield (
        f"  {plan.directory.path}: configuration, token, journal and logs "
        f"({shown_bytes(plan.size)} with the tasks' files)"
    )
    if plan.of_tasks:
        yield f"  {len(plan.of_tasks)} directories and output files named after tasks"
    if plan.open_tasks or plan.unsent:
        yield (
            f"  {plan.open_tasks} unfinished tasks, and {plan.unsent} results that the service "
            "does not have yet"
        )
    if api is not None:
        yield f"  endpoint {plan.endpoint_id} at {api.url}: its unfinished tasks fail"
    elif plan.started_by is not None:
        yield f"  (its multi-user endpoint {plan.started_by} can start it again)"
    elif plan.endpoint_id is not None:
        yield f"  (its registration at the service stays: {plan.endpoint_id})"
    if plan.kept:
        yield "To be kept:"
        for path in plan.kept[:_SHOWN]:
            yield f"  {path}"
        if len(plan.kept) > _SHOWN:
            yield f"  … and {len(plan.kept) - _SHOWN} more"
    for problem in plan.problems:
        yield f"Note: {problem}"


def _delete_at_service(api: OperatorApi, plan: Deletion) -> str:
    """Delete the endpoint at the service; return what is left to do there, or nothing."""
    assert plan.endpoint_id is not None
    try:
        api.delete_endpoint(plan.endpoint_id)
    except ServiceUnreachableError as error:
        why = f"the service could not be reached ({error})"
    except ServiceError as error:
        if error.code == "ENDPOINT_NOT_FOUND":
            return ""
        why = f"the service refused ({error})"
    else:
        return ""
    return (
        f"endpoint {plan.directory.name} was deleted here alone: {why}. Delete it there, too: "
        f"flux-endpoint delete {plan.endpoint_id}"
    )
