"""A large result message is read exactly like a small one."""

from __future__ import annotations

import base64
import json
import os
import uuid
from typing import Any

import pytest

from flux_endpoint.engine.results import body_of
from flux_endpoint.engine.task import Value
from flux_endpoint.engine.workers.worker_reports import _is_result_of
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.protocol.envelope import LARGE_TEXT, quoted
from flux_endpoint.protocol.messages import Result, pack, read_json
from flux_endpoint.service.results import _parse

TASK = str(uuid.UUID(int=7))
VALUES = {
    "base64": "00\n" + base64.b64encode(os.urandom(90_000)).decode() + "\n",
    "base64 in lines": "00\n" + base64.encodebytes(os.urandom(90_000)).decode(),
    "plain text": "x" * 100_000,
    "quotes": '11\n"' + 'a"' * 50_000,
    "a backslash before n": "\\n" * 50_000,
    "a backslash at the end": "a" * 100_000 + "\\",
    "control characters": "\0\t" * 50_000,
    "other scripts": "é😀" * 50_000,
    "a lone surrogate": "\ud800" + "a" * 100_000,
    "a key in the text": '"data": "' * 20_000,
}


def message(value: str, **more: Any) -> bytes:
    data = {"task_id": TASK, "data": value, **more}
    return b"\x01" + json.dumps({"message_type": "result", "data": data}).encode()


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_large_value_is_stored_as_it_was_sent(value: str) -> None:
    body = message(value, details={"os": "Linux"})
    outcome = _parse(body)
    assert (outcome.task_id, outcome.failed) == (TASK, False)
    assert outcome.data == value.encode(errors="surrogatepass")
    assert outcome.details == {"os": "Linux"}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_large_text_is_written_and_read_as_json_does(value: str) -> None:
    assert quoted(value) == json.dumps(value).encode()
    body = message(value, details={"os": "Linux"})
    assert read_json(body) == json.loads(body[1:])
    made = body_of(TASK, Value(value), {"os": "Linux"}, [])
    assert json.loads(made[1:])["data"]["data"] == value


def test_the_messages_of_endpoints_are_read() -> None:
    value = VALUES["base64"]
    body = pack(Result(task_id=uuid.UUID(TASK), data=value, details=None))
    assert _parse(body).data == value.encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body[:-40],
        lambda body: body.replace(b'"result"', b'"task"'),
        lambda body: body.replace(b"xxx", b"x\nx", 1),
        lambda body: b"\x02" + body[1:],
        lambda body: body.replace(TASK.encode(), b"none"),
    ],
    ids=["incomplete", "another type", "a newline in a string", "another version", "no task"],
)
def test_a_large_message_that_is_wrong_is_refused(change: Any) -> None:
    body = change(message("x" * 2 * LARGE_TEXT))
    with pytest.raises(InvalidMessageError):
        _parse(body)


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_manager_knows_a_large_result_of_a_task(value: str) -> None:
    body = body_of(TASK, Value(value), {"os": "Linux"}, [])
    assert _is_result_of(TASK, body)
    assert not _is_result_of(str(uuid.UUID(int=8)), body)
    for wrong in (body[:-1], body.replace(b'"result"', b'"task"'), body + b"x" * LARGE_TEXT):
        assert not _is_result_of(TASK, wrong)
    middle = len(body) // 2
    assert not _is_result_of(TASK, body[:middle] + b"\n" + body[middle:])


def test_a_large_text_outside_of_strings_is_no_result() -> None:
    body = body_of(TASK, Value("x"), None, [])
    assert _is_result_of(TASK, body)
    assert not _is_result_of(TASK, body[:-2] + b"x" * LARGE_TEXT + body[-2:])
