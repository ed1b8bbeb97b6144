"""`flux-endpoint cache`: what the cache of results has, and how to clear it."""

from __future__ import annotations

import time

import click

from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import Column, Row, color_option, render, shown_age, shown_bytes

_COLUMNS = [
    Column("FUNCTION", least=12),
    Column("RESULTS", right=True),
    Column("SIZE", right=True),
    Column("NEWEST", right=True),
]


@click.command()
@click.option("--clear", is_flag=True, help="Forget them, so that these calls are run again.")
@click.option("--function", "name", metavar="NAME", help="With --clear: only of this function.")
@json_option
@color_option
def cache(*, clear: bool, name: str | None, as_json: bool, color: bool) -> None:
    """Show which results Executors with cache=True use again, or clear them.

    The results are those of tasks, and go when these are deleted. `--clear` forgets only that they
    may be used again.
    """
    if name is not None and not clear:
        raise click.UsageError("--function needs --clear: without it, all functions are listed")
    api = OperatorApi()
    answer = api.clear_cache(name) if clear else api.cache()
    if as_json:
        put_json(answer.model_dump(mode="json"))
    elif clear:
        click.echo(f"forgotten: {answer.results} result{'s'[: answer.results != 1]}")
    elif not answer.functions:
        click.echo("no results are cached: Executor(cache=True) caches those of its calls")
    else:
        rows = [
            Row(
                [
                    each.function_name,
                    str(each.results),
                    shown_bytes(each.bytes),
                    shown_age(time.time() - each.newest),
                ]
            )
            for each in answer.functions
        ]
        click.echo(render(_COLUMNS, rows, color=color), color=color)
