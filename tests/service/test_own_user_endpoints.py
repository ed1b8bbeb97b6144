"""User endpoints of our own multi-user endpoints: they take kills, and keep taken tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import UUID

import pytest
from tests.service.conftest import Peer, Rest
from tests.service.official_world import MultiUserEndpoint, Run, send_report
from tests.service.test_operations import output
from tests.service.test_vanished import Group

from flux_endpoint import ShellFunction
from flux_endpoint.functions.transport import CommandFunctionCode
from flux_endpoint.protocol.messages import OutputWanted, TaskKill, TaskUrgency, unpack
from flux_endpoint.serialize import unpack_buffers
from flux_endpoint.service.official import runs
from waiting import until

pytestmark = pytest.mark.rabbitmq
Begin = Callable[..., Run]
#: What a report says of unfinished tasks.
EMPTY, BUSY = {"running": 0, "unconfirmed": 0}, {"running": 1, "unconfirmed": 0}


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 0.2)


@pytest.fixture
def multi_user(live: Rest, peer: Peer) -> MultiUserEndpoint:
    """A multi-user endpoint of ours that has just reported."""
    metadata = {
        "user_endpoints_version": "0.2.0",
        "output_on_request": True,
        "run_options": ["hold"],
    }
    made = MultiUserEndpoint(live, peer, metadata=metadata)
    made.report()
    made.until("online")
    return made


def test_it_gets_commands_in_our_own_form_and_may_send_events(
    live: Rest, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    code = CommandFunctionCode.instance().serialize(ShellFunction("echo {x}", walltime=3))
    body = {"function_name": "echo", "function_code": f"{len(code)}\n{code}"}
    function_id = live.client.post("/v3/functions", json=body).json()["function_uuid"]
    url = f"/v3/endpoints/{multi_user.id}/submit"
    assert live.client.post(url, json={"tasks": {function_id: ["2\n[]2\n{}"]}}).is_success
    arguments = multi_user.next_start()
    assert arguments["amqp_creds"]["event_queue_info"]["exchange"] == "events"
    message = json.loads(begin(arguments).next_body()[1:])["data"]
    assert unpack_buffers(message["task_buffer"])[0] == code


def test_its_tasks_can_be_killed(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    _, (task_id,) = live.submit(multi_user.id)
    run = begin(multi_user.next_start())
    run.take(1)
    until(lambda: live.client.post(f"/v2/tasks/{task_id}/kill").json().get("delivered"))
    message = unpack(peer.take(f"{run.endpoint_id}.commands").body)
    assert isinstance(message, TaskKill)
    assert str(message.task_id) == task_id
    assert live.client.get(f"/v2/tasks/{task_id}/events").json()["events"] == []


def test_a_task_that_was_submitted_held_is_released(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    _, (task_id,) = live.submit(multi_user.id, run_options={"hold": True})
    run = begin(multi_user.next_start())
    run.take(1)
    released = live.client.post(f"/v3/tasks/{task_id}/urgency", json={"urgency": None}).json()
    assert released["delivered"] is True
    command = unpack(peer.take(f"{run.endpoint_id}.commands").body)
    assert command == TaskUrgency(task_id=UUID(task_id), urgency=None)


def test_the_output_of_its_tasks_is_followed_while_they_run(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    _, (task_id,) = live.submit(multi_user.id)
    run = begin(multi_user.next_start())
    run.take(1)
    follow = lambda: live.client.get(f"/v3/tasks/{task_id}/output?wait=0").json()  # noqa: E731
    assert follow() == {"ended": False, "attempt": 1, "stdout": None, "stderr": None}
    wanted = unpack(peer.take(f"{run.endpoint_id}.commands").body)
    assert isinstance(wanted, OutputWanted)
    assert str(wanted.task_id) == task_id
    peer.send_events(run.endpoint_id, output(task_id, stdout=(0, 2, "hi")))
    until(lambda: (follow()["stdout"] or {}).get("text") == "hi")


@pytest.mark.parametrize("how", ["silence", "goodbye"])
def test_tasks_of_a_vanished_run_wait_for_the_next_run(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin, how: str
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    first = begin(arguments)
    first.take(2)
    first.report(active=how == "silence", period=0.3, agent=BUSY)
    first.vanish()
    assert multi_user.next_start()["name"] == arguments["name"]  # though there is nothing to take
    second = begin(arguments, start=2.0)
    second.report(agent=BUSY)
    for task_id in ids:
        second.finish(task_id, "from the journal")
    group = Group(peer, group_id)
    assert [group.next()["data"] for _ in ids] == ["from the journal"] * 2


def test_tasks_that_the_next_run_has_no_record_of_fail(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    first = begin(arguments)
    first.take(2)
    first.report(period=0.3, agent=BUSY)
    first.vanish()
    multi_user.next_start()
    second = begin(arguments, start=2.0)
    second.report(period=0.2, agent=BUSY)
    second.finish(ids[0])
    group = Group(peer, group_id)
    assert group.next()["task_id"] == ids[0]
    second.report(agent=EMPTY)
    end = group.next()
    assert (end["task_id"], end["error_details"]["code"]) == (ids[1], "JournalLost")


def test_an_error_of_the_next_start_ends_the_tasks_that_wait(
    live: Rest, peer: Peer, multi_user: MultiUserEndpoint, begin: Begin
) -> None:
    group_id, ids = live.submit(multi_user.id)
    arguments = multi_user.next_start()
    first = begin(arguments)
    first.take(1)
    first.report(active=False, period=0.3, agent=BUSY)
    first.vanish()
    multi_user.next_start()
    child = arguments["amqp_creds"]["endpoint_id"]
    group = Group(peer, group_id)
    send_report(peer, child, error="the account is locked", heartbeat_period=3)
    end = group.next()
    assert end["task_id"] == ids[0]
    assert "could not start a user endpoint for the task: the account is locked" in end["data"]
