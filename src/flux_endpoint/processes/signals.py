"""Reports signals at once, whatever the main thread waits for."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def signal_listener(callback: Callable[[int], object]) -> Iterator[None]:
    """Call `callback`, on a thread, with the number of every signal that this process handles.

    Python runs a handler between two instructions of the main thread. A signal that arrives just
    before the main thread begins to wait, or that the kernel delivers to another thread, does not
    end that wait: without a timeout its handler never runs. This thread runs independently of the
    main thread, so it can wake it.

    Args:
        callback: called on its own thread; the handlers run independently on the main thread.
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
