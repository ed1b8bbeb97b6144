"""The service's memory does not depend on how many results there are, or how large they are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import FUNCTION, PAYLOAD
from tests.service.test_server import ServiceProcess

from flux_endpoint.protocol.rest import RegisterEndpoint
from flux_endpoint.service.room import Room
from flux_endpoint.service.routes.tasks import ANSWER_BYTES
from flux_endpoint.service.store import endpoints, task_groups, tasks, users
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.ids import ordered_ids
from waiting import until

MIB = 2**20
COUNT, SIZE = 80, 5 * MIB


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    started = ServiceProcess(tmp_path)
    yield started
    started.end(9)


def peak(service: ServiceProcess) -> int:
    """Return the most memory that the process has had, in bytes."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_an_answer_of_many_results_is_made_as_it_is_sent(
    service: ServiceProcess, tmp_path: Path
) -> None:
    url = service.url
    database = Database(tmp_path / "service.db")
    with database.write() as connection:
        token = users.create_token(connection, "ada")
        user = users.user_by_token(connection, token)
        assert user is not None
        request = RegisterEndpoint(endpoint_name="lab")
        endpoints.put_endpoint(connection, "e", user.id, request)
        task_groups.add_group(connection, "g", user.id)
        ids = ordered_ids(COUNT)
        submission = tasks.Submission("s", user.id, "e", "g", False)
        new = [tasks.NewTask(each, None, "") for each in ids]
        tasks.add_submission(connection, submission, new)
    for each in ids:
        with database.write() as connection:
            outcome = tasks.TaskOutcome(each, False, b"x" * SIZE, None, time.time())
            tasks.complete(connection, [outcome], tasks.routes(connection, [each]))
    database.close()
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{url}/v2/endpoints", headers=headers, timeout=60).status_code == 200
    before = peak(service)
    answer = httpx.post(
        f"{url}/v2/batch_status", json={"task_ids": [*ids, "none"]}, headers=headers, timeout=120
    )
    results = answer.json()["results"]
    assert [len(results[each]["result"]) for each in ids] == [SIZE] * COUNT
    assert results["none"]["status"] == "failed"
    grown = peak(service) - before
    assert grown < COUNT * SIZE // 4, f"{grown / MIB:.0f} MiB"


class TestBatches:
    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_batch_answers_are_valid_json(
        self,
        api: TestClient,
        database: Database,
        add_endpoint: Callable[..., str],
        count: int,
    ) -> None:
        endpoint_id = add_endpoint(metadata={"flux_endpoint_version": "1"})
        code = {"function_name": "f", "function_code": FUNCTION}
        function_id = api.post("/v3/functions", json=code).json()["function_uuid"]
        ids: list[str] = []
        if count:
            body = {"tasks": {function_id: [PAYLOAD] * count}}
            answer = api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
            ids = answer.json()["tasks"][function_id]
        with database.write() as connection:
            outcomes = [
                tasks.TaskOutcome(each, False, b'"\n\xed\xa0\x80' + b"x" * ANSWER_BYTES, None, 1.0)
                for each in ids
            ]
            tasks.complete(connection, outcomes, tasks.routes(connection, ids))
        twice = [form for each in ids for form in (each, each.upper(), each)]
        for asked in (twice, [*twice, 'no "task"'], ['no "task"'], []):
            answer = api.post("/v2/batch_status", json={"task_ids": asked})
            assert answer.json()["response"] == "batch"
            assert set(answer.json()["results"]) == set(asked)
        if ids:
            found = api.post("/v2/batch_status", json={"task_ids": ids}).json()["results"]
            assert json.dumps(found[ids[0]]["result"])[:10] == '"\\"\\n\\ud800'[:10]


class TestRoom:
    def test_items_and_bytes_are_counted(self) -> None:
        room = Room(2, 100)
        assert room.acquire(60, 0)
        assert not room.acquire(60, 0.01)
        assert room.acquire(40, 0)
        assert not room.acquire(0, 0.01)
        room.release(60)
        assert room.acquire(60, 0)

    def test_an_item_larger_than_the_room_is_admitted_alone(self) -> None:
        room = Room(2, 100)
        assert room.acquire(1000, 0)
        assert not room.acquire(1, 0.01)
        room.release(1000)
        assert room.acquire(100, 0)

    def test_a_waiting_item_is_woken(self) -> None:
        room = Room(1, 100)
        assert room.acquire(1, 0)
        found: list[bool] = []
        waiter = threading.Thread(target=lambda: found.append(room.acquire(1, 30)))
        waiter.start()
        room.release(1)
        until(lambda: found == [True])
        waiter.join()
