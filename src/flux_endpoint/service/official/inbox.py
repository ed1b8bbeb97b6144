"""The events that are posted to the dispatcher, and the order in which it handles them."""

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
    """Tasks of these endpoints have ended: there may be room for further tasks."""

    endpoint_ids: frozenset[str]


@dataclass(frozen=True)
class TasksPublished:
    """Tasks were published, or failed to be with `error`."""

    endpoint_id: str
    task_ids: Sequence[str]
    error: BaseException | None


@dataclass(frozen=True)
class EndpointReported:
    """An endpoint has sent a status report."""

    endpoint_id: str
    report: Mapping[str, Any]


@dataclass(frozen=True)
class EndpointRegistered:
    """An endpoint was registered, and is about to start."""

    endpoint_id: str
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class EndpointStopping:
    """A multi-user endpoint should stop."""

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
    """Merge the events of one kind, so that each endpoint is handled once for all of them.

    Args:
        items: the events, in order of arrival.

    Returns:
        The events in the order in which they are handled.
    """
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
