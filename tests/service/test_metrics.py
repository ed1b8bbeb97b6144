"""`GET /metrics`: who may read it, and that its numbers are those of what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from tests.service.conftest import NO_BROKER, PAYLOAD, Peer, refusal
from tests.service.test_operations import report, result

from broker_access import NOBODY_ASKS
from flux_endpoint.protocol.report_metrics import REPORT_METRICS, samples
from flux_endpoint.service.app import create_app
from flux_endpoint.service.changes import Outcome, ReportedEnd
from flux_endpoint.service.metrics import ServiceCounters
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def values(text: str) -> Values:
    """Return each sample by its name and labels; fail on one that comes twice."""
    found: Values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def scraped(client: TestClient, **headers: str) -> Values:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return values(answer.text)


def of(found: Values, name: str, **labels: str) -> float:
    """Return the only sample of a name with these labels, among others."""
    (value,) = [
        value
        for (each, its), value in found.items()
        if each == name and labels.items() <= dict(its).items()
    ]
    return value


@pytest.fixture
def measured(database_url: str, token_of: Callable[[str], dict[str, str]]) -> Iterator[TestClient]:
    """A service without a broker, whose metrics ada may read."""
    settings = ServiceSettings(
        database_url=database_url,
        amqp_url=NO_BROKER,
        publish_timeout=0.01,
        metrics_users="ada, prometheus",  # type: ignore[arg-type] - as the command line has it
        **NOBODY_ASKS,
    )
    with TestClient(create_app(settings), headers=token_of("ada")) as client:
        yield client


def test_nobody_may_read_them_by_default(api: TestClient) -> None:
    refusal(api.get("/metrics"), 403, "METRICS_NOT_PERMITTED")


def test_only_named_users_may_read_them(measured: TestClient, bob: dict[str, str]) -> None:
    assert measured.get("/metrics").status_code == 200
    refusal(measured.get("/metrics", headers=bob), 403, "METRICS_NOT_PERMITTED")
    refusal(
        measured.get("/metrics", headers={"Authorization": ""}),
        401,
        "UNAUTHORIZED",
        "Authorization",
    )


def test_requests_are_counted_by_route_and_not_by_path(
    measured: TestClient, bob: dict[str, str]
) -> None:
    for number in range(3):
        measured.get(f"/v2/functions/00000000-0000-4000-8000-00000000000{number}")
    measured.get("/such/a/path/is/not/there")
    measured.get("/v3/tasks", headers={"Authorization": "Bearer wrong"})
    found = scraped(measured)
    name = "flux_endpoint_service_http_requests_total"
    route = "/v2/functions/{function_id}"
    assert of(found, name, route=route, status="404", method="GET") == 3
    assert of(found, name, route="none", status="404") == 1
    assert of(found, name, status="401") == 1
    seconds = "flux_endpoint_service_http_request_duration_seconds_count"
    assert of(found, seconds, route=route) == 3


def test_a_lost_broker_and_waiting_tasks_show(
    measured: TestClient, add_endpoint: Callable[..., str]
) -> None:
    function = measured.post(
        "/v3/functions", json={"function_name": "f", "function_code": "12\n01\ngASVabcd\n"}
    ).json()["function_uuid"]
    body = {"tasks": {function: [PAYLOAD] * 5}}
    assert measured.post(f"/v3/endpoints/{add_endpoint()}/submit", json=body).status_code == 200
    found = scraped(measured)
    assert of(found, "flux_endpoint_service_broker_up") == 0
    assert of(found, "flux_endpoint_service_database_up") == 1
    assert of(found, "flux_endpoint_service_tasks_submitted_total") == 5
    assert of(found, "flux_endpoint_service_unfinished_tasks") == 5
    assert of(found, "flux_endpoint_service_unpublished_submissions") == 1


@pytest.mark.rabbitmq
def test_a_tasks_way_is_measured(
    live_settings: ServiceSettings, token_of: Callable[[str], dict[str, str]], peer: Peer
) -> None:
    from tests.service.conftest import Rest

    settings = live_settings.model_copy(update={"metrics_users": frozenset({"ada"})})
    with TestClient(create_app(settings), headers=token_of("ada")) as client:
        rest = Rest(client)
        endpoint = rest.register_endpoint(endpoint_name='la"b')
        _, (good, bad) = rest.submit(endpoint, 2)
        peer.send_report(
            endpoint,
            report(endpoint, total_workers=4, idle_workers=1, agent={"finished": 7, "accepted": 9}),
        )
        peer.send_result(endpoint, result(good))
        peer.send_result(endpoint, result(bad, error="WorkerLost"))
        until(lambda: client.get("/v3/tasks?state=failed").json()["tasks"])
        until(lambda: client.get(f"/v2/endpoints/{endpoint}/status").json()["status"] == "online")

        found = scraped(client)
        ended = "flux_endpoint_service_tasks_ended_total"
        assert of(found, ended, outcome="success") == 1
        assert of(found, ended, outcome="lost") == 1
        assert of(found, "flux_endpoint_service_task_duration_seconds_count") == 2
        assert of(found, "flux_endpoint_service_broker_up") == 1
        assert of(found, "flux_endpoint_service_queue_consumers", queue="results") == 1
        its = {"endpoint_id": endpoint, "endpoint": 'la"b', "owner": "ada"}
        assert of(found, "flux_endpoint_online", **its) == 1
        assert of(found, "flux_endpoint_workers", state="busy", **its) == 3
        assert of(found, "flux_endpoint_tasks_finished_total", **its) == 7
        assert of(found, "flux_endpoint_queue_messages", **its) >= 1


def test_latencies_have_parts_and_are_never_negative() -> None:
    registry = CollectorRegistry()
    counters = ServiceCounters(registry)
    end = ReportedEnd("ada", Outcome.SUCCESS, 100.0, 102.0, 105.0, 105.5, 10)
    ahead = ReportedEnd("ada", Outcome.SUCCESS, 100.0, 90.0, 95.0, 101.0, 0)  # another clock
    again = ReportedEnd("ada", Outcome.SUCCESS, 100.0, None, None, 999.0, 0, replaces=True)
    counters.tasks_ended([end, ahead, again])

    def total(name: str) -> Any:
        return registry.get_sample_value(f"flux_endpoint_service_{name}_sum")

    assert total("task_queue_seconds") == 2.0
    assert total("task_run_seconds") == 3.0 + 5.0
    assert total("task_return_seconds") == 0.5 + 6.0
    assert total("task_duration_seconds") == 5.5 + 1.0


@pytest.mark.parametrize("wrong", [None, "many", [1], {"a": 1}, float("nan")])
def test_a_strange_report_has_no_samples_but_does_no_harm(wrong: Any) -> None:
    keys = ("agent", "usage", "resources", "blocks", "total_workers", "idle_workers", "jobs")
    found = list(samples(dict.fromkeys(keys, wrong)))
    assert {each.metric.name for each in found} <= {"flux_endpoint_trouble", "flux_endpoint_blocks"}


def test_blocks_are_counted_by_state() -> None:
    blocks = [{"state": "ready"}, {"state": "ready"}, {"state": "over"}, {"state": "pending"}]
    found = {
        each.labels: each.value
        for each in samples({"blocks": blocks})
        if "blocks" in each.metric.name
    }
    assert found == {
        ("pending",): 1, ("starting",): 0, ("ready",): 2, ("draining",): 0, ("ending",): 1,
    }  # fmt: skip


def test_metrics_keep_to_the_conventions(measured: TestClient) -> None:
    text = measured.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    for family in families:
        assert family.documentation, family.name
        assert family.type in {"gauge", "counter", "histogram"}, family.name
        if family.name.startswith("flux_endpoint"):
            unit = family.name.rpartition("_")[2]
            assert unit not in {"ms", "milliseconds", "kilobytes", "mb", "minutes", "percent"}
    names = {family.name for family in families}
    assert set(REPORT_METRICS) <= names
