"""Submissions and their tasks: storage, publication, routes and outcomes."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from flux_endpoint.protocol import states
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.output import TaskOutput, add_output
from flux_endpoint.service.store.tables import dependents, endpoints, submissions, tasks, users


@dataclass(frozen=True)
class NewTask:
    """A task to store."""

    id: str
    #: `None`: the task follows the job in its submission.
    function_id: str | None
    payload: str


@dataclass(frozen=True)
class Submission:
    """The common values of the tasks of one request. Times are in seconds since the epoch."""

    id: str
    owner_id: str
    endpoint_id: str
    group_id: str
    create_queue: bool
    resource_specification: dict[str, Any] | None = None
    result_serializers: list[str] | None = None
    #: Decimal id of the job that the only task of this submission follows.
    attach_jobid: str | None = None
    run_options: dict[str, Any] | None = None
    idempotency_key: str | None = None
    body_hash: str | None = None
    created_at: float = field(default_factory=time.time)
    published_at: float | None = None
    #: The name of the user with the id `owner_id`; it is not stored here.
    owner: str = ""


@dataclass(frozen=True)
class StoredTask:
    """A task as its owner sees it. Times are in seconds since the epoch."""

    id: str
    endpoint_id: str
    published_at: float | None
    completed_at: float | None
    failed: bool | None
    result: bytes | None
    details: dict[str, Any] | None

    @property
    def status(self) -> states.TaskState:
        """The state that is reported to the task's owner."""
        if self.completed_at is not None:
            return states.TaskState.FAILED if self.failed else states.TaskState.SUCCESS
        received = self.published_at is None
        return states.TaskState.RECEIVED if received else states.TaskState.WAITING_FOR_EP


@dataclass(frozen=True)
class TaskRoute:
    """A task's endpoint, the task group of its result, and whether it has ended."""

    endpoint_id: str
    group_id: str
    ended: bool
    #: Whether the service has presumed its failure, which a real result still replaces.
    presumed: bool = False
    #: Whether its client consumes from the group's queue `tg.G`.
    create_queue: bool = False
    #: Id of its owner, and bytes of its arguments while it is open.
    owner_id: str = ""
    size: int = 0
    #: Time of its submission (seconds since the epoch).
    submitted: float = 0.0


@dataclass(frozen=True)
class Open:
    """A user's open tasks.

    Attributes:
        tasks, bytes: number of them, and bytes of their arguments.
        limits: the limits that are set for the user, by name.
        rate_left: tasks that the user could submit at once; negative after a large submission.
        rate_counted_at: when that was counted (seconds since the epoch).
    """

    tasks: int
    bytes: int
    limits: Mapping[str, Any] | None
    rate_left: float | None
    rate_counted_at: float | None


@dataclass(frozen=True)
class TaskOutcome:
    """The end of a task."""

    task_id: str
    failed: bool
    #: Serialized value, or the error text if failed; UTF-8, lone surrogates included.
    data: bytes
    details: dict[str, Any] | None
    completed_at: float
    presumed: bool = False
    #: What it has printed, if anything.
    output: TaskOutput | None = None


_SUBMISSION_COLUMNS = (
    *(submissions.c[name] for name in Submission.__dataclass_fields__ if name != "owner"),
    sa.select(users.c.name)
    .where(users.c.id == submissions.c.owner_id)
    .scalar_subquery()
    .label("owner"),
)


# The statements of every submission and result are built once: building one, and computing its key
# in SQLAlchemy's cache of compiled statements, costs more than executing it.
_BY_KEY = sa.select(*_SUBMISSION_COLUMNS).where(
    submissions.c.owner_id == sa.bindparam("owner"),
    submissions.c.idempotency_key == sa.bindparam("key"),
)
_INSERT_SUBMISSION = sa.insert(submissions)
_INSERT_TASKS = sa.insert(tasks)
_MARK_PUBLISHED = (
    sa.update(submissions)
    .where(submissions.c.id.in_(sa.bindparam("ids", expanding=True)))
    .values(published_at=sa.bindparam("now"))
)
_ROUTES = (
    sa.select(
        tasks.c.id,
        submissions.c.endpoint_id,
        submissions.c.group_id,
        tasks.c.completed_at,
        tasks.c.presumed,
        submissions.c.create_queue,
        submissions.c.owner_id,
        sa.func.coalesce(sa.func.length(tasks.c.payload), 0),
        submissions.c.created_at,
    )
    .join_from(tasks, submissions)
    .where(tasks.c.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(tasks.c.id)  # always the same order of locks
    .with_for_update(of=tasks)
)
_COMPLETE = (
    sa.update(tasks)
    .where(tasks.c.id == sa.bindparam("of_task"))
    .values(
        completed_at=sa.bindparam("at"),
        failed=sa.bindparam("has_failed"),
        presumed=sa.bindparam("is_presumed"),
        result=sa.bindparam("data"),
        details=sa.bindparam("about"),
        payload=None,
    )
)
_CHANGE_OPEN = (
    sa.update(users)
    .where(users.c.id == sa.bindparam("owner"))
    .values(
        open_tasks=users.c.open_tasks + sa.bindparam("count"),
        open_bytes=users.c.open_bytes + sa.bindparam("size"),
    )
    .returning(
        users.c.open_tasks,
        users.c.open_bytes,
        users.c.limits,
        users.c.rate_left,
        users.c.rate_counted_at,
    )
)


def submission_by_key(connection: sa.Connection, owner_id: str, key: str) -> Submission | None:
    """Return a user's submission with an idempotency key, or `None`."""
    row = connection.execute(_BY_KEY, {"owner": owner_id, "key": key}).mappings().one_or_none()
    return Submission(**row) if row else None


def add_submission(
    connection: sa.Connection, submission: Submission, new: Sequence[NewTask]
) -> None:
    """Store a submission with its tasks."""
    values = {name: value for name, value in vars(submission).items() if name != "owner"}
    connection.execute(_INSERT_SUBMISSION, values)
    if new:
        rows = [
            {
                "id": task.id,
                "submission_id": submission.id,
                "position": position,
                "function_id": task.function_id,
                "payload": task.payload.encode(),
            }
            for position, task in enumerate(new)
        ]
        connection.execute(_INSERT_TASKS, rows)


def task_ids_by_function(
    connection: sa.Connection, submission_id: str
) -> dict[str | None, list[str]]:
    """Return a submission's task ids by function id, in the order of the original answer."""
    query = (
        sa.select(tasks.c.function_id, tasks.c.id)
        .where(tasks.c.submission_id == submission_id)
        .order_by(tasks.c.position)
    )
    found: dict[str | None, list[str]] = {}
    for function_id, task_id in connection.execute(query):
        found.setdefault(function_id, []).append(task_id)
    return found


def unpublished(connection: sa.Connection, limit: int) -> list[Submission]:
    """Return the oldest submissions that are not completely published, at most `limit`."""
    query = (
        sa.select(*_SUBMISSION_COLUMNS)
        .join_from(submissions, endpoints)
        .where(submissions.c.published_at.is_(None), endpoints.c.deleted_at.is_(None))
        .order_by(submissions.c.created_at)
        .limit(limit)
    )
    return [Submission(**row) for row in connection.execute(query).mappings()]


def unpublished_tasks(
    connection: sa.Connection, submission_id: str, which: sa.ColumnElement[bool]
) -> list[NewTask]:
    """Return the open tasks of a submission, without those that need other tasks.

    Args:
        connection: a transaction.
        submission_id: the submission.
        which: additional condition on `tasks`.
    """
    query = (
        sa.select(tasks.c.id, tasks.c.function_id, tasks.c.payload)
        .where(
            tasks.c.submission_id == submission_id,
            tasks.c.completed_at.is_(None),
            tasks.c.payload.is_not(None),
            ~sa.exists().where(dependents.c.task_id == tasks.c.id),
            which,
        )
        .order_by(tasks.c.position)
    )
    return [
        NewTask(row.id, row.function_id, row.payload.decode()) for row in connection.execute(query)
    ]


def submissions_by_id(connection: sa.Connection, ids: Iterable[str]) -> dict[str, Submission]:
    """Return submissions by their ids."""
    found: dict[str, Submission] = {}
    for part in chunks(ids):
        query = sa.select(*_SUBMISSION_COLUMNS).where(submissions.c.id.in_(part))
        found.update((row["id"], Submission(**row)) for row in connection.execute(query).mappings())
    return found


def open_tasks_of(
    connection: sa.Connection, endpoint_id: str, before: float, after_id: str, limit: int
) -> list[str]:
    """Return open tasks of an endpoint, in the order of their ids.

    Args:
        connection: a transaction.
        endpoint_id: the endpoint.
        before: only tasks that were submitted until this time (seconds since the epoch).
        after_id: only tasks with greater ids.
        limit: maximum number.
    """
    query = (
        sa.select(tasks.c.id)
        .join_from(submissions, tasks)
        .where(
            submissions.c.endpoint_id == endpoint_id,
            submissions.c.created_at <= before,
            tasks.c.completed_at.is_(None),
            tasks.c.id > after_id,
        )
        .order_by(tasks.c.id)
        .limit(limit)
    )
    return list(connection.scalars(query))


def published_and_open(connection: sa.Connection, endpoint_id: str) -> list[str]:
    """Return the open tasks that were published to an endpoint's queue."""
    query = (
        sa.select(tasks.c.id)
        .join_from(submissions, tasks)
        .where(
            submissions.c.endpoint_id == endpoint_id,
            submissions.c.published_at.is_not(None),
            tasks.c.completed_at.is_(None),
            ~sa.exists().where(dependents.c.task_id == tasks.c.id, dependents.c.unmet >= 0),
        )
    )
    return list(connection.scalars(query))


def mark_published(connection: sa.Connection, ids: Iterable[str]) -> None:
    """Record that the broker has all tasks of some submissions."""
    now = time.time()
    for part in chunks(ids):
        connection.execute(_MARK_PUBLISHED, {"ids": part, "now": now})


def task_states(
    connection: sa.Connection, owner_id: str, ids: Iterable[str]
) -> Iterator[StoredTask]:
    """Yield the tasks among `ids` that belong to a user.

    Args:
        connection: a transaction.
        owner_id: id of the user.
        ids: ids of tasks.
    """
    for part in chunks(ids):
        query = (
            sa.select(
                tasks.c.id,
                submissions.c.endpoint_id,
                submissions.c.published_at,
                tasks.c.completed_at,
                tasks.c.failed,
                tasks.c.result,
                tasks.c.details,
            )
            .join_from(tasks, submissions)
            .where(tasks.c.id.in_(part), submissions.c.owner_id == owner_id)
        )
        for row in connection.execute(query):
            yield StoredTask(*row)


def routes(connection: sa.Connection, ids: Iterable[str]) -> dict[str, TaskRoute]:
    """Return the routes of tasks by id, and lock their rows; unknown tasks are left out."""
    found: dict[str, TaskRoute] = {}
    for part in chunks(ids):
        for row in connection.execute(_ROUTES, {"ids": part}):
            task_id, endpoint_id, group_id, completed_at, presumed, *rest = row
            ended = completed_at is not None
            found[task_id] = TaskRoute(endpoint_id, group_id, ended, bool(presumed), *rest)
    return found


def stored_result(connection: sa.Connection, task_id: str) -> bytes | None:
    """Return a task's serialized value or error text; `None` if it has no result."""
    result: bytes | None = connection.scalar(sa.select(tasks.c.result).where(tasks.c.id == task_id))
    return result


def complete(
    connection: sa.Connection, outcomes: Sequence[TaskOutcome], known: Mapping[str, TaskRoute]
) -> None:
    """Store the outcomes of tasks, and delete their arguments.

    Args:
        connection: a transaction that writes.
        outcomes: at most one outcome per task.
        known: routes of the tasks, read in the same transaction.
    """
    rows = [
        {
            "of_task": outcome.task_id,
            "at": outcome.completed_at,
            "has_failed": outcome.failed,
            "is_presumed": outcome.presumed or None,
            "data": outcome.data,
            "about": outcome.details,
        }
        for outcome in outcomes
    ]
    if rows:
        connection.execute(_COMPLETE, rows)
        outputs = {each.task_id: each.output for each in outcomes if each.output}
        replaced = [each.task_id for each in outcomes if known[each.task_id].ended]
        add_output(connection, outputs, replaced)
    closed: dict[str, tuple[int, int]] = {}
    for outcome in outcomes:
        route = known[outcome.task_id]
        if not route.ended:
            count, size = closed.get(route.owner_id, (0, 0))
            closed[route.owner_id] = count + 1, size + route.size
    for owner_id in sorted(closed):  # always the same order of locks
        count, size = closed[owner_id]
        change_open(connection, owner_id, -count, -size)


def change_open(connection: sa.Connection, owner_id: str, count: int, size: int) -> Open:
    """Change the count of a user's open tasks; return the new count.

    Args:
        connection: a transaction that writes.
        owner_id: id of the user.
        count: number of tasks to add.
        size: bytes of arguments to add.
    """
    values = {"owner": owner_id, "count": count, "size": size}
    return Open(*connection.execute(_CHANGE_OPEN, values).one())
