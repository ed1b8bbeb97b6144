"""Follows the ends of a group's calls: by a queue of its own, and by asking the service."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from flux_endpoint.amqp import ConnectionState, Delivery
from flux_endpoint.amqp.connection import StateChange
from flux_endpoint.client.api import ServiceApi
from flux_endpoint.client.bulk.calls import OPEN, Answer, CallStates, Message, chunks
from flux_endpoint.client.fork import Birthplace
from flux_endpoint.client.group_stream import GroupStream, Question
from flux_endpoint.client.results import (
    MAX_EARLY,
    STATUS_CHUNK,
    TaskEnd,
    from_document,
    from_message,
    resolve,
)

_alive: weakref.WeakSet[CallStream] = weakref.WeakSet()
#: The most calls whose states are requested at each attempt to connect to the broker.
_WITHOUT_BROKER = 8 * STATUS_CHUNK


class CallStream(GroupStream):
    """Consumes the results of a task group, and notes the ends of its calls.

    It ends when all calls have ended, or when nobody has the group any more and none of its futures
    waits. An official client or another program may get the same
    results: each has a queue of its own.

    Args:
        api: the service.
        task_group_id: the group.
        amqp_port: port of the broker; `None`: the port that the service returns.
        calls: the states of the calls.

    Attributes:
        opened: set when the queue was opened for the first time.
        over: done when all calls have ended, or the stream was closed.
        birthplace: the process that has its thread.
    """

    kind = "results"
    prefetch = 2 * MAX_EARLY
    bundles = True

    def __init__(
        self, api: ServiceApi, task_group_id: str, amqp_port: int | None, calls: CallStates
    ) -> None:
        super().__init__(api, task_group_id, amqp_port)
        self.opened = threading.Event()
        self.over: Future[None] = Future()
        self.birthplace = Birthplace()
        self._calls = calls
        self._wanted: dict[int, None] = {}
        self._is_in_use = True

    def follow(self) -> None:
        """Start the thread, which opens the queue at once."""
        self._thread.post(self._connect)
        self.start(lambda _: True)
        _alive.add(self)

    def leave(self) -> None:
        """Handle that nobody has the group any more: only its futures may be in use."""
        if self.birthplace.is_here():  # a fork does not have the thread, and its locks may be held
            self._thread.post(self._on_left)

    def check(self) -> None:
        """Ask for the states of all open calls: some of their ends may have been missed."""
        self._thread.post(self._catch_up)

    # The methods below run on the stream's thread.

    @property
    def _is_awaited(self) -> bool:
        return not self._calls.are_over

    def _has_work(self) -> bool:
        calls = self._calls
        return not calls.are_over and (self._is_in_use or calls.are_awaited)

    def _on_left(self) -> None:
        self._is_in_use = False

    def _on_stop(self) -> None:
        super()._on_stop()
        if not self.over.done():
            self.over.set_result(None)

    def _on_queue(self, opened: tuple[str, str]) -> None:
        self._calls.opened()
        super()._on_queue(opened)
        self.opened.set()

    def _take(self, delivery: Delivery) -> None:
        end = from_message(delivery.body, delivery.timestamp)  # checks the message, too
        future = self._calls.end(end.task_id, Message(delivery.body, delivery.timestamp))
        if future is not None:
            resolve(future, end)
        delivery.ack()

    def _catch_up(self) -> None:
        self._request(self._calls.in_state(OPEN, len(self._calls)))

    def _on_state(self, change: StateChange) -> None:
        if change.state not in (ConnectionState.CONNECTED, ConnectionState.CLOSED):
            # Without the broker, the service is asked for the oldest calls.
            self._request(self._calls.in_state(OPEN, _WITHOUT_BROKER))
        super()._on_state(change)

    def _request(self, indices: Sequence[int]) -> None:
        self._wanted.update(dict.fromkeys(indices))
        self._ask_service()

    def _questions(self) -> list[Question]:
        indices = [index for index in self._wanted if self._calls.state(index) == OPEN]
        self._wanted.clear()
        return [
            Question(partial(self._states_of, part), self._on_documents)
            for part in chunks(indices, STATUS_CHUNK)
        ]

    def _states_of(self, indices: Sequence[int]) -> dict[str, Any]:
        return self._api.batch_status([self._calls.task_id(index) for index in indices])

    def _on_documents(self, documents: dict[str, Any]) -> None:
        note_ends(self._calls, documents)


def note_ends(
    calls: CallStates, documents: dict[str, dict[str, Any]], *, keep: bool = True
) -> dict[str, TaskEnd]:
    """Note the ends of calls in answers of the service, and resolve the futures that wait for them.

    Args:
        calls: the states of the calls.
        documents: the documents by task id.
        keep: whether to keep the ends, if there is room.

    Returns:
        The ends, by task id.
    """
    ends: dict[str, TaskEnd] = {}
    for task_id, document in documents.items():
        end = from_document({**document, "task_id": task_id})
        if end is not None:
            ends[task_id] = end
            future = calls.end(task_id, Answer(end) if keep else None)
            if future is not None:
                resolve(future, end)
    return ends


def end_call_streams(timeout: float) -> None:
    """End all streams of this process; wait for them at most `timeout` seconds."""
    streams = [each for each in _alive if each.birthplace.is_here()]
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + timeout
    for stream in streams:
        stream.join(max(0.0, deadline - time.monotonic()))
