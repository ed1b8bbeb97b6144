"""`flux-endpoint service …` on a database, and what of it a running service heeds."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fastapi.testclient import TestClient
from httpx import Response
from tests.service.conftest import FUNCTION, NO_BROKER, OWN, PAYLOAD, refusal
from tests.service.test_quotas import submit

from broker_access import NOBODY_ASKS
from flux_endpoint.audit import AuditLog
from flux_endpoint.cli.administration import users as user_commands
from flux_endpoint.cli.service import service
from flux_endpoint.cli.table import table_of
from flux_endpoint.errors import ServiceError
from flux_endpoint.service.quotas import Quotas
from flux_endpoint.service.routes import administration as routes
from flux_endpoint.service.scope import DEFAULT_SCOPES, TokenScope, known_scopes, needed_scope
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import accounts, administration, tasks, users
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.output import TaskOutput
from flux_endpoint.service.token_use import PERIOD, TokenUse
from waiting import until

Command = Callable[..., Result]

LABS = ("11111111-2222-4333-8444-55555555555a", "11111111-2222-4333-8444-55555555555b")


@pytest.fixture
def command(database: Database, database_url: str, tmp_path: Path) -> Command:
    """Runs `flux-endpoint service ARGUMENTS` on the database, in this process."""

    def run(*arguments: str, ok: bool = True) -> Result:
        environment = {
            "FLUX_ENDPOINT_SERVICE_DATABASE_URL": database_url,
            "FLUX_ENDPOINT_SERVICE_AUDIT_LOG": str(tmp_path / "who.jsonl"),
        }
        done = CliRunner().invoke(service, arguments, env=environment)
        assert (done.exception is None) == ok, (done.output, done.exception)
        return done

    return run


def document(done: Result) -> Any:
    return json.loads(done.stdout)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.strip()}"}


class TestUsers:
    def test_a_user_has_limits_until_they_are_default_again(self, command: Command) -> None:
        command("user", "create", "ada", "--max-tasks=500", "--max-queued=1G")
        command("user", "set", "ada", "--max-task-rate=2.5", "--max-code", "infinity")
        (ada,) = document(command("user", "list", "--json"))
        assert ada["limits"] == {
            "max_user_tasks": 500,
            "max_user_queued": 2.0**30,
            "max_user_task_rate": 2.5,
            "max_user_code": "infinity",
        }
        command("user", "set", "ada", "--max-tasks=default", "--max-queued=default")
        shown = document(command("user", "show", "ada", "--json"))
        most = {each["limit"]: each["most"] for each in shown["usage"] if each["own"]}
        assert most == {"max_user_task_rate": 2.5, "max_user_code": "infinity"}

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ("user set ada --max-tasks=0", "--max-tasks: Input should be greater"),
            ("user set ada --max-queued=many", "is not a size"),
            ("user set ada", "say which limit to set: --max-tasks"),
            ("user set nobody --max-tasks=1", "there is no user nobody"),
            ("user create ada", "there is a user ada already"),
            ("user create Ada", "differs from ada"),
            ("token create ada --scope=write", "'write' is not one of"),
            ("token create ada --endpoint=x --scope=read", "has no --scope"),
            ("token revoke", "say which tokens to revoke"),
            ("token list --user=nobody", "there is no user nobody"),
            ("group delete none", "there is no group none"),
        ],
    )
    def test_a_wrong_argument_is_explained(
        self, command: Command, arguments: str, said: str
    ) -> None:
        command("user", "create", "ada")
        done = command(*arguments.split(), ok=False)
        assert said in f"{done.output}{done.exception}"

    def test_all_tokens_of_a_disabled_user_are_refused_until_enabled(
        self,
        command: Command,
        api: TestClient,
        add_endpoint: Callable[..., str],
        database: Database,
    ) -> None:
        endpoint_id = add_endpoint(metadata=OWN)
        own = bearer(api.post(f"/v3/endpoints/{endpoint_id}/tokens").json()["token"])
        its_path = f"/v3/endpoints/{endpoint_id}/status"
        with database.read() as connection:
            (first, *_) = users.list_tokens(connection)
            user_id = users.user_id_of(connection, "ada") or ""
        account = accounts.Account(accounts.AccountKind.USER, user_id, first.id)

        def alive() -> bool:
            with database.read() as connection:
                return accounts.is_alive(connection, account)

        assert alive()
        command("user", "disable", "ada")
        refused = refusal(api.get("/v2/endpoints"), 401, "UNAUTHORIZED", "Authorization")
        assert "is disabled" in refused.message
        refusal(api.get(its_path, headers=own), 401, "UNAUTHORIZED", "Authorization")
        assert not alive()
        command("user", "enable", "ada")
        assert api.get("/v2/endpoints").status_code == 200
        assert api.get(its_path, headers=own).status_code == 200
        assert alive()

    def test_only_a_user_without_tasks_and_endpoints_is_deleted(
        self, command: Command, add_endpoint: Callable[..., str], api: TestClient
    ) -> None:
        ids = submit(api, add_endpoint(metadata=OWN), 2)
        done = command("user", "delete", "ada", ok=False)
        assert "1 endpoints, 2 tasks, 1 functions with tasks" in str(done.exception)
        assert len(ids) == 2
        command("token", "create", "bob")
        command("group", "add", "chemists", "bob")
        command("user", "delete", "bob")
        assert [each["user"] for each in document(command("user", "list", "--json"))] == ["ada"]
        assert document(command("group", "list", "--json")) == []

    def test_the_table_fits_a_terminal(self, database: Database) -> None:
        with database.write() as connection:
            for name in ("ada", "marie.sklodowska-curie@chemistry.example.org"):
                users.create_token(connection, name)
                user_id = users.user_id_of(connection, name) or ""
                limits = {"max_user_tasks": 500.0, "keep_user_results": 2.0**30}
                administration.set_limits(connection, user_id, limits)
            found = administration.list_users(connection)
        rows = [user_commands._row(each, time.time()) for each in found]
        table = table_of(user_commands._COLUMNS, rows, None, color=False, width=80)
        assert max(map(len, table.splitlines())) <= 80
        assert table.splitlines()[0].split()[:2] == ["USER", "STATE"]


class TestTokens:
    def test_scopes_permit_routes(self, command: Command, api: TestClient) -> None:
        def status(method: str, path: str, *scopes: str) -> tuple[int, str | None]:
            given = [f"--scope={each}" for each in scopes]
            token = command("token", "create", "ada", *given).stdout
            body = {"function_name": "f", "function_code": FUNCTION, "endpoint_name": "lab"}
            how = {} if method == "GET" else {"json": body}
            answer = api.request(method, path, headers=bearer(token), **how)
            return answer.status_code, answer.json().get("code") if answer.is_error else None

        assert status("GET", "/v3/tasks", "read") == (200, None)
        assert status("POST", "/v3/functions", "read") == (403, "TOKEN_SCOPE")
        assert status("POST", "/v3/functions", "submit") == (200, None)
        assert status("POST", "/v3/endpoints", "submit") == (403, "TOKEN_SCOPE")
        # Without a broker the registration fails after it was permitted.
        assert status("POST", "/v3/endpoints", "endpoints") == (503, "BROKER_UNAVAILABLE")
        assert status("POST", "/v3/functions", "admin") == (403, "TOKEN_SCOPE")
        assert status("GET", "/v3/admin/users", "admin") == (200, None)
        assert status("GET", "/v3/admin/users") == (404, "NOT_FOUND")

    def test_scopes_of_later_releases_permit_nothing(self) -> None:
        assert known_scopes(None) == DEFAULT_SCOPES
        assert known_scopes(["submit", "conquer"]) == {TokenScope.READ, TokenScope.SUBMIT}
        assert needed_scope("PATCH", "/v9/anything") is TokenScope.ENDPOINTS

    def test_the_cache_of_results_needs_no_more_than_submissions(self) -> None:
        assert needed_scope("POST", "/v3/cache/find") is TokenScope.SUBMIT
        assert needed_scope("POST", "/v3/cache") is TokenScope.SUBMIT
        assert needed_scope("DELETE", "/v3/cache") is TokenScope.SUBMIT

    def test_the_last_use_is_recorded_once_in_ten_minutes(
        self, database: Database, token_of: Callable[[str], dict[str, str]]
    ) -> None:
        token = token_of("ada")["Authorization"].removeprefix("Bearer ")
        now = [1000.0]
        use = TokenUse(database, lambda: now[0])

        def used() -> float | None:
            with database.read() as connection:
                user = users.user_by_token(connection, token)
                (listed,) = users.list_tokens(connection)
            assert user is not None
            use.note(user)
            return listed.last_used_at

        assert used() is None
        assert used() == 1000
        now[0] += PERIOD - 1
        assert [used(), used()] == [1000, 1000]
        now[0] += 1
        assert [used(), used()] == [1000, 1000 + PERIOD]

    def test_a_request_is_a_use_and_so_is_a_report(
        self,
        command: Command,
        api: TestClient,
        database: Database,
        add_endpoint: Callable[..., str],
    ) -> None:
        assert api.get("/v2/endpoints").status_code == 200
        assert document(command("user", "list", "--json"))[0]["last_used"] > time.time() - 600
        endpoint_id = add_endpoint("bob", metadata=OWN)
        (token,) = document(command("token", "list", "--user=bob", "--json"))
        assert token["last_used_at"] is None
        with database.write() as connection:
            endpoints = administration.endpoints
            its = endpoints.update().where(endpoints.c.id == endpoint_id)
            connection.execute(its.values(token_id=token["id"], last_seen=4000.0))
        (token,) = document(command("token", "list", "--user=bob", "--json"))
        assert token["last_used_at"] == 4000

    def test_tokens_are_shown_and_revoked_by_id_text_and_user(
        self, command: Command, tmp_path: Path
    ) -> None:
        made = document(command("token", "create", "ada", "--label=lab 3", "--json"))
        shown = document(command("token", "show", "--json", "--", made["token"]))
        assert (shown["id"], shown["label"]) == (made["id"], "lab 3")
        assert shown["scopes"] == ["endpoints", "read", "submit"]
        others = [command("token", "create", "ada").stdout.strip() for _ in range(3)]
        command("token", "revoke", "--", made["id"], others[0])
        assert len(document(command("token", "list", "--json"))) == 2
        assert command("token", "revoke", "--user=ada").stdout == "2 tokens revoked\n"
        assert document(command("token", "list", "--json")) == []
        log = (tmp_path / "who.jsonl").read_text()
        assert log.count('"token revoked"') == 4
        assert not any(each in log for each in (made["token"], *others))


class TestLimits:
    def test_limits_of_a_user_hold_over_tokens_and_endpoints(
        self,
        command: Command,
        api: TestClient,
        add_endpoint: Callable[..., str],
        token_of: Callable[[str], dict[str, str]],
    ) -> None:
        labs = [add_endpoint(metadata=OWN, users=["*"]) for _ in range(2)]
        command("user", "set", "ada", "--max-tasks=3")
        assert len(submit(api, labs[0], 2)) == 2
        api.headers.update(token_of("ada"))
        said = refusal(submit(api, labs[1], 2), 429, "TOO_MANY_TASKS").message
        assert "2 tasks that have not ended, of at most 3" in said
        api.headers.update(token_of("bob"))
        assert len(submit(api, labs[1], 5)) == 5

    def test_a_submission_that_never_fits_is_too_large(
        self, command: Command, api: TestClient, add_endpoint: Callable[..., str]
    ) -> None:
        lab = add_endpoint(metadata=OWN)
        command("user", "set", "ada", "--max-tasks=3", f"--max-queued={2 * len(PAYLOAD)}")
        said = refusal(submit(api, lab, 4), 413, "SUBMISSION_TOO_LARGE").message
        assert "has 4 tasks, and you may have 3" in said
        said = refusal(submit(api, lab, 3), 413, "SUBMISSION_TOO_LARGE").message
        assert f"has {3 * len(PAYLOAD)} bytes of arguments" in said
        assert len(submit(api, lab, 2)) == 2

    def test_functions_endpoints_and_requests_have_a_users_own_limits(
        self, command: Command, api: TestClient, bob: dict[str, str]
    ) -> None:
        code = {"function_name": "f", "function_code": FUNCTION}
        command("user", "set", "ada", "--max-functions=1", "--max-endpoints=1")
        assert api.post("/v3/functions", json=code).status_code == 200
        refusal(api.post("/v3/functions", json=code), 403, "TOO_MANY_FUNCTIONS")
        for _ in range(2):
            assert api.post("/v3/functions", json=code, headers=bob).status_code == 200
        command("user", "set", "ada", "--max-requests=1")
        answers: list[Response] = []

        def is_refused() -> bool:
            answers.append(api.get("/v2/endpoints"))
            return answers[-1].is_error

        until(is_refused)
        assert "more than 1 requests" in refusal(answers[-1], 429, "TOO_MANY_REQUESTS").message

    def test_submitted_tasks_per_second_are_limited_with_a_burst(
        self, database: Database, token_of: Callable[[str], dict[str, str]]
    ) -> None:
        token_of("ada")
        settings = ServiceSettings(database_url="x", amqp_url=NO_BROKER, **NOBODY_ASKS)
        now = [5000.0]
        quotas = [Quotas(settings, lambda: now[0]) for _ in range(2)]  # two services

        def add(count: int, service: int = 0) -> int | None:
            """Submit tasks; return after how many seconds to try again, if it is refused."""
            try:
                with database.write() as connection:
                    user_id = users.user_id_of(connection, "ada") or ""
                    quotas[service].add_tasks(connection, user_id, count, 0)
            except ServiceError as error:
                return error.retry_after if error.code == "TOO_MANY_SUBMISSIONS" else -1
            return None

        assert add(10_000) is None  # there is no limit by default
        with database.write() as connection:
            user_id = users.user_id_of(connection, "ada") or ""
            administration.set_limits(connection, user_id, {"max_user_task_rate": 2.0})
        assert [add(15), add(5, 1), add(1)] == [None, None, 1]  # ten seconds' worth
        now[0] += 5
        assert [add(11), add(10), add(4)] == [1, None, 2]
        now[0] += 10
        assert add(100) is None  # larger than a burst: it waits for a full one, and is paid off
        assert add(1) == 41
        now[0] += 40.5
        assert add(1) is None
        with database.read() as connection:
            assert connection.execute(administration.users.select()).one().open_tasks == 10_131


class TestAdministrators:
    @pytest.fixture
    def admin(self, command: Command) -> dict[str, str]:
        """The header of an administrator who has nothing."""
        return bearer(command("token", "create", "root", "--scope=admin").stdout)

    def test_tasks_and_endpoints_of_all_users_are_listed(
        self,
        command: Command,
        api: TestClient,
        add_endpoint: Callable[..., str],
        token_of: Callable[[str], dict[str, str]],
        admin: dict[str, str],
    ) -> None:
        labs = {owner: add_endpoint(owner, metadata=OWN) for owner in ("bob", "ada")}
        ids = {}
        for owner, lab in labs.items():
            api.headers.update(token_of(owner))
            (ids[owner],) = submit(api, lab)
        listed = api.get("/v3/admin/tasks", headers=admin).json()
        assert [(each["user"], each["task_id"]) for each in listed["tasks"]] == [
            ("ada", ids["ada"]),
            ("bob", ids["bob"]),
        ]
        first = api.get("/v3/admin/tasks?limit=1", headers=admin).json()
        rest = api.get(f"/v3/admin/tasks?before={first['next']}", headers=admin).json()
        assert [each["user"] for each in first["tasks"] + rest["tasks"]] == ["ada", "bob"]
        (only,) = api.get("/v3/admin/tasks?user=bob", headers=admin).json()["tasks"]
        assert only["task_id"] == ids["bob"]
        answer = api.get("/v3/admin/tasks?user=nobody", headers=admin)
        refusal(answer, 422, "SEMANTICALLY_INVALID", "user")
        whole = api.get(f"/v3/admin/tasks/{ids['bob']}", headers=admin).json()
        assert (whole["user"], whole["endpoint_name"], whole["state"]) == ("bob", "lab", "received")

        found = api.get("/v3/admin/endpoints", headers=admin).json()
        assert [each["endpoint_id"] for each in found["endpoints"]] == [labs["ada"], labs["bob"]]
        first = api.get("/v3/admin/endpoints?limit=1", headers=admin).json()
        rest = api.get(f"/v3/admin/endpoints?after={first['next']}", headers=admin).json()
        assert [each["owner"] for each in first["endpoints"] + rest["endpoints"]] == ["ada", "bob"]
        assert rest["next"] is None
        (only,) = api.get("/v3/admin/endpoints?user=bob", headers=admin).json()["endpoints"]
        assert (only["version"], only["status"]) == (OWN["flux_endpoint_version"], "offline")
        known = api.get("/v3/admin/users", headers=admin).json()["users"]
        assert [(each["user"], each["unfinished"]) for each in known] == [
            ("ada", 1),
            ("bob", 1),
            ("root", 0),
        ]
        # The administrator's own lists have nothing of others.
        assert api.get("/v3/tasks", headers=admin).json()["tasks"] == []
        unknown = api.get(f"/v3/tasks/{ids['bob']}", headers=admin)
        refusal(unknown, 404, "TASK_NOT_FOUND", "task_id")

    def test_commands_list_and_show_what_all_users_have(
        self,
        command: Command,
        api: TestClient,
        add_endpoint: Callable[..., str],
        token_of: Callable[[str], dict[str, str]],
    ) -> None:
        lab = add_endpoint("ada", metadata=OWN, users=["*"], groups=["chemists"])
        add_endpoint("bob", metadata=OWN, endpoint_name="bobs")
        ids = {}
        for owner in ("bob", "ada"):
            api.headers.update(token_of(owner))
            (ids[owner],) = submit(api, lab)
        listed = document(command("task", "list", "--json"))
        assert [(each["user"], each["task_id"]) for each in listed["tasks"]] == [
            ("ada", ids["ada"]),
            ("bob", ids["bob"]),
        ]
        (only,) = document(command("task", "list", "--json", "--user=bob"))["tasks"]
        assert only["task_id"] == ids["bob"]
        assert document(command("task", "list", "--json", "--limit=1"))["more"] is True
        assert command("task", "list", "--state=ended").stdout == "No such tasks.\n"
        table = command("task", "list", f"--endpoint={lab}", "-o", "user,function,endpoint").stdout
        assert [line.split() for line in table.splitlines()] == [
            ["USER", "FUNCTION", "ENDPOINT"],
            ["ada", "double", "lab"],
            ["bob", "double", "lab"],
        ]
        shown = command("task", "show", ids["bob"]).stdout
        assert re.search(r"^User +bob\n", shown)
        assert re.search(rf"\nEndpoint +lab \({lab}\)\n", shown)
        assert document(command("task", "show", "--json", ids["ada"]))["user"] == "ada"

        found = document(command("endpoint", "list", "--json"))["endpoints"]
        assert [(each["owner"], each["name"]) for each in found] == [
            ("ada", "lab"),
            ("bob", "bobs"),
        ]
        table = command("endpoint", "list", "--user=ada").stdout.splitlines()
        assert re.search(r"lab +ada +offline +- +endpoint all users, group chemists", table[1])
        assert "Open to    all users, group chemists" in command("endpoint", "show", lab).stdout
        for noun in ("task", "endpoint"):
            done = command(noun, "show", "11111111-2222-4333-8444-555555555555", ok=False)
            assert f"there is no {noun} 11111111" in str(done.exception)

    def test_what_tasks_have_printed_is_not_shown(
        self,
        command: Command,
        api: TestClient,
        add_endpoint: Callable[..., str],
        admin: dict[str, str],
        database: Database,
    ) -> None:
        (task_id,) = submit(api, add_endpoint(metadata=OWN))
        output = TaskOutput("secret", "secret", 7, 7)
        outcome = tasks.TaskOutcome(task_id, False, b"x", None, time.time(), output=output)
        with database.write() as connection:
            tasks.complete(connection, [outcome], tasks.routes(connection, [task_id]))
        assert api.get(f"/v3/tasks/{task_id}").json()["stdout"] == "secret"
        shown = [
            *(
                api.get(f"/v3/admin/tasks{each}", headers=admin).text
                for each in ("", f"/{task_id}")
            ),
            *(command("task", "list", *each).stdout for each in ((), ("--json",))),
            *(command("task", "show", task_id, *each).stdout for each in ((), ("--json",))),
        ]
        for text in shown:
            assert task_id in text
            assert "secret" not in text
        assert json.loads(shown[1])["stdout_dropped"] == 0

    def test_what_users_choose_can_not_control_the_terminal(
        self,
        command: Command,
        api: TestClient,
        add_endpoint: Callable[..., str],
        database: Database,
    ) -> None:
        code = {"function_name": "\x07f\x1b[2J", "function_code": FUNCTION}
        function_id = api.post("/v3/functions", json=code).json()["function_uuid"]
        metadata = {**OWN, "flux_endpoint_version": "\x071"}
        lab = add_endpoint(metadata=metadata)
        body = {"tasks": {function_id: [PAYLOAD]}}
        answer = api.post(f"/v3/endpoints/{lab}/submit", json=body).json()
        (task_id,) = answer["tasks"][function_id]
        outcome = tasks.TaskOutcome(task_id, True, b"\x07no\x1b[2J", None, time.time())
        with database.write() as connection:
            tasks.complete(connection, [outcome], tasks.routes(connection, [task_id]))
        for *arguments, seen in (
            ("task", "list", "--color=always", "?f?[2J"),
            ("task", "show", task_id, "--color=always", "?no?[2J"),
            ("endpoint", "show", lab, "?1"),
        ):
            shown = command(*arguments).stdout
            assert seen in shown
            assert "\x07" not in shown
            assert "\x1b[2J" not in shown

    def test_others_get_the_answer_for_a_path_that_does_not_exist(
        self,
        command: Command,
        api: TestClient,
        add_endpoint: Callable[..., str],
        admin: dict[str, str],
    ) -> None:
        endpoint_id = add_endpoint(metadata=OWN)
        (task_id,) = submit(api, endpoint_id)
        own = bearer(api.post(f"/v3/endpoints/{endpoint_id}/tokens").json()["token"])
        others = [
            own,
            *(
                bearer(command("token", "create", "ada", f"--scope={scope}").stdout)
                for scope in set(TokenScope) - {TokenScope.ADMIN}
            ),
            {},  # ada's token with the default scopes
        ]
        paths = [route.path.replace("{task_id}", task_id) for route in routes.router.routes]
        assert len(paths) == 4
        for path in paths:
            assert api.get(path, headers=admin).status_code == 200
            for headers in others:
                for method in ("GET", "DELETE"):
                    answer = api.request(method, path, headers=headers)
                    nothing = api.request(method, "/v3/admin/nothing", headers=headers)
                    assert answer.status_code == nothing.status_code == 404
                    assert dict(answer.headers).keys() == dict(nothing.headers).keys()
                    said = [
                        {**each.json(), "request_id": None, "place": str(each.url.path)}
                        for each in (answer, nothing)
                    ]
                    texts = [json.dumps(each).replace(each["place"], "PATH") for each in said]
                    assert texts[0] == texts[1]


class TestAudit:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        """The audit log of `command`, which was rotated, with ada's and bob's submissions."""
        path = tmp_path / "who.jsonl"
        written = AuditLog(path, size=900)
        for number in range(1, 9):
            user, lab = ("ada", LABS[0]) if number % 2 else ("bob", LABS[1])
            about = {"endpoint_id": lab, "tasks": number, "functions": {lab: number}}
            written.write("tasks submitted", user=user, **about)
        written.write("request refused", user="eve\x1b[2J", address="10.0.0.1", code="TOKEN_SCOPE")
        written.close()
        with path.open("ab") as file:
            file.write(b'{"event": "tasks subm\n')  # a record that was cut off
        assert path.with_name("who.jsonl.1").exists()
        return path

    def test_records_are_selected_over_rotated_files(self, command: Command, log: Path) -> None:
        def numbers(*options: str) -> list[int | None]:
            found = document(command("audit", "--json", *options))["records"]
            return [each.get("tasks") for each in found]

        assert numbers() == [*range(1, 9), None]
        assert numbers("--limit=3") == [7, 8, None]
        assert document(command("audit", "--json", "--limit=3"))["more"] is True
        assert numbers("--user=bob")[-2:] == [6, 8]
        assert numbers(f"--endpoint={LABS[0].upper()}")[-2:] == [5, 7]
        assert numbers(f"--function={LABS[1]}", "--limit=1") == [8]
        assert numbers("--event=REFUSED") == [None]
        assert numbers("--since=1h") == numbers()
        assert numbers("--until=1h") == numbers("--since=2999-01-01") == []
        moment = datetime.fromtimestamp(time.time() + 60, UTC).isoformat()
        assert numbers(f"--until={moment}") == numbers()

    def test_names_are_known_and_control_characters_are_not_shown(
        self, command: Command, log: Path, database: Database, add_endpoint: Callable[..., str]
    ) -> None:
        lab = add_endpoint(endpoint_name="west")
        with database.write() as connection:
            owner = users.user_id_of(connection, "ada")
            values = {
                "id": lab,
                "owner_id": owner,
                "name": "simulate",
                "code": b"",
                "created_at": 1,
            }
            connection.execute(administration.functions.insert().values(**values, public=False))
        more = AuditLog(log)
        about = {"endpoint_id": lab, "tasks": 3, "functions": {lab: 3}}
        more.write("tasks submitted", user="ada", **about)
        more.close()
        for option in ("--endpoint=west", "--function=simulate"):
            (record,) = document(command("audit", "--json", option))["records"]
            assert record["endpoint_name"] == "west"
            assert record["function_names"] == {lab: "simulate"}
        table = command("audit").stdout
        last = table.splitlines()[-1]
        assert re.search(r" ada +tasks submitted +west +3 x simulate +-", last)
        assert "eve?[2J" in table

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--since=soon"], "neither a duration before now"),
            (["--endpoint=nowhere"], "no endpoint of this service is called nowhere"),
            (["--audit-log=/nowhere/audit.jsonl"], "there is no audit log /nowhere/audit.jsonl"),
        ],
    )
    def test_what_is_not_there_is_explained(
        self, command: Command, log: Path, arguments: list[str], said: str
    ) -> None:
        done = command("audit", *arguments, ok=False)
        assert said in f"{done.output}{done.exception}"
