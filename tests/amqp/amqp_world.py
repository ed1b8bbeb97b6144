"""What the tests of the AMQP connection use: a recorder, a sink, and a hand on the broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import pika

from flux_endpoint.amqp import Delivery, StateChange

T = TypeVar("T")

#: Seconds after which a test that waits has failed.
PATIENCE = 20.0


class Journal(Generic[T]):
    """Collects what callbacks are given; `wait` returns when a condition holds for it."""

    def __init__(self, then: Callable[[T], None] | None = None) -> None:
        self._then = then
        self._changed = threading.Condition()
        self.items: list[T] = []

    def __call__(self, item: T) -> None:
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()
        if self._then is not None:
            self._then(item)

    def wait(self, condition: Callable[[list[T]], object]) -> list[T]:
        """Wait until `condition` holds for the items; return them."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.items), PATIENCE), self.items
            return list(self.items)

    def wait_for(self, count: int) -> list[T]:
        return self.wait(lambda items: len(items) >= count)


class Sink(Journal[Delivery]):
    """Takes deliveries, and by default acknowledges each."""

    def __init__(self, then: Callable[[Delivery], None] | None = Delivery.ack) -> None:
        super().__init__(then)

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.items]


class States(Journal[StateChange]):
    """Takes state changes."""

    def wait_state(self, *states: str) -> list[StateChange]:
        """Wait until `states` have come, in this order; others may be between them."""

        def have_come(items: Sequence[StateChange]) -> bool:
            names = iter([change.state for change in items])
            return all(state in names for state in states)

        return self.wait(have_come)


class Hand:
    """Does things to the broker directly, over a connection that never reconnects."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel: Any = self._connection.channel()

    def queue(self, name: str, **arguments: Any) -> str:
        self.channel.queue_declare(name, durable=True, arguments=arguments)
        return name

    def depth(self, queue: str) -> int:
        """How many messages of `queue` wait to be delivered."""
        count: int = self.channel.queue_declare(queue, passive=True).method.message_count
        return count

    def consumers(self, queue: str) -> int:
        count: int = self.channel.queue_declare(queue, passive=True).method.consumer_count
        return count

    def until_depth(self, queue: str, depth: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.depth(queue) != depth:
            assert time.monotonic() < deadline, f"{queue} holds {self.depth(queue)}, not {depth}"
            self._connection.sleep(0.02)

    def put(self, queue: str, *bodies: bytes) -> None:
        for body in bodies:
            self.channel.basic_publish("", queue, body)

    def take(self, queue: str) -> list[tuple[bytes, bool]]:
        """Empty `queue`; return each body and whether it was delivered before."""
        taken = []
        while True:
            method, _, body = self.channel.basic_get(queue, auto_ack=True)
            if method is None:
                return taken
            taken.append((body, method.redelivered))

    def close(self) -> None:
        self._connection.close()


def numbered(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]
