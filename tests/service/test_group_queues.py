"""A task group's queues: every client that uses the group gets all of its results and events."""

import uuid
from collections.abc import Callable

import pika
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import PAYLOAD, Peer, Rest, exists, refusal

from flux_endpoint.amqp.bundle import CONTENT_TYPE, Part, pack_bundle, unpack_bundle
from flux_endpoint.amqp.url import without_credentials
from flux_endpoint.protocol.messages import Result, TaskEvents, pack, unpack


def result(task_id: str) -> bytes:
    return pack(Result(task_id=uuid.UUID(task_id), data="00\ngARLDi4=\n"))


def opened(rest: Rest, group_id: str, kind: str = "results", **what: bool) -> str:
    """Open a queue of a new client's and return its name."""
    answer = rest.client.post(
        f"/v2/taskgroup/{group_id}/{kind}", json={"client_id": str(uuid.uuid4()), **what}
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["queue"])


@pytest.mark.rabbitmq
def test_every_client_of_a_group_gets_each_result(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id = str(uuid.uuid4())
    queues = [opened(live, group_id), opened(live, group_id)]
    # One task is an official client's, which gets all results of the group in turn.
    _, (ours,) = live.submit(endpoint_id, task_group_id=group_id, create_queue=False)
    _, (official,) = live.submit(endpoint_id, task_group_id=group_id)
    for task_id in (ours, official):
        peer.send_result(endpoint_id, result(task_id))
    for queue in (*queues, f"tg.{group_id}"):
        assert [peer.take(queue).body for _ in range(2)] == [result(ours), result(official)]


def send_together(peer: Peer, endpoint_id: str, bodies: list[bytes]) -> None:
    """Publish results in one message, as an endpoint of ours does."""
    peer.connection.publish(
        "results",
        f"{endpoint_id}.results",
        pack_bundle([Part(body) for body in bodies]),
        content_type=CONTENT_TYPE,
    ).result(60)


def taken_together(peer: Peer, name: str, count: int) -> tuple[list[bytes], int]:
    """Return `count` results from a queue, and in how many messages they came."""
    found: list[bytes] = []
    messages = 0
    while len(found) < count:
        body = peer.take(name).body
        messages += 1
        found += [body] if body[:1] == b"\x01" else [each.body for each in unpack_bundle(body)]
    return found, messages


@pytest.mark.rabbitmq
def test_bundled_results_are_forwarded_in_bundles_to_clients_that_accept_them(
    live: Rest, peer: Peer
) -> None:
    endpoint_id, group_id = live.register_endpoint(), str(uuid.uuid4())
    ours = opened(live, group_id, bundles=True)
    _, tasks = live.submit(endpoint_id, 50, task_group_id=group_id, create_queue=False)
    bodies = [result(task_id) for task_id in tasks]
    send_together(peer, endpoint_id, bodies)
    found, messages = taken_together(peer, ours, 50)
    assert found == bodies
    assert messages < 25
    assert all(live.status(task_id)["status"] == "success" for task_id in tasks)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("official", ["submits", "reads the group", "opened a queue"])
def test_every_client_of_a_group_gets_results_bundled_or_not_as_requested(
    live: Rest, peer: Peer, official: str
) -> None:
    endpoint_id, group_id = live.register_endpoint(), str(uuid.uuid4())
    ours = opened(live, group_id, bundles=True)
    create_queue = official == "submits"
    _, tasks = live.submit(endpoint_id, 3, task_group_id=group_id, create_queue=create_queue)
    theirs = f"tg.{group_id}"
    if official == "reads the group":
        assert live.client.get(f"/v2/taskgroup/{group_id}").status_code == 200
    elif official == "opened a queue":  # that of an earlier release of ours
        theirs = opened(live, group_id)
    bodies = [result(task_id) for task_id in tasks]
    send_together(peer, endpoint_id, bodies)
    assert [peer.take(theirs).body for _ in bodies] == bodies
    assert taken_together(peer, ours, 3)[0] == bodies


@pytest.mark.rabbitmq
def test_only_the_invalid_result_of_a_bundle_is_dead_lettered(live: Rest, peer: Peer) -> None:
    endpoint_id, group_id = live.register_endpoint(), str(uuid.uuid4())
    ours = opened(live, group_id, bundles=True)
    _, (first, last) = live.submit(endpoint_id, 2, task_group_id=group_id, create_queue=False)
    bodies = [result(first), b"nonsense", result(last)]
    send_together(peer, endpoint_id, bodies)
    assert taken_together(peer, ours, 2)[0] == [bodies[0], bodies[2]]
    assert [each.body for each in unpack_bundle(peer.take("dead-letters").body)] == bodies


@pytest.mark.rabbitmq
def test_every_client_of_a_group_gets_each_job_event(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    shared = live.client.post(f"/v2/taskgroup/{group_id}/events").json()["queue"]
    queues = [opened(live, group_id, "events"), opened(live, group_id, "events"), shared]
    event = {"task_id": task_id, "jobid": 7, "name": "start", "timestamp": 1.5, "context": {}}
    body = b'{"message_type": "task_events", "data": {"events": [%s]}}'
    peer.send_events(endpoint_id, b"\x01" + body % repr(event).replace("'", '"').encode())
    for queue in queues:
        received = unpack(peer.take(queue).body)
        assert isinstance(received, TaskEvents)
        assert [each.name for each in received.events] == ["start"]


@pytest.mark.rabbitmq
def test_a_client_queue_is_named_after_its_group_and_client(live: Rest, amqp_vhost: str) -> None:
    group_id, client_id = str(uuid.uuid4()), str(uuid.uuid4())
    for kind, prefix in (("results", "tg"), ("events", "ev")):
        answer = live.client.post(f"/v2/taskgroup/{group_id}/{kind}", json={"client_id": client_id})
        assert answer.json()["queue"] == f"{prefix}.{group_id}.{client_id}"
        url = answer.json()["connection_url"]
        assert without_credentials(url) == without_credentials(amqp_vhost)
    # No official client has used the group: nothing is kept for one.
    assert not exists(amqp_vhost, f"tg.{group_id}")


@pytest.mark.rabbitmq
def test_the_queue_of_official_clients_exists_once_one_reads_the_group(
    live: Rest, peer: Peer, amqp_vhost: str
) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id, create_queue=False)
    live.client.get(f"/v2/taskgroup/{group_id}", params={"create_queue": "false"})
    assert not exists(amqp_vhost, f"tg.{group_id}")
    assert live.client.get(f"/v2/taskgroup/{group_id}").json()["tasks"] == [{"id": task_id}]
    peer.send_result(endpoint_id, result(task_id))
    assert peer.take(f"tg.{group_id}").body == result(task_id)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("beside_a_new_client", [False, True])
def test_the_queue_of_an_earlier_release_still_gets_its_results(
    live: Rest, peer: Peer, amqp_vhost: str, *, beside_a_new_client: bool
) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    queue = f"tg.{group_id}"
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    connection.channel().queue_unbind(queue, "task-groups", queue)  # as it was left
    connection.close()
    queues = [queue, opened(live, group_id)] if beside_a_new_client else [queue]
    peer.send_result(endpoint_id, result(task_id))
    assert [peer.take(each).body for each in queues] == [result(task_id)] * len(queues)


@pytest.mark.rabbitmq
def test_a_queue_that_was_deleted_is_opened_again(live: Rest, peer: Peer, amqp_vhost: str) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id, create_queue=False)
    path, body = f"/v2/taskgroup/{group_id}/results", {"client_id": str(uuid.uuid4())}
    queue = live.client.post(path, json=body).json()["queue"]
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    connection.channel().queue_delete(queue)
    connection.close()
    assert live.client.post(path, json=body).json()["queue"] == queue
    peer.send_result(endpoint_id, result(task_id))
    assert peer.take(queue).body == result(task_id)


@pytest.mark.parametrize("kind", ["results", "events"])
@pytest.mark.parametrize("client_id", ["x", "", 7, "*"])
def test_a_client_id_must_be_a_uuid(api: TestClient, kind: str, client_id: object) -> None:
    answer = api.post(f"/v2/taskgroup/{uuid.uuid4()}/{kind}", json={"client_id": client_id})
    refusal(answer, 422, "SEMANTICALLY_INVALID", "client_id")


@pytest.mark.rabbitmq
@pytest.mark.parametrize("kind", ["results", "events"])
def test_the_group_of_another_user_is_refused(
    live: Rest, token_of: Callable[[str], dict[str, str]], kind: str
) -> None:
    group_id, _ = live.submit(live.register_endpoint())
    answer = live.client.post(
        f"/v2/taskgroup/{group_id}/{kind}",
        json={"client_id": str(uuid.uuid4())},
        headers=token_of("eve"),
    )
    refusal(answer, 403, "TASK_GROUP_NOT_PERMITTED", "task_group_id")


def test_without_a_broker_no_queue_is_promised(api: TestClient) -> None:
    answer = api.post(
        f"/v2/taskgroup/{uuid.uuid4()}/results", json={"client_id": str(uuid.uuid4())}
    )
    refusal(answer, 503, "BROKER_UNAVAILABLE")


@pytest.mark.rabbitmq
def test_a_client_queue_takes_results_of_a_submission_that_asked_for_no_queue(
    live: Rest, peer: Peer
) -> None:
    endpoint_id = live.register_endpoint()
    function_id = live.register_function()
    group_id = str(uuid.uuid4())
    queue = opened(live, group_id)
    body = {"tasks": {function_id: [PAYLOAD]}, "task_group_id": group_id}
    answer = live.client.post(f"/v3/endpoints/{endpoint_id}/submit", json=body).json()
    (task_id,) = answer["tasks"][function_id]
    peer.send_result(endpoint_id, result(task_id))
    assert peer.take(queue).body == result(task_id)
