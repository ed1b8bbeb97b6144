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

    Users' callbacks may run on it. Such a callback must not wait for work of the same thread, so
    methods that wait check `on_client_thread` first.

    Args:
        name: name of the thread, without the project's prefix.
        target: the function that it runs.
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
        name: name of the thread, without the project's prefix.
        what: description of its work, for the log when an action fails.
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
    """Start a thread; return `False` if the interpreter is exiting and allows no new threads."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


class _Janitor:
    """Runs actions of finalizers on a thread of its own.

    The garbage collector may run a finalizer at any point of any thread, even while that thread
    holds the lock that the finalizer needs. Finalizers must therefore only leave an action here.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread, unless this process has it. Must not be called by a finalizer."""
        if self._pid != os.getpid():  # a forked child does not have its parent's thread
            self._pid = os.getpid()
            self._inbox = queue.SimpleQueue()
            start(ClientThread("janitor", self._work))

    def leave(self, action: Callable[[], None]) -> None:
        """Run `action` soon. For finalizers."""
        self._inbox.put(action)  # reentrant, unlike everything with a lock

    def _work(self) -> None:
        inbox = self._inbox
        while True:
            try:
                inbox.get()()
            except Exception:
                log.exception("resources of an unused Executor could not be released")


janitor = _Janitor()
