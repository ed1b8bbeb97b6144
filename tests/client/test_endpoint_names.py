"""An endpoint may be named wherever its id may be given."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint import Client, Executor
from flux_endpoint.errors import ServiceError

TIMEOUT = 30


def here(home: Path, name: str, service_url: str) -> uuid.UUID:
    """Make an endpoint of this machine that is registered with a service."""
    endpoint_id = uuid.uuid4()
    directory = home / "endpoints" / name
    directory.mkdir(parents=True)
    identity = {"endpoint_id": str(endpoint_id), "service_url": service_url}
    (directory / "endpoint.json").write_text(json.dumps(identity))
    return endpoint_id


def at(service: Any, name: str, display_name: str | None = None, owner: str = "ada") -> uuid.UUID:
    """Have the service know an endpoint."""
    endpoint_id = uuid.uuid4()
    service.endpoints.append(
        {
            "uuid": str(endpoint_id),
            "name": name,
            "display_name": display_name,
            "owner": owner,
        }
    )
    return endpoint_id


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUX_ENDPOINT_HOME", str(tmp_path))
    return tmp_path


def test_an_endpoint_of_this_machine_is_found_without_a_request(
    service: Any, client: Client, home: Path
) -> None:
    at(service, "local")
    endpoint_id = here(home, "local", service.url)
    assert Executor("local", client).endpoint_id == endpoint_id
    assert service.requests == []


def test_an_endpoint_registered_with_another_service_is_ignored(
    service: Any, client: Client, home: Path
) -> None:
    here(home, "local", "http://elsewhere:1")
    endpoint_id = at(service, "local")
    assert Executor("local", client).endpoint_id == endpoint_id


def test_the_service_knows_names_and_display_names(
    service: Any, client: Client, home: Path
) -> None:
    endpoint_id = at(service, "lab", "The Lab")
    executor = Executor(client=client)
    for name in ("lab", "The Lab"):
        executor.endpoint_id = name
        assert executor.endpoint_id == endpoint_id


def test_an_unknown_name_is_refused_with_the_known_names(
    service: Any, client: Client, home: Path
) -> None:
    at(service, "lab")
    at(service, "cluster")
    with pytest.raises(ValueError, match=r"'lob': no endpoint has.*which has: cluster, lab"):
        Executor("lob", client)
    for odd in ("", "../lab", "a\0b"):
        with pytest.raises(ValueError, match="endpoint_id must be a UUID, or the name"):
            Executor(odd, client)


def test_an_ambiguous_name_is_refused_with_the_ids(
    service: Any, client: Client, home: Path
) -> None:
    ids = {str(at(service, "lab")), str(at(service, "lab"))}
    with pytest.raises(ValueError, match="2 endpoints are called 'lab'") as raised:
        Executor("lab", client)
    assert all(each in str(raised.value) for each in ids)


def test_a_users_own_endpoint_wins_over_others_of_the_same_name(
    service: Any, client: Client, home: Path
) -> None:
    own = at(service, "lab")
    at(service, "lab", owner="eve")
    at(service, "evil", "lab", owner="eve")
    assert Executor("lab", client).endpoint_id == own


def test_a_damaged_file_is_ignored(service: Any, client: Client, home: Path) -> None:
    here(home, "local", service.url)
    endpoint_id = at(service, "local")
    for text in ("", "[]", '{"endpoint_id": 7}', '{"endpoint_id": "x", "service_url": 1}'):
        (home / "endpoints" / "local" / "endpoint.json").write_text(text)
        assert Executor("local", client).endpoint_id == endpoint_id


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_endpoint_status("lab"),
        lambda client: client.get_endpoint_metadata("lab"),
        lambda client: client.get_allowed_functions("lab"),
        lambda client: client.stop_endpoint("lab"),
        lambda client: client.delete_endpoint("lab"),
    ],
)
def test_a_client_takes_names(service: Any, client: Client, home: Path, call: Any) -> None:
    endpoint_id = at(service, "lab")
    service.react = lambda request: (
        (404, {"code": "NO", "message": "no"}) if "/endpoints/" in request.path else None
    )
    with pytest.raises(ServiceError):
        call(client)
    assert str(endpoint_id) in service.requests[-1].path


def test_a_batch_takes_names(service: Any, client: Client, home: Path) -> None:
    endpoint_id = at(service, "lab")
    function_id = str(uuid.uuid4())
    assert client.run(1, endpoint_id="lab", function_id=function_id)
    batch = client.create_batch()
    batch.add(function_id, args=(1,), endpoint_id="lab")
    assert client.batch_run(batch)["endpoint_id"] == str(endpoint_id)
