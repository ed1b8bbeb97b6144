"""Ending tasks on request, the events of their jobs, and following other jobs."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path

import pytest
from endpoint_world import PATIENCE, ObedientEngine, Service, running

from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.engine.base import EngineEvent, EngineResult
from flux_endpoint.engine.results import failure
from flux_endpoint.protocol.messages import EndpointStop, Task, pack
from flux_endpoint.protocol.states import ErrorCode
from waiting import until

pytestmark = pytest.mark.rabbitmq


def test_a_request_to_end_a_task_reaches_the_engine_once_it_runs(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, shutdown_grace=0):
        task_id = service.send()
        held_engine.next_submitted()
        service.kill(task_id)
        assert held_engine.cancelled.get(timeout=PATIENCE) == (task_id, None)
        service.kill(task_id, 10)
        assert held_engine.cancelled.get(timeout=PATIENCE) == (task_id, 10)


def test_a_task_that_is_ended_before_its_delivery_never_starts(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    task_id = str(uuid.uuid4())
    with running(service, engine, tmp_path):
        service.kill(task_id)
        result = service.next_result()
        assert str(result.task_id) == task_id
        assert result.error_details is not None
        assert result.error_details.code == ErrorCode.CANCELLED
        assert result.data.startswith("TaskCancelled")
        service.send(task_id)
        other = service.send()
        assert str(service.next_result().task_id) == other
    assert engine.all_submitted == [other]


def test_a_kill_of_a_job_that_was_not_submitted_before_the_stop_reaches_the_next_agent(
    service: Service,
    held_engine: ObedientEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk_works = threading.Event()
    disk_works.set()
    sync = Journal.sync

    def wait_for_disk(journal: Journal) -> None:
        assert disk_works.wait(PATIENCE)
        sync(journal)

    monkeypatch.setattr(Journal, "sync", wait_for_disk)
    with running(service, held_engine, tmp_path, shutdown_grace=0) as run:
        disk_works.clear()
        task_id = service.send(resource_specification='{"num_ranks": 1}')
        recorder = run.agent._recorder
        until(lambda: any(turn.accepted for turn in list(recorder._unanswered)))
        service.kill(task_id)
        until(lambda: any(turn.kills for turn in list(recorder._unanswered)))
        run.agent.stop()
        run.await_state("stopping")
        disk_works.set()
    assert held_engine.all_submitted == []
    second = ObedientEngine(hold=True)
    with running(service, second, tmp_path, shutdown_grace=0):
        assert second.next_submitted().task_id == task_id
        assert second.cancelled.get(timeout=PATIENCE) == (task_id, None)


def test_a_signal_for_an_unknown_task_is_ignored(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path):
        service.kill(str(uuid.uuid4()), 10)
        task_id = service.send()
        assert str(service.next_result().task_id) == task_id
    assert engine.cancelled.empty()


def test_a_request_for_a_task_that_has_ended_changes_nothing(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path):
        task_id = service.send()
        service.await_results([task_id])
        service.kill(task_id)
        other = service.send()
        service.await_results([other])
    assert service.counts == {task_id: 1, other: 1}


def test_an_urgency_reaches_the_engine_and_outlives_a_restart(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    job = json.dumps({"num_ranks": 1, "urgency": 20})
    with running(service, held_engine, tmp_path, shutdown_grace=0):
        task_id = service.send(resource_specification=job)
        assert held_engine.next_submitted().urgency is None
        for asked, given in ((0, 0), (None, 20), (5, 5)):
            service.set_urgency(task_id, asked)
            assert held_engine.urgencies.get(timeout=PATIENCE) == (task_id, given)
    second = ObedientEngine(hold=True)
    with running(service, second, tmp_path, shutdown_grace=0):
        assert second.next_submitted().urgency == 5
        second.finish(task_id)
        service.await_results([task_id])
        service.set_urgency(task_id, 7)  # it has ended
        other = service.send()
        assert second.next_submitted().task_id == other
    assert second.urgencies.empty()


def test_an_urgency_that_comes_before_its_task_waits_for_it(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    held, released = str(uuid.uuid4()), str(uuid.uuid4())
    with running(service, held_engine, tmp_path, shutdown_grace=0):
        service.set_urgency(held, 0)
        service.set_urgency(released, None)
        known = service.send()
        assert held_engine.next_submitted().urgency is None
        service.set_urgency(known, 1)  # the others have been recorded, too, when this comes
        assert held_engine.urgencies.get(timeout=PATIENCE) == (known, 1)
    second = ObedientEngine(hold=True)
    with running(service, second, tmp_path, shutdown_grace=0):
        assert second.next_submitted().task_id == known
        service.send(held)
        service.send(released, run_options=json.dumps({"hold": True}))
        assert [second.next_submitted().urgency for _ in range(2)] == [0, 16]


def test_a_task_that_is_submitted_held_keeps_its_urgency_in_its_next_attempt(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    options = json.dumps({"hold": True, "retries": 2, "retry_delay": 0})
    with running(service, held_engine, tmp_path, shutdown_grace=0):
        task_id = service.send(run_options=options)
        assert held_engine.next_submitted().urgency == 0
        service.set_urgency(task_id, 25)
        assert held_engine.urgencies.get(timeout=PATIENCE) == (task_id, 25)
        failed = failure(task_id, ErrorCode.REMOTE_EXECUTION, "ValueError: no")
        held_engine.end(EngineResult(task_id, failed))
        again = held_engine.next_submitted()
        assert (again.task_id, again.urgency) == (f"{task_id}.2", 25)
        service.set_urgency(task_id, 0)
        assert held_engine.urgencies.get(timeout=PATIENCE) == (f"{task_id}.2", 0)


def test_a_request_to_stop_ends_the_agent_gracefully(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    stop = pack(EndpointStop(endpoint_id=uuid.UUID(service.endpoint_id)))
    task_id = str(uuid.uuid4())
    with running(service, held_engine, tmp_path, shutdown_grace=7) as agent:
        with held_engine.stops_later():
            for _ in range(2):  # a repetition must not make it hurry
                service.command(stop)
            service.kill(task_id)
            assert str(service.next_result().task_id) == task_id
            agent.await_state("stopping")
            assert agent.is_running
        agent.join()
    assert agent.error is None
    assert held_engine.stopped_with == 7


@pytest.mark.parametrize(
    "body", [b"nonsense", pack(Task(task_id=uuid.uuid4(), task_buffer="x"))], ids=["junk", "task"]
)
def test_an_invalid_command_is_dead_lettered(
    service: Service, held_engine: ObedientEngine, tmp_path: Path, body: bytes
) -> None:
    with running(service, held_engine, tmp_path, shutdown_grace=0):
        service.command(body)
        assert service.next_aside().body == body
        task_id = service.send()
        held_engine.next_submitted()
        service.kill(task_id)
        assert held_engine.cancelled.get(timeout=PATIENCE) == (task_id, None)


def test_events_of_jobs_are_sent_in_order(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    task_id = str(uuid.uuid4())
    names = ["submit", "alloc", "start", "finish", "clean"]
    with running(service, held_engine, tmp_path):
        held_engine.tell(
            *(EngineEvent(task_id, 42, name, 1.0 + n, {"n": n}) for n, name in enumerate(names))
        )
        told = service.next_events()
        while len(told) < len(names):
            told += service.next_events()
    assert [each.name for each in told] == names
    assert {(str(each.task_id), each.jobid) for each in told} == {(task_id, 42)}
    assert told[3].context == {"n": 3}


def test_a_task_that_follows_a_job_needs_no_function(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, shutdown_grace=0, allowed_functions=[]):
        task_id = service.send(
            attach_jobid="13841203200", body=pack(Task(task_id=uuid.uuid4(), task_buffer=""))
        )
        task = held_engine.next_submitted()
    assert (task.task_id, task.attach, task.buffer) == (task_id, 13841203200, "")
    journal = Journal(tmp_path / "journal.db")
    assert [kept.attach for kept in journal.pending()] == [13841203200]
    journal.close()


def test_an_invalid_job_id_is_refused(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path):
        service.send(attach_jobid="f1")
        assert "attach_jobid must be a job id in decimal" in service.next_result().data
