"""Attaching: a task without a function that carries the id of a job."""

import uuid
from collections.abc import Callable
from typing import Any

import pika
import pytest
from fastapi.testclient import TestClient
from httpx import Response
from tests.service.conftest import NO_BROKER, OWN, PAYLOAD, Peer, Rest, refusal

from flux_endpoint.protocol.jobid import format_jobid
from flux_endpoint.protocol.messages import Result, Task, pack, unpack
from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

NIL = "00000000-0000-0000-0000-000000000000"
JOBID = 2**64 - 2

Attach = Callable[..., Response]


def post(
    client: TestClient, to: str, headers: dict[str, str] | None = None, **body: Any
) -> Response:
    body = {"jobid": JOBID, **body}
    return client.post(f"/v3/endpoints/{to}/attach", json=body, headers=headers)


@pytest.mark.rabbitmq
def test_the_task_message_has_the_job_and_no_function(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint(metadata=OWN)
    answer = post(live.client, endpoint_id).json()
    task_id = answer.pop("task_id")
    uuid.UUID(answer.pop("task_group_id"))
    assert answer == {"endpoint_id": endpoint_id, "endpoint_status": "offline"}
    delivery = peer.take(f"{endpoint_id}.tasks")
    assert unpack(delivery.body) == Task(task_id=uuid.UUID(task_id), task_buffer="")
    assert delivery.headers == {
        "task_uuid": task_id,
        "function_uuid": NIL,
        "attach_jobid": str(JOBID),
        "submitter": "ada",
    }
    until(lambda: live.status(task_id)["status"] == "waiting-for-ep")


@pytest.mark.rabbitmq
def test_the_result_of_an_attached_job_reaches_its_task_group(
    live: Rest, peer: Peer, amqp_vhost: str
) -> None:
    endpoint_id, group_id = live.register_endpoint(metadata=OWN), str(uuid.uuid4())
    serializers = ["a.b.JSONData"]
    answer = post(
        live.client,
        endpoint_id,
        task_group_id=group_id,
        create_queue=True,
        result_serializers=serializers,
    ).json()
    assert answer["task_group_id"] == group_id
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    connection.channel().queue_declare(f"tg.{group_id}", passive=True)
    connection.close()
    assert peer.take(f"{endpoint_id}.tasks").headers["result_serializers"] == serializers
    body = pack(Result(task_id=uuid.UUID(answer["task_id"]), data="00\nx"))
    peer.send_result(endpoint_id, body)
    assert peer.take(f"tg.{group_id}").body == body
    assert live.status(answer["task_id"])["result"] == "00\nx"


@pytest.mark.rabbitmq
def test_a_repeated_request_is_published_once(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint(metadata=OWN)
    headers = {IDEMPOTENCY_HEADER: "k"}
    first, again = (
        post(live.client, endpoint_id, headers, create_queue=True).json() for _ in range(2)
    )
    last = post(live.client, endpoint_id).json()
    assert first == again
    arrived = [peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] for _ in range(2)]
    assert arrived == [first["task_id"], last["task_id"]]


@pytest.mark.rabbitmq
def test_an_attach_during_a_broker_outage_is_published_at_the_next_start(
    live_settings: ServiceSettings, peer: Peer, token_of: Callable[[str], dict[str, str]]
) -> None:
    def service(**changes: Any) -> TestClient:
        settings = ServiceSettings.model_validate({**live_settings.model_dump(), **changes})
        return TestClient(create_app(settings), headers=token_of("ada"))

    with service() as client:
        endpoint_id = Rest(client).register_endpoint(metadata=OWN)
    with service(amqp_url=NO_BROKER, publish_timeout=0.01) as client:
        task_id = post(client, endpoint_id, create_queue=True).json()["task_id"]
        Rest(client).submit(endpoint_id)  # a task of the other kind goes the same way
    with service():
        headers = [peer.take(f"{endpoint_id}.tasks").headers for _ in range(2)]
    (attached,) = [each for each in headers if each["task_uuid"] == task_id]
    assert (attached["attach_jobid"], attached["function_uuid"]) == (str(JOBID), NIL)


@pytest.fixture
def endpoint_id(add_endpoint: Callable[..., str]) -> str:
    return add_endpoint(metadata=OWN)


@pytest.mark.parametrize("form", ["f58", "dec", "hex", "dothex", "kvs"])
def test_every_printed_form_is_taken(api: TestClient, endpoint_id: str, form: Any) -> None:
    answer = post(api, endpoint_id, jobid=format_jobid(JOBID, form))
    assert answer.status_code == 200, answer.text
    task_id = answer.json()["task_id"]
    assert api.get(f"/v2/tasks/{task_id}").json()["status"] == "received"


@pytest.mark.parametrize(
    "jobid", ["", "ƒ", "job-7", "0xq", -1, 2**64, str(2**64), 1.5, True, None, [], "1" * 5000]
)
def test_an_invalid_job_id_is_refused_by_name(
    api: TestClient, endpoint_id: str, jobid: Any
) -> None:
    answer = post(api, endpoint_id, jobid=jobid)
    refusal(answer, 422, "SEMANTICALLY_INVALID", "jobid")


def test_other_malformed_requests_name_the_field(api: TestClient, endpoint_id: str) -> None:
    path = f"/v3/endpoints/{endpoint_id}/attach"
    refusal(api.post(path, json={}), 422, "SEMANTICALLY_INVALID", "jobid")
    refusal(api.post(path, content=b"{"), 400, "INVALID_JSON", "body")
    answer = post(api, endpoint_id, task_group_id="g1")
    refusal(answer, 422, "SEMANTICALLY_INVALID", "task_group_id")
    refusal(post(api, "e1"), 422, "SEMANTICALLY_INVALID", "endpoint_id")


def test_an_official_endpoint_is_refused(api: TestClient, add_endpoint: Callable[..., str]) -> None:
    other = add_endpoint(metadata={"endpoint_version": "4.19.0"})
    body = refusal(post(api, other), 409, "ATTACH_NOT_SUPPORTED", "endpoint_id")
    assert other in body.message


def test_only_permitted_users_may_attach(
    api: TestClient, add_endpoint: Callable[..., str], bob: dict[str, str]
) -> None:
    private = add_endpoint(metadata=OWN)
    seen = add_endpoint(metadata=OWN, public=True)
    named = add_endpoint(metadata=OWN, users=["bob"])
    picky = add_endpoint(metadata=OWN, users=["bob"], allowed_functions=[])
    refusal(post(api, private, bob), 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
    refusal(post(api, str(uuid.uuid4())), 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
    refusal(post(api, picky, bob), 403, "ATTACH_NOT_PERMITTED", "endpoint_id")
    refusal(post(api, seen, bob), 403, "ENDPOINT_NOT_PERMITTED", "endpoint_id")
    assert post(api, named, bob).status_code == 200
    assert post(api, picky).status_code == 200


def test_the_group_of_another_user_is_refused(
    api: TestClient, add_endpoint: Callable[..., str], bob: dict[str, str]
) -> None:
    endpoint_id = add_endpoint(metadata=OWN, users=["bob"])
    group_id = post(api, endpoint_id).json()["task_group_id"]
    answer = post(api, endpoint_id, bob, task_group_id=group_id)
    refusal(answer, 403, "TASK_GROUP_NOT_PERMITTED", "task_group_id")


def test_a_task_that_follows_a_job_is_one_of_its_group(api: TestClient, endpoint_id: str) -> None:
    answer = post(api, endpoint_id).json()
    group = api.get(f"/v2/taskgroup/{answer['task_group_id']}").json()
    assert group["tasks"] == [{"id": answer["task_id"]}]


def test_an_idempotency_key_is_valid_for_one_request_only(
    api: TestClient, endpoint_id: str, add_function: Callable[..., str]
) -> None:
    headers = {IDEMPOTENCY_HEADER: "k1"}
    function_id = add_function()
    both = {"jobid": JOBID, "tasks": {function_id: [PAYLOAD]}}
    assert post(api, endpoint_id, headers, **both).status_code == 200
    refused = post(api, endpoint_id, headers, jobid=7)
    refusal(refused, 422, "IDEMPOTENCY_KEY_REUSED", IDEMPOTENCY_HEADER)
    refused = api.post(f"/v3/endpoints/{endpoint_id}/submit", json=both, headers=headers)
    refusal(refused, 422, "IDEMPOTENCY_KEY_REUSED", IDEMPOTENCY_HEADER)
