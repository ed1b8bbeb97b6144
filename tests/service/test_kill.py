"""Ending a task: the endpoint is told; for one that is away, or of another make, the service."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pika
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from tests.service.conftest import OWN, PAYLOAD, Peer, Rest, refusal

from flux_endpoint.protocol.messages import (
    EPStatusReport,
    Result,
    TaskKill,
    TaskUrgency,
    pack,
    unpack,
)
from flux_endpoint.service.app import create_app
from flux_endpoint.service.results import STORED_HEADER
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import endpoints, tasks
from flux_endpoint.service.store.engine import Database
from waiting import until


def kill(client: TestClient, task_id: str, **how: Any) -> Response:
    return client.post(f"/v2/tasks/{task_id}/kill", **{"json": {}, **how})


def set_urgency(client: TestClient, task_id: str, urgency: Any) -> Response:
    return client.post(f"/v3/tasks/{task_id}/urgency", json={"urgency": urgency})


@pytest.fixture
def online(live: Rest, database: Database) -> str:
    """An endpoint of our own make that has just reported."""
    endpoint_id = live.register_endpoint(metadata=OWN)
    with database.write() as connection:
        report = {endpoint_id: {"heartbeat_period": 600}}
        endpoints.record_reports(connection, report, time.time())
    return endpoint_id


@pytest.fixture
def offline(live: Rest) -> str:
    """An endpoint of our own make that never reported."""
    return live.register_endpoint(metadata=OWN)


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("how", "signum"),
    [({"json": {}}, None), ({"json": None}, None), ({"json": {"signum": 15}}, 15)],
)
def test_an_online_endpoint_gets_the_command_and_the_task_stays_open(
    live: Rest, peer: Peer, online: str, how: dict[str, Any], signum: int | None
) -> None:
    _, (task_id,) = live.submit(online)
    answer = kill(live.client, task_id, **how).json()
    assert answer.pop("status") in {"received", "waiting-for-ep"}
    assert answer == {"task_id": task_id, "delivered": True}
    command = unpack(peer.take(f"{online}.commands").body)
    assert command == TaskKill(task_id=uuid.UUID(task_id), signum=signum)
    assert "exception" not in live.status(task_id)


@pytest.mark.rabbitmq
def test_the_command_survives_a_restart_of_the_broker(
    live: Rest, online: str, amqp_vhost: str
) -> None:
    _, (task_id,) = live.submit(online)
    kill(live.client, task_id)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    _, properties, _ = connection.channel().basic_get(f"{online}.commands")
    assert properties.delivery_mode == 2
    connection.close()


@pytest.mark.rabbitmq
def test_for_an_offline_endpoint_the_service_ends_the_task_and_keeps_the_command(
    live: Rest, peer: Peer, offline: str
) -> None:
    group_id, (task_id,) = live.submit(offline)
    answer = kill(live.client, task_id).json()
    assert answer == {"task_id": task_id, "status": "failed", "delivered": True}
    document = live.status(task_id)
    assert document["status"] == "failed"
    assert document["exception"].startswith("TaskCancelled: ")
    assert document["details"] is None
    assert abs(float(document["completion_t"]) - time.time()) < 60
    delivery = peer.take(f"tg.{group_id}")
    assert delivery.timestamp is not None
    result = unpack(delivery.body)
    assert isinstance(result, Result)
    assert result.error_details is not None
    assert (str(result.task_id), result.data) == (task_id, document["exception"])
    assert result.error_details.code == "TaskCancelled"
    assert unpack(peer.take(f"{offline}.commands").body) == TaskKill(task_id=uuid.UUID(task_id))


@pytest.mark.rabbitmq
def test_a_result_that_comes_late_is_dropped(live: Rest, peer: Peer, offline: str) -> None:
    group_id, (killed, other) = live.submit(offline, count=2)
    kill(live.client, killed)
    for task_id in (killed, other):
        peer.send_result(offline, pack(Result(task_id=uuid.UUID(task_id), data="late")))
    arrived = [json.loads(peer.take(f"tg.{group_id}").body[1:])["data"] for _ in range(2)]
    assert [each["task_id"] for each in arrived] == [killed, other]
    assert live.status(killed)["exception"] == arrived[0]["data"] != "late"


@pytest.mark.rabbitmq
def test_a_signal_for_an_offline_endpoint_waits_for_it(
    live: Rest, peer: Peer, offline: str
) -> None:
    _, (task_id,) = live.submit(offline)
    answer = kill(live.client, task_id, json={"signum": 10}).json()
    assert answer["status"] != "failed"
    assert answer["delivered"] is True
    command = unpack(peer.take(f"{offline}.commands").body)
    assert command == TaskKill(task_id=uuid.UUID(task_id), signum=10)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("stored", [False, True])
def test_a_service_killed_while_it_ends_a_task_still_sends_the_result(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    database: Database,
    stored: bool,
) -> None:
    headers = token_of("ada")
    with TestClient(create_app(live_settings), headers=headers) as client:
        endpoint_id = Rest(client).register_endpoint(metadata=OWN)
        group_id, (task_id,) = Rest(client).submit(endpoint_id)
    # As that service leaves it: the result is on its way, and perhaps in the database.
    text = "TaskCancelled: x"
    error = {"code": "TaskCancelled", "user_message": "ended"}
    body = pack(Result(task_id=uuid.UUID(task_id), data=text, error_details=error))
    key = f"{endpoint_id}.results"
    sent = peer.connection.publish("results", key, body, headers={STORED_HEADER: True})
    sent.result(60)
    if stored:
        with database.write() as connection:
            outcome = tasks.TaskOutcome(task_id, True, text.encode(), None, 1.0)
            tasks.complete(connection, [outcome], tasks.routes(connection, [task_id]))
    with TestClient(create_app(live_settings), headers=headers) as client:
        assert peer.take(f"tg.{group_id}").body == body
        assert Rest(client).status(task_id)["exception"] == text


@pytest.mark.rabbitmq
def test_a_task_that_has_ended_stays_as_it_is(live: Rest, peer: Peer, online: str) -> None:
    group_id, (task_id,) = live.submit(online)
    peer.send_result(online, pack(Result(task_id=uuid.UUID(task_id), data="7")))
    peer.take(f"tg.{group_id}")
    answer = kill(live.client, task_id)
    assert answer.status_code == 200
    assert answer.json() == {"task_id": task_id, "status": "success", "delivered": False}
    _, (other,) = live.submit(online)
    kill(live.client, other)
    command = unpack(peer.take(f"{online}.commands").body)
    assert command == TaskKill(task_id=uuid.UUID(other))


@pytest.mark.rabbitmq
def test_a_deleted_command_queue_is_declared_again(
    live: Rest, peer: Peer, online: str, amqp_vhost: str
) -> None:
    _, (task_id,) = live.submit(online)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    connection.channel().queue_delete(f"{online}.commands")
    connection.close()
    assert kill(live.client, task_id).json()["delivered"] is True
    assert str(getattr(unpack(peer.take(f"{online}.commands").body), "task_id", "")) == task_id


@pytest.mark.rabbitmq
def test_a_task_of_a_deleted_endpoint_can_be_ended(live: Rest, offline: str) -> None:
    _, (task_id,) = live.submit(offline)
    live.client.delete(f"/v2/endpoints/{offline}")
    assert kill(live.client, task_id).json()["status"] == "failed"


@pytest.mark.rabbitmq
def test_the_last_report_decides_whether_the_service_answers(
    live: Rest, peer: Peer, offline: str
) -> None:
    _, (first, second) = live.submit(offline, count=2)
    identity = uuid.UUID(offline)

    def status() -> str:
        return str(live.client.get(f"/v2/endpoints/{offline}/status").json()["status"])

    for active in (True, False):
        state = {"heartbeat_period": 600, "active": active}
        report = EPStatusReport(endpoint_id=identity, global_state=state, task_statuses={})
        peer.send_report(offline, pack(report))
        until(lambda active=active: status() == ("online" if active else "offline"))  # type: ignore[misc]
        answer = kill(live.client, first if active else second).json()
        assert (answer["status"] == "failed") is not active


def submitted(api: TestClient, endpoint_id: str, function_id: str) -> str:
    body = {"tasks": {function_id: [PAYLOAD]}}
    answer = api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body).json()
    return str(answer["tasks"][function_id][0])


@pytest.mark.rabbitmq
def test_an_urgency_is_passed_on_to_an_endpoint_that_knows_it(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint(metadata={**OWN, "run_options": ["hold"]})
    _, (task_id, other) = live.submit(endpoint_id, count=2)
    for urgency in (0, 31, None):
        answer = set_urgency(live.client, task_id, urgency).json()
        assert answer.pop("status") in {"received", "waiting-for-ep"}
        assert answer == {"task_id": task_id, "delivered": True}
        command = unpack(peer.take(f"{endpoint_id}.commands").body)
        assert command == TaskUrgency(task_id=uuid.UUID(task_id), urgency=urgency)
    kill(live.client, other)
    assert set_urgency(live.client, other, 0).json()["delivered"] is False


@pytest.fixture
def task_id(
    api: TestClient, add_endpoint: Callable[..., str], add_function: Callable[..., str]
) -> str:
    """A task of an endpoint of our own make, in a service whose broker is away."""
    return submitted(api, add_endpoint(metadata=OWN), add_function())


def test_an_official_endpoint_is_refused(
    api: TestClient, add_endpoint: Callable[..., str], add_function: Callable[..., str]
) -> None:
    endpoint_id = add_endpoint(metadata={"endpoint_version": "4.19.0"})
    task_id = submitted(api, endpoint_id, add_function())
    body = refusal(kill(api, task_id), 409, "KILL_NOT_SUPPORTED", "task_id")
    assert endpoint_id in body.message


@pytest.mark.parametrize(
    ("metadata", "why"), [({}, "not one of Flux Endpoint"), (OWN, "of an earlier release")]
)
def test_an_endpoint_that_knows_no_urgency_is_not_asked(
    api: TestClient,
    add_endpoint: Callable[..., str],
    add_function: Callable[..., str],
    metadata: dict[str, str],
    why: str,
) -> None:
    endpoint_id = add_endpoint(metadata=metadata)
    task_id = submitted(api, endpoint_id, add_function())
    body = refusal(set_urgency(api, task_id, 0), 409, "URGENCY_NOT_SUPPORTED", "task_id")
    assert f"its endpoint {endpoint_id} is {why}" in body.message


@pytest.mark.parametrize("urgency", [-1, 32, "high", 1.5])
def test_an_invalid_urgency_is_refused_by_name(api: TestClient, task_id: str, urgency: Any) -> None:
    refusal(set_urgency(api, task_id, urgency), 422, "SEMANTICALLY_INVALID", "urgency")


def test_a_task_of_another_user_is_unknown(
    api: TestClient, task_id: str, bob: dict[str, str]
) -> None:
    refusal(kill(api, task_id, headers=bob), 404, "TASK_NOT_FOUND", "task_id")
    refusal(kill(api, str(uuid.uuid4())), 404, "TASK_NOT_FOUND", "task_id")
    refusal(kill(api, "t1"), 422, "SEMANTICALLY_INVALID", "task_id")


@pytest.mark.parametrize("signum", [0, 65, -9, "TERM", 1.5])
def test_an_invalid_signal_is_refused_by_name(api: TestClient, task_id: str, signum: Any) -> None:
    answer = kill(api, task_id, json={"signum": signum})
    refusal(answer, 422, "SEMANTICALLY_INVALID", "signum")


def test_without_a_broker_nothing_happens_and_the_answer_comes_soon(
    api: TestClient, task_id: str
) -> None:
    refusal(kill(api, task_id), 503, "BROKER_UNAVAILABLE")
    assert api.get(f"/v2/tasks/{task_id}").json()["status"] == "received"
