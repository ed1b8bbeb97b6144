"""Functions: registered, read, deleted."""

import json
import uuid
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import FUNCTION, refusal

from flux_endpoint.protocol.limits import MAX_PAYLOAD_BYTES

AddFunction = Callable[..., str]


def test_a_function_reads_as_it_was_registered(api: TestClient, add_function: AddFunction) -> None:
    about = {"description": "twice\0 as much", "meta": {"python_version": "3.11"}, "public": True}
    function_id = add_function(**about)
    read = api.get(f"/v2/functions/{function_id.upper()}").json()
    assert read.pop("timestamp") > 0
    assert read == {
        "function_uuid": function_id,
        "function_name": "double",
        "function_code": FUNCTION,
        **about,
    }


def test_bare_source_becomes_a_buffer_counted_in_characters(
    api: TestClient, add_function: AddFunction
) -> None:
    source = "def double(x):\n    return 'é' * x\n"
    function_id = add_function(function_code=source, serialized=False)
    code = api.get(f"/v2/functions/{function_id}").json()["function_code"]
    assert code == f"{len(source) + 10}\nst\ndouble:{source}"


@pytest.mark.parametrize("code", ["", "plain", "3\nab", "2\nab2\ncd", "-1\n", "+2\nab", "²\nab"])
def test_code_that_is_not_one_packed_buffer_is_refused(api: TestClient, code: str) -> None:
    answer = api.post("/v3/functions", json={"function_name": "f", "function_code": code})
    refusal(answer, 422, "SEMANTICALLY_INVALID", "function_code")


def test_a_huge_function_is_refused(api: TestClient) -> None:
    source = "#" * MAX_PAYLOAD_BYTES
    body = {"function_name": "f", "function_code": source, "serialized": False}
    refusal(api.post("/v3/functions", json=body), 413, "FUNCTION_TOO_LARGE", "function_code")


@pytest.mark.parametrize("field", ["group", "ha_endpoint_id"])
def test_an_unsupported_protection_is_refused(api: TestClient, field: str) -> None:
    body = {"function_name": "double", "function_code": FUNCTION, field: str(uuid.uuid4())}
    refusal(api.post("/v3/functions", json=body), 422, "SEMANTICALLY_INVALID", field)
    assert api.post("/v3/functions", json={**body, field: None}).status_code == 200


def test_a_name_must_be_text(api: TestClient) -> None:
    for name in ("", "nul\0", "x" * 257, 7, "\ud800"):
        content = b'{"function_name":%s,"function_code":"1\\na"}' % (json.dumps(name).encode())
        headers = {"Content-Type": "application/json"}
        answer = api.post("/v3/functions", content=content, headers=headers)
        refusal(answer, 422, "SEMANTICALLY_INVALID", "function_name")


def test_a_deleted_function_is_gone(api: TestClient, add_function: AddFunction) -> None:
    function_id = add_function()
    assert api.delete(f"/v2/functions/{function_id}").status_code == 200
    for answer in (
        api.get(f"/v2/functions/{function_id}"),
        api.delete(f"/v2/functions/{function_id}"),
    ):
        refusal(answer, 404, "FUNCTION_NOT_FOUND", "function_id")


def test_another_users_function_is_unknown_unless_public(
    api: TestClient, add_function: AddFunction, bob: dict[str, str]
) -> None:
    private, public = add_function(), add_function(public=True)
    answer = api.get(f"/v2/functions/{private}", headers=bob)
    refusal(answer, 404, "FUNCTION_NOT_FOUND", "function_id")
    assert api.get(f"/v2/functions/{public}", headers=bob).status_code == 200
    answer = api.delete(f"/v2/functions/{public}", headers=bob)
    refusal(answer, 403, "FUNCTION_NOT_PERMITTED", "function_id")


def test_an_unknown_function_is_named(api: TestClient) -> None:
    unknown = str(uuid.uuid4())
    answer = api.get(f"/v2/functions/{unknown}")
    assert unknown in refusal(answer, 404, "FUNCTION_NOT_FOUND", "function_id").message
