"""The runs of an endpoint, and what becomes of the tasks that a vanished one held.

A task that an endpoint has acknowledged is nowhere else. So what counts is what the endpoint has
*taken*: what its queue was given and, when nobody consumes from it any more, does not hold.
"""

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from flux_endpoint.amqp import AmqpConnection, QueueAdmin
from flux_endpoint.logs import event
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.service.failures import publish_failures
from flux_endpoint.service.official.store import deliveries, runs
from flux_endpoint.service.official.store.runs import Run
from flux_endpoint.service.official.timers import Due, Timers
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.endpoints import MISSED_REPORTS, Endpoint, heartbeat_period
from flux_endpoint.service.store.engine import Database

log = logging.getLogger(__name__)

#: Seconds that a new run has to send what an earlier one left on disk.
SETTLE_SECONDS = 15.0

#: Seconds after which a multi-user endpoint that stops has ended its user endpoints by force.
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
        queue_admin: looks into queues.
        timers: when to look again.
    """

    def __init__(
        self,
        database: Database,
        connection: AmqpConnection,
        queue_admin: QueueAdmin,
        timers: Timers,
    ) -> None:
        self._database = database
        self._connection = connection
        self._queue_admin = queue_admin
        self._timers = timers

    def resume(self, endpoint: Endpoint, now: float) -> None:
        """Follow a run that was known before we, or the broker, went away; nobody could report."""
        patience = heartbeat_period(endpoint.last_report or {}) + _GONE_AGAIN
        self._timers.set(Due.GONE, endpoint.id, max((endpoint.run_ends or 0) - now, patience))
        self._settle_later(endpoint.id, now)

    def watch(self, endpoint: Endpoint, now: float) -> None:
        """Have a run followed that another service may have been told of, which has ended."""
        delay = max((endpoint.run_ends or 0) - now, heartbeat_period(endpoint.last_report or {}))
        self._timers.within(Due.GONE, endpoint.id, delay)
        self._settle_later(endpoint.id, now)

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
        another = endpoint.run is None or start > endpoint.run
        leaves = report.get("active") is False
        run = Run(start, now, now + MISSED_REPORTS * heartbeat_period(report))
        with self._database.write() as connection:
            if another:
                self._replaced(connection, endpoint, now)
            elif leaves:  # since somebody looked it may have taken more
                runs.set_run_left(connection, endpoint.id, None)
            runs.set_run(connection, endpoint.id, run)
        self._timers.set(Due.GONE, endpoint.id, run.ends - now)
        self._settle_later(endpoint.id, now)
        if leaves:
            self._timers.within(Due.LOOK, endpoint.id, 0)
            return
        self._timers.clear(Due.LOOK, endpoint.id)
        if endpoint.run_left is not None and not another and self._consumes(endpoint.id):
            # It was away for a moment, at most: it holds what it held.
            with self._database.write() as connection:
                deliveries.keep(connection, endpoint.id)
                runs.set_run_left(connection, endpoint.id, None)

    def parent_stops(self, endpoint: Endpoint, now: float) -> None:
        """Its multi-user endpoint has said that it ends."""
        if endpoint.run is None or endpoint.run_seen is None or endpoint.run_ends is None:
            return
        ends = min(endpoint.run_ends, now + PARENT_STOPS)
        with self._database.write() as connection:
            run = Run(endpoint.run, endpoint.run_seen, ends)
            runs.set_run(connection, endpoint.id, run)
        self._timers.set(Due.GONE, endpoint.id, ends - now)

    def look(self, endpoint: Endpoint, now: float) -> bool:
        """See what a run that is leaving has taken; return whether it can be told."""
        if endpoint.run is None or endpoint.run_left is not None:
            return True
        if not self._look(endpoint, now):
            self._timers.set(Due.LOOK, endpoint.id, _LOOK_AGAIN)
            return False
        return True

    def unattended(self, endpoint: Endpoint, ready: int, now: float) -> bool:
        """See what has been taken, now that nobody consumes; return whether that can be told.

        The next run would take the rest, and then nobody could tell what an earlier one had: one
        that has not missed a report yet, or that nobody has heard of.

        Args:
            endpoint: whose queue.
            ready: messages that are in it, and with nobody.
            now: seconds since the epoch.
        """
        with self._database.read() as connection:
            all_there = ready >= deliveries.count_claimed(connection, endpoint.id)
        if not all_there:
            return self._look(endpoint, now)
        if endpoint.run is not None and endpoint.run_left is None:
            with self._database.write() as connection:
                runs.set_run_left(connection, endpoint.id, now)
        return True

    def expire(self, endpoint: Endpoint, now: float, *, at_once: bool = False) -> bool:
        """End what a run held that has not reported for too long; return whether it has ended.

        Args:
            endpoint: whose run.
            now: seconds since the epoch.
            at_once: it is about to be started again, whatever it reported, and if it did.
        """
        if not at_once:
            if endpoint.run is None or endpoint.run_ends is None:
                return True
            if endpoint.run_ends > now:
                self._timers.set(Due.GONE, endpoint.id, endpoint.run_ends - now)
                return False
        if not self._look(endpoint, now):
            if at_once:
                return False
            if endpoint.run_left is None:  # else the next run may have subscribed already
                if now < (endpoint.run_ends or 0) + _STUCK_CONSUMER:
                    # The broker has not noticed that the connection is dead.
                    self._timers.set(Due.GONE, endpoint.id, _GONE_AGAIN)
                    return False
                with self._database.write() as connection:
                    everything = deliveries.released(connection, endpoint.id)
                    deliveries.take(connection, everything, now)
        with self._database.read() as connection:
            lost = deliveries.taken(connection, endpoint.id)
        self._fail(endpoint, lost, ErrorCode.ENDPOINT_LOST, _why_lost(endpoint))
        self._timers.clear(Due.GONE, endpoint.id)
        self._timers.clear(Due.LOOK, endpoint.id)
        with self._database.write() as connection:
            runs.set_run(connection, endpoint.id, None)
        return True

    def settle(self, endpoint: Endpoint, now: float) -> None:
        """End what earlier runs had taken, and what came neither from them nor from their disk."""
        with self._database.read() as connection:
            taken = deliveries.taken(connection, endpoint.id)
        lost = [task_id for task_id, at in taken.items() if at is not None and at <= now]
        self._fail(endpoint, lost, ErrorCode.ENDPOINT_LOST, _why_left(endpoint))
        self._settle_later(endpoint.id, now)

    def _replaced(self, connection: sa.Connection, endpoint: Endpoint, now: float) -> None:
        if endpoint.run and endpoint.run_left is None:
            # Nobody looked in between: what it was given long enough before its last report.
            before = (endpoint.run_seen or 0) - _MOMENT
            released = deliveries.released(connection, endpoint.id)
            mine = [task_id for task_id, since in released.items() if since < before]
            deliveries.take(connection, mine, now)
        deliveries.leave(connection, endpoint.id, now + SETTLE_SECONDS)
        runs.set_run_left(connection, endpoint.id, None)

    def _settle_later(self, endpoint_id: str, now: float) -> None:
        # Another service may have seen that they were left.
        with self._database.read() as connection:
            taken = deliveries.taken(connection, endpoint_id)
        left = [at for at in taken.values() if at is not None]
        if left:
            self._timers.within(Due.SETTLE, endpoint_id, max(min(left) - now, 0))

    def _look(self, endpoint: Endpoint, now: float) -> bool:
        """Note what has been taken from an endpoint's queue; return whether that can be told."""
        taken = self._taken(endpoint.id)
        if taken is None:
            return False
        with self._database.write() as connection:
            deliveries.take(connection, taken, now)
            if endpoint.run is not None:
                runs.set_run_left(connection, endpoint.id, now)
        if taken and endpoint.run is None:
            self._presume(endpoint, now)
        return True

    def _taken(self, endpoint_id: str) -> set[str] | None:
        """Return what runs have taken that none has followed.

        `None`: it can't be told, because somebody consumes, or because of a task of which it is not
        known yet whether the queue has had it.
        """
        with self._database.read() as connection:
            on_their_way = deliveries.claimed(connection, endpoint_id)
            released = set(deliveries.released(connection, endpoint_id))
            taken = deliveries.taken(connection, endpoint_id)
        released.difference_update(task_id for task_id, at in taken.items() if at is not None)
        if not released and not on_their_way:
            return released
        queue = queues.tasks_queue(endpoint_id)
        there = self._queue_admin.look(queue).result(_TIMEOUT)
        if there is None:
            return None
        found = {headers.get(queues.TASK_ID_HEADER) for headers in there}
        return None if on_their_way - found else released - found

    def _consumes(self, endpoint_id: str) -> bool:
        count = self._queue_admin.count(queues.tasks_queue(endpoint_id)).result(_TIMEOUT)
        return count is not None and count.consumers > 0

    def _presume(self, endpoint: Endpoint, now: float) -> None:
        """Take it that a run has begun, and vanished before its first report."""
        with self._database.write() as connection:
            parent = endpoint.parent_id and endpoints.get_endpoint(connection, endpoint.parent_id)
            report = (parent.last_report if parent else endpoint.last_report) or {}
            ends = now + MISSED_REPORTS * heartbeat_period(report)
            runs.set_run(connection, endpoint.id, Run(0, now, ends))
            runs.set_run_left(connection, endpoint.id, now)
        self._timers.set(Due.GONE, endpoint.id, ends - now)

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
        taken = self._taken(endpoint.id)
        if taken is None:
            return  # either somebody consumes: it runs, and will report; or the next start tells
        if taken:
            self._look(endpoint, now)  # it left such a mark, too
            return
        if silent_starts and (seen is None or now - seen > _PRESUMED_ONCE_IN):
            self._presume(endpoint, now)
            return
        with self._database.read() as connection:
            waiting = deliveries.open_tasks(connection, endpoint.id)
        text = f"endpoint {endpoint.public_id} could not start what runs the task: {reason}"
        self._fail(endpoint, waiting, ErrorCode.ENDPOINT_NOT_STARTED, text[:_LONGEST_REASON])
        self._queue_admin.purge(queues.tasks_queue(endpoint.id)).result(_TIMEOUT)

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
    if not endpoint.run or endpoint.run_seen is None:  # it was only presumed
        return _why(endpoint, "")
    when = datetime.fromtimestamp(endpoint.run_seen, UTC).isoformat(timespec="seconds")
    return _why(endpoint, f"; its last sign of life came at {when.removesuffix('+00:00')}Z")


def _why_left(endpoint: Endpoint) -> str:
    return _why(endpoint, "; it was started again since")


def _why(endpoint: Endpoint, more: str) -> str:
    return (
        f"endpoint {endpoint.public_id} vanished while it held the task{more}. It keeps accepted "
        "tasks in memory only, so the task may have run, wholly or in part, or not at all: submit "
        "it again if that does no harm. Should its result still come, the service gives it to "
        "whoever asks for the task."
    )
