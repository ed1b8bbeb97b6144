"""Futures of Flux's bindings, destroyed on the thread of their connection.

A connection to Flux serves one thread. A future with a callback is part of a reference cycle
after its last answer, so Python's collector destroys it on whichever thread it runs. There it
returns the matchtag of its answers while the connection's own thread may be using it, and a watch
even sends a request. The matchtag is then allocated twice, and an answer is lost or delivered to
another future (seen: jobs whose end is never reported, `FileExistsError` from a watch). The
bindings also keep futures that still wait when their thread ends, and with them the connection,
forever. So the futures of this module are destroyed on the right thread: after their last answer,
or once their thread has ended.
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
    """Called by Flux with each answer; destroys the future after the last one."""

    def __init__(self, callback: Callable[..., object]) -> None:
        self._callback = callback
        self.thread = threading.current_thread()

    def __call__(self, future: Any, *args: Any, **kwargs: Any) -> None:
        expected = _waiting().get(future)
        self._callback(future, *args, **kwargs)
        # A future that was reset is called again, and counted once more.
        if expected is not None and _waiting().get(future) == expected:
            _end(future)


def then(future: Any, callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
    """Register `callback` for each answer to `future`, on this thread; return the future.

    Args:
        future: Flux's. Nobody else may need it after its last answer.
        callback: called as by `flux.future.Future.then`. A future that it does not reset is
            destroyed.
        args: further arguments of the callback.
        kwargs: keyword arguments of the callback.
    """
    return type(future).then(future, _Callback(callback), *args, **kwargs)


def end_orphans() -> None:
    """Destroy the futures whose threads have ended: their callbacks are never called."""
    for future in list(_waiting()):
        callback = future.then_cb
        if isinstance(callback, _Callback) and not callback.thread.is_alive():
            _waiting().pop(future, None)
            _end(future)


def mend_executor(flux: ModuleType) -> None:
    """Make the futures of `flux.job.FluxExecutor` end on its threads, in this process."""
    if not hasattr(_bindings(), _WAITING):
        log.warning(
            "Flux's Python bindings keep their futures differently from the tested releases: "
            "the end of a job may be missed when Python's garbage collector runs"
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
    """The part of a future that FluxExecutor uses: registering a callback."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def then(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        return then(self._future, callback, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future, name)


def _waiting() -> dict[Any, int]:
    """Return the bindings' futures with callbacks, and how often each was registered."""
    found: dict[Any, int] = getattr(_bindings(), _WAITING, {})
    return found


def _bindings() -> ModuleType:
    return importlib.import_module("flux.future")


def _end(future: Any) -> None:
    future.then_cb = future.cb_handle = None
    if hasattr(future, "needs_cancel"):
        future.needs_cancel = False  # its stream is at its end
    with future.pimpl:  # destroys it; later uses of it raise errors
        pass
