"""RabbitMQ alone: sends the bytes of a task and of its result.

A message goes to another process, which sends an equal one back. Both are persistent and confirmed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from typing import Any

import pika

from flux_endpoint.stack.broker import RabbitNode
from work import MIB, PATIENCE, Turn

_THERE, _BACK = "there", "back"
_PERSISTENT: Any = pika.BasicProperties(delivery_mode=2)  # type: ignore[no-untyped-call]
#: The most unacknowledged messages of a consumer.
_WINDOW = 8


def channel_of(url: str) -> Any:
    """Return a channel of a new connection, with publisher confirms and both queues."""
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.confirm_delivery()
    channel.basic_qos(prefetch_count=_WINDOW)
    for queue in (_THERE, _BACK):
        channel.queue_declare(queue, durable=True)
    return channel


def publish(channel: Any, queue: str, body: bytes) -> None:
    channel.basic_publish("", queue, body, _PERSISTENT, mandatory=True)


def send_back(url: str) -> None:
    """Answer each message with an equal one, forever."""
    channel = channel_of(url)
    for method, _, body in channel.consume(_THERE):
        publish(channel, _BACK, body)
        channel.basic_ack(method.delivery_tag)


def receive(url: str, body: bytes, came: threading.Semaphore) -> None:
    """Count the answers, forever."""
    channel = channel_of(url)
    for method, _, answer in channel.consume(_BACK):
        if answer == body:
            came.release()
        channel.basic_ack(method.delivery_tag)


def main() -> None:
    turn = Turn()
    body, came = os.urandom(MIB), threading.Semaphore(0)
    with RabbitNode(turn.directory) as node:
        url = node.service_url
        other = multiprocessing.get_context("spawn").Process(
            target=send_back, args=(url,), daemon=True
        )
        other.start()
        threading.Thread(target=receive, args=(url, body, came), daemon=True).start()
        channel = channel_of(url)

        def there_and_back(count: int) -> None:
            for _ in range(count):
                publish(channel, _THERE, body)
            for _ in range(count):
                if not came.acquire(timeout=PATIENCE):
                    raise TimeoutError(f"no answer after {PATIENCE:g} s")

        turn.rate_of("e2e-megabyte", there_and_back)
        other.terminate()
        other.join()


if __name__ == "__main__":
    main()
