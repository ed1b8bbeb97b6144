"""What the compose file describes, run without containers: accounts, service, endpoint, a task."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import httpx
import pika
import pika.exceptions
import psutil
import pytest

from broker_access import SECRET, Dispatcher
from deploy_files import DEPLOY, fill_in, read_settings
from flux_endpoint import Executor
from flux_endpoint.amqp.authorization import PLUGINS
from flux_endpoint.service.access.trial import Trial, TrialOutcome, Verdict
from flux_endpoint.stack import broker_files
from flux_endpoint.stack.broker import RabbitNode
from flux_endpoint.stack.installation import find_rabbitmq
from ports import reserved_port
from waiting import until

pytestmark = pytest.mark.rabbitmq

#: One that RabbitMQ makes by itself, and those of earlier releases.
SHARED = ("guest", "endpoint", "client")
ANOTHER_PLUGIN = "rabbitmq_consistent_hash_exchange"


@dataclass(frozen=True)
class Broker:
    """A node with the accounts `SHARED`, and the script that makes ours."""

    node: RabbitNode
    environment: dict[str, str]

    def make_account(self, password: str) -> str:
        done = subprocess.run(
            [DEPLOY / "rabbitmq" / "accounts"],
            env={**self.environment, "AMQP_SERVICE_PASSWORD": password},
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
def broker(tmp_path_factory, answers):
    directory = tmp_path_factory.mktemp("node")
    with (
        reserved_port() as port,
        RabbitNode(
            directory,
            authorization_url=f"http://127.0.0.1:{port}/{answers['AUTHORIZATION_SECRET']}",
        ) as node,
    ):
        made = [
            f'rabbit_auth_backend_internal:add_user(<<"{n}">>, <<"{n}">>, <<>>)' for n in SHARED
        ]
        node.ctl("eval", f"{', '.join(made)}.")  # one command: each takes seconds
        # Programs that find this node, as those on a site's PATH find the site's.
        known = json.loads((directory / "node.json").read_text())
        identity = broker_files.NodeIdentity(**known)
        environment = broker_files.node_environment(directory, identity)
        programs = directory / "bin"
        programs.mkdir()
        theirs = find_rabbitmq().ctl.parent
        for name in ("rabbitmqctl", "rabbitmq-plugins"):
            _write_program(programs / name, f'exec {shlex.quote(str(theirs / name))} "$@"')
        path = f"{programs}{os.pathsep}{environment['PATH']}"
        yield Broker(node, {**environment, "PATH": path})


@pytest.fixture(scope="module")
def made(broker, answers):
    """What the script said; the account has the password of `answers`."""
    return broker.make_account(answers["AMQP_SERVICE_PASSWORD"])


class TestAccounts:
    def test_the_services_may_do_everything(self, broker, made):
        said = broker.node.ctl("list_permissions", "--vhost", "flux_endpoint", "--no-table-headers")
        assert said.splitlines() == ["service\t.*\t.*\t.*"]
        said = broker.node.ctl("list_users", "--no-table-headers")
        assert said.splitlines() == ["service\t[administrator]"]

    @pytest.mark.parametrize("name", SHARED)
    def test_well_known_accounts_are_deleted(self, broker, made, name):
        assert f"{name}: removed" in made
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            broker.connect(name, name)

    def test_making_an_account_again_changes_its_password(self, broker, made, answers):
        broker.make_account("another")
        broker.connect("service", "another").close()
        broker.make_account(answers["AMQP_SERVICE_PASSWORD"])
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            broker.connect("service", "another")

    def test_a_missing_password_is_named_before_any_change(self, broker):
        with pytest.raises(subprocess.CalledProcessError) as caught:
            broker.make_account("")
        assert "AMQP_SERVICE_PASSWORD" in caught.value.stderr


@pytest.fixture(scope="module")
def asked():
    return Dispatcher()


@pytest.fixture(scope="module")
def conf_d(broker, made, asked, answers, tmp_path_factory):
    """The files that the script has written for a host with a service and TLS."""
    directory = tmp_path_factory.mktemp("etc")
    restarts = directory / "restarts"
    # The node runs on: it stands for the restarted one.
    _write_program(directory / "bin" / "service", f'echo "$@" >> {shlex.quote(str(restarts))}')
    # One that the site has for other purposes.
    plugins = broker.node.directory / "enabled_plugins"
    plugins.write_text(f"[{ANOTHER_PLUGIN}].\n")
    done = subprocess.run(
        [DEPLOY / "rabbitmq" / "configure"],
        cwd=broker.node.directory,
        env={
            **broker.environment,
            "PATH": f"{directory / 'bin'}{os.pathsep}{broker.environment['PATH']}",
            "CONF_D": str(directory / "conf.d"),
            "GROUP": str(os.getegid()),
            "LOOPBACK": "yes",
            "AMQP_SERVICE_PASSWORD": answers["AMQP_SERVICE_PASSWORD"],
            "FLUX_ENDPOINT_SERVICE_AUTHORIZATION_URL": asked.url,
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert restarts.read_text() == "rabbitmq-server restart\n"
    assert "account service" in done.stdout
    return directory / "conf.d"


class TestConfigure:
    """A RabbitMQ of the host: the script's files, as RabbitMQ reads them."""

    def test_the_secret_is_for_rabbitmqs_group(self, conf_d, asked):
        file = conf_d / "22-authorization.conf"
        assert file.stat().st_mode & 0o777 == 0o640
        others = [each for each in conf_d.iterdir() if each != file]
        assert not any(SECRET in each.read_text() for each in others)

    def test_the_plugins_are_enabled(self, conf_d, broker):
        said = (broker.node.directory / "enabled_plugins").read_text()
        assert {*PLUGINS, ANOTHER_PLUGIN} == set(re.findall(r"\w+", said))

    def test_a_broker_with_these_files_asks_the_service_and_listens_with_tls_only(
        self, conf_d, asked, tmp_path, monkeypatch, free_port
    ):
        certificate = tmp_path / "tls"
        certificate.mkdir()
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
                *("-days", "2", "-subj", "/CN=localhost"),
                *("-keyout", certificate / "key.pem", "-out", certificate / "fullchain.pem"),
            ],
            check=True,
            capture_output=True,
        )
        files = [*conf_d.glob("*.conf"), DEPLOY / "rabbitmq" / "tls.conf"]
        text = "\n".join(each.read_text() for each in files)
        write = broker_files.write_configuration

        def with_these_files(directory, identity, *more):
            write(directory, identity, *more)
            file = directory / "rabbitmq.conf"
            own = read_settings(file.read_text())
            kept = {k: v for k, v in own.items() if k.split(".")[0] in ("log", "load_definitions")}
            theirs = (
                text.replace(":5672", f":{identity.amqp_port}")
                .replace("= 5671", f"= {free_port}")
                .replace("/etc/flux-endpoint/tls", str(certificate))
            )
            kept["management.tcp.port"] = own["management.tcp.port"]
            file.write_text("".join(f"{k} = {v}\n" for k, v in kept.items()) + theirs)

        monkeypatch.setattr(broker_files, "write_configuration", with_these_files)
        trial = Trial()
        asked.answer = lambda path, body: (
            b"allow"
            if trial.answer(path.rpartition("/")[2], dict(parse_qsl(body.decode())))
            else b"deny"
        )
        with RabbitNode(tmp_path / "node") as node:
            assert trial.run(node.service_url) == TrialOutcome(Verdict.ASKS)
            listening = {
                each.laddr.port: each.laddr.ip
                for each in psutil.net_connections("inet")
                if each.status == psutil.CONN_LISTEN
            }
            inside = (node.port, urlsplit(node.management_url).port)
            assert {listening[port] for port in inside} == {"127.0.0.1"}
            assert listening[free_port] in ("::", "0.0.0.0")


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
        asked = broker.node.authorization_url
        name = "FLUX_ENDPOINT_SERVICE_AUTHORIZATION_URL"
        assert urlsplit(described[name]).path == urlsplit(asked).path
        moved |= {name: asked, "FLUX_ENDPOINT_SERVICE_MANAGEMENT_URL": broker.node.management_url}
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "PMI_"))},
            **described,
            **moved,
            "FLUX_ENDPOINT_SERVICE_DATABASE_URL": database_url,
            "FLUX_ENDPOINT_SERVICE_PORT": str(free_port),
        }

    def test_a_task_runs_and_its_result_arrives(self, environment, tmp_path, monkeypatch):
        service = {**environment, "FLUX_ENDPOINT_HOME": str(tmp_path / "service")}
        url = f"http://127.0.0.1:{environment['FLUX_ENDPOINT_SERVICE_PORT']}"
        home = tmp_path / "endpoint"
        with _running(service, "service", "run") as process:
            assert process.stderr is not None
            _read_until(process.stderr, "service ready")
            # The health check of the compose file: a route that wants no token.
            until(lambda: httpx.get(f"{url}/health", timeout=60).status_code == 200)
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


def _write_program(path: Path, line: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


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
