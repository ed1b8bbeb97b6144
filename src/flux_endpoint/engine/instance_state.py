"""What becomes of the Flux instance under an engine, and of tasks whose jobs Flux ends with it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from flux_endpoint.engine.state_table import StateTable


class InstancePhase(Enum):
    """How far the instance is."""

    RUNNING = "running"
    #: Flux starts nothing more, and ends what runs.
    ENDING = "ending"
    #: Its time limit has come: Flux gives its jobs none beyond it.
    EXPIRED = "expired"
    #: Whoever lends it takes it back: nothing of ours may run in it.
    GIVEN_UP = "given up"
    #: No broker answers any more.
    GONE = "gone"


class InstanceChange(Enum):
    """What may happen to it."""

    ENDS = "Flux ends it"
    EXPIRES = "time limit"
    GIVE_UP = "lose"
    VANISHES = "connection closed"


_LOST = {
    InstanceChange.GIVE_UP: InstancePhase.GIVEN_UP,
    InstanceChange.VANISHES: InstancePhase.GONE,
}
PHASES = StateTable[InstancePhase, InstanceChange](
    (InstancePhase.RUNNING,),
    {
        InstancePhase.RUNNING: {
            InstanceChange.ENDS: InstancePhase.ENDING,
            InstanceChange.EXPIRES: InstancePhase.EXPIRED,
            **_LOST,
        },
        InstancePhase.ENDING: _LOST,
        InstancePhase.EXPIRED: _LOST,
        InstancePhase.GIVEN_UP: {InstanceChange.VANISHES: InstancePhase.GONE},
    },
    {"there": (InstancePhase.RUNNING, InstancePhase.ENDING, InstancePhase.EXPIRED)},
)


@dataclass(frozen=True)
class InstanceCondition:
    """How it is, and why it is not running any more: a sentence's beginning."""

    phase: InstancePhase
    reason: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether nothing runs in it any more."""
        return self.phase in (InstancePhase.GIVEN_UP, InstancePhase.GONE)


class Fate(Enum):
    """What becomes of a task whose job Flux has ended, or cut off."""

    #: The job's end is the task's: the instance has nothing to do with it.
    OWN_END = "own end"
    #: The job ended with the instance; the task is left for an engine to come.
    LEFT = "left"
    #: The job ended with the instance, and whoever lends that says in a moment what happened.
    AWAITS_LOSS = "awaits loss"


class QuestionedInstance(Protocol):
    """What can be asked of a Flux instance; see `Backend`."""

    instance: str

    def is_ending(self) -> bool: ...  # noqa: D102
    def is_expired(self) -> bool: ...  # noqa: D102


class InstanceState:
    """The owner of what becomes of a Flux instance. For any thread.

    Args:
        instance: the instance.
        at_end: what becomes of the tasks whose jobs Flux ends with the instance. Unless this is
            `Fate.LEFT`, its orderly end is somebody else's to follow: it stays `RUNNING` here.
        on_change: called with the phase before, and the condition now, on the thread on which that
            was found out; not when an instance that was given up is gone.
    """

    def __init__(
        self,
        instance: QuestionedInstance,
        at_end: Fate,
        on_change: Callable[[InstancePhase, InstanceCondition], None],
    ) -> None:
        self._instance = instance
        self._at_end = at_end
        self._on_change = on_change
        self._lock = threading.Lock()
        self._now = InstanceCondition(InstancePhase.RUNNING)

    @property
    def now(self) -> InstanceCondition:
        """How it is, as far as is known."""
        return self._now

    @property
    def ends_jobs(self) -> bool:
        """Whether tasks whose jobs were cancelled are left for an engine to come."""
        return self._at_end is Fate.LEFT and self._now.phase is not InstancePhase.RUNNING

    def ends(self, reason: str) -> None:
        """Take note that Flux says that the instance is ending."""
        if self._at_end is Fate.LEFT:
            self._take(InstanceChange.ENDS, reason)

    def lose(self, reason: str) -> None:
        """Give the instance up."""
        self._take(InstanceChange.GIVE_UP, reason)

    def vanished(self, reason: str) -> None:
        """Take note that no broker answers any more."""
        self._take(InstanceChange.VANISHES, reason)

    def is_ending(self) -> bool:
        """Return whether tasks are to be left for an engine to come; may ask Flux."""
        if self._at_end is Fate.LEFT and not self.ends_jobs and self._instance.is_ending():
            self.ends(f"the Flux instance at {self._instance.instance} is ending")
        return self.ends_jobs

    def fate(self) -> Fate:
        """Return what becomes of a task whose job was ended, and not by us; may ask Flux.

        Flux ends jobs before it says that it ends, and what it says may be heard later than their
        ends.
        """
        if self._at_end is Fate.AWAITS_LOSS and self._instance.is_ending():
            return Fate.AWAITS_LOSS
        if self._at_end is not Fate.LEFT:
            return Fate.OWN_END
        if not self.ends_jobs and self._instance.is_expired():
            where = self._instance.instance
            self._take(
                InstanceChange.EXPIRES, f"the Flux instance at {where} reached its time limit"
            )
        return Fate.LEFT if self.is_ending() else Fate.OWN_END

    def _take(self, happening: InstanceChange, reason: str) -> None:
        with self._lock:
            before = self._now
            phase = PHASES.after(before.phase, happening)
            if phase is before.phase:
                return
            # What runs was lost when it was given up, for that reason.
            self._now = InstanceCondition(phase, before.reason if before.is_lost else reason)
        if not before.is_lost:
            self._on_change(before.phase, self._now)
