"""Job events of tasks that run as jobs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.tables import task_events

#: Identifies an event, so that duplicates are detected: task, name and timestamp.
EventKey = tuple[str, str, float]


@dataclass(frozen=True)
class StoredEvent:
    """An event as it is stored and sent on; its fields are those of `messages.TaskEvent`."""

    task_id: str
    jobid: int | None
    name: str
    timestamp: float
    context: dict[str, Any]

    @property
    def key(self) -> EventKey:
        """The key that identifies the event."""
        return self.task_id, self.name, self.timestamp


def known_events(connection: sa.Connection, task_ids: Iterable[str]) -> set[EventKey]:
    """Return the keys of the stored events of tasks."""
    found: set[EventKey] = set()
    for part in chunks(task_ids):
        query = sa.select(task_events.c.task_id, task_events.c.name, task_events.c.timestamp)
        rows = connection.execute(query.where(task_events.c.task_id.in_(part)))
        found.update((row.task_id, row.name, row.timestamp) for row in rows)
    return found


def add_events(connection: sa.Connection, new: Sequence[StoredEvent]) -> None:
    """Store new events in the given order."""
    rows = [
        {**vars(event), "jobid": None if event.jobid is None else str(event.jobid)} for event in new
    ]
    if rows:
        connection.execute(sa.insert(task_events), rows)


def events_of(connection: sa.Connection, task_id: str) -> list[StoredEvent]:
    """Return the events of a task in order of arrival."""
    query = (
        sa.select(task_events)
        .where(task_events.c.task_id == task_id)
        .order_by(task_events.c.sequence)
    )
    return [
        StoredEvent(
            row.task_id,
            None if row.jobid is None else int(row.jobid),
            row.name,
            row.timestamp,
            row.context,
        )
        for row in connection.execute(query)
    ]
