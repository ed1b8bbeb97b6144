"""Records when tokens were used, rarely enough that it costs nothing."""

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from flux_endpoint.logs import event
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.users import User

log = logging.getLogger(__name__)

#: Seconds between two records of the use of a token.
PERIOD = 600.0


class TokenUse:
    """Records the last use of tokens, to `PERIOD`. Safe to use from several threads.

    Args:
        database: the service's database.
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        #: By token id: when a record was last attempted, within `PERIOD`. So a database that can't
        #: be written delays a request with a token once in this time.
        self._attempts: dict[str, float] = {}

    def note(self, user: User) -> None:
        """Record a request with a user's token, unless there is a recent record."""
        now = self._clock()
        if user.token_used_at is not None and 0 <= now - user.token_used_at < PERIOD:
            return
        with self._lock:
            for token_id, at in list(self._attempts.items()):
                if 0 <= now - at < PERIOD:
                    break  # they are in the order of time
                del self._attempts[token_id]
            if user.token_id in self._attempts:
                return
            self._attempts[user.token_id] = now
        try:
            with self._database.write() as connection:
                users.note_use(connection, user.token_id, now)
        except SQLAlchemyError as error:  # the request does not depend on it
            event(log, logging.WARNING, "the use of a token was not recorded", reason=error)
