"""Routes to read tasks and task groups."""

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, Path
from fastapi.responses import Response, StreamingResponse

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.duration import format_duration
from flux_endpoint.protocol.rest import BatchStatus, TaskGroupAnswer, UuidText
from flux_endpoint.protocol.states import TaskState
from flux_endpoint.service import topology
from flux_endpoint.service.context import Service, ServiceContext
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.store import task_groups, tasks
from flux_endpoint.service.store.ids import made_at
from flux_endpoint.service.store.output import TaskOutput, in_groups, output_of
from flux_endpoint.service.store.users import User

router = APIRouter()

#: Maximum bytes of results that an answer about many tasks holds in memory at a time.
ANSWER_BYTES = 4 * 2**20


TaskId = Annotated[UuidText, Path()]
GroupId = Annotated[UuidText, Path()]


@router.get("/v2/tasks/{task_id}")
def read(task_id: TaskId, service: Service, caller: Caller) -> Response:
    """Return the state of one task, and its result if it has ended."""
    with service.database.read() as connection:
        task = owned(connection, task_id, caller, service.settings.keep_tasks)
    return json_answer(_document(task))


@router.post("/v2/batch_status")
def read_batch(request: BatchStatus, service: Service, caller: Caller) -> Response:
    """Return the states of many tasks. An unknown task is failed, so that no client waits for it.

    The answer is streamed, since the results of many tasks may not fit into memory.
    """
    requested_ids: dict[str, list[str]] = {}
    for asked in dict.fromkeys(request.task_ids):
        requested_ids.setdefault(_canonical(asked), []).append(asked)
    with service.database.read() as connection:
        parts = in_groups(
            connection, caller.id, requested_ids, ANSWER_BYTES, with_output=request.output
        )
    answer = _batch(service, caller, parts, requested_ids, with_output=request.output)
    return StreamingResponse(answer, media_type="application/json")


def _batch(
    service: ServiceContext,
    caller: User,
    parts: list[list[str]],
    requested_ids: dict[str, list[str]],
    *,
    with_output: bool,
) -> Iterator[bytes]:
    """Yield the answer of `read_batch` in pieces, with a few results in memory at a time."""
    between = '{"response":"batch","results":{'
    for part in parts:
        with service.database.read() as connection:
            found = list(tasks.task_states(connection, caller.id, part))
            owned_ids = [each.id for each in found] if with_output else []
            printed = output_of(connection, owned_ids)
        while found:
            task = found.pop()
            document = _text(_document(task, printed.get(task.id)))
            for asked in requested_ids.pop(task.id):
                yield f"{between}{_text(asked)}:{document}".encode()
                between = ","
    for asked in (each for left in requested_ids.values() for each in left):
        document = _text(_unknown_document(asked, service.settings.keep_tasks))
        yield f"{between}{_text(asked)}:{document}".encode()
        between = ","
    yield f"{between if between != ',' else ''}}}}}".encode()


@router.get("/v2/taskgroup/{group_id}", response_model=TaskGroupAnswer)
def read_group(
    group_id: GroupId, service: Service, caller: Caller, *, create_queue: bool = True
) -> Response:
    """Return the tasks of a group.

    An official client calls this before it consumes from the group's queue. That queue may be
    missing if only clients with their own queues have used the group, so it is declared here.
    Clients with their own queues send `create_queue=false`.
    """
    with service.database.read() as connection:
        if task_groups.group_owner(connection, group_id) != caller.id:
            raise unknown_group(group_id)
    if create_queue:
        with service.database.write() as connection:
            task_groups.send_results(connection, group_id, bundles=False)
        service.publisher.declare(topology.of_group(group_id), service.settings.publish_timeout)
    with service.database.read() as connection:
        ids = task_groups.group_tasks(connection, group_id)
    # Without pydantic models, since there may be a million tasks.
    return json_answer({"taskgroup_id": group_id, "tasks": [{"id": task_id} for task_id in ids]})


def owned(connection: sa.Connection, task_id: str, caller: User, keep: float) -> tasks.StoredTask:
    """Return a task that a user owns.

    Args:
        connection: a transaction.
        task_id: the task.
        caller: the user.
        keep: seconds for which a task is kept after its end.

    Raises:
        ServiceError: 404, the task does not exist, was removed, or belongs to another user.
    """
    found = list(tasks.task_states(connection, caller.id, [task_id]))
    if not found:
        raise unknown_task(task_id, keep)
    return found[0]


def unknown_task(task_id: str, keep: float) -> ServiceError:
    """Return the error for a task that does not exist, was removed, or is another user's.

    Args:
        task_id: the task.
        keep: seconds for which a task is kept after its end.
    """
    return ServiceError(
        _why_unknown(task_id, keep),
        http_status=404,
        code="TASK_EXPIRED" if _is_old(task_id, keep) else "TASK_NOT_FOUND",
        field="task_id",
    )


def unknown_group(group_id: str) -> ServiceError:
    """Return the error for a task group that does not exist, or belongs to another user."""
    return ServiceError(
        f"task group {group_id} is unknown",
        http_status=404,
        code="TASK_GROUP_NOT_FOUND",
        field="task_group_id",
    )


def _is_old(task_id: str, keep: float) -> bool:
    """Return whether a task is so old, by its id, that it may have been removed."""
    made = made_at(task_id)
    return made is not None and made < time.time() - keep


def _why_unknown(task_id: str, keep: float) -> str:
    if not _is_old(task_id, keep):
        return f"task {task_id} is unknown: it was not submitted here with this identity"
    day = time.strftime("%Y-%m-%d", time.gmtime(made_at(task_id)))
    return (
        f"task {task_id} is not known any more: its id dates from {day}, and tasks are deleted "
        f"{format_duration(keep)} after their end"
    )


def _canonical(task_id: str) -> str:
    try:
        return str(UUID(task_id))
    except ValueError:
        return ""  # no task has this id


def json_answer(content: Any) -> Response:
    """Return `content` as JSON in ASCII: a result may contain text that UTF-8 can't encode."""
    return Response(_text(content), media_type="application/json")


def _text(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))


def _document(task: tasks.StoredTask, output: TaskOutput | None = None) -> dict[str, Any]:
    if task.completed_at is None:
        return {"task_id": task.id, "status": task.status}
    return {
        "task_id": task.id,
        "status": task.status,
        "exception" if task.failed else "result": (task.result or b"").decode(
            errors="surrogatepass"
        ),
        "completion_t": str(task.completed_at),
        "details": task.details if output is None else {**(task.details or {}), **output.details},
    }


def _unknown_document(task_id: str, keep: float) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "status": TaskState.FAILED,
        "exception": _why_unknown(task_id, keep),
        "completion_t": str(time.time()),
        "details": None,
    }
