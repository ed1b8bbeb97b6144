"""`Client` and `Batch`, request by request."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from flux_endpoint import Client, TaskExecutionFailed, TaskPending
from flux_endpoint.client.skew import VersionSkewWarning
from flux_endpoint.errors import ServiceUnreachableError
from flux_endpoint.serialize import AllDataStrategies, DillDataBase64, JSONData, pack_buffers


def double(x: int) -> int:
    """Twice."""
    return 2 * x


ENDPOINT = str(uuid.uuid4())


def test_a_function_is_registered_with_name_versions_and_docstring(
    service: Any, client: Client
) -> None:
    assert uuid.UUID(client.register_function(double))
    body = service.seen("/v3/functions")[0].body
    assert (body["function_name"], body["description"]) == ("double", "Twice.")
    assert body["meta"]["serde_identifier"] == "01"
    assert body["meta"]["python_version"]
    length, _, code = body["function_code"].partition("\n")
    assert int(length) == len(code)


@pytest.mark.parametrize("form", ["args", "endpoint first", "named"])
def test_a_batch_takes_calls_in_each_form(service: Any, client: Client, form: str) -> None:
    function = str(uuid.uuid4())
    batch = client.create_batch()
    for i in range(3):
        match form:
            case "args":
                batch.add(function, (i,), {"y": 1})
            case "endpoint first":
                batch.add(function, ENDPOINT, args=(i,))
            case _:
                batch.add(function, args=(i,), endpoint_id=ENDPOINT)
    assert len(batch) == 3
    answer = client.batch_run(ENDPOINT, batch) if form == "args" else client.batch_run(batch)
    assert len(answer["tasks"][function]) == 3
    request = service.submissions()[0]
    assert request.body["task_group_id"] == client.session_task_group_id
    assert request.path == f"/v3/endpoints/{ENDPOINT}/submit"
    assert request.headers["idempotency-key"]


def test_a_batch_refuses_what_it_cannot_send(client: Client) -> None:
    function = str(uuid.uuid4())
    batch = client.create_batch()
    with pytest.raises(ValueError, match="batch is empty"):
        client.batch_run(ENDPOINT, batch)
    with pytest.raises(TypeError, match="args: expected `tuple`, got: str"):
        batch.add(function, args="abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected kwargs with `str` keys, got: int"):
        batch.add(function, kwargs={1: 2})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="each once"):
        batch.add(function, (1,), args=(1,))
    with pytest.raises(ValueError, match="function_id must be a UUID"):
        batch.add("double", (1,))
    batch.add(function)
    with pytest.raises(ValueError, match="no endpoint is set"):
        client.batch_run(batch)
    batch = client.create_batch()
    batch.add(function, ENDPOINT)
    with pytest.raises(ValueError, match="make one for each"):
        batch.add(function, str(uuid.uuid4()))


def test_a_batch_request_has_all_given_values(client: Client) -> None:
    group = uuid.uuid4()
    batch = client.create_batch(group, {"num_nodes": 1}, {"queue": "debug"}, True, ["a.b.JSONData"])
    batch.add(uuid.uuid4(), (1,))
    body = batch.prepare()
    assert body["task_group_id"] == str(group)
    assert body["resource_specification"] == {"num_nodes": 1}
    assert body["user_endpoint_config"] == {"queue": "debug"}
    assert body["create_queue"] is True
    assert body["result_serializers"] == ["a.b.JSONData"]


def test_run_returns_the_task_id(service: Any, client: Client) -> None:
    function = uuid.uuid4()
    task = client.run(1, y=2, endpoint_id=ENDPOINT, function_id=str(function).upper())
    assert service.groups[client.session_task_group_id] == [task]


def test_a_task_is_pending_then_done_or_failed(service: Any, client: Client) -> None:
    task = str(uuid.uuid4())
    assert client.get_task(task) == {"pending": True, "status": "waiting-for-ep"}
    with pytest.raises(TaskPending, match="waiting-for-ep") as caught:
        client.get_result(task)
    assert caught.value.reason == "waiting-for-ep"
    service.ended(task, [1, 2])
    assert client.get_task(task) == {
        "pending": False,
        "status": "success",
        "result": [1, 2],
        "completion_t": "1.5",
    }
    assert client.get_result(task) == [1, 2]
    service.documents[task] = {"status": "failed", "exception": "boom", "completion_t": "2"}
    for ask in (client.get_task, client.get_result):
        with pytest.raises(TaskExecutionFailed, match="boom") as failed:
            ask(task)
        assert failed.value.completion_t == "2"


def test_a_task_that_failed_without_an_error_has_a_reason(service: Any, client: Client) -> None:
    task = str(uuid.uuid4())
    service.documents[task] = {"status": "failed", "reason": "lost", "completion_t": "2"}
    state = client.get_task(task)
    assert (state["pending"], state["status"], state["reason"]) == (False, "failed", "lost")
    with pytest.raises(TaskExecutionFailed, match="lost"):
        client.get_result(task)


def test_a_result_of_another_python_is_warned_of(service: Any, client: Client) -> None:
    task = str(uuid.uuid4())
    service.ended(task, 7)
    service.documents[task]["details"] = {
        "endpoint_id": ENDPOINT,
        "python_version": "3.1.4",
        "dill_version": "0.1",
    }
    with pytest.warns(VersionSkewWarning, match=r"Python 3\.1\.4"):
        assert client.get_task(task)["result"] == 7


def test_the_version_check_of_the_official_client_may_be_named(service: Any) -> None:
    Client(service.url, "token", do_version_check=False)


@pytest.mark.parametrize("nothing", [None, "", 0])
def test_an_unset_group_is_none(nothing: Any, client: Client) -> None:
    batch = client.create_batch()
    batch.task_group_id = nothing
    assert batch.task_group_id is None
    assert "task_group_id" not in batch.prepare()


@pytest.mark.parametrize("strategy", [DillDataBase64(), JSONData(), AllDataStrategies()])
@pytest.mark.parametrize("given", [{}, {"args": (1,)}, {"kwargs": {"x": "y"}}])
def test_a_batch_writes_every_call_by_the_chosen_strategy(
    strategy: Any, given: Any, service: Any
) -> None:
    client = Client(service.url, "token", data_serialization_strategy=strategy)
    batch = client.create_batch()
    function = uuid.uuid4()
    batch.add(function, **given)
    parts = [given.get("args", ()), given.get("kwargs", {})]
    written = pack_buffers([strategy.serialize(part) for part in parts])
    assert batch.prepare()["tasks"] == {str(function): [written]}


def test_many_results_are_asked_in_chunks(service: Any, client: Client) -> None:
    tasks = [str(uuid.uuid4()) for _ in range(300)]
    service.ended(tasks[0], "first")
    service.documents[tasks[1]] = {"status": "failed", "exception": "boom"}
    states = client.get_batch_result(tasks)
    assert len(states) == 300
    assert states[tasks[0]]["result"] == "first"
    assert isinstance(states[tasks[1]]["exception"], TaskExecutionFailed)
    assert states[tasks[1]]["reason"] == "boom"
    assert states[tasks[2]]["pending"]
    assert [len(r.body["task_ids"]) for r in service.seen("batch_status")] == [128, 128, 44]


def test_an_unreachable_service_names_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flux_endpoint.rest.FIRST_BACKOFF", 0.001)
    client = Client("http://127.0.0.1:1", "token")
    with pytest.raises(ServiceUnreachableError, match=r"127\.0\.0\.1:1"):
        client.get_task(uuid.uuid4())
