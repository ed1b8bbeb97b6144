"""Results of tasks: their stream, and what a result makes of its future."""

from __future__ import annotations

import logging
import math
import platform
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from flux_endpoint.amqp import ConnectionState, Delivery
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.backoff import Backoff
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.backlog import Accepted
from flux_endpoint.client.endpoint_watch import EndpointState, EndpointWatch, state_from
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.group_stream import GroupStream, Question
from flux_endpoint.client.output import PrintedOutput
from flux_endpoint.client.skew import warn_of_skew
from flux_endpoint.errors import (
    DataStoreError,
    DependencyFailed,
    DeserializationError,
    FluxEndpointError,
    InvalidMessageError,
    TaskCancelled,
    TaskError,
    TaskExecutionFailed,
)
from flux_endpoint.functions import OUR_RESULT
from flux_endpoint.logs import event
from flux_endpoint.protocol.envelope import JOBID, VERSION_BYTE
from flux_endpoint.protocol.exceptions import EXCEPTION, exception_from
from flux_endpoint.protocol.jobid import parse_jobid
from flux_endpoint.protocol.messages import Result, read_json, unpack
from flux_endpoint.protocol.states import FINAL_STATES, ErrorCode
from flux_endpoint.serialize import reading_as

log = logging.getLogger(__name__)

# The service keeps only the text of an error. In these cases, the text begins with the code.
_CANCELLED = f"{ErrorCode.CANCELLED}:"
_DEPENDENCY_FAILED = f"{ErrorCode.DEPENDENCY_FAILED}:"
_CODES = {
    _CANCELLED: ErrorCode.CANCELLED,
    _DEPENDENCY_FAILED: ErrorCode.DEPENDENCY_FAILED,
}
_TASK = re.compile(r"\btask ([0-9a-f-]{36})\b")


#: The most early results, i.e. results that arrive before the answer to their submission.
MAX_EARLY = 128
#: After `QUIET` seconds without a result, and then at intervals up to `MAX_QUIET` seconds, the
#: stream asks the service whether the endpoints of open tasks are online: at most `MAX_SILENT`.
QUIET, MAX_QUIET, MAX_SILENT = 60.0, 600.0, 16
#: The most tasks in one request for states.
STATUS_CHUNK = 128


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """The end of a task.

    Attributes:
        task_id: its id.
        value: its serialized result.
        error: text of its error; `None`: it succeeded.
        error_code: one of `ErrorCode`; `None`: unknown.
        completion_t: time of its end (s since the epoch, as text).
        details: details from the endpoint, e.g. its versions, and the id of the task's job.
    """

    task_id: str
    value: str = ""
    error: str | None = None
    error_code: str | None = None
    completion_t: str = "0"
    details: dict[str, Any] | None = None


def from_message(body: bytes, timestamp: int | None) -> TaskEnd:
    """Return the end of a task from a message of the result queue.

    Args:
        body: the message.
        timestamp: time of the message (s since the epoch), if known.

    Raises:
        InvalidMessageError: the message is not a result.
    """
    try:
        # For speed, the message is parsed with its model only if it is invalid, for the error.
        envelope = read_json(body) if body[:1] == VERSION_BYTE else None
        data = envelope["data"]  # type: ignore[index]
        value, task_id, details = data["data"], data["task_id"], data.get("details")
        problem = data.get("error_details")
        failed = problem is not None
        good = isinstance(value, str) and isinstance(task_id, str)
        good = good and envelope["message_type"] == Result.message_type  # type: ignore[index]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        message = unpack(body)
        raise InvalidMessageError(f"expected a result, got a {message.message_type} message")
    return TaskEnd(
        task_id=task_id,
        value="" if failed else value,
        error=value if failed else None,
        error_code=problem.get("code") if isinstance(problem, dict) else None,
        completion_t=str(timestamp or 0),
        details=details if isinstance(details, dict) else None,
    )


def from_document(document: dict[str, Any]) -> TaskEnd | None:
    """Return the end of a task from its document at the service.

    Args:
        document: the document, with `task_id`.

    Returns:
        The end; `None` if the task has not ended.
    """
    status = str(document.get("status", "")).lower()
    completion_t = document.get("completion_t")
    if status not in FINAL_STATES and not completion_t:
        return None
    result, details = document.get("result"), document.get("details")
    value, error = (result, None) if isinstance(result, str) else ("", "")
    if status != "success" or error is not None:
        error = str(
            document.get("exception")
            or document.get("reason")
            or f"the service has neither result nor error of this task (status '{status}')"
        )
    return TaskEnd(
        task_id=str(document.get("task_id", "")),
        value=value,
        error=error,
        error_code=_code_in(error or ""),
        completion_t=str(completion_t or 0),
        details=details if isinstance(details, dict) else None,
    )


def _code_in(error: str) -> ErrorCode | None:
    return next((code for prefix, code in _CODES.items() if error.startswith(prefix)), None)


def load(
    end: TaskEnd, deserialize: Any, exceptions: Mapping[str, type[Exception]] | None = None
) -> Any:
    """Return the value of a task that succeeded.

    Args:
        end: the task's end.
        deserialize: turns the text of the result into its value.
        exceptions: types that the cause of an error may have, besides Python's own.

    Raises:
        TaskExecutionFailed: the task failed.
        TaskCancelled: it was ended on request.
        DependencyFailed: a task that it needs failed.
        DeserializationError: its value can't be read here.
        DataStoreError: its value is in a store, and can't be loaded here.
    """
    if end.error is not None:
        if end.error_code == ErrorCode.CANCELLED:
            raise TaskCancelled(end.error.removeprefix(_CANCELLED).strip())
        if end.error_code == ErrorCode.DEPENDENCY_FAILED:
            text = end.error.removeprefix(_DEPENDENCY_FAILED).strip()
            named = _TASK.search(text)
            raise DependencyFailed(text, named[1] if named else None)
        cause = exception_from((end.details or {}).get(EXCEPTION), exceptions)
        raise TaskExecutionFailed(end.error, end.completion_t, end.details) from cause
    try:
        with reading_as(OUR_RESULT):  # read an official endpoint's ShellResult as our class
            return deserialize(end.value)
    except DataStoreError as error:
        raise DataStoreError(f"task {end.task_id} succeeded, but {error}") from None
    except Exception as error:
        raise DeserializationError(
            f"task {end.task_id} succeeded, but its result can't be read here: "
            f"{_text(error)}{_versions(end.details)}"
        ) from error


def resolve(future: ComputeFuture, end: TaskEnd) -> None:
    """Resolve a future with a task's value or error.

    Args:
        future: the task's future.
        end: the task's end.
    """
    future._error_code = end.error_code
    future._set_jobid(_jobid(end.details))
    future._output = PrintedOutput.of(end.details)
    warn_of_skew(end.details)
    try:
        value = load(end, future._load, future._remote_errors.classes)
    except (TaskError, DeserializationError) as error:
        future._try_exception(_remote(error) if future._remote_errors.are_raised else error)
    except BaseException as error:  # noqa: BLE001 - loading a value may call sys.exit()
        future._try_exception(DeserializationError(f"task {end.task_id}: {error!r}"))
    else:
        future._try_result(value)


def _remote(error: FluxEndpointError) -> BaseException:
    """Return the exception that the task raised, with the endpoint's report as its cause."""
    remote = error.__cause__
    if not isinstance(error, TaskExecutionFailed) or remote is None:
        return error
    if isinstance(remote, StopIteration):  # asyncio's futures refuse it: `await` would never end
        return error
    error.__cause__ = None  # else each would be the other's cause
    remote.__cause__ = error.with_traceback(None)
    return remote


def _jobid(details: dict[str, Any] | None) -> int | None:
    text = (details or {}).get(JOBID)
    with suppress(ValueError):
        return parse_jobid(text) if isinstance(text, str) and text.isdecimal() else None
    return None


def _text(error: Exception) -> str:
    named = isinstance(error, DeserializationError)
    return str(error) if named else f"{type(error).__name__}: {error}"


def _versions(details: dict[str, Any] | None) -> str:
    import dill  # noqa: PLC0415 - only needed for an error

    if not details or "python_version" not in details:
        return ""
    return (
        f"\nHere: Python {platform.python_version()}, dill {dill.__version__}; on the endpoint: "
        f"Python {details['python_version']}, dill {details.get('dill_version', 'unknown')}. "
        "Values travel safely between equal versions only; modules that define their classes must "
        "be installed on both sides"
    )


class ResultStream(GroupStream):
    """Consumes a task group's results and resolves the futures that wait for them.

    The queue gets all results of the group, including those that only other clients wait for.

    A result may arrive early: before the answer to its task's submission, which has the task's id.
    During a submission, the stream keeps results of unknown tasks and does not acknowledge them. At
    other times, such results belong to other clients, and the stream drops them.

    The first submission opens the queue concurrently.
    """

    kind = "results"
    prefetch = 2 * MAX_EARLY
    bundles = True

    def __init__(self, api: ServiceApi, task_group_id: str, amqp_port: int | None) -> None:
        super().__init__(api, task_group_id, amqp_port)
        # A task that was reloaded before the answer to its submission arrived has two futures.
        self._open: dict[str, tuple[ComputeFuture, ...]] = {}
        self._early: dict[str, tuple[TaskEnd, Delivery]] = {}
        self._submissions = 0
        #: Whether results of a present submission may have been missed.
        self._missed = False
        #: Tasks whose state must be requested from the service.
        self._wanted: dict[str, None] = {}
        #: Endpoints whose state must be requested, because no results have arrived for a while.
        self._silent: set[str] = set()
        self._quiet = Backoff(QUIET, MAX_QUIET, jitter=0)
        #: Monotonic time (s) of the next check of the endpoints; infinity: no task is open.
        self._quiet_at = math.inf
        self._endpoints = EndpointWatch()

    def submission_begins(self) -> None:
        """Begin to keep results of unknown tasks. Call it before a submission."""
        self._thread.post(self._on_begin)

    def submission_ends(
        self, accepted: list[Accepted], endpoint: EndpointState | None = None
    ) -> None:
        """Follow the tasks of a submission. Call it once for each `submission_begins`.

        Afterwards, the caller may publish the ids of the tasks.

        Args:
            accepted: the tasks that the service has accepted.
            endpoint: the state of their endpoint, if known.
        """
        self._thread.post(lambda: self._on_end(accepted, endpoint))

    def follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        """Follow tasks that were submitted earlier, e.g. by another process.

        Args:
            futures: a future for each task.

        Returns:
            For each task, the future that will be resolved: an existing one, or the given one.
        """
        return self._thread.call(lambda: self._on_follow(futures))

    # The methods below run on the stream's thread.

    @property
    def _is_awaited(self) -> bool:
        return bool(self._open or self._submissions)

    def _next_check(self) -> float:
        """Return the seconds until the next check of the endpoints."""
        now = time.monotonic()
        if not self._open:
            self._quiet.reset()
            self._quiet_at = math.inf
        elif now >= self._quiet_at or math.isinf(self._quiet_at):
            if now >= self._quiet_at:
                self._on_quiet()
            self._quiet_at = now + next(self._quiet)
        return self._quiet_at - now

    def _on_begin(self) -> None:
        self._submissions += 1
        self._connect()

    def _on_end(self, accepted: list[Accepted], endpoint: EndpointState | None) -> None:
        self._submissions -= 1
        if endpoint is not None:
            self._endpoints.update(endpoint)
        for each in accepted:
            each.set_ids()  # sets its ids, before the future may be done
            early = self._early.pop(each.task_id, None)
            waiting = (each.future, *self._open.pop(each.task_id, ()))
            if early is None:
                self._open[each.task_id] = waiting
            else:
                _resolve_all(waiting, early[0])
                early[1].ack()
        if not self._submissions:
            for _, delivery in self._early.values():
                delivery.ack()
            self._early.clear()
        if self._missed:
            self._missed = bool(self._submissions)
            self._request(each.task_id for each in accepted)

    def _on_follow(self, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        followed = [self._open.setdefault(f.task_id or "", (f,))[0] for f in futures]
        self._connect()
        self._request(future.task_id or "" for future in futures)
        return followed

    def _take(self, delivery: Delivery) -> None:
        end = from_message(delivery.body, delivery.timestamp)
        waiting = self._open.pop(end.task_id, ())
        if waiting:
            self._quiet.reset()
            self._quiet_at = math.inf
            _resolve_all(waiting, end)
            delivery.ack()
        elif self._submissions:
            self._keep_early(end, delivery)
        else:
            delivery.ack()
            event(log, logging.DEBUG, "result of an untracked task", task_id=end.task_id)

    def _keep_early(self, end: TaskEnd, delivery: Delivery) -> None:
        replaced = self._early.pop(end.task_id, None)
        self._early[end.task_id] = (end, delivery)
        if replaced is None and len(self._early) > MAX_EARLY:
            # Acknowledge the oldest: unacknowledged messages would use up the prefetch limit, and
            # its result can still be requested from the service.
            replaced = self._early.pop(next(iter(self._early)))
            self._missed = True
        if replaced is not None:
            replaced[1].ack()

    # Requests to the service, for results that the queue does not have.

    def _on_quiet(self) -> None:
        """Ask whether the endpoints are online: no results have arrived for a while."""
        waited_for = (future.endpoint_id for each in self._open.values() for future in each)
        self._silent = set(islice({id_ for id_ in waited_for if id_}, MAX_SILENT))
        self._ask_service()

    def _catch_up(self) -> None:
        self._missed = self._missed or bool(self._submissions)
        self._request(self._open)

    def _on_state(self, change: StateChange) -> None:
        if change.state not in (ConnectionState.CONNECTED, ConnectionState.CLOSED):
            # Without the broker, request the results from the service at each attempt to connect.
            self._catch_up()
        super()._on_state(change)

    def _request(self, ids: Iterable[str]) -> None:
        self._wanted.update(dict.fromkeys(ids))
        self._ask_service()

    def _questions(self) -> list[Question]:
        api = self._api
        ids = [task_id for task_id in self._wanted if task_id in self._open]
        endpoints, self._silent = self._silent, set()
        self._wanted.clear()
        chunks = [ids[at : at + STATUS_CHUNK] for at in range(0, len(ids), STATUS_CHUNK)]
        return [
            *(
                Question(partial(api.endpoint_status, e), partial(self._on_status, e))
                for e in endpoints
            ),
            *(Question(partial(api.batch_status, chunk), self._on_documents) for chunk in chunks),
        ]

    def _on_status(self, endpoint_id: str, answer: dict[str, Any]) -> None:
        state = state_from(endpoint_id, answer.get("status"), answer.get("last_seen"))
        if state is not None:
            self._endpoints.update(state)

    def _on_documents(self, documents: dict[str, dict[str, Any]]) -> None:
        for task_id, document in documents.items():
            end = from_document({**document, "task_id": task_id})
            if end is not None:
                _resolve_all(self._open.pop(task_id, ()), end)


def _resolve_all(futures: tuple[ComputeFuture, ...], end: TaskEnd) -> None:
    for future in futures:
        resolve(future, end)
