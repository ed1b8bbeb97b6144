"""`flux-endpoint logs`: the logs of endpoints and of the stack's programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence

import click
from click.shell_completion import CompletionItem

from flux_endpoint.cli.exits import ExitCode
from flux_endpoint.cli.follow import FollowedFile, Watcher, follow
from flux_endpoint.cli.log_sources import LogSource, find_sources, known_names, task_sources
from flux_endpoint.cli.options import json_option, put_json
from flux_endpoint.cli.table import Tone, color_option, toned
from flux_endpoint.errors import NotFoundError

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
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until Ctrl-C.")
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
    """
    if task is not None and sources:
        raise click.UsageError("name logs, or a task with --task")
    found = find_sources(sources) if task is None else _of_task(task)
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
        for number, line in follow(files, watcher):
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
    # Other logs need no service.
    from flux_endpoint.cli.service_api import OperatorApi  # noqa: PLC0415
    from flux_endpoint.cli.targets import find_endpoint  # noqa: PLC0415
    from flux_endpoint.cli.task import task_id_of  # noqa: PLC0415
    from flux_endpoint.cli.tasks import find_task  # noqa: PLC0415
    from flux_endpoint.endpoint.directory import EndpointDirectory  # noqa: PLC0415

    api = OperatorApi()
    task = find_task(api, task_id_of(text, api))
    target = find_endpoint(task.endpoint_id, api)
    if target.local is None:
        raise NotFoundError(
            f"the endpoint of task {task.task_id}, {task.endpoint_name or task.endpoint_id}, is "
            "not on this machine: the output of its tasks is where it runs"
        )
    return task_sources(task.task_id, EndpointDirectory(target.local.name))


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
