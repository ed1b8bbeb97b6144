"""The agent between a real broker and an engine that obeys."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import uuid
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from endpoint_world import (
    PATIENCE,
    ObedientEngine,
    RunningAgent,
    Service,
    begin,
    running,
    topology,
)

from flux_endpoint.amqp import Consumer, Delivery, connection
from flux_endpoint.data import SharedDirectory
from flux_endpoint.endpoint.agent import Agent
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.intake import read_task
from flux_endpoint.endpoint.journal import Journal
from flux_endpoint.endpoint.outbox import Settled
from flux_endpoint.endpoint.registration import BrokerUrl
from flux_endpoint.endpoint.status import AgentStatus
from flux_endpoint.endpoint.task_records import AUDIT_LOG
from flux_endpoint.engine.base import EngineResult, EngineTask
from flux_endpoint.engine.results import failure
from flux_endpoint.errors import EndpointInUseError, InstanceLostError, RecordError
from flux_endpoint.functions import ShellFunction
from flux_endpoint.logs import message_of
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import Result, Task, pack
from flux_endpoint.protocol.states import ErrorCode
from flux_endpoint.serialize import ComputeSerializer, pack_buffers
from small_disk import SmallDisk
from waiting import until

pytestmark = pytest.mark.rabbitmq


def test_a_thousand_tasks_each_end_in_one_result(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path):
        task_ids = service.send_many(1000)
        service.await_results(task_ids)
    assert service.counts == dict.fromkeys(task_ids, 1)


def test_expired_data_of_the_user_is_removed(
    service: Service, engine: ObedientEngine, tmp_path: Path, home: Path
) -> None:
    store = SharedDirectory(tmp_path / "store", lifetime="1d")
    store.put("old")
    (old,) = store.directory.iterdir()
    os.utime(old, (0, 0))
    with running(service, engine, tmp_path):
        assert until(lambda: not old.exists())


def test_the_next_agent_continues_with_the_attempt_that_ran(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    failed = failure(str(uuid.uuid4()), ErrorCode.REMOTE_EXECUTION, "ValueError: no")
    options = json.dumps({"retries": 2, "retry_delay": 0})

    def fail(engine: ObedientEngine) -> str:
        engine_id = engine.next_submitted().task_id
        engine.end(EngineResult(engine_id, failed))
        return engine_id

    with running(service, held_engine, tmp_path, shutdown_grace=0):
        task_id = service.send(run_options=options)
        assert fail(held_engine) == task_id
        assert held_engine.next_submitted().task_id == f"{task_id}.2"
    second = ObedientEngine(hold=True)
    with running(service, second, tmp_path, shutdown_grace=0):
        assert fail(second) == f"{task_id}.2"
        assert fail(second) == f"{task_id}.3"
        result = service.next_result()
    assert str(result.task_id) == task_id
    assert result.data.startswith("3 attempts failed\n  attempt 1: ValueError: no\n")
    assert set(second.all_settled) >= {f"{task_id}.2", f"{task_id}.3"}
    assert service.counts == {task_id: 1}


def test_a_task_reaches_the_engine_with_all_its_properties(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    function_id = str(uuid.uuid4())
    with running(service, held_engine, tmp_path, shutdown_grace=0):
        service.send(
            function_uuid=function_id,
            resource_specification='{"num_nodes": 2}',
            result_serializers=["some.Strategy"],
        )
        task = held_engine.next_submitted()
    assert task.function_id == function_id
    assert task.buffer == "303\n01\ncode"
    assert task.resource_specification == {"num_nodes": 2}
    assert task.result_serializers == ["some.Strategy"]


@pytest.mark.parametrize(
    ("header", "given", "expected"),
    [
        ("simulate", {"num_ranks": 1}, {"num_ranks": 1, "job_name": "simulate"}),
        ("simulate", {"job_name": "mine"}, {"job_name": "mine"}),
        ("simulate", {}, {}),
        ("MPIFunction", {"num_ranks": 1}, {"num_ranks": 1}),  # its program has a better name
        (5, {"num_ranks": 1}, {"num_ranks": 1}),
    ],
)
def test_a_job_is_named_after_the_function_unless_it_has_a_name(header, given, expected) -> None:
    headers = {
        "task_uuid": str(uuid.uuid4()),
        "function_uuid": str(uuid.uuid4()),
        "function_name": header,
        "resource_specification": json.dumps(given),
    }
    body = b'\x01{"message_type": "task", "data": {"task_buffer": "x"}}'
    task = read_task(body, headers, endpoint_id="e", allowed_functions=None)
    assert isinstance(task, EngineTask)
    assert task.resource_specification == expected


def test_the_same_task_twice_runs_once(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path):
        first = service.send()
        held_engine.next_submitted()
        service.send(first)
        second = service.send()
        assert held_engine.next_submitted().task_id == second  # the duplicate came before it
        held_engine.finish(first, second)
        service.await_results([first, second])
        service.send(first)  # once more, now that it is done
        third = service.send()
        assert held_engine.next_submitted().task_id == third
        held_engine.finish(third)
        service.await_results([third])
    assert held_engine.all_submitted == [first, second, third]
    assert service.counts[first] == 1


def test_bundled_tasks_run_once_each_and_their_results_are_bundled(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path):
        task_ids = service.send_together(40)
        until(lambda: len(held_engine.all_submitted) == 40)
        service.send_together(0, [*task_ids[:3], str(uuid.uuid4())])  # three of them once more
        until(lambda: len(held_engine.all_submitted) == 41)
        until(lambda: service.task_queue()[0] == 0)
        held_engine.finish(*held_engine.all_submitted)
        service.await_results(held_engine.all_submitted)
    assert held_engine.all_submitted[:40] == task_ids
    assert set(service.counts.values()) == {1}
    assert service.messages < 30


def test_a_service_that_takes_no_bundles_gets_one_result_a_message(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    service.queues = service.queues.model_copy(update={"takes_bundles": False})
    with running(service, held_engine, tmp_path):
        task_ids = service.send_together(5)
        until(lambda: len(held_engine.all_submitted) == 5)
        held_engine.finish(*task_ids)
        service.await_results(task_ids)
    assert service.messages == 5


@pytest.mark.parametrize("moment", ["its result", "its confirm"])
def test_a_task_redelivered_while_it_ends_runs_once(
    service: Service, held_engine: ObedientEngine, tmp_path: Path, moment: str
) -> None:
    with running(service, held_engine, tmp_path, shutdown_grace=0) as run:
        inbox = run.agent._inbox
        task_id = service.send()
        held_engine.next_submitted()
        until(lambda: not run.agent._recorder._unanswered)
        with held_engine.busy():  # the agent's thread waits in `submit`
            service.send()
            until(lambda: len(held_engine.all_submitted) == 2 and inbox.empty())
            if moment == "its result":
                held_engine.finish(task_id)
            else:
                run.agent._broker.outbox._on_settled(Settled((task_id,), None))
                run.agent._tasks.running.discard(task_id)
            service.send(task_id)
            until(lambda: inbox.qsize() == 2)
        last = service.send()
        while held_engine.next_submitted().task_id != last:
            pass
    assert held_engine.all_submitted.count(task_id) == 1


def test_a_finished_task_is_recognized_by_the_next_agent_too(
    service: Service, tmp_path: Path
) -> None:
    with running(service, ObedientEngine(), tmp_path):
        first = service.send()
        service.await_results([first])
    engine = ObedientEngine()
    with running(service, engine, tmp_path):
        service.send(first)
        second = service.send()
        service.await_results([second])
    assert engine.all_submitted == [second]


@pytest.mark.parametrize(
    "headers",
    [{"task_uuid": None}, {"task_uuid": "7"}, {"function_uuid": None}, {"function_uuid": 5}],
    ids=str,
)
def test_a_message_without_a_task_id_is_dead_lettered_and_others_are_processed(
    service: Service, engine: ObedientEngine, tmp_path: Path, headers: dict[str, object]
) -> None:
    with running(service, engine, tmp_path):
        service.send(body=b"\x01whatever", **headers)
        good = service.send()
        service.await_results([good])
        assert service.next_aside().body == b"\x01whatever"


@pytest.mark.parametrize(
    ("body", "headers", "told"),
    [
        (b"", {}, "version byte"),
        (b"\x02{}", {}, "version byte 0x01, not 0x02"),
        (b"\x01\xff", {}, "not JSON"),
        (b'\x01{"message_type":"result","data":{}}', {}, "must be 'task', not 'result'"),
        (b'\x01{"message_type":"task","data":{"task_buffer":7}}', {}, "data.task_buffer"),
        (None, {"resource_specification": "{"}, "resource_specification is not JSON"),
        (None, {"resource_specification": "[]"}, "must be the JSON of an object"),
        (None, {"result_serializers": "x"}, "must be a list of text"),
    ],
    ids=str,
)
def test_a_malformed_task_fails_and_says_what_was_wrong(
    service: Service,
    engine: ObedientEngine,
    tmp_path: Path,
    body: bytes | None,
    headers: dict[str, object],
    told: str,
) -> None:
    with running(service, engine, tmp_path):
        task_id = service.send(body=body, **headers)
        result = service.next_result()
    assert str(result.task_id) == task_id
    assert result.error_details is not None
    assert result.error_details.code == ErrorCode.COULD_NOT_EXECUTE
    assert told in result.data
    assert engine.all_submitted == []


def test_logs_name_the_user_and_the_function_of_each_task(
    service: Service,
    engine: ObedientEngine,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    function_id = str(uuid.uuid4())
    command = ComputeSerializer().serialize(ShellFunction("sleep {seconds}; hostname"))
    task_id = str(uuid.uuid4())
    buffer = pack_buffers([command, "11\n[]", '11\n{"seconds": 0}'])
    body = pack(Task(task_id=uuid.UUID(task_id), task_buffer=buffer))
    with running(service, engine, tmp_path):
        service.send(task_id, body, function_uuid=function_id, submitter="ada")
        service.await_results([task_id])
        bad = service.send(body=b"no message", function_uuid=function_id, submitter="bob")
        service.await_results([bad])
    (line,) = (message_of(record) for record in caplog.records if record.message == "task accepted")
    assert f"user=ada task_id={task_id} function_id={function_id}" in line
    assert 'command="sleep {seconds}; hostname"' in line
    audit = tmp_path / AUDIT_LOG
    assert audit.stat().st_mode & 0o777 == 0o600
    accepted, refused = (json.loads(line) for line in audit.read_text().splitlines())
    assert (accepted["user"], accepted["task_id"]) == ("ada", task_id)
    assert (accepted["command"], accepted["arguments"]) == (
        "sleep {seconds}; hostname",
        '{"seconds": 0}',
    )
    assert (refused["event"], refused["user"], refused["task_id"]) == ("task refused", "bob", bad)


def test_a_function_that_is_not_allowed_is_refused(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    allowed, other = str(uuid.uuid4()), str(uuid.uuid4())
    with running(service, engine, tmp_path, allowed_functions=[allowed]):
        refused = service.send(function_uuid=other)
        result = service.next_result()
        buffer = pack_buffers(["01\ncode", "11\n[]", "11\n{}"])
        good = str(uuid.uuid4())
        body = pack(Task(task_id=uuid.UUID(good), task_buffer=buffer))
        service.send(good, body, function_uuid=allowed)
        service.await_results([good])
    assert str(result.task_id) == refused
    assert result.error_details is not None
    assert result.error_details.code == ErrorCode.FUNCTION_NOT_ALLOWED
    assert other in result.data
    assert engine.all_submitted == [good]


def test_an_engine_that_fails_to_take_a_task_fails_that_task_only(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    bad = str(uuid.uuid4())
    engine.break_on = bad
    with running(service, engine, tmp_path):
        service.send(bad)
        result = service.next_result()
        service.await_results([service.send()])
    assert result.error_details is not None
    assert "RuntimeError: out of order" in result.data


def test_tasks_above_max_in_flight_wait_in_the_queue(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, max_in_flight=8, prefetch=2, shutdown_grace=0):
        task_ids = service.send_many(40)
        for _ in range(8):
            held_engine.next_submitted()
        until(lambda: service.task_queue()[1] == 0)  # it does not consume any more
        until(lambda: service.task_queue()[0] + len(held_engine.all_submitted) == 40)
        assert len(held_engine.all_submitted) <= 8 + 2
        held_engine.hold = False
        held_engine.finish(*held_engine.all_submitted)
        service.await_results(task_ids)


def test_the_consumer_is_paused_before_the_last_task_is_acknowledged(
    service: Service, held_engine: ObedientEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    pause, ack = Consumer.pause, Delivery.ack

    def paused(consumer: Consumer) -> None:
        told.append("wait")
        pause(consumer)

    def taken(delivery: Delivery) -> None:
        if delivery.exchange == queues.TASKS_EXCHANGE:
            told.append("taken")
        ack(delivery)

    monkeypatch.setattr(Consumer, "pause", paused)
    monkeypatch.setattr(Delivery, "ack", taken)
    with running(service, held_engine, tmp_path, max_in_flight=1, shutdown_grace=0):
        service.send()
        until(lambda: len(told) == 2)
    assert told == ["wait", "taken"]


def test_status_reports_are_sent_at_once_periodically_and_at_the_end(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path, heartbeat_period=1):
        reports = [service.next_report(), service.next_report(), service.next_report()]
    while (last := service.next_report())["active"]:
        pass
    assert all(report["active"] for report in reports)
    assert last["heartbeat_period"] == 1
    assert last["executor"] == "local"
    assert {"hostname", "pid", "endpoint_version", "start_unix"} <= last.keys()
    assert last["start_unix"] <= reports[0]["report_unix"] < last["report_unix"]


def test_a_second_report_follows_the_first_soon(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path, heartbeat_period=3600):
        first, second = service.next_report(), service.next_report()
    assert second["active"]
    assert first["report_unix"] < second["report_unix"]


def test_a_status_report_has_the_counts_and_rates_of_tasks(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, heartbeat_period=1, max_in_flight=4, prefetch=1):
        service.send_many(6)
        for _ in range(4):
            held_engine.next_submitted()
        while (report := service.next_report())["agent"]["running"] < 4:
            pass
        assert report["agent"]["paused"]
        assert report["agent"]["accepted"] == 4
        assert report["agent"]["finished"] == 0
        held_engine.hold = False
        held_engine.finish(*held_engine.all_submitted)
        # Results count until the broker has confirmed them.
        while (agent := service.next_report()["agent"])["finished"] < 6 or agent["unconfirmed"]:
            pass
    assert (agent["running"], agent["paused"]) == (0, False)
    assert agent["accepted"] == 6
    assert set(agent["finished_rates"]) == {"1m", "5m", "15m"}
    assert all(0 < rate <= 6 for rate in agent["finished_rates"].values())


def test_a_report_of_a_full_agent_says_that_it_accepts_no_more_tasks(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, max_in_flight=1, shutdown_grace=0) as run:
        service.next_report()
        with held_engine.busy():  # the agent's thread waits in `submit`
            service.send()
            until(lambda: bool(held_engine.all_submitted))
            run.agent._broker.reports.due = 0.0
            run.agent._broker.reports._last = None  # confirmed, or it would not be sent
        while (report := service.next_report()["agent"])["running"] < 1:
            pass
    assert report["paused"]


def test_the_last_report_is_sent_while_an_earlier_one_is_unconfirmed(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path) as run:
        service.next_report()
        run.agent._broker.reports._last = Future()
    while service.next_report()["active"]:
        pass


def test_a_second_agent_says_that_another_has_the_queue_and_takes_over_when_it_leaves(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flux_endpoint")
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    second_engine = ObedientEngine()
    with running(service, ObedientEngine(), tmp_path / "first") as first:
        service.await_results([service.send()])
        second = begin(service, second_engine, tmp_path / "second")
        until(lambda: "another agent" in caplog.text)
        first.stop()
        second.await_state("connected")
        service.await_results([service.send()])
        assert len(second_engine.all_submitted) == 1
        second.stop()
    assert caplog.text.count("another agent") == 1


def test_a_connection_cut_in_the_middle_loses_nothing(
    service: Service, engine: ObedientEngine, tmp_path: Path, endpoints_vhost: str, broker: Any
) -> None:
    vhost = endpoints_vhost.rpartition("/")[2]
    with running(service, engine, tmp_path, max_in_flight=50, prefetch=50) as run:
        task_ids = service.send_many(300)
        engine.hold = True
        broker.ctl("close_all_connections", "--vhost", vhost, "cut by a test")
        run.await_state("disconnected")
        run.await_state("connected")
        engine.hold = False
        engine.finish(*engine.all_submitted)  # those held; the agent drops second answers
        service.await_results(task_ids)
    assert sorted(set(engine.all_submitted)) == sorted(task_ids)
    assert len(engine.all_submitted) == len(task_ids)


def test_results_that_no_queue_takes_are_kept_until_one_does(
    endpoints_vhost: str, engine: ObedientEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(endpoints_vhost, takes_results=False)
    with running(service, engine, tmp_path):
        task_id = service.send()
        until(lambda: "no queue for results" in caplog.text)
        service.take_results()
        service.await_results([task_id])
    service.connection.close()


def test_an_agent_starts_with_a_large_backlog_of_unsent_results(
    service: Service, engine: ObedientEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_MAX_UNCONFIRMED_BYTES", 1)
    task_ids = [str(uuid.uuid4()) for _ in range(3)]
    journal = Journal(tmp_path / "journal.db")
    with journal.batch():
        journal.finish(
            [EngineResult(id_, pack(Result(task_id=uuid.UUID(id_), data=""))) for id_ in task_ids]
        )
    journal.close()
    with running(service, engine, tmp_path):
        service.await_results(task_ids)


def test_a_stopped_agent_leaves_unfinished_tasks_to_the_next(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, shutdown_grace=0):
        task_ids = [service.send(), service.send()]
        held_engine.next_submitted()
        held_engine.next_submitted()
    assert held_engine.stopped_with == 0
    journal = Journal(tmp_path / "journal.db")
    assert [task.task_id for task in journal.pending()] == task_ids
    journal.close()
    with running(service, ObedientEngine(), tmp_path):
        service.await_results(task_ids)


def test_results_within_the_grace_time_are_published_before_the_agent_ends(
    service: Service, held_engine: ObedientEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flux_endpoint.endpoint.agent.CONFIRM_GRACE", PATIENCE)
    with running(service, held_engine, tmp_path) as run:
        task_id = service.send()
        held_engine.next_submitted()
        held_engine.finish(task_id)
        run.stop()
    service.await_results([task_id])
    journal = Journal(tmp_path / "journal.db")
    assert journal.unpublished() == []
    journal.close()


def test_stopping_twice_does_not_wait_for_the_engine(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    leave = threading.Event()
    held_engine.stop = lambda _grace: leave.wait()  # type: ignore[method-assign,assignment]
    with running(service, held_engine, tmp_path) as run:
        run.agent.stop()
        run.await_state("stopping")
        run.agent.stop()
        run.join()
        leave.set()
    assert run.error is None


def test_an_agent_without_a_broker_says_so_once_with_the_address_and_asks_for_a_new_url(
    service: Service,
    engine: ObedientEngine,
    tmp_path: Path,
    free_port: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "flux_endpoint")
    dead = queues.endpoint_queues(service.endpoint_id, f"amqp://guest:guest@127.0.0.1:{free_port}")
    statuses: SimpleQueue[AgentStatus] = SimpleQueue()
    url = BrokerUrl(dead, lambda: service.queues, max_failures=3)
    agent = Agent(dead, engine, tmp_path, EndpointConfig(), url=url, on_status=statuses.put)
    run = RunningAgent(agent, statuses)
    run.await_state("connected")
    service.await_results([service.send()])
    run.stop()
    down = [each for each in caplog.records if "unreachable" in each.getMessage()]
    assert len(down) == 1
    assert f"127.0.0.1:{free_port}" in down[0].fields["address"]
    assert "connected to the broker" in caplog.messages


def test_an_agent_that_loses_its_flux_instance_ends_and_keeps_unfinished_tasks(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, shutdown_grace=1000) as run:
        ended, kept = service.send(), service.send()
        for _ in (ended, kept):
            held_engine.next_submitted()
        assert held_engine.on_lost is not None
        with held_engine.stops_later():
            held_engine.on_lost("the Flux instance is gone")
            held_engine.finish(ended)
            service.await_results([ended])
        run.join()
    assert isinstance(run.error, InstanceLostError)
    assert "the Flux instance is gone. 1 tasks stay in its journal" in str(run.error)
    engine = ObedientEngine()
    with running(service, engine, tmp_path):
        service.await_results([kept])
    assert engine.all_submitted == [kept]


def test_a_second_request_to_stop_does_not_shorten_the_grace_time(
    service: Service, held_engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, held_engine, tmp_path, shutdown_grace=1000) as run:
        task_id = service.send()
        held_engine.next_submitted()
        assert held_engine.on_lost is not None
        with held_engine.stops_later():
            held_engine.on_lost("the Flux instance is ending")
            assert run.await_state("stopping").reason == "the Flux instance is ending"
            run.agent.stop()
            held_engine.finish(task_id)
            service.await_results([task_id])
        run.join()
    assert held_engine.stopped_with == 1000
    assert run.error is None


def test_a_copied_endpoint_starts_nothing_and_ends_with_an_error_while_the_first_one_runs(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flux_endpoint.endpoint.connectivity.OWNER_TIMEOUT", 1.0)
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.mkdir()
    held = ObedientEngine(hold=True)
    with running(service, held, first) as run:
        task_id = service.send()
        held.next_submitted()
        shutil.copytree(first, copy)
        while service.next_report()["agent"]["running"] != 1:
            run.agent._broker.reports.due = 0.0
        engine = ObedientEngine()
        second = begin(service, engine, copy)
        second.join()
        assert isinstance(second.error, EndpointInUseError)
        assert f"another agent runs endpoint {service.endpoint_id}" in str(second.error)
        assert engine.all_submitted == []
        assert engine.stopped_with is None
        told = second.statuses()
        assert {each.state for each in told} == {"disconnected"}
        assert told[-1].reason.startswith("another agent has this endpoint's task queue")
        service.kill(task_id)  # reaches the one that has the task, each time
        assert held.cancelled.get(timeout=PATIENCE) == (task_id, None)
        held.finish(task_id)
        service.await_results([task_id])
    assert service.counts == {task_id: 1}


def test_an_agent_says_that_the_broker_takes_no_messages_and_then_sends_what_waited(
    service: Service, held_engine: ObedientEngine, tmp_path: Path, broker: Any
) -> None:
    with running(service, held_engine, tmp_path) as run:
        task_id = service.send()
        held_engine.next_submitted()
        with broker.alarm():
            held_engine.finish(task_id)
            status = run.await_state("connected")
            assert "the broker takes no messages now (low on memory)" in status.reason
        assert run.await_state("connected").reason == ""
        service.await_results([task_id])


def test_an_agent_whose_queue_is_gone_says_so_until_it_is_back(
    service: Service, engine: ObedientEngine, tmp_path: Path
) -> None:
    with running(service, engine, tmp_path) as run:
        service.delete_task_queue()
        status = run.await_state("disconnected")
        assert status.reason.startswith("the broker refuses the task queue (")
        service.connection.declare(*topology(service.endpoint_id)).result(PATIENCE)
        assert run.await_state("connected").reason == ""
        service.await_results([service.send()])


def test_a_function_starts_while_the_disk_synchronizes_and_a_job_only_after_it(
    service: Service,
    held_engine: ObedientEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_sync, original = threading.Semaphore(0), Journal.sync
    syncs: SimpleQueue[None] = SimpleQueue()

    def sync(journal: Journal) -> None:
        syncs.put(None)
        assert may_sync.acquire(timeout=PATIENCE)
        original(journal)

    monkeypatch.setattr(Journal, "sync", sync)
    with running(service, held_engine, tmp_path):
        function = service.send()
        assert held_engine.next_submitted().task_id == function
        syncs.get(timeout=PATIENCE)
        may_sync.release()
        job = service.send(resource_specification='{"num_nodes": 1}')
        syncs.get(timeout=PATIENCE)
        assert held_engine.all_submitted == [function]
        may_sync.release()
        assert held_engine.next_submitted().task_id == job
        held_engine.finish(function)
        service.await_results([function])  # sent before the disk has it
        assert held_engine.all_settled == []
        may_sync.release(9)
        until(lambda: held_engine.all_settled == [function])


def test_an_agent_reports_a_full_disk_and_continues_when_there_is_space(
    service: Service, held_engine: ObedientEngine, small_disk: SmallDisk
) -> None:
    with running(service, held_engine, small_disk.path, heartbeat_period=1) as run:
        first = service.send()
        held_engine.next_submitted()
        small_disk.fill()
        held_engine.finish(first)
        status = run.await_state("connected")
        while not status.reason:
            status = run.await_state("connected")
        journal = small_disk.path / "journal.db"
        assert status.reason.startswith(f"can't write the journal {journal}: database or disk is")
        while not (report := service.next_report())["trouble"]:
            pass
        assert report["trouble"] == status.reason
        second = service.send()
        assert run.is_running
        assert service.counts == {}
        small_disk.clear()
        assert run.await_state("connected").reason == ""
        service.await_results([first])
        assert held_engine.next_submitted().task_id == second
        held_engine.finish(second)
        service.await_results([second])
    assert run.error is None
    assert service.counts == {first: 1, second: 1}


def test_a_stopping_agent_does_not_wait_for_a_full_disk(
    service: Service, held_engine: ObedientEngine, small_disk: SmallDisk
) -> None:
    with running(service, held_engine, small_disk.path) as run:
        task_id = service.send()
        held_engine.next_submitted()
        small_disk.fill()
        held_engine.finish(task_id)
        while not run.await_state("connected").reason:
            pass
    assert isinstance(run.error, RecordError)
    small_disk.clear()
    engine = ObedientEngine()
    with running(service, engine, small_disk.path):
        service.await_results([task_id])
    assert engine.all_submitted == [task_id]
