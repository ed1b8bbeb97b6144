"""The commands: real processes, a real service, the real engine on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from endpoint_world import PATIENCE
from service_process import COMMAND, ServiceProcess, run

from flux_endpoint import Client, ComputeFuture, Executor, ShellFunction
from flux_endpoint.cli.main import main
from flux_endpoint.endpoint import lifecycle
from flux_endpoint.endpoint.connectivity import OWNER_TIMEOUT
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.endpoint.lifecycle import list_endpoints
from flux_endpoint.errors import ConfigurationError, ServiceError, TaskExecutionFailed
from flux_endpoint.processes import is_readable
from flux_endpoint.protocol.states import TaskState
from other_threads import signal_another_thread
from waiting import until


@pytest.fixture
def logged_in(home: Path, service_process: ServiceProcess) -> None:
    log_in(home, service_process.url, service_process.credentials.token)


def log_in(home: Path, url: str, token: str) -> None:
    path = home / "credentials.json"
    path.write_text(json.dumps({"service_url": url, "token": token}))
    path.chmod(0o600)


def listed() -> dict[str, Any]:
    (entry,) = json.loads(run("list", "--json"))
    return entry


def test_configure_makes_a_private_directory_and_never_overwrites(home: Path) -> None:
    assert "config.yaml" in run("configure", "lab", "--display-name", "The Lab")
    directory = home / "endpoints" / "lab"
    config = directory / "config.yaml"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert config.stat().st_mode & 0o777 == 0o600
    config.write_text("display_name: edited\n")
    assert f"exists already: edit {config}" in run("configure", "lab", fails=True)
    assert config.read_text() == "display_name: edited\n"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-x", "a b", "x" * 129])
def test_names_that_can_not_be_directories_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be an endpoint's name"):
        EndpointDirectory(name)


@pytest.mark.parametrize("command", ["start", "stop"])
def test_an_unknown_endpoint_is_refused_with_the_existing_ones(home: Path, command: str) -> None:
    assert "there are none yet" in run(command, "lab", fails=True)
    run("configure", "one")
    run("configure", "two")
    said = run(command, "lab", fails=True)
    assert "no endpoint is called 'lab'; there are: one, two." in said
    assert "flux-endpoint configure lab" in said


def test_list_without_endpoints_says_how_to_make_one(home: Path) -> None:
    assert "flux-endpoint configure NAME" in run("list")
    assert json.loads(run("list", "--json")) == []


def test_without_credentials_a_start_says_what_to_do(lab: EndpointDirectory) -> None:
    assert "no credentials: set FLUX_ENDPOINT_SERVICE_URL" in run("start", "lab", fails=True)
    assert "no credentials" in run("start", "lab", "--detach", fails=True)


def test_a_bad_configuration_is_reported_at_the_terminal_even_with_detach(
    lab: EndpointDirectory,
) -> None:
    lab.config.write_text("max_in_fligth: 3\n")
    for options in ([], ["--detach"]):
        said = run("start", "lab", *options, fails=True)
        assert f"{lab.config}: max_in_fligth: unknown key; did you mean 'max_in_flight'?" in said


def without_room(kilobytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command that can write pipes, but hardly anything to any disk."""
    limited = f'ulimit -f {kilobytes} && exec "$@"'
    command = ["bash", "-c", limited, "-", *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_full_disk_leaves_no_partial_endpoint(home: Path) -> None:
    done = without_room(1, "configure", "lab")
    assert done.returncode != 0
    assert f"can't write {home / 'endpoints' / 'lab' / 'config.yaml'}: " in done.stderr
    run("configure", "lab")


def test_a_full_disk_is_reported_by_a_start_in_the_background(
    lab: EndpointDirectory, home: Path
) -> None:
    log_in(home, "http://127.0.0.1:9", "token")
    done = without_room(0, "start", "lab", "--detach")
    assert done.returncode != 0
    assert f"Error: {lab.path}: " in done.stderr
    assert f"the log is {lab.log}" in done.stderr
    assert lab.holder() is None


def test_a_stopped_endpoint_is_not_stopped_again(lab: EndpointDirectory) -> None:
    assert run("stop", "lab") == "Endpoint lab was not running.\n"


@pytest.mark.rabbitmq
def test_an_endpoint_starts_in_the_background_is_listed_and_stops(
    lab: EndpointDirectory, logged_in: None
) -> None:
    said = run("start", "lab", "--detach")
    entry = listed()
    assert entry["endpoint_id"] in said
    assert (entry["status"], entry["executor"]) == ("running", "local")
    assert f"lab  {entry['endpoint_id']} running local" in run("list")
    again = run("start", "lab", fails=True)
    assert f"running already (pid {entry['pid']} on" in again
    assert "running already" in run("start", "lab", "--detach", fails=True)
    assert run("stop", "lab") == "Endpoint lab stopped.\n"
    assert listed() | {"status": "stopped", "pid": None} == listed()
    assert listed()["endpoint_id"] == entry["endpoint_id"]


@pytest.mark.rabbitmq
def test_the_log_names_the_executor_before_anything_runs_on_it(
    lab: EndpointDirectory, logged_in: None
) -> None:
    run("start", "lab", "--detach")
    run("stop", "lab")
    log = lab.log.read_text()
    assert 0 < log.index("connected to the broker") < log.index("embedded executor")
    assert log.index("embedded executor") < log.index("endpoint starts")


@pytest.mark.rabbitmq
def test_a_killed_agent_does_not_block_the_next(lab: EndpointDirectory, logged_in: None) -> None:
    run("start", "lab", "--detach")
    holder = lab.holder()
    assert holder is not None
    pidfd = os.pidfd_open(holder.pid)
    os.kill(holder.pid, signal.SIGKILL)
    wait_for_end(pidfd)
    assert listed()["status"] == "stopped"
    run("start", "lab", "--detach")
    assert listed()["status"] == "running"


@pytest.mark.rabbitmq
def test_a_bad_token_ends_the_start_with_the_reason(
    lab: EndpointDirectory, home: Path, service_process: ServiceProcess
) -> None:
    log_in(home, service_process.url, "wrong")
    said = run("start", "lab", "--detach", fails=True)
    assert "does not accept the token from" in said
    assert str(home / "credentials.json") in said
    assert listed()["status"] == "stopped"


def test_a_start_reports_an_unreachable_service_and_the_agent_keeps_trying(
    lab: EndpointDirectory,
    home: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_in(home, f"http://127.0.0.1:{free_port}", "token")
    monkeypatch.setattr(lifecycle, "START_TIMEOUT", 3600.0)
    monkeypatch.setattr(lifecycle, "AWAY_TIMEOUT", 0.1)
    with pytest.raises(SystemExit) as end:
        main(["start", "lab", "--detach"])
    said = capsys.readouterr().err
    assert end.value.code == 69
    assert said.startswith("Waiting: can't reach the service")
    assert "but is not ready: can't reach the service" in said
    assert "It goes on trying, and takes tasks as soon as it can" in said
    assert "flux-endpoint stop lab ends it" in said
    assert f"http://127.0.0.1:{free_port}" in said
    entry = listed()
    assert entry["status"] == "disconnected"
    assert "can't reach the service" in entry["reason"]
    assert lab.log.read_text().count("can't reach the service") == 1
    assert run("stop", "lab") == "Endpoint lab stopped.\n"


def test_a_start_whose_agent_reports_nothing_in_time_says_so(
    free_port: int, lab: EndpointDirectory, home: Path
) -> None:
    with socket.create_server(("127.0.0.1", free_port)):  # no answer: the agent can say nothing yet
        log_in(home, f"http://127.0.0.1:{free_port}", "token")
        said = run("start", "lab", "--detach", "--timeout", "0", fails=True)
    assert "is not ready, and does not say why" in said
    assert f"see {lab.log}" in said
    until(lambda: lab.holder() is not None)  # it has not got so far yet; then it can be stopped


@pytest.mark.rabbitmq
def test_an_agent_connects_to_a_service_that_starts_later(
    lab: EndpointDirectory, home: Path, amqp_vhost: str, free_port: int, tmp_path: Path
) -> None:
    (tmp_path / "late").mkdir()
    late = ServiceProcess(tmp_path / "late", amqp_vhost, free_port)
    log_in(home, late.url, late.credentials.token)
    start = subprocess.Popen(
        # However long the service takes: the agent asks ever less often, the longer it is away.
        [*COMMAND, "start", "lab", "--detach", "--timeout", "3600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert start.stderr is not None
    assert late.url in start.stderr.readline()  # it waits, and says for what
    late.start()
    try:
        said, _ = start.communicate(timeout=2 * PATIENCE)
        assert start.returncode == 0
        assert "Endpoint lab runs" in said
        assert "the service is back" in lab.log.read_text()
    finally:
        run("stop", "lab")
        late.stop()


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("signum", "code", "send"),
    [
        (signal.SIGINT, 130, os.kill),
        (signal.SIGTERM, 0, os.kill),
        (signal.SIGTERM, 0, signal_another_thread),
        (signal.SIGALRM, 0, os.kill),
    ],
)
def test_in_the_foreground_a_signal_ends_the_agent_gracefully(
    lab: EndpointDirectory,
    logged_in: None,
    signum: int,
    code: int,
    send: Callable[[int, int], None],
) -> None:
    process = subprocess.Popen([*COMMAND, "start", "lab"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    while "connected to the broker" not in next(lines):
        pass
    send(process.pid, signum)
    rest = process.stderr.read()
    assert process.wait(PATIENCE) == code
    assert "endpoint stopped" in rest
    assert lab.holder() is None
    assert "Traceback" not in rest


@pytest.mark.rabbitmq
def test_an_agent_that_ignores_sigterm_is_killed_after_the_timeout(
    lab: EndpointDirectory, logged_in: None
) -> None:
    run("start", "lab", "--detach")
    holder = lab.holder()
    assert holder is not None
    os.kill(holder.pid, signal.SIGSTOP)
    assert "was killed" in run("stop", "lab", "--timeout", "0.2")
    assert listed()["status"] == "stopped"


def test_an_agent_on_another_host_is_not_stopped(
    lab: EndpointDirectory, logged_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("start", "lab", "--detach")
    held = json.loads(lab.lock.read_text())
    lab.lock.write_text(json.dumps({**held, "hostname": "elsewhere", "machine": "another/1"}))
    assert "runs on elsewhere" in run("stop", "lab", fails=True)
    assert list_endpoints()[0].hostname == "elsewhere"
    lab.lock.write_text(json.dumps(held))


def wait_for_end(pidfd: int) -> None:

    assert is_readable(pidfd, PATIENCE)
    os.close(pidfd)


@pytest.mark.rabbitmq
def test_a_copied_endpoint_does_not_start_and_says_who_runs_it(
    lab: EndpointDirectory, home: Path, logged_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("start", "lab", "--detach")
    first = listed()
    copy = home.with_name("copy")
    shutil.copytree(home, copy)
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(copy))
    begun = time.monotonic()
    said = run("start", "lab", "--detach", fails=True)
    assert "Waiting: another agent has this endpoint's task queue" in said
    assert f"another agent runs endpoint {first['endpoint_id']}" in said
    assert f"the last report is from pid {first['pid']} on {first['hostname']}" in said
    assert f"delete {copy}/endpoints/lab/endpoint.json" in said
    assert time.monotonic() - begun < OWNER_TIMEOUT + PATIENCE
    assert listed()["status"] == "stopped"
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(home))
    assert listed() == first


@pytest.mark.rabbitmq
@pytest.mark.parametrize("loss", ["moved away", "emptied", "damaged"])
def test_tasks_of_a_lost_journal_fail_and_queued_tasks_run(
    lab: EndpointDirectory, logged_in: None, service_process: ServiceProcess, loss: str
) -> None:
    started = lab.path / "started"
    lab.config.write_text("engine: {max_workers: 1}\nmax_in_flight: 2\nprefetch: 2\n")
    run("start", "lab", "--detach")
    endpoint_id = listed()["endpoint_id"]
    client = Client(service_process.url, service_process.credentials.token)
    with Executor(endpoint_id, client=client) as executor:
        # Once, it would run for ever; nobody who comes later does.
        command = ShellFunction(f"mkdir {started} 2>/dev/null && sleep 3600; echo {{n}}")
        futures = [executor.submit(command, n=n) for n in range(5)]
        until(lambda: started.exists() and len(in_journal(lab)) >= 2)
        # A task counts as taken once the service has recorded that it is published.
        until(lambda: all(is_published(each, client) for each in futures))
        holder = lab.holder()
        assert holder is not None
        pidfd = os.pidfd_open(holder.pid)
        os.kill(holder.pid, signal.SIGKILL)
        wait_for_end(pidfd)
        # One that was recorded and not acknowledged yet comes again, and is not lost.
        taken = until(lambda: taken_by(endpoint_id, client))
        lost = [each for each in in_journal(lab) if each in taken]
        assert 0 < len(lost) < len(futures)
        if loss == "moved away":
            for each in lab.path.glob("journal.db*"):
                each.rename(each.with_name(f"old-{each.name}"))
        elif loss == "emptied":
            for each in lab.path.glob("journal.db-*"):
                each.unlink()  # SQLite may restore the whole from its log
            os.truncate(lab.journal, 0)
        else:
            with closing(sqlite3.connect(lab.journal, isolation_level=None)) as database:
                database.execute("UPDATE tasks SET buffer = x'00' WHERE rowid = 1")
            lost = lost[:1]
        said = run("doctor", "lab", fails=None)
        assert {"moved away": "it has no journal", "emptied": "is empty"}.get(
            loss, "is damaged: row 1 of tasks"
        ) in said
        run("start", "lab", "--detach")
        for n, each in enumerate(futures):
            if each.task_id in lost:
                with pytest.raises(TaskExecutionFailed, match="JournalLost: the endpoint took"):
                    each.result(PATIENCE)
            else:
                assert each.result(PATIENCE).stdout == f"{n}\n"
    assert f"they end with an error tasks={len(lost)}" in lab.log.read_text()
    run("stop", "lab")
    log = lab.log.read_text()
    run("start", "lab", "--detach")
    run("stop", "lab")
    assert "JournalLost" not in lab.log.read_text().removeprefix(log)
    assert "new journal" not in lab.log.read_text().removeprefix(log)


def is_published(future: ComputeFuture, client: Client) -> bool:
    """Whether the service has recorded that a task is in its endpoint's queue."""
    if future.task_id is None:
        return False
    answer = client.api._rest.request("GET", f"/v2/tasks/{future.task_id}")
    return bool(answer["status"] != TaskState.RECEIVED)


def taken_by(endpoint_id: str, client: Client) -> list[str]:
    """Which tasks an endpoint that has ended took; none before the broker knows of its end."""
    with suppress(ServiceError):
        answer = client.api._rest.request("GET", f"/v3/endpoints/{endpoint_id}/taken")
        return list(answer["tasks"])
    return []


def in_journal(endpoint: EndpointDirectory) -> list[str]:
    """Which tasks an endpoint has accepted that have not ended, oldest first."""
    with closing(sqlite3.connect(f"file:{endpoint.journal}?mode=ro", uri=True)) as database:
        return [task_id for (task_id,) in database.execute("SELECT task_id FROM tasks")]
