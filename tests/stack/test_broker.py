import json
import os
import queue
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import httpx
import pika
import pika.exceptions
import psutil
import pytest

from broker_access import Dispatcher
from broker_http import ManagementApi
from flux_endpoint.amqp.url import with_credentials
from flux_endpoint.errors import AmqpError
from flux_endpoint.service.access.trial import Trial, TrialOutcome, Verdict
from flux_endpoint.stack import broker_files
from flux_endpoint.stack.broker import RabbitNode
from flux_endpoint.stack.broker_files import load_identity
from flux_endpoint.stack.ports import free_ports
from waiting import until

pytestmark = pytest.mark.rabbitmq


def connect(url):
    return pika.BlockingConnection(pika.URLParameters(url))


def lasting(commands):
    """Of {pid: command line} keep the node and its epmd, not the programs that it runs at times."""
    return [pid for pid, command in commands.items() if "beam" in command or "epmd" in command]


#: Of a node's directory: what a configuration, a shell or a wildcard could take for something else.
ODD_NAME = "a 'b' \"c\" #d %20 $e `f` {{g}} \\h ü?*[i],j:k;l&m"


@pytest.fixture(scope="module")
def reasons():
    """The reasons for unexpected ends of `node`."""
    return queue.SimpleQueue()


@pytest.fixture(scope="module")
def node(tmp_path_factory, reasons):
    with RabbitNode(tmp_path_factory.mktemp("node") / ODD_NAME, on_exit=reasons.put) as node:
        yield node


@pytest.fixture(scope="module")
def second(node, tmp_path_factory, keeping_ports):
    """A node beside `node`, started for a second time; with what there was the first time."""
    directory = tmp_path_factory.mktemp("second")
    answers = Dispatcher()
    second = RabbitNode(directory, authorization_url=answers.url)
    with keeping_ports(directory) as ports:
        with second:
            before = SimpleNamespace(ports=ports, url=second.service_url, name=second.name)
            with connect(before.url) as connection:
                channel = connection.channel()
                channel.queue_declare("kept", durable=True)
                channel.basic_publish("", "kept", b"1", pika.BasicProperties(delivery_mode=2))
            management = ManagementApi(second.management_url, before.url)
            for name in broker_files.RETIRED:
                assert management.run("add_user", name, name)
        file = directory / "passwords.json"
        earlier = {"service": json.loads(file.read_text())["service"], "endpoint": "endpoint"}
        file.write_text(json.dumps({**earlier, "client": "client"}))
        with second:
            second.before, second.answers = before, answers
            yield second


def test_the_broker_runs_as_the_calling_user(node, processes_of):
    commands = processes_of(node.directory)
    assert any("beam" in command for command in commands.values())
    assert any("epmd" in command for command in commands.values())
    owners = {psutil.Process(pid).uids().effective for pid in lasting(commands)}
    assert owners == {os.geteuid()}


def test_the_broker_listens_only_on_loopback(node, processes_of):
    listening = {
        connection.laddr.ip
        for pid in lasting(processes_of(node.directory))
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert "127.0.0.1" in listening
    assert listening <= {"127.0.0.1", "::1"}


def test_a_node_runs_in_a_directory_of_any_name(node):
    with connect(node.service_url):
        pass
    # What `df` says: without it the broker knows of no full disk.
    assert int(node.ctl("eval", "rabbit_disk_monitor:get_disk_free().")) > 0
    assert node.directory.name == ODD_NAME
    assert (node.directory / "log" / "rabbit.log").exists()


def test_ctl_talks_to_this_node_which_keeps_no_statistics(node):
    # Those of the management plugin delay a node's end by 5 s.
    asked = "{node(), application:get_env(rabbit, collect_statistics)}."
    until(lambda: "{ok,none}" in node.ctl("eval", asked))
    assert node.name in node.ctl("eval", asked)


def test_ctl_takes_another_port_where_its_own_is_taken_meanwhile(node, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(broker_files, "free_ports", lambda count: [port] * count)
        assert node.name in node.ctl("eval", "node().")


def test_a_failing_ctl_says_why(node):
    with pytest.raises(AmqpError, match=r"rabbitmqctl set_permissions failed[\s\S]*nobody"):
        node.ctl("set_permissions", "-p", "/", "nobody", ".*", ".*", ".*")


def test_the_guest_account_does_not_exist(node):
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(f"amqp://guest:guest@127.0.0.1:{node.port}/%2F")


@pytest.mark.parametrize("account", ["endpoint", "client", "u-1", "trial"])
def test_without_an_authorization_service_only_the_services_account_works(node, account):
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        connect(with_credentials(node.service_url, account, "password"))


def test_the_authorization_port_is_reserved_for_the_service(node):
    port = urlsplit(node.authorization_url).port
    assert port not in free_ports(200)
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind(("127.0.0.1", port))
    for _ in range(2):  # and for the next one
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_only_the_service_can_use_the_management_api(node):
    account = urlsplit(node.service_url)
    url = f"{node.management_url}/api/connections"
    allowed = httpx.get(url, auth=(account.username, account.password), trust_env=False, timeout=60)
    assert allowed.status_code == 200
    for auth in (None, (account.username, "wrong"), ("guest", "guest")):
        assert httpx.get(url, auth=auth, trust_env=False, timeout=60).status_code == 401


def test_a_second_node_does_not_collide_and_a_restart_keeps_messages(node, second):
    before = second.before
    assert {second.port, second.name}.isdisjoint({node.port, node.name})
    assert second.port == before.ports["amqp_port"]
    assert (second.service_url, second.name) == (before.url, before.name)
    with connect(before.url) as connection:
        assert connection.channel().basic_get("kept")[2] == b"1"
    assert connect(node.service_url).is_open


def test_accounts_shared_by_all_users_are_deleted(second):
    for name in broker_files.RETIRED:
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            connect(with_credentials(second.service_url, name, name))
    file = second.directory / "passwords.json"
    assert set(json.loads(file.read_text())) == {"service", "authorization"}


def test_the_broker_asks_about_every_step_at_its_authorization_url(second):
    answers = second.answers
    assert second.authorization_url == answers.url
    trial = Trial()
    answers.answer = lambda path, body: (
        b"allow"
        if trial.answer(path.rpartition("/")[2], dict(parse_qsl(body.decode())))
        else b"deny"
    )
    assert trial.run(second.service_url) == TrialOutcome(Verdict.ASKS)


def test_a_directory_can_have_only_one_node(node, monkeypatch):
    monkeypatch.setattr("flux_endpoint.stack.broker.LOCK_TIMEOUT", 0)
    with pytest.raises(AmqpError, match="another RabbitMQ node is running"):
        RabbitNode(node.directory).start()


def test_a_node_that_can_not_start_reports_why_and_leaves_nothing(tmp_path, processes_of):
    cookie = tmp_path / ".erlang.cookie"
    cookie.write_text("everybody reads this")
    cookie.chmod(0o644)
    with pytest.raises(AmqpError, match=r"did not start[\s\S]*[Cc]ookie"):
        RabbitNode(tmp_path).start()
    assert processes_of(tmp_path) == {}


OWNER = """
import sys, threading
from pathlib import Path
from flux_endpoint.stack import broker_files
from flux_endpoint.stack.broker import RabbitNode
with RabbitNode(Path(sys.argv[1])) as node:
    print("ready", flush=True)
    threading.Event().wait()
"""


def test_when_its_owner_is_killed_no_process_is_left(tmp_path, processes_of, await_end):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout.readline() == "ready\n"
        helpers = [child.pid for child in psutil.Process(owner.pid).children(recursive=True)]
        names = " ".join(processes_of(tmp_path).values())
        assert "epmd" in names
        assert "beam" in names
        owner.send_signal(signal.SIGKILL)
    assert await_end(helpers) == []
    while left := processes_of(tmp_path):  # the node may have started more till its end
        assert await_end(left) == []


@pytest.mark.skipif(not socket.has_ipv6, reason="needs an address that only epmd uses")
def test_an_unexpected_end_is_reported_once_and_a_port_taken_meanwhile_is_replaced(
    node, reasons, processes_of
):
    commands = processes_of(node.directory)
    (beam,) = (pid for pid, command in commands.items() if "beam.smp" in command)
    os.kill(beam, signal.SIGKILL)
    assert "RabbitMQ node ended" in reasons.get(timeout=20)
    node.stop()
    before = load_identity(node.directory)
    with socket.create_server(("::1", before.epmd_port), family=socket.AF_INET6):
        urls = []
        node.start(lambda: urls.append(node.service_url))
    connect(node.service_url).close()
    assert urls[0] != urls[1] == node.service_url
    assert load_identity(node.directory).epmd_port != before.epmd_port
    node.stop()
    assert reasons.empty()
