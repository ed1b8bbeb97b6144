"""A consumer that stores the messages of a queue in batches, on one thread per queue.

The connection's thread only hands deliveries over. The consumer's thread takes all that have
arrived, stores them in one transaction, and then lets the subclass forward and acknowledge them.
"""

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError

from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.backoff import Backoff
from flux_endpoint.errors import InvalidMessageError, PublishError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

# Maximum bytes of messages in one transaction, which has at least one message.
_BATCH_BYTES = 4 * 2**20
# First and longest pause (s) between attempts to store messages.
_PAUSES = 0.1, 10.0


class Received(Protocol):
    """A parsed message."""

    @property
    def delivery(self) -> Delivery:
        """The delivery that the message came in."""


R = TypeVar("R", bound=Received)
S = TypeVar("S")


class BatchConsumer(ABC, Generic[R, S]):
    """Consumes a queue. All methods but `start` and `close` run on the consumer's own thread.

    Args:
        connection: connection to the broker.
        queue_name: the queue.
        noun: name of one message in log lines.
        prefetch: maximum number of unacknowledged messages.
        bundles: whether a delivery may carry several messages.
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
        """Parse a message.

        Raises:
            InvalidMessageError: it can't be parsed.
        """

    @abstractmethod
    def store(self, received: Sequence[R]) -> S:
        """Store messages in one transaction; return the argument of `settle`."""

    @abstractmethod
    def settle(self, stored: S) -> None:
        """Forward the stored messages, and acknowledge or reject every delivery.

        Raises:
            PublishError: the connection was closed in the meantime.
        """

    def start(self) -> None:
        """Begin to consume."""
        self._thread.start()
        self.connection.consume(
            self._queue_name, self._inbox.put, prefetch=self._prefetch, bundles=self._bundles
        )

    def close(self, timeout: float = 5.0) -> None:
        """Stop; the broker delivers unacknowledged messages again to the next service.

        Args:
            timeout: longest wait for the thread, in seconds.
        """
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join(timeout)

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Reject a message; the broker moves it to the queue `dead-letters`.

        Args:
            delivery: the message.
            reason: why, for the log.
        """
        event(
            log,
            logging.ERROR,
            f"{self._noun} dead-lettered",
            message_id=delivery.message_id,
            routing_key=delivery.routing_key,
            reason=reason,
        )
        delivery.reject()

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._process(batch)
            except PublishError:  # connection closed: the broker delivers them to the next service
                return
            except Exception as error:
                # The thread must survive any message. Deliveries that were acknowledged stay so.
                log.exception("%s could not be settled", self._noun)
                for delivery in batch:
                    self.dead_letter(delivery, f"it can't be settled: {error}")
            batch.clear()  # they may be large, and the next wait long

    def _process(self, batch: list[Delivery]) -> None:
        received = [each for delivery in batch if (each := self._read(delivery))]
        for stored in self._store_with_retries(received):
            self.settle(stored)

    def _take(self) -> list[Delivery]:
        """Wait for deliveries and return all that have arrived; none after `close`."""
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
            self.dead_letter(delivery, str(error))
        except Exception as error:  # a bug in `read` must not block the other messages
            log.exception("%s can't be read", self._noun)
            self.dead_letter(delivery, f"it can't be read: {type(error).__name__}: {error}")
        return None

    def _store_with_retries(self, received: Sequence[R]) -> Iterator[S]:
        pauses = Backoff(*_PAUSES)
        while received and not self._stopping.is_set():
            try:
                stored = self.store(received)
            except (OperationalError, InterfaceError) as error:
                # The database is busy, full or unreachable: try again.
                pause = next(pauses)
                retry_in = round(pause, 2)
                what = f"{self._noun} not stored"
                event(log, logging.ERROR, what, reason=error, retry_in=retry_in)
                self._stopping.wait(pause)
            except Exception as error:
                if len(received) == 1:
                    log.exception("%s can't be stored", self._noun)
                    self.dead_letter(received[0].delivery, f"it can't be stored: {error}")
                    return
                for each in received:  # find the message that can't be stored
                    yield from self._store_with_retries([each])
                return
            else:
                yield stored
                return
