"""What a user endpoint held when it vanished ends; what was in its queue waits for the next run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import PATIENCE, Peer, Rest, beside
from tests.service.official_world import MultiUserEndpoint, Run

from flux_endpoint.service.app import create_app
from flux_endpoint.service.official import dispatcher, releases, runs, starts
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

pytestmark = pytest.mark.rabbitmq
Begin = Callable[..., Run]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(runs, "PARENT_STOPS", 0.2)


class Group:
    """The results that reach a task group."""

    def __init__(self, peer: Peer, group_id: str) -> None:
        self._peer = peer
        self._queue = f"tg.{group_id}"

    def next(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self._peer.take(self._queue).body[1:])["data"]
        return data

    def next_lost(self, multi_user: MultiUserEndpoint) -> str:
        """Return the id of the next task that has failed with its endpoint."""
        data = self.next()
        assert data["error_details"]["code"] == "EndpointLost", data
        assert data["data"].startswith(f"EndpointLost: endpoint {multi_user.id} vanished"), data
        assert data["details"] is None
        return str(data["task_id"])


@pytest.mark.parametrize("how", ["silence", "goodbye"])
def test_tasks_of_a_vanished_run_fail_and_untaken_ones_go_to_the_next_run(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin, how: str
) -> None:
    group_id, ids = live.submit(multi_user.id, count=3)
    group = Group(peer, group_id)
    arguments = multi_user.next_start()
    first = begin(arguments)
    assert first.take(3) == ids
    first.finish(ids[0], "done")
    assert group.next()["data"] == "done"
    if how == "silence":
        first.report(period=0.3)
    else:
        first.report(active=False, period=0.3)
    first.vanish()
    _, more = live.submit(multi_user.id, count=2, task_group_id=group_id)
    assert {group.next_lost(multi_user) for _ in range(2)} == set(ids[1:])
    assert live.status(ids[1])["status"] == "failed"
    assert multi_user.next_start()["name"] == arguments["name"]
    second = begin(arguments, start=2.0)
    assert second.take(2) == more
    second.finish(more[0], "later")
    assert group.next()["data"] == "later"


def test_unacknowledged_tasks_of_a_vanished_run_are_not_lost(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id, count=4)
    arguments = multi_user.next_start()
    first = begin(arguments)
    first.take(2)
    assert first.take(2, ack=False) == ids[2:]
    first.report(period=0.3)
    first.vanish()
    group = Group(peer, group_id)
    assert {group.next_lost(multi_user) for _ in range(2)} == set(ids[:2])
    assert begin(arguments, start=2.0).take(2) == ids[2:]


def test_a_run_that_reconnects_keeps_its_tasks(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    run = begin(multi_user.next_start())
    run.take(2)
    run.report(active=False, period=2)  # as before each reconnect
    run.report(period=600)
    run.finish(ids[0])
    group = Group(peer, group_id)
    assert group.next()["data"] == "x"
    run.stop_consuming()
    run.report(period=0.2)
    assert group.next_lost(multi_user) == ids[1]


def test_a_run_that_vanished_before_its_first_report_leaves_untaken_tasks(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, amqp_vhost: str, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id, count=3)
    arguments = multi_user.next_start()
    first = Run(amqp_vhost, arguments["amqp_creds"]["endpoint_id"])
    first.consume()
    first.take(1)
    first.take(2, ack=False)
    first.vanish()
    multi_user.report(period=0.2)  # nobody knows that of the run
    # The next one finds the mark of the first.
    second = Run(amqp_vhost, first.endpoint_id)
    second.report(error="another instance is running", period=3)
    second.vanish()
    assert Group(peer, group_id).next_lost(multi_user) == ids[0]
    multi_user.report()
    assert begin(arguments, start=2.0).take(2) == ids[1:]


@pytest.mark.parametrize("reported", [False, True])
def test_tasks_of_an_unreported_run_fail_when_the_next_run_begins(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    amqp_vhost: str,
    begin: Begin,
    reported: bool,
) -> None:
    group_id, ids = live.submit(multi_user.id, count=3)
    arguments = multi_user.next_start()
    first = Run(amqp_vhost, arguments["amqp_creds"]["endpoint_id"])
    if reported:  # before it was given anything
        first.report()
        until(lambda: _period(live.client, first.endpoint_id) == 600)
    first.consume()
    assert first.take(2) == ids[:2]
    assert first.take(1, ack=False) == ids[2:]
    first.vanish()
    # The next one is started before anybody could miss the first.
    live.submit(multi_user.id, task_group_id=group_id)
    assert multi_user.next_start() == arguments
    second = begin(arguments, start=2.0)
    assert second.take(1) == ids[2:]
    group = Group(peer, group_id)
    assert {group.next_lost(multi_user) for _ in range(2)} == set(ids[:2])
    second.finish(ids[2])
    assert group.next()["task_id"] == ids[2]


@pytest.fixture
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the services that start afterwards."""
    monkeypatch.setattr(dispatcher, "SWEEP_PERIOD", 0.2)
    monkeypatch.setattr(starts, "_FIRST_BACKOFF", 0.2)


@pytest.mark.usefixtures("frequent_looks")
def test_tasks_of_an_unreported_run_fail_without_a_next_run(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, amqp_vhost: str, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    first = Run(amqp_vhost, arguments["amqp_creds"]["endpoint_id"])
    first.consume()
    first.take(1)
    first.take(1, ack=False)
    multi_user.report(period=0.1)
    multi_user.until("offline")  # its host is gone, which the broker has not noticed
    first.vanish()
    assert Group(peer, group_id).next_lost(multi_user) == ids[0]
    multi_user.report()
    assert multi_user.next_start() == arguments
    assert begin(arguments, start=2.0).take(1) == ids[1:]


def test_tasks_of_an_unreported_single_user_endpoint_fail(
    live: Rest, peer: Peer, amqp_vhost: str
) -> None:
    endpoint_id = live.register_endpoint(metadata={})
    group_id, ids = live.submit(endpoint_id)
    run = Run(amqp_vhost, endpoint_id)
    run.consume()
    assert run.take(1) == ids
    run.vanish()
    # Whoever registers it again is about to start it.
    body = {"endpoint_name": "lab", "metadata": {}}
    assert live.client.put(f"/v3/endpoints/{endpoint_id}", json=body).status_code == 200
    data = Group(peer, group_id).next()
    assert (data["task_id"], data["error_details"]["code"]) == (ids[0], "EndpointLost")


def test_tasks_of_a_vanished_run_fail_after_a_restart_of_the_service(
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    amqp_vhost: str,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    headers = token_of("ada")
    with (
        monkeypatch.context() as patch,
        TestClient(create_app(live_settings), headers=headers) as client,
    ):
        patch.setattr(runs.Runs, "settle", lambda *_: None)
        multi_user = MultiUserEndpoint(Rest(client), peer)
        multi_user.report()
        group_id, ids = Rest(client).submit(multi_user.id, count=2)
        arguments = multi_user.next_start()
        first = Run(amqp_vhost, arguments["amqp_creds"]["endpoint_id"])
        first.consume()
        first.take(1)
        first.take(1, ack=False)
        first.vanish()
        Rest(client).submit(multi_user.id, task_group_id=group_id)
        assert multi_user.next_start() == arguments
        second = begin(arguments, start=2.0)
        assert second.take(1) == ids[1:]
        until(lambda: _period(client, first.endpoint_id) == 600)
    with TestClient(create_app(live_settings), headers=headers):
        group = Group(peer, group_id)
        assert group.next_lost(multi_user) == ids[0]
        second.finish(ids[1])
        assert group.next()["task_id"] == ids[1]


def test_a_silent_run_that_keeps_its_consumer_is_given_up(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "_GONE_AGAIN", 0.1)
    monkeypatch.setattr(runs, "_STUCK_CONSUMER", 0.3)
    group_id, (task_id,) = live.submit(multi_user.id)
    run = begin(multi_user.next_start())
    run.take(1)
    run.report(period=0.1)
    assert Group(peer, group_id).next_lost(multi_user) == task_id


def test_a_late_result_replaces_the_failure(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    group_id, (task_id,) = live.submit(multi_user.id)
    run = begin(multi_user.next_start())
    run.take(1)
    run.stop_consuming()
    run.report(period=0.1)
    group = Group(peer, group_id)
    assert group.next_lost(multi_user) == task_id
    for data in ("from disk", "again"):
        run.finish(task_id, data)
    assert group.next()["data"] == "from disk"
    document = live.status(task_id)
    assert (document["status"], document["result"]) == ("success", "from disk")
    assert "exception" not in document
    # The first of its results stays.
    _, (other,) = live.submit(multi_user.id, task_group_id=group_id)
    run.finish(other)
    assert group.next()["task_id"] == other
    assert live.status(task_id)["result"] == "from disk"


def test_a_run_that_replaced_another_unnoticed_fails_its_tasks(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle, in_time = runs.Runs.settle, threading.Event()

    def settle_later(*of: Any) -> None:
        assert in_time.wait(PATIENCE)  # else what the second finds on its disk may come too late
        settle(*of)

    monkeypatch.setattr(runs.Runs, "settle", settle_later)
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    first = begin(arguments)
    first.take(2)
    first.report(active=False)
    first.vanish()
    # It is started at once, because the first may have left results on its disk.
    multi_user.next_start()
    second = begin(arguments, start=2.0)
    second.finish(ids[0], "from disk")
    group = Group(peer, group_id)
    assert group.next()["data"] == "from disk"
    in_time.set()
    assert group.next_lost(multi_user) == ids[1]


def test_tasks_with_a_late_confirm_are_not_overlooked(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_published, late = releases.Releases._on_published, []

    held = threading.Event()

    def hold(*confirm: Any) -> None:
        late.append(partial(on_published, *confirm))
        held.set()

    monkeypatch.setattr(releases.Releases, "_on_published", hold)
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    first = begin(arguments)
    assert first.take(2) == ids
    assert held.wait(PATIENCE)
    # Another configuration's start is told after the look at what the first has left.
    looked = seen(monkeypatch, runs.Runs, "inspect")
    first.report(active=False)
    first.vanish()
    assert looked.wait(PATIENCE)
    live.submit(multi_user.id, user_endpoint_config={"other": 1})
    assert multi_user.next_start()["user_opts"] == {"other": 1}
    for each in late:
        each()
    assert multi_user.next_start() == arguments
    begin(arguments, start=2.0)
    group = Group(peer, group_id)
    assert {group.next_lost(multi_user) for _ in ids} == set(ids)


def test_user_endpoints_end_with_their_multi_user_endpoint(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    run = begin(arguments)
    run.take(2)
    multi_user.report(period=0)
    run.vanish()
    group = Group(peer, group_id)
    assert {group.next_lost(multi_user) for _ in ids} == set(ids)
    _, more = live.submit(multi_user.id, task_group_id=group_id)
    multi_user.register_again()
    multi_user.report()
    assert multi_user.next_start() == arguments
    assert begin(arguments, start=2.0).take(1) == more


def test_no_start_command_is_sent_while_the_broker_has_a_dead_consumer(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    begin: Begin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "_GONE_AGAIN", 0.1)
    group_id, ids = live.submit(multi_user.id, count=1)
    arguments = multi_user.next_start()
    dead = begin(arguments)
    dead.take(1)
    dead.report(period=0.1)
    _, more = live.submit(multi_user.id, task_group_id=group_id)
    dead.take(1, ack=False)
    # Another configuration's start is told after it would have been.
    live.submit(multi_user.id, user_endpoint_config={"other": 1})
    assert multi_user.next_start()["user_opts"] == {"other": 1}
    assert live.status(ids[0])["status"] == "waiting-for-ep"
    dead.vanish()
    assert Group(peer, group_id).next_lost(multi_user) == ids[0]
    assert multi_user.next_start() == arguments
    assert begin(arguments, start=2.0).take(1) == more


def test_a_run_that_does_not_consume_is_started_again(
    live: Rest, multi_user: MultiUserEndpoint, amqp_vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "CONSUME_TIMEOUT", 0.2)
    live.submit(multi_user.id)
    arguments = multi_user.next_start()
    deaf = Run(amqp_vhost, arguments["amqp_creds"]["endpoint_id"])
    deaf.report()
    assert multi_user.next_start() == arguments
    deaf.vanish()


def test_tasks_are_released_up_to_the_window_and_then_as_they_end(
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    begin: Begin,
) -> None:
    settings = live_settings.model_copy(update={"official_window": 3})
    with TestClient(create_app(settings), headers=token_of("ada")) as client:
        live = Rest(client)
        multi_user = MultiUserEndpoint(live, peer)
        multi_user.report()
        group_id, ids = live.submit(multi_user.id, count=7)
        arguments = multi_user.next_start()
        run = begin(arguments)
        held = run.take(3)
        group = Group(peer, group_id)
        for number in range(3):
            run.finish(held.pop(0))
            group.next()
            held += run.take(1)
            assert len(held) == 3
            assert run.took_nothing_more(), number
        assert held == ids[3:6]
        # So many are lost with it, and no more.
        run.report(period=0.1)
        run.vanish()
        assert {group.next_lost(multi_user) for _ in held} == set(held)
        assert begin(arguments, start=2.0).take(1) == ids[6:]


def test_two_services_on_one_database_release_each_task_once(
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    begin: Begin,
) -> None:
    settings = live_settings.model_copy(update={"official_window": 3})
    headers = token_of("ada")
    with (
        TestClient(create_app(settings), headers=headers) as one,
        TestClient(create_app(beside(settings)), headers=headers) as other,
    ):
        multi_user = MultiUserEndpoint(Rest(one), peer)
        multi_user.report()
        multi_user.until("online")
        group_id, ids = Rest(one).submit(multi_user.id, count=20)
        _, more = Rest(other).submit(multi_user.id, count=20, task_group_id=group_id)
        run = begin(multi_user.next_start())
        given = []
        for _ in (*ids, *more):
            given += run.take(1)
            run.finish(given[-1])
        assert sorted(given) == sorted([*ids, *more])
        group = Group(peer, group_id)
        assert {group.next()["data"] for _ in given} == {"x"}


def test_an_endpoint_with_more_capacity_gets_more_tasks(
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    begin: Begin,
) -> None:
    settings = live_settings.model_copy(update={"official_window": 1})
    with TestClient(create_app(settings), headers=token_of("ada")) as client:
        live = Rest(client)
        multi_user = MultiUserEndpoint(live, peer)
        multi_user.report()
        _, ids = live.submit(multi_user.id, count=10)
        run = begin(multi_user.next_start())
        run.take(1)
        run.report(total_workers=4)
        assert run.take(7) == ids[1:8]
        run.report(max_blocks=2, nodes_per_block=1, max_workers_per_node=3)
        assert run.take(2) == ids[8:]


def test_the_window_has_a_size_too(
    live: Rest, multi_user: MultiUserEndpoint, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "WINDOW_SIZE", 1)
    _, ids = live.submit(multi_user.id, count=2)
    run = begin(multi_user.next_start())
    assert run.take(1) == ids[:1]  # one always may
    run.finish(ids[0])
    assert run.take(1) == ids[1:]


def test_a_restarted_service_fails_tasks_of_runs_that_vanished_meanwhile(
    live_settings: ServiceSettings,
    token_of: Callable[[str], dict[str, str]],
    peer: Peer,
    begin: Begin,
) -> None:
    headers = token_of("ada")
    with TestClient(create_app(live_settings), headers=headers) as client:
        multi_user = MultiUserEndpoint(Rest(client), peer)
        multi_user.report()
        group_id, ids = Rest(client).submit(multi_user.id, count=2)
        arguments = multi_user.next_start()
        run = begin(arguments)
        run.take(1)
        assert run.take(1, ack=False) == ids[1:]
        run.report(period=0.1)
        child = run.endpoint_id
        until(lambda: _period(client, child) == 0.1)
        run.vanish()
    with TestClient(create_app(live_settings), headers=headers) as client:
        assert Group(peer, group_id).next_lost(multi_user) == ids[0]
        assert begin(arguments, start=2.0).take(1) == ids[1:]


def test_a_single_user_endpoint_is_tracked(live: Rest, peer: Peer, amqp_vhost: str) -> None:
    endpoint_id = live.register_endpoint(metadata={})
    run = Run(amqp_vhost, endpoint_id)
    run.consume()
    run.report()
    group_id, ids = live.submit(endpoint_id, count=3)
    run.take(2)
    assert run.take(1, ack=False) == ids[2:]
    run.finish(ids[0])
    group = Group(peer, group_id)
    assert group.next()["data"] == "x"
    run.vanish()
    # Whoever registers it again is about to start it: what it had taken is lost.
    body = {"endpoint_name": "lab", "metadata": {}}
    assert live.client.put(f"/v3/endpoints/{endpoint_id}", json=body).status_code == 200
    data = group.next()
    assert (data["task_id"], data["error_details"]["code"]) == (ids[1], "EndpointLost")
    again = Run(amqp_vhost, endpoint_id, start=2.0)
    again.consume()
    assert again.take(1) == ids[2:]
    again.vanish()


def test_a_failure_is_processed_after_earlier_results(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id, count=50)
    run = begin(multi_user.next_start())
    run.take(50)
    for task_id in ids:
        run.finish(task_id)
    run.report(active=False, period=0.01)
    run.vanish()
    group = Group(peer, group_id)
    assert {group.next()["data"] for _ in ids} == {"x"}


def seen(monkeypatch: pytest.MonkeyPatch, of: type, name: str) -> threading.Event:
    """Return what is set when a method has returned from now on."""
    method, happened = getattr(of, name), threading.Event()

    def announce(*arguments: Any) -> Any:
        result = method(*arguments)
        happened.set()
        return result

    monkeypatch.setattr(of, name, announce)
    return happened


def _period(client: TestClient, endpoint_id: str) -> float | None:
    from flux_endpoint.service.store import endpoints

    with client.app.state.context.database.read() as connection:  # type: ignore[attr-defined]
        endpoint = endpoints.get_endpoint(connection, endpoint_id)
    assert endpoint is not None
    return None if endpoint.run is None else (endpoint.last_report or {}).get("heartbeat_period")
