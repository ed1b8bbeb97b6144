"""One user can't have, or ask, so much that there is no room for others."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from tests.service.conftest import (
    FUNCTION,
    NO_BROKER,
    PAYLOAD,
    Peer,
    Rest,
    refusal,
)
from tests.service.test_operations import result

from broker_access import NOBODY_ASKS, session_broker
from flux_endpoint.errors import ServiceError
from flux_endpoint.service.app import create_app
from flux_endpoint.service.quotas import BURST_SECONDS, MAX_IN_PROGRESS, ClientQueues, RequestRate
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import endpoints, tasks, users
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.tables import submissions
from flux_endpoint.service.store.tables import tasks as task_table
from flux_endpoint.service.store.tables import users as user_table
from flux_endpoint.service.store.users import User
from waiting import until

TokenOf = Callable[[str], dict[str, str]]
OWN = {"flux_endpoint_version": "1"}
CODE = {"function_name": "double", "function_code": FUNCTION}


@pytest.fixture
def limited(database_url: str, token_of: TokenOf) -> Iterator[Callable[..., TestClient]]:
    """Starts a service with these limits, for ada."""
    with ExitStack() as stack:

        def start(amqp_url: str = NO_BROKER, **limits: Any) -> TestClient:
            settings = ServiceSettings(
                database_url=database_url,
                amqp_url=amqp_url,
                publish_timeout=0.01 if amqp_url == NO_BROKER else 30,
                **(NOBODY_ASKS if amqp_url == NO_BROKER else session_broker.settings(amqp_url)),
                **limits,
            )
            return stack.enter_context(TestClient(create_app(settings), headers=token_of("ada")))

        yield start


Limited = Callable[..., TestClient]


def submit(client: TestClient, endpoint_id: str, count: int = 1, payload: str = PAYLOAD) -> Any:
    function_id = client.post("/v3/functions", json=CODE).json()["function_uuid"]
    body = {"tasks": {function_id: [payload] * count}}
    answer = client.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
    return answer if answer.is_error else answer.json()["tasks"][function_id]


def end(database: Database, ids: list[str]) -> None:
    outcomes = [tasks.TaskOutcome(each, False, b"x", None, time.time()) for each in ids]
    with database.write() as connection:
        tasks.complete(connection, outcomes, tasks.routes(connection, ids))


def counted(database: Database) -> dict[str, tuple[int, int]]:
    """Return what is noted of each user's open tasks."""
    with database.read() as connection:
        query = sa.select(user_table.c.name, user_table.c.open_tasks, user_table.c.open_bytes)
        return {name: (count, size) for name, count, size in connection.execute(query)}


def there_are(database: Database) -> dict[str, tuple[int, int]]:
    """Return how many open tasks each user has, and bytes of their arguments."""
    size = sa.func.coalesce(sa.func.sum(sa.func.length(task_table.c.payload)), 0)
    query = (
        sa.select(user_table.c.name, sa.func.count(task_table.c.id), size)
        .join_from(user_table, submissions)
        .join(task_table)
        .where(task_table.c.completed_at.is_(None))
        .group_by(user_table.c.name)
    )
    with database.read() as connection:
        found = {name: (count, size) for name, count, size in connection.execute(query)}
    return {name: found.get(name, (0, 0)) for name in counted(database)}


class TestRequests:
    def test_requests_per_second_are_limited_with_a_burst(self) -> None:
        now = 100.0
        rate = RequestRate(5, lambda: now)

        def taken() -> int:
            for count in range(10**6):
                try:
                    rate.take("ada")
                except ServiceError:
                    return count
            raise AssertionError("it never refuses")

        assert taken() == 5 * BURST_SECONDS
        rate.take("bob")
        now += 2
        assert taken() == 10
        now += 1e6
        assert taken() == 5 * BURST_SECONDS

    def test_a_limit_holds_although_there_was_none_before(self) -> None:
        rate = RequestRate(5, lambda: 100.0)
        for limit in [math.inf] * 100 + [None] * 5 * BURST_SECONDS:
            rate.take("ada", limit)
        with pytest.raises(ServiceError, match="more than 5 requests a second"):
            rate.take("ada")

    def test_concurrent_requests_are_limited(self) -> None:
        rate = RequestRate(1000)
        with ExitStack() as stack:
            for _ in range(MAX_IN_PROGRESS):
                stack.enter_context(rate.one("ada"))
            with pytest.raises(ServiceError, match="in progress"), rate.one("ada"):
                pass
            with rate.one("bob"):
                pass
        with rate.one("ada"):
            pass

    def test_a_refused_request_has_retry_after(self, limited: Limited, bob: dict[str, str]) -> None:
        client = limited(max_user_requests=1)
        answers = [client.get("/v2/endpoints") for _ in range(40)]
        refused = next(each for each in answers if each.is_error)
        refusal(refused, 429, "TOO_MANY_REQUESTS")
        assert refused.headers["Retry-After"] == "1"
        assert client.get("/v2/endpoints", headers=bob).status_code == 200
        until(lambda: client.get("/v2/endpoints").status_code == 200)


class TestTasks:
    def test_open_tasks_of_a_user_are_limited(
        self,
        limited: Limited,
        database: Database,
        add_endpoint: Callable[..., str],
        bob: dict[str, str],
    ) -> None:
        client = limited(max_user_tasks=5)
        endpoint_id = add_endpoint(users=["*"], metadata=OWN)
        ids = submit(client, endpoint_id, 4)
        refused = submit(client, endpoint_id, 2)
        refusal(refused, 429, "TOO_MANY_TASKS")
        assert refused.headers["Retry-After"] == "10"
        assert there_are(database)["ada"][0] == 4
        client.headers.update(bob)
        assert len(submit(client, endpoint_id, 5)) == 5
        end(database, ids[:3])
        assert counted(database) == there_are(database)

    def test_bytes_of_arguments_of_open_tasks_are_limited(
        self, limited: Limited, database: Database, add_endpoint: Callable[..., str]
    ) -> None:
        client = limited(max_user_queued=len(PAYLOAD) * 3)
        endpoint_id = add_endpoint(metadata=OWN)
        ids = submit(client, endpoint_id, 3)
        refused = submit(client, endpoint_id)
        assert "bytes of arguments" in refusal(refused, 429, "TOO_MANY_TASKS").message
        end(database, ids[:1])
        assert len(submit(client, endpoint_id)) == 1
        assert counted(database) == there_are(database)

    @pytest.mark.rabbitmq
    def test_the_count_of_open_tasks_stays_correct_with_any_results(
        self, limited: Limited, amqp_vhost: str, database: Database, peer: Peer
    ) -> None:
        client = limited(amqp_vhost)
        rest = Rest(client)
        endpoint_id = rest.register_endpoint()
        _, ids = rest.submit(endpoint_id, 5)
        for task_id in (*ids[:3], *ids[:2], ids[0]):
            peer.send_result(endpoint_id, result(task_id))
        until(lambda: rest.status(ids[2])["status"] == "success")
        assert client.post(f"/v2/tasks/{ids[4]}/kill").status_code == 200
        until(lambda: rest.status(ids[4])["status"] == "failed")
        peer.send_result(endpoint_id, result(ids[4]))
        until(lambda: counted(database)["ada"][0] == 1)
        time.sleep(0.5)
        assert counted(database) == there_are(database)
        assert client.delete(f"/v2/endpoints/{endpoint_id}").status_code == 200
        until(lambda: counted(database)["ada"] == (0, 0))


@pytest.mark.rabbitmq
def test_functions_endpoints_and_groups_of_a_user_are_limited(
    limited: Limited, amqp_vhost: str, bob: dict[str, str]
) -> None:
    client = limited(amqp_vhost, max_user_functions=2, max_user_endpoints=2, max_user_groups=2)
    for _ in range(2):
        function = client.post("/v3/functions", json=CODE).json()["function_uuid"]
        endpoint = client.post("/v3/endpoints", json={"endpoint_name": "lab"}).json()
        group = client.post(f"/v2/taskgroup/{function}/results", json={"client_id": function})
        assert group.status_code == 200
    refusal(client.post("/v3/functions", json=CODE), 403, "TOO_MANY_FUNCTIONS")
    lab = {"endpoint_name": "lab"}
    refusal(client.post("/v3/endpoints", json=lab), 403, "TOO_MANY_ENDPOINTS")
    known = endpoint["endpoint_id"]
    assert client.put(f"/v3/endpoints/{known}", json=lab).status_code == 200
    other = f"/v2/taskgroup/{known}/results"
    refusal(client.post(other, json={"client_id": function}), 403, "TOO_MANY_TASK_GROUPS")
    again = client.post(f"/v2/taskgroup/{function}/results", json={"client_id": function})
    assert again.status_code == 200
    assert client.post("/v3/functions", json=CODE, headers=bob).status_code == 200
    assert client.delete(f"/v2/functions/{function}").status_code == 200
    assert client.post("/v3/functions", json=CODE).status_code == 200


def test_bytes_of_functions_of_a_user_are_limited(limited: Limited, bob: dict[str, str]) -> None:
    client = limited(max_user_code=250_000)
    large = {"function_name": "f", "function_code": "a" * 200_000, "serialized": False}
    described = {**CODE, "description": "é" * 1000}
    first = client.post("/v3/functions", json=large).json()["function_uuid"]
    assert client.post("/v3/functions", json=described).status_code == 200
    assert client.post("/v3/functions", json=large).status_code == 200  # the last that fits in part
    said = refusal(client.post("/v3/functions", json=CODE), 403, "TOO_MANY_FUNCTIONS").message
    assert "of at most 250000" in said
    assert "14 days" in said
    assert client.delete(f"/v2/functions/{first}").status_code == 200
    refusal(client.post("/v3/functions", json=CODE), 403, "TOO_MANY_FUNCTIONS")
    assert client.post("/v3/functions", json=CODE, headers=bob).status_code == 200


class TestTokens:
    def test_a_token_may_expire(self, api: TestClient, database: Database) -> None:
        def status(token: str) -> Any:
            return api.get("/v2/endpoints", headers={"Authorization": f"Bearer {token}"})

        with database.write() as connection:
            valid = users.create_token(connection, "ada", time.time() + 3600)
            over = users.create_token(connection, "ada", time.time() - 86_400)
            soon = users.create_token(connection, "ada", time.time() + 1)
        assert status(valid).status_code == 200
        day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 86_400))
        assert day in refusal(status(over), 401, "UNAUTHORIZED", "Authorization").message
        until(lambda: status(soon).status_code == 401)


def test_queues_opened_by_a_user_per_time_are_limited() -> None:
    now = 0.0
    opened = ClientQueues(2, 600, lambda: now)
    opened.open("ada", "a")
    now = 100
    opened.open("ada", "b")
    opened.open("ada", "a")  # again, which counts from now
    opened.open("bob", "c")
    now = 650
    with pytest.raises(ServiceError, match="2 queues") as refused:
        opened.open("ada", "c")
    assert (refused.value.code, refused.value.retry_after) == ("TOO_MANY_QUEUES", 50)
    opened.open("ada", "b")
    now = 700
    opened.open("ada", "c")
    with pytest.raises(ServiceError):
        opened.open("ada", "a")


@pytest.mark.rabbitmq
def test_queues_of_results_and_events_are_counted_together(
    limited: Limited, amqp_vhost: str, bob: dict[str, str]
) -> None:
    client = limited(amqp_vhost, max_user_queues=2)
    one, two, three = (str(uuid.uuid4()) for _ in range(3))
    for kind in ("results", "events", "results"):
        answer = client.post(f"/v2/taskgroup/{one}/{kind}", json={"client_id": two})
        assert answer.status_code == 200
    for kind in ("results", "events"):
        answer = client.post(f"/v2/taskgroup/{one}/{kind}", json={"client_id": three})
        refusal(answer, 429, "TOO_MANY_QUEUES")
    other = client.post(f"/v2/taskgroup/{two}/events", json={"client_id": two}, headers=bob)
    assert other.status_code == 200


@pytest.mark.rabbitmq
def test_endpoint_metadata_is_bounded_and_not_in_lists(
    limited: Limited, amqp_vhost: str, database: Database, bob: dict[str, str]
) -> None:
    client = limited(amqp_vhost, max_user_endpoints=1)
    body = {"endpoint_name": "lab", "public": True, "metadata": {**OWN, "x": "é" * 2**17}}
    refusal(client.post("/v3/endpoints", json=body), 422, "SEMANTICALLY_INVALID", "metadata")
    body["metadata"] = {**OWN, "x": "x" * 2**17}
    known = client.post("/v3/endpoints", json=body).json()["endpoint_id"]
    user = User("nobody", "nobody")
    with database.read() as connection:
        (listed,) = endpoints.list_endpoints(connection, user, public=True)
    assert (listed.id, listed.is_own_make, set(listed.metadata)) == (known, True, set(OWN))
    for n in range(5):
        assert client.delete(f"/v2/endpoints/{known}").status_code == 200, n
        with database.read() as connection:
            left = endpoints.get_endpoint(connection, known, deleted=True)
        assert left is not None
        assert left.is_own_make
        assert "x" not in left.metadata
        if n < 4:
            known = client.post("/v3/endpoints", json=body).json()["endpoint_id"]
    answer = client.post("/v3/endpoints", json=body)
    assert "deleted 5" in refusal(answer, 403, "TOO_MANY_ENDPOINTS").message
    assert client.post("/v3/endpoints", json=body, headers=bob).status_code == 200
