"""What a task has printed."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

from flux_endpoint.functions import ShellResult
from flux_endpoint.protocol.envelope import OUTPUT, STDERR, STDOUT

#: Keys of a command's result as a dictionary.
_COMMAND = frozenset(vars(ShellResult("", "", "", 0)))


@dataclass(frozen=True, slots=True)
class PrintedOutput:
    """The end of each stream; where it is not the whole, a line before it says so."""

    stdout: str = ""
    stderr: str = ""

    @classmethod
    def of(cls, details: Mapping[str, Any] | None) -> PrintedOutput | None:
        """Return the output in a result's details; `None` if there is none."""
        if not details:
            return None
        streams = [_with_note(details.get(text), details.get(dropped)) for text, dropped in OUTPUT]
        return cls(*streams) if any(streams) else None


def _with_note(text: Any, dropped: Any) -> str:
    kept = text if isinstance(text, str) else ""
    if not isinstance(dropped, int) or dropped <= 0:
        return kept
    return f"[... {dropped} bytes before this were not kept ...]\n{kept}"


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
