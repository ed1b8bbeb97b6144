"""Has endpoints report often while somebody looks at the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from uuid import UUID

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.messages import ReportsWanted, pack
from flux_endpoint.service.commands import command_endpoint
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.users import User

#: Seconds that a request asks for, and seconds after which the next follows.
WANTED, AGAIN = 12.0, 8.0
#: Maximum number of endpoints that are asked for one user.
MOST_ASKED = 20
#: Seconds after which RabbitMQ drops a request.
_EXPIRES = 5.0


class ReportRequests:
    """Sends the requests, and remembers when. Safe to use from several threads.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: When each user, and each endpoint, is due again; the oldest first.
        self._due: dict[str, float] = {}

    def is_due(self, key: str) -> bool:
        """Return whether a user looks, or an endpoint is asked, for the first time in a while."""
        with self._lock:
            now = self._clock()
            while self._due and next(iter(self._due.values())) <= now:
                del self._due[next(iter(self._due))]
            if key in self._due:
                return False
            self._due[key] = now + AGAIN
            return True

    def looks(self, service: ServiceContext, user: User) -> None:
        """Ask the endpoints where a user may run tasks, unless that was just done."""
        if not self.is_due(user.id):
            return
        now = time.time()
        with service.database.read() as connection:
            listed = endpoints.list_endpoints(connection, user, public=True)
            listed.sort(key=lambda each: (each.owner_id != user.id, -(each.last_seen or 0)))
            found = [endpoints.get_endpoint(connection, each.id) for each in listed[:MOST_ASKED]]
            asked = [
                each.id
                for each in found
                if each is not None
                and each.reports_on_request
                and each.is_online(now)
                and endpoints.may_run(connection, each, user)
            ]
        for endpoint_id in filter(self.is_due, asked):
            message = pack(ReportsWanted(endpoint_id=UUID(endpoint_id), seconds=WANTED))
            try:
                command_endpoint(service, endpoint_id, message, expiration=_EXPIRES)
            except ServiceError:  # without the broker, no report would come either
                return
