"""What tests stand on: a private RabbitMQ node, virtual hosts on it, free ports."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
from hypothesis import HealthCheck, settings

from alarms import memory_alarm
from broker_access import Dispatcher, session_broker
from broker_http import ManagementApi
from ports import reserved_port

# No example has a time to be done in: a busy machine stops whom it will, for as long as it will.
# And the same examples each time: new ones are looked for on purpose, many at once.
_examples = int(os.environ.get("FLUX_ENDPOINT_TEST_EXAMPLES", "0"))
settings.register_profile(
    "unhurried",
    settings(),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not _examples,
    max_examples=_examples or 100,
)
settings.load_profile("unhurried")

AMQP_URL_VARIABLE = "FLUX_ENDPOINT_TEST_AMQP_URL"
APART = "kept_apart"

pytest_plugins = ["not_run", "databases", "flux_instance", "official_packages", "small_disk"]


def pytest_configure() -> None:
    # Whoever runs the tests may ignore signals (nohup, a background job); programs under test
    # would inherit that.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, handler)
    # They may have it, too; a line that Python prints is two writes then, which others' may part.
    os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get(AMQP_URL_VARIABLE):
        from not_run import leave_out

        reason = f"tests of accounts at the broker: that of {AMQP_URL_VARIABLE} asks nobody"
        leave_out(config, items, lambda item: reason if item.get_closest_marker(APART) else None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    # Flux's bindings leave it so when a call on the main thread fails, as some do on purpose.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Undo what a task changes that a test runs in this process: variables, working directory."""
    before, directory = os.environ.copy(), os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    yield
    os.fchdir(directory)
    os.close(directory)
    if os.environ != before:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class Broker:
    """The session's RabbitMQ: a node of our own, or the one that the environment names."""

    def __init__(
        self, url: str, ctl: Callable[..., str], management: ManagementApi | None = None
    ) -> None:
        self.url = url
        self._ctl = ctl
        self._management = management
        self.user = urlsplit(url).username or "guest"

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl against the node, or do the same faster; return what it prints."""
        if self._management is not None and self._management.run(*args):
            return ""
        return self._ctl(*args)

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """Meanwhile the node is short of memory, as it believes, and takes no messages."""
        with memory_alarm(self.ctl):
            yield

    def vhost_url(self, vhost: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{vhost}"))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    url = os.environ.get(AMQP_URL_VARIABLE)
    if url:
        command = shlex.split(os.environ.get("FLUX_ENDPOINT_TEST_RABBITMQCTL", "rabbitmqctl"))

        def ctl(*args: str) -> str:
            whole = [*command, "--quiet", *args]
            done = subprocess.run(whole, check=True, capture_output=True, text=True, timeout=60)
            return done.stdout

        session_broker.shares(ctl)
        yield Broker(url, ctl)
        return
    from flux_endpoint.stack.broker import RabbitNode

    dispatcher = Dispatcher()
    directory = tmp_path_factory.mktemp("broker")
    with RabbitNode(directory, authorization_url=dispatcher.url) as node:
        session_broker.keeps_apart(dispatcher, node.management_url)
        management = ManagementApi(node.management_url, node.service_url)
        yield Broker(node.service_url, node.ctl, management)


@pytest.fixture(scope="session")
def amqp_url(broker: Broker) -> str:
    """URL of the session's broker, its default virtual host."""
    return broker.url


@pytest.fixture
def amqp_vhost(broker: Broker) -> Iterator[str]:
    """URL of a virtual host that only this test uses."""
    vhost = f"test-{uuid.uuid4().hex}"
    broker.ctl("add_vhost", vhost)
    broker.ctl("set_permissions", "-p", vhost, broker.user, ".*", ".*", ".*")
    yield broker.vhost_url(vhost)
    broker.ctl("delete_vhost", vhost)


@pytest.fixture
def free_port() -> Iterator[int]:
    """A TCP port that nothing listens on, and that nobody else is given during the test."""
    with reserved_port() as port:
        yield port
