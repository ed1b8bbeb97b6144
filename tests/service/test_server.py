"""The commands: the service as a process of its own, and its tokens."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tests.service.conftest import FUNCTION, NO_BROKER, refusal

from broker_access import NOBODY_ASKS
from databases import make_migrated
from flux_endpoint.credentials import Credentials
from flux_endpoint.protocol.limits import MAX_REQUEST_BYTES
from flux_endpoint.rest import RestClient
from flux_endpoint.service.server import KILL_SECONDS


class ServiceProcess:
    """`flux-endpoint service run` on a free port."""

    def __init__(self, directory: Path, *options: str, open_files: int | None = None) -> None:
        limit = ["prlimit", f"--nofile={open_files}"] if open_files else []
        self.process = subprocess.Popen(
            [*limit, *COMMAND, "run", "--port", "0", "--log-format", "json", *options],
            env=environment(directory),
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, str]] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(json.loads(line))
                self._changed.notify_all()

    def wait_for(self, event: str) -> dict[str, str]:
        def found() -> list[dict[str, str]]:
            return [line for line in self.lines if line["event"].startswith(event)]

        with self._changed:
            assert self._changed.wait_for(found, timeout=60), self.lines
        return found()[0]

    @property
    def url(self) -> str:
        return self.wait_for("service ready")["url"]

    def end(self, signum: int) -> int:
        self.process.send_signal(signum)
        code = self.process.wait(60)
        self._reader.join()
        return code


COMMAND = [sys.executable, "-m", "flux_endpoint", "service"]


def environment(directory: Path) -> dict[str, str]:
    return {
        **os.environ,
        "FLUX_ENDPOINT_HOME": str(directory),
        "FLUX_ENDPOINT_SERVICE_AMQP_URL": NO_BROKER,
        "FLUX_ENDPOINT_SERVICE_AUTHORIZATION_URL": NOBODY_ASKS["authorization_url"],
    }


@pytest.fixture(autouse=True)
def migrated(tmp_path: Path) -> None:
    """The database is there: for each of the programs, to make one takes as long as its start."""
    make_migrated(tmp_path / "service.db")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    started: list[ServiceProcess] = []

    def run(*options: str, open_files: int | None = None) -> ServiceProcess:
        started.append(ServiceProcess(tmp_path, *options, open_files=open_files))
        return started[-1]

    yield run
    for each in started:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments],
            env=environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_service_runs_without_a_broker_logs_that_and_ends_cleanly(
    start: Callable[..., ServiceProcess], signum: int
) -> None:
    service = start()
    assert httpx.get(f"{service.url}/v2/version", timeout=60).json() == "1.0.0"
    service.wait_for("broker unreachable")
    assert service.end(signum) == 0
    (away,) = [line for line in service.lines if line["event"].startswith("broker unreachable")]
    assert away["address"].startswith("127.0.0.1:1")
    assert service.lines[-1]["event"] == "service stopped"


def test_two_services_that_start_together_share_a_database(
    start: Callable[..., ServiceProcess],
) -> None:
    services = [start(), start()]
    urls = {service.url for service in services}
    assert len(urls) == 2
    assert [service.end(signal.SIGTERM) for service in services] == [0, 0]


def test_a_port_in_use_is_reported_in_one_sentence(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command("run", "--port", port)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert f"127.0.0.1:{port}" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--amqp-url", "http://h"], "--amqp-url"),
        (["run", "--port", "70000"], "--port"),
        (["run", "--port", "0", "--database-url", "mysql://h"], "mysql"),
        (["run", "--port", "0", "--database-url", "sqlite:////no/where/x.db"], "/no/where/x.db"),
    ],
)
def test_a_configuration_error_is_reported_in_one_sentence(
    command: Callable[..., subprocess.CompletedProcess[str]], arguments: list[str], named: str
) -> None:
    done = command(*arguments)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert named in line


def test_without_encryption_the_service_listens_only_on_loopback(
    command: Callable[..., subprocess.CompletedProcess[str]],
    start: Callable[..., ServiceProcess],
) -> None:
    done = command("run", "--port", "0", "--host", "0.0.0.0")
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    assert "--plain-http" in line
    service = start("--host", "0.0.0.0", "--plain-http")
    assert service.wait_for("tokens and tasks cross the network")["level"] == "warning"
    assert service.url
    assert service.end(signal.SIGTERM) == 0


def test_revoking_an_unknown_token_exits_with_66(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command("token", "revoke", "nonsense")
    assert done.returncode == 66
    assert done.stderr.splitlines() == [
        "Error: no token has that id: `flux-endpoint service token list` shows them"
    ]


def test_a_user_without_a_name_is_a_wrong_command_line(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = command("token", "create", "")
    assert done.returncode == 64
    assert "USER must have 1 to 256 printable characters" in done.stderr


def test_a_name_similar_to_another_is_refused(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert command("token", "create", "ada").returncode == 0
    assert command("group", "add", "chemistry", "ada").returncode == 0
    assert command("group", "add", "ada", "ada").returncode == 0  # groups are no users
    for made in (("token", "create", "Ada"), ("group", "add", "Chemistry", "ada")):
        done = command(*made)
        assert done.returncode == 64
        assert "in upper and lower case alone" in done.stderr
    assert command("token", "create", "ada").returncode == 0


def test_a_token_opens_the_service_until_it_is_revoked(
    start: Callable[..., ServiceProcess],
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    token = command("token", "create", "ada").stdout.strip()
    service = start()

    def status() -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{service.url}/v2/endpoints", headers=headers, timeout=60).status_code

    assert status() == 200
    listed = command("token", "list").stdout
    assert "ada" in listed
    assert token not in listed
    assert command("token", "revoke", listed.splitlines()[1].split()[0]).returncode == 0
    assert status() == 401
    assert command("token", "list").stdout.startswith("No tokens.")


def test_a_token_that_expires_says_when(
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    assert command("token", "create", "ada").returncode == 0
    assert command("token", "create", "bob", "--expires", "30d").returncode == 0
    never, later = json.loads(command("token", "list", "--json").stdout)
    assert (never["user"], never["expires_at"]) == ("ada", None)
    assert later["user"] == "bob"
    assert 29 <= (later["expires_at"] - time.time()) / 86_400 <= 30
    for wrong in ("soon", "0", "-1d", "infinity"):
        done = command("token", "create", "ada", f"--expires={wrong}")
        assert done.returncode == 64
        assert "--expires" in done.stderr


def test_a_client_that_sends_too_much_reads_why(start: Callable[..., ServiceProcess]) -> None:
    service = start()
    answer = httpx.post(
        f"{service.url}/v3/functions", content=b" " * (MAX_REQUEST_BYTES + 1), timeout=30
    )
    refusal(answer, 413, "REQUEST_TOO_LARGE", "body")


@contextlib.contextmanager
def connections(url: str, count: int, text: bytes) -> Iterator[None]:
    """Have `count` connections that have sent `text` and nothing more."""
    address = urlsplit(url)
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = socket.create_connection((address.hostname, address.port), timeout=60)
            stack.enter_context(connection).sendall(text)
        yield


def test_with_few_descriptors_the_service_answers_beside_many_silent_connections(
    start: Callable[..., ServiceProcess],
) -> None:
    service = start(open_files=256)
    service.wait_for("fewer connections than set")
    with (
        connections(service.url, 300, b"GET / HTTP/1.1\r\n"),
        RestClient(Credentials(service.url, "x"), attempts=20) as client,
    ):
        assert client.request_json("GET", "/v2/version") == "1.0.0"
    assert service.end(signal.SIGTERM) == 0


HALF_A_BODY = b"POST /v3/functions HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n%s\r\n{"


def test_endless_requests_do_not_prevent_the_shutdown(
    start: Callable[..., ServiceProcess],
    command: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    token = command("token", "create", "ada").stdout.strip()
    service = start()
    header = f"Authorization: Bearer {token}\r\n".encode()
    with (
        connections(service.url, 50, b"GET / HTTP/1.1\r\n"),
        connections(service.url, 50, HALF_A_BODY % header),
    ):
        assert httpx.get(f"{service.url}/v2/version", timeout=60).status_code == 200
        begun = time.monotonic()
        assert service.end(signal.SIGTERM) == 0
    assert time.monotonic() - begun < KILL_SECONDS + 5


def test_a_thread_waiting_for_the_database_does_not_prevent_the_shutdown(
    start: Callable[..., ServiceProcess],
    command: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    token = command("token", "create", "ada").stdout.strip()
    service = start()
    url = service.url
    body = json.dumps({"function_name": "f", "function_code": FUNCTION}).encode()
    lines = [
        "POST /v3/functions HTTP/1.1",
        "Host: h",
        f"Authorization: Bearer {token}",
        f"Content-Length: {len(body)}",
    ]
    database = sqlite3.connect(tmp_path / "service.db", isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    request = "\r\n".join([*lines, "", ""]).encode() + body
    with connections(url, 3, request):
        assert httpx.get(f"{url}/v2/version", timeout=60).status_code == 200
        begun = time.monotonic()
        assert service.end(signal.SIGTERM) == 0
    assert time.monotonic() - begun < KILL_SECONDS + 5
    database.close()
    assert service.lines[-1]["event"].startswith("service stopped")


def test_migrate_makes_the_database(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    assert command("migrate").returncode == 0
    assert (tmp_path / "service.db").exists()
