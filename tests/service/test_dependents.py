"""Tasks that wait for others: stored, then published with the results that they take."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import OWN, PAYLOAD, Peer, Rest, refusal
from tests.service.test_results import result

from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES
from flux_endpoint.serialize import task_with_inputs
from flux_endpoint.service.app import create_app
from flux_endpoint.service.counting import Counting
from flux_endpoint.service.dependents import Dependents, _problem
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import dependencies as store
from flux_endpoint.service.store import retention, tasks
from flux_endpoint.service.store.dependencies import ready
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.tables import dependencies, dependents, submissions
from waiting import until

pytestmark = pytest.mark.rabbitmq


def submit(live: Rest, endpoint_id: str, *needs: Any) -> list[str]:
    """Submit a task of one function for each of `needs`; return their ids."""
    function_id = live.register_function()
    body = {
        "tasks": {function_id: [PAYLOAD] * len(needs)},
        "needs": {function_id: list(needs)},
    }
    answer = live.client.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["tasks"][function_id])


def taken(peer: Peer, endpoint_id: str) -> tuple[str, list[str]]:
    """Return the next task of an endpoint's queue: its id and the results that it takes."""
    data = json.loads(peer.take(f"{endpoint_id}.tasks").body[1:])["data"]
    return data["task_id"], task_with_inputs(data["task_buffer"])[1]


def failure(task_id: str) -> bytes:
    details = {"code": "RemoteExecutionError", "user_message": "it raised"}
    return result(task_id, "Traceback\nValueError: no", error_details=details)


def until_failed(live: Rest, task_id: str) -> str:
    until(lambda: live.status(task_id)["status"] == "failed")
    return str(live.status(task_id)["exception"])


def end(database: Database, failed: dict[str, bool]) -> store.Counted:
    """Store the ends of tasks as the consumer of results does; return what that means."""
    outcomes = [
        tasks.TaskOutcome(each, has_failed, f"of {each}".encode(), None, time.time())
        for each, has_failed in failed.items()
    ]
    with database.write() as connection:
        tasks.complete(connection, outcomes, tasks.routes(connection, failed))
        return store.tasks_ended(connection, failed)


def is_empty(database: Database) -> bool:
    with database.read() as connection:
        return not any(
            connection.execute(table.select()).first() for table in (dependencies, dependents)
        )


def test_a_task_is_published_with_results_once_all_have_succeeded(
    live: Rest, peer: Peer, database: Database
) -> None:
    endpoint_id = live.register_endpoint()
    first, second, third = submit(live, endpoint_id, None, None, None)
    needs = {"values": [second, first], "after": [third]}
    waiting, free = submit(live, endpoint_id, needs, None)
    for task_id in (first, second, third, free):  # not the one that waits
        assert taken(peer, endpoint_id) == (task_id, [])
    for task_id, data in ((first, "00\none\n"), (second, "00\ntwo\n"), (third, "00\nthree\n")):
        assert live.status(waiting)["status"] == "waiting-for-ep"
        peer.send_result(endpoint_id, result(task_id, data))
    assert taken(peer, endpoint_id) == (waiting, ["00\ntwo\n", "00\none\n"])
    peer.send_result(endpoint_id, result(waiting))
    peer.send_result(endpoint_id, result(free))
    # A task that needs one that has ended is published at once.
    late = submit(live, endpoint_id, {"values": [waiting]})
    assert taken(peer, endpoint_id)[0] == late[0]
    peer.send_result(endpoint_id, result(late[0]))
    until(lambda: is_empty(database))


def test_a_failure_fails_all_that_need_it(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    (first,) = submit(live, endpoint_id, None)
    (second,) = submit(live, endpoint_id, {"values": [first]})
    (third,) = submit(live, endpoint_id, {"after": [second]})
    peer.send_result(endpoint_id, failure(first))
    text = f"DependencyFailed: task {first}, which this task needs, failed: ValueError: no"
    assert until_failed(live, second) == text
    assert until_failed(live, third).startswith(f"DependencyFailed: task {second}, which")
    (late,) = submit(live, endpoint_id, {"after": [third]})
    assert "DependencyFailed" in until_failed(live, late)


def test_a_cancelled_task_fails_those_that_need_it(live: Rest) -> None:
    endpoint_id = live.register_endpoint()
    (first,) = submit(live, endpoint_id, None)
    (second,) = submit(live, endpoint_id, {"values": [first]})
    assert live.client.post(f"/v2/tasks/{first}/kill").status_code == 200
    assert "TaskCancelled" in until_failed(live, second)


def test_results_that_are_too_large_together_fail_the_task(live: Rest, peer: Peer) -> None:
    endpoint_id = live.register_endpoint()
    first, second = submit(live, endpoint_id, None, None)
    (third,) = submit(live, endpoint_id, {"values": [first, second]})
    for task_id in (first, second):
        data = "11\n" + "A" * (MAX_PAYLOAD_BYTES * 2 // 3)
        peer.send_result(endpoint_id, result(task_id, data))
    assert f"the limit is {MAX_PAYLOAD_BYTES}" in until_failed(live, third)


def test_the_next_service_publishes_what_became_ready(
    live_settings: ServiceSettings, token_of: Callable[[str], dict[str, str]], peer: Peer
) -> None:
    token = token_of("ada")
    with TestClient(create_app(live_settings), headers=token) as client:
        live = Rest(client)
        endpoint_id = live.register_endpoint()
        (first,) = submit(live, endpoint_id, None)
        (second,) = submit(live, endpoint_id, {"values": [first]})
    peer.send_result(endpoint_id, result(first, "00\none\n"))
    assert taken(peer, endpoint_id)[0] == first
    with TestClient(create_app(live_settings), headers=token):
        assert taken(peer, endpoint_id) == (second, ["00\none\n"])


def test_dependents_that_are_counted_later_are_published(
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "MAX_COUNTED", 0)
    token = token_of("ada")
    with TestClient(create_app(live_settings), headers=token) as client:
        live = Rest(client)
        endpoint_id = live.register_endpoint()
        first, bad, last = submit(live, endpoint_id, None, None, None)
        (second,) = submit(live, endpoint_id, {"values": [first]})
        (failing,) = submit(live, endpoint_id, {"after": [bad]})
        (third,) = submit(live, endpoint_id, {"values": [last]})
        for task_id in (first, bad, last):
            assert taken(peer, endpoint_id)[0] == task_id
        peer.send_result(endpoint_id, result(first, "00\none\n"))
        assert taken(peer, endpoint_id) == (second, ["00\none\n"])
        peer.send_result(endpoint_id, failure(bad))
        assert "DependencyFailed" in until_failed(live, failing)
    assert end(database, {last: False}).left == (last,)  # and this service ends
    with TestClient(create_app(live_settings), headers=token):
        assert taken(peer, endpoint_id)[0] == third


def test_a_running_service_finds_what_another_one_has_left_uncounted(
    live: Rest, peer: Peer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_COUNTED", 0)
    endpoint_id = live.register_endpoint()
    first, second = submit(live, endpoint_id, None, None)
    needs = [{"values": [first]}, {"values": [second]}]
    waiting = submit(live, endpoint_id, *needs)
    for task_id in (first, second):
        assert taken(peer, endpoint_id)[0] == task_id
    other = Dependents(database, peer.connection, look_every=0.1)
    other.start()
    other.connected()
    try:
        # It finds the first at its first look or later, and the second at a later one.
        for needed, ready_now in zip((first, second), waiting, strict=True):
            assert end(database, {needed: False}).left == (needed,)  # and that service ends
            assert taken(peer, endpoint_id)[0] == ready_now
    finally:
        other.close()


def test_a_needed_result_is_not_removed(live: Rest, peer: Peer, database: Database) -> None:
    endpoint_id = live.register_endpoint()
    first, other = submit(live, endpoint_id, None, None)
    submit(live, endpoint_id, {"values": [first, other]})
    peer.send_result(endpoint_id, result(first))
    until(lambda: live.status(first)["status"] == "success")
    with database.read() as connection:
        ids = [each.id for each in retention.oldest_submissions(connection, "", 10)]
        assert retention.ended_tasks(connection, ids, time.time() + 1) == []


def test_a_task_that_waits_does_not_count_as_taken(live: Rest, database: Database) -> None:
    endpoint_id = live.register_endpoint()
    (first,) = submit(live, endpoint_id, None)
    submit(live, endpoint_id, {"values": [first]})

    def are_published() -> bool:
        with database.read() as connection:
            rows = connection.execute(submissions.select()).all()
        return all(each.published_at is not None for each in rows)

    until(are_published)
    answer = live.client.get(f"/v3/endpoints/{endpoint_id}/taken")
    assert answer.status_code == 200, answer.text
    assert answer.json()["tasks"] == []  # the first is still in the queue


class TestReadyTasks:
    """Which tasks are ready, in a database without a broker."""

    @pytest.fixture
    def submitted(
        self, api: TestClient, add_endpoint: Callable[..., str]
    ) -> Callable[..., list[str]]:
        endpoint_id = add_endpoint(metadata=OWN)
        return lambda *needs: submit(Rest(api), endpoint_id, *needs)

    def test_a_batch_of_results_counts_each_need_once(
        self, submitted: Callable[..., list[str]], database: Database
    ) -> None:
        a, b, c, d = submitted(None, None, None, None)
        both, one, later, failing = submitted(
            {"values": [a, b], "after": [a]},
            {"after": [b]},
            {"after": [c, a]},
            {"values": [a], "after": [d]},
        )
        assert end(database, {}) == store.Counted()
        assert end(database, {a: False, b: False, d: True}) == store.Counted(are_ready=True)
        with database.read() as connection:
            found = {each.task.id: each for each in ready(connection)}
        assert set(found) == {both, one, failing}
        assert found[both].values == [f"of {a}", f"of {b}"]
        assert found[both].task.payload == PAYLOAD
        assert (found[failing].failed_need, found[failing].error) == (d, f"of {d}")
        assert end(database, {c: False}).are_ready
        with database.read() as connection:
            assert later in {each.task.id for each in ready(connection)}
        # Nothing waits for them.
        assert end(database, {both: False, later: False}) == store.Counted()

    def test_many_dependents_are_counted_page_by_page_with_the_same_outcome(
        self,
        submitted: Callable[..., list[str]],
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(store, "MAX_COUNTED", 3)
        monkeypatch.setattr(store, "PAGE_COUNTED", 2)
        monkeypatch.setattr(store, "MAX_FOUND", 5)
        looks: list[str] = []
        needing = store.needing
        monkeypatch.setattr(
            store,
            "needing",
            lambda connection, need, after: looks.append(need) or needing(connection, need, after),
        )
        root, bad, other, few = submitted(None, None, None, None)
        many = submitted(*[{"values": [root], "after": [root]}] * 4)
        two = submitted(*[{"values": [root], "after": [other, few]}] * 2)
        failing = submitted(*[{"after": [bad]}] * 5)
        assert end(database, {root: False, bad: True, few: False}) == store.Counted(
            are_ready=True, left=(bad, root)
        )
        late = submitted({"values": [root, other]})  # what has ended is not counted
        with database.read() as connection:
            found, after = set(), ""
            while after is not None:
                page, after = store.uncounted(connection, after)
                found.update(page)
        assert found == {*many, *two, *failing}  # and not `late`, whose count is right
        counting = Counting(database)
        counting.add([bad, root])
        steps = 0
        while not counting.is_over:
            counting.step()
            steps += 1
        assert steps > 5
        assert looks == [bad, bad, root, root, root]  # each look sorts all that are left
        with database.read() as connection:
            found = {each.task.id: each for each in ready(connection)}
        assert set(found) == {*many, *failing}
        assert found[many[0]].values == [f"of {root}"]
        assert {found[each].failed_need for each in failing} == {bad}
        assert end(database, {other: False}) == store.Counted(are_ready=True)
        counting.add([None, root])  # nothing is counted twice
        while not counting.is_over:
            counting.step()
        with database.read() as connection:
            assert {each.task.id for each in ready(connection)} == {*found, *two, *late}

    def test_what_is_too_large_is_not_read(
        self,
        submitted: Callable[..., list[str]],
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        first, second = submitted(None, None)
        large, small = submitted({"values": [first, second]}, {"values": [first]})
        end(database, {first: False, second: False})
        monkeypatch.setattr(store, "_TOO_MANY_CHARACTERS", 40)
        with database.read() as connection:
            found = ready(connection)
        assert [(each.task.id, each.values) for each in found] == [
            (large, None),
            (small, [f"of {first}"]),
        ]
        problem = _problem(found[0])
        assert problem is not None
        assert "too large together" in problem[1]
        monkeypatch.setattr(store, "PAGE_BYTES", 1)
        more = submitted({"values": [first]}, {"values": [second]})
        with database.read() as connection:
            assert more[0] not in {each.task.id for each in ready(connection)}  # the next page's


class TestRefusals:
    """A request is refused as a whole, and names the field."""

    def post(self, api: TestClient, endpoint_id: str, function_id: str, needs: Any) -> Any:
        body = {"tasks": {function_id: [PAYLOAD]}, "needs": needs}
        return api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)

    def test_needs_that_match_no_payload(
        self, api: TestClient, add_endpoint: Callable[..., str], add_function: Callable[..., str]
    ) -> None:
        endpoint_id = add_endpoint(metadata={"flux_endpoint_version": "1.0"})
        function_id = add_function()
        answer = self.post(api, endpoint_id, function_id, {function_id: [None, None]})
        refusal(answer, 422, "SEMANTICALLY_INVALID", f"needs.{function_id}")
        answer = self.post(api, endpoint_id, function_id, {str(uuid.uuid4()): []})
        assert answer.status_code == 422

    def test_an_unknown_task_or_that_of_another_user(
        self,
        api: TestClient,
        bob: dict[str, str],
        add_endpoint: Callable[..., str],
        add_function: Callable[..., str],
    ) -> None:
        endpoint_id = add_endpoint(metadata={"flux_endpoint_version": "1.0"}, users=["bob"])
        function_id = add_function(public=True)
        mine = self.post(api, endpoint_id, function_id, None).json()["tasks"][function_id][0]
        needs = {function_id: [{"values": [mine]}]}
        assert self.post(api, endpoint_id, function_id, needs).status_code == 200
        for headers, needed in ((bob, mine), ({}, str(uuid.uuid4())), ({}, "x")):
            body = {
                "tasks": {function_id: [PAYLOAD]},
                "needs": {function_id: [{"after": [needed]}]},
            }
            url = f"/v3/endpoints/{endpoint_id}/submit"
            answer = api.post(url, json=body, headers=headers)
            refusal(answer, 404, "TASK_NOT_FOUND", f"needs.{function_id}[0]")

    def test_an_endpoint_of_another_make(
        self, api: TestClient, add_endpoint: Callable[..., str], add_function: Callable[..., str]
    ) -> None:
        endpoint_id, function_id = add_endpoint(), add_function()
        needs = {function_id: [{"values": [str(uuid.uuid4())]}]}
        answer = self.post(api, endpoint_id, function_id, needs)
        code = "DEPENDENCIES_NOT_SUPPORTED"
        body = refusal(answer, 422, code, f"needs.{function_id}[0]")
        assert "is not one of Flux Endpoint" in body.message
        assert "submit the task then" in body.message
        ours = add_endpoint(multi_user=True, metadata={"user_endpoints_version": "1.0"})
        answer = self.post(api, ours, function_id, needs)
        body = refusal(answer, 422, code, f"needs.{function_id}[0]")
        assert "is a multi-user endpoint" in body.message
