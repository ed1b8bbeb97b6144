"""Endpoints: listed, described, locked, deleted, online or not."""

import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pika
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import Rest, refusal
from tests.service.official_world import MultiUserEndpoint
from tests.service.test_removal import exists

from flux_endpoint.protocol.messages import EndpointStop, unpack
from flux_endpoint.service.routes.endpoints import LOCK_SECONDS
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.engine import Database

AddEndpoint = Callable[..., str]


def test_without_a_broker_registration_is_refused_and_leaves_nothing(api: TestClient) -> None:
    answer = api.post("/v3/endpoints", json={"endpoint_name": "lab"})
    refusal(answer, 503, "BROKER_UNAVAILABLE")
    assert api.get("/v2/endpoints").json() == []


@pytest.mark.parametrize(
    "name", ["", "../../etc", "a/b", ".hidden", "..", "a\nb", "a\0b", "x" * 257]
)
def test_a_name_that_no_directory_can_have_is_refused(api: TestClient, name: str) -> None:
    answer = api.post("/v3/endpoints", json={"endpoint_name": name})
    refusal(answer, 422, "SEMANTICALLY_INVALID", "endpoint_name")
    assert api.get("/v2/endpoints").json() == []


def test_the_metadata_of_an_endpoint_is_returned(
    api: TestClient, add_endpoint: AddEndpoint
) -> None:
    endpoint_id = add_endpoint(display_name="Lab", metadata={"hostname": "n1", "uuid": "forged"})
    assert api.get(f"/v2/endpoints/{endpoint_id}").json() == {
        "uuid": endpoint_id,
        "name": "lab",
        "display_name": "Lab",
        "owner": "ada",
        "public": False,
        "multi_user": False,
        "hostname": "n1",
    }


def test_a_list_has_own_endpoints_and_public_ones_on_request(
    api: TestClient, add_endpoint: AddEndpoint, bob: dict[str, str]
) -> None:
    private, public = add_endpoint(), add_endpoint(public=True)
    named = add_endpoint(users=["bob"])

    def listed(**how: Any) -> set[str]:
        return {each["uuid"] for each in api.get("/v2/endpoints", **how).json()}

    assert listed() == {private, public, named}
    assert listed(headers=bob) == set()
    assert listed(headers=bob, params={"role": "any"}) == {public, named}
    answer = api.get("/v2/endpoints", params={"role": "king"})
    refusal(answer, 422, "SEMANTICALLY_INVALID", "role")


def test_a_private_endpoint_is_unknown_to_others(
    api: TestClient, add_endpoint: AddEndpoint, bob: dict[str, str]
) -> None:
    endpoint_id = add_endpoint()
    for method, path in (
        ("GET", f"/v2/endpoints/{endpoint_id}"),
        ("GET", f"/v2/endpoints/{endpoint_id}/status"),
        ("DELETE", f"/v2/endpoints/{endpoint_id}"),
        ("POST", f"/v3/endpoints/{endpoint_id}/lock"),
        ("GET", f"/v3/endpoints/{endpoint_id}/allowed_functions"),
    ):
        answer = api.request(method, path, headers=bob)
        assert endpoint_id in refusal(answer, 404, "ENDPOINT_NOT_FOUND", "endpoint_id").message


def test_only_its_owner_changes_an_endpoint(
    api: TestClient, add_endpoint: AddEndpoint, bob: dict[str, str]
) -> None:
    endpoint_id = add_endpoint(public=True)
    for answer in (
        api.delete(f"/v2/endpoints/{endpoint_id}", headers=bob),
        api.post(f"/v3/endpoints/{endpoint_id}/lock", headers=bob),
        api.put(f"/v3/endpoints/{endpoint_id}", headers=bob, json={"endpoint_name": "mine"}),
    ):
        refusal(answer, 403, "ENDPOINT_NOT_PERMITTED", "endpoint_id")


def test_a_locked_endpoint_can_not_register(api: TestClient, add_endpoint: AddEndpoint) -> None:
    endpoint_id = add_endpoint()
    lock = api.post(f"/v3/endpoints/{endpoint_id}/lock").json()
    assert lock["endpoint_id"] == endpoint_id
    assert datetime.fromisoformat(lock["lock_expiration_timestamp"]).tzinfo is None
    answer = api.put(f"/v3/endpoints/{endpoint_id}", json={"endpoint_name": "lab"})
    refusal(answer, 423, "ENDPOINT_LOCKED", "endpoint_id")


@pytest.mark.rabbitmq
def test_a_lock_sends_a_stop_command_that_expires_with_it(
    live: Rest, amqp_vhost: str, database: Database
) -> None:
    endpoint_id = live.register_endpoint()
    answer = live.client.post(f"/v3/endpoints/{endpoint_id}/lock").json()
    assert answer["delivered"] is False
    with database.write() as connection:
        report = {endpoint_id: {"heartbeat_period": 600}}
        endpoints.record_reports(connection, report, time.time())
    answer = live.client.post(f"/v3/endpoints/{endpoint_id}/lock").json()
    assert answer["delivered"] is True
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    _, properties, body = connection.channel().basic_get(f"{endpoint_id}.commands")
    connection.close()
    assert unpack(body) == EndpointStop(endpoint_id=uuid.UUID(endpoint_id))
    # Who starts it once the lock is over must not be stopped again.
    assert 0 < int(properties.expiration) <= LOCK_SECONDS * 1000


@pytest.mark.rabbitmq
def test_a_multi_user_endpoint_is_stopped_by_the_end_of_its_command_queue(
    live: Rest, multi_user: MultiUserEndpoint, amqp_vhost: str, database: Database
) -> None:
    assert exists(amqp_vhost, f"{multi_user.id}.commands")
    answer = live.client.post(f"/v3/endpoints/{multi_user.id}/lock").json()
    assert answer["delivered"] is True
    assert not exists(amqp_vhost, f"{multi_user.id}.commands")
    answer = live.client.put(f"/v3/endpoints/{multi_user.id}", json={"endpoint_name": "lab"})
    refusal(answer, 423, "ENDPOINT_LOCKED", "endpoint_id")
    with database.write() as connection:
        endpoints.lock_endpoint(connection, multi_user.id, time.time())
    multi_user.register_again()
    assert exists(amqp_vhost, f"{multi_user.id}.commands")


@pytest.mark.parametrize(
    ("field", "value"), [("high_assurance", True), ("authentication_policy", "p")]
)
def test_a_protection_that_the_service_can_not_give_is_refused(
    api: TestClient, field: str, value: Any
) -> None:
    answer = api.post("/v3/endpoints", json={"endpoint_name": "lab", field: value})
    refusal(answer, 422, "SEMANTICALLY_INVALID", field)


def test_allowed_functions_are_listed(api: TestClient, add_endpoint: AddEndpoint) -> None:
    function_id = str(uuid.uuid4())
    some, any_ = add_endpoint(allowed_functions=[function_id]), add_endpoint()
    assert api.get(f"/v3/endpoints/{some}/allowed_functions").json() == {
        "endpoint_id": some,
        "restricted": True,
        "functions": [function_id],
    }
    assert api.get(f"/v3/endpoints/{any_}/allowed_functions").json() == {
        "endpoint_id": any_,
        "restricted": False,
        "functions": [],
    }


def test_a_deleted_endpoint_is_gone(api: TestClient, add_endpoint: AddEndpoint) -> None:
    endpoint_id = add_endpoint()
    assert api.delete(f"/v2/endpoints/{endpoint_id}").status_code == 200
    answer = api.get(f"/v2/endpoints/{endpoint_id}")
    refusal(answer, 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
    assert api.get("/v2/endpoints").json() == []


@pytest.mark.parametrize(
    ("report", "age", "online"),
    [
        ({"heartbeat_period": 30}, 45, True),
        ({"heartbeat_period": 30}, 91, False),
        ({"heartbeat_period": 5}, 16, False),
        ({}, 45, True),
        ({}, 91, False),
        ({"heartbeat_period": 0}, 0, False),
        ({"heartbeat_period": 30, "active": False}, 0, False),
        ({"heartbeat_period": 30, "active": True}, 0, True),
        ({"heartbeat_period": 3, "error": "no such engine"}, 0, False),
        ({"heartbeat_period": "soon"}, 0, True),
    ],
)
def test_an_endpoint_is_online_while_its_reports_are_recent(
    api: TestClient,
    database: Database,
    add_endpoint: AddEndpoint,
    report: dict[str, Any],
    age: float,
    online: bool,
) -> None:
    endpoint_id = add_endpoint()
    seen = time.time() - age
    with database.write() as connection:
        endpoints.record_reports(connection, {endpoint_id: report}, seen)
    assert api.get(f"/v2/endpoints/{endpoint_id}/status").json() == {
        "status": "online" if online else "offline",
        "details": report,
        "last_seen": seen,
    }


@pytest.mark.parametrize("period", [float("nan"), float("inf"), -float("inf")])
def test_an_invalid_heartbeat_period_is_replaced_by_the_default(period: float) -> None:
    usual = endpoints.DEFAULT_HEARTBEAT_PERIOD
    assert endpoints.heartbeat_period({"heartbeat_period": period}) == usual


def test_an_endpoint_that_never_reported_is_offline(
    api: TestClient, add_endpoint: AddEndpoint
) -> None:
    assert api.get(f"/v2/endpoints/{add_endpoint()}/status").json() == {
        "status": "offline",
        "details": {},
        "last_seen": None,
    }


def test_a_report_with_numbers_that_json_lacks_is_kept(
    api: TestClient, database: Database, add_endpoint: AddEndpoint
) -> None:
    endpoint_id = add_endpoint()
    report = {"load": float("nan"), "heartbeat_period": 30}
    with database.write() as connection:
        endpoints.record_reports(connection, {endpoint_id: report}, time.time())
    details = api.get(f"/v2/endpoints/{endpoint_id}/status").json()["details"]
    assert details == {"load": None, "heartbeat_period": 30}
