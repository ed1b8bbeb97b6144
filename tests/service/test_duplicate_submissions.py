"""A submission without a key whose answer got lost is not made twice; equal ones may be meant."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from tests.service.conftest import FUNCTION, NO_BROKER, PAYLOAD, refusal
from tests.service.http_server import listening

from broker_access import NOBODY_ASKS
from flux_endpoint.protocol.rest import RegisterFunction
from flux_endpoint.service import disconnects, duplicate_submissions
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import functions, users
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.task_publisher import TaskPublisher


class Gate:
    """Holds submissions when they are stored, and before they are answered."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()
        #: The service knows that a sender has hung up; that a repetition is one; that one ended.
        self.lost, self.adopted, self.ended = (threading.Event() for _ in range(3))

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait_entered(self) -> None:
        assert self._entered.acquire(timeout=60)

    def pass_through(self, *_: Any) -> bool:
        self._entered.release()
        assert self._open.wait(60)
        return False


class Sender:
    """Sends a submission on a connection of its own, as the official client does."""

    def __init__(self, port: int, token: dict[str, str], endpoint_id: str, body: bytes) -> None:
        head = [
            f"POST /v3/endpoints/{endpoint_id}/submit HTTP/1.1",
            "Host: localhost:5000",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in token.items()),
        ]
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.sendall("\r\n".join([*head, "", ""]).encode() + body)

    def answer(self) -> dict[str, Any]:
        with self._socket.makefile("rb") as stream:
            status = stream.readline()
            assert b" 200 " in status, status
            length = 0
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            found: dict[str, Any] = json.loads(stream.read(length))
        self._socket.close()
        return found

    def hang_up(self) -> None:
        self._socket.close()


class World:
    def __init__(self, port: int, token: dict[str, str], endpoint_id: str, body: bytes) -> None:
        self.port = port
        self.token = token
        self.endpoint_id = endpoint_id
        self.body = body

    def send(self, **how: Any) -> Sender:
        what = {"token": self.token, "endpoint_id": self.endpoint_id, "body": self.body, **how}
        return Sender(self.port, **what)


def announced(method: Callable[..., Any], happened: threading.Event) -> Callable[..., Any]:
    def announce(*arguments: Any) -> Any:
        result = method(*arguments)
        happened.set()
        return result

    return announce


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(TaskPublisher, "publish", gate.pass_through)
    for of, name, happened in (
        (disconnects.Connection, "lose", gate.lost),
        (duplicate_submissions.DuplicateSubmissions, "_adopt", gate.adopted),
        (duplicate_submissions.DuplicateSubmissions, "_ended", gate.ended),
    ):
        monkeypatch.setattr(of, name, announced(getattr(of, name), happened))
    yield gate
    gate.open()


@pytest.fixture(params=["h11", "httptools"])
def world(
    request: pytest.FixtureRequest,
    database: Database,
    database_url: str,
    gate: Gate,
    token_of: Callable[[str], dict[str, str]],
    add_endpoint: Callable[..., str],
) -> Iterator[World]:
    settings = ServiceSettings(
        database_url=database_url, amqp_url=NO_BROKER, publish_timeout=0.01, **NOBODY_ASKS
    )
    endpoint_id, token = add_endpoint(users=["*"]), token_of("ada")
    with database.write() as connection:
        ada = users.user_by_token(connection, token["Authorization"].removeprefix("Bearer "))
        assert ada is not None
        asked = RegisterFunction(function_name="f", function_code=FUNCTION, public=True)
        function_id = functions.add_function(connection, ada.id, asked, FUNCTION)
    body = {"tasks": {function_id: [PAYLOAD]}, "task_group_id": str(uuid.uuid4())}
    with listening(create_app(settings), request.param) as port:
        yield World(port, token, endpoint_id, json.dumps(body).encode())


def stored(database: Database) -> int:
    with database.read() as connection:
        count: int = connection.execute(sa.text("SELECT count(*) FROM tasks")).scalar_one()
        return count


def lost_while_under_way(world: World, gate: Gate) -> None:
    """Have a submission stored whose sender hangs up before it is answered."""
    gate.close()
    first = world.send()
    gate.wait_entered()
    first.hang_up()
    assert gate.lost.wait(60)
    gate.adopted.clear()


def test_a_repetition_during_the_first_request_gets_its_answer(
    world: World, gate: Gate, database: Database
) -> None:
    lost_while_under_way(world, gate)
    again = world.send()
    assert gate.adopted.wait(60)
    gate.open()
    answer = again.answer()
    assert stored(database) == 1
    ((task_id,),) = answer["tasks"].values()
    headers = world.token
    url = f"http://127.0.0.1:{world.port}/v2/tasks/{task_id}"
    assert httpx.get(url, headers=headers, timeout=60).status_code == 200


def test_a_repetition_after_the_first_request_gets_its_answer(
    world: World, gate: Gate, database: Database
) -> None:
    lost_while_under_way(world, gate)
    gate.open()
    assert gate.ended.wait(60)
    assert len(world.send().answer()["tasks"]) == 1
    assert stored(database) == 1


def test_a_second_repetition_is_a_new_submission(
    world: World, gate: Gate, database: Database
) -> None:
    lost_while_under_way(world, gate)
    gate.open()
    first, second = world.send().answer(), world.send().answer()
    assert first["tasks"] != second["tasks"]
    assert stored(database) == 2


def test_equal_submissions_with_answers_are_separate(
    world: World, gate: Gate, database: Database
) -> None:
    gate.close()
    together = [world.send(), world.send()]
    for _ in together:
        gate.wait_entered()
    gate.open()
    answers = [each.answer() for each in (*together, world.send())]
    assert len({json.dumps(each["tasks"]) for each in answers}) == 3
    assert stored(database) == 3


def test_a_request_of_another_user_or_with_another_body_is_not_a_repetition(
    world: World, gate: Gate, database: Database, bob: dict[str, str]
) -> None:
    lost_while_under_way(world, gate)
    gate.open()
    content = json.loads(world.body)
    others = json.dumps({**content, "task_group_id": str(uuid.uuid4())}).encode()
    world.send(body=world.body + b" ").answer()
    world.send(token=bob, body=others).answer()
    assert stored(database) == 3


def test_a_request_lost_before_processing_is_not_run_beside_its_repetition(
    world: World, gate: Gate, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = duplicate_submissions.DuplicateSubmissions.answer
    held, go, over = (threading.Event() for _ in range(3))

    def answer_later(*of: Any) -> Any:
        if held.is_set():
            return answer(*of)
        held.set()
        assert go.wait(60)
        try:
            return answer(*of)
        finally:
            over.set()

    monkeypatch.setattr(duplicate_submissions.DuplicateSubmissions, "answer", answer_later)
    first = world.send()
    assert held.wait(60)
    first.hang_up()
    assert gate.lost.wait(60)
    assert len(world.send().answer()["tasks"]) == 1
    go.set()
    assert over.wait(60)
    assert stored(database) == 1


def test_a_disconnect_during_the_answer_counts_as_not_delivered() -> None:
    written: list[bool] = []

    async def exchange() -> None:
        gone = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope[disconnects._KEY].on_end(written.append)
            await receive()
            await asyncio.sleep(0)  # from now on somebody waits for the end of the connection
            gone.set()
            await send({"type": "http.response.body"})

        messages = iter([{"type": "http.request"}])

        async def receive() -> Any:
            for message in messages:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        scope = {"type": "http", "method": "POST", "path": "/v3/endpoints/e/submit"}
        await disconnects.WatchedSubmissions(app)(scope, receive, send)

    asyncio.run(exchange())
    assert written == [False]


def test_a_repetition_after_the_time_limit_is_a_new_submission(
    world: World, gate: Gate, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicate_submissions, "REPEATED_WITHIN", -1)
    lost_while_under_way(world, gate)
    gate.open()
    assert gate.ended.wait(60)
    world.send().answer()
    assert stored(database) == 2


def test_the_number_of_kept_answers_is_limited(
    world: World, gate: Gate, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicate_submissions, "MAX_KEPT", 0)
    lost_while_under_way(world, gate)
    gate.open()
    assert gate.ended.wait(60)
    world.send().answer()
    assert stored(database) == 2


def test_a_refused_submission_is_processed_again(
    world: World, gate: Gate, database: Database
) -> None:
    content = json.loads(world.body)
    function_id = str(uuid.uuid4())
    unknown = json.dumps({**content, "tasks": {function_id: [PAYLOAD]}}).encode()
    url = f"http://127.0.0.1:{world.port}/v3/endpoints/{world.endpoint_id}/submit"
    for _ in range(2):
        answer = httpx.post(url, content=unknown, headers=world.token, timeout=60)
        refusal(answer, 404, "FUNCTION_NOT_FOUND", f"tasks.{function_id}")
    assert stored(database) == 0
