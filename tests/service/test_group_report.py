"""How far a task group is, as the service reports it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import Peer, Rest, refusal
from tests.service.test_operations import events, listed, report, result, submit

from flux_endpoint.cli.group import summary_of
from flux_endpoint.protocol.operations import FailureKind, GroupReport
from flux_endpoint.service.store import group_report
from waiting import until

AddEndpoint = Callable[..., str]


def report_of(rest: Any, group_id: str) -> GroupReport:
    return GroupReport.model_validate(rest.get(f"/v3/taskgroups/{group_id}").json())


@pytest.mark.rabbitmq
def test_a_report_counts_states_and_kinds_of_failures(
    live: Rest, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_report, "MOST_ERRORS", 3)  # cancelled tasks are not among them
    endpoint_id = live.register_endpoint()
    _, ids = live.submit(endpoint_id, count=9)
    _, others = live.submit(endpoint_id)  # of another group
    group_id = listed(live)[-1]["task_group_id"]
    for task_id in ids[:2]:
        peer.send_result(endpoint_id, result(task_id))
    for task_id in ids[2:4]:
        peer.send_result(endpoint_id, result(task_id, "Traceback\nValueError: no root\n"))
    peer.send_result(endpoint_id, result(ids[4], "what is that"))
    peer.send_result(endpoint_id, result(ids[5], "TaskCancelled: so"))
    peer.send_result(endpoint_id, result(others[0]))
    peer.send_events(endpoint_id, events(ids[6], ("submit", 1.0), ("start", 2.0)))
    peer.send_report(endpoint_id, report(endpoint_id, running_tasks={ids[7]: 2.0, others[0]: 2.0}))
    until(lambda: report_of(live.client, group_id).unfinished == 3)
    until(lambda: report_of(live.client, group_id).running == 2)
    found = report_of(live.client, group_id)
    assert (found.tasks, found.succeeded, found.failed, found.cancelled) == (9, 2, 3, 1)
    kinds = {each.kind: (each.tasks, each.error, each.task_id) for each in found.failures}
    assert kinds == {
        "ValueError": (2, "ValueError: no root", ids[3]),
        "other": (1, "what is that", ids[4]),
    }
    assert [(each.endpoint_id, each.tasks, each.unfinished) for each in found.endpoints] == [
        (endpoint_id, 9, 3)
    ]
    assert found.rate is not None
    assert found.rate > 0
    assert found.expected_end is not None
    assert found.expected_end > time.time() - 60


def test_nothing_has_ended_of_a_new_group(
    api: TestClient, add_endpoint: AddEndpoint, add_function: Callable[..., str]
) -> None:
    submit(api, add_endpoint(), add_function(), 2)
    found = report_of(api, listed(api)[0]["task_group_id"])
    assert (found.tasks, found.unfinished, found.running) == (2, 2, 0)
    assert (found.rate, found.expected_end, found.last_end) == (None, None, None)


def test_another_users_group_is_unknown(
    api: TestClient,
    add_endpoint: AddEndpoint,
    add_function: Callable[..., str],
    bob: dict[str, str],
) -> None:
    submit(api, add_endpoint(), add_function())
    path = f"/v3/taskgroups/{listed(api)[0]['task_group_id']}"
    refusal(api.get(path, headers=bob), 404, "TASK_GROUP_NOT_FOUND", "task_group_id")


def test_a_report_in_words() -> None:
    given = GroupReport(
        task_group_id="g",
        tasks=2000,
        succeeded=990,
        failed=10,
        cancelled=0,
        unfinished=1000,
        running=8,
        waiting_for_tasks=2,
        submitted=1000.0,
        last_end=1900.0,
        rate=0.5,
        expected_end=4000.0,
        failures=[FailureKind(kind="ValueError", tasks=10, task_id="t", error="ValueError: x")],
    )
    first, second, third = summary_of(given, 2000.0).splitlines()
    assert first == (
        "1,000 of 2,000 tasks have ended (50 %): 990 succeeded, 10 failed, 8 running, "
        "990 waiting, 2 waiting for other tasks"
    )
    assert second.startswith("submitted 16m ago, last result ")
    assert third.startswith("0.5 tasks per second: ")
