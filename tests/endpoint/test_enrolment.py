"""An endpoint runs with a token of its own, and its tasks find none of its owner's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from service_process import COMMAND, ServiceProcess, run

from flux_endpoint import Client, Executor, ShellFunction
from flux_endpoint.credentials import Credentials
from flux_endpoint.endpoint.directory import EndpointDirectory
from flux_endpoint.errors import ServiceError
from flux_endpoint.processes import is_readable
from flux_endpoint.rest import RestClient

pytestmark = pytest.mark.rabbitmq


def in_environment(credentials: Credentials) -> dict[str, str]:
    """Return the variables that hold credentials."""
    return {
        "FLUX_ENDPOINT_SERVICE_URL": credentials.service_url,
        "FLUX_ENDPOINT_TOKEN": credentials.token,
        "GLOBUS_COMPUTE_CLIENT_SECRET": credentials.token,
    }


def start(owner: Credentials) -> None:
    """Start the endpoint as its owner does."""
    run("start", "lab", "--detach", **in_environment(owner))


@pytest.fixture
def owner(service_process: ServiceProcess) -> Credentials:
    return service_process.credentials


def own_token(lab: EndpointDirectory) -> dict[str, Any]:
    return dict(json.loads(lab.token.read_text()))


def agent_environment(lab: EndpointDirectory) -> str:
    """Return the environment of the agent, as every process of the account can read it."""
    holder = lab.holder()
    assert holder is not None
    return Path(f"/proc/{holder.pid}/environ").read_text()


def test_tasks_find_none_of_the_owners_credentials(
    lab: EndpointDirectory, owner: Credentials, home: Path
) -> None:
    start(owner)
    assert owner.token not in agent_environment(lab)
    assert lab.token.stat().st_mode & 0o777 == 0o600
    endpoint_id = own_token(lab)["endpoint_id"]
    client = Client(owner.service_url, owner.token)
    everything = ShellFunction(
        "cat /proc/[0-9]*/environ 2>/dev/null; cat -- $(find {home!q} -type f)"
    )
    with Executor(endpoint_id, client=client) as executor:
        for resources in ({}, {"num_ranks": 1}):
            executor.resource_specification = resources
            name = f"read-{len(resources)}"
            task = ShellFunction(f"({everything.cmd}) > {home.parent / name}; env")
            env = executor.submit(task, home=str(home)).result(60).stdout
            assert owner.token not in env
            assert own_token(lab)["token"] not in env
            found = (home.parent / name).read_bytes()
            assert own_token(lab)["token"].encode() in found  # it has looked there
            # This very process, and those of other tests, have nothing of it in theirs.
            assert owner.token.encode() not in found


def test_the_token_that_tasks_can_read_is_valid_only_for_the_endpoint(
    lab: EndpointDirectory, owner: Credentials
) -> None:
    start(owner)
    own = own_token(lab)
    with RestClient(Credentials(owner.service_url, own["token"]), 10) as rest:
        assert rest.request("GET", f"/v2/endpoints/{own['endpoint_id']}")
        for method, path in (
            ("GET", "/v2/endpoints?role=any"),
            ("POST", "/v3/functions"),
            ("GET", "/v2/get_amqp_result_connection_url"),
            ("POST", f"/v3/endpoints/{own['endpoint_id']}/tokens"),
            ("DELETE", f"/v2/endpoints/{own['endpoint_id']}"),
        ):
            with pytest.raises(ServiceError, match="only valid for running endpoint") as refusal:
                rest.request(method, path)
            assert (refusal.value.http_status, refusal.value.code) == (403, "ENDPOINT_TOKEN")


def test_an_enrolled_endpoint_starts_without_the_owners_credentials(
    lab: EndpointDirectory, owner: Credentials
) -> None:
    start(owner)
    first = own_token(lab)
    run("stop", "lab")
    run("start", "lab", "--detach")
    assert own_token(lab) == first


def test_a_revoked_token_is_replaced_or_the_start_fails(
    lab: EndpointDirectory, owner: Credentials
) -> None:
    start(owner)
    first = own_token(lab)
    run("stop", "lab")
    with RestClient(owner, 10) as rest:
        path = f"/v3/endpoints/{first['endpoint_id']}/tokens"
        assert rest.request("DELETE", path) == {"revoked": 1}
    said = run("start", "lab", fails=True)
    assert "does not know the endpoint's own token in" in said
    assert "Start it once with its owner's credentials" in said
    start(owner)
    second = own_token(lab)
    assert second["endpoint_id"] == first["endpoint_id"]
    assert second["token"] != first["token"]


def test_a_deleted_endpoint_is_registered_again_with_the_owners_credentials(
    lab: EndpointDirectory, owner: Credentials
) -> None:
    start(owner)
    first = own_token(lab)
    run("stop", "lab")
    with RestClient(owner, 10) as rest:
        rest.request("DELETE", f"/v2/endpoints/{first['endpoint_id']}")
    start(owner)
    assert own_token(lab)["endpoint_id"] == first["endpoint_id"]


def test_an_endpoint_deleted_while_running_ends_with_the_reason(
    lab: EndpointDirectory, owner: Credentials
) -> None:
    start(owner)
    endpoint_id, holder = own_token(lab)["endpoint_id"], lab.holder()
    assert holder is not None
    pidfd = os.pidfd_open(holder.pid)
    with RestClient(owner, 10) as rest:
        rest.request("DELETE", f"/v2/endpoints/{endpoint_id}")
    assert is_readable(pidfd, 100)
    os.close(pidfd)
    said = "does not know the endpoint's own token any more: it was revoked, or the endpoint"
    assert f"endpoint stops: {owner.service_url} {said}" in lab.log.read_text()
    for command in (["list"], ["status"], ["status", "lab"]):
        shown = subprocess.run(
            [*COMMAND, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=os.environ | in_environment(owner),
        ).stdout
        assert said in shown, command
    start(owner)
    assert own_token(lab)["endpoint_id"] == endpoint_id
    assert said not in run("list")


def test_a_copy_with_a_new_id_does_not_use_the_token(
    lab: EndpointDirectory, owner: Credentials
) -> None:
    start(owner)
    first = own_token(lab)
    run("stop", "lab")
    lab.identity.unlink()
    start(owner)
    assert own_token(lab)["endpoint_id"] != first["endpoint_id"]


@pytest.mark.parametrize("content", ["", "[]", "{}", "\0"])
def test_a_damaged_token_file_is_reported(
    lab: EndpointDirectory, owner: Credentials, content: str
) -> None:
    lab.token.write_text(content)
    said = run("start", "lab", fails=True, **in_environment(owner))
    assert f"{lab.token} " in said
    assert "delete it, and start once with the owner's credentials" in said


def test_a_shared_endpoint_warns_of_credentials_that_tasks_can_read(
    lab: EndpointDirectory, owner: Credentials, home: Path
) -> None:
    file = home / "credentials.json"
    file.write_text(json.dumps({"service_url": owner.service_url, "token": owner.token}))
    file.chmod(0o600)
    with lab.config.open("a") as config:
        config.write('users: ["*"]\n')
    run("start", "lab", "--detach")
    assert "can read its credentials: move them away" in lab.log.read_text()
    run("stop", "lab")
    file.unlink()
    lab.log.write_text("")
    run("start", "lab", "--detach")
    assert "can read its credentials" not in lab.log.read_text()
