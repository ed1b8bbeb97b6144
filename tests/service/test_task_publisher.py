"""Tasks reach the broker: at once, or when it is back."""

import json
import logging
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import (
    FUNCTION,
    NO_BROKER,
    OWN,
    PAYLOAD,
    Peer,
    Relay,
    Rest,
)

from broker_access import NOBODY_ASKS
from flux_endpoint.amqp.bundle import unpack_bundle
from flux_endpoint.amqp.url import without_credentials
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import Task, unpack
from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.service import task_publisher
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

pytestmark = pytest.mark.rabbitmq


def test_a_registration_returns_all_queues_and_exchanges(live: Rest, amqp_vhost: str) -> None:
    body = {"endpoint_name": "lab", "metadata": {"hostname": "n1"}}
    answer = live.client.post("/v3/endpoints", json=body).json()
    endpoint_id = answer["endpoint_id"]
    url = answer["task_queue_info"]["connection_url"]
    assert without_credentials(url) == f"{without_credentials(amqp_vhost)}?heartbeat=10"
    assert urlsplit(url).username.startswith(f"e-{endpoint_id}-")
    assert answer == queues.endpoint_queues(endpoint_id, url).model_dump()
    assert answer["event_queue_info"]["queue_publish_kwargs"]["exchange"] == "events"
    again = live.client.put(f"/v3/endpoints/{endpoint_id}", json=body).json()
    assert again == answer


def test_an_endpoint_whose_database_was_lost_keeps_its_id(live: Rest) -> None:
    endpoint_id = str(uuid.uuid4())
    answer = live.client.put(f"/v3/endpoints/{endpoint_id}", json={"endpoint_name": "lab"})
    assert answer.json()["endpoint_id"] == endpoint_id


def test_queues_named_in_a_registration_exist(live: Rest, amqp_vhost: str) -> None:
    endpoint_id = live.register_endpoint()
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    channel = connection.channel()
    shared = ("results", "heartbeats", "events")
    for name in (f"{endpoint_id}.tasks", f"{endpoint_id}.commands", *shared):
        channel.queue_declare(name, passive=True)
    for name in ("tasks", "commands", *shared, "dead-letters"):
        channel.exchange_declare(name, passive=True)
    connection.close()


def test_a_task_message_is_what_an_endpoint_expects(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id)
    delivery = peer.take(f"{endpoint_id}.tasks")
    task = unpack(delivery.body)
    assert task == Task(task_id=uuid.UUID(task_id), task_buffer=FUNCTION + PAYLOAD)
    assert delivery.headers.keys() == {"task_uuid", "function_uuid", "submitter"}
    assert delivery.headers["task_uuid"] == task_id
    uuid.UUID(delivery.headers["function_uuid"])
    until(lambda: live.status(task_id)["status"] == "waiting-for-ep")


def test_an_endpoint_that_takes_tasks_together_gets_their_function_once(
    live: Rest, peer: Peer
) -> None:
    endpoint_id = live.register_endpoint(metadata={**OWN, "tasks_per_message": 10})
    _, task_ids = live.submit(endpoint_id, 21, resource_specification={"num_nodes": 2})
    queue = f"{endpoint_id}.tasks"
    messages = [peer.take(queue) for _ in range(3)]
    parts = [unpack_bundle(each.body) for each in messages[:2]]
    assert [len(each) for each in parts] == [10, 10]
    assert all(each.body.count(json.dumps(FUNCTION)[1:-1].encode()) == 1 for each in messages)
    received = [*parts[0], *parts[1], messages[2]]  # the last one is alone
    for task_id, message in zip(task_ids, received, strict=True):
        task = unpack(message.body)
        assert task == Task(task_id=uuid.UUID(task_id), task_buffer=FUNCTION + PAYLOAD)
        assert message.headers["task_uuid"] == task_id
        assert json.loads(message.headers["resource_specification"]) == {"num_nodes": 2}
        assert message.headers["function_name"] == "double"


@pytest.mark.parametrize("told", [None, 0, -1, "10", 1.5, True, [10]])
def test_an_endpoint_that_does_not_say_how_many_gets_one_task_a_message(
    live: Rest, peer: Peer, told: object
) -> None:
    endpoint_id = live.register_endpoint(metadata={**OWN, "tasks_per_message": told})
    _, task_ids = live.submit(endpoint_id, 2)
    for task_id in task_ids:
        assert peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] == task_id


def test_resources_and_serializers_travel_in_headers(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    resources, serializers = {"num_nodes": 2}, ["a.b.JSONData", "a.b.DillDataBase64"]
    live.submit(endpoint_id, resource_specification=resources, result_serializers=serializers)
    headers = peer.take(f"{endpoint_id}.tasks").headers
    assert json.loads(headers["resource_specification"]) == resources
    assert headers["result_serializers"] == serializers
    assert headers["function_name"] == "double"


def test_text_in_every_script_arrives_unchanged(live: Rest, peer: Peer) -> None:
    endpoint_id, function_id = live.register_endpoint(), live.register_function()
    text = '11\n["\N{SNOWMAN}\N{ROCKET}\\u0000\\"\x7f"]'
    payload = f"{len(text)}\n{text}3\n11\n"
    body = {"tasks": {function_id: [payload]}}
    live.client.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
    task = unpack(peer.take(f"{endpoint_id}.tasks").body)
    assert isinstance(task, Task)
    assert task.task_buffer == FUNCTION + payload


def test_a_large_batch_arrives_in_order(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    _, ids = live.submit(endpoint_id, count=1500)
    arrived = [peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] for _ in ids]
    assert arrived == ids


def test_the_group_queue_exists_when_the_submission_is_answered(
    live: Rest, amqp_vhost: str
) -> None:
    group_id, _ = live.submit(live.register_endpoint())
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    connection.channel().queue_declare(f"tg.{group_id}", passive=True)
    connection.close()


def test_a_repeated_submission_is_published_once(live: Rest, peer: Peer) -> None:
    endpoint_id, function_id = live.register_endpoint(), live.register_function()
    body = {"tasks": {function_id: [PAYLOAD]}, "create_queue": True}
    answers = [
        live.client.post(
            f"/v3/endpoints/{endpoint_id}/submit", json=body, headers={IDEMPOTENCY_HEADER: "k"}
        ).json()
        for _ in range(2)
    ]
    _, (last,) = live.submit(endpoint_id)
    (first,) = answers[0]["tasks"][function_id]
    arrived = [peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] for _ in range(2)]
    assert answers[0] == answers[1]
    assert arrived == [first, last]


def test_tasks_submitted_during_a_broker_outage_are_published_at_the_next_start(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
) -> None:
    def service(**changes: Any) -> TestClient:
        settings = ServiceSettings.model_validate({**live_settings.model_dump(), **changes})
        return TestClient(create_app(settings), headers=token_of("ada"))

    with service() as client:
        endpoint_id = Rest(client).register_endpoint()
    with service(amqp_url=NO_BROKER, publish_timeout=0.01) as client:
        submitted = [Rest(client).submit(endpoint_id) for _ in range(30)]
        assert Rest(client).status(submitted[0][1][0])["status"] == "received"
    with service() as client:
        arrived = {peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] for _ in submitted}
        assert arrived == {task_id for _, (task_id,) in submitted}
        until(lambda: Rest(client).status(submitted[-1][1][0])["status"] == "waiting-for-ep")
        # The queue of its group was made as well.
        group_id, (task_id,) = submitted[0]
        peer.send_result(endpoint_id, _result(task_id))
        assert peer.take(f"tg.{group_id}").body == _result(task_id)


def test_stored_tasks_are_read_as_memory_permits(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_publisher, "_MAX_WAITING_BYTES", 2 * len(PAYLOAD))
    away = live_settings.model_copy(
        update={"amqp_url": NO_BROKER, "publish_timeout": 0.01, **NOBODY_ASKS}
    )
    headers = token_of("ada")
    with TestClient(create_app(live_settings), headers=headers) as client:
        endpoint_id = Rest(client).register_endpoint()
        with TestClient(create_app(away), headers=headers) as other:
            submitted = [Rest(other).submit(endpoint_id, count=3) for _ in range(30)]
    with TestClient(create_app(live_settings), headers=headers):
        expected = {task_id for _, ids in submitted for task_id in ids}
        arrived = {peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] for _ in expected}
        assert arrived == expected


def test_a_lost_connection_delays_tasks_and_results_and_loses_none(
    live_settings: ServiceSettings,
    peer: Peer,
    relay: Relay,
    token_of: Callable[[str], dict[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    headers = token_of("ada")
    with TestClient(create_app(live_settings), headers=headers) as client:
        endpoint_id = Rest(client).register_endpoint()
    caplog.set_level(logging.INFO, "flux_endpoint.service.broker")
    settings = live_settings.model_copy(update={"amqp_url": relay.url, "publish_timeout": 0.5})
    with TestClient(create_app(settings), headers=headers) as client:
        rest = Rest(client)
        until(lambda: "broker connected" in caplog.messages)
        submitted = [rest.submit(endpoint_id)]
        relay.cut()
        until(lambda: any(text.startswith("broker unreach") for text in caplog.messages))
        submitted += [rest.submit(endpoint_id) for _ in range(3)]
        assert rest.status(submitted[-1][1][0])["status"] == "received"
        caplog.clear()
        relay.mend()
        until(lambda: "broker connected" in caplog.messages)
        expected = {task_id for _, (task_id,) in submitted}
        arrived: set[str] = set()
        while arrived < expected:  # some perhaps twice
            arrived.add(peer.take(f"{endpoint_id}.tasks").headers["task_uuid"])
        for group_id, (task_id,) in submitted:
            peer.send_result(endpoint_id, _result(task_id))
            assert peer.take(f"tg.{group_id}").body == _result(task_id)


def test_a_deleted_queue_is_declared_again(live: Rest, peer: Peer, amqp_vhost: str) -> None:
    endpoint_id = live.register_endpoint()
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    connection.channel().queue_delete(f"{endpoint_id}.tasks")
    connection.close()
    _, (task_id,) = live.submit(endpoint_id)
    assert peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] == task_id


def _result(task_id: str) -> bytes:
    return b'\x01{"message_type":"result","data":{"task_id":"%s","data":"x"}}' % task_id.encode()
