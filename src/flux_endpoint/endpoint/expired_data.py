"""Removes large arguments and results whose lifetime is over from the user's stores."""

from __future__ import annotations

import logging
import threading

from flux_endpoint.data import cleaning
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Seconds between two scans.
PERIOD = 3600.0


class ExpiredData:
    """Looks for expired objects at once, and then at intervals, on its own thread.

    Args:
        period: seconds between two scans.
    """

    def __init__(self, period: float = PERIOD) -> None:
        self._period = period
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="expired-data", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """Stop; a removal in progress may go on.

        Args:
            timeout: seconds to wait for the thread.
        """
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            try:
                removed = cleaning.prune()
            except Exception as error:  # noqa: BLE001 - the next scan may succeed
                event(log, logging.WARNING, "expired data not removed", reason=error)
            else:
                if removed:
                    event(log, logging.INFO, "expired data removed", count=removed)
            if self._stopping.wait(self._period):
                return
