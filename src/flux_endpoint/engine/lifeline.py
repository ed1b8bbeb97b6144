"""Seeing that the Flux instance is gone, at the moment when it goes."""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from types import ModuleType

from flux_endpoint import logs

log = logging.getLogger(__name__)

#: What a call fails with when there is no broker to answer it, or no way to rank 0 any more.
_GONE = {
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EPIPE,
    errno.ENOTCONN,
    errno.EHOSTUNREACH,
}
#: How what FluxExecutor says begins when its own connection is gone.
_BROKEN = ("Executor is broken", "reactor start failed")
_CLOSED = "its broker has closed the connection"


def quiet_executors() -> None:
    """Have what ends FluxExecutor's threads when their instance goes be logged, not printed.

    Their futures tell it, or nobody waits for them any more.
    """
    before = threading.excepthook
    if getattr(before, "is_quiet", False):
        return

    def hook(what: threading.ExceptHookArgs) -> None:
        error = what.exc_value
        broken = isinstance(error, RuntimeError) and str(error).startswith(_BROKEN)
        # It tells a job again that its events come no more, whose future has its end already.
        if broken or (isinstance(error, InvalidStateError) and "FluxExecutorFuture" in str(error)):
            logs.event(log, logging.DEBUG, "a thread of FluxExecutor has ended", reason=error)
        else:
            before(what)

    hook.is_quiet = True  # type: ignore[attr-defined]  # so that it is there once
    threading.excepthook = hook


class Lifeline:
    """A connection of its own to the broker, on which nothing is said: its end is the broker's.

    A thread waits for that end. Whoever gets an error from Flux asks `explains`, since it may know
    first. `on_lost` is called once, on the thread that was first.

    Args:
        flux: Flux's bindings.
        uri: the instance's; `None`: the default instance's.
        on_lost: given the reason, a sentence's beginning.
    """

    def __init__(self, flux: ModuleType, uri: str | None, on_lost: Callable[[str], None]) -> None:
        self._error_bit: int = flux.constants.FLUX_POLLERR
        self._handle = flux.Flux(uri)
        self._uri = uri or "the default URI"
        self._on_lost = on_lost
        self._once = threading.Lock()
        self._lost = False
        self._closed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether the instance is gone."""
        return self._lost

    def explains(self, error: BaseException | None) -> bool:
        """Return whether `error` comes of the instance's end; `on_lost` has been called then."""
        if isinstance(error, OSError) and error.errno in _GONE:
            self._tell(str(error))
        elif isinstance(error, RuntimeError) and str(error).startswith(_BROKEN):
            self._tell(_CLOSED)
        return self._lost

    def close(self) -> None:
        """Stop watching; not from `on_lost`."""
        os.eventfd_write(self._closed, 1)
        self._thread.join()
        os.close(self._closed)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._closed, select.POLLIN)
        poll.register(self._handle.pollfd(), select.POLLIN)  # wakes at changes, not at states
        while not self._handle.pollevents() & self._error_bit:
            if any(source == self._closed for source, _ in poll.poll()):
                return
        self._tell(_CLOSED)

    def _tell(self, detail: str) -> None:
        with self._once:
            if self._lost:
                return
            self._lost = True
        self._on_lost(f"the Flux instance at {self._uri} is gone: {detail}")
