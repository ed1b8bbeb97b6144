"""Follows the output of one task for one request, or for one page."""

import re
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from uuid import UUID

from anyio import to_thread

from flux_endpoint.protocol.envelope import ATTEMPTS, OUTPUT_SIZES, RETURNCODE
from flux_endpoint.protocol.messages import OutputWanted, pack
from flux_endpoint.protocol.operations import OutputAnswer, StreamPart
from flux_endpoint.service.commands import command_endpoint
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.live_output import (
    AGAIN,
    STREAMS,
    WANTED,
    Known,
    LiveOutput,
    OutputPart,
)
from flux_endpoint.service.page.output import command_streams
from flux_endpoint.service.routes.tasks import owned
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.output import TaskOutput, output_of
from flux_endpoint.service.store.users import User

#: A byte that is not UTF-8, as a backslash sequence, or a character.
_PIECES = re.compile(r"(\\x[89a-f][0-9a-f])|.", re.DOTALL)


class OutputFollower:
    """Gets what a task prints that a user does not have, and has its endpoint asked for it.

    Args:
        service: the service.
        live: the followed tasks.
        caller: the user; must own the task.
        task_id: the task.
        known: what the user has.
        knows_attempts: whether the user wants the output of later attempts while they run.

    Attributes:
        known: what the user has after the last answer.
    """

    def __init__(
        self,
        service: ServiceContext,
        live: LiveOutput,
        caller: User,
        task_id: str,
        known: Known,
        *,
        knows_attempts: bool = True,
    ) -> None:
        self._service = service
        self._live = live
        self._caller = caller
        self._task_id = task_id
        self._knows_attempts = knows_attempts
        self.known = known

    @property
    def is_closed(self) -> bool:
        """Whether the service ends, so that nothing more comes."""
        return self._live.is_closed

    async def can_be_live(self) -> bool:
        """Return whether the task runs, or will run, at an endpoint that sends its output.

        Raises:
            ServiceError: the task is unknown.
        """
        if await to_thread.run_sync(self._ended) is not None:
            return False
        return await to_thread.run_sync(self._sending_endpoint) is not None

    async def next(self, wait: float) -> OutputAnswer:
        """Return what the task has printed that the user does not have, as soon as it is there.

        Once the task has ended, the answer has the rest.

        Args:
            wait: the longest wait (s); then the answer is empty.

        Raises:
            ServiceError: the task is unknown, too many are followed, or the broker can't be
                reached.
        """
        answer = await self._next(wait)
        parts = (answer.stdout, answer.stderr)
        before = self.known.positions_in(answer.attempt)
        positions = tuple(
            position if part is None else part.end
            for part, position in zip(parts, before, strict=True)
        )
        self.known = Known(answer.attempt, positions)
        return answer

    async def _next(self, wait: float) -> OutputAnswer:
        until = time.monotonic() + wait
        while True:
            left = until - time.monotonic()
            answer = await self._look(min(max(left, 0.0), AGAIN))
            if answer is not None:
                return answer
            if self.is_closed or left <= AGAIN:
                return OutputAnswer(ended=False, attempt=self.known.attempt)

    async def _look(self, wait: float) -> OutputAnswer | None:
        """Return what there is within `wait` seconds, after which the endpoint is asked again."""
        answer = await to_thread.run_sync(self._ended)
        if answer is None:
            is_due, known = self._live.follow(self._task_id, self._caller.id)
            if is_due:
                await to_thread.run_sync(self._ask, known)
            # It may have ended before it was followed.
            answer = await to_thread.run_sync(self._ended)
        if answer is not None:
            return self._without_gap(answer)
        attempt, found = await self._live.news(
            self._task_id, self.known, wait, knows_attempts=self._knows_attempts
        )
        if found:
            return _answer(attempt, found, ended=False)
        answer = await to_thread.run_sync(self._ended)
        return None if answer is None else self._without_gap(answer)

    def _without_gap(self, end: OutputAnswer) -> OutputAnswer:
        """Return the rest of the output, or before it what came live and its stored end lacks."""
        attempt, known = self._live.known(
            self._task_id, self.known, knows_attempts=self._knows_attempts
        )
        if known and attempt < end.attempt:
            return _answer(attempt, known, ended=False)
        missing = {}
        for name, position in zip(STREAMS, self.known.positions_in(attempt), strict=True):
            rest, part = getattr(end, name), known.get(name)
            if rest and part and position < rest.begin and part.begin < rest.begin:
                missing[name] = part
        return _answer(attempt, missing, ended=False) if missing else end

    def _ended(self) -> OutputAnswer | None:
        """Return the rest of the task's output if it has ended."""
        service = self._service
        with service.database.read() as connection:
            task = owned(connection, self._task_id, self._caller, service.settings.keep_tasks)
            if task.completed_at is None:
                return None
            output = output_of(connection, [self._task_id]).get(self._task_id)
        if output is None:  # a command has it in its result
            is_command = RETURNCODE in (task.details or {})
            streams = command_streams(task.result) if is_command and task.result else {}
            output = TaskOutput.split(streams)[0] or TaskOutput("", "")
        attempts = (task.details or {}).get(ATTEMPTS)
        # A result that the service has presumed does not say how many there were.
        last = max(attempts if isinstance(attempts, int) else 1, self.known.attempt)
        rest = rest_of(output, self.known.positions_in(last), task.details or {})
        return _answer(last, rest, ended=True)

    def _ask(self, known: Known) -> None:
        """Ask the task's endpoint for its output, if that is one that can send it."""
        endpoint = self._sending_endpoint()
        if endpoint is None:
            return
        self._live.others.followed(self._task_id)
        stdout, stderr = known.positions
        message = OutputWanted(
            task_id=UUID(self._task_id),
            seconds=WANTED,
            stdout=stdout,
            stderr=stderr,
            attempt=known.attempt,
        )
        command_endpoint(self._service, endpoint, pack(message), expiration=AGAIN)

    def _sending_endpoint(self) -> str | None:
        """Return the id of the task's endpoint; `None`: it can't send output on request."""
        service = self._service
        with service.database.read() as connection:
            task = owned(connection, self._task_id, self._caller, service.settings.keep_tasks)
            endpoint = endpoints.get_endpoint(connection, task.endpoint_id)
        return endpoint.id if endpoint is not None and endpoint.sends_output else None


def rest_of(
    output: TaskOutput,
    positions: tuple[int, ...],
    sizes: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, OutputPart]:
    """Return what a caller does not have yet of the output of a task that has ended.

    Args:
        output: the output.
        positions: bytes of each stream that the caller has, of the last attempt.
        sizes: may have the bytes of each whole stream, by the names in `OUTPUT_SIZES`.
    """
    kept = (output.stdout, output.stdout_dropped), (output.stderr, output.stderr_dropped)
    parts = {}
    for name, (text, dropped), begin in zip(STREAMS, kept, positions, strict=True):
        size = sizes.get(OUTPUT_SIZES[name])
        if isinstance(size, int) and size >= dropped:
            part = _replaced_part(text, dropped, size, begin)
        else:
            part = OutputPart(dropped, dropped + len(text.encode(errors="replace")), text)
        if part.end > begin:
            parts[name] = part.after(begin)
    return parts


def _replaced_part(text: str, begin: int, end: int, position: int) -> OutputPart:
    """Return a stream's text from a position on, where bytes became backslash sequences.

    Args:
        text: the text.
        begin: the position of its first byte.
        end: the position after its last byte.
        position: the position.
    """
    replaced = len(text.encode(errors="replace")) - (end - begin)
    at = begin
    for found in _PIECES.finditer(text):
        if at >= position:
            return OutputPart(at, end, text[found.start() :])
        if found[1] is not None and replaced > 0:
            replaced -= len(found[0]) - 1
            at += 1
        else:
            at += len(found[0].encode(errors="replace"))
    return OutputPart(end, end, "")


def _answer(attempt: int, parts: dict[str, OutputPart], *, ended: bool) -> OutputAnswer:
    streams = {name: StreamPart(**vars(part)) for name, part in parts.items()}
    return OutputAnswer(ended=ended, attempt=attempt, **streams)
