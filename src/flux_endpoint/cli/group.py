"""`flux-endpoint group`: how far a task group is, and what is left of it."""

from __future__ import annotations

import time
from uuid import UUID

import click

from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.table import (
    Column,
    Row,
    color_option,
    render,
    shown_age,
    shown_duration,
    terminal_width,
)
from flux_endpoint.errors import NotFoundError, ServiceError
from flux_endpoint.protocol.operations import GroupReport

_FAILURES = [
    Column("FAILURE", least=12),
    Column("TASKS", right=True),
    Column("NEWEST"),
    Column("ERROR", least=12, goes=1),
]
_ENDPOINTS = [Column("ENDPOINT", least=8), Column("TASKS", right=True), Column("LEFT", right=True)]


@click.command()
@click.argument("group", metavar="GROUP", type=click.UUID)
@json_option
@color_option
def group(*, group: UUID, as_json: bool, color: bool) -> None:
    """Show how far a task group is: done, running, left, failures by kind, expected end.

    GROUP is the id of the group: `group.task_group_id` or `executor.task_group_id` in Python. It
    may run for days, at several endpoints, or in several blocks of one.
    """
    api = OperatorApi()
    report = find_group(api, str(group))
    left = [each.endpoint_id for each in report.endpoints if each.unfinished]
    if api.refresh(left):
        report = find_group(api, str(group))
    if as_json:
        put_json(report.model_dump(mode="json"))
        return
    click.echo(summary_of(report, time.time()))
    width = terminal_width()
    if report.failures:
        rows = [
            Row([each.kind, f"{each.tasks:,}", each.task_id, each.error], "bad")
            for each in report.failures
        ]
        click.echo("\n" + render(_FAILURES, rows, color=color, width=width), color=color)
    if len(report.endpoints) > 1:
        places = [
            Row([each.name, f"{each.tasks:,}", f"{each.unfinished:,}"]) for each in report.endpoints
        ]
        click.echo("\n" + render(_ENDPOINTS, places, color=color, width=width), color=color)


def find_group(api: OperatorApi, group_id: str) -> GroupReport:
    """Return the report of one of the user's task groups.

    Raises:
        NotFoundError: there is none with this id.
    """
    try:
        return api.group(group_id)
    except ServiceError as error:
        if error.code == "TASK_GROUP_NOT_FOUND":
            raise NotFoundError(
                f"{error}: `flux-endpoint tasks -o group,age` shows those of your latest tasks"
            ) from error
        raise


def summary_of(report: GroupReport, now: float) -> str:
    """Return the report's numbers for people.

    Args:
        report: the report.
        now: seconds since the epoch.
    """
    done = report.tasks - report.unfinished
    share = 100 * done // report.tasks if report.tasks else 100
    waits = report.unfinished - report.running - report.waiting_for_tasks
    parts = [
        (report.succeeded, "succeeded"),
        (report.failed, "failed"),
        (report.cancelled, "cancelled"),
        (report.running, "running"),
        (max(0, waits), "waiting"),
        (report.waiting_for_tasks, "waiting for other tasks"),
    ]
    counts = ", ".join(f"{number:,} {what}" for number, what in parts if number) or "no tasks"
    lines = [f"{done:,} of {report.tasks:,} tasks have ended ({share} %): {counts}"]
    if report.submitted is not None:
        times = f"submitted {shown_age(now - report.submitted)} ago"
        if report.last_end is not None:
            times += f", last result {shown_age(now - report.last_end)} ago"
        lines.append(times)
    if report.rate and report.expected_end is not None:
        left = shown_duration(max(0.0, report.expected_end - now))
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(report.expected_end))
        lines.append(f"{report.rate:.3g} tasks per second: {left} left, until {end}")
    return "\n".join(lines)
