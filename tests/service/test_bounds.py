"""Values that can't be stored or read are refused, each with its field; nothing crashes."""

import json
import uuid
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from tests.service.conftest import FUNCTION, PAYLOAD, Peer, Rest

from flux_endpoint.protocol.fields import MAX_DEPTH, MAX_TASK_OPTIONS, bounded
from flux_endpoint.protocol.rest import MAX_STATUS_IDS
from flux_endpoint.service.app import create_app
from flux_endpoint.service.settings import ServiceSettings
from flux_endpoint.service.store.engine import Database
from flux_endpoint.service.store.tables import submissions
from waiting import until

HUGE = "1" + "0" * 400
#: As they stand in a request's text.
VALUES = {
    "an integer of 400 digits": HUGE,
    "a lone surrogate": '"\\ud800"',
    "NUL": '"\\u0000"',
    "a deep array": "[" * 400 + "]" * 400,
    "a deep object": '{"a":' * 300 + "1" + "}" * 300,
    "an object with a surrogate": '{"\\ud800": 1}',
    "an object with a huge integer": f'{{"a": {HUGE}}}',
    "not a number": "NaN",
    "infinity": "1e999",
    "minus one": "-1",
    "a long text": f'"{"x" * 200_000}"',
    "a large object": f'{{"a": "{"x" * 2_000_000}"}}',
    "a wide object": json.dumps({str(number): 1 for number in range(30_000)}),
    "a list with a huge integer": f"[{HUGE}]",
    "a list with a surrogate": '["\\ud800"]',
    "a long list": json.dumps(["x"] * 100_000),
}
#: Fields that take any text, which every database stores.
FREE_TEXTS = {("functions", "description", "NUL")}
#: The request's path without ids, its fields, and one that is right.
REQUESTS = {
    "functions": ("/v3/functions", {"function_name": "f", "function_code": FUNCTION}),
    "endpoints": ("/v3/endpoints", {"endpoint_name": "lab"}),
    "submit": ("/v3/endpoints/{endpoint}/submit", {"tasks": {"{function}": [PAYLOAD]}}),
    "attach": ("/v3/endpoints/{endpoint}/attach", {"jobid": 1}),
    "status": ("/v2/batch_status", {"task_ids": []}),
    "kill": ("/v2/tasks/{task}/kill", {}),
    "urgency": ("/v3/tasks/{task}/urgency", {"urgency": 0}),
}
FIELDS = {
    "functions": "function_name function_code serialized description meta public group",
    "endpoints": "endpoint_name display_name multi_user public allowed_functions metadata",
    "submit": "tasks create_queue task_group_id resource_specification user_endpoint_config "
    "result_serializers user_runtime",
    "attach": "jobid task_group_id create_queue result_serializers",
    "status": "task_ids",
    "kill": "signum",
    "urgency": "urgency",
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_no_field_accepts_values_that_can_not_be_stored(
    api: TestClient,
    add_endpoint: Callable[..., str],
    add_function: Callable[..., str],
    request_name: str,
) -> None:
    endpoint_id, function_id = add_endpoint(), add_function()
    path, right = REQUESTS[request_name]
    path = path.format(endpoint=endpoint_id, task=uuid.uuid4())
    for field in FIELDS[request_name].split():
        for name, value in VALUES.items():
            others = {key: each for key, each in right.items() if key != field}
            text = json.dumps(others).replace("{function}", function_id)
            body = text[:-1] + (", " if others else "") + f"{json.dumps(field)}: {value}}}"
            headers = {"Content-Type": "application/json"}
            answer = api.post(path, content=body.encode(), headers=headers)
            if (request_name, field, name) in FREE_TEXTS:
                assert answer.status_code == 200, (field, name, answer.text)
            else:
                assert 400 <= answer.status_code < 500, (field, name, answer.status_code)
                refused = answer.json()
                assert refused["message"], (field, name)
                assert len(answer.content) < 10_000, (field, name)


def test_a_specification_must_fit_into_a_header(
    api: TestClient, add_endpoint: Callable[..., str], add_function: Callable[..., str]
) -> None:
    def submit(size: int) -> int:
        body = {
            "tasks": {add_function(): [PAYLOAD]},
            "resource_specification": {"environment": {"A": "x" * size}},
        }
        return api.post(f"/v3/endpoints/{endpoint_id}/submit", json=body).status_code

    endpoint_id = add_endpoint(metadata={"flux_endpoint_version": "1.0"})
    assert submit(MAX_TASK_OPTIONS - 100) == 200
    assert submit(MAX_TASK_OPTIONS) == 422


def test_states_of_too_many_tasks_are_refused(api: TestClient) -> None:
    ids = [str(uuid.uuid4())] * MAX_STATUS_IDS
    assert api.post("/v2/batch_status", json={"task_ids": ids}).status_code == 200
    assert api.post("/v2/batch_status", json={"task_ids": [*ids, ids[0]]}).status_code == 422


@pytest.mark.parametrize("place", ["x", "x:", "x:9999999999", f"x:{HUGE}", "x:-1", "x:1e3"])
def test_a_list_continues_only_at_a_position_that_it_returned(api: TestClient, place: str) -> None:
    assert api.get("/v3/tasks", params={"before": place}).status_code == 422


def test_depth_is_bounded_exactly() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = {"a": value}
    assert bounded(value) is value
    with pytest.raises(ValueError, match=f"deeper than {MAX_DEPTH} levels"):
        bounded([value])


@pytest.mark.rabbitmq
def test_a_task_that_the_broker_refuses_fails_alone(
    live_settings: ServiceSettings,
    peer: Peer,
    token_of: Callable[[str], dict[str, str]],
    database: Database,
) -> None:
    """A specification from before it had a bound breaks the connection whenever it is sent."""
    headers = token_of("ada")
    away = live_settings.model_copy(update={"amqp_url": "amqp://127.0.0.1:1", "publish_timeout": 0})
    with TestClient(create_app(live_settings), headers=headers) as client:
        endpoint_id = Rest(client).register_endpoint()
    with TestClient(create_app(away), headers=headers) as client:
        _, (large,) = Rest(client).submit(endpoint_id, resource_specification={"num_nodes": 1})
        _, (other,) = Rest(client).submit(endpoint_id)
    with database.write() as connection:
        has_one = submissions.c.resource_specification.is_not(sa.null())
        values = {"resource_specification": {"environment": {"A": "x" * 200_000}}}
        changed = connection.execute(submissions.update().where(has_one).values(values))
        assert changed.rowcount == 1
    with TestClient(create_app(live_settings), headers=headers) as client:
        rest = Rest(client)
        assert peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] == other
        until(lambda: rest.status(large)["status"] == "failed")
        assert "could not be sent to its endpoint" in rest.status(large)["exception"]
        assert rest.status(other)["status"] == "waiting-for-ep"
        _, (later,) = rest.submit(endpoint_id)
        assert peer.take(f"{endpoint_id}.tasks").headers["task_uuid"] == later
