"""Limits per user: on requests and on stored things, so that one user can't starve the others."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from flux_endpoint.errors import ServiceError
from flux_endpoint.service import topology
from flux_endpoint.service.settings import ServiceSettings, UserLimits
from flux_endpoint.service.store import functions as function_store
from flux_endpoint.service.store import tasks, users
from flux_endpoint.service.store.tables import endpoints, functions, task_groups

#: Retry-After (s) of a submission that would exceed the limit on tasks.
TASKS_RETRY_AFTER = 10
#: Size of a burst of requests, in seconds' worth of requests.
BURST_SECONDS = 10
#: Maximum number of concurrent requests of one user. Each may hold a few results in memory until
#: the client has read them.
MAX_IN_PROGRESS = 64
#: Maximum number of endpoints that a user may delete in a day, as a multiple of the limit on
#: endpoints.
DELETIONS_PER_DAY = 5
_DAY = 86_400.0


class RequestRate:
    """Limits the request rate of each user (token bucket). For one thread.

    Args:
        per_second: maximum number of requests per second in the long run.
        clock: returns a monotonic time in seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        #: By user: requests left in the bucket, and when that was computed. Only users with valid
        #: tokens have an entry, so an attacker can't make this grow.
        self._left: dict[str, tuple[float, float]] = {}
        self._in_progress: Counter[str] = Counter()

    @contextmanager
    def one(self, user_id: str, per_second: float | None = None) -> Iterator[None]:
        """Count a request, and count it as in progress until the context ends.

        Args:
            user_id: id of the user.
            per_second: the user's own maximum; default: that of all users.

        Raises:
            ServiceError: 429, the user has too many requests in progress, or too many per second.
        """
        if self._in_progress[user_id] >= MAX_IN_PROGRESS:
            raise ServiceError(
                f"{MAX_IN_PROGRESS} of your requests are in progress: try again when some are "
                "answered",
                http_status=429,
                code="TOO_MANY_REQUESTS",
                retry_after=1,
            )
        self.take(user_id, per_second)
        self._in_progress[user_id] += 1
        try:
            yield
        finally:
            self._in_progress[user_id] -= 1
            if not self._in_progress[user_id]:
                del self._in_progress[user_id]

    def take(self, user_id: str, per_second: float | None = None) -> None:
        """Count a request.

        Args:
            user_id: id of the user.
            per_second: the user's own maximum; default: that of all users.

        Raises:
            ServiceError: 429, the user makes too many requests per second.
        """
        now = self._clock()
        per_second = self._per_second if per_second is None else per_second
        if math.isinf(per_second):  # 0 s times infinity would be no number, which nothing exceeds
            return
        most = per_second * BURST_SECONDS
        left, since = self._left.get(user_id, (most, now))
        left = min(left + (now - since) * per_second, most)
        if left < 1:
            wait = max(math.ceil((1 - left) / per_second), 1)
            raise ServiceError(
                f"you make more than {per_second:g} requests a second: try again in {wait} s",
                http_status=429,
                code="TOO_MANY_REQUESTS",
                retry_after=wait,
            )
        self._left[user_id] = left - 1, now


class ClientQueues:
    """Limits the number of client queues of each user. Safe to use from several threads.

    The broker deletes an unused queue after a while. A queue counts for that time after it was
    opened. A queue that is used for longer needs a connection, which has a limit of its own.

    Args:
        most: maximum number of queues of each user.
        kept: seconds after which the broker deletes an unused queue.
        clock: returns a monotonic time in seconds.
    """

    def __init__(self, most: int, kept: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._kept = kept
        self._clock = clock
        self._lock = threading.Lock()
        #: By user: when each queue was last opened, the oldest first.
        self._opened: dict[str, dict[str, float]] = {}

    def open(self, user_id: str, queue: str, most: int | None = None) -> None:
        """Count a queue that is opened now, perhaps not for the first time.

        Args:
            user_id: id of the user.
            queue: name of the queue.
            most: the user's own maximum; default: that of all users.

        Raises:
            ServiceError: 429, the user has too many queues.
        """
        most = self._most if most is None else most
        with self._lock:
            now = self._clock()
            theirs = self._opened.setdefault(user_id, {})
            for each, at in list(theirs.items()):
                if at > now - self._kept:
                    break
                del theirs[each]
            if queue not in theirs and len(theirs) >= most:
                wait = math.ceil(next(iter(theirs.values())) + self._kept - now)
                raise ServiceError(
                    f"you have opened {most} queues of results and events in the last "
                    f"{self._kept / 60:g} minutes, which is the limit: use one Executor for many "
                    "tasks",
                    http_status=429,
                    code="TOO_MANY_QUEUES",
                    retry_after=max(wait, 1),
                )
            theirs.pop(queue, None)
            theirs[queue] = now


class Quotas:
    """Checks the limits of users. Each method runs in the transaction that adds something.

    A user has the limits of the settings, except for those that are set for the user. They hold
    over all tokens and endpoints of the user, and over all services that share a database.

    Args:
        settings: the service's settings, which have the limits.
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, settings: ServiceSettings, clock: Callable[[], float] = time.time) -> None:
        self._settings = settings
        self._clock = clock
        self.client_queues = ClientQueues(
            settings.max_user_queues, topology.CLIENT_QUEUE_EXPIRES / 1000
        )

    def limits(self, own: Mapping[str, Any] | None) -> UserLimits:
        """Return the limits of a user.

        Args:
            own: those that are set for the user, by name.
        """
        return self._settings.with_own(own) if own else self._settings

    def add_tasks(self, connection: sa.Connection, user_id: str, count: int, size: int) -> None:
        """Count tasks that are about to be stored.

        Args:
            connection: a transaction that writes.
            user_id: id of the user.
            count: number of tasks.
            size: bytes of their arguments.

        Raises:
            ServiceError: 413, the user could never have so many; 429, the user has too many open
                tasks, or too many bytes of arguments, or submits too fast.
        """
        now_open = tasks.change_open(connection, user_id, count, size)
        limits = self.limits(now_open.limits)
        most, most_bytes = limits.max_user_tasks, limits.max_user_queued
        if count > most or size > most_bytes:
            raise _never_fits(count, size, limits)
        if now_open.tasks > most:
            what = f"{now_open.tasks - count} tasks that have not ended, of at most {most}"
        elif now_open.bytes > most_bytes:
            what = (
                f"{now_open.bytes - size} bytes of arguments waiting, of at most {most_bytes:.0f}"
            )
        else:
            if math.isfinite(limits.max_user_task_rate):
                self._count_rate(connection, user_id, count, now_open, limits.max_user_task_rate)
            return
        raise ServiceError(
            f"you have {what}: submit more when some have ended",
            http_status=429,
            code="TOO_MANY_TASKS",
            retry_after=TASKS_RETRY_AFTER,
        )

    def _count_rate(
        self, connection: sa.Connection, user_id: str, count: int, known: tasks.Open, rate: float
    ) -> None:
        """Count submitted tasks (token bucket, in the user's row, which is locked).

        A submission that is larger than the bucket waits until that is full, and leaves a debt.
        """
        now = self._clock()
        burst = max(rate * BURST_SECONDS, 1.0)
        left = burst
        if known.rate_left is not None and known.rate_counted_at is not None:
            passed = max(now - known.rate_counted_at, 0.0)  # other services' clocks may differ
            left = min(known.rate_left + passed * rate, burst)
        needed = min(float(count), burst)
        if left < needed:
            wait = max(math.ceil((needed - left) / rate), 1)
            raise ServiceError(
                f"you submit more than {rate:g} tasks a second: try again in {wait} s",
                http_status=429,
                code="TOO_MANY_SUBMISSIONS",
                retry_after=wait,
            )
        users.set_rate_left(connection, user_id, left - count, now)

    def check_functions(self, connection: sa.Connection, user_id: str) -> None:
        """Check that a user may register another function.

        Raises:
            ServiceError: 403, the limit on their number or on their size is reached.
        """
        limits = self.limits(users.limits_of(connection, user_id))
        theirs = (functions.c.owner_id == user_id) & functions.c.deleted_at.is_(None)
        self._check(connection, theirs, limits.max_user_functions, "functions")
        size, most = function_store.code_bytes(connection, user_id), limits.max_user_code
        if size >= most:
            raise ServiceError(
                f"your functions take {size} bytes, of at most {most:.0f}: delete some, and pass "
                "data as arguments or through files; a deleted one counts as long as tasks of it "
                f"are kept, {self._settings.keep_tasks / 86_400:.3g} days at least",
                http_status=403,
                code="TOO_MANY_FUNCTIONS",
            )

    def check_endpoints(self, connection: sa.Connection, user_id: str) -> None:
        """Check that a user may register another endpoint.

        Raises:
            ServiceError: 403, the limit on endpoints, or on deletions in a day, is reached.
        """
        theirs = (
            (endpoints.c.owner_id == user_id)
            & endpoints.c.deleted_at.is_(None)
            & endpoints.c.parent_id.is_(None)
        )
        most = self.limits(users.limits_of(connection, user_id)).max_user_endpoints
        self._check(connection, theirs, most, "endpoints")
        lately = (endpoints.c.owner_id == user_id) & (endpoints.c.deleted_at > time.time() - _DAY)
        count = connection.scalar(sa.select(sa.func.count()).where(lately)) or 0
        if count >= DELETIONS_PER_DAY * most:  # the rows of deleted endpoints are kept
            raise ServiceError(
                f"you have deleted {count} endpoints in a day, which is the limit: register an "
                "endpoint again by its id (PUT) instead",
                http_status=403,
                code="TOO_MANY_ENDPOINTS",
            )

    def check_groups(self, connection: sa.Connection, user_id: str) -> None:
        """Check that a user may create another task group.

        Raises:
            ServiceError: 403, the limit on task groups is reached.
        """
        theirs = task_groups.c.owner_id == user_id
        most = self.limits(users.limits_of(connection, user_id)).max_user_groups
        self._check(connection, theirs, most, "task groups")

    @staticmethod
    def _check(
        connection: sa.Connection, theirs: sa.ColumnElement[bool], most: int, noun: str
    ) -> None:
        count = connection.scalar(sa.select(sa.func.count()).where(theirs)) or 0
        if count >= most:
            advice = {
                "functions": "delete some, or use one function for many tasks",
                "endpoints": "delete some",
                "task groups": "use one for many submissions; they go with their tasks",
            }[noun]
            raise ServiceError(
                f"you have {count} {noun}, which is the limit: {advice}",
                http_status=403,
                code=f"TOO_MANY_{noun.replace(' ', '_').upper()}",
            )


def _never_fits(count: int, size: int, limits: UserLimits) -> ServiceError:
    """Return the error for a submission that would exceed a limit even if it were the only one."""
    if count > limits.max_user_tasks:
        what = f"has {count} tasks, and you may have {limits.max_user_tasks} that have not ended"
    else:
        what = (
            f"has {size} bytes of arguments, and those of your tasks that have not ended may have "
            f"{limits.max_user_queued:.0f}"
        )
    return ServiceError(
        f"the submission {what}: submit less at once",
        http_status=413,
        code="SUBMISSION_TOO_LARGE",
    )
