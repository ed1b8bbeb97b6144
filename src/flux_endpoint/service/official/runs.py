"""The runs of an official endpoint, and the tasks that are lost with a run.

After the endpoint has acknowledged a task, the broker has no copy. So the service works out which
tasks a run has *taken*: those that were published to the endpoint's queue and are not in it any
more once the queue has no consumer.

User endpoints of Flux Endpoint's own make are followed, too. They keep taken tasks in a journal: so
these wait for the next run, and are lost only if that says that it has none.
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

#: Seconds that a new run has to send the results that an earlier run left on disk.
SETTLE_SECONDS = 15.0

#: Seconds after which a stopping multi-user endpoint has killed its user endpoints.
PARENT_STOPS = 20.0

#: Seconds that the broker has to detect that a lost run's connection is dead.
_STUCK_CONSUMER = 300.0

# Tasks that were released less than this time (s) before a run's last report may have come too late
# for that run.
_MOMENT = 1.0
# Minimum time (s) between two presumed runs of an endpoint (see `_presume`).
_PRESUMED_ONCE_IN = 600.0
_LOOK_AGAIN, _GONE_AGAIN = 0.5, 5.0
_TIMEOUT = 20.0
_LONGEST_REASON = 10_000


class Runs:
    """Follows the runs of official endpoints. For the dispatcher's thread.

    Args:
        database: the service's database.
        connection: connection to the broker.
        queue_admin: inspects queues.
        timers: the timers for further checks.
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
        """Follow a known run after a restart of the service or a reconnection to the broker.

        The run could not report in between, so it gets time for its next report.

        Args:
            endpoint: the endpoint.
            now: seconds since the epoch.
        """
        wait = heartbeat_period(endpoint.last_report or {}) + _GONE_AGAIN
        self._timers.set(Due.GONE, endpoint.id, max((endpoint.run_ends or 0) - now, wait))
        self._settle_later(endpoint.id, now)

    def watch(self, endpoint: Endpoint, now: float) -> None:
        """Follow a run in case its reports went to another service that has stopped.

        Args:
            endpoint: the endpoint.
            now: seconds since the epoch.
        """
        delay = max((endpoint.run_ends or 0) - now, heartbeat_period(endpoint.last_report or {}))
        self._timers.within(Due.GONE, endpoint.id, delay)
        self._settle_later(endpoint.id, now)

    def report(
        self, endpoint: Endpoint, report: Mapping[str, Any], now: float, *, silent_starts: bool
    ) -> None:
        """Handle a status report of an endpoint that runs tasks.

        Args:
            endpoint: the endpoint.
            report: the report.
            now: seconds since the epoch.
            silent_starts: whether the endpoint has not answered an earlier start command.
        """
        if report.get("error"):
            self._not_started(endpoint, str(report["error"]), now, silent_starts)
            return
        start = report.get("start_unix")
        start = float(start) if isinstance(start, int | float) else 0.0
        if endpoint.run is not None and start < endpoint.run:
            return  # a late report of an earlier run
        another = endpoint.run is None or start > endpoint.run
        leaves = report.get("active") is False
        run = Run(start, now, now + MISSED_REPORTS * heartbeat_period(report))
        with self._database.write() as connection:
            if another:
                self._replaced(connection, endpoint, now)
            elif leaves:  # it may have taken more tasks since the queue was last inspected
                runs.set_run_left(connection, endpoint.id, None)
            runs.set_run(connection, endpoint.id, run)
        self._timers.set(Due.GONE, endpoint.id, run.ends - now)
        self._settle_later(endpoint.id, now)
        if leaves:
            self._timers.within(Due.LOOK, endpoint.id, 0)
            return
        self._timers.clear(Due.LOOK, endpoint.id)
        if endpoint.run_left is not None and not another and self._consumes(endpoint.id):
            # It was only disconnected for a moment: it still has its tasks.
            with self._database.write() as connection:
                deliveries.keep(connection, endpoint.id)
                runs.set_run_left(connection, endpoint.id, None)

    def parent_stops(self, endpoint: Endpoint, now: float) -> None:
        """Expect the end of a user endpoint's run: its multi-user endpoint is stopping.

        Args:
            endpoint: the user endpoint.
            now: seconds since the epoch.
        """
        if endpoint.run is None or endpoint.run_seen is None or endpoint.run_ends is None:
            return
        ends = min(endpoint.run_ends, now + PARENT_STOPS)
        with self._database.write() as connection:
            run = Run(endpoint.run, endpoint.run_seen, ends)
            runs.set_run(connection, endpoint.id, run)
        self._timers.set(Due.GONE, endpoint.id, ends - now)

    def inspect(self, endpoint: Endpoint, now: float) -> bool:
        """Determine which tasks a stopping run has taken.

        Args:
            endpoint: the endpoint.
            now: seconds since the epoch.

        Returns:
            Whether they could be determined; if not, a timer is set for another try.
        """
        if endpoint.run is None or endpoint.run_left is not None:
            return True
        if not self._inspect(endpoint, now):
            self._timers.set(Due.LOOK, endpoint.id, _LOOK_AGAIN)
            return False
        return True

    def unattended(self, endpoint: Endpoint, ready: int, now: float) -> bool:
        """Determine which tasks were taken from a queue that has no consumer.

        This must happen before the next run starts. That run would take the other tasks, and the
        tasks of an earlier run could not be identified any more. An earlier run may exist that has
        not missed a report yet, or that never sent one.

        Args:
            endpoint: the endpoint of the queue.
            ready: number of messages that are in the queue and not delivered to a consumer.
            now: seconds since the epoch.

        Returns:
            Whether the tasks could be determined.
        """
        with self._database.read() as connection:
            all_there = ready >= deliveries.count_claimed(connection, endpoint.id)
        if not all_there:
            return self._inspect(endpoint, now)
        if endpoint.run is not None and endpoint.run_left is None:
            with self._database.write() as connection:
                runs.set_run_left(connection, endpoint.id, now)
        return True

    def expire(self, endpoint: Endpoint, now: float, *, at_once: bool = False) -> bool:
        """Fail the tasks of a run that has not reported for too long.

        Args:
            endpoint: the endpoint.
            now: seconds since the epoch.
            at_once: whether the endpoint is about to start again, so that any earlier run has
                ended.

        Returns:
            Whether the run has ended.
        """
        if not at_once:
            if endpoint.run is None or endpoint.run_ends is None:
                return True
            if endpoint.run_ends > now:
                self._timers.set(Due.GONE, endpoint.id, endpoint.run_ends - now)
                return False
        if not self._inspect(endpoint, now):
            if at_once:
                return False
            if endpoint.run_left is None:  # otherwise the consumer may be the next run
                if now < (endpoint.run_ends or 0) + _STUCK_CONSUMER:
                    # The broker has not detected yet that the connection is dead.
                    self._timers.set(Due.GONE, endpoint.id, _GONE_AGAIN)
                    return False
                with self._database.write() as connection:
                    everything = deliveries.released(connection, endpoint.id)
                    deliveries.take(connection, everything, now)
        if not endpoint.is_own_make:
            with self._database.read() as connection:
                lost = deliveries.taken(connection, endpoint.id)
            self._fail(endpoint, lost, ErrorCode.ENDPOINT_LOST, _why_lost(endpoint))
        self._timers.clear(Due.GONE, endpoint.id)
        self._timers.clear(Due.LOOK, endpoint.id)
        with self._database.write() as connection:
            runs.set_run(connection, endpoint.id, None)
        return True

    def settle(self, endpoint: Endpoint, now: float) -> None:
        """Fail the tasks of earlier runs without a result.

        A task fails once the new run has had `SETTLE_SECONDS` to send results from disk.

        Args:
            endpoint: the endpoint.
            now: seconds since the epoch.
        """
        with self._database.read() as connection:
            taken = deliveries.taken(connection, endpoint.id)
        lost = [task_id for task_id, at in taken.items() if at is not None and at <= now]
        if endpoint.is_own_make:
            self._settle_own(endpoint, lost)
            return
        self._fail(endpoint, lost, ErrorCode.ENDPOINT_LOST, _why_left(endpoint))
        self._settle_later(endpoint.id, now)

    def _settle_own(self, endpoint: Endpoint, left: list[str]) -> None:
        """Fail the tasks of earlier runs that are not in the journal of an endpoint of ours."""
        report = endpoint.last_report or {}
        if left and not _holds_tasks(report):
            self._fail(endpoint, left, ErrorCode.JOURNAL_LOST, _why_forgotten(endpoint))
        elif left:
            self._timers.within(Due.SETTLE, endpoint.id, heartbeat_period(report))

    def _replaced(self, connection: sa.Connection, endpoint: Endpoint, now: float) -> None:
        if endpoint.run and endpoint.run_left is None:
            # The queue was not inspected between the runs. The earlier run has taken all tasks that
            # were released long enough before its last report.
            before = (endpoint.run_seen or 0) - _MOMENT
            released = deliveries.released(connection, endpoint.id)
            mine = [task_id for task_id, since in released.items() if since < before]
            deliveries.take(connection, mine, now)
        deliveries.leave(connection, endpoint.id, now + SETTLE_SECONDS)
        runs.set_run_left(connection, endpoint.id, None)

    def _settle_later(self, endpoint_id: str, now: float) -> None:
        # Another service may have recorded the tasks of an earlier run.
        with self._database.read() as connection:
            taken = deliveries.taken(connection, endpoint_id)
        left = [at for at in taken.values() if at is not None]
        if left:
            self._timers.within(Due.SETTLE, endpoint_id, max(min(left) - now, 0))

    def _inspect(self, endpoint: Endpoint, now: float) -> bool:
        """Record which tasks were taken from an endpoint's queue; return whether that is known."""
        taken = self._taken(endpoint.id)
        if taken is None:
            return False
        with self._database.write() as connection:
            deliveries.take(connection, taken, now)
            if endpoint.run is not None:
                runs.set_run_left(connection, endpoint.id, now)
        if taken and endpoint.run is None and not endpoint.is_own_make:
            self._presume(endpoint, now)
        return True

    def _taken(self, endpoint_id: str) -> set[str] | None:
        """Return the tasks that the latest run, reported or not, has taken.

        `None`: they can't be determined, because the queue has a consumer, or because a task is
        being published and it is not known yet whether the queue has had it.
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
        """Assume that a run has started and was lost before its first report."""
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
            return  # its owner starts it and sees the error; the tasks wait for the next start
        seen, ends = endpoint.run_seen, endpoint.run_ends
        recently = (
            seen is not None and ends is not None
            and now < max(ends, seen + (ends - seen) * (MISSED_REPORTS + 1) / MISSED_REPORTS) + 10
        )  # fmt: skip
        # One of ours leaves no PID file, and no second one is started while it runs.
        if not endpoint.is_own_make and (endpoint.run is not None or recently):
            # It is running, or has left a PID file that blocks other starts for a while.
            event(
                log,
                logging.WARNING,
                "user endpoint did not start, probably because it is running",
                user_endpoint_id=endpoint.id,
                reason=reason[:_LONGEST_REASON],
            )
            return
        taken = self._taken(endpoint.id)
        if taken is None:
            return  # it is running and will report, or the next start clarifies it
        if taken and not endpoint.is_own_make:
            self._inspect(endpoint, now)  # a run existed, and may block other starts as above
            return
        if silent_starts and (seen is None or now - seen > _PRESUMED_ONCE_IN):
            self._presume(endpoint, now)
            return
        with self._database.read() as connection:
            waiting = deliveries.open_tasks(connection, endpoint.id)
        what = f"endpoint {endpoint.public_id} could not start a user endpoint for the task"
        text = f"{what}: {reason}"
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
            "tasks failed because of their endpoint",
            endpoint_id=endpoint.public_id,
            tasks=len(ids),
            code=code,
        )
        publish_failures(self._connection, endpoint.id, ids, code, text)
        with self._database.write() as connection:
            deliveries.remove(connection, ids)


def _holds_tasks(report: Mapping[str, Any]) -> bool:
    """Return whether an endpoint of ours has tasks or results, according to its report."""
    counts = report.get("agent")
    if not isinstance(counts, Mapping):
        return True  # it does not say
    return any(counts.get(name) != 0 for name in ("running", "unconfirmed"))


def _why_forgotten(endpoint: Endpoint) -> str:
    return (
        f"the user endpoint of {endpoint.public_id} took the task, but its record of it was lost "
        "or damaged since. The task may have run; what it returned is gone. Submit it again if it "
        "may run twice"
    )


def _why_lost(endpoint: Endpoint) -> str:
    if not endpoint.run or endpoint.run_seen is None:  # a presumed run has no report
        return _why(endpoint, "")
    when = datetime.fromtimestamp(endpoint.run_seen, UTC).isoformat(timespec="seconds")
    return _why(endpoint, f"; its last status report came at {when.removesuffix('+00:00')}Z")


def _why_left(endpoint: Endpoint) -> str:
    return _why(endpoint, ", and has been started again since")


def _why(endpoint: Endpoint, more: str) -> str:
    return (
        f"endpoint {endpoint.public_id} vanished while it held the task{more}. It keeps accepted "
        "tasks in memory only, so the task may have run, wholly or in part, or not at all: submit "
        "it again if that does no harm. If its result arrives after all, the service returns "
        "it on request."
    )
