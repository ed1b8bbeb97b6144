"""`flux-endpoint service prune` removes what it announces, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from tests.service.conftest import OWN
from tests.service.test_dependents import submit as submit_needs
from tests.service.test_retention import Rest, World

from flux_endpoint.cli.service import service
from flux_endpoint.service.store import retention, users
from flux_endpoint.service.store.administration import set_limits
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.tables import functions, submissions, task_groups, tasks
from flux_endpoint.service.sweep import DAY


@pytest.fixture
def world(
    api: TestClient,
    database: Database,
    add_endpoint: Callable[..., str],
    add_function: Callable[..., str],
) -> World:
    return World(api, database, add_endpoint(metadata=OWN), add_function())


@pytest.fixture
def prune(
    world: World, database_url: str, home: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    del world, home
    monkeypatch.setenv("FLUX_ENDPOINT_SERVICE_DATABASE_URL", database_url)
    return lambda *arguments: CliRunner().invoke(service, ["prune", *arguments])


@pytest.fixture
def home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(tmp_path))
    monkeypatch.setenv("FLUX_ENDPOINT_SERVICE_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    return tmp_path


def test_what_is_announced_is_removed_in_small_transactions(
    world: World, prune: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, home: Any
) -> None:
    monkeypatch.setattr(retention, "STEP_TASKS", 10)
    old = world.submit(25, ago=20 * DAY)
    world.end(old[:24], ago=8 * DAY, data="x" * 1000)
    alone = world.submit(5, ago=9 * DAY)
    world.end(alone, ago=8 * DAY, data="x" * 1000)
    lately = world.submit(3)
    world.end(lately, ago=60)
    needed, _ = submit_needs(Rest(world.api), world.endpoint_id, None, None)
    submit_needs(Rest(world.api), world.endpoint_id, {"values": [needed]})
    world.end([needed], ago=8 * DAY)
    unused = world.count(functions)
    nothing = prune("--dry-run")
    assert "Would be removed:\n  0 tasks that ended more than 14d ago" in nothing.stdout
    assert prune().stdout.startswith("Nothing is due:\n")

    options = ["--keep-results", "7d"]
    announced = json.loads(prune(*options, "--dry-run", "--json").stdout)
    assert announced == {
        "tasks": 29,
        "bytes": 29_000,
        "beyond_limit": 0,
        "beyond_bytes": 0,
        "task_groups": 1,
        "functions": 0,
    }
    asked = prune(*options)
    assert "29 tasks that ended more than 7d ago, with 28.3 KiB of results" in asked.output
    assert "nothing was removed: add --yes" in asked.output
    assert world.known(old) == old
    done = prune(*options, "--yes")
    assert done.output.endswith("Removed 29 tasks, 1 task groups and 0 functions.\n")
    assert world.known([*old, *alone, *lately, needed]) == [old[24], *lately, needed]
    assert world.count(functions) == unused
    assert '"tasks": 29' in (home / "audit.jsonl").read_text().splitlines()[-1]


@pytest.mark.parametrize("own", [False, True])
def test_a_user_with_too_much_and_functions_unused_for_long(
    world: World, prune: Callable[..., Result], own: bool
) -> None:
    first, lately = world.submit(10, ago=3 * DAY), world.submit(10)
    world.end(first, ago=7200, data="x" * 60_000, printed="y" * 40_000)
    world.end(lately, ago=60, data="x" * 100_000)
    with world.database.write() as connection:
        connection.execute(
            sa.delete(submissions).where(
                ~sa.exists().where(tasks.c.submission_id == submissions.c.id)
            )
        )
    if own:
        with world.database.write() as connection:
            user_id = users.user_id_of(connection, "ada") or ""
            set_limits(connection, user_id, {"keep_user_results": 500_000.0})
    most = "infinity" if own else "500000"
    options = ["--keep-user-results", most, "--keep-functions", "1h", "--json"]
    announced = json.loads(prune(*options, "--dry-run").stdout)
    assert (announced["beyond_limit"], announced["beyond_bytes"]) == (5, 500_000)
    removed = json.loads(prune(*options, "--yes").stdout)
    assert removed == {"tasks": 0, "beyond_limit": 5, "task_groups": 0, "functions": 0}
    assert world.known([*first, *lately]) == [*first[5:], *lately]
    assert world.count(task_groups) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--keep-tasks", "soon"], "'soon' is not a duration"),
        (["--keep-results", "0"], "must be more than 0"),
        (["--keep-user-results", "much"], "'much' is not a size"),
    ],
)
def test_settings_that_make_no_sense(arguments: list[str], reason: str) -> None:
    refused = CliRunner().invoke(service, ["prune", *arguments, "--yes"])
    assert refused.exit_code == 2
    assert reason in refused.output
