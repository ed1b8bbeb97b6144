"""Sends results to the broker; each stays in the journal until it is confirmed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.amqp.bundle import CONTENT_TYPE, MAX_PARTS, Part, gather, pack_bundle
from flux_endpoint.backoff import Backoff
from flux_endpoint.errors import UnroutableError
from flux_endpoint.logs import event
from flux_endpoint.protocol.queues import PublishInfo

log = logging.getLogger(__name__)

#: Seconds before refused results are published again: the first, and the longest.
FIRST_RETRY = 0.5
MAX_RETRY = 60.0


@dataclass(frozen=True, slots=True)
class Settled:
    """The broker has confirmed, or refused (`error`), the results of one message."""

    task_ids: tuple[str, ...]
    error: BaseException | None


class PublishTarget:
    """An exchange and the properties that the service requires of messages there.

    Args:
        info: how the service wants messages published.
    """

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
        return self._publish(connection, body, {"message_id": message_id})

    def publish_bundle(self, connection: AmqpConnection, parts: Sequence[Part]) -> Future[None]:
        """Publish several messages in one."""
        return self._publish(connection, pack_bundle(parts), {"content_type": CONTENT_TYPE})

    def _publish(
        self, connection: AmqpConnection, body: bytes, options: dict[str, Any]
    ) -> Future[None]:
        return connection.publish(
            self._exchange,
            self._routing_key,
            body,
            timestamp=int(time.time()),
            **{**self._options, **options},
        )


class ResultOutbox:
    """The results that await their confirms; belongs to the agent's thread.

    Args:
        connection: the connection to publish on.
        info: how results are published.
        on_settled: called with each confirm, on the connection's thread.
        bundles: whether the service accepts several results in one message.
    """

    def __init__(
        self,
        connection: AmqpConnection,
        info: PublishInfo,
        on_settled: Callable[[Settled], None],
        *,
        bundles: bool = False,
    ) -> None:
        self._connection = connection
        self._target = PublishTarget(info)
        self._on_settled = on_settled
        self._together = MAX_PARTS if bundles else 1
        self._under_way: set[str] = set()
        self._refused: set[str] = set()
        self._backoff = Backoff(FIRST_RETRY, MAX_RETRY)
        #: Monotonic time at which refused results are due again; `inf` if there are none.
        self.due = float("inf")

    def __len__(self) -> int:
        return len(self._under_way) + len(self._refused)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._under_way or task_id in self._refused

    @property
    def awaiting(self) -> bool:
        """Whether the broker has not answered for some result."""
        return bool(self._under_way)

    def publish(self, results: Iterable[tuple[str, bytes]], *, alone: bool = False) -> None:
        """Publish results that are in the journal.

        Args:
            results: each task's id and the body of its result.
            alone: whether each goes in its own message.

        Raises:
            PublishError: the connection was closed.
        """
        parts = (Part(body, message_id=task_id) for task_id, body in results)
        for message in gather(parts, 1 if alone else self._together):
            task_ids = tuple(str(part.message_id) for part in message)
            self._refused.difference_update(task_ids)
            self._under_way.update(task_ids)
            if len(message) > 1:
                future = self._target.publish_bundle(self._connection, message)
            else:
                future = self._target.publish(
                    self._connection, message[0].body, message_id=task_ids[0]
                )
            future.add_done_callback(partial(self._answered, task_ids))

    def _answered(self, task_ids: tuple[str, ...], done: Future[None]) -> None:
        """Report an answer of the broker. Runs on the connection's thread."""
        self._on_settled(Settled(task_ids, done.exception()))

    def settled(self, outcome: Settled) -> bool:
        """Record the broker's answer; return whether the results can be forgotten."""
        self._under_way.difference_update(outcome.task_ids)
        if outcome.error is None:
            if self._backoff.failures and not self._refused:
                event(log, logging.WARNING, "the broker takes results again")
                self._backoff.reset()
            return True
        self._refused.update(outcome.task_ids)
        if self.due == float("inf"):
            self.due = time.monotonic() + next(self._backoff)
            event(
                log,
                logging.ERROR if self._backoff.failures == 1 else logging.DEBUG,
                "the broker has no queue for results: the service must declare it; they are kept "
                "and retried"
                if isinstance(outcome.error, UnroutableError)
                else "the broker refused a result; it is kept and retried",
                task_id=outcome.task_ids[0],
                results=len(outcome.task_ids),
                reason=str(outcome.error),
            )
        return False

    def hurry(self, task_id: str) -> None:
        """Retry all refused results now, if this one is among them: somebody waits for it."""
        if task_id in self._refused:
            self.due = 0.0

    def take_refused(self) -> set[str]:
        """Return the refused results that are due, to be published again."""
        refused, self._refused = self._refused, set()
        self.due = float("inf")
        return refused
