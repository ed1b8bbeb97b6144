"""`flux-endpoint service prune`: removes old records now, in small transactions."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flux_endpoint import logs
from flux_endpoint.cli.administration.options import (
    database_url_option,
    keep_options,
    open_database,
    record,
)
from flux_endpoint.cli.confirm import confirm, yes_option
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import shown_bytes
from flux_endpoint.errors import FluxEndpointError
from flux_endpoint.protocol.duration import format_duration, parse_duration
from flux_endpoint.protocol.size import parse_size

if TYPE_CHECKING:
    from flux_endpoint.service.store.due import Due
    from flux_endpoint.service.store.engine import Database
    from flux_endpoint.service.sweep import Keep


@click.command()
@keep_options
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@yes_option
@json_option
@database_url_option
def prune(
    keep_tasks: str,
    keep_functions: str,
    keep_user_results: str,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    database_url: str | None,
) -> None:
    """Remove old tasks with their results, task groups and functions now.

    A running service does this by itself with the same settings; this is for shorter times, once,
    and to see what is due. Unfinished tasks stay, and so do results that unfinished tasks need and
    those of the last hour, however large. The service may run: each transaction removes at most 500
    tasks, and Ctrl-C ends the command after the current one. `infinity` keeps records forever.
    """
    amounts = (
        _amount("--keep-tasks", parse_duration, keep_tasks),
        _amount("--keep-functions", parse_duration, keep_functions),
        _amount("--keep-user-results", parse_size, keep_user_results),
    )
    database = open_database(database_url)
    logs.configure("ERROR")  # the command says itself what it removes
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - only with the extra

    from flux_endpoint.service.sweep import Keep  # noqa: PLC0415 - only with the extra

    keep = Keep(*amounts)
    try:
        due = _count(database, keep)
        if dry_run or not any(asdict(due).values()):
            _show(due, keep, "Would be removed" if dry_run else "Nothing is due", as_json=as_json)
            return
        if not yes:
            _show(due, keep, "To be removed", as_json=False, err=True)
        if confirm("Remove them", yes=yes):
            removed = _remove(database, keep, due)
            record(database_url, "old records removed", **removed)
            _report(removed, as_json=as_json)
    except SQLAlchemyError as error:
        raise FluxEndpointError(
            f"not everything could be removed, run it again: {error.__cause__ or error}"
        ) from error
    finally:
        database.close()


def _amount(option: str, parse: Callable[[object], float], text: str) -> float:
    """Return the value of an option.

    Raises:
        click.BadParameter: it is not a positive amount.
    """
    try:
        amount = parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
    if not amount > 0:
        raise click.BadParameter("must be more than 0", param_hint=option)
    return amount


def _count(database: Database, keep: Keep) -> Due:
    from flux_endpoint.service.store import due  # noqa: PLC0415 - only with the extra
    from flux_endpoint.service.sweep import MIN_KEEP_SECONDS  # noqa: PLC0415 - as above

    now = time.time()
    with database.read() as connection:
        return due.count(
            connection,
            ended=now - keep.tasks,
            arrived=now - MIN_KEEP_SECONDS,
            unused=now - keep.functions,
            user_bytes=keep.user_bytes,
        )


def _remove(database: Database, keep: Keep, due: Due) -> dict[str, int]:
    from flux_endpoint.service.sweep import Sweep  # noqa: PLC0415 - only with the extra

    with _progress(due.tasks + due.beyond_limit) as on_tasks:
        removed, _ = Sweep(database, keep, on_tasks=on_tasks).run()
    return asdict(removed)


@contextmanager
def _progress(length: int) -> Iterator[Callable[[int], object]]:
    """Show on a terminal how many tasks were removed."""
    with click.progressbar(
        length=length,
        label="Removing tasks",
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        show_pos=True,
    ) as bar:
        yield bar.update


def _show(due: Due, keep: Keep, title: str, *, as_json: bool, err: bool = False) -> None:
    if as_json:
        put_json(asdict(due))
        return
    limit = "infinity" if math.isinf(keep.user_bytes) else shown_bytes(keep.user_bytes)
    click.echo(f"{title}:", err=err)
    age = format_duration(keep.tasks)
    results, beyond = shown_bytes(due.bytes), shown_bytes(due.beyond_bytes)
    for line in (
        f"{due.tasks:,} tasks that ended more than {age} ago, with {results} of results",
        f"{due.beyond_limit:,} tasks beyond {limit} of results of their user, with {beyond}",
        f"{due.task_groups:,} task groups without tasks",
        f"{due.functions:,} functions not used for {format_duration(keep.functions)}, or deleted",
    ):
        click.echo(f"  {line}", err=err)


def _report(removed: dict[str, int], *, as_json: bool) -> None:
    if as_json:
        put_json(removed)
        return
    click.echo(
        f"Removed {removed['tasks'] + removed['beyond_limit']:,} tasks, "
        f"{removed['task_groups']:,} task groups and {removed['functions']:,} functions."
    )
