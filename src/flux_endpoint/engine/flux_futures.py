"""Futures of Flux's bindings that end on the thread of their connection.

A connection to Flux serves one thread. A future with a callback stays in a reference cycle when it
has had its last answer, and Python's collector ends it on whichever thread it runs: there it gives
the tag of its answers back, beside the connection's own thread, and a watch sends a request. A tag
is then given out twice, and an answer is lost or comes to another's future (seen: jobs whose end
is never told, `FileExistsError` from a watch). Futures that still wait when their thread ends are
kept by the bindings for ever, with the connection. So those of this module are ended where they
belong: at their last answer, or once their thread has ended.
"""

from __future__ import annotations

import functools
import importlib
import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

#: Where the bindings keep futures with a callback; private to them.
_WAITING = "_THEN_HANDLES"
#: The functions of `flux.job.executor` whose futures FluxExecutor gives a callback.
_MADE_BY_EXECUTOR = ("submit_async", "event_watch_async")


class _Callback:
    """What Flux calls with each answer; it ends the future after the last one."""

    def __init__(self, callback: Callable[..., object]) -> None:
        self._callback = callback
        self.thread = threading.current_thread()

    def __call__(self, future: Any, *args: Any, **kwargs: Any) -> None:
        expected = _waiting().get(future)
        self._callback(future, *args, **kwargs)
        # One that was reset is called again, and counted once more.
        if expected is not None and _waiting().get(future) == expected:
            _end(future)


def then(future: Any, callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
    """Have `callback` called with each answer to `future`, on this thread; return the future.

    Args:
        future: Flux's. Nobody else needs it once it has had its last answer.
        callback: as `flux.future.Future.then` calls it. A future that it does not reset is ended.
        args: for the callback, after the future.
        kwargs: for the callback.
    """
    return type(future).then(future, _Callback(callback), *args, **kwargs)


def end_orphans() -> None:
    """End the futures whose threads have ended: no callback of theirs is ever called."""
    for future in list(_waiting()):
        callback = future.then_cb
        if isinstance(callback, _Callback) and not callback.thread.is_alive():
            _waiting().pop(future, None)
            _end(future)


def mend_executor(flux: ModuleType) -> None:
    """Have the futures behind `flux.job.FluxExecutor` end on its threads, in this process."""
    if not hasattr(_bindings(), _WAITING):
        log.warning(
            "Flux's Python bindings keep their futures in another way than those of the releases "
            "that this is tested with: the end of a job may be missed when Python's collector runs"
        )
    module = flux.job.executor
    for name in _MADE_BY_EXECUTOR:
        made = getattr(module, name)
        if not hasattr(made, "__wrapped__"):
            setattr(module, name, _mended(made))


def _mended(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        return _Then(make(*args, **kwargs))

    return made


class _Then:
    """As much of a future as FluxExecutor uses: to give it a callback."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def then(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        return then(self._future, callback, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future, name)


def _waiting() -> dict[Any, int]:
    """Return the bindings' futures that are to be called, and how often each is so far."""
    found: dict[Any, int] = getattr(_bindings(), _WAITING, {})
    return found


def _bindings() -> ModuleType:
    return importlib.import_module("flux.future")


def _end(future: Any) -> None:
    future.then_cb = future.cb_handle = None
    if hasattr(future, "needs_cancel"):
        future.needs_cancel = False  # its stream is at its end
    with future.pimpl:  # which ends it; whoever has it yet gets errors from it
        pass
