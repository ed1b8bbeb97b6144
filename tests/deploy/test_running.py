"""What the compose file describes, run without containers: accounts, service, endpoint, a task."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import httpx
import pika
import pika.exceptions
import pytest

from deploy_files import DEPLOY, fill_in
from flux_endpoint import Executor
from flux_endpoint.protocol import queues
from flux_endpoint.service import topology
from flux_endpoint.stack import broker_files
from flux_endpoint.stack.broker import RabbitNode
from flux_endpoint.stack.installation import find_rabbitmq

pytestmark = pytest.mark.rabbitmq

ENDPOINT_ID = "00000000-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class Broker:
    """A node with an account `guest`, as RabbitMQ makes it, and the script that makes ours."""

    node: RabbitNode
    environment: dict[str, str]

    def make_accounts(self, **passwords: str) -> str:
        variables = {f"AMQP_{name.upper()}_PASSWORD": text for name, text in passwords.items()}
        done = subprocess.run(
            [DEPLOY / "rabbitmq" / "accounts"],
            env={**self.environment, **variables},
            capture_output=True,
            text=True,
            timeout=110,
            check=True,
        )
        return done.stdout

    def connect(self, account: str, password: str) -> pika.BlockingConnection:
        address = urlsplit(self.node.service_url)
        netloc = f"{account}:{password}@127.0.0.1:{address.port}"
        url = urlunsplit(address._replace(netloc=netloc, path="/flux_endpoint"))
        return pika.BlockingConnection(pika.URLParameters(url))


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    directory = tmp_path_factory.mktemp("node")
    with RabbitNode(directory) as node:
        node.ctl("add_user", "guest", "guest")
        # A `rabbitmqctl` that finds this node, as the one on a site's PATH finds the site's.
        known = json.loads((directory / "node.json").read_text())
        identity = broker_files.NodeIdentity(**known)
        environment = broker_files.node_environment(directory, identity)
        program = directory / "bin" / "rabbitmqctl"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(str(find_rabbitmq().ctl))} "$@"\n')
        program.chmod(0o755)
        path = f"{program.parent}{os.pathsep}{environment['PATH']}"
        yield Broker(node, {**environment, "PATH": path})


@pytest.fixture(scope="module")
def made(broker, answers):
    """What the script said; the accounts have the passwords of `answers`."""
    names = ("service", "endpoint", "client")
    return broker.make_accounts(
        **{name: answers[f"AMQP_{name.upper()}_PASSWORD"] for name in names}
    )


class TestAccounts:
    def test_each_is_made_with_the_rights_that_it_has_in_a_stack(self, broker, made):
        said = broker.node.ctl("list_permissions", "--vhost", "flux_endpoint", "--no-table-headers")
        rights = {
            user: (configure, write, read)
            for user, configure, write, read in (line.split("\t") for line in said.splitlines())
        }
        assert rights == broker_files.PERMISSIONS

    def test_the_account_with_the_well_known_password_is_gone(self, broker, made):
        assert "guest: removed" in made
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            broker.connect("guest", "guest")

    def test_made_again_they_have_the_new_passwords(self, broker, made, answers):
        kept = {name: answers[f"AMQP_{name.upper()}_PASSWORD"] for name in ("service", "endpoint")}
        broker.make_accounts(client="another", **kept)
        broker.connect("client", "another").close()
        broker.make_accounts(client=answers["AMQP_CLIENT_PASSWORD"], **kept)
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            broker.connect("client", "another")

    def test_a_password_that_is_missing_is_named_before_anything_is_done(self, broker):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            broker.make_accounts(service="a", endpoint="b")
        assert "AMQP_CLIENT_PASSWORD" in caught.value.stderr

    @pytest.mark.parametrize(
        ("account", "queue"),
        [
            ("client", queues.tasks_queue(ENDPOINT_ID)),
            ("client", queues.RESULTS_QUEUE),
            ("endpoint", queues.task_group_queue(ENDPOINT_ID)),
            ("endpoint", queues.task_group_queue(ENDPOINT_ID, ENDPOINT_ID)),
            ("endpoint", queues.DEAD_LETTERS),
        ],
    )
    def test_none_reads_what_is_for_another(self, broker, made, answers, account, queue):
        connection = broker.connect(account, answers[f"AMQP_{account.upper()}_PASSWORD"])
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().basic_get(queue)
        connection.close()

    @pytest.mark.parametrize("account", ["client", "endpoint"])
    def test_only_the_service_makes_queues(self, broker, made, answers, account):
        connection = broker.connect(account, answers[f"AMQP_{account.upper()}_PASSWORD"])
        queue, _ = topology.of_group(ENDPOINT_ID)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            connection.channel().queue_declare(queue.name, durable=True, arguments=queue.arguments)
        connection.close()


def _elsewhere(url: str, host: str, port: int) -> str:
    """Return `url` on another host and port, everything else unchanged."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}:{port}"))


class TestTask:
    @pytest.fixture
    def environment(self, broker, made, compose, answers, database_url, free_port):
        """The service's environment as the compose file has it, but for hosts and ports."""
        described = fill_in(compose["services"]["service"]["environment"], answers)
        amqp_port = urlsplit(broker.node.service_url).port
        moved = {
            name: _elsewhere(value, "127.0.0.1", amqp_port)
            for name, value in described.items()
            if "AMQP_URL" in name
        }
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))},
            **described,
            **moved,
            "FLUX_ENDPOINT_SERVICE_DATABASE_URL": database_url,
            "FLUX_ENDPOINT_SERVICE_PORT": str(free_port),
        }

    def test_it_runs_and_its_result_comes_back(self, environment, tmp_path, monkeypatch):
        service = {**environment, "FLUX_ENDPOINT_HOME": str(tmp_path / "service")}
        url = f"http://127.0.0.1:{environment['FLUX_ENDPOINT_SERVICE_PORT']}"
        home = tmp_path / "endpoint"
        with _running(service, "service", "run") as process:
            assert process.stderr is not None
            _read_until(process.stderr, "service ready")
            # The health check of the compose file: a route that wants no token.
            assert httpx.get(f"{url}/v2/version", timeout=60).status_code == 200
            token = _run(service, "service", "token", "create", "ada").split()[-1]
            user = {
                **environment,
                "FLUX_ENDPOINT_HOME": str(home),
                "FLUX_ENDPOINT_SERVICE_URL": url,
                "FLUX_ENDPOINT_TOKEN": token,
            }
            _run(user, "configure", "lab")
            said = _run(user, "start", "lab", "--detach")
            try:
                monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(home))
                monkeypatch.setenv("FLUX_ENDPOINT_SERVICE_URL", url)
                monkeypatch.setenv("FLUX_ENDPOINT_TOKEN", token)
                with Executor(endpoint_id=said.split()[-1]) as executor:
                    assert executor.submit(pow, 2, 10).result(timeout=60) == 1024
            finally:
                _run(user, "stop", "lab")
            process.terminate()
            assert process.wait(timeout=60) == 0


def _run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flux_endpoint", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class _running(subprocess.Popen):  # noqa: N801 - reads as what it is for
    """A `flux-endpoint …` process that ends with the block."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        super().__init__(
            [sys.executable, "-m", "flux_endpoint", *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __exit__(self, *what: object) -> None:
        self.kill()
        super().__exit__(*what)


def _read_until(stream, words: str) -> None:
    said = []
    for line in stream:
        said.append(line)
        if words in line:
            return
    pytest.fail(f"it ended before it said {words!r}:\n{''.join(said)}")
