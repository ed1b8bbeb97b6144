"""Message bodies are byte for byte those of the official library, and bad ones are explained."""

from __future__ import annotations

import json
import logging
import string
from uuid import UUID

import pytest
from globus_compute_common import messagepack as official
from globus_compute_common.messagepack import message_types as official_types
from hypothesis import given
from hypothesis import strategies as st

from flux_endpoint.errors import InvalidMessageError, UnrecognizedProtocolVersionError
from flux_endpoint.protocol import messages as ours
from flux_endpoint.protocol.states import ActorName, TaskState

TASK_ID = UUID("0d2c1d77-9a13-4b0c-8bd8-6ab1aabbf3a7")

texts = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-(2**63), 2**64 - 1)  # what a message may hold
scalars = st.none() | st.booleans() | integers | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
)
transitions = st.fixed_dictionaries(
    {
        "timestamp": st.integers(0, 2**63 - 1),
        "state": st.sampled_from([state.value for state in TaskState]),
        "actor": st.sampled_from([actor.value for actor in ActorName]),
    }
)
images = st.fixed_dictionaries(
    {
        "image_type": texts,
        "location": texts,
        "created_at": st.integers(0, 2**40),
        "modified_at": st.integers(0, 2**40),
        "build_status": st.none() | texts,
        "build_stderr": st.none() | texts,
    }
)
containers = st.fixed_dictionaries(
    {"container_id": st.uuids(), "name": texts, "images": st.lists(images, max_size=2)}
)
statuses = st.dictionaries(texts, st.lists(transitions, max_size=3), max_size=3)

FIELDS = {
    "Task": st.fixed_dictionaries(
        {"task_id": st.uuids(), "task_buffer": texts},
        optional={"container_id": st.none() | st.uuids(), "container": st.none() | containers},
    ),
    "TaskCancel": st.fixed_dictionaries({"task_id": st.uuids()}),
    "TaskTransition": transitions,
    "Container": containers,
    "ContainerImage": images,
    "Result": st.fixed_dictionaries(
        {"task_id": st.uuids(), "data": texts},
        optional={
            "details": st.none() | st.dictionaries(texts | integers, values, max_size=4),
            "error_details": st.none()
            | st.fixed_dictionaries({"code": texts, "user_message": texts}),
            "task_statuses": st.none() | st.lists(transitions, max_size=3),
        },
    ),
    "EPStatusReport": st.fixed_dictionaries(
        {
            "endpoint_id": st.uuids(),
            "global_state": st.dictionaries(texts, values, max_size=4),
            "task_statuses": statuses,
        }
    ),
    "ManagerStatusReport": st.fixed_dictionaries({"task_statuses": statuses}),
}
kinds = pytest.mark.parametrize("name", sorted(FIELDS))


def test_every_official_message_is_known_under_the_same_name():
    names = {cls.Meta.message_type: cls.__name__ for cls in official_types.ALL_MESSAGE_CLASSES}
    assert names == {name: ours.MESSAGES[name].__name__ for name in names}
    assert set(names.values()) == set(FIELDS)


@kinds
@given(data=st.data())
def test_our_packed_messages_equal_the_official_ones_byte_for_byte(name, data):
    fields = data.draw(FIELDS[name])
    body = ours.pack(getattr(ours, name)(**fields))
    assert body == official.pack(getattr(official_types, name)(**fields))


@kinds
@given(data=st.data())
def test_our_and_official_packed_messages_are_read_by_both(name, data):
    fields = data.draw(FIELDS[name])
    body = official.pack(getattr(official_types, name)(**fields))
    message = ours.unpack(body)
    assert type(message) is getattr(ours, name)
    assert ours.pack(message) == body
    theirs = official.unpack(ours.pack(message))
    assert theirs.model_dump_json() == message.model_dump_json()


def test_an_unknown_field_is_ignored_with_a_warning_that_names_it(caplog):
    body = _body("task", task_id=str(TASK_ID), task_buffer="b", colour="red", shape=[1])
    with caplog.at_level(logging.WARNING, logger="flux_endpoint"):
        message = ours.unpack(body)
    assert message == ours.Task(task_id=TASK_ID, task_buffer="b")
    assert "'colour', 'shape'" in caplog.text
    assert "task message" in caplog.text


def test_an_unknown_field_of_the_envelope_is_ignored_with_a_warning(caplog):
    body = b'\x01{"message_type":"task_cancel","data":{"task_id":"%s"},"hops":2}'
    with caplog.at_level(logging.WARNING, logger="flux_endpoint"):
        message = ours.unpack(body.replace(b"%s", str(TASK_ID).encode()))
    assert message == ours.TaskCancel(task_id=TASK_ID)
    assert "hops" in caplog.text


def test_the_known_alias_of_a_field_is_no_unknown_field(caplog):
    body = _body(
        "ep_status_report", endpoint_id=str(TASK_ID), ep_status_report={"a": 1}, task_statuses={}
    )
    with caplog.at_level(logging.WARNING, logger="flux_endpoint"):
        assert ours.unpack(body).global_state == {"a": 1}
    assert not caplog.records


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"\x01", "not JSON"),
        (b"\x01{", "not JSON"),
        (b"\x01\xff\xfe", "not JSON"),
        (b"\x01" + b"[" * 100_000, "not JSON"),
        (b"\x01[]", "envelope"),
        (b'\x01{"message_type":"task"}', "envelope"),
        (b'\x01{"message_type":"task","data":[]}', "envelope"),
        (b'\x01{"data":{}}', "message_type is None"),
        (b'\x01{"message_type":["task"],"data":{}}', "message_type is"),
        (b'\x01{"message_type":"coffee","data":{}}', "'coffee', known are container"),
        (b'\x01{"message_type":"task","data":{}}', "task message: field 'task_id'"),
    ],
)
def test_a_malformed_body_is_refused_with_what_is_wrong_about_it(body, why):
    with pytest.raises(InvalidMessageError, match=why.replace("[", r"\[")):
        ours.unpack(body)


def test_a_wrong_field_is_named_with_its_place():
    body = _body(
        "result",
        task_id=str(TASK_ID),
        data="",
        task_statuses=[{"timestamp": 1, "state": "asleep", "actor": "worker"}],
    )
    with pytest.raises(InvalidMessageError, match=r"field 'task_statuses\.0\.state'"):
        ours.unpack(body)


@given(st.binary().filter(lambda body: body[:1] not in (b"", b"\x01")))
def test_any_other_version_byte_is_refused_as_such(body):
    with pytest.raises(UnrecognizedProtocolVersionError, match=f"byte {body[0]}"):
        ours.unpack(body)


@given(st.text(string.printable) | values.map(json.dumps))
def test_any_body_is_read_or_raises_our_error(text):
    try:
        ours.unpack(b"\x01" + text.encode())
    except InvalidMessageError:
        pass
    else:
        pytest.fail(f"{text!r} was taken for a message")


def _body(kind: str, **data: object) -> bytes:
    return b"\x01" + json.dumps({"message_type": kind, "data": data}).encode()
