"""Hear of signals at once, whatever the main thread waits for."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def told_of_signals(callback: Callable[[int], object]) -> Iterator[None]:
    """Call `callback` with the number of every signal that this process handles, on a thread.

    Python runs a handler between two of the main thread's instructions. A signal that comes when
    the main thread is just going to wait, or that the kernel gives to another thread, does not end
    that wait: without a time limit its handler never runs. The thread needs no turn of the main
    one, so it can wake it.

    Args:
        callback: called on a thread of its own; the handlers run beside it, in the main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        while numbers := reader.recv(64):
            for number in numbers:
                callback(number)

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()
