"""Seeing that the Flux instance ends, or is gone, at the moment when it happens."""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from contextlib import suppress
from types import ModuleType
from typing import Any

from flux_endpoint import logs
from flux_endpoint.engine.flux_futures import end_orphans, then
from flux_endpoint.engine.instance_state import InstancePhase, InstanceState

log = logging.getLogger(__name__)

#: What a call fails with when there is no broker to answer it, or no way to rank 0 any more.
_GONE = {
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EPIPE,
    errno.ENOTCONN,
    errno.EHOSTUNREACH,
    errno.ENODATA,  # FluxExecutor's reactor, when what it watches comes to an early end
}
#: How what FluxExecutor says begins when its own connection is gone.
_BROKEN = ("Executor is broken", "reactor start failed")
_CLOSED = "its broker has closed the connection"
#: States of a broker (by name: their numbers differ between releases) that lead to its end.
ENDING = frozenset({"cleanup", "shutdown", "finalize", "goodbye", "unload-builtins", "exit"})


def is_gone(error: BaseException | None) -> bool:
    """Return whether `error`, from Flux's bindings, says that there is no broker to answer them."""
    if isinstance(error, OSError):
        return error.errno in _GONE
    return isinstance(error, RuntimeError) and str(error).startswith(_BROKEN)


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
        if isinstance(error, OSError) and type(what.thread).__module__ == "flux.job.executor":
            broken = error.errno in _GONE
        # It tells a job again that its events come no more, whose future has its end already.
        if broken or (isinstance(error, InvalidStateError) and "FluxExecutorFuture" in str(error)):
            logs.event(log, logging.DEBUG, "a thread of FluxExecutor has ended", reason=error)
        else:
            before(what)

    hook.is_quiet = True  # type: ignore[attr-defined]  # so that it is there once
    threading.excepthook = hook


class Lifeline:
    """A connection of its own to the broker, whose end is the broker's.

    A thread waits for that end, and for the broker's word that the instance is ending, which only
    the instance's owner is told. Whoever gets an error from Flux asks `explains`, since it may know
    first.

    Args:
        flux: Flux's bindings.
        uri: the instance's; `None`: the default instance's.
        state: told of both.
        on_start: given the connection, to ask for what else its thread shall hear of.
    """

    def __init__(
        self,
        flux: ModuleType,
        uri: str | None,
        state: InstanceState,
        on_start: Callable[[Any], None] | None = None,
    ) -> None:
        self._flux = flux
        self._on_start = on_start
        self._handle = flux.Flux(uri)
        self._uri = uri or "the default URI"
        self._state = state
        self._is_closing = False
        self._stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="lifeline", daemon=True)
        self._thread.start()

    def explains(self, error: BaseException | None) -> bool:
        """Return whether `error` comes of the instance's end, which `state` knows then."""
        if is_gone(error):
            self._vanished(str(error) if isinstance(error, OSError) else _CLOSED)
        return self._state.now.phase is InstancePhase.GONE

    def close(self) -> None:
        """Stop watching; not from a callback."""
        self._is_closing = True
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        end_orphans()
        os.close(self._stop_fd)

    def _watch(self) -> None:
        handle, constants = self._handle, self._flux.constants
        stop = handle.fd_watcher_create(
            self._stop_fd, lambda *_: handle.reactor_stop(), constants.FLUX_POLLIN
        )
        # Has the reactor look at the connection even where the request below is refused.
        nothing = handle.msg_watcher_create(
            lambda *_: None, constants.FLUX_MSGTYPE_EVENT, "flux-endpoint.nothing"
        )
        with suppress(OSError), stop, nothing:
            monitor = handle.rpc("state-machine.monitor", flags=constants.FLUX_RPC_STREAMING)
            then(monitor, self._state_changed)
            if self._on_start is not None:
                self._on_start(handle)
            handle.reactor_run()
        if not self._is_closing:
            self._vanished(_CLOSED)

    def _state_changed(self, monitor: Any) -> None:
        with suppress(OSError):  # not the owner; or this was the last state
            monitor.get()
            monitor.reset()
            then(self._handle.rpc("state-machine.get"), self._state_named)

    def _state_named(self, answer: Any) -> None:
        with suppress(OSError):
            if answer.get()["state"] in ENDING:
                self._state.ends(f"the Flux instance at {self._uri} is ending")

    def _vanished(self, detail: str) -> None:
        self._state.vanished(f"the Flux instance at {self._uri} is gone: {detail}")
