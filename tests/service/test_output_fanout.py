"""Followers of one task at several services of one database."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import Peer, Rest, beside
from tests.service.test_operations import output, result

from flux_endpoint.amqp import AmqpConnection
from flux_endpoint.protocol.messages import OutputWanted, unpack
from flux_endpoint.protocol.queues import commands_queue
from flux_endpoint.service import live_output, output_fanout, topology
from flux_endpoint.service.app import create_app
from flux_endpoint.service.output_fanout import PASSED_ON, OutputFanout
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

pytestmark = pytest.mark.rabbitmq


class Follower:
    """What one service has got from others."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def add(self, task_id: str, streams: dict[str, Any]) -> None:
        self.got.append((task_id, streams))

    def end(self, task_ids: list[str]) -> None:
        self.got.append(task_ids)


@pytest.fixture
def fanouts(amqp_vhost: str) -> Iterator[list[tuple[OutputFanout, Follower]]]:
    with ExitStack() as stack:
        made = []
        for name in ("first", "second"):
            connection = stack.enter_context(AmqpConnection(amqp_vhost, name=name))
            connection.declare(*topology.shared()).result(60)
            receiver = Follower()
            fanout = OutputFanout(connection, receiver)
            fanout.start()
            stack.callback(fanout.close, 10)
            made.append((fanout, receiver))
        yield made


def test_only_the_output_and_ends_of_tasks_that_others_follow_are_passed_on(
    fanouts: list[tuple[OutputFanout, Follower]],
) -> None:
    (first, of_first), (second, of_second) = fanouts
    second.printed("t", {"stdout": [0, 1, "a"]})  # nobody follows it
    assert not second.follow

    def follows() -> bool:
        first.followed("t")  # its queue may not be there yet
        return second.follow

    until(follows)
    second.printed("u", {"stdout": [0, 1, "b"]})
    second.printed("t", {"stdout": [1, 2, "c"]})
    second.ended({"u", "t"})
    until(lambda: len(of_first.got) == 2)
    assert of_first.got == [("t", {"stdout": [1, 2, "c"]}), ["t"]]
    assert of_second.got == []
    assert not first.follow


def test_nobody_who_follows_a_task_waits_for_a_broker_that_takes_nothing() -> None:
    class Connection:
        def __init__(self) -> None:
            self.takes, self.taken = threading.Event(), list[str]()

        def declare(self, *_: object) -> None: ...

        def consume(self, *_: object, **__: object) -> None: ...

        def publish(self, _exchange: str, _key: str, body: bytes, **_: object) -> None:
            assert self.takes.wait(60)  # as if too many messages await their confirms
            self.taken.append(json.loads(body)["followed"])

    connection = Connection()
    fanout = OutputFanout(cast("AmqpConnection", connection), Follower())
    fanout.start()
    request = threading.Thread(target=lambda: [fanout.followed(each) for each in "abab"])
    request.start()
    request.join(30)
    try:
        assert not request.is_alive()
        connection.takes.set()
        until(lambda: {"a", "b"} <= {*connection.taken})
    finally:
        connection.takes.set()
        fanout.close(10)


def test_more_tasks_than_can_be_passed_on_leave_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(output_fanout, "MOST_FOLLOWED", 1)
    fanout = OutputFanout(cast("AmqpConnection", None), Follower(), lambda: now)
    fanout._note("a")
    fanout._note("b")
    now = PASSED_ON - 1
    fanout._note("a")  # still followed
    now += 2
    assert fanout._of_others(["a", "b"]) == ["a"]


def test_each_follower_gets_the_whole_output_and_hears_of_the_end(
    live: Rest,
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_output, "GAP_WAIT", 60.0)  # the machine may be busy
    with TestClient(create_app(beside(live_settings)), headers=token_of("ada")) as client:
        endpoint = live.register_endpoint(
            metadata={"flux_endpoint_version": "1", "output_on_request": True}
        )
        _, (task_id,) = live.submit(endpoint)
        services = (live.client, client)
        # They hear of each other once they are connected.
        until(lambda: all(each.get("/health").status_code == 200 for each in services))
        seen = ["", ""]

        def look() -> list[bool]:
            """Ask both services; return which of them say that the task has ended."""
            ended = []
            for number, each in enumerate(services):
                query = {"stdout": len(seen[number]), "wait": 0, "attempt": 1}
                answer = each.get(f"/v3/tasks/{task_id}/output", params=query).json()
                if part := answer["stdout"]:
                    assert part["begin"] == len(seen[number])
                    seen[number] += part["text"]
                ended.append(answer["ended"])
            return ended

        look()
        for _ in services:
            assert isinstance(unpack(peer.take(commands_queue(endpoint)).body), OutputWanted)
        until(lambda: look() and all(each.app.state.live_output.others.follow for each in services))
        text = ""
        for number in range(50):
            line = f"step {number}\n"
            part = (len(text), len(text) + len(line), line)
            peer.send_events(endpoint, output(task_id, stdout=part))
            text += line
        until(lambda: look() == [False, False] and seen == [text, text])
        followed = [each.app.state.live_output._tasks[task_id] for each in services]
        peer.send_result(endpoint, result(task_id))
        until(lambda: [each.has_ended for each in followed] == [True, True])
        assert look() == [True, True]
