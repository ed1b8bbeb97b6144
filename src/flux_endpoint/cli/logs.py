"""`flux-endpoint logs`: the logs of endpoints and of the stack's programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from flux_endpoint.cli.exits import ExitCode
from flux_endpoint.cli.follow import FollowedFile, Watcher, follow
from flux_endpoint.cli.log_sources import LogSource, find_sources, known_names, task_sources
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import Tone, color_option, toned
from flux_endpoint.errors import NotFoundError

if TYPE_CHECKING:
    from flux_endpoint.cli.service_api import OperatorApi
    from flux_endpoint.cli.task_output import TaskEnd
    from flux_endpoint.protocol.operations import TaskRecord

# A line of our programs (see `logs`), and a line of RabbitMQ.
_LINES = (
    re.compile(r"(?P<time>\d{4}-\S+Z) (?P<level>[A-Z]+) +(?P<message>.*)"),
    re.compile(r"(?P<time>\d{4}-\S+ \S+) \[(?P<level>\w+)\] (?P<message>.*)"),
)
_TONES: dict[str, Tone] = {"error": "bad", "critical": "bad"}


def _complete(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in known_names() if name.startswith(incomplete)]


@click.command()
@click.argument("sources", nargs=-1, shell_complete=_complete)
@click.option(
    "-f", "--follow", "follows", is_flag=True, help="Go on until Ctrl-C, or the task's end."
)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Number of last lines to begin with.",
)
@click.option("--task", metavar="TASK", help="The output of a command's task, or its job, here.")
@json_option
@color_option
def logs(
    *,
    sources: tuple[str, ...],
    follows: bool,
    lines: int,
    task: str | None,
    as_json: bool,
    color: bool,
) -> int:
    """Show the logs of endpoints and of the programs that `up` runs.

    SOURCES are names or ids of endpoints of this machine; the same with /output, for the output of
    their Python functions; and names of programs: broker, service, up (or stack/service, in case
    an endpoint is called service). Without SOURCES all logs are shown.

    With --follow, --task shows the output of any task, wherever it runs: from the files of its
    command, where they are here, else as the service gets it.
    """
    if task is not None and sources:
        raise click.UsageError("name logs, or a task with --task")
    if task is not None and follows:
        return _follow_task(task, lines, as_json=as_json, color=color)
    found = find_sources(sources) if task is None else _of_task(task)
    return _show(found, lines, follows=follows, as_json=as_json, color=color)


def _show(
    found: Sequence[LogSource],
    lines: int,
    *,
    follows: bool,
    as_json: bool,
    color: bool,
    task_end: TaskEnd | None = None,
) -> int:
    """Print the last lines of logs, and those that follow.

    Args:
        found: the logs.
        lines: number of the last lines.
        follows: whether to go on.
        as_json: print a JSON document for each line.
        color: colour errors.
        task_end: ends this; `None`: it goes on until Ctrl-C.
    """
    missing = [each for each in found if not each.path.exists()]
    if missing and not follows:
        raise NotFoundError(
            f"{missing[0].name} has no log yet, {missing[0].path} does not exist: "
            f"{missing[0].absent}"
        )
    put = _printer(found, as_json=as_json, color=color)
    watcher = Watcher()
    files = [FollowedFile(each.path, watcher) for each in found]
    try:
        for number, file in enumerate(files):
            for line in file.last_lines(lines):
                put(number, line)
        if not follows:
            for number, file in enumerate(files):
                for line in file.rest() if lines else []:
                    put(number, line)
            return ExitCode.OK
        sys.stdout.flush()
        watcher.watch_reader(sys.stdout.fileno())
        is_over = task_end.begin(watcher.wake) if task_end else lambda: False
        for number, line in follow(files, watcher, is_over):
            put(number, line)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        for file in files:
            file.close()
        watcher.close()
    return ExitCode.OK


def _of_task(text: str) -> list[LogSource]:
    """Return the files with the output of the task that `text` names."""
    api, task = _named(text)
    return _files_of(api, task)


def _named(text: str) -> tuple[OperatorApi, TaskRecord]:
    """Return the service, and the task that `text` names."""
    # Other logs need no service.
    from flux_endpoint.cli.service_api import OperatorApi  # noqa: PLC0415
    from flux_endpoint.cli.task import task_id_of  # noqa: PLC0415
    from flux_endpoint.cli.tasks import find_task  # noqa: PLC0415

    api = OperatorApi()
    return api, find_task(api, task_id_of(text, api))


def _files_of(api: OperatorApi, task: TaskRecord) -> list[LogSource]:
    """Return the files with a task's output.

    Raises:
        NotFoundError: they are on another machine, or there are none.
    """
    from flux_endpoint.cli.targets import find_endpoint  # noqa: PLC0415
    from flux_endpoint.endpoint.directory import EndpointDirectory  # noqa: PLC0415

    target = find_endpoint(task.endpoint_id, api)
    if target.local is None:
        raise NotFoundError(
            f"the endpoint of task {task.task_id}, {task.endpoint_name or task.endpoint_id}, is "
            "not on this machine: the output of its tasks is where it runs; "
            f"`flux-endpoint logs -f --task {task.task_id}` asks the service for it"
        )
    return task_sources(task.task_id, EndpointDirectory(target.local.name))


def _follow_task(text: str, lines: int, *, as_json: bool, color: bool) -> int:
    """Print what a task writes until it has ended."""
    from flux_endpoint.cli.task_output import (  # noqa: PLC0415
        STREAMS,
        TaskEnd,
        last_lines_and_new,
    )

    api, task = _named(text)
    found: list[LogSource] = []
    if not (task.run_options or {}).get("retries"):  # each attempt has files of its own
        with suppress(NotFoundError):
            found = _files_of(api, task)
    if found:
        # A stream without output so far may have no file yet.
        known = {each.path: each for each in found}
        pairs = [each.path.with_suffix(f".{name}") for each in found for name in STREAMS]
        found = [
            known.get(path) or LogSource(path.suffix[1:], path) for path in dict.fromkeys(pairs)
        ]
        end = TaskEnd(api, task.task_id)
        return _show(found, lines, follows=True, as_json=as_json, color=color, task_end=end)
    put = _printer([LogSource(name, Path()) for name in STREAMS], as_json=as_json, color=color)
    try:
        for number, line in last_lines_and_new(api, task.task_id, lines):
            put(number, line)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _printer(
    sources: Sequence[LogSource], *, as_json: bool, color: bool
) -> Callable[[int, str], None]:
    """Return a function that prints a line of the source with a given number."""
    width = max(len(each.name) for each in sources)

    def put(number: int, line: str) -> None:
        name = sources[number].name
        parsed = _parsed(line)
        if as_json:
            put_json({"source": name, **parsed, "line": line}, indent=None)
            return
        tone = _TONES.get(parsed["level"] or "") if color else None
        prefix = f"{name:<{width}} | " if len(sources) > 1 else ""
        click.echo(prefix + toned(line, tone), color=color)

    return put


def _parsed(line: str) -> dict[str, str | None]:
    """Return time, level and message of a line; `None` for missing parts."""
    if line.startswith("{"):  # log_format: json
        try:
            entry = json.loads(line)
            return {
                "time": str(entry["time"]),
                "level": str(entry["level"]).lower(),
                "message": str(entry["event"]),
            }
        except (ValueError, KeyError, TypeError):
            pass
    for pattern in _LINES:
        if match := pattern.fullmatch(line):
            return {**match.groupdict(), "level": match["level"].lower()}
    return {"time": None, "level": None, "message": None}
