"""The service's answers for administrators: all users, endpoints and tasks.

Times are seconds since the epoch. New keys may be added to these answers; none are removed.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, StringConstraints

from flux_endpoint.protocol.operations import MAX_LISTED, ListedTask, ListTasks, TaskRecord
from flux_endpoint.protocol.rest import UuidText

#: A user's name in a query.
UserName = Annotated[str, StringConstraints(min_length=1, max_length=256)]

#: Fields with what a task has printed.
_OUTPUT = ("printed", "stdout", "stderr", "stdout_dropped", "stderr_dropped")


class UserTask(ListedTask):
    """A task in a list of all users' tasks. What it has printed is for its owner alone."""

    #: Name of its owner.
    user: str

    @classmethod
    def of(cls, task: ListedTask, user: str) -> Self:
        """Return what an administrator sees of a user's task."""
        return cls(**vars(task) | {"printed": None}, user=user)


class UserTasksAnswer(BaseModel):
    """`GET /v3/admin/tasks`: the tasks of all users, the newest first."""

    tasks: list[UserTask]
    #: `before` for a request of the next tasks; absent if there are none.
    next: str | None = None


class UserTaskRecord(TaskRecord):
    """`GET /v3/admin/tasks/{id}`: a task of any user, without what it has printed."""

    #: Name of its owner.
    user: str

    @classmethod
    def of(cls, task: TaskRecord, user: str) -> Self:
        """Return what an administrator sees of a user's task."""
        output = {name: TaskRecord.model_fields[name].default for name in _OUTPUT}
        return cls(**vars(task) | output, user=user)


class ListUserTasks(ListTasks):
    """The query parameters of `GET /v3/admin/tasks`."""

    #: Only tasks of the user with this name.
    user: UserName | None = None


class UserEndpoint(BaseModel):
    """An endpoint in a list of all users' endpoints."""

    endpoint_id: str
    name: str
    display_name: str | None
    owner: str
    status: Literal["online", "offline"]
    created: float
    last_seen: float | None
    public: bool
    multi_user: bool
    #: Of a user endpoint: its multi-user endpoint.
    parent_id: str | None
    #: Release of Flux Endpoint that it runs; absent for an endpoint of another make.
    version: str | None
    #: Users ("*": all) and groups that may run tasks there besides the owner.
    users: list[str]
    groups: list[str]


class UserEndpointsAnswer(BaseModel):
    """`GET /v3/admin/endpoints`: the endpoints of all users, by owner and name."""

    endpoints: list[UserEndpoint]
    #: `after` for a request of the next endpoints; absent if there are none.
    next: str | None = None


class ListUserEndpoints(BaseModel):
    """The query parameters of `GET /v3/admin/endpoints`."""

    #: Only endpoints of the user with this name.
    user: UserName | None = None
    limit: int = Field(default=MAX_LISTED, ge=1, le=MAX_LISTED)
    #: The `next` of an earlier answer.
    after: UuidText | None = None


class UserDocument(BaseModel):
    """A user: what the user has, and the limits."""

    user: str
    user_id: str
    created: float
    #: Since when all tokens of the user are refused; absent: they are not.
    disabled: float | None
    #: Last use of any of the user's tokens, to ten minutes.
    last_used: float | None
    groups: list[str]
    tokens: int
    endpoints: int
    #: Tasks that have not ended, and bytes of their arguments.
    unfinished: int
    queued_bytes: int
    #: Limits that are set for this user, by the names of the service's options without dashes; a
    #: number, or "infinity".
    limits: dict[str, float | str]


class UsersAnswer(BaseModel):
    """`GET /v3/admin/users`: all users by name."""

    users: list[UserDocument]
