"""Job events: stored once, sent on to who follows the group, and readable afterwards."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pika
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import OWN, PATIENCE, PAYLOAD, Peer, Rest, refusal

from flux_endpoint.amqp import Queue
from flux_endpoint.amqp.url import without_credentials
from flux_endpoint.protocol.messages import EPStatusReport, TaskEvents, pack, unpack
from flux_endpoint.service import broker
from flux_endpoint.service.app import create_app
from flux_endpoint.service.event_consumer import MAX_CONTEXT, MAX_TASK_EVENTS
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

JOBID = 2**64 - 1


def job_event(task_id: str, name: str = "start", timestamp: float = 1.5, **more: Any) -> Any:
    """Return an event as the wire and REST have it."""
    default = {"jobid": JOBID, "context": {"status": 0}}
    return {"task_id": task_id, "name": name, "timestamp": timestamp, **default, **more}


def message(*events: Any) -> bytes:
    data = {"events": events}
    return b"\x01" + json.dumps({"message_type": "task_events", "data": data}).encode()


def follow(rest: Rest, group_id: str) -> str:
    answer = rest.client.post(f"/v2/taskgroup/{group_id}/events")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["queue"])


def events_of(rest: Rest, task_id: str) -> list[Any]:
    answer = rest.client.get(f"/v2/tasks/{task_id}/events").json()
    assert answer["task_id"] == task_id
    events: list[Any] = answer["events"]
    return events


def names_in(body: bytes) -> list[str]:
    received = unpack(body)
    assert isinstance(received, TaskEvents)
    return [each.name for each in received.events]


@pytest.mark.rabbitmq
def test_events_reach_followers_of_the_group_and_rest_in_order(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    queue = follow(live, group_id)
    sent = [
        job_event(task_id, "submit", 3.25, context={"userid": 7, "\ud800": "\0"}),
        job_event(task_id, "start", 1.000000001, context={}),
        job_event(task_id, "start", 1.000000002, jobid=None),
    ]
    peer.send_events(endpoint_id, message(*sent))
    assert json.loads(peer.take(queue).body[1:])["data"]["events"] == sent
    assert events_of(live, task_id) == sent


@pytest.mark.rabbitmq
def test_the_events_of_a_message_go_each_to_their_group(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    (first_group, (first,)), (second_group, (second,)) = (
        live.submit(endpoint_id) for _ in range(2)
    )
    queues = [follow(live, group_id) for group_id in (first_group, second_group)]
    sent = [job_event(first, "a"), job_event(second, "b"), job_event(first, "c")]
    peer.send_events(endpoint_id, message(*sent))
    assert [names_in(peer.take(queue).body) for queue in queues] == [["a", "c"], ["b"]]


@pytest.mark.rabbitmq
def test_a_repetition_is_dropped(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    queue = follow(live, group_id)
    first, last = job_event(task_id), job_event(task_id, "finish")
    changed = job_event(task_id, context={})
    for body in (message(first, first), message(first, changed), message(last), message(last)):
        peer.send_events(endpoint_id, body)
    arrived = names_in(peer.take(queue).body)
    while "finish" not in arrived:
        arrived += names_in(peer.take(queue).body)
    assert arrived == ["start", "finish"]
    assert events_of(live, task_id) == [first, last]


@pytest.mark.rabbitmq
def test_many_events_all_arrive_and_no_message_is_huge(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, ids = live.submit(endpoint_id, count=2)
    queue = follow(live, group_id)
    names = [f"event-{index}" for index in range(1200)]
    task_of = {name: ids[index // 600] for index, name in enumerate(names)}
    peer.send_events(endpoint_id, message(*(job_event(task_of[name], name) for name in names)))
    parts = [names_in(peer.take(queue).body) for _ in range(3)]
    assert [len(part) for part in parts] == [500, 500, 200]
    assert [name for part in parts for name in part] == names
    stored = [each["name"] for task_id in ids for each in events_of(live, task_id)]
    assert stored == names


@pytest.mark.rabbitmq
def test_events_are_stored_without_a_listener(live: Rest, peer: Peer, amqp_vhost: str) -> None:
    endpoint_id = live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id)
    peer.send_events(endpoint_id, message(job_event(task_id)))
    until(lambda: events_of(live, task_id) == [job_event(task_id)])
    assert waiting(amqp_vhost, "dead-letters") == 0


@pytest.mark.rabbitmq
def test_events_of_unknown_tasks_are_logged_and_the_others_stored(
    live: Rest, peer: Peer, caplog: pytest.LogCaptureFixture, amqp_vhost: str
) -> None:
    endpoint_id = live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id)
    unknown = job_event(str(uuid.uuid4()))
    peer.send_events(endpoint_id, message(unknown, job_event(task_id)))
    until(lambda: events_of(live, task_id) == [job_event(task_id)])
    until(lambda: "job events of an unknown task" in caplog.messages)
    assert waiting(amqp_vhost, "dead-letters") == 0


@pytest.mark.rabbitmq
def test_events_of_another_endpoints_task_are_dead_lettered(live: Rest, peer: Peer) -> None:
    endpoint_id, other = live.register_endpoint(), live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id)
    forged = message(job_event(task_id, "forged"))
    peer.send_events(other, forged)
    assert peer.take("dead-letters").body == forged
    assert events_of(live, task_id) == []


TASK = "00000000-0000-7000-8000-000000000000"


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"\x02{}",
        b"\x01" + b"[" * 100_000,
        b'\x01{"message_type":"task_events","data":{}}',
        pack(EPStatusReport(endpoint_id=uuid.uuid4(), global_state={}, task_statuses={})),
        message(job_event("t1")),
        message(job_event(TASK, name="")),
        message(job_event(TASK, name="a\0b")),
        message(job_event(TASK, name="\ud800")),
        message(job_event(TASK, name="n" * 257)),
        message(job_event(TASK, timestamp=float("nan"))),
        message(job_event(TASK, timestamp=float("inf"))),
        message(job_event(TASK, jobid=-1)),
        message(job_event(TASK, jobid=2**64)),
        message(job_event(TASK, context=[])),
    ],
)
def test_an_unreadable_message_is_dead_lettered_and_others_are_processed(
    live: Rest, peer: Peer, body: bytes
) -> None:
    endpoint_id = live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id)
    peer.send_events(endpoint_id, body)
    peer.send_events(endpoint_id, message(job_event(task_id)))
    assert peer.take("dead-letters").body == body
    until(lambda: events_of(live, task_id) == [job_event(task_id)])


@pytest.mark.rabbitmq
def test_events_stored_but_not_forwarded_are_forwarded_at_redelivery(
    live_settings: ServiceSettings, peer: Peer, token_of: Callable[[str], dict[str, str]]
) -> None:
    headers = token_of("ada")
    body: bytes
    with TestClient(create_app(live_settings), headers=headers) as client:
        rest = Rest(client)
        endpoint_id = rest.register_endpoint()
        group_id, (task_id,) = rest.submit(endpoint_id)
        queue = follow(rest, group_id)
        body = message(job_event(task_id))
        peer.send_events(endpoint_id, body)
        assert names_in(peer.take(queue).body) == ["start"]
    # As if that service had died before it sent them on: the message is delivered to somebody,
    # who goes away without an answer, and the database has the event.
    peer.send_events(endpoint_id, body)
    dying = Peer(live_settings.amqp_url)
    assert dying.take_unanswered("events").body == body
    dying.connection.close()
    with TestClient(create_app(live_settings), headers=headers) as client:
        assert names_in(peer.take(queue).body) == ["start"]
        assert events_of(Rest(client), task_id) == [job_event(task_id)]


@pytest.mark.rabbitmq
def test_a_full_queue_blocks_no_other(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What was stored at last may be sent on, and acknowledged, as late as that.
    monkeypatch.setattr(broker, "_CLOSE_TIMEOUT", PATIENCE)
    with TestClient(create_app(live_settings), headers=token_of("ada")) as client:
        rest = Rest(client)
        endpoint_id = rest.register_endpoint()
        group_id, (task_id,) = rest.submit(endpoint_id)
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        peer.connection.declare(Queue(f"ev.{group_id}", full)).result(60)
        sent = [job_event(task_id, name) for name in ("a", "b", "c")]
        for each in sent:
            peer.send_events(endpoint_id, message(each))
        until(lambda: events_of(rest, task_id) == sent)
    # What that service had not acknowledged would be there again.
    assert waiting(live_settings.amqp_url, "events") == 0


@pytest.mark.rabbitmq
def test_a_group_can_be_followed_before_its_first_submission(
    live: Rest, peer: Peer, amqp_vhost: str, bob: dict[str, str]
) -> None:
    group_id = str(uuid.uuid4())
    path = f"/v2/taskgroup/{group_id}/events"
    for _ in range(2):
        answer = live.client.post(path)
        assert answer.json()["queue"] == f"ev.{group_id}"
        url = answer.json()["connection_url"]
        assert without_credentials(url) == without_credentials(amqp_vhost)
    refused = live.client.post(path, headers=bob)
    refusal(refused, 403, "TASK_GROUP_NOT_PERMITTED", "task_group_id")
    endpoint_id = live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id, task_group_id=group_id)
    peer.send_events(endpoint_id, message(job_event(task_id)))
    assert names_in(peer.take(f"ev.{group_id}").body) == ["start"]


@pytest.mark.rabbitmq
def test_an_unused_queue_expires_and_rejected_messages_are_kept(
    live: Rest, peer: Peer, amqp_vhost: str
) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    queue = follow(live, group_id)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="x-expires"):
        connection.channel().queue_declare(queue, durable=True)  # it must have been given
    connection.close()
    peer.send_events(endpoint_id, message(job_event(task_id)))
    delivery = peer.take_unanswered(queue)
    delivery.reject()
    assert peer.take("dead-letters").body == delivery.body


def test_events_of_another_users_task_are_unknown(
    api: TestClient,
    add_endpoint: Callable[..., str],
    add_function: Callable[..., str],
    bob: dict[str, str],
) -> None:
    function_id = add_function()
    body = {"tasks": {function_id: [PAYLOAD]}}
    answer = api.post(f"/v3/endpoints/{add_endpoint(metadata=OWN)}/submit", json=body).json()
    (task_id,) = answer["tasks"][function_id]
    path = f"/v2/tasks/{task_id}/events"
    assert api.get(path).json() == {"task_id": task_id, "events": []}
    refusal(api.get(path, headers=bob), 404, "TASK_NOT_FOUND", "task_id")
    unknown = api.get(f"/v2/tasks/{uuid.uuid4()}/events")
    refusal(unknown, 404, "TASK_NOT_FOUND", "task_id")


def test_tasks_of_official_endpoints_have_no_events(
    api: TestClient, add_endpoint: Callable[..., str], add_function: Callable[..., str]
) -> None:
    endpoint_id, function_id = add_endpoint(multi_user=True), add_function()
    body = {"tasks": {function_id: [PAYLOAD]}}
    answer = api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body).json()
    (task_id,) = answer["tasks"][function_id]
    answer = api.get(f"/v2/tasks/{task_id}/events")
    message = refusal(answer, 409, "EVENTS_NOT_SUPPORTED", "task_id").message
    assert endpoint_id in message


def test_without_a_broker_nothing_can_be_followed(api: TestClient) -> None:
    answer = api.post(f"/v2/taskgroup/{uuid.uuid4()}/events")
    refusal(answer, 503, "BROKER_UNAVAILABLE")
    answer = api.post("/v2/taskgroup/g1/events")
    refusal(answer, 422, "SEMANTICALLY_INVALID", "group_id")


def waiting(url: str, queue: str) -> int:
    """Return how many messages wait in a queue."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    count: int = connection.channel().queue_declare(queue, passive=True).method.message_count
    connection.close()
    return count


@pytest.mark.rabbitmq
def test_the_number_and_size_of_a_tasks_events_are_limited(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    _, (task_id, other) = live.submit(endpoint_id, count=2)
    large = job_event(task_id, "large", 0.5, context={"note": "x" * MAX_CONTEXT})
    many = [job_event(task_id, "a", number) for number in range(1500)]
    peer.send_events(endpoint_id, message(large, *many))
    peer.send_events(endpoint_id, message(job_event(task_id, "late"), job_event(other, "late")))
    until(lambda: [each["name"] for each in events_of(live, other)] == ["late"])
    first, *kept = events_of(live, task_id)
    size = MAX_CONTEXT + len('{"note": ""}')
    assert first["context"] == {"omitted": f"{size} characters, more than {MAX_CONTEXT}"}
    assert [each["timestamp"] for each in kept] == [*range(MAX_TASK_EVENTS - 1)]
