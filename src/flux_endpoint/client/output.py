"""The printed output of a task, for its future."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from flux_endpoint.client.api import ServiceApi
from flux_endpoint.functions import ShellResult
from flux_endpoint.protocol.envelope import OUTPUT, RETURNCODE, STDERR, STDOUT
from flux_endpoint.protocol.operations import BEYOND, attempt_note

#: The most characters of a line that is not over; then it is yielded in parts.
_LONGEST = 64 << 10
#: Keys of a command's result as a dictionary.
_COMMAND = frozenset(vars(ShellResult("", "", "", 0)))


class HasApi(Protocol):
    """Has the service's interface.

    Attributes:
        api: the service.
    """

    api: ServiceApi


@dataclass(frozen=True, slots=True)
class PrintedOutput:
    """The end of each stream; where it is not the whole, a line before it says so."""

    stdout: str = ""
    stderr: str = ""

    @classmethod
    def of(cls, details: Mapping[str, Any] | None) -> PrintedOutput | None:
        """Return the output in a result's details; `None` if there is none, as for a command.

        That of a command is in its value. In the details, it is for those who follow it.
        """
        if not details or RETURNCODE in details:
            return None
        streams = [_with_note(details.get(text), details.get(dropped)) for text, dropped in OUTPUT]
        return cls(*streams) if any(streams) else None


def _with_note(text: Any, dropped: Any) -> str:
    kept = text if isinstance(text, str) else ""
    if not isinstance(dropped, int) or dropped <= 0:
        return kept
    return f"[... {dropped} bytes before this were not kept ...]\n{kept}"


class FollowedOutput:
    """The lines that a task prints on one stream, as they come, with their line ends.

    Iterate over it with `for` or, in a coroutine, with `async for`. It ends when the task has ended
    and all is read; a line says where something is missing that was not kept, and where a further
    attempt at the task begins.

    Args:
        wait_submitted: returns the task's id once it is known; `None`: it was not submitted.
        ask: asks the service for what comes after the positions in both streams of an attempt.
        stream: "stdout" or "stderr".
    """

    def __init__(
        self,
        wait_submitted: Callable[[], str | None],
        ask: Callable[[str, int, int, int], dict[str, Any]],
        stream: str,
    ) -> None:
        self._wait_submitted = wait_submitted
        self._ask = ask
        self._stream = stream
        self._attempt, self._position = 1, 0
        self._lines: deque[str] = deque()
        self._rest = ""
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while not self._lines:
            if self._ended:
                raise StopIteration
            self._fetch()
        return self._lines.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line = await asyncio.to_thread(next, self, None)
        if line is None:
            raise StopAsyncIteration
        return line

    def _fetch(self) -> None:
        task_id = self._wait_submitted()
        if task_id is None:
            self._ended = True
            return
        # The other stream is not asked for: its position is beyond all that there will be.
        at = {STDOUT: BEYOND, STDERR: BEYOND, self._stream: self._position}
        answer = self._ask(task_id, self._attempt, at[STDOUT], at[STDERR])
        part = answer.get(self._stream)
        if isinstance(part, dict):
            self._begin(int(answer.get("attempt", 1)))
            self._add(int(part["begin"]), int(part["end"]), str(part["text"]))
        if answer.get("ended"):
            self._ended = True
            if self._rest:
                self._lines.append(self._rest)

    def _begin(self, attempt: int) -> None:
        """Begin the output of an attempt, unless it has begun."""
        if attempt <= self._attempt:
            return
        if self._rest:
            self._lines.append(f"{self._rest}\n")
            self._rest = ""
        self._lines.append(attempt_note(attempt))
        self._attempt, self._position = attempt, 0

    def _add(self, begin: int, end: int, text: str) -> None:
        if begin != self._position and self._rest:  # of an earlier attempt, or not kept to its end
            self._lines.append(f"{self._rest}\n")
            self._rest = ""
        if begin > self._position:
            self._lines.append(f"[... {begin - self._position} bytes were not kept ...]\n")
        self._position = end
        *lines, self._rest = f"{self._rest}{text}".split("\n")
        self._lines.extend(f"{line}\n" for line in lines)
        if len(self._rest) > _LONGEST:  # e.g. a progress bar, which returns to the line's beginning
            self._lines.append(self._rest)
            self._rest = ""


class WithOutput(Future[Any]):
    """A future that has the output of its task.

    Attributes:
        task_id: the task's id; `None` until the service has accepted the task.
    """

    task_id: str | None
    _output: PrintedOutput | None = None

    @property
    def stdout(self) -> str:
        """The end of what the task has printed on standard output, also of a task that failed.

        Of a command, it is that of its result.

        Raises:
            concurrent.futures.InvalidStateError: the task has not ended.
        """
        return self._printed().stdout

    @property
    def stderr(self) -> str:
        """The same of standard error."""
        return self._printed().stderr

    def output(self, stream: Literal["stdout", "stderr"] = "stdout") -> FollowedOutput:
        r"""Return the lines that the task prints, as they come: `for line in future.output()`.

        They come while the task runs. Each line has its line end; in a coroutine, use `async for`.
        Iterating raises `ServiceError` if the service refuses, and `ServiceUnreachableError`.

        Args:
            stream: "stdout" or "stderr".

        Raises:
            ValueError: there is no such stream.
            RuntimeError: the future does not belong to an Executor.

        Example:
            for line in executor.submit(simulate).output():
                print(line, end="")
        """
        if stream not in (STDOUT, STDERR):
            raise ValueError(f"stream must be {STDOUT!r} or {STDERR!r}, not {stream!r}")
        return FollowedOutput(self.wait_submitted, self._service().api.output, stream)

    @abstractmethod
    def wait_submitted(self, timeout: float | None = None) -> str | None:
        """Wait until the service has accepted the task, and return the task's id."""

    @abstractmethod
    def _service(self) -> HasApi:
        """Return what has the service's interface."""

    def _printed(self) -> PrintedOutput:
        if not self.done():
            raise InvalidStateError(
                f"task {self.task_id} has not ended: its output is there when it is done; wait for "
                "it with result() or exception()"
            )
        if self._output is not None:
            return self._output
        if self.cancelled() or Future.exception(self) is not None:
            return PrintedOutput()
        value = Future.result(self)
        if isinstance(value, dict) and value.keys() == _COMMAND:  # of a command with `return_dict`
            return PrintedOutput(str(value[STDOUT]), str(value[STDERR]))
        if isinstance(value, ShellResult):
            return PrintedOutput(value.stdout, value.stderr)
        return PrintedOutput()
