"""Whether the service can do its work: it can use its database and its broker."""

from __future__ import annotations

import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint.protocol.operations import HEALTHY, HealthAnswer
from flux_endpoint.service.observer import BrokerObserver
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.health import database_health, database_trouble

#: Seconds for which an answer is repeated: anybody may ask, as often as they like.
_REPEATED = 1.0


class HealthCheck:
    """Checks database and broker, at most once a second. Safe to use from several threads.

    Args:
        database: the service's database.
        observer: knows the broker.
    """

    def __init__(self, database: Database, observer: BrokerObserver) -> None:
        self._database = database
        self._observer = observer
        self._lock = threading.Lock()
        self._answer: HealthAnswer | None = None
        self._until = 0.0

    def answer(self) -> HealthAnswer:
        """Return the present state, in words for clients without a token: no addresses."""
        last = self._answer
        # Only the first request waits for a check: anonymous clients must not occupy all threads.
        if not self._lock.acquire(blocking=last is None):
            assert last is not None
            return last
        try:
            if self._answer is None or time.monotonic() >= self._until:
                self._answer = HealthAnswer(database=self._of_database(), broker=self._of_broker())
                self._until = time.monotonic() + _REPEATED
            return self._answer
        finally:
            self._lock.release()

    def _of_database(self) -> str:
        try:
            found = database_health(self._database)
        except (SQLAlchemyError, OSError) as error:
            return database_trouble(error) or "it can't be read"
        return "its disk is full" if found.free_bytes == 0 else HEALTHY

    def _of_broker(self) -> str:
        broker = self._observer.broker()
        if not broker.connected:
            return "it is not connected"
        return f"it accepts no messages: {broker.alarm}" if broker.alarm else HEALTHY
