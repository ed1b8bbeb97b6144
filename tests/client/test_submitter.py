"""What reaches the service, and what a failing service does to futures."""

from __future__ import annotations

import queue
import threading
import uuid
from concurrent.futures import CancelledError
from typing import Any

import pytest
from tests.client.conftest import Gate

from flux_endpoint import Client, ComputeFuture, Executor
from flux_endpoint.client import exits
from flux_endpoint.client.backlog import PendingTask, SubmissionBacklog, SubmissionRoute
from flux_endpoint.client.registry import FunctionRegistration
from flux_endpoint.errors import (
    PayloadTooLargeError,
    SerializationError,
    ServiceError,
    ServiceUnreachableError,
)
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES

TIMEOUT = 20


def double(x: int) -> int:
    return 2 * x


def triple(x: int) -> int:
    return 3 * x


def error(status: int, code: str, message: str = "no", field: str | None = None) -> Any:
    return status, {
        "code": code,
        "message": message,
        "reason": message,
        "status": "Failed",
        "http_status_code": status,
        "request_id": "r",
        "field": field,
    }


def test_a_future_gets_its_ids_with_the_answer(service: Any, executor: Executor) -> None:
    future = executor.submit(double, 1)
    assert future.wait_submitted(TIMEOUT) == service.groups[str(executor.task_group_id)][0]
    assert future.function_id in service.submissions()[0].body["tasks"]
    assert future.endpoint_id == str(executor.endpoint_id)
    assert not future.done()


def test_a_timeout_of_result_is_not_cut_short_by_the_answer(
    service: Any, executor: Executor
) -> None:
    gate = Gate(service)
    future = executor.submit(double, 1)
    assert gate.reached.wait(TIMEOUT)
    waiter = threading.Thread(target=future.result, args=(TIMEOUT,))
    waiter.start()
    while not future._condition._waiters:  # type: ignore[attr-defined]
        assert waiter.is_alive()
    gate.open.set()
    assert future.wait_submitted(TIMEOUT)
    future.set_result(2)  # `result` raises in its thread, hence fails the test, if it gave up
    waiter.join()


def test_wait_submitted_ends_with_the_future(service: Any, executor: Executor) -> None:
    service.react = lambda request: error(422, "SEMANTICALLY_INVALID")
    assert executor.submit(double, 1).wait_submitted(TIMEOUT) is None


def test_tasks_wait_while_the_service_has_no_room_for_more(
    service: Any, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = 7  # more than one request is repeated

    def react(request: Any) -> Any:
        nonlocal refusals
        if request.path.endswith("/submit") and refusals:
            refusals -= 1
            return error(429, "TOO_MANY_TASKS", "you have 5 tasks, of at most 5")
        return None

    service.react = react
    future = executor.submit(double, 1)
    assert future.wait_submitted(TIMEOUT)
    assert caplog.text.count("tasks wait until the service has room") == 1
    assert "of at most 5" in caplog.text


def test_submit_returns_while_the_service_has_yet_to_answer(
    service: Any, executor: Executor
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def react(_: Any) -> None:
        asked.set()
        assert answer.wait(TIMEOUT)

    service.react = react
    future = executor.submit(pow, 2, 1)  # returns although nothing is answered
    assert asked.wait(TIMEOUT)
    assert future.task_id is None
    assert not future.done()
    answer.set()
    assert future.wait_submitted(TIMEOUT)


def test_tasks_that_wait_go_out_together_up_to_batch_size(service: Any, executor: Executor) -> None:
    gate = Gate(service)
    executor.batch_size = 4
    first = executor.submit(double, 0)
    assert gate.reached.wait(TIMEOUT)
    futures = [executor.submit(double, i) for i in range(10)]
    gate.open.set()
    for future in [first, *futures]:
        assert future.wait_submitted(TIMEOUT)
    counts = [
        sum(len(payloads) for payloads in request.body["tasks"].values())
        for request in service.submissions()
    ]
    assert counts == [1, 4, 4, 2]
    assert executor.task_count_submitted == 11


def test_a_task_is_counted_before_its_id_is_set(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: queue.SimpleQueue[int] = queue.SimpleQueue()
    tell = ComputeFuture._accepted

    def look(*arguments: Any) -> None:
        tell(*arguments)
        counts.put(executor.task_count_submitted)

    monkeypatch.setattr(ComputeFuture, "_accepted", staticmethod(look))
    executor.submit(double, 1)
    executor.attach(5)
    assert [counts.get(timeout=TIMEOUT) for _ in range(2)] == [1, 2]


def test_the_function_id_is_set_before_the_task_id(
    service: Any, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def watch(future: ComputeFuture, name: str, value: Any) -> None:
        object.__setattr__(future, name, value)
        if name == "task_id" and value is not None:
            functions.put(future.function_id)

    monkeypatch.setattr(ComputeFuture, "__setattr__", watch, raising=False)
    future = executor.submit(double, 1)
    seen = functions.get(timeout=TIMEOUT)
    assert seen is not None
    assert seen == future.function_id


def test_a_function_is_registered_once(service: Any, executor: Executor) -> None:
    futures = [executor.submit(double, i) for i in range(5)]
    futures.append(executor.submit(triple, 1))
    for future in futures:
        assert future.wait_submitted(TIMEOUT)
    names = [request.body["function_name"] for request in service.seen("/v3/functions")]
    assert sorted(names) == ["double", "triple"]
    assert len({future.function_id for future in futures}) == 2


def test_equal_lambdas_made_in_a_loop_are_one_function(service: Any, executor: Executor) -> None:
    for _ in range(3):
        assert executor.submit(lambda x: x + 1, 1).wait_submitted(TIMEOUT)
    assert len(service.seen("/v3/functions")) == 1


def test_a_submission_request_has_all_settings_of_the_executor(
    service: Any, executor: Executor
) -> None:
    executor.resource_specification = {"num_nodes": 2}
    executor.user_endpoint_config = {"walltime": "1:00"}
    assert executor.submit(double, 1).wait_submitted(TIMEOUT)
    request = service.submissions()[0]
    assert request.path == f"/v3/endpoints/{executor.endpoint_id}/submit"
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.body["task_group_id"] == str(executor.task_group_id)
    assert "create_queue" not in request.body  # that is for official clients
    assert request.body["resource_specification"] == {"num_nodes": 2}
    assert request.body["user_endpoint_config"] == {"walltime": "1:00"}
    assert "result_serializers" not in request.body
    assert request.body["user_runtime"]["python"]["implementation"]


def test_changed_settings_do_not_affect_tasks_submitted_before(
    service: Any, executor: Executor
) -> None:
    gate = Gate(service)
    futures = [executor.submit(double, 0)]
    assert gate.reached.wait(TIMEOUT)
    values = [1, 2]
    specification = {"num_nodes": 1}
    executor.resource_specification = specification
    futures.append(executor.submit(double, values))
    values.append(3)
    specification["num_nodes"] = 2
    futures.append(executor.submit(double, values))
    gate.open.set()
    for future in futures:
        assert future.wait_submitted(TIMEOUT)
    sent = [
        (request.body.get("resource_specification"), next(iter(request.body["tasks"].values())))
        for request in service.submissions()[1:]
    ]
    assert [specification for specification, _ in sent] == [{"num_nodes": 1}, {"num_nodes": 2}]
    assert sent[0][1] != sent[1][1]


def test_a_function_that_cannot_be_serialized_names_itself(
    service: Any, executor: Executor
) -> None:
    generator = (i for i in range(3))

    def takes_one() -> int:
        return next(generator)

    with pytest.raises(SerializationError, match=r"function 'takes_one' .*generator"):
        executor.submit(takes_one)
    assert executor.submit(double, 1).wait_submitted(TIMEOUT)


def test_arguments_that_cannot_be_serialized_name_the_function(executor: Executor) -> None:
    with pytest.raises(SerializationError, match=r"arguments of 'double' .*generator"):
        executor.submit(double, (i for i in range(3)))


def test_submitting_an_object_that_is_not_callable_is_refused(executor: Executor) -> None:
    with pytest.raises(TypeError, match="expected a function, got int: 7"):
        executor.submit(7)  # type: ignore[arg-type]


def test_a_payload_over_the_limit_fails_at_submit_with_its_size(executor: Executor) -> None:
    with pytest.raises(PayloadTooLargeError, match=r"'double' .* 10\.\d MiB .*10 MiB.*store="):
        executor.submit(double, b"x" * (MAX_PAYLOAD_BYTES + 1))
    assert executor.submit(double, 1).wait_submitted(TIMEOUT)


def test_large_payloads_go_out_in_several_requests(service: Any, executor: Executor) -> None:
    gate = Gate(service)
    futures = [executor.submit(double, 0)]
    assert gate.reached.wait(TIMEOUT)
    futures += [executor.submit(double, b"x" * 2**19) for _ in range(6)]
    gate.open.set()
    for future in futures:
        assert future.wait_submitted(TIMEOUT)
    sizes = [
        sum(len(payload) for payloads in request.body["tasks"].values() for payload in payloads)
        for request in service.submissions()
    ]
    assert max(sizes) <= 2 * 2**20
    assert len(sizes) == 4


@pytest.mark.parametrize("trouble", ["lose", "500"])
def test_a_submission_is_repeated_under_the_same_key(
    service: Any, executor: Executor, trouble: str
) -> None:
    troubles = ["lose" if trouble == "lose" else error(500, "INTERNAL")] * 2
    service.react = lambda request: (
        troubles.pop() if troubles and request.path.endswith("/submit") else None
    )
    assert executor.submit(double, 1).wait_submitted(TIMEOUT)
    keys = [request.headers["idempotency-key"] for request in service.submissions()]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert len(service.groups[str(executor.task_group_id)]) == 1
    assert executor.submit(double, 1).wait_submitted(TIMEOUT)
    assert service.submissions()[-1].headers["idempotency-key"] != keys[0]


def test_a_refused_function_fails_only_its_futures(service: Any, executor: Executor) -> None:
    gate = Gate(service)
    first = executor.submit(double, 0)
    assert gate.reached.wait(TIMEOUT)
    unknown = str(uuid.uuid4())
    bad = [executor.submit_to_registered_function(unknown, (i,)) for i in range(2)]
    good = [executor.submit(double, i) for i in range(3)]

    def refuse(request: Any) -> Any:
        if request.path.endswith("/submit") and unknown in request.body["tasks"]:
            return error(404, "FUNCTION_NOT_FOUND", f"function {unknown} is unknown", "tasks")
        return None

    service.react = refuse
    gate.open.set()
    for future in bad:
        with pytest.raises(ServiceError, match=f"function {unknown} is unknown") as caught:
            future.result(TIMEOUT)
        assert caught.value.code == "FUNCTION_NOT_FOUND"
    for future in [first, *good, executor.submit(double, 1)]:
        assert future.wait_submitted(TIMEOUT)


def test_a_refused_payload_fails_only_its_future(service: Any, executor: Executor) -> None:
    gate = Gate(service)
    first = executor.submit(double, 0)
    assert gate.reached.wait(TIMEOUT)
    futures = [executor.submit(double, i) for i in range(8)]
    large = executor.submit(double, "x" * 100_000)

    def refuse(request: Any) -> Any:
        if request.path.endswith("/submit"):
            payloads = next(iter(request.body["tasks"].values()))
            if any(len(payload) > 100_000 for payload in payloads):
                return error(413, "TASK_PAYLOAD_TOO_LARGE")
        return None

    service.react = refuse
    gate.open.set()
    with pytest.raises(ServiceError):
        large.result(TIMEOUT)
    for future in [first, *futures]:
        assert future.wait_submitted(TIMEOUT)


def test_an_unknown_endpoint_fails_the_batch_with_one_request(
    service: Any, executor: Executor
) -> None:
    gate = Gate(service)
    first = executor.submit(double, 0)
    assert gate.reached.wait(TIMEOUT)
    executor.endpoint_id = uuid.uuid4()
    futures = [executor.submit(function, 1) for function in (double, triple, double)]

    def refuse(request: Any) -> Any:
        if str(executor.endpoint_id) in request.path:
            return error(404, "ENDPOINT_NOT_FOUND", "endpoint is unknown", "endpoint_id")
        return None

    service.react = refuse
    gate.open.set()
    for future in futures:
        with pytest.raises(ServiceError, match="endpoint is unknown"):
            future.result(TIMEOUT)
    assert len(service.submissions()) == 2
    assert first.wait_submitted(TIMEOUT)


def test_a_refused_registration_fails_only_its_futures(service: Any, executor: Executor) -> None:
    service.react = lambda request: (
        error(422, "SEMANTICALLY_INVALID", "bad name", "function_name")
        if request.path == "/v3/functions" and request.body["function_name"] == "triple"
        else None
    )
    good, bad = executor.submit(double, 1), executor.submit(triple, 1)
    with pytest.raises(ServiceError, match="bad name"):
        bad.result(TIMEOUT)
    assert good.wait_submitted(TIMEOUT)
    service.react = lambda request: None
    assert executor.submit(triple, 1).wait_submitted(TIMEOUT)


def test_a_callback_that_raises_does_not_stop_the_submitter(
    service: Any, executor: Executor
) -> None:
    gate = Gate(service)
    first = executor.submit(double, 0)
    assert gate.reached.wait(TIMEOUT)
    bad = executor.submit_to_registered_function(str(uuid.uuid4()))

    def leave(future: Any) -> None:
        raise SystemExit("a callback may even do this")

    bad.add_done_callback(leave)
    service.react = lambda request: (
        error(404, "FUNCTION_NOT_FOUND")
        if request.path.endswith("/submit") and bad.task_id is None and not bad.done()
        else None
    )
    gate.open.set()
    with pytest.raises(ServiceError):
        bad.result(TIMEOUT)
    assert executor.submit(double, 1).wait_submitted(TIMEOUT)
    assert first.task_id


def test_an_answer_with_too_few_ids_is_an_error(service: Any, executor: Executor) -> None:
    service.react = lambda request: (
        (200, {"request_id": "r", "task_group_id": "g", "endpoint_id": "e", "tasks": {}})
        if request.path.endswith("/submit")
        else None
    )
    with pytest.raises(ServiceError, match="0 ids for 1 tasks"):
        executor.submit(double, 1).result(TIMEOUT)


def test_an_unreachable_service_fails_tasks_only_after_the_set_time(
    client: Client, service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    service.react = lambda request: error(503, "UNAVAILABLE")
    with Executor(str(uuid.uuid4()), client, give_up_after=0.1) as executor:
        future = executor.submit(double, 1)
        with pytest.raises(ServiceUnreachableError):
            future.result(TIMEOUT)
    lost = [r.message for r in caplog.records if "is unreachable, trying again" in r.message]
    assert len(lost) == 1
    assert service.url in lost[0]


def test_a_function_id_must_be_a_uuid(executor: Executor) -> None:
    with pytest.raises(ValueError, match=r"function_id must be a UUID.*'double'"):
        executor.submit_to_registered_function("double", (1,))
    with pytest.raises(TypeError, match="args must be a tuple"):
        executor.submit_to_registered_function(str(uuid.uuid4()), 1)  # type: ignore[arg-type]


def test_a_function_may_be_registered_beforehand(service: Any, executor: Executor) -> None:
    known = executor.register_function(double, description="twice", public=True)
    body = service.seen("/v3/functions")[0].body
    assert (body["description"], body["public"], body["serialized"]) == ("twice", True, True)
    assert executor.submit(double, 1).wait_submitted(TIMEOUT)
    assert list(service.submissions()[0].body["tasks"]) == [known]
    with pytest.raises(ValueError, match=f"already registered as function id: {known}: 'double'"):
        executor.register_function(double)
    other = str(uuid.uuid4())
    with pytest.raises(ValueError, match=rf"id: {known} \(attempted id: {other}\)"):
        executor.register_function(double, function_id=other)
    assert executor.register_function(triple, function_id=other) == other
    assert len(service.seen("/v3/functions")) == 1


def test_source_code_may_be_registered(service: Any, executor: Executor) -> None:
    source = "def area(r):\n    return 3 * r * r\n"
    known = executor.register_source_code(source, "area")
    body = service.seen("/v3/functions")[0].body
    assert (body["function_code"], body["serialized"]) == (source, False)
    with pytest.raises(ValueError, match=f"already registered as function id: {known}"):
        executor.register_source_code(source, "area")
    with pytest.raises(ValueError, match="defines no 'volume'"):
        executor.register_source_code(source, "volume")
    with pytest.raises(ValueError, match="line 1"):
        executor.register_source_code("def area(", "area")


def test_source_code_may_be_indented_as_it_was_cut_out(service: Any, executor: Executor) -> None:
    executor.register_source_code("\n    def area(r):\n        return 3 * r\n", "area")
    assert service.seen("/v3/functions")[0].body["function_code"] == (
        "\ndef area(r):\n    return 3 * r\n"
    )


def test_submitting_after_shutdown_is_refused(executor: Executor) -> None:
    executor.shutdown()
    for call in (
        lambda: executor.submit(double, 1),
        lambda: executor.submit_to_registered_function(str(uuid.uuid4())),
        lambda: executor.register_function(double),
        executor.reload_tasks,
    ):
        with pytest.raises(RuntimeError, match=r"is shutdown; (no new functions|refusing to reg)"):
            call()


def test_shutdown_can_cancel_unsent_tasks(service: Any, executor: Executor) -> None:
    gate = Gate(service)
    sent = executor.submit(double, 0)
    assert gate.reached.wait(TIMEOUT)
    waiting = [executor.submit(double, i) for i in range(3)]
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open.set()
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(TIMEOUT)
    assert sent.wait_submitted(TIMEOUT)
    assert len(service.submissions()) == 1


def test_a_cancelled_future_is_not_sent(service: Any, executor: Executor) -> None:
    gate = Gate(service)
    sent = executor.submit(double, 0)
    assert gate.reached.wait(TIMEOUT)
    cancelled, kept = executor.submit(double, 1), executor.submit(double, 2)
    assert cancelled.cancel()
    assert not sent.cancel()
    gate.open.set()
    assert kept.wait_submitted(TIMEOUT)
    assert len(next(iter(service.submissions()[1].body["tasks"].values()))) == 1


def test_ctrl_c_leaves_the_with_block_at_once(service: Any, client: Client) -> None:
    gate = Gate(service)
    waiting = []

    def interrupted() -> None:
        with Executor(str(uuid.uuid4()), client) as executor:
            executor.submit(double, 0)
            assert gate.reached.wait(TIMEOUT)
            waiting.append(executor.submit(double, 1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert waiting[0].cancelled()
    gate.open.set()


def test_ctrl_c_while_submit_waits_leaves_nothing_to_wait_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_args: Any, **_how: Any) -> bool:
        raise KeyboardInterrupt

    executor = Executor(str(uuid.uuid4()), client)
    with monkeypatch.context() as patch:
        patch.setattr(SubmissionBacklog, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(double, 1)
    shutdown = threading.Thread(target=executor.shutdown, daemon=True)
    shutdown.start()
    shutdown.join(TIMEOUT)
    assert not shutdown.is_alive()


def test_a_garbage_collected_executor_still_sends_its_tasks(service: Any, client: Client) -> None:
    future = Executor(str(uuid.uuid4()), client).submit(double, 1)
    assert future.wait_submitted(TIMEOUT)


def _pending(size: int = 1) -> PendingTask:
    return PendingTask(
        ComputeFuture(), SubmissionRoute("g", "e"), FunctionRegistration("f"), "x" * size
    )


def test_submit_waits_while_the_backlog_is_full() -> None:
    backlog = SubmissionBacklog(max_tasks=2, max_bytes=100)
    for size in (1, 100):
        assert backlog.put(_pending(size))
    added = threading.Event()

    def add() -> None:
        backlog.put(_pending())
        added.set()

    thread = threading.Thread(target=add)
    thread.start()
    assert backlog.put(_pending(), may_wait=False)
    assert not added.is_set()
    assert len(backlog.take(10, 1000)) == 3
    assert added.wait(TIMEOUT)
    thread.join()
    backlog.close()
    assert not backlog.put(_pending())
    assert len(backlog.take(10, 1000)) == 1
    assert backlog.take(10, 1000) == []


def test_the_interpreter_exits_without_shutdown(service: Any, run_script: Any) -> None:
    """What was submitted is still sent; results are not waited for."""
    done = run_script(
        """
        from flux_endpoint.client import exits as module
        module.EXIT_FLUSH = 50  # on a machine that is busy, too
        executor = Executor(ENDPOINT)
        futures = [executor.submit(pow, 2, i) for i in range(300)]
        """
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert sum(len(tasks) for tasks in service.groups.values()) == 300


def test_the_interpreter_exits_while_the_service_is_down(run_script: Any) -> None:
    assert exits.EXIT_FLUSH < TIMEOUT
    done = run_script(
        """
        from flux_endpoint.client import exits as module
        module.EXIT_FLUSH = 0.2
        executor = Executor(ENDPOINT, Client("http://127.0.0.1:1", "token"))
        executor.submit(pow, 2, 1)
        """
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
