"""Registration with a real service, and what happens when things don't fit."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_process import ServiceProcess

from flux_endpoint.credentials import Credentials
from flux_endpoint.endpoint.config import EndpointConfig
from flux_endpoint.endpoint.registration import (
    BrokerUrl,
    Registration,
    _parse_answer,
    registration_request,
)
from flux_endpoint.errors import (
    ConfigurationError,
    FluxEndpointError,
    ServiceError,
    ServiceUnreachableError,
)
from flux_endpoint.protocol.queues import endpoint_queues
from flux_endpoint.rest import RestClient

ID = str(uuid.uuid4())


@pytest.fixture
def rest(service_process: ServiceProcess) -> Iterator[RestClient]:
    with RestClient(service_process.credentials) as rest:
        yield rest


def registration(rest: RestClient, directory: Path, **config: Any) -> Registration:
    request = registration_request("lab", EndpointConfig(**config), "engine: {}")
    return Registration(rest, directory, request)


@pytest.mark.rabbitmq
def test_the_first_registration_gets_an_id_and_later_ones_keep_it(
    rest: RestClient, tmp_path: Path
) -> None:
    first = registration(rest, tmp_path).register()
    kept = json.loads((tmp_path / "endpoint.json").read_text())
    second = registration(rest, tmp_path, display_name="The Lab", public=True).register()
    assert kept["endpoint_id"] == first.endpoint_id == second.endpoint_id
    assert (tmp_path / "endpoint.json").stat().st_mode & 0o777 == 0o600
    known = rest.request("GET", f"/v2/endpoints/{first.endpoint_id}")
    assert known["display_name"] == "The Lab"
    assert known["public"] is True
    assert known["endpoint_config"] == "engine: {}"
    assert {"hostname", "local_user", "python_version", "endpoint_version"} <= known.keys()


@pytest.mark.rabbitmq
def test_the_file_has_the_address_at_which_the_service_is_now(
    rest: RestClient, tmp_path: Path
) -> None:
    first = registration(rest, tmp_path).register()
    file = tmp_path / "endpoint.json"
    file.write_text(file.read_text().replace(rest.credentials.service_url, "http://was.here:1"))
    second = registration(rest, tmp_path).register()
    kept = json.loads(file.read_text())
    assert kept["endpoint_id"] == first.endpoint_id == second.endpoint_id
    assert kept["service_url"] == rest.credentials.service_url
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.rabbitmq
def test_allowed_functions_are_sent_to_the_service(rest: RestClient, tmp_path: Path) -> None:
    endpoint_id = registration(rest, tmp_path, allowed_functions=[ID]).register().endpoint_id
    answer = rest.request("GET", f"/v3/endpoints/{endpoint_id}/allowed_functions")
    assert answer["functions"] == [ID]


@pytest.mark.rabbitmq
def test_an_id_of_another_user_is_refused_with_a_remedy(
    rest: RestClient, service_process: ServiceProcess, tmp_path: Path
) -> None:
    registration(rest, tmp_path).register()
    other = RestClient(service_process.new_user("somebody-else"))
    with other, pytest.raises(ServiceError) as caught:
        registration(other, tmp_path).register()
    assert caught.value.http_status == 403
    assert f"delete {tmp_path}/endpoint.json to register as a new endpoint" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"endpoint_id": 7}', '{"endpoint_id": "x"}'])
def test_a_damaged_endpoint_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "endpoint.json").write_text(content)
    nobody = RestClient(Credentials("http://127.0.0.1:1", "t"))
    said = r"endpoint\.json must hold the endpoint's id"
    with nobody, pytest.raises(ConfigurationError, match=said):
        registration(nobody, tmp_path).register()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"endpoint_id": "x"}, "UUID"),
        ({"task_queue_info": {}}, "task_queue_info.connection_url"),
        ({"result_queue_info": None}, "result_queue_info"),
    ],
    ids=str,
)
def test_an_answer_that_is_no_registration_is_refused(change: dict[str, Any], said: str) -> None:
    answer = endpoint_queues(ID, "amqp://host").model_dump() | change
    with pytest.raises(FluxEndpointError, match=said):
        _parse_answer(answer, "http://service")


def test_a_publishing_block_without_a_key_is_refused() -> None:
    answer = endpoint_queues(ID, "amqp://host").model_dump()
    del answer["result_queue_info"]["queue_publish_kwargs"]["routing_key"]
    with pytest.raises(FluxEndpointError, match="queue_publish_kwargs of results has no routing"):
        _parse_answer(answer, "http://service")


def test_a_failing_broker_url_is_requested_again_at_intervals() -> None:
    asked = []

    def register() -> Any:
        asked.append(1)
        if len(asked) == 1:
            raise ServiceError("not now", http_status=423, code="ENDPOINT_LOCKED")
        return endpoint_queues(ID, "amqp://new")

    old = endpoint_queues(ID, "amqp://old")
    eager = BrokerUrl(old, register, max_failures=2, interval=0)
    assert [eager() for _ in range(4)] == ["amqp://old"] * 3 + ["amqp://new"]
    eager.connected()
    assert [eager() for _ in range(2)] == ["amqp://new"] * 2
    assert len(asked) == 2
    asked.clear()
    calm = BrokerUrl(old, register, max_failures=2, interval=3600)
    assert {calm() for _ in range(9)} == {"amqp://old"}
    assert len(asked) == 1


def test_an_endpoint_counts_as_deleted_after_two_refusals() -> None:
    def refused(code: str, status: int) -> ServiceError:
        return ServiceError("no", http_status=status, code=code)

    away = ServiceUnreachableError("away")
    unknown, deleted = refused("UNAUTHORIZED", 401), refused("ENDPOINT_NOT_FOUND", 404)
    others = [refused("NOT_A_FLUX_ENDPOINT_SERVICE", 401), refused("ENDPOINT_LOCKED", 403)]
    for answers, is_gone in (
        ([away, *others, away, unknown], False),
        ([unknown, None, unknown], False),
        ([unknown, away, *others, deleted], True),
        ([deleted, deleted], True),
    ):
        gone: list[str] = []
        left = iter(answers)

        def register(left: Iterator[ServiceError | None] = left) -> Any:
            if (error := next(left)) is not None:
                raise error
            return endpoint_queues(ID, "amqp://new")

        url = BrokerUrl(endpoint_queues(ID, "amqp://old"), register, max_failures=0, interval=0)
        url.on_gone = gone.append
        for _ in answers:
            url()
        assert gone == (["no"] if is_gone else []), answers
