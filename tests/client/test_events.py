"""Job ids and job events, from the service and a real broker into futures."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import uuid
from typing import Any

import pytest

from flux_endpoint import Client, ComputeFuture, Executor, TaskCancelled
from flux_endpoint.client import future as future_module
from flux_endpoint.client import job_events as events_module
from flux_endpoint.client import streams as streams_module
from flux_endpoint.protocol.job_events import IN_ORDER
from waiting import until

pytestmark = pytest.mark.rabbitmq

TIMEOUT = 20
MAIN = ("submit", "depend", "priority", "alloc", "start", "finish", "release", "free", "clean")
WHOLE = [(name, float(at)) for at, name in enumerate(MAIN)]


class Recorder:
    """A callback that keeps what it is called with, for a test that waits for it."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Any] = queue.Queue()

    def __call__(self, future: ComputeFuture, *event: Any) -> None:
        self._calls.put(event[0] if event else future)

    def next(self) -> Any:
        return self._calls.get(timeout=TIMEOUT)

    def names(self, count: int) -> list[str]:
        return [self.next().name for _ in range(count)]

    def empty(self) -> bool:
        return self._calls.empty()


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "GRACE", 0.2)


@pytest.fixture
def future(executor: Executor, queues: Any) -> ComputeFuture:
    future = executor.submit(abs, -1)
    assert future.wait_submitted(TIMEOUT)
    return future


def document(name: str, at: float, jobid: int | None = 7, **context: Any) -> dict[str, Any]:
    return {"name": name, "timestamp": at, "jobid": jobid, "context": context}


def recorded(future: ComputeFuture) -> Recorder:
    recorder = Recorder()
    for name in IN_ORDER:  # some may come in between
        future.add_event_callback(name, recorder)
    return recorder


def streaming(service: Any, queues: Any, messages: Any, future: ComputeFuture) -> Recorder:
    """Record `future`'s events, and return when they come from the queue."""
    service.events[future.task_id] = [document("debug", 0.25)]
    recorder = recorded(future)
    assert recorder.next().name == "debug"  # the queue is there, not yet who consumes from it
    queues.publish_events(future.task_group_id, messages.events(future.task_id, ("debug", 0.75)))
    assert recorder.next().timestamp == 0.75
    return recorder


class HeldHistory:
    """Has the service answer nothing about past events until it is released."""

    def __init__(self, service: Any) -> None:
        self.release = threading.Event()
        self._answer = service.react
        service.react = self

    def __call__(self, request: Any) -> Any:
        if request.method == "GET" and request.path.endswith("/events"):
            assert self.release.wait(TIMEOUT)
        return self._answer(request)


# From the queue and from the service.


def test_events_of_the_queue_come_in_their_order(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    service.events[future.task_id] = [document("submit", 0.0, userid=5)]
    recorder = recorded(future)
    first = recorder.next()
    assert (first.name, first.timestamp, first.context) == ("submit", 0.0, {"userid": 5})
    queues.publish_events(future.task_group_id, messages.events(future.task_id, *WHOLE[1:4]))
    queues.publish_events(future.task_group_id, messages.events(future.task_id, *WHOLE[4:]))
    assert recorder.names(8) == list(MAIN[1:])
    assert future.jobid(0) == 7
    assert str(future.jobid(0)) == "ƒ8"
    assert not future.done()


def test_events_are_not_requested_without_a_callback(
    service: Any, executor: Executor, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    queues.publish(executor.task_group_id, messages.value(future.task_id, 1))
    assert future.result(TIMEOUT) == 1
    assert service.seen("events") == []


def test_callbacks_may_come_before_the_task_is_submitted(
    service: Any, executor: Executor, queues: Any, messages: Any
) -> None:
    reached, go = threading.Event(), threading.Event()
    declare = service.react

    def hold(request: Any) -> Any:
        if request.path.endswith("/submit"):
            reached.set()
            assert go.wait(TIMEOUT)
        return declare(request)

    service.react = hold
    future = executor.submit(abs, -1)
    assert reached.wait(TIMEOUT)
    jobid, started = Recorder(), Recorder()
    assert future.add_jobid_callback(jobid) is future
    assert future.add_event_callback("start", started) is future
    service.before_answer = lambda ids: service.events.update({ids[0]: [document("start", 4.0)]})
    go.set()
    assert jobid.next() is future
    assert future.jobid(0) == 7
    assert started.next().name == "start"


def test_events_of_a_reloaded_task_are_delivered(
    service: Any, client: Client, queues: Any, messages: Any
) -> None:
    group, running, ended = (str(uuid.uuid4()) for _ in range(3))
    service.groups[group] = [running, ended]
    service.ended(ended, 1)
    service.events[ended] = [document(*event, jobid=8) for event in WHOLE]
    with Executor(client=client) as executor:
        futures = executor.reload_tasks(group)
        recorder = streaming(service, queues, messages, futures[0])
        queues.publish_events(group, messages.events(running, ("start", 4.0)))
        assert recorder.names(1) == ["start"]
        assert recorded(futures[1]).names(9) == list(MAIN)
        assert futures[1].jobid(TIMEOUT) == 8
        queues.publish(group, messages.value(running, 1))


def test_a_repeated_event_is_delivered_once(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    service.events[future.task_id] = [document("submit", 0.0), document("urgency", 0.5)]
    recorder = recorded(future)
    assert recorder.names(2) == ["submit", "urgency"]
    again = [("submit", 0.0), ("urgency", 0.5), ("urgency", 0.6)]
    queues.publish_events(
        future.task_group_id,
        messages.events(future.task_id, *again),
        messages.events(future.task_id, *again, ("start", 4.0)),
    )
    assert recorder.names(2) == ["urgency", "start"]


def test_events_during_the_history_request_are_delivered_after_it(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    answer = service.react

    def slow(request: Any) -> Any:
        if request.path.endswith(f"{future.task_id}/events"):
            # Published and taken before the answer with what came earlier.
            live = messages.events(future.task_id, *WHOLE[1:])
            queues.publish_events(future.task_group_id, live)
            until(lambda: queues.depth(*queues.of(future.task_group_id, "ev.")) == 0)
        return answer(request)

    service.react = slow
    service.events[future.task_id] = [document("submit", 0.0)]
    assert recorded(future).names(9) == list(MAIN)


def test_events_of_other_tasks_and_unknown_names_are_ignored(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    recorder = streaming(service, queues, messages, future)
    queues.publish_events(
        future.task_group_id,
        messages.events(str(uuid.uuid4()), ("start", 1.0)),
        messages.events(future.task_id, ("memo", 2.0), ("start", 4.0)),
    )
    assert recorder.names(1) == ["start"]


def test_an_unreadable_message_is_dead_lettered_and_others_are_processed(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    recorder = streaming(service, queues, messages, future)
    group = future.task_group_id
    queues.publish_events(group, b"\x01poison", messages.value(future.task_id, 1))
    queues.publish_events(group, messages.events(future.task_id, ("start", 4.0)))
    assert recorder.names(1) == ["start"]
    until(lambda: queues.depth("dead-letters") == 2)


def test_a_cut_connection_loses_no_event(
    service: Any, future: ComputeFuture, queues: Any, messages: Any, cut_connections: Any
) -> None:
    recorder = streaming(service, queues, messages, future)
    service.events[future.task_id].append(document("submit", 0.0))  # lost on its way to the queue
    cut_connections()
    queues.publish_events(future.task_group_id, messages.events(future.task_id, ("start", 4.0)))
    assert recorder.names(2) == ["submit", "start"]


def test_a_deleted_queue_is_requested_again(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    recorder = streaming(service, queues, messages, future)
    service.events[future.task_id].append(document("submit", 0.0))
    queues.delete(*queues.of(future.task_group_id, "ev."))
    assert recorder.names(1) == ["submit"]
    queues.publish_events(future.task_group_id, messages.events(future.task_id, ("start", 4.0)))
    assert recorder.names(1) == ["start"]


def test_tasks_of_a_group_share_one_stream(
    service: Any, executor: Executor, queues: Any, messages: Any
) -> None:
    futures = [executor.submit(abs, i) for i in range(5)]
    recorders = [Recorder() for _ in futures]
    for future, recorder in zip(futures, recorders, strict=True):
        future.add_event_callback("start", recorder)
        assert future.wait_submitted(TIMEOUT)
    until(lambda: sum(r.path.endswith("/events") for r in service.seen("/v2/tasks/")) == 5)
    bodies = [messages.events(f.task_id, ("start", i), jobid=i) for i, f in enumerate(futures)]
    queues.publish_events(executor.task_group_id, *bodies)
    assert [recorder.next().timestamp for recorder in recorders] == [0, 1, 2, 3, 4]
    assert [future.jobid(TIMEOUT) for future in futures] == [0, 1, 2, 3, 4]
    group = executor.task_group_id
    assert len(service.seen(f"/v2/taskgroup/{group}/events")) == 1


# Callbacks.


def test_a_late_callback_gets_past_events_at_once(service: Any, future: ComputeFuture) -> None:
    service.events[future.task_id] = [document(*event) for event in WHOLE]
    history = HeldHistory(service)  # so that the stream's thread makes all the calls
    recorder = recorded(future)
    history.release.set()
    recorder.names(9)
    until(lambda: future._job._caller is None)  # else that thread makes the others, too
    for name in MAIN:
        late = Recorder()
        future.add_event_callback(name, late)
        assert not late.empty()
        assert late.next().name == name
    late = Recorder()
    assert future.add_jobid_callback(late).jobid() == 7
    assert not late.empty()


def test_callbacks_are_called_in_the_order_of_addition_jobid_first(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    order: list[str] = []
    done = threading.Event()
    future.add_event_callback("clean", lambda f, e: done.set())
    future.add_event_callback("submit", lambda f, e: order.append("a"))
    future.add_event_callback("submit", lambda f, e: order.append("b"))
    future.add_jobid_callback(lambda f: order.append("jobid"))
    future.add_event_callback("start", lambda f, e: order.append("c"))
    until(lambda: bool(service.seen(f"{future.task_id}/events")))
    queues.publish_events(future.task_group_id, messages.events(future.task_id, *WHOLE))
    assert done.wait(TIMEOUT)
    assert order == ["jobid", "a", "b", "c"]


def test_a_callback_that_raises_is_logged_and_ignored(
    service: Any, future: ComputeFuture, queues: Any, messages: Any, caplog: Any
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the callback's own fault")

    def leave(*_: object) -> None:
        raise SystemExit("even this")

    future.add_jobid_callback(fail).add_event_callback("start", fail)
    recorder = Recorder()
    future.add_event_callback("start", leave).add_event_callback("start", recorder)
    until(lambda: bool(service.seen(f"{future.task_id}/events")))
    queues.publish_events(future.task_group_id, messages.events(future.task_id, ("start", 4.0)))
    assert recorder.next().name == "start"
    assert caplog.text.count("a callback for the job of task") == 3


def test_a_callback_may_add_others(service: Any, future: ComputeFuture) -> None:
    inner, jobid = Recorder(), Recorder()
    service.events[future.task_id] = [document("start", 4.0)]
    future.add_jobid_callback(lambda f: f.add_jobid_callback(jobid))
    future.add_event_callback("start", lambda f, e: f.add_event_callback("start", inner))
    assert inner.next().name == "start"
    assert jobid.next() is future
    assert inner.empty()


def test_waiting_inside_a_callback_raises_instead_of_blocking(
    service: Any, executor: Executor, future: ComputeFuture
) -> None:
    other = executor.submit(abs, -2)
    outcome: queue.Queue[str] = queue.Queue()

    def wait(own: ComputeFuture, _: Any) -> None:
        for method in (own.result, own.exception, other.jobid):
            try:
                method()
            except RuntimeError as error:
                outcome.put(str(error))

    service.events[future.task_id] = [document("start", 4.0)]
    history = HeldHistory(service)  # so that it is not called here, where it may wait
    future.add_event_callback("start", wait)
    history.release.set()
    for _ in range(3):
        assert "from inside" in outcome.get(timeout=TIMEOUT)


def test_events_may_come_after_the_result(
    service: Any, executor: Executor, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    recorder = streaming(service, queues, messages, future)
    queues.publish(executor.task_group_id, messages.value(future.task_id, 1))
    assert future.result(TIMEOUT) == 1
    queues.publish_events(future.task_group_id, messages.events(future.task_id, ("clean", 9.0)))
    assert recorder.names(1) == ["clean"]


def test_shutdown_waits_for_the_last_events(
    service: Any, client: Client, queues: Any, messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "CLOSE_TIMEOUT", TIMEOUT)
    with Executor(str(uuid.uuid4()), client) as executor:
        future = executor.submit(abs, -1)
        assert future.wait_submitted(TIMEOUT)
        recorder = streaming(service, queues, messages, future)
        service.events[future.task_id].append(document("clean", 9.0))  # found at the last look
        queues.publish(executor.task_group_id, messages.value(future.task_id, 1))
        assert future.result(TIMEOUT) == 1
    assert not recorder.empty()
    assert recorder.next().name == "clean"


def test_add_done_callback_returns_the_future(future: ComputeFuture) -> None:
    assert future.add_done_callback(lambda _: None) is future


def test_the_names_of_events_are_those_of_flux(future: ComputeFuture) -> None:
    assert {*MAIN, "urgency", "exception", "flux-restart", "debug"} == ComputeFuture.EVENTS
    with pytest.raises(ValueError, match=r"unknown event 'lunch', expected .*alloc, .*urgency"):
        future.add_event_callback("lunch", Recorder())


# Job ids that take their time, or never come.


def test_waiting_for_a_jobid_has_a_limit(future: ComputeFuture) -> None:
    with pytest.raises(concurrent.futures.TimeoutError):
        future.jobid(0)


def test_jobid_waits_for_the_job_id(
    service: Any, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobid = pool.submit(future.jobid, TIMEOUT)
        until(lambda: bool(service.seen(f"{future.task_id}/events")))
        queues.publish_events(
            future.task_group_id, messages.events(future.task_id, ("submit", 0.0), jobid=2**63)
        )
        assert jobid.result(TIMEOUT) == 2**63


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (lambda m, t: m.value(t, 1), "ran without a job of its own: on a resident worker"),
        (lambda m, t: m.error(t, "Trace\nValueError: boom"), "failed without .*: ValueError: boom"),
        (
            lambda m, t: m.error(t, "no such queue", "EngineRefusedTask"),
            "refused it: no such queue",
        ),
        (lambda m, t: m.error(t, "by ada", "TaskCancelled"), "ended before it had a job: by ada"),
    ],
)
def test_a_task_that_ended_without_a_job_has_no_jobid(
    future: ComputeFuture, queues: Any, messages: Any, body: Any, text: str
) -> None:
    queues.publish(future.task_group_id, body(messages, future.task_id))
    told = Recorder()
    future.add_jobid_callback(told)
    with pytest.raises(RuntimeError, match=text):
        future.jobid(TIMEOUT)
    assert told.next() is future


def test_events_after_the_result_still_set_the_jobid(
    service: Any,
    future: ComputeFuture,
    queues: Any,
    messages: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = threading.Event()
    end = events_module.EventStream._on_end

    def after_the_first_look(stream: Any, task_id: str) -> None:
        def go_on() -> None:
            assert looked.wait(TIMEOUT)
            stream._thread.post(lambda: end(stream, task_id))

        threading.Thread(target=go_on).start()

    monkeypatch.setattr(events_module.EventStream, "_on_end", after_the_first_look)
    queues.publish(future.task_group_id, messages.value(future.task_id, 1))
    assert future.result(TIMEOUT) == 1
    asked = []
    answer = service.react

    def later(request: Any) -> Any:
        if request.path.endswith(f"{future.task_id}/events"):
            asked.append(request)
            looked.set()
            if len(asked) == 2:
                service.events[future.task_id] = [document("submit", 0.0)]
        return answer(request)

    service.react = later
    assert future.jobid(TIMEOUT) == 7


def test_a_jobid_can_be_asked_for_after_the_shutdown(
    service: Any, client: Client, queues: Any, messages: Any
) -> None:
    with Executor(str(uuid.uuid4()), client) as executor:
        future = executor.submit(abs, -1)
        assert future.wait_submitted(TIMEOUT)
        queues.publish(executor.task_group_id, messages.value(future.task_id, 1))
    service.events[future.task_id] = [document("submit", 0.0)]
    assert future.jobid(TIMEOUT) == 7
    # The stream that this took ends by itself.
    until(lambda: not any("events" in thread.name for thread in threading.enumerate()))


def test_a_cancelled_future_has_no_jobid(service: Any, executor: Executor, queues: Any) -> None:
    reached, go = threading.Event(), threading.Event()

    def hold(request: Any) -> None:
        if request.path.endswith("/submit"):
            reached.set()
            assert go.wait(TIMEOUT)

    service.react = hold
    executor.submit(abs, -1)
    assert reached.wait(TIMEOUT)
    future = executor.submit(abs, -1)
    told = Recorder()
    future.add_jobid_callback(told)
    assert future.cancel()
    go.set()
    with pytest.raises(concurrent.futures.CancelledError):
        future.jobid()
    assert told.next() is future


def test_a_task_that_was_never_submitted_has_no_jobid(service: Any, executor: Executor) -> None:
    service.react = lambda request: (
        (404, {"code": "ENDPOINT_NOT_FOUND", "message": "no such endpoint"})
        if request.path.endswith("/submit")
        else None
    )
    with pytest.raises(RuntimeError, match=r"never submitted: .*no such endpoint"):
        executor.submit(abs, -1).jobid(TIMEOUT)


def test_an_endpoint_without_jobs_is_reported_before_the_task_ends(
    service: Any, future: ComputeFuture
) -> None:
    refusal = {"code": "EVENTS_NOT_SUPPORTED", "message": "it is of another make"}
    path = f"/v2/tasks/{future.task_id}/events"
    service.react = lambda request: (409, refusal) if request.path == path else None
    with pytest.raises(RuntimeError, match="it is of another make"):
        future.jobid(TIMEOUT)
    assert not future.done()


def test_a_service_without_events_is_reported(
    service: Any, executor: Executor, future: ComputeFuture
) -> None:
    service.react = lambda request: (
        (404, {"detail": "Not Found"}) if request.path.endswith("/events") else None
    )
    with pytest.raises(RuntimeError, match=r"the service has no job events: .*Not Found"):
        future.jobid(TIMEOUT)
    assert not future.done()


def test_without_a_broker_events_come_from_the_service(
    service: Any, executor: Executor, future: ComputeFuture
) -> None:
    service.amqp_url = "amqp://guest:guest@127.0.0.1:1/%2F"
    service.events[future.task_id] = [document("submit", 0.0)]
    assert future.jobid(TIMEOUT) == 7


def test_a_future_without_an_executor_has_no_job() -> None:
    with pytest.raises(RuntimeError, match="it was not created by an Executor"):
        future_module.ComputeFuture().jobid(0)


def test_closing_a_client_ends_all_waits(
    service: Any, executor: Executor, future: ComputeFuture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flux_endpoint.client import exits

    monkeypatch.setattr(exits, "EXIT_FLUSH", 3600.0)  # it does not wait for the job

    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobid = pool.submit(future.jobid)
        until(lambda: bool(service.seen(f"{future.task_id}/events")))
        exits.shut_down_all()
        with pytest.raises(RuntimeError, match="the client was closed"):
            jobid.result(TIMEOUT)


def test_a_cancelled_task_raises_task_cancelled(
    service: Any, client: Client, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    queues.publish(future.task_group_id, messages.error(future.task_id, "by ada", "TaskCancelled"))
    with pytest.raises(TaskCancelled, match=r"^by ada$"):
        future.result(TIMEOUT)
    other = str(uuid.uuid4())
    end = {"status": "failed", "exception": "TaskCancelled: by bob", "completion_t": "2"}
    service.documents[other] = end
    with pytest.raises(TaskCancelled, match=r"^by bob$"):
        client.get_result(other)
    group = str(uuid.uuid4())
    service.groups[group] = [other]
    with Executor(client=client) as executor:
        (reloaded,) = executor.reload_tasks(group)
    with pytest.raises(TaskCancelled, match=r"^by bob$"):
        reloaded.result(0)


# A result may come before the job's first event.


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_result_sets_the_jobid_before_any_event(
    executor: Executor, future: ComputeFuture, queues: Any, messages: Any, *, asked_before: bool
) -> None:
    callback = Recorder()
    if asked_before:
        future.add_jobid_callback(callback)
    queues.publish(
        executor.task_group_id, messages.value(future.task_id, 1, flux_jobid=str(2**64 - 1))
    )
    assert future.result(TIMEOUT) == 1
    assert future.jobid(0) == 2**64 - 1  # at once
    if not asked_before:
        future.add_jobid_callback(callback)
    assert callback.next() is future


def test_events_after_the_result_are_still_delivered(
    executor: Executor, future: ComputeFuture, queues: Any, messages: Any
) -> None:
    recorder = recorded(future)
    result = messages.value(future.task_id, 1, flux_jobid="7")
    queues.publish(executor.task_group_id, result)
    assert future.result(TIMEOUT) == 1
    queues.publish_events(future.task_group_id, messages.events(future.task_id, *WHOLE))
    assert recorder.names(9) == list(MAIN)


@pytest.mark.parametrize("told", ["ƒ1", "", "-7"])
def test_a_result_with_an_impossible_job_id_is_still_a_result(
    executor: Executor, future: ComputeFuture, queues: Any, messages: Any, told: str
) -> None:
    queues.publish(executor.task_group_id, messages.value(future.task_id, 1, flux_jobid=told))
    assert future.result(TIMEOUT) == 1
    with pytest.raises(RuntimeError, match="ran without a job of its own"):
        future.jobid(TIMEOUT)
