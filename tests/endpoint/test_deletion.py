"""`flux-endpoint delete` and `restart`: nothing while it runs, and nothing of others."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from service_process import ServiceProcess, run

from flux_endpoint import Client
from flux_endpoint.cli.main import main
from flux_endpoint.endpoint.deletion import delete, plan_deletion
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.endpoint.lifecycle import configure_endpoint
from flux_endpoint.engine.base import EngineTask
from flux_endpoint.errors import ServiceError

TASK = str(uuid.uuid4())
Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; return its exit code and all that it prints."""

    def run_here(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run_here


@pytest.fixture
def used(home: Path) -> EndpointDirectory:
    """An endpoint that has run: with a journal, logs, and files of tasks and of people."""
    del home
    configure_endpoint("used")
    directory = EndpointDirectory("used")
    journal = Journal(directory.journal)
    with journal.batch():
        journal.accept([EngineTask(TASK, str(uuid.uuid4()), "")])
    journal.close()
    directory.identity.write_text(json.dumps({"endpoint_id": str(uuid.uuid4())}))
    for name in ("endpoint.log", "endpoint.log.1", "audit.jsonl", "notes.txt"):
        (directory.path / name).write_text("x" * 1000)
    (directory.path / "engine" / "jobs").mkdir(parents=True)
    working = directory.path / "tasks_working_dir"
    (working / TASK).mkdir(parents=True)
    (working / TASK / "data").write_text("of the task's sandbox")
    (working / f"{TASK}.stdout").write_text("x")
    (working / "result.csv").write_text("1,2")
    return directory


def test_files_of_people_stay(used: EndpointDirectory, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "data").write_text("1")
    (used.path / "tasks_working_dir" / "link").symlink_to(others)
    (used.path / "engine" / "link").symlink_to(others)
    plan = plan_deletion(used)
    assert (plan.open_tasks, plan.unsent) == (1, 0)
    assert [each.name for each in plan.of_tasks] == [TASK, f"{TASK}.stdout"]
    assert [each.name for each in plan.kept] == ["notes.txt", "link", "result.csv"]
    assert plan.size > 3000
    delete(used)
    left = sorted(str(each.relative_to(used.path)) for each in used.path.rglob("*"))
    assert left == [
        "notes.txt",
        "tasks_working_dir",
        "tasks_working_dir/link",
        "tasks_working_dir/result.csv",
    ]
    assert (others / "data").exists()
    configure_endpoint("used")  # the name is free


@pytest.mark.parametrize("place", ["elsewhere", "link", "."])
def test_a_working_directory_elsewhere_belongs_to_others(
    used: EndpointDirectory, tmp_path: Path, place: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / TASK).mkdir(parents=True)
    (used.path / TASK).mkdir()
    where = elsewhere if place == "elsewhere" else place
    if place == "link":
        (used.path / "link").symlink_to(elsewhere)
    used.config.write_text(f"engine:\n  working_dir: {where}\n")
    done = delete(used)
    assert (elsewhere / TASK).exists()
    assert (used.path / TASK).exists() == (place != ".")
    assert (elsewhere in done.kept) == (place == "elsewhere")
    assert (used.path / "link" in done.kept) == (place == "link")
    assert (used.path / "tasks_working_dir" / "result.csv").exists()


def test_an_unreachable_service_is_named_with_what_is_left_to_do(
    used: EndpointDirectory, home: Path, command: Command
) -> None:
    credentials = home / "credentials.json"
    credentials.write_text(json.dumps({"service_url": "http://127.0.0.1:9", "token": "t"}))
    credentials.chmod(0o600)
    code, said = command("delete", "used")
    assert (code, used.config.exists()) == (64, True)
    assert "1 unfinished tasks, and 0 results that the service does not have yet" in said
    assert "nothing was removed: add --yes" in said
    endpoint_id = json.loads(used.identity.read_text())["endpoint_id"]
    code, said = command("delete", "used", "--yes")
    assert (code, used.config.exists()) == (1, False)
    assert "was deleted here alone: the service could not be reached" in said
    assert f"flux-endpoint delete {endpoint_id}" in said
    code, said = command("delete", endpoint_id, "--yes")
    assert code == 69


def test_a_service_where_it_is_not_registered_is_not_asked(
    used: EndpointDirectory, home: Path, command: Command
) -> None:
    about = {"endpoint_id": str(uuid.uuid4()), "service_url": "https://other.example.org"}
    used.identity.write_text(json.dumps(about))
    credentials = home / "credentials.json"
    credentials.write_text(json.dumps({"service_url": "http://127.0.0.1:9", "token": "t"}))
    credentials.chmod(0o600)
    code, said = command("delete", about["endpoint_id"], "--yes")
    assert code == 0
    assert "the endpoint is registered at https://other.example.org" in said
    assert f"its registration at the service stays: {about['endpoint_id']}" in said
    assert "Kept 2 paths" in said


def test_a_damaged_journal_keeps_nothing_from_being_deleted(used: EndpointDirectory) -> None:
    with closing(sqlite3.connect(used.journal)) as database:
        database.execute("DROP TABLE results")
    plan = plan_deletion(used)
    assert "can't read the journal" in plan.problems[0]
    delete(used)
    assert not used.journal.exists()


@pytest.mark.parametrize("word", ["delete", "restart"])
def test_there_is_no_such_endpoint(home: Path, command: Command, word: str) -> None:
    code, said = command(word, "lab")
    assert code == 66
    assert "no endpoint is called 'lab'" in said


@pytest.mark.rabbitmq
def test_a_running_endpoint_is_restarted_and_deleted_here_and_at_the_service(
    lab: EndpointDirectory, home: Path, service_process: ServiceProcess, command: Command
) -> None:
    credentials = home / "credentials.json"
    about = {"service_url": service_process.url, "token": service_process.credentials.token}
    credentials.write_text(json.dumps(about))
    credentials.chmod(0o600)
    lab.config.write_text("shutdown_grace: 0\nengine:\n  executor: local\n")
    run("start", "lab", "--detach", FLUX_URI="local:///no/such/instance")
    first = lab.holder()
    assert first is not None
    endpoint_id = json.loads(lab.identity.read_text())["endpoint_id"]

    config = lab.config.read_text()
    lab.config.write_text("max_in_fligth: 3\n")
    code, said = command("restart", "lab")
    assert (code, lab.holder()) == (78, first)
    assert "did you mean 'max_in_flight'?" in said
    lab.config.write_text(config)
    code, said = command("restart", "lab")
    assert code == 0, said
    second = lab.holder()
    assert second is not None
    assert second.pid != first.pid
    assert f"(pid {second.pid}, executor: local)" in said
    environment = Path(f"/proc/{second.pid}/environ").read_bytes().split(b"\0")
    assert b"FLUX_URI=local:///no/such/instance" in environment
    assert json.loads(lab.identity.read_text())["endpoint_id"] == endpoint_id

    client = Client(service_process.url, service_process.credentials.token)
    code, said = command("delete", "lab", "--yes")
    assert (code, lab.holder()) == (1, second)
    assert "is running" in said
    assert "add --stop" in said
    code, said = command("delete", "lab", "--yes", "--stop")
    assert code == 0, said
    assert f"endpoint {endpoint_id} at {service_process.url}: its unfinished tasks fail" in said
    assert not lab.path.exists()
    with pytest.raises(ServiceError, match="unknown"):
        client.get_endpoint_status(endpoint_id)
    run("configure", "lab")  # for the fixture, which stops it
