"""Deleting an endpoint: its open tasks fail with a clear text, its queues go."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import NO_BROKER, PATIENCE, PAYLOAD, Peer, Rest, exists, refusal
from tests.service.official_world import MultiUserEndpoint, Run

from flux_endpoint.amqp import QueueAdmin
from flux_endpoint.protocol.messages import Result, pack
from flux_endpoint.service.app import create_app
from flux_endpoint.service.official import OfficialEndpoints
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import endpoints
from flux_endpoint.service.store.engine import Database
from waiting import until

pytestmark = pytest.mark.rabbitmq


def delete(client: TestClient, endpoint_id: str) -> None:
    assert client.delete(f"/v2/endpoints/{endpoint_id}").status_code == 200


def test_open_tasks_of_a_deleted_endpoint_fail_and_ended_ones_stay(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, ids = live.submit(endpoint_id, count=3)
    peer.send_result(endpoint_id, pack(Result(task_id=uuid.UUID(ids[0]), data="x")))
    assert json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]["data"] == "x"
    delete(live.client, endpoint_id)
    for task_id in ids[1:]:
        data = json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]
        assert data["task_id"] == task_id
        assert data["error_details"]["code"] == "EndpointDeleted"
        assert f"endpoint {endpoint_id} was deleted" in data["data"]
        assert live.status(task_id)["exception"] == data["data"]
    assert live.status(ids[0])["status"] == "success"


def test_the_queues_of_a_deleted_endpoint_are_deleted(live: Rest, amqp_vhost: str) -> None:
    endpoint_id = live.register_endpoint()
    live.submit(endpoint_id)
    delete(live.client, endpoint_id)
    for kind in ("tasks", "commands"):
        until(lambda kind=kind: not exists(amqp_vhost, f"{endpoint_id}.{kind}"))  # type: ignore[misc]


def test_a_late_result_of_a_deleted_endpoint_replaces_the_failure(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    delete(live.client, endpoint_id)
    peer.take(f"tg.{group_id}")
    peer.send_result(endpoint_id, pack(Result(task_id=uuid.UUID(task_id), data="x")))
    assert json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]["data"] == "x"
    assert live.status(task_id)["status"] == "success"


def test_user_endpoints_are_deleted_with_their_multi_user_endpoint(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    begin: Callable[..., Run],
    amqp_vhost: str,
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    run = begin(arguments)
    run.take(1)
    delete(live.client, multi_user.id)
    for task_id in ids:
        data = json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]
        assert (data["task_id"], data["error_details"]["code"]) == (task_id, "EndpointDeleted")
        assert f"endpoint {multi_user.id} was deleted" in data["data"]
    until(lambda: not exists(amqp_vhost, f"{run.endpoint_id}.tasks"))
    run.vanish()
    # What is registered again under the same id begins anew.
    multi_user.register_again()
    multi_user.report()
    _, more = live.submit(multi_user.id)
    assert multi_user.next_start() == arguments
    assert exists(amqp_vhost, f"{run.endpoint_id}.tasks")
    assert begin(arguments, start=2.0).take(1) == more


def test_an_endpoint_registered_again_during_its_cleanup_has_queues(
    live: Rest, multi_user: MultiUserEndpoint, amqp_vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete_queue, registered = QueueAdmin.delete, OfficialEndpoints.registered_again
    going, stored = threading.Event(), threading.Event()

    def delete_later(queue_admin: QueueAdmin, queue: str) -> Any:
        going.set()
        assert stored.wait(PATIENCE)
        return delete_queue(queue_admin, queue)

    def announce(*of: Any) -> None:
        stored.set()
        registered(*of)

    monkeypatch.setattr(QueueAdmin, "delete", delete_later)
    monkeypatch.setattr(OfficialEndpoints, "registered_again", announce)
    delete(live.client, multi_user.id)
    assert going.wait(PATIENCE)
    multi_user.register_again()
    for kind in ("tasks", "commands"):
        assert exists(amqp_vhost, f"{multi_user.id}.{kind}")


def test_a_deletion_without_a_broker_ends_when_it_is_back(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    database: Database,
) -> None:
    headers = token_of("ada")
    with TestClient(create_app(live_settings), headers=headers) as client:
        endpoint_id = Rest(client).register_endpoint()
        group_id, (task_id,) = Rest(client).submit(endpoint_id)
    away = live_settings.model_copy(update={"amqp_url": NO_BROKER, "publish_timeout": 0.01})
    with TestClient(create_app(away), headers=headers) as client:
        delete(client, endpoint_id)
    with TestClient(create_app(live_settings), headers=headers):
        data = json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]
        assert (data["task_id"], data["error_details"]["code"]) == (task_id, "EndpointDeleted")

        def done() -> bool:
            with database.read() as connection:
                return not endpoints.to_be_emptied(connection)

        until(done)


def test_submissions_to_a_deleted_endpoint_are_refused(live: Rest) -> None:
    endpoint_id = live.register_endpoint()
    delete(live.client, endpoint_id)
    body = {"tasks": {live.register_function(): [PAYLOAD]}}
    answer = live.client.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
    refusal(answer, 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
