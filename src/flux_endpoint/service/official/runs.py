"""The runs of an endpoint, and what becomes of the tasks that a vanished one held.

A task that an endpoint has acknowledged is nowhere else. So what counts is what the endpoint has
*taken*: what its queue was given and, when nobody consumes from it any more, does not hold.
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from flux_endpoint.amqp import AmqpConnection, Custodian
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.service.failures import publish_failures
from flux_endpoint.service.official.timers import Due, Timers
from flux_endpoint.service.store import deliveries, endpoints
from flux_endpoint.service.store.endpoints import MISSED_REPORTS, Endpoint, Run, heartbeat_period
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Seconds that a new run has to send what an earlier one left on disk.
SETTLE_SECONDS = 15.0

#: Seconds after which a core endpoint that stops has ended its user endpoints by force.
PARENT_STOPS = 20.0

#: Seconds that the broker has to drop the connection of a run that is gone.
_STUCK_CONSUMER = 300.0

# Tasks that were released less than a moment before a run's last report may have found it gone.
_MOMENT = 1.0
# A run that nobody has heard of is presumed once in so many seconds.
_PRESUMED_ONCE_IN = 600.0
_LOOK_AGAIN, _GONE_AGAIN = 0.5, 5.0
_TIMEOUT = 20.0
_LONGEST_REASON = 10_000


class Runs:
    """For the dispatcher's thread.

    Args:
        database: the runs, and what their endpoints were given.
        connection: the way to the broker.
        custodian: looks into queues.
        timers: when to look again.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        custodian: Custodian,
        timers: Timers,
    ) -> None:
        self._database = database
        self._connection = connection
        self._custodian = custodian
        self._timers = timers
        #: What a run that is leaving has taken.
        self._taken: dict[str, set[str]] = {}
        #: What an earlier run had taken, and why it is not expected any more.
        self._left: dict[str, tuple[set[str], str]] = {}

    def resume(self, endpoint: Endpoint, now: float) -> None:
        """Follow a run that was known before we, or the broker, went away; nobody could report."""
        patience = heartbeat_period(endpoint.last_report or {}) + _GONE_AGAIN
        self._timers.set(
            Due.GONE, endpoint.id, max((endpoint.run_ends or 0) - now, min(patience, 60))
        )

    def report(
        self, endpoint: Endpoint, report: Mapping[str, Any], now: float, *, silent_starts: bool
    ) -> None:
        """Take in a status report of an endpoint that runs tasks.

        Args:
            endpoint: whose.
            report: what it says.
            now: seconds since the epoch.
            silent_starts: it was told to start before, and that it did not was not reported.
        """
        if report.get("error"):
            self._not_started(endpoint, str(report["error"]), now, silent_starts)
            return
        start = report.get("start_unix")
        start = float(start) if isinstance(start, int | float) else 0.0
        if endpoint.run is not None and start < endpoint.run:
            return  # the last words of an earlier run
        if endpoint.run is not None and start > endpoint.run:
            self._replaced(endpoint)
        run = Run(start, now, now + MISSED_REPORTS * heartbeat_period(report))
        with self._database.write() as connection:
            endpoints.set_run(connection, endpoint.id, run)
        self._timers.set(Due.GONE, endpoint.id, run.ends - now)
        if report.get("active") is False:
            self._timers.within(Due.LOOK, endpoint.id, 0)
        else:  # it was away for a moment, at most: it holds what it held
            self._taken.pop(endpoint.id, None)
            self._timers.clear(Due.LOOK, endpoint.id)

    def parent_stops(self, endpoint: Endpoint, now: float) -> None:
        """Its core endpoint has said that it ends."""
        if endpoint.run is None or endpoint.run_seen is None or endpoint.run_ends is None:
            return
        ends = min(endpoint.run_ends, now + PARENT_STOPS)
        with self._database.write() as connection:
            run = Run(endpoint.run, endpoint.run_seen, ends)
            endpoints.set_run(connection, endpoint.id, run)
        self._timers.set(Due.GONE, endpoint.id, ends - now)

    def look(self, endpoint: Endpoint) -> bool:
        """See what a run that is leaving has taken; return whether it can be told."""
        if endpoint.run is None or endpoint.id in self._taken:
            return True
        taken = self._look(endpoint.id)
        if taken is None:
            self._timers.set(Due.LOOK, endpoint.id, _LOOK_AGAIN)
            return False
        self._taken[endpoint.id] = taken
        return True

    def expire(self, endpoint: Endpoint, now: float, *, at_once: bool = False) -> bool:
        """End what a run held that has not reported for too long; return whether it has ended.

        Args:
            endpoint: whose run.
            now: seconds since the epoch.
            at_once: it is about to be started again, whatever it reported.
        """
        if endpoint.run is None or endpoint.run_ends is None:
            return True
        if endpoint.run_ends > now and not at_once:
            self._timers.set(Due.GONE, endpoint.id, endpoint.run_ends - now)
            return False
        taken = self._taken.get(endpoint.id)
        if taken is None:
            taken = self._look(endpoint.id)
        if taken is None:
            if at_once:
                return False
            if now < endpoint.run_ends + _STUCK_CONSUMER:
                # The broker has not noticed that the connection is dead.
                self._timers.set(Due.GONE, endpoint.id, _GONE_AGAIN)
                return False
            with self._database.read() as connection:
                taken = set(deliveries.released(connection, endpoint.id))
        self._lost(endpoint, taken, _why_lost(endpoint))
        self._taken.pop(endpoint.id, None)
        self._timers.clear(Due.GONE, endpoint.id)
        self._timers.clear(Due.LOOK, endpoint.id)
        with self._database.write() as connection:
            endpoints.set_run(connection, endpoint.id, None)
        return True

    def settle(self, endpoint: Endpoint) -> None:
        """End what an earlier run had taken, and what came neither from it nor from its disk."""
        left = self._left.get(endpoint.id)
        if left is not None:
            self._lost(endpoint, *left)
            del self._left[endpoint.id]

    def _replaced(self, endpoint: Endpoint) -> None:
        taken = self._taken.pop(endpoint.id, None)
        if taken is None:
            # Nobody looked in between: what it was given long enough before its last report.
            before = (endpoint.run_seen or 0) - _MOMENT
            with self._database.read() as connection:
                released = deliveries.released(connection, endpoint.id)
            taken = {task_id for task_id, since in released.items() if since < before}
        earlier, _ = self._left.get(endpoint.id, (set(), ""))
        self._left[endpoint.id] = earlier | taken, _why_lost(endpoint)
        self._timers.within(Due.SETTLE, endpoint.id, SETTLE_SECONDS)

    def _look(self, endpoint_id: str) -> set[str] | None:
        """Return what has been taken from an endpoint's queue; `None` while somebody consumes."""
        with self._database.read() as connection:
            released = set(deliveries.released(connection, endpoint_id))
        if not released:
            return released
        queue = queues.tasks_queue(endpoint_id)
        there = self._custodian.look(queue).result(_TIMEOUT)
        if there is None:
            return None
        return released.difference(headers.get(queues.TASK_ID_HEADER) for headers in there)

    def _not_started(
        self, endpoint: Endpoint, reason: str, now: float, silent_starts: bool
    ) -> None:
        if endpoint.parent_id is None:
            return  # its tasks wait for another start: whoever starts it sees what is wrong
        seen, ends = endpoint.run_seen, endpoint.run_ends
        recently = (
            seen is not None and ends is not None
            and now < max(ends, seen + (ends - seen) * (MISSED_REPORTS + 1) / MISSED_REPORTS) + 10
        )  # fmt: skip
        if endpoint.run is not None or recently:
            # It runs, or left a mark of its run that keeps others from starting for a while.
            event(
                log,
                logging.WARNING,
                "user endpoint did not start, it seems to run",
                user_endpoint_id=endpoint.id,
                reason=reason[:_LONGEST_REASON],
            )
            return
        taken = self._look(endpoint.id)
        if taken is None:
            return  # somebody consumes: it runs, and will report
        if taken or (silent_starts and (seen is None or now - seen > _PRESUMED_ONCE_IN)):
            # A run began, and vanished before its first report; it left such a mark, too.
            with self._database.write() as connection:
                parent = endpoints.get_endpoint(connection, endpoint.parent_id)
                period = heartbeat_period((parent and parent.last_report) or {})
                endpoints.set_run(
                    connection, endpoint.id, Run(0, now, now + MISSED_REPORTS * period)
                )
            self._timers.set(Due.GONE, endpoint.id, MISSED_REPORTS * period)
            return
        with self._database.read() as connection:
            waiting = deliveries.open_tasks(connection, endpoint.id)
        text = f"endpoint {endpoint.public_id} could not start what runs the task: {reason}"
        self._fail(endpoint, waiting, ErrorCode.ENDPOINT_NOT_STARTED, text[:_LONGEST_REASON])
        self._custodian.purge(queues.tasks_queue(endpoint.id)).result(_TIMEOUT)

    def _lost(self, endpoint: Endpoint, taken: set[str], why: str) -> None:
        with self._database.read() as connection:
            lost = taken.intersection(deliveries.released(connection, endpoint.id))
        self._fail(endpoint, lost, ErrorCode.ENDPOINT_LOST, why)

    def _fail(
        self, endpoint: Endpoint, task_ids: Iterable[str], code: ErrorCode, text: str
    ) -> None:
        ids = sorted(task_ids)
        if not ids:
            return
        event(
            log,
            logging.WARNING,
            "tasks failed for their endpoint",
            endpoint_id=endpoint.public_id,
            tasks=len(ids),
            code=code,
        )
        publish_failures(self._connection, endpoint.id, ids, code, text)
        with self._database.write() as connection:
            deliveries.remove(connection, ids)


def _why_lost(endpoint: Endpoint) -> str:
    when = datetime.fromtimestamp(endpoint.run_seen or 0, UTC).isoformat(timespec="seconds")
    return (
        f"endpoint {endpoint.public_id} vanished while it held the task; its last sign of life came"
        f" at {when.removesuffix('+00:00')}Z. It keeps accepted tasks in memory only, so the task "
        "may have run, wholly or in part, or not at all: submit it again if that does no harm. "
        "Should its result still come, the service gives it to whoever asks for the task."
    )
