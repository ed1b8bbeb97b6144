"""Results: stored, forwarded, then acknowledged; unreadable ones are dead-lettered."""

import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import PATIENCE, Peer, Rest

from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.messages import EPStatusReport, Result, pack
from flux_endpoint.service import broker
from flux_endpoint.service.app import create_app
from flux_endpoint.service.results import ResultConsumer
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.tables import tasks
from waiting import until

pytestmark = pytest.mark.rabbitmq

DETAILS = {"os": "Linux", "python_version": "3.11.7", "dill_version": "0.3.9"}


def result(task_id: str, data: str = "00\ngARLDi4=\n", **more: Any) -> bytes:
    return pack(Result(task_id=uuid.UUID(task_id), data=data, details=DETAILS, **more))


NESTED = '{"a":' * 300 + "1" + "}" * 300


def written_by_hand(details: str, timestamp: str) -> bytes:
    """Return a result message that no sender of ours would write."""
    return (
        f'\x01{{"message_type":"result","data":{{"task_id":"{uuid.uuid4()}","data":"x",'
        f'"details":{details},"task_statuses":[{{"timestamp":{timestamp},"state":"success",'
        f'"actor":"endpoint"}}]}}}}'
    ).encode()


def test_a_result_reaches_its_group_unchanged_and_rest(live: Rest, peer: Peer) -> None:
    before = time.time()
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    body = result(task_id).replace(b'"data":', b'"data" :')
    peer.send_result(endpoint_id, body)
    delivery = peer.take(f"tg.{group_id}")
    assert delivery.body == body
    document = live.status(task_id)
    completed = float(document.pop("completion_t"))
    assert before <= completed <= time.time()
    assert delivery.timestamp == int(completed)
    assert document == {
        "task_id": task_id,
        "status": "success",
        "result": "00\ngARLDi4=\n",
        "details": DETAILS,
    }


def test_a_failure_reads_as_one(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    error = {"code": "RemoteExecutionError", "user_message": "it raised"}
    body = result(task_id, "Traceback", error_details=error)
    peer.send_result(endpoint_id, body.replace(b"Traceback", b"Traceback \\u0000 \\ud800"))
    peer.take(f"tg.{group_id}")
    batch = live.client.post("/v2/batch_status", json={"task_ids": [task_id]}).json()
    document = batch["results"][task_id]
    assert document["status"] == "failed"
    assert document["exception"] == "Traceback \0 \ud800"
    assert "result" not in document


def test_output_is_for_our_own_clients_alone(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id, silent) = live.submit(endpoint_id, count=2)
    output = {"stdout": "first\nlast \0 ä\n", "stderr": "", "stdout_dropped": 7}
    whole = pack(Result(task_id=uuid.UUID(task_id), data="x", details={**DETAILS, **output}))
    peer.send_result(endpoint_id, whole)
    peer.send_result(endpoint_id, result(silent))
    arrived = {}
    for _ in range(2):
        data = json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]
        arrived[data["task_id"]] = data["details"]
    assert arrived == {task_id: DETAILS, silent: DETAILS}
    assert live.status(task_id)["details"] == DETAILS
    asked = {"task_ids": [task_id, silent], "output": True}
    batch = live.client.post("/v2/batch_status", json=asked).json()["results"]
    assert batch[task_id]["details"] == {**DETAILS, "stdout": output["stdout"], "stdout_dropped": 7}
    assert batch[silent]["details"] == DETAILS
    record = live.client.get(f"/v3/tasks/{task_id}").json()
    assert (record["stdout"], record["stdout_dropped"]) == ("first\nlast ? ä\n", 7)
    listed = live.client.get("/v3/tasks").json()["tasks"]
    assert {each["task_id"]: each["printed"] for each in listed} == {
        task_id: "last ? ä",
        silent: None,
    }


def test_a_large_result_passes(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    data = "00\n" + "A" * (MAX_PAYLOAD_BYTES * 4 // 3)
    peer.send_result(endpoint_id, result(task_id, data))
    assert len(peer.take(f"tg.{group_id}").body) > len(data)
    assert live.status(task_id)["result"] == data


def test_the_first_result_wins_and_the_second_is_dropped(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (first, last) = live.submit(endpoint_id, count=2)
    for body in (result(first, "one"), result(first, "two"), result(last)):
        peer.send_result(endpoint_id, body)
    arrived = [json.loads(peer.take(f"tg.{group_id}").body[1:])["data"] for _ in range(2)]
    assert [each["task_id"] for each in arrived] == [first, last]
    assert arrived[0]["data"] == live.status(first)["result"] == "one"


def test_many_results_all_arrive(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    group_id, ids = live.submit(endpoint_id, count=1000)
    for task_id in ids:
        peer.connection.publish("results", f"{endpoint_id}.results", result(task_id))
    arrived = {json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]["task_id"] for _ in ids}
    assert arrived == set(ids)
    batch = live.client.post("/v2/batch_status", json={"task_ids": ids}).json()["results"]
    assert {document["status"] for document in batch.values()} == {"success"}


def test_a_result_drops_the_arguments(live: Rest, peer: Peer, database: Database) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    peer.send_result(endpoint_id, result(task_id))
    peer.take(f"tg.{group_id}")
    with database.read() as connection:
        assert connection.execute(tasks.select()).one().payload is None


def test_a_result_without_a_waiting_client_is_kept(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id, create_queue=False)
    peer.send_result(endpoint_id, result(task_id))
    until(lambda: live.status(task_id)["status"] == "success")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"\x02{}",
        b"\x01not json",
        b"\x01[]",
        b'\x01{"message_type":"result","data":{"task_id":"7","data":"x"}}',
        b'\x01{"message_type":"result","data":{"data":"x"}}',
        b"\x01" + b"[" * 100_000,
        written_by_hand(details=NESTED, timestamp='"1"'),
        written_by_hand(details=NESTED, timestamp="1"),
        written_by_hand(details='{"os": 1' + "0" * 400 + "}", timestamp="1"),
        written_by_hand(details="{}", timestamp="1" + "0" * 400),
        written_by_hand(details="{}", timestamp="-1"),
        written_by_hand(details='{"a": "' + "x" * 2_000_000 + '"}', timestamp='"1"'),
        pack(EPStatusReport(endpoint_id=uuid.uuid4(), global_state={}, task_statuses={})),
    ],
)
def test_an_unreadable_result_is_dead_lettered_and_others_are_processed(
    live: Rest, peer: Peer, body: bytes
) -> None:
    endpoint_id = live.register_endpoint()
    group_id, (task_id,) = live.submit(endpoint_id)
    peer.send_result(endpoint_id, body)
    peer.send_result(endpoint_id, result(task_id))
    peer.take(f"tg.{group_id}")
    assert peer.take("dead-letters").body == body


def test_a_result_from_another_endpoint_is_dead_lettered(live: Rest, peer: Peer) -> None:
    endpoint_id, other = live.register_endpoint(), live.register_endpoint()
    _, (task_id,) = live.submit(endpoint_id)
    peer.send_result(other, result(task_id, "forged"))
    assert peer.take("dead-letters").routing_key == f"{other}.results"
    assert live.status(task_id)["status"] in {"received", "waiting-for-ep"}


def test_a_result_of_an_unknown_task_is_logged_and_dropped(
    live: Rest, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = str(uuid.uuid4())
    peer.send_result(live.register_endpoint(), result(unknown))
    until(lambda: "result of an unknown task" in caplog.messages)


def test_a_result_that_was_stored_but_not_forwarded_is_forwarded_at_redelivery(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    database: Database,
) -> None:
    app = create_app(live_settings)
    with TestClient(app, headers=token_of("ada")) as client:
        rest = Rest(client)
        endpoint_id = rest.register_endpoint()
        group_id, (task_id,) = rest.submit(endpoint_id)
    # As if a service had died between its commit and its acknowledgement: the message is delivered
    # to somebody, who goes away without an answer, and the database has the result.
    body = result(task_id)
    peer.send_result(endpoint_id, body)
    dying = Peer(live_settings.amqp_url)
    taken = dying.take_unanswered("results")
    assert taken.body == body
    dying.connection.close()
    with database.write() as connection:
        connection.execute(
            tasks.update().values(
                completed_at=1.0, failed=False, result=b"00\ngARLDi4=\n", payload=None
            )
        )
    with TestClient(create_app(live_settings)):
        assert peer.take(f"tg.{group_id}").body == body


def test_a_service_that_ends_while_processing_a_result_leaves_it_to_the_next(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle, stored, closed = ResultConsumer.settle, threading.Event(), threading.Event()
    settling: list[threading.Thread] = []

    def settle_later(*of: Any) -> None:
        settling.append(threading.current_thread())
        stored.set()
        assert closed.wait(PATIENCE)
        settle(*of)

    with monkeypatch.context() as patch:
        patch.setattr(ResultConsumer, "settle", settle_later)
        patch.setattr(broker, "_CLOSE_TIMEOUT", 0.01)
        with TestClient(create_app(live_settings), headers=token_of("ada")) as client:
            endpoint_id = Rest(client).register_endpoint()
            group_id, (task_id,) = Rest(client).submit(endpoint_id)
            body = result(task_id)
            peer.send_result(endpoint_id, body)
            assert stored.wait(PATIENCE)
        closed.set()
        settling[0].join(PATIENCE)
    with TestClient(create_app(live_settings)):
        assert peer.take(f"tg.{group_id}").body == body


def report(endpoint_id: str, **state: Any) -> bytes:
    return pack(
        EPStatusReport(endpoint_id=uuid.UUID(endpoint_id), global_state=state, task_statuses={})
    )


def test_a_status_report_makes_an_endpoint_online_until_its_last_report(
    live: Rest, peer: Peer
) -> None:
    endpoint_id = live.register_endpoint()

    def status() -> dict[str, Any]:
        answer: dict[str, Any] = live.client.get(f"/v2/endpoints/{endpoint_id}/status").json()
        return answer

    assert status()["status"] == "offline"
    peer.send_report(endpoint_id, report(endpoint_id, heartbeat_period=30, total_workers=2))
    until(lambda: status()["status"] == "online")
    assert status()["details"] == {"heartbeat_period": 30, "total_workers": 2}
    assert abs(status()["last_seen"] - time.time()) < 30
    peer.send_report(endpoint_id, report(endpoint_id, heartbeat_period=30, active=False))
    until(lambda: status()["status"] == "offline")


def test_an_unreadable_or_forged_report_is_dead_lettered_and_others_are_processed(
    live: Rest, peer: Peer
) -> None:
    endpoint_id, other = live.register_endpoint(), live.register_endpoint()
    forged = report(endpoint_id, heartbeat_period=30)
    peer.send_report(other, b"garbage")
    peer.send_report(other, forged)
    peer.send_report(other, report(other, heartbeat_period=30))
    path = "/v2/endpoints/{}/status"
    until(lambda: live.client.get(path.format(other)).json()["status"] == "online")
    assert live.client.get(path.format(endpoint_id)).json()["status"] == "offline"
    assert {peer.take("dead-letters").body for _ in range(2)} == {b"garbage", forged}
