"""The agent's inbox: its events, and the turns in which they are taken and recorded."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from flux_endpoint.amqp import Delivery, StateChange
from flux_endpoint.amqp.bundle import MAX_PARTS
from flux_endpoint.backoff import Backoff
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.endpoint.outbox import Settled
from flux_endpoint.endpoint.retries import Attempts
from flux_endpoint.endpoint.status import JournalDisk
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.errors import RecordError
from flux_endpoint.owner_thread import OwnerThread
from flux_endpoint.turn_pause import TurnPause

#: The most events in one turn, and so in one transaction.
MAX_TURN = 512
#: A turn costs a synchronized commit here, two messages, a transaction of the service, and a turn
#: of the client: together about as much CPU time as a short command. While several tasks are
#: unfinished, a result comes later by this part of the remaining time at most; the last ones come
#: at once.
PAUSE = TurnPause(share=1 / 4, longest=0.05)
#: With this many unfinished tasks, the results of one pause fill a message.
ENOUGH_AHEAD = int(MAX_PARTS / PAUSE.share)
#: The assumed time (s) between two events after a longer silence.
LONGEST_GAP = 0.01
#: Seconds between attempts to write a journal whose disk is full: the first, and the longest.
FIRST_PAUSE, MAX_PAUSE = 0.2, 5.0


class Signal(Enum):
    """Requests and notices without further data."""

    STOP = auto()
    ENGINE_STOPPED = auto()


@dataclass(frozen=True, slots=True)
class ConsumeRefused:
    """The broker refuses the task queue."""

    reason: str


@dataclass(frozen=True, slots=True)
class QueueGranted:
    """The broker has granted this agent, and no other, the task queue."""


@dataclass(frozen=True, slots=True)
class BrokerAlarm:
    """The broker blocks publishing, or accepts messages again: then `reason` is empty."""

    reason: str


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine's Flux instance is gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class EndpointGone:
    """The service says that it does not know this endpoint any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class CommandDelivery:
    """A delivery from the command queue."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Synchronized:
    """The disk keeps what was recorded before the synchronization began, or it failed."""

    error: RecordError | None


Event: TypeAlias = (
    Delivery
    | EngineResult
    | EngineEvent
    | Settled
    | StateChange
    | Synchronized
    | CommandDelivery
    | ConsumeRefused
    | QueueGranted
    | BrokerAlarm
    | EngineLost
    | EndpointGone
    | Signal
)


@dataclass
class Turn:
    """The work of one turn: what to record, and what to do once it is recorded."""

    accepted: list[EngineTask] = field(default_factory=list)
    finished: list[EngineResult] = field(default_factory=list)
    #: Tasks of the engine that have ended, besides those of `finished`: their results arrived more
    #: than once, or they were attempts at a task.
    repeated: list[str] = field(default_factory=list)
    #: Changes of the attempts at tasks.
    attempts: list[Attempts] = field(default_factory=list)
    #: Attempts that begin, as the engine is to have them.
    begun: list[EngineTask] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    answered: list[Delivery] = field(default_factory=list)
    job_events: list[EngineEvent] = field(default_factory=list)
    #: Urgencies that were asked for, by task, as the journal has them.
    urgencies: dict[str, int | None] = field(default_factory=dict)
    #: Tasks of the engine that get another urgency.
    reordered: list[tuple[str, int]] = field(default_factory=list)
    #: Tasks of the engine to end, or to send a signal to.
    kills: list[tuple[str, int | None]] = field(default_factory=list)

    @property
    def has_changes(self) -> bool:
        """Whether there is something to record."""
        changes = (self.accepted, self.finished, self.confirmed, self.attempts, self.urgencies)
        return any(changes)

    @property
    def settled(self) -> list[str]:
        """The engine's tasks whose ends it can forget once the disk keeps this turn."""
        return [*(result.task_id for result in self.finished), *self.repeated]

    @property
    def needs_disk(self) -> bool:
        """Whether the disk must keep its record before it is answered."""
        return bool(self.accepted or self.finished or self.attempts or self.urgencies)


class TurnRecorder:
    """Takes events from the inbox, and writes each turn into the journal.

    A thread synchronizes the disk, while further turns are recorded. Turns are answered in order.

    Args:
        inbox: where other threads put events.
        journal: the endpoint's.
        on_change: called when the journal's disk becomes full, or can be written again.
        on_wait: called before each pause while the journal can't be written.
    """

    def __init__(
        self,
        inbox: queue.SimpleQueue[Event],
        journal: Journal,
        on_change: Callable[[], None],
        on_wait: Callable[[], None],
    ) -> None:
        self._inbox = inbox
        self._journal = journal
        self._on_change = on_change
        self._on_wait = on_wait
        self._put_off: list[Event] = []
        #: Recorded turns that are not answered. The disk keeps the first ones, and is being
        #: synchronized for the first ones, as these numbers say; one of the two is zero.
        self._unanswered: deque[Turn] = deque()
        self._kept = self._synchronizing = 0
        self._disk_thread = OwnerThread("journal-disk")
        #: Monotonic time of the last turn; mean seconds between two events.
        self._last = float("-inf")
        self._gap = LONGEST_GAP
        self._disk = JournalDisk()

    def start(self) -> None:
        """Start the thread that synchronizes the disk."""
        self._disk_thread.start()

    @property
    def trouble(self) -> str:
        """Why the journal can't be written; empty: it can."""
        return self._disk.trouble

    def take(self, due: float, unfinished: int = 0) -> list[Event]:
        """Wait for events until the monotonic time `due`; return at most `MAX_TURN` of them.

        Args:
            due: the monotonic time.
            unfinished: number of unfinished tasks; the more they are, the more events a turn has.

        Raises:
            RecordError: the disk can't be synchronized, and the agent was asked to stop.
        """
        events, self._put_off = self._put_off, []
        try:
            if not events:
                events.append(self._inbox.get(timeout=max(0.0, due - time.monotonic())))
                self._collect(unfinished, due)
            while len(events) < MAX_TURN:
                events.append(self._inbox.get_nowait())
        except queue.Empty:
            pass
        for each in events:
            if isinstance(each, Synchronized):
                self._synchronized(each)
        events = [each for each in events if not isinstance(each, Synchronized)]
        if events:
            now = time.monotonic()
            self._gap += (min((now - self._last) / len(events), LONGEST_GAP) - self._gap) / 4
            self._last = now
        return events

    def _collect(self, unfinished: int, due: float) -> None:
        """Sleep while further events arrive, if there are many tasks."""
        ahead, now = min(unfinished, ENOUGH_AHEAD), time.monotonic()
        pause = min(PAUSE.left(ahead * self._gap, now - self._last), due - now)
        if pause > 0 and 1 + self._inbox.qsize() < int(ahead * PAUSE.share):
            time.sleep(pause)

    def record(self, turn: Turn) -> None:
        """Write what a turn has to record; wait while it can't be written, as on a full disk.

        It then survives the end of this process, and after `sync` also a power failure.

        Raises:
            RecordError: the journal is damaged, or the agent was asked to stop meanwhile.
        """
        self._until_written(lambda: self._write(turn))

    def to_answer(self, turn: Turn) -> list[Turn]:
        """Return the recorded turns that can be answered now, perhaps with the latest, `turn`."""
        self._unanswered.append(turn)
        ready: list[Turn] = []
        while self._unanswered and (self._kept or not self._unanswered[0].needs_disk):
            ready.append(self._unanswered.popleft())
            self._kept = max(0, self._kept - 1)
        if self._unanswered and not self._synchronizing:
            self._synchronizing = len(self._unanswered)
            self._disk_thread.post(self._sync)
        return ready

    def close(self) -> list[Turn]:
        """Synchronize the disk for the last time; return the turns that can be answered now."""
        self._disk_thread.stop()
        self._disk_thread.join()
        unanswered = list(self._unanswered)
        self._unanswered.clear()
        try:
            if unanswered:
                self._journal.sync()
        except RecordError:  # the broker keeps what is not acknowledged
            return []
        return unanswered

    def _synchronized(self, outcome: Synchronized) -> None:
        if outcome.error is not None:
            self._until_written(self._journal.sync)
        self._kept, self._synchronizing = self._synchronizing, 0

    def _sync(self) -> None:
        error: RecordError | None = None
        try:
            self._journal.sync()
        except RecordError as failure:
            error = failure
        self._inbox.put(Synchronized(error))

    def _write(self, turn: Turn) -> None:
        with self._journal.batch(durable=False):
            self._journal.accept(turn.accepted)
            self._journal.attempted(turn.attempts)
            if turn.urgencies:
                self._journal.set_urgencies(turn.urgencies)
            self._journal.finish(turn.finished)
            self._journal.confirmed(turn.confirmed)
        if turn.confirmed:
            self._journal.give_back()

    def _until_written(self, write: Callable[[], None]) -> None:
        pauses = Backoff(FIRST_PAUSE, MAX_PAUSE, jitter=0)
        while True:
            try:
                write()
            except RecordError as error:
                if error.damaged:
                    raise
                if self._disk.failed(str(error)):
                    self._on_change()
                self._on_wait()
                if not self._wait(next(pauses)):
                    raise
            else:
                if self._disk.mended():
                    self._on_change()
                return

    def _wait(self, pause: float) -> bool:
        """Put events off for `pause` seconds; return False if the agent is asked to stop."""
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            try:
                self._put_off.append(self._inbox.get(timeout=left))
            except queue.Empty:
                return True
            if self._put_off[-1] is Signal.STOP:
                return False
        return True
