"""Makes a RabbitMQ node refuse messages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def memory_alarm(ctl: Callable[..., str]) -> Iterator[None]:
    """Raise the memory alarm of a RabbitMQ node, so that it accepts no messages.

    Args:
        ctl: runs `rabbitmqctl` with the given arguments.
    """
    ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        yield
    finally:
        ctl("set_vm_memory_high_watermark", "0.4")  # RabbitMQ's default
