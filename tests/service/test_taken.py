"""Which tasks an endpoint took: what it asks when its journal was lost."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pika
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import Peer, Rest, refusal

from flux_endpoint.protocol.messages import Result, pack
from waiting import until


def take(url: str, endpoint_id: str, count: int) -> list[str]:
    """Take tasks from an endpoint's queue for good; return their ids."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    taken = []
    for _ in range(count):
        method, properties, _ = connection.channel().basic_get(
            f"{endpoint_id}.tasks", auto_ack=True
        )
        assert method is not None
        taken.append(properties.headers["task_uuid"])
    connection.close()
    return taken


def taken(rest: Rest, endpoint_id: str) -> list[str]:
    answer = rest.client.get(f"/v3/endpoints/{endpoint_id}/taken")
    assert answer.status_code == 200, answer.text
    return sorted(answer.json()["tasks"])


def length(rest: Rest, endpoint_id: str) -> int:
    queue = rest.client.get(f"/v3/endpoints/{endpoint_id}/status").json()["queue"]
    return -1 if queue is None else int(queue["messages"])


@pytest.mark.rabbitmq
def test_tasks_neither_queued_nor_ended_count_as_taken(
    live: Rest, peer: Peer, amqp_vhost: str
) -> None:
    endpoint_id = live.register_endpoint()
    assert taken(live, endpoint_id) == []
    ids = [each for _ in range(5) for each in live.submit(endpoint_id, count=4)[1]]
    until(lambda: length(live, endpoint_id) == 20)
    assert taken(live, endpoint_id) == []
    took = take(amqp_vhost, endpoint_id, 7)
    assert taken(live, endpoint_id) == sorted(took)
    peer.send_result(endpoint_id, pack(Result(task_id=uuid.UUID(took[0]), data="x")))
    until(lambda: taken(live, endpoint_id) == sorted(took[1:]))
    # Nothing was lost by looking, and each is there once.
    assert sorted(take(amqp_vhost, endpoint_id, 13)) == sorted(set(ids) - set(took))
    assert length(live, endpoint_id) == 0


@pytest.mark.rabbitmq
def test_taken_tasks_are_unknown_while_the_queue_has_a_consumer(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    live.submit(endpoint_id)
    peer.take_unanswered(f"{endpoint_id}.tasks")
    answer = live.client.get(f"/v3/endpoints/{endpoint_id}/taken")
    refusal(answer, 409, "ENDPOINT_IN_USE", "endpoint_id")


@pytest.mark.rabbitmq
def test_taken_tasks_of_an_official_endpoint_are_refused(multi_user: Any, live: Rest) -> None:
    answer = live.client.get(f"/v3/endpoints/{multi_user.id}/taken")
    refusal(answer, 409, "ENDPOINT_NOT_PERMITTED", "endpoint_id")


def test_without_a_broker_the_request_is_to_be_repeated(
    api: TestClient, add_endpoint: Callable[..., str], database: Any, add_function: Any
) -> None:
    endpoint_id = add_endpoint(metadata={"flux_endpoint_version": "1.0"})
    assert api.get(f"/v3/endpoints/{endpoint_id}/taken").json() == {"tasks": []}
    function_id = add_function()
    body = {"tasks": {function_id: ["8\n00\ngAQp\n8\n00\ngAR9\n"]}}
    assert api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body).status_code == 200
    # The broker never had it.
    assert api.get(f"/v3/endpoints/{endpoint_id}/taken").json() == {"tasks": []}
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE submissions SET published_at = created_at")
    refusal(api.get(f"/v3/endpoints/{endpoint_id}/taken"), 503, "BROKER_UNAVAILABLE", None)
