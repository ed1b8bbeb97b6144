"""The files for Prometheus and Grafana: each query names metrics and labels that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from tests.service.conftest import NO_BROKER

from broker_access import NOBODY_ASKS
from deploy_files import DEPLOY
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database

DASHBOARD = json.loads((DEPLOY / "grafana" / "flux-endpoint.json").read_text())
#: Names in a query that are no metrics: functions, keywords, labels are told by what follows.
_METRIC = re.compile(r"\b((?:flux_endpoint|process)_\w+)\b")


def queries() -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its queries."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield f"${variable['name']}", variable["query"]["query"]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a service exposes: the names of samples, and the labels of each."""
    url = f"sqlite:///{tmp_path_factory.mktemp('metrics')}/service.db"
    database = Database(url)
    database.migrate()
    with database.write() as connection:
        token = users.create_token(connection, "ada")
    database.close()
    settings = ServiceSettings(
        database_url=url, amqp_url=NO_BROKER, metrics_users=frozenset({"ada"}), **NOBODY_ASKS
    )
    with TestClient(create_app(settings)) as client:
        headers = {"Authorization": f"Bearer {token}"}
        client.get("/v3/status", headers=headers)
        text = client.get("/metrics", headers=headers).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        found.setdefault(name, set())  # one without samples now, such as those of endpoints
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize(("title", "query"), list(queries()))
def test_a_query_of_the_dashboard_names_only_what_is_exposed(
    title: str, query: str, exposed: dict[str, set[str]]
) -> None:
    named = set(_METRIC.findall(query))
    assert named, title
    assert named <= set(exposed), title


def test_every_metric_of_the_project_is_on_the_dashboard(exposed: dict[str, set[str]]) -> None:
    text = " ".join(query for _, query in queries())
    own = {name for name in exposed if name.startswith("flux_endpoint_")}
    own = {name for name in own if not name.endswith(("_count", "_sum"))}
    # For tables and alerts of a site's own.
    left_out = {
        "flux_endpoint_service_unfinished_task_bytes", "flux_endpoint_service_result_bytes_total",
        "flux_endpoint_service_users", "flux_endpoint_service_queue_consumers",
        "flux_endpoint_results_unconfirmed", "flux_endpoint_tasks_accepted_total",
        "flux_endpoint_flux_gpus", "flux_endpoint_flux_expiration_timestamp_seconds",
    }  # fmt: skip
    histograms = {name.removesuffix("_bucket") for name in own if name.endswith("_bucket")}
    assert {name for name in own - left_out - histograms if name not in text} == set()


def test_panels_have_queries_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        assert panel["type"] == "row" or panel["targets"], panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert max(x for x, _ in taken) == 23


def test_the_documented_metrics_are_those_that_are_exposed(exposed: dict[str, set[str]]) -> None:
    text = (Path(DEPLOY).parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(flux_endpoint_\w+)", text, re.MULTILINE))
    real = {
        name.removesuffix("_bucket")
        for name in exposed
        if name.startswith("flux_endpoint_") and not name.endswith(("_count", "_sum"))
    }
    assert documented == real


def test_the_scrape_example_is_a_list_of_jobs_with_a_token() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "scrape.yaml").read_text())
    assert job["authorization"]["credentials_file"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
