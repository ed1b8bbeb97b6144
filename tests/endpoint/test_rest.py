"""REST calls against a real HTTP server that misbehaves as told."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint import rest
from flux_endpoint.credentials import Credentials
from flux_endpoint.errors import ServiceError, ServiceUnreachableError
from flux_endpoint.rest import RestClient


class Script:
    """A server that gives the answers it was told, in turn; the last one again and again.

    An answer is (status, body, headers); `None` closes the connection without one.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]] | None] = []
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                script.requests.append((self.command, self.path, dict(self.headers), body))
                answers = script.answers
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if answer is None:
                    self.close_connection = True
                    return
                status, content, headers = answer
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - the names are the library's

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "FIRST_BACKOFF", 0.001)


def client(url: str, **options: Any) -> RestClient:
    return RestClient(Credentials(url + "/", "t0ken", source="a test"), timeout=10, **options)


OK = (200, {"fine": True}, {})


def test_a_request_carries_the_token_and_returns_the_answer(script: Script) -> None:
    script.answers = [OK]
    with client(script.url) as service:
        answer = service.request("POST", "/v3/x", json={"a": 1}, headers={"X-Y": "z"})
    method, path, headers, body = script.requests[0]
    assert answer == {"fine": True}
    assert (method, path, body) == ("POST", "/v3/x", {"a": 1})
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["X-Y"] == "z"
    assert headers["User-Agent"].startswith("flux-endpoint/")


def test_an_answer_may_be_any_json_where_the_caller_says_so(script: Script) -> None:
    script.answers = [(200, [1], {}), (204, b"", {})]
    with client(script.url) as service:
        assert service.request_json("GET", "/v2/endpoints") == [1]
        assert service.request_json("DELETE", "/v2/endpoints/x") is None


def test_a_refusal_becomes_an_error_with_code_field_and_message(script: Script) -> None:
    body = {"code": "FUNCTION_NOT_FOUND", "message": "function 7 is unknown", "field": "tasks.7"}
    script.answers = [(404, body, {})]
    with client(script.url) as service, pytest.raises(ServiceError) as caught:
        service.request("POST", "/v3/x")
    error = caught.value
    assert (error.http_status, error.code, error.field) == (404, "FUNCTION_NOT_FOUND", "tasks.7")
    assert str(error) == f"POST {script.url}/v3/x: function 7 is unknown (field 'tasks.7')"
    assert len(script.requests) == 1


def test_the_error_of_a_bad_token_names_its_source(script: Script) -> None:
    script.answers = [(401, {"code": "UNAUTHORIZED", "message": "unknown token"}, {})]
    with client(script.url) as service, pytest.raises(ServiceError) as caught:
        service.request("GET", "/")
    assert "does not accept the token from a test: unknown token" in str(caught.value)
    assert "t0ken" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [(200, b"<html>", {}), (200, [1], {}), (404, b"not here", {}), (302, b"", {}), (403, [], {})],
    ids=str,
)
def test_an_answer_of_another_server_is_reported_as_a_wrong_url(
    script: Script, answer: Any
) -> None:
    script.answers = [answer]
    with client(script.url) as service, pytest.raises(ServiceError, match="is the URL from a test"):
        service.request("GET", "/x")


@pytest.mark.parametrize("fault", [(500, b"", {}), (502, b"", {}), (503, {}, {}), None], ids=str)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_repeatable_requests_are_retried_until_they_succeed(
    script: Script, method: str, fault: Any
) -> None:
    script.answers = [fault, fault, OK]
    with client(script.url) as service:
        assert service.request(method, "/x") == {"fine": True}
    assert len(script.requests) == 3


@pytest.mark.parametrize("fault", [(502, b"", {}), None], ids=str)
def test_a_post_is_repeated_only_if_that_is_harmless(script: Script, fault: Any) -> None:
    script.answers = [fault, OK]
    with client(script.url) as service:
        with pytest.raises(ServiceUnreachableError):
            service.request("POST", "/x", json={})
        assert len(script.requests) == 1
        script.answers = [fault, OK]
        assert service.request("POST", "/x", json={}, idempotent=True) == {"fine": True}


def test_repeating_is_bounded_and_the_error_names_url_and_reason(script: Script) -> None:
    script.answers = [(503, {"message": "the broker is away"}, {})]
    with (
        client(script.url, attempts=3) as service,
        pytest.raises(ServiceUnreachableError) as caught,
    ):
        service.request("GET", "/x")
    assert len(script.requests) == 3
    said = str(caught.value)
    assert f"GET {script.url}/x" in said
    assert "3 attempts" in said
    assert "503 Service Unavailable: the broker is away" in said


def test_too_many_requests_are_repeated_and_in_the_end_an_error_of_their_own(
    script: Script,
) -> None:
    script.answers = [(429, {"code": "SLOW_DOWN", "message": "slow down"}, {})]
    with client(script.url, attempts=2) as service, pytest.raises(ServiceError) as caught:
        service.request("POST", "/x")
    assert len(script.requests) == 2
    assert caught.value.code == "SLOW_DOWN"


@pytest.mark.parametrize(
    ("value", "least"), [("3", 3), ("9999", 10), ("soon", 0), ("", 0), ("-1", 0), ("²", 0)]
)
def test_retry_after_is_obeyed_up_to_a_limit(value: str, least: float) -> None:
    response = rest.httpx.Response(503, headers={"Retry-After": value.encode("latin-1")})
    assert least <= rest._wait_before_next(0.01, response) <= max(least, 0.01)


def test_an_unreachable_service_is_an_error_with_the_url(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    said = f"can't reach the service for GET {url}"
    with (
        client(url, attempts=2) as service,
        pytest.raises(ServiceUnreachableError, match=said),
    ):
        service.request("GET", "/x")


def test_requests_to_this_machine_bypass_the_proxy(
    script: Script, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port}")
    script.answers = [OK]
    with client(script.url) as service:
        assert service.request("GET", "/x") == {"fine": True}


def test_no_token_is_sent_to_the_port_of_a_stopped_stack(script: Script, tmp_path: Path) -> None:
    script.answers = [(401, {"code": "UNAUTHORIZED", "message": "who are you?"}, {})]
    file = tmp_path / "lock"
    client = RestClient(Credentials(script.url, "secret", stack_lock=file), attempts=1)
    with client, file.open("w") as lock:
        for _ in range(2):
            with pytest.raises(ServiceUnreachableError, match="stack that runs it is down"):
                client.request("GET", "/v2/version")
        assert script.requests == []
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ServiceError, match="who are you"):
            client.request("GET", "/v2/version")
        assert len(script.requests) == 1
