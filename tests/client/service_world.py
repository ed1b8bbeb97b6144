"""The real service, and an endpoint in a thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from broker_access import session_broker
from databases import create_token
from flux_endpoint.amqp import AmqpConnection, Delivery
from flux_endpoint.credentials import Credentials
from flux_endpoint.errors import PublishError
from flux_endpoint.protocol.messages import Result, ResultErrorDetails, Task, pack, unpack
from flux_endpoint.rest import RestClient
from flux_endpoint.serialize import ComputeSerializer, unpack_buffers

TIMEOUT = 30
#: Seconds until a refused result is sent again.
RETRY = 0.2


class RunningService:
    """`flux-endpoint service run` on a database of its own; can be killed and started again."""

    def __init__(self, home: Path, amqp_url: str, port: int) -> None:
        self._environment = {
            **os.environ,
            "FLUX_ENDPOINT_HOME": str(home),
            "FLUX_ENDPOINT_SERVICE_AMQP_URL": amqp_url,
            **session_broker.environment(amqp_url),
        }
        self._database = home / "service.db"
        self._port = port
        self.token = self.token_of("ada")
        self.start()

    def token_of(self, user: str) -> str:
        return create_token(self._database, user)

    def _command(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flux_endpoint", "service", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=self._environment, text=True, **streams)  # type: ignore[call-overload, no-any-return]

    def start(self) -> None:
        self._process = self._command("run", "--port", str(self._port))
        assert self._process.stderr is not None
        said: list[str] = []
        for line in self._process.stderr:
            if "service ready" in line:
                return
            said.append(line)
        raise AssertionError("the service ended before it was ready:\n" + "".join(said))

    def ensure(self) -> None:
        """Start it again if it has ended."""
        if self._process.poll() is not None:
            self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def stop(self, signum: int = signal.SIGTERM) -> None:
        self._process.send_signal(signum)
        self._process.communicate()


class ThreadEndpoint:
    """Runs tasks on threads of this process, while it may."""

    def __init__(self, service: RunningService) -> None:
        rest = RestClient(Credentials(service.url, service.token))
        queues = rest.request(
            "POST", "/v3/endpoints", json={"endpoint_name": "lab", "public": True, "users": ["*"]}
        )
        rest.close()
        self.id: str = queues["endpoint_id"]
        self._publish = queues["result_queue_info"]["queue_publish_kwargs"]
        self._serializer = ComputeSerializer()
        url = queues["task_queue_info"]["connection_url"]
        self._connection = AmqpConnection(url, name="endpoint")
        self._connection.start()
        queue = queues["task_queue_info"]["queue"]
        self._closing = threading.Event()
        self.may_run = threading.Event()
        self.may_run.set()
        self._pool = ThreadPoolExecutor(8)
        self._connection.consume(queue, self._take, prefetch=500, exclusive=True)

    def _take(self, delivery: Delivery) -> None:
        self._pool.submit(self._run, delivery)

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
        while True:
            try:
                self._connection.publish(*keys, pack(result)).result(TIMEOUT)
            except PublishError:
                # As endpoints do: while no service answers, the broker takes nothing new.
                if self._closing.wait(RETRY):
                    return
            else:
                break
        delivery.ack()

    def close(self) -> None:
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)
        self._connection.close()
