"""Waits for several futures with a callback, without a thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class Countdown:
    """Calls `on_zero` once `count` futures are done. Safe to use from several threads.

    Args:
        count: number of futures.
        on_zero: called with the first error, or with `None`.
    """

    def __init__(self, count: int, on_zero: Callable[[BaseException | None], None]) -> None:
        self._left = count
        self._on_zero = on_zero
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def one_done(self, future: Future[None]) -> None:
        """Count a future that is done; a callback for `Future.add_done_callback`."""
        with self._lock:
            self._left -= 1
            self._error = self._error or future.exception()
            if self._left:
                return
        self._on_zero(self._error)


def pass_on(to: Future[None], done: Future[None]) -> None:
    """Resolve the future `to` like the future `done`."""
    end(to, done.exception())


def end(future: Future[None], error: BaseException | None) -> None:
    """Resolve a future with `error`, or with `None` as its result if there is no error."""
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
