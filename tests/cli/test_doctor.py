"""`flux-endpoint doctor`: each thing that can be wrong is found, and how to mend it is said."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.conftest import COMMAND, configure

from flux_endpoint import __version__
from flux_endpoint.cli.checks import broker, endpoints, machine
from flux_endpoint.cli.checks.finding import FindingState, guarded, ok
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.errors import ConfigurationError
from flux_endpoint.stack.installation import NOT_INSTALLED
from waiting import until

URL, TOKEN = "FLUX_ENDPOINT_SERVICE_URL", "FLUX_ENDPOINT_TOKEN"


@pytest.fixture
def bare(bare):
    """Without Flux, so that not each test has to look at it."""
    bare.environment["PATH"] = "/usr/bin:/bin"
    return bare


@pytest.fixture
def with_flux(bare):
    bare.environment["PATH"] = os.environ["PATH"]
    return bare


def findings(terminal, *arguments, status=None, **environment):
    """What it finds, by the names of the checks; of several the worst."""
    done = terminal.run("doctor", *arguments, "--json", status=status, **environment)
    order = ["ok", "skipped", "warning", "failed"]
    told = sorted(json.loads(done.stdout)["findings"], key=lambda each: order.index(each["state"]))
    return {each["check"]: each for each in told}


def assert_found(found, check, state, said, mend=""):
    assert found[check]["state"] == state, found[check]
    assert said in found[check]["said"]
    assert mend in found[check]["mend"]
    if state in {"ok", "skipped"}:
        assert found[check]["mend"] == ""


# Where nothing is wrong


@pytest.mark.rabbitmq
@pytest.mark.stack
class TestHealth:
    def test_a_freshly_started_stack_has_no_findings(self, stack):
        def complete():  # the broker tells in time how long the queues are
            found = findings(stack, "local", status=0)
            return found["service.queues"]["state"] != "skipped" and found

        found = until(complete)
        assert not [each for each in found.values() if each["state"] == "failed"]
        for check in (
            "machine.release", "machine.home", "machine.open_files", "machine.disk",
            "service.credentials", "service.url", "service.token", "service.release",
            "service.clock", "service.database", "service.disk", "service.broker",
            "service.queues", "broker.installed", "broker.reach", "broker.version",
            "endpoint.directory", "endpoint.config", "endpoint.working_dir", "endpoint.agent",
            "endpoint.journal", "endpoint.service",
        ):  # fmt: skip
            busy = check == "service.database" and "sqlite took" in found[check]["said"]
            assert found[check]["state"] == "ok" or busy, found[check]
        assert "RabbitMQ 3." in found["broker.reach"]["said"]

    def test_the_text_output_has_sections_and_a_summary(self, stack):
        said = stack.out("doctor", "local")
        for title in ("This machine", "The service", "RabbitMQ", "Endpoint local"):
            assert f"\n{title}\n" in f"\n{said}"
        assert f"  ok       flux-endpoint {__version__}, Python 3." in said
        assert re.match(r"Nothing is wrong\.|\d+ checks: ", said.splitlines()[-1])
        assert "\033[01;32mok     \033[0;0m" in stack.out("doctor", "local", "--color")

    def test_the_keys_of_the_json_stay(self, stack):
        told = stack.json("doctor", "local")
        assert set(told) == {"findings", "counts"}
        assert set(told["counts"]) == {"ok", "warning", "failed", "skipped"}
        keys = {"check", "state", "said", "mend", "subject"}
        assert all(set(each) == keys for each in told["findings"])
        assert sum(told["counts"].values()) == len(told["findings"])

    def test_all_endpoints_are_checked_unless_one_is_named(self, stack):
        configure(stack, "unused")
        told = stack.json("doctor", status=None)["findings"]
        assert {each["subject"] for each in told} >= {None, "local", "unused"}

    @pytest.mark.flux
    def test_inside_flux_command_bindings_and_instance_match(self, stack, flux_uri):
        found = findings(stack, "local", status=0, FLUX_URI=flux_uri)
        assert found["flux.bindings"]["state"] == "ok"
        assert "are all 0." in found["flux.versions"]["said"]
        assert f"the instance at {flux_uri} has 4 nodes" in found["flux.instance"]["said"]


# The command itself


def test_a_failed_check_exits_with_1_and_names_the_remedy(bare):
    done = bare.run("doctor", status=1)
    assert "  failed   no credentials: set FLUX_ENDPOINT_SERVICE_URL" in done.stdout
    assert "-> ask the service's operator for a token" in done.stdout
    assert "1 failed" in done.stdout.splitlines()[-1]


def test_an_unknown_endpoint_is_66(bare):
    assert "no endpoint is called 'nowhere'" in bare.err("doctor", "nowhere", status=66)


def test_a_check_that_raises_is_a_finding_and_the_other_checks_run():
    def look():
        yield ok("machine.a", "fine")
        raise ZeroDivisionError("oh")

    first, second = guarded("machine", look)
    assert (first.check, second.check, second.state) == ("machine.a", "machine.check", "failed")
    assert "ZeroDivisionError: oh" in second.said


def test_a_broken_file_is_not_reported_as_an_internal_error():
    def look():
        raise PermissionError(13, "Permission denied", "/somewhere")
        yield

    (finding,) = guarded("endpoint", look, "lab")
    assert (finding.check, finding.subject) == ("endpoint.check", "lab")
    assert "/somewhere" in finding.said
    assert "bug" not in finding.mend


# This machine


@pytest.mark.parametrize(
    ("home", "said"),
    [
        ("/etc/hostname", "can't use /etc/hostname (FLUX_ENDPOINT_HOME) as the state directory"),
        ("/proc/nope", "can't use /proc/nope (FLUX_ENDPOINT_HOME) as the state directory"),
        ("~nobody-is-called-so/x", "Could not determine home directory"),
    ],
)
def test_an_invalid_home_is_found_and_the_other_checks_run(bare, home, said):
    found = findings(bare, status=1, FLUX_ENDPOINT_HOME=home)
    assert_found(found, "machine.home", "failed", said, "another FLUX_ENDPOINT_HOME")
    assert_found(found, "service.credentials", "failed", said, "fix the state directory")
    assert found["machine.disk"]["state"] != "skipped"
    assert "machine.check" not in found


def test_an_unreadable_home_is_found(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(tmp_path))
    monkeypatch.setattr(machine.Path, "iterdir", refuse)  # root may read everything
    (finding,) = machine._home()
    assert finding.state is FindingState.FAILED
    assert f"{tmp_path} can't be read: Permission denied" in finding.said


def test_an_endpoints_entry_that_is_not_a_directory_is_found(bare):
    bare.home.mkdir(mode=0o700)
    (bare.home / "endpoints").touch()
    found = findings(bare, status=1)
    assert_found(found, "machine.home", "failed", "endpoints is no directory", "move it away")


def test_a_home_that_others_can_read_is_a_warning(bare):
    bare.home.mkdir(mode=0o755)
    found = findings(bare)
    assert_found(found, "machine.home", "warning", "mode 0755", f"chmod 700 {bare.home}")


@pytest.mark.parametrize(("limit", "state"), [(100, "failed"), (1000, "warning"), (1024, "ok")])
def test_a_low_limit_on_open_files_is_found(bare, limit, state):
    done = subprocess.run(
        ["bash", "-c", f'ulimit -n {limit} && exec "$@"', "-", *COMMAND, "doctor", "--json"],
        env=bare.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    told = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert told["machine.open_files"]["state"] == state
    assert f"may have {limit} files open" in told["machine.open_files"]["said"]
    assert state == "ok" or "ulimit -n" in told["machine.open_files"]["mend"]


@pytest.mark.parametrize(
    ("free", "inodes", "state"),
    [
        (2 << 30, 10**6, FindingState.OK),
        (500 << 20, 10**6, FindingState.WARNING),
        (50 << 20, 10**6, FindingState.FAILED),
        (2 << 30, 10, FindingState.FAILED),
    ],
)
def test_a_full_disk_is_found(tmp_path, monkeypatch, free, inodes, state):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(1 << 40, 0, free))
    there = SimpleNamespace(f_files=10**7, f_favail=inodes)
    monkeypatch.setattr(machine.os, "statvfs", lambda _: there)
    finding = machine.check_disk("machine.disk", tmp_path / "not" / "there", "tests")
    assert finding.state is state
    assert str(tmp_path) in finding.said


@pytest.mark.parametrize("needed", [False, True])
@pytest.mark.parametrize("flux_uri", [None, "local:///run/flux/local"])
def test_a_missing_mpiexec_is_a_warning_where_endpoints_use_it(monkeypatch, needed, flux_uri):
    monkeypatch.delenv("FLUX_URI", raising=False)
    if flux_uri is not None:
        monkeypatch.setenv("FLUX_URI", flux_uri)
    monkeypatch.setattr(machine, "find_mpiexec", lambda: None)
    finding = machine._mpiexec(needed=needed)
    if needed and flux_uri is None:
        assert (finding.state, "[mpi]" in finding.mend) == (FindingState.WARNING, True)
    else:
        assert finding.state is FindingState.SKIPPED


def test_missing_service_packages_are_reported_without_a_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    finding = machine._service_extra()
    assert (finding.state, finding.mend) == (FindingState.SKIPPED, "")
    assert "fastapi not installed (pip install" in finding.said
    assert "[service]" in finding.said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give things away")
def test_a_directory_of_another_user_fails(tmp_path):
    os.chown(tmp_path, 12345, -1)
    finding = machine.check_private("machine.home", tmp_path)
    assert (finding.state, "12345" in finding.said) == (FindingState.FAILED, True)


# The service


def test_incomplete_credentials_fail(bare):
    found = findings(bare, status=1, **{URL: "http://127.0.0.1:1"})
    assert_found(found, "service.credentials", "failed", f"{TOKEN} is not", "token")


def test_a_credentials_file_that_others_can_read_is_a_warning(bare, free_port):
    bare.home.mkdir(mode=0o700)
    file = bare.home / "credentials.json"
    file.write_text(json.dumps({"service_url": f"http://127.0.0.1:{free_port}", "token": "t"}))
    file.chmod(0o644)
    found = findings(bare)
    assert_found(found, "service.credentials", "warning", "mode 0644", f"chmod 600 {file}")


def test_a_damaged_credentials_file_is_named(bare):
    bare.home.mkdir(mode=0o700)
    (bare.home / "credentials.json").write_text("{")
    found = findings(bare, status=1)
    assert_found(found, "service.credentials", "failed", "is not JSON", "")


def test_an_unreachable_service_is_found(bare, free_port):
    found = findings(bare, status=1, **{URL: f"http://127.0.0.1:{free_port}", TOKEN: "t"})
    assert_found(found, "service.url", "failed", "nothing listens there", "service run")
    assert found["broker.reach"]["state"] == "skipped"


def test_an_unknown_host_name_is_found_and_plain_http_is_a_warning(bare):
    found = findings(bare, status=1, **{URL: "http://service.invalid", TOKEN: "t"})
    assert_found(found, "service.url", "failed", "can't be resolved", "check the URL")
    told = bare.run("doctor", status=1, **{URL: "http://service.invalid", TOKEN: "t"}).stdout
    assert "warning  http://service.invalid is not encrypted" in told


class Fake:
    """Something that answers HTTP: what a real service would only say in bad times."""

    def __init__(self, tls=None):
        fake = self
        self.answers = {
            "/v2/version": (200, "1.0.0"),
            "/v2/get_amqp_result_connection_url": (503, {}),
        }
        self.status()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, content = fake.answers.get(self.path, (404, {}))
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"
        self.environment = {URL: self.url, TOKEN: "t"}
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def status(self, **changes):
        queue = {"messages": 0, "consumers": 1}
        names = ("results", "events", "heartbeats")
        queues = {**dict.fromkeys(names, queue), "dead-letters": {"messages": 0, "consumers": 0}}
        answer = {
            "version": __version__,
            "user": "ada",
            "started": 1.0,
            "time": time.time(),
            "database": {
                "kind": "sqlite", "revision": "0002", "expected_revision": "0002",
                "seconds": 0.001, "free_bytes": 1 << 40,
            },
            "broker": {"connected": True, "address": "h:5672/", "server": "RabbitMQ 3.10.8",
                       "since": 1.0},
            "queues": queues,
        }  # fmt: skip
        for path, value in changes.items():
            *above, last = path.split("__")
            place = answer
            for key in above:
                place = place[key]
            place[last] = value
        self.answers["/v3/status"] = (200, answer)

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def fake():
    fake = Fake()
    yield fake
    fake.close()


def test_a_healthy_answer_has_no_findings(bare, fake):
    found = findings(bare, status=0, **fake.environment)
    assert found["service.queues"]["state"] == found["service.broker"]["state"] == "ok"


@pytest.mark.parametrize(
    ("change", "check", "state", "said", "mend"),
    [
        ({"version": "0.0.9"}, "service.release", "warning", "is of release 0.0.9", "newer"),
        ({"database__revision": "0001"}, "service.database", "failed", "0001", "migrate"),
        ({"database__seconds": 3.0}, "service.database", "warning", "took 3.000s", "load"),
        ({"database__free_bytes": 1000}, "service.disk", "failed", "1000 B free", "make room"),
        ({"database__free_bytes": 5 << 27}, "service.disk", "warning", "640 MiB", "make room"),
        ({"broker__connected": False, "broker__reason": "connection refused"},
         "service.broker", "failed", "can't reach its broker at h:5672/: connection refused",
         "start RabbitMQ"),
        ({"broker__alarm": "low on disk"}, "service.broker", "failed",
         "RabbitMQ 3.10.8 at h:5672/ takes no messages: low on disk", "disk_free_limit"),
        ({"queues__results": {"messages": 5, "consumers": 0}}, "service.queues", "failed",
         "nothing consumes the queue results", "restart"),
        ({"queues__results": {"messages": 10**6, "consumers": 1}}, "service.queues", "warning",
         "1000000 results wait", "load"),
        ({"queues__dead-letters": {"messages": 3, "consumers": 0}}, "service.queues", "warning",
         "3 unreadable or unroutable messages", "purge_queue"),
    ],
)  # fmt: skip
def test_the_service_status_is_checked(bare, fake, change, check, state, said, mend):
    fake.status(**change)
    status = 1 if state == "failed" else 0
    assert_found(findings(bare, status=status, **fake.environment), check, state, said, mend)


@pytest.mark.parametrize(("skew", "said"), [(3600, "ahead of ours"), (-3600, "behind ours")])
def test_clocks_that_differ_are_a_warning(bare, fake, skew, said):
    fake.status(time=time.time() + skew)
    found = findings(bare, status=0, **fake.environment)
    assert_found(found, "service.clock", "warning", said, "timedatectl")


@pytest.mark.parametrize(
    ("path", "answer", "check", "said"),
    [
        ("/v2/version", (200, b"<html>"), "service.url", "is no Flux Endpoint service (200)"),
        ("/v2/version", (404, b""), "service.url", "is no Flux Endpoint service (404)"),
        ("/v2/version", (502, b""), "service.url", "answers 502"),
        ("/v3/status", (401, {"message": "no"}), "service.token", "does not accept the token"),
        ("/v3/status", (404, {"code": "NOT_FOUND"}), "service.release", "as new as this command"),
        ("/v3/status", (200, {"version": 1}), "service.release", "makes no sense"),
        ("/v3/status", (503, b""), "service.url", "can't serve"),
    ],
)
def test_different_wrong_answers_have_different_findings(bare, fake, path, answer, check, said):
    fake.answers[path] = answer
    found = findings(bare, status=1, **fake.environment)
    assert_found(found, check, "failed", said, "")
    assert found[check]["mend"]


def test_https_to_a_plain_port_is_found(bare, fake):
    url = fake.url.replace("http:", "https:")
    found = findings(bare, status=1, **{URL: url, TOKEN: "t"})
    assert_found(found, "service.url", "failed", "TLS handshake failed", "http://")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SSL_CERT_FILE", "/nowhere", "can't read the certificates of authorities"),
        ("http_proxy", "gopher9://x", "Unknown scheme for proxy URL"),
    ],
)
def test_a_conflicting_environment_variable_is_named(bare, variable, value, said):
    away = {URL: "http://service.invalid", TOKEN: "t", variable: value}
    found = findings(bare, status=1, **away)
    assert_found(found, "service.url", "failed", said, f"correct or unset {variable}")
    assert "certificates" in (told := bare.err("tasks", status=78, **away)) or "proxy" in told


def test_an_unused_credentials_file_is_checked_too(bare):
    bare.home.mkdir(mode=0o700)
    file = bare.home / "credentials.json"
    file.write_text("{}")
    file.chmod(0o644)
    found = findings(bare, status=1, **{URL: "http://127.0.0.1:1", TOKEN: "t"})
    assert_found(found, "service.credentials", "warning", "mode 0644", f"chmod 600 {file}")


def test_wrong_credentials_are_to_be_corrected(bare):
    bare.home.mkdir(mode=0o700)
    file = bare.home / "credentials.json"
    file.mkdir()
    found = findings(bare, status=1)
    assert_found(found, "service.credentials", "failed", "can't read", f"correct {file}")
    found = findings(bare, status=1, **{URL: "host:80", TOKEN: "t"})
    assert_found(found, "service.credentials", "failed", "must look like", f"correct {URL}")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no 'openssl' on PATH")
def test_an_untrusted_certificate_is_found(bare, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    fake = Fake(tls=(certificate, key))
    try:
        found = findings(bare, status=1, **fake.environment)
    finally:
        fake.close()
    assert_found(found, "service.url", "failed", "certificate can't be verified", "SSL_CERT_FILE")


@pytest.mark.rabbitmq
@pytest.mark.stack
def test_a_wrong_token_is_found_by_the_real_service(stack):
    wrong = {URL: stack.credentials["service_url"], TOKEN: "wrong"}
    found = findings(stack, status=1, **wrong)
    assert_found(found, "service.token", "failed", "does not accept the token", "token create")


# RabbitMQ


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://a:b@127.0.0.1:{free_port}/", "connection refused: nothing listens there"),
        ("amqp://a:b@broker.invalid:5672/", "can't be resolved"),
        ("nonsense", "not an AMQP URL"),
    ],
)
def test_an_unreachable_broker_is_found(bare, fake, free_port, url, said):
    url = url.format(free_port=free_port)
    fake.answers["/v2/get_amqp_result_connection_url"] = (200, {"connection_url": url})
    found = findings(bare, status=1, **fake.environment)
    assert_found(found, "broker.reach", "failed", said, "--client-amqp-url")


@pytest.mark.rabbitmq
def test_a_broker_that_refuses_the_password_is_found(bare, fake, amqp_url):
    wrong = f"amqp://nobody:wrong@{amqp_url.rpartition('@')[2]}"
    fake.answers["/v2/get_amqp_result_connection_url"] = (200, {"connection_url": wrong})
    found = findings(bare, status=1, **fake.environment)
    said = "refused the user name or password"
    assert_found(found, "broker.reach", "failed", said, "--client-amqp-url")


def test_a_broker_of_another_kind_or_age_is_a_warning():
    assert broker._version("RabbitMQ 4.1.0").state is FindingState.OK
    assert broker._version("RabbitMQ 3.10.8").state is FindingState.OK
    assert broker._version("RabbitMQ 3.7.28").state is FindingState.WARNING
    assert broker._version("LavinMQ 2.0").state is FindingState.WARNING
    assert broker._version("").state is FindingState.WARNING


def test_a_broker_url_with_the_loopback_address_of_the_service_is_found():
    local, remote = "amqp://u:p@127.0.0.1:5672/", "amqp://u:p@mq.example.org:5672/"
    (finding,) = broker._address(local, "127.0.0.1:5672/", "https://service.example.org")
    assert (finding.state, "--endpoint-amqp-url" in finding.mend) == (FindingState.FAILED, True)
    (finding,) = broker._address(remote, "mq.example.org:5672/", "https://service.example.org")
    assert (finding.state, "amqps://" in finding.mend) == (FindingState.WARNING, True)
    assert list(broker._address(local, "127.0.0.1:5672/", "http://127.0.0.1:8080")) == []


def test_a_missing_flux_is_reported_without_a_warning(monkeypatch):
    def find():
        raise ConfigurationError(NOT_INSTALLED)

    monkeypatch.setattr(broker, "find_rabbitmq", find)
    finding = broker._installed()
    assert (finding.state, finding.mend) == (FindingState.SKIPPED, "")


# Flux


@pytest.fixture
def fake_flux(bare, tmp_path):
    """Puts a command `flux` before the real one."""

    def put(script):
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        (directory / "flux").write_text(f"#!/bin/sh\n{script}\n")
        (directory / "flux").chmod(0o755)
        bare.environment["PATH"] = f"{directory}{os.pathsep}{bare.environment['PATH']}"
        return bare

    return put


def test_without_flux_the_embedded_executor_is_used(bare, tmp_path):
    found = findings(bare, PATH=str(tmp_path))
    assert_found(found, "flux.command", "skipped", "there is no 'flux' on PATH")


def test_a_broken_flux_is_found(fake_flux):
    found = findings(fake_flux("exit 1"), status=1)
    assert_found(found, "flux.command", "failed", "does not report its version", "flux version")


NO_BINDINGS = '[ "$1" = version ] && echo "commands: 0.88.0" || echo /nowhere'


def test_missing_flux_bindings_are_found_if_there_are_endpoints(fake_flux):
    terminal = fake_flux(NO_BINDINGS)
    configure(terminal, "lab")
    found = findings(terminal, status=1)
    said = "not where `flux config builtin python_path` says"
    assert_found(found, "flux.bindings", "failed", said, "[flux]")


def test_a_client_needs_no_flux_bindings(fake_flux):
    found = findings(fake_flux(NO_BINDINGS))
    said = "only an endpoint here would need them"
    assert_found(found, "flux.bindings", "skipped", said)


def test_another_package_named_flux_is_reported_with_its_path(fake_flux, tmp_path):
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "__init__.py").touch()
    terminal = fake_flux(NO_BINDINGS)
    configure(terminal, "lab")
    found = findings(terminal, status=1, PYTHONPATH=str(tmp_path))
    said = f"Python imports {tmp_path / 'flux' / '__init__.py'} instead"
    assert_found(found, "flux.bindings", "failed", said, "PYTHONPATH")


def test_bindings_that_crash_are_found(fake_flux, tmp_path):
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "__init__.py").write_text("import os; os.abort()")
    terminal = fake_flux(f'[ "$1" = version ] && echo "commands: 0.88.0" || echo {tmp_path}')
    configure(terminal, "lab")
    found = findings(terminal, status=1)
    assert_found(found, "flux.bindings", "failed", "ended with status -6", "[flux]")


@pytest.mark.flux
class TestFlux:
    def test_being_outside_of_a_flux_instance_is_reported_without_a_warning(
        self, with_flux, flux_module
    ):
        found = findings(with_flux)
        assert_found(found, "flux.instance", "skipped", "not inside a Flux instance")

    def test_an_instance_that_has_ended_is_found(self, with_flux, flux_module):
        found = findings(with_flux, status=1, FLUX_URI="local:///nowhere/local-0")
        said = "can't reach the Flux instance at local:///nowhere/local-0"
        assert_found(found, "flux.instance", "failed", said, "unset FLUX_URI")

    def test_a_command_of_another_release_is_a_warning(self, with_flux, fake_flux, flux_uri):
        real = shutil.which("flux")
        terminal = fake_flux(f'[ "$1" = version ] && echo "commands: 0.1.0" || exec {real} "$@"')
        found = findings(terminal, FLUX_URI=flux_uri)
        assert_found(found, "flux.versions", "warning", "the command is 0.1.0", "first on PATH")

    def test_flux_python_of_another_release_is_a_warning(
        self, with_flux, flux_module, flux_uri, tmp_path
    ):
        info = tmp_path / "flux_python-0.75.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: flux-python\nVersion: 0.75.0\n"
        )
        bindings = Path(flux_module.__path__[0])
        for package in (bindings, bindings.with_name("_flux")):
            (tmp_path / package.name).symlink_to(package)
        found = findings(with_flux, PYTHONPATH=str(tmp_path), FLUX_URI=flux_uri)
        said = "those of flux-python 0.75.0, the running Flux is"
        assert_found(found, "flux.versions", "warning", said, "pip install 'flux-python==")

    def test_an_endpoint_that_wants_flux_where_there_is_none_is_found(self, bare):
        configure(bare, "lab", engine={"executor": "flux"})
        found = findings(bare, "lab", status=1)
        said = "asks for Flux, and there is no instance here"
        assert_found(found, "endpoint.executor", "failed", said, "engine.executor: auto")


# Endpoints


@pytest.fixture
def lab(bare):
    configure(bare, "lab")
    bare.lab = bare.home / "endpoints" / "lab"
    return bare


def test_an_endpoint_whose_check_fails_is_reported_and_the_next_is_checked(lab):
    (lab.lab / "agent.lock").mkdir()
    configure(lab, "next")
    told = json.loads(lab.run("doctor", "--json", status=1).stdout)["findings"]
    (broken,) = [each for each in told if each["check"] == "endpoint.check"]
    assert (broken["subject"], "agent.lock" in broken["said"]) == ("lab", True)
    assert ("endpoint.config", "next") in [(each["check"], each["subject"]) for each in told]


def test_an_unreadable_journal_is_not_to_be_deleted(lab):
    (lab.lab / "journal.db").mkdir()
    found = findings(lab, "lab", status=1)
    assert_found(
        found, "endpoint.journal", "failed", "can't read the journal", "whether its disk is full"
    )


def test_an_endpoint_that_was_never_started_is_not_a_finding(lab):
    found = findings(lab, "lab")
    assert_found(found, "endpoint.agent", "skipped", "starts it: flux-endpoint start lab")
    assert found["endpoint.config"]["state"] == found["endpoint.directory"]["state"] == "ok"


def test_a_directory_that_others_can_read_is_a_warning(lab):
    lab.lab.chmod(0o750)
    found = findings(lab, "lab")
    assert_found(found, "endpoint.directory", "warning", "mode 0750", f"chmod 700 {lab.lab}")


def test_a_wrong_configuration_is_found_with_its_key(lab):
    (lab.lab / "config.yaml").write_text("max_in_fligth: 3\n")
    found = findings(lab, "lab", status=1)
    said = "max_in_fligth: unknown key; did you mean 'max_in_flight'?"
    assert_found(found, "endpoint.config", "failed", said, "edit that file")


def test_a_damaged_identity_is_found(lab, fake):
    (lab.lab / "endpoint.json").write_text("{}")
    found = findings(lab, "lab", status=1, **fake.environment)
    assert_found(found, "endpoint.identity", "failed", "is damaged", "restore or delete it")


def test_a_damaged_journal_is_found(lab):
    (lab.lab / "journal.db").write_bytes(b"garbage" * 1000)
    found = findings(lab, "lab", status=1)
    assert_found(found, "endpoint.journal", "failed", "is damaged", "keeps what can be read")


def test_a_working_directory_that_can_not_be_written_is_found(lab, monkeypatch):
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(lab.home))
    monkeypatch.setattr(endpoints.os, "access", lambda *_: False)  # root may write everywhere
    checks = endpoints.EndpointChecks(EndpointDirectory("lab"), None, flux_reachable=False)
    found = {each.check: each for each in checks.run()}
    assert found["endpoint.working_dir"].state is FindingState.FAILED
    assert "engine.working_dir" in found["endpoint.working_dir"].mend


def test_an_agent_that_waits_for_the_service_is_found_with_the_reason(lab, free_port):
    away = {URL: f"http://127.0.0.1:{free_port}", TOKEN: "t"}
    lab.run("start", "lab", "--detach", "--timeout", "0.5", status=None, **away)
    try:
        until(lambda: "can't reach" in findings(lab, "lab", **away)["endpoint.agent"]["said"])
        found = findings(lab, "lab", status=1, **away)
        assert_found(found, "endpoint.agent", "failed", "is disconnected for", "logs lab")
    finally:
        lab.run("stop", "lab")


@pytest.mark.rabbitmq
@pytest.mark.stack
class TestAtTheService:
    def test_an_endpoint_unknown_to_the_service_is_found(self, stack):
        configure(stack, "stranger")
        identity = stack.home / "endpoints" / "stranger" / "endpoint.json"
        identity.write_text('{"endpoint_id": "8f6cf0b7-36cb-4bb5-a0ee-b2f9a9a9a6d4"}')
        found = findings(stack, "stranger", status=1)
        assert_found(found, "endpoint.service", "failed", "does not know", f"delete {identity}")

    def test_an_endpoint_of_another_service_is_a_warning(self, stack):
        configure(stack, "moved")
        identity = stack.home / "endpoints" / "moved" / "endpoint.json"
        known = {"endpoint_id": stack.endpoint_id(), "service_url": "https://old.example.org"}
        identity.write_text(json.dumps(known))
        found = findings(stack, "moved")
        said = "registered at https://old.example.org"
        assert_found(found, "endpoint.identity", "warning", said, "credentials of https://old")

    def test_an_agent_that_hangs_is_found(self, stack):
        configure(stack, "hung", heartbeat_period=1)  # soon missed
        stack.start("hung")
        (entry,) = stack.json("status", "hung", status=None)["endpoints"]
        pid = entry["local"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            stack.await_status("hung", "offline")
            found = findings(stack, "hung", status=1)
            said = "it runs here, but the service calls it offline"
            assert_found(found, "endpoint.service", "failed", said, "logs hung")
        finally:
            os.kill(pid, signal.SIGCONT)
            stack.run("stop", "hung")

    def test_the_journal_is_checked_while_the_agent_runs(self, stack):
        found = findings(stack, "local")
        assert "its journal is sound" in found["endpoint.journal"]["said"]
