"""The identity provider that the official packages need: our tokens, and nothing issued anew."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from tests.service.conftest import refusal

from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database

COMPUTE = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"
PROJECTS = "urn:globus:auth:scope:auth.globus.org:manage_projects"
GRANT = {"grant_type": "client_credentials"}


@pytest.fixture
def token(token_of: Callable[[str], dict[str, str]]) -> str:
    return token_of("ada")["Authorization"].removeprefix("Bearer ")


def ask(api: TestClient, secret: str, client_id: str | None = None, **form: str) -> Response:
    login = (client_id or str(uuid.uuid4()), secret)
    return api.post("/auth/v2/oauth2/token", data=form, auth=login)


def test_a_token_as_client_secret_is_answered_for_every_resource_server(
    api: TestClient, token: str
) -> None:
    answer = ask(api, token, **GRANT, scope=f"openid {COMPUTE} {PROJECTS}").json()
    others = answer.pop("other_tokens")
    by_server = {each["resource_server"]: each for each in (answer, *others)}
    assert {server: each["scope"] for server, each in by_server.items()} == {
        "auth.globus.org": f"openid {PROJECTS}",
        "funcx_service": COMPUTE,
    }
    for each in by_server.values():
        assert (each["access_token"], each["token_type"]) == (token, "Bearer")
        assert each["expires_in"] > 0


def test_scopes_of_other_services_are_named_after_them(api: TestClient, token: str) -> None:
    answer = ask(api, token, **GRANT, scope="https://auth.globus.org/scopes/other/all").json()
    assert (answer["resource_server"], answer["other_tokens"]) == ("other", [])


@pytest.mark.parametrize("secret", ["wrong", "", "b\xe4d"])
def test_a_wrong_secret_is_a_401_that_names_the_variable(api: TestClient, secret: str) -> None:
    body = refusal(ask(api, secret, **GRANT, scope=COMPUTE), 401, "UNAUTHORIZED", "Authorization")
    assert "GLOBUS_COMPUTE_CLIENT_SECRET" in body.message


def test_a_revoked_token_is_refused_as_client_secret(
    api: TestClient, token: str, database: Database
) -> None:
    with database.write() as connection:
        assert users.revoke_token(connection, token)
    refusal(ask(api, token, **GRANT, scope=COMPUTE), 401, "UNAUTHORIZED", "Authorization")


@pytest.mark.parametrize("header", [None, "Bearer x", "Basic !", "Basic bm9jb2xvbg=="])
def test_without_client_credentials_it_says_what_to_set(
    api: TestClient, header: str | None
) -> None:
    api.headers.pop("Authorization")
    headers = {"Authorization": header} if header else {}
    answer = api.post("/auth/v2/oauth2/token", data=GRANT, headers=headers)
    body = refusal(answer, 401, "UNAUTHORIZED", "Authorization")
    assert "GLOBUS_COMPUTE_CLIENT_ID" in body.message


def test_a_client_id_is_a_uuid(api: TestClient, token: str) -> None:
    answer = ask(api, token, client_id="me", **GRANT, scope=COMPUTE)
    assert "UUID" in refusal(answer, 401, "UNAUTHORIZED", "Authorization").message


def test_other_grants_and_requests_without_scope_are_refused(api: TestClient, token: str) -> None:
    answer = ask(api, token, grant_type="authorization_code", scope=COMPUTE)
    refusal(answer, 400, "UNSUPPORTED_GRANT_TYPE", "grant_type")
    refusal(ask(api, token, **GRANT), 422, "SEMANTICALLY_INVALID", "scope")


def test_a_logout_leaves_the_token_as_it_is(api: TestClient, token: str) -> None:
    login = (str(uuid.uuid4()), token)
    answer = api.post("/auth/v2/oauth2/token/revoke", data={"token": token}, auth=login)
    assert answer.json() == {"active": False}
    assert ask(api, token, **GRANT, scope=COMPUTE).status_code == 200


def test_users_can_read_only_their_own_identity(api: TestClient, bob: dict[str, str]) -> None:
    me = api.get("/auth/v2/oauth2/userinfo").json()
    uuid.UUID(me["sub"])
    assert (me["preferred_username"], me["email"]) == ("ada", None)
    assert [each["sub"] for each in me["identity_set"]] == [me["sub"]]

    def identities(**headers: str) -> list[str]:
        answer = api.get("/auth/v2/api/identities", params={"ids": me["sub"]}, headers=headers)
        return [each["username"] for each in answer.json()["identities"]]

    assert identities() == ["ada"]
    assert identities(**bob) == []
    refused = api.get("/auth/v2/oauth2/userinfo", headers={"Authorization": "Bearer x"})
    refusal(refused, 401, "UNAUTHORIZED", "Authorization")


def test_an_email_address_as_user_name_is_the_email(
    api: TestClient, token_of: Callable[[str], dict[str, str]]
) -> None:
    headers = token_of("ada@example.org")
    assert api.get("/auth/v2/oauth2/userinfo", headers=headers).json()["email"] == "ada@example.org"
