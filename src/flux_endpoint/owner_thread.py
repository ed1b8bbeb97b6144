"""A thread that owns state: other threads post actions on that state."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds after which a failed `after_turn` is called again.
_AFTER_FAILURE = 1.0
#: Seconds; threads can't wait for arbitrarily long.
_LONGEST_WAIT = 86_400.0

Action = Callable[[], object]


class ThreadStoppedError(RuntimeError):
    """A call has no answer, because the thread was stopped."""


class OwnerThread:
    """Runs posted actions and timers, one at a time, on its own thread.

    A turn runs the posted actions, then the timers that are due, then `after_turn`. The first turn
    runs at once; later ones when something is posted or due. If an action fails, the error is
    reported to `on_error`, and the other actions still run.

    Args:
        name: the thread's name.
        after_turn: returns the seconds after which it must be called again at the latest;
            `math.inf`: after the next turn, whatever causes that.
        at_end: called on the thread at the very end.
        on_error: called with each error of an action; default: log it.
        new_thread: returns the thread for a name and a target; default: a daemon thread.
    """

    def __init__(
        self,
        name: str,
        *,
        after_turn: Callable[[], float] = lambda: math.inf,
        at_end: Action = lambda: None,
        on_error: Callable[[Exception], None] | None = None,
        new_thread: Callable[[str, Callable[[], None]], threading.Thread] | None = None,
    ) -> None:
        self._name = name
        self._after_turn = after_turn
        self._at_end = at_end
        self._on_error = on_error or self._log
        self._thread = (new_thread or _daemon)(name, self._run)
        self._inbox: queue.SimpleQueue[Action] = queue.SimpleQueue()
        self._timers = _Timers()
        #: Once this is set, nothing enters the inbox; its lock guarantees that every `call` is
        #: answered.
        self._is_closed = False
        self._gate = threading.Lock()
        #: Whether the thread runs nothing more; only for this thread.
        self._has_ended = False

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: the interpreter is about to exit.
        """
        self._thread.start()

    def post(self, action: Action) -> None:
        """Run `action` on the thread; drop it if the thread was stopped."""
        self.offer(action)

    def offer(self, action: Action) -> bool:
        """Run `action` on the thread; drop it and return `False` if the thread was stopped."""
        with self._gate:
            if not self._is_closed:
                self._inbox.put(action)
            return not self._is_closed

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the thread; return its result, or raise its error.

        Raises:
            ThreadStoppedError: the thread was stopped before it ran `function`.
        """
        if self.is_current:
            return function()
        call = _Call(function)
        if not self.offer(call):
            call.refuse()
        return call.answer.result()

    def after(self, seconds: float, action: Action) -> None:
        """Run `action` after `seconds`; only for actions of this thread."""
        self._timers.add(time.monotonic() + seconds, action)

    def stop(self) -> None:
        """End the thread.

        Called by another thread: after everything posted before has run. Called by an action of
        this thread: right after that action. Later posts are dropped.
        """
        if self.is_current:
            self._has_ended = True
            return
        with self._gate:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(self.stop)

    def join(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds for the thread's end; do nothing on the thread itself."""
        if not self.is_current and self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    @property
    def is_idle(self) -> bool:
        """Whether all posted actions have begun."""
        return self._inbox.empty()

    # On the thread

    def _run(self) -> None:
        wait = 0.0
        while not self._has_ended:
            wait = self._turn(wait)
        with self._gate:
            self._is_closed = True
        while not self.is_idle:
            self._drop(self._inbox.get())
        self._attempt(self._at_end)

    def _turn(self, wait: float) -> float:
        """Wait at most `wait` seconds for something to do; return how long to wait next."""
        wait = min(wait, self._timers.next_at - time.monotonic())
        timeout = None if math.isinf(wait) else min(max(0.0, wait), _LONGEST_WAIT)
        with suppress(queue.Empty):
            self._safely(self._inbox.get(timeout=timeout))
        for _ in range(self._inbox.qsize()):  # later posts wait, so that timers have a turn
            self._safely(self._inbox.get())
        while (due := self._timers.take(time.monotonic())) is not None:
            self._safely(due)
        again: list[float] = []
        self._safely(lambda: again.append(self._after_turn()))
        return again[0] if again else _AFTER_FAILURE

    def _safely(self, action: Action) -> None:
        if self._has_ended:
            self._drop(action)
        else:
            self._attempt(action)

    def _attempt(self, action: Action) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            self._on_error(error)

    def _drop(self, action: Action) -> None:
        if isinstance(action, _Call):
            action.refuse()

    def _log(self, error: Exception) -> None:
        log.error("an action of the thread %s failed; the others go on", self._name, exc_info=error)


class _Timers:
    """Delayed actions, by the monotonic time at which each is due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._order = itertools.count()

    def add(self, at: float, action: Action) -> None:
        heapq.heappush(self._heap, (at, next(self._order), action))

    @property
    def next_at(self) -> float:
        """When the next one is due; infinity if there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def take(self, now: float) -> Action | None:
        """Remove and return the next one that is due."""
        return heapq.heappop(self._heap)[2] if self.next_at <= now else None


@dataclass
class _Call(Generic[T]):
    """An action whose poster waits for the answer."""

    function: Callable[[], T]
    answer: Future[T] = field(default_factory=Future)

    def __call__(self) -> None:
        try:
            self.answer.set_result(self.function())
        except Exception as error:  # noqa: BLE001 - it is the caller's
            self.answer.set_exception(error)

    def refuse(self) -> None:
        self.answer.set_exception(ThreadStoppedError("the thread was stopped"))


def _daemon(name: str, target: Callable[[], None]) -> threading.Thread:
    return threading.Thread(target=target, name=name, daemon=True)
