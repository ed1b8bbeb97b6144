"""Tasks that wait for other tasks: what each needs, and which are ready.

- A task *waits* while a task that it needs has not ended.
- It is *ready* once all of them have succeeded, or one has failed; then it fails, too.
- It is *released* once the broker has it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.rest import TaskNeeds
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.output import last_bytes
from flux_endpoint.service.store.tables import (
    dependencies,
    dependents,
    endpoints,
    submissions,
    tasks,
)
from flux_endpoint.service.store.tasks import NewTask

#: Maximum number of tasks that are released at a time, and of bytes of their inputs. A single task
#: may exceed the bytes.
PAGE_TASKS = 500
PAGE_BYTES = 32 * 2**20

#: Maximum number of dependents that the transaction of a batch of results changes, and that one
#: transaction counts anew: a task may have 200,000.
MAX_COUNTED = 1000
PAGE_COUNTED = 500
#: Maximum number of dependents that are found at a time: each time, the database sorts all that are
#: left of a task's.
MAX_FOUND = 50 * PAGE_COUNTED

_RELEASED = -1

# Results of so many characters are more than a task may take, even in base64 with line ends.
_TOO_MANY_CHARACTERS = MAX_PAYLOAD_BYTES * 3 // 2
# Bytes that are read from the end of a failed task's error: its last line says what it was.
_ERROR_BYTES = 4096

# Built once, since every batch of results uses them.
_ANY = sa.select(dependents.c.task_id).limit(1)
_NEEDED = (
    sa.select(dependencies.c.needs_id, sa.func.count())
    .where(dependencies.c.needs_id.in_(sa.bindparam("ids", expanding=True)))
    .group_by(dependencies.c.needs_id)
)
_OF_NEED = dependents.c.task_id.in_(
    sa.select(dependencies.c.task_id).where(dependencies.c.needs_id == sa.bindparam("need"))
)
_ONE_MET = (
    sa.update(dependents)
    .where(_OF_NEED, dependents.c.unmet > 0)
    .values(unmet=dependents.c.unmet - 1)
)
_ONE_FAILED = (
    sa.update(dependents)
    .where(_OF_NEED, dependents.c.unmet > 0)
    .values(unmet=0, failed_need=sa.bindparam("need"))
)


@dataclass(frozen=True)
class ReadyTask:
    """A task to publish now, or to fail.

    Attributes:
        task: the task, with its own arguments; without them if it fails.
        submission_id: its submission.
        endpoint_id: the endpoint that runs it.
        failed_need: the needed task that failed; `None`: all succeeded.
        error: the end of that task's error.
        values: the results that it takes, in order; `None`: they are too large to be read.
    """

    task: NewTask
    submission_id: str
    endpoint_id: str
    failed_need: str | None
    error: str = ""
    values: list[str] | None = field(default_factory=list)

    @property
    def can_run(self) -> bool:
        """Whether nothing that is known by its size alone makes it fail."""
        return self.failed_need is None and self.values is not None


@dataclass(frozen=True)
class Counted:
    """The consequences of the end of some tasks for those that need them.

    Attributes:
        are_ready: whether others are ready now.
        left: ended tasks whose many dependents are yet to be counted (`recount`).
    """

    are_ready: bool = False
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.are_ready or bool(self.left)


def add(
    connection: sa.Connection, owner_id: str, needs: Mapping[str, TaskNeeds]
) -> tuple[str, str] | None:
    """Store what new tasks need.

    Args:
        connection: the transaction that stores the tasks.
        owner_id: their owner.
        needs: by task id, what it needs.

    Returns:
        `None`; if the owner has no such task, the id of a new task and what it needs, and nothing
        is stored.
    """
    wanted = {each: [*dict.fromkeys(its.values + its.after)] for each, its in needs.items()}
    known = _states(connection, owner_id, {one for its in wanted.values() for one in its})
    for task_id, its in wanted.items():
        for one in its:
            if one not in known:
                return task_id, one
    connection.execute(
        sa.insert(dependents),
        [
            {
                "task_id": task_id,
                "unmet": 0 if failed else sum(known[one] is None for one in its),
                "failed_need": failed[0] if failed else None,
            }
            for task_id, its in wanted.items()
            for failed in [[one for one in its if known[one]]]
        ],
    )
    rows = [
        {
            "task_id": task_id,
            "position": position,
            "needs_id": one,
            "is_value": position < len(its.values),
        }
        for task_id, its in needs.items()
        for position, one in enumerate(its.values + its.after)
    ]
    connection.execute(sa.insert(dependencies), rows)
    return None


def _states(connection: sa.Connection, owner_id: str, ids: Iterable[str]) -> dict[str, bool | None]:
    """Return for each task of a user whether it failed (`None`: not ended), and lock its row.

    The lock keeps a result from being stored between this look and the end of the transaction.
    """
    found: dict[str, bool | None] = {}
    for part in chunks(sorted(ids)):
        query = (
            sa.select(tasks.c.id, tasks.c.completed_at, tasks.c.failed)
            .join_from(tasks, submissions)
            .where(tasks.c.id.in_(part), submissions.c.owner_id == owner_id)
            .order_by(tasks.c.id)
            .with_for_update(of=tasks)
        )
        for task_id, completed_at, failed in connection.execute(query):
            found[task_id] = None if completed_at is None else bool(failed)
    return found


def tasks_ended(connection: sa.Connection, ended: Mapping[str, bool]) -> Counted:
    """Record that tasks have ended; return what that means for others.

    Args:
        connection: the transaction that stores their results.
        ended: by task id, whether it failed.
    """
    if not ended or connection.scalar(_ANY) is None:
        return Counted()
    ids = sorted(ended)
    numbers: dict[str, int] = {}
    for part in chunks(ids):
        numbers.update((row[0], row[1]) for row in connection.execute(_NEEDED, {"ids": part}))
    needed: list[str] = []
    left: list[str] = []
    room = MAX_COUNTED
    for need in sorted(numbers, key=lambda each: (numbers[each], each)):
        room -= numbers[need]
        (needed if room >= 0 else left).append(need)
    _lock(connection, ids, needed)
    for need in needed:
        connection.execute(_ONE_FAILED if ended[need] else _ONE_MET, {"need": need})
    _forget_needs(connection, ids)
    for part in chunks(ids):
        connection.execute(sa.delete(dependents).where(dependents.c.task_id.in_(part)))
    return Counted(bool(needed), tuple(left))


def needing(connection: sa.Connection, need: str, after: str = "") -> list[str]:
    """Return the next `MAX_FOUND` tasks that need a task, in the order of their ids.

    Args:
        connection: a transaction.
        need: the task that they need.
        after: only ids above this one.
    """
    query = (
        sa.select(dependencies.c.task_id)
        .distinct()
        .where(dependencies.c.needs_id == need, dependencies.c.task_id > after)
        .order_by(dependencies.c.task_id)
        .limit(MAX_FOUND)
    )
    return list(connection.scalars(query))


def uncounted(connection: sa.Connection, after: str = "") -> tuple[list[str], str | None]:
    """Look for tasks that wait although the end of a task that they need was not counted.

    Args:
        connection: a transaction.
        after: only ids above this one.

    Returns:
        Such tasks among the next page of waiting ones, and the last id of that page; `None`: no
        waiting tasks are left.
    """
    page = (
        sa.select(dependents.c.task_id, dependents.c.unmet)
        .where(dependents.c.unmet > 0, dependents.c.task_id > after)
        .order_by(dependents.c.task_id)
        .limit(PAGE_COUNTED)
        .subquery()
    )
    needs = (
        sa.select(
            dependencies.c.task_id,
            sa.func.count(
                sa.case((tasks.c.completed_at.is_(None), dependencies.c.needs_id)).distinct()
            ).label("unmet"),
            sa.func.max(sa.case((tasks.c.failed.is_(True), 1), else_=0)).label("failed"),
        )
        .join_from(dependencies, tasks, tasks.c.id == dependencies.c.needs_id)
        .where(dependencies.c.task_id.in_(sa.select(page.c.task_id)))
        .group_by(dependencies.c.task_id)
        .subquery()
    )
    query = (
        sa.select(
            page.c.task_id,
            sa.or_(
                needs.c.task_id.is_(None), needs.c.unmet != page.c.unmet, needs.c.failed == 1
            ).label("is_uncounted"),
        )
        .join_from(page, needs, needs.c.task_id == page.c.task_id, isouter=True)
        .order_by(page.c.task_id)
    )
    rows = connection.execute(query).all()
    return [each.task_id for each in rows if each.is_uncounted], rows[-1].task_id if rows else None


def recount(connection: sa.Connection, task_ids: Sequence[str]) -> None:
    """Count anew how many unfinished tasks each of some tasks waits for, if it waits.

    Args:
        connection: a transaction that writes.
        task_ids: one page of tasks.
    """
    _lock(connection, task_ids)  # a statement of its own: the next one sees what others committed
    needs = (
        sa.select(sa.func.count(dependencies.c.needs_id.distinct()))
        .join_from(dependencies, tasks, tasks.c.id == dependencies.c.needs_id)
        .where(dependencies.c.task_id == dependents.c.task_id, tasks.c.completed_at.is_(None))
        .scalar_subquery()
    )
    failed = (
        sa.select(sa.func.min(dependencies.c.needs_id))
        .join_from(dependencies, tasks, tasks.c.id == dependencies.c.needs_id)
        .where(dependencies.c.task_id == dependents.c.task_id, tasks.c.failed.is_(True))
        .scalar_subquery()
    )
    waits = dependents.c.task_id.in_(task_ids), dependents.c.unmet > 0
    connection.execute(
        sa.update(dependents)
        .where(*waits)
        .values(unmet=sa.case((failed.is_not(None), 0), else_=needs), failed_need=failed)
    )


def _lock(connection: sa.Connection, task_ids: Sequence[str], needed: Sequence[str] = ()) -> None:
    """Lock the rows of tasks, and of those that need some tasks, always in the same order.

    So two transactions of PostgreSQL can't wait for each other. SQLite has one writer at a time.
    """
    if connection.dialect.name == "sqlite":
        return
    of_needs = sa.select(dependencies.c.task_id).where(dependencies.c.needs_id.in_(needed))
    rows = (
        sa.select(dependents.c.task_id)
        .where(dependents.c.task_id.in_(task_ids) | dependents.c.task_id.in_(of_needs))
        .order_by(dependents.c.task_id)
        .with_for_update()
        .subquery()
    )
    connection.execute(sa.select(sa.func.count()).select_from(rows))


def ready(connection: sa.Connection, without: Sequence[str] = ()) -> list[ReadyTask]:
    """Return tasks that are ready, the oldest first, at most one page.

    Args:
        connection: a transaction.
        without: submissions whose tasks are left out.
    """
    size = (
        sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(tasks.c.result)), 0))
        .join_from(dependencies, tasks, tasks.c.id == dependencies.c.needs_id)
        .where(dependencies.c.task_id == dependents.c.task_id, dependencies.c.is_value)
        .scalar_subquery()
    )
    query = (
        sa.select(
            tasks.c.id, tasks.c.function_id, tasks.c.submission_id, submissions.c.endpoint_id,
            dependents.c.failed_need, size.label("taken"),
            sa.func.coalesce(sa.func.length(tasks.c.payload), 0).label("own"),
        )
        .join_from(dependents, tasks)
        .join(submissions)
        .join(endpoints, endpoints.c.id == submissions.c.endpoint_id)
        .where(
            dependents.c.unmet == 0,
            tasks.c.completed_at.is_(None),
            endpoints.c.deleted_at.is_(None),  # otherwise its tasks fail for that
            submissions.c.id.not_in(without),
        )
        .order_by(dependents.c.task_id)
        .limit(PAGE_TASKS)
    )  # fmt: skip
    found: list[ReadyTask] = []
    left = PAGE_BYTES
    for row in connection.execute(query).all():
        task = NewTask(row.id, row.function_id, "")
        values = None if row.taken > _TOO_MANY_CHARACTERS else list[str]()
        each = ReadyTask(task, row.submission_id, row.endpoint_id, row.failed_need, values=values)
        left -= row.taken + row.own if each.can_run else 0
        if left < 0 and found:
            break
        found.append(each)
    return _with_data(connection, found)


def _with_data(connection: sa.Connection, found: Sequence[ReadyTask]) -> list[ReadyTask]:
    """Return the tasks with their arguments and the results that they take, or their errors."""
    payloads: dict[str, str] = {}
    values: dict[str, list[str]] = {}
    for part in chunks(each.task.id for each in found if each.can_run):
        of_part = tasks.c.id.in_(part), tasks.c.payload.is_not(None)  # or it has just ended
        own = sa.select(tasks.c.id, tasks.c.payload).where(*of_part)
        payloads.update((row.id, row.payload.decode()) for row in connection.execute(own))
        query = (
            sa.select(dependencies.c.task_id, tasks.c.result)
            .join_from(dependencies, tasks, tasks.c.id == dependencies.c.needs_id)
            .where(dependencies.c.task_id.in_(part), dependencies.c.is_value)
            .order_by(dependencies.c.task_id, dependencies.c.position)
        )
        for task_id, result in connection.execute(query):
            values.setdefault(task_id, []).append(_text(result))
    errors: dict[str, str] = {}
    for part in chunks({each.failed_need for each in found if each.failed_need is not None}):
        end = last_bytes(tasks.c.result, _ERROR_BYTES).label("end")
        failed = sa.select(tasks.c.id, end).where(tasks.c.id.in_(part))
        errors.update(
            (row.id, (row.end or b"").decode(errors="replace"))
            for row in connection.execute(failed)
        )
    return [
        replace(
            each,
            task=replace(each.task, payload=payloads[each.task.id]),
            values=values.get(each.task.id, []),
        )
        if each.can_run
        else replace(each, error=errors.get(each.failed_need or "", ""))
        for each in found
        if not each.can_run or each.task.id in payloads
    ]


def _text(result: bytes | None) -> str:
    return (result or b"").decode(errors="surrogatepass")


def released(connection: sa.Connection, task_ids: Iterable[str]) -> None:
    """Record that the broker has tasks, or their failures; forget what they needed.

    Args:
        connection: a transaction that writes.
        task_ids: the tasks.
    """
    ids = sorted(task_ids)
    _lock(connection, ids)
    for part in chunks(ids):
        query = sa.update(dependents).where(dependents.c.task_id.in_(part))
        connection.execute(query.values(unmet=_RELEASED))
    _forget_needs(connection, ids)


def _forget_needs(connection: sa.Connection, task_ids: Iterable[str]) -> None:
    for part in chunks(task_ids):
        connection.execute(sa.delete(dependencies).where(dependencies.c.task_id.in_(part)))
