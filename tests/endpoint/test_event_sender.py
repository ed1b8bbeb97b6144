"""Job events and followed output on their way to the broker, in messages of limited size."""

from __future__ import annotations

import uuid
from concurrent.futures import Future

import pytest

from flux_endpoint.endpoint import event_sender
from flux_endpoint.endpoint.event_sender import EventSender
from flux_endpoint.engine.base import EngineEvent, output_event
from flux_endpoint.engine.tail import MOST_OF_PART
from flux_endpoint.protocol.messages import unpack

SIZE = 1 << 19


class Broker:
    """A broker that confirms nothing by itself."""

    def __init__(self):
        self.messages = []
        self.confirms = []

    def publish(self, _connection, body):
        self.messages.append([each.name for each in unpack(body).events])
        self.confirms.append(Future())
        return self.confirms[-1]


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def sender(broker, monkeypatch):
    monkeypatch.setattr(event_sender, "PublishTarget", lambda _info: broker)
    return EventSender(None, "as the registration says")


def output(size):
    return output_event(str(uuid.uuid4()), {"stdout": (0, size, "x" * size)})


START = EngineEvent(str(uuid.uuid4()), 1, "start", 1.0, {})


def test_much_output_is_divided_into_messages(sender, broker):
    sender.send([])
    sender.send([START, output(10), START])
    assert broker.messages == [["start", "output", "start"]]
    broker.messages.clear()
    sender.send([START, *(output(SIZE) for _ in range(4)), output(1), START])
    assert broker.messages == [["start", *["output"] * 4], ["output", "start"]]


def test_output_beyond_a_limit_is_dropped_and_events_of_jobs_are_not(sender, broker):
    for _ in range(40):
        sender.send([output(SIZE), START])
    assert sum(message == ["output", "start"] for message in broker.messages) == 32
    assert sum(message == ["start"] for message in broker.messages) == 8
    broker.confirms[0].set_result(None)
    sender.send([output(SIZE)])
    sender.send([output(SIZE)])
    assert broker.messages[40:] == [["output"]]


def test_the_largest_report_of_output_is_a_valid_message(sender, broker):
    text = "\x01" * MOST_OF_PART  # six characters each in JSON
    parts = {name: (0, len(text), text) for name in ("stdout", "stderr")}
    sender.send([output_event(str(uuid.uuid4()), parts)])
    assert broker.messages == [["output"]]
