"""SIGKILL of the agent, at several moments: nothing that it accepted is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from endpoint_world import PATIENCE, ObedientEngine, Service, running

from flux_endpoint.endpoint.journal import Journal
from waiting import until

pytestmark = pytest.mark.rabbitmq

PROGRAM = Path(__file__).with_name("agent_program.py")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(service: Service, tmp_path: Path) -> Iterator[Start]:
    """Starts an agent of the service's endpoint, always in the same directory."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> subprocess.Popen[str]:
        url = service.queues.task_queue_info.connection_url
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), url, service.endpoint_id, str(tmp_path), *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def await_line(process: subprocess.Popen[str], wanted: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == wanted:
            return
    raise AssertionError(f"it ended before it said {wanted!r}")


def test_tasks_that_were_running_run_again(service: Service, start: Start, tmp_path: Path) -> None:
    process = start("hold")
    task_ids = service.send_many(60)
    await_line(process, "submitted 60")
    process.kill()
    process.wait()
    service.purge_tasks()  # so that only the journal can bring them back
    engine = ObedientEngine()
    with running(service, engine, tmp_path):
        service.await_results(task_ids)
    assert sorted(engine.all_submitted) == sorted(task_ids)


def test_every_task_gets_its_result_after_repeated_kills_of_the_agent(
    service: Service, start: Start
) -> None:
    task_ids: list[str] = []
    for count in (1, 37, 120, 90):
        task_ids += service.send_many(150)  # an agent that is not killed at once ends all it finds
        process = start()
        await_line(process, f"submitted {count}")
        process.kill()
        process.wait()
    start()
    service.await_results(task_ids)


def test_a_result_that_was_not_published_is_published_by_the_next_agent(
    endpoints_vhost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flux_endpoint.endpoint.agent.CONFIRM_GRACE", PATIENCE)
    service = Service(endpoints_vhost, takes_results=False)
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), endpoints_vhost, service.endpoint_id, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        task_id = service.send()
        await_line(process, "submitted 1")  # from here on there is a journal to look into
        until(lambda: unpublished(tmp_path) == [task_id])
    finally:
        process.kill()
        process.communicate()
    service.take_results()
    engine = ObedientEngine()
    with running(service, engine, tmp_path):
        service.await_results([task_id])
    assert engine.all_submitted == []
    assert unpublished(tmp_path) == []
    service.connection.close()


def unpublished(directory: Path) -> list[str]:
    journal = Journal(directory / "journal.db")
    try:
        return journal.unpublished()
    finally:
        journal.close()
