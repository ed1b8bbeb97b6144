"""Limits of a user as options of `service user`, and as rows of a table."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from pydantic import ValidationError

from flux_endpoint.cli.table import shown_bytes

if TYPE_CHECKING:
    from flux_endpoint.service.settings import UserLimits

Command = TypeVar("Command", bound=Callable[..., Any])

#: The value of an option that gives the user the service's limit again.
DEFAULT = "default"


@dataclass(frozen=True)
class Limit:
    """A limit of users.

    Attributes:
        option: name of the option, without dashes in front.
        field: its field in `UserLimits`, and its key in JSON.
        what: what it limits.
        unit: what its value counts.
    """

    option: str
    field: str
    what: str
    unit: Literal["number", "bytes", "a second"] = "number"

    def shown(self, value: float) -> str:
        """Return a value for people."""
        if math.isinf(value):
            return "no limit"
        if self.unit == "bytes":
            return shown_bytes(value)
        return f"{value:g} a second" if self.unit == "a second" else f"{value:.0f}"


LIMITS = (
    Limit("max-tasks", "max_user_tasks", "unfinished tasks"),
    Limit("max-queued", "max_user_queued", "bytes of arguments of unfinished tasks", "bytes"),
    Limit("max-task-rate", "max_user_task_rate", "tasks submitted per second", "a second"),
    Limit("max-results", "keep_user_results", "bytes of results that are kept", "bytes"),
    Limit("max-requests", "max_user_requests", "requests per second", "a second"),
    Limit("max-functions", "max_user_functions", "functions"),
    Limit("max-code", "max_user_code", "bytes of functions", "bytes"),
    Limit("max-endpoints", "max_user_endpoints", "endpoints"),
    Limit("max-groups", "max_user_groups", "task groups"),
    Limit("max-queues", "max_user_queues", "queues that clients open in ten minutes"),
)


def limit_options(command: Command) -> Command:
    """Add an option for each limit; the command gets a dictionary `limits` of those given."""

    def note(context: click.Context, option: click.Parameter, value: str | None) -> None:
        given: dict[str, str] = context.params.setdefault("limits", {})
        if value is not None:
            limit = next(each for each in LIMITS if each.option == option.opts[0].lstrip("-"))
            given[limit.field] = value

    for limit in reversed(LIMITS):
        size = ", with K, M, G or T" if limit.unit == "bytes" else ""
        option = click.option(
            f"--{limit.option}",
            expose_value=False,
            metavar="SIZE" if limit.unit == "bytes" else "NUMBER",
            callback=note,
            help=f"The most {limit.what}{size}.",
        )
        command = option(command)
    return command


def checked(given: Mapping[str, str]) -> dict[str, float | None]:
    """Return the values of limits by field; `None`: the service's limit.

    Args:
        given: texts by field.

    Raises:
        click.BadParameter: a value is invalid.
    """
    from flux_endpoint.service.settings import UserLimits  # noqa: PLC0415 - with the extra

    found: dict[str, float | None] = {}
    for limit in LIMITS:
        text = given.get(limit.field)
        if text is None:
            continue
        if text == DEFAULT:
            found[limit.field] = None
            continue
        try:
            found[limit.field] = getattr(UserLimits().with_own({limit.field: text}), limit.field)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise click.BadParameter(problem, param_hint=f"--{limit.option}") from None
    return found


def service_limits() -> UserLimits:
    """Return the service's limits, as far as the environment has its settings.

    Raises:
        click.BadParameter: a value in the environment is invalid.
    """
    from flux_endpoint.service.settings import UserLimits  # noqa: PLC0415 - with the extra

    given = {
        field: text
        for field in UserLimits.model_fields
        if (text := os.environ.get(f"FLUX_ENDPOINT_SERVICE_{field.upper()}"))
    }
    try:
        return UserLimits(**given)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = f"FLUX_ENDPOINT_SERVICE_{str(problem['loc'][0]).upper()}"
        raise click.BadParameter(f"{name}: {problem['msg']}") from None
