"""The thread that turns submitted tasks into requests."""

from __future__ import annotations

import functools
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from flux_endpoint.backoff import Backoff
from flux_endpoint.client.api import PAUSES, ServiceApi, user_runtime
from flux_endpoint.client.backlog import Accepted, PendingTask, SubmissionBacklog, SubmissionRoute
from flux_endpoint.client.cache import ResultCache
from flux_endpoint.client.endpoint_watch import EndpointState, state_from
from flux_endpoint.client.future import ComputeFuture
from flux_endpoint.client.streams import CLOSE_TIMEOUT, Streams
from flux_endpoint.client.threads import ClientThread, on_client_thread
from flux_endpoint.errors import DependencyFailed, ServiceError, ServiceUnreachableError
from flux_endpoint.logs import event
from flux_endpoint.protocol.duration import format_duration
from flux_endpoint.protocol.envelope import quoted

log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_Needs = dict[str, list[dict[str, Any] | None]]

#: The largest total size of the payloads of one request, in characters. A larger task goes alone.
#: The endpoint gets a request's tasks when the service has stored all of them.
MAX_BATCH_BYTES = 2 * 2**20

# HTTP status of a temporary refusal: the user has too many tasks, or makes too many requests.
_NO_ROOM = 429
# Prefixes of request fields that all tasks share: an error in one of them concerns every task.
_SHARED_FIELDS = ("endpoint", "task_group", "resource_spec", "user_", "result_ser", "run_opt")


class Submitter:
    """Submits an Executor's tasks, on a thread that starts with the first task.

    Args:
        api: the service.
        streams: the Executor's streams, which receive the results.
        label: label of the Executor, for the thread's name.
        batch_size: the most tasks in one request; may be changed at any time.
        give_up_after: requests to an unreachable service are retried for this time (s); may be
            changed at any time.

    Attributes:
        submitted: number of the tasks that the service has accepted.
    """

    def __init__(
        self,
        api: ServiceApi,
        streams: Streams,
        *,
        label: str,
        batch_size: int,
        give_up_after: float,
    ) -> None:
        self.batch_size = batch_size
        self.give_up_after = give_up_after
        self.submitted = 0
        self._api = api.background()
        self._streams = streams
        self._backlog = SubmissionBacklog()
        self._cache = ResultCache(self._api)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._label = label
        self._open = 0
        self._sending = 0
        self._all_done = threading.Condition(self._lock)
        self._closed = False
        self._abandoned = threading.Event()

    @property
    def is_closed(self) -> bool:
        """Whether it accepts no more tasks."""
        return self._closed

    @property
    def open_count(self) -> int:
        """Number of the tracked futures that are not done."""
        with self._lock:
            return self._open

    # Called by the user's threads.

    def put(self, task: PendingTask) -> None:
        """Add a task; wait while the backlog is full.

        Args:
            task: the task.

        Raises:
            RuntimeError: the submitter is closed.
        """
        self.track(task.future)
        try:
            if not self._backlog.put(task, may_wait=not on_client_thread()):
                raise RuntimeError("the Executor is shut down: it accepts no more tasks")
            if self._thread is None:
                self._start()
        except BaseException:  # also Ctrl-C: the caller has no future, so `wait` must not wait
            task.future.cancel()
            raise

    def track(self, future: Future[Any]) -> None:
        """Have `wait` wait for a future, too."""
        with self._lock:
            self._open += 1
        future.add_done_callback(self._one_done)

    def close(self, *, cancel: bool = False) -> None:
        """Accept no more tasks.

        Args:
            cancel: whether to cancel the unsent tasks; otherwise they are sent.
        """
        self._backlog.close()
        if cancel:
            for task in self._backlog.clear():
                task.future.cancel()
        with self._lock:
            self._closed = True
            idle = self._open == 0
        if idle:
            self._streams.release()

    def wait(self) -> None:
        """Wait until all futures are done and their streams are closed. Call `close` before."""
        with self._all_done:
            self._all_done.wait_for(lambda: self._open == 0)
        if self._thread is not None:  # it may still note calls for the cache of results
            self._thread.join(CLOSE_TIMEOUT)
        self._streams.release()  # `_one_done` may not have done so yet
        self._streams.join()

    def flush(self, timeout: float) -> None:
        """Wait until all tasks are sent, but at most `timeout` seconds; then send no more."""
        if self._thread is not None:
            self._thread.join(timeout)
            if unsent := len(self._backlog) + self._sending:
                what = f"{unsent} task{'s'[: unsent != 1]}"
                text = f"{what} could not be sent before the program's end, and may never run"
                event(log, logging.WARNING, text)
        self._abandoned.set()
        self._streams.release()

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the end of the streams, which `flush` has released."""
        self._streams.join(timeout)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = ClientThread(f"submitter {self._label}", self._run)
                self._thread.start()

    def _one_done(self, future: Future[Any]) -> None:
        if isinstance(future, ComputeFuture) and future.cancelled():
            # Notify waiters here: the submitter's thread may be waiting for the service.
            future.set_running_or_notify_cancel()
            self._backlog.discard(future)
        with self._lock:
            self._open -= 1
            if self._open:
                return
            self._all_done.notify_all()
            last = self._closed
        if last:
            self._streams.release()

    # The submitter's thread.

    def _run(self) -> None:
        while batch := self._backlog.take(self.batch_size, MAX_BATCH_BYTES):
            self._sending = len(batch)
            # A task can't be cancelled from here on; tasks cancelled before are dropped.
            waiting = [task for task in batch if task.future._begin()]
            waiting = self._without_cached(waiting)
            while waiting:
                tasks, waiting = _sendable(waiting)
                self._send_all(tasks)
            self._sending = 0
        if self._abandoned.is_set():  # this thread may have started streams after `flush`
            self._streams.release()

    def _without_cached(self, tasks: list[PendingTask]) -> list[PendingTask]:
        """Resolve the tasks whose calls succeeded before; return the others."""
        if not any(task.key for task in tasks):
            return tasks
        try:
            return self._cache.resolve(tasks)
        except Exception:  # this thread must go on
            log.exception("looking for the results of earlier calls failed")
            return [task for task in tasks if not task.future.done()]

    def _send_all(self, batch: list[PendingTask]) -> None:
        by_route: dict[SubmissionRoute, list[PendingTask]] = {}
        for task in batch:
            by_route.setdefault(task.route, []).append(task)
        for route, tasks in by_route.items():
            try:
                if route.attach_jobid is not None:
                    self._attach(route, tasks)
                else:
                    self._send(route, self._with_functions(tasks))
            except Exception as error:
                log.exception("submitting %d tasks failed", len(tasks))
                _fail(tasks, error)

    def _with_functions(self, tasks: list[PendingTask]) -> list[PendingTask]:
        """Register new functions; fail the tasks of refused functions and return the others."""
        usable: list[PendingTask] = []
        by_function: dict[int, list[PendingTask]] = {}
        for task in tasks:
            by_function.setdefault(id(task.function), []).append(task)
        for same in by_function.values():
            function = same[0].function
            try:
                if function.function_id is None and function.body is not None:
                    register = functools.partial(self._api.register, function.body)
                    function.registered_as(self.with_retries(register))
            except (ServiceError, ServiceUnreachableError) as error:
                _fail(same, error)
            else:
                usable.extend(same)
        return usable

    def _send(self, route: SubmissionRoute, tasks: list[PendingTask]) -> None:
        if not tasks:
            return
        by_function: dict[str, list[PendingTask]] = {}
        for task in tasks:
            by_function.setdefault(task.function.function_id or "", []).append(task)
        payloads = {id_: [task.payload for task in its] for id_, its in by_function.items()}
        body = submission_body(route, payloads, _needs_of(by_function))
        key = uuid.uuid4().hex
        stream = self._streams.results(route.task_group_id)
        stream.submission_begins()
        accepted: list[Accepted] = []
        answer: dict[str, Any] = {}
        try:
            answer = self.with_retries(lambda: self._api.submit(route.endpoint_id, body, key))
            accepted = self._accept(answer, by_function)
        except ServiceError as error:
            self._refused(error, route, tasks, by_function)
        except ServiceUnreachableError as error:
            _fail(tasks, error)
        finally:
            # In this order: after an id is published, `reload_tasks` must find the task's future.
            stream.submission_ends(accepted, endpoint_state(route, answer))
            ComputeFuture._accepted(accepted)
        if accepted and any(task.key for task in tasks):
            self._cache.note(tasks)

    def _accept(
        self, answer: dict[str, Any], by_function: dict[str, list[PendingTask]]
    ) -> list[Accepted]:
        """Return the tasks with their ids; fail a function's tasks if their number differs."""
        accepted: list[Accepted] = []
        for function_id, tasks in by_function.items():
            ids = answer.get("tasks", {}).get(function_id, [])
            if len(ids) != len(tasks):
                message = (
                    f"the service answered {len(ids)} ids for {len(tasks)} tasks of function "
                    f"{function_id}: none of them can be followed"
                )
                _fail(tasks, ServiceError(message, http_status=200, code="UNEXPECTED_ANSWER"))
                continue
            self.count(len(tasks))  # before the ids are published
            pairs = zip(tasks, ids, strict=True)
            accepted.extend(Accepted(task.future, id_, function_id) for task, id_ in pairs)
        return accepted

    def _attach(self, route: SubmissionRoute, tasks: list[PendingTask]) -> None:
        body: dict[str, Any] = {
            "jobid": route.attach_jobid,
            "task_group_id": route.task_group_id,
        }
        if route.result_serializers:
            body["result_serializers"] = list(route.result_serializers)
        stream = self._streams.results(route.task_group_id)
        for task in tasks:
            key = uuid.uuid4().hex
            stream.submission_begins()
            accepted: list[Accepted] = []
            answer: dict[str, Any] = {}
            try:
                attach = functools.partial(self._api.attach, route.endpoint_id, body, key)
                answer = self.with_retries(attach)
                accepted.append(Accepted(task.future, answer["task_id"]))
                self.count(1)
            except (ServiceError, ServiceUnreachableError) as error:
                _fail([task], error)
            finally:
                stream.submission_ends(accepted, endpoint_state(route, answer))
                ComputeFuture._accepted(accepted)

    def _refused(
        self,
        error: ServiceError,
        route: SubmissionRoute,
        tasks: list[PendingTask],
        by_function: dict[str, list[PendingTask]],
    ) -> None:
        """Fail the tasks that an error concerns; send the others again in smaller requests."""
        shared = (
            error.http_status == 401
            or error.code.startswith(("ENDPOINT", "TASK_GROUP"))
            or (error.field or "").startswith(_SHARED_FIELDS)
        )
        if shared or len(tasks) == 1:
            _fail(tasks, error)
        elif len(by_function) > 1:
            for part in by_function.values():
                self._send(route, part)
        elif error.http_status == 413 or names_a_payload(error):
            middle = len(tasks) // 2
            self._send(route, tasks[:middle])
            self._send(route, tasks[middle:])
        else:
            _fail(tasks, error)

    def count(self, tasks: int) -> None:
        """Count tasks that the service has accepted."""
        with self._lock:
            self.submitted += tasks

    def with_retries(self, call: Callable[[], _Answer]) -> _Answer:
        """Make a request; retry while the service is unreachable, for up to `give_up_after`.

        Also retry, without a limit, while the service temporarily refuses more tasks of the user:
        it accepts more when others have ended. Any thread may call it.
        """
        lost_at: float | None = None
        full = False
        for pause in Backoff(*PAUSES):
            try:
                answer = call()
            except ServiceUnreachableError as error:
                now = time.monotonic()
                if lost_at is None:
                    lost_at = now
                    what = f"the service at {self._api.url} is unreachable"
                    how_long = format_duration(self.give_up_after)
                    text = f"{what}, trying again for {how_long} (give_up_after): {error}"
                    event(log, logging.WARNING, text)
                if self._abandoned.is_set() or self._abandoned.wait(pause):
                    raise
                if now - lost_at > self.give_up_after:
                    raise ServiceUnreachableError(
                        f"{error}; tried for {format_duration(round(now - lost_at))}"
                    ) from error
            except ServiceError as error:
                if error.http_status != _NO_ROOM or self._abandoned.is_set():
                    raise
                if not full:
                    full = True
                    event(log, logging.WARNING, f"tasks wait until the service has room: {error}")
                if self._abandoned.wait(pause):
                    raise
            else:
                if lost_at is not None:
                    event(log, logging.WARNING, f"the service at {self._api.url} is back")
                return answer
        raise AssertionError("pauses never end")


def _sendable(tasks: list[PendingTask]) -> tuple[list[PendingTask], list[PendingTask]]:
    """Return the tasks that can be sent now, and those whose needs have to be sent first.

    Tasks that need one which was never submitted fail.
    """
    now: list[PendingTask] = []
    later: list[PendingTask] = []
    for task in tasks:
        if not task.needs:
            now.append(task)
        elif (lost := task.needs.never_submitted) is not None:
            _fail(
                [task], DependencyFailed(f"a task that this one needs was never submitted: {lost}")
            )
        else:
            (now if task.needs.are_submitted else later).append(task)
    if later and len(later) == len(tasks):  # a need was neither sent nor given up
        _fail(later, DependencyFailed("the tasks that this one needs were not submitted before it"))
        later = []
    return now, later


def submission_body(
    route: SubmissionRoute, payloads: Mapping[str, Iterable[str]], needs: _Needs
) -> bytes:
    """Return the request for tasks, a JSON object.

    Args:
        route: their settings.
        payloads: their packed arguments, by function id.
        needs: in the same order, what each waits for; empty: none does.
    """
    body: dict[str, Any] = {"task_group_id": route.task_group_id, "user_runtime": user_runtime()}
    if needs:
        body["needs"] = needs
    if route.resource_specification:
        body["resource_specification"] = json.loads(route.resource_specification)
    if route.run_options:
        body["run_options"] = json.loads(route.run_options)
    if route.user_endpoint_config:
        body["user_endpoint_config"] = json.loads(route.user_endpoint_config)
    if route.result_serializers:
        body["result_serializers"] = list(route.result_serializers)
    rest = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    tasks = b",".join(
        b"%s:[%s]" % (quoted(id_), b",".join(map(quoted, its))) for id_, its in payloads.items()
    )
    return b'{"tasks":{%s},%s' % (tasks, rest[1:])


def _needs_of(by_function: Mapping[str, list[PendingTask]]) -> _Needs:
    if not any(task.needs for tasks in by_function.values() for task in tasks):
        return {}
    return {
        id_: [task.needs.as_request() if task.needs else None for task in tasks]
        for id_, tasks in by_function.items()
    }


def endpoint_state(route: SubmissionRoute, answer: dict[str, Any]) -> EndpointState | None:
    """Return the state of the endpoint in the answer to a submission, if it has one."""
    status, last_seen = answer.get("endpoint_status"), answer.get("endpoint_last_seen")
    return state_from(route.endpoint_id, status, last_seen)


def names_a_payload(error: ServiceError) -> bool:
    """Return whether the field of an error is a single payload, e.g. `tasks.FUNCTION[3]`."""
    return bool(re.search(r"\[\d+\]$|\.\d+$", error.field or ""))


def _fail(tasks: list[PendingTask], error: Exception) -> None:
    for task in tasks:
        task.future._try_exception(error)
