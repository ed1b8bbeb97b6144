"""Results on their way from the broker, or the service, into futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
import uuid
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from flux_endpoint import Client, ComputeFuture, Executor, TaskExecutionFailed
from flux_endpoint.client import exits
from flux_endpoint.client import results as results_module
from flux_endpoint.client import streams as streams_module
from flux_endpoint.client.output import FollowedOutput
from flux_endpoint.client.results import TaskEnd, from_document, from_message, load, resolve
from flux_endpoint.errors import DeserializationError, InvalidMessageError
from flux_endpoint.functions import ShellResult
from flux_endpoint.protocol.exceptions import exception_text
from flux_endpoint.serialize import ComputeSerializer
from trap import Trap
from waiting import until

TIMEOUT = 20


def double(x: int) -> int:
    return 2 * x


def submitted(executor: Executor, count: int = 1) -> list[ComputeFuture]:
    futures = [executor.submit(double, i) for i in range(count)]
    for future in futures:
        assert future.wait_submitted(TIMEOUT)
    return futures


# A message, alone.


def test_messages_with_a_value_or_an_error_are_read(messages: Any) -> None:
    task = str(uuid.uuid4())
    value = from_message(messages.value(task, [1]), 17)
    assert load(value, ComputeSerializer().deserialize) == [1]
    error = from_message(messages.error(task, "Traceback: boom"), 17)
    with pytest.raises(TaskExecutionFailed, match="boom") as caught:
        load(error, ComputeSerializer().deserialize)
    assert caught.value.remote_data == "Traceback: boom"
    assert caught.value.completion_t == "17"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x02{}",
        b"\x01not json",
        b"\x01[]",
        b"\x01" + json.dumps({"message_type": "result", "data": {"task_id": "x"}}).encode(),
        b"\x01" + json.dumps({"message_type": "result", "data": []}).encode(),
        b"\x01"
        + json.dumps(
            {"message_type": "task_cancel", "data": {"task_id": str(uuid.UUID(int=1))}}
        ).encode(),
    ],
)
def test_other_messages_are_invalid(body: bytes) -> None:
    with pytest.raises(InvalidMessageError):
        from_message(body, None)


def test_the_error_of_an_unreadable_value_has_the_versions_of_both_sides() -> None:
    end = from_document(
        {
            "task_id": "t",
            "status": "success",
            "result": "00\nnonsense\n",
            "details": {"python_version": "3.8.1", "dill_version": "0.3.1"},
        }
    )
    assert end is not None
    with pytest.raises(DeserializationError, match=r"Here: Python .* Python 3\.8\.1, dill 0\.3\.1"):
        load(end, ComputeSerializer().deserialize)


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"status": "failed", "exception": "boom", "completion_t": "1"}, "boom"),
        ({"status": "FAILED", "reason": "gone"}, "gone"),
        ({"status": "unknown", "completion_t": "1"}, "neither result nor error"),
        ({"status": "success", "result": "x"}, None),
    ],
)
def test_a_document_that_is_final_ends_its_task(document: Any, error: str | None) -> None:
    end = from_document({"task_id": "t", **document})
    assert end is not None
    if error is None:
        assert (end.value, end.error) == ("x", None)
    else:
        assert error in str(end.error)


def test_a_future_has_the_output_of_its_task_once_it_is_done() -> None:
    future = ComputeFuture("t")
    with pytest.raises(concurrent.futures.InvalidStateError, match="task t has not ended"):
        _ = future.stdout
    details = {"stdout": "one\n", "stderr_dropped": 3, "stderr": "two"}
    resolve(future, TaskEnd("t", error="bad", details=details))
    assert isinstance(future.exception(), TaskExecutionFailed)
    assert future.stdout == "one\n"
    assert future.stderr == "[... 3 bytes before this were not kept ...]\ntwo"
    of_command = ShellResult("true", "out", "err", 0)
    for value in (of_command, vars(of_command)):
        future = ComputeFuture("t")
        future.set_result(value)
        assert (future.stdout, future.stderr) == ("out", "err")
    silent = ComputeFuture("t")
    silent.set_result({"stdout": "not a command's"})
    assert (silent.stdout, silent.stderr) == ("", "")


def test_followed_output_comes_in_lines() -> None:
    answers = [
        {"ended": False, "stdout": {"begin": 0, "end": 5, "text": "one\ntw"}},
        {"ended": False, "stdout": None},
        {"ended": False, "stdout": {"begin": 5, "end": 7, "text": "o\n"}},
        {"ended": False, "stdout": {"begin": 9, "end": 13, "text": "last"}},
        {"ended": False, "attempt": 3, "stdout": {"begin": 2, "end": 4, "text": "ag"}},
        {"ended": True, "attempt": 3, "stdout": {"begin": 4, "end": 10, "text": "ain\nok"}},
    ]
    asked = []

    def ask(task_id: str, attempt: int, stdout: int, stderr: int) -> dict[str, Any]:
        asked.append((attempt, stdout))
        assert stderr > 2**60  # nothing of it is wanted
        return answers[len(asked) - 1]

    lines = list(FollowedOutput(lambda: "t", ask, "stdout"))
    gap = "[... 2 bytes were not kept ...]\n"
    begins = "[... attempt 3 begins ...]\n"
    assert lines == ["one\n", "two\n", gap, "last\n", begins, gap, "again\n", "ok"]
    assert asked == [(1, 0), (1, 5), (1, 5), (1, 7), (1, 13), (3, 4)]
    assert list(FollowedOutput(lambda: None, ask, "stdout")) == []
    with pytest.raises(ValueError, match="stream must be"):
        ComputeFuture("t").output("both")  # type: ignore[arg-type]


def test_a_line_without_end_comes_in_parts() -> None:
    size = 40 << 10
    answers = [
        {
            "ended": at == 3,
            "stdout": {"begin": at * size, "end": (at + 1) * size, "text": "." * size},
        }
        for at in range(4)
    ]
    parts = list(FollowedOutput(lambda: "t", lambda *_: answers.pop(0), "stdout"))
    assert [len(part) for part in parts] == [2 * size, 2 * size]


def test_a_document_of_a_waiting_task_ends_nothing() -> None:
    assert from_document({"task_id": "t", "status": "waiting-for-ep"}) is None


# The stream, from a real broker.


@pytest.mark.rabbitmq
def test_results_resolve_futures_in_any_order(
    executor: Executor, queues: Any, messages: Any
) -> None:
    futures = submitted(executor, 20)
    bodies = [messages.value(future.task_id, i) for i, future in enumerate(futures)]
    queues.publish(executor.task_group_id, *reversed(bodies))
    assert [future.result(TIMEOUT) for future in futures] == list(range(20))
    executor.shutdown()
    (queue,) = queues.of(executor.task_group_id)
    assert queues.depth(queue) == 0


@pytest.mark.rabbitmq
def test_a_remote_error_is_raised_with_its_text_and_time(
    executor: Executor, queues: Any, messages: Any
) -> None:
    (future,) = submitted(executor)
    queues.publish(executor.task_group_id, messages.error(future.task_id, "ValueError: boom"))
    with pytest.raises(TaskExecutionFailed, match="ValueError: boom") as caught:
        future.result(TIMEOUT)
    assert caught.value.completion_t == "1700000000"


class MeshError(Exception):
    pass


@pytest.mark.parametrize("error", [MeshError("cell", 17), KeyError("cell")])
def test_a_future_raises_what_its_task_raised_if_that_is_wanted(
    service: Any, executor: Executor, error: Exception
) -> None:
    group, task = str(uuid.uuid4()), str(uuid.uuid4())
    service.groups[group] = [task]
    details = {"exception": exception_text(error)}
    service.documents[task] = {"status": "failed", "exception": "the report", "details": details}
    executor.raise_remote = True
    if isinstance(error, MeshError):
        (future,) = executor.reload_tasks(group)
        assert type(future.exception()) is TaskExecutionFailed  # the class is not known here
        executor.exceptions = [MeshError]
    (future,) = executor.reload_tasks(group)
    with pytest.raises(type(error)) as caught:
        future.result()
    assert caught.value.args == error.args
    report = caught.value.__cause__
    assert isinstance(report, TaskExecutionFailed)
    assert (report.remote_data, report.__cause__) == ("the report", None)


def test_a_stop_of_an_iteration_ends_no_loop_of_the_caller(executor: Executor) -> None:
    executor.raise_remote = True
    future = ComputeFuture("t")
    executor._read_with(future, executor.serializer)
    details = {"exception": exception_text(StopIteration("no more"))}
    resolve(future, TaskEnd("t", error="the report", details=details))

    async def wait() -> Any:
        return await asyncio.wait_for(asyncio.ensure_future(future), TIMEOUT)

    with pytest.raises(TaskExecutionFailed) as caught:
        asyncio.run(wait())
    assert isinstance(caught.value.__cause__, StopIteration)


@pytest.mark.parametrize("wrong", [MeshError, ["MeshError"], [KeyboardInterrupt], 3])
def test_only_classes_of_exceptions_are_taken_for_errors(executor: Executor, wrong: Any) -> None:
    with pytest.raises(TypeError, match="exceptions must be"):
        executor.exceptions = wrong


@pytest.mark.rabbitmq
def test_a_result_may_come_before_the_answer_to_its_submission(
    service: Any, executor: Executor, queues: Any, messages: Any
) -> None:
    submitted(executor)  # the stream consumes from here on
    group = executor.task_group_id

    def early(ids: list[str]) -> None:
        stranger = str(uuid.uuid4())
        queues.publish(group, *(messages.value(id_, id_) for id_ in [*ids, stranger]))
        until(lambda: queues.depth(*queues.of(group)) == 0)

    service.before_answer = early
    future = executor.submit(double, 1)
    assert future.result(TIMEOUT) == future.task_id


@pytest.mark.rabbitmq
def test_early_results_beyond_the_limit_are_requested_from_the_service(
    service: Any,
    executor: Executor,
    queues: Any,
    messages: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(results_module, "MAX_EARLY", 2)
    submitted(executor)
    group = executor.task_group_id

    def early(ids: list[str]) -> None:
        strangers = [str(uuid.uuid4()) for _ in range(4)]
        queues.publish(group, *(messages.value(id_, id_) for id_ in [*ids, *strangers]))
        until(lambda: queues.depth(*queues.of(group)) == 0)
        for id_ in ids:
            service.ended(id_, id_)

    service.before_answer = early
    future = executor.submit(double, 1)
    assert future.result(TIMEOUT) == future.task_id


@pytest.mark.rabbitmq
def test_results_of_other_processes_are_dropped(
    executor: Executor, queues: Any, messages: Any
) -> None:
    (future,) = submitted(executor)
    strangers = [messages.value(str(uuid.uuid4()), 0) for _ in range(300)]
    queues.publish(executor.task_group_id, *strangers, messages.value(future.task_id, "mine"))
    assert future.result(TIMEOUT) == "mine"


@pytest.mark.rabbitmq
def test_a_value_is_loaded_only_for_a_pending_future(
    service: Any, executor: Executor, queues: Any, messages: Any, tmp_path: Path
) -> None:
    """Not that of another's task, nor a second one, nor what comes amid a submission."""
    first, second = submitted(executor, 2)
    group = executor.task_group_id
    queues.publish(group, messages.value(first.task_id, "mine"))
    assert first.result(TIMEOUT) == "mine"
    traps = [tmp_path / name for name in ("stranger", "again", "early")]
    for task, file in zip((str(uuid.uuid4()), first.task_id), traps, strict=False):
        queues.publish(group, messages.value(task, Trap(file)))

    def amid(ids: list[str]) -> None:
        queues.publish(group, messages.value(str(uuid.uuid4()), Trap(traps[2])))
        until(lambda: queues.depth(*queues.of(group)) == 0)

    service.before_answer = amid
    (third,) = submitted(executor)
    queues.publish(group, *(messages.value(each.task_id, "mine") for each in (second, third)))
    assert (second.result(TIMEOUT), third.result(TIMEOUT)) == ("mine", "mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rabbitmq
def test_an_unreadable_message_is_dead_lettered_and_others_are_processed(
    executor: Executor, queues: Any, messages: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (future,) = submitted(executor)
    queues.publish(executor.task_group_id, b"\x01poison", messages.value(future.task_id, 1))
    assert future.result(TIMEOUT) == 1
    executor.shutdown()
    until(lambda: queues.depth("dead-letters") == 1)
    assert any("dead-lettered" in record.message for record in caplog.records)


@pytest.mark.rabbitmq
def test_a_value_that_cannot_be_read_fails_its_future_only(
    executor: Executor, queues: Any, messages: Any
) -> None:
    bad, good = submitted(executor, 2)
    body = messages.value(bad.task_id, 1).replace(b"00\\n", b"00\\nAA")
    queues.publish(executor.task_group_id, body, messages.value(good.task_id, 2))
    with pytest.raises(DeserializationError, match=f"task {bad.task_id} succeeded, but"):
        bad.result(TIMEOUT)
    assert good.result(TIMEOUT) == 2


@pytest.mark.rabbitmq
def test_executors_of_a_group_share_one_connection(
    service: Any, client: Client, queues: Any, messages: Any
) -> None:
    endpoint = str(uuid.uuid4())
    with (
        Executor(endpoint, client) as first,
        Executor(endpoint, Client(service.url, "secret-token")) as second,
    ):
        futures = [*submitted(first), *submitted(second)]
        queues.publish(first.task_group_id, *(messages.value(f.task_id, 5) for f in futures))
        assert [future.result(TIMEOUT) for future in futures] == [5, 5]
    assert len(service.seen("/results")) == 1


@pytest.mark.rabbitmq
def test_results_arrive_after_shutdown_without_waiting(
    executor: Executor, queues: Any, messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams_module, "CLOSE_TIMEOUT", TIMEOUT)
    (future,) = submitted(executor)
    executor.shutdown(wait=False)
    queues.publish(executor.task_group_id, messages.value(future.task_id, 3))
    assert future.result(TIMEOUT) == 3
    executor.shutdown()
    assert no_stream()


@pytest.mark.rabbitmq
def test_shutdown_waits_for_the_results(client: Client, queues: Any, messages: Any) -> None:
    with Executor(str(uuid.uuid4()), client) as executor:
        (future,) = submitted(executor)
        publish = threading.Timer(
            0.1, queues.publish, (executor.task_group_id, messages.value(future.task_id, 3))
        )
        publish.start()
    assert future.done()
    publish.join()


@pytest.mark.rabbitmq
def test_a_callback_may_submit_and_shut_down(
    executor: Executor, queues: Any, messages: Any
) -> None:
    (future,) = submitted(executor)
    more: list[ComputeFuture] = []

    def again(done: concurrent.futures.Future[Any]) -> None:
        more.append(executor.submit(double, done.result()))
        executor.shutdown()
        raise SystemExit("a callback may even do this")

    future.add_done_callback(again)
    queues.publish(executor.task_group_id, messages.value(future.task_id, 3))
    assert future.result(TIMEOUT) == 3
    until(lambda: bool(more))
    assert more[0].wait_submitted(TIMEOUT)
    queues.publish(executor.task_group_id, messages.value(more[0].task_id, 4))
    assert more[0].result(TIMEOUT) == 4


# Trouble with the broker.


@pytest.mark.rabbitmq
def test_a_cut_connection_loses_nothing(
    service: Any,
    executor: Executor,
    queues: Any,
    messages: Any,
    cut_connections: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, queued, lost = submitted(executor, 3)
    queues.publish(executor.task_group_id, messages.value(before.task_id, 0))
    assert before.result(TIMEOUT) == 0
    declare = service.react

    def lose(request: Any) -> Any:
        if request.path.endswith("/results"):  # only for the next connection
            service.ended(lost.task_id, "from the service")
        return declare(request)

    service.react = lose
    cut_connections()
    queues.publish(executor.task_group_id, messages.value(queued.task_id, "from the queue"))
    assert queued.result(TIMEOUT) == "from the queue"
    assert lost.result(TIMEOUT) == "from the service"
    assert len(service.seen("/results")) >= 2
    warnings = [
        record.message for record in caplog.records if record.message.startswith("results: ")
    ]
    assert "lost the connection" in warnings[0]
    assert "again" in warnings[-1]
    assert "guest" not in "".join(warnings)


@pytest.mark.rabbitmq
def test_without_a_queue_results_come_from_the_service(
    service: Any, executor: Executor, queues: Any
) -> None:
    service.react = lambda request: None  # declares no queue
    (future,) = submitted(executor)
    service.ended(future.task_id, "kept")
    assert future.result(TIMEOUT) == "kept"


def test_results_are_requested_from_an_older_service_without_client_queues(
    service: Any, executor: Executor
) -> None:
    unknown = {"code": "NOT_FOUND", "message": "no such route", "reason": "no such route"}
    service.react = lambda request: (404, unknown) if request.path.endswith("/results") else None
    (future,) = submitted(executor)
    service.ended(future.task_id, "kept")
    assert future.result(TIMEOUT) == "kept"


def test_an_unreachable_broker_is_reported_once_with_its_address(
    service: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    service.amqp_url = "amqp://guest:hidden@127.0.0.1:1/%2F"
    submitted(executor)
    # The second failure is known before the third attempt, and logged before the stream's end.
    until(lambda: len(service.seen("/results")) >= 3)
    exits.shut_down_all()
    until(no_stream)
    warnings = [r.message for r in caplog.records if "results: no connection to" in r.message]
    assert len(warnings) == 1
    assert "127.0.0.1:1" in warnings[0]
    assert "hidden" not in caplog.text


def test_the_amqp_port_can_be_overridden(
    service: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    executor.amqp_port = 2
    submitted(executor)
    until(lambda: "127.0.0.1:2" in caplog.text)


def test_a_submission_longer_than_the_exit_timeout_leaves_no_stream(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "EXIT_FLUSH", 0.0)
    reached, go = threading.Event(), threading.Event()

    def hold(request: Any) -> None:
        if request.path == "/v3/functions":
            reached.set()
            assert go.wait(TIMEOUT)

    service.react = hold
    future = executor.submit(double, 1)
    assert reached.wait(TIMEOUT)
    exits.shut_down_all()
    go.set()
    assert future.wait_submitted(TIMEOUT)  # with a stream that began after the end
    until(no_stream)


# Reloading.


@pytest.mark.rabbitmq
def test_reloaded_tasks_are_done_or_followed(
    service: Any, client: Client, queues: Any, messages: Any
) -> None:
    group = str(uuid.uuid4())
    done, failed, waiting = (str(uuid.uuid4()) for _ in range(3))
    service.groups[group] = [done, failed, waiting]
    service.ended(done, 1)
    service.documents[failed] = {"status": "failed", "exception": "boom", "completion_t": "2"}
    with Executor(client=client) as executor:
        futures = executor.reload_tasks(group)
        assert [future.task_id for future in futures] == [done, failed, waiting]
        assert [future.done() for future in futures] == [True, True, False]
        assert futures[0].result() == 1
        with pytest.raises(TaskExecutionFailed, match="boom"):
            futures[1].result()
        queues.publish(group, messages.value(waiting, 3))
        assert futures[2].result(TIMEOUT) == 3
    assert str(executor.task_group_id) == group


@pytest.mark.rabbitmq
def test_reloading_open_tasks_returns_their_own_futures(
    executor: Executor, queues: Any, messages: Any
) -> None:
    (future,) = submitted(executor)
    assert executor.reload_tasks() == [future]
    queues.publish(executor.task_group_id, messages.value(future.task_id, 3))
    assert future.result(TIMEOUT) == 3


def test_a_tasks_id_is_known_once_its_own_future_is_found_by_a_reload(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = threading.Event()
    futures: list[ComputeFuture] = []
    known: SimpleQueue[str | None] = SimpleQueue()
    ends = results_module.ResultStream.submission_ends

    def look(stream: Any, accepted: Any, endpoint: Any) -> None:
        assert made.wait(TIMEOUT)
        known.put(futures[0].task_id)
        ends(stream, accepted, endpoint)

    monkeypatch.setattr(results_module.ResultStream, "submission_ends", look)
    futures += [executor.submit(double, 1)]
    made.set()
    assert known.get(timeout=TIMEOUT) is None
    assert futures[0].wait_submitted(TIMEOUT)
    assert executor.reload_tasks() == futures


@pytest.mark.rabbitmq
@pytest.mark.parametrize("early", [True, False])
def test_a_task_reloaded_before_its_submission_is_answered_resolves_both_futures(
    service: Any, executor: Executor, queues: Any, messages: Any, early: bool
) -> None:
    reloaded: list[ComputeFuture] = []

    def reload(ids: list[str]) -> None:
        if early:
            queues.publish(executor.task_group_id, messages.value(ids[0], 3))
            service.ended(ids[0], 3)
        reloaded.extend(executor.reload_tasks())

    service.before_answer = reload
    future = executor.submit(double, 1)
    task = future.wait_submitted(TIMEOUT)
    if not early:
        queues.publish(executor.task_group_id, messages.value(task, 3))
    assert [each.task_id for each in reloaded] == [task]
    assert [each.result(TIMEOUT) for each in (future, *reloaded)] == [3, 3]


@pytest.mark.rabbitmq
def test_a_shutdown_during_a_reload_does_not_stop_it(
    service: Any, executor: Executor, queues: Any, messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, task = str(executor.task_group_id), str(uuid.uuid4())
    service.groups[group] = [task]
    follow = results_module.ResultStream.follow

    def shut_down_first(stream: Any, futures: list[ComputeFuture]) -> list[ComputeFuture]:
        executor.shutdown(wait=False)
        stream.join(0.2)
        return follow(stream, futures)

    monkeypatch.setattr(results_module.ResultStream, "follow", shut_down_first)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reloaded = pool.submit(executor.reload_tasks)
        (future,) = reloaded.result(TIMEOUT)
    queues.publish(group, messages.value(task, 3))
    assert future.result(TIMEOUT) == 3


def test_reloading_an_empty_group_returns_nothing(service: Any, executor: Executor) -> None:
    service.groups[str(executor.task_group_id)] = []
    assert executor.reload_tasks() == []


def no_stream() -> bool:
    return not any(t.name.startswith("flux-endpoint results") for t in threading.enumerate())
