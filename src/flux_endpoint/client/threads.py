"""The client's own threads."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ClientThread(threading.Thread):
    """A daemon thread of the client.

    A user's callback that runs on one must not wait for what that very thread has to do, so code
    that waits asks `on_client_thread` first.
    """

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        super().__init__(name=f"flux-endpoint {name}".rstrip(), target=target, daemon=True)


def on_client_thread() -> bool:
    """Return whether the caller runs on one of the client's own threads."""
    return isinstance(threading.current_thread(), ClientThread)


def start(thread: ClientThread) -> bool:
    """Start `thread`; return `False` if the interpreter, about to exit, allows no new ones."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True
