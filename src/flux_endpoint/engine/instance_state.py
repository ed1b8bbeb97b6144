"""The state of the Flux instance under an engine, and the fate of tasks whose jobs it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from flux_endpoint.engine.state_table import StateTable


class InstancePhase(Enum):
    """Phases of the instance's lifecycle."""

    RUNNING = "running"
    #: Flux starts no more jobs and ends the running ones.
    ENDING = "ending"
    #: It has reached its time limit; no job may outlast it.
    EXPIRED = "expired"
    #: Its owner takes it back: none of our jobs may run in it.
    GIVEN_UP = "given up"
    #: No broker answers any more.
    GONE = "gone"


class InstanceChange(Enum):
    """Events of the instance."""

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
    """The phase, and the reason why it is not running any more: the beginning of a sentence."""

    phase: InstancePhase
    reason: str = ""

    @property
    def is_lost(self) -> bool:
        """Whether nothing runs in it any more."""
        return self.phase in (InstancePhase.GIVEN_UP, InstancePhase.GONE)


class Fate(Enum):
    """The consequence for a task whose job Flux has ended, or stopped following."""

    #: The job's end is the task's end: the instance is not the cause.
    OWN_END = "own end"
    #: The job ended with the instance; the task is left for the next engine.
    LEFT = "left"
    #: The job ended with the instance, whose owner will report the reason in a moment.
    AWAITS_LOSS = "awaits loss"


class QuestionedInstance(Protocol):
    """The questions that a Flux instance answers; see `Backend`."""

    instance: str

    def is_ending(self) -> bool: ...  # noqa: D102
    def is_expired(self) -> bool: ...  # noqa: D102


class InstanceState:
    """Owns the state of a Flux instance. For any thread.

    Args:
        instance: the instance.
        at_end: what becomes of tasks whose jobs Flux ends with the instance. Unless this is
            `Fate.LEFT`, somebody else follows its orderly end, and it stays `RUNNING` here.
        on_change: called with the previous phase and the new condition, on the thread that detected
            the change; not called when an instance that was given up is gone.
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
        """The condition, as far as it is known."""
        return self._now

    @property
    def ends_jobs(self) -> bool:
        """Whether tasks of cancelled jobs are left for the next engine."""
        return self._at_end is Fate.LEFT and self._now.phase is not InstancePhase.RUNNING

    def ends(self, reason: str) -> None:
        """Record that Flux reports the end of the instance."""
        if self._at_end is Fate.LEFT:
            self._take(InstanceChange.ENDS, reason)

    def lose(self, reason: str) -> None:
        """Give up the instance."""
        self._take(InstanceChange.GIVE_UP, reason)

    def vanished(self, reason: str) -> None:
        """Record that no broker answers any more."""
        self._take(InstanceChange.VANISHES, reason)

    def is_ending(self) -> bool:
        """Return whether tasks should be left for the next engine; may ask Flux."""
        if self._at_end is Fate.LEFT and not self.ends_jobs and self._instance.is_ending():
            self.ends(f"the Flux instance at {self._instance.instance} is ending")
        return self.ends_jobs

    def fate(self) -> Fate:
        """Return what becomes of a task whose job was ended by others; may ask Flux.

        Flux ends jobs before it announces its own end, and the announcement may arrive after the
        jobs' ends.
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
            # Running tasks were lost for this reason when the instance was given up.
            self._now = InstanceCondition(phase, before.reason if before.is_lost else reason)
        if not before.is_lost:
            self._on_change(before.phase, self._now)
