"""The events in the agent's inbox, and the work of one turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from flux_endpoint.amqp import Delivery, StateChange
from flux_endpoint.endpoint.outbox import Settled
from flux_endpoint.endpoint.retries import Attempts
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask


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


Event: TypeAlias = (
    Delivery
    | EngineResult
    | EngineEvent
    | Settled
    | StateChange
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
    #: Tasks of the engine to end, or to send a signal to.
    kills: list[tuple[str, int | None]] = field(default_factory=list)

    @property
    def has_changes(self) -> bool:
        """Whether there is something to record."""
        return bool(self.accepted or self.finished or self.confirmed or self.attempts)
