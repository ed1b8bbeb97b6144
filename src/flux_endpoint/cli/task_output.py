"""Follows the output of a task while it runs."""

from __future__ import annotations

import click

from flux_endpoint.cli.options import put_json
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.tasks import find_task
from flux_endpoint.protocol.operations import ListedState, StreamPart, TaskRecord

_STREAMS = ("stdout", "stderr")


def follow_output(api: OperatorApi, task_id: str, *, as_json: bool) -> int:
    """Print what a task prints, each stream to the same one here, until it has ended.

    Args:
        api: the service.
        task_id: the task.
        as_json: print a JSON document for each part, and one for the end, instead.

    Returns:
        The exit code: a command's; 128 plus the signal that ended it; 1 if a function has failed.
    """
    find_task(api, task_id)  # an unknown one is an error before anything else
    positions = dict.fromkeys(_STREAMS, 0)
    ended = False
    while not ended:
        answer = api.output(task_id, **positions)
        ended = answer.ended
        for name in _STREAMS:
            part: StreamPart | None = getattr(answer, name)
            if part is not None:
                _put(name, part, part.begin - positions[name], as_json=as_json)
                positions[name] = part.end
    record = find_task(api, task_id)
    code = _exit_code(record)
    if as_json:
        end = {"exit_code": code, "state": record.state.value, "error": record.error}
        put_json({"end": end, "task_id": task_id}, indent=None)
    elif record.error:
        click.echo(f"task {task_id} {record.state.value}: {record.error}", err=True)
    return code


def _put(name: str, part: StreamPart, missing: int, *, as_json: bool) -> None:
    if as_json:
        put_json({"stream": name, **part.model_dump()}, indent=None)
        return
    if missing > 0:
        click.echo(f"[... {missing} bytes of {name} were not kept ...]", err=True)
    click.echo(part.text, nl=False, err=name == "stderr")


def _exit_code(record: TaskRecord) -> int:
    if record.returncode is not None:
        return record.returncode if record.returncode >= 0 else 128 - record.returncode
    return 0 if record.state is ListedState.SUCCESS else 1
