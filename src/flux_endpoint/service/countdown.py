"""Waiting for several futures with a callback instead of a thread."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class Countdown:
    """Calls `on_zero` with the first error, if any, once `count` futures are done."""

    def __init__(self, count: int, on_zero: Callable[[BaseException | None], None]) -> None:
        self._left = count
        self._on_zero = on_zero
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def one_done(self, future: Future[None]) -> None:
        """Count a future that is done."""
        with self._lock:
            self._left -= 1
            self._error = self._error or future.exception()
            if self._left:
                return
        self._on_zero(self._error)


def pass_on(to: Future[None], done: Future[None]) -> None:
    """End `to` as `done` has ended."""
    end(to, done.exception())


def end(future: Future[None], error: BaseException | None) -> None:
    """End a future, in an error if there is one."""
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
