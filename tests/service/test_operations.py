"""What operators ask: how the service and an endpoint are, and what tasks there are."""

import json
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text
from tests.service.conftest import PATIENCE, PAYLOAD, Peer, Relay, Rest, refusal

from flux_endpoint import __version__
from flux_endpoint.protocol.messages import (
    EPStatusReport,
    ReportsWanted,
    Result,
    TaskTransition,
    pack,
    unpack,
)
from flux_endpoint.protocol.queues import commands_queue
from flux_endpoint.protocol.states import ActorName, TaskState
from flux_endpoint.service import fresh_reports
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

AddEndpoint = Callable[..., str]


def report(endpoint_id: str, **state: Any) -> bytes:
    state = {"heartbeat_period": 30, "start_unix": 1000.5, "active": True, **state}
    message = EPStatusReport(
        endpoint_id=uuid.UUID(endpoint_id), global_state=state, task_statuses={}
    )
    return pack(message)


def result(
    task_id: str,
    error: str | None = None,
    ran: tuple[float, float] | None = None,
    details: dict[str, Any] | None = None,
) -> bytes:
    transitions = [
        TaskTransition(timestamp=int(moment * 1e9), state=state, actor=ActorName.WORKER)
        for moment, state in zip(
            ran or (), (TaskState.EXEC_START, TaskState.EXEC_END), strict=False
        )
    ]
    why = {"code": "RemoteExecutionError", "user_message": "no"} if error else None
    return pack(
        Result(
            task_id=uuid.UUID(task_id),
            data=error or "00\ngARLDi4=\n",
            details=details,
            error_details=why,
            task_statuses=transitions,
        )
    )


def events(task_id: str, *named: tuple[str, float], jobid: int = 2**63) -> bytes:
    data = [
        {"task_id": task_id, "jobid": jobid, "name": name, "timestamp": at, "context": {}}
        for name, at in named
    ]
    return b"\x01" + json.dumps({"message_type": "task_events", "data": {"events": data}}).encode()


def output(task_id: str, *, attempt: int = 1, **streams: tuple[int, int, str]) -> bytes:
    """An endpoint's message with parts of the streams of a running task."""
    context = {"attempt": attempt, **streams}
    event = {"task_id": task_id, "name": "output", "timestamp": 1.0, "context": context}
    data = {"message_type": "task_events", "data": {"events": [event]}}
    return b"\x01" + json.dumps(data).encode()


def listed(rest: Rest | TestClient, **query: Any) -> list[dict[str, Any]]:
    client = rest.client if isinstance(rest, Rest) else rest
    answer = client.get("/v3/tasks", params=query)
    assert answer.status_code == 200, answer.text
    tasks: list[dict[str, Any]] = answer.json()["tasks"]
    return tasks


def state_of(rest: Rest, task_id: str) -> str:
    return next(str(each["state"]) for each in listed(rest) if each["task_id"] == task_id)


def submit(api: TestClient, endpoint_id: str, function_id: str, count: int = 1) -> list[str]:
    body = {"tasks": {function_id: [PAYLOAD] * count}}
    answer = api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
    ids: list[str] = answer.json()["tasks"][function_id]
    return ids


class TestService:
    def test_the_service_status_has_release_and_broker_outage(self, api: TestClient) -> None:
        answer = api.get("/v3/status").json()
        assert (answer["version"], answer["user"]) == (__version__, "ada")
        assert abs(answer["time"] - time.time()) < 30
        assert answer["started"] < answer["time"]
        assert answer["database"]["revision"] == answer["database"]["expected_revision"]
        assert answer["broker"]["connected"] is False
        assert answer["queues"] == {}
        until(lambda: "127.0.0.1:1" in api.get("/v3/status").json()["broker"]["address"])
        assert "refused" in api.get("/v3/status").json()["broker"]["reason"]

    def test_an_sqlite_database_tells_how_much_room_its_disk_has(
        self, api: TestClient, database_url: str
    ) -> None:
        database = api.get("/v3/status").json()["database"]
        assert database["kind"] == database_url.partition(":")[0].partition("+")[0]
        assert (database["free_bytes"] or 0) > 0 or database["kind"] == "postgresql"

    @pytest.mark.rabbitmq
    def test_the_service_status_has_the_broker_and_its_queue_lengths(
        self, live: Rest, peer: Peer
    ) -> None:
        live.register_endpoint()  # answers when the broker is there

        def status() -> dict[str, Any]:
            answer: dict[str, Any] = live.client.get("/v3/status").json()
            return answer

        names = {"results", "events", "heartbeats", "dead-letters"}
        until(lambda: status()["broker"]["connected"] and set(status()["queues"]) == names)
        broker = status()["broker"]
        assert broker["server"].startswith("RabbitMQ ")
        assert (broker["reason"], "@" in broker["address"]) == ("", False)
        assert abs(broker["since"] - time.time()) < 60

        def count(queue: str, of: str) -> int | None:
            found: int | None = status()["queues"].get(queue, {}).get(of)  # as far as it is told
            return found

        until(lambda: count("results", "consumers") == 1)
        peer.connection.publish("", "dead-letters", b"for a person").result(PATIENCE)
        until(lambda: count("dead-letters", "messages") == 1)

    @pytest.mark.rabbitmq
    def test_an_alarm_of_the_broker_is_reported_without_any_publishing(
        self, live: Rest, broker: Any
    ) -> None:
        live.register_endpoint()  # answers when the broker is there

        def alarm() -> Any:
            told = live.client.get("/v3/status").json()["broker"]
            return told["connected"] and told["alarm"]

        until(lambda: alarm() == "")
        with broker.alarm():
            until(lambda: alarm() == "low on memory")
        until(lambda: alarm() == "")

    @pytest.mark.rabbitmq
    def test_a_lost_broker_is_reported_with_reason_and_time(
        self, live_settings: ServiceSettings, relay: Relay, token_of: Any
    ) -> None:
        settings = live_settings.model_copy(update={"amqp_url": relay.url})
        with TestClient(create_app(settings), headers=token_of("ada")) as client:

            def broker() -> dict[str, Any]:
                answer: dict[str, Any] = client.get("/v3/status").json()["broker"]
                return answer

            until(lambda: bool(broker()["connected"]))
            relay.cut()
            # Each of two connections notices it by itself, and the moment is that of one of them.
            until(lambda: not broker()["connected"] and broker()["since"] is not None)
            gone = broker()
            assert gone["reason"]
            assert gone["server"].startswith("RabbitMQ ")
            assert abs(gone["since"] - time.time()) < 60
            relay.mend()
            until(lambda: bool(broker()["connected"]))


class TestHealth:
    def test_a_service_without_its_broker_is_unhealthy_and_names_no_address(
        self, api: TestClient
    ) -> None:
        answer = api.get("/health", headers={"Authorization": ""})
        assert answer.status_code == 503
        assert answer.json() == {"database": "ok", "broker": "it is not connected"}
        assert answer.headers["Cache-Control"] == "no-store"

    def test_a_database_that_can_not_be_read_is_named(
        self, api: TestClient, database_url: str
    ) -> None:
        engine = create_engine(database_url)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE alembic_version RENAME TO gone"))
        said = []
        try:
            until(lambda: said.append(api.get("/health").json()["database"]) or said[-1] != "ok")
        finally:
            with engine.begin() as connection:
                connection.execute(text("ALTER TABLE gone RENAME TO alembic_version"))
            engine.dispose()
        assert "postgresql" not in said[-1]
        until(lambda: api.get("/health").json()["database"] == "ok")

    @pytest.mark.rabbitmq
    def test_a_brokers_loss_and_its_alarm_are_unhealthy_until_they_are_over(
        self, live_settings: ServiceSettings, relay: Relay, broker: Any
    ) -> None:
        settings = live_settings.model_copy(update={"amqp_url": relay.url})
        with TestClient(create_app(settings)) as client:

            def says(status: int, of_broker: str) -> bool:
                answer = client.get("/health")
                return (answer.status_code, answer.json()["broker"]) == (status, of_broker)

            until(lambda: says(200, "ok"))
            relay.cut()
            until(lambda: says(503, "it is not connected"))
            relay.mend()
            until(lambda: says(200, "ok"))
            with broker.alarm():
                until(lambda: says(503, "it accepts no messages: low on memory"))
            until(lambda: says(200, "ok"))


class TestEndpoint:
    def test_an_endpoint_that_never_reported_is_offline_without_a_time(
        self, api: TestClient, add_endpoint: AddEndpoint
    ) -> None:
        endpoint_id = add_endpoint(display_name="Lab")
        answer = api.get(f"/v3/endpoints/{endpoint_id}/status").json()
        assert (answer["name"], answer["display_name"], answer["owner"]) == ("lab", "Lab", "ada")
        assert (answer["status"], answer["absence"]) == ("offline", "never started")
        assert (answer["since"], answer["queue"]) == (None, None)

    def test_another_users_endpoint_is_unknown(
        self, api: TestClient, add_endpoint: AddEndpoint, bob: dict[str, str]
    ) -> None:
        path = f"/v3/endpoints/{add_endpoint()}/status"
        refusal(api.get(path, headers=bob), 404, "ENDPOINT_NOT_FOUND", "endpoint_id")

    @pytest.mark.rabbitmq
    def test_an_endpoint_is_online_since_its_start_and_offline_since_its_last_report(
        self, live: Rest, peer: Peer
    ) -> None:
        endpoint_id = live.register_endpoint()

        def state() -> dict[str, Any]:
            answer: dict[str, Any] = live.client.get(f"/v3/endpoints/{endpoint_id}/status").json()
            return answer

        peer.send_report(endpoint_id, report(endpoint_id, total_workers=3))
        until(lambda: state()["status"] == "online")
        assert (state()["since"], state()["absence"]) == (1000.5, None)
        assert state()["report"]["total_workers"] == 3
        peer.send_report(endpoint_id, report(endpoint_id, active=False))
        until(lambda: state()["status"] == "offline")
        assert state()["absence"] == "stopped"
        assert state()["since"] == state()["last_seen"]
        assert abs(state()["since"] - time.time()) < 60
        peer.send_report(endpoint_id, report(endpoint_id, heartbeat_period=1e-9))
        until(lambda: state()["absence"] == "silent")

    @pytest.mark.rabbitmq
    def test_an_endpoint_state_has_the_length_of_its_queue(self, live: Rest, peer: Peer) -> None:
        endpoint_id = live.register_endpoint()
        live.submit(endpoint_id, count=3)
        path = f"/v3/endpoints/{endpoint_id}/status"
        waiting = {"messages": 3, "consumers": 0}
        until(lambda: live.client.get(path).json()["queue"] == waiting)
        peer.take(f"{endpoint_id}.tasks")
        taken = {"messages": 0, "consumers": 1}
        until(lambda: live.client.get(path).json()["queue"] == taken)


class TestTasks:
    def test_the_newest_come_first_with_their_functions(
        self, api: TestClient, add_endpoint: AddEndpoint, add_function: Callable[..., str]
    ) -> None:
        endpoint_id = add_endpoint()
        first = submit(api, endpoint_id, add_function(function_name="first"), 2)
        second = submit(api, endpoint_id, add_function(function_name="second"))
        tasks = listed(api)
        assert [each["task_id"] for each in tasks] == [*second, *reversed(first)]
        assert [each["function_name"] for each in tasks] == ["second", "first", "first"]
        assert all(each["state"] == "received" for each in tasks)  # its broker is away
        assert all(abs(each["submitted"] - time.time()) < 60 for each in tasks)

    def test_pages_meet_without_gap_or_repetition(
        self, api: TestClient, add_endpoint: AddEndpoint, add_function: Callable[..., str]
    ) -> None:
        endpoint_id, function_id = add_endpoint(), add_function()
        ids = [task for count in (3, 1, 4) for task in submit(api, endpoint_id, function_id, count)]
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 3}
        while True:
            answer = api.get("/v3/tasks", params=query).json()
            seen += [each["task_id"] for each in answer["tasks"]]
            if not answer.get("next"):
                break
            assert len(answer["tasks"]) == 3
            query["before"] = answer["next"]
        assert len(seen) == len(ids) == 8
        assert set(seen) == set(ids)

    def test_a_page_that_is_just_full_says_that_nothing_follows(
        self, api: TestClient, add_endpoint: AddEndpoint, add_function: Callable[..., str]
    ) -> None:
        submit(api, add_endpoint(), add_function(), 2)
        assert api.get("/v3/tasks", params={"limit": 2}).json()["next"] is None

    def test_tasks_can_be_filtered_by_endpoint_or_group(
        self, api: TestClient, add_endpoint: AddEndpoint, add_function: Callable[..., str]
    ) -> None:
        one, other, function_id = add_endpoint(), add_endpoint(), add_function()
        (task,), _ = submit(api, one, function_id), submit(api, other, function_id)
        assert [each["task_id"] for each in listed(api, endpoint_id=one)] == [task]
        group = listed(api, endpoint_id=one)[0]["task_group_id"]
        assert [each["task_id"] for each in listed(api, task_group_id=group)] == [task]

    def test_users_see_only_their_own_tasks(
        self,
        api: TestClient,
        add_endpoint: AddEndpoint,
        add_function: Callable[..., str],
        bob: dict[str, str],
    ) -> None:
        endpoint_id = add_endpoint(public=True)
        submit(api, endpoint_id, add_function())
        answer = api.get("/v3/tasks", params={"endpoint_id": endpoint_id}, headers=bob)
        assert answer.json() == {"tasks": [], "next": None}

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ({"endpoint_id": "lab"}, "endpoint_id"),
            ({"task_group_id": "x"}, "task_group_id"),
            ({"state": "busy"}, "state[0]"),
            ({"limit": 0}, "limit"),
            ({"limit": 1001}, "limit"),
            ({"before": "somewhere"}, "before"),
            ({"before": "a:-1"}, "before"),
            ({"jobid": "ƒ2WXGLe"}, "jobid"),
        ],
    )
    def test_an_invalid_query_is_refused(
        self, api: TestClient, query: dict[str, Any], field: str
    ) -> None:
        refusal(api.get("/v3/tasks", params=query), 422, "SEMANTICALLY_INVALID", field)

    @pytest.mark.rabbitmq
    def test_a_task_passes_through_its_states(self, live: Rest, peer: Peer) -> None:
        endpoint_id = live.register_endpoint()
        _, (task,) = live.submit(endpoint_id)
        until(lambda: state_of(live, task) == "pending")
        peer.send_events(endpoint_id, events(task, ("submit", 10.0)))
        until(lambda: state_of(live, task) == "queued")
        peer.send_events(endpoint_id, events(task, ("start", 12.5)))
        until(lambda: state_of(live, task) == "running")
        (running,) = listed(live)
        assert (running["jobid"], running["started"], running["stopped"]) == (2**63, 12.5, None)
        peer.send_events(endpoint_id, events(task, ("finish", 20.0)))
        peer.send_result(endpoint_id, result(task))
        until(lambda: state_of(live, task) == "success")
        until(lambda: listed(live)[0]["stopped"] == 20.0)
        assert abs(listed(live)[0]["ended"] - time.time()) < 60

    @pytest.mark.rabbitmq
    def test_a_job_that_is_tried_again_waits_again(self, live: Rest, peer: Peer) -> None:
        endpoint_id = live.register_endpoint()
        _, (task,) = live.submit(endpoint_id)
        told = events(task, ("submit", 1.0), ("start", 2.0), ("finish", 3.0), ("submit", 4.0))
        peer.send_events(endpoint_id, told)
        until(lambda: state_of(live, task) == "queued")

    @pytest.mark.rabbitmq
    def test_tasks_on_workers_are_running_by_the_status_report(
        self, live: Rest, peer: Peer
    ) -> None:
        endpoint_id = live.register_endpoint()
        _, (task, other) = live.submit(endpoint_id, count=2)
        peer.send_report(endpoint_id, report(endpoint_id, running_tasks={task: 1234.5}))
        until(lambda: state_of(live, task) == "running")
        until(lambda: state_of(live, other) == "pending")
        assert next(t["started"] for t in listed(live) if t["task_id"] == task) == 1234.5
        peer.send_report(
            endpoint_id, report(endpoint_id, running_tasks={task: 1234.5}, active=False)
        )
        until(lambda: state_of(live, task) == "pending")

    @pytest.mark.rabbitmq
    def test_an_ended_task_has_its_runtime_and_error(self, live: Rest, peer: Peer) -> None:
        endpoint_id = live.register_endpoint()
        _, (good, bad, ended) = live.submit(endpoint_id, count=3)
        peer.send_result(endpoint_id, result(good, ran=(100.25, 103.5)))
        text = "Traceback\n" + 1000 * "  a line\n" + "ValueError: no \ud800\n\n"
        peer.send_result(endpoint_id, result(bad, "x").replace(b'"x"', json.dumps(text).encode()))
        peer.send_result(endpoint_id, result(ended, "TaskCancelled: ended on request"))
        until(lambda: len(listed(live, state=["success", "failed", "cancelled"])) == 3)
        by_id = {each["task_id"]: each for each in listed(live)}
        assert (by_id[good]["started"], by_id[good]["stopped"]) == (100.25, 103.5)
        assert by_id[good]["error"] is None
        assert by_id[bad]["error"].startswith("ValueError: no ")
        assert by_id[ended]["error"] == "TaskCancelled: ended on request"
        assert [by_id[each]["state"] for each in (good, bad, ended)] == [
            "success",
            "failed",
            "cancelled",
        ]

    @pytest.mark.rabbitmq
    def test_a_record_says_where_a_task_ran_and_what_it_used(self, live: Rest, peer: Peer) -> None:
        endpoint_id = live.register_endpoint()
        _, (ours, official, odd) = live.submit(endpoint_id, count=3)
        told = {"node": "n7", "worker": 42, "attempts": 2, "cpu_time": 1.5, "max_rss": 2**31}
        now = time.time()
        text = "Traceback\n" + 5000 * "  a line\n" + "ValueError: no\n"
        sent = result(ours, text, ran=(now + 3, now + 5), details={**told, "flux_jobid": "17"})
        peer.send_result(endpoint_id, sent)
        peer.send_result(endpoint_id, result(official, ran=(1.0, 2.25), details={"os": "Linux"}))
        nonsense = {"node": 7, "worker": "x", "cpu_time": [1], "max_rss": None, "flux_jobid": "²"}
        peer.send_result(endpoint_id, result(odd, details=nonsense))
        until(lambda: len(listed(live, state=["success", "failed"])) == 3)
        by_id = {each["task_id"]: each for each in listed(live)}
        assert {key: by_id[ours][key] for key in told} == told
        assert (by_id[ours]["jobid"], by_id[ours]["run_time"]) == (17, 2.0)
        assert 2 < by_id[ours]["queue_time"] < 60
        keys = ("node", "worker", "attempts", "cpu_time", "max_rss")
        for task in (official, odd):
            assert [by_id[task][key] for key in keys] == [None] * 5
        assert (by_id[official]["queue_time"], by_id[official]["run_time"]) == (0.0, 1.25)
        record = live.client.get(f"/v3/tasks/{ours}").json()
        assert {key: record[key] for key in by_id[ours]} == by_id[ours]
        assert record["error_text"].endswith("  a line\nValueError: no\n")
        assert len(record["error_text"]) == 16 << 10
        assert (record["details"]["node"], record["events"]) == ("n7", [])
        assert record["submitted"] <= record["published"] <= record["ended"]

    @pytest.mark.rabbitmq
    def test_a_task_is_found_by_its_job(self, live: Rest, peer: Peer) -> None:
        endpoint_id = live.register_endpoint(metadata={"flux_endpoint_version": "1"})
        _, (task, other) = live.submit(endpoint_id, count=2)
        peer.send_events(endpoint_id, events(task, ("submit", 1.0), ("start", 2.0), jobid=2**63))
        peer.send_events(endpoint_id, events(other, ("submit", 1.0), jobid=5))
        until(lambda: [t["task_id"] for t in listed(live, jobid=str(2**63))] == [task])
        body = {"jobid": 2**63}
        follower = live.client.post(f"/v3/endpoints/{endpoint_id}/attach", json=body).json()
        found = [each["task_id"] for each in listed(live, jobid=str(2**63))]
        assert found == [follower["task_id"], task]
        assert listed(live, jobid="6") == []
        record = live.client.get(f"/v3/tasks/{task}").json()
        assert [each["name"] for each in record["events"]] == ["submit", "start"]
        assert (record["endpoint_id"], record["state"]) == (endpoint_id, "running")

    def test_another_users_task_has_no_record(
        self,
        api: TestClient,
        add_endpoint: AddEndpoint,
        add_function: Callable[..., str],
        bob: dict[str, str],
    ) -> None:
        (task,) = submit(api, add_endpoint(), add_function())
        assert api.get(f"/v3/tasks/{task}").json()["endpoint_name"]
        refusal(api.get(f"/v3/tasks/{task}", headers=bob), 404, "TASK_NOT_FOUND", "task_id")

    @pytest.mark.rabbitmq
    @pytest.mark.parametrize(
        ("states", "expected"),
        [
            (["success"], {0}),
            (["failed"], {1}),
            (["cancelled"], {2}),
            (["failed", "cancelled"], {1, 2}),
            (["success", "failed"], {0, 1}),
            (["pending"], {3}),
            (["received", "pending", "queued", "running"], {3, 4}),
            (["queued", "success"], {0, 4}),
            ([], {0, 1, 2, 3, 4}),
        ],
    )
    def test_tasks_can_be_filtered_by_state(
        self, live: Rest, peer: Peer, states: list[str], expected: set[int]
    ) -> None:
        endpoint_id = live.register_endpoint()
        _, ids = live.submit(endpoint_id, count=5)
        peer.send_result(endpoint_id, result(ids[0]))
        peer.send_result(endpoint_id, result(ids[1], "ValueError"))
        peer.send_result(endpoint_id, result(ids[2], "TaskCancelled: so"))
        peer.send_events(endpoint_id, events(ids[4], ("submit", 1.0)))
        until(lambda: state_of(live, ids[3]) == "pending")
        until(lambda: state_of(live, ids[4]) == "queued")
        until(
            lambda: all(
                each in {t["task_id"] for t in listed(live) if t["ended"]} for each in ids[:3]
            )
        )
        found = {ids.index(each["task_id"]) for each in listed(live, state=states)}
        assert found == expected

    @pytest.mark.rabbitmq
    def test_a_task_that_follows_a_job_has_the_jobs_id_and_no_function(
        self, live: Rest, peer: Peer
    ) -> None:
        endpoint_id = live.register_endpoint(metadata={"flux_endpoint_version": "1"})
        live.client.post(f"/v3/endpoints/{endpoint_id}/attach", json={"jobid": "ƒ2WXGLe"})
        (task,) = listed(live)
        assert (task["function_id"], task["function_name"]) == (None, None)
        assert task["jobid"] is not None
        assert listed(live, follows=False) == []


@pytest.mark.rabbitmq
class TestFreshState:
    """`?fresh=true`: the numbers of now."""

    @staticmethod
    def register(live: Rest, peer: Peer, **metadata: Any) -> str:
        metadata = {"flux_endpoint_version": "1", "reports_on_request": True, **metadata}
        endpoint = live.register_endpoint(metadata=metadata)
        peer.send_report(endpoint, report(endpoint, jobs=1))
        until(lambda: live.client.get(f"/v3/endpoints/{endpoint}/status").json()["report"])
        return endpoint

    @staticmethod
    def jobs(live: Rest, endpoint: str, fresh: str = "true") -> int:
        answer = live.client.get(f"/v3/endpoints/{endpoint}/status", params={"fresh": fresh})
        return int(answer.json()["report"]["jobs"])

    def test_an_old_report_is_fetched_anew(
        self, live: Rest, peer: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = self.register(live, peer)
        monkeypatch.setattr(fresh_reports, "FRESH", 0.0)
        monkeypatch.setattr(fresh_reports, "PATIENCE", PATIENCE)
        with ThreadPoolExecutor() as threads:
            answers = [threads.submit(self.jobs, live, endpoint) for _ in range(2)]
            asked = unpack(peer.take(commands_queue(endpoint)).body)
            assert isinstance(asked, ReportsWanted)
            assert asked.seconds == 0
            waiting = live.client.app.state.fresh_reports._waiting  # type: ignore[attr-defined]
            until(lambda: waiting.get(endpoint) == 2)
            peer.send_report(endpoint, report(endpoint, jobs=2))
            assert answers[0].result(PATIENCE) == answers[1].result(PATIENCE) == 2

    def test_a_silent_endpoint_has_its_last_report(
        self, live: Rest, peer: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = self.register(live, peer)
        monkeypatch.setattr(fresh_reports, "FRESH", 0.0)
        monkeypatch.setattr(fresh_reports, "PATIENCE", 0.2)
        assert self.jobs(live, endpoint) == 1
        assert not live.client.app.state.fresh_reports._waiting  # type: ignore[attr-defined]

    def test_a_young_report_and_other_endpoints_are_not_asked(
        self, live: Rest, peer: Peer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fresh_reports, "FRESH", 3600.0)
        young = self.register(live, peer)
        assert self.jobs(live, young) == 1
        monkeypatch.setattr(fresh_reports, "FRESH", 0.0)
        other = self.register(live, peer, reports_on_request=False)
        assert self.jobs(live, other) == 1
        assert self.jobs(live, young, fresh="false") == 1
        queues = [commands_queue(each) for each in (young, other)]
        counted = live.client.app.state.observer.queues(queues, PATIENCE)  # type: ignore[attr-defined]
        assert {each.messages for each in counted.values()} == {0}
