"""Follows the output of a task while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import click

from flux_endpoint.cli.options import put_json
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.tasks import find_task
from flux_endpoint.protocol.operations import BEYOND, ListedState, StreamPart, TaskRecord

#: The names of the streams.
STREAMS = ("stdout", "stderr")


def printed_parts(api: OperatorApi, task_id: str) -> Iterator[tuple[str, StreamPart, int]]:
    """Yield what a task prints, as it comes, until the task has ended.

    Args:
        api: the service.
        task_id: the task.

    Yields:
        A stream's name, a part of it, and the number of bytes before that which were not kept.
    """
    positions = dict.fromkeys(STREAMS, 0)
    ended = False
    while not ended:
        answer = api.output(task_id, **positions)
        ended = answer.ended
        for name in STREAMS:
            part: StreamPart | None = getattr(answer, name)
            if part is not None:
                yield name, part, part.begin - positions[name]
                positions[name] = part.end


def last_lines_and_new(api: OperatorApi, task_id: str, count: int) -> Iterator[tuple[int, str]]:
    """Yield the last lines that a task has printed, and all that follow, until it has ended.

    Args:
        api: the service.
        task_id: the task.
        count: the most lines of each stream to begin with.

    Yields:
        A stream's index in `STREAMS`, and a line without its end.
    """
    rests = dict.fromkeys(STREAMS, "")
    begun = set()
    for name, part, missing in printed_parts(api, task_id):
        text = f"{rests[name]}{part.text}"
        *lines, rests[name] = text.split("\n")
        if name not in begun:
            begun.add(name)
            wanted = count - bool(rests[name])
            lines = lines[-wanted:] if wanted > 0 else []
        elif missing > 0:
            lines.insert(0, f"[... {missing} bytes were not kept ...]")
        for line in lines:
            yield STREAMS.index(name), line
    for name in STREAMS:
        if rests[name] and count:
            yield STREAMS.index(name), rests[name]


class TaskEnd:
    """The end of a task, which a thread waits for.

    Args:
        api: the service.
        task_id: the task.
    """

    def __init__(self, api: OperatorApi, task_id: str) -> None:
        self._api = api
        self._task_id = task_id
        self._ended: Future[None] = Future()

    def begin(self, wake: Callable[[], None]) -> Callable[[], bool]:
        """Begin to wait; `wake` is called at the end, on the thread.

        Returns:
            A function that says whether the task has ended; it raises what the service raised.
        """
        self._ended.add_done_callback(lambda _: wake())
        threading.Thread(target=self._wait, name="task end", daemon=True).start()
        return self._has_ended

    def _has_ended(self) -> bool:
        if not self._ended.done():
            return False
        self._ended.result()
        return True

    def _wait(self) -> None:
        try:
            while not self._api.output(self._task_id, stdout=BEYOND, stderr=BEYOND).ended:
                pass
        except Exception as error:  # noqa: BLE001 - the command reports it
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)


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
    for name, part, missing in printed_parts(api, task_id):
        _put(name, part, missing, as_json=as_json)
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
