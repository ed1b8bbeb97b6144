"""A service on a database of its own; with no broker at all, or with a real one."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pika
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from httpx import Response

from broker_access import NOBODY_ASKS, session_broker
from databases import make_migrated
from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.rest import ErrorBody, RegisterEndpoint
from flux_endpoint.service.app import create_app
from flux_endpoint.service.official import starts
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import endpoints, users
from flux_endpoint.service.store.engine import Database

if TYPE_CHECKING:
    from tests.service.official_world import MultiUserEndpoint, Run

#: Nobody listens there: port 1 is privileged and unused.
NO_BROKER = "amqp://guest:guest@127.0.0.1:1/%2F"

#: What an endpoint of our own make says of itself.
OWN = {"flux_endpoint_version": "1.0"}

#: Seconds for what takes a moment, on a machine that is busy with other things.
PATIENCE = 60

#: A packed function and packed arguments; a service looks at nothing but their lengths.
FUNCTION = "12\n01\ngASVabcd\n"
PAYLOAD = "8\n00\ngAQp\n8\n00\ngAR9\n"


def refusal(answer: Response, status: int, code: str, field: str | None = None) -> ErrorBody:
    body = ErrorBody.model_validate(answer.json())
    assert (answer.status_code, body.code, body.field) == (status, code, field), answer.text
    assert body.http_status_code == status
    assert body.message == body.reason
    assert body.message
    uuid.UUID(body.request_id)
    return body


def exists(url: str, queue: str) -> bool:
    """Return whether the broker has a queue."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        connection.channel().queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    else:
        return True
    finally:
        connection.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    path = sa.make_url(database_url).database
    if database_url.startswith("sqlite") and path is not None:
        make_migrated(Path(path))
    database = Database(database_url)
    if not database_url.startswith("sqlite"):
        database.migrate()
    yield database
    database.close()


@pytest.fixture
def token_of(database: Database) -> Callable[[str], dict[str, str]]:
    """Makes a token of a user and returns the header that carries it."""

    def make(user: str) -> dict[str, str]:
        with database.write() as connection:
            return {"Authorization": f"Bearer {users.create_token(connection, user)}"}

    return make


@pytest.fixture
def api(database_url: str, token_of: Callable[[str], dict[str, str]]) -> Iterator[TestClient]:
    """A client with ada's token of a service whose broker is away."""
    settings = ServiceSettings(
        database_url=database_url, amqp_url=NO_BROKER, publish_timeout=0.01, **NOBODY_ASKS
    )
    with TestClient(create_app(settings), headers=token_of("ada")) as client:
        yield client


@pytest.fixture
def bob(token_of: Callable[[str], dict[str, str]]) -> dict[str, str]:
    """The header of another user."""
    return token_of("bob")


@pytest.fixture
def add_endpoint(
    database: Database, token_of: Callable[[str], dict[str, str]]
) -> Callable[..., str]:
    """Puts an endpoint of ada's into the database, as a registration would."""

    def add(owner: str = "ada", **what: Any) -> str:
        headers = token_of(owner)
        token = headers["Authorization"].removeprefix("Bearer ")
        endpoint_id = str(uuid.uuid4())
        with database.write() as connection:
            user = users.user_by_token(connection, token)
            assert user is not None
            request = RegisterEndpoint.model_validate({"endpoint_name": "lab", **what})
            endpoints.put_endpoint(connection, endpoint_id, user.id, request)
        return endpoint_id

    return add


@pytest.fixture
def add_function(api: TestClient) -> Callable[..., str]:
    """Registers a function as ada."""

    def add(**what: Any) -> str:
        body = {"function_name": "double", "function_code": FUNCTION, **what}
        answer = api.post("/v3/functions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["function_uuid"])

    return add


class Peer:
    """Somebody else at the broker: an endpoint, or a client."""

    def __init__(self, url: str) -> None:
        self.connection = AmqpConnection(url, name="peer")
        self.connection.start()
        self._inboxes: dict[str, queue.Queue[Delivery]] = {}

    def take(self, name: str, timeout: float = PATIENCE) -> Delivery:
        """Return the next message of the queue `name`, acknowledged."""
        delivery = self.take_unanswered(name, timeout)
        delivery.ack()
        return delivery

    def take_unanswered(self, name: str, timeout: float = PATIENCE) -> Delivery:
        """Return the next message of the queue `name`, which the broker still holds."""
        if name not in self._inboxes:
            self._inboxes[name] = queue.Queue()
            self.connection.consume(name, self._inboxes[name].put, prefetch=1000)
        return self._inboxes[name].get(timeout=timeout)

    def send_result(self, endpoint_id: str, body: bytes) -> None:
        """Publish a result as an endpoint does."""
        sent = self.connection.publish(queues.RESULTS_EXCHANGE, f"{endpoint_id}.results", body)
        sent.result(PATIENCE)

    def send_events(self, endpoint_id: str, body: bytes) -> None:
        """Publish job events as an endpoint does."""
        exchange, key = queues.EVENTS_EXCHANGE, queues.events_key(endpoint_id)
        self.connection.publish(exchange, key, body).result(PATIENCE)

    def send_report(self, endpoint_id: str, body: bytes) -> None:
        """Publish a status report as an endpoint does."""
        exchange, key = queues.HEARTBEATS_EXCHANGE, f"{endpoint_id}.heartbeats"
        self.connection.publish(exchange, key, body).result(PATIENCE)


@pytest.fixture
def peer(amqp_vhost: str) -> Iterator[Peer]:
    """A peer on the broker of `live`."""
    peer = Peer(amqp_vhost)
    yield peer
    peer.connection.close()


@pytest.fixture
def live_settings(database_url: str, amqp_vhost: str) -> ServiceSettings:
    """Settings with a real broker."""
    return ServiceSettings(
        database_url=database_url,
        amqp_url=amqp_vhost,
        publish_timeout=30,
        **session_broker.settings(amqp_vhost),
    )


def beside(settings: ServiceSettings) -> ServiceSettings:
    """Return the settings of a second service, which is asked at another port."""
    return settings.model_copy(update=session_broker.settings(settings.amqp_url))


@pytest.fixture
def live(
    live_settings: ServiceSettings, token_of: Callable[[str], dict[str, str]]
) -> Iterator[Rest]:
    """A service with a real broker, used by ada."""
    with TestClient(create_app(live_settings), headers=token_of("ada")) as client:
        yield Rest(client)


class Relay:
    """A way to the broker that can be cut."""

    def __init__(self, url: str) -> None:
        parameters = pika.URLParameters(url)
        self._broker = (parameters.host, parameters.port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(
            f"{parameters.host}:{parameters.port}", f"127.0.0.1:{self._door.getsockname()[1]}"
        )
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._cut = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """End all connections and let no new one live."""
        with self._lock:
            self._cut = True
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            self._sockets.clear()

    def mend(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._cut = False

    def close(self) -> None:
        self.cut()
        self._door.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._door.accept()
            except OSError:
                return
            with self._lock:
                if self._cut:
                    near.close()
                    continue
                far = socket.create_connection(self._broker)
                self._sockets += [near, far]
            for pair in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._pump, args=pair))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(amqp_vhost: str) -> Iterator[Relay]:
    """A way to the broker of `peer` that can be cut."""
    relay = Relay(amqp_vhost)
    yield relay
    relay.close()


class Rest:
    """What an endpoint and a client ask of a service."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def register_endpoint(self, **what: Any) -> str:
        """Register an endpoint, of our own make unless told otherwise."""
        body = {"endpoint_name": "lab", "metadata": OWN, **what}
        answer = self.client.post("/v3/endpoints", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["endpoint_id"])

    def register_function(self) -> str:
        body = {"function_name": "double", "function_code": FUNCTION}
        return str(self.client.post("/v3/functions", json=body).json()["function_uuid"])

    def submit(self, endpoint_id: str, count: int = 1, **what: Any) -> tuple[str, list[str]]:
        """Submit `count` tasks of a new function; return their group and their ids."""
        function_id = self.register_function()
        body = {"tasks": {function_id: [PAYLOAD] * count}, "create_queue": True, **what}
        answer = self.client.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["task_group_id"], answer.json()["tasks"][function_id]

    def status(self, task_id: str) -> dict[str, Any]:
        document: dict[str, Any] = self.client.get(f"/v2/tasks/{task_id}").json()
        return document


@pytest.fixture(autouse=True)
def one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to start again because a test is slow."""
    monkeypatch.setattr(starts, "_FIRST_BACKOFF", 3600.0)
    monkeypatch.setattr(starts, "_LAST_BACKOFF", 3600.0)


@pytest.fixture
def multi_user(live: Rest, peer: Peer) -> MultiUserEndpoint:
    """A multi-user endpoint that has just reported."""
    from tests.service.official_world import MultiUserEndpoint

    multi_user = MultiUserEndpoint(live, peer)
    multi_user.report()
    multi_user.until("online")
    return multi_user


@pytest.fixture
def begin(amqp_vhost: str) -> Iterator[Callable[..., Run]]:
    """Begins runs of user endpoints."""
    from tests.service.official_world import Run

    runs: list[Run] = []

    def begin(arguments: dict[str, Any], **how: Any) -> Run:
        runs.append(Run(amqp_vhost, arguments["amqp_creds"]["endpoint_id"], **how))
        runs[-1].consume()
        runs[-1].report()
        return runs[-1]

    yield begin
    for run in runs:
        run.vanish()
