"""Results on their way to the broker: each stays in the journal until it is confirmed."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.errors import UnroutableError
from flux_endpoint.logs import event
from flux_endpoint.protocol.queues import PublishInfo

log = logging.getLogger(__name__)

#: Seconds before refused results are published again: at first, and at most.
FIRST_RETRY = 0.5
MAX_RETRY = 60.0


@dataclass(frozen=True, slots=True)
class Settled:
    """The broker has confirmed a result, or refused it (`error`)."""

    task_id: str
    error: BaseException | None


class Target:
    """An exchange and the properties with which the service wants messages published there."""

    def __init__(self, info: PublishInfo) -> None:
        kwargs = info.queue_publish_kwargs
        properties = kwargs.get("properties") or {}
        self._exchange = str(kwargs["exchange"])
        self._routing_key = str(kwargs["routing_key"])
        self._options: dict[str, Any] = {
            "mandatory": bool(kwargs.get("mandatory", True)),
            "persistent": properties.get("delivery_mode", 2) == 2,
            "content_type": properties.get("content_type"),
        }

    def publish(
        self, connection: AmqpConnection, body: bytes, *, message_id: str | None = None
    ) -> Future[None]:
        """Publish `body`."""
        return connection.publish(
            self._exchange,
            self._routing_key,
            body,
            timestamp=int(time.time()),
            message_id=message_id,
            **self._options,
        )


class Outbox:
    """Which results await their confirm; belongs to the agent's thread.

    Args:
        connection: where they go.
        info: how they are published.
        on_settled: told of each confirm, on the connection's thread.
    """

    def __init__(
        self,
        connection: AmqpConnection,
        info: PublishInfo,
        on_settled: Callable[[Settled], None],
    ) -> None:
        self._connection = connection
        self._target = Target(info)
        self._on_settled = on_settled
        self._under_way: set[str] = set()
        self._refused: set[str] = set()
        self._retry = FIRST_RETRY
        #: Monotonic time at which refused results are due again; `inf` if there are none.
        self.due = float("inf")

    def __len__(self) -> int:
        return len(self._under_way) + len(self._refused)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._under_way or task_id in self._refused

    @property
    def awaiting(self) -> bool:
        """Whether the broker has yet to answer for a result."""
        return bool(self._under_way)

    def publish(self, task_id: str, body: bytes) -> None:
        """Publish a result that is in the journal."""
        self._refused.discard(task_id)
        self._under_way.add(task_id)
        future = self._target.publish(self._connection, body, message_id=task_id)
        future.add_done_callback(lambda done: self._on_settled(Settled(task_id, done.exception())))

    def settled(self, outcome: Settled) -> bool:
        """Note the broker's answer; return whether the result can be forgotten."""
        self._under_way.discard(outcome.task_id)
        if outcome.error is None:
            if self._retry > FIRST_RETRY and not self._refused:
                event(log, logging.WARNING, "the broker takes results again")
                self._retry = FIRST_RETRY
            return True
        self._refused.add(outcome.task_id)
        if self.due == float("inf"):
            first = self._retry == FIRST_RETRY
            self.due = time.monotonic() + self._retry * random.uniform(0.5, 1.0)  # noqa: S311
            self._retry = min(2 * self._retry, MAX_RETRY)
            event(
                log,
                logging.ERROR if first else logging.DEBUG,
                "the broker has no queue for results: the service must declare it; they are kept "
                "and tried again"
                if isinstance(outcome.error, UnroutableError)
                else "the broker refused a result; it is kept and tried again",
                task_id=outcome.task_id,
                reason=str(outcome.error),
            )
        return False

    def hurry(self, task_id: str) -> None:
        """Somebody waits for this result: if it was refused, have all of them tried again now."""
        if task_id in self._refused:
            self.due = 0.0

    def take_refused(self) -> set[str]:
        """Return the refused results, which are to be published again now."""
        refused, self._refused = self._refused, set()
        self.due = float("inf")
        return refused
