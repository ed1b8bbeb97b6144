"""Fixtures for all tests: a private RabbitMQ node, virtual hosts on it, free ports."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from alarms import memory_alarm
from broker_access import Dispatcher, session_broker
from broker_http import ManagementApi
from ports import reserved_port

# Examples have no deadline: a busy machine may suspend any process for any time. And they are the
# same in each run; FLUX_ENDPOINT_TEST_EXAMPLES sets a number of random ones instead.
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

#: Directories whose files share a stack: one process runs them, not each a stack of its own.
TOGETHER = ("tests/cli/", "tests/end_to_end/", "tests/examples/")

pytest_plugins = [
    "not_run",
    "browser",
    "databases",
    "flux_instance",
    "official_packages",
    "small_disk",
]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a command that runs in this process has set, e.g. that only errors are logged."""
    root = logging.getLogger()
    loggers = [root, logging.getLogger("flux_endpoint"), logging.getLogger("pika")]
    before = [(each.level, each.propagate, list(each.handlers)) for each in loggers]
    yield
    for each, (level, propagate, handlers) in zip(loggers, before, strict=True):
        each.setLevel(level)
        each.propagate = propagate
        for handler in [handler for handler in each.handlers if handler not in handlers]:
            each.removeHandler(handler)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the test processes of xdist inherit it
        # Not the user's directory: bash runs its start files even in a job, whose standard input is
        # a socket, and these may take any time.
        home = tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True)
        config.add_cleanup(home.cleanup)
        os.environ["HOME"] = home.name
    # The parent process may ignore signals (nohup, a background job), and programs under test would
    # inherit that.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, handler)
    # With this variable, Python prints a line in two writes, and output of other processes may come
    # in between.
    os.environ.pop("PYTHONUNBUFFERED", None)


class _ByFile(LoadFileScheduling):
    """Distributes files, but the directories of `TOGETHER` as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        whole = (directory for directory in TOGETHER if nodeid.startswith(directory))
        return next(whole, None) or super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return _ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get(AMQP_URL_VARIABLE):
        from not_run import leave_out

        reason = f"tests of accounts at the broker: that of {AMQP_URL_VARIABLE} asks nobody"
        leave_out(config, items, lambda item: reason if item.get_closest_marker(APART) else None)
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        from not_run import leave_out

        why = "tests of users' local accounts: they need root, and useradd"
        leave_out(config, items, lambda item: why if item.get_closest_marker("accounts") else None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    # Flux's bindings do not restore the handler when a call on the main thread fails, and some
    # tests cause failures.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """Restore variables and working directory, which tasks in this process may change."""
    before, directory = os.environ.copy(), os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    yield
    os.fchdir(directory)
    os.close(directory)
    if os.environ != before:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


class Broker:
    """The RabbitMQ node of the session: a private one, or one from the environment.

    Args:
        url: AMQP URL of the node, with its administrator.
        ctl: runs `rabbitmqctl` with the given arguments.
        management: runs some of its commands faster; `None`: none.
    """

    def __init__(
        self, url: str, ctl: Callable[..., str], management: ManagementApi | None = None
    ) -> None:
        self.url = url
        self._ctl = ctl
        self._management = management
        self.user = urlsplit(url).username or "guest"

    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl`, or a faster equivalent, for the node; return its output."""
        if self._management is not None and self._management.run(*args):
            return ""
        return self._ctl(*args)

    @contextlib.contextmanager
    def alarm(self) -> Iterator[None]:
        """Raise the node's memory alarm, so that it accepts no messages."""
        with memory_alarm(self.ctl):
            yield

    @contextlib.contextmanager
    def virtual_host(self, prefix: str = "test") -> Iterator[str]:
        """Make a virtual host with a new name, and delete it afterwards; its URL."""
        vhost = f"{prefix}-{uuid.uuid4().hex}"
        self.ctl("add_vhost", vhost)
        self.ctl("set_permissions", "-p", vhost, self.user, ".*", ".*", ".*")
        try:
            yield urlunsplit(urlsplit(self.url)._replace(path=f"/{vhost}"))
        finally:
            self.ctl("delete_vhost", vhost)


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
    """URL of the default virtual host of the session's broker."""
    return broker.url


@pytest.fixture
def amqp_vhost(broker: Broker) -> Iterator[str]:
    """URL of a virtual host that only this test uses."""
    with broker.virtual_host() as url:
        yield url


@pytest.fixture
def free_port() -> Iterator[int]:
    """A TCP port that nothing listens on, reserved during the test."""
    with reserved_port() as port:
        yield port
