"""A RabbitMQ node that takes no messages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def memory_alarm(ctl: Callable[..., str]) -> Iterator[None]:
    """Have a RabbitMQ node believe that it is short of memory."""
    ctl("set_vm_memory_high_watermark", "0.0000001")
    try:
        yield
    finally:
        ctl("set_vm_memory_high_watermark", "0.4")  # RabbitMQ's default
