"""Routes for administrators. Without the scope `admin` they answer as if there were none.

`service.identity` checks that for all paths below `ADMIN_PREFIX`, before a request comes here.
"""

from typing import Annotated

from fastapi import APIRouter, Query

from flux_endpoint.protocol.administration import (
    ListUserEndpoints,
    ListUserTasks,
    UserEndpointsAnswer,
    UsersAnswer,
    UserTask,
    UserTaskRecord,
    UserTasksAnswer,
)
from flux_endpoint.service.context import Service
from flux_endpoint.service.errors import invalid_field
from flux_endpoint.service.identity import Caller
from flux_endpoint.service.routes.tasks import TaskId, unknown_task
from flux_endpoint.service.scope import ADMIN_PREFIX
from flux_endpoint.service.store import administration, users
from flux_endpoint.service.store.listing import task_record as find_record
from flux_endpoint.service.task_lists import find_tasks

router = APIRouter(prefix=ADMIN_PREFIX.rstrip("/"))

#: Seconds that a list of tasks may be searched for; then the answer says where the search stopped.
PATIENCE = 5.0


@router.get("/tasks")
def list_tasks(
    query: Annotated[ListUserTasks, Query()], service: Service, caller: Caller
) -> UserTasksAnswer:
    """List the tasks of all users, newest first."""
    with service.database.read() as connection:
        owner_id = None
        if query.user is not None:
            owner_id = users.user_id_of(connection, query.user)
            if owner_id is None:
                raise invalid_field("user", "there is no such user")
        found = find_tasks(connection, owner_id, query, patience=PATIENCE)
        owners = administration.owners_of(connection, [each.task_id for each in found.tasks])
    service.audit.did("tasks of others listed", caller.name, owner=query.user)
    return UserTasksAnswer(
        tasks=[UserTask.of(each, owners[each.task_id]) for each in found.tasks],
        next=found.next,
    )


@router.get("/tasks/{task_id}")
def task_record(task_id: TaskId, service: Service, caller: Caller) -> UserTaskRecord:
    """Return a task of any user, with its job's events and the end of its error."""
    with service.database.read() as connection:
        record = find_record(connection, None, task_id)
        owner = administration.owners_of(connection, [task_id]).get(task_id)
    if record is None or owner is None:
        raise unknown_task(task_id, service.settings.keep_tasks)
    service.audit.did("task of another read", caller.name, owner=owner, task_id=task_id)
    return UserTaskRecord.of(record, owner)


@router.get("/endpoints")
def list_endpoints(
    query: Annotated[ListUserEndpoints, Query()], service: Service
) -> UserEndpointsAnswer:
    """List the endpoints of all users, by owner and name."""
    with service.database.read() as connection:
        found, last = administration.list_all_endpoints(
            connection, owner=query.user, after=query.after, limit=query.limit
        )
    return UserEndpointsAnswer(endpoints=found, next=last)


@router.get("/users")
def list_users(service: Service) -> UsersAnswer:
    """List the users, with what they have and the limits that are set for them."""
    with service.database.read() as connection:
        return UsersAnswer(users=administration.list_users(connection))
