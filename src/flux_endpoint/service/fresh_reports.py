"""Requests that want an endpoint's present numbers, not those of its last status report."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from uuid import UUID

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.messages import ReportsWanted, pack
from flux_endpoint.service.changes import ChangeListener
from flux_endpoint.service.commands import command_endpoint
from flux_endpoint.service.context import ServiceContext
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.endpoints import Endpoint
from flux_endpoint.service.store.users import User

#: A report that is younger than this (s) is fresh.
FRESH = 3.0
#: Seconds that a request waits for a report.
PATIENCE = 2.0
#: Maximum number of requests that wait, since each holds a thread; others get the last report.
MOST_WAITING = 8


class FreshReports(ChangeListener):
    """Asks endpoints for a report, and waits for it. Safe to use from several threads."""

    def __init__(self) -> None:
        self._stored = threading.Condition()
        #: How many requests wait for each endpoint, and the reports stored since the first began.
        self._waiting: dict[str, int] = {}
        self._reports: dict[str, int] = {}

    def reports_stored(self, endpoint_ids: Collection[str]) -> None:
        """See `ChangeListener`."""
        with self._stored:
            for each in self._waiting.keys() & set(endpoint_ids):
                self._reports[each] += 1
            self._stored.notify_all()

    def refresh(self, service: ServiceContext, endpoint: Endpoint, user: User) -> bool:
        """Wait until an endpoint has sent a report, if its last one is old and it can be asked.

        Args:
            service: the service.
            endpoint: the endpoint.
            user: who asks; only those who may run tasks there have a report sent.

        Returns:
            Whether there may be a newer report now.
        """
        now = time.time()
        if not endpoint.reports_on_request or not endpoint.is_online(now):
            return False
        if now - (endpoint.last_seen or 0) < FRESH:
            return False
        with service.database.read() as connection:
            if not endpoints.may_run(connection, endpoint, user):
                return False
        with self._stored:
            if sum(self._waiting.values()) >= MOST_WAITING:
                return False
            self._waiting[endpoint.id] = others = self._waiting.get(endpoint.id, 0) + 1
            before = self._reports.setdefault(endpoint.id, 0)
        try:
            if others == 1 and not _ask(service, endpoint.id):
                return False
            with self._stored:
                return self._stored.wait_for(lambda: self._reports[endpoint.id] > before, PATIENCE)
        finally:
            self._forget(endpoint.id)

    def _forget(self, endpoint_id: str) -> None:
        with self._stored:
            self._waiting[endpoint_id] -= 1
            if not self._waiting[endpoint_id]:
                del self._waiting[endpoint_id], self._reports[endpoint_id]


def _ask(service: ServiceContext, endpoint_id: str) -> bool:
    message = pack(ReportsWanted(endpoint_id=UUID(endpoint_id), seconds=0.0))
    try:
        command_endpoint(service, endpoint_id, message, expiration=PATIENCE)
    except ServiceError:  # without the broker, no report would come either
        return False
    return True
