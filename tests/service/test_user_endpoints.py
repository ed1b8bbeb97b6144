"""A multi-user endpoint's tasks go to the user endpoints that it starts on command."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from fastapi.testclient import TestClient
from tests.service.conftest import FUNCTION, PAYLOAD, Peer, Rest, refusal
from tests.service.official_world import MultiUserEndpoint, Run

from flux_endpoint import MPIFunction, ShellFunction
from flux_endpoint.amqp.url import without_credentials
from flux_endpoint.functions.official import read_function
from flux_endpoint.functions.transport import CommandFunctionCode
from flux_endpoint.protocol import queues
from flux_endpoint.protocol.messages import Task, unpack
from flux_endpoint.protocol.rest import IDEMPOTENCY_HEADER
from flux_endpoint.serialize import unpack_buffers
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from waiting import until

pytestmark = pytest.mark.rabbitmq


def test_a_submission_has_a_user_endpoint_started_which_gets_the_tasks(
    live: Rest,
    multi_user: MultiUserEndpoint,
    begin: Callable[..., Run],
    amqp_vhost: str,
    peer: Peer,
) -> None:
    me = live.client.get("/auth/v2/oauth2/userinfo").json()["sub"]
    config, runtime = {"workers": 2}, {"python": {"version": "3.11.7"}}
    group_id, ids = live.submit(
        multi_user.id, count=3, user_endpoint_config=config, user_runtime=runtime
    )
    delivery = multi_user.next_command()
    assert abs((delivery.timestamp or 0) - time.time()) < 60
    command = json.loads(delivery.body)
    arguments = command.pop("kwargs")
    assert command == {
        "command": "cmd_start_endpoint",
        "globus_effective_identity": me,
        "globus_username": "ada",
        "globus_identity_set": [{"sub": me, "username": "ada", "name": "ada", "email": None}],
        "args": [],
    }
    child = arguments["amqp_creds"]["endpoint_id"]
    url = arguments["amqp_creds"]["task_queue_info"]["connection_url"]
    assert without_credentials(url) == f"{without_credentials(amqp_vhost)}?heartbeat=10"
    assert urlsplit(url).username.startswith(f"e-{child}-")
    credentials = queues.endpoint_queues(child, url).model_dump(exclude={"event_queue_info"})
    assert arguments == {
        "name": f"uep.{multi_user.id}.{child}",
        "amqp_creds": credentials,
        "user_opts": config,
        "user_runtime": runtime,
    }
    run = begin(arguments)
    assert run.take(3) == ids
    run.finish(ids[1], "7")
    assert json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]["data"] == "7"
    assert live.status(ids[1])["status"] == "success"
    assert live.status(ids[0])["status"] == "waiting-for-ep"


def test_the_command_can_be_read_by_who_checks_its_content_type(
    live: Rest, multi_user: MultiUserEndpoint, amqp_vhost: str
) -> None:
    live.submit(multi_user.id)
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    channel = connection.channel()
    found: list[Any] = []

    def arrived() -> bool:
        found[:] = channel.basic_get(f"{multi_user.id}.commands")
        return found[0] is not None

    until(arrived)
    properties = found[1]
    connection.close()
    assert properties.content_type == "application/json"
    # It must not outlive what its reader accepts.
    assert 0 < int(properties.expiration) < 180_000


def test_the_answer_names_the_multi_user_endpoint(
    live: Rest, multi_user: MultiUserEndpoint
) -> None:
    function_id = live.register_function()
    body = {"tasks": {function_id: [PAYLOAD]}}
    for _ in range(2):  # the second time it is known already
        answer = live.client.post(
            f"/v3/endpoints/{multi_user.id}/submit", json=body, headers={IDEMPOTENCY_HEADER: "k"}
        )
        assert answer.json()["endpoint_id"] == multi_user.id


def test_each_user_and_each_configuration_has_an_endpoint_of_its_own(
    live: Rest, multi_user: MultiUserEndpoint, begin: Callable[..., Run]
) -> None:
    def started(**what: Any) -> Run:
        live.submit(multi_user.id, **what)
        run = begin(multi_user.next_start())
        run.take(1)
        return run

    one, two = started(user_endpoint_config={"a": 1, "b": 2}), started()
    assert one.endpoint_id != two.endpoint_id
    live.submit(multi_user.id, user_endpoint_config={"b": 2, "a": 1}, user_runtime={"new": True})
    live.submit(multi_user.id, user_endpoint_config={})
    assert [len(run.take(1)) for run in (one, two)] == [1, 1]


def test_a_start_command_has_the_identity_of_the_submitting_user(
    live: Rest, peer: Peer, token_of: Callable[[str], dict[str, str]]
) -> None:
    multi_user = MultiUserEndpoint(live, peer, public=True)
    multi_user.report()
    bob = token_of("bob")
    live.client.headers.update(bob)
    him = live.client.get("/auth/v2/oauth2/userinfo").json()["sub"]
    live.submit(multi_user.id)
    assert json.loads(multi_user.next_command().body)["globus_effective_identity"] == him


def test_a_multi_user_endpoint_may_say_who_submits(
    live: Rest, peer: Peer, token_of: Callable[[str], dict[str, str]]
) -> None:
    multi_user = MultiUserEndpoint(live, peer, public=True, users=["bob"])
    function = {"function_name": "double", "function_code": FUNCTION, "public": True}
    function_id = live.client.post("/v3/functions", json=function).json()["function_uuid"]
    body = {"tasks": {function_id: [PAYLOAD]}}
    url = f"/v3/endpoints/{multi_user.id}/submit"
    answers = [live.client.post(url, json=body, headers=token_of(each)) for each in ("bob", "eve")]
    assert answers[0].is_success, answers[0].text
    said = refusal(answers[1], 403, "ENDPOINT_NOT_PERMITTED", "endpoint_id").message
    assert "which do not include eve" in said


def test_user_endpoints_are_visible_to_no_user(live: Rest, multi_user: MultiUserEndpoint) -> None:
    live.submit(multi_user.id)
    child = multi_user.next_start()["amqp_creds"]["endpoint_id"]
    listed = [each["uuid"] for each in live.client.get("/v2/endpoints?role=any").json()]
    assert listed == [multi_user.id]
    answer = live.client.get(f"/v2/endpoints/{child}")
    refusal(answer, 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
    body = {"tasks": {live.register_function(): [PAYLOAD]}}
    answer = live.client.post(f"/v3/endpoints/{child}/submit", json=body)
    refusal(answer, 404, "ENDPOINT_NOT_FOUND", "endpoint_id")
    answer = live.client.put(f"/v3/endpoints/{child}", json={"endpoint_name": "mine"})
    assert multi_user.id in refusal(answer, 409, "ENDPOINT_NOT_PERMITTED", "endpoint_id").message


def test_refusals_do_not_reveal_user_endpoints(
    live: Rest, multi_user: MultiUserEndpoint, bob: dict[str, str]
) -> None:
    live.submit(multi_user.id)
    child = multi_user.next_start()["amqp_creds"]["endpoint_id"]
    body = {"endpoint_name": "mine"}
    answers = [
        live.client.put(f"/v3/endpoints/{each}", json=body, headers=bob)
        for each in (child, multi_user.id)
    ]
    own, other = (refusal(each, 403, "ENDPOINT_NOT_PERMITTED", "endpoint_id") for each in answers)
    assert own.message == other.message.replace(multi_user.id, child)


def test_a_running_user_endpoint_gets_no_start_command(
    live: Rest, multi_user: MultiUserEndpoint, begin: Callable[..., Run], amqp_vhost: str
) -> None:
    live.submit(multi_user.id)
    run = begin(multi_user.next_start())
    run.take(1)
    live.submit(multi_user.id)
    run.take(1)
    live.submit(multi_user.id, user_endpoint_config={"other": 1})
    assert multi_user.next_start()["user_opts"] == {"other": 1}


def test_waiting_tasks_start_with_the_first_report_of_the_multi_user_endpoint(
    live: Rest, peer: Peer, begin: Callable[..., Run]
) -> None:
    multi_user = MultiUserEndpoint(live, peer)
    _, ids = live.submit(multi_user.id)
    _, more = live.submit(multi_user.id)
    multi_user.report()
    run = begin(multi_user.next_start())
    assert run.take(2) == [*ids, *more]


def test_a_multi_user_endpoint_that_registers_again_finds_no_old_commands(
    live: Rest, multi_user: MultiUserEndpoint, amqp_vhost: str
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_vhost))
    channel = connection.channel()

    def commands() -> int:
        name = f"{multi_user.id}.commands"
        count: int = channel.queue_declare(name, passive=True).method.message_count
        return count

    live.submit(multi_user.id)
    until(lambda: commands() == 1)
    multi_user.register_again()
    assert commands() == 0
    multi_user.report()
    until(lambda: commands() == 1)
    connection.close()


def test_a_start_that_fails_ends_the_tasks_with_its_reason(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    amqp_vhost: str,
    begin: Callable[..., Run],
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    arguments = multi_user.next_start()
    run = Run(amqp_vhost, arguments["amqp_creds"]["endpoint_id"])
    run.report(error="no such engine: Warp", period=3)
    run.vanish()
    ended = [json.loads(peer.take(f"tg.{group_id}").body[1:])["data"] for _ in ids]
    assert {each["task_id"] for each in ended} == set(ids)
    for each in ended:
        assert each["error_details"]["code"] == "EndpointNotStarted"
        assert multi_user.id in each["data"]
        assert "no such engine: Warp" in each["data"]
    assert live.status(ids[0])["status"] == "failed"
    # They are not left for the next one.
    _, more = live.submit(multi_user.id)
    assert begin(multi_user.next_start()).take(1) == more


def test_the_same_report_does_no_harm_while_one_runs(
    live: Rest,
    peer: Peer,
    multi_user: MultiUserEndpoint,
    begin: Callable[..., Run],
    caplog: pytest.LogCaptureFixture,
) -> None:
    group_id, ids = live.submit(multi_user.id, count=2)
    run = begin(multi_user.next_start())
    run.take(2)
    run.report(error="it runs already", period=3)
    until(lambda: any("probably because it is running" in text for text in caplog.messages))
    run.finish(ids[0])
    run.finish(ids[1])
    for _ in ids:
        assert json.loads(peer.take(f"tg.{group_id}").body[1:])["data"]["data"] == "x"


def test_a_configuration_that_is_too_large_is_refused(
    live: Rest, multi_user: MultiUserEndpoint
) -> None:
    body = {
        "tasks": {live.register_function(): [PAYLOAD]},
        "user_endpoint_config": {"worker_init": "x" * 20_000},
    }
    answer = live.client.post(f"/v3/endpoints/{multi_user.id}/submit", json=body)
    refusal(answer, 422, "SEMANTICALLY_INVALID", "user_endpoint_config")


def test_tasks_submitted_without_a_broker_are_started_later(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    begin: Callable[..., Run],
) -> None:
    def service(**changes: Any) -> TestClient:
        settings = ServiceSettings.model_validate({**live_settings.model_dump(), **changes})
        return TestClient(create_app(settings), headers=token_of("ada"))

    with service() as client:
        multi_user = MultiUserEndpoint(Rest(client), peer)
    nowhere = "amqp://guest:guest@127.0.0.1:1/%2F"
    with service(amqp_url=nowhere, publish_timeout=0.01) as client:
        _, ids = Rest(client).submit(multi_user.id, count=3)
        assert Rest(client).status(ids[0])["status"] == "received"
    with service():
        multi_user.report()
        assert begin(multi_user.next_start()).take(3) == ids


@pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])
def test_commands_of_ours_arrive_as_the_official_packages(
    live: Rest, multi_user: MultiUserEndpoint, begin: Callable[..., Run], kind: type[ShellFunction]
) -> None:
    code = CommandFunctionCode.instance().serialize(kind("echo {x}", walltime=5))
    body = {"function_name": "f", "function_code": f"{len(code)}\n{code}"}
    function_id = live.client.post("/v3/functions", json=body).json()["function_uuid"]
    live.client.post(
        f"/v3/endpoints/{multi_user.id}/submit", json={"tasks": {function_id: [PAYLOAD]}}
    )
    task = unpack(begin(multi_user.next_start()).next_body())
    assert isinstance(task, Task)
    function, *arguments = unpack_buffers(task.task_buffer)
    assert arguments == unpack_buffers(PAYLOAD)
    theirs = read_function(function)
    assert isinstance(theirs, kind)
    assert (theirs.cmd, theirs.walltime) == ("echo {x}", 5)


def test_kill_events_and_attach_are_refused_by_the_name_that_the_user_knows(
    live: Rest, multi_user: MultiUserEndpoint
) -> None:
    _, (task_id,) = live.submit(multi_user.id)
    client = live.client
    for answer, code in (
        (client.post(f"/v2/tasks/{task_id}/kill", json={}), "KILL_NOT_SUPPORTED"),
        (client.get(f"/v2/tasks/{task_id}/events"), "EVENTS_NOT_SUPPORTED"),
    ):
        assert multi_user.id in refusal(answer, 409, code, "task_id").message
    answer = client.post(f"/v3/endpoints/{multi_user.id}/attach", json={"jobid": 1})
    assert multi_user.id in refusal(answer, 409, "ATTACH_NOT_SUPPORTED", "endpoint_id").message
    assert uuid.UUID(task_id)


def test_operators_see_the_multi_user_endpoint_in_their_place(
    live: Rest, multi_user: MultiUserEndpoint, begin: Callable[..., Run]
) -> None:
    _, ids = live.submit(multi_user.id, count=2)
    url = f"/v3/endpoints/{multi_user.id}/status"
    assert live.client.get(url).json()["queue"] == {"messages": 2, "consumers": 0}
    begin(multi_user.next_start()).take(2)
    until(lambda: live.client.get(url).json()["queue"]["consumers"] == 1)
    listed = live.client.get("/v3/tasks", params={"endpoint_id": multi_user.id}).json()["tasks"]
    assert {each["task_id"] for each in listed} == set(ids)
    assert {each["endpoint_id"] for each in listed} == {multi_user.id}
    multi_user.report(period=0)
    multi_user.until("offline")
    assert live.client.get(url).json()["absence"] == "stopped"
