"""The service's audit log: refused requests, changes to tokens and endpoints, submissions."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flux_endpoint.audit import AuditLog

#: Default name of the file, which is in the directory of an SQLite database.
AUDIT_LOG = "audit.jsonl"
#: Refusals of one kind from one address get one record in this many seconds; the rest is counted.
#: So a client without a token can't flood the log until older records rotate out.
REFUSAL_SECONDS = 60.0
#: Maximum number of pairs of kind and address that have their own count.
MAX_REFUSALS = 1024


def default_path(database_url: str | Path) -> Path | None:
    """Return the default path of the audit log; `None` if the database is not an SQLite file.

    Args:
        database_url: the database's URL, or the path of an SQLite file.
    """
    if isinstance(database_url, Path):
        return database_url.with_name(AUDIT_LOG)
    url = sa.make_url(database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).with_name(AUDIT_LOG)


class ServiceAudit:
    """Records the actions of users. Safe to use from several threads.

    Args:
        path: the file; `None` disables the log.
        now: returns a monotonic time in seconds.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.monotonic) -> None:
        self._log = AuditLog(path)
        self._now = now
        self._lock = threading.Lock()
        #: By kind and address: time of the last record, and number of refusals since then.
        self._refusals: dict[tuple[str, str], tuple[float, int]] = {}

    def did(self, what: str, user: str, /, **about: Any) -> None:
        """Record an action of a user.

        Args:
            what: the action, in a few words.
            user: the user's name.
            about: further fields; those that are `None` are left out.
        """
        self._log.write(what, user=user, **about)

    def refused(self, what: str, address: str, **about: Any) -> None:
        """Record a refused request, or count it if there is a recent record like it.

        Args:
            what: the kind of refusal.
            address: the client's address.
            about: further fields; those that are `None` are left out.
        """
        key, now = (what, address), self._now()
        with self._lock:
            if key not in self._refusals and len(self._refusals) >= MAX_REFUSALS:
                self._forget(now)
                if len(self._refusals) >= MAX_REFUSALS:
                    key = (what, "others")
            since, unrecorded = self._refusals.get(key, (float("-inf"), 0))
            if now - since < REFUSAL_SECONDS:
                self._refusals[key] = (since, unrecorded + 1)
                return
            self._refusals[key] = (now, 0)
        self._log.write(what, address=address, before=unrecorded or None, **about)

    def close(self) -> None:
        """Record the refusals that were only counted, and close the file."""
        with self._lock:
            for (what, address), (_, unrecorded) in self._refusals.items():
                if unrecorded:
                    self._log.write(what, address=address, before=unrecorded)
            self._refusals.clear()
        self._log.close()

    def _forget(self, now: float) -> None:
        for key, (since, unrecorded) in list(self._refusals.items()):
            if now - since >= REFUSAL_SECONDS:
                what, address = key
                if unrecorded:
                    self._log.write(what, address=address, before=unrecorded)
                del self._refusals[key]
