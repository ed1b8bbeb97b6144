"""The client's own threads."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable

from flux_endpoint.owner_thread import OwnerThread

log = logging.getLogger(__name__)


class ClientThread(threading.Thread):
    """A daemon thread of the client.

    A user's callback that runs on one must not wait for what that very thread has to do, so code
    that waits asks `on_client_thread` first.
    """

    def __init__(self, name: str, target: Callable[[], None]) -> None:
        super().__init__(name=f"flux-endpoint {name}".rstrip(), target=target, daemon=True)


def owner_thread(
    name: str,
    what: str,
    *,
    after_turn: Callable[[], float],
    at_end: Callable[[], None] = lambda: None,
) -> OwnerThread:
    """Return a client thread that owns state.

    Args:
        name: of the thread.
        what: it does, for the log, if anything of that fails.
        after_turn: see `OwnerThread`.
        at_end: see `OwnerThread`.
    """
    return OwnerThread(
        name,
        after_turn=after_turn,
        at_end=at_end,
        on_error=lambda error: log.error("error in %s", what, exc_info=error),
        new_thread=ClientThread,
    )


def on_client_thread() -> bool:
    """Return whether the caller runs on one of the client's own threads."""
    return isinstance(threading.current_thread(), ClientThread)


def start(thread: ClientThread | OwnerThread) -> bool:
    """Start `thread`; return `False` if the interpreter, about to exit, allows no new ones."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


class _Janitor:
    """Carries out what finalizers want done.

    The garbage collector runs finalizers between any two steps of any thread, also of one that
    holds the very lock that they would wait for; so they must do no more than leave a message.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def start(self) -> None:
        """See to it that this process has the janitor's thread; not from a finalizer."""
        if self._pid != os.getpid():  # a forked child has none of its parent's threads
            self._pid = os.getpid()
            self._inbox = queue.SimpleQueue()
            start(ClientThread("janitor", self._work))

    def leave(self, action: Callable[[], None]) -> None:
        """Have `action` carried out soon; for finalizers."""
        self._inbox.put(action)  # reentrant, unlike everything with a lock

    def _work(self) -> None:
        inbox = self._inbox
        while True:
            try:
                inbox.get()()
            except Exception:
                log.exception("what an unused Executor held could not be given back")


janitor = _Janitor()
