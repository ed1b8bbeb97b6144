"""`flux-endpoint data`: what this user's stores of large arguments and results have."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import Column, Row, color_option, render, shown_age, shown_bytes
from flux_endpoint.data import cleaning

_COLUMNS = [
    Column("STORE", least=12),
    Column("OBJECTS", right=True),
    Column("SIZE", right=True),
    Column("EXPIRED", right=True),
    Column("NEXT END", right=True),
]


@click.group()
def data() -> None:
    """Show or clean the stores of large arguments and results on this machine.

    They are those that your programs and workers have written to, with Executor(store=...). Your
    endpoints remove what has expired, too, every hour.
    """


@data.command("list")
@json_option
@color_option
def list_stores(*, as_json: bool, color: bool) -> None:
    """List the stores: objects, their size, how many have expired, when the next lifetime ends."""
    found = list(cleaning.contents())
    if as_json:
        put_json([asdict(each) for each in found])
        return
    if not found:
        click.echo("no stores are known here: Executor(store=...) makes them")
        return
    rows = [
        Row(
            [
                each.store,
                each.reason or str(each.objects),
                "-" if each.size is None or each.reason else shown_bytes(each.size),
                str(each.expired),
                "-" if each.next_end is None else f"in {shown_age(each.next_end - time.time())}",
            ]
        )
        for each in found
    ]
    click.echo(render(_COLUMNS, rows, color=color), color=color)


@data.command()
@json_option
def prune(*, as_json: bool) -> None:
    """Remove the objects whose lifetime is over.

    Objects stay for another hour after their lifetime, since the clocks of machines differ.
    """
    removed = cleaning.prune()
    if as_json:
        put_json({"removed": removed})
    else:
        click.echo(f"removed: {removed} object{'s'[: removed != 1]}")
