"""What the endpoint's agent and an engine say to each other."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class EngineTask:
    """A task as the engine gets it; nothing of the user's has been deserialized."""

    task_id: str
    function_id: str
    #: Function, args and kwargs, serialized and packed.
    buffer: str
    resource_specification: dict[str, Any] | None = None
    #: Import paths of the strategies to try on the result, in order; `None`: the defaults.
    result_serializers: list[str] | None = None
    #: A job that runs already and is only to be followed; there is no function then.
    attach: int | None = None
    #: The moment from which on it must not be started any more, in seconds since the epoch.
    start_before: float | None = None


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The end of a task: a packed `Result` message, ready to be published."""

    task_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """An event of the job that a task became (RFC 21): Flux's name, time and context."""

    task_id: str
    jobid: int | None
    name: str
    timestamp: float
    context: dict[str, Any]


class Engine(Protocol):
    """Runs tasks.

    All methods but `start` and `stop` return at once; callbacks come from the engine's threads.
    """

    def start(
        self,
        on_result: Callable[[EngineResult], None],
        on_event: Callable[[EngineEvent], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Start; give every task's end to `on_result`, every event of its job to `on_event`.

        `on_lost` is told the reason, once, if what the tasks run on is gone or begins to end. A
        task gets no result then if it had not been started, or may be tried again: it stays with
        whoever submitted it, for an engine to come. Others have had theirs when `stop` returns.

        Raises:
            EngineError: it can't start; says what to do.
        """

    def submit(self, task: EngineTask) -> None:
        """Take a task. Every submitted task ends in exactly one `on_result`, a refusal included."""

    def recovered(self) -> None:
        """Take note that all tasks of before a restart have been submitted.

        What an earlier engine has left of others is not needed. To be called once after `start`,
        also if there were none.
        """

    def settle(self, task_ids: Collection[str]) -> None:
        """Forget tasks whose results are on disk at the submitter.

        A result that is not settled is kept, and given once more to the submitter that comes after
        one that was killed: so no function that has completed is run again.
        """

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a task, wherever it is, with its whole process tree; unknown ids are ignored.

        Args:
            task_id: the task.
            signum: send this signal to a running task's processes instead.
        """

    def status(self) -> dict[str, Any]:
        """Return counters for the status report.

        The official names where they exist (`total_workers`, `idle_workers`, `pending_tasks`,
        `outstanding_tasks`, `managers`, `engine_type`), and `executor`: "flux" or "local".
        """

    def stop(self, grace: float) -> None:
        """Let running tasks finish for at most `grace` seconds, then end everything.

        Tasks that did not finish get no result (the agent's journal keeps them).
        """
