"""Follows the output of a task while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import click

from flux_endpoint.cli.options import put_json
from flux_endpoint.cli.service_api import OperatorApi
from flux_endpoint.cli.tasks import find_task
from flux_endpoint.protocol.operations import (
    BEYOND,
    ListedState,
    StreamPart,
    TaskRecord,
    attempt_note,
)

#: The most characters of a line that is not over; then it is yielded in parts.
_LONGEST = 64 << 10
#: The names of the streams.
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True)
class Printed:
    """A part of what a task has printed.

    Attributes:
        stream: the stream's name.
        part: the part.
        missing: number of bytes before it that were not kept.
        attempt: the attempt at the task that has printed it.
        begins: whether nothing of this attempt came before.
    """

    stream: str
    part: StreamPart
    missing: int
    attempt: int
    begins: bool

    def note(self, what: str = "") -> str:
        """Return the line that belongs before it, if there is one.

        Args:
            what: the missing bytes' stream, if that is to be said.
        """
        lines = [attempt_note(self.attempt)] if self.begins else []
        if self.missing > 0:
            lines.append(f"[... {self.missing} bytes {what}were not kept ...]\n")
        return "".join(lines)


def printed_parts(api: OperatorApi, task_id: str) -> Iterator[Printed]:
    """Yield what a task prints, as it comes, until the task has ended.

    Args:
        api: the service.
        task_id: the task.
    """
    attempt, positions = 1, dict.fromkeys(STREAMS, 0)
    ended = False
    while not ended:
        answer = api.output(task_id, attempt=attempt, **positions)
        ended = answer.ended
        begins = answer.attempt > attempt
        if begins:
            attempt, positions = answer.attempt, dict.fromkeys(STREAMS, 0)
        for name in STREAMS:
            part: StreamPart | None = getattr(answer, name)
            if part is not None:
                yield Printed(name, part, part.begin - positions[name], attempt, begins)
                positions[name] = part.end
                begins = False


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
    for each in printed_parts(api, task_id):
        name, note = each.stream, each.note()
        if note and rests[name]:
            note = f"\n{note}"
        *lines, rests[name] = f"{rests[name]}{note}{each.part.text}".split("\n")
        if name not in begun:
            begun.add(name)
            rests[name] = rests[name] if count else ""
            wanted = count - bool(rests[name])
            lines = lines[-wanted:] if wanted > 0 else []
        if len(rests[name]) > _LONGEST:
            lines.append(rests[name])
            rests[name] = ""
        for line in lines:
            yield STREAMS.index(name), line
    for name in STREAMS:
        if rests[name]:
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
    for each in printed_parts(api, task_id):
        _put(each, as_json=as_json)
    record = find_task(api, task_id)
    code = _exit_code(record)
    if as_json:
        end = {"exit_code": code, "state": record.state.value, "error": record.error}
        put_json({"end": end, "task_id": task_id}, indent=None)
    elif record.error:
        click.echo(f"task {task_id} {record.state.value}: {record.error}", err=True)
    return code


def _put(each: Printed, *, as_json: bool) -> None:
    if as_json:
        about = {"stream": each.stream, "attempt": each.attempt}
        put_json({**about, **each.part.model_dump()}, indent=None)
        return
    click.echo(each.note(f"of {each.stream} "), nl=False, err=True)
    click.echo(each.part.text, nl=False, err=each.stream == "stderr")


def _exit_code(record: TaskRecord) -> int:
    if record.returncode is not None:
        return record.returncode if record.returncode >= 0 else 128 - record.returncode
    return 0 if record.state is ListedState.SUCCESS else 1
