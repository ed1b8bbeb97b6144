"""A large result message is read like a small one, though its value is cut out of it."""

from __future__ import annotations

import base64
import json
import os
import uuid
from typing import Any

import pytest

from flux_endpoint.engine.results import body_of
from flux_endpoint.engine.task import Value
from flux_endpoint.errors import InvalidMessageError
from flux_endpoint.protocol.envelope import LARGE_TEXT, cut_out, quoted, read_json
from flux_endpoint.protocol.messages import Result, pack
from flux_endpoint.service.results import _parse

TASK = str(uuid.UUID(int=7))
#: Values as they are, and whether they can be cut out.
VALUES = {
    "base64": ("00\n" + base64.b64encode(os.urandom(90_000)).decode() + "\n", True),
    "base64 in lines": ("00\n" + base64.encodebytes(os.urandom(90_000)).decode(), True),
    "plain text": ("x" * 100_000, True),
    "quotes": ('11\n"' + 'a"' * 50_000, False),
    "a backslash before n": ("\\n" * 50_000, False),
    "a backslash at the end": ("a" * 100_000 + "\\", False),
    "control characters": ("\0\t" * 50_000, False),
    "other scripts": ("é😀" * 50_000, False),
    "a lone surrogate": ("\ud800" + "a" * 100_000, False),
    "a key in the text": ('"data": "' * 20_000, False),
}


def message(value: str, **more: Any) -> bytes:
    data = {"task_id": TASK, "data": value, **more}
    return b"\x01" + json.dumps({"message_type": "result", "data": data}).encode()


@pytest.mark.parametrize(("value", "cut"), VALUES.values(), ids=VALUES)
def test_a_large_value_is_stored_as_it_was_sent(value: str, cut: bool) -> None:
    body = message(value, details={"os": "Linux"})
    assert (cut_out(body, "data")[0] is not None) == cut
    outcome = _parse(body)
    assert (outcome.task_id, outcome.failed) == (TASK, False)
    assert outcome.data == value.encode(errors="surrogatepass")
    assert outcome.details == {"os": "Linux"}


@pytest.mark.parametrize("value", [value for value, _ in VALUES.values()], ids=VALUES)
def test_a_large_text_is_written_and_read_as_json_does(value: str) -> None:
    assert quoted(value) == json.dumps(value).encode()
    body = message(value, details={"os": "Linux"})
    assert read_json(body, "data") == json.loads(body[1:])
    made = body_of(TASK, Value(value), {"os": "Linux"}, [])
    assert json.loads(made[1:])["data"]["data"] == value


def test_the_messages_of_endpoints_are_cut() -> None:
    value, cut = VALUES["base64"]
    body = pack(Result(task_id=uuid.UUID(TASK), data=value, details=None))
    assert cut
    assert cut_out(body, "data")[0] == value.encode()
    assert _parse(body).data == value.encode()


def test_of_two_values_the_result_is_the_one_at_its_place() -> None:
    text = "x" * 100_000
    data = {"details": {"data": text}, "task_id": TASK, "data": "(cut out)"}
    body = b"\x01" + json.dumps({"message_type": "result", "data": data}).encode()
    outcome = _parse(body)
    assert outcome.data == b"(cut out)"
    assert outcome.details == {"data": text}
    assert read_json(body, "data") == json.loads(body[1:])


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
