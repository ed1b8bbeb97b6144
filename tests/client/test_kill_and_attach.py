"""Ending a task from its future, and following a job that was submitted elsewhere."""

from __future__ import annotations

import queue
import signal
import threading
import uuid
from typing import Any

import pytest
from tests.client.conftest import Gate

from flux_endpoint import Client, ComputeFuture, Executor, ServiceError, TaskCancelled
from flux_endpoint.functions import ShellResult
from flux_endpoint.protocol.jobid import format_jobid

TIMEOUT = 20
JOBID = 0x0123_4567_89AB_CDEF
REFUSAL = {"code": "KILL_NOT_SUPPORTED", "message": "endpoint lab can't end tasks"}


@pytest.fixture
def future(executor: Executor) -> ComputeFuture:
    future = executor.submit(abs, -1)
    assert future.wait_submitted(TIMEOUT)
    return future


# Kill.


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ((), {}),
        ((signal.SIGTERM,), {}),
        ((signal.SIGKILL,), {}),
        ((signal.SIGUSR1,), {"signum": signal.SIGUSR1.value}),
        ((2,), {"signum": 2}),
    ],
)
def test_kill_asks_the_service_to_end_or_to_signal(
    service: Any, future: ComputeFuture, arguments: Any, body: Any
) -> None:
    assert future.kill(*arguments)
    (request,) = service.seen("/kill")
    assert request.path == f"/v2/tasks/{future.task_id}/kill"
    assert request.body == body
    assert not future.done()


def test_urgency_hold_and_release_ask_the_service(service: Any, future: ComputeFuture) -> None:
    for urgency in (-1, 32, True, "high", None):
        with pytest.raises(ValueError, match="urgency must be an integer from 0 to 31"):
            future.set_urgency(urgency)  # type: ignore[arg-type]
    assert future.set_urgency(31)
    assert future.hold()
    assert future.release()
    requests = service.seen("/urgency")
    assert [each.body for each in requests] == [{"urgency": each} for each in (31, 0, None)]
    assert requests[0].path == f"/v3/tasks/{future.task_id}/urgency"
    future.set_result(None)
    assert not future.hold()  # too late
    assert len(service.seen("/urgency")) == 3


@pytest.mark.parametrize("signum", [0, 65, -9, True, "TERM"])
def test_an_invalid_signal_number_is_refused(
    service: Any, future: ComputeFuture, signum: Any
) -> None:
    with pytest.raises(ValueError, match="must be a signal's number from 1 to 64"):
        future.kill(signum)
    assert service.seen("/kill") == []


def test_a_task_that_was_not_sent_is_just_cancelled(service: Any, executor: Executor) -> None:
    gate = Gate(service)
    executor.submit(abs, -1)
    assert gate.reached.wait(TIMEOUT)
    future = executor.submit(abs, -2)
    assert not future.kill(signal.SIGUSR1)
    assert not future.done()
    assert future.kill()
    assert future.cancelled()
    assert not future.kill()
    gate.open.set()
    executor.shutdown(wait=False)
    assert service.seen("/kill") == []


def test_a_task_that_is_being_sent_is_killed_once_its_id_is_known(
    service: Any, executor: Executor
) -> None:
    gate = Gate(service)
    future = executor.submit(abs, -1)
    assert gate.reached.wait(TIMEOUT)
    killer = threading.Thread(target=future.kill)
    killer.start()
    gate.open.set()
    killer.join(TIMEOUT)
    assert service.seen("/kill")[0].path == f"/v2/tasks/{future.task_id}/kill"


def test_killing_an_ended_task_sends_no_request(service: Any, executor: Executor) -> None:
    task = str(uuid.uuid4())
    service.groups[str(executor.task_group_id)] = [task]
    service.ended(task, 1)
    (future,) = executor.reload_tasks()
    assert not future.kill()
    assert service.seen("/kill") == []


def test_killing_a_task_that_ended_at_the_service_has_no_effect(
    service: Any, future: ComputeFuture
) -> None:
    ended = {"task_id": future.task_id, "status": "success", "delivered": False}
    service.react = lambda request: (200, ended) if "/kill" in request.path else None
    assert not future.kill()


def test_a_refused_kill_raises_and_does_not_change_the_future(
    service: Any, future: ComputeFuture
) -> None:
    service.react = lambda request: (409, REFUSAL) if "/kill" in request.path else None
    with pytest.raises(ServiceError, match="endpoint lab can't end tasks") as caught:
        future.kill()
    assert caught.value.code == "KILL_NOT_SUPPORTED"
    assert not future.done()


def test_a_lost_answer_repeats_an_end_but_no_signal(service: Any, future: ComputeFuture) -> None:
    lost: list[Any] = []

    def lose(request: Any) -> Any:
        if "/kill" in request.path and len(lost) < 2:
            lost.append(request)
            return "lose" if len(lost) == 1 else None
        return "lose" if "/kill" in request.path else None

    service.react = lose
    assert future.kill()
    assert len(service.seen("/kill")) == 2
    with pytest.raises(Exception, match="can't reach the service"):
        future.kill(signal.SIGUSR1)
    assert len(service.seen("/kill")) == 3


@pytest.mark.rabbitmq
def test_a_killed_task_raises_task_cancelled(
    service: Any, executor: Executor, queues: Any, messages: Any
) -> None:
    future = executor.submit(abs, -1)
    assert future.wait_submitted(TIMEOUT)
    assert future.kill()
    body = messages.error(future.task_id, "ended on request", "TaskCancelled")
    queues.publish(executor.task_group_id, body)
    with pytest.raises(TaskCancelled, match="ended on request"):
        future.result(TIMEOUT)


@pytest.mark.rabbitmq
def test_a_callback_may_kill(service: Any, executor: Executor, queues: Any, messages: Any) -> None:
    first, second = executor.submit(abs, -1), executor.submit(abs, -2)
    outcome: queue.Queue[bool] = queue.Queue()
    assert second.wait_submitted(TIMEOUT)
    first.add_done_callback(lambda _: outcome.put(second.kill()))
    queues.publish(executor.task_group_id, messages.value(first.task_id, 1))
    assert outcome.get(timeout=TIMEOUT)


def test_a_client_cancels_a_task_by_its_id(service: Any, client: Client) -> None:
    task = str(uuid.uuid4())
    answer = client.cancel_task(uuid.UUID(task))
    assert answer == {"task_id": task, "status": "waiting-for-ep", "delivered": True}
    assert service.seen("/kill")[0].body == {}
    with pytest.raises(ValueError, match="task_id must be a UUID"):
        client.cancel_task("seven")


# Attach.


@pytest.mark.parametrize(
    "jobid",
    [
        JOBID,
        str(JOBID),
        hex(JOBID),
        "0123.4567.89ab.cdef",
        format_jobid(JOBID),
        format_jobid(JOBID).replace("ƒ", "f"),
    ],
)
def test_attach_takes_every_form_of_a_jobid(
    service: Any, executor: Executor, jobid: int | str
) -> None:
    future = executor.attach(jobid)
    assert future.wait_submitted(TIMEOUT) == service.groups[str(executor.task_group_id)][0]
    (request,) = service.seen("/attach")
    assert request.path == f"/v3/endpoints/{executor.endpoint_id}/attach"
    assert request.body["jobid"] == future.jobid(0) == JOBID
    assert "create_queue" not in request.body  # that is for official clients


@pytest.mark.parametrize("jobid", ["", "ƒ", "ƒ0", "-1", -1, 2**64, "job", "0x", "1.2.3"])
def test_an_invalid_jobid_is_refused_at_once(
    service: Any, executor: Executor, jobid: int | str
) -> None:
    with pytest.raises(ValueError, match="is no job id"):
        executor.attach(jobid)
    assert service.requests == []


def test_attach_does_not_wait_for_the_service(service: Any, executor: Executor) -> None:
    go = threading.Event()

    def hold(request: Any) -> None:
        assert go.wait(TIMEOUT)

    service.react = hold
    future = executor.attach(JOBID)
    assert future.task_id is None
    go.set()
    assert future.wait_submitted(TIMEOUT)


@pytest.mark.rabbitmq
def test_an_attached_job_ends_in_a_shell_result_and_tells_its_events(
    service: Any, executor: Executor, queues: Any, messages: Any
) -> None:
    future = executor.attach(JOBID)
    names: queue.Queue[str] = queue.Queue()
    for name in ("submit", "finish"):
        future.add_event_callback(name, lambda _, event: names.put(event.name))
    task = future.wait_submitted(TIMEOUT)
    service.events[task] = [
        {"name": "submit", "timestamp": 1.0, "jobid": JOBID, "context": {}},
        {"name": "finish", "timestamp": 2.0, "jobid": JOBID, "context": {"status": 0}},
        {"name": "clean", "timestamp": 3.0, "jobid": JOBID, "context": {}},
    ]
    ended = ShellResult("", "the end", "", returncode=3)
    body = messages.value(task, ended)
    queues.publish(executor.task_group_id, body)
    result = future.result(TIMEOUT)
    assert (result.returncode, result.stdout) == (3, "the end")
    assert [names.get(timeout=TIMEOUT) for _ in range(2)] == ["submit", "finish"]


def test_two_attach_to_the_same_job_are_two_tasks(service: Any, executor: Executor) -> None:
    first, second = executor.attach(JOBID), executor.attach(JOBID)
    ids = {first.wait_submitted(TIMEOUT), second.wait_submitted(TIMEOUT)}
    assert ids == set(service.groups[str(executor.task_group_id)])
    assert len(ids) == 2


def test_a_refused_attach_fails_its_future_only(service: Any, executor: Executor) -> None:
    unknown = {"code": "ATTACH_NOT_SUPPORTED", "message": "endpoint lab attaches to no jobs"}
    service.react = lambda request: (409, unknown) if "/attach" in request.path else None
    attached, other = executor.attach(JOBID), executor.submit(abs, -1)
    with pytest.raises(ServiceError, match="attaches to no jobs"):
        attached.result(TIMEOUT)
    assert attached.jobid(0) == JOBID
    assert other.wait_submitted(TIMEOUT)


def test_attach_without_an_endpoint_is_refused(client: Client) -> None:
    with Executor(client=client) as executor, pytest.raises(ValueError, match="No endpoint_id set"):
        executor.attach(JOBID)
