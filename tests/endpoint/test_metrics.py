"""`metrics:` in config.yaml: an endpoint's own numbers, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flux_endpoint.endpoint.config import parse_config
from flux_endpoint.endpoint.metrics import EndpointMetrics, parse_address
from flux_endpoint.errors import ConfigurationError

ID = "5a3b1c9e-0d5f-4c6c-9a51-0e4b7c8c1d2e"


@pytest.fixture
def metrics(free_port: int) -> Iterator[tuple[EndpointMetrics, str]]:
    served = EndpointMetrics(ID, ("127.0.0.1", free_port))
    yield served, f"http://127.0.0.1:{free_port}/metrics"
    served.close()


def numbers(url: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(url).text)
    return {
        f"{sample.name} {sample.labels.get('state', '')}".strip(): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("endpoint_id") == ID
    }


def test_the_numbers_are_those_of_the_latest_report(metrics: tuple[EndpointMetrics, str]) -> None:
    served, url = metrics
    assert numbers(url) == {}  # nothing is reported yet
    report = {"report_unix": 12.5, "total_workers": 4, "idle_workers": 3, "agent": {"finished": 8}}
    served.reported(report)
    served.reported({**report, "idle_workers": 1})
    found = numbers(url)
    assert found["flux_endpoint_workers busy"] == 3
    assert found["flux_endpoint_tasks_finished_total"] == 8
    assert found["flux_endpoint_last_report_timestamp_seconds"] == 12.5


def test_an_address_in_use_is_named(metrics: tuple[EndpointMetrics, str]) -> None:
    port = int(metrics[1].split(":")[2].partition("/")[0])
    with pytest.raises(ConfigurationError, match=rf"metrics: can't listen on 127\.0\.0\.1:{port}"):
        EndpointMetrics(ID, ("127.0.0.1", port))


def test_addresses() -> None:
    assert parse_address("127.0.0.1:9101") == ("127.0.0.1", 9101)
    assert parse_address("[::1]:9101") == ("::1", 9101)
    assert parse_config("metrics: 127.0.0.1:9101", source="x").metrics == "127.0.0.1:9101"
    for wrong in ("9101", "127.0.0.1", "127.0.0.1:0", "a:b:1", "127.0.0.1:70000", "x y:1"):
        with pytest.raises(ConfigurationError, match=r"metrics: must be HOST:PORT"):
            parse_config(f"metrics: '{wrong}'", source="x")
