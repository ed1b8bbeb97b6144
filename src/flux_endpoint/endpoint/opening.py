"""The steps before an agent's first task: ends for lost tasks, and the task queue."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from flux_endpoint.amqp import StateChange
from flux_endpoint.backoff import Backoff
from flux_endpoint.endpoint.connectivity import OWNER_TIMEOUT, Connectivity
from flux_endpoint.endpoint.inbox import (
    ConsumeRefused,
    EndpointGone,
    Event,
    QueueGranted,
    Signal,
)
from flux_endpoint.endpoint.intake import refuse
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.errors import (
    EndpointGoneError,
    EndpointInUseError,
    ServiceError,
    ServiceUnreachableError,
)
from flux_endpoint.logs import event
from flux_endpoint.protocol.states import ErrorCode

log = logging.getLogger(__name__)
#: Seconds for which the service is asked which tasks this endpoint had taken, if it can't answer at
#: first. The next start asks again.
ASKING = 60.0
#: Seconds between two such requests: the first, and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0

_LOST = (
    "JournalLost: the endpoint took the task, but its record of it was lost or damaged since. The "
    "task may have run; what it returned is gone. Submit it again if it may run twice"
)

#: A change that the agent's own thread records, or a request to stop.
_Change = StateChange | QueueGranted | ConsumeRefused


class Opening:
    """The steps before an agent's work; belongs to the agent's thread.

    Args:
        endpoint_id: the endpoint's UUID.
        inbox: the agent's; requests to stop arrive here, too.
        connectivity: the state of connection and queue.
        note: records these changes.
        publish_status: publishes the agent's status.
    """

    def __init__(
        self,
        endpoint_id: str,
        inbox: queue.SimpleQueue[Event],
        connectivity: Connectivity,
        *,
        note: Callable[[_Change], None],
        publish_status: Callable[[], None],
    ) -> None:
        self._endpoint_id = endpoint_id
        self._inbox = inbox
        self._connectivity = connectivity
        self._note = note
        self._publish_status = publish_status

    def account(self, journal: Journal, taken: Callable[[], list[str]]) -> bool:
        """Give an end to the tasks of an earlier journal that are missing in this one.

        Args:
            journal: the journal; its tasks and results are not changed.
            taken: asks the service which unfinished tasks this endpoint took.

        Returns:
            False if a stop is requested in the meantime.

        Raises:
            EndpointInUseError: another agent has this endpoint's task queue.
            RecordError: the journal can't be written.
        """
        if not journal.lacks_earlier:
            return True
        pauses, give_up = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), time.monotonic() + ASKING
        while True:
            try:
                self._end_missing(journal, taken())
            except ServiceError as error:
                if error.code != "ENDPOINT_IN_USE":
                    self._not_told(error)
                    return True
                if self._connectivity.rivalled(str(error)):
                    self._publish_status()
                if self._connectivity.gives_up_in <= 0:
                    raise self._in_use() from error
            except ServiceUnreachableError as error:
                if time.monotonic() > give_up:
                    self._not_told(error)
                    return True
            else:
                return True
            try:
                self._inbox.get(timeout=next(pauses))
            except queue.Empty:
                continue
            return False  # nothing but a request to stop can come before there is a connection

    def claim(self) -> bool:
        """Wait for the task queue: until then, another agent may run the recorded tasks.

        Returns:
            False if a stop is requested in the meantime.

        Raises:
            EndpointInUseError: another agent keeps it.
            EndpointGoneError: the service does not know the endpoint any more.
        """
        while not self._connectivity.owns_queue:
            left = max(0.0, self._connectivity.gives_up_in)
            try:
                each = self._inbox.get(timeout=min(left, threading.TIMEOUT_MAX))
            except queue.Empty:
                raise self._in_use() from None
            if each is Signal.STOP:
                return False
            if isinstance(each, EndpointGone):
                raise EndpointGoneError(each.reason)
            if isinstance(each, _Change):
                self._note(each)
        return True

    def _end_missing(self, journal: Journal, taken: list[str]) -> None:
        missing = set(taken) - journal.held() - journal.done(taken)
        ends = [refuse(each, ErrorCode.JOURNAL_LOST, _LOST, _LOST).result for each in missing]
        with journal.batch():
            journal.finish(ends)
            journal.accounted()
        if missing:
            event(
                log,
                logging.ERROR,
                "tasks that this endpoint had taken are in its journal no more; they end with an "
                "error",
                tasks=len(missing),
            )

    def _not_told(self, error: Exception) -> None:
        event(
            log,
            logging.ERROR,
            "the journal is new, and the service can't say which tasks this endpoint had taken: "
            "they have no end until a start at which it can",
            reason=str(error),
        )

    def _in_use(self) -> EndpointInUseError:
        return EndpointInUseError(
            f"another agent runs endpoint {self._endpoint_id}: it has kept the task queue for "
            f"{OWNER_TIMEOUT:g} s"
        )
