"""What is old, or more than is kept, is forgotten; what is open, new or in use stays."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from tests.service.conftest import NO_BROKER, PAYLOAD, Peer, Rest, refusal
from tests.service.test_operations import events, result

from broker_access import NOBODY_ASKS, session_broker
from flux_endpoint.service import sweep
from flux_endpoint.service.app import create_app
from flux_endpoint.service.changes import Outcome, ReportedEnd
from flux_endpoint.service.retention import Retention
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import retention as store
from flux_endpoint.service.store import tasks
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.events import StoredEvent, add_events
from flux_endpoint.service.store.output import TaskOutput, output_of
from flux_endpoint.service.store.tables import functions, submissions, task_events, task_groups
from flux_endpoint.service.store.tables import tasks as task_table
from flux_endpoint.service.sweep import DAY, Keep
from waiting import until

AddEndpoint = Callable[..., str]
AddFunction = Callable[..., str]


class World:
    """Tasks in a database, which end when a test says so."""

    def __init__(self, api: TestClient, database: Database, endpoint_id: str, function_id: str):
        self.api = api
        self.database = database
        self.endpoint_id = endpoint_id
        self.function_id = function_id

    def submit(self, count: int = 1, *, ago: float = 0, function_id: str = "") -> list[str]:
        """Submit tasks, as it were some time ago."""
        function_id = function_id or self.function_id
        body = {"tasks": {function_id: [PAYLOAD] * count}}
        answer = self.api.post(f"/v3/endpoints/{self.endpoint_id}/submit", json=body).json()
        at = time.time() - ago
        with self.database.write() as connection:
            for table, column, value in (
                (submissions, submissions.c.id, answer["request_id"]),
                (task_groups, task_groups.c.id, answer["task_group_id"]),
            ):
                connection.execute(sa.update(table).where(column == value).values(created_at=at))
            connection.execute(
                sa.update(functions)
                .where(functions.c.id == function_id)
                .values(created_at=at, used_at=at)
            )
        ids: list[str] = answer["tasks"][function_id]
        return ids

    def end(
        self, ids: list[str], *, ago: float = 0, data: str = "00\ngA", printed: str = ""
    ) -> None:
        """Have tasks end, with an event each."""
        output = TaskOutput(printed, "") if printed else None
        at = time.time() - ago
        outcomes = [
            tasks.TaskOutcome(each, False, data.encode(), None, at, output=output) for each in ids
        ]
        with self.database.write() as connection:
            tasks.complete(connection, outcomes, tasks.routes(connection, ids))
            add_events(connection, [StoredEvent(each, 1, "submit", 1.0, {}) for each in ids])

    def known(self, ids: list[str]) -> list[str]:
        with self.database.read() as connection:
            query = sa.select(task_table.c.id).where(task_table.c.id.in_(ids))
            found = set(connection.scalars(query))
        return [each for each in ids if each in found]

    def count(self, table: sa.Table) -> int:
        with self.database.read() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


@pytest.fixture
def world(
    api: TestClient, database: Database, add_endpoint: AddEndpoint, add_function: AddFunction
) -> World:
    return World(
        api, database, add_endpoint(metadata={"flux_endpoint_version": "1"}), add_function()
    )


@pytest.fixture
def forget(database: Database) -> Iterator[Callable[..., Retention]]:
    started: list[Retention] = []

    def start(**keep: float) -> Retention:
        started.append(Retention(database, Keep(**keep)))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        each.close()
        assert not each._thread.is_alive()


Forget = Callable[..., Retention]


def test_old_tasks_are_removed_with_all_their_records(world: World, forget: Forget) -> None:
    old = world.submit(3, ago=20 * DAY)
    world.end(old, ago=15 * DAY)
    forget(functions=15 * DAY)
    until(lambda: world.known(old) == [])
    for table in (submissions, task_groups, task_events, functions):
        until(lambda table=table: world.count(table) == 0)  # type: ignore[misc]


def test_open_and_recently_ended_tasks_are_kept(world: World, forget: Forget) -> None:
    mixed = world.submit(3, ago=20 * DAY)
    gone, lately, is_open = mixed
    world.end([gone], ago=15 * DAY)
    world.end([lately], ago=13 * DAY)
    new = world.submit(1)
    world.end(new)
    forget(functions=15 * DAY)
    until(lambda: world.known(mixed) == [lately, is_open])
    time.sleep(0.5)
    assert world.known([*mixed, *new]) == [lately, is_open, *new]
    assert world.count(submissions) == 2
    assert world.count(task_events) == 2
    assert world.count(functions) == 1
    assert world.api.get(f"/v2/tasks/{lately}").json()["status"] == "success"


def test_each_task_is_removed_when_its_time_is_over(world: World, forget: Forget) -> None:
    early, late = world.submit(2, ago=10)
    forget(tasks=4.0)
    world.end([early], ago=3)
    world.end([late], ago=1)
    until(lambda: world.known([early, late]) == [late])
    until(lambda: world.known([early, late]) == [])


def test_many_are_removed_in_steps(
    world: World, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "STEP_TASKS", 10)
    monkeypatch.setattr(sweep, "_PAGE", 3)
    monkeypatch.setattr(sweep, "_PAUSE", 0.0)
    old = [each for _ in range(8) for each in world.submit(25, ago=20 * DAY)]
    world.end(old, ago=15 * DAY)
    is_open = world.submit(1, ago=20 * DAY)
    forget()
    until(lambda: world.known(old) == [])
    until(lambda: world.count(submissions) == 1)
    assert world.known(is_open) == is_open


def test_functions_unused_for_long_are_removed(
    world: World, forget: Forget, add_function: AddFunction
) -> None:
    used, unused, deleted = add_function(), add_function(), add_function()
    for each, ago in ((used, 100), (unused, 100), (deleted, 20)):
        ids = world.submit(1, ago=ago * DAY, function_id=each)
        world.end(ids, ago=(ago - 1) * DAY)
    assert world.api.delete(f"/v2/functions/{deleted}").status_code == 200
    with world.database.write() as connection:
        connection.execute(sa.update(functions).where(functions.c.id == used).values(used_at=None))
    body = {"tasks": {used: [PAYLOAD]}}
    again = world.api.post(f"/v3/endpoints/{world.endpoint_id}/submit", json=body)
    world.end(again.json()["tasks"][used], ago=99 * DAY)
    forget()
    until(lambda: world.count(submissions) == 1)

    def left() -> set[str]:
        with world.database.read() as connection:
            return set(connection.scalars(sa.select(functions.c.id)))

    until(lambda: left() == {world.function_id, used, deleted})
    with world.database.write() as connection:
        long_ago = sa.update(functions).where(functions.c.id == deleted)
        connection.execute(long_ago.values(deleted_at=time.time() - 15 * DAY))
    forget()
    until(lambda: left() == {world.function_id, used})


def test_a_user_with_too_much_loses_the_oldest_results(
    world: World, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, lately = world.submit(10), world.submit(10)
    world.end(first, ago=7200, data="x" * 100_000)
    world.end(lately, ago=60, data="x" * 100_000)
    one = forget(user_bytes=500_000.0)
    until(lambda: world.known(first) == first[5:])
    time.sleep(0.3)
    assert world.known([*first, *lately]) == [*first[5:], *lately]
    # And is looked at again when more has come.
    monkeypatch.setattr(sweep, "MIN_KEEP_SECONDS", 0.0)
    one.tasks_ended([ReportedEnd("ada", Outcome.SUCCESS, 0, None, None, 0, 1_000_000)])
    until(lambda: world.known([*first, *lately]) == lately[5:])


def test_what_tasks_have_printed_counts_with_their_results(world: World, forget: Forget) -> None:
    first = world.submit(10)
    world.end(first, ago=7200, data="x" * 1000, printed="y" * 99_000)
    one = forget(user_bytes=500_000.0)
    until(lambda: world.known(first) == first[5:])
    ids = world.submit(10)
    world.end(ids, ago=7200, data="x" * 1000, printed="y" * 99_000)
    one.tasks_ended([ReportedEnd("ada", Outcome.SUCCESS, 0, None, None, 0, 1, printed=990_000)])
    until(lambda: world.known([*first, *ids]) == ids[5:])


def test_a_result_that_replaces_a_presumed_failure_replaces_its_output(world: World) -> None:
    (task_id,) = world.submit()
    for presumed, output in ((True, "presumed"), (False, "real"), (False, "")):
        kept = TaskOutput(output, "") if output else None
        outcome = tasks.TaskOutcome(task_id, presumed, b"x", None, 1.0, presumed, kept)
        with world.database.write() as connection:
            tasks.complete(connection, [outcome], tasks.routes(connection, [task_id]))
            assert output_of(connection, [task_id]) == ({task_id: kept} if kept else {})


def test_other_users_keep_their_results(
    world: World,
    forget: Forget,
    bob: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    add_endpoint: AddEndpoint,
) -> None:
    monkeypatch.setattr(sweep, "MIN_KEEP_SECONDS", 0.0)
    mine = world.submit(10)
    world.end(mine, data="x" * 100_000)
    world.endpoint_id = add_endpoint(users=["*"], metadata={"flux_endpoint_version": "1"})
    world.api.headers.update(bob)
    code = {"function_name": "f", "function_code": "12\n01\ngASVabcd\n"}
    function_id = world.api.post("/v3/functions", json=code).json()["function_uuid"]
    theirs = world.submit(4, function_id=function_id)
    world.end(theirs, data="x" * 100_000)
    forget(user_bytes=500_000.0)
    until(lambda: world.known(mine) == mine[5:])
    time.sleep(0.3)
    assert world.known(theirs) == theirs


def test_the_file_returns_unused_space(world: World, forget: Forget) -> None:
    if world.database.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL does so by itself")

    def mebibytes() -> float:
        with world.database.read() as connection:
            pages, size = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("page_count", "page_size")
            )
        return int(pages) * int(size) / 2**20

    old = world.submit(300, ago=20 * DAY)
    world.end(old, ago=15 * DAY, data="x" * 100_000)
    assert mebibytes() > 28
    forget()
    until(lambda: world.known(old) == [])
    until(lambda: mebibytes() < 10)


def test_a_removed_task_is_answered_as_expired(api: TestClient) -> None:
    made = int((time.time() - 15 * DAY) * 1000)
    old = str(uuid.UUID(int=made << 80 | 7 << 76 | 2 << 62 | 5))
    for path in ("", "/events"):
        answer = api.get(f"/v2/tasks/{old}{path}")
        assert "14d after their end" in refusal(answer, 404, "TASK_EXPIRED", "task_id").message
    refusal(api.post(f"/v2/tasks/{old}/kill"), 404, "TASK_EXPIRED", "task_id")
    never = str(uuid.uuid4())
    refusal(api.get(f"/v2/tasks/{never}"), 404, "TASK_NOT_FOUND", "task_id")
    answer = api.post("/v2/batch_status", json={"task_ids": [old, never]}).json()["results"]
    assert "not known any more" in answer[old]["exception"]
    assert "not submitted here" in answer[never]["exception"]


@pytest.mark.rabbitmq
def test_a_running_service_removes_old_records(
    database_url: str, amqp_vhost: str, token_of: Callable[[str], dict[str, str]], peer: Peer
) -> None:
    settings = ServiceSettings(
        database_url=database_url,
        amqp_url=amqp_vhost,
        publish_timeout=30,
        keep_tasks="2s",
        keep_functions="3s",
        **session_broker.settings(amqp_vhost),
    )
    with TestClient(create_app(settings), headers=token_of("ada")) as client:
        rest = Rest(client)
        endpoint_id = rest.register_endpoint()
        _, (task_id, is_open) = rest.submit(endpoint_id, 2)
        peer.send_events(endpoint_id, events(task_id, ("submit", 1.0)))
        peer.send_result(endpoint_id, result(task_id))
        until(lambda: rest.status(task_id)["status"] == "success")
        until(lambda: rest.status(task_id).get("code") == "TASK_EXPIRED")
        assert rest.status(is_open)["status"] == "waiting-for-ep"


def test_settings_are_durations_and_sizes() -> None:
    def settings(**what: str) -> ServiceSettings:
        return ServiceSettings(
            database_url="sqlite:////none", amqp_url=NO_BROKER, **NOBODY_ASKS, **what
        )

    assert settings().keep_tasks == 14 * DAY
    assert settings(keep_tasks="infinity").keep_tasks == float("inf")
    assert settings(keep_user_results="1.5G").keep_user_results == 1.5 * 2**30
    for wrong in ({"keep_tasks": "0"}, {"keep_tasks": "soon"}, {"keep_user_results": "much"}):
        with pytest.raises(ValueError, match=r"keep_"):
            settings(**wrong)
