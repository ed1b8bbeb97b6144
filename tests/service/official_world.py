"""A multi-user endpoint and its user endpoints, as far as a service sees them."""

from __future__ import annotations

import json
import queue
import uuid
from typing import Any

from tests.service.conftest import PATIENCE, Peer, Rest

from flux_endpoint.amqp import AmqpConnection, Delivery, QueueAdmin
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import EPStatusReport, Result, pack
from waiting import until


def send_report(peer: Peer, endpoint_id: str, **state: Any) -> None:
    message = EPStatusReport(
        endpoint_id=uuid.UUID(endpoint_id), global_state=state, task_statuses={}
    )
    peer.send_report(endpoint_id, pack(message))


class MultiUserEndpoint:
    """Registered by ada; it starts nothing itself, tests do."""

    def __init__(self, rest: Rest, peer: Peer, **what: Any) -> None:
        self._rest = rest
        self._peer = peer
        self._what = {"multi_user": True, "metadata": {"endpoint_version": "4.19.0"}, **what}
        self.id = rest.register_endpoint(**self._what)

    def register_again(self) -> None:
        body = {"endpoint_name": "lab", **self._what}
        answer = self._rest.client.put(f"/v3/endpoints/{self.id}", json=body)
        assert answer.status_code == 200, answer.text

    def report(self, period: float = 600) -> None:
        """Say that it runs; with `period=0` that it ends."""
        send_report(self._peer, self.id, heartbeat_period=period)

    def until(self, status: str) -> None:
        """Wait until the service knows it to be `online` or `offline`."""
        url = f"/v2/endpoints/{self.id}/status"
        until(lambda: self._rest.client.get(url).json()["status"] == status)

    def next_command(self) -> Delivery:
        return self._peer.take(f"{self.id}.commands")

    def next_start(self) -> dict[str, Any]:
        """The arguments of the next command to start a user endpoint."""
        command = json.loads(self.next_command().body)
        assert command["command"] == "cmd_start_endpoint"
        arguments: dict[str, Any] = command["kwargs"]
        return arguments


class Run:
    """A run of a user endpoint: it takes, at once, all that is in its queue, and acknowledges."""

    def __init__(self, url: str, endpoint_id: str, start: float = 1.0) -> None:
        self.endpoint_id = endpoint_id
        self._start = start
        self._inbox: queue.Queue[Delivery] = queue.Queue()
        self._connection = AmqpConnection(url, name="run")
        self._connection.start()
        assert self._connection.wait_connected(PATIENCE)

    def consume(self) -> None:
        """Subscribe; who reports and does not is taken to be deaf."""
        name = queues.tasks_queue(self.endpoint_id)
        self._consumer = self._connection.consume(
            name, self._inbox.put, prefetch=60000, exclusive=True
        )
        until(lambda: self._consumers(name) == 1)

    def stop_consuming(self) -> None:
        self._consumer.cancel()
        until(lambda: self._consumers(queues.tasks_queue(self.endpoint_id)) == 0)

    def take(self, count: int, *, ack: bool = True) -> list[str]:
        """Return the ids of the next tasks."""
        taken = [self._inbox.get(timeout=PATIENCE) for _ in range(count)]
        if ack:
            for each in taken:
                each.ack()
        return [each.headers["task_uuid"] for each in taken]

    def next_body(self) -> bytes:
        delivery = self._inbox.get(timeout=PATIENCE)
        delivery.ack()
        return delivery.body

    def took_nothing_more(self) -> bool:
        return self._inbox.empty()

    def report(self, *, active: bool = True, period: float = 600, **state: Any) -> None:
        content = {"heartbeat_period": period, "active": active, "start_unix": self._start}
        message = EPStatusReport(
            endpoint_id=uuid.UUID(self.endpoint_id),
            global_state={**content, **state},
            task_statuses={},
        )
        self._publish(queues.HEARTBEATS_EXCHANGE, "heartbeats", pack(message))

    def finish(self, task_id: str, data: str = "x") -> None:
        body = pack(Result(task_id=uuid.UUID(task_id), data=data))
        self._publish(queues.RESULTS_EXCHANGE, "results", body)

    def vanish(self) -> None:
        """End as a killed process does: its connection goes, and it says nothing."""
        self._connection.close()

    def _publish(self, exchange: str, kind: str, body: bytes) -> None:
        sent = self._connection.publish(exchange, f"{self.endpoint_id}.{kind}", body)
        sent.result(PATIENCE)

    def _consumers(self, name: str) -> int:
        count = QueueAdmin(self._connection).count(name).result(PATIENCE)
        return count.consumers if count is not None else 0
