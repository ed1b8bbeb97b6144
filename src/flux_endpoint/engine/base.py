"""The interface between the endpoint's agent and an engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from flux_endpoint.protocol.job_events import OUTPUT_EVENT
from flux_endpoint.protocol.resources import DEFAULT_URGENCY
from flux_endpoint.protocol.run_options import RunOptions


@dataclass(frozen=True, slots=True)
class EngineTask:
    """A task as the engine receives it; the user's data is still serialized."""

    task_id: str
    function_id: str
    #: The function and its arguments, serialized and packed.
    buffer: str
    resource_specification: dict[str, Any] | None = None
    #: Import paths of the strategies to try on the result, in order; `None`: the defaults.
    result_serializers: list[str] | None = None
    #: Id of a running job to follow; such a task has no function.
    attach: int | None = None
    #: The task must not start at or after this time (seconds since the epoch).
    start_before: float | None = None
    #: `None`: the defaults. Retries are the agent's; to the engine, each attempt is another task.
    options: RunOptions | None = None
    #: Flux's urgency, 0 (held) to 31; `None`: `usual_urgency`.
    urgency: int | None = None

    @property
    def usual_urgency(self) -> int:
        """Its urgency unless somebody changes it: its specification's, but not that of a hold."""
        urgency = (self.resource_specification or {}).get("urgency")
        return urgency if isinstance(urgency, int) and urgency else DEFAULT_URGENCY

    @property
    def runs_on_worker(self) -> bool:
        """Whether it is neither a job of its own nor follows one."""
        return not self.resource_specification and self.attach is None


@dataclass(frozen=True, slots=True)
class EngineResult:
    """The end of a task: a packed `Result` message, ready to publish."""

    task_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """An event of a task's job (RFC 21): Flux's name, timestamp and context."""

    task_id: str
    jobid: int | None
    name: str
    timestamp: float
    context: dict[str, Any]


def output_event(task_id: str, streams: dict[str, Any]) -> EngineEvent:
    """Return the event for what a followed task has printed; see `job_events.OUTPUT_EVENT`."""
    return EngineEvent(task_id, None, OUTPUT_EVENT, time.time(), streams)


class Engine(Protocol):
    """Runs tasks.

    All methods except `start` and `stop` return at once. Callbacks run on the engine's threads.
    """

    def start(
        self,
        on_result: Callable[[EngineResult], None],
        on_event: Callable[[EngineEvent], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """Start the engine.

        If the instance under the engine is gone or begins to end, `on_lost` is called once. Tasks
        that had not started, or that may be retried, then get no result: the submitter keeps them
        and gives them to the next engine. All other tasks have their results when `stop` returns.

        Args:
            on_result: called with the end of each task.
            on_event: called with each event of each task's job.
            on_lost: called with the reason.

        Raises:
            EngineError: the engine can't start; the text says what to do.
        """

    def submit(self, task: EngineTask) -> None:
        """Take a task. Each submitted task ends in exactly one `on_result`, even if refused."""

    def recovered(self) -> None:
        """Signal that all tasks of the previous run have been submitted again.

        The engine then discards what it finds of any other task. Call this once after `start`, also
        if there were no tasks.
        """

    def settle(self, task_ids: Collection[str]) -> None:
        """Discard tasks whose results the submitter has on disk.

        The engine keeps a result until then. If the submitter is killed, its successor gets the
        result again, so that no completed function runs twice.
        """

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        """End a task and its whole process tree, wherever it is; unknown ids are ignored.

        Args:
            task_id: the task.
            signum: send this signal to the running task's processes instead of ending it.
        """

    def set_urgency(self, task_id: str, urgency: int) -> None:
        """Set the urgency of a task that has not begun; unknown ids are ignored.

        Args:
            task_id: the task.
            urgency: 0 holds it; of others, the highest start first.
        """

    def follow_output(self, task_id: str, seconds: float, known: tuple[int, int]) -> None:
        """Report what a running task prints: `on_event` gets events `job_events.OUTPUT_EVENT`.

        Unknown ids are ignored; call it again before the time is over.

        Args:
            task_id: the task.
            seconds: for how long.
            known: bytes of standard output and error that the caller has.
        """

    def status(self) -> dict[str, Any]:
        """Return counters for the status report.

        Counters have the official names where these exist (`total_workers`, `idle_workers`,
        `pending_tasks`, `outstanding_tasks`, `managers`, `engine_type`); `executor` is "flux" or
        "local".
        """

    def stop(self, grace: float) -> None:
        """Let running tasks finish for at most `grace` seconds, then end them.

        Unfinished tasks get no result (the agent's journal keeps them).
        """
