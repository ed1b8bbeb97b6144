"""Gives an endpoint a limited window of tasks; the others stay in the store.

An official endpoint takes all tasks in its queue, even if it can't run them yet, and these are lost
with it. So it is given only as many as keep it busy.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.errors import DeserializationError, PublishError
from flux_endpoint.functions.official import official_code
from flux_endpoint.functions.transport import CommandFunctionCode
from flux_endpoint.logs import event
from flux_endpoint.service import buffers, topology
from flux_endpoint.service.countdown import Countdown
from flux_endpoint.service.official.inbox import TasksPublished
from flux_endpoint.service.official.store import deliveries
from flux_endpoint.service.official.timers import Due, Timers
from flux_endpoint.service.store import functions, tasks
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.task_message import publish_tasks

log = logging.getLogger(__name__)

#: Maximum size of the open tasks that an endpoint is given, in characters of functions and
#: arguments.
WINDOW_SIZE = 64 * 2**20

#: Age (s) of a claim from which its service is assumed to have stopped, unless this one made it.
STALE_CLAIM = 60.0

_DECLARE_TIMEOUT = 15.0
_RETRY = 5.0
_CODE = CommandFunctionCode.instance()


class Releases:
    """Publishes tasks to official endpoints. For the dispatcher's thread.

    Args:
        database: the service's database.
        connection: connection to the broker.
        timers: the timers for retries.
        window: maximum number of open tasks that an endpoint is given, unless it reports that it
            can run more at a time.
        post: posts a `TasksPublished` to the dispatcher, from any thread.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        timers: Timers,
        window: int,
        post: Callable[[TasksPublished], None],
    ) -> None:
        self._database = database
        self._connection = connection
        self._timers = timers
        self._window = window
        self._post = post
        self._declared: set[str] = set()
        self._in_flight: set[str] = set()
        self._unsettled: list[TasksPublished] = []

    def forget_queues(self) -> None:
        """Declare queues again before their next use: the broker may not have them any more."""
        self._declared.clear()

    def declare(self, endpoint_id: str) -> None:
        """Declare an endpoint's queues.

        Raises:
            AmqpError: the broker refuses.
            TimeoutError: it does not answer in time.
        """
        declared = self._connection.declare_once(*topology.of_endpoint(endpoint_id))
        declared.result(_DECLARE_TIMEOUT)
        self._declared.add(endpoint_id)

    def release(self, endpoint: Endpoint) -> None:
        """Publish as many waiting tasks as there is room for."""
        room = self._window
        if endpoint.last_report:
            room = max(room, 2 * capacity(endpoint.last_report))
        window = deliveries.DeliveryWindow(room, WINDOW_SIZE)
        self.settle([])
        while True:
            with self._database.read() as connection:
                if not deliveries.any_waits(connection, endpoint.id):
                    return
            with self._database.write() as connection:
                claimed = deliveries.claim(connection, endpoint.id, window, time.time())
            if not claimed:
                return
            self._in_flight.update(each.task.id for each in claimed)
            try:
                self._publish(endpoint, claimed)
            except Exception as error:  # nothing was published
                self._post(TasksPublished(endpoint.id, [each.task.id for each in claimed], error))
                raise

    def settle(self, published: Sequence[TasksPublished]) -> None:
        """Record which tasks the broker has confirmed; the others wait for a retry."""
        self._unsettled += published
        if not self._unsettled:
            return
        good = [each for page in self._unsettled if page.error is None for each in page.task_ids]
        bad = [page for page in self._unsettled if page.error is not None]
        with self._database.write() as connection:
            deliveries.release(connection, good, time.time())
            deliveries.unclaim(connection, [each for page in bad for each in page.task_ids])
        for page in self._unsettled:
            self._in_flight.difference_update(page.task_ids)
        self._unsettled.clear()
        for page in bad:
            self._declared.discard(page.endpoint_id)  # its queue may have been deleted
            self._timers.within(Due.RELEASE, page.endpoint_id, _RETRY)
            event(
                log,
                logging.WARNING,
                "tasks not published to their endpoint",
                endpoint_id=page.endpoint_id,
                reason=page.error,
                retry_in=_RETRY,
            )

    def sweep(self) -> int:
        """Release the claims of services that have stopped; return the number of tasks."""
        with self._database.write() as connection:
            return deliveries.unclaim_older(connection, time.time() - STALE_CLAIM, self._in_flight)

    def _publish(self, endpoint: Endpoint, claimed: Sequence[deliveries.Claimed]) -> None:
        endpoint_id = endpoint.id
        if endpoint_id not in self._declared:
            self.declare(endpoint_id)
        by_submission: dict[str, list[tasks.NewTask]] = {}
        for each in claimed:
            by_submission.setdefault(each.submission_id, []).append(each.task)
        used = {each.task.function_id for each in claimed if each.task.function_id}
        with self._database.read() as connection:
            submissions = tasks.submissions_by_id(connection, by_submission)
            code = functions.function_code(connection, used)
        if not endpoint.is_own_make:
            code = {each: functions.Code(readable_code(its.text)) for each, its in code.items()}
        for submission_id, new in by_submission.items():
            confirms: list[Future[None]] = []
            try:
                confirms.extend(
                    publish_tasks(self._connection, submissions[submission_id], new, code)
                )
            except PublishError as closed:  # the service is stopping: the next one publishes them
                confirms.append(Future())
                confirms[-1].set_exception(closed)
            ids = [task.id for task in new]
            countdown = Countdown(len(confirms), partial(self._on_published, endpoint_id, ids))
            for confirm in confirms:
                confirm.add_done_callback(countdown.one_done)

    def _on_published(
        self, endpoint_id: str, ids: Sequence[str], error: BaseException | None
    ) -> None:
        # Usually runs on the connection's thread.
        self._post(TasksPublished(endpoint_id, ids, error))


def capacity(report: Mapping[str, Any]) -> int:
    """Return how many tasks an endpoint can run at a time, according to its status report."""

    def number(name: str) -> int:
        value = report.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    blocks = number("max_blocks") * number("nodes_per_block") * number("max_workers_per_node")
    return max(blocks, number("total_workers"), 0)


def readable_code(packed: str) -> str:
    """Return a packed function in a form that official endpoints can read.

    A command in this project's own format is converted to theirs.
    """
    parts = buffers.split(packed)
    if parts is None or not parts[0].startswith(_CODE.identifier):
        return packed
    try:
        code = official_code(_CODE.deserialize(parts[0]))
    except DeserializationError:  # the endpoint then reports the error
        return packed
    return f"{len(code)}\n{code}"
