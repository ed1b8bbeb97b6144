"""Detects at once that the Flux instance is ending or gone."""

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

#: Errors of calls that no broker answers, or that have no route to rank 0.
_GONE = {
    errno.ECONNRESET,
    errno.ECONNREFUSED,
    errno.EPIPE,
    errno.ENOTCONN,
    errno.EHOSTUNREACH,
    errno.ENODATA,  # from FluxExecutor's reactor, when a watch ends early
}
#: Prefixes of FluxExecutor's errors after its own connection broke.
_BROKEN = ("Executor is broken", "reactor start failed")
_CLOSED = "its broker has closed the connection"
#: Broker states that lead to its end (by name: the numbers differ between releases).
ENDING = frozenset({"cleanup", "shutdown", "finalize", "goodbye", "unload-builtins", "exit"})


def is_gone(error: BaseException | None) -> bool:
    """Return whether an error of Flux's bindings means that the broker is gone."""
    if isinstance(error, OSError):
        return error.errno in _GONE
    return isinstance(error, RuntimeError) and str(error).startswith(_BROKEN)


def quiet_executors() -> None:
    """Log, instead of print, errors that end FluxExecutor's threads when their instance is gone.

    The affected futures report the error, or nobody waits for them any more.
    """
    before = threading.excepthook
    if getattr(before, "is_quiet", False):
        return

    def hook(what: threading.ExceptHookArgs) -> None:
        error = what.exc_value
        broken = isinstance(error, RuntimeError) and str(error).startswith(_BROKEN)
        if isinstance(error, OSError) and type(what.thread).__module__ == "flux.job.executor":
            broken = error.errno in _GONE
        # It reports the end of events again for a job whose future is done already.
        if broken or (isinstance(error, InvalidStateError) and "FluxExecutorFuture" in str(error)):
            logs.event(log, logging.DEBUG, "a thread of FluxExecutor has ended", reason=error)
        else:
            before(what)

    hook.is_quiet = True  # type: ignore[attr-defined]  # marks it as installed
    threading.excepthook = hook


class Lifeline:
    """A dedicated connection to the broker, which closes when the broker ends.

    A thread waits for the close, and for the broker's announcement that the instance is ending
    (only the instance's owner gets it). Code that gets an error from Flux calls `explains`, since
    it may see the end before this thread does.

    Args:
        flux: Flux's bindings.
        uri: the instance's; `None`: the default instance.
        state: gets both events.
        on_start: called with the connection, to subscribe to further events on its thread.
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
        """Return whether `error` was caused by the instance's end; then `state` has it, too."""
        if is_gone(error):
            self._vanished(str(error) if isinstance(error, OSError) else _CLOSED)
        return self._state.now.phase is InstancePhase.GONE

    def close(self) -> None:
        """Stop watching; must not be called from a callback."""
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
        # Wakes the reactor even if the request below fails.
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
        with suppress(OSError):  # not the owner, or this was the last state
            monitor.get()
            monitor.reset()
            then(self._handle.rpc("state-machine.get"), self._state_named)

    def _state_named(self, answer: Any) -> None:
        with suppress(OSError):
            if answer.get()["state"] in ENDING:
                self._state.ends(f"the Flux instance at {self._uri} is ending")

    def _vanished(self, detail: str) -> None:
        self._state.vanished(f"the Flux instance at {self._uri} is gone: {detail}")
