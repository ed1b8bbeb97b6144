"""What comes into the agent's inbox, and what one turn makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from flux_endpoint.amqp import Delivery, StateChange
from flux_endpoint.endpoint.outbox import Settled
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.protocol.messages import TaskKill


class Signal(Enum):
    """What others ask of the agent, or tell it, without more words."""

    STOP = auto()
    ENGINE_STOPPED = auto()


@dataclass(frozen=True, slots=True)
class ConsumeRefused:
    """The broker refuses the task queue."""

    reason: str


@dataclass(frozen=True, slots=True)
class QueueGranted:
    """The broker gives this agent, and no other, the task queue."""


@dataclass(frozen=True, slots=True)
class BrokerAlarm:
    """The broker takes no messages now, or takes them again: `reason` is empty then."""

    reason: str


@dataclass(frozen=True, slots=True)
class EngineLost:
    """What the engine's tasks ran on is gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class EndpointGone:
    """The service says that it does not know this endpoint any more."""

    reason: str


@dataclass(frozen=True, slots=True)
class CommandDelivery:
    """A delivery of the command queue."""

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
    """What one turn has to record, and to do once it is recorded."""

    accepted: list[EngineTask] = field(default_factory=list)
    finished: list[EngineResult] = field(default_factory=list)
    #: Tasks whose results came once more.
    repeated: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    answered: list[Delivery] = field(default_factory=list)
    job_events: list[EngineEvent] = field(default_factory=list)
    kills: list[TaskKill] = field(default_factory=list)
