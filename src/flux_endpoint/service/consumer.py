"""How what comes in from the broker is stored: in batches, one thread a queue.

The connection's thread only hands deliveries over. One thread drains what is there, stores it in
one transaction, and then lets the subclass forward and acknowledge.
"""

import logging
import queue
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.errors import InvalidMessageError, PublishError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

# One transaction takes no more than this many bytes of messages (and at least one message).
_BATCH_BYTES = 32 * 2**20
_MAX_BACKOFF = 10.0


class Received(Protocol):
    """A message that was read."""

    @property
    def delivery(self) -> Delivery:
        """What brought it."""


R = TypeVar("R", bound=Received)
S = TypeVar("S")


class BatchConsumer(ABC, Generic[R, S]):
    """Consumes a queue; everything but `start` and `close` runs on its own thread.

    Args:
        connection: the way to the broker.
        queue_name: what to consume.
        noun: what one message is called in logs.
        prefetch: messages that the broker may have sent us and we have not acknowledged.
        bundles: whether several may come in one.
    """

    def __init__(
        self,
        connection: AmqpConnection,
        queue_name: str,
        *,
        noun: str,
        prefetch: int,
        bundles: bool = False,
    ) -> None:
        self.connection = connection
        self._queue_name = queue_name
        self._noun = noun
        self._prefetch = prefetch
        self._bundles = bundles
        self._inbox: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=queue_name, daemon=True)

    @abstractmethod
    def read(self, delivery: Delivery) -> R:
        """Return what a message says.

        Raises:
            InvalidMessageError: it can't be read.
        """

    @abstractmethod
    def store(self, received: Sequence[R]) -> S:
        """Store messages in one transaction; return what `settle` has to know."""

    @abstractmethod
    def settle(self, stored: S) -> None:
        """Forward what was stored, and see to it that every delivery is answered.

        Raises:
            PublishError: the connection was closed meanwhile.
        """

    def start(self) -> None:
        """Begin to consume."""
        self._thread.start()
        self.connection.consume(
            self._queue_name, self._inbox.put, prefetch=self._prefetch, bundles=self._bundles
        )

    def close(self, timeout: float = 5.0) -> None:
        """Stop; what was not acknowledged is delivered again to the next service."""
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join(timeout)

    def set_aside(self, delivery: Delivery, reason: str) -> None:
        """Reject a message for good: it is kept in the queue `dead-letters`."""
        event(
            log,
            logging.ERROR,
            f"{self._noun} set aside in the queue dead-letters",
            message_id=delivery.message_id,
            routing_key=delivery.routing_key,
            reason=reason,
        )
        delivery.reject()

    def _run(self) -> None:
        while batch := self._take():
            try:
                received = [each for delivery in batch if (each := self._read(delivery))]
                for stored in self._store_with_retries(received):
                    self.settle(stored)
            except PublishError:  # the connection was closed: the next service gets them again
                return
            except Exception as error:
                # The thread must outlive any message. What was answered already stays so.
                log.exception("%s could not be settled", self._noun)
                for delivery in batch:
                    self.set_aside(delivery, f"it can't be settled: {error}")

    def _take(self) -> list[Delivery]:
        """Wait for deliveries and return what is there; nothing once we are closed."""
        batch: list[Delivery] = []
        size = 0
        while not self._stopping.is_set() and size < _BATCH_BYTES:
            if batch and self._inbox.empty():
                break
            delivery = self._inbox.get()
            if delivery is not None:
                batch.append(delivery)
                size += len(delivery.body)
        return [] if self._stopping.is_set() else batch

    def _read(self, delivery: Delivery) -> R | None:
        try:
            return self.read(delivery)
        except InvalidMessageError as error:
            self.set_aside(delivery, str(error))
        except Exception as error:  # a reader's fault: the other messages must not wait for it
            log.exception("%s can't be read", self._noun)
            self.set_aside(delivery, f"it can't be read: {type(error).__name__}: {error}")
        return None

    def _store_with_retries(self, received: Sequence[R]) -> Iterator[S]:
        delay = 0.1
        while received and not self._stopping.is_set():
            try:
                stored = self.store(received)
            except (OperationalError, InterfaceError) as error:
                # The database is busy, full or away: that passes.
                event(log, logging.ERROR, f"{self._noun} not stored", reason=error, retry_in=delay)
                self._stopping.wait(delay * random.uniform(0.5, 1))  # noqa: S311
                delay = min(delay * 2, _MAX_BACKOFF)
            except Exception as error:
                if len(received) == 1:
                    log.exception("%s can't be stored", self._noun)
                    self.set_aside(received[0].delivery, f"it can't be stored: {error}")
                    return
                for each in received:  # one of them is poison: find out which
                    yield from self._store_with_retries([each])
                return
            else:
                yield stored
                return
