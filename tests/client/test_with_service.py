"""Client and service together: the real service, a real broker, and an endpoint in a thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flux_endpoint import Client, Executor, ServiceError, TaskExecutionFailed, TaskPending
from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.credentials import Credentials
from flux_endpoint.protocol.messages import Result, ResultErrorDetails, Task, pack, unpack
from flux_endpoint.rest import RestClient
from flux_endpoint.serialize import ComputeSerializer, JSONData, unpack_buffers

pytestmark = pytest.mark.rabbitmq

TIMEOUT = 30


class RunningService:
    """`flux-endpoint service run` on a database of its own; can be killed and started again."""

    def __init__(self, home: Path, amqp_url: str, port: int) -> None:
        self._environment = {
            **os.environ,
            "FLUX_ENDPOINT_HOME": str(home),
            "FLUX_ENDPOINT_SERVICE_AMQP_URL": amqp_url,
        }
        self._port = port
        self.token = self._command("token", "create", "ada").communicate()[0].strip()
        self.start()

    def _command(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flux_endpoint", "service", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self._environment, text=True, **streams)  # type: ignore[call-overload, no-any-return]

    def start(self) -> None:
        self._process = self._command("run", "--port", str(self._port))
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "service ready" in line:
                return
        raise AssertionError("the service did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def stop(self, signum: int = signal.SIGTERM) -> None:
        self._process.send_signal(signum)
        self._process.communicate()


class ThreadEndpoint:
    """Runs each task on the thread that consumes it, while it may."""

    def __init__(self, service: RunningService) -> None:
        rest = RestClient(Credentials(service.url, service.token))
        queues = rest.request("POST", "/v3/endpoints", json={"endpoint_name": "lab"})
        rest.close()
        self.id: str = queues["endpoint_id"]
        self._publish = queues["result_queue_info"]["queue_publish_kwargs"]
        self._serializer = ComputeSerializer()
        url = queues["task_queue_info"]["connection_url"]
        self._connection = AmqpConnection(url, name="endpoint")
        self._connection.start()
        queue = queues["task_queue_info"]["queue"]
        self.may_run = threading.Event()
        self.may_run.set()
        self._connection.consume(queue, self._run, prefetch=500, exclusive=True)

    def _run(self, delivery: Delivery) -> None:
        assert self.may_run.wait(TIMEOUT)
        task = unpack(delivery.body)
        assert isinstance(task, Task)
        task_id = uuid.UUID(delivery.headers["task_uuid"])
        try:
            fn, args, kwargs = (
                self._serializer.deserialize(buffer) for buffer in unpack_buffers(task.task_buffer)
            )
            value = fn(*args, **kwargs)
            wanted = delivery.headers.get("result_serializers")
            data = self._serializer.serialize_from_list(value, wanted)
            result = Result(task_id=task_id, data=data)
        except Exception:
            details = ResultErrorDetails(code="RemoteExecutionError", user_message="it raised")
            result = Result(task_id=task_id, data=traceback.format_exc(), error_details=details)
        keys = (self._publish["exchange"], self._publish["routing_key"])
        done = self._connection.publish(*keys, pack(result))
        done.add_done_callback(lambda _: delivery.ack())

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def running(tmp_path: Path, amqp_vhost: str, free_port: int) -> Iterator[RunningService]:
    service = RunningService(tmp_path, amqp_vhost, free_port)
    yield service
    service.stop()


@pytest.fixture
def endpoint(running: RunningService) -> Iterator[ThreadEndpoint]:
    endpoint = ThreadEndpoint(running)
    yield endpoint
    endpoint.close()


@pytest.fixture
def client(running: RunningService) -> Client:
    return Client(running.url, running.token)


def double(x: Any) -> Any:
    return 2 * x


def fail(text: str) -> None:
    raise ValueError(text)


def test_functions_run_and_their_results_come_back(
    client: Client, endpoint: ThreadEndpoint
) -> None:
    with Executor(endpoint.id, client) as executor:
        futures = [executor.submit(double, i) for i in range(1000)]
        bad = executor.submit(fail, "of old age")
        executor.result_serializers = [JSONData()]
        listed = executor.submit(double, (1, 2))
    assert [future.result() for future in futures] == [2 * i for i in range(1000)]
    with pytest.raises(TaskExecutionFailed, match="ValueError: of old age") as caught:
        bad.result()
    assert float(caught.value.completion_t) > 0
    assert listed.result() == [1, 2, 1, 2]
    assert executor.task_count_submitted == 1002


def test_map_keeps_the_order(client: Client, endpoint: ThreadEndpoint) -> None:
    with Executor(endpoint.id, client) as executor:
        assert list(executor.map(pow, range(50), [2] * 50)) == [i**2 for i in range(50)]
        assert list(executor.map(double, range(50), chunksize=7)) == [2 * i for i in range(50)]


def test_refusals_fail_their_futures_and_nothing_else(
    running: RunningService, client: Client, endpoint: ThreadEndpoint
) -> None:
    with Executor(endpoint.id, client) as executor:
        unknown_function = executor.submit_to_registered_function(uuid.uuid4(), (1,))
        executor.endpoint_id = uuid.uuid4()
        unknown_endpoint = executor.submit(double, 1)
        executor.endpoint_id = endpoint.id
        good = executor.submit(double, 1)
    with pytest.raises(ServiceError) as caught:
        unknown_function.result()
    assert caught.value.code == "FUNCTION_NOT_FOUND"
    with pytest.raises(ServiceError) as caught:
        unknown_endpoint.result()
    assert caught.value.code == "ENDPOINT_NOT_FOUND"
    assert good.result() == 2
    stranger = Client(running.url, "wrong")
    with pytest.raises(ServiceError, match="does not accept the token"):
        stranger.get_endpoints()
    with Executor(endpoint.id, client=stranger) as executor:
        refusal = executor.submit(double, 1).exception(60)
    assert "does not accept the token" in str(refusal)
    # What raises it shows a user's own lines, not ours.
    assert (refusal.__traceback__, refusal.__cause__, refusal.__context__) == (None, None, None)


def test_a_client_submits_a_batch_that_an_executor_reloads(
    client: Client, endpoint: ThreadEndpoint
) -> None:
    endpoint.may_run.clear()
    function = client.register_function(double)
    batch = client.create_batch()
    for i in range(5):
        batch.add(function, endpoint.id, args=(i,))
    tasks = client.batch_run(batch)["tasks"][function]
    with pytest.raises(TaskPending):
        client.get_result(tasks[0])
    with Executor(client=client, task_group_id=client.session_task_group_id) as executor:
        futures = executor.reload_tasks()
        assert sorted(str(future.task_id) for future in futures) == sorted(tasks)
        endpoint.may_run.set()
        by_id = {future.task_id: future.result(TIMEOUT) for future in futures}
    assert [by_id[task] for task in tasks] == [0, 2, 4, 6, 8]
    assert client.get_result(tasks[1]) == 2
    assert client.get_batch_result(tasks)[tasks[4]]["result"] == 8
    again = client.run(21, endpoint_id=endpoint.id, function_id=function)
    with Executor(client=client) as executor:
        reloaded = {future.task_id: future for future in executor.reload_tasks()}
        assert reloaded[again].result(TIMEOUT) == 42


def test_a_service_that_restarts_in_mid_run_loses_nothing(
    running: RunningService, client: Client, endpoint: ThreadEndpoint
) -> None:
    with Executor(endpoint.id, client) as executor:
        before = [executor.submit(double, i) for i in range(300)]
        running.stop(signal.SIGKILL)
        during = [executor.submit(double, i) for i in range(300)]
        running.start()
    assert [future.result() for future in before + during] == [2 * i for i in range(300)] * 2
