"""Publishes tasks that waited for other tasks, once these have ended."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.backoff import Backoff
from flux_endpoint.logs import event
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES, carried_bytes
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.serialize import pack_buffers
from flux_endpoint.service import topology
from flux_endpoint.service.countdown import Countdown
from flux_endpoint.service.counting import Counting
from flux_endpoint.service.failures import publish_failure
from flux_endpoint.service.retry_pauses import RetryPauses
from flux_endpoint.service.store import dependencies, endpoints, functions, tasks
from flux_endpoint.service.store.dependencies import Counted, ReadyTask
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.task_message import publish_tasks

log = logging.getLogger(__name__)

# First and longest pause (s) before ready tasks are published again.
_PAUSES = 1.0, 30.0
# Maximum number of submissions that have pauses of their own.
_MAX_FAILING = 500
_DECLARE_TIMEOUT = 30.0
_MAX_DECLARED = 10_000
# Maximum length of the part of a needed task's error that is repeated.
_SHOWN = 300
# Seconds between two looks for tasks that another service has left when it ended.
_LOOK_EVERY = 300.0


class Dependents:
    """Publishes ready tasks with the results that they take, or fails them. Thread-safe.

    A task is marked as released only after the broker's confirm. So one may be published twice, and
    its endpoint drops the second.

    Args:
        database: the service's database.
        connection: connection to the broker.
        look_every: seconds between two looks for tasks that another service has left uncounted or
            unpublished when it ended.
    """

    def __init__(
        self, database: Database, connection: AmqpConnection, look_every: float = _LOOK_EVERY
    ) -> None:
        self._look_every = look_every
        self._database = database
        self._connection = connection
        self._connected = threading.Event()
        self._counting = Counting(database)
        self._thread = OwnerThread("dependents", after_turn=self._turn)
        # Only the thread uses these:
        self._is_woken = False
        self._count_at = 0.0
        #: Number of submissions in the present page that are not confirmed.
        self._unconfirmed = 0
        #: When the database is asked again after an error; the pauses of submissions.
        self._retry_at: float | None = None
        self._pauses = Backoff(*_PAUSES)
        self._failing = RetryPauses(*_PAUSES, limit=_MAX_FAILING)
        self._declared: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Begin; it does nothing until the broker is connected."""
        self._thread.post(self._look)
        self._thread.start()

    def connected(self) -> None:
        """Record that the connection to the broker was made."""
        self._connected.set()
        self._thread.post(self._resume)

    def disconnected(self) -> None:
        """Record that the connection to the broker was lost."""
        self._connected.clear()

    def wake(self) -> None:
        """Look for ready tasks in the database."""
        self._thread.post(self._wake)

    def counted(self, counted: Counted) -> None:
        """Record that tasks have ended which others need."""
        if counted.left:
            self._thread.post(partial(self._counting.add, counted.left))
        if counted.are_ready:
            self.wake()

    def close(self, timeout: float = 5.0) -> None:
        """Stop, within `timeout` seconds.

        The connection must be closed first, so that no confirm is outstanding.
        """
        self._thread.stop()
        self._thread.join(timeout)

    # The following methods run on the thread.

    def _wake(self) -> None:
        self._is_woken = True

    def _look(self) -> None:
        """Look for tasks that an earlier service, or another one on this database, has left."""
        if self._counting.is_over:
            self._counting.add([None])
        self._is_woken = True
        self._thread.after(self._look_every, self._look)

    def _resume(self) -> None:
        self._is_woken, self._retry_at = True, None
        self._failing.clear()
        self._declared.clear()  # the broker may have lost them

    def _turn(self) -> float:
        return min(self._count(), self._publish_due())

    def _count(self) -> float:
        """Count one page of dependents; return the seconds until the next."""
        now = time.monotonic()
        if self._counting.is_over or now < self._count_at:
            return math.inf if self._counting.is_over else self._count_at - now
        try:
            self._is_woken = self._counting.step() or self._is_woken
        except SQLAlchemyError as error:
            self._count_at = now + _PAUSES[0]
            event(log, logging.WARNING, "dependent tasks not counted", reason=error)
            return _PAUSES[0]
        return math.inf if self._counting.is_over else 0.0

    def _publish_due(self) -> float:
        """Publish ready tasks if there may be some; return the seconds until the next attempt."""
        if self._unconfirmed or not self._connected.is_set():
            return math.inf
        now = time.monotonic()
        if self._retry_at is not None and now < self._retry_at:
            return self._retry_at - now
        if self._is_woken or self._retry_at is not None or self._failing.next_at <= now:
            self._is_woken, self._retry_at = False, None
            try:
                self._publish_page(self._failing.take_due(now))
            except Exception as error:  # noqa: BLE001 - the database or the broker: try again
                return self._retry_later(error)
        return math.inf if self._unconfirmed else self._failing.next_at - now

    def _retry_later(self, error: BaseException, submission_id: str | None = None) -> float:
        """Have a submission's tasks, or all, tried again later; return the pause in seconds."""
        now = time.monotonic()
        pause = None if submission_id is None else self._failing.failed(submission_id, now)
        if pause is None:
            pause = next(self._pauses)
            self._retry_at = now + pause
        event(
            log,
            logging.WARNING,
            "tasks that waited for others not published",
            reason=error,
            retry_in=round(pause, 1),
        )
        return pause

    def _publish_page(self, without: list[str]) -> None:
        with self._database.read() as connection:
            page = dependencies.ready(connection, without)
            found = tasks.submissions_by_id(connection, {each.submission_id for each in page})
        by_submission: dict[str, list[ReadyTask]] = {}
        for each in page:
            by_submission.setdefault(each.submission_id, []).append(each)
        self._unconfirmed = len(by_submission)
        for submission_id, ready in by_submission.items():
            settle = partial(self._on_done, submission_id, [each.task.id for each in ready])
            try:
                confirms = self._publish(found[submission_id], ready)
            except Exception as error:  # noqa: BLE001 - others can still be published
                settle(error)
                continue
            countdown = Countdown(len(confirms), settle)
            for confirm in confirms:
                confirm.add_done_callback(countdown.one_done)

    def _publish(
        self, submission: tasks.Submission, ready: Sequence[ReadyTask]
    ) -> list[Future[None]]:
        """Publish ready tasks of a submission, or their failures; return the confirms."""
        self._declare(submission)
        new: list[tasks.NewTask] = []
        confirms: list[Future[None]] = []
        for each in ready:
            problem = _problem(each)
            if problem is None:
                payload = each.task.payload + pack_buffers(each.values or [])
                new.append(tasks.NewTask(each.task.id, each.task.function_id, payload))
                continue
            code, text = problem
            confirms.append(
                publish_failure(
                    self._connection,
                    submission.endpoint_id,
                    each.task.id,
                    code,
                    text,
                    presumed=False,
                )
            )
        if new:
            with self._database.read() as connection:
                used = {task.function_id for task in new if task.function_id is not None}
                code_of = functions.function_code(connection, used)
                together = endpoints.takes_together(connection, submission.endpoint_id)
            confirms += publish_tasks(self._connection, submission, new, code_of, together)
        return confirms

    def _declare(self, submission: tasks.Submission) -> None:
        """Declare the queues that get the tasks and their results, in case the broker lost them."""
        group_id = submission.group_id if submission.create_queue else ""
        key = submission.endpoint_id, group_id
        if key in self._declared:
            return
        things = topology.of_endpoint(submission.endpoint_id)
        if group_id:
            things += topology.of_group(group_id)
        self._connection.declare_once(*things).result(timeout=_DECLARE_TIMEOUT)
        if len(self._declared) >= _MAX_DECLARED:
            self._declared.clear()
        self._declared.add(key)

    def _on_done(
        self, submission_id: str, task_ids: list[str], error: BaseException | None
    ) -> None:
        # Usually runs on the connection's thread.
        self._thread.post(partial(self._settle, submission_id, task_ids, error))

    def _settle(self, submission_id: str, task_ids: list[str], error: BaseException | None) -> None:
        self._unconfirmed -= 1
        if error is None:
            try:
                with self._database.write() as connection:
                    dependencies.released(connection, task_ids)
            except Exception as failure:  # noqa: BLE001 - published again later, which is harmless
                error = failure
        if error is not None:
            self._declared.clear()
            self._retry_later(error, submission_id)
        else:
            self._pauses.reset()
            self._failing.succeeded(submission_id)
            self._is_woken = True  # there may be another page


def _problem(ready: ReadyTask) -> tuple[ErrorCode, str] | None:
    """Return why a task must fail instead of being published; `None`: it need not."""
    if ready.failed_need is not None:
        text = failed_need(ready.failed_need, ready.error)
        return ErrorCode.DEPENDENCY_FAILED, text
    if ready.values is None or sum(map(carried_bytes, ready.values)) > MAX_PAYLOAD_BYTES:
        text = (
            "the results that the task takes are too large together, the limit is "
            f"{MAX_PAYLOAD_BYTES} bytes: pass large data through files"
        )
        return ErrorCode.COULD_NOT_EXECUTE, text
    return None


def failed_need(task_id: str, error: str) -> str:
    """Return the text of the failure of a task that needs a failed one.

    Args:
        task_id: the failed task.
        error: the text of its error.
    """
    lines = error.strip().splitlines() or ["it has no error text"]
    return f"task {task_id}, which this task needs, failed: {lines[-1].strip()[:_SHOWN]}"
