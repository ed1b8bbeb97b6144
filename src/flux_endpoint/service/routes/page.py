"""Routes of the live page: its files, login, data, and events.

All but the first are below `/page/`, which is also the path of the session's cookie: no other route
gets it. Browsers find them by relative URLs, so that a proxy may put a prefix before all of them.
"""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, BackgroundTasks, Depends, Header, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from flux_endpoint.errors import ServiceError
from flux_endpoint.protocol.operations import LoginCodeAnswer
from flux_endpoint.service.context import Service, ServiceContext
from flux_endpoint.service.identity import Caller, unauthorized
from flux_endpoint.service.output_follower import OutputFollower
from flux_endpoint.service.page.files import HEADERS, page_files
from flux_endpoint.service.page.live import LiveListeners, LiveResponse, PageListener
from flux_endpoint.service.page.output_stream import OutputResponse, OutputStreams, known_by
from flux_endpoint.service.page.reports import ReportRequests
from flux_endpoint.service.page.sessions import CODE_SECONDS, SESSION_SECONDS
from flux_endpoint.service.page.views import (
    Activity,
    Groups,
    ListShown,
    PageOverview,
    PageTasks,
    ShownTask,
    WantedActivity,
    activity,
    overview,
    page_tasks,
    recent_groups,
    shown_task,
)
from flux_endpoint.service.routes.operations import Observer
from flux_endpoint.service.routes.output import Live
from flux_endpoint.service.routes.tasks import TaskId, owned
from flux_endpoint.service.store import endpoints, users
from flux_endpoint.service.store.listing import task_record


async def _no_store(response: Response) -> None:
    for name, value in {**HEADERS, "Cache-Control": "no-store"}.items():
        response.headers[name] = value


async def _requests(request: Request) -> ReportRequests:
    requests = request.app.state.report_requests
    assert isinstance(requests, ReportRequests)
    return requests


async def _somebody_looks(
    background: BackgroundTasks,
    service: Service,
    caller: Caller,
    requests: Annotated[ReportRequests, Depends(_requests)],
) -> None:
    # After the answer: it may have to wait for the broker.
    background.add_task(requests.looks, service, caller)


LIVE = [Depends(_somebody_looks)]
router = APIRouter(include_in_schema=False)
_data = APIRouter(dependencies=[Depends(_no_store)], include_in_schema=False)


async def _listeners(request: Request) -> LiveListeners:
    listeners = request.app.state.listeners
    assert isinstance(listeners, LiveListeners)
    return listeners


Listeners = Annotated[LiveListeners, Depends(_listeners)]


async def _streams(request: Request) -> OutputStreams:
    streams = request.app.state.output_streams
    assert isinstance(streams, OutputStreams)
    return streams


Streams = Annotated[OutputStreams, Depends(_streams)]


class Login(BaseModel):
    """The body of `POST page/session`: one of the two."""

    code: str | None = Field(default=None, max_length=512)
    token: str | None = Field(default=None, max_length=512)


@router.get("/")
def index(if_none_match: Annotated[str, Header()] = "") -> Response:
    """Return the page."""
    return _file("index.html", if_none_match)


@router.get("/page/static/{name}")
def static(name: Annotated[str, Path()], if_none_match: Annotated[str, Header()] = "") -> Response:
    """Return a file of the page."""
    return _file(name, if_none_match)


def _file(name: str, known: str) -> Response:
    file = page_files().get(name)
    if file is None:
        raise ServiceError(f"the page has no file {name!r}", http_status=404, code="NOT_FOUND")
    headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": file.tag}
    if file.tag in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


@router.post("/v3/page/code")
def login_code(
    service: Service, _caller: Caller, authorization: Annotated[str, Header()]
) -> LoginCodeAnswer:
    """Return a code that logs the caller's browser in, once and for a moment."""
    code = service.sessions.code(users.hash_of(authorization.split()[-1]))
    return LoginCodeAnswer(code=code, expires_in=CODE_SECONDS)


@_data.post("/page/session")
def log_in(
    login: Login,
    service: Service,
    request: Request,
    response: Response,
    x_flux_endpoint: Annotated[str, Header()] = "",
) -> dict[str, str]:
    """Exchange a login code, or a token that a person has typed, for a session's cookie."""
    # Only the page itself can send this header: other sites would have to ask for permission.
    if x_flux_endpoint != "page":
        raise ServiceError(
            "only the page itself logs in here", http_status=403, code="NOT_THE_PAGE"
        )
    hashed = service.sessions.redeem(login.code) if login.code else None
    if login.token:
        hashed = users.hash_of(login.token.strip())
    with service.database.read() as connection:
        user = None if hashed is None else users.user_by_hash(connection, hashed)
    if user is None or user.endpoint_id is not None or hashed is None:
        what = "this token is unknown, expired, revoked, or an endpoint's"
        if login.code:
            what = "this link was used before or is too old: make a new one"
        raise unauthorized(f"{what} (flux-endpoint dashboard)")
    response.set_cookie(
        service.sessions.cookie,
        service.sessions.session(hashed),
        max_age=SESSION_SECONDS,
        path=None,  # the browser's default: the directory of this route, whatever is before it
        httponly=True,
        samesite="strict",
        secure=_is_encrypted(request),
    )
    return {"user": user.name}


@_data.delete("/page/session")
def log_out(service: Service, request: Request, response: Response) -> dict[str, str]:
    """Delete the session's cookie."""
    response.delete_cookie(
        service.sessions.cookie,
        path=None,  # type: ignore[arg-type]
        httponly=True,
        samesite="strict",
        secure=_is_encrypted(request),
    )
    return {}


def _is_encrypted(request: Request) -> bool:
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))


@_data.get("/page/overview", dependencies=LIVE)
def read_overview(service: Service, caller: Caller, observer: Observer) -> PageOverview:
    """Return what the page shows first."""
    return overview(service, caller, observer)


@_data.get("/page/tasks", dependencies=LIVE)
def read_tasks(query: Annotated[ListShown, Query()], service: Service, caller: Caller) -> PageTasks:
    """List the caller's tasks, newest first, as far as a moment's search finds them."""
    with service.database.read() as connection:
        return page_tasks(connection, caller, query)


@_data.get("/page/tasks/{task_id}", dependencies=LIVE)
def read_task(task_id: TaskId, service: Service, caller: Caller) -> ShownTask:
    """Return one task whole."""
    with service.database.read() as connection:
        found = owned(connection, task_id, caller, service.settings.keep_tasks)
        record = task_record(connection, caller.id, task_id)
    assert record is not None
    return shown_task(record, found)


@_data.get("/page/tasks/{task_id}/output")
async def read_output(
    *,
    task_id: TaskId,
    service: Service,
    caller: Caller,
    live: Live,
    streams: Streams,
    after: Annotated[str, Query(max_length=64)] = "",
    last_event_id: Annotated[str, Header(max_length=64)] = "",
) -> Response:
    """Send what a task prints while it runs; 204 if it has ended or its endpoint can't send it.

    `after` is the identifier of the last event that the page has; so is the header, by which a
    browser goes on after a lost connection.
    """
    follower = OutputFollower(service, live, caller, task_id, known_by(last_event_id or after))
    if not await follower.can_be_live():
        return Response(status_code=204, headers=HEADERS)
    streams.enter(caller.id)
    try:
        first = await follower.next(0)
        return OutputResponse(follower, first, streams, caller.id, HEADERS)
    except BaseException:
        streams.leave(caller.id)
        raise


@_data.get("/page/groups")
def read_groups(service: Service, caller: Caller) -> Groups:
    """Return the caller's task groups, the latest first."""
    with service.database.read() as connection:
        return recent_groups(connection, caller)


@_data.get("/page/activity", dependencies=LIVE)
def read_activity(
    wanted: Annotated[WantedActivity, Query()], service: Service, caller: Caller
) -> Activity:
    """Return when the newest tasks of an endpoint or a group ran."""
    with service.database.read() as connection:
        return activity(connection, caller, wanted)


@_data.get("/page/events")
async def events(service: Service, caller: Caller, listeners: Listeners) -> Response:
    """Send an event whenever something that the page shows has changed."""
    listener = PageListener(caller.id, await to_thread.run_sync(_visible_ids, service, caller))
    listeners.add(listener)
    return LiveResponse(listeners, listener, headers=HEADERS)


def _visible_ids(service: ServiceContext, user: users.User) -> list[str]:
    with service.database.read() as connection:
        listed = endpoints.list_endpoints(connection, user, public=True)
    return [each.id for each in listed]


router.include_router(_data)
