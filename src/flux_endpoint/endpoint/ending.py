"""The end of an agent: its reason, the stop of the engine, and the time to leave."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.inbox import EndpointGone, EngineLost, Signal
from flux_endpoint.engine.base import Engine
from flux_endpoint.errors import EndpointGoneError, FluxEndpointError, InstanceLostError
from flux_endpoint.logs import event

log = logging.getLogger(__name__)

#: Seconds that a stopping agent waits for the broker's last confirms.
CONFIRM_GRACE = 3.0


class AgentEnding:
    """Stops the engine once, and says when the agent may leave. Used by the agent's thread.

    Args:
        engine: stopped on a thread of its own, while results still come in.
        config: how long running tasks have to finish, and how long the agent stays idle.
        on_begin: called once, when the agent begins to stop.
        signal: puts a signal into the agent's inbox; from any thread.
    """

    def __init__(
        self,
        engine: Engine,
        config: EndpointConfig,
        on_begin: Callable[[], None],
        signal: Callable[[Signal], None],
    ) -> None:
        self._engine = engine
        self._grace = config.shutdown_grace
        self._on_begin = on_begin
        self._signal = signal
        self._has_begun = False
        self._was_requested = False
        self._engine_stopped = False
        self._idle_limit = config.stop_when_idle
        #: Monotonic time since which there is no unfinished task.
        self._idle_since: float | None = None
        self._loss: EngineLost | EndpointGone | None = None
        #: Monotonic time at which the agent leaves.
        self.leave_at = math.inf
        #: Whether there are accepted jobs that were not submitted before the stop.
        self.leaves_jobs = False

    @property
    def due(self) -> float:
        """Monotonic time at which the agent must be woken."""
        idle_since = math.inf if self._idle_since is None else self._idle_since
        return min(self.leave_at, idle_since + self._idle_limit)

    def count(self, unfinished: int) -> None:
        """Begin to stop once there has been no unfinished task for the limit.

        Args:
            unfinished: how many tasks are unfinished now.
        """
        now = time.monotonic()
        if unfinished or self._has_begun:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since >= self._idle_limit:
            event(log, logging.INFO, "endpoint stops: it is idle", seconds=self._idle_limit)
            self._begin()

    @property
    def reason(self) -> str:
        """Why the agent ends without being asked; empty: it does not."""
        return self._loss.reason if self._loss is not None else ""

    def request(self, unfinished: int) -> None:
        """Begin to stop on request; a second request ends the agent at once.

        Args:
            unfinished: how many tasks run.
        """
        if self._was_requested:
            event(log, logging.WARNING, "endpoint stops at once")
            self.leave_at = 0.0
        elif not self._has_begun:
            event(
                log,
                logging.INFO,
                "endpoint stops: running tasks may finish, the rest stays in the journal",
                grace=self._grace,
                unfinished=unfinished,
            )
            self._begin()
        self._was_requested = True

    def request_once(self, unfinished: int) -> None:
        """Begin to stop on a request that may arrive several times."""
        if not self._was_requested:
            self.request(unfinished)

    def lose(self, loss: EngineLost | EndpointGone, unfinished: int) -> None:
        """Begin to stop because the Flux instance or the endpoint's registration is gone.

        Args:
            loss: what is gone.
            unfinished: how many tasks run.
        """
        if not self._has_begun:
            self._loss = loss
            reason = f"endpoint stops: {loss.reason}"
            event(log, logging.ERROR, reason, unfinished=unfinished)
            self._begin()

    def _begin(self) -> None:
        self._has_begun = True
        self._idle_since = None
        self._on_begin()
        threading.Thread(target=self._stop_engine, name="engine stop", daemon=True).start()

    def _stop_engine(self) -> None:
        try:
            self._engine.stop(self._grace)
        except Exception:
            log.exception("the engine did not stop cleanly")
        finally:
            self._signal(Signal.ENGINE_STOPPED)

    def engine_stopped(self) -> None:
        """Take note that the engine has stopped."""
        self._engine_stopped = True

    def consider_leaving(self, *, awaits_confirms: bool) -> None:
        """Decide when to leave once the engine has stopped.

        Args:
            awaits_confirms: whether the broker may still confirm results.
        """
        if self._engine_stopped:
            grace = CONFIRM_GRACE if awaits_confirms else 0.0
            self.leave_at = min(self.leave_at, time.monotonic() + grace)

    def error(self, unfinished: int) -> FluxEndpointError | None:
        """Return the error that `Agent.run` raises; `None`: it ended on request.

        Args:
            unfinished: how many tasks stay in the journal.
        """
        if self._loss is None or self._was_requested:
            return None
        if isinstance(self._loss, EndpointGone):
            return EndpointGoneError(self.reason)
        return InstanceLostError(
            f"the endpoint has stopped: {self.reason}. {unfinished} tasks stay in its journal; "
            "start it in another allocation to have them run"
        )
