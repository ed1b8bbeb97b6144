"""Who gets what from each route: one rule a route, and no route without a rule."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import Response
from tests.service.conftest import FUNCTION, NO_BROKER, OWN, PAYLOAD, Peer, Rest
from tests.service.test_operations import events, report, result

from broker_access import NOBODY_ASKS
from flux_endpoint.service.app import create_app
from flux_endpoint.service.page import live as live_page
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from waiting import until

pytestmark = pytest.mark.rabbitmq

#: Stands in everything that nobody but its owner may read.
SECRET = "for-ada-alone"

UNKNOWN_ENDPOINT = "404 ENDPOINT_NOT_FOUND"
UNKNOWN_FUNCTION = "404 FUNCTION_NOT_FOUND"
UNKNOWN_TASK = "404 TASK_NOT_FOUND"
FOREIGN_ENDPOINT = "403 ENDPOINT_NOT_PERMITTED"
FOREIGN_FUNCTION = "403 FUNCTION_NOT_PERMITTED"
FOREIGN_GROUP = "403 TASK_GROUP_NOT_PERMITTED"
UNAUTHORIZED = "401 UNAUTHORIZED"
SEEN_ONLY = FOREIGN_ENDPOINT
NOT_THE_PAGE = "403 NOT_THE_PAGE"
FORBIDDEN_METRICS = "403 METRICS_NOT_PERMITTED"
NOT_FOR_ENDPOINTS = "403 ENDPOINT_TOKEN"


@dataclass(frozen=True)
class Rule:
    """What a route answers: a status and, of a refusal, its code.

    Attributes:
        stranger: to a user who doesn't own the object that the request names.
        public: the same, if that object is public; `None`: nothing can be public here.
        owner: to the owner.
        nobody: to a request without a valid token.
        itself: to a request with the token of the endpoint that it names, or of another one if it
            names none.
        run: to a user whom the owner has named in a private endpoint's `users` or `groups`; `None`:
            as to a stranger.
        secret: whether the owner's answer has something that is the owner's alone.
        body: the request's JSON; ids are filled in.
        query: the request's query.
        basic: whether the token comes as the password of Basic authentication.
    """

    stranger: str = "200"
    public: str | None = None
    owner: str = "200"
    nobody: str = UNAUTHORIZED
    itself: str = NOT_FOR_ENDPOINTS
    run: str | None = None
    secret: bool = False
    body: Any = None
    query: str = ""
    basic: bool = False


#: A route that is there for administrators alone.
NO_SUCH_PATH = Rule("404 NOT_FOUND", owner="404 NOT_FOUND", itself="404 NOT_FOUND")

REGISTRATION = {"endpoint_name": "lab", "metadata": OWN}

RULES = {
    "GET /openapi.json": Rule(),
    "HEAD /openapi.json": Rule(nobody="401", itself="403"),
    # Who and what there is.
    "GET /v2/version": Rule(nobody="200", itself="200"),
    "GET /health": Rule(nobody="200", itself="200"),
    "GET /v3/status": Rule(),
    # Of administrators, whose tokens have a scope of their own.
    "GET /v3/admin/tasks": NO_SUCH_PATH,
    "GET /v3/admin/tasks/{task_id}": NO_SUCH_PATH,
    "GET /v3/admin/endpoints": NO_SUCH_PATH,
    "GET /v3/admin/users": NO_SUCH_PATH,
    "GET /metrics": Rule(FORBIDDEN_METRICS, owner=FORBIDDEN_METRICS),
    "POST /auth/v2/oauth2/token": Rule(
        body="grant_type=client_credentials&scope=openid", basic=True, itself="200"
    ),
    "POST /auth/v2/oauth2/token/revoke": Rule(nobody="200", body="token=x", itself="200"),
    "GET /auth/v2/oauth2/userinfo": Rule(itself="200"),
    "GET /auth/v2/api/identities": Rule(query="?ids={user}"),
    # The live page: its files and logins need no token.
    "GET /": Rule(nobody="200", itself="200"),
    "GET /page/static/{name}": Rule(nobody="200", itself="200"),
    "POST /page/session": Rule(
        NOT_THE_PAGE, None, NOT_THE_PAGE, NOT_THE_PAGE, NOT_THE_PAGE, body={}
    ),
    "DELETE /page/session": Rule(nobody="200", itself="200"),
    "POST /v3/page/code": Rule(body={}),
    "GET /page/overview": Rule(secret=True),
    "GET /page/tasks": Rule(secret=True),
    "GET /page/tasks/{task_id}": Rule(UNKNOWN_TASK, secret=True),
    "GET /page/groups": Rule(),
    "GET /page/activity": Rule(),
    "GET /page/tasks/{task_id}/output": Rule(UNKNOWN_TASK, owner="204"),
    "GET /page/events": Rule(),
    # Functions.
    "POST /v3/functions": Rule(body={"function_name": "f", "function_code": FUNCTION}),
    "GET /v2/functions/{function_id}": Rule(UNKNOWN_FUNCTION, "200", secret=True),
    "DELETE /v2/functions/{function_id}": Rule(UNKNOWN_FUNCTION, FOREIGN_FUNCTION),
    # Endpoints.
    "POST /v3/endpoints": Rule(body=REGISTRATION),
    "PUT /v3/endpoints/{endpoint_id}": Rule(
        FOREIGN_ENDPOINT, FOREIGN_ENDPOINT, body=REGISTRATION, itself="200"
    ),
    "GET /v2/endpoints": Rule(query="?role=any", secret=True),
    "GET /v2/endpoints/{endpoint_id}": Rule(
        UNKNOWN_ENDPOINT, "200", run="200", secret=True, itself="200"
    ),
    "GET /v2/endpoints/{endpoint_id}/status": Rule(
        UNKNOWN_ENDPOINT, "200", run="200", secret=True, itself="200"
    ),
    "GET /v3/endpoints/{endpoint_id}/status": Rule(
        UNKNOWN_ENDPOINT, "200", run="200", secret=True, itself="200"
    ),
    "GET /v3/endpoints/{endpoint_id}/allowed_functions": Rule(
        UNKNOWN_ENDPOINT, "200", run="200", itself="200"
    ),
    "DELETE /v2/endpoints/{endpoint_id}": Rule(
        UNKNOWN_ENDPOINT, FOREIGN_ENDPOINT, run=FOREIGN_ENDPOINT
    ),
    "GET /v3/endpoints/{endpoint_id}/taken": Rule(
        UNKNOWN_ENDPOINT, FOREIGN_ENDPOINT, run=FOREIGN_ENDPOINT, itself="200"
    ),
    "POST /v3/endpoints/{endpoint_id}/lock": Rule(
        UNKNOWN_ENDPOINT, FOREIGN_ENDPOINT, run=FOREIGN_ENDPOINT
    ),
    "POST /v3/endpoints/{endpoint_id}/tokens": Rule(
        UNKNOWN_ENDPOINT, FOREIGN_ENDPOINT, run=FOREIGN_ENDPOINT
    ),
    "DELETE /v3/endpoints/{endpoint_id}/tokens": Rule(
        UNKNOWN_ENDPOINT, FOREIGN_ENDPOINT, run=FOREIGN_ENDPOINT
    ),
    # Tasks.
    "POST /v3/endpoints/{endpoint_id}/submit": Rule(
        UNKNOWN_ENDPOINT, SEEN_ONLY, run="200", body={"tasks": {"{function}": [PAYLOAD]}}
    ),
    "POST /v3/endpoints/{endpoint_id}/attach": Rule(
        UNKNOWN_ENDPOINT, SEEN_ONLY, run="200", body={"jobid": 1}
    ),
    "GET /v2/tasks/{task_id}": Rule(UNKNOWN_TASK, secret=True),
    "GET /v2/tasks/{task_id}/events": Rule(UNKNOWN_TASK, secret=True),
    "POST /v2/tasks/{task_id}/kill": Rule(UNKNOWN_TASK, body={}),
    "POST /v3/tasks/{task_id}/urgency": Rule(UNKNOWN_TASK, body={"urgency": 0}),
    "POST /v2/batch_status": Rule(body={"task_ids": ["{task}"]}, secret=True),
    "GET /v3/tasks": Rule(secret=True),
    "GET /v3/tasks/{task_id}": Rule(UNKNOWN_TASK, secret=True),
    "GET /v3/tasks/{task_id}/output": Rule(UNKNOWN_TASK, query="?wait=0"),
    # The cache of results: each user has their own.
    "POST /v3/cache/find": Rule(body={"keys": []}),
    "POST /v3/cache": Rule("204", owner="204", body={"tasks": {}}),
    "GET /v3/cache": Rule(),
    "DELETE /v3/cache": Rule(),
    # Task groups.
    "GET /v2/taskgroup/{group_id}": Rule("404 TASK_GROUP_NOT_FOUND"),
    "GET /v3/taskgroups/{group_id}": Rule("404 TASK_GROUP_NOT_FOUND", secret=True),
    "POST /v2/taskgroup/{group_id}/results": Rule(
        FOREIGN_GROUP, body={"client_id": "7c8ad0c0-9b1c-4b0e-8f4f-1f4a4f0a9d11"}
    ),
    "POST /v2/taskgroup/{group_id}/events": Rule(FOREIGN_GROUP, body={}),
    "GET /v2/get_amqp_result_connection_url": Rule(),
}


def routes(router: Any) -> Iterator[str]:
    """Yield each method and path of an application, hidden ones included."""
    for route in router.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from routes(included)
        else:
            yield from (f"{method} {route.path}" for method in route.methods)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(
        ServiceSettings(database_url="sqlite:////none", amqp_url=NO_BROKER, **NOBODY_ASKS)
    )


def test_each_route_has_a_rule(app: FastAPI) -> None:
    assert set(routes(app)) == set(RULES)
    described = app.openapi()["paths"]
    assert {
        f"{method.upper()} {path}" for path, methods in described.items() for method in methods
    } <= set(RULES)


@dataclass(frozen=True)
class World:
    """What ada owns at a running service: private, public, and private with users of her choice."""

    rest: Rest
    private: dict[str, str]
    public: dict[str, str]
    named: dict[str, str]

    def answer(
        self, route: str, ids: dict[str, str], token: str | None, *, scheme: str = "Bearer"
    ) -> Response:
        """Return what a route answers about the objects `ids` to who has `token`."""
        method, path = route.split()
        rule = RULES[route]
        if rule.basic and token is not None:
            scheme = "Basic"
            token = base64.b64encode(f"{uuid.uuid4()}:{token}".encode()).decode()
        headers = {} if token is None else {"Authorization": f"{scheme} {token}"}
        how: dict[str, Any] = {}
        if isinstance(rule.body, str):
            how["content"] = rule.body
        elif rule.body is not None:
            how["json"] = _filled(rule.body, ids)
        self.rest.client.headers.pop("Authorization", None)
        url = (path + rule.query).format_map(ids)
        return self.rest.client.request(method, url, headers=headers, **how)


def _filled(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_filled(key, ids): _filled(each, ids) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, ids) for each in value]
    return value.format_map(ids) if isinstance(value, str) else value


@pytest.fixture
def world(live: Rest, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> World:
    """A service with what ada owns there. Its streams of events end at once."""
    monkeypatch.setattr(live_page, "LONGEST", 0.0)
    client = live.client
    made: dict[str, dict[str, str]] = {}
    for kind in ("private", "public", "named"):
        public = kind == "public"
        name = SECRET if kind == "private" else "lab"
        endpoint_id = live.register_endpoint(
            endpoint_name=name,
            display_name=name,
            public=public,
            users=["carl"] if kind == "named" else None,
            groups=["chemists"] if kind == "named" else None,
            metadata={**OWN, "endpoint_config": SECRET, "hostname": SECRET, "other": SECRET},
        )
        peer.send_report(
            endpoint_id,
            report(
                endpoint_id,
                hostname=SECRET,
                running_tasks={SECRET: 1.0},
                node_info={SECRET: []},
                account=SECRET,
                agent={"running": 3},
            ),
        )
        code = {"function_name": name, "function_code": FUNCTION, "public": public}
        function_id = client.post("/v3/functions", json=code).json()["function_uuid"]
        made[kind] = {"endpoint_id": endpoint_id, "function_id": function_id}
    private, public_ones = made["private"], made["public"]
    group, (task_id,) = live.submit(private["endpoint_id"], create_queue=False)
    peer.send_events(private["endpoint_id"], events(task_id, (SECRET, 1.0)))
    peer.send_result(private["endpoint_id"], result(task_id, SECRET))
    until(lambda: live.status(task_id)["status"] == "failed")
    until(lambda: SECRET in client.get(f"/v2/tasks/{task_id}/events").text)
    for ids in made.values():
        until(
            lambda ids=ids: (  # type: ignore[misc]
                client.get(f"/v2/endpoints/{ids['endpoint_id']}/status").json()["details"] != {}
            )
        )
    user = client.get("/auth/v2/oauth2/userinfo").json()["sub"]
    shared = {
        "function": public_ones["function_id"],
        "group_id": group,
        "task_id": task_id,
        "task": task_id,
        "user": user,
        "name": "app.js",
    }
    return World(live, *({**made[kind], **shared} for kind in ("private", "public", "named")))


def verdict(answer: Response) -> str:
    """Return what a rule says of an answer."""
    if answer.is_success:
        return str(answer.status_code)
    code = answer.json()["code"] if answer.content else ""
    return f"{answer.status_code} {code}".strip()


def endpoint_token(world: World, database: Database, endpoint_id: str) -> str:
    """Return a new token of one of ada's endpoints."""
    with database.write() as connection:
        return users.create_endpoint_token(connection, world.private["user"], endpoint_id)


@pytest.mark.parametrize("route", RULES)
def test_each_route_answers_each_user_as_its_rule_says(
    route: str,
    world: World,
    database: Database,
    token_of: Callable[[str], dict[str, str]],
) -> None:
    rule = RULES[route]
    names = ("ada", "bob", "carl", "dora", "a")
    ada, bob, carl, dora, revoked = (token_of(name)["Authorization"].split()[1] for name in names)
    with database.write() as connection:
        assert users.revoke_token(connection, revoked)
        member = users.user_id_of(connection, "dora")
        assert member is not None
        users.join_group(connection, "chemists", member)

    def get(ids: dict[str, str], token: str | None, **how: Any) -> str:
        answer = world.answer(route, ids, token, **how)
        assert SECRET not in answer.text
        assert SECRET not in str(answer.headers)
        if answer.status_code == 401:
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        return verdict(answer)

    private, public = world.private, world.public
    assert get(private, None) == rule.nobody
    assert get(private, "x" * 43) == rule.nobody
    assert get(private, revoked) == rule.nobody
    assert get(private, "") == rule.nobody
    assert get(private, ada, scheme="Token") == (rule.owner if rule.basic else rule.nobody)
    assert get(private, bob) == rule.stranger
    run = rule.stranger if rule.run is None else rule.run
    assert get(world.named, carl) == run
    assert get(world.named, dora) == run  # a member of a group that is named
    assert get(public, bob) == (rule.stranger if rule.public is None else rule.public)
    itself, other = (
        endpoint_token(world, database, ids["endpoint_id"]) for ids in (private, public)
    )
    about_itself = world.answer(route, private, itself)
    assert verdict(about_itself) == rule.itself, about_itself.text
    if "{endpoint_id}" in route:
        assert get(private, other) == NOT_FOR_ENDPOINTS
    else:
        assert get(private, other) == rule.itself
    if rule.itself == NOT_FOR_ENDPOINTS:
        assert SECRET not in about_itself.text
    answer = world.answer(route, private, ada)
    assert verdict(answer) == rule.owner, answer.text
    # Else the marker would not be where it could have been read.
    assert (SECRET in answer.text) == rule.secret
