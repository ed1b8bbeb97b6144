"""RabbitMQ's authorization requests: who may ask, limits, and a slow database."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pika.adapters.utils import connection_workflow

from broker_access import SECRET, session_broker
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.processes import is_readable
from flux_endpoint.service.access import listener as listening
from flux_endpoint.service.access import trial
from flux_endpoint.service.access.control import AccountAccess, SharedAccess, broker_access
from flux_endpoint.service.access.listener import MAX_BODY, MAX_CONNECTIONS, QuestionListener
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database

USER = {"username": "u", "password": "p"}


class World:
    """A listener, and what it was asked."""

    def __init__(self, port: int) -> None:
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.revoked = 0
        self.answer: Callable[[], bool] = lambda: True
        self.url = f"http://127.0.0.1:{port}/place/{SECRET}"
        self.listener = QuestionListener(self.url, self._answer, self._on_revoked)
        self.listener.start()

    def _answer(self, question: str, fields: Mapping[str, str]) -> bool:
        self.asked.append((question, fields))
        return self.answer()

    def _on_revoked(self) -> None:
        self.revoked += 1

    def ask(self, path: str, data: Any = USER, **how: Any) -> tuple[int, str]:
        url = f"http://127.0.0.1:{urlsplit(self.url).port}{path}"
        answer = httpx.post(url, data=data, trust_env=False, timeout=60, **how)
        return answer.status_code, answer.text


@pytest.fixture
def world(free_port: int) -> Iterator[World]:
    world = World(free_port)
    yield world
    world.listener.close()


def test_an_answer_is_allow_or_deny(world: World) -> None:
    assert world.ask(f"/place/{SECRET}/user") == (200, "allow")
    assert world.asked == [("user", USER)]
    world.answer = lambda: False
    assert world.ask(f"/place/{SECRET}/topic") == (200, "deny")


@pytest.mark.parametrize(
    "path", ["/user", "/place/user", "/place//user", f"/place/{SECRET}x/user", f"/{SECRET}/user"]
)
def test_requests_without_the_secret_are_not_answered(world: World, path: str) -> None:
    assert world.ask(path) == (404, "")
    assert world.ask(path.replace("user", "revoked")) == (404, "")
    assert (world.asked, world.revoked) == ([], 0)
    assert world.listener.misdirected


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        ("other", USER, 404),
        ("user", "username=u&username=v&password=p", 400),
        ("user", b"username=\xff", 400),
        ("user", "username=%ff", 400),
        ("user", "&".join(f"a{n}=1" for n in range(1000)), 400),
        ("user", "username=" + "u" * MAX_BODY, 400),
    ],
)
def test_malformed_requests_are_refused(world: World, path: str, data: Any, status: int) -> None:
    content = data.encode() if isinstance(data, str) else data
    how = {"data": data} if isinstance(data, dict) else {"data": None, "content": content}
    assert world.ask(f"/place/{SECRET}/{path}", **how)[0] == status
    assert world.asked == []


def test_a_missing_field_gives_no_answer(world: World) -> None:
    def missing() -> bool:
        raise KeyError("vhost")

    world.answer = missing
    assert world.ask(f"/place/{SECRET}/vhost")[0] == 400


def test_a_slow_database_times_out_and_delays_no_other_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "ANSWER_SECONDS", 0.2)
    done = threading.Event()
    world.answer = done.wait
    assert world.ask(f"/place/{SECRET}/user")[0] == 503
    world.answer = lambda: True
    assert world.ask(f"/place/{SECRET}/user") == (200, "allow")
    done.set()


def test_an_unreachable_database_gives_no_answer(world: World) -> None:
    def fail() -> bool:
        raise OSError("it is away")

    world.answer = fail
    assert world.ask(f"/place/{SECRET}/user")[0] == 503


def test_revocations_can_be_announced(world: World) -> None:
    assert world.ask(f"/place/{SECRET}/revoked")[0] == 204
    assert world.revoked == 1


def test_a_taken_port_is_refused_with_a_remedy(world: World) -> None:
    other = QuestionListener(world.url, lambda *_: True, lambda: None)
    with pytest.raises(ConfigurationError, match="--authorization-url"):
        other.start()
    other.close()


def test_idle_connections_leave_room_for_rabbitmq(world: World) -> None:
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", urlsplit(world.url).port)
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(300)]
        assert world.ask(f"/place/{SECRET}/user") == (200, "allow")
        closed = [each for each in idle if is_readable(each, 0)]
        assert len(idle) - len(closed) <= MAX_CONNECTIONS


# ---- the service, and a broker that asks or does not


@pytest.fixture
def settings(database: Database, database_url: str, amqp_url: str) -> ServiceSettings:
    access = session_broker.settings(amqp_url)
    return ServiceSettings(database_url=database_url, amqp_url=amqp_url, **access)


@pytest.fixture
def access_of() -> Iterator[Callable[[ServiceSettings], AccountAccess]]:
    made: list[AccountAccess] = []

    def start(settings: ServiceSettings) -> AccountAccess:
        access = broker_access(settings)
        assert isinstance(access, AccountAccess)
        made.append(access)
        access.start()
        return access

    yield start
    for each in made:
        each.close()


@pytest.mark.rabbitmq
@pytest.mark.kept_apart
class TestStart:
    def test_a_broker_that_asks_passes_the_check(
        self, settings: ServiceSettings, access_of: Callable[[ServiceSettings], AccountAccess]
    ) -> None:
        access_of(settings).check()

    def test_a_broker_that_asks_elsewhere_is_refused(
        self,
        settings: ServiceSettings,
        access_of: Callable[[ServiceSettings], AccountAccess],
        free_port: int,
    ) -> None:
        url = f"http://127.0.0.1:{free_port}/{SECRET}"
        access = access_of(settings.model_copy(update={"authorization_url": url}))
        with pytest.raises(ConfigurationError, match=r"did not ask at all.*--shared-broker-accou"):
            access.check()

    def test_a_broker_with_another_secret_is_refused(
        self, settings: ServiceSettings, access_of: Callable[[ServiceSettings], AccountAccess]
    ) -> None:
        url = settings.authorization_url.replace(SECRET, "another-secret-of-16")
        access = access_of(settings.model_copy(update={"authorization_url": url}))
        with pytest.raises(ConfigurationError, match="at another path"):
            access.check()

    def test_an_unreachable_broker_is_not_checked(
        self, settings: ServiceSettings, access_of: Callable[[ServiceSettings], AccountAccess]
    ) -> None:
        away = {"amqp_url": "amqp://s:s@127.0.0.1:1/%2F"}
        access_of(settings.model_copy(update=away)).check()

    def test_a_broker_that_does_not_ask_about_routing_keys_is_refused(
        self,
        settings: ServiceSettings,
        access_of: Callable[[ServiceSettings], AccountAccess],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        dispatcher = session_broker.dispatcher
        assert dispatcher is not None
        answer = dispatcher.answer
        monkeypatch.setattr(
            dispatcher,
            "answer",
            lambda path, body: b"allow" if path.endswith("/topic") else answer(path, body),
        )
        with pytest.raises(ConfigurationError, match=r"did not ask about topic.*allowed anyway"):
            access_of(settings).check()

    def test_the_command_ends_with_what_to_do(
        self, tmp_path: Path, amqp_vhost: str, free_port: int
    ) -> None:
        """A RabbitMQ that asks no service about this virtual host."""
        command = [sys.executable, "-m", "flux_endpoint", "service", "run", "--port", "0"]
        environment = {
            **os.environ,
            "FLUX_ENDPOINT_HOME": str(tmp_path),
            "FLUX_ENDPOINT_SERVICE_AMQP_URL": amqp_vhost,
        }

        def run(*options: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *options],
                env=environment,
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )

        done = run()
        assert done.returncode == 78
        (line,) = done.stderr.splitlines()
        assert "--authorization-url" in line
        assert "--shared-broker-accounts" in line
        done = run("--authorization-url", f"http://127.0.0.1:{free_port}/{SECRET}")
        assert done.returncode == 78
        assert "does not ask this service" in done.stderr
        done = run("--shared-broker-accounts")
        assert done.returncode == 78
        assert "needs --endpoint-amqp-url" in done.stderr


def test_shared_accounts_are_warned_of_at_each_start(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServiceSettings(
        database_url=database_url,
        amqp_url="amqp://s:s@h/v",
        shared_broker_accounts=True,
        endpoint_amqp_url="amqp://e:e@h/v",
        client_amqp_url="amqp://c:c@h/v",
    )
    access = broker_access(settings)
    assert isinstance(access, SharedAccess)
    access.start()
    access.check()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "all users share" in record.message


@pytest.mark.rabbitmq
@pytest.mark.kept_apart
def test_users_requests_delay_no_answer(
    settings: ServiceSettings, access_of: Callable[[ServiceSettings], AccountAccess]
) -> None:
    """Not even a writer that keeps its transaction open."""
    access = access_of(settings)
    database = Database(settings.database_url)
    with database.write():
        begun = time.monotonic()
        access.check()
        assert time.monotonic() - begun < 30  # SQLite's busy timeout
    database.close()


def test_a_broker_that_times_out_is_not_reported_as_not_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def times_out(_: object) -> None:
        raise connection_workflow.AMQPConnectorStackTimeout("handshake")  # no AMQPError

    monkeypatch.setattr(trial.pika, "BlockingConnection", times_out)
    outcome = trial.Trial().run("amqp://a:b@127.0.0.1:1/")
    assert outcome.verdict is trial.Verdict.UNREACHABLE
