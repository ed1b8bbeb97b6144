"""Resolves endpoints: by their name here, their name at the service, or their id."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import click

from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.endpoint.lifecycle import Listed, list_endpoints
from flux_endpoint.errors import NotFoundError
from flux_endpoint.stack.state import start_command


@dataclass(frozen=True)
class EndpointTarget:
    """An endpoint.

    Attributes:
        name: its name, here or at the service; its id if neither is known.
        endpoint_id: `None` if it is on this machine and was never started.
        local: its state on this machine, if it is here.
    """

    name: str
    endpoint_id: str | None
    local: Listed | None = None

    def require_id(self) -> str:
        """Return its id.

        Raises:
            NotFoundError: it has no id yet.
        """
        if self.endpoint_id is None:
            raise NotFoundError(
                f"endpoint {self.name!r} was never started, so the service does not know it: "
                + start_command(self.name)
            )
        return self.endpoint_id


def find_endpoint(text: str, api: OperatorApi) -> EndpointTarget:
    """Return the endpoint that `text` names.

    Raises:
        NotFoundError: there is none; the text lists the existing ones.
        click.UsageError: there are several.
    """
    here = list_endpoints()
    found = local_endpoint(text, here)
    if found is not None:
        return found
    endpoint_id = canonical_id(text)
    if endpoint_id is not None:
        return EndpointTarget(endpoint_id, endpoint_id)
    # The user's own first: other users may have used the same name.
    for role in ("owner", "any"):
        known = api.endpoints(role)
        named = [each for each in known if text in {each.name, each.display_name}]
        if len(named) == 1:
            return EndpointTarget(named[0].name, named[0].uuid)
    if named:
        ids = ", ".join(f"{each.uuid} (of {each.owner})" for each in named)
        raise click.UsageError(f"{len(named)} endpoints are called {text!r}; name one by id: {ids}")
    names = sorted({each.name for each in here} | {each.name for each in known})
    there_are = f"there are: {', '.join(names)}" if names else "there are none yet"
    raise NotFoundError(
        f"no endpoint is called {text!r}, neither here nor at {api.url}; {there_are}"
    )


def local_endpoint(text: str, here: list[Listed]) -> EndpointTarget | None:
    """Return the endpoint of this machine with the name or id `text`."""
    endpoint_id = canonical_id(text)
    for each in here:
        if text == each.name or (endpoint_id is not None and endpoint_id == each.endpoint_id):
            return EndpointTarget(each.name, each.endpoint_id, each)
    return None


def canonical_id(text: str) -> str | None:
    """Return the id in `text` in its usual form; `None`: it is no id."""
    try:
        return str(UUID(text))
    except ValueError:
        return None
