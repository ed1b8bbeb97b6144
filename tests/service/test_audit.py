"""What the service's audit log tells: refusals, tokens, endpoints, submissions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import FUNCTION, NO_BROKER, OWN, PAYLOAD

from broker_access import NOBODY_ASKS
from flux_endpoint.service import audit as service_audit
from flux_endpoint.service.app import create_app
from flux_endpoint.service.audit import AUDIT_LOG, REFUSAL_SECONDS, ServiceAudit, default_path
from flux_endpoint.service.settings import ServiceSettings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "who.jsonl"


@pytest.fixture
def audited(
    database_url: str, token_of: Callable[[str], dict[str, str]], path: Path
) -> Iterator[TestClient]:
    """A client with ada's token of a service with an audit log."""
    settings = ServiceSettings(
        database_url=database_url,
        amqp_url=NO_BROKER,
        publish_timeout=0.01,
        audit_log=path,
        **NOBODY_ASKS,
    )
    with TestClient(create_app(settings), headers=token_of("ada")) as client:
        yield client


def records(path: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in found if each["event"] == event]


def test_submissions_are_recorded_with_user_and_count(
    audited: TestClient, add_endpoint: Callable[..., str], path: Path
) -> None:
    endpoint_id = add_endpoint(metadata=OWN)
    code = {"function_name": "f", "function_code": FUNCTION}
    function_id = audited.post("/v3/functions", json=code).json()["function_uuid"]
    body = {"tasks": {function_id: [PAYLOAD] * 3}}
    answer = audited.post(f"/v3/endpoints/{endpoint_id}/submit", json=body)
    assert answer.status_code == 200
    (record,) = records(path, "tasks submitted")
    assert (record["user"], record["endpoint_id"], record["tasks"]) == ("ada", endpoint_id, 3)
    assert record["functions"] == {function_id: 3}
    assert PAYLOAD.split("\n")[2] not in path.read_text()


def test_token_and_endpoint_changes_are_recorded_without_tokens(
    audited: TestClient, add_endpoint: Callable[..., str], path: Path
) -> None:
    endpoint_id = add_endpoint(metadata=OWN)
    token = audited.post(f"/v3/endpoints/{endpoint_id}/tokens").json()["token"]
    assert audited.delete(f"/v3/endpoints/{endpoint_id}/tokens").json() == {"revoked": 1}
    assert audited.delete(f"/v2/endpoints/{endpoint_id}").status_code == 200
    (created,) = records(path, "endpoint token created")
    assert (created["user"], created["endpoint_id"]) == ("ada", endpoint_id)
    assert records(path, "endpoint tokens revoked")[0]["tokens"] == 1
    assert records(path, "endpoint deleted")[0]["user"] == "ada"
    assert token not in path.read_text()


def test_refused_tokens_are_recorded_and_counted(
    audited: TestClient, add_endpoint: Callable[..., str], path: Path
) -> None:
    wrong = {"Authorization": "Bearer " + "x" * 43}
    for _ in range(5):
        assert audited.get("/v2/endpoints", headers=wrong).status_code == 401
    (record,) = records(path, "request refused")
    assert (record["code"], record["request"]) == ("UNAUTHORIZED", "GET /v2/endpoints")
    assert record["address"]
    assert "x" * 43 not in path.read_text()


def test_misuse_of_an_endpoints_token_is_recorded(
    audited: TestClient, add_endpoint: Callable[..., str], path: Path
) -> None:
    endpoint_id = add_endpoint(metadata=OWN)
    token = audited.post(f"/v3/endpoints/{endpoint_id}/tokens").json()["token"]
    stolen = {"Authorization": f"Bearer {token}"}
    assert audited.get("/v3/tasks", headers=stolen).status_code == 403
    (record,) = records(path, "request refused")
    assert (record["code"], record["user"], record["token_of"]) == (
        "ENDPOINT_TOKEN",
        "ada",
        endpoint_id,
    )


def test_refusals_do_not_push_other_records_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_audit, "MAX_REFUSALS", 8)
    time = [0.0]
    audit = ServiceAudit(path, lambda: time[0])
    for number in range(1000):
        audit.refused("request refused", f"10.0.0.{number % 100}")
    assert len(records(path, "request refused")) == 9  # eight addresses, and all the others
    time[0] += REFUSAL_SECONDS
    audit.refused("request refused", "10.0.0.1")
    assert records(path, "request refused")[-1]["before"] == 9
    audit.close()  # what was only counted is told at the end
    told = records(path, "request refused")
    seen = [each for each in told if "before" not in each]
    assert len(seen) + sum(each.get("before", 0) for each in told) + 1 == 1001


def test_the_audit_log_is_beside_an_sqlite_database_by_default(tmp_path: Path) -> None:
    assert default_path(tmp_path / "service.db") == tmp_path / AUDIT_LOG
    assert default_path(f"sqlite:///{tmp_path}/service.db") == tmp_path / AUDIT_LOG
    assert default_path("sqlite:///service.db") == Path(AUDIT_LOG)
    assert default_path("postgresql://u:p@h/d") is None
