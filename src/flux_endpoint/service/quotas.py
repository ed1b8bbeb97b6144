"""Limits per user: on requests and on stored things, so that one user can't starve the others."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from flux_endpoint.errors import ServiceError
from flux_endpoint.service import topology
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import functions as function_store
from flux_endpoint.service.store import tasks
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
    def one(self, user_id: str) -> Iterator[None]:
        """Count a request, and count it as in progress until the context ends.

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
        self.take(user_id)
        self._in_progress[user_id] += 1
        try:
            yield
        finally:
            self._in_progress[user_id] -= 1
            if not self._in_progress[user_id]:
                del self._in_progress[user_id]

    def take(self, user_id: str) -> None:
        """Count a request.

        Raises:
            ServiceError: 429, the user makes too many requests per second.
        """
        now = self._clock()
        most = self._per_second * BURST_SECONDS
        left, since = self._left.get(user_id, (most, now))
        left = min(left + (now - since) * self._per_second, most)
        if left < 1:
            wait = max(math.ceil((1 - left) / self._per_second), 1)
            raise ServiceError(
                f"you make more than {self._per_second:g} requests a second: try again in {wait} s",
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

    def open(self, user_id: str, queue: str) -> None:
        """Count a queue that is opened now, perhaps not for the first time.

        Args:
            user_id: id of the user.
            queue: name of the queue.

        Raises:
            ServiceError: 429, the user has too many queues.
        """
        with self._lock:
            now = self._clock()
            theirs = self._opened.setdefault(user_id, {})
            for each, at in list(theirs.items()):
                if at > now - self._kept:
                    break
                del theirs[each]
            if queue not in theirs and len(theirs) >= self._most:
                wait = math.ceil(next(iter(theirs.values())) + self._kept - now)
                raise ServiceError(
                    f"you have opened {self._most} queues of results and events in the last "
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

    Args:
        settings: the service's settings, which have the limits.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self.client_queues = ClientQueues(
            settings.max_user_queues, topology.CLIENT_QUEUE_EXPIRES / 1000
        )

    def add_tasks(self, connection: sa.Connection, user_id: str, count: int, size: int) -> None:
        """Count tasks that are about to be stored.

        Args:
            connection: a transaction that writes.
            user_id: id of the user.
            count: number of tasks.
            size: bytes of their arguments.

        Raises:
            ServiceError: 429, the user has too many open tasks, or too many bytes of arguments.
        """
        now_open = tasks.change_open(connection, user_id, count, size)
        most, most_bytes = self._settings.max_user_tasks, self._settings.max_user_queued
        if now_open.tasks > most:
            what = f"{now_open.tasks - count} tasks that have not ended, of at most {most}"
        elif now_open.bytes > most_bytes:
            what = (
                f"{now_open.bytes - size} bytes of arguments waiting, of at most {most_bytes:.0f}"
            )
        else:
            return
        raise ServiceError(
            f"you have {what}: submit more when some have ended",
            http_status=429,
            code="TOO_MANY_TASKS",
            retry_after=TASKS_RETRY_AFTER,
        )

    def check_functions(self, connection: sa.Connection, user_id: str) -> None:
        """Check that a user may register another function.

        Raises:
            ServiceError: 403, the limit on their number or on their size is reached.
        """
        theirs = (functions.c.owner_id == user_id) & functions.c.deleted_at.is_(None)
        self._check(connection, theirs, self._settings.max_user_functions, "functions")
        size, most = function_store.code_bytes(connection, user_id), self._settings.max_user_code
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
        most = self._settings.max_user_endpoints
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
        self._check(connection, theirs, self._settings.max_user_groups, "task groups")

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
