"""Every refusal says what was wrong, in one shape."""

import uuid

import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from tests.service.conftest import refusal

from flux_endpoint.protocol.limits import MAX_REQUEST_BYTES, MAX_SMALL_REQUEST_BYTES


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
        if path not in {"/v2/version", "/auth/v2/oauth2/token/revoke"}  # they do nothing
    ]
    assert len(routes) == 27
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


def test_a_crash_is_an_answer_with_an_id_that_the_log_has(
    api: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    del api.app.state.context  # type: ignore[attr-defined]
    body = refusal(api.get("/v2/endpoints"), 500, "INTERNAL_ERROR")
    (record,) = [each for each in caplog.records if each.message == "request failed"]
    assert record.fields["request_id"] == body.request_id  # type: ignore[attr-defined]
    assert record.exc_info
