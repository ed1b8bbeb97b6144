"""The cache of results: which tasks had which calls before."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from tests.service.conftest import PAYLOAD, refusal

from flux_endpoint.service.store import cache, retention, tasks
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.tables import cached_calls, users
from waiting import until

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def submit(
    api: TestClient, add_endpoint: Callable[..., str], add_function: Callable[..., str]
) -> Callable[..., list[str]]:
    def submit(count: int) -> list[str]:
        function_id = add_function()
        endpoint_id = add_endpoint(metadata={"flux_endpoint_version": "1"})
        body = {"tasks": {function_id: [PAYLOAD] * count}}
        answer = api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body).json()
        return list(answer["tasks"][function_id])

    return submit


@pytest.fixture
def end(database: Database) -> Callable[..., None]:
    def end(*ids: str, failed: bool = False, **details: int) -> None:
        outcomes = [
            tasks.TaskOutcome(each, failed, b"00\ngA", details or None, time.time()) for each in ids
        ]
        with database.write() as connection:
            tasks.complete(connection, outcomes, tasks.routes(connection, ids))

    return end


def found(api: TestClient, *keys: str) -> dict[str, str]:
    answer = api.post("/v3/cache/find", json={"keys": keys})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["tasks"])


def note(api: TestClient, **tasks: str) -> None:
    answer = api.post("/v3/cache", json={"tasks": tasks})
    assert answer.status_code == 204, answer.text


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(cached_calls)) or 0


def test_only_calls_that_have_succeeded_are_found(
    api: TestClient, submit: Callable[..., list[str]], end: Callable[..., None]
) -> None:
    done, failed, waiting = submit(3)
    end(done)
    end(failed, failed=True)
    note(api, **{ONE: done, TWO: failed, THREE: waiting})
    assert found(api, ONE, TWO, THREE, "f" * 64) == {ONE: done}
    end(waiting)
    assert found(api, THREE) == {THREE: waiting}


def test_a_command_has_succeeded_with_exit_code_0(
    api: TestClient, submit: Callable[..., list[str]], end: Callable[..., None]
) -> None:
    good, bad, killed = submit(3)
    end(good, returncode=0)
    end(bad, returncode=1)
    end(killed, returncode=-9)
    note(api, **{ONE: good, TWO: bad, THREE: killed})
    assert found(api, ONE, TWO, THREE) == {ONE: good}
    assert api.get("/v3/cache").json()["results"] == 1


def test_a_later_task_replaces_an_earlier_one_of_the_same_call(
    api: TestClient, submit: Callable[..., list[str]], end: Callable[..., None]
) -> None:
    first, second = submit(2)
    end(first, second)
    note(api, **{ONE: first})
    note(api, **{ONE: second, TWO: second})
    assert found(api, ONE, TWO) == {ONE: second, TWO: second}


def test_users_see_their_own_calls_only(
    api: TestClient,
    submit: Callable[..., list[str]],
    end: Callable[..., None],
    bob: dict[str, str],
    database: Database,
) -> None:
    (task,) = submit(1)
    end(task)
    note(api, **{ONE: task})
    query = api.post("/v3/cache/find", json={"keys": [ONE]}, headers=bob)
    assert query.json() == {"tasks": {}}
    theirs = {"tasks": {TWO: task, THREE: "00000000-0000-0000-0000-000000000000"}}
    assert api.post("/v3/cache", json=theirs, headers=bob).status_code == 204
    assert count(database) == 1
    assert api.delete("/v3/cache", headers=bob).json()["results"] == 0
    assert found(api, ONE) == {ONE: task}


def test_the_contents_are_listed_and_cleared_by_function(
    api: TestClient, submit: Callable[..., list[str]], end: Callable[..., None]
) -> None:
    ids = submit(3)
    end(*ids)
    note(api, **dict(zip([ONE, TWO, THREE], ids, strict=True)))
    listed = api.get("/v3/cache").json()
    assert listed["results"] == 3
    [function] = listed["functions"]
    assert (function["results"], function["bytes"]) == (3, 15)
    assert function["newest"] == pytest.approx(time.time(), abs=60)
    other = api.delete("/v3/cache", params={"function_name": "another"})
    assert other.json()["results"] == 0
    own = api.delete("/v3/cache", params={"function_name": function["function_name"]})
    assert own.json()["results"] == 3
    assert found(api, ONE, TWO, THREE) == {}
    assert api.get("/v3/cache").json() == {"results": 0, "functions": []}


def test_a_call_is_forgotten_with_its_task(
    api: TestClient,
    submit: Callable[..., list[str]],
    end: Callable[..., None],
    database: Database,
) -> None:
    (task,) = submit(1)
    end(task)
    note(api, **{ONE: task})
    with database.write() as connection:
        retention.remove_tasks(connection, [task])
    assert found(api, ONE) == {}
    assert count(database) == 0


def test_the_oldest_calls_are_forgotten_beyond_the_limit(
    api: TestClient,
    submit: Callable[..., list[str]],
    end: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache, "MAX_CALLS", 2)
    ids = submit(3)
    end(*ids)
    for key, task in zip([ONE, TWO, THREE], ids, strict=True):
        note(api, **{key: task})
    assert found(api, ONE, TWO, THREE) == {TWO: ids[1], THREE: ids[2]}


@pytest.mark.parametrize("key", ["", "1" * 63, "G" * 64])
def test_other_keys_are_refused(api: TestClient, key: str) -> None:
    refusal(
        api.post("/v3/cache/find", json={"keys": [key]}), 422, "SEMANTICALLY_INVALID", "keys[0]"
    )


def test_calls_are_noted_while_results_are_stored(
    database: Database, submit: Callable[..., list[str]]
) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    first, second = sorted(submit(2))
    with database.read() as connection:
        owner_id = connection.scalar(sa.select(users.c.id).where(users.c.name == "ada")) or ""

    def add() -> None:
        with database.write() as connection:
            cache.add(connection, owner_id, {ONE: second, TWO: first})

    with ThreadPoolExecutor() as threads:
        with database.write() as connection:
            tasks.routes(connection, [first])
            added = threads.submit(add)
            until(lambda: waits_for_a_lock(database))
            assert tasks.routes(connection, [second])
        added.result(timeout=60)
    assert count(database) == 2


def waits_for_a_lock(database: Database) -> bool:
    with database.read() as connection:
        waiting = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return bool(connection.scalar(waiting))
