"""What the tests share: an engine that obeys, the service's side of the broker, an agent."""

from __future__ import annotations

import contextlib
import queue
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pika

from flux_endpoint.amqp import AmqpConnection, Binding, Delivery, Exchange, Queue
from flux_endpoint.amqp.bundle import CONTENT_TYPE, Part, pack_bundle, unpack_bundle
from flux_endpoint.endpoint.agent import Agent
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.status import AgentStatus
from flux_endpoint.engine.base import EngineEvent, EngineResult, EngineTask
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.envelope import VERSION_BYTE
from flux_endpoint.protocol.messages import (
    EPStatusReport,
    Result,
    Task,
    TaskEvent,
    TaskEvents,
    TaskKill,
    TaskUrgency,
    pack,
    unpack,
)

#: Seconds after which a test gives up waiting for something that should be prompt.
PATIENCE = 30.0


class ObedientEngine:
    """An engine with one thread: answers at once, or (`hold`) when the test says so."""

    def __init__(self, *, hold: bool = False) -> None:
        self.hold = hold
        self.submitted: queue.SimpleQueue[EngineTask] = queue.SimpleQueue()
        self.all_submitted: list[str] = []
        self.all_settled: list[str] = []
        self.has_recovered = False
        self.cancelled: queue.SimpleQueue[tuple[str, int | None]] = queue.SimpleQueue()
        self.urgencies: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self.stopped_with: float | None = None
        self.break_on: str | None = None
        self._jobs: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._free = threading.Lock()
        self._may_stop = threading.Lock()
        self._on_result: Callable[[EngineResult], None] = lambda _result: None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(
        self,
        on_result: Callable[[EngineResult], None],
        on_event: Callable[[EngineEvent], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        self._on_result = on_result
        self.on_event = on_event
        self.on_lost = on_lost
        self._thread.start()

    def recovered(self) -> None:
        self.has_recovered = True

    def settle(self, task_ids: Collection[str]) -> None:
        self.all_settled += task_ids

    def cancel(self, task_id: str, signum: int | None = None) -> None:
        self.cancelled.put((task_id, signum))

    def set_urgency(self, task_id: str, urgency: int) -> None:
        self.urgencies.put((task_id, urgency))

    def submit(self, task: EngineTask) -> None:
        if task.task_id == self.break_on:
            raise RuntimeError("out of order")
        self.all_submitted.append(task.task_id)
        with self._free:
            pass
        self.submitted.put(task)  # whoever has got it can make this engine busy for the next one
        if not self.hold:
            self._jobs.put(task.task_id)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Meanwhile `submit` does not return."""
        with self._free:
            yield

    @contextlib.contextmanager
    def stops_later(self) -> Iterator[None]:
        """Meanwhile `stop` does not return."""
        with self._may_stop:
            yield

    def tell(self, *events: EngineEvent) -> None:
        assert self.on_event is not None
        for each in events:
            self.on_event(each)

    def end(self, result: EngineResult) -> None:
        """Report the end of a task as it is."""
        self._on_result(result)

    def finish(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self._jobs.put(task_id)

    def next_submitted(self) -> EngineTask:
        return self.submitted.get(timeout=PATIENCE)

    def status(self) -> dict[str, Any]:
        return {"engine_type": "ObedientEngine", "executor": "local", "total_workers": 1}

    def stop(self, grace: float) -> None:
        self.stopped_with = grace
        with self._may_stop:
            pass
        self._jobs.put(None)
        self._thread.join(PATIENCE)

    def _work(self) -> None:
        while (task_id := self._jobs.get()) is not None:
            body = pack(Result(task_id=uuid.UUID(task_id), data=f"ran {task_id}"))
            self._on_result(EngineResult(task_id, body))


def topology(endpoint_id: str) -> list[Exchange | Queue | Binding]:
    """What the service declares, with queues of this endpoint's own behind the shared exchanges."""
    tasks = queues.tasks_queue(endpoint_id)
    commands = queues.commands_queue(endpoint_id)
    aside, results, reports = aside_name(endpoint_id), f"{endpoint_id}.r", f"{endpoint_id}.h"
    events = f"{endpoint_id}.e"
    return [
        Exchange(aside, "fanout"),
        Queue(aside),
        Binding(aside, aside, ""),
        Exchange(queues.TASKS_EXCHANGE, "direct"),
        Queue(tasks, {"x-dead-letter-exchange": aside}),
        Binding(queues.TASKS_EXCHANGE, tasks, tasks),
        Exchange(queues.COMMANDS_EXCHANGE, "direct"),
        Queue(commands, {"x-dead-letter-exchange": aside}),
        Binding(queues.COMMANDS_EXCHANGE, commands, commands),
        Exchange(queues.EVENTS_EXCHANGE, "topic"),
        Queue(events),
        Binding(queues.EVENTS_EXCHANGE, events, queues.events_key(endpoint_id)),
        Exchange(queues.RESULTS_EXCHANGE, "topic"),
        Exchange(queues.HEARTBEATS_EXCHANGE, "topic"),
        Queue(results),
        Queue(reports),
        Binding(queues.HEARTBEATS_EXCHANGE, reports, queues.heartbeats_key(endpoint_id)),
    ]


def aside_name(endpoint_id: str) -> str:
    return f"{endpoint_id}.{queues.DEAD_LETTERS}"


class Service:
    """The service's side of the broker: tasks go out, results and status reports come in."""

    def __init__(self, url: str, *, takes_results: bool = True) -> None:
        self.endpoint_id = str(uuid.uuid4())
        self.queues = queues.endpoint_queues(self.endpoint_id, url)
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[EPStatusReport] = queue.SimpleQueue()
        self._aside: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[TaskEvents] = queue.SimpleQueue()
        #: Messages in which results came.
        self.messages = 0
        #: How often each result came.
        self.counts: dict[str, int] = {}
        self.connection = AmqpConnection(url, name="test service")
        self.connection.start()
        self.connection.declare(*topology(self.endpoint_id)).result(PATIENCE)
        if takes_results:
            self.take_results()
        for name, put in (
            (f"{self.endpoint_id}.r", self._take_result),
            (f"{self.endpoint_id}.h", lambda reports: self._reports.put(*reports)),
            (f"{self.endpoint_id}.e", lambda events: self._events.put(*events)),
        ):
            self.connection.consume(name, _decoded(put), prefetch=1000)
        self.connection.consume(aside_name(self.endpoint_id), self._take_aside, prefetch=10)

    def _take_result(self, results: list[Result]) -> None:
        self.messages += 1
        for result in results:
            self._results.put(result)

    def take_results(self) -> None:
        key = queues.results_key(self.endpoint_id)
        binding = Binding(queues.RESULTS_EXCHANGE, f"{self.endpoint_id}.r", key)
        self.connection.declare(binding).result(PATIENCE)

    def send(self, task_id: str | None = None, body: bytes | None = None, **headers: Any) -> str:
        """Publish one task message; a header given as `None` is left out."""
        task_id = task_id or str(uuid.uuid4())
        if body is None:
            body = pack(Task(task_id=uuid.UUID(task_id), task_buffer="303\n01\ncode"))
        headers = {"task_uuid": task_id, "function_uuid": str(uuid.uuid4()), **headers}
        self.connection.publish(
            queues.TASKS_EXCHANGE,
            queues.tasks_queue(self.endpoint_id),
            body,
            headers={key: value for key, value in headers.items() if value is not None},
        ).result(PATIENCE)
        return task_id

    def send_together(self, count: int, task_ids: list[str] | None = None) -> list[str]:
        """Publish tasks in one message."""
        task_ids = task_ids or [str(uuid.uuid4()) for _ in range(count)]
        function_id = str(uuid.uuid4())
        parts = [
            Part(
                pack(Task(task_id=uuid.UUID(task_id), task_buffer="303\n01\ncode")),
                headers={"task_uuid": task_id, "function_uuid": function_id},
            )
            for task_id in task_ids
        ]
        self.connection.publish(
            queues.TASKS_EXCHANGE,
            queues.tasks_queue(self.endpoint_id),
            pack_bundle(parts),
            content_type=CONTENT_TYPE,
        ).result(PATIENCE)
        return task_ids

    def send_many(self, count: int) -> list[str]:
        task_ids = [str(uuid.uuid4()) for _ in range(count)]
        function_id = str(uuid.uuid4())
        futures = [
            self.connection.publish(
                queues.TASKS_EXCHANGE,
                queues.tasks_queue(self.endpoint_id),
                pack(Task(task_id=uuid.UUID(task_id), task_buffer="303\n01\ncode")),
                headers={"task_uuid": task_id, "function_uuid": function_id},
            )
            for task_id in task_ids
        ]
        for future in futures:
            future.result(PATIENCE)
        return task_ids

    def task_queue(self) -> tuple[int, int]:
        """How many tasks wait at the broker, and how many consumers there are."""
        with self._channel() as channel:
            name = queues.tasks_queue(self.endpoint_id)
            answer = channel.queue_declare(name, passive=True).method
            return answer.message_count, answer.consumer_count

    def purge_tasks(self) -> None:
        with self._channel() as channel:
            channel.queue_purge(queues.tasks_queue(self.endpoint_id))

    def delete_task_queue(self) -> None:
        with self._channel() as channel:
            channel.queue_delete(queues.tasks_queue(self.endpoint_id))

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        parameters = pika.URLParameters(self.queues.task_queue_info.connection_url)
        with contextlib.closing(pika.BlockingConnection(parameters)) as connection:
            yield connection.channel()

    def next_result(self) -> Result:
        result = self._results.get(timeout=PATIENCE)
        key = str(result.task_id)
        self.counts[key] = self.counts.get(key, 0) + 1
        return result

    def await_results(self, task_ids: list[str]) -> None:
        """Return when every one of these tasks has had a result."""
        missing = set(task_ids) - self.counts.keys()
        while missing:
            missing.discard(str(self.next_result().task_id))

    def next_report(self) -> dict[str, Any]:
        return self._reports.get(timeout=PATIENCE).global_state

    def next_events(self) -> list[TaskEvent]:
        return self._events.get(timeout=PATIENCE).events

    def kill(self, task_id: str, signum: int | None = None) -> None:
        self.command(pack(TaskKill(task_id=uuid.UUID(task_id), signum=signum)))

    def set_urgency(self, task_id: str, urgency: int | None) -> None:
        self.command(pack(TaskUrgency(task_id=uuid.UUID(task_id), urgency=urgency)))

    def command(self, body: bytes) -> None:
        key = queues.commands_queue(self.endpoint_id)
        self.connection.publish(queues.COMMANDS_EXCHANGE, key, body).result(PATIENCE)

    def next_aside(self) -> Delivery:
        return self._aside.get(timeout=PATIENCE)

    def _take_aside(self, delivery: Delivery) -> None:
        self._aside.put(delivery)
        delivery.ack()


def _decoded(put: Callable[[list[Any]], None]) -> Callable[[Delivery], None]:
    def on_message(delivery: Delivery) -> None:
        body = delivery.body
        bodies = [body] if body[:1] == VERSION_BYTE else [p.body for p in unpack_bundle(body)]
        put([unpack(each) for each in bodies])
        delivery.ack()

    return on_message


class RunningAgent:
    """An agent on a thread of its own."""

    def __init__(self, agent: Agent, statuses: queue.SimpleQueue[AgentStatus]) -> None:
        self.agent = agent
        self.error: BaseException | None = None
        self._statuses = statuses
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except BaseException as error:
            self.error = error

    def await_state(self, state: str) -> AgentStatus:
        while (status := self._statuses.get(timeout=PATIENCE)).state != state:
            pass
        return status

    def statuses(self) -> list[AgentStatus]:
        """What it has told since."""
        return [self._statuses.get_nowait() for _ in range(self._statuses.qsize())]

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self.agent.stop()
        self.join()

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def begin(service: Service, engine: ObedientEngine, directory: Path, **config: Any) -> RunningAgent:
    """Start an agent of `service`'s endpoint."""
    statuses: queue.SimpleQueue[AgentStatus] = queue.SimpleQueue()
    agent = Agent(
        service.queues, engine, directory, EndpointConfig(**config), on_status=statuses.put
    )
    return RunningAgent(agent, statuses)


@contextlib.contextmanager
def running(
    service: Service, engine: ObedientEngine, directory: Path, **config: Any
) -> Iterator[RunningAgent]:
    """An agent of `service`'s endpoint that takes tasks, and is stopped at the end."""
    run = begin(service, engine, directory, **config)
    try:
        run.await_state("connected")
        yield run
    finally:
        run.stop()
