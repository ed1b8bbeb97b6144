"""`flux-endpoint trace`: a run as a Gantt chart, or as a trace for other programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from flux_endpoint.cli.chrome_trace import chrome_trace
from flux_endpoint.cli.gantt import MOST_LANES
from flux_endpoint.cli.options import complete_endpoint
from flux_endpoint.cli.run_trace import RunTrace, trace_of
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.targets import find_endpoint
from flux_endpoint.cli.tasks import fetch
from flux_endpoint.cli.trace_page import html_page, svg_file
from flux_endpoint.errors import NotFoundError

#: Names of the files by format.
_FILES = {"html": "trace.html", "svg": "trace.svg", "chrome": "trace.json"}


@click.command()
@click.argument("endpoint", required=False, shell_complete=complete_endpoint)
@click.option("--group", type=click.UUID, help="Only tasks of this task group.")
@click.option(
    "--endpoint",
    "endpoint_option",
    metavar="ENDPOINT",
    shell_complete=complete_endpoint,
    help="The same as ENDPOINT.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(_FILES)),
    default="html",
    show_default=True,
    help="A page with chart and tables, the chart alone, or JSON for https://ui.perfetto.dev.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="The file to write; - is standard output.  [default: trace.html, .svg or .json]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=1_000_000),
    default=100_000,
    show_default=True,
    help="The most tasks to draw, the newest first.",
)
def trace(
    *,
    endpoint: str | None,
    endpoint_option: str | None,
    group: object,
    kind: str,
    output: str | None,
    limit: int,
) -> None:
    """Draw a run: which worker or job had which task when.

    The tasks are those of a task group, of an endpoint (a name or an id), or all of yours. The page
    and the chart need no other file.
    """
    if endpoint is not None and endpoint_option not in {None, endpoint}:
        raise click.UsageError("name one endpoint")
    named = endpoint or endpoint_option
    api = OperatorApi()
    target = find_endpoint(named, api) if named is not None else None
    which: dict[str, Any] = {
        "endpoint_id": None if target is None else target.require_id(),
        "task_group_id": None if group is None else str(group),
    }
    found, more = fetch(api, limit=limit, follows=False, **which)
    run = trace_of(found, time.time())
    notes = list(_notes(run, kind, len(found), more=more))
    if not run.lanes:
        raise NotFoundError(" ".join(["there is no task to draw.", *notes]))
    what = f"task group {group}" if group is not None else "tasks"
    title = f"{what} at {target.name}" if target is not None else what
    path = output or _FILES[kind]
    _write(path, _document(run, kind, title[0].upper() + title[1:], notes))
    if path != "-":
        click.echo(f"{path}: {sum(1 for _ in run.bars)} tasks on {len(run.lanes)} lanes", err=True)
    for note in notes:
        click.echo(note, err=True)


def _document(run: RunTrace, kind: str, title: str, notes: list[str]) -> Iterable[str]:
    if kind == "chrome":
        return chrome_trace(run)
    return [html_page(run, title, notes) if kind == "html" else svg_file(run, title)]


def _notes(run: RunTrace, kind: str, count: int, *, more: bool) -> Iterable[str]:
    """Yield a sentence for each kind of tasks that is left out."""
    if more:
        yield (
            f"Only the {count} newest tasks were read; --limit {min(2 * count, 1_000_000)} "
            "reads more."
        )
    for why, number in sorted(run.left_out.items()):
        yield f"{number} tasks are left out: {why}."
    if len(run.lanes) > MOST_LANES and kind != "chrome":
        more_lanes = len(run.lanes) - MOST_LANES
        yield (
            f"A chart has at most {MOST_LANES} lanes, so {more_lanes} are not drawn: --format "
            "chrome has all."
        )


def _write(path: str, pieces: Iterable[str]) -> None:
    if path == "-":
        for piece in pieces:
            sys.stdout.write(piece)
        return
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(pieces)
