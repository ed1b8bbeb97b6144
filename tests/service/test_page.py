"""The live page without a browser: its files, its logins, its data, its events."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dill
import httpx
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import Peer, Rest, refusal
from tests.service.http_server import listening
from tests.service.test_operations import events, report, result

from flux_endpoint.functions import ShellResult
from flux_endpoint.protocol.messages import ReportsWanted, unpack
from flux_endpoint.protocol.queues import commands_queue
from flux_endpoint.service.app import create_app
from flux_endpoint.service.page import live as live_page
from flux_endpoint.service.page.files import page_files
from flux_endpoint.service.page.output import LONGEST, MOST_LINES, command_streams, shown_output
from flux_endpoint.service.page.reports import AGAIN, ReportRequests
from flux_endpoint.service.page.sessions import CODE_SECONDS, SESSION_SECONDS, Sessions
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database
from waiting import until

PAGE = {"X-Flux-Endpoint": "page"}
HASH = "ab" * 32


class TestFiles:
    def test_the_page_loads_nothing_from_elsewhere(self) -> None:
        for name, file in page_files().items():
            text = file.content.decode()
            urls = set(re.findall(r"(?:https?:)?//[\w.-]+", text)) - {"http://www.w3.org"}
            urls = {each for each in urls if "." in each}
            assert not urls, name
            assert "innerHTML" not in text, name
            assert not re.search(r"\beval\(|new Function|document\.write", text), name

    def test_every_file_that_is_named_exists(self) -> None:
        index = page_files()["index.html"].content.decode()
        named = re.findall(r"page/static/([\w.]+)", index)
        assert {"app.js", "style.css", "icon.svg", "theme.js"} <= set(named)
        for name, file in page_files().items():
            if name.endswith(".js"):
                named += re.findall(r'from "\./([\w.]+)"', file.content.decode())
        assert set(named) <= set(page_files())

    def test_urls_are_relative_so_that_a_proxy_may_put_a_prefix_before_them(self) -> None:
        index = page_files()["index.html"].content.decode()
        assert not re.search(r'(?:src|href)="/', index)
        for name in ("api.js", "app.js"):
            assert not re.search(r'["`]/(?:page|v3)', page_files()[name].content.decode()), name

    def test_the_headers_trust_nothing_but_the_page(self, api: TestClient) -> None:
        answer = api.get("/", headers={"Authorization": ""})
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        again = api.get("/", headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")

    def test_only_files_of_the_page_are_served(self, api: TestClient) -> None:
        for name in ("../views.py", "..%2fviews.py", "none.js", "__init__.py"):
            assert api.get(f"/page/static/{name}").status_code == 404

    def test_they_are_in_the_package(self) -> None:
        names = {path.name for path in (Path(live_page.__file__).parent / "static").iterdir()}
        assert names == set(page_files())


class TestSessions:
    def test_a_code_logs_in_once(self) -> None:
        sessions = Sessions(b"key")
        code = sessions.code(HASH)
        assert sessions.redeem(code) == HASH
        assert sessions.redeem(code) is None
        # Nor does another spelling of the same bytes in base64.
        assert sessions.redeem(f"{code[:8]}!!!!{code[8:]}") is None
        assert sessions.redeem(code[:-1] + chr(ord(code[-1]) + 1)) is None

    def test_codes_and_sessions_end(self) -> None:
        now = [1000.0]
        sessions = Sessions(b"key", lambda: now[0])
        code, session = sessions.code(HASH), sessions.session(HASH)
        now[0] += CODE_SECONDS + 1
        assert sessions.redeem(code) is None
        assert sessions.token_hash(session) == HASH
        now[0] += SESSION_SECONDS
        assert sessions.token_hash(session) is None

    def test_one_is_not_the_other_and_neither_can_be_forged(self) -> None:
        sessions, other = Sessions(b"key"), Sessions(b"another")
        assert sessions.token_hash(sessions.code(HASH)) is None
        assert sessions.redeem(sessions.session(HASH)) is None
        assert sessions.token_hash(other.session(HASH)) is None
        session = sessions.session(HASH)
        for wrong in ("", "x", "ü", "=", session[:-1], session[:-2] + "AA", "A" * len(session)):
            assert sessions.token_hash(wrong) is None
            assert sessions.redeem(wrong) is None

    def test_services_with_one_database_know_each_others(self) -> None:
        assert Sessions(b"key").token_hash(Sessions(b"key").session(HASH)) == HASH


@pytest.fixture
def guest(api: TestClient) -> TestClient:
    """A browser without a token."""
    api.headers.pop("Authorization")
    return api


@pytest.fixture
def token(database: Database) -> str:
    with database.write() as connection:
        return users.create_token(connection, "ada")


def log_in(client: TestClient, **how: str) -> httpx.Response:
    return client.post("/page/session", json=how, headers=PAGE)


class TestLogin:
    def test_the_cookie_of_a_login_is_good_for_the_page_alone(
        self, guest: TestClient, token: str
    ) -> None:
        refusal(guest.get("/page/overview"), 401, "UNAUTHORIZED", "Authorization")
        answer = log_in(guest, token=token)
        assert answer.json() == {"user": "ada"}
        said = answer.headers["set-cookie"]
        assert "HttpOnly" in said
        assert "SameSite=strict" in said
        assert "Path" not in said  # the browser takes the directory, with any prefix of a proxy
        assert token not in said
        assert guest.get("/page/overview").json()["user"] == "ada"
        (name, value), *_ = guest.cookies.items()
        # Sent along by force: no other route takes it.
        forced = {"Cookie": f"{name}={value}"}
        refusal(guest.get("/v3/status", headers=forced), 401, "UNAUTHORIZED", "Authorization")
        refusal(guest.post("/v3/page/code", headers=forced), 401, "UNAUTHORIZED", "Authorization")

    def test_a_code_of_the_command_line_logs_in_once(self, guest: TestClient, token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        code = guest.post("/v3/page/code", json={}, headers=headers).json()["code"]
        assert log_in(guest, code=code).status_code == 200
        again = log_in(guest, code=code)
        assert (
            "used before or is too old"
            in refusal(again, 401, "UNAUTHORIZED", "Authorization").message
        )

    def test_other_sites_can_not_log_somebody_in(self, guest: TestClient, token: str) -> None:
        refusal(guest.post("/page/session", json={"token": token}), 403, "NOT_THE_PAGE")

    def test_a_revoked_token_ends_its_sessions(
        self, guest: TestClient, token: str, database: Database
    ) -> None:
        log_in(guest, token=token)
        with database.write() as connection:
            assert users.revoke_token(connection, token)
        body = refusal(guest.get("/page/overview"), 401, "UNAUTHORIZED", "Authorization")
        assert "revoked" in body.message

    def test_an_endpoints_token_does_not_log_in(
        self, guest: TestClient, add_endpoint: Callable[..., str], database: Database
    ) -> None:
        endpoint_id = add_endpoint()
        with database.write() as connection:
            owner = users.user_id_of(connection, "ada")
            assert owner is not None
            token = users.create_endpoint_token(connection, owner, endpoint_id)
        refusal(log_in(guest, token=token), 401, "UNAUTHORIZED", "Authorization")
        headers = {"Authorization": f"Bearer {token}"}
        refusal(
            guest.post("/v3/page/code", headers=headers), 403, "ENDPOINT_TOKEN", "Authorization"
        )

    def test_a_proxy_with_tls_gets_a_secure_cookie(self, guest: TestClient, token: str) -> None:
        headers = {**PAGE, "X-Forwarded-Proto": "https"}
        answer = guest.post("/page/session", json={"token": token}, headers=headers)
        assert "Secure" in answer.headers["set-cookie"]

    def test_logging_out_takes_the_cookie_away(self, guest: TestClient, token: str) -> None:
        log_in(guest, token=token)
        assert "Max-Age=0" in guest.delete("/page/session").headers["set-cookie"]


class TestData:
    def test_the_overview_names_what_is_wrong(self, api: TestClient) -> None:
        (problem,) = api.get("/page/overview").json()["problems"]
        assert problem.startswith("the service can't reach its message broker: ")

    @pytest.mark.rabbitmq
    def test_a_tasks_page_has_its_whole_way(self, live: Rest, peer: Peer) -> None:
        endpoint = live.register_endpoint()
        group, (task_id,) = live.submit(endpoint)
        peer.send_report(endpoint, report(endpoint, running_tasks={task_id: 5.0}))
        peer.send_events(
            endpoint, events(task_id, ("submit", 1.0), ("start", 2.0), ("finish", 4.0))
        )
        peer.send_result(endpoint, result(task_id, "Traceback\nValueError: <script>no</script>"))
        until(lambda: live.status(task_id)["status"] == "failed")
        until(lambda: len(live.client.get(f"/page/tasks/{task_id}").json()["events"]) == 3)
        found = live.client.get(f"/page/tasks/{task_id}").json()
        assert found["state"] == "failed"
        # A number of 64 bits would lose its last digits in JavaScript.
        assert found["job"].startswith("ƒ")
        assert found["jobid"] is None
        assert [each["name"] for each in found["events"]] == ["submit", "start", "finish"]
        assert found["output"]["error"].endswith("ValueError: <script>no</script>")
        (shown,) = live.client.get("/page/activity", params={"task_group_id": group}).json()[
            "tasks"
        ]
        assert (shown["started"], shown["stopped"]) == (2.0, 4.0)
        (known,) = live.client.get("/page/groups").json()["groups"]
        assert (known["id"], known["function"]) == (group, "double")
        (its,) = live.client.get("/page/overview").json()["endpoints"]
        assert its["mine"]
        assert "running_tasks" not in its["report"]
        by_name = {"function": "DOUB", "state": "failed"}
        assert len(live.client.get("/page/tasks", params=by_name).json()["tasks"]) == 1
        assert live.client.get("/page/tasks", params={"function": "x"}).json()["tasks"] == []

    @pytest.mark.rabbitmq
    def test_a_filter_searches_for_a_moment_and_says_where_it_stopped(
        self, live: Rest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flux_endpoint.service.page import views

        endpoint = live.register_endpoint()
        for _ in range(3):
            live.submit(endpoint, 2, create_queue=False)
        monkeypatch.setattr(views, "PATIENCE", 0.0)
        query: dict[str, Any] = {"function": "none of them"}
        first = live.client.get("/page/tasks", params=query).json()
        assert first["tasks"] == []
        assert first["next"]  # it has not seen all of them
        monkeypatch.setattr(views, "PATIENCE", 60.0)
        rest = live.client.get("/page/tasks", params={**query, "before": first["next"]}).json()
        assert rest == {"tasks": [], "next": None}

    @pytest.mark.rabbitmq
    def test_what_runs_is_found_behind_all_that_waits(self, live: Rest, peer: Peer) -> None:
        endpoint = live.register_endpoint()
        _, (function, job, over) = live.submit(endpoint, 3)
        live.submit(endpoint, 500)
        peer.send_events(endpoint, events(job, ("submit", 1.0), ("start", 2.0)))
        peer.send_events(endpoint, events(over, ("submit", 1.0), ("start", 2.0)))
        peer.send_result(endpoint, result(over, ran=(2.0, 3.0)))
        peer.send_report(endpoint, report(endpoint, running_tasks={function: 5.0, "no id": 1.0}))

        def running() -> set[str]:
            listed = live.client.get("/page/tasks", params={"state": "running", "limit": 5}).json()
            return {each["task_id"] for each in listed["tasks"]}

        until(lambda: running() == {function, job})
        until(lambda: live.status(over)["status"] == "success")
        drawn = live.client.get("/page/activity", params={"limit": 5}).json()
        assert {each["id"] for each in drawn["tasks"]} == {function, job, over}
        assert drawn["unfinished"] == 502

    @pytest.mark.rabbitmq
    def test_endpoints_report_often_while_somebody_looks(self, live: Rest, peer: Peer) -> None:
        able = live.register_endpoint(
            metadata={"flux_endpoint_version": "1", "reports_on_request": True}
        )
        older = live.register_endpoint()
        for each in (able, older):
            peer.send_report(each, report(each))
            until(
                lambda each=each: live.client.get(f"/v3/endpoints/{each}/status").json()["report"]
            )  # type: ignore[misc]
        live.client.get("/page/overview")
        asked = unpack(peer.take(commands_queue(able)).body)
        assert isinstance(asked, ReportsWanted)
        status = live.client.get(f"/v3/endpoints/{older}/status").json()
        assert status["report"]
        live.client.get("/page/tasks")
        counted = live.client.app.state.observer.queues(  # type: ignore[attr-defined]
            [commands_queue(able), commands_queue(older)], 10
        )
        assert {each.messages for each in counted.values()} == {0}


def test_requests_for_reports_are_rare() -> None:
    now = [0.0]
    requests = ReportRequests(lambda: now[0])
    assert requests.is_due("a")
    assert not requests.is_due("a")
    assert requests.is_due("b")
    now[0] += AGAIN
    assert requests.is_due("a")


class TestOutput:
    @staticmethod
    def of(value: object) -> bytes:
        return b"00\n" + b64encode(dill.dumps(value)) + b"\n"

    def test_a_commands_streams_are_shown(self) -> None:
        shown = shown_output(self.of(ShellResult("ls", "one\ntwo", "oh", 3)), failed=False)
        assert (shown.command, shown.stdout, shown.stderr) == ("ls", "one\ntwo", "oh")
        assert shown.returncode == 3
        assert shown.value is None

    def test_all_of_a_commands_streams_is_there_for_followers(self) -> None:
        long = "line\n" * 10_000
        streams = {"stdout": long, "stderr": "a?b"}
        result = ShellResult("ls", long, "a\udcffb", 0)
        assert command_streams(self.of(result)) == streams
        assert command_streams(self.of(vars(result))) == streams
        for other in (5, {"stdout": "x"}, print):
            assert command_streams(self.of(other)) == {}

    def test_plain_values_are_shown(self) -> None:
        shown = shown_output(self.of({"energy": [1.5, None]}), failed=False)
        assert shown.value == "{'energy': [1.5, None]}"

    def test_what_json_or_repr_can_not_hold(self) -> None:
        assert shown_output(self.of(10**5000), failed=False).value is None
        shown = shown_output(self.of(ShellResult("ls", "a\udcffb", "", 0)), failed=False)
        assert '"a?b"' in shown.model_dump_json()

    def test_nothing_is_imported_or_run(self) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return pytest.fail, ("it was unpickled",)

        for value in (Trap(), print, Path("/"), ValueError("x")):
            shown = shown_output(self.of(value), failed=False)
            assert shown.value is None
            assert shown.size > 0
        assert shown_output(b"00\nnot base64!", failed=False).value is None

    def test_long_texts_are_cut_at_their_beginning(self) -> None:
        many = "\n".join(str(number) for number in range(10_000))
        text = shown_output(many.encode(), failed=True).error
        assert text is not None
        assert text.endswith("9999")
        assert len(text) < LONGEST
        assert len(text.splitlines()) == MOST_LINES + 1
        assert text.startswith("…")


@pytest.fixture
def served(
    live_settings: ServiceSettings, token: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[httpx.Client, Any]]:
    """A service on a port of its own, used by ada; its silent streams speak soon."""
    monkeypatch.setattr(live_page, "KEEPALIVE", 0.2)
    app = create_app(live_settings)
    with listening(app) as port:
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            yield client, app


@pytest.mark.rabbitmq
class TestEvents:
    def test_a_change_wakes_the_pages_of_its_user_alone(
        self, served: tuple[httpx.Client, Any], bob: dict[str, str], peer: Peer
    ) -> None:
        client, app = served
        endpoint = client.post(
            "/v3/endpoints",
            json={"endpoint_name": "lab", "metadata": {"flux_endpoint_version": "1"}},
        ).json()["endpoint_id"]
        code = {"function_name": "f", "function_code": "12\n01\ngASVabcd\n"}
        function = client.post("/v3/functions", json=code).json()["function_uuid"]

        def first(headers: dict[str, str], seconds: float) -> list[str] | None:
            """Return the topics of the first event."""
            with client.stream("GET", "/page/events", headers=headers) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                comments = 0
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        topics: list[str] = json.loads(line.removeprefix("data: "))
                        return topics
                    comments += line.startswith(":")
                    if comments * live_page.KEEPALIVE > seconds:
                        return None
            return None

        with ThreadPoolExecutor(2) as both:
            ada, others = both.submit(first, {}, 60), both.submit(first, bob, 1.5)
            until(lambda: len(app.state.listeners._listeners) == 2)
            body = {"tasks": {function: ["8\n00\ngAQp\n8\n00\ngAR9\n"]}}
            assert client.post(f"/v3/endpoints/{endpoint}/submit", json=body).status_code == 200
            assert ada.result() == ["tasks"]
            assert others.result() is None
        # Whoever goes away is forgotten, without an event.
        until(lambda: not app.state.listeners._listeners)
        with ThreadPoolExecutor(1) as one:
            ada = one.submit(first, {}, 60)
            until(lambda: app.state.listeners._listeners)
            peer.send_report(endpoint, report(endpoint))
            assert ada.result() == ["endpoints"]

    def test_a_user_has_a_bounded_number_of_live_pages_and_a_stop_ends_them(
        self, served: tuple[httpx.Client, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client, app = served
        monkeypatch.setattr(live_page, "MOST_OF_USER", 1)
        with client.stream("GET", "/page/events") as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("retry:")
            refused = client.get("/page/events")
            assert (refused.status_code, refused.json()["code"]) == (429, "TOO_MANY_LISTENERS")
            assert refused.headers["Retry-After"]
            app.state.listeners.close()
            for _ in lines:  # it ends
                pass
        assert client.get("/page/events").status_code == 503
