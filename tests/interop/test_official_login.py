"""The official SDK and CLI reach this service through environment variables alone."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.service.conftest import NO_BROKER
from tests.service.http_server import listening

from broker_access import NOBODY_ASKS
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store import users
from flux_endpoint.service.store.engine import Database

pytestmark = pytest.mark.interop

PROGRAM = """
import json
from globus_compute_sdk import Client
from globus_sdk import GlobusAPIError

def double(x):
    return x * 2

try:
    client = Client()
    answer = {
        "function": client.register_function(double),
        "endpoints": client.get_endpoints(),
    }
except GlobusAPIError as error:
    answer = {"status": error.http_status, "code": error.code, "message": error.message}
print(json.dumps(answer))
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The port of a service, and a token of ada's."""
    url = f"sqlite:///{tmp_path / 'service.db'}"
    settings = ServiceSettings(
        database_url=url, amqp_url=NO_BROKER, publish_timeout=0.01, **NOBODY_ASKS
    )
    with listening(create_app(settings)) as port:
        database = Database(url)
        with database.write() as connection:
            token = users.create_token(connection, "ada")
        yield port, token
        database.close()


@pytest.fixture
def environment(service: tuple[int, str], tmp_path: Path) -> dict[str, str]:
    """What docs/interoperability.md tells a user to set."""
    port, token = service
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GLOBUS_")}
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        kept.pop(name, None)
    return {
        **kept,
        "HOME": str(tmp_path),
        "http_proxy": f"http://127.0.0.1:{port}",
        "GLOBUS_SDK_ENVIRONMENT": "local",
        "GLOBUS_SDK_SERVICE_URL_AUTH": "http://localhost:5000/auth/",
        "GLOBUS_COMPUTE_CLIENT_ID": str(uuid.uuid4()),
        "GLOBUS_COMPUTE_CLIENT_SECRET": token,
    }


@pytest.fixture
def run(
    official_python: str, environment: dict[str, str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of the official environment."""

    def run(command: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(official_python).parent / command, *arguments],
            env={**environment, **changes},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_plain_client_of_the_sdk_works(run: Run) -> None:
    done = run("python", "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    uuid.UUID(answer["function"])
    assert answer["endpoints"] == []


def test_a_wrong_secret_is_one_401_that_says_what_is_wrong(run: Run) -> None:
    done = run("python", "-c", PROGRAM, GLOBUS_COMPUTE_CLIENT_SECRET="wrong")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["code"]) == (401, "UNAUTHORIZED")
    assert "client secret is not a token of this service" in answer["message"]


def test_the_cli_shows_the_identity_and_a_logout_is_harmless(run: Run) -> None:
    for _ in range(2):
        done = run("globus-compute-endpoint", "whoami")
        assert done.returncode == 0, done.stderr
        assert "ada" in done.stdout
        assert run("globus-compute-endpoint", "logout", "--force").returncode == 0
