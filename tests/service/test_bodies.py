"""Large bodies take their turns, slow ones take no memory, and none becomes too many objects."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from tests.service.conftest import FUNCTION, PAYLOAD, refusal

from flux_endpoint.errors import ServiceError
from flux_endpoint.service import bodies
from flux_endpoint.service.bodies import (
    MEDIUM_BYTES,
    SMALL_BYTES,
    STRUCTURE_BYTES,
    Bodies,
    BodyGate,
    _ArrivingMemory,
    _Spool,
)

#: Seconds that something must not take.
TOO_LONG = 20


class TestGate:
    def test_a_hold_does_not_wait_while_there_is_room(self) -> None:
        async def run() -> None:
            gate = BodyGate(100)
            async with gate.hold("a", 50, 0.01), gate.hold("b", 50, 0.01):
                with pytest.raises(ServiceError):
                    async with gate.hold("c", 1, 0.01):
                        pass
            async with gate.hold("c", 100, 0.01):
                pass

        asyncio.run(run())

    def test_a_body_larger_than_the_total_is_admitted_alone(self) -> None:
        async def run() -> None:
            gate = BodyGate(100)
            async with gate.hold("a", 1000, 0.01):
                with pytest.raises(ServiceError):
                    async with gate.hold("b", 1, 0.01):
                        pass
            async with gate.hold("b", 1, 0.01):
                pass

        asyncio.run(run())

    def test_a_user_can_hold_only_half_of_the_room(self) -> None:
        async def run() -> None:
            gate = BodyGate(100)
            async with gate.hold("a", 40, 1):
                mine = asyncio.create_task(self.held(gate, "a", 40, TOO_LONG))
                await asyncio.sleep(0)
                async with gate.hold("b", 40, 1):
                    assert not mine.done()
            await mine

        asyncio.run(run())

    def test_a_large_body_is_not_overtaken_forever_by_small_ones(self) -> None:
        async def run() -> None:
            gate = BodyGate(100)
            async with gate.hold("a", 50, 1):
                large = asyncio.create_task(self.held(gate, "b", 60, TOO_LONG))
                await asyncio.sleep(0)
                with pytest.raises(ServiceError):
                    async with gate.hold("c", 10, 0.01):
                        pass
            await large

        asyncio.run(run())

    def test_a_timed_out_hold_does_not_block_others(self) -> None:
        async def run() -> None:
            gate = BodyGate(100)
            async with gate.hold("a", 50, 1):
                large = asyncio.create_task(self.held(gate, "b", 60, TOO_LONG))
                small = asyncio.create_task(self.held(gate, "c", 10, TOO_LONG))
                await asyncio.sleep(0)
                large.cancel()
                await small
            async with gate.hold("d", 100, 1):
                pass

        asyncio.run(run())

    @staticmethod
    async def held(gate: BodyGate, user: str, size: int, timeout: float) -> None:
        async with gate.hold(user, size, timeout):
            pass


class Request:
    """A request to `Bodies`, and what the application got of it."""

    def __init__(self, *chunks: bytes) -> None:
        self.messages = [
            {"type": "http.request", "body": each, "more_body": True} for each in chunks
        ]
        self.messages[-1]["more_body"] = False
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        return self.messages.pop(0) if self.messages else {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def run(self, app: Any) -> None:
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        asyncio.run(app(scope, self.receive, self.send))


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, 10 * SMALL_BYTES])
@pytest.mark.parametrize("chunk", [1000, 65536])
def test_the_application_gets_the_whole_body(size: int, chunk: int) -> None:
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        assert not message["more_body"]
        got.append(message["body"])
        assert (await receive())["type"] == "http.disconnect"

    body = b'"' + bytes(index % 23 + 65 for index in range(size)) + b'"'
    chunks = [body[first : first + chunk] for first in range(0, len(body), chunk)]
    Request(*chunks).run(Bodies(app))
    assert got == [body]


def test_bodies_beyond_the_limit_are_refused_temporarily(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(*_: Any) -> None:
        pytest.fail("it was handed over")

    monkeypatch.setattr(bodies, "USER_WAITING_BYTES", 100_000)
    monkeypatch.setattr(bodies, "MEDIUM_BYTES", SMALL_BYTES)
    request = Request(b"x" * 70_000, b"x" * 70_000)
    request.run(Bodies(app))
    start, body = request.sent
    assert start["status"] == 503
    assert (b"retry-after", b"5") in start["headers"]
    assert json.loads(body["body"])["code"] == "SERVICE_BUSY"


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(*_: Any) -> None:
        pytest.fail("it was handed over")

    def on_full_disk(**_: Any) -> Any:
        return Path("/dev/full").open("wb", buffering=0)

    monkeypatch.setattr(bodies.tempfile, "TemporaryFile", on_full_disk)
    monkeypatch.setattr(bodies, "MEDIUM_BYTES", SMALL_BYTES)
    request = Request(b"x" * 70_000)
    request.run(Bodies(app))
    start, body = request.sent
    assert start["status"] == 503
    assert "No space left" in json.loads(body["body"])["message"]


VALUES = {
    "empty lists": b"[],",
    "numbers": b"1,",
    "empty texts": b'"",',
    "texts without commas": b'""',
    "objects": b'{"a":{},"b":1},',
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("path", ["/v3/endpoints/{0}/submit", "/v3/functions", "/v2/batch_status"])
def test_a_body_of_many_values_is_refused_soon(api: TestClient, values: bytes, path: str) -> None:
    size = 3 * 2**20 if path == "/v2/batch_status" else 60 * 2**20
    inner = b"[" + values * (size // len(values)) + b"0]"
    body = b'{"tasks":{"%s":%s},"task_ids":%s}' % (str(uuid.uuid4()).encode(), inner, b"[]")
    begun = time.monotonic()
    answer = api.post(path.format(uuid.uuid4()), content=body)
    assert time.monotonic() - begun < TOO_LONG
    refusal(answer, 413, "REQUEST_TOO_LARGE", "body")


@given(
    st.lists(
        st.sampled_from(['"', "\\", '\\"', "\\\\", "a", "é", "\n", "{", ",", "aaaaaaaa"]),
        max_size=30,
    ).map("".join)
)
def test_the_end_of_a_string_is_found_with_and_without_escapes(text: str) -> None:
    whole = b'{"k":%s,"x":1}' % json.dumps(text).encode()
    end = bodies._end_of_string(whole, 5)
    assert json.loads(whole[5:end]) == text
    cut = b'"' + text.encode().replace(b'"', b"")
    assert bodies._end_of_string(cut, 0) == len(cut)


def test_as_many_wrong_values_as_can_be_are_refused_soon(api: TestClient) -> None:
    wrong = ("1," * (STRUCTURE_BYTES // 2 - 100) + "1").encode()
    body = b'{"tasks":{"%s":[%s]}}' % (str(uuid.uuid4()).encode(), wrong)
    begun = time.monotonic()
    answer = api.post(f"/v3/endpoints/{uuid.uuid4()}/submit", content=body)
    assert time.monotonic() - begun < TOO_LONG
    assert answer.status_code == 422
    many = ",".join(f'"{index}":1' for index in range(STRUCTURE_BYTES // 5))
    answer = api.post(f"/v3/endpoints/{uuid.uuid4()}/submit", content=f'{{"tasks":{{{many}}}}}')
    assert answer.status_code == 422
    assert time.monotonic() - begun < TOO_LONG


def test_a_batch_of_many_tasks_is_taken(api: TestClient, add_endpoint: Callable[..., str]) -> None:
    function = {"function_name": "f", "function_code": FUNCTION}
    function_id = api.post("/v3/functions", json=function).json()["function_uuid"]
    endpoint_id = add_endpoint(metadata={"flux_endpoint_version": "1"})
    batch = {"tasks": {function_id: [PAYLOAD] * 20_000}}
    answer = api.post(f"/v3/endpoints/{endpoint_id}/submit", json=batch)
    assert len(answer.json()["tasks"][function_id]) == 20_000


def test_bodies_of_a_medium_size_use_files_only_without_memory() -> None:
    arriving = _ArrivingMemory(100_000)
    first, second, third = (_Spool(arriving) for _ in range(3))
    first.append(b"a" * SMALL_BYTES)
    first.append(b"b" * 80_000)
    second.append(b"c" * SMALL_BYTES)
    assert (first.in_file, second.in_file, arriving.free) == (0, 0, 20_000)
    second.append(b"d" * 30_000)
    assert (second.in_file, arriving.free) == (SMALL_BYTES + 30_000, 20_000)
    assert first.read() == b"a" * SMALL_BYTES + b"b" * 80_000
    assert second.read() == b"c" * SMALL_BYTES + b"d" * 30_000
    third.append(b"e" * (SMALL_BYTES + 90_000))
    assert (third.in_file, arriving.free) == (0, 10_000)
    third.close()  # its client is gone
    assert arriving.free == 100_000
    third = _Spool(arriving)
    third.append(b"f" * (MEDIUM_BYTES + 1))
    assert (third.in_file, arriving.free) == (MEDIUM_BYTES + 1, 100_000)
    for each in (second, third):
        each.close()


def test_a_body_in_tiny_pieces_takes_little_more_memory_than_its_size() -> None:
    spool = _Spool(_ArrivingMemory(0))
    pieces = [bytes(each) for each in zip(range(250), range(250), strict=True)] * (
        SMALL_BYTES // 500
    )
    tracemalloc.start()
    try:
        for piece in pieces:
            spool.append(bytes(bytearray(piece)))  # a new object, as a received piece is
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * SMALL_BYTES
    assert spool.read() == b"".join(pieces)
