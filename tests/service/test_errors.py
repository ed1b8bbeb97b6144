"""Every refusal says what was wrong, in one shape."""

import json
import uuid

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from tests.service.conftest import NO_BROKER, refusal

from broker_access import NOBODY_ASKS
from flux_endpoint.protocol.limits import MAX_REQUEST_BYTES, MAX_SMALL_REQUEST_BYTES
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from small_disk import SmallDisk


def test_an_unknown_path_is_named(api: TestClient) -> None:
    assert "/v9/nothing" in refusal(api.get("/v9/nothing"), 404, "NOT_FOUND").message


def test_a_wrong_method_is_named(api: TestClient) -> None:
    assert "PATCH" in refusal(api.patch("/v3/functions"), 405, "METHOD_NOT_ALLOWED").message


def test_the_version_needs_no_token(api: TestClient) -> None:
    del api.headers["Authorization"]
    assert api.get("/v2/version").json() == "1.0.0"
    assert api.get("/v2/version", params={"service": "all"}).json() == {
        "api": "1.0.0",
        "min_sdk_version": "2.0.0",
        "min_ep_version": "2.0.0",
    }


def test_every_other_route_needs_a_token(api: TestClient) -> None:
    del api.headers["Authorization"]
    routes = [
        (method.upper(), path)
        for path, methods in api.app.openapi()["paths"].items()  # type: ignore[attr-defined]
        for method in methods
        if path not in {"/health", "/v2/version", "/auth/v2/oauth2/token/revoke"}
    ]
    assert len(routes) > 25  # which there are, and what each answers: test_authorization.py
    for method, path in routes:
        filled = path
        for name in ("function_id", "endpoint_id", "task_id", "group_id"):
            filled = filled.replace(f"{{{name}}}", str(uuid.uuid4()))
        answer = api.request(method, filled, json={})
        assert answer.status_code == 401, (method, path, answer.text)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer wrong", "Basic abc", "", "Bearer "])
def test_a_wrong_token_is_refused_naming_the_header(api: TestClient, header: str) -> None:
    answer = api.get("/v2/endpoints", headers={"Authorization": header})
    assert "Authorization" in refusal(answer, 401, "UNAUTHORIZED", "Authorization").message


def test_a_body_that_is_not_json_is_refused(api: TestClient) -> None:
    for path in ("/v3/functions", f"/v3/endpoints/{uuid.uuid4()}/submit"):
        answer = api.post(path, content=b"{nonsense", headers={"Content-Type": "application/json"})
        refusal(answer, 400, "INVALID_JSON", "body")


def test_a_missing_field_is_named(api: TestClient) -> None:
    answer = api.post("/v3/functions", json={"function_code": "1\na"})
    refusal(answer, 422, "SEMANTICALLY_INVALID", "function_name")


def test_a_malformed_id_in_the_path_is_named(api: TestClient) -> None:
    answer = api.get("/v2/tasks/12345")
    assert "12345" in refusal(answer, 422, "SEMANTICALLY_INVALID", "task_id").message


def test_a_request_that_is_too_large_is_refused_unread(api: TestClient) -> None:
    answer = api.post("/v3/functions", content=b" " * (MAX_REQUEST_BYTES + 1))
    refusal(answer, 413, "REQUEST_TOO_LARGE", "body")


@pytest.mark.parametrize("path", ["/v2/batch_status", "/v3/functions", "/v3/endpoints/{}/submit"])
def test_a_body_without_a_token_is_refused_before_it_is_parsed(
    api: TestClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del api.headers["Authorization"]
    read: list[int] = []
    body = Request.body

    async def watched(request: Request) -> bytes:
        read.append(1)
        return await body(request)

    monkeypatch.setattr(Request, "body", watched)
    headers = {"Content-Type": "application/json"}
    answer = api.post(path.format(uuid.uuid4()), content=b"[" * 1000, headers=headers)
    refusal(answer, 401, "UNAUTHORIZED", "Authorization")
    assert not read


def test_a_request_without_payloads_has_a_small_limit(api: TestClient) -> None:
    body = b" " * (MAX_SMALL_REQUEST_BYTES + 1)
    for path in ("/v2/batch_status", "/v3/endpoints", "/auth/v2/oauth2/token"):
        answer = api.post(path, content=body)
        assert (
            str(MAX_SMALL_REQUEST_BYTES)
            in refusal(answer, 413, "REQUEST_TOO_LARGE", "body").message
        )
    answer = api.post("/v2/batch_status", content=b"", headers={"Content-Length": "9" * 5000})
    refusal(answer, 413, "REQUEST_TOO_LARGE", "body")


def test_a_stream_that_grows_too_large_is_refused(api: TestClient) -> None:
    megabyte = b" " * 2**20
    answer = api.post(
        f"/v3/endpoints/{uuid.uuid4()}/submit",
        content=(megabyte for _ in range(MAX_REQUEST_BYTES // 2**20 + 1)),
    )
    refusal(answer, 413, "REQUEST_TOO_LARGE", "body")


def test_an_internal_error_is_answered_with_the_id_in_the_log(
    api: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    del api.app.state.context  # type: ignore[attr-defined]
    body = refusal(api.get("/v2/endpoints"), 500, "INTERNAL_ERROR")
    (record,) = [each for each in caplog.records if each.message == "request failed"]
    assert record.fields["request_id"] == body.request_id  # type: ignore[attr-defined]
    assert record.exc_info


def test_a_full_database_is_reported_and_nothing_is_stored(
    small_disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{small_disk.path / 'service.db'}"
    database = Database(url)
    database.migrate()
    with database.write() as connection:
        headers = {"Authorization": f"Bearer {users.create_token(connection, 'ada')}"}
    database.close()
    settings = ServiceSettings(
        database_url=url, amqp_url=NO_BROKER, publish_timeout=0.01, **NOBODY_ASKS
    )
    with TestClient(create_app(settings), headers=headers) as client:
        body = {"function_name": "f", "function_code": "3000\n" + "x" * 3000}
        small_disk.fill()
        answers = [client.post("/v3/functions", json=body) for _ in range(400)]
        full = next(each for each in answers if each.status_code != 200)
        told = refusal(full, 503, "DATABASE_UNAVAILABLE", None)
        assert "database or disk is full. Nothing of the request was stored" in told.message
        assert client.get("/v3/status").status_code == 200
        small_disk.clear()
        assert client.post("/v3/functions", json=body).status_code == 200
    (record, *_) = [each for each in caplog.records if "database error" in each.getMessage()]
    assert record.exc_info is None


def test_the_schema_has_the_body_of_every_request_with_json(api: TestClient) -> None:
    described = api.get("/openapi.json").json()["paths"]
    for path in ("/v3/functions", "/v3/endpoints/{endpoint_id}/submit"):
        content = described[path]["post"]["requestBody"]["content"]["application/json"]
        assert "$ref" not in json.dumps(content["schema"])
        assert content["schema"]["required"]
    attach = described["/v3/endpoints/{endpoint_id}/attach"]["post"]["requestBody"]
    assert "jobid" in attach["content"]["application/json"]["schema"]["properties"]
