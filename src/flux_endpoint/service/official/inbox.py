"""What the dispatcher is told of, and in which order it looks at what has come meanwhile."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TasksReady:
    """An endpoint has new tasks."""

    endpoint_id: str


@dataclass(frozen=True)
class TasksEnded:
    """Tasks of these endpoints have ended: there may be room for others."""

    endpoint_ids: frozenset[str]


@dataclass(frozen=True)
class TasksPublished:
    """What became of a page of tasks."""

    endpoint_id: str
    task_ids: Sequence[str]
    error: BaseException | None


@dataclass(frozen=True)
class EndpointReported:
    """What an endpoint has reported."""

    endpoint_id: str
    report: Mapping[str, Any]


@dataclass(frozen=True)
class EndpointRegistered:
    """An endpoint was registered, and is about to start."""

    endpoint_id: str
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class EndpointStopping:
    """A multi-user endpoint is to stop."""

    endpoint_id: str
    done: Future[None] = field(default_factory=Future)


class EndpointsDeleted:
    """Endpoints were deleted."""


class BrokerConnected:
    """The connection to the broker was made."""


Posted = (
    TasksReady
    | TasksEnded
    | EndpointReported
    | EndpointRegistered
    | EndpointStopping
    | EndpointsDeleted
    | BrokerConnected
    | TasksPublished
)
Item = Posted | tuple[TasksPublished, ...]


def coalesced(items: Sequence[Posted]) -> list[Item]:
    """Look at an endpoint once for all the results and submissions that have come meanwhile."""
    published = tuple(each for each in items if isinstance(each, TasksPublished))
    ended = [each.endpoint_ids for each in items if isinstance(each, TasksEnded)]
    ready = dict.fromkeys(each for each in items if isinstance(each, TasksReady))
    others = [
        each for each in items if not isinstance(each, TasksPublished | TasksEnded | TasksReady)
    ]
    return [
        *([published] if published else []),
        *others,
        *([TasksEnded(frozenset[str]().union(*ended))] if ended else []),
        *ready,
    ]
