"""The service's audit log: refused tokens, changes of tokens and endpoints, who submitted what."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from flux_endpoint.audit import AuditLog

#: Beside an SQLite database.
AUDIT_LOG = "audit.jsonl"
#: Refusals of one kind and address are counted for so many seconds before the next record: nobody
#: without a token can push what others did out of the log.
REFUSAL_SECONDS = 60.0
#: The most kinds and addresses that are counted apart.
MOST_REFUSALS = 1024


def default_path(database_url: str | Path) -> Path | None:
    """Return the audit log that goes with a database: beside it, if it is a file."""
    if isinstance(database_url, Path):
        return database_url.with_name(AUDIT_LOG)
    url = sa.make_url(database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        return None
    return Path(url.database).with_name(AUDIT_LOG)


class ServiceAudit:
    """Records what users did. Safe to use from several threads.

    Args:
        path: the file; `None`: there is no record.
        now: the time, in seconds.
    """

    def __init__(self, path: Path | None, now: Callable[[], float] = time.monotonic) -> None:
        self._log = AuditLog(path)
        self._now = now
        self._lock = threading.Lock()
        #: By kind and address: since when, and how many without a record.
        self._refusals: dict[tuple[str, str], tuple[float, int]] = {}

    def did(self, what: str, user: str, /, **about: Any) -> None:
        """Record what a user did.

        Args:
            what: a few words.
            user: the user's name.
            about: to what; what is `None` is left out.
        """
        self._log.write(what, user=user, **about)

    def refused(self, what: str, address: str, **about: Any) -> None:
        """Record a refused request, with how many of its kind had no record of their own."""
        key, now = (what, address), self._now()
        with self._lock:
            if key not in self._refusals and len(self._refusals) >= MOST_REFUSALS:
                self._forget(now)
                if len(self._refusals) >= MOST_REFUSALS:
                    key = (what, "others")
            since, unrecorded = self._refusals.get(key, (float("-inf"), 0))
            if now - since < REFUSAL_SECONDS:
                self._refusals[key] = (since, unrecorded + 1)
                return
            self._refusals[key] = (now, 0)
        self._log.write(what, address=address, before=unrecorded or None, **about)

    def close(self) -> None:
        """Record what was only counted, and close the file."""
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
