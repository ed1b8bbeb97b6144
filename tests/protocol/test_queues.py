"""The connection blocks of a registration, as the official endpoint reads them."""

from __future__ import annotations

from flux_endpoint.protocol.queues import endpoint_queues, task_group_queue

URL = "amqp://u:p@h:5672/%2F"


def test_a_registration_says_where_to_consume_and_how_to_publish():
    blocks = endpoint_queues("E", URL).model_dump()
    consume = {"connection_url": URL, "exchange": "tasks", "queue": "E.tasks"}
    assert blocks["task_queue_info"] == consume
    assert blocks["command_queue_info"]["queue"] == "E.commands"
    assert blocks["result_queue_info"] == {
        "connection_url": URL,
        "exchange": "results",
        "queue": "results",
        "queue_publish_kwargs": {
            "exchange": "results",
            "routing_key": "E.results",
            "mandatory": True,
            "properties": {"delivery_mode": 2},
        },
    }
    assert blocks["heartbeat_queue_info"]["queue_publish_kwargs"]["routing_key"] == "E.heartbeats"


def test_a_task_group_has_a_queue_of_its_own():
    assert task_group_queue("G") == "tg.G"
