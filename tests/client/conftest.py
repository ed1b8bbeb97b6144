"""A local HTTP server in place of the service: it records requests and misbehaves on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pika
import pytest
from tests.client.service_world import RunningService, ThreadEndpoint

from flux_endpoint import Client, Executor
from flux_endpoint.client import executor_settings, exits
from flux_endpoint.client.threads import ClientThread
from flux_endpoint.protocol.messages import (
    Result,
    ResultErrorDetails,
    TaskEvent,
    TaskEvents,
    pack,
)
from flux_endpoint.serialize import ComputeSerializer
from ports import reserved_port

TOKEN = "secret-token"
ENDPOINT = "00000000-0000-4000-8000-00000000000e"
#: A reaction that answers nothing and cuts the connection, after the request took effect.
LOSE_ANSWER = "lose"
#: Seconds after which what should end does not.
PATIENCE = 30.0


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    #: Port of the other end of the connection.
    peer: int = 0


@dataclass
class Service:
    """What the tests see of the server."""

    amqp_url: str = "amqp://guest:guest@127.0.0.1:1/%2F"
    requests: list[Request] = field(default_factory=list)
    #: Asked for each request; returns None, LOSE_ANSWER or (status, body).
    react: Callable[[Request], Any] = lambda request: None
    #: Called with the new tasks' ids before a submission is answered.
    before_answer: Callable[[list[str]], None] = lambda ids: None
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)
    #: What `GET /v2/endpoints` lists.
    endpoints: list[dict[str, Any]] = field(default_factory=list)
    #: Event documents by task.
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: Tasks by their calls.
    cache: dict[str, str] = field(default_factory=dict)
    server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def seen(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.path]

    def submissions(self) -> list[Request]:
        return self.seen("/submit")

    def answer(self, request: Request) -> Any:
        path = request.path.strip("/").split("?")[0].split("/")
        if path[1] == "endpoints":
            return self.answer_of_endpoints(request, path)
        match request.method, path:
            case "POST", ["v3", "cache", "find"]:
                keys = request.body["keys"]
                return {"tasks": {key: self.cache[key] for key in keys if key in self.cache}}
            case "POST", ["v3", "cache"]:
                self.cache.update(request.body["tasks"])
                return {}
            case "POST", ["v3", "functions"]:
                return {"function_uuid": str(uuid.uuid4())}
            case "GET", ["v2", "tasks", task]:
                return self.document(task)
            case "POST", ["v2", "batch_status"]:
                ids = request.body["task_ids"]
                return {"response": "batch", "results": {id_: self.document(id_) for id_ in ids}}
            case "GET", ["v2", "taskgroup", group]:
                tasks = [{"id": id_} for id_ in self.groups.get(group, [])]
                return {"taskgroup_id": group, "tasks": tasks}
            case "GET", ["v2", "get_amqp_result_connection_url"]:
                return {"queue_prefix": "tg.", "connection_url": self.amqp_url}
            case "POST", ["v2", "taskgroup", _, "results" | "events"]:
                return {"queue": queue_of(request), "connection_url": self.amqp_url}
            case "GET", ["v2", "tasks", task, "events"]:
                return {"task_id": task, "events": self.events.get(task, [])}
            case "POST", [_, "tasks", task, "kill" | "urgency"]:
                return {"task_id": task, "status": "waiting-for-ep", "delivered": True}
        raise LookupError(request.path)

    def answer_of_endpoints(self, request: Request, path: list[str]) -> Any:
        match request.method, path:
            case "GET", ["v2", "endpoints"]:
                own = "role=owner" in request.path
                known = self.endpoints
                return [each for each in known if not own or each.get("owner", "ada") == "ada"]
            case "POST", ["v3", "endpoints", endpoint, "submit"]:
                key = request.headers["idempotency-key"]
                if key not in self.answers:
                    self.answers[key] = self.submit(endpoint, request.body)
                return self.answers[key]
            case "POST", ["v3", "endpoints", endpoint, "attach"]:
                group = request.body["task_group_id"]
                self.groups.setdefault(group, []).append(str(uuid.uuid4()))
                task = self.groups[group][-1]
                self.before_answer([task])
                return {"task_id": task, "task_group_id": group, "endpoint_id": endpoint}
        raise LookupError(request.path)

    def submit(self, endpoint: str, body: Any) -> Any:
        group = body["task_group_id"]
        ids = {f: [str(uuid.uuid4()) for _ in payloads] for f, payloads in body["tasks"].items()}
        flat = [task for tasks in ids.values() for task in tasks]
        self.groups.setdefault(group, []).extend(flat)
        self.before_answer(flat)
        return {
            "request_id": "r",
            "task_group_id": group,
            "endpoint_id": endpoint,
            "tasks": ids,
        }

    def document(self, task: str) -> dict[str, Any]:
        return {"task_id": task, "status": "waiting-for-ep", **self.documents.get(task, {})}

    def ended(self, task: str, value: Any) -> None:
        """Let the service know a result that no queue has."""
        text = ComputeSerializer().serialize(value)
        self.documents[task] = {"status": "success", "result": text, "completion_t": "1.5"}


class Gate:
    """Holds submissions until it is opened, so that more tasks gather meanwhile.

    Args:
        service: the server in place of the service.
    """

    def __init__(self, service: Service) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        service.react = self

    def __call__(self, request: Request) -> None:
        if request.path.endswith("/submit"):
            self.reached.set()
            assert self.open.wait(PATIENCE)


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            text = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = json.loads(text) if text else None
            request = Request(self.command, self.path, headers, body, self.client_address[1])
            service.requests.append(request)
            reaction = service.react(request)
            if isinstance(reaction, tuple):
                status, answer = reaction
            else:
                status, answer = 200, service.answer(request)
            if reaction == LOSE_ANSWER:
                self.close_connection = True
                return
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = respond  # noqa: N815 - names that http.server looks up

        def log_message(self, *args: Any) -> None:
            return

    return Handler


class Server(ThreadingHTTPServer):
    daemon_threads = True


@pytest.fixture
def service() -> Iterator[Service]:
    state = Service()
    state.server = Server(("127.0.0.1", 0), _handler(state))
    thread = threading.Thread(target=state.server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    state.server.shutdown()
    state.server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a task group of its own, and leaves no thread behind but the janitor's."""
    monkeypatch.setattr(executor_settings, "_default_groups", {})
    # Tests that leave tasks unfinished would wait for their events.
    monkeypatch.setattr(exits, "EXIT_FLUSH", 0.1)
    yield
    exits.shut_down_all()
    left = [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, ClientThread) and not thread.name.endswith("janitor")
    ]
    for thread in left:  # those that are about to end may do so
        thread.join(PATIENCE)
    assert [thread.name for thread in left if thread.is_alive()] == []


@pytest.fixture
def client(service: Service) -> Client:
    return Client(service.url, TOKEN)


@pytest.fixture
def executor(client: Client) -> Iterator[Executor]:
    executor = Executor(ENDPOINT, client)
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)


def key_of(request: Request) -> str:
    """Return the routing key of the queue that a client asks for."""
    _, _, group, kind = request.path.strip("/").split("/")
    return {"results": "tg.", "events": "ev."}[kind] + group


def queue_of(request: Request) -> str:
    return f"{key_of(request)}.{request.body['client_id']}"


@dataclass
class ResultQueues:
    """The endpoint's and the service's side of the queues of results and of job events."""

    url: str
    #: Queues that clients have asked for, by routing key.
    names: dict[str, list[str]] = field(default_factory=dict)
    asked: threading.Condition = field(default_factory=threading.Condition)

    def channel(self) -> Any:
        return pika.BlockingConnection(pika.URLParameters(self.url)).channel()

    def open(self, request: Request) -> None:
        """Declare the queue that a client asks for, as the service does."""
        name, key = queue_of(request), key_of(request)
        channel = self.channel()
        arguments = {"x-dead-letter-exchange": "dead-letters"}
        channel.exchange_declare("task-groups", "direct", durable=True)
        channel.exchange_declare("dead-letters", "fanout", durable=True)
        channel.queue_declare("dead-letters", durable=True)
        channel.queue_bind("dead-letters", "dead-letters")
        channel.queue_declare(name, durable=True, arguments=arguments)
        channel.queue_bind(name, "task-groups", key)
        channel.connection.close()
        with self.asked:
            known = self.names.setdefault(key, [])
            known += [name] * (name not in known)
            self.asked.notify_all()

    def of(self, group: object, prefix: str = "tg.", count: int = 1) -> list[str]:
        """Return the queues of a group when `count` clients have asked for one."""
        key = f"{prefix}{group}"
        with self.asked:
            there = self.asked.wait_for(lambda: len(self.names.get(key, [])) >= count, PATIENCE)
            assert there, f"nobody has asked for a queue of {key}"
            return list(self.names[key])

    def publish(self, group: object, *bodies: bytes, prefix: str = "tg.") -> None:
        self.of(group, prefix)
        channel = self.channel()
        properties = pika.BasicProperties(delivery_mode=2, timestamp=1700000000)
        for body in bodies:
            channel.basic_publish("task-groups", f"{prefix}{group}", body, properties)
        channel.connection.close()

    def publish_events(self, group: object, *bodies: bytes) -> None:
        self.publish(group, *bodies, prefix="ev.")

    def delete(self, queue: str) -> None:
        channel = self.channel()
        channel.queue_delete(queue)
        channel.connection.close()

    def depth(self, queue: str) -> int:
        channel = self.channel()
        count = channel.queue_declare(queue, passive=True).method.message_count
        channel.connection.close()
        return int(count)


def result(task: str | None, value: Any, **details: str) -> bytes:
    assert task is not None
    data = ComputeSerializer().serialize(value)
    return pack(Result(task_id=uuid.UUID(task), data=data, details=details or None))


def failure(task: str | None, text: str, code: str = "RemoteExecutionError") -> bytes:
    assert task is not None
    details = ResultErrorDetails(code=code, user_message="it raised")
    return pack(Result(task_id=uuid.UUID(task), data=text, error_details=details))


def events(task: str | None, *named: tuple[str, float], jobid: int | None = 7) -> bytes:
    assert task is not None
    told = [
        TaskEvent(task_id=uuid.UUID(task), jobid=jobid, name=name, timestamp=at)
        for name, at in named
    ]
    return pack(TaskEvents(events=told))


@pytest.fixture
def messages() -> Any:
    """Builders of messages."""

    class Messages:
        value = staticmethod(result)
        error = staticmethod(failure)
        events = staticmethod(events)

    return Messages


@pytest.fixture
def queues(service: Service, amqp_vhost: str) -> Iterator[ResultQueues]:
    """A real broker, to which the service's answers point; clients' queues are there on request."""
    queues = ResultQueues(amqp_vhost)
    service.amqp_url = amqp_vhost

    def react(request: Request) -> None:
        if request.method == "POST" and request.path.startswith("/v2/taskgroup/"):
            queues.open(request)

    service.react = react
    yield queues
    exits.shut_down_all()  # before the broker's part is gone


@pytest.fixture(scope="module")
def started_service(
    tmp_path_factory: pytest.TempPathFactory, broker: Any
) -> Iterator[RunningService]:
    with broker.virtual_host() as url, reserved_port() as port:
        service = RunningService(tmp_path_factory.mktemp("service"), url, port)
        yield service
        service.stop()


@pytest.fixture
def running(started_service: RunningService) -> RunningService:
    """The real service; a test may kill it."""
    started_service.ensure()
    return started_service


@pytest.fixture
def endpoint(running: RunningService) -> Iterator[ThreadEndpoint]:
    endpoint = ThreadEndpoint(running)
    yield endpoint
    endpoint.close()


@pytest.fixture
def run_script(
    service: Service, tmp_path: Path
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a script in an interpreter of its own that finds the service by its environment."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        header = f"from flux_endpoint import Client, Executor\nENDPOINT = {ENDPOINT!r}\n"
        script = tmp_path / "script.py"
        script.write_text(header + textwrap.dedent(code), encoding="utf-8")
        environment = {
            **os.environ,
            "FLUX_ENDPOINT_HOME": str(tmp_path),
            "FLUX_ENDPOINT_SERVICE_URL": service.url,
            "FLUX_ENDPOINT_TOKEN": TOKEN,
        }
        return subprocess.run(
            [sys.executable, script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def cut_connections(broker: Any, amqp_vhost: str) -> Callable[[], None]:
    """Have the broker close every connection to the test's virtual host."""
    vhost = amqp_vhost.rpartition("/")[2]
    return lambda: broker.ctl("close_all_connections", "--vhost", vhost, "a test")
