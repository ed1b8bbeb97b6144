"""Submitting: what is refused, what is stored, what a repetition gets."""

import threading
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from tests.service.conftest import OWN, PAYLOAD, refusal

from flux_endpoint.amqp.url import without_credentials
from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.service.store import users as users_of
from flux_endpoint.service.store.engine import Database

Submit = Callable[..., Response]


@pytest.fixture
def function_id(add_function: Callable[..., str]) -> str:
    return add_function()


@pytest.fixture
def endpoint_id(add_endpoint: Callable[..., str]) -> str:
    return add_endpoint()


@pytest.fixture
def submit(api: TestClient, endpoint_id: str) -> Submit:
    def post(
        tasks: Any,
        key: str | None = None,
        to: str | None = None,
        headers: dict[str, str] | None = None,
        **what: Any,
    ) -> Response:
        headers = {**(headers or {}), **({IDEMPOTENCY_HEADER: key} if key else {})}
        body = {"tasks": tasks, **what}
        return api.post(f"/v3/endpoints/{to or endpoint_id}/submit", json=body, headers=headers)

    return post


def test_each_payload_gets_a_task_in_order(
    api: TestClient, submit: Submit, add_function: Callable[..., str], endpoint_id: str
) -> None:
    first, second = add_function(), add_function()
    answer = submit({first: [PAYLOAD] * 3, second: [PAYLOAD]}).json()
    assert answer["endpoint_id"] == endpoint_id
    assert [len(answer["tasks"][each]) for each in (first, second)] == [3, 1]
    uuid.UUID(answer["request_id"])
    group = api.get(f"/v2/taskgroup/{answer['task_group_id']}").json()
    assert group["taskgroup_id"] == answer["task_group_id"]
    submitted = [*answer["tasks"][first], *answer["tasks"][second]]
    assert [task["id"] for task in group["tasks"]] == submitted


def test_the_answer_says_that_the_endpoint_is_offline(submit: Submit, function_id: str) -> None:
    answer = submit({function_id: [PAYLOAD]}).json()
    assert answer["endpoint_status"] == "offline"
    assert "endpoint_last_seen" not in answer  # it never was online


def test_the_answer_names_functions_as_the_caller_did(submit: Submit, function_id: str) -> None:
    asked = function_id.replace("-", "").upper()
    assert list(submit({asked: [PAYLOAD]}).json()["tasks"]) == [asked]


def test_a_task_that_the_broker_does_not_have_yet_is_received(
    api: TestClient, submit: Submit, function_id: str
) -> None:
    (task_id,) = submit({function_id: [PAYLOAD]}, create_queue=True).json()["tasks"][function_id]
    document = {"task_id": task_id, "status": "received"}
    assert api.get(f"/v2/tasks/{task_id}").json() == document
    batch = api.post("/v2/batch_status", json={"task_ids": [task_id, task_id.upper()]}).json()
    assert batch == {"response": "batch", "results": {task_id: document, task_id.upper(): document}}


def test_an_unknown_task_reads_as_failed_in_a_batch_and_as_404_alone(api: TestClient) -> None:
    unknown = str(uuid.uuid4())
    batch = api.post("/v2/batch_status", json={"task_ids": [unknown, "no-id"]}).json()
    for task_id in (unknown, "no-id"):
        document = batch["results"][task_id]
        assert document["task_id"] == task_id
        assert document["status"] == "failed"
        assert "unknown" in document["exception"]
        assert float(document["completion_t"]) > 0
        assert document["details"] is None
    refusal(api.get(f"/v2/tasks/{unknown}"), 404, "TASK_NOT_FOUND", "task_id")


def test_tasks_and_groups_of_others_are_unknown(
    api: TestClient, submit: Submit, function_id: str, bob: dict[str, str]
) -> None:
    answer = submit({function_id: [PAYLOAD]}).json()
    (task_id,) = answer["tasks"][function_id]
    refused = api.get(f"/v2/tasks/{task_id}", headers=bob)
    refusal(refused, 404, "TASK_NOT_FOUND", "task_id")
    refused = api.get(f"/v2/taskgroup/{answer['task_group_id']}", headers=bob)
    refusal(refused, 404, "TASK_GROUP_NOT_FOUND", "task_group_id")
    batch = api.post("/v2/batch_status", json={"task_ids": [task_id]}, headers=bob).json()
    assert "unknown" in batch["results"][task_id]["exception"]


def test_a_group_can_be_chosen_and_used_again_on_another_endpoint(
    api: TestClient, submit: Submit, function_id: str, add_endpoint: Callable[..., str]
) -> None:
    group_id = str(uuid.uuid4())
    for to in (None, add_endpoint()):
        answer = submit({function_id: [PAYLOAD]}, to=to, task_group_id=group_id)
        assert answer.json()["task_group_id"] == group_id
    assert len(api.get(f"/v2/taskgroup/{group_id}").json()["tasks"]) == 2


def test_the_group_of_another_user_is_refused(
    submit: Submit,
    add_function: Callable[..., str],
    add_endpoint: Callable[..., str],
    bob: dict[str, str],
) -> None:
    function_id, endpoint_id = add_function(public=True), add_endpoint(users=["bob"])
    group_id = submit({function_id: [PAYLOAD]}).json()["task_group_id"]
    answer = submit({function_id: [PAYLOAD]}, to=endpoint_id, task_group_id=group_id, headers=bob)
    refusal(answer, 403, "TASK_GROUP_NOT_PERMITTED", "task_group_id")


def test_a_configuration_for_an_endpoint_without_a_template_is_refused(
    submit: Submit, function_id: str, add_endpoint: Callable[..., str]
) -> None:
    for make in (OWN, {"endpoint_version": "4.19.0"}):
        endpoint_id = add_endpoint(metadata=make)
        batch = {function_id: [PAYLOAD]}
        answer = submit(batch, to=endpoint_id, user_endpoint_config={"walltime": "1:00"})
        body = refusal(answer, 422, "SEMANTICALLY_INVALID", "user_endpoint_config")
        assert f"endpoint {endpoint_id} has no configuration template" in body.message
        assert submit(batch, to=endpoint_id, user_endpoint_config={}).is_success


def test_an_unknown_endpoint_is_refused(submit: Submit, function_id: str) -> None:
    unknown = str(uuid.uuid4())
    answer = submit({function_id: [PAYLOAD]}, to=unknown)
    assert unknown in refusal(answer, 404, "ENDPOINT_NOT_FOUND", "endpoint_id").message


def test_an_unknown_function_is_refused_and_the_others_are_not_stored(
    api: TestClient, submit: Submit, function_id: str
) -> None:
    unknown, group_id = str(uuid.uuid4()), str(uuid.uuid4())
    answer = submit({function_id: [PAYLOAD], unknown: [PAYLOAD]}, task_group_id=group_id)
    refusal(answer, 404, "FUNCTION_NOT_FOUND", f"tasks.{unknown}")
    assert api.get(f"/v2/taskgroup/{group_id}").status_code == 404


def test_only_permitted_users_may_run_tasks_at_a_public_endpoint(
    submit: Submit,
    add_function: Callable[..., str],
    add_endpoint: Callable[..., str],
    bob: dict[str, str],
    database: Database,
) -> None:
    function_id = add_function(public=True)

    def answer(**endpoint: Any) -> Response:
        return submit({function_id: [PAYLOAD]}, to=add_endpoint(**endpoint), headers=bob)

    for users in (None, [], ["ada", "bobby", "Bob"]):
        told = refusal(
            answer(public=True, users=users), 403, "ENDPOINT_NOT_PERMITTED", "endpoint_id"
        )
        assert "its owner, ada, and of the users: and groups: in its config.yaml" in told.message
        assert "which do not include bob" in told.message
        refusal(answer(users=users), 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
    for users in (["bob"], ["carl", "bob"], ["*"]):
        assert answer(users=users).status_code == 200
    refusal(answer(groups=["chemists"]), 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
    with database.write() as connection:
        member = users_of.user_id_of(connection, "bob")
        assert member is not None
        users_of.join_group(connection, "chemists", member)
    assert answer(groups=["physicists", "chemists"]).status_code == 200
    with database.write() as connection:
        assert users_of.list_groups(connection) == {"chemists": ["bob"]}
        assert users_of.leave_group(connection, "chemists", member)
        assert not users_of.leave_group(connection, "chemists", member)
    refusal(answer(groups=["chemists"]), 404, "ENDPOINT_NOT_FOUND", "endpoint_id")


def test_only_permitted_functions_are_taken(
    submit: Submit,
    function_id: str,
    add_function: Callable[..., str],
    add_endpoint: Callable[..., str],
    bob: dict[str, str],
) -> None:
    picky, open_to_all = add_endpoint(allowed_functions=[add_function()]), add_endpoint(users=["*"])
    answer = submit({function_id: [PAYLOAD]}, to=picky)
    refusal(answer, 403, "FUNCTION_NOT_PERMITTED", f"tasks.{function_id}")
    # Whether somebody else has it is not told.
    for unknown in (function_id, str(uuid.uuid4())):
        answer = submit({unknown: [PAYLOAD]}, to=open_to_all, headers=bob)
        body = refusal(answer, 404, "FUNCTION_NOT_FOUND", f"tasks.{unknown}")
        assert body.message == f"function {unknown} is unknown"


def test_ten_mebibytes_of_arguments_are_accepted_and_one_byte_more_is_not(
    submit: Submit, function_id: str
) -> None:
    def payload(size: int) -> str:
        arguments = "11\n" + "x" * (size - 3)
        return f"{len(arguments)}\n{arguments}3\n00\n"

    assert submit({function_id: [payload(MAX_PAYLOAD_BYTES)]}).status_code == 200
    answer = submit({function_id: [PAYLOAD, payload(MAX_PAYLOAD_BYTES + 1)]})
    refusal(answer, 413, "TASK_PAYLOAD_TOO_LARGE", f"tasks.{function_id}[1]")


def test_base64_counts_with_what_it_carries(submit: Submit, function_id: str) -> None:
    def payload(size: int) -> str:
        lines = ("A" * 76 + "\n") * (size // 57)
        return f"{len(lines) + 3}\n00\n{lines}3\n00\n"

    assert submit({function_id: [payload(MAX_PAYLOAD_BYTES)]}).status_code == 200
    answer = submit({function_id: [payload(MAX_PAYLOAD_BYTES + 57)]})
    refusal(answer, 413, "TASK_PAYLOAD_TOO_LARGE", f"tasks.{function_id}[0]")


def test_a_huge_payload_that_is_not_packed_is_too_large_first(
    submit: Submit, function_id: str
) -> None:
    answer = submit({function_id: ["x" * (MAX_PAYLOAD_BYTES + 1)]})
    refusal(answer, 413, "TASK_PAYLOAD_TOO_LARGE", f"tasks.{function_id}[0]")


@pytest.mark.parametrize(
    "payload", ["", "nonsense", "3\n00\n", "3\n00\n3\n00\n3\n00\n", "99\n00\n"]
)
def test_a_payload_that_is_not_two_buffers_is_refused(
    submit: Submit, function_id: str, payload: str
) -> None:
    answer = submit({function_id: [PAYLOAD, payload]})
    refusal(answer, 422, "SEMANTICALLY_INVALID", f"tasks.{function_id}[1]")


def test_malformed_batches_name_the_field(submit: Submit, function_id: str) -> None:
    for tasks, field in (
        ({}, "tasks"),
        ([], "tasks"),
        ({"f1": [PAYLOAD]}, "tasks.f1"),
        ({function_id: []}, f"tasks.{function_id}"),
        ({function_id: [PAYLOAD, 7]}, f"tasks.{function_id}[1]"),
        ({function_id: [PAYLOAD], function_id.upper(): [PAYLOAD]}, f"tasks.{function_id.upper()}"),
    ):
        refusal(submit(tasks), 422, "SEMANTICALLY_INVALID", field)
    answer = submit({function_id: [PAYLOAD]}, task_group_id="g1")
    refusal(answer, 422, "SEMANTICALLY_INVALID", "task_group_id")


def test_a_repeated_submission_gets_the_first_answer(
    api: TestClient, submit: Submit, function_id: str
) -> None:
    first = submit({function_id: [PAYLOAD] * 5}, key="k1")
    again = submit({function_id: [PAYLOAD] * 5}, key="k1")
    assert again.json() == first.json()
    group = api.get(f"/v2/taskgroup/{first.json()['task_group_id']}").json()
    assert len(group["tasks"]) == 5
    other = submit({function_id: [PAYLOAD] * 5}, key="k2")
    assert other.json()["tasks"] != first.json()["tasks"]


def test_a_repetition_gets_its_answer_even_when_the_function_is_gone(
    api: TestClient, submit: Submit, function_id: str
) -> None:
    first = submit({function_id: [PAYLOAD]}, key="k1")
    api.delete(f"/v2/functions/{function_id}")
    assert submit({function_id: [PAYLOAD]}, key="k1").json() == first.json()


def test_repetitions_at_the_same_time_run_once(submit: Submit, function_id: str) -> None:
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(submit({function_id: [PAYLOAD]}, key="k1").json())
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert all(answer == answers[0] for answer in answers)


def test_an_idempotency_key_is_valid_for_one_request_only(
    submit: Submit, function_id: str, add_endpoint: Callable[..., str]
) -> None:
    submit({function_id: [PAYLOAD]}, key="k1")
    for answer in (
        submit({function_id: [PAYLOAD] * 2}, key="k1"),
        submit({function_id: [PAYLOAD]}, key="k1", to=add_endpoint()),
    ):
        refusal(answer, 422, "IDEMPOTENCY_KEY_REUSED", IDEMPOTENCY_HEADER)


def test_idempotency_keys_of_different_users_are_independent(
    submit: Submit,
    add_function: Callable[..., str],
    add_endpoint: Callable[..., str],
    bob: dict[str, str],
) -> None:
    function_id, to = add_function(public=True), add_endpoint(users=["bob"])
    mine = submit({function_id: [PAYLOAD]}, key="k1", to=to).json()
    theirs = submit({function_id: [PAYLOAD]}, key="k1", to=to, headers=bob).json()
    assert mine["tasks"] != theirs["tasks"]


def test_the_result_connection_is_returned(api: TestClient) -> None:
    answer = api.get("/v2/get_amqp_result_connection_url").json()
    assert answer["queue_prefix"] == "tg."
    assert without_credentials(answer["connection_url"]) == "amqp://127.0.0.1:1/%2F"
    me = api.get("/auth/v2/oauth2/userinfo").json()["sub"]
    assert urlsplit(answer["connection_url"]).username.startswith(f"u-{me}-")


def test_options_that_an_endpoint_does_not_know_are_refused(
    submit: Submit, function_id: str, add_endpoint: Callable[..., str]
) -> None:
    tasks, options = {function_id: [PAYLOAD]}, {"retries": 2}
    code, field = "RUN_OPTIONS_NOT_SUPPORTED", "run_options"
    for about, why in (({}, "is not one of Flux Endpoint"), (OWN, "is of an earlier release")):
        other = add_endpoint(metadata=about)
        answer = submit(tasks, to=other, run_options=options)
        text = refusal(answer, 422, code, field).message
        assert f"endpoint {other} {why}, and does not know retries" in text
        assert submit(tasks, to=other, run_options={"retries": 0}).status_code == 200
    known = add_endpoint(metadata={**OWN, "run_options": ["retries"]})
    assert submit(tasks, to=known, run_options=options).status_code == 200
    answer = submit(tasks, to=known, run_options={**options, "retry_on": ["lost"]})
    assert "retry_on" in refusal(answer, 422, code, field).message
    answer = submit(tasks, to=known, run_options={"stdin": "1", "env": {"A": "1"}})
    assert "does not know stdin, env" in refusal(answer, 422, code, field).message


def test_wrong_options_are_refused(submit: Submit, function_id: str) -> None:
    for options in (
        {"retries": -1},
        {"tries": 1},
        {"retries": 1, "retry_on": [None]},
        {"stdin": {"path": "x"}},
        {"stdin": "x" * 40_000},
        {"cwd": ["x"]},
        {"env": {"A": 1}},
    ):
        answer = submit({function_id: [PAYLOAD]}, run_options=options)
        refusal(answer, 422, "SEMANTICALLY_INVALID", "run_options")
    job = {"run_options": {"time_limit": 1}, "resource_specification": {"num_nodes": 1}}
    answer = submit({function_id: [PAYLOAD]}, **job)
    assert "walltime" in refusal(answer, 422, "SEMANTICALLY_INVALID", "run_options").message
    # The endpoint says what is wrong with it.
    wrong = {"resource_specification": {"num_nodes": 1, "shell_options": 5}}
    assert submit({function_id: [PAYLOAD]}, **wrong).status_code == 200
