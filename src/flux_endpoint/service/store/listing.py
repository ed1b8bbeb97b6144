"""Lists of tasks, newest first."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

import sqlalchemy as sa

from flux_endpoint.protocol.envelope import (
    ATTEMPTS,
    CPU_TIME,
    FAILED_ATTEMPTS,
    JOBID,
    MAX_RSS,
    NODE,
    RETURNCODE,
    WORKER,
)
from flux_endpoint.protocol.fields import readable
from flux_endpoint.protocol.operations import (
    LONGEST_ERROR,
    ListedState,
    ListedTask,
    TaskRecord,
)
from flux_endpoint.protocol.rest import TaskEventDocument
from flux_endpoint.protocol.states import ErrorCode, TaskState
from flux_endpoint.service.store.engine import chunks
from flux_endpoint.service.store.events import events_of
from flux_endpoint.service.store.output import last_bytes, last_line, last_lines, output_of
from flux_endpoint.service.store.tables import (
    endpoints,
    functions,
    submissions,
    task_events,
    tasks,
)

#: Key of a result's details with the times of its state changes (ms since the epoch).
TRANSITIONS = "task_transitions"
#: Key of a status report with the tasks that workers are running, and when each was started.
RUNNING = "running_tasks"

# Number of submissions in a page, and bytes read from the end of an error text.
_PAGE = 100
#: The same with a filter, which may have to search all of their tasks.
_FILTERED = 10
#: The most submissions in a query.
_MOST_SUBMISSIONS = 10_000
#: Number of tasks that are read from the database at a time.
_CHUNK = 1000
_ERROR_BYTES = 300
_CANCELLED = f"{ErrorCode.CANCELLED}:".encode()
_JOB_EVENTS = ("submit", "start", "finish")
#: The most characters of a node's name, or of a job's list of nodes.
_LONGEST_NODE = 1000
#: The most characters of the JSON of failed attempts.
_LONGEST_ATTEMPTS = 128 << 10


@dataclass(frozen=True)
class PagePosition:
    """The position of a task, after which the next page of a list begins."""

    submission_id: str
    position: int

    def __str__(self) -> str:
        return f"{self.submission_id}:{self.position}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that was formatted as `text` by `str`.

        Raises:
            ValueError: `text` is not a position.
        """
        submission_id, colon, position = text.partition(":")
        # Nine digits are enough, since the size of a submission is limited.
        if not colon or not re.fullmatch("[0-9]{1,9}", position):
            raise ValueError("is no place in a list: take it from `next` of an answer")
        return cls(submission_id, int(position))


@dataclass(frozen=True)
class Wanted:
    """The filter of a list of tasks. `None` matches all tasks.

    Attributes:
        owner_id: id of the tasks' owner.
        endpoint_id: id of their endpoint.
        group_id: id of their task group.
        ended: whether they have ended.
        failed: whether they have failed.
        follows: whether to include tasks that only follow a job.
        task_id: their id.
        jobid: id of their job, in decimal.
        task_ids: ids of which theirs is one.
    """

    owner_id: str | None
    endpoint_id: str | None = None
    group_id: str | None = None
    ended: bool | None = None
    failed: bool | None = None
    follows: bool = True
    task_id: str | None = None
    jobid: str | None = None
    task_ids: frozenset[str] | None = None

    def submissions(self) -> Iterator[sa.ColumnElement[bool]]:
        """Yield the conditions on the tasks' submissions."""
        if self.owner_id is not None:
            yield submissions.c.owner_id == self.owner_id
        if self.endpoint_id is not None:
            theirs = endpoints.c.id == self.endpoint_id, endpoints.c.parent_id == self.endpoint_id
            yield submissions.c.endpoint_id.in_(sa.select(endpoints.c.id).where(sa.or_(*theirs)))
        if self.group_id is not None:
            yield submissions.c.group_id == self.group_id
        if not self.follows:
            yield submissions.c.attach_jobid.is_(None)
        if self.task_id is not None:
            of_task = sa.select(tasks.c.submission_id).where(tasks.c.id == self.task_id)
            yield submissions.c.id.in_(of_task)
        if self.task_ids is not None:
            of_tasks = sa.select(tasks.c.submission_id).where(tasks.c.id.in_(self.task_ids))
            yield submissions.c.id.in_(of_tasks)
        if self.jobid is not None:
            of_jobs = sa.select(tasks.c.submission_id).where(tasks.c.id.in_(self._of_job()))
            yield submissions.c.id.in_(of_jobs) | (submissions.c.attach_jobid == self.jobid)

    def tasks(self) -> Iterator[sa.ColumnElement[bool]]:
        """Yield the conditions on the tasks, of these submissions."""
        completed = tasks.c.completed_at
        if self.ended is not None:
            yield completed.is_not(None) if self.ended else completed.is_(None)
        if self.failed is not None:
            yield tasks.c.failed.is_(self.failed)
        if self.task_id is not None:
            yield tasks.c.id == self.task_id
        if self.task_ids is not None:
            yield tasks.c.id.in_(self.task_ids)
        if self.jobid is not None:  # a task without a function follows its submission's job
            yield tasks.c.id.in_(self._of_job()) | tasks.c.function_id.is_(None)

    def _of_job(self) -> sa.Select[tuple[str]]:
        # As in the index: a parameter could be any name.
        is_first = task_events.c.name == sa.literal_column("'submit'")
        return sa.select(task_events.c.task_id).where(task_events.c.jobid == self.jobid, is_first)


def newest_tasks(
    connection: sa.Connection,
    wanted: Wanted,
    after: PagePosition | None = None,
    may_go_on: Callable[[PagePosition], bool] = lambda _: True,
) -> Iterator[tuple[PagePosition, ListedTask]]:
    """Yield tasks and their positions, newest first.

    Args:
        connection: a transaction.
        wanted: the filter.
        after: begin after this position.
        may_go_on: called with the position that is reached, now and then; the list ends if it
            returns `False`.
    """
    query = (
        sa.select(
            submissions.c.id,
            submissions.c.group_id,
            submissions.c.endpoint_id,
            # For a task of a user endpoint, the list shows the multi-user endpoint.
            sa.func.coalesce(endpoints.c.parent_id, endpoints.c.id).label("shown_endpoint_id"),
            submissions.c.attach_jobid,
            submissions.c.created_at,
            submissions.c.published_at,
        )
        .join_from(submissions, endpoints)
        .where(*wanted.submissions())
        .order_by(submissions.c.id.desc())
    )
    if after is not None:
        query = query.where(submissions.c.id <= after.submission_id)
    running: dict[str, dict[str, Any]] = {}
    # The first query is small, as most lists are; later ones grow for filters with few matches.
    size = _PAGE
    # Submissions may have any number of tasks: with a filter, few are searched at a time.
    step = _PAGE if wanted.ended is None else _FILTERED
    while rows := connection.execute(query.limit(size)).all():
        for first in range(0, len(rows), step):
            page = rows[first : first + step]
            yield from _of_page(connection, wanted, page, after, running)
            # No task of a submission is before its position 0.
            if not may_go_on(PagePosition(page[-1].id, 0)):
                return
        query = query.where(submissions.c.id < rows[-1].id)
        size = min(size * 10, _MOST_SUBMISSIONS)


def task_record(connection: sa.Connection, owner_id: str | None, task_id: str) -> TaskRecord | None:
    """Return a user's task, whole; `None`: there is no such task.

    Args:
        connection: a transaction.
        owner_id: id of the user; `None`: any user.
        task_id: the task.
    """
    _, listed = next(newest_tasks(connection, Wanted(owner_id, task_id=task_id)), (None, None))
    if listed is None:
        return None
    query = (
        sa.select(
            submissions.c.resource_specification,
            submissions.c.run_options,
            submissions.c.published_at,
            tasks.c.details,
            last_bytes(tasks.c.result, LONGEST_ERROR).label("result"),
        )
        .join_from(tasks, submissions)
        .where(tasks.c.id == task_id)
    )
    row = connection.execute(query).one()
    name = sa.select(endpoints.c.name).where(endpoints.c.id == listed.endpoint_id)
    error = None if listed.error is None else (row.result or b"").decode(errors="replace")
    output = output_of(connection, [task_id]).get(task_id)
    return TaskRecord(
        **vars(listed),
        **readable({} if output is None else output.details),
        endpoint_name=connection.scalar(name),
        published=row.published_at,
        resource_specification=row.resource_specification,
        run_options=row.run_options,
        error_text=readable(error),
        events=[TaskEventDocument(**vars(each)) for each in events_of(connection, task_id)],
        details=readable(row.details or {}),
    )


def _of_page(
    connection: sa.Connection,
    wanted: Wanted,
    page: Sequence[Any],
    after: PagePosition | None,
    running: dict[str, dict[str, Any]],
) -> Iterator[tuple[PagePosition, ListedTask]]:
    by_id = {row.id: row for row in page}
    query = (
        sa.select(
            tasks.c.id,
            tasks.c.submission_id,
            tasks.c.position,
            tasks.c.function_id,
            functions.c.name,
            tasks.c.completed_at,
            tasks.c.failed,
            tasks.c.details,
            sa.case((tasks.c.failed, last_bytes(tasks.c.result, _ERROR_BYTES))).label("error"),
            sa.case((tasks.c.failed, sa.func.substr(tasks.c.result, 1, len(_CANCELLED)))).label(
                "code"
            ),
        )
        .outerjoin_from(tasks, functions)
        .where(tasks.c.submission_id.in_(by_id), *wanted.tasks())
        .order_by(tasks.c.submission_id.desc(), tasks.c.position.desc())
    )
    if after is not None:
        query = query.where(
            (tasks.c.submission_id != after.submission_id) | (tasks.c.position < after.position)
        )
    rows = _in_chunks(connection, query)
    while part := list(islice(rows, _PAGE)):
        ids = [row.id for row in part]
        jobs, printed = _jobs(connection, ids), last_lines(connection, ids)
        for row in part:
            submission = by_id[row.submission_id]
            known = running.get(submission.endpoint_id)
            if row.completed_at is None and known is None:
                known = running_tasks(connection, submission.endpoint_id)
                running[submission.endpoint_id] = known
            place = PagePosition(row.submission_id, row.position)
            listed = _listed(row, submission, jobs.get(row.id, _Job()), known or {})
            listed.printed = readable(printed.get(row.id))
            yield place, listed


def _in_chunks(connection: sa.Connection, query: sa.Select[Any]) -> Iterator[Any]:
    """Yield rows, in the order of `query`: a submission may have very many."""
    at: PagePosition | None = None
    while True:
        part = query
        if at is not None:
            first = tasks.c.submission_id < at.submission_id
            same = tasks.c.submission_id == at.submission_id
            part = query.where(first | (same & (tasks.c.position < at.position)))
        rows = connection.execute(part.limit(_CHUNK)).all()
        yield from rows
        if len(rows) < _CHUNK:
            return
        at = PagePosition(rows[-1].submission_id, rows[-1].position)


@dataclass
class _Job:
    """The job of a task, according to its events. Times are in seconds since the epoch."""

    jobid: int | None = None
    submitted: float | None = None
    started: float | None = None
    stopped: float | None = None


def _jobs(connection: sa.Connection, task_ids: list[str]) -> dict[str, _Job]:
    found: dict[str, _Job] = {}
    for part in chunks(task_ids):
        query = sa.select(
            task_events.c.task_id,
            task_events.c.jobid,
            task_events.c.name,
            task_events.c.timestamp,
        ).where(task_events.c.task_id.in_(part), task_events.c.name.in_(_JOB_EVENTS))
        for row in connection.execute(query.order_by(task_events.c.sequence)):
            job = found.setdefault(row.task_id, _Job())
            if row.jobid is not None:
                job.jobid = int(row.jobid)
            match row.name:
                case "submit":  # it may come again, after a failed attempt
                    job.submitted, job.started, job.stopped = row.timestamp, None, None
                case "start":
                    job.started = row.timestamp
                case "finish":
                    job.stopped = row.timestamp
    return found


def running_tasks(connection: sa.Connection, endpoint_id: str) -> dict[str, Any]:
    """Return when the tasks were started that an endpoint's workers are running, by task id."""
    query = sa.select(endpoints.c.last_report).where(endpoints.c.id == endpoint_id)
    report = connection.scalar(query) or {}
    running = report.get(RUNNING) if report.get("active") is not False else None
    return running if isinstance(running, dict) else {}


def ran_between(details: dict[str, Any] | None) -> tuple[float | None, float | None]:
    """Return when a task began and ceased to run, according to its result's details."""
    times = (details or {}).get(TRANSITIONS) or {}
    return _seconds(times.get(TaskState.EXEC_START)), _seconds(times.get(TaskState.EXEC_END))


def _listed(row: Any, submission: Any, job: _Job, running: dict[str, Any]) -> ListedTask:
    started, stopped = job.started, job.stopped
    details = row.details or {}
    if row.completed_at is not None:
        began, ceased = ran_between(row.details)
        started, stopped = started or began, stopped or ceased
    elif started is None and isinstance(running.get(row.id), int | float):
        started = float(running[row.id])
    jobid = job.jobid
    if jobid is None:  # the job's events travel separately from the result
        jobid = _jobid(details.get(JOBID))
    if submission.attach_jobid is not None:
        jobid = int(submission.attach_jobid)
        # The task runs while it follows the job, which may have ended earlier.
        if started is not None or row.completed_at is not None:
            started, stopped = submission.created_at, row.completed_at
    return ListedTask(
        task_id=row.id,
        task_group_id=submission.group_id,
        endpoint_id=submission.shown_endpoint_id,
        function_id=row.function_id,
        function_name=row.name,
        state=_state(row, submission, job, started),
        submitted=submission.created_at,
        started=started,
        stopped=stopped,
        ended=row.completed_at,
        error=last_line(row.error) if row.failed else None,
        jobid=jobid,
        returncode=_whole(details, RETURNCODE),
        queue_time=_between(submission.created_at, started),
        run_time=_between(started, stopped),
        **_run(details, is_ours=jobid is not None or isinstance(details.get(NODE), str)),
    )


def _run(details: dict[str, Any], *, is_ours: bool) -> dict[str, Any]:
    """Return what a result's details say of its run; official endpoints say nothing of it."""
    node, cpu_time = details.get(NODE), details.get(CPU_TIME)
    return {
        "node": readable(node[:_LONGEST_NODE]) if isinstance(node, str) else None,
        "worker": _whole(details, WORKER),
        "attempts": _whole(details, ATTEMPTS) or (1 if details and is_ours else None),
        "failed_attempts": _failed_attempts(details.get(FAILED_ATTEMPTS)),
        "cpu_time": float(cpu_time) if isinstance(cpu_time, int | float) else None,
        "max_rss": _whole(details, MAX_RSS),
    }


def _failed_attempts(text: Any) -> list[str]:
    if not isinstance(text, str) or len(text) > _LONGEST_ATTEMPTS:
        return []
    try:
        reasons = json.loads(text)
    except (ValueError, RecursionError):
        return []
    known = isinstance(reasons, list) and all(isinstance(each, str) for each in reasons)
    return [readable(each) for each in reasons] if known else []


def _whole(details: dict[str, Any], key: str) -> int | None:
    value = details.get(key)
    return value if isinstance(value, int) else None


def _jobid(text: Any) -> int | None:
    is_number = isinstance(text, str) and len(text) <= 20 and text.isascii() and text.isdigit()
    return int(text) if is_number else None


def _between(start: float | None, end: float | None) -> float | None:
    # Clocks of different machines may differ.
    return None if start is None or end is None else round(max(0.0, end - start), 6)


def _state(row: Any, submission: Any, job: _Job, started: float | None) -> ListedState:
    if row.completed_at is not None:
        if not row.failed:
            return ListedState.SUCCESS
        return ListedState.CANCELLED if row.code == _CANCELLED else ListedState.FAILED
    if started is not None:
        return ListedState.RUNNING
    if job.submitted is not None:
        return ListedState.QUEUED
    return ListedState.RECEIVED if submission.published_at is None else ListedState.PENDING


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None
